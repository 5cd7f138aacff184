"""What ``sivae`` shows: measures by method, differences by user, learned rates by item, claims, the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from examples.common.pictures import panels, save
from examples.common.results import mean_and_error
from examples.common.verdicts import interval, larger
from examples.lbd.sivae_training import CLIMB, MEASURES, METHODS

Results = dict[str, list[dict[str, Any]]]  # by method, of each split
DRAWN = ", draws"
BASE = "VAE + Drop"


def ways(results: Results) -> dict[str, tuple[str, str]]:
    """By row of the tables the method and how it predicts."""
    found = {}
    for name, runs in results.items():
        found[name] = (name, "mean")
        if "draws" in runs[0]:
            found[name + DRAWN] = (name, "draws")
    return found


def by_user(results: Results, row: str, measure: str) -> np.ndarray:
    """In %, users of all splits one after the other."""
    name, way = ways(results)[row]
    return 100 * np.concatenate([run[way][measure] for run in results[name]])


def differences(results: Results, row: str, other: str, measure: str) -> np.ndarray:
    """One for each user: of one who is tested in several splits the mean."""
    users = np.concatenate([run["users"] for run in results[ways(results)[row][0]]])
    pairs = by_user(results, row, measure) - by_user(results, other, measure)
    _, place = np.unique(users, return_inverse=True)
    return np.bincount(place, pairs) / np.bincount(place)


def tables(results: Results, beta: float) -> str:
    parts = [scores_table(results), differences_table(results), training_table(results, beta)]
    if any("rates" in runs[0] for runs in results.values()):
        parts.append(rates_table(results))
    return "\n\n".join([*parts, "Claims\n\n" + "\n".join(f"* {claim}" for claim in claims(results))])


def scores_table(results: Results) -> str:
    lines = ["Test users of all splits, in %, mean ± standard error over users", ""]
    lines += [f"| method | {' | '.join(MEASURES)} |", "| --- " * (1 + len(MEASURES)) + "|"]
    for row in ways(results):
        cells = ["{:.2f} ± {:.2f}".format(*mean_and_error(by_user(results, row, m))) for m in MEASURES]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences_table(results: Results) -> str:
    lines = [f"Differences to {BASE} by user, in points, with 95 % intervals; NDCG@100 by split", ""]
    lines += [f"| method | {' | '.join(MEASURES)} | by split |", "| --- " * (2 + len(MEASURES)) + "|"]
    for row, (name, way) in ways(results).items():
        if row == BASE:
            continue
        pairs = [differences(results, row, BASE, m) for m in MEASURES]
        cells = ["{:+.2f} ({:+.2f} to {:+.2f})".format(d.mean(), *interval(d)) for d in pairs]
        splits = [
            100 * np.subtract(run[way]["NDCG@100"], other["mean"]["NDCG@100"]).mean()
            for run, other in zip(results[name], results[BASE], strict=True)
        ]
        lines.append(f"| {row} | {' | '.join(cells)} | {', '.join(f'{each:+.2f}' for each in splits)} |")
    return "\n".join(lines)


def training_table(results: Results, beta: float) -> str:
    lines = [
        "Training: the best epoch by NDCG@100 of validation users, β there, seconds an epoch; means over splits",
        "",
    ]
    lines += ["| method | epochs | best | β | seconds |", "| --- " * 5 + "|"]
    for name, runs in results.items():
        if "history" not in runs[0]:
            continue
        epochs = len(runs[0]["history"])
        best = [1 + int(np.argmax([seen["NDCG@100"] for seen in run["history"]])) for run in runs]
        reached = (
            f"{np.mean([beta * min(1.0, each / (CLIMB * epochs)) for each in best]):.2f}" if name in METHODS else ""
        )
        seconds = np.mean([np.median([seen["seconds"] for seen in run["history"]]) for run in runs])
        lines.append(f"| {name} | {epochs} | {np.mean(best):.0f} | {reached} | {seconds:.2f} |")
    return "\n".join(lines)


def rates_table(results: Results) -> str:
    """Where learned rates end: of items that few chose, and that many did."""
    lines = ["Learned rates of items at the best epoch, mean over splits, by how many training users chose an item", ""]
    lines += ["| method | a tenth least chosen | middle | a tenth most chosen | rank correlation |", "| --- " * 5 + "|"]
    for name, runs in results.items():
        if "rates" in runs[0]:
            cells = []
            for run in runs:
                order = np.argsort(run["popularity"], kind="stable")
                rates, tenth = np.array(run["rates"])[order], len(order) // 10
                correlation = spearmanr(run["popularity"], run["rates"]).statistic
                parts = (rates[:tenth], rates[tenth:-tenth], rates[-tenth:])
                cells.append([*(part.mean() for part in parts), correlation])
            lines.append(f"| {name} | {' | '.join(f'{cell:.3f}' for cell in np.mean(cells, 0))} |")
    return "\n".join(lines)


def claims(results: Results) -> list[str]:
    """LBD section 3.3 and table 2, by users' differences."""

    def ahead(one: str, other: str) -> str:
        found = [differences(results, one, other, m) for m in MEASURES]
        return ", ".join(f"{m} {larger(d)} ({d.mean():+.2f})" for m, d in zip(MEASURES, found, strict=True))

    rows, ours = ways(results), "SIVAE + LBDrop" + DRAWN
    others = [row for row in (BASE, BASE + DRAWN, "SIVAE + CDrop" + DRAWN, "DAE", "EASE", "popularity") if row in rows]
    pairs = [(ours, other, f"1. LBDrop before {other}") for other in others]
    pairs += [
        (BASE, "VAE", "2. dropout of the input helps a VAE"),
        (BASE, "SIVAE + CDrop", "3. a fixed rate of one half before Concrete masks, by the mean"),
        (BASE + DRAWN, "SIVAE + CDrop" + DRAWN, "3. a fixed rate of one half before Concrete masks, by draws"),
        ("SIVAE + Drop" + DRAWN, BASE + DRAWN, "the bound of the mixture helps at a fixed rate"),
        (ours, "SIVAE + LBDrop, V = 0" + DRAWN, "the bound of the mixture helps learned rates"),
        (BASE + DRAWN, BASE, "draws before the mean at test"),
    ]
    return [f"{what}: {ahead(one, other)}" for one, other, what in pairs if {one, other} <= rows.keys()]


def draw(results: Results, path: Path) -> Path:
    figure, axes = panels(1, 2, 11, 4)
    left, right = axes[0]
    for name, runs in results.items():
        if "history" in runs[0]:
            course = np.mean([[seen["NDCG@100"] for seen in run["history"]] for run in runs], 0)
            left.plot(range(1, len(course) + 1), 100 * course, label=name)
    left.set(xlabel="epochs", ylabel="NDCG@100 of validation users, %")
    for name in ("popularity", "EASE"):
        if name in results:
            quality = 100 * np.mean([run["validation"] for run in results[name]])
            left.axhline(quality, color="grey", linestyle=":" if name == "popularity" else "--", label=name)
    left.legend(fontsize=7)
    for name, runs in results.items():
        if "rates" in runs[0]:
            right.plot(runs[0]["popularity"], runs[0]["rates"], ".", markersize=2, label=name)
    right.set(xscale="log", xlabel="training users who chose the item", ylabel="learned rate of dropping it")
    if right.lines:
        right.legend(fontsize=7, markerscale=4)
    return save(figure, path)
