"""The handler: enumeration, closed form by NUTS on real data, SVI, and models it must refuse."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from scipy.stats import invgamma
from sklearn.datasets import load_diabetes, load_linnerud
from torch import nn

from models.linear import LinearRegression, LogisticRegression
from pyro_dropout import BayesianModule
from pyro_dropout.entropic import EntropicLinearRegression, entropic_dropout
from tests.support.enumeration import all_masks
from tests.support.scenarios import assert_same_mean

F64 = torch.float64


def log_joint(model, values, *args):
    trace = poutine.trace(poutine.condition(model, values)).get_trace(*args)
    return trace.log_prob_sum()


def regression(n=7, p=4):
    x = torch.randn(n, p, dtype=F64)
    return x, x[:, 0] + torch.randn(n, dtype=F64)


# What the density is


@pytest.mark.parametrize("expectation", ["enumerate", "moments"])
def test_linear_regression_has_the_density_of_the_closed_form(expectation):
    """Up to log Z, at any parameters."""
    x, y = regression()
    rate = torch.tensor([0.1, 0.5, 0.0, 0.8])
    model = entropic_dropout(LinearRegression(0.7, 1.5, 0.8), rate={"w": rate}, expectation=expectation)
    exact = EntropicLinearRegression(rate.numpy(), 0.7, 1.5, 0.8, fit_intercept=False).fit(x, y)
    for _ in range(4):
        w, variance = torch.randn(4, dtype=F64), torch.rand((), dtype=F64) + 0.3
        expected = exact.posterior_.log_prob(torch.cat([w, variance[None]])) + exact.log_normalizer()
        found = log_joint(model, {"w": w, "variance": variance}, x, y)
        assert float(found) == pytest.approx(float(expected), abs=1e-9)


def test_logistic_regression_by_hand():
    x, y = regression()
    y = (y > 0).double()
    model = entropic_dropout(LogisticRegression(), rate={"w": 0.3})
    w, b = torch.randn(4, dtype=F64), torch.tensor(0.4, dtype=F64)
    z = all_masks(4)
    q = (0.7 * z + 0.3 * (1 - z)).prod(1)
    each = torch.stack([dist.Bernoulli(logits=b + x @ (w * zs)).log_prob(y).sum() for zs in z])
    zero = torch.zeros((), dtype=F64)
    prior = dist.Normal(zero, 1.0).log_prob(w).sum() + dist.Normal(zero, 10.0).log_prob(b)
    found = log_joint(model, {"w": w, "intercept": b}, x, y)
    assert float(found) == pytest.approx(float(q @ each + prior), abs=1e-9)


def test_rate_zero_is_the_model_itself():
    x, y = regression()
    values = {"w": torch.randn(4, dtype=F64), "variance": torch.tensor(0.7, dtype=F64)}
    for expectation in ("enumerate", "moments", "bank", "fresh"):
        model = entropic_dropout(LinearRegression(), rate={"w": 0.0}, expectation=expectation)
        assert float(log_joint(model, values, x, y)) == pytest.approx(
            float(log_joint(LinearRegression(), values, x, y))
        )


def network(x, y=None):
    mean = network.net(x).squeeze(-1)
    with pyro.plate("data", 20, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def test_weights_of_a_network_drop_their_input_units():
    """Two layers at once, by enumeration with dense weights; the mini-batch is scaled by its plate."""
    x, y = regression(5, 2)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    network.net = BayesianModule(net)
    values = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    model = entropic_dropout(network, rate={"0.weight": 0.2, "2.weight": 0.5})
    total = 0.0
    for z in all_masks(5):
        q = 0.8 ** z[:2].sum() * 0.2 ** (2 - z[:2].sum()) * 0.5**3
        h = torch.tanh(F.linear(x, values["0.weight"] * z[:2], values["0.bias"]))
        mean = F.linear(h, values["2.weight"] * z[2:], values["2.bias"]).squeeze(-1)
        total = total + q * dist.Normal(mean, 0.5).log_prob(y).sum() * 20 / 5
    prior = sum(dist.Normal(0.0, 1.0).log_prob(v).sum() for v in values.values())
    assert float(log_joint(model, values, x, y)) == pytest.approx(float(total + prior), abs=1e-9)


def test_a_bank_is_fixed_and_fresh_masks_are_unbiased():
    x, y = regression()
    values = {"w": torch.randn(4, dtype=F64), "variance": torch.tensor(0.7, dtype=F64)}
    exact = log_joint(entropic_dropout(LinearRegression(), rate={"w": 0.4}), values, x, y)
    bank = entropic_dropout(LinearRegression(), rate={"w": 0.4}, expectation="bank", num_masks=16)
    assert log_joint(bank, values, x, y) == log_joint(bank, values, x, y) != exact
    fresh = entropic_dropout(LinearRegression(), rate={"w": 0.4}, expectation="fresh", num_masks=16)
    draws = torch.stack([log_joint(fresh, values, x, y) for _ in range(600)])
    assert draws.unique().numel() > 100
    assert_same_mean(draws, exact)
    banks = [entropic_dropout(LinearRegression(), rate={"w": 0.4}, expectation="bank") for _ in range(200)]
    assert_same_mean(torch.stack([log_joint(bank, values, x, y) for bank in banks]), exact)


# Inference


def standardised(x, y):
    x, y = (torch.as_tensor(t, dtype=F64) for t in (x, y))
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def physique():
    """Linnerud: waist of 20 men from chin-ups, sit-ups and jumps."""
    bunch = load_linnerud()
    return standardised(bunch.data, bunch.target[:, 1])


@pytest.mark.parametrize(
    ("data", "rate", "samples"),
    [
        pytest.param(physique, 0.3, 500, marks=pytest.mark.slow),
        pytest.param(lambda: standardised(*load_diabetes(return_X_y=True)), 0.2, 1000, marks=pytest.mark.slow),
    ],
    ids=["linnerud", "diabetes"],
)
def test_nuts_on_the_handler_agrees_with_the_closed_form(data, rate, samples):
    """Means, variances and quantiles of σ² within four Monte Carlo standard errors."""
    x, y = data()
    exact = EntropicLinearRegression(rate, 2.0, 1.0, 1.0, fit_intercept=False).fit(x, y).posterior_
    model = entropic_dropout(LinearRegression(2.0), rate={"w": rate}, expectation="moments")
    start = {"w": exact.loc, "variance": exact.mean[-1]}
    kernel = NUTS(model, init_strategy=init_to_value(values=start))
    mcmc = MCMC(kernel, num_samples=samples, warmup_steps=200, disable_progbar=True)
    mcmc.run(x, y)
    draws = torch.cat([mcmc.get_samples()["w"], mcmc.get_samples()["variance"].unsqueeze(-1)], -1)

    def within(statistic, target):
        size = pyro.ops.stats.effective_sample_size(statistic.unsqueeze(0)).clamp(max=samples)
        assert ((statistic.mean(0) - target).abs() / (statistic.var(0) / size).sqrt()).max() < 4

    within(draws, exact.mean)
    within((draws - exact.mean).square(), exact.variance)
    noise = invgamma(exact.concentration, scale=exact.noise_rate)
    for q in (0.1, 0.5, 0.9):
        within((draws[:, -1:] < noise.ppf(q)).double(), torch.tensor([q], dtype=F64))


@pytest.mark.parametrize("expectation", ["moments", "fresh"])
def test_svi_finds_the_mean_of_the_closed_form(expectation):
    x, y = physique()
    exact = EntropicLinearRegression(0.3, 2.0, 1.0, 1.0, fit_intercept=False).fit(x, y)
    model = entropic_dropout(LinearRegression(2.0), rate={"w": 0.3}, expectation=expectation, num_masks=32)
    guide = AutoNormal(model, init_scale=0.05)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.998}), Trace_ELBO())
    for _ in range(700):
        svi.step(x, y)
    found = guide.median(x, y)["w"]
    assert (found - exact.posterior_.loc).abs().max() < 0.05
    # mean field: the variances of w are those given everything else, 1 / (Λ_jj E[1/σ²])
    predicted = Predictive(LinearRegression(2.0), guide=guide, num_samples=50)(x)["y"]
    assert predicted.shape == (50, 20)


def test_logistic_regression_is_robust_to_dropping():
    """Of two copies of one covariate the plain posterior leaves the difference of weights open, dropout does not."""
    x = torch.randn(60, 1, dtype=F64)
    y = (x[:, 0] + 0.5 * torch.randn(60, dtype=F64) > 0).double()
    x = torch.cat([x, x], 1)
    loss = {}
    for name, model in (
        ("plain", LogisticRegression(50.0)),
        ("dropout", entropic_dropout(LogisticRegression(50.0), rate={"w": 0.5})),
    ):
        values = [{"w": torch.tensor(w, dtype=F64), "intercept": torch.zeros((), dtype=F64)} for w in ([3, 3], [9, -3])]
        equal, unequal = (float(log_joint(model, value, x, y)) for value in values)
        loss[name] = equal - unequal
    assert abs(loss["plain"]) < 0.1  # the prior's
    assert loss["dropout"] > 20


@pytest.mark.slow
def test_nuts_runs_on_entropic_logistic_regression():
    x = torch.randn(60, 2, dtype=F64)
    y = (x[:, 0] > 0).double()
    mcmc = MCMC(
        NUTS(entropic_dropout(LogisticRegression(2.0), rate={"w": 0.3})),
        num_samples=200,
        warmup_steps=100,
        disable_progbar=True,
    )
    mcmc.run(x, y)
    assert mcmc.get_samples()["w"].mean(0)[0] > 1


# What it must refuse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": {"v": 0.1}}, r"rate names 'v', which is no latent site.*\['variance', 'w'\]"),
        ({"rate": {"y": 0.1}}, "rate names 'y', which is no latent site"),
        ({"rate": {"variance": 0.1}}, "no latent site with an event dimension"),
        ({"rate": {"w": 1.0}}, r"site 'w': rate is the probability of dropping.*lies in \[0, 1\)"),
        ({"rate": {"w": [0.1, 0.2]}}, "site 'w': rate must be a number, or one for each of 4"),
        ({"rate": {"w": 0.1}, "expectation": "exact"}, "expectation must be \"enumerate\" or .*, but found 'exact'"),
        ({"rate": {"w": 0.1}, "num_masks": 0}, "num_masks must be a positive integer"),
    ],
)
def test_wrong_arguments(arguments, message):
    x, y = regression()
    with pytest.raises(ValueError, match=message):
        entropic_dropout(LinearRegression(), **arguments)(x, y)


def test_too_many_units_to_enumerate():
    x, y = regression(5, 13)
    with pytest.raises(ValueError, match=r"13 masked units have 2\^13 masks; up to 12 are enumerated"):
        entropic_dropout(LinearRegression(), rate={"w": 0.1})(x, y)


def test_moments_refuse_what_is_not_linear_gaussian():
    x, y = regression()
    with pytest.raises(ValueError, match="exact for a Normal likelihood alone, but site 'y' is Bernoulli"):
        entropic_dropout(LogisticRegression(), rate={"w": 0.1}, expectation="moments")(x, (y > 0).double())

    def bent(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(4, dtype=F64), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * w).sum(-1).tanh(), 1.0), obs=y)

    def product(x, y):
        """Straight along each axis, and not affine."""
        w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, 0] * w[..., 0] * w[..., 1], 1.0), obs=y)

    def noisy(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(4, dtype=F64), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * w).sum(-1), (x * w).sum(-1).exp()), obs=y)

    for model in (bent, product, noisy):
        with (
            pyro.validation_enabled(False),
            pytest.raises(ValueError, match="needs a mean that is affine in the masks"),
        ):
            entropic_dropout(model, rate={"w": 0.3}, expectation="moments")(x, y)


def test_predictions_are_the_models_own():
    x, y = regression()
    model = entropic_dropout(LinearRegression(), rate={"w": 0.1})
    with pytest.raises(
        ValueError, match=r"site 'y' is not observed but depends on weights that drop out.*run the model"
    ):
        model(x)
    assert math.isfinite(
        log_joint(model, {"w": torch.zeros(4, dtype=F64), "variance": torch.ones((), dtype=F64)}, x, y)
    )


def test_all_plates_must_be_counted():
    """Also where there are as many data as masks, which would pass for each other."""
    for n in (7, 16):
        with pytest.raises(ValueError, match="site 'y' is in 1 plate dimensions: give max_plate_nesting=1"):
            entropic_dropout(LinearRegression(), rate={"w": 0.1}, max_plate_nesting=0)(*regression(n))


def test_models_that_do_not_broadcast_are_found_out():
    x, y = regression()
    network.net = BayesianModule(nn.Linear(4, 1).double())

    def product(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(4, dtype=F64), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    def from_the_left(x, y):
        mean = network.net(x)[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    for model, site in ((product, "w"), (from_the_left, "weight")):
        constrained = entropic_dropout(model, rate={site: 0.1})
        for _ in range(2):
            with pytest.raises(ValueError, match=r"does not broadcast over masks.*\(x \* w\)\.sum\(-1\)"):
                constrained(x, y)
