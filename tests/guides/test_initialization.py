"""Where guides start: from the module's own weights, and otherwise as torch.nn starts a layer."""

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal, init_to_median
from torch import nn

from pyro_dropout import AutoConcreteDropout, BayesianModule, init_to_module


def test_loc_starts_from_the_modules_own_weights_and_so_do_biases(data):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    model = BayesianModule(net)
    guide = AutoConcreteDropout(model)
    guide(data[0])
    for name, value in guide.median().items():
        assert torch.equal(value, net.get_parameter(name)), name


def test_initial_values_are_the_modules_own_and_other_layers_start_within_their_fan_in():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    bayesian = BayesianModule(net)
    guide = AutoNormal(bayesian, init_loc_fn=init_to_module(fallback=init_to_median))
    guide(torch.zeros(2, 3))
    assert torch.equal(guide.median()["0.weight"], net[0].weight)
    site = {"infer": {}, "fn": dist.Normal(0.0, 1.0).expand([50, 16]).to_event(2), "name": "w"}
    value = init_to_module(site)
    assert 0.2 < value.abs().max() <= 0.25  # 1 / sqrt(16)
    assert init_to_module({**site, "fn": dist.Normal(0.0, 1.0)}) is None
