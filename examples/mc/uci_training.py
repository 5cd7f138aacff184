"""What ``uci`` trains and scores: the networks of many splits and settings, all at once, in units of the response."""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta
from torch import Tensor
from tqdm import tqdm

from examples.common.data import UCI
from examples.common.schedules import Decay
from examples.common.standardised import Scaling
from models.regression import Regression
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    DropoutPredictive,
    RenyiDropout_ELBO,
    ReplicatedSVI,
    TraceDropout_ELBO,
    load_checkpoint,
    save_checkpoint,
)
from pyro_dropout.metrics import predictive_log_likelihood


class Set(NamedTuple):
    """A data set: its name at UCI, the published grid of precisions (in 1 / units of y²), how it is trained here."""

    name: str
    precisions: tuple[float, ...]
    epochs: int
    batch: int


SETS = {
    "boston": Set("bostonHousing", (0.1, 0.15, 0.2), 400, 32),
    "concrete": Set("concrete", (0.025, 0.05, 0.075), 400, 64),
    "energy": Set("energy", (0.25, 0.5, 0.75), 800, 64),
    "kin8nm": Set("kin8nm", (150.0, 200.0, 250.0), 100, 128),
    "naval": Set("naval-propulsion-plant", (3e4, 4e4, 5e4), 480, 128),
    "power": Set("power-plant", (0.05, 0.1, 0.15), 60, 128),
    "protein": Set("protein-tertiary-structure", (0.025, 0.05, 0.075), 200, 256),
    "wine": Set("wine-quality-red", (2.5, 3.0, 3.5), 150, 32),
    "yacht": Set("yacht", (0.25, 0.5, 0.75), 1000, 32),
}
LEARNING_RATE = 1e-2
CHUNK = 50  # steps between messages
SAVING = 60.0  # seconds between states of training in a file

Run = tuple[np.ndarray, np.ndarray, dict[str, float]]  # rows to train, rows to score, hyperparameters
Found = dict[str, list[Any]]  # by kind what was found of each network


@dataclass(frozen=True)
class Networks:
    """One network for each run, with rows standardised by those it is trained on."""

    svi: ReplicatedSVI
    optim: pyro.optim.PyroLRScheduler
    x: Tensor  # [runs, rows, features]
    y: Tensor
    tests: list[tuple[Tensor, Tensor]]
    deviations: list[float]  # of the responses
    batch: int
    ends: list[int]  # in chunks


@dataclass
class Progress:
    """How far a training has come. If it was interrupted, ``started`` is as if no time had passed meanwhile."""

    started: float
    saved: float
    chunk: int = 0
    losses: Tensor | None = None
    results: list[Found] = field(default_factory=list)


