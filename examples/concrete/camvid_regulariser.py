"""What becomes of rates with another weight of the masks' entropy (CD section 4.4's regulariser), on CamVid.

The paper prints 0.01 × N × H × W for the entropy beside a mean over pixels, which is 10⁵ times that loss; the bound on
the evidence has 1 / (N H W). Here the network learned from 0.2 of ``examples.concrete.camvid``, by the bound and with
the entropy a hundred times less and more.

Training goes on from its last state. ``python -m examples.concrete.camvid_regulariser --help``
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from examples.common.engines import spread
from examples.common.results import whole
from examples.common.segmentation import Dropout, options_of, trained

CONCRETE = Dropout(0.2, "relaxed")
WEIGHTS = (0.01, 1.0, 100.0)
MEASURES = ("IoU", "accuracy", "calibration RMSE", "ECE")

Results = dict[float, dict[str, Any]]  # by weight what was seen at the end


def main(arguments: list[str] | None = None) -> Results:
    options = options_of("concrete.camvid_regulariser", __doc__, arguments, "outputs/camvid")
    results = dict(zip(WEIGHTS, spread(_end, [(weight,) for weight in WEIGHTS], options), strict=True))
    text = table(results, options)
    print(f"\n{text}\n")
    path = options.outputs / "concrete_camvid_regulariser.md"
    with whole(path) as file:
        file.write_text(text + "\n")
    print(f"written to {path}")
    return results


def _end(weight: float, options: argparse.Namespace) -> dict[str, Any]:
    return trained(CONCRETE, 0, options, weight).history[-1]


def table(results: Results, options: argparse.Namespace) -> str:
    lines = [f"{options.size}, {options.epochs} epochs: rates, and scores of draws on test images in %", ""]
    lines += [f"| weight | least rate | median | largest | {' | '.join(MEASURES)} |", "| --- " * 8 + "|"]
    for weight, end in results.items():
        rates = [f"{rate:.3f}" for rate in np.quantile(list(end["rates"].values()), (0, 0.5, 1))]
        scores = [f"{100 * end['draws'][measure]:.2f}" for measure in MEASURES]
        lines.append(f"| {weight:g} | {' | '.join([*rates, *scores])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
