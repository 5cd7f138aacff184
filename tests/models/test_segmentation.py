"""FC-DenseNet by its published sizes and by hand; the softmax of labelled pixels; the KL in the paper's form."""

import math

import pyro
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F

from models.segmentation import (
    FC_DENSENET56,
    FC_DENSENET67,
    FC_DENSENET103,
    SMALL,
    FCDenseNet,
    Segmentation,
    has_dropout,
)
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, DropoutPredictive, TraceDropout_ELBO

TINY = {"first": 4, "down": (2, 1), "middle": 2, "up": (1, 2), "growth": 2}


@pytest.fixture(autouse=True)
def _settled():
    pyro.set_rng_seed(0)
    with pyro.settings.context(module_local_params=True):
        yield


@pytest.mark.parametrize(
    ("sizes", "dropouts", "millions"),
    [(SMALL, 23, 0.2), (FC_DENSENET56, 49, 1.4), (FC_DENSENET67, 60, 3.5), (FC_DENSENET103, 96, 9.3)],
)
def test_published_sizes(sizes, dropouts, millions):
    with torch.device("meta"):
        net = FCDenseNet(11, **sizes)
    names = [name for name, _ in net.named_parameters() if name.endswith("weight") and has_dropout(name)]
    assert len(names) == dropouts
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_maps_are_those_of_the_paper():
    with torch.device("meta"):
        net = FCDenseNet(11)
    assert [pooling.masked.in_channels for pooling in net.poolings] == [112, 192, 304, 464, 656]
    assert [up.layers[-1].masked.in_channels + 16 for up in net.up] == [1088, 816, 576, 384, 256]
    assert net.middle.layers[-1].masked.in_channels + 16 == 896


def by_hand(net, x):
    """Written out for two poolings."""

    def conv(layer, x):
        return layer.masked(F.relu(layer.norm(x)))

    h = net.first(x)
    a = conv(net.down[0].layers[0], h)
    b = conv(net.down[0].layers[1], torch.cat([h, a], 1))
    one = torch.cat([h, a, b], 1)
    h = F.max_pool2d(conv(net.poolings[0], one), 2)
    two = torch.cat([h, conv(net.down[1].layers[0], h)], 1)
    h = F.max_pool2d(conv(net.poolings[1], two), 2)
    a = conv(net.middle.layers[0], h)
    b = conv(net.middle.layers[1], torch.cat([h, a], 1))
    up = net.upsamplings[0](torch.cat([a, b], 1))
    height, width = two.shape[-2:]
    h = torch.cat([up[..., :height, :width], two], 1)  # of sizes 2 n + 1 the centre of 2 n or 2 n + 1 starts at 0
    up = net.upsamplings[1](conv(net.up[0].layers[0], h))
    height, width = one.shape[-2:]
    h = torch.cat([up[..., :height, :width], one], 1)
    a = conv(net.up[1].layers[0], h)
    b = conv(net.up[1].layers[1], torch.cat([h, a], 1))
    return net.last(torch.cat([h, a, b], 1))


@pytest.mark.parametrize("size", [(8, 12), (9, 7), (5, 14)])
def test_the_network_by_hand(size):
    net = FCDenseNet(3, **TINY).eval()
    x = torch.randn(2, 3, *size)
    assert net(x).shape == (2, 3, *size)
    torch.testing.assert_close(net(x), by_hand(net, x))


def test_blocks_must_match():
    with pytest.raises(ValueError, match="as many blocks, but found 2 and 1"):
        FCDenseNet(3, down=(2, 2), up=(2,))


def test_pixels_without_a_label_count_for_nothing():
    model = Segmentation(FCDenseNet(3, **TINY), size=10, ignored=7)
    guide = AutoBernoulliDropout(model, rate=lambda site: 0.3 if has_dropout(site) else 0.0)
    x, y = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    y[0, :4] = 7
    trace = poutine.trace(guide).get_trace(x, y)
    trace = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x, y)
    trace.compute_log_prob()
    log_probs = trace.nodes["probs"]["value"].log()  # [N, height, width, classes]
    by_image = [log_probs[n][y[n] != 7].gather(-1, y[n][y[n] != 7].unsqueeze(-1)).sum() for n in range(2)]
    torch.testing.assert_close(trace.nodes["obs"]["log_prob"], 10 / 2 * torch.stack(by_image))
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    torch.testing.assert_close(trace.nodes["entropy"]["value"], entropy)


