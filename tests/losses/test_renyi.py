"""The α energy against loops over data and dense draws, its limits, and what counts as a datum."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import nn

from models.regression import Regression, mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from pyro_dropout.weights import MaskedWeight
from tests.support import enumeration
from tests.support.scenarios import FixedNoise, assert_same_mean, double_mlp, regression_data

F64 = torch.float64
ALPHAS = [-2.0, -0.5, 0.5, 1.0, 3.0]


class Drawn(Messenger):
    """Keeps the masked weights of a run."""

    def __init__(self):
        super().__init__()
        self.weights = {}

    def _pyro_post_sample(self, msg):
        if isinstance(msg["value"], MaskedWeight):
            self.weights[msg["name"]] = msg["value"]

    def dense(self, name, k, n):
        """The weight of draw ``k`` (and datum ``n``, where masks are per datum)."""
        weight = self.weights[name]
        if isinstance(weight.mask, torch.Tensor):
            return weight.dense()[k, 0]
        (z,) = weight.mask.draws.values()
        return weight.loc * (z[k, n] / weight.keep)


def loss_and_draws(loss, model, guide, *args):
    loss.loss(model, guide, *args)  # guesses the plates' depth
    with Drawn() as drawn:
        value = loss.loss(model, guide, *args)
    return value, drawn


def kl_by_hand(guide, *args):
    names = list(guide.rates())
    point = guide.median(*args)
    locs = [point[name] for name in names]
    logits = [torch.logit(1 - guide.rates()[name]).expand(loc.shape[1]) for name, loc in zip(names, locs, strict=True)]
    normal = torch.distributions.Normal(torch.zeros((), dtype=F64), 1.0)
    biases = sum(-normal.log_prob(value).sum() for name, value in point.items() if name.endswith("bias"))
    return enumeration.kl(locs, logits) + biases


LIKELIHOODS = {
    "normal": lambda f: dist.Normal(f, 0.5),
    "poisson": lambda f: dist.Poisson(f.exp()),
    "student": lambda f: dist.StudentT(3.0, f, 1.0),
    "bernoulli": lambda f: dist.Bernoulli(logits=f),
    "mixture": lambda f: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7], dtype=F64)), dist.Normal(torch.stack([f, f + 1], -1), 0.3)
    ),
}


class Network(PyroModule):
    def __init__(self, likelihood, size):
        super().__init__()
        self.net, self.likelihood, self.size = BayesianModule(double_mlp()), likelihood, size

    def forward(self, x, y):
        f = self.net(x).squeeze(-1)
        with pyro.plate("data", self.size, subsample_size=len(x)):
            pyro.sample("obs", self.likelihood(f), obs=y)


@pytest.mark.parametrize("make", [AutoBernoulliDropout, AutoConcreteDropout])
@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@torch.no_grad()
def test_energy_is_the_double_loop_with_dense_weights(likelihood, masks, make):
    x, y = regression_data(5)
    y = {"poisson": y.abs().round(), "bernoulli": (y > 0).double()}.get(likelihood, y)
    model = Network(LIKELIHOODS[likelihood], size=20)
    guide = make(model, rate=0.4)
    guide(x, y)
    for alpha in ALPHAS:
        value, drawn = loss_and_draws(RenyiDropout_ELBO(alpha, 4, masks=masks), model, guide, x, y)
        point = guide.median(x, y)
        total = 0.0
        for n in range(5):
            power = []
            for k in range(4):
                h = torch.relu(drawn.dense("net.0.weight", k, n) @ x[n] + point["net.0.bias"])
                f = (drawn.dense("net.2.weight", k, n) @ h + point["net.2.bias"]).squeeze()
                power.append(math.exp(alpha * LIKELIHOODS[likelihood](f).log_prob(y[n])))
            total += math.log(sum(power) / 4) / alpha
        assert value == pytest.approx((kl_by_hand(guide, x, y) - 20 / 5 * total).item(), abs=1e-10)


@torch.no_grad()
def test_classification():
    x, y = regression_data(5)
    labels = (y > 0).long()
    net = BayesianModule(mlp(3, (4,), outputs=3).double())

    def model(x, y):
        logits = net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Categorical(logits=logits), obs=y)

    guide = AutoBernoulliDropout(model, rate=0.4)
    value, drawn = loss_and_draws(RenyiDropout_ELBO(0.5, 3), model, guide, x, labels)
    point, total = guide.median(x, labels), 0.0
    for n in range(5):
        p = []
        for k in range(3):
            h = torch.relu(drawn.dense("0.weight", k, n) @ x[n] + point["0.bias"])
            p.append(torch.softmax(drawn.dense("2.weight", k, n) @ h + point["2.bias"], -1)[labels[n]].item() ** 0.5)
        total += math.log(sum(p) / 3) / 0.5
    assert value == pytest.approx((kl_by_hand(guide, x, labels) - total).item(), abs=1e-10)


# Limits


def same_draws(alpha, model, guide, *args, particles=10, loss_class=RenyiDropout_ELBO, **kwargs):
    loss = (
        TraceDropout_ELBO(particles, max_plate_nesting=1, **kwargs)
        if alpha is None
        else RenyiDropout_ELBO(alpha, particles, max_plate_nesting=1, **kwargs)
    )
    pyro.set_rng_seed(3)
    return loss.loss(model, guide, *args)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def fitted(request):
    x, y = regression_data(30, dtype=request.param)
    model = FixedNoise(mlp(3, (4,)).to(request.param), size=30)
    guide = AutoBernoulliDropout(model, rate=0.4)
    guide(x, y)
    return model, guide, x, y


@pytest.mark.parametrize("masks", ["datum", "draw"])
def test_alpha_zero_and_one_particle_are_the_elbo_exactly(fitted, masks):
    elbo = same_draws(None, *fitted, masks=masks)
    assert same_draws(0.0, *fitted, masks=masks) == pytest.approx(elbo, rel=1e-6)
    for alpha in ALPHAS:
        one = same_draws(None, *fitted, masks=masks, particles=1)
        assert same_draws(alpha, *fitted, masks=masks, particles=1) == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("masks", ["datum", "draw"])
def test_energy_falls_in_alpha_on_the_same_draws(fitted, masks):
    """Power means grow."""
    values = [same_draws(alpha, *fitted, masks=masks) for alpha in (-20, -3, -1, -0.3, 0, 0.01, 0.5, 1, 3, 20)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1] + 10


def test_continuous_at_zero(fitted):
    """Also in single precision: 1e-6 against 0 differs by the slope times 1e-6."""
    zero = same_draws(0.0, *fitted)
    slope = (same_draws(1e-2, *fitted) - zero) / 1e-2
    assert slope < 0
    for alpha in (1e-6, -1e-6):
        assert abs(same_draws(alpha, *fitted) - zero) < 2 * abs(slope * alpha) + 1e-6 * abs(zero)
    change = same_draws(1e-3, *fitted) - zero
    assert change == pytest.approx(1e-3 * slope, rel=0.1, abs=1e-6 * abs(zero))


def test_data_term_at_alpha_one_tends_to_the_predictive_log_likelihood():
    """By enumeration; the bias falls as 1/K."""
    x, y = regression_data(4, 2)
    model = FixedNoise(mlp(2, (3, 3)).double(), size=4)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(x, y)
    point = guide.median(x, y)
    names = list(guide.rates())
    logits = [torch.logit(1 - guide.rates()[n]).expand(point[n].shape[1]) for n in names]
    biases = [point[n.replace("weight", "bias")] for n in names]
    log_q, log_p = enumeration.log_likelihoods([point[n] for n in names], biases, logits, x, y, model.scale)
    target = -torch.logsumexp(log_q[:, None] + log_p, 0).sum() + kl_by_hand(guide, x, y)
    errors = []
    for particles, repeats in ((1, 800), (10, 400), (100, 200), (3000, 30)):
        loss = RenyiDropout_ELBO(1.0, particles)
        values = torch.tensor([loss.loss(model, guide, x, y) for _ in range(repeats)], dtype=F64)
        errors.append((values.mean() - target).item())
    assert errors[0] > errors[1] > errors[2] > 0
    assert errors[1] < errors[0] / 5
    assert_same_mean(values - errors[2] / 30, target)  # what is left of the bias at 30 times the draws


@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_stable_at_log_likelihoods_of_minus_a_million(alpha, masks):
    x, y = regression_data(5, dtype=torch.float32)
    model = FixedNoise(mlp(3, (4,)), size=5)
    guide = AutoBernoulliDropout(model, rate=0.4, learnable=True, per_unit=True)
    far = y + 0.5 * math.sqrt(2e6)
    loss = RenyiDropout_ELBO(alpha, 5, masks=masks)
    for _ in range(3):
        value = loss.loss_and_grads(model, guide, x, far)
        assert value == pytest.approx(5e6, rel=0.01)
    for parameter in guide.parameters():
        assert torch.isfinite(parameter.grad).all()


# What a datum is


def value_on(model, net, x, y, alpha=0.7, particles=3):
    """The loss without the KL, and each draw's function, ``[N, K]``."""
    guide = AutoBernoulliDropout(model, rate=0.4)
    value, drawn = loss_and_draws(RenyiDropout_ELBO(alpha, particles, masks="draw"), model, guide, x, y)
    weight, bias = drawn.weights["weight"].dense().reshape(particles, 3), guide.median(x, y)["bias"]
    return value - kl_by_hand(guide, x, y).item(), x @ weight.T + bias