def fit(
    name: str,
    data: UCI,
    runs: list[Run],
    method: str,
    lengths: tuple[float, ...],
    options: argparse.Namespace,
    seed: int = 0,
    *,
    choosing: bool = False,
    training: Path | None = None,
) -> tuple[list[Found], float]:
    """Results of one network for each run, ``(rows to train, rows to score, hyperparameters)``, and seconds.

    All are trained at once, the first from ``seed``, each other from the next. There are results for each of
    ``lengths``, parts of the steps, at whose ends the learning rate has come down; ``choosing``, only the ``score`` to
    choose by, with a fifth of the draws. A network whose loss or whose prediction is not finite has NaN. With a file
    for its ``training``, one that was interrupted goes on.
    """
    start = time.perf_counter()
    networks = prepared(name, data, runs, method, lengths, options, seed)
    what = f"{name} {method}, validation" if choosing else f"{name} {method}"
    wanted, draws = kinds(method, choosing), -(-options.draws // 5) if choosing else options.draws
    progress = begun(networks, start, what, training)
    with tqdm(total=networks.ends[-1] * CHUNK, initial=progress.chunk * CHUNK, desc=what, disable=None) as shown:
        for end in networks.ends[len(progress.results) :]:
            trained(networks, progress, end, shown, training)
            found = evaluated(networks, progress.losses, wanted, draws, what)
            if choosing:
                found["score"] = found.pop(wanted[0])
            progress.results.append(found)
    if training is not None:
        training.unlink(missing_ok=True)
    return progress.results, time.perf_counter() - progress.started


def prepared(
    name: str,
    data: UCI,
    runs: list[Run],
    method: str,
    lengths: tuple[float, ...],
    options: argparse.Namespace,
    seed: int,
) -> Networks:
    """The networks of these runs before their first step; precisions of a grid are in units of the response."""
    own, x, y = SETS[name], torch.as_tensor(data.x), torch.as_tensor(data.y)
    rows = torch.as_tensor(np.stack([rows for rows, _, _ in runs]))
    inputs, response = (Scaling.of(values[rows], dim=1, correction=0) for values in (x, y))
    tests = [(inputs[r](x[test]).float(), response[r](y[test]).float()) for r, (_, test, _) in enumerate(runs)]
    deviations = response.deviation.squeeze(1).tolist()
    hyperparameters = [
        {kind: value * deviation**2 if kind == "precision" else value for kind, value in values.items()}
        for (_, _, values), deviation in zip(runs, deviations, strict=True)
    ]

    size = rows.shape[1]
    batch = min(own.batch, size)
    chunks = own.epochs * options.epochs * size / batch / CHUNK
    ends = [max(1, round(length * chunks)) for length in lengths]
    optim = pyro.optim.PyroLRScheduler(
        torch.optim.lr_scheduler.LambdaLR,
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": LEARNING_RATE}, "lr_lambda": Decay(ends)},
    )
    make = maker(method, x.shape[1], size, (100 if name == "protein" else 50,) * options.layers)
    alpha = method.startswith("alpha")
    loss = RenyiDropout_ELBO(float(method.removeprefix("alpha")), 10) if alpha else TraceDropout_ELBO()
    svi = ReplicatedSVI(
        make, hyperparameters, optim, loss, seeds=range(seed, seed + len(runs)), backend=options.backend
    )
    return Networks(svi, optim, inputs(x[rows]).float(), response(y[rows]).float(), tests, deviations, batch, ends)


def begun(networks: Networks, start: float, what: str, training: Path | None) -> Progress:
    """Where training goes on: at its beginning, or where a file says that an interrupted one was."""
    if training is None or not training.exists():
        return Progress(start, saved=time.perf_counter())
    first = slice(networks.batch)
    networks.svi.step(networks.x[:, first], networks.y[:, first])  # makes parameters to load into
    values = load_checkpoint(training, svi=networks.svi)
    print(f"{what}: {training} goes on after {values['chunk'] * CHUNK:,} of {networks.ends[-1] * CHUNK:,} steps")
    started = start - values.pop("seconds")
    return Progress(started, saved=time.perf_counter(), **values)


def trained(networks: Networks, progress: Progress, end: int, shown: tqdm, training: Path | None) -> None:
    """Trains until this chunk; once a minute the state goes into the file."""
    svi, (runs, size) = networks.svi, networks.y.shape
    each = torch.arange(runs)[:, None, None]
    while progress.chunk < end:
        chosen = torch.randint(size, (runs, CHUNK, networks.batch))
        progress.losses = svi.scan(networks.x[each, chosen], networks.y[each, chosen]).mean(1) / size
        networks.optim.step()
        progress.chunk += 1
        shown.update(CHUNK)
        shown.set_postfix_str(f"loss {progress.losses[svi.alive].mean():.3f} per row")
        now = time.perf_counter()
        if training is not None and now - progress.saved > SAVING:
            training.parent.mkdir(parents=True, exist_ok=True)
            state = {"chunk": progress.chunk, "results": progress.results, "losses": progress.losses}
            save_checkpoint(training, svi=svi, **state, seconds=now - progress.started)
            progress.saved = now


def evaluated(networks: Networks, losses: Tensor, wanted: list[str], draws: int, what: str) -> Found:
    """Losses, scores and rates of the networks as they are."""
    svi = networks.svi
    found: Found = {"loss": torch.where(svi.alive, losses, math.nan).tolist()}
    for r, guide in enumerate(svi.guides):
        scores = dict.fromkeys(wanted, math.nan)
        try:
            if svi.alive[r]:
                train = networks.x[r], networks.y[r]
                scores = scored(svi.models[r], guide, train, networks.tests[r], wanted, draws)
        except ValueError as error:  # a noise that is not finite, far from the training rows
            warnings.warn(f"{what}, {svi.hyperparameters[r]}: {error}", stacklevel=2)
        deviation = networks.deviations[r]
        for kind, value in scores.items():
            value = value * deviation if kind == "rmse" else value - math.log(deviation)
            found.setdefault(kind, []).append(value)
        found.setdefault("rates", []).append({site: float(rate.mean()) for site, rate in guide.rates().items()})
    return found


def kinds(method: str, choosing: bool) -> list[str]:
    """The scores of a method, or the one to choose by."""
    last = method in ("concrete", "held", "disarm", "disarm-unit")
    if choosing:
        return ["after_m_step" if last else "log_likelihood"]
    return ["log_likelihood", "rmse"] + ["after_m_step"] * last


def scored(
    model: Any, guide: Any, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], wanted: list[str], draws: int
) -> dict[str, float]:
    """In standardised units: log-likelihood of a test row, also with the precision of a last M-step; RMSE."""
    scores = {}
    if "log_likelihood" in wanted:
        predict = DropoutPredictive(model, guide=guide, num_samples=draws, progress=False)
        scores["log_likelihood"] = float(predict.log_likelihood(*test)["obs"].mean())
    size = len(train[0]) if "after_m_step" in wanted else 0
    if "rmse" in wanted or size:
        predict = DropoutPredictive(model, guide=guide, num_samples=draws, return_sites=("mean",), progress=False)
        means = predict(torch.cat([train[0][:size], test[0]]))["mean"]
        if "rmse" in wanted:
            scores["rmse"] = float((means[:, size:].mean(0) - test[1]).square().mean().sqrt())
        if size:
            precision = last_m_step(means[:, :size], train[1])
            densities = dist.Normal(means[:, size:], precision.rsqrt()).log_prob(test[1])
            scores["after_m_step"] = float(predictive_log_likelihood(densities).mean())
    return scores


