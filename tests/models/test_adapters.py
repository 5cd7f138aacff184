"""Adapters: where they start, what stays frozen, and masks of ranks that are the same at all tokens."""

import copy
import math

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.func import functional_call

from models.adapters import LAYERS, Adapted, adapter_prior, rank_dropout, with_adapters
from models.classification import Classification
from models.transformer import VisionTransformer
from pyro_dropout import BayesianModule, DropoutPredictive, TraceDropout_ELBO
from tests.support.enumeration import all_masks
from tests.support.scenarios import assert_same_mean, gradients

RANK, V = 2, "blocks.0.v"


def images(n=4):
    return torch.randn(n, 3, 2, dtype=torch.float64), torch.arange(n) % 3


def adapted(layers=("v",), rank=RANK, dropout=0.0):
    """A tiny network, not at its start any more."""
    net = VisionTransformer(tokens=3, features=2, classes=3, width=4, depth=1, heads=2)
    net = with_adapters(net, rank, dropout, layers).double()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
        elif "head" in name:
            parameter.data *= 3  # so that masks matter
    return net


def bayesian(net, size=10):
    """In evaluation mode, as Pyro's global store warns of frozen parameters of a network in training mode."""
    return Classification(BayesianModule(net, adapter_prior(), event_dim=2), size).eval()


def masked(net, x, masks, keep):
    """Logits of the network whose ``down`` weights wear a mask, in plain torch: by layer ``masks [rank]``."""
    found = {f"{n}.down.weight": net.get_submodule(n).down.weight * (z / keep)[:, None] for n, z in masks.items()}
    return functional_call(net, found, (x,))


# Where they start, and what stays as it is


def test_adapters_start_as_nothing():
    net, x = VisionTransformer(), torch.rand(5, 28, 28)
    before = copy.deepcopy(net)
    new = with_adapters(net, rank=4, dropout=0.5)
    assert torch.equal(new(x), net(x))
    assert all(parameter.requires_grad for parameter in net.parameters())  # the network itself is another one
    for found, expected in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert new.blocks[0].q.base.weight is not net.blocks[0].q.weight


def test_what_is_learnable_is_adapters_alone():
    net = with_adapters(VisionTransformer(depth=2), rank=4)
    expected = {f"blocks.{b}.{n}.{side}.weight" for b in range(2) for n in LAYERS for side in ("down", "up")}
    assert {name for name, parameter in net.named_parameters() if parameter.requires_grad} == expected
    assert set(BayesianModule(net, adapter_prior()).slots) == expected
    assert [tuple(p.shape) for p in net.blocks[1].hidden.down.parameters()] == [(4, 32)]
    assert [tuple(p.shape) for p in net.blocks[1].hidden.up.parameters()] == [(64, 4)]


def test_layers_that_there_are_not():
    with pytest.raises(ValueError, match="layers must name linear layers of VisionTransformer, but found query, norm"):
        with_adapters(VisionTransformer(), rank=4, layers=("query", "norm"))


def test_the_prior_has_the_lengthscale_that_is_given():
    sites = poutine.trace(BayesianModule(adapted(), adapter_prior(4.0), event_dim=2).eval()).get_trace(images()[0])
    for name in sites.stochastic_nodes:
        assert (sites.nodes[name]["fn"].base_dist.stddev == 0.25).all()


@pytest.mark.parametrize("way", ["torch", "pyro"])
def test_training_leaves_the_base_as_it_was(way):
    """In training mode with a guide's own parameters, and by stock SVI with the global store."""
    pyro.settings.set(module_local_params=way == "torch")
    net, (x, y) = adapted(LAYERS), images()
    model = bayesian(net).train(way == "torch")
    guide = rank_dropout(model)
    frozen = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert len(frozen) == sum("down" not in name and "up" not in name for name, _ in net.named_parameters())
    guide(x, y)
    learned = {name: parameter.detach().clone() for name, parameter in guide.named_parameters()}
    assert len(learned) == 3 * len(LAYERS)  # down, up and the ranks' logits
    if way == "torch":
        elbo = TraceDropout_ELBO(max_plate_nesting=1)(model, guide)
        optimiser = torch.optim.Adam(elbo.parameters(), 0.1)  # of model and guide
        for _ in range(3):
            optimiser.zero_grad()
            elbo(x, y).backward()
            optimiser.step()
    else:
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceDropout_ELBO(max_plate_nesting=1))
        for _ in range(3):
            svi.step(x, y)
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, frozen[name])
    for name, parameter in guide.named_parameters():
        assert (parameter != learned[name]).all(), name


# Masks


