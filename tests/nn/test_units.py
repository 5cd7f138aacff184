"""Which parameters have units to mask: input units of known layers, words of embeddings, nothing else."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pyro_dropout import AutoBernoulliDropout, BayesianModule


class VisionTransformer(nn.Module):
    """Small, with what such networks have beside weights: a class token, positions, gains, LayerScale."""

    def __init__(self, width=8, patches=4):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, patches + 1, width))
        self.gain, self.scale = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.full((width, 1, 1), 0.1))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True, add_bias_kv=True)
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x):
        h = (self.scale * self.patch(x)).flatten(2).mT
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.positions
        h = h + self.attention(self.norm(h), h, h, need_weights=False)[0]
        return self.gain * self.last(h[:, 0])


def units(net):
    return {name: slot.units for name, slot in BayesianModule(net)._slots.items() if slot.units is not None}


def test_of_a_vision_transformer_only_weights_are_masked():
    net = VisionTransformer()
    masked = {"patch.weight", "attention.in_proj_weight", "attention.out_proj.weight", "last.weight"}
    assert units(net).keys() == masked
    module, x = BayesianModule(net, event_dim=3), torch.randn(5, 3, 8, 8)
    guide = AutoBernoulliDropout(module, rate=0.3)
    draws = guide(x)
    assert guide.rates().keys() == masked
    for name in ("token", "positions", "gain", "scale"):
        assert torch.equal(draws[name], getattr(net, name))  # point estimates, never 0


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(3, 4), {"weight": (1, 3)}),
        (nn.Conv2d(4, 6, 3, groups=2), {"weight": (1, 4)}),
        (nn.ConvTranspose2d(4, 6, 3), {"weight": (0, 4)}),
        (nn.Embedding(11, 4), {"weight": (0, 11)}),
        (nn.EmbeddingBag(11, 4), {"weight": (0, 11)}),
        (nn.LSTM(3, 4), {"weight_ih_l0": (1, 3), "weight_hh_l0": (1, 4)}),
        (nn.GRUCell(3, 4), {"weight_ih": (1, 3), "weight_hh": (1, 4)}),
        (nn.LayerNorm((3, 4)), {}),
        (nn.Bilinear(3, 4, 2), {}),
        (parametrizations.weight_norm(nn.Linear(3, 4)), {}),
        (parametrizations.spectral_norm(nn.Linear(3, 4)), {}),
        (parametrizations.orthogonal(nn.Linear(3, 4)), {}),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, nn.Module) else "",
)
def test_units_of_layers(layer, expected):
    found = {name: (u.dim, u.count(dict(layer.named_parameters())[name].shape)) for name, u in units(layer).items()}
    assert found == expected


def test_dropped_words_are_zero_and_others_are_scaled():
    net = nn.Embedding(50, 4)
    module, x = BayesianModule(net, event_dim=0), torch.arange(50)
    guide = AutoBernoulliDropout(module, rate=0.4)
    guide(x)
    out = nn.functional.embedding(x, guide(x)["weight"])
    kept = out.any(1)
    assert 0 < kept.sum() < 50
    torch.testing.assert_close(out[kept], net.weight[kept] / 0.6)


def test_a_parametrised_network_has_no_weight_to_mask():
    module = BayesianModule(parametrizations.weight_norm(nn.Linear(3, 4)))
    with pytest.raises(ValueError, match="no weight site"):
        AutoBernoulliDropout(module, rate=0.3)(torch.randn(5, 3))


@pytest.mark.parametrize(
    "prior",
    [
        lambda p: dist.Normal(0.0, p.exp()),
        lambda p: dist.Normal(p, 1.0),
        lambda p: dist.Laplace(0.0, p.exp()).expand([3, 3]).to_event(2),
    ],
)
def test_a_prior_that_is_to_learn_is_refused(prior):
    """It was detached, and stayed as it was."""
    parameter = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=r"prior of 'weight' has .*(scale|loc).* priors of BayesianModule are fixed"):
        BayesianModule(nn.Linear(3, 3, bias=False), prior=prior(parameter))
