"""What a dropout network knows beyond its data: the Mauna Loa record extrapolated, the sun's interpolated.

Figures 2 and 3 of MC (Gal & Ghahramani 2016). ``--series co2``: networks see the first 272 months without their linear
trend and are asked for the 273 that followed, which the paper did not show. ``--series solar``: they see 291 years of
irradiance and are asked for five gaps of 20 years. Networks have 4 or 5 hidden layers of 1,024 units, ReLU or tanh,
masks of rates 0.1 and 0.2 on all but the input; beside them a Gaussian process with a squared exponential kernel.

What to look at. Far from data nobody is right. The weight-averaged network, what is known as standard dropout, does not
say so; the draws do. Their band follows from the activation: functions made of ReLUs go on as straight lines, which
drift apart (from 0.1 inside to 0.6 and 0.9 far out), tanh saturates, so that its band stays below 0.14. T = 10 draws
give the mean, and the band roughly.

What to beware of. Bands are of the function, without noise, whose precision is fixed. 22 seasons are too many for these
smooth functions in 2,000 steps: ReLU finds some of them, tanh and the process none.

Draws go to a file for each network in ``outputs/co2/``; a second run goes on with those that are missing.
``python -m examples.mc.co2 --help``
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from pyro.infer.autoguide import AutoDelta
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from torch import nn
from tqdm import tqdm

from examples.common.arguments import add_backend, add_outputs, count, script
from examples.common.data import load_co2, load_solar
from examples.common.pictures import save
from examples.common.results import whole
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, CompiledSVI, DropoutPredictive, TraceDropout_ELBO

SEEN = 272  # months of CO2
GAPS = (1626, 1702, 1776, 1852, 1926)  # first of 20 years of the sun's that are left out
LENGTHSCALE, PRECISION, LEARNING_RATE = 0.1, 100.0, 1e-3
FEW = 10  # draws, figure 3
CHUNK = 50  # steps between messages
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Series(NamedTuple):
    """Standardised times and values, ``[n]``, and which of them networks see."""

    years: np.ndarray
    x: np.ndarray
    y: np.ndarray
    seen: np.ndarray


class Net(NamedTuple):
    activation: str
    rate: float
    layers: int

    def __str__(self) -> str:
        return f"{self.activation}, {self.layers} layers, rate {self.rate}"


class Prediction(NamedTuple):
    """Draws of the function ``[T, n]``, and the weight-averaged one ``[n]``."""

    draws: np.ndarray
    averaged: np.ndarray


def main(arguments: list[str] | None = None) -> None:
    parser = script("mc.co2", __doc__)
    parser.add_argument("--series", choices=("co2", "solar"), nargs="+", default=["co2", "solar"])
    parser.add_argument("--layers", type=count, nargs="+", default=[5], help="hidden layers, 4 or 5 (default 5)")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.2], help="of dropping (default 0.1 0.2)")
    parser.add_argument("--units", type=count, default=1024, help="of a layer (default 1,024)")
    parser.add_argument("--steps", type=count, default=2000, help="of each network (default 2,000)")
    parser.add_argument("--draws", type=count, default=1000, help="T (default 1,000)")
    add_backend(parser)
    add_outputs(parser, "--output")
    options = parser.parse_args(arguments)
    nets = [Net(a, rate, layers) for layers in options.layers for a in ACTIVATIONS for rate in options.rates]
    for name in options.series:
        series = co2() if name == "co2" else solar()
        found = {net: predicted(name, series, net, options) for net in nets}
        mean, deviation = gaussian_process(series)
        print_table(name, series, found, mean, deviation)
        path = options.output / f"{name}.png"
        draw(series, found, mean, deviation, path)
        print(f"picture in {path}")


def co2() -> Series:
    """As the paper's: without the linear trend of the months seen, standardised by them."""
    years, ppm = load_co2()
    month = np.arange(len(ppm), dtype=float)
    y = ppm - np.polyval(np.polyfit(month[:SEEN], ppm[:SEEN], 1), month)
    return Series(years, (month - month[:SEEN].mean()) / month[:SEEN].std(), y / y[:SEEN].std(), month < SEEN)


def solar() -> Series:
    years, irradiance = load_solar()
    seen = ~np.any([(years > first) & (years < first + 20) for first in GAPS], axis=0)
    x, y = ((values - values[seen].mean()) / values[seen].std() for values in (years, irradiance))
    return Series(years, x, y, seen)


def predicted(name: str, series: Series, net: Net, options: argparse.Namespace) -> Prediction:
    """Trains the network, or reads what an earlier run has found."""
    run = f"{name}-{net.activation}-{net.rate}-{net.layers}x{options.units}-{options.steps}-{options.draws}"
    run += f"-{LENGTHSCALE}-{PRECISION}-{LEARNING_RATE}"
    path = options.output / "co2" / f"{run}.npz"
    if not path.exists():
        found = fit(series, net, options)
        with whole(path) as written, written.open("wb") as file:
            np.savez(file, **found._asdict())
    with np.load(path) as stored:
        return Prediction(**stored)


