"""The tables of ``posterior_checks``."""

from __future__ import annotations

from typing import Any

from examples.start.checks import Table

TITLES = {
    "scores": "Held-out points",
    "loo": "Leave-one-out by importance sampling, training points",
    "approximate": "AutoNormal: the same draws weighted in two ways",
    "r_hat": "R-hat of predictions, and of rates over the second half of training; runs are chains",
    "auroc": "AUROC of held-out classes against known ones",
}


def print_table(title: str, table: Table) -> None:
    print(f"\n{title}\n")
    columns = [name for name in next(iter(table.values())) if not name.endswith("±")]
    print(" " * 28 + "".join(f"{name:>20}" for name in columns))
    for name, row in table.items():
        errors = {key: f" ± {row[key + ' ±']:.3f}" if key + " ±" in row else "" for key in columns}
        print(f"{name:28}" + "".join(f"{f'{row[key]:.3f}{errors[key]}':>20}" for key in columns))


def report(results: Any) -> None:
    """Of the regression or of the classification: a table for each field, then the comparison of ArviZ."""
    for name, table in vars(results).items():
        if name != "comparison" and table:
            print_table(TITLES[name], table)
    print(f"\naz.compare\n\n{results.comparison.to_string(float_format='{:.2f}'.format)}")
