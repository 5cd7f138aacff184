"""Is a review positive? Linear regression with and without dropout, over the shrinkage λ0 (ENT figure 2).

Four categories of Amazon reviews, counts of words and pairs of words, random splits into 75 % for training and 25 % for
testing; a review counts as positive where the predicted mean of its label ±1 is. Without dropout this is ridge
regression. The models have no intercept, as in the paper's eq. 11.

What differs from the paper: its documents (3,587 to 5,946 with 123,099 to 193,220 covariates) are not to be had, so
there are two sets, the 2,000 labelled documents of each category with all their 93,474 to 195,887 covariates, and 5,586
to 7,945 documents with 5,000 covariates. It does not say its drop rate, nor whether its covariates were counts. Ours
is 0.5 unless told otherwise.

What comes out: with dropout the error is smaller between λ0 = 0.3 and 100, and where both have their best λ0 by 2 to 3
percentage points (1.3 to 1.4 with 5,000 covariates). Not so at the ends. At 1000 it is larger: to the sign, dropout
divides λ0 by (1-f)². Towards 0 the two come close on all covariates, and electronics is better without dropout; with
5,000 covariates ridge regression breaks down there, because there are about as many documents as covariates.

Errors are appended to ``entropic_amazon.jsonl`` as they come. A run computes what it is asked for and is not there yet,
and then shows all that is there: an interrupted one goes on, a larger one adds to a smaller one. All 40 splits take
a quarter of an hour with all covariates, more than an hour with 5,000. ``python -m examples.entropic.amazon --help``
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from examples.common.arguments import add_outputs, script
from examples.common.data import CATEGORIES, load_amazon
from examples.common.pictures import save
from pyro_dropout.entropic import regression_path

TEST_SHARE = 0.25
TITLES = {"full": "2,000 documents, all covariates", "top5000": "all documents, 5,000 covariates"}
VALUES = {"full": 13, "top5000": 7}  # of λ0; a larger set takes about 2 s for each

Results = dict[tuple[str, str], dict[float, np.ndarray]]


class Unit(NamedTuple):
    """What is computed at a time: the errors of one split over all λ0."""

    features: str
    category: str
    split: int
    rate: float


def errors_of_split(x: Any, positive: np.ndarray, split: int, rate: float, shrinkages: np.ndarray) -> np.ndarray:
    """Shares of test documents with the wrong sign, by λ0. Equal splits are the same for all rates."""
    rows = np.random.default_rng(split).permutation(len(positive))
    held_out = round(TEST_SHARE * len(rows))
    test, train = rows[:held_out], rows[held_out:]
    labels = np.where(positive[train], 1.0, -1.0)
    (path,) = regression_path(x[train], labels, [rate], shrinkages, fit_intercept=False)
    return np.array([((x[test] @ model.coef_ > 0) != positive[test]).mean() for model in path])


# Runs


def settings(shrinkages: np.ndarray) -> dict[str, Any]:
    return {"shrinkages": shrinkages.tolist(), "test_share": TEST_SHARE, "intercept": False}


def read_done(path: Path, grids: dict[str, np.ndarray]) -> dict[Unit, np.ndarray]:
    """What earlier runs with the same settings have computed."""
    done = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut off by an interruption
        unit = Unit(*(record[field] for field in Unit._fields))
        if unit.features in grids and record["settings"] == settings(grids[unit.features]):
            done[unit] = np.array(record["errors"])
    return done


def compute(units: list[Unit], grids: dict[str, np.ndarray], path: Path) -> dict[Unit, np.ndarray]:
    """Adds the units that are not in the file yet; returns all that is there, of these units or others."""
    done = read_done(path, grids)
    missing = [unit for unit in units if unit not in done]
    print(f"{len(units) - len(missing)} of {len(units)} results were in {path}, {len(missing)} to compute")
    tables = {key: load_amazon(key[1], key[0]) for key in {(unit.features, unit.category) for unit in missing}}
    with path.open("a") as file:
        if path.stat().st_size and not path.read_text().endswith("\n"):
            file.write("\n")
        for unit in tqdm(missing, unit="path", disable=None):
            table, grid = tables[unit.features, unit.category], grids[unit.features]
            errors = errors_of_split(table.x.astype(np.float64), table.y > 0, unit.split, unit.rate, grid)
            record = {**unit._asdict(), "settings": settings(grid), "errors": errors.tolist()}
            file.write(json.dumps(record) + "\n")
            file.flush()
            done[unit] = errors
    return done


def collect(done: dict[Unit, np.ndarray], rates: list[float]) -> Results:
    """Errors by features and category, then by rate, ``[splits, shrinkages]``, of the splits that have all rates."""
    results = {}
    for pair in ((features, category) for features in VALUES for category in CATEGORIES):
        splits = sorted({unit.split for unit in done if unit[:2] == pair})
        splits = [split for split in splits if all(Unit(*pair, split, rate) in done for rate in rates)]
        if splits:
            results[pair] = {rate: np.stack([done[Unit(*pair, split, rate)] for split in splits]) for rate in rates}
    return results


# What comes out


def paired(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over splits of ``second - first`` and its standard error, which is about other splits of these documents."""
    difference = second - first
    return difference.mean(0), difference.std(0, ddof=min(1, len(difference) - 1)) / math.sqrt(len(difference))