def test_the_kl_is_the_printed_regulariser():
    """CD section 4.4, of a loss that is the mean over pixels: l²/(2 N H W keep) ‖M‖² - K/(N H W) entropy, by layer."""
    size, lengthscale, side = 20, 1.3, 8
    net = FCDenseNet(3, **TINY)
    model = Segmentation(net, size, lengthscale)
    guide = AutoConcreteDropout(model, rate=lambda site: 0.3 if has_dropout(site) else 0.0)
    x, y = torch.randn(1, 3, side, side), torch.randint(3, (1, side, side))
    loss = TraceDropout_ELBO(masks="draw")
    values = []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        values.append(loss.loss(model, guide, x, y))
        pyro.set_rng_seed(seed)
        trace = poutine.trace(guide).get_trace(x, y)
        trace = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x, y)
        cross_entropy = -trace.nodes["probs"]["value"].log().gather(-1, y.unsqueeze(-1)).mean().item()
        pixels = size * side * side
        expected = cross_entropy
        for name, parameter in net.named_parameters():
            keep, entropy = 1.0, 0.0
            if name.endswith("weight") and has_dropout(name) and parameter.dim() == 4:
                keep = 1 - 0.3
                entropy = -parameter.shape[1] * (0.3 * math.log(0.3) + keep * math.log(keep))
            weight = lengthscale**2 / (2 * pixels * keep) * parameter.square().sum().item()
            constant = parameter.numel() * math.log(math.sqrt(2 * math.pi) / lengthscale) / pixels
            expected += weight + constant - entropy / pixels
        assert values[-1] / pixels == pytest.approx(expected, rel=1e-4)


def test_means_over_draws_are_streamed():
    """Probabilities and entropies of a few functions, of which none is kept."""
    model = Segmentation(FCDenseNet(3, **TINY), size=10)
    guide = AutoConcreteDropout(model, rate=lambda site: 0.3 if has_dropout(site) else 0.0)
    x = torch.randn(3, 3, 8, 8)
    guide(x, torch.zeros(3, 8, 8, dtype=torch.long))
    sites = ["probs", "entropy"]
    kept = DropoutPredictive(model, guide=guide, num_samples=6, return_sites=sites, seed=1)(x)
    assert kept["probs"].shape == (6, 3, 8, 8, 3)
    one = 3 * 8 * 8 * 4 * 50  # bytes of what a draw of an image takes, some layers included
    moments = DropoutPredictive(
        model, guide=guide, num_samples=6, return_sites=sites, seed=1, max_memory=40 * one
    ).moments(x)
    torch.testing.assert_close(moments["probs"].mean, kept["probs"].mean(0))
    torch.testing.assert_close(moments["entropy"].mean, kept["entropy"].mean(0))
    assert (moments["entropy"].mean <= -torch.xlogy(kept["probs"].mean(0), kept["probs"].mean(0)).sum(-1) + 1e-5).all()


def test_autocast_is_of_the_network_alone():
    torch.manual_seed(0)
    net = FCDenseNet(3, **TINY)
    x, y = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    found = {}
    for autocast in (None, torch.bfloat16):
        model = Segmentation(net, size=10, autocast=autocast)
        guide = AutoConcreteDropout(model, rate=lambda site: 0.3 if has_dropout(site) else 0.0)
        guide(x, y)
        pyro.set_rng_seed(0)
        trace = poutine.trace(poutine.replay(model, trace=poutine.trace(guide).get_trace(x, y))).get_trace(x, y)
        assert trace.nodes["probs"]["value"].dtype == torch.float32
        found[autocast] = trace.nodes["probs"]["value"]
        loss = TraceDropout_ELBO(masks="draw").differentiable_loss(model, guide, x, y)
        loss.backward()
        assert all(p.grad.dtype == torch.float32 for p in guide.parameters() if p.grad is not None)
    difference = (found[None] - found[torch.bfloat16]).abs()
    assert 0 < difference.max() < 0.1
