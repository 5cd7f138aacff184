"""What dropout posteriors are for, in a minute (``make demo``): a function with a gap in its data, and a table.

Left in the picture: 100 points of a curve, none between -1.5 and 1.5, and ten networks with learned rates together,
trained as one (``ReplicatedSVI``). The band of the mean is narrow where there are data, and wider in the gap and beyond
the data; the noise is known. A single network's band hardly widens in such a gap.

Right, and in the table: resistance of 308 yachts by six measures of their hulls, on the 20 published splits. Twenty
networks with learned rates and a noise that depends on the hull are trained as one, beside the same network without
dropout, Bayesian ridge regression, gradient boosting and a Gaussian process. Log-likelihoods are of test
rows in units of the target; differences are of pairs on one split. The Gaussian process is ahead on a table this small
and smooth, and its time grows with the cube of the rows; the network's does not.

``python -m examples.start.demo --help``; the whole way with Pyro's own tools is ``examples.start.quickstart``.
"""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import KFold, cross_val_predict
from torch import Tensor
from tqdm import tqdm, trange

from examples.common.arguments import add_outputs, add_seed, count, script, settle
from examples.common.data import load_uci
from examples.common.pictures import panels, save
from examples.common.results import mean_and_error
from examples.common.schedules import Decay
from examples.common.standardised import Data
from examples.common.verdicts import interval
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, DropoutPredictive, ReplicatedSVI
from pyro_dropout.metrics import PredictiveMoments, merge

RESTARTS, DRAWS = 10, 100  # of the network of the curve, and of each prediction of it
CHUNK, BATCH = 50, 32  # steps between messages; rows of a step
OURS, PLAIN = "dropout, learned rates", "network without dropout"


class Score(NamedTuple):
    """Of the test rows of one split, in units of the target; log-likelihood per row."""

    log_likelihood: float
    rmse: float


def main(arguments: list[str] | None = None) -> dict[str, list[Score]]:
    parser = script("start.demo", __doc__)
    parser.add_argument("--splits", type=count, default=20, help="of the table (default 20, all)")
    parser.add_argument("--steps", type=count, default=4000, help="of each network of the table (default 4,000)")
    parser.add_argument("--gap-steps", type=count, default=2000, help="of the network of the curve (default 2,000)")
    add_seed(parser, "of fits and draws")
    add_outputs(parser)
    options = parser.parse_args(arguments)

    settle(options.seed)
    moments, x, y, grid = gap(options.gap_steps)
    scores = boats(options.splits, options.steps)
    print(f"\n{said(scores)}\n")
    print(f"wrote {draw(moments, x, y, grid, scores, options.outputs / 'demo.png')}; look at")
    print("  left: the band of the mean, which is narrow at the data, wider between and beyond them;")
    print("  right and above: log-likelihoods, which ask for errors as large as they are said to be. Without dropout")
    print("  the network's mean is no worse, and it is far too sure of it.")
    return scores


# The curve


def gap(steps: int) -> tuple[PredictiveMoments, Tensor, Tensor, Tensor]:
    """Moments on a grid, and the data."""
    x = torch.cat([torch.rand(60) * 2 - 3.5, torch.rand(40) * 2 + 1.5])
    y = (1.5 * x).sin() + 0.1 * torch.randn(100)

    def make() -> tuple[Any, Any]:
        model = Regression(1, size=100, hidden=(50, 50), lengthscale=0.1, precision=100.0, scaled=True)
        return model, AutoConcreteDropout(model, rate=0.1)

    optim = pyro.optim.Adam({"lr": 5e-3})
    svi = ReplicatedSVI(make, [{}] * RESTARTS, optim, seeds=range(RESTARTS), progress=False, backend="eager")
    with trange(0, steps, CHUNK, desc="curve", disable=None) as shown:
        for _ in shown:
            svi.scan(*(part.expand(RESTARTS, CHUNK, *part.shape) for part in (x.unsqueeze(-1), y)))
    grid = torch.linspace(-5, 5, 200)
    parts = []
    for seed, (model, guide) in enumerate(zip(svi.models, svi.guides, strict=True)):
        predict = DropoutPredictive(model, guide=guide, num_samples=DRAWS, progress=False, seed=seed)
        parts.append(predict.moments(grid.unsqueeze(-1))["obs"])
    return merge(parts, [DRAWS] * RESTARTS), x, y, grid


