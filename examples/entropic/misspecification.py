"""Does regression under the dropout constraint stand a wrong model better than ridge? ENT figure 1 (b).

A data set has 20 training and 20 test points of a linear model without intercept, ``y = X w + ε``, weights and noise of
variance 1, so that ridge regression with λ0 = 1 is right. Covariates are ``X = R L``: R is standard normal, 20 × 10, L
a random 10 × p projection with columns of unit length; p is 10, 20 or 40. Three conditions share all random numbers:

* default: the model is right;
* junk features: all but the first ten weights are zero (with p = 10 that is the default condition again);
* covariate shift: data as in the default condition, then each covariate is multiplied by a standard normal number
  *before fitting*, the same in training and test rows: units change and the model is not told. (With none or
  other numbers for test rows, or one for each entry, predicting zero is best: the paper can hardly mean that.)

Dropout has the wrong prior λ0 = 1e-3, as in the paper, and f varies; ridge (f = 0) has λ0 varied. What is tuned is
tuned on one half of the data sets and scored on the other, both ways round. Dropout predicts ``(1-f) x·μ``, the mean
when covariates drop out as in training (the paper's ŷ), or ``x·μ``, all of them present. The first is another ridge,
``(1-f) μ = (XᵀX + P)⁻¹ Xᵀy`` with ``P = λ0 / (1-f)² I + f / (1-f) diag(XᵀX)``: with λ0 = 0 that of covariates divided
by their root mean squares, with penalty 20 f / (1-f), which is where the figure puts f.

What to expect: ``(1-f) x·μ`` gives the paper's findings. Dropout is on par, within 1 % of tuned ridge, in default and
junk conditions. The shift hardly touches it, for it does not see units; it then beats tuned ridge by 12, 4 and 1 % for
p = 10, 20 and 40, and ridge with λ0 = 1 by more. Ridge of scaled covariates would do the same. With ``x·μ`` dropout is
3 to 12 % worse in default and junk conditions, and after the shift 10 and 2 % better, for p = 40 2 % worse.
``python -m examples.entropic.misspecification --help``
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from tqdm import trange

from examples.common.arguments import add_outputs, add_seed, script
from examples.common.pictures import save

POINTS, RANK, WIDTHS = 20, 10, (10, 20, 40)
CONDITIONS = ("default", "junk features", "covariate shift")
MARKS = (0.001, 0.01, 0.05, 0.3, 0.8)  # drop rates on the axis of the figure
PREDICTIONS = ("(1-f) x·μ", "x·μ")
AT_ONCE = 1000  # data sets in memory at the same time

PENALTIES = [10 ** (k / 4) for k in range(-12, 9)]  # λ0 of ridge
STRENGTHS = [10 ** (k / 4) for k in range(-8, 9)]  # 20 f / (1-f) of dropout
RATES = [strength / (POINTS + strength) for strength in STRENGTHS]
SHRINKAGES = {1e-3: "red", 1e-2: "darkorange", 1e-1: "tab:green", 1.0: "tab:blue"}  # λ0 of dropout, first the paper's
SETTINGS = [(penalty, 0.0) for penalty in PENALTIES] + [(shrinkage, f) for shrinkage in SHRINKAGES for f in RATES]
RIDGE, ANY_DROPOUT = range(len(PENALTIES)), range(len(PENALTIES), len(SETTINGS))
DROPOUT, TRUE_RIDGE = ANY_DROPOUT[: len(RATES)], PENALTIES.index(1.0)


def random_data(p: int, sets: int, generator: torch.Generator) -> list[list[Tensor]]:
    """``x, y, x_new, y_new`` before the shift and after, with two responses before: of default and of junk weights."""
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    projection = torch.nn.functional.normalize(normal(sets, RANK, p), dim=1)
    weights = normal(sets, p, 1).repeat(1, 1, 2)
    weights[:, RANK:, 1] = 0
    scale = normal(sets, 1, p)
    before, after = [], []
    for _ in range(2):
        x = normal(sets, POINTS, RANK) @ projection
        y = x @ weights + normal(sets, POINTS, 1)
        before += [x, y]
        after += [x * scale, y[..., :1]]
    return [before, after]


def coefficients(x: Tensor, y: Tensor, shrinkage: float, rate: float) -> Tensor:
    """μ of ENT eq. 14 for many data sets, ``[sets, p, k]``, by matrices of n × n."""
    keep = 1 - rate
    scaled = x.mT / (shrinkage + rate * keep * x.square().sum(1)).unsqueeze(-1)
    dual = keep**2 * x @ scaled + torch.eye(x.shape[1], dtype=x.dtype)
    return keep * scaled @ torch.cholesky_solve(y, torch.linalg.cholesky(dual))


def held_out_errors(designs: list[list[Tensor]]) -> Tensor:
    """Mean squared errors of the test points, ``[settings, predictions, sets, conditions]``."""
    results = []
    for shrinkage, f in SETTINGS:
        errors = []
        for x, y, x_new, y_new in designs:
            present = x_new @ coefficients(x, y, shrinkage, f)
            errors.append((torch.stack([(1 - f) * present, present]) - y_new).square().mean(2))
        results.append(torch.cat(errors, -1))
    return torch.stack(results)


def simulate(sets: int, seed: int) -> dict[int, Tensor]:
    """``held_out_errors`` of all data sets for each p."""
    generator, results = torch.Generator().manual_seed(seed), {}
    for p in WIDTHS:
        starts = trange(0, sets, AT_ONCE, desc=f"p = {p}", leave=False, disable=None)
        chunks = [held_out_errors(random_data(p, min(AT_ONCE, sets - start), generator)) for start in starts]
        results[p] = torch.cat(chunks, 2)
    return results


class Estimate(NamedTuple):
    """A mean over data sets, its standard error, and a remark for the table."""

    mean: float
    error: float
    note: str = ""

    @classmethod
    def of(cls, values: Tensor, note: str = "") -> Estimate:
        return cls(values.mean().item(), values.std().item() / len(values) ** 0.5, note)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}{self.note}"


def tuned(errors: Tensor, settings: range) -> tuple[Tensor, tuple[float, float]]:
    """Errors by data set where each half is tuned on the other, and the λ0 and f that are best for both together."""
    scores = torch.empty_like(errors[0])
    for half in (0, 1):
        best = errors[settings, 1 - half :: 2].mean(1).argmin()
        scores[half::2] = errors[settings[best], half::2]
    return scores, SETTINGS[settings[errors[settings].mean(1).argmin()]]


def compare(errors: Tensor) -> dict[str, Estimate]:
    """One cell of the study from ``[settings, sets]``: errors, where tuning went, and paired differences."""
    true, (ridge, (penalty, _)), (dropout, (_, f)) = errors[TRUE_RIDGE], tuned(errors, RIDGE), tuned(errors, DROPOUT)
    both, both_at = tuned(errors, ANY_DROPOUT)
    return {
        "ridge, λ0 = 1": Estimate.of(true),
        "ridge, best λ0": Estimate.of(ridge, f" ({penalty:.2g})"),
        "dropout, best f": Estimate.of(dropout, f" ({f:.2g})"),
        "dropout, best λ0 and f": Estimate.of(both, " ({:g}, {:.2g})".format(*both_at)),
        "dropout - best ridge": Estimate.of(dropout - ridge, f", {(dropout - ridge).mean() / ridge.mean():+.1%}"),
        "dropout - ridge, λ0 = 1": Estimate.of(dropout - true),
    }


def cost_of_shift(errors: Tensor) -> dict[str, Estimate]:
    """More error after the shift than before it, both with the setting that is best before it."""
    increase, best = errors[:, 0, :, 2] - errors[:, 0, :, 0], errors[DROPOUT, 0, :, 0].mean(1).argmin()
    return {"ridge, λ0 = 1": Estimate.of(increase[TRUE_RIDGE]), "dropout": Estimate.of(increase[DROPOUT[best]])}


def print_table(title: str, cells: dict[tuple, dict[str, Estimate]]) -> None:
    columns = ["p", "condition", *next(iter(cells.values()))]
    print(f"\n{title}\n| {' | '.join(columns)} |\n" + "| --- " * len(columns) + "|")
    for key, estimates in cells.items():
        print(f"| {' | '.join(map(str, [*key, *estimates.values()]))} |")


def draw(results: dict[int, Tensor], path: Path) -> None:
    figure, axes = plt.subplots(3, 3, figsize=(11, 9.5), sharex=True, sharey="col", layout="constrained")
    for column, (p, errors) in enumerate(results.items()):
        means = errors[:, 0].mean(1).numpy()
        for axis, condition, curve in zip(axes[:, column], CONDITIONS, means.T, strict=True):
            curves = [("ridge", "black", PENALTIES, curve[RIDGE])]
            dropout = curve[ANY_DROPOUT].reshape(-1, len(RATES))
            for (shrinkage, color), y in zip(SHRINKAGES.items(), dropout, strict=True):
                curves.append((f"dropout, λ0 = {shrinkage:g}", color, STRENGTHS, y))
            for k, (label, color, x, y) in reversed(list(enumerate(curves))):
                width = 2 if k < 2 else 1  # the two of the paper
                axis.plot(x, y, color, lw=width, label=label, marker="o", ms=3 * width, markevery=[y.argmin()])
            axis.set_title(f"{condition}, p = {p}", fontsize=10)
        axes[0, column].set(xscale="log", ylim=(0.97 * means.min(), 1.6 * means.min()))
        axes[2, column].set_xlabel("λ0 of ridge, 20 f / (1-f) of dropout")
        axes[column, 0].set_ylabel("squared error of test points")
        top = axes[0, column].secondary_xaxis("top", xlabel="drop rate f")
        top.set_xticks([POINTS * f / (1 - f) for f in MARKS], [f"{f:g}" for f in MARKS])
        for axis in (top, axes[0, column]):
            axis.minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, reverse=True)
    figure.suptitle(f"Ridge over λ0 and dropout over f, predictions {PREDICTIONS[0]}; dots are the best of a curve")
    save(figure, path, dpi=110)


def main(argv: list[str] | None = None) -> dict[str, dict[tuple, dict[str, Estimate]]]:
    parser = script("entropic.misspecification", __doc__)
    parser.add_argument("--data-sets", type=int, default=10000, help="for each p (default 10000; the paper 100000)")
    add_seed(parser)
    add_outputs(parser)
    options = parser.parse_args(argv)
    results = simulate(options.data_sets, options.seed)
    tables = {"cost": {(p, CONDITIONS[2]): cost_of_shift(errors) for p, errors in results.items()}}
    for k, prediction in enumerate(PREDICTIONS):
        cells = {(p, name): compare(e[:, k, :, c]) for p, e in results.items() for c, name in enumerate(CONDITIONS)}
        print_table(f"Squared error of test points if dropout predicts {prediction}", cells)
        tables[prediction] = cells
    print_table(f"What the shift adds if settings stay as they are best without it, {PREDICTIONS[0]}", tables["cost"])
    draw(results, options.outputs / "entropic_misspecification.png")
    print(f"\nwritten to {options.outputs / 'entropic_misspecification.png'}")
    return tables


if __name__ == "__main__":
    main()
