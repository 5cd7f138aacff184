"""Segmentation with learned rates (CD section 4.4; table 1, the calibration plot, figures 7 and 8) on CamVid.

FC-DenseNet with channels masked before the convolutions that have dropout in the published network: none, at the fixed
rate 0.2 (predicted by the mean network, and by draws), and learned from 0.05, 0.2 and 0.5. By default a small one (23
dropouts, 0.2 million weights) on images of half the published side, which cannot reach the published IoU: it is about
the order of methods, calibration, and where rates end. ``--full`` is the published network and size.

A datum is an image, so that the KL has the weight 1 / (N H W) beside a loss that is a mean over pixels; the prior
precision is 1, close to the published 1e-8. RMSProp, with batch statistics in training and running ones at test.

Training goes on from its last state. ``python -m examples.concrete.camvid --help``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from examples.common.pictures import panels, save
from examples.common.results import whole
from examples.common.segmentation import Dropout, options_of
from examples.common.segmentation_results import (
    Results,
    ahead,
    computed,
    draw_calibration,
    draw_course,
    draw_maps,
    epochs_of,
    said,
    scores_table,
)
from examples.common.verdicts import CONFIRMED, NOT_SETTLED, REFUTED, alike, interval, larger

NONE, FIXED = Dropout(0.0), Dropout(0.2)
STARTS = [Dropout(rate, "relaxed") for rate in (0.05, 0.2, 0.5)]
CONCRETE = STARTS[1]
WAYS = {
    "none": (NONE, "mean"),
    "0.2": (FIXED, "mean"),
    "0.2, draws": (FIXED, "draws"),
    "Concrete": (CONCRETE, "mean"),
    "Concrete, draws": (CONCRETE, "draws"),
    "Concrete from 0.05, draws": (STARTS[0], "draws"),
    "Concrete from 0.5, draws": (STARTS[2], "draws"),
}
PUBLISHED = {"none": "65.8", "0.2": "67.1", "0.2, draws": "67.2", "Concrete": "67.2", "Concrete, draws": "67.4"}
MEASURES = ("IoU", "accuracy", "calibration RMSE", "ECE", "log-likelihood")
ALIKE, NEAR_ZERO = 0.03, 0.05  # of rates


def main(arguments: list[str] | None = None) -> Results:
    options = options_of("concrete.camvid", __doc__, arguments, "outputs/camvid")
    results = computed([NONE, FIXED, *STARTS], options)
    text = tables(results, options)
    print(f"\n{text}\n")
    with whole(options.outputs / "concrete_camvid.md") as file:
        file.write_text(text + "\n")
    paths = [options.outputs / "concrete_camvid.md", draw(results, options)]
    for path in [*paths, draw_maps(CONCRETE, options, options.outputs / "concrete_camvid_maps.png")]:
        print(f"written to {path}")
    return results


def tables(results: Results, options: argparse.Namespace) -> str:
    title = f"{options.size}, {options.epochs} epochs, {options.seeds} seeds: test images, in % (log-likelihood: nats)"
    parts = [f"{title}; published: IoU", scores_table(results, WAYS, MEASURES, PUBLISHED), rates_table(results)]
    return "\n\n".join([*parts, "Claims\n\n" + "\n".join(f"* {claim}" for claim in claims(results))])


def layers(results: Results) -> dict[str, str]:
    """Masks by what figure 8 calls them; in the order of the network."""
    order = list(results[CONCRETE][0][-1]["rates"])
    down, middle, up = ([m for m in order if m.startswith(f"net.{part}.")] for part in ("down", "middle", "up"))
    return {
        "first": down[0],
        "second": down[1],
        "middle": middle[len(middle) // 2],
        "last but one": up[-2],
        "last": up[-1],
    }


def rates_of(histories: Sequence[list[dict[str, Any]]], at: int) -> dict[str, np.ndarray]:
    """By mask those of each seed, at one of the looks at them."""
    return {mask: np.array([history[at]["rates"][mask] for history in histories]) for mask in histories[0][at]["rates"]}


def rates_table(results: Results) -> str:
    named = layers(results)
    lines = ["Rates at the end, means over seeds, and how far they have moved over the last fifth of training", ""]
    lines += [f"| start | {' | '.join(named)} | moved at most |", "| --- " * (2 + len(named)) + "|"]
    for dropout in STARTS:
        histories = results[dropout]
        last = len(histories[0]) - 1
        ends, before = (rates_of(histories, at) for at in (last, max(0, last - max(1, len(histories[0]) // 5))))
        moved = max(abs(ends[mask].mean() - before[mask].mean()) for mask in ends)
        cells = " | ".join(said(ends[mask], 3) for mask in named.values())
        lines.append(f"| {dropout.rate:g} | {cells} | {moved:.3f} |")
    return "\n".join(lines)


def claims(results: Results) -> list[str]:
    rows, learned, fixed = WAYS, WAYS["Concrete, draws"], WAYS["0.2, draws"]
    found = [
        f"1. {measure}: Concrete above 0.2 {ahead(results, learned, fixed, measure)}, 0.2 above none "
        f"{ahead(results, fixed, rows['none'], measure)}"
        for measure in ("IoU", "accuracy")
    ]
    found += [
        f"2. draws before the mean network, IoU, {name}: {ahead(results, rows[f'{name}, draws'], rows[name], 'IoU')}"
        for name in ("0.2", "Concrete")
    ]
    for measure in ("calibration RMSE", "ECE"):
        found.append(
            f"3. {measure} larger without learned rates: 0.2, draws "
            f"{ahead(results, fixed, learned, measure)}, none {ahead(results, rows['none'], learned, measure)}"
        )
    low = rows["Concrete from 0.05, draws"]
    for name in ("none", "0.2, draws", "Concrete from 0.5, draws"):
        pairs = (f"{measure} {ahead(results, low, rows[name], measure)}" for measure in ("IoU", "log-likelihood"))
        found.append(f"Concrete from 0.05, draws, above {name}: {', '.join(pairs)}")
    ends = [rates_of(results[dropout], -1) for dropout in STARTS]
    differences = [one[mask] - other[mask] for one, other in combinations(ends, 2) for mask in one]
    of_each = {alike(difference, ALIKE) for difference in differences}
    verdict = REFUTED if REFUTED in of_each else CONFIRMED if of_each == {CONFIRMED} else NOT_SETTLED
    apart = max(abs(difference.mean()) for difference in differences)
    found.append(f"4. rates end alike from all starts, within {ALIKE}: {verdict} (at most {apart:.3f})")
    for (one, of_one), (other, of_other) in combinations(zip(STARTS, ends, strict=True), 2):
        between = [of_other[mask] - of_one[mask] for mask in of_one]
        means = [abs(difference.mean()) for difference in between]
        number = sum(alike(difference, ALIKE) == REFUTED for difference in between)
        found.append(
            f"4. from {one.rate:g} and {other.rate:g}: {min(means):.3f} to {max(means):.3f} apart, {number} of "
            f"{len(between)} masks by more than {ALIKE}"
        )
    named = layers(results)
    of = {name: ends[STARTS.index(CONCRETE)][mask] for name, mask in named.items()}
    return [
        *found,
        f"5. near zero (below {NEAR_ZERO}) in the first layer: {larger(NEAR_ZERO - of['first'])}, in the middle: "
        f"{larger(NEAR_ZERO - of['middle'])}; larger in the last layer than in the middle: "
        f"{larger(of['last'] - of['middle'])}, in the second than in the first: {larger(of['second'] - of['first'])}",
        *(f"5. {name}: {' to '.join(f'{end:.3f}' for end in interval(rates))}" for name, rates in of.items()),
    ]


def draw(results: Results, options: argparse.Namespace) -> object:
    figure, axes = panels(1, 3, 14, 4)
    draw_course(axes[0, 0], results, WAYS, options)
    draw_calibration(axes[0, 1], results, {name: WAYS[name] for name in ("none", "0.2, draws", "Concrete, draws")})
    for dropout, style in zip(STARTS, (":", "-", "--"), strict=True):
        for number, (name, mask) in enumerate(layers(results).items()):
            course = [rates_of(results[dropout], at)[mask].mean() for at in range(len(results[dropout][0]))]
            label = name if dropout == CONCRETE else None
            axes[0, 2].plot(epochs_of(results[dropout][0], options), course, style, color=f"C{number}", label=label)
    axes[0, 2].set(xlabel="epochs", ylabel="rate", title="from 0.05 (dotted), 0.2, 0.5 (dashed)")
    axes[0, 2].legend(fontsize=7)
    return save(figure, options.outputs / "concrete_camvid.png")


if __name__ == "__main__":
    main()