# The table


def boats(splits: int, steps: int) -> dict[str, list[Score]]:
    """Scores of each split, by method."""
    yacht = load_uci("yacht")
    parts = [
        Data.of(*(torch.from_numpy(part[rows]) for rows in (train, test) for part in (yacht.x, yacht.y)))
        for train, test in zip(yacht.train[:splits], yacht.test[:splits], strict=True)
    ]
    networks = {OURS: 0.1, PLAIN: 0.0}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has rate 0 at every site")  # which is what the second network is for
        scores = {name: trained(name, rate, parts, steps) for name, rate in networks.items()}
    for name, fit in {"BayesianRidge": ridge, "gradient boosting": boosting, "Gaussian process": process}.items():
        with tqdm(parts, desc=name, disable=None) as shown:
            scores[name] = [of_normal(*fit(data), data) for data in shown]
    return scores


def trained(name: str, rate: float, parts: list[Data], steps: int) -> list[Score]:
    """All splits as one; without dropout the rate is 0 and stays there."""
    size, features = parts[0].x.shape

    def make(lengthscale: Tensor) -> tuple[Any, Any]:
        model = Regression(features, size, lengthscale=lengthscale, precision="network", scaled=True)
        return model, AutoConcreteDropout(model, rate=rate) if rate else AutoBernoulliDropout(model, rate=0.0)

    chunks = max(1, steps // CHUNK)
    optim = pyro.optim.PyroLRScheduler(
        torch.optim.lr_scheduler.LambdaLR,
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "lr_lambda": Decay([chunks])},
    )
    settings = [{"lengthscale": torch.tensor(0.1)}] * len(parts)
    svi = ReplicatedSVI(make, settings, optim, seeds=range(len(parts)), progress=False, backend="eager")
    x, y = (torch.stack(list(each)).float() for each in zip(*((d.x, d.y) for d in parts), strict=True))
    each = torch.arange(len(parts))[:, None, None]
    with trange(chunks, desc=name, disable=None) as shown:
        for _ in shown:
            rows = torch.randint(size, (len(parts), CHUNK, BATCH))
            svi.scan(x[each, rows], y[each, rows])
            optim.step()
    return [of_draws(model, guide, data) for model, guide, data in zip(svi.models, svi.guides, parts, strict=True)]


def of_draws(model: Any, guide: Any, data: Data) -> Score:
    predict = DropoutPredictive(model, guide=guide, num_samples=500, progress=False)
    x, y = data.x_test.float(), data.y_test.float()
    return in_units(predict.moments(x)["obs"].mean, predict.log_likelihood(x, y)["obs"], data)


def of_normal(mean: np.ndarray, deviation: Any, data: Data) -> Score:
    normal = torch.distributions.Normal(torch.as_tensor(mean), torch.as_tensor(deviation))
    return in_units(normal.mean, normal.log_prob(data.y_test), data)


def in_units(mean: Tensor, density: Tensor, data: Data) -> Score:
    """From standardised predictions and log densities of test rows."""
    error = (mean - data.y_test) * data.scale
    return Score(density.mean().item() - math.log(data.scale), error.square().mean().sqrt().item())


def ridge(data: Data) -> tuple[np.ndarray, np.ndarray]:
    return BayesianRidge().fit(data.x.numpy(), data.y.numpy()).predict(data.x_test.numpy(), return_std=True)