def mean_power(log_p, alpha=0.7):
    """``(1/α) log mean p^α`` over the first dimension, then the sum."""
    return ((alpha * log_p).exp().mean(0).log() / alpha).sum().item()


def test_sites_in_one_plate_are_one_datum_and_other_plates_are_not():
    x, y = regression_data(4)
    net = BayesianModule(nn.Linear(3, 1).double())

    def model(x, y):
        f = net(x).squeeze(-1)
        with pyro.plate("data", 8, subsample_size=4):
            pyro.sample("a", dist.Normal(f, 1.0), obs=y)
            pyro.sample("b", dist.Laplace(f, 2.0), obs=y + 1)
        with pyro.plate("other", 4):
            pyro.sample("c", dist.Normal(f, 3.0), obs=y)

    value, f = value_on(model, net, x, y)
    f = f.T
    normal, laplace = torch.distributions.Normal, torch.distributions.Laplace
    both = normal(f, 1.0).log_prob(y) + laplace(f, 2.0).log_prob(y + 1)
    assert value == pytest.approx(-2 * mean_power(both) - mean_power(normal(f, 3.0).log_prob(y)), abs=1e-10)


def test_entries_of_nested_plates_are_data_and_a_vector_is_one():
    x, y = regression_data(4)
    net = BayesianModule(nn.Linear(3, 1).double())
    two = torch.stack([y, y + 1])

    def nested(x, y):
        f = net(x).squeeze(-1)
        with pyro.plate("data", 4, dim=-1), pyro.plate("outputs", 2, dim=-2):
            pyro.sample("obs", dist.Normal(f, torch.ones(2, 1, dtype=F64)), obs=two)

    def vector(x, y):
        f = net(x)
        with pyro.plate("data", 4):
            pyro.sample("obs", dist.Normal(f, torch.ones(2, dtype=F64)).to_event(1), obs=two.T)

    value, f = value_on(nested, net, x, y)
    each = torch.distributions.Normal(f.T.unsqueeze(1), 1.0).log_prob(two)  # [K, outputs, N]
    assert value == pytest.approx(-mean_power(each), abs=1e-10)
    value, f = value_on(vector, net, x, y)
    each = torch.distributions.Normal(f.T.unsqueeze(1), 1.0).log_prob(two)
    assert value == pytest.approx(-mean_power(each.sum(1)), abs=1e-10)


