"""The regression results of the dropout papers, on their data and their splits, beside the published ones.

``python -m examples.uci --dataset boston --method mc`` trains one network for each split (and each point of a grid),
all of them at once, and prints its table; ``--dataset all`` does so for the nine sets.

========== ==========================================================================================================
``mc``       MC dropout (Gal & Ghahramani 2016): rate and precision from the published grid, by the log-likelihood of
             the last fifth of each split's training rows; then trained anew on all of them.
``concrete`` Concrete dropout (Gal, Hron & Kendall 2017): rates and precision learned; a second row has the precision of
             a last M-step.
``network``  the same with a network for the noise, too (heteroscedastic).
``disarm``   hard masks whose rates are learned (Boluki et al. 2020), one per layer; ``disarm-unit``: one per unit.
``alpha0``   Concrete dropout by the α objective (Li & Gal 2017) of 10 draws; ``alpha0.5``, ``alpha1``.
========== ==========================================================================================================

Those that learn rates choose the prior's lengthscale, in units of √inputs of a layer, by the same validation rows, as
CD does (appendix D), and whether to stop after a quarter of the steps: learned rates fall for as long as the fit to
training rows improves. The α methods choose nothing, so that they differ in α alone.
Covariates and response are standardised on the training rows; results are in the units of the response: the mean
log-likelihood of a test row under 1,000 draws, and the error of their mean, both with standard errors over splits.
Results go to ``outputs/uci.json`` as they come, from which the table is printed; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta
from torch import Tensor
from tqdm import tqdm

from examples.data import UCI, load_uci
from models.regression import Regression
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    DropoutPredictive,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from pyro_dropout.compiled import ReplicatedSVI
from pyro_dropout.metrics import predictive_log_likelihood


class Set(NamedTuple):
    """A data set: the published grid of precisions (in 1 / units of y²), test results, and how it is trained here."""

    name: str
    precisions: tuple[float, ...]
    grid_search: tuple[float, float, float, float]  # 1 layer, 4,000 epochs: log-likelihood, its error, RMSE, its error
    concrete: tuple[float, float, float, float]  # CD tables 3 and 4, CDropoutM, 2 layers
    epochs: int
    batch: int


RATES = (0.005, 0.01, 0.05, 0.1)  # published, with lengthscale 0.01
LENGTHSCALES = (0.1, 0.3, 1.0)  # of methods that learn rates and precision, times √inputs
EARLY = 0.25  # of the steps, where they may stop
SETS = {
    "boston": Set("bostonHousing", (0.1, 0.15, 0.2), (-2.40, 0.04, 2.90, 0.18), (-2.35, 0.05, 2.65, 0.17), 400, 32),
    "concrete": Set("concrete", (0.025, 0.05, 0.075), (-2.94, 0.02, 4.83, 0.16), (-3.12, 0.07, 4.46, 0.16), 400, 64),
    "energy": Set("energy", (0.25, 0.5, 0.75), (-1.21, 0.005, 0.539, 0.014), (-0.84, 0.03, 0.46, 0.02), 800, 64),
    "kin8nm": Set("kin8nm", (150.0, 200.0, 250.0), (1.136, 0.007, 0.0789, 0.0006), (1.24, 0.0, 0.07, 0.0), 100, 128),
    "naval": Set(
        "naval-propulsion-plant", (3e4, 4e4, 5e4), (4.45, 0.002, 0.0007, 0.0), (5.89, 0.05, 0.0, 0.0), 240, 128
    ),
    "power": Set("power-plant", (0.05, 0.1, 0.15), (-2.81, 0.01, 4.01, 0.04), (-2.75, 0.01, 3.70, 0.04), 60, 128),
    "protein": Set(
        "protein-tertiary-structure",
        (0.025, 0.05, 0.075),
        (-2.87, 0.002, 4.27, 0.02),
        (-2.81, 0.0, 3.85, 0.02),
        200,
        256,
    ),
    "wine": Set("wine-quality-red", (2.5, 3.0, 3.5), (-0.928, 0.013, 0.622, 0.008), (-0.94, 0.02, 0.62, 0.0), 150, 32),
    "yacht": Set("yacht", (0.25, 0.5, 0.75), (-1.25, 0.015, 0.666, 0.049), (-0.77, 0.06, 0.57, 0.05), 1000, 32),
}
LEARNED = ("concrete", "network", "disarm", "disarm-unit")
METHODS = ("mc", *LEARNED, "alpha0", "alpha0.5", "alpha1")
CHUNK = 50  # steps between messages


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.uci", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=[*SETS, "all"], nargs="+", default=["boston"])
    parser.add_argument("--method", choices=METHODS, nargs="+", default=["mc"])
    parser.add_argument("--splits", type=int, help="the first of them (default: all, 20 or 5)")
    parser.add_argument("--layers", type=int, default=1, help="hidden layers of 50 units, protein 100 (default 1)")
    parser.add_argument("--epochs", type=float, default=1.0, help="times the epochs of each set (default 1)")
    parser.add_argument(
        "--draws", type=int, default=1000, help="of each prediction, of validation rows a fifth (default 1,000)"
    )
    parser.add_argument("--backend", choices=("inductor", "eager"), default="inductor")
    parser.add_argument("--output", type=Path, default=Path("outputs/uci.json"))
    options = parser.parse_args(arguments)
    results = stored(options.output)
    names = list(SETS) if "all" in options.dataset else options.dataset
    for method in options.method:
        for name in names:
            key = key_of(name, method, options)
            if key not in results:
                found = run(name, method, options)
                results = {**stored(options.output), key: found}  # another process may have written meanwhile
                options.output.parent.mkdir(parents=True, exist_ok=True)
                written = options.output.with_suffix(f".{os.getpid()}")
                written.write_text(json.dumps(results, indent=1))
                written.replace(options.output)
        print_table(results, names, method, options)
    print(f"written to {options.output}")


def stored(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def key_of(name: str, method: str, options: argparse.Namespace) -> str:
    settings = {"layers": options.layers, "epochs": SETS[name].epochs * options.epochs, "draws": options.draws}
    return (
        f"{name} {method} " + " ".join(f"{k}={v:g}" for k, v in settings.items()) + f" splits={options.splits or 'all'}"
    )


def run(name: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Results of each split, and seconds."""
    pyro.set_rng_seed(0)
    data, own = load_uci(SETS[name].name), SETS[name]
    splits = range(len(data.train) if options.splits is None else options.splits)
    start = time.perf_counter()
    lengths = (EARLY, 1.0) if method in LEARNED else (1.0,)
    grid: list[dict[str, float]]
    if method == "mc":
        grid = [{"rate": rate, "precision": precision} for rate in RATES for precision in own.precisions]
    else:
        grid = [{"lengthscale": lengthscale} for lengthscale in (LENGTHSCALES if method in LEARNED else (1.0,))]
    chosen, length = [0] * len(splits), [0] * len(splits)  # where there is no choice
    if len(grid) * len(lengths) > 1:
        fifth = data.train.shape[1] // 5
        inside = [(data.train[s][:-fifth], data.train[s][-fifth:], values) for s in splits for values in grid]
        scores = [
            np.reshape(found.get("after_m_step", found.get("log_likelihood")), (len(splits), len(grid)))
            for found in fit(name, data, inside, method, lengths, options, choosing=True)
        ]
        best = np.nanargmax(np.concatenate(scores, axis=1), axis=1)  # by split, over lengths and grid
        length, chosen = (best // len(grid)).tolist(), (best % len(grid)).tolist()
    outside = [(data.train[s], data.test[s], grid[c]) for s, c in zip(splits, chosen, strict=True)]
    results = fit(name, data, outside, method, lengths, options)
    return {
        **{kind: [results[i][kind][s] for s, i in zip(splits, length, strict=True)] for kind in results[0]},
        "chosen": [{**grid[c], "steps": lengths[i]} for c, i in zip(chosen, length, strict=True)],
        "seconds": (time.perf_counter() - start) / len(splits),
        "date": time.strftime("%Y-%m-%d"),
    }


def fit(
    name: str,
    data: UCI,
    runs: list[tuple[np.ndarray, np.ndarray, dict[str, float]]],
    method: str,
    lengths: tuple[float, ...],
    options: argparse.Namespace,
    *,
    choosing: bool = False,
) -> list[dict[str, list[Any]]]:
    """Results of one network for each run, ``(rows to train, rows to score, hyperparameters)``, all trained at once.

    There are results for each of ``lengths``, parts of the steps, at whose ends the learning rate has come down;
    ``choosing``, only the score to choose by, with a fifth of the draws.
    """
    own = SETS[name]
    x, y = torch.as_tensor(data.x), torch.as_tensor(data.y)
    rows = torch.as_tensor(np.stack([rows for rows, _, _ in runs]))
    size = rows.shape[1]
    (x_train, x_center, x_scale), (y_train, y_center, y_scale) = (standardised(values[rows]) for values in (x, y))
    hidden = (100 if name == "protein" else 50,) * options.layers
    make = maker(method, x.shape[1], size, hidden)
    hyperparameters = [
        {name: value * float(scale) ** 2 if name == "precision" else value for name, value in values.items()}
        for (_, _, values), scale in zip(runs, y_scale, strict=True)
    ]
    alpha = method.startswith("alpha")
    loss = RenyiDropout_ELBO(float(method.removeprefix("alpha")), 10) if alpha else TraceDropout_ELBO()
    batch = min(own.batch, size)
    chunks = own.epochs * options.epochs * size / batch / CHUNK
    ends = [max(1, round(length * chunks)) for length in lengths]
    optim = pyro.optim.PyroLRScheduler(
        torch.optim.lr_scheduler.LambdaLR,
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "lr_lambda": Decay(ends)},
    )
    svi = ReplicatedSVI(make, hyperparameters, optim, loss, seeds=range(len(runs)), backend=options.backend)
    each = torch.arange(len(runs))[:, None, None]
    results = []
    what = f"{name} {method}, validation" if choosing else f"{name} {method}"
    with tqdm(total=ends[-1] * CHUNK, desc=what, disable=None) as progress:
        for start, end in zip((0, *ends), ends, strict=False):
            for _ in range(start, end):
                chosen = torch.randint(size, (len(runs), CHUNK, batch))
                losses = svi.scan(x_train[each, chosen], y_train[each, chosen])
                optim.step()
                progress.update(CHUNK)
                progress.set_postfix_str(f"loss {losses[svi.alive].mean() / size:.3f} per row")
            found: dict[str, list[Any]] = {}
            for r, (model, guide) in enumerate(zip(svi.models, svi.guides, strict=True)):
                test = torch.as_tensor(runs[r][1])
                x_test = ((x[test] - x_center[r]) / x_scale[r]).float()
                y_test = ((y[test] - y_center[r]) / y_scale[r]).float()
                predict = DropoutPredictive(
                    model,
                    guide=guide,
                    num_samples=-(-options.draws // 5) if choosing else options.draws,
                    progress=False,
                )
                scores = scored(predict, (x_train[r], y_train[r]), (x_test, y_test), method, choosing)
                for kind, value in scores.items():
                    value = value * float(y_scale[r]) if kind == "rmse" else value - math.log(y_scale[r])
                    found.setdefault(kind, []).append(value if svi.alive[r] else math.nan)
                rates = {site: float(rate.mean()) for site, rate in guide.rates().items()}
                found.setdefault("rates", []).append(rates)
            results.append(found)
    return results


def scored(
    predict: DropoutPredictive, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], method: str, choosing: bool
) -> dict[str, float]:
    """In standardised units: log-likelihood of a test row, also with the precision of a last M-step; RMSE."""
    scores = {}
    last = method in ("concrete", "disarm", "disarm-unit")
    if not (choosing and last):
        scores["log_likelihood"] = float(predict.log_likelihood(*test)["obs"].mean())
    if last:
        size = len(train[0])
        means = predict(torch.cat([train[0], test[0]]))["mean"]
        densities = dist.Normal(means[:, size:], last_m_step(means[:, :size], train[1]).rsqrt()).log_prob(test[1])
        scores["after_m_step"] = float(predictive_log_likelihood(densities).mean())
    if not choosing:
        means = means[:, size:] if last else predict(test[0])["mean"]
        scores["rmse"] = float((means.mean(0) - test[1]).square().mean().sqrt())
    return scores


