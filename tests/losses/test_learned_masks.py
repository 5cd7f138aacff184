"""Learned rates of hard masks inside the losses: stock losses, other latents, plates, networks, wrong uses."""

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from pyro.nn import PyroModule
from torch import nn

from models.regression import mlp
from pyro_dropout import (
    ARM,
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    Reinforce,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from pyro_dropout.masks import BernoulliMask
from pyro_dropout.weights import MaskedDelta, MaskedWeight
from tests.support import enumeration
from tests.support.exact import Case
from tests.support.scenarios import FixedNoise, assert_same_mean, gradients, regression_data

F64 = torch.float64


@pytest.mark.parametrize(
    "sharing", [{}, {"shared": True}, {"rate": {"net.0.weight": 0.0, "net.2.weight": 0.4}}], ids=str
)
@pytest.mark.parametrize("gradient", ["arm", "disarm"])
def test_rates_of_sites_and_of_the_whole_network(gradient, sharing):
    """One logit for several units: its gradient is the sum of theirs. Rate 0 stays, and the rest still learns."""
    x, y = regression_data(4, 2)
    model = FixedNoise(mlp(2, (3,)).double(), size=4 * 40)
    guide = AutoBernoulliDropout(model, **{"rate": 0.3, **sharing}, learnable=True)
    guide(x, y)
    parameters = dict(guide.named_parameters())
    learned = [p for name, p in parameters.items() if name.startswith("logits")]
    locs, biases = (
        [parameters[f"{tree}.{i}.{kind}_unconstrained"] for i in (0, 2)]
        for tree, kind in (("locs.net", "weight"), ("rest.net", "bias"))
    )
    always = torch.full((1,), 25.0, dtype=F64)
    logits = {1: {False: [always, learned[0]], True: learned * 2}["shared" in sharing]}.get(len(learned), learned)
    logits = [a.expand(n) for a, n in zip(logits, (2, 3), strict=True)]
    table = enumeration.log_likelihoods(locs, biases, logits, x, y, model.scale)
    exact = torch.autograd.grad(40 * enumeration.energy(*table, 0, 1) + enumeration.kl(locs, logits), learned)
    loss = TraceDropout_ELBO(gradient=gradient)
    _, draws = gradients(loss, model, guide, x.repeat(40, 1), y.repeat(40), 150)
    for name, target in zip([n for n in draws if n.startswith("logits")], exact, strict=True):
        assert_same_mean(draws[name], target)


@pytest.mark.parametrize("stock", [Trace_ELBO(40, vectorize_particles=True), TraceGraph_ELBO()], ids=["trace", "graph"])
def test_stock_losses_have_the_gradient_of_enumeration(stock):
    case = Case()
    case.check(stock, 0, 1, 150 if isinstance(stock, Trace_ELBO) else 250)


@pytest.mark.parametrize("validate", [True, False])
def test_mean_field_elbo_would_ignore_the_rates_and_raises(validate):
    case = Case()
    with pyro.validation_enabled(validate), pytest.raises((ValueError, NotImplementedError)):
        TraceMeanField_ELBO().loss_and_grads(case.model, case.guide, case.x, case.y)


@pytest.mark.parametrize("parameter", ["logits", "rate"])
def test_hand_written_guides_learn_too(parameter):
    """Through whatever parameter stands behind the mask."""
    case = Case(widths=(3,), copies=40)
    logits, loc = case.logits[0].detach().clone(), case.locs[0].detach()
    start = logits if parameter == "logits" else torch.sigmoid(-logits)

    def guide(x, y):
        value = pyro.param(parameter, start, constraints.real if parameter == "logits" else constraints.unit_interval)
        mask = BernoulliMask(**{parameter: value}, units=3)
        z = pyro.sample("net.weight.mask", mask, infer={"is_auxiliary": True})
        pyro.sample("net.weight", MaskedDelta(MaskedWeight(loc, z, mask.keep)))
        pyro.sample("net.bias", dist.Delta(case.biases[0].detach(), event_dim=1))

    case.model.net = BayesianModule(nn.Linear(3, 1).double())
    _, exact = case.exact(0, 1)
    draws = []
    for _ in range(150):
        TraceDropout_ELBO().loss_and_grads(case.model, guide, case.x, case.y)
        unconstrained = pyro.param(parameter).unconstrained()
        draws.append(unconstrained.grad.clone() * (1 if parameter == "logits" else -1))  # logit(rate) = -logit(keep)
        unconstrained.grad = None
    assert_same_mean(torch.stack(draws), exact[3:6])


def test_a_vector_likelihood_of_all_data_learns_with_masks_per_draw():
    """No data plate at all: the ELBO with masks per draw needs none."""
    case = Case()

    net, noise = case.model.net, case.model.scale

    class Joint(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, y):
            mean = self.net(x).squeeze(-1)
            with pyro.poutine.scale(scale=2.5):
                pyro.sample("obs", dist.Normal(mean, noise).to_event(1), obs=y)

    model = case.model = Joint()
    model.scale = noise
    with pytest.raises(ValueError, match="is in no data plate and depends on masks"):
        TraceDropout_ELBO().loss(model, case.guide, case.x, case.y)
    with pytest.raises(ValueError, match="is in no data plate and depends on weights, but the α energy"):
        RenyiDropout_ELBO(masks="draw").loss(model, case.guide, case.x, case.y)
    case.check(TraceDropout_ELBO(20, masks="draw"), 0, 1, 200)


# Models with more in them than a network and its data, against stock Trace_ELBO


def deep(x, y):
    """A local latent whose prior the network gives, a global one, and two observed sites in one plate."""
    mean = deep.net(x).squeeze(-1)
    precision = pyro.sample("precision", dist.Gamma(torch.tensor(2.0, dtype=F64), 1.0))
    with pyro.plate("data", 12, subsample_size=len(x)):
        h = pyro.sample("h", dist.Normal(mean, 1.0))
        pyro.sample("count", dist.Poisson(h.exp()), obs=(y > 0).double())
        pyro.sample("obs", dist.Normal(h + mean, precision.rsqrt()), obs=y)


class TwoDataSets(PyroModule):
    """The same weights see data of two sizes, in two plates."""

    def forward(self, x, y):
        all_of_them, two = self.net(x).squeeze(-1), self.net(x[:2] + 1).squeeze(-1)
        with pyro.plate("first", len(x)):
            pyro.sample("y", dist.Normal(all_of_them, 1.0), obs=y)
        with pyro.plate("second", 2):
            pyro.sample("w", dist.Normal(two, 0.5), obs=y[:2])


def two_plates_around_the_data(x, y):
    mean = deep.net(x).squeeze(-1)
    with pyro.plate("data", len(x), dim=-1), pyro.plate("repeats", 2, dim=-2):
        pyro.sample("obs", dist.Normal(mean, torch.ones(2, 1, dtype=F64)), obs=torch.stack([y, y + 1]))


def networks(x, y):
    """Three networks at once, each with rates of its own."""
    with pyro.plate("networks", 3, dim=-2):
        mean = deep.net(x).squeeze(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


def layer_norm():
    return nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1)).double()


