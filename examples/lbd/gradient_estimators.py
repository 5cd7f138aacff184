"""How well do gradients of drop rates estimate? LBD's toy network, where the exact gradient is a sum over four masks.

One input, two hidden ReLU units with a mask on each, 3,000 points of a linear model, weights fixed (LBD section 3.1).
The objective is the mean squared error under one mask per datum, ``1/N Σ E(y - f(x; z))²``, with masks that are not
rescaled, as in the paper. Three questions, three figures and two tables:

* bias, standard deviation and mean squared error of 200 estimates over a grid of the two keep probabilities;
* estimates of 50 samples along gradient descent with the exact gradient;
* noise against signal of one estimate as the network gets wider, up to 1,024 units: where does each stop being usable?

The estimators are used by themselves here, without a model or a guide: anything that can be evaluated at several
masks can be differentiated by them. ``python -m examples.lbd.gradient_estimators --help``
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from matplotlib.colors import LogNorm
from torch import Tensor
from tqdm import tqdm, trange

from examples.common.arguments import add_outputs, add_seed, script
from examples.common.pictures import save
from pyro_dropout import ARM, DisARM, GradientEstimator, Reinforce
from pyro_dropout.masks import BernoulliMask, ConcreteMask

POINTS, SAMPLES, TRACE_SAMPLES = 3000, 200, 50
ELEMENTS = 2**23  # of activations in memory at once


@dataclass(frozen=True)
class ScoreFunction(GradientEstimator):
    """REINFORCE as it is, from one mask: an estimator is a class of a few lines."""

    members = 1

    def sample(self, mask: BernoulliMask, shape: torch.Size) -> tuple[Tensor, None]:
        return mask.expand(shape)((1,)), None

    def surrogate(self, losses: Tensor, mask: BernoulliMask, z: Tensor, noise: Any) -> Tensor:
        return (losses.detach() * mask.log_prob(z)).sum()


METHODS: dict[str, GradientEstimator | float] = {
    "REINFORCE": ScoreFunction(),
    "leave-one-out": Reinforce(2),
    "ARM": ARM(),
    "DisARM": DisARM(),
    "Concrete 0.1": 0.1,
    "Concrete 0.5": 0.5,
    "Concrete 1": 1.0,
}


@dataclass(frozen=True)
class Toy:
    """Hidden activations ``[points, units]``, output weights ``[units]``, targets ``[points]``; nothing is learned."""

    hidden: Tensor
    weights: Tensor
    targets: Tensor

    @classmethod
    def random(cls, units: int, points: int) -> Toy:
        """A random network, and data of the same network without its ReLU and masks."""
        x = torch.randn(points, 1)
        first, bias = torch.randn(units), torch.randn(units)
        second = torch.randn(units) / math.sqrt(units)
        linear = x * first + bias
        return cls(linear.relu(), second, linear @ second + 0.1 * torch.randn(points))

    def losses(self, z: Tensor) -> Tensor:
        """Each datum's share of the objective, for masks ``[..., points, units]``."""
        return (self.targets - (z * self.hidden) @ self.weights).square() / len(self.targets)

    def exact(self, logits: Tensor) -> Tensor:
        """Its gradient: ``E(y - f)² = (y - E f)² + Var f``, because the output is linear in independent masks."""
        logits = logits.detach().requires_grad_()
        keep, parts = torch.sigmoid(logits), self.hidden * self.weights
        mean, variance = parts @ keep, parts.square() @ (keep * (1 - keep))
        return torch.autograd.grad(((self.targets - mean).square() + variance).mean(), logits)[0]

    def enumerated(self, logits: Tensor) -> Tensor:
        """The same gradient as a sum over all masks."""
        logits = logits.detach().requires_grad_()
        z = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * len(logits))
        q = torch.where(z > 0, torch.sigmoid(logits), torch.sigmoid(-logits)).prod(1)
        losses = self.losses(z.unsqueeze(1)).sum(1)
        return torch.autograd.grad(q @ losses, logits)[0]


