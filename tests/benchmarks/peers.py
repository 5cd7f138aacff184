"""What the package is measured against: loops that a user would write by hand, and stock Pyro."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
import torch.nn.functional as F
from pyro.infer import ELBO, SVI, Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from models.regression import Regression, mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    CompiledSVI,
    DropoutPredictive,
    ReplicatedSVI,
    TraceDropout_ELBO,
)

FEATURES, SIZE = 13, 506  # as the Boston data have them
RATE, TEMPERATURE = 0.1, 0.1
MEMORY = 10**9  # bytes that predictions are to keep to


def hand_written_step(x: Tensor, y: Tensor, width: int, compiled: bool = False) -> Callable[[], float]:
    """Concrete dropout in plain PyTorch: the objective of ``Regression`` under ``AutoConcreteDropout``.

    ``compiled``: its loss by ``torch.compile``, its optimiser fused.
    """
    layers = [m for m in mlp(FEATURES, (width, width)) if isinstance(m, nn.Linear)]
    logits = [nn.Parameter(torch.tensor(math.log((1 - RATE) / RATE))) for _ in layers]
    log_precision = nn.Parameter(torch.zeros(()))
    parameters = [*logits, log_precision, *(p for layer in layers for p in layer.parameters())]
    optimiser = torch.optim.Adam(parameters, lr=1e-3, fused=compiled)

    def objective() -> Tensor:
        h, kl = x, 0.0
        for layer, logit in zip(layers, logits, strict=True):
            keep, rate = torch.sigmoid(logit), torch.sigmoid(-logit)
            z = torch.sigmoid((logit + torch.logit(torch.rand_like(h), eps=1e-7)) / TEMPERATURE)
            h = F.linear(h * z / keep, layer.weight, layer.bias)
            h = h if layer is layers[-1] else torch.relu(h)
            entropy = -keep * torch.log(keep) - rate * torch.log(rate)
            weights = 0.5 * layer.weight.square().sum() / keep + 0.5 * layer.bias.square().sum()
            constant = 0.5 * math.log(2 * math.pi) * (layer.weight.numel() + layer.bias.numel())
            kl = kl + weights + constant - layer.in_features * entropy
        precision = log_precision.exp()
        error = (y - h.squeeze(-1)).square()
        log_likelihood = (0.5 * log_precision - 0.5 * precision * error - 0.5 * math.log(2 * math.pi)).sum()
        log_prior = (0.1 - 1) * log_precision - 0.01 * precision + 0.1 * math.log(0.01) - math.lgamma(0.1)
        return kl - log_prior - SIZE / len(x) * log_likelihood

    evaluate = torch.compile(objective) if compiled else objective

    def step() -> float:
        optimiser.zero_grad()
        loss = evaluate()
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def module_step(
    x: Tensor, y: Tensor, width: int, guide: Callable = AutoConcreteDropout, loss: ELBO | None = None
) -> Callable[[], float]:
    """``ELBO()(model, guide)`` with the optimiser that the hand-written loop has."""
    pyro.clear_param_store()
    model = Regression(FEATURES, SIZE, (width, width))
    return step_of((loss or TraceDropout_ELBO())(model, guide(model, rate=RATE)), x, y)


def step_of(elbo: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
    """A step of what ``ELBO()(model, guide)`` gives, by Adam of PyTorch."""
    elbo(x, y)
    optimiser = torch.optim.Adam(elbo.parameters(), lr=1e-3)

    def step() -> float:
        optimiser.zero_grad()
        loss = elbo(x, y)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def traces(x: Tensor, y: Tensor, width: int) -> Callable[[], None]:
    """What Pyro does for a step of ``module_step`` before there is a loss: the guide's trace, and the model's."""
    pyro.clear_param_store()
    model = Regression(FEATURES, SIZE, (width, width))
    guide = AutoConcreteDropout(model, rate=RATE)
    guide(x, y)

    def run() -> None:
        guide_trace = poutine.trace(guide).get_trace(x, y)
        poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x, y)

    return run


def svi_step(x: Tensor, y: Tensor, width: int) -> Callable[[], float]:
    """``pyro.infer.SVI``, whose ``pyro.optim.Adam`` is one PyTorch optimiser per parameter."""
    pyro.clear_param_store()
    model = Regression(FEATURES, SIZE, (width, width))
    guide = AutoConcreteDropout(model, rate=RATE, temperature=TEMPERATURE)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceDropout_ELBO())
    return lambda: svi.step(x, y)


def compiled_svi(
    width: int, guide: Callable = AutoConcreteDropout, loss: ELBO | None = None, wait: bool = True
) -> CompiledSVI:
    """``svi_step``, compiled."""
    pyro.clear_param_store()
    model = Regression(FEATURES, SIZE, (width, width))
    adam = pyro.optim.Adam({"lr": 1e-3})
    return CompiledSVI(model, guide(model, rate=RATE), adam, loss, wait=wait, progress=False)


def compiled_steps(
    x: Tensor, width: int = 50, batch: int = 32, particles: int = 1, replicates: int = 0, steps: int = 20
) -> Callable[[], Tensor]:
    """Some steps in one scan, of one network or of many."""
    x, y = torch.randn(batch, FEATURES), torch.randn(batch)
    loss = TraceDropout_ELBO(particles)
    if replicates:
        svi: Any = replicated_svi(replicates, loss)
        arguments = [t.expand(replicates, steps, *t.shape) for t in (x, y)]
    else:
        svi = compiled_svi(width, loss=loss)
        arguments = [t.expand(steps, *t.shape) for t in (x, y)]
    svi.scan(*arguments)
    return lambda: svi.scan(*arguments)


def replicated_svi(replicates: int, loss: ELBO | None = None) -> ReplicatedSVI:
    """Networks of one hidden layer of 50 units."""

    def make() -> tuple[Regression, AutoConcreteDropout]:
        model = Regression(FEATURES, SIZE, (50,))
        return model, AutoConcreteDropout(model, rate=RATE)

    return ReplicatedSVI(make, [{}] * replicates, pyro.optim.Adam({"lr": 1e-3}), loss, wait=True, progress=False)


def normal_step(x: Tensor, y: Tensor, width: int) -> Callable[[], float]:
    """What Pyro users have without dropout: how much slower Pyro is than PyTorch on this machine."""
    pyro.clear_param_store()
    model = Regression(FEATURES, SIZE, (width, width))
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    return lambda: svi.step(x, y)


def raw_predictive(x: Tensor, width: int, draws: int) -> Callable[[], Tensor]:
    """A loop of stochastic passes through a plain network with dropout."""
    layers = [m for m in mlp(FEATURES, (width, width)) if isinstance(m, nn.Linear)]

    @torch.no_grad()
    def predict() -> Tensor:
        out = []
        for _ in range(draws):
            h = x
            for layer in layers:
                h = layer(F.dropout(h, RATE, training=True))
                h = h if layer is layers[-1] else torch.relu(h)
            out.append(h.squeeze(-1))
        return torch.stack(out)

    return predict


def raw_functions(x: Tensor, width: int, draws: int) -> Callable[[], Tensor]:
    """The same, one mask for all data of a pass: function draws by hand."""
    layers = [m for m in mlp(FEATURES, (width, width)) if isinstance(m, nn.Linear)]

    @torch.no_grad()
    def predict() -> Tensor:
        out = []
        for _ in range(draws):
            h = x
            for layer in layers:
                h = layer(h * F.dropout(torch.ones(layer.in_features), RATE, training=True))
                h = h if layer is layers[-1] else torch.relu(h)
            out.append(h.squeeze(-1))
        return torch.stack(out)

    return predict


def predictive(
    kind: Callable, x: Tensor, width: int, draws: int, rate: float = RATE, **options: Any
) -> Callable[[Tensor], dict]:
    """``DropoutPredictive`` or stock ``Predictive`` of a model and guide that have not predicted before."""
    pyro.clear_param_store()
    model = Regression(FEATURES, SIZE, (width, width))
    guide = AutoBernoulliDropout(model, rate=rate)
    guide(x, x[:, 0])
    return kind(model, guide=guide, num_samples=draws, **options)


def function_predictive(
    x: Tensor, width: int, draws: int, points: int | None = None, rate: float = RATE
) -> Callable[[], dict]:
    """``DropoutPredictive`` in parts of one gibibyte; ``points`` replaces the inputs by as many."""
    x = x if points is None else torch.randn(points, FEATURES)
    predict = predictive(DropoutPredictive, x, width, draws, rate, return_sites=["mean"], max_memory=MEMORY)
    return lambda: predict(x)


def dropout_predictive(x: Tensor, width: int, draws: int, parallel: bool) -> Callable[[], dict]:
    """Stock ``Predictive`` with our guide."""
    predict = predictive(Predictive, x, width, draws, parallel=parallel)
    return lambda: predict(x)


def normal_predictive(x: Tensor, width: int, draws: int) -> Callable[[], dict]:
    """Stock ``Predictive`` with ``AutoNormal``."""
    pyro.clear_param_store()
    model = Regression(FEATURES, SIZE, (width, width))
    guide = AutoNormal(model)
    guide(x, x[:, 0])
    predictive = Predictive(model, guide=guide, num_samples=draws, parallel=False)
    return lambda: predictive(x)
