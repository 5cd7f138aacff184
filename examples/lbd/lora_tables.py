"""What ``lora`` shows: tables, what they say in words, and a picture of the learned rates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from examples.common.pictures import panels, save
from examples.common.results import mean_and_error

SCORES = {"accuracy": "accuracy, %", "nll": "negative log-likelihood", "ece": "ECE, %"}
FACTORS = {"accuracy": 100.0, "nll": 1.0, "ece": 100.0}
DIGITS = {"accuracy": 2, "nll": 3, "ece": 2}
OURS = ("learned", "draws")
AGAINST = [("none", "mean"), ("per token", "mean"), ("per token", "draws"), ("tied", "draws")]

Results = list[dict[str, Any]]  # of each seed: scores by kind of prediction, and learned rates by layer
Rows = dict[tuple[str, str], dict[str, np.ndarray]]  # by method and kind of prediction, then by score: of each seed


def by_prediction(found: dict[str, Results]) -> Rows:
    return {
        (name, kind): {score: np.array([r["scores"][kind][score] for r in results]) for score in SCORES}
        for name, results in found.items()
        for kind in results[0]["scores"]
    }


def tuning_table(table: dict[str, dict[float, float]], chosen: float) -> str:
    rates = list(table["none"])
    lines = [f"Negative log-likelihood of validation images by learning rate; chosen by the mean: {chosen:g}", ""]
    lines += [f"| adapters | {' | '.join(f'{rate:g}' for rate in rates)} |", "| --- " * (len(rates) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[rate]:.3f}' for rate in rates)} |" for name, row in table.items()]
    means = [np.mean([row[rate] for row in table.values()]) for rate in rates]
    lines.append(f"| mean | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    own = {name: min(row, key=row.__getitem__) for name, row in table.items()}
    others = [f"{name} at {rate:g}" for name, rate in own.items() if rate != chosen]
    return "\n".join([*lines, "", f"By itself better elsewhere, of one seed: {', '.join(others) or 'none'}."])


def scores_table(alone: dict[str, dict[str, float]], rows: Rows) -> str:
    lines = ["Turned test images, mean ± standard error over seeds", ""]
    lines += [f"| dropout of ranks | prediction | {' | '.join(SCORES.values())} |", "| --- " * (2 + len(SCORES)) + "|"]
    for name, values in alone.items():
        cells = [f"{FACTORS[score] * values[score]:.{DIGITS[score]}f}" for score in SCORES]
        lines.append(f"| {name} | | {' | '.join(cells)} |")
    for (name, kind), row in rows.items():
        lines.append(f"| {name} | {kind} | {' | '.join(cell(score, row[score]) for score in SCORES)} |")
    return "\n".join(lines)


def differences_table(rows: Rows) -> str:
    """Of learned rates to each of the others, seed by seed."""
    lines = ["Draws of learned rates less another on the same seeds, mean ± standard error", ""]
    lines += [f"| less | prediction | {' | '.join(SCORES.values())} |", "| --- " * (2 + len(SCORES)) + "|"]
    for (name, kind), values in differences(rows).items():
        lines.append(f"| {name} | {kind} | {' | '.join(cell(score, values[score], '+') for score in SCORES)} |")
    return "\n".join(lines)


def differences(rows: Rows) -> Rows:
    ours = rows[OURS]
    others = {key: values for key, values in rows.items() if key != OURS}
    return {key: {score: ours[score] - values[score] for score in SCORES} for key, values in others.items()}


def rates_table(results: Results) -> str:
    """Of the learned rates, by layer."""
    lines = ["Learned rates by layer: ranks kept (rate below one half), mean rate, quartiles over ranks and seeds", ""]
    lines += ["| layer | kept | mean ± standard error over seeds | least | 25 % | 50 % | 75 % | most |"]
    lines += ["| --- " * 8 + "|"]
    layers: dict[str, np.ndarray] = {name: rates_of(results, [name]) for name in results[0]["rates"]}
    layers["all"] = rates_of(results, list(layers))
    for name, rates in layers.items():
        number = "{:.1f} ± {:.1f} of {}".format(*mean_and_error((rates < 0.5).sum(1)), rates.shape[1])
        mean = "{:.3f} ± {:.3f}".format(*mean_and_error(rates.mean(1)))
        quartiles = " | ".join(f"{q:.3f}" for q in np.quantile(rates, [0, 0.25, 0.5, 0.75, 1]))
        lines.append(f"| {name} | {number} | {mean} | {quartiles} |")
    return "\n".join(lines)


def rates_of(results: Results, layers: list[str]) -> np.ndarray:
    """``[seeds, ranks]``"""
    return np.array([[rate for layer in layers for rate in result["rates"][layer]] for result in results])


def verdict(rows: Rows, results: Results, start: float) -> list[str]:
    """What the numbers say, by differences of more than two standard errors."""
    lines = []
    for name, kind in AGAINST:
        values = differences(rows)[name, kind]
        found = [f"{SCORES[s].split(',')[0]} {judged(values[s], higher=s == 'accuracy')}" for s in SCORES]
        lines.append(f"Learned rates, draws, against {name}, {kind}: {', '.join(found)}.")
    rates = rates_of(results, list(results[0]["rates"]))
    kept, moved = int((rates < 0.5).sum()), int((np.abs(rates - start) > 0.05).sum())
    lines.append(
        f"Of {rates.size} learned rates {kept} are below one half; {moved} are more than 0.05 from {start:g}, where "
        "they started."
    )
    return lines


def judged(differences: np.ndarray, higher: bool) -> str:
    """In a word; of one seed it is not known.

    :param higher: whether more of it is better.
    """
    mean, error = mean_and_error(differences)
    if math.isnan(error):
        return "not known"
    if not abs(mean) > 2 * error:
        return "no different"
    return "better" if (mean > 0) == higher else "worse"


def cell(score: str, values: np.ndarray, sign: str = "") -> str:
    mean, error = mean_and_error(FACTORS[score] * values)
    return f"{mean:{sign}.{DIGITS[score]}f} ± {error:.{DIGITS[score]}f}"


def draw(results: Results, start: float, path: Path) -> Path:
    """A point for each rank of each layer and seed."""
    layers = list(results[0]["rates"])
    figure, ((axis,),) = panels(1, 1, 9, 4.5)
    for k, result in enumerate(results):
        for column, layer in enumerate(layers):
            rates = result["rates"][layer]
            place = column + 0.6 * ((k + 0.5) / len(results) - 0.5)
            axis.plot([place] * len(rates), rates, ".", color=f"C{k}", label=None if column else f"seed {k}")
    axis.axhline(start, color="black", lw=0.7, ls="--")
    axis.axhline(0.5, color="black", lw=0.7)
    axis.set(ylim=(0, 1), ylabel="learned rate of dropping a rank", title="Dashed: where rates started")
    axis.set_xticks(range(len(layers)), [layer.removeprefix("blocks.") for layer in layers])
    axis.set_xlabel("block and layer")
    axis.legend(fontsize=8)
    return save(figure, path, dpi=130)
