"""Dropout as shrinkage: coefficient paths of seven correlated covariates of 19 amino acids (ENT figure 1a).

Each amino acid's side chain has seven descriptors, highly correlated, and the free energy of unfolding of a protein
that it is put into. The sign of DGR is flipped, as in the paper, so that every covariate is positively correlated with
the response. Ridge and lasso shrink towards 0 and keep some coefficients negative on the way. Dropout without any
other shrinkage (λ0 → 0) goes, as the rate goes to 1, to ``diag(XᵀX)⁻¹ Xᵀy``: each covariate's own regression, without
co-adaptation, which is all positive.

The second table asks whether predictive intervals are honest: the share of held-out targets inside of them, by rate,
on these data (leave one out) and on 442 diabetes patients (20 random splits). Intervals are those of all covariates
present. ``python -m examples.entropic.qspr --help``
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import lasso_path
from sklearn.model_selection import BaseCrossValidator, LeaveOneOut, ShuffleSplit
from sklearn.preprocessing import StandardScaler

from examples.common.arguments import add_outputs, script
from examples.common.data import load_qspr
from examples.common.pictures import save
from pyro_dropout.entropic import EntropicLinearRegression

ODDS = np.concatenate([[0.0], np.logspace(-4, 3, 61)])  # f / (1 - f)
RATES = ODDS / (1 + ODDS)
PENALTIES = np.logspace(-3, 3, 61)
COVERAGE_RATES = (0.0, 0.1, 0.3, 0.5)
Paths = dict[str, tuple[np.ndarray, np.ndarray]]


def standardised() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Covariates of mean 0 and variance 1 with DGR flipped, the centered response, names."""
    qspr = load_qspr()
    names = list(qspr.names)
    x = StandardScaler().fit_transform(np.asarray(qspr.x, dtype=float))
    flipped = names.index("DGR")
    x[:, flipped] *= -1
    names[flipped] = "-DGR"
    return x, qspr.y - qspr.y.mean(), names


def paths(x: np.ndarray, y: np.ndarray) -> Paths:
    """For each method its parameter ``[m]`` and coefficients ``[m, p]``."""

    def fitted(rate: float, shrinkage: float) -> np.ndarray:
        return EntropicLinearRegression(rate, shrinkage, fit_intercept=False).fit(x, y).posterior_.loc.numpy()

    alphas, lasso, _ = lasso_path(x, y, alphas=np.logspace(-3, 0.3, 61)[::-1], max_iter=10**6)
    return {
        "dropout, λ0 = 0": (RATES, np.array([fitted(rate, 0.0) for rate in RATES])),
        "ridge": (PENALTIES, np.array([fitted(0.0, penalty) for penalty in PENALTIES])),
        "lasso": (alphas[::-1], lasso.T[::-1]),
    }


def print_paths(
    results: dict[str, tuple[np.ndarray, np.ndarray]], x: np.ndarray, y: np.ndarray, names: list[str]
) -> None:
    """Where each method starts, and where it first has no negative coefficient."""
    print("\nCoefficients of standardised covariates")
    print(f"| method | at | {' | '.join(names)} |")
    print("| --- " * (len(names) + 2) + "|")
    rows = [("least squares", "", results["dropout, λ0 = 0"][1][0])]
    for method, (parameter, coefficients) in results.items():
        positive = (coefficients >= 0).all(1) & (
            abs(coefficients) > 1e-3 * abs(coefficients).max(1, keepdims=True)
        ).all(1)
        if positive.any():
            first = int(positive.argmax())
            rows.append((f"{method}, first all positive", f"{parameter[first]:.3g}", coefficients[first]))
        else:
            rows.append((f"{method}, never all positive; middle", f"{parameter[30]:.3g}", coefficients[30]))
    rows.append(("dropout", f"{RATES[-1]:.3g}", results["dropout, λ0 = 0"][1][-1]))
    rows.append(("each covariate alone", "", x.T @ y / (x**2).sum(0)))
    for name, at, values in rows:
        print(f"| {name} | {at} | {' | '.join(f'{value:.2f}' for value in values)} |")


def draw_paths(results: Paths, names: list[str], path: Path) -> None:
    """ENT figure 1 (a)."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True)
    labels = {"dropout, λ0 = 0": "odds of dropping f / (1 - f)", "ridge": "penalty λ0", "lasso": "penalty α"}
    for axis, (method, (parameter, coefficients)) in zip(axes, results.items(), strict=True):
        dropout = method.startswith("dropout")
        horizontal, coefficients = (ODDS[1:], coefficients[1:]) if dropout else (parameter, coefficients)
        for name, values in zip(names, coefficients.T, strict=True):
            axis.plot(horizontal, values, label=name)
        axis.axhline(0, color="black", lw=0.7)
        axis.set(xscale="log", xlabel=labels[method], title=method)
    axes[0].set_ylabel("coefficient")
    axes[2].legend(fontsize=8)
    save(figure, path, dpi=130, bbox_inches="tight")


def coverage(x: np.ndarray, y: np.ndarray, splits: BaseCrossValidator) -> dict[float, tuple[float, float, float]]:
    """By rate: shares of held-out targets inside of 50 and 90 % intervals, and root mean squared error."""
    results = {}
    for rate in COVERAGE_RATES:
        inside: list[np.ndarray] = []
        for train, test in splits.split(x):
            scaler = StandardScaler().fit(x[train])
            model = EntropicLinearRegression(rate, shrinkage=1.0).fit(scaler.transform(x[train]), y[train])
            new, target = scaler.transform(x[test]), y[test]
            halves = [model.predictive_interval(new, mass) for mass in (0.5, 0.9)]
            hits = [(low < target) & (target < high) for low, high in (half.T for half in halves)]
            inside.append(np.stack([*hits, (model.predict(new) - target) ** 2]))
        fifty, ninety, squares = np.concatenate(inside, axis=1).mean(1)
        results[rate] = (float(fifty), float(ninety), float(squares**0.5))
    return results


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = script("entropic.qspr", __doc__)
    parser.add_argument("--splits", type=int, default=20, help="random splits of the diabetes data (default 20)")
    add_outputs(parser)
    options = parser.parse_args(argv)

    x, y, names = standardised()
    results = paths(x, y)
    print_paths(results, x, y, names)
    diabetes = load_diabetes(return_X_y=True)
    shuffle = ShuffleSplit(options.splits, test_size=0.25, random_state=0)
    shares = {"QSPR": coverage(x, y, LeaveOneOut()), "diabetes": coverage(*diabetes, shuffle)}
    print("\nPredictive intervals: shares of held-out targets inside, and error")
    print("| data | rate | 50 % | 90 % | RMSE |\n| --- | --- | --- | --- | --- |")
    for name, by_rate in shares.items():
        for rate, (fifty, ninety, rmse) in by_rate.items():
            print(f"| {name} | {rate} | {100 * fifty:.0f} % | {100 * ninety:.0f} % | {rmse:.3g} |")
    path = options.outputs / "entropic_qspr.png"
    draw_paths(results, names, path)
    print(f"\nwritten to {path}")
    return {"paths": results, "coverage": shares}


if __name__ == "__main__":
    main()