def last_m_step(means: Tensor, y: Tensor) -> Tensor:
    r"""The precision that is best for what the network has become (CD appendix D), under its prior Gamma(0.1, 0.01):

    .. math:: \hat\tau = \frac{0.1 - 1 + N / 2}{0.01 + \mathrm{E}_q \sum_n (y_n - f^W(x_n))^2 / 2}

    :param means: draws of :math:`f^W(x_n)`, ``[draws, N]``.
    :param y: responses, ``[N]``.
    """
    return (0.1 - 1 + len(y) / 2) / (0.01 + (y - means).square().sum(-1).mean() / 2)


class Decay:
    """The learning rate of a chunk of steps: up to each end, as it is for half of the way, then down to a hundredth."""

    def __init__(self, ends: list[int]) -> None:
        self.ends = ends

    def __call__(self, chunk: int) -> float:
        end = next((end for end in self.ends if chunk < end), self.ends[-1])
        start = max((end for end in self.ends if end <= chunk), default=0)
        return 0.01 ** max(0.0, 2 * (chunk - start) / max(1, end - start) - 1)


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

    def learned(lengthscale: float) -> tuple[Any, Any]:
        noise = "network" if method == "network" else "latent"
        model = Regression(features, size, hidden, lengthscale, noise, scaled=True)
        guide = guides.get(method, lambda model: AutoConcreteDropout(model, rate=0.1, rest=AutoDelta))
        return model, guide(model)

    return fixed if method == "mc" else learned


