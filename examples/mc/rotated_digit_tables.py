"""What ``rotated_digit`` shows: its claims, measures by angle and on test images, and the figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score
from torch import Tensor

from examples.common.pictures import panels, save
from examples.common.results import mean_and_error
from pyro_dropout.metrics import risk_coverage

CLAIMS = {
    "1": "the prediction goes from 1 over another class to 7",
    "2": "at first no input of another class reaches those of the predicted one, at a later angle one does",
    "3": "at a later angle the class's output varies over more than 0.9 of [0, 1] between functions",
    "3, where the mean network is sure": "the same, where the mean network's output is above 0.9",
    "all three": "claims 1 to 3 of one digit",
    "4": "inputs of the predicted class are unimodal (bimodality coefficient below 5/9), of all images",
    "5": "at some angle the mean of all functions is above 0.9 for a wrong class",
    "5, of a 7": "the same, of class 7",
}
MEASURES = ["variation ratio", "predictive entropy", "mutual information", "expected entropy"]
REFERRED = [0.0, 0.01, 0.02, 0.05, 0.1]

Found = dict[str, np.ndarray]


def claims_table(claims: dict[str, Found]) -> str:
    lines = ["Share of the test ones that show what the paper says of its digit, by the way they are turned", ""]
    lines += [f"| claim | | {' | '.join(claims)} | verdict |", "| --- " * (3 + len(claims)) + "|"]
    for key, what in CLAIMS.items():
        shares = [mean_and_error(found[key].astype(float)) for found in claims.values()]
        cells = [f"{100 * mean:.1f} ± {100 * error:.1f} %" for mean, error in shares]
        lines.append(f"| {key} | {what} | {' | '.join(cells)} | {verdict(max(mean for mean, _ in shares))} |")
    return "\n".join(lines)


def verdict(share: float) -> str:
    """Of a claim about one digit that the paper chose."""
    if share >= 0.5:
        return "confirmed: of most digits"
    return "confirmed: of some digits" if share >= 0.02 else "refuted"


def angles_table(claims: dict[str, Found], angles: np.ndarray) -> str:
    lines = ["Mean over digits by angle, turned left; the classes predicted most often, with their shares", ""]
    lines += [f"| angle | {' | '.join(MEASURES)} | predicted |", "| --- " * (2 + len(MEASURES)) + "|"]
    found = claims["left"]
    for i, angle in enumerate(angles):
        cells = ["{:.3f} ± {:.3f}".format(*mean_and_error(found[name][:, i])) for name in MEASURES]
        classes, counts = np.unique(found["predicted"][:, i], return_counts=True)
        order = np.argsort(-counts)[:3]
        shown = ", ".join(f"{classes[k]} ({100 * counts[k] / counts.sum():.0f} %)" for k in order)
        lines.append(f"| {angle:.0f} | {' | '.join(cells)} | {shown} |")
    return "\n".join(lines)


def measures_table(test: Found) -> str:
    """Both averages, paired over images."""
    lines = [f"Test images ({len(test['error']):,}), mean ± standard error", ""]
    lines += ["| | all functions | weights averaged | difference |", "| --- | --- | --- | --- |"]
    for name, factor, unit in (("error", 100, " %"), ("log-likelihood", 1, "")):
        ours, other = (factor * test[key].astype(float) for key in (name, f"{name}, weights averaged"))
        cells = ["{:.4f} ± {:.4f}".format(*mean_and_error(v)) + unit for v in (ours, other, ours - other)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def referral_table(test: Found) -> str:
    """Errors among images that are kept, the most uncertain ones being referred; how well a measure finds errors."""
    measures = [*MEASURES, "1 - largest mean"]
    shares = " | ".join(f"{100 * share:g} %" for share in REFERRED)
    lines = [
        "Error in % of images kept, by the share that is referred; mean over all shares (AURC); AUROC of error",
        "",
    ]
    lines += [f"| measure | {shares} | AURC | AUROC |", "| --- " * (3 + len(REFERRED)) + "|"]
    for name in measures:
        error, curve = test["error"], risk_coverage(test[name], test["error"])
        cells = [f"{100 * curve.risk[len(error) - 1 - round(share * len(error))]:.3f}" for share in REFERRED]
        cells.append(f"{100 * curve.area:.4f}")
        auroc = f"{roc_auc_score(test['error'], test[name]):.4f}" if 0 < error.sum() < len(error) else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {auroc} |")
    return "\n".join(lines)


def draw(digit: Tensor, inputs: Tensor, angles: np.ndarray, path: Path) -> Path:
    """Figure 4: softmax inputs and outputs of the three classes that are largest at some angle.

    :param digit: ``[angles, 1, 28, 28]``.
    :param inputs: ``[draws, angles, classes]``.
    """
    outputs = inputs.softmax(-1)
    classes = inputs.mean(0).amax(0).topk(3).indices.tolist()
    figure, axes = panels(3, 1, 9, 8, height_ratios=[1, 4, 4])
    axes[0, 0].imshow(np.concatenate(list(digit[:, 0].numpy()), 1), cmap="gray_r", aspect="equal")
    axes[0, 0].set_axis_off()
    for axis, values, label in ((axes[1, 0], inputs, "softmax input"), (axes[2, 0], outputs, "softmax output")):
        for k, c in enumerate(classes):
            for i in range(len(angles)):
                places = np.full(len(values), i + 0.2 * (k - 1))
                axis.plot(
                    places, values[:, i, c], "_", color=f"C{k}", ms=10, alpha=0.5, label=f"{c}" if i == 0 else None
                )
        axis.set(ylabel=label, xlim=(-0.6, len(angles) - 0.4))
        axis.set_xticks(range(len(angles)), [f"{angle:.0f}°" for angle in angles])
    figure.legend(*axes[1, 0].get_legend_handles_labels(), title="class", fontsize=8, loc="outside right upper")
    return save(figure, path)
