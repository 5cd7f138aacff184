"""Observed sites beside the data, which depend on no mask: conditioned weights, factors, calibration data."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

from pyro_dropout import (
    AutoBernoulliDropout,
    BayesianModule,
    CompiledSVI,
    DropoutPredictive,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)

F64 = torch.float64
RATE, LOC, LEVEL = 0.3, torch.tensor([[0.8, -0.5]], dtype=F64), 0.4


def data(rows=4):
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(rows, 2, dtype=F64, generator=generator), torch.randn(rows, dtype=F64, generator=generator))


class Model(pyro.nn.PyroModule):
    """A linear layer with masks, a level without, and what is observed of the level alone."""

    def __init__(self, beside=None):
        super().__init__()
        self.net = BayesianModule(nn.Linear(2, 1, bias=False).double())
        self.beside = beside

    def forward(self, x, y=None):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        mean = self.net(x).squeeze(-1)
        if self.beside is not None:
            self.beside(level, mean)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean + level, 0.7), obs=y)


def factor(level, mean):
    pyro.factor("beside", -3.0 * level**2)


def calibration(level, mean):
    pyro.sample("beside", dist.Normal(level, 0.2), obs=torch.tensor(0.1, dtype=F64))


OF_LEVEL = {
    factor: -3.0 * LEVEL**2,
    calibration: -0.5 * ((0.1 - LEVEL) / 0.2) ** 2 - math.log(0.2) - 0.5 * math.log(2 * math.pi),
}


def fixed_guide(model, **options):
    """Of known weights and a known level."""
    guide = AutoBernoulliDropout(model, rate=RATE, rest=AutoDelta, **options)
    guide(*data())
    with torch.no_grad():
        guide.locs.net.weight.copy_(LOC)
        guide.rest.level.fill_(LEVEL)
    return guide


def exact(alpha, particles, offset=0.0):
    """The loss without what stands beside the data, by every mask of every datum."""
    x, y = data()
    keep = 1 - RATE
    z = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=F64)
    log_q = (z * math.log(keep) + (1 - z) * math.log(RATE)).sum(1)
    mean = (LOC * z / keep) @ x.mT + LEVEL + offset
    log_p = dist.Normal(mean, 0.7).log_prob(y)  # [masks, rows]
    if alpha == 0 or particles == 1:
        energy = -(log_q.exp() @ log_p).sum()
    else:  # two draws
        pairs = torch.logaddexp(alpha * log_p[:, None], alpha * log_p[None]) - math.log(2)
        energy = -((log_q[:, None] + log_q[None]).exp().unsqueeze(-1) * pairs).sum() / alpha
    entropy = -2 * (keep * math.log(keep) + RATE * math.log(RATE))
    constant = 0.5 * math.log(2 * math.pi)
    kl = -entropy + (0.5 * LOC**2 / keep + constant).sum() + 0.5 * LEVEL**2 + constant
    return (energy + kl).item()


LOSSES = {
    "elbo": (TraceDropout_ELBO, 0.0, 1),
    "two particles": (lambda **o: TraceDropout_ELBO(2, **o), 0.0, 2),
    "alpha": (lambda **o: RenyiDropout_ELBO(0.5, 2, **o), 0.5, 2),
    "alpha in turn": (lambda **o: RenyiDropout_ELBO(0.5, 2, vectorize_particles=False, **o), 0.5, 2),
}


@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("beside", OF_LEVEL)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_has_them_once(loss, beside, masks):
    make, alpha, particles = LOSSES[loss]
    torch.manual_seed(0)
    model = Model(beside)
    guide = fixed_guide(model)
    loss = make(masks=masks)
    found = torch.tensor([loss.loss(model, guide, *data()) for _ in range(600)])
    expected = exact(alpha, particles) - OF_LEVEL[beside]
    assert abs(found.mean() - expected) < 4 * found.std() / len(found) ** 0.5


FIXED = torch.tensor([[-0.3, 0.6]], dtype=F64)


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.known, self.other = (nn.Linear(2, 1, bias=False).double() for _ in range(2))

    def forward(self, x):
        return self.known(x) + self.other(x)


def conditioned():
    """A sum of two layers, the weight of one of which is known."""
    net = BayesianModule(Sum())

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean + LEVEL, 0.7), obs=y)

    model = poutine.condition(model, data={"known.weight": FIXED})
    guide = AutoBernoulliDropout(model, rate=RATE)
    guide(*data())
    with torch.no_grad():
        guide.locs.other.weight.copy_(LOC)
    return model, guide


@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_conditioned_weight(loss, masks):
    make, alpha, particles = LOSSES[loss]
    model, guide = conditioned()
    torch.manual_seed(0)
    loss = make(masks=masks)
    found = torch.tensor([loss.loss(model, guide, *data()) for _ in range(600)])
    level = 0.5 * LEVEL**2 + 0.5 * math.log(2 * math.pi)  # which is no latent here
    prior = (0.5 * FIXED**2 + 0.5 * math.log(2 * math.pi)).sum().item()
    expected = exact(alpha, particles, offset=(data()[0] @ FIXED.mT).squeeze(1)) - level + prior
    assert abs(found.mean() - expected) < 4 * found.std() / len(found) ** 0.5


@pytest.mark.parametrize("loss", [TraceDropout_ELBO, RenyiDropout_ELBO])
def test_gradients_of_hard_rates_do_not_know_them(loss):
    def gradient(beside):
        torch.manual_seed(0)
        model = Model(beside)
        guide = fixed_guide(model, learnable=True)
        torch.manual_seed(1)
        loss().loss_and_grads(model, guide, *data())
        return {name: p.grad for name, p in guide.named_parameters() if "level" not in name}

    expected, found = gradient(None), gradient(factor)
    assert any("rate" in name or "logit" in name for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


OF_MASKS = {
    "smooth": lambda level, mean: pyro.factor("beside", -mean.square().sum()),
    "steps": lambda level, mean: pyro.factor("beside", (mean > 0).double().sum()),
    "detached": lambda level, mean: pyro.sample("beside", dist.Normal(mean.detach().sum(), 1.0), obs=level),
}


@pytest.mark.parametrize("beside", OF_MASKS.values(), ids=OF_MASKS)
@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("make", [TraceDropout_ELBO, RenyiDropout_ELBO])
def test_what_depends_on_masks_is_refused(make, masks, beside):
    torch.manual_seed(0)
    model = Model(beside)
    guide, loss = fixed_guide(model), make(masks=masks)
    if make is TraceDropout_ELBO and masks == "draw":
        assert math.isfinite(loss.loss(model, guide, *data()))  # an expectation of one network
        return
    with pytest.raises(ValueError, match="observed site 'beside' is in no data plate and depends on"):
        loss.loss(model, guide, *data())


@pytest.mark.parametrize("masks", ["datum", "draw"])
def test_the_alpha_energy_refuses_what_depends_on_dense_weights(masks):
    net = BayesianModule(nn.Linear(2, 1).double())

    def model(x, y):
        pyro.sample("obs", dist.Normal(net(x).squeeze(-1), 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match="'obs' is in no data plate and depends on"):
        RenyiDropout_ELBO(0.5, 3, masks=masks).loss(model, AutoNormal(model), *data())


def test_a_site_that_comes_later_is_looked_at_too():
    model = Model()
    guide, loss = fixed_guide(model), TraceDropout_ELBO()
    loss.loss(model, guide, *data())
    model.beside = factor
    loss.loss(model, guide, *data())
    model.beside = lambda level, mean: pyro.factor("another", -mean.square().sum())
    with pytest.raises(ValueError, match="'another' is in no data plate and depends on"):
        loss.loss(model, guide, *data())


def test_looking_takes_no_random_numbers():
    def losses(beside):
        model = Model(beside)
        guide, loss = fixed_guide(model), TraceDropout_ELBO()
        torch.manual_seed(2)
        return torch.tensor([loss.loss(model, guide, *data()) for _ in range(3)])

    torch.testing.assert_close(losses(factor), losses(None) - OF_LEVEL[factor])


@pytest.mark.parametrize("masks", ["datum", "draw"])
def test_predictions_of_a_conditioned_model(masks):
    model, guide = conditioned()
    x, _ = data(13)
    torch.manual_seed(0)
    predict = DropoutPredictive(model, guide=guide, num_samples=2000, return_sites=["obs"], masks=masks)
    draws = predict(x)["obs"]
    mean = (x @ (LOC + FIXED).mT).squeeze(1) + LEVEL
    assert draws.shape == (2000, 13)
    assert ((draws.mean(0) - mean).abs() < 4.5 * draws.std(0) / 2000**0.5).all()


@pytest.mark.slow
def test_compiled_steps_have_them_too():
    def trained(make):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = Model(factor)
        guide = fixed_guide(model)
        svi = make(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceDropout_ELBO())
        for _ in range(300):
            svi.step(*data())
        return guide.rest.level.detach()

    torch.testing.assert_close(trained(partial(CompiledSVI, progress=False)), trained(SVI), rtol=0, atol=0.05)