def standardised(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``values [runs, rows, ...]`` with mean 0 and deviation 1 over rows, and what makes new ones so."""
    center, scale = values.mean(1, keepdim=True), values.std(1, correction=0, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)  # constant columns
    return ((values - center) / scale).float(), center.squeeze(1), scale.squeeze(1)


def print_table(results: dict[str, Any], names: list[str], method: str, options: argparse.Namespace) -> None:
    what = "grid search, 1 layer" if options.layers == 1 else "CDropoutM, 2 layers"
    print(f"\n{method}, {options.layers} hidden layer(s), mean ± standard error over splits; published: {what}")
    print(
        "| set | log-likelihood | published | RMSE | published | rates by layer | epochs | seconds per split | date |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        found, own = results[key_of(name, method, options)], SETS[name]
        published = own.grid_search if options.layers == 1 else own.concrete
        rmse = "{:.4g} ± {:.2g}".format(*mean_and_error(found["rmse"]))
        rates = ", ".join(f"{np.mean([rates[site] for rates in found['rates']]):.3f}" for site in found["rates"][0])
        for kind, label in (("log_likelihood", name), ("after_m_step", f"{name}, after a last M-step")):
            if kind in found:
                density = "{:.3f} ± {:.3f}".format(*mean_and_error(found[kind]))
                before = "{:g} ± {:g} | {} | {:g} ± {:g}".format(*published[:2], rmse, *published[2:])
                end = f"{own.epochs * options.epochs:g} | {found['seconds']:.1f} | {found['date']}"
                print(f"| {label} | {density} | {before} | {rates} | {end} |")


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