def test_a_sequential_plate_is_a_plate():
    x, y = regression_data(4)
    net = BayesianModule(nn.Linear(3, 1).double())

    def model(x, y):
        f = net(x).squeeze(-1)
        for i in pyro.plate("data", 4):
            pyro.sample(f"a{i}", dist.Normal(f[..., i], 1.0), obs=y[i])
            pyro.sample(f"b{i}", dist.Normal(f[..., i], 2.0), obs=y[i])

    guide = AutoBernoulliDropout(model, rate=0.4)
    loss = RenyiDropout_ELBO(0.7, 3, masks="draw", vectorize_particles=False)
    draws = []

    class All(Drawn):
        def _pyro_post_sample(self, msg):
            if isinstance(msg["value"], MaskedWeight):
                draws.append(msg["value"].dense())

    guide(x, y)
    loss.loss(model, guide, x, y)  # the first also finds out about the guide
    with All():
        value = loss.loss(model, guide, x, y)
    f = torch.stack([x @ w.squeeze(0) for w in draws[::2]]) + guide.median(x, y)["bias"]  # guide's and model's
    normal = torch.distributions.Normal
    both = normal(f, 1.0).log_prob(y) + normal(f, 2.0).log_prob(y)
    assert value - kl_by_hand(guide, x, y).item() == pytest.approx(-mean_power(both), abs=1e-10)


