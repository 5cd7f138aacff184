"""TraceDropout_ELBO against stock losses, closed forms, and bad input."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule
from torch import nn

from models.regression import Regression, mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from pyro_dropout.masks import BernoulliMask, ConcreteMask
from tests.support.scenarios import FixedNoise, assert_same_mean, double_mlp, gradients, regression_data

F64 = torch.float64
LEARNABLE = partial(AutoBernoulliDropout, learnable=True, per_unit=True)


def fitted(guide_class, model, x, y, steps=20, **kwargs):
    """A guide some way from its start, so that no gradient is zero by symmetry."""
    guide = guide_class(model, **kwargs)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceDropout_ELBO())
    for _ in range(steps):
        svi.step(x, y)
    return guide


LOSSES = {
    "datum": TraceDropout_ELBO(),
    "draw": TraceDropout_ELBO(masks="draw"),
    "datum, 3 particles": TraceDropout_ELBO(3),
    "draw, 3 particles": TraceDropout_ELBO(3, masks="draw"),
    "datum, 2 particles in turn": TraceDropout_ELBO(2, vectorize_particles=False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_elbo_is_stock_trace_elbo_in_expectation_with_hard_masks(name):
    x, y = regression_data(12)
    model = FixedNoise(double_mlp(), size=30, prior=dist.Laplace(0.0, 1.0))
    guide = fitted(AutoBernoulliDropout, model, x, y, rate=0.3)
    ours = gradients(LOSSES[name], model, guide, x, y, 400)
    stock = gradients(Trace_ELBO(10, vectorize_particles=True), model, guide, x, y, 400)
    assert_same_mean(ours[0], stock[0])
    for parameter in ours[1]:
        assert_same_mean(ours[1][parameter], stock[1][parameter])


def stock_minus_closed_form_kl(guide, x, y):
    """The two terms in which the losses differ, for one draw of relaxed masks."""
    prior = torch.distributions.Normal(torch.zeros((), dtype=F64), 1.0)
    trace = pyro.poutine.trace(guide).get_trace(x, y)
    total = 0.0
    for name in guide.rates():
        mask, weight = trace.nodes[name + ".mask"], trace.nodes[name]["value"]
        dropped = (1 - weight.keep) * prior.log_prob(weight.loc * 0)
        two_point = (weight.keep * prior.log_prob(weight.loc / weight.keep) + dropped).sum()
        density_for_entropy = mask["fn"].log_prob(mask["value"]) + mask["fn"].entropy()
        total += density_for_entropy + two_point - prior.log_prob(weight.dense()).sum()
    return total


def test_elbo_differs_from_stock_trace_elbo_with_relaxed_masks_in_the_kl_alone():
    """The data terms agree. Stock has the relaxed mask's own density for the entropy, and log p at relaxed weights."""
    x, y = regression_data(12)
    model = FixedNoise(double_mlp(), size=30)
    guide = fitted(AutoConcreteDropout, model, x, y, rate=0.3, temperature=0.5)
    ours = gradients(TraceDropout_ELBO(), model, guide, x, y, 600)
    losses, draws = [], []
    for _ in range(600):
        guide.zero_grad(set_to_none=True)
        state = torch.get_rng_state()
        loss = Trace_ELBO().differentiable_loss(model, guide, x, y)
        torch.set_rng_state(state)  # for the very same masks
        loss = loss - stock_minus_closed_form_kl(guide, x, y)
        loss.backward()
        losses.append(loss.item())
        draws.append({n: p.grad.flatten().clone() for n, p in guide.named_parameters()})
    assert_same_mean(ours[0], torch.tensor(losses, dtype=F64))
    for parameter in ours[1]:
        assert_same_mean(ours[1][parameter], torch.stack([d[parameter] for d in draws]))


def test_masks_per_datum_have_lower_gradient_variance_than_masks_per_draw(capsys):
    x, y = regression_data(128, features=13)
    model = FixedNoise(double_mlp(13, (50, 50)), size=500)
    guide = fitted(AutoConcreteDropout, model, x, y, rate=0.1)
    variance = {}
    for masks in ("datum", "draw"):
        _, draws = gradients(TraceDropout_ELBO(masks=masks), model, guide, x, y, 200)
        variance[masks] = sum(d.var(0).sum() for d in draws.values())
    ratio = (variance["draw"] / variance["datum"]).item()
    with capsys.disabled():
        print(f"\ngradient variance, one mask per draw over one per datum, batch 128: {ratio:.1f}")
    assert ratio > 3


