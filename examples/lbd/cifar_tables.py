"""What ``cifar`` shows: accuracy and PAvPU beside the published ones, paired differences, claims, the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.common.pictures import panels, save
from examples.common.results import mean_and_error
from examples.common.verdicts import interval, larger
from pyro_dropout.metrics import pavpu, uncertainty_thresholds

Results = dict[str, list[dict[str, Any]]]  # by network, of each seed
WAYS = {  # of predicting: the network, draws together or the mean network, published accuracy and PAvPU
    "none": ("none", "mean", None),
    "regular": ("fixed", "mean", (91.61, 56.81)),
    "MC": ("fixed", "draws", (91.57, 52.08)),
    "Concrete": ("Concrete", "draws", (92.72, 59.97)),
    "LBD, a layer": ("LBD, a layer", "draws", (93.47, 64.52)),
    "LBD, a unit": ("LBD, a unit", "draws", None),
    "LBD, shared": ("LBD, shared", "draws", (92.11, None)),
}
GRID = np.linspace(0, 1, 21)  # t of LBD's thresholds
MEASURES = ("accuracy", "PAvPU", "log-likelihood")


def curve(prediction: dict[str, Any]) -> np.ndarray:
    """PAvPU in % by threshold."""
    test = prediction["test"]
    cuts = uncertainty_thresholds(torch.tensor(prediction["validation"]["entropy"]), GRID)
    return 100 * pavpu(torch.tensor(test["entropy"]), torch.tensor(test["right"]), cuts).numpy()


def measured(results: Results) -> dict[str, dict[str, np.ndarray]]:
    """By way of predicting, of each seed."""
    found = {}
    for name, (network, way, _) in WAYS.items():
        runs = [result[way] for result in results[network]]
        found[name] = {
            "accuracy": np.array([100 * run["test"]["accuracy"] for run in runs]),
            "PAvPU": np.array([curve(run).mean() for run in runs]),
            "log-likelihood": np.array([run["test"]["log_likelihood"] for run in runs]),
        }
    return found


def tables(results: Results, lengthscales: dict[str, float]) -> str:
    found = measured(results)
    parts = [scores_table(found, lengthscales), differences_table(found), rates_table(results)]
    return "\n\n".join([*parts, "Claims\n\n" + "\n".join(f"* {claim}" for claim in claims(results, found))])


def scores_table(found: dict[str, dict[str, np.ndarray]], lengthscales: dict[str, float]) -> str:
    lines = ["Test images, mean ± standard error over seeds; published: VGG19, one run", ""]
    lines += ["| method | published accuracy, PAvPU in % | accuracy in % | mean PAvPU in % | log-likelihood | l |"]
    lines += ["| --- " * 6 + "|"]
    for name, (network, _, published) in WAYS.items():
        printed = ", ".join(f"{p:.2f}" for p in published if p is not None) if published else ""
        cells = ["{:.2f} ± {:.2f}".format(*mean_and_error(found[name][m])) for m in MEASURES[:2]]
        density = "{:.4f} ± {:.4f}".format(*mean_and_error(found[name]["log-likelihood"]))
        lines.append(f"| {name} | {printed} | {' | '.join(cells)} | {density} | {lengthscales[network]:g} |")
    anchors = ", ".join(
        f"{100 - found[name]['accuracy'].mean():.2f} and {found[name]['accuracy'].mean():.2f}"
        for name in ("none", "MC")
    )
    lines += [
        "",
        f"PAvPU where nearly all is uncertain, and where nothing is: error and accuracy, {anchors} (none, MC)",
    ]
    return "\n".join(lines)


def differences_table(found: dict[str, dict[str, np.ndarray]]) -> str:
    lines = ["Differences to MC, paired by seed, with 95 % intervals", "", f"| method | {' | '.join(MEASURES)} |"]
    lines += ["| --- " * 4 + "|"]
    for name in WAYS:
        if name != "MC":
            pairs = [found[name][m] - found["MC"][m] for m in MEASURES]
            cells = ["{:+.3f} ({:+.3f} to {:+.3f})".format(d.mean(), *interval(d)) for d in pairs]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rates_table(results: Results) -> str:
    """Learned rates: mean over seeds and units, and the range of units."""
    lines = [
        "Learned rates after the first and the second hidden layer: mean, and range where units have their own",
        "",
    ]
    lines += ["| network | first | second | change over the last fifth of training |", "| --- " * 4 + "|"]
    for name in ("Concrete", "LBD, a layer", "LBD, a unit", "LBD, shared"):
        cells, moved = [], 0.0
        for mask in ("net.2.weight", "net.4.weight"):
            ends = np.array([np.atleast_1d(run["rates"][mask]) for run in results[name]])
            before = np.array([np.atleast_1d(run["rates over training"][-3][mask]) for run in results[name]])
            moved = max(moved, float(np.abs(ends.mean(-1) - before.mean(-1)).max()))
            own = f" ({ends.min():.2f} to {ends.max():.2f})" if ends.shape[-1] > 1 else ""
            cells.append(f"{ends.mean():.3f}{own}")
        lines.append(f"| {name} | {' | '.join(cells)} | {moved:.3f} |")
    return "\n".join(lines)


def claims(results: Results, found: dict[str, dict[str, np.ndarray]]) -> list[str]:
    def ahead(one: str, other: str, measure: str) -> str:
        return larger(found[one][measure] - found[other][measure])

    ours = "LBD, a layer"
    lines = []
    for measure in ("accuracy", "PAvPU"):
        verdicts = ", ".join(f"{name} {ahead(ours, name, measure)}" for name in ("Concrete", "MC", "regular"))
        lines.append(f"LBD has the best {measure}, against {verdicts}")
    lines.append(f"learned before shared before fixed, accuracy: {ahead(ours, 'LBD, shared', 'accuracy')}, ")
    lines[-1] += ahead("LBD, shared", "MC", "accuracy")
    lines.append(f"one rate a unit before one a layer, accuracy: {ahead('LBD, a unit', ours, 'accuracy')}")
    lines.append(f"regular dropout has a higher PAvPU than MC: {ahead('regular', 'MC', 'PAvPU')}")
    curves = {name: mean_curve(results, name) for name in WAYS}
    for other in ("Concrete", "MC", "regular"):
        above = 100 * np.mean(curves[ours] > curves[other])
        lines.append(f"LBD's PAvPU is above that of {other} at {above:.0f} % of thresholds")
    return lines


def mean_curve(results: Results, name: str) -> np.ndarray:
    network, way, _ = WAYS[name]
    return np.mean([curve(result[way]) for result in results[network]], 0)


def draw(results: Results, path: Path) -> Path:
    figure, ((axis,),) = panels(1, 1, 6, 4)
    for name in WAYS:
        axis.plot(GRID, mean_curve(results, name), label=name)
    axis.set(xlabel="threshold of entropy, from the least to the largest of validation", ylabel="PAvPU in %")
    axis.legend()
    return save(figure, path)