def fit(series: Series, net: Net, options: argparse.Namespace) -> Prediction:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    x, y = (torch.as_tensor(values, dtype=torch.float32) for values in (series.x, series.y))
    rows = torch.as_tensor(np.flatnonzero(series.seen))
    hidden = (options.units,) * net.layers
    activation = ACTIVATIONS[net.activation]
    model = Regression(1, len(rows), hidden, LENGTHSCALE, PRECISION, activation=activation)
    guide = AutoBernoulliDropout(model, rate=lambda site: 0.0 if site == "net.0.weight" else net.rate, rest=AutoDelta)
    optim = pyro.optim.PyroLRScheduler(
        torch.optim.lr_scheduler.CosineAnnealingLR,
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": LEARNING_RATE}, "T_max": math.ceil(options.steps / CHUNK)},
    )
    svi = CompiledSVI(model, guide, optim, TraceDropout_ELBO(), backend=options.backend)
    with tqdm(total=options.steps, desc=str(net), disable=None) as progress:
        for done in range(0, options.steps, CHUNK):
            chosen = rows[torch.randint(len(rows), (min(CHUNK, options.steps - done), min(128, len(rows))))]
            losses = svi.scan(x[chosen, None], y[chosen])
            optim.step()
            progress.update(len(chosen))
            progress.set_postfix_str(f"loss {losses.mean() / len(rows):.3f} per datum")
    predict = DropoutPredictive(
        model, guide=guide, num_samples=options.draws, return_sites=("mean",), seed=0, progress=False
    )
    averaged = poutine.trace(poutine.condition(model, data=guide.median(x[:, None]))).get_trace(x[:, None])
    return Prediction(predict(x[:, None])["mean"].numpy(), averaged.nodes["mean"]["value"].detach().numpy())


def gaussian_process(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the function, without noise; hyperparameters by the marginal likelihood."""
    kernel = ConstantKernel(1.0) * RBF(1.0, (0.1, 10.0)) + WhiteKernel(0.1)
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    process.fit(series.x[series.seen, None], series.y[series.seen])
    mean, deviation = process.predict(series.x[:, None], return_std=True)
    noise = process.kernel_.k2.noise_level
    return mean, np.sqrt(np.maximum(deviation**2 - noise, 0.0))


def places(name: str, series: Series) -> dict[str, np.ndarray]:
    """Which points a column of the table is about."""
    if name == "solar":
        return {"years seen": series.seen, "gaps": ~series.seen}
    after = np.arange(len(series.y)) - SEEN
    return {
        "months seen": series.seen,
        "a year on": (after >= 0) & (after < 12),
        "10 years on": (after >= 114) & (after < 126),
        "last year": after >= after[-1] - 11,
        "far point": after == after[-1],
    }


def print_table(
    name: str, series: Series, found: dict[Net, Prediction], mean: np.ndarray, deviation: np.ndarray
) -> None:
    where = places(name, series)
    last = list(where.values())[-1]
    print(f"\n{name}: deviation of the function, standardised units; prediction at the last of these places\n")
    print(
        "| model | " + " | ".join(where) + f" | mean ± deviation, all draws | T = {FEW} | weight-averaged | RMSE seen |"
    )
    print("| --- " * (len(where) + 5) + "|")
    rows = {
        str(net): (
            p.draws.std(0),
            f"{p.draws[:, last].mean():.2f} ± {p.draws[:, last].std(0).mean():.2f}",
            f"{p.draws[:FEW, last].mean():.2f} ± {p.draws[:FEW, last].std(0).mean():.2f}",
            f"{p.averaged[last].mean():.2f}",
            p.draws.mean(0),
        )
        for net, p in found.items()
    }
    rows["Gaussian process"] = deviation, f"{mean[last].mean():.2f} ± {deviation[last].mean():.2f}", "", "", mean
    for label, (spread, *texts, center) in rows.items():
        bands = " | ".join(f"{spread[place].mean():.3f}" for place in where.values())
        error = np.sqrt(np.mean((center - series.y)[series.seen] ** 2))
        print(f"| {label} | {bands} | {' | '.join(texts)} | {error:.3f} |")
    print(f"(truth there: {series.y[last].mean():.2f})")


def draw(series: Series, found: dict[Net, Prediction], mean: np.ndarray, deviation: np.ndarray, path: Path) -> None:
    """Shades are half a deviation each, two in all; of tanh eight, as in the paper."""
    relu = next(p for net, p in found.items() if net.activation == "relu")
    panels = [("standard dropout: weights averaged, relu", relu.averaged, np.zeros_like(mean))]
    panels += [("Gaussian process", mean, deviation)]
    panels += [(f"relu, T = {len(relu.draws[:FEW])}", relu.draws[:FEW].mean(0), relu.draws[:FEW].std(0))]
    for net, p in found.items():
        factor, title = (1, str(net)) if net.activation == "relu" else (4, f"{net}, 8 deviations")
        panels += [(title, p.draws.mean(0), factor * p.draws.std(0))]
    columns = math.ceil(len(panels) / 2)
    limit = (2 if series.seen[-1] else 6) * np.abs(series.y[series.seen]).max()  # what is not seen lies far off
    figure, axes = plt.subplots(2, columns, figsize=(4.2 * columns, 6), sharey=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, center, spread) in zip(axes.flat, panels, strict=False):
        for k in range(1, 5):
            low, high = center - k / 2 * spread, center + k / 2 * spread
            axis.fill_between(series.years, low, high, color="tab:blue", alpha=0.15, linewidth=0)
        axis.plot(series.years, center, color="tab:blue", linewidth=1, label="predicted")
        shown = np.where(series.seen, series.y, np.nan)
        axis.plot(series.years, shown, color="tab:red", linewidth=0.8, label="seen")
        rest = np.where(series.seen, np.nan, series.y)
        axis.plot(series.years, rest, color="tab:red", linewidth=0.5, alpha=0.4, label="not seen")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("year")
        axis.set_ylim(-limit, limit)
    axes[0, 0].legend(fontsize=7, loc="lower left")
    for axis in axes[:, 0]:
        axis.set_ylabel("standardised")
    figure.tight_layout()
    save(figure, path)


if __name__ == "__main__":
    main()