def last_m_step(means: Tensor, y: Tensor) -> Tensor:
    r"""The precision that is best for what the network has become (CD appendix D), under its prior Gamma(0.1, 0.01):

    .. math:: \hat\tau = \frac{0.1 - 1 + N / 2}{0.01 + \mathrm{E}_q \sum_n (y_n - f^W(x_n))^2 / 2}

    :param means: draws of :math:`f^W(x_n)`, ``[draws, N]``.
    :param y: responses, ``[N]``.
    """
    return (0.1 - 1 + len(y) / 2) / (0.01 + (y - means).square().sum(-1).mean() / 2)


def maker(method: str, features: int, size: int, hidden: tuple[int, ...]) -> Callable[..., tuple[Any, Any]]:
    """Makes model and guide of a replicate."""
    guides = {
        "disarm": lambda model: AutoBernoulliDropout(model, rate=0.1, learnable=True, rest=AutoDelta),
        "disarm-unit": lambda model: AutoBernoulliDropout(
            model, rate=0.1, learnable=True, per_unit=True, rest=AutoDelta
        ),
    }

    def fixed(rate: float, precision: float) -> tuple[Any, Any]:
        model = Regression(features, size, hidden, lengthscale=0.01, precision=precision)
        return model, AutoBernoulliDropout(model, rate=rate, rest=AutoDelta)

    def learned(lengthscale: float, precision: Any = "network" if method == "network" else "latent") -> tuple[Any, Any]:
        model = Regression(features, size, hidden, lengthscale, precision, scaled=True)
        guide = guides.get(method, lambda model: AutoConcreteDropout(model, rate=0.1, rest=AutoDelta))
        return model, guide(model)

    return fixed if method == "mc" else learned