def estimates(toy: Toy, method: GradientEstimator | float, logits: Tensor, samples: int) -> Tensor:
    """Independent estimates of the gradient, ``[samples, units]``, each from one mask for every datum."""
    points, units = toy.hidden.shape
    at_once = max(1, ELEMENTS // (2 * points * units))
    chunks = []
    for start in range(0, samples, at_once):
        n = min(at_once, samples - start)
        own = logits.detach().expand(n, 1, units).clone().requires_grad_()  # a copy for each estimate
        shape = torch.Size((n, points))
        if isinstance(method, GradientEstimator):
            mask = BernoulliMask(logits=own, units=units)
            z, noise = method.sample(mask, shape)
            method.surrogate(toy.losses(z), mask, z, noise).backward()
        else:
            relaxed = ConcreteMask(logits=own, units=units, temperature=method)
            toy.losses(relaxed.expand(shape)()).sum().backward()
        chunks.append(own.grad.squeeze(1))  # type: ignore[union-attr]
    return torch.cat(chunks)


# Bias, standard deviation and mean squared error over a grid


def over_grid(toy: Toy, keeps: Tensor) -> dict[str, Tensor]:
    """For each method bias, standard deviation and root mean squared error, ``[3, grid, grid, 2]``."""
    size = len(keeps)
    results = {name: torch.empty(3, size, size, 2) for name in METHODS}
    for i in trange(size, desc="grid", leave=False, disable=None):
        for j in range(size):
            logits = torch.logit(torch.stack([keeps[i], keeps[j]]))
            exact = toy.enumerated(logits)
            for name, method in METHODS.items():
                error = estimates(toy, method, logits, SAMPLES) - exact
                rmse = error.square().mean(0).sqrt()
                results[name][:, i, j] = torch.stack([error.mean(0), error.std(0), rmse])
    return results


def print_grid(results: dict[str, Tensor]) -> None:
    """Averages over the grid; a bias is what exceeds its own standard error."""
    print(f"\nGradients of the two keep logits over the grid, {SAMPLES} estimates each, root mean squares x 1000")
    print("| method | bias | of which noise | standard deviation | root MSE | bias / its standard error, at most |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, result in results.items():
        bias, deviation, rmse = 1000 * result.square().mean((1, 2, 3)).sqrt()
        noise = deviation / math.sqrt(SAMPLES)
        worst = (result[0].abs() / (result[1] / math.sqrt(SAMPLES)).clamp_min(1e-12)).max()
        print(f"| {name} | {bias:.3f} | {noise:.3f} | {deviation:.2f} | {rmse:.2f} | {worst:.1f} |")


def draw_grid(results: dict[str, Tensor], keeps: Tensor, path: Path) -> None:
    """LBD figure 1 (a) to (f), for the first logit."""
    figure, axes = plt.subplots(3, len(results), figsize=(2.1 * len(results), 6.2), sharex=True, sharey=True)
    extent = (float(keeps[0]) - 0.05, float(keeps[-1]) + 0.05) * 2
    for row, quantity in enumerate(("bias", "standard deviation", "root MSE")):
        values = torch.stack([result[row, :, :, 0].abs() for result in results.values()])
        norm = LogNorm(float(values.quantile(0.02)), float(values.max()))
        for axis, value in zip(axes[row], values, strict=True):
            image = axis.imshow(value.T.numpy(), origin="lower", extent=extent, norm=norm, cmap="viridis")
        figure.colorbar(image, ax=axes[row], label=f"|{quantity}|" if row == 0 else quantity, pad=0.01)
        axes[row, 0].set_ylabel("keep 2")
    for axis, name in zip(axes[0], results, strict=True):
        axis.set_title(name, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("keep 1")
    figure.suptitle("Estimates of the gradient of the first keep logit")
    save(figure, path, dpi=130, bbox_inches="tight")


# Along gradient descent


def along_descent(toy: Toy, steps: int, rate: float) -> dict[str, Tensor]:
    """Exact gradients and means of 50 estimates on the exact path, ``[steps, 2]``."""
    logits = torch.zeros(2)
    traces: dict[str, list[Tensor]] = {"exact": [], **{name: [] for name in METHODS}}
    for _ in trange(steps, desc="descent", leave=False, disable=None):
        exact = toy.enumerated(logits)
        traces["exact"].append(exact)
        for name, method in METHODS.items():
            traces[name].append(estimates(toy, method, logits, TRACE_SAMPLES).mean(0))
        logits = logits - rate * exact
    return {name: torch.stack(trace) for name, trace in traces.items()}


def draw_traces(traces: dict[str, Tensor], path: Path) -> None:
    """LBD figure 1 (g) and (h)."""
    shown = ("DisARM", "ARM", "REINFORCE", "Concrete 0.1", "Concrete 1")
    figure, axes = plt.subplots(2, len(shown), figsize=(3 * len(shown), 5), sharex=True, sharey="row")
    for column, name in enumerate(shown):
        for k in range(2):
            axes[k, column].plot(traces[name][:, k].numpy(), lw=0.7, color="tab:blue", label="estimate")
            axes[k, column].plot(traces["exact"][:, k].numpy(), lw=1.2, color="black", label="exact")
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("step")
    for k in range(2):
        axes[k, 0].set_ylabel(f"gradient of logit {k + 1}")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Means of {TRACE_SAMPLES} estimates along exact gradient descent")
    save(figure, path, dpi=130, bbox_inches="tight")


# Against width


def over_widths(widths: list[int], points: int, samples: int, keep: float) -> dict[str, list[float]]:
    """``‖estimate - exact‖ / ‖exact‖`` of single estimates by width, root mean squares over random networks."""
    ratios: dict[str, list[float]] = {name: [] for name in METHODS}
    for width in tqdm(widths, desc="widths", leave=False, disable=None):
        toys = [Toy.random(width, points) for _ in range(max(10, 640 // width))]
        logits = torch.logit(torch.full((width,), keep))
        exact = torch.stack([toy.exact(logits) for toy in toys])
        for name, method in METHODS.items():
            errors = [estimates(toy, method, logits, samples) - g for toy, g in zip(toys, exact, strict=True)]
            noise = torch.stack(errors).square().sum(-1).mean()
            ratios[name].append((noise / exact.square().sum(-1).mean()).sqrt().item())
    return ratios


def print_widths(widths: list[int], ratios: dict[str, list[float]]) -> None:
    print("\nNoise over signal of one estimate, by number of masked units")
    print(f"| method | {' | '.join(map(str, widths))} |")
    print("| --- " * (len(widths) + 1) + "|")
    for name, values in ratios.items():
        print(f"| {name} | {' | '.join(f'{value:.2g}' for value in values)} |")


def draw_widths(widths: list[int], ratios: dict[str, list[float]], points: int, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name, values in ratios.items():
        axis.plot(widths, values, marker="o", ms=4, ls="--" if name.startswith("Concrete") else "-", label=name)
    axis.axhline(1, color="black", lw=0.7)
    axis.set(xscale="log", yscale="log", xlabel="masked units", ylabel="noise / signal of one estimate")
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.minorticks_off()
    axis.set_title(f"Below the line one step of a batch of {points} tells the direction", fontsize=10)
    axis.legend(fontsize=8)
    save(figure, path, dpi=130, bbox_inches="tight")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = script("lbd.gradient_estimators", __doc__)
    parser.add_argument("--grid", type=int, default=9, help="keep probabilities from 0.1 to 0.9 (default 9)")
    parser.add_argument("--steps", type=int, default=300, help="steps of gradient descent (default 300)")
    parser.add_argument("--max-width", type=int, default=1024, help="of the second panel (default 1024)")
    add_seed(parser)
    add_outputs(parser)
    options = parser.parse_args(argv)
    pyro.set_rng_seed(options.seed)

    toy = Toy.random(units=2, points=POINTS)
    keeps = torch.linspace(0.1, 0.9, options.grid)
    grid = over_grid(toy, keeps)
    print_grid(grid)
    traces = along_descent(toy, options.steps, rate=3.0)
    widths = [2**k for k in range(1, 1 + int(math.log2(options.max_width)))]
    ratios = over_widths(widths, points=100, samples=50, keep=0.8)
    print_widths(widths, ratios)

    pictures: dict[str, Callable[[Path], None]] = {
        "gradient_estimators_grid.png": lambda path: draw_grid(grid, keeps, path),
        "gradient_estimators_traces.png": lambda path: draw_traces(traces, path),
        "gradient_estimators_widths.png": lambda path: draw_widths(widths, ratios, 100, path),
    }
    print()
    for name, draw in pictures.items():
        draw(options.outputs / name)
        print(f"written to {options.outputs / name}")
    return {"grid": grid, "traces": traces, "widths": ratios, "toy": toy}


if __name__ == "__main__":
    main()