def test_the_plates_scale_is_outside_and_every_other_scale_and_mask_inside():
    x, y = regression_data(4)
    net = BayesianModule(nn.Linear(3, 1).double())
    seen = torch.tensor([True, True, False, True])

    def model(x, y):
        f = net(x).squeeze(-1)
        with pyro.plate("data", 8, subsample_size=4), pyro.poutine.scale(scale=0.5), pyro.poutine.mask(mask=seen):
            pyro.sample("obs", dist.Normal(f, 1.0), obs=y)

    value, f = value_on(model, net, x, y)
    log_p = 0.5 * torch.distributions.Normal(f.T, 1.0).log_prob(y) * seen
    assert value == pytest.approx(-2 * mean_power(log_p), abs=1e-10)


def test_networks_in_a_plate_have_an_energy_each():
    x, y = regression_data(4)
    net = BayesianModule(nn.Linear(3, 1).double())

    def model(x, y):
        with pyro.plate("networks", 2, dim=-2):
            f = net(x).squeeze(-1)
            with pyro.plate("data", 4, dim=-1):
                pyro.sample("obs", dist.Normal(f, 1.0), obs=y)

    guide = AutoBernoulliDropout(model, rate=0.4)
    value, drawn = loss_and_draws(RenyiDropout_ELBO(0.7, 3, masks="draw"), model, guide, x, y)
    weight, point = drawn.weights["weight"].dense().reshape(3, 2, 3), guide.median(x, y)
    log_p = torch.distributions.Normal(weight @ x.T + point["bias"].reshape(2, 1), 1.0).log_prob(y)
    locs = point["weight"].reshape(2, 1, 3)
    kl = sum(enumeration.kl([loc], [torch.logit(torch.tensor(0.6, dtype=F64)).expand(3)]) for loc in locs)
    kl = kl - torch.distributions.Normal(0.0, 1.0).log_prob(point["bias"]).sum()
    assert value == pytest.approx(kl.item() - mean_power(log_p), abs=1e-10)


# Use


def test_alpha_anneals_by_attribute_and_by_function(fitted):
    model, guide, x, y = fitted
    schedule = iter([0.0, 1.0, -1.0])
    loss = RenyiDropout_ELBO(lambda: next(schedule), 10, max_plate_nesting=1)
    by_attribute = RenyiDropout_ELBO(0.0, 10, max_plate_nesting=1)
    for alpha in (0.0, 1.0, -1.0):
        by_attribute.alpha = alpha
        values = []
        for each in (loss, by_attribute):
            pyro.set_rng_seed(3)
            values.append(each.loss(model, guide, x, y))
        assert values[0] == values[1] == same_draws(alpha, *fitted)


@pytest.mark.parametrize("make", [AutoBernoulliDropout, AutoConcreteDropout])
def test_a_training_loop_changes_by_the_loss_alone(make):
    x, y = regression_data(40, dtype=torch.float32)
    model = Regression(3, size=40)
    svi = SVI(model, make(model), pyro.optim.Adam({"lr": 0.02}), RenyiDropout_ELBO(1.0))
    losses = [svi.step(x, y) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize("alpha", [math.nan, math.inf, "one", None])
def test_wrong_alpha(alpha, fitted):
    with pytest.raises(ValueError, match=r"alpha must be (finite|a number)"):
        RenyiDropout_ELBO(alpha)
    with pytest.raises(ValueError, match=r"alpha must be (finite|a number)"):
        RenyiDropout_ELBO(lambda: alpha).loss(*fitted)


def test_other_arguments_are_those_of_the_elbo():
    with pytest.raises(ValueError, match="num_particles must be a positive integer"):
        RenyiDropout_ELBO(0.5, 0)
    with pytest.raises(ValueError, match="masks must be"):
        RenyiDropout_ELBO(0.5, masks="both")


def test_a_nan_raises_and_changes_nothing(fitted):
    model, guide, x, y = fitted
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), RenyiDropout_ELBO(0.5))
    svi.step(x, y)
    before = {k: v.clone() for k, v in guide.state_dict().items()}
    with pytest.raises(ValueError, match="argument 1 has 1 NaN or infinite entries"):
        svi.step(x, torch.cat([y[:-1], y[-1:] * math.nan]))
    assert all(torch.equal(v, before[k]) for k, v in guide.state_dict().items())
