"""TraceDropout_ELBO against stock losses and by hand."""

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
from pyro_dropout.masks import BernoulliMask
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


# Masks per datum


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


# Wrong use


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
