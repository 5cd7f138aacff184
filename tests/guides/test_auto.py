"""The two families of guides: hard masks and relaxed ones, at fixed rates and at learned ones."""

from functools import partial

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, BayesianModule, TraceDropout_ELBO
from pyro_dropout.masks import ConcreteMask
from tests.support.fits import train
from tests.support.scenarios import FixedNoise, double_mlp


@pytest.mark.parametrize("make", [AutoConcreteDropout, partial(AutoBernoulliDropout, learnable=True)])
def test_learned_rates_move_and_a_rate_of_zero_does_not(make, data):
    model = Regression(3, size=20, hidden=(4,))
    guide = make(model, rate={"net.0.weight": 0.0, "net.2.weight": 0.1})
    train(model, guide, *data, steps=30)
    assert guide.rates()["net.0.weight"] == 0
    assert abs(guide.rates()["net.2.weight"] - 0.1) > 1e-3


def test_relaxed_masks_where_rates_are_learned_and_hard_ones_where_they_are_zero(data):
    guide = AutoConcreteDropout(Regression(3, size=20, hidden=(4,)), rate={"net.0.weight": 0.0, "net.2.weight": 0.1})
    nodes = poutine.trace(guide).get_trace(*data).nodes
    assert "net.0.weight.mask" not in nodes  # nothing is left to chance
    assert isinstance(nodes["net.2.weight.mask"]["fn"], ConcreteMask)


def test_relaxed_temperature_is_used():
    model = FixedNoise(double_mlp(), size=5)
    guide = AutoConcreteDropout(model, temperature=0.5)
    trace = pyro.poutine.trace(guide).get_trace(torch.zeros(5, 3, dtype=torch.float64))
    fn = trace.nodes["net.0.weight.mask"]["fn"]
    assert isinstance(fn, ConcreteMask)
    assert fn.temperature == 0.5


@pytest.mark.parametrize("make", [AutoBernoulliDropout, AutoConcreteDropout])
@pytest.mark.parametrize(
    ("kind", "shapes", "logits"),
    [({}, [(), ()], [1, 1]), ({"per_unit": True}, [(3,), (4,)], [3, 4]), ({"shared": True}, [(), ()], [1])],
    ids=["per site", "per unit", "shared"],
)
def test_one_logit_per_unit_per_site_or_for_all(make, kind, shapes, logits, data):
    model = Regression(3, size=20, hidden=(4,))
    guide = make(model, rate=0.3, **kind, **({"learnable": True} if make is AutoBernoulliDropout else {}))
    guide(*data)
    assert [p.numel() for name, p in guide.named_parameters() if name.startswith("logits")] == logits
    assert [tuple(rate.shape) for rate in guide.rates().values()] == shapes
    train(model, guide, *data, steps=20)
    rates = list(guide.rates().values())
    assert all(bool((rate != 0.3).all()) for rate in rates)
    assert torch.equal(*rates) if "shared" in kind else rates[0].flatten()[0] != rates[1].flatten()[0]


def test_hard_rates_are_learned_in_plates(data):
    net = BayesianModule(nn.Linear(3, 1))

    def model(x, y):
        with pyro.plate("networks", 2, dim=-2):
            mean = net(x).squeeze(-1)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    for kind, shape in (({}, (2, 1)), ({"per_unit": True}, (2, 1, 3)), ({"shared": True}, (2, 1))):
        guide = AutoBernoulliDropout(model, learnable=True, **kind)
        train(model, guide, *data)
        assert guide.rates()["weight"].shape == shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_unit": True}, "per_unit and shared say how rates are learned: give learnable=True too"),
        ({"shared": True}, "give learnable=True too"),
        ({"learnable": True, "per_unit": True, "shared": True}, "choose one"),
    ],
)
def test_wrong_ways_to_learn(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoBernoulliDropout(Regression(3, size=20), **arguments)


@pytest.mark.parametrize("rate", [{"net.0.weight": 0.1, "net.2.weight": 0.2}, lambda name: torch.full((3,), 0.1)])
def test_rates_that_differ_cannot_be_shared(rate, data):
    guide = AutoBernoulliDropout(Regression(3, size=20, hidden=(3,)), rate, learnable=True, shared=True)
    with pytest.raises(ValueError, match=r"shared=True learns one rate for all sites, but site 'net\.[02]\.weight'"):
        guide(*data)


@pytest.mark.parametrize("make", [AutoConcreteDropout, partial(AutoBernoulliDropout, learnable=True)])
def test_learned_rates_follow_the_data(make):
    """CD section 2: data push a rate to 0; the entropy holds up that of an input that explains nothing."""
    x = torch.randn(2000, 2)
    y = 2 * x[:, 0] + 0.5 * torch.randn(2000)
    model = Regression(2, size=2000, hidden=())
    guide = make(model, rate=0.3, per_unit=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceDropout_ELBO())
    history = []
    for step in range(800):
        index = torch.arange(100) + 100 * (step % 20)
        svi.step(x[index], y[index])
        history.append(guide.rates()["net.0.weight"])
    rates = torch.stack(history[-400:]).mean(0)
    assert rates[0] < 0.01
    assert rates[1] > 0.05


def test_wrong_temperature():
    with pytest.raises(ValueError, match="temperature must be positive, but found -1"):
        AutoConcreteDropout(Regression(3, size=20), temperature=-1)


def test_a_rate_that_starts_at_zero_for_some_units_cannot_be_learned(data):
    rate = {"net.0.weight": torch.tensor([0.0, 0.1, 0.1]), "net.2.weight": 0.1}
    guide = AutoConcreteDropout(Regression(3, size=20), rate=rate)
    with pytest.raises(ValueError, match=r"'net.0.weight': a learned rate cannot start at 0 for some units"):
        guide(*data)
