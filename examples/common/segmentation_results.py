"""What networks of CamVid have in common in tables and pictures: means over seeds, paired differences, maps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps

from examples.common.data.camvid import UNLABELLED
from examples.common.engines import spread
from examples.common.pictures import panels, save
from examples.common.results import mean_and_error
from examples.common.segmentation import Dropout, as_inputs, images, trained
from examples.common.segmentation_scores import draws_of
from examples.common.verdicts import interval, larger

Results = dict[Dropout, list[list[dict[str, Any]]]]  # by network the histories of its seeds


def computed(networks: Sequence[Dropout], options: argparse.Namespace) -> Results:
    tasks = [(dropout, seed) for seed in range(options.seeds) for dropout in networks]
    for part in ("train", "val", "test"):
        images(part, options.whole, options.images)  # read before several processes do
    found = spread(_history, tasks, options)
    results: Results = {dropout: [] for dropout in networks}
    for (dropout, _), history in zip(tasks, found, strict=True):
        results[dropout].append(history)
    return results


def _history(dropout: Dropout, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    return trained(dropout, seed, options).history


def values(results: Results, dropout: Dropout, way: str, measure: str) -> np.ndarray:
    """Of each seed; in % where it is a share, of curves the mean."""
    found = np.array([np.mean(history[-1][way][measure]) for history in results[dropout]])
    return found if measure in ("log-likelihood", "mutual information") else 100 * found


def epochs_of(history: list[dict[str, Any]], options: argparse.Namespace) -> list[float]:
    """After which it was looked at."""
    return [options.epochs * seen["step"] / history[-1]["step"] for seen in history]


def scores_table(
    results: Results, ways: dict[str, tuple[Dropout, str]], measures: Sequence[str], published: dict[str, str]
) -> str:
    """:param ways: by name of a row the network, and how it predicts."""
    lines = [f"| method | published | {' | '.join(measures)} |", "| --- " * (2 + len(measures)) + "|"]
    for name, (dropout, way) in ways.items():
        cells = [said(values(results, dropout, way, m)) for m in measures]
        lines.append(f"| {name} | {published.get(name, '')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def said(of_seeds: np.ndarray, digits: int = 2) -> str:
    """Their mean, with its standard error where there are several."""
    mean, error = mean_and_error(of_seeds)
    return f"{mean:.{digits}f} ± {error:.{digits}f}" if len(of_seeds) > 1 else f"{mean:.{digits}f}"


def ahead(results: Results, one: tuple[Dropout, str], other: tuple[Dropout, str], measure: str) -> str:
    """Whether one is above the other, by seeds that both have; of one seed not settled."""
    difference = values(results, *one, measure) - values(results, *other, measure)
    low, high = interval(difference)
    within = f", {low:+.2f} to {high:+.2f}" if len(difference) > 1 else ", one seed"
    return f"{larger(difference)} ({difference.mean():+.2f}{within})"


def draw_maps(dropout: Dropout, options: argparse.Namespace, path: Path, number: int = 5) -> Path:
    """Images, labels, predictions, errors and both parts of uncertainty, of test images in equal steps."""
    model, guide, _ = trained(dropout, 0, options)
    x, y = images("test", options.whole, options.images)
    predict = draws_of(model, guide, as_inputs, options.draws)
    rows = torch.linspace(0, len(x) - 1, min(number, len(x))).long().tolist()
    figure, axes = panels(len(rows), 6, 13, 1.7 * len(rows))
    titles = ("image", "labels", "prediction", "errors", "aleatoric, nats", "epistemic, nats")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title)
    for line, row in zip(axes, rows, strict=True):
        prediction, known = predict(x[row]), y[row] != UNLABELLED
        labels = prediction.probs.argmax(-1)
        errors = torch.where(known, (labels != y[row]).float(), torch.nan)
        line[0].imshow(x[row].numpy())
        for ax, shown in zip(line[1:3], (torch.where(known, y[row].float(), torch.nan), labels), strict=True):
            ax.imshow(shown.numpy(), cmap="tab20", vmin=0, vmax=UNLABELLED - 1, interpolation="nearest")
        line[3].imshow(
            errors.numpy(),
            cmap=colormaps["Reds"].with_extremes(bad="lightgrey"),
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        for ax, shown in zip(line[4:], (prediction.aleatoric, prediction.epistemic), strict=True):
            figure.colorbar(ax.imshow(shown.numpy(), cmap="viridis"), ax=ax, fraction=0.04)
        for ax in line:
            ax.set_axis_off()
    return save(figure, path)


def draw_course(ax: Any, results: Results, ways: dict[str, tuple[Dropout, str]], options: argparse.Namespace) -> None:
    """IoU over epochs, by the first of its names the mean over seeds of a network."""
    for dropout, histories in results.items():
        course = np.mean([[100 * seen["IoU"] for seen in history] for history in histories], 0)
        name = next(name for name, (of, _) in ways.items() if of == dropout)
        ax.plot(epochs_of(histories[0], options), course, label=name.removesuffix(", draws"))
    ax.set(xlabel="epochs", ylabel="IoU of validation images, %")
    ax.legend(fontsize=7)


def draw_calibration(ax: Any, results: Results, ways: dict[str, tuple[Dropout, str]]) -> None:
    for name, (dropout, way) in ways.items():
        found = results[dropout][0][-1][way]
        ax.plot(found["probability"], found["frequency"], label=name)
    ax.plot([0, 1], [0, 1], color="grey", linestyle=":")
    ax.set(xlabel="probability", ylabel="frequency", title="of the first seed")
    ax.legend(fontsize=7)