@pytest.mark.parametrize("make", [AutoConcreteDropout, LEARNABLE])
def test_loss_equals_loss_and_grads_and_differentiable_loss(make):
    x, y = regression_data(12)
    model = FixedNoise(double_mlp(), size=30)
    guide = fitted(make, model, x, y)
    for loss in (*LOSSES.values(), RenyiDropout_ELBO(0.5, 3), RenyiDropout_ELBO(0.5, 3, vectorize_particles=False)):
        loss.loss(model, guide, x, y)  # guesses the plates' depth once, with random numbers
        values = []
        for method in (loss.loss, loss.loss_and_grads, loss.differentiable_loss):
            pyro.set_rng_seed(1)
            value = method(model, guide, x, y)
            values.append(value.item() if isinstance(value, torch.Tensor) else value)
        assert values[0] == pytest.approx(values[1], rel=1e-12)
        assert values[0] == pytest.approx(values[2], rel=1e-12)


def test_every_term_by_hand_at_rate_zero():
    """Everything is deterministic: the loss is -N/B Σ log p(y|x, loc) - log p(loc) - log p(bias) - log p(τ)."""
    x, y = regression_data(10, dtype=torch.float32)
    model = Regression(3, size=40, hidden=(4,), lengthscale=2.0)
    guide = AutoBernoulliDropout(model, rate=0.0)
    loss = TraceDropout_ELBO().loss(model, guide, x, y)
    point = guide.median()
    net = mlp(3, (4,))
    net.load_state_dict({k.removeprefix("net."): v for k, v in point.items() if k.startswith("net.")})
    tau = point["precision"]
    data = torch.distributions.Normal(net(x).squeeze(-1), tau.rsqrt()).log_prob(y).sum() * 40 / 10
    prior = sum(torch.distributions.Normal(0.0, 0.5).log_prob(v).sum() for k, v in point.items() if k != "precision")
    assert loss == pytest.approx(-(data + prior + torch.distributions.Gamma(0.1, 0.01).log_prob(tau)).item(), rel=1e-5)


def test_mini_batches_are_scaled_by_the_plate_and_the_kl_is_counted_once():
    x, y = regression_data(10)
    model = FixedNoise(double_mlp(), size=1)
    guide = AutoBernoulliDropout(model, rate=0.0)
    losses = {}
    for size, batch in ((10, 10), (10, 5), (20, 10)):
        model.size = size
        losses[size, batch] = TraceDropout_ELBO().loss(model, guide, x[:batch], y[:batch])
    model.size = 5
    second_half = TraceDropout_ELBO().loss(model, guide, x[5:], y[5:])
    model.size = 5
    first_half = TraceDropout_ELBO().loss(model, guide, x[:5], y[:5])
    data = losses[20, 10] - losses[10, 10]  # one more copy of the data
    kl = losses[10, 10] - data
    assert first_half + second_half == pytest.approx(data + 2 * kl)
    assert losses[10, 5] == pytest.approx(2 * (first_half - kl) + kl)


def closed_form_kl(guide, prior):
    total = 0.0
    for name, rate in guide.rates().items():
        loc = guide.median()[name]
        keep = 1 - rate
        h = -(keep * keep.log() + rate * rate.log())
        total -= h * loc.shape[1] + (keep * prior.log_prob(loc / keep) + rate * prior.log_prob(loc * 0)).sum()
    return total.item()


@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("particles", [1, 4])
def test_kl_is_the_same_whatever_batch_particles_and_masks(masks, particles):
    """With no data term (an observation that nothing explains) the loss is the KL."""
    net = BayesianModule(
        nn.Linear(3, 4).double(), prior=lambda name, p: dist.Normal(0.0, 1.0) if "weight" in name else None
    )

    def model(x):
        net(x)
        with pyro.plate("data", 50, subsample_size=len(x)):
            pyro.sample("obs", dist.Delta(torch.zeros(len(x))), obs=torch.zeros(len(x)))

    guide = AutoConcreteDropout(model, rate=0.3)
    x = torch.randn(7, 3, dtype=F64)
    loss = TraceDropout_ELBO(particles, masks=masks).loss(model, guide, x)
    assert loss == pytest.approx(closed_form_kl(guide, torch.distributions.Normal(0.0, 1.0)), rel=1e-6)