def intervals(where: np.ndarray, shrinkages: np.ndarray) -> str:
    """Runs of neighbouring λ0, such as ``0.01 to 10``."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], where.astype(int), [0]])))
    pairs = [(plain(shrinkages[start]), plain(shrinkages[stop - 1])) for start, stop in edges.reshape(-1, 2)]
    return ", ".join(low if low == high else f"{low} to {high}" for low, high in pairs) or "nowhere"


def plain(value: float) -> str:
    """Two digits, without an exponent."""
    return np.format_float_positional(value, precision=2, fractional=False, trim="-")


def in_points(mean: float, error: float, digits: int) -> str:
    return f"{100 * mean:+.{digits}f} ± {100 * error:.{digits}f}"


def print_tables(results: Results, grids: dict[str, np.ndarray]) -> None:
    """Best errors, and differences at the same λ0, in per cent and percentage points ± standard errors."""
    for features in dict.fromkeys(kind for kind, _ in results):
        grid = grids[features]
        shown = {category: errors for (kind, category), errors in results.items() if kind == features}
        print(
            f"\n{features}, {TITLES[features]}: smallest mean test error in % (at λ0) and its difference; at which λ0"
        )
        print("the error with dropout is lower or higher by more than two standard errors")
        print("| category | splits | f | without dropout | with dropout | difference | lower | higher |")
        print("| --- " * 8 + "|")
        for category, errors in shown.items():
            for rate in list(errors)[1:]:
                means = {f: errors[f].mean(0) for f in (0.0, rate)}
                best = {f: mean.argmin() for f, mean in means.items()}
                without, dropout = (f"{100 * means[f][k]:.2f} ({plain(grid[k])})" for f, k in best.items())
                change, error = paired(errors[0.0][:, best[0.0]], errors[rate][:, best[rate]])
                mean, deviation = paired(errors[0.0], errors[rate])
                lower, higher = (intervals(sign * mean > 2 * deviation, grid) for sign in (-1, 1))
                cells = (category, len(errors[rate]), f"{rate:g}", without, dropout, in_points(change, error, 2))
                print(f"| {' | '.join(map(str, (*cells, lower, higher)))} |")
        print("\nError with dropout less error without at the same λ0, percentage points")
        print(f"| category | f | {' | '.join(map(plain, grid))} |")
        print("| --- " * (2 + len(grid)) + "|")
        for category, errors in shown.items():
            for rate in list(errors)[1:]:
                pairs = zip(*paired(errors[0.0], errors[rate]), strict=True)
                cells = (in_points(mean, error, 1) for mean, error in pairs)
                print(f"| {category} | {rate:g} | {' | '.join(cells)} |")


def draw(results: Results, grids: dict[str, np.ndarray], path: Path) -> None:
    """ENT figure 2, a row for each set of features: means over splits, bands of a standard deviation."""
    kinds, categories = (list(dict.fromkeys(names)) for names in zip(*results, strict=True))
    size = (3.2 * len(categories) + 0.8, 2.8 * len(kinds) + 0.6)
    figure, axes = plt.subplots(
        len(kinds), len(categories), figsize=size, sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    for row, features in enumerate(kinds):
        for column, category in enumerate(categories):
            axis = axes[row, column]
            for k, (rate, errors) in enumerate(results.get((features, category), {}).items()):
                mean, deviation = errors.mean(0), errors.std(0)
                label = f"dropout, f = {rate:g}" if rate else "no dropout (ridge)"
                axis.plot(grids[features], mean, marker="o", ms=3, color=f"C{k}", label=label)
                axis.fill_between(
                    grids[features], mean - deviation, mean + deviation, color=f"C{k}", alpha=0.2, linewidth=0
                )
                axis.set_title(f"{category}, {len(errors)} splits")
            axis.set_xscale("log")
            axis.grid(alpha=0.3)
        axes[row, 0].set_ylabel(f"test error\n{TITLES[features]}")
    for axis in axes[-1]:
        axis.set_xlabel("shrinkage λ0")
    axes[0, 0].legend(fontsize=8)
    save(figure, path, dpi=130)


def main(argv: list[str] | None = None) -> Results:
    parser = script("entropic.amazon", __doc__)
    parser.add_argument("--features", choices=("full", "top5000", "both"), default="full", help="(default full)")
    parser.add_argument("--splits", type=int, default=40, help="random splits (default 40)")
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=CATEGORIES, help="(default all four)")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.5], help="of dropping (default 0.5)")
    parser.add_argument("--values", type=int, help="of λ0, from 0.001 to 1000 (default 13, or 7 for top5000)")
    add_outputs(parser)
    options = parser.parse_args(argv)
    options.outputs.mkdir(parents=True, exist_ok=True)

    kinds = list(VALUES) if options.features == "both" else [options.features]
    grids = {features: np.logspace(-3, 3, options.values or values) for features, values in VALUES.items()}
    rates = list(dict.fromkeys([0.0, *options.rates]))
    pairs = [(features, category) for features in kinds for category in options.categories]
    units = [Unit(*pair, split, rate) for split in range(options.splits) for pair in pairs for rate in rates]
    results = collect(compute(units, grids, options.outputs / "entropic_amazon.jsonl"), rates)
    print_tables(results, grids)
    draw(results, grids, options.outputs / "entropic_amazon.png")
    print()
    for name in ("entropic_amazon.jsonl", "entropic_amazon.png"):
        print(f"written to {options.outputs / name}")
    return results


if __name__ == "__main__":
    main()
