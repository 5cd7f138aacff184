"""What more data take away, and what they cannot: epistemic and aleatoric uncertainty of Concrete dropout.

Figure 1 of CD (Gal, Hron & Kendall 2017, section 4.1): ``y = 2 x + 8 + e`` with x and e standard normal, 10 to 10,000
points. A network of three hidden layers of 1,024 units has two outputs, the function and the logarithm of the noise's
precision; rates of all layers are learned. The experiment is done three times, all at once.

What to look at. Epistemic deviation, that of the function between draws, falls with the number of points, 1.2 to 0.4;
aleatoric deviation, the noise, comes to 1.09, where 1 is the truth; rates of hidden layers fall from 0.5 to between 0.1
and 0.2, as data pay for what masks cost. The only input is hardly ever dropped.

What to beware of. With few points rates near 0.5 are cheap: masks of 3,072 hidden units have more entropy than 100
points have to say against it. What masks scatter, the noise takes for its own. Each number of points takes minutes.

``python -m examples.concrete.synthetic_uncertainty --help``
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoDelta
from torch import Tensor
from tqdm import tqdm

from examples.common.arguments import add_backend, add_outputs, count, script
from examples.common.pictures import save
from examples.common.results import kept, mean_and_error
from models.regression import Regression
from pyro_dropout import AutoConcreteDropout, DropoutPredictive, ReplicatedSVI, TraceDropout_ELBO

LENGTHSCALE = 1e-4  # the authors'
LEARNING_RATES = {"rates": 1e-2, "weights": 1e-3}  # rates go a long way from 0.1
CHUNK = 20  # steps between messages
PANELS = {
    "epistemic": "epistemic deviation",
    "aleatoric": "aleatoric deviation (truth: 1)",
    "predictive": "predictive deviation",
}


def main(arguments: list[str] | None = None) -> None:
    parser = script("concrete.synthetic_uncertainty", __doc__)
    parser.add_argument("--sizes", type=count, nargs="+", default=[10, 100, 1000, 10000], help="numbers of points")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--units", type=count, default=1024, help="of each of three layers (default 1,024)")
    parser.add_argument("--steps", type=count, default=2000, help="of each network (default 2,000)")
    parser.add_argument("--draws", type=count, default=200, help="of functions (default 200)")
    add_backend(parser)
    add_outputs(parser, "--output")
    options = parser.parse_args(arguments)
    folder = options.output / "synthetic_uncertainty"
    settings = {name: getattr(options, name) for name in ("repeats", "units", "steps", "draws")}
    settings |= {"lengthscale": LENGTHSCALE, "learning_rates": LEARNING_RATES}
    found = {size: kept(folder / f"{size}.json", settings, partial(run, size, options)) for size in options.sizes}
    print_table(found)
    picture = options.output / "synthetic_uncertainty.png"
    draw(found, picture)
    print(f"numbers in {folder}, picture in {picture}")


def data(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``y = 2 x + 8 + e``, x and e standard normal: ``[size, 1]`` and ``[size]``."""
    x, noise = torch.randn(2, size, generator=generator)
    return x[:, None], 2 * x + 8 + noise


def run(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Deviations by repeat, means over 1,000 new points; rates by repeat and layer; seconds.

    :raises RuntimeError: a loss that is not finite.
    """
    pyro.set_rng_seed(0)
    start = time.perf_counter()
    generators = [torch.Generator().manual_seed(seed) for seed in range(options.repeats)]
    x, y = (torch.stack(parts) for parts in zip(*(data(size, g) for g in generators), strict=True))

    def make() -> tuple[Regression, AutoConcreteDropout]:
        model = Regression(1, size, (options.units,) * 3, LENGTHSCALE, "network")
        return model, AutoConcreteDropout(model, rate=0.1, rest=AutoDelta)

    def learning_rate(parameter: str) -> dict[str, float]:
        return {"lr": LEARNING_RATES["rates" if "logits" in parameter else "weights"]}

    chunks = math.ceil(options.steps / CHUNK)
    optim = pyro.optim.PyroLRScheduler(
        torch.optim.lr_scheduler.CosineAnnealingLR,
        {"optimizer": torch.optim.Adam, "optim_args": learning_rate, "T_max": chunks},
    )
    svi = ReplicatedSVI(
        make, [{}] * options.repeats, optim, TraceDropout_ELBO(), seeds=range(options.repeats), backend=options.backend
    )
    each = torch.arange(options.repeats)[:, None, None]
    with tqdm(total=chunks * CHUNK, desc=f"{size} points", disable=None) as progress:
        for _ in range(chunks):
            rows = torch.randint(size, (options.repeats, CHUNK, min(size, 100)))
            losses = svi.scan(x[each, rows], y[each, rows])
            optim.step()
            progress.update(CHUNK)
            progress.set_postfix_str(f"loss {losses.mean() / size:.3f} per point")
    if not svi.alive.all():
        raise RuntimeError(f"{size} points: the loss of some repeat is not finite any more; try a lower learning rate")
    found: dict[str, list] = {name: [] for name in (*PANELS, "rates")}
    for model, guide, generator in zip(svi.models, svi.guides, generators, strict=True):
        x_test, _ = data(1000, generator)
        predict = DropoutPredictive(model, guide=guide, num_samples=options.draws, progress=False)
        moments = predict.moments(x_test)["obs"]
        variances = {"epistemic": moments.epistemic, "aleatoric": moments.aleatoric, "predictive": moments.variance}
        for name, variance in variances.items():
            found[name].append(float(variance.sqrt().mean()))
        found["rates"].append([float(rate) for rate in guide.rates().values()])
    return {**found, "seconds": time.perf_counter() - start}


def print_table(found: dict[int, dict[str, Any]]) -> None:
    print("\nmean over repeats ± standard error; deviations of new points, rates by layer\n")
    print("| points | epistemic | aleatoric | predictive | rates | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size, result in found.items():
        cells = ["{:.3f} ± {:.3f}".format(*mean_and_error(result[name])) for name in PANELS]
        rates = ", ".join(f"{rate:.3f}" for rate in np.mean(result["rates"], axis=0))
        print(f"| {size:,} | {' | '.join(cells)} | {rates} | {result['seconds']:.0f} |")


def draw(found: dict[int, dict], path: Path) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4))
    sizes = list(found)
    for axis, (name, label) in zip(axes, PANELS.items(), strict=False):
        center, spread = np.array([mean_and_error(result[name]) for result in found.values()]).T
        axis.fill_between(sizes, center - spread, center + spread, alpha=0.3)
        axis.plot(sizes, center, marker="o")
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
    axes[1].axhline(1.0, color="gray", linestyle="--")
    rates = np.array([np.mean(result["rates"], axis=0) for result in found.values()])
    for layer, values in enumerate(rates.T):
        axes[3].plot(sizes, values, marker="o", label=f"layer {layer + 1}")
    axes[3].set_ylim(0, 0.55)
    axes[3].set_ylabel("rate of dropping")
    axes[3].legend(fontsize=8)
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xlabel("points")
    figure.tight_layout()
    save(figure, path)


if __name__ == "__main__":
    main()