@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize(
    ("model", "net", "rest"),
    [
        (deep, lambda: mlp(3, (3,)).double(), AutoNormal),
        (deep, lambda: nn.Linear(3, 1).double(), AutoDelta),
        (deep, layer_norm, AutoNormal),  # LayerNorm's dense draws differ, so the members' networks run in turn
        (TwoDataSets(), lambda: mlp(3, (2,)).double(), AutoDelta),
        (two_plates_around_the_data, lambda: mlp(3, (2,)).double(), AutoDelta),
        (networks, lambda: nn.Linear(3, 1).double(), AutoDelta),
    ],
)
def test_gradient_agrees_with_stock_trace_elbo(model, net, rest, masks):
    x, y = regression_data(6)
    deep.net = BayesianModule(net())
    if isinstance(model, TwoDataSets):
        model.net = deep.net
    guide = AutoBernoulliDropout(model, rate=0.4, learnable=True, per_unit=True, rest=rest)
    in_turn = net is layer_norm
    ours_loss = TraceDropout_ELBO(4 if in_turn else 20, masks=masks)
    guide(x, y)
    ours, stock = (
        gradients(loss, model, guide, x, y, n)
        for loss, n in ((ours_loss, 100), (Trace_ELBO(400, vectorize_particles=True), 25 if in_turn else 100))
    )
    assert_same_mean(ours[0], stock[0])
    for name in ours[1]:
        assert_same_mean(ours[1][name], stock[1][name])


@pytest.mark.parametrize("masks", ["datum", "draw"])
def test_convolutions_learn_rates_per_channel(masks):
    conv = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 1)).double()
    x, y = torch.randn(4, 2, 3, dtype=F64), torch.randn(4, dtype=F64)
    model = FixedNoise(conv, size=8)
    guide = AutoBernoulliDropout(model, rate=0.4, learnable=True, per_unit=True)
    guide(x, y)
    assert {k: v.shape for k, v in guide.rates().items()} == {"net.0.weight": (2,), "net.3.weight": (6,)}
    ours = gradients(TraceDropout_ELBO(20, masks=masks), model, guide, x, y, 100)[1]
    stock = gradients(Trace_ELBO(400, vectorize_particles=True), model, guide, x, y, 40)[1]
    for name in ours:
        assert_same_mean(ours[name], stock[name])