def test_kl_of_a_convolution_counts_channels():
    """PITFALLS 5: the number of masked units is the input channels, not pixels or kernel entries."""
    net = BayesianModule(nn.Conv2d(3, 4, 5, bias=False))

    def model(x):
        net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Delta(torch.zeros(len(x))), obs=torch.zeros(len(x)))

    guide = AutoBernoulliDropout(model, rate=0.3)
    loss = TraceDropout_ELBO().loss(model, guide, torch.randn(2, 3, 8, 8))
    loc = guide.median()["weight"]
    normal = torch.distributions.Normal(0.0, 1.0)
    h = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    expected = -3 * h - (0.7 * normal.log_prob(loc / 0.7) + 0.3 * normal.log_prob(loc * 0)).sum().item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_mean_field_elbo_counts_the_entropy_once():
    x, y = regression_data(12)
    model = FixedNoise(double_mlp(), size=30)
    guide = fitted(AutoBernoulliDropout, model, x, y, rate=0.3)
    ours = gradients(TraceDropout_ELBO(), model, guide, x, y, 500)
    stock = gradients(TraceMeanField_ELBO(), model, guide, x, y, 500)
    assert_same_mean(ours[0], stock[0])
    for parameter in ours[1]:
        assert_same_mean(ours[1][parameter], stock[1][parameter])
    stock_kl = stock[0].mean() - ours[0].mean()
    entropy = sum(BernoulliMask(0.3, units=u).entropy() for u in (3, 4)).item()
    assert abs(stock_kl) < entropy / 4  # counting it twice or never would be off by all of it


def test_mean_field_elbo_refuses_relaxed_masks():
    x, y = regression_data(12)
    model = FixedNoise(double_mlp(), size=30)
    guide = AutoConcreteDropout(model)
    with pytest.raises(ValueError, match=r"'net.0.weight' has relaxed masks.*use TraceDropout_ELBO"):
        TraceMeanField_ELBO().loss(model, guide, x, y)


# Other latent sites


def latents(x, y=None, size=40):
    """A Gamma precision, a LogNormal scale, and a latent per datum, around a network."""
    mean = latents.net(x).squeeze(-1)
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        shift = pyro.sample("shift", dist.Normal(0.0, scale))
        pyro.sample("count", dist.Poisson(shift.exp()), obs=None if y is None else (y > 0).double())
        return pyro.sample("obs", dist.Normal(mean + shift, precision.rsqrt()), obs=y)


@pytest.mark.parametrize("rest", [AutoDelta, AutoNormal])
@pytest.mark.parametrize("name", LOSSES)
def test_other_latents_and_several_observed_sites_agree_with_stock_trace_elbo(rest, name):
    x, y = regression_data(10)
    latents.net = BayesianModule(double_mlp())
    guide = AutoBernoulliDropout(latents, rate=0.3, rest=rest)
    ours = torch.tensor([LOSSES[name].loss(latents, guide, x, y) for _ in range(200)], dtype=F64)
    stock_loss = Trace_ELBO(10, vectorize_particles=True)
    stock = torch.tensor([stock_loss.loss(latents, guide, x, y) for _ in range(200)], dtype=F64)
    assert_same_mean(ours, stock)