def boosting(data: Data) -> tuple[np.ndarray, float]:
    """Its noise is the size of residuals of rows that a fit has not seen."""
    trees = GradientBoostingRegressor(n_estimators=300, learning_rate=0.1, subsample=0.5, random_state=0)
    x, y = data.x.numpy(), data.y.numpy()
    left_out = cross_val_predict(trees, x, y, cv=KFold(4, shuffle=True, random_state=0))
    return trees.fit(x, y).predict(data.x_test.numpy()), float(np.sqrt(np.mean((y - left_out) ** 2)))


def process(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """A lengthscale for each measure, by the marginal likelihood."""
    kernel = ConstantKernel() * RBF(np.ones(data.x.shape[1]), (1e-2, 1e4)) + WhiteKernel(0.01, (1e-6, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a measure that says nothing has no largest lengthscale
        fitted = GaussianProcessRegressor(kernel).fit(data.x.numpy(), data.y.numpy())
    return fitted.predict(data.x_test.numpy(), return_std=True)


# What is said


def values(scores: list[Score], measure: str) -> np.ndarray:
    return np.array([getattr(score, measure) for score in scores])


def said(scores: dict[str, list[Score]]) -> str:
    ours = values(scores[OURS], "log_likelihood")
    lines = [
        f"Resistance of yachts, {len(ours)} splits: means and standard errors",
        f"\n{'':26}{'log-likelihood':>18}{'ours ahead by (95 %)':>26}{'RMSE':>16}",
    ]
    for name, of in scores.items():
        mean, error = mean_and_error(values(of, "log_likelihood"))
        rmse, rmse_error = mean_and_error(values(of, "rmse"))
        ahead = ""
        if name != OURS and len(ours) > 1:
            difference = ours - values(of, "log_likelihood")
            low, high = interval(difference)
            ahead = f"{difference.mean():+.2f} ({low:+.2f} to {high:+.2f})"
        lines.append(f"{name:26}{f'{mean:.2f} ± {error:.2f}':>18}{ahead:>26}{f'{rmse:.2f} ± {rmse_error:.2f}':>16}")
    return "\n".join(lines)


def draw(
    moments: PredictiveMoments, x: Tensor, y: Tensor, grid: Tensor, scores: dict[str, list[Score]], path: Path
) -> Path:
    figure, axes = panels(1, 2, 11, 4, width_ratios=[3, 2])
    draw_curve(axes[0, 0], moments, x, y, grid)
    draw_table(axes[0, 1], scores)
    return save(figure, path)


def draw_curve(axes: Axes, moments: PredictiveMoments, x: Tensor, y: Tensor, grid: Tensor) -> None:
    bands = {"of y": (moments.variance, "#dbe7f3"), "of the network's mean": (moments.epistemic, "#8fb8de")}
    for name, (variance, color) in bands.items():
        half = 2 * variance.sqrt()
        axes.fill_between(
            grid, moments.mean - half, moments.mean + half, color=color, lw=0, label=f"± 2 deviations {name}"
        )
    axes.plot(grid, moments.mean, color="#08306b", label="mean")
    axes.scatter(x, y, s=9, color="black", zorder=3, label="data")
    axes.set(xlabel="x", ylabel="y", ylim=(-3, 3), title="Learned rates: a curve without data in the middle")
    axes.legend(fontsize=8, ncols=2, loc="upper center")


def draw_table(axes: Axes, scores: dict[str, list[Score]]) -> None:
    for place, (name, of) in enumerate(reversed(scores.items())):
        each = values(of, "log_likelihood")
        mean, error = mean_and_error(each)
        color = "#08306b" if name == OURS else "#777777"
        axes.plot(each, np.full(len(each), place) - 0.2, "|", color=color, alpha=0.4)
        axes.errorbar(mean, place, xerr=1.96 * error, fmt="o", color=color, capsize=3)
    axes.set_yticks(range(len(scores)), list(reversed(scores)))
    axes.set(
        xlabel="log-likelihood of a test row",
        title="Resistance of yachts",
        ylim=(-0.6, len(scores) - 0.4),
    )


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} seconds")