def test_two_networks_in_a_row_with_guides_of_their_own():
    """Dense draws of the second network meet the members of the first."""
    x, y = regression_data(4)

    class Two(PyroModule):
        def __init__(self):
            super().__init__()
            self.first = BayesianModule(nn.Linear(3, 2).double())
            self.second = BayesianModule(nn.Linear(2, 1).double(), event_dim=1)

        def forward(self, x, y):
            mean = self.second(self.first(x)).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    model = Two()
    first = poutine.block(model, hide_fn=lambda m: "second" in m["name"])
    guide = AutoGuideList(model)
    guide.append(AutoBernoulliDropout(first, rate=0.4, learnable=True))
    guide.append(AutoNormal(poutine.block(model, hide_fn=lambda m: "first" in m["name"])))
    ours = gradients(TraceDropout_ELBO(10), model, guide, x, y, 60)
    stock = gradients(Trace_ELBO(400, vectorize_particles=True), model, guide, x, y, 60)
    assert_same_mean(ours[0], stock[0])
    for name in ours[1]:
        assert_same_mean(ours[1][name], stock[1][name])


def test_evaluation_takes_the_same_loss_where_rates_are_computed_from_parameters():
    x, y = regression_data(4)
    prior = lambda name, p: dist.Normal(0.0, 1.0) if p.dim() > 1 else None  # noqa: E731
    model = FixedNoise(nn.Linear(3, 1).double(), size=4, prior=prior)
    loc = torch.randn(1, 3, dtype=F64)

    def guide(x, y):
        rate = pyro.param("rate", torch.tensor([0.3], dtype=F64), constraints.unit_interval)
        mask = BernoulliMask(rate=rate, units=3)
        z = pyro.sample("net.weight.mask", mask, infer={"is_auxiliary": True})
        pyro.sample("net.weight", MaskedDelta(MaskedWeight(loc, z, mask.keep)))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO(gradient="arm"))
    for _ in range(2):
        svi.step(x, y)
        assert math.isfinite(svi.evaluate_loss(x, y))


# Wrong use


def test_an_estimator_where_no_rate_is_learned_raises():
    x, y = regression_data(4)
    model = FixedNoise(nn.Linear(3, 1).double(), size=4)
    for guide in (AutoConcreteDropout(model), AutoBernoulliDropout(model)):
        with pytest.raises(ValueError, match=r"gradient=ARM\(\) is for learned rates of hard masks.*leave it out"):
            TraceDropout_ELBO(gradient=ARM()).loss_and_grads(model, guide, x, y)


def test_one_loss_serves_any_guide():
    x, y = regression_data(4)
    model = FixedNoise(nn.Linear(3, 1).double(), size=4)
    guides = [AutoBernoulliDropout(model, learnable=True), AutoConcreteDropout(model), AutoBernoulliDropout(model)]
    for loss in (TraceDropout_ELBO(), RenyiDropout_ELBO(), TraceDropout_ELBO(masks="draw")):
        for guide in guides + guides[::-1]:
            assert math.isfinite(loss.loss_and_grads(model, guide, x, y))
    assert guides[0].logits.net.weight_unconstrained.grad.abs() > 0


@pytest.mark.parametrize("wrong", ["rebar", 3, ARM])
def test_a_gradient_that_is_no_estimator_raises(wrong):
    with pytest.raises(ValueError, match="gradient must be an estimator such as DisARM"):
        TraceDropout_ELBO(gradient=wrong)


@pytest.mark.parametrize("members", [1, 0, True, 2.0])
def test_leave_one_out_needs_two(members):
    with pytest.raises(ValueError, match="at least two members"):
        Reinforce(members)


def test_a_loss_survives_a_failed_first_step_and_refuses_a_deeper_model():
    case = Case()
    loss = TraceDropout_ELBO()
    for _ in range(2):
        with pytest.raises((ValueError, RuntimeError)):
            loss.loss_and_grads(case.model, case.guide, case.x, torch.randn(7, dtype=F64))
    assert math.isfinite(loss.loss_and_grads(case.model, case.guide, case.x, case.y))
    deep.net = BayesianModule(nn.Linear(3, 1).double())
    x, y = regression_data(6)
    message = "in 2 plates, more than the 1 of the loss's first"
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=message):
        loss.loss_and_grads(networks, AutoBernoulliDropout(networks, learnable=True), x, y)


def test_sequential_plates_take_masks_per_draw():
    x, y = regression_data(3)
    net = BayesianModule(nn.Linear(3, 1).double())

    def model(x, y):
        f = net(x).squeeze(-1)
        for i in pyro.plate("data", 3):
            pyro.sample(f"obs{i}", dist.Normal(f[..., i], 1.0), obs=y[i])

    guide = AutoBernoulliDropout(model, learnable=True)
    with pytest.raises(NotImplementedError, match="need a vectorised data plate"):
        TraceDropout_ELBO().loss_and_grads(model, guide, x, y)
    assert math.isfinite(TraceDropout_ELBO(masks="draw").loss_and_grads(model, guide, x, y))