def test_subsampled_latents_in_the_data_plate_train():
    x, y = regression_data(40)
    latents.net = BayesianModule(double_mlp())

    def create_plates(x, y, index):
        return pyro.plate("data", 40, subsample=index)

    def model(x, y, index):
        mean = latents.net(x).squeeze(-1)
        with pyro.plate("data", 40, subsample=index):
            shift = pyro.sample("shift", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("obs", dist.Normal(mean + shift, 0.1), obs=y)

    guide = AutoConcreteDropout(model, rest=AutoNormal, create_plates=create_plates)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceDropout_ELBO())
    losses = []
    for _ in range(150):
        index = torch.randperm(40)[:10]
        losses.append(svi.step(x[index], y[index], index))
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    assert guide.median(x, y, torch.arange(40))["shift"].shape == (40,)


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceGraph_ELBO(), Trace_ELBO(2, vectorize_particles=True)])
@pytest.mark.parametrize("guide_class", [AutoBernoulliDropout, AutoConcreteDropout, LEARNABLE])
def test_stock_losses_take_our_guides(loss, guide_class):
    x, y = regression_data(20, dtype=torch.float32)
    model = Regression(3, size=20)
    guide = guide_class(model, rate=0.1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
    losses = [svi.step(x, y) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


# Bad input


def snapshot(guide):
    return {n: p.detach().clone() for n, p in guide.named_parameters()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x", "y", "parameter"])
@pytest.mark.parametrize("validate", [True, False])
def test_non_finite_input_raises_before_the_optimiser_and_changes_no_parameter(value, where, validate):
    x, y = regression_data(20, dtype=torch.float32)
    model = Regression(3, size=20)
    guide = AutoConcreteDropout(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceDropout_ELBO())
    svi.step(x, y)
    message = {
        "x": "argument 0 has 1 NaN",
        "y": "argument 1 has 1 NaN",
        "parameter": "parameter 'locs.net.0.weight_unconstrained' has 1",
    }
    bad_x, bad_y = x.clone(), y.clone()
    if where == "x":
        bad_x[3, 1] = value
    elif where == "y":
        bad_y[3] = value
    else:
        with torch.no_grad():
            guide.locs.net._modules["0"].weight_unconstrained[0, 0] = value
    before = snapshot(guide)
    with pyro.validation_enabled(validate), pytest.raises(ValueError, match=message[where] + ".*not changed"):
        svi.step(bad_x, bad_y)
    for name, parameter in guide.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0, equal_nan=True, msg=name)
    if where != "parameter":
        assert math.isfinite(svi.step(x, y))  # and nothing is left behind
        assert all(bool(torch.isfinite(p).all()) for p in guide.parameters())


def test_a_gradient_that_is_not_finite_raises_although_the_loss_is():
    loc = nn.Parameter(torch.zeros(1, 3))

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample(
                "obs", dist.Normal(nn.functional.linear(x, w).squeeze(-1).abs().sqrt(), 1.0), obs=torch.zeros(len(x))
            )

    guide = AutoBernoulliDropout(model, rate=0.0, init_loc_fn=lambda site: torch.zeros(1, 3))
    svi = SVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO())
    with pytest.raises(ValueError, match=r"gradient of .*locs.w is not: .*no slope.*not changed"):
        svi.step(torch.ones(4, 3))
    assert guide.median()["w"].tolist() == loc.tolist()


def test_masks_per_datum_need_a_data_plate():
    net = BayesianModule(nn.Linear(3, 1))

    def model(x, y):
        pyro.sample("obs", dist.Normal(net(x).squeeze(-1), 1.0).to_event(1), obs=y)

    guide = AutoBernoulliDropout(model)
    x, y = torch.randn(5, 3), torch.randn(5)
    with pytest.raises(ValueError, match=r"'obs' is in no data plate.*pyro.plate.*masks=\"draw\""):
        TraceDropout_ELBO().loss(model, guide, x, y)
    assert math.isfinite(TraceDropout_ELBO(masks="draw").loss(model, guide, x, y))


@pytest.mark.parametrize("case", ["sequence first", "data in rows"])
def test_masks_per_datum_need_the_data_first(case):
    net = BayesianModule(nn.Linear(3, 1))

    def model(x, y):
        if case == "sequence first":
            mean = net(x.transpose(0, 1)).sum((0, -1))
        else:
            mean = net(x.reshape(-1, 3)).reshape(x.shape[:2]).sum(1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    guide = AutoBernoulliDropout(model)
    x, y = torch.randn(5, 7, 3), torch.randn(5)
    with pytest.raises(ValueError, match=r"'weight' drew masks for (7|35) data, but the data plates are \{'data': 5\}"):
        TraceDropout_ELBO().loss(model, guide, x, y)
    assert math.isfinite(TraceDropout_ELBO(masks="draw").loss(model, guide, x, y))


@pytest.mark.parametrize("layer", [nn.Linear(3, 1).double(), nn.Conv1d(2, 1, 3).double()])
def test_one_mask_for_all_time_steps_of_a_datum(layer):
    """[N, T, ...] against stock Trace_ELBO: the data's term is not linear in W, so the ties matter."""
    net = BayesianModule(layer, prior=lambda name, p: dist.Normal(0.0, 1.0) if p.dim() > 1 else None)

    def model(x, y):
        mean = net(x).flatten(1).sum(1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    x = torch.ones(4, 7, *((3,) if isinstance(layer, nn.Linear) else (2, 3)), dtype=F64)
    y = torch.zeros(4, dtype=F64)
    guide = AutoBernoulliDropout(model, rate=0.5)
    ours = torch.tensor([TraceDropout_ELBO().loss(model, guide, x, y) for _ in range(800)], dtype=F64)
    stock = torch.tensor([Trace_ELBO().loss(model, guide, x, y) for _ in range(1600)], dtype=F64)
    assert_same_mean(ours, stock)


def test_two_calls_share_their_masks_also_where_particles_run_in_turn():
    class Twice(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = BayesianModule(nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 1)))

        def forward(self, x):
            first, second = self.net(x), self.net(x)
            assert torch.equal(first, second)
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(first.squeeze(-1), 1.0), obs=torch.zeros(len(x)))

    model = Twice()
    for rest in (AutoDelta, AutoNormal):
        TraceDropout_ELBO(3).loss(model, AutoBernoulliDropout(model, rate=0.5, rest=rest), torch.randn(5, 3))


def test_scaled_priors_are_scaled():
    """poutine.scale around the network is a prior to that power, as in stock Trace_ELBO."""
    net = BayesianModule(nn.Linear(3, 1).double())

    def model(x, y):
        with pyro.poutine.scale(scale=0.1):
            mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    x, y = regression_data(6)
    for rest in (AutoDelta, AutoNormal):
        guide = AutoBernoulliDropout(model, rate=0.0, rest=rest)
        ours = torch.tensor([TraceDropout_ELBO().loss(model, guide, x, y) for _ in range(400)], dtype=F64)
        stock = torch.tensor([Trace_ELBO().loss(model, guide, x, y) for _ in range(400)], dtype=F64)
        assert_same_mean(ours, stock)


def test_a_later_particle_that_fails_leaves_no_gradients_of_the_first():
    calls = []

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        calls.append(1)
        mean = nn.functional.linear(x, w).squeeze(-1) / (0.0 if len(calls) == 3 else 1.0)  # the first call is set-up
        with pyro.plate("data", len(x)), pyro.validation_enabled(False):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=torch.zeros(len(x)))

    guide = AutoBernoulliDropout(model, rate=0.0)
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="not changed"):
        TraceDropout_ELBO(2, vectorize_particles=False).loss_and_grads(model, guide, torch.ones(4, 3))
    assert all(p.grad is None for p in guide.parameters())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"masks": "batch"}, '"datum" or "draw", but found \'batch\''),
        ({"num_particles": 0}, "positive integer, but found 0"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TraceDropout_ELBO(**kwargs)


def test_a_latent_without_a_guide_raises():
    x, y = regression_data(5, dtype=torch.float32)
    model = Regression(3, size=5)
    guide = AutoBernoulliDropout(pyro.poutine.block(model, hide=["precision"]))
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match="'precision' of the model is not in the guide"),
    ):
        TraceDropout_ELBO().loss(model, guide, x, y)


