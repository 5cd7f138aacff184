"""The regression results of the dropout papers, on their data and their splits, beside the published ones.

``python -m examples.mc.uci --dataset boston --method mc`` trains one network for each split (and each point of a grid),
all of them at once, and prints its table; ``--dataset all`` does so for the nine sets.

========== ==========================================================================================================
``mc``       MC dropout (Gal & Ghahramani 2016): rate and precision from the published grid, by the log-likelihood of
             the last fifth of each split's training rows; then trained anew on all of them.
``concrete`` Concrete dropout (Gal, Hron & Kendall 2017): rates and precision learned; a second row has the precision of
             a last M-step.
``held``     the same with a precision of the published grid in training, so that rates are learned at a noise above the
             last one's, as CD's partial M-steps from a low precision do (appendix D).
``network``  ``concrete`` with a network for the noise, too (heteroscedastic).
``disarm``   hard masks whose rates are learned (Boluki et al. 2020), one per layer; ``disarm-unit``: one per unit.
``alpha0``   Concrete dropout by the α objective (Li & Gal 2017) of 10 draws; ``alpha0.5``, ``alpha1``.
========== ==========================================================================================================

Those that learn rates choose the prior's lengthscale, in units of √inputs of a layer, by the same validation rows, as
CD does (appendix D), and whether to stop after a quarter of the steps: learned rates fall for as long as the fit to
training rows improves. Where there is a last M-step, the choice is by what it gives. Some networks stay at the prior,
or explain rows by noise: of ``--restarts`` of the last training the one with the lowest loss counts. The α methods
choose nothing, so that they differ in α alone. ``--method alpha`` stands for all three.

Covariates and response are standardised on the training rows; results are in the units of the response: the mean
log-likelihood of a test row under 1,000 draws, and the error of their mean, both with standard errors over splits.
Epochs were set to what an hour allows; those of naval and protein were raised after a look at test results, which fewer
left far from the published ones. The published runs had 4,000 epochs (protein 2,000), and their weight decay took a
precision in 1 / units of y² for one of standardised y: another lengthscale than 0.01 in this package's terms, larger
where y has a deviation above about 1, smaller below.

Results go to a file each in ``outputs/uci/``, and what is there is not computed again; training that was interrupted
goes on from where it was a minute before. ``--method mc --dataset all --processes 2`` is a table, by two processes of
half the threads, each with a data set at a time. ``--engine`` makes each split a fit of its own, of one thread, with a
file of its own, by processes that joblib, Ray or Dask starts: slower than all at once, but a fit that fails leaves
others alone, and there may be more machines. Numbers are then those of other random numbers, the same by any engine.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from examples.common.arguments import add_backend, add_outputs, below_one, count, positive, script
from examples.common.data import UCI, UCI_SPLITS, load_uci
from examples.common.engines import add_engine, spread
from examples.common.fits import named_by
from examples.common.results import kept, mean_and_error
from examples.mc.uci_training import LEARNING_RATE, SETS, Found, Run, fit, kinds

RATES = (0.005, 0.01, 0.05, 0.1)  # published, with lengthscale 0.01
LENGTHSCALES = (0.1, 0.3, 1.0)  # of methods that learn rates and precision, times √inputs
EARLY = 0.25  # of the steps, where they may stop
LEARNED = ("concrete", "held", "network", "disarm", "disarm-unit")
ALPHAS = ("alpha0", "alpha0.5", "alpha1")
METHODS = ("mc", *LEARNED, *ALPHAS)
RESTARTS = {"network": 3}  # some explain rows by noise and leave their mean where it is

# Log-likelihood and RMSE. The authors' grid search of 2018, one hidden layer, which had no look at test rows; and of CD
# tables 3 and 4, two hidden layers, the columns Dropout and CDropoutM, and before the last M-step CDropout, which has
# the same RMSE.
GRID_SEARCH = {
    "boston": ("-2.402 ± 0.042", "2.90 ± 0.18"),
    "concrete": ("-2.937 ± 0.025", "4.83 ± 0.16"),
    "energy": ("-1.212 ± 0.005", "0.539 ± 0.014"),
    "kin8nm": ("1.136 ± 0.007", "0.0789 ± 0.0006"),
    "naval": ("4.450 ± 0.002", "0.00074 ± 0.00005"),
    "power": ("-2.808 ± 0.009", "4.01 ± 0.04"),
    "protein": ("-2.871 ± 0.002", "4.27 ± 0.02"),
    "wine": ("-0.928 ± 0.013", "0.622 ± 0.008"),
    "yacht": ("-1.250 ± 0.015", "0.666 ± 0.049"),
}
DROPOUT = {
    "boston": ("-2.34 ± 0.03", "2.80 ± 0.13"),
    "concrete": ("-2.82 ± 0.02", "4.50 ± 0.18"),
    "energy": ("-1.48 ± 0.00", "0.47 ± 0.01"),
    "kin8nm": ("1.10 ± 0.00", "0.08 ± 0.00"),
    "naval": ("4.32 ± 0.00", "0.00 ± 0.00"),
    "power": ("-2.67 ± 0.01", "3.63 ± 0.04"),
    "protein": ("-2.70 ± 0.00", "3.62 ± 0.01"),
    "wine": ("-0.90 ± 0.01", "0.60 ± 0.01"),
    "yacht": ("-1.37 ± 0.02", "0.66 ± 0.06"),
}
CONCRETE = {
    "boston": ("-2.35 ± 0.05", "2.65 ± 0.17"),
    "concrete": ("-3.12 ± 0.07", "4.46 ± 0.16"),
    "energy": ("-0.84 ± 0.03", "0.46 ± 0.02"),
    "kin8nm": ("1.24 ± 0.00", "0.07 ± 0.00"),
    "naval": ("5.89 ± 0.05", "0.00 ± 0.00"),
    "power": ("-2.75 ± 0.01", "3.70 ± 0.04"),
    "protein": ("-2.81 ± 0.00", "3.85 ± 0.02"),
    "wine": ("-0.94 ± 0.02", "0.62 ± 0.00"),
    "yacht": ("-0.77 ± 0.06", "0.57 ± 0.05"),
}
BEFORE_M_STEP = {
    "boston": "-2.72 ± 0.01",
    "concrete": "-3.51 ± 0.00",
    "energy": "-2.30 ± 0.00",
    "kin8nm": "0.65 ± 0.00",
    "naval": "5.87 ± 0.05",
    "power": "-2.75 ± 0.01",
    "protein": "-2.81 ± 0.00",
    "wine": "-1.70 ± 0.00",
    "yacht": "-1.75 ± 0.00",
}


def main(arguments: list[str] | None = None) -> None:
    parser = script("mc.uci", __doc__)
    parser.add_argument("--dataset", choices=[*SETS, "all"], nargs="+", default=["boston"])
    parser.add_argument("--method", choices=[*METHODS, "alpha"], nargs="+", default=["mc"])
    parser.add_argument("--splits", type=splits, default="all", help="how many, or all: 20, protein 5 (default all)")
    parser.add_argument("--layers", type=int, choices=(1, 2), default=1, help="of 50 units, protein 100 (default 1)")
    parser.add_argument("--epochs", type=positive, default=1.0, help="times the epochs of each set (default 1)")
    parser.add_argument(
        "--draws", type=count, default=1000, help="of each prediction, of validation rows a fifth (default 1,000)"
    )
    parser.add_argument(
        "--restarts", type=count, help="of the last training; the lowest loss counts (default 1, of network 3)"
    )
    parser.add_argument(
        "--lengthscales", type=positive, nargs="+", default=LENGTHSCALES, help="to choose from (default 0.1 0.3 1)"
    )
    parser.add_argument("--rates", type=below_one, nargs="+", default=RATES, help="of mc (default 0.005 0.01 0.05 0.1)")
    parser.add_argument("--processes", type=count, default=1, help="that share sets, methods and threads (default 1)")
    add_engine(parser, None, "what starts processes for splits one by one (default: a set's splits are one fit)")
    add_backend(parser)
    add_outputs(parser, "--output", "outputs/uci")
    options = parser.parse_args(arguments)
    names = list(SETS) if "all" in options.dataset else options.dataset
    for name in names:
        if options.splits != "all" and options.splits > UCI_SPLITS[SETS[name].name]:
            parser.error(f"--splits: {name} has {UCI_SPLITS[SETS[name].name]}, but found {options.splits}")
    given = [method for name in options.method for method in (ALPHAS if name == "alpha" else (name,))]
    methods = list(dict.fromkeys(given))
    tasks = [(name, method) for method in methods for name in names]
    results = dict(zip(tasks, computed(tasks, options), strict=True))
    found = {method: {name: results[name, method] for name in names} for method in methods}
    for method in methods:
        print_table(found[method], method, options)
    if len(found) > 1:
        print_differences(found)
    print(f"results in {options.output}")


def splits(text: str) -> int | str:
    return text if text == "all" else count(text)


def computed(tasks: list[tuple[str, str]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Results of sets and methods."""
    if options.engine is None:
        return spread(run, tasks, options)
    fits = [(*task, split) for task in tasks for split in range(number_of(task[0], options))]
    found = dict(zip(fits, spread(run_split, fits, options), strict=True))
    return [joined([found[fit] for fit in fits if fit[:2] == task]) for task in tasks]


