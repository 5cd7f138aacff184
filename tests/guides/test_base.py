"""What dropout guides share: their sites, rates and quantiles, plates, the guide of the rest, and named errors."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, BayesianModule, TraceDropout_ELBO
from pyro_dropout.masks import BernoulliMask
from tests.support.fits import train
from tests.support.scenarios import FixedNoise, assert_same_mean


def test_a_weight_site_is_a_mask_and_a_point_mass_at_the_masked_weight(data):
    guide = AutoBernoulliDropout(Regression(3, size=20, hidden=(4,)), rate=0.5)
    trace = poutine.trace(guide).get_trace(*data)
    mask, weight = trace.nodes["net.2.weight.mask"], trace.nodes["net.2.weight"]
    assert isinstance(mask["fn"], BernoulliMask)
    assert mask["infer"]["is_auxiliary"]
    assert mask["value"].shape == (4,)
    assert weight["value"].mask is mask["value"]
    loc = guide.median()["net.2.weight"]
    torch.testing.assert_close(weight["value"].dense(), loc * mask["value"] / 0.5)


def test_masks_can_be_conditioned_on_and_replayed(data):
    guide = AutoConcreteDropout(Regression(3, size=20, hidden=(4,)))
    guide(*data)
    z = torch.tensor([1.0, 0.0, 0.5])
    conditioned = poutine.condition(guide, {"net.0.weight.mask": z})
    assert torch.equal(conditioned(*data)["net.0.weight"].mask, z)
    trace = poutine.trace(guide).get_trace(*data)
    replayed = poutine.replay(guide, trace=trace)(*data)
    assert torch.equal(replayed["net.0.weight"].dense(), trace.nodes["net.0.weight"]["value"].dense())


def test_median_is_the_weight_averaged_network(data):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    model = BayesianModule(net)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(data[0])
    torch.testing.assert_close(poutine.condition(model, guide.median())(data[0]), net(data[0]))


def test_mean_of_the_draws_is_loc(data):
    guide = AutoBernoulliDropout(BayesianModule(nn.Linear(3, 2)), rate=0.3)
    guide(data[0])
    draws = Predictive(guide, num_samples=4000)(data[0])["weight"].dense().flatten(1)
    assert_same_mean(draws.detach().double(), guide.median()["weight"].flatten().double())


@pytest.mark.parametrize("make", [AutoBernoulliDropout, partial(AutoConcreteDropout, temperature=0.4)])
def test_quantiles_are_those_of_draws(make, data):
    model = Regression(3, size=20, hidden=(2,))
    guide = make(model, rate=0.3, rest=AutoNormal)
    guide(*data)
    levels = [0.1, 0.2, 0.5, 0.9]
    quantiles = guide.quantiles(levels)
    draws = Predictive(guide, num_samples=20_000, parallel=True)(*data)["net.0.weight"]
    draws = draws.dense().flatten(0, -3)
    for q, exact in zip(levels, quantiles["net.0.weight"], strict=True):
        below = (draws <= exact + 1e-6).double().mean(0)
        at_most = (draws < exact - 1e-6).double().mean(0)
        assert bool((below >= q - 0.02).all())
        assert bool((at_most <= q + 0.02).all())
    assert quantiles["precision"].shape[0] == 4


def test_rates_report_the_probability_of_dropping():
    model = Regression(3, size=20, hidden=(4,))
    x = torch.zeros(5, 3)
    for rate, expected in (
        (0.2, {"net.0.weight": 0.2, "net.2.weight": 0.2}),
        ({"net.0.weight": 0.0, "net.2.weight": 0.4}, {"net.0.weight": 0.0, "net.2.weight": 0.4}),
        (lambda name: 0.1 if "0" in name else 0.3, {"net.0.weight": 0.1, "net.2.weight": 0.3}),
    ):
        for guide_class in (AutoBernoulliDropout, AutoConcreteDropout):
            guide = guide_class(model, rate=rate)
            guide(x)
            assert {k: v.shape for k, v in guide.rates().items()} == dict.fromkeys(expected, ())
            assert {k: v.item() for k, v in guide.rates().items()} == pytest.approx(expected)
    per_unit = {"net.0.weight": torch.tensor([0.1, 0.2, 0.3]), "net.2.weight": 0.5}
    guide = AutoConcreteDropout(model, rate=per_unit)
    guide(x)
    torch.testing.assert_close(guide.rates()["net.0.weight"], per_unit["net.0.weight"])


def test_weights_in_a_plate_have_rates_of_their_own():
    net = BayesianModule(nn.Linear(3, 1), event_dim=1)

    def model(x, y=None):
        with pyro.plate("networks", 4, dim=-2):
            mean = net(x).squeeze(-1)
            with pyro.plate("data", x.shape[-2], dim=-1):
                return pyro.sample("obs", dist.Normal(mean, 0.1), obs=y)

    x = torch.randn(4, 30, 3)
    y = x.sum(-1)
    guide = AutoConcreteDropout(model, rate=0.4)
    losses = train(model, guide, x, y, steps=60)
    assert losses[-1] < losses[0]
    assert guide.rates()["weight"].shape == (4, 1)
    assert len(set(guide.rates()["weight"].flatten().tolist())) == 4


def test_rest_may_be_any_guide(data):
    model = Regression(3, size=20, hidden=(4,))
    for rest in (AutoDelta, AutoNormal, partial(AutoNormal, init_scale=0.01)):
        guide = AutoConcreteDropout(model, rest=rest)
        assert "precision" in guide(*data)
    without = BayesianModule(nn.Linear(3, 1, bias=False))
    guide = AutoConcreteDropout(without)
    assert set(guide(data[0])) == {"weight"}


# Errors


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (1.0, r"'net.0.weight'.*rate is the probability of dropping.*\[0, 1\).*found"),
        ("0.1", r"'net.0.weight': rate '0.1' is not usable"),
        (lambda name: None, r"'net.0.weight': rate None is not usable"),
        (-0.1, r"'net.0.weight'.*\[0, 1\)"),
        (torch.full((7,), 0.1), r"'net.0.weight'.*a mask over 3 units takes one rate or 3.*\(7,\)"),
        ({"net.0.weight": 0.1}, r"missing \['net.2.weight'\]"),
        ({"net.0.weight": 0.1, "net.2.weight": 0.1, "nat": 0.2}, r"no such mask \['nat'\]"),
    ],
)
@pytest.mark.parametrize("guide_class", [AutoBernoulliDropout, AutoConcreteDropout])
def test_wrong_rates_name_the_site(rate, message, guide_class, data):
    guide = guide_class(Regression(3, size=20, hidden=(4,)), rate=rate)
    for _ in range(2):  # the second call does not run with half a guide
        with pytest.raises(ValueError, match=message):
            guide(*data)


def test_no_weight_sites_raises():
    guide = AutoBernoulliDropout(lambda: pyro.sample("w", dist.Normal(0.0, 1.0)))
    with pytest.raises(ValueError, match=r"found no weight site.*found w: declare weights with .to_event\(2\)"):
        guide()


def test_weights_inside_the_data_plate_raise():
    net = BayesianModule(nn.Linear(3, 1))

    def model(x):
        with pyro.plate("data", len(x)):
            net(x)

    with pytest.raises(ValueError, match=r"'weight' is inside plate 'data' at dim -1.*outside.*dim=-2"):
        AutoBernoulliDropout(model)(torch.zeros(5, 3))


def test_weights_with_a_constrained_prior_raise():
    guide = AutoBernoulliDropout(BayesianModule(nn.Linear(3, 1), prior=dist.HalfNormal(1.0)))
    with pytest.raises(ValueError, match=r"'weight' has support.*real support.*poutine.block"):
        guide(torch.zeros(5, 3))


def test_constrained_matrices_belong_to_the_rest(data):
    """Correlated noise of two outputs: its Cholesky factor is no weight, and starts inside its support."""
    x, y = data
    net = BayesianModule(nn.Linear(3, 2))

    def model(x, y=None):
        factor = pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(1.0)))
        mean = net(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.MultivariateNormal(mean, scale_tril=factor), obs=y)

    guide = AutoBernoulliDropout(model, rate=0.2)
    loss = TraceDropout_ELBO().loss(model, guide, x, torch.stack([y, -y], -1))
    assert math.isfinite(loss)
    assert guide.rates().keys() == {"weight"}
    factor = guide.median()["factor"]
    torch.testing.assert_close((factor @ factor.mT).diagonal(), torch.ones(2))


def test_the_first_call_leaves_running_statistics_as_they_were(data):
    x, y = data
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = FixedNoise(net, size=len(x))
    norm = model.net._modules["net"][1]
    AutoBernoulliDropout(model, rate=0.3)(x, y)
    assert norm.num_batches_tracked == 0
    assert not norm.running_mean.any()