def test_a_guide_site_that_is_not_reparametrised_raises():
    def model():
        pyro.sample("k", dist.Bernoulli(0.5))

    def guide():
        pyro.sample("k", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

    with pytest.raises(NotImplementedError, match="'k' is Bernoulli, which is not reparametrised"):
        TraceDropout_ELBO().loss(model, guide)


def test_relaxed_temperature_is_used():
    model = FixedNoise(double_mlp(), size=5)
    guide = AutoConcreteDropout(model, temperature=0.5)
    trace = pyro.poutine.trace(guide).get_trace(torch.zeros(5, 3, dtype=F64))
    fn = trace.nodes["net.0.weight.mask"]["fn"]
    assert isinstance(fn, ConcreteMask)
    assert fn.temperature == 0.5


def test_a_masked_prior_is_masked_as_in_the_model():
    """The guide's q is not masked, so the closed form, which has one mask for both, does not apply."""

    def model():
        with pyro.poutine.mask(mask=torch.tensor(False)):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(3.0)), 1.0))

    loss = torch.tensor([TraceDropout_ELBO().loss(model, guide) for _ in range(2000)], dtype=F64)
    assert_same_mean(loss, torch.tensor(-0.5 * math.log(2 * math.pi * math.e), dtype=F64))  # minus q's entropy