def run(name: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Results of each split, seconds, and the epochs that they took."""
    return experiment(name, method, options, range(number_of(name, options))).results()


def run_split(name: str, method: str, split: int, options: argparse.Namespace) -> dict[str, Any]:
    """The same of one split, whatever other splits are and how many processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return experiment(name, method, options, range(split, split + 1), alone=True).results()
    finally:
        torch.set_num_threads(threads)


def joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of splits that were fits of their own, as those of all."""
    lists = {kind: [one[kind][0] for one in found] for kind, value in found[0].items() if isinstance(value, list)}
    seconds = float(np.mean([one["seconds"] for one in found]))
    return {**lists, "seconds": seconds, "date": max(one["date"] for one in found), "epochs": found[0]["epochs"]}


def number_of(name: str, options: argparse.Namespace) -> int:
    return UCI_SPLITS[SETS[name].name] if options.splits == "all" else options.splits


def experiment(
    name: str, method: str, options: argparse.Namespace, splits: range, *, alone: bool = False
) -> Experiment:
    data, precisions = load_uci(SETS[name].name), SETS[name].precisions
    grid: list[dict[str, float]]
    if method == "mc":
        grid = [{"rate": rate, "precision": precision} for rate in options.rates for precision in precisions]
    else:
        grid = [{"lengthscale": lengthscale} for lengthscale in (options.lengthscales if method in LEARNED else (1.0,))]
        if method == "held":
            grid = [{**point, "precision": precision} for point in grid for precision in precisions]
    lengths = (EARLY, 1.0) if method in LEARNED else (1.0,)
    return Experiment(name, method, options, data, splits, grid, lengths, alone)


@dataclass(frozen=True)
class Experiment:
    """A method on splits of a set; points of ``grid`` and of ``lengths`` are chosen from.

    :param alone: files are of this split and named by all settings; otherwise of the first splits.
    """

    name: str
    method: str
    options: argparse.Namespace
    data: UCI
    splits: range
    grid: list[dict[str, float]]
    lengths: tuple[float, ...]
    alone: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what validation finds."""
        return {
            "epochs": SETS[self.name].epochs * self.options.epochs,
            "batch": SETS[self.name].batch,
            "learning_rate": LEARNING_RATE,
            "draws": self.options.draws,
            "grid": self.grid,
            "lengths": self.lengths,
        }

    @property
    def restarts(self) -> int:
        return self.options.restarts or RESTARTS.get(self.method, 1)

    def file(self, ending: str) -> Path:
        splits = f"split-{self.splits.start}" if self.alone else f"{len(self.splits)}-splits"
        return self.options.output / f"{self.name}-{self.method}-{self.options.layers}-layers-{splits}{ending}"

    def kept(self, ending: str, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self.file(ending)
        return kept(named_by(path, settings) if self.alone else path, settings, compute)

    def results(self) -> dict[str, Any]:
        """Of test rows, read from a file or computed."""
        restarts = self.restarts
        settings = {**self.settings, "restarts": restarts} if restarts > 1 else self.settings  # validation has none
        return self.kept(".json", settings, self.tested)

    def trained(self, runs: list[Run], kind: str, **kwargs: Any) -> tuple[list[Found], float]:
        """All runs, as many of each split; training of other settings is not gone on with."""
        seed = self.splits.start * len(runs) // len(self.splits)
        digest = zlib.crc32(json.dumps(self.settings).encode())
        training = self.file(f"-{kind}-{digest:08x}.pt")
        return fit(
            self.name, self.data, runs, self.method, self.lengths, self.options, seed, training=training, **kwargs
        )

    def validated(self) -> dict[str, Any]:
        """Scores of the last fifth of each split's training rows, by split, length and point of the grid."""
        pyro.set_rng_seed(2 * self.splits.start)
        train, fifth = self.data.train, self.data.train.shape[1] // 5
        runs = [(train[s][:-fifth], train[s][-fifth:], values) for s in self.splits for values in self.grid]
        results, seconds = self.trained(runs, "validation", choosing=True)
        scores = [np.reshape(found["score"], (len(self.splits), len(self.grid))) for found in results]
        return {"scores": np.stack(scores, 1).tolist(), "seconds": seconds}

    def tested(self) -> dict[str, Any]:
        """Scores of test rows, with what validation chose for each split; of restarts the lowest loss counts."""
        data, grid, number, restarts = self.data, self.grid, len(self.splits), self.restarts
        scores, before = np.zeros((number, 1, 1)), 0.0  # nothing to choose from
        if len(grid) * len(self.lengths) > 1:
            validation = self.kept("-validation.json", self.settings, self.validated)
            scores, before = np.array(validation["scores"]), validation["seconds"]
        pyro.set_rng_seed(2 * self.splits.start + 1)
        best = np.where(np.isnan(scores), -np.inf, scores).reshape(number, -1).argmax(1)
        length, chosen = np.divmod(best, len(grid))
        chose = zip(self.splits, chosen, strict=True)
        runs = [(data.train[s], data.test[s], grid[point]) for s, point in chose for _ in range(restarts)]
        results, seconds = self.trained(runs, f"{restarts}-restarts")
        losses = np.array([results[length[s]]["loss"][s * restarts : (s + 1) * restarts] for s in range(number)])
        of = np.arange(number) * restarts + np.where(np.isnan(losses), np.inf, losses).argmin(1)
        return {
            **{kind: [results[length[s]][kind][of[s]] for s in range(number)] for kind in results[0]},
            "chosen": [{**grid[chosen[s]], "steps": self.lengths[length[s]]} for s in range(number)],
            "seconds": (before + seconds) / number,
            "date": time.strftime("%Y-%m-%d"),
            "epochs": self.settings["epochs"],
        }


def print_table(found: dict[str, dict[str, Any]], method: str, options: argparse.Namespace) -> None:
    published, what = GRID_SEARCH, "grid search, 1 layer"
    if options.layers == 2:
        published, what = (DROPOUT, "CD, Dropout") if method == "mc" else (CONCRETE, "CD, CDropout and CDropoutM")
    print(f"\n{method}, {options.layers} hidden layer(s), mean ± standard error over splits; published: {what}\n")
    print(
        "| set | log-likelihood | published | RMSE | published | rates by layer | epochs | seconds per split | date |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, results in found.items():
        rmse = "{:.4g} ± {:.2g}".format(*mean_and_error(results["rmse"]))
        rates = [f"{np.mean([r[site] for r in results['rates']]):.3f}" for site in results["rates"][0]]
        cells = [rmse, published[name][1], ", ".join(rates), f"{results['epochs']:g}", f"{results['seconds']:.1f}"]
        for kind, label in (("log_likelihood", name), ("after_m_step", f"{name}, after a last M-step")):
            if kind in results:
                density = "{:.3f} ± {:.3f}".format(*mean_and_error(results[kind]))
                before = options.layers == 2 and kind == "log_likelihood" and "after_m_step" in results
                beside = BEFORE_M_STEP[name] if before else published[name][0]
                print(f"| {label} | {density} | {beside} | {' | '.join(cells)} | {results['date']} |")


def print_differences(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Log-likelihoods of the first method and how much higher others' are on the same splits; by what each chooses."""
    first, *others = found
    print("\nlog-likelihood of the first method and differences on the same splits, mean ± standard error over them\n")
    print(f"| set | {first} | {' | '.join(f'{method} less {first}' for method in others)} |")
    print("| --- " * (len(found) + 1) + "|")
    for name in found[first]:
        scores = {method: np.array(sets[name][kinds(method, True)[0]]) for method, sets in found.items()}
        values = [scores[first], *(scores[method] - scores[first] for method in others)]
        print(f"| {name} | {' | '.join('{:.3f} ± {:.3f}'.format(*mean_and_error(value)) for value in values)} |")


if __name__ == "__main__":
    main()
