"""Dropouts in the middle of a segmentation network (LBD section 3.2.2; table 1 and figure 2b) on CamVid.

FC-DenseNet with dropout in the layers of its middle block alone, behind their convolutions: none, at the fixed rate 0.2
(regular: predicted by the mean network; MC: by draws), learned by relaxed masks (Concrete) and by hard ones with DisARM
(LBD), one rate a layer. The published network has dropout of single pixels everywhere else, which is active at test;
here there is none, so that methods differ in the middle alone. Size and training as in ``examples.concrete.camvid``,
with which this shares its networks: small, which tells the order of methods, not the published numbers.

PAvPU is the mean over thresholds of the predictive entropy, between the least and the largest of validation images, by
windows of 2 × 2 pixels, which slide or do not overlap; IoU in two definitions, that of all images and that of LBD's
code, a mean over images.

Training goes on from its last state. ``python -m examples.lbd.camvid --help``
"""

from __future__ import annotations

import argparse

import numpy as np

from examples.common.pictures import panels, save
from examples.common.results import whole
from examples.common.segmentation import Dropout, options_of
from examples.common.segmentation_results import Results, ahead, computed, draw_course, draw_maps, scores_table
from examples.common.segmentation_scores import GRID

NONE, FIXED = Dropout(0.0), Dropout(0.2, where="middle")
CONCRETE, LBD = (Dropout(0.2, how, "middle") for how in ("relaxed", "hard"))
WAYS = {
    "none": (NONE, "mean"),
    "regular": (FIXED, "mean"),
    "MC": (FIXED, "draws"),
    "Concrete": (CONCRETE, "draws"),
    "LBD": (LBD, "draws"),
}
PUBLISHED = {  # accuracy, IoU, PAvPU
    "regular": "86.65, 53.62, 81.17",
    "MC": "87.80, 54.40, 84.39",
    "Concrete": "88.64, 55.95, 83.81",
    "LBD": "89.18, 60.42, 85.16",
}
MEASURES = ("accuracy", "IoU", "IoU by image", "PAvPU, stride 1", "PAvPU, stride 2")


def main(arguments: list[str] | None = None) -> Results:
    options = options_of("lbd.camvid", __doc__, arguments, "outputs/camvid")
    results = computed([NONE, FIXED, CONCRETE, LBD], options)
    text = tables(results, options)
    print(f"\n{text}\n")
    with whole(options.outputs / "lbd_camvid.md") as file:
        file.write_text(text + "\n")
    paths = [options.outputs / "lbd_camvid.md", draw(results, options)]
    for path in [*paths, draw_maps(LBD, options, options.outputs / "lbd_camvid_maps.png")]:
        print(f"written to {path}")
    return results


def tables(results: Results, options: argparse.Namespace) -> str:
    title = f"{options.size}, {options.epochs} epochs, {options.seeds} seeds: test images, in %"
    parts = [
        f"{title}; published: accuracy, IoU by image, PAvPU",
        scores_table(results, WAYS, MEASURES, PUBLISHED),
        rates_table(results),
    ]
    return "\n\n".join([*parts, "Claims\n\n" + "\n".join(f"* {claim}" for claim in claims(results))])


def rates_table(results: Results) -> str:
    lines = ["Learned rates of the middle layers, means over seeds", ""]
    for name, dropout in (("Concrete", CONCRETE), ("LBD", LBD)):
        ends = [[rate for m, rate in history[-1]["rates"].items() if ".middle." in m] for history in results[dropout]]
        lines.append(f"* {name}: {', '.join(f'{rate:.3f}' for rate in np.mean(ends, 0))}")
    return "\n".join(lines)


def claims(results: Results) -> list[str]:
    def all_of(one: str, other: str) -> str:
        return "; ".join(f"{m} {ahead(results, WAYS[one], WAYS[other], m)}" for m in MEASURES)

    found = [f"1. LBD before {other}: {all_of('LBD', other)}" for other in ("Concrete", "MC", "regular")]
    for learned in ("Concrete", "LBD"):
        for other in ("MC", "regular"):
            pairs = "; ".join(f"{m} {ahead(results, WAYS[learned], WAYS[other], m)}" for m in MEASURES[3:])
            found.append(f"2. {learned} has the higher PAvPU than {other}: {pairs}")
    found.append(f"3. MC before regular: {all_of('MC', 'regular')}")
    curves = {name: _curve(results, name) for name in ("regular", "MC", "Concrete", "LBD")}
    above = {name: 100 * np.mean(curves["LBD"] > curve) for name, curve in curves.items() if name != "LBD"}
    shares = ", ".join(f"{name}'s at {share:.0f} % of thresholds" for name, share in above.items())
    return [*found, f"4. LBD's curve is above {shares}"]


def _curve(results: Results, name: str) -> np.ndarray:
    dropout, way = WAYS[name]
    return np.mean([history[-1][way]["PAvPU, stride 1"] for history in results[dropout]], 0)


def draw(results: Results, options: argparse.Namespace) -> object:
    figure, axes = panels(1, 2, 10, 4)
    draw_course(axes[0, 0], results, WAYS, options)
    for name in WAYS:
        axes[0, 1].plot(GRID, 100 * _curve(results, name), label=name)
    axes[0, 1].set(xlabel="threshold t", ylabel="PAvPU, %")
    axes[0, 1].legend(fontsize=7)
    return save(figure, options.outputs / "lbd_camvid.png")


if __name__ == "__main__":
    main()