def test_a_draw_is_the_network_whose_down_weights_wear_the_mask():
    net, (x, y) = adapted(LAYERS, rank=3), images(5)
    model = bayesian(net)
    guide = rank_dropout(model, rate=0.4)
    guide(x, y)
    for _ in range(5):
        trace = poutine.trace(guide).get_trace(x)
        masks = {n: trace.nodes[f"net.blocks.0.{n}.down.output.mask"]["value"] for n in LAYERS}
        logits = masked(net, x, {f"blocks.0.{n}": z for n, z in masks.items()}, keep=0.6)
        found = poutine.trace(poutine.replay(model, trace)).get_trace(x).nodes["probs"]["value"]
        torch.testing.assert_close(found, logits.softmax(-1))


def possible(net, x, keep):
    """Class probabilities ``[masks, N, classes]`` under each mask that is the same at all tokens."""
    return torch.stack([masked(net, x, {V: z}, keep) for z in all_masks(RANK)]).softmax(-1)


def distances(found, every):
    """From each datum's probabilities to the nearest of the possible ones."""
    return (found.unsqueeze(-3) - every).abs().amax(-1).amin(-2)


def test_a_mask_of_a_datum_is_the_same_at_all_tokens():
    """Each datum has one of four outputs, and data differ in which; with dropout per token there are others."""
    net, (x, y) = adapted(), images(6)
    model = bayesian(net)
    guide = rank_dropout(model, rate=0.5)
    guide(x, y)
    predict = DropoutPredictive(model, guide=guide, num_samples=40, return_sites=["probs"], masks="datum")
    every = possible(net, x, keep=0.5)
    found = predict(x)["probs"].reshape(40, 6, 3)
    assert distances(found, every).max() < 1e-9
    which = (found.unsqueeze(1) - every).abs().amax(-1).argmin(1)  # [40, 6]
    assert all(len(set(row.tolist())) == 4 for row in which.T)
    assert any(len(set(row.tolist())) > 1 for row in which)
    passes = copy.deepcopy(net).train()
    passes.blocks[0].v.drop = nn.Dropout(0.5)
    assert distances(torch.stack([passes(x).softmax(-1) for _ in range(40)]), every).max() > 1e-3


def test_dropout_without_a_guide_stands_where_the_guide_has_it():
    """On a single token both are the same: the mean over passes is that over masks."""
    net = Adapted(nn.Linear(3, 2), rank=2, dropout=0.3)
    nn.init.normal_(net.up.weight)
    x = torch.randn(1, 3)
    z = all_masks(2).float()
    outputs = torch.stack([net.base(x) + net.up(net.down(x) * mask / 0.7) for mask in z])
    share = (0.7**z * 0.3 ** (1 - z)).prod(1)
    passes = torch.stack([net(x) for _ in range(4000)]).detach()
    assert_same_mean(passes.flatten(1), (share @ outputs.flatten(1)).detach())
    assert_same_mean(passes.flatten(1).square(), (share @ outputs.flatten(1).square()).detach())
    assert torch.equal(net.eval()(x), net.base(x) + net.up(net.down(x)))


def exact(net, x, y, logits, scale):
    """The loss by all masks of the ranks, and its gradients of ``down``, ``up`` and the keep logits."""
    down, up = (getattr(net.get_submodule(V), side).weight for side in ("down", "up"))
    keep, total = torch.sigmoid(logits), 0.0
    for z in all_masks(RANK):
        log_q = (z * keep.log() + (1 - z) * (1 - keep).log()).sum()
        log_p = masked(net, x, {V: z}, keep).log_softmax(-1).gather(1, y[:, None]).sum()
        total = total + log_q.exp() * (log_q - scale * log_p)
    penalty = (down.square() / keep[:, None]).sum() + up.square().sum()
    loss = total + 0.5 * penalty + 0.5 * (down.numel() + up.numel()) * math.log(2 * math.pi)
    return loss.detach(), torch.autograd.grad(loss, (down, up, logits))


@pytest.mark.parametrize(("masks", "copies", "draws"), [("draw", 1, 2000), ("datum", 40, 150)])
def test_rates_of_ranks_learn_by_an_unbiased_gradient(masks, copies, draws):
    net, (x, y) = adapted(), images()
    scale = 2.5 * copies
    model = bayesian(net, size=round(scale * len(x)))
    guide = rank_dropout(model, rate=0.3)
    guide(x, y)
    logits = dict(guide.named_parameters())[f"logits.net.{V}.down.output_unconstrained"]
    logits.data += torch.tensor([-0.5, 1.0], dtype=torch.float64)
    value, expected = exact(net, x, y, logits.detach().clone().requires_grad_(), scale)
    loss = TraceDropout_ELBO(masks=masks, max_plate_nesting=1)
    data = x.repeat(copies, 1, 1), y.repeat(copies)
    losses, found = gradients(loss, model, guide, *data, draws)
    assert_same_mean(losses, value)
    names = (f"locs.net.{V}.down.weight", f"locs.net.{V}.up.weight", f"logits.net.{V}.down.output")
    assert len(found) == len(names)
    for name, gradient in zip(names, expected, strict=True):
        assert_same_mean(found[f"{name}_unconstrained"], gradient.flatten())
        assert gradient.abs().max() > 0.1
