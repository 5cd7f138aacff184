"""Concrete's strength: four guides and NUTS on the same model, checked and compared (``posterior_checks``)."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoNormal, init_to_median

from examples.common.arviz_versions import Groups, leave_one_out
from examples.common.check_pictures import plot_loo_pit, plot_replicates
from examples.common.data import load_uci
from examples.common.pictures import panels, save
from examples.common.standardised import Data
from examples.start.checks import (
    Table,
    approximate_loo,
    compare,
    export,
    loo_summary,
    r_hat,
    rates_as_draws,
)
from examples.start.posterior_fits import Fit, fit, sample
from examples.start.posterior_tables import report
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, init_to_module
from pyro_dropout.metrics import (
    calibration_error,
    crps,
    interval_coverage,
    predictive_log_likelihood,
    quantile_coverage,
)

POINTS, HIDDEN, LENGTHSCALE = 200, 50, 2.0
TARGET = "compressive strength, MPa"
NUTS_NAME, NORMAL_NAME = "NUTS", "AutoNormal"


@dataclass(frozen=True)
class RegressionResults:
    """Log-likelihoods and ``elpd`` are per point in units of y; ``r_hat`` of predictions and of rates over training."""

    scores: Table
    loo: Table
    approximate: Table
    r_hat: Table
    comparison: Any


def load_concrete() -> Data:
    """The first points of the first published training split; all others are held out."""
    table = load_uci("concrete")
    rows = np.concatenate([table.train[0], table.test[0]])
    x, y = (torch.tensor(part[rows], dtype=torch.float32) for part in (table.x, table.y))
    return Data.of(x[:POINTS], y[:POINTS], x[POINTS:], y[POINTS:])


def regression_guides(model: Callable) -> dict[str, Callable]:
    """Biases and noise get normal posteriors: PSIS needs draws that do not repeat each other, as those of masks do."""
    rest = partial(AutoNormal, init_scale=0.02)
    return {
        "rate 0.1": AutoBernoulliDropout(model, rate=0.1, rest=rest),
        "Concrete": AutoConcreteDropout(model, rate=0.1, rest=rest),
        "learned hard": AutoBernoulliDropout(model, rate=0.1, learnable=True, rest=rest),
        NORMAL_NAME: AutoNormal(model, init_loc_fn=init_to_module(fallback=init_to_median), init_scale=0.02),
    }


def fit_regression(data: Data, args: argparse.Namespace) -> dict[str, list[Fit]]:
    """Several runs of each guide and chains of NUTS, all on the same models."""
    fits: dict[str, list[Fit]] = {}
    for run in range(max(args.restarts, args.chains)):
        pyro.set_rng_seed(args.seed + run)
        model = Regression(data.x.shape[1], size=POINTS, hidden=(HIDDEN,), lengthscale=LENGTHSCALE)
        if run < args.restarts:
            for name, guide in regression_guides(model).items():
                done = fit(model, guide, itertools.repeat((data.x, data.y)), args, f"{name}, run {run + 1}")
                fits.setdefault(name, []).append(done)
        if run < args.chains:
            fits.setdefault(NUTS_NAME, []).append(sample(model, data, args))
    return fits


def score(held_out: Groups) -> dict[str, float]:
    """Of points that no fit has seen."""
    y, obs = held_out["observed_data"]["obs"], held_out["posterior_predictive"]["obs"]
    density = predictive_log_likelihood(held_out["log_likelihood"]["obs"]).values
    error = (held_out["posterior"]["mean"].mean(("chain", "draw")) - y.values).values
    return {
        "RMSE": float(np.sqrt((error**2).mean())),
        "log-likelihood": float(density.mean()),
        "log-likelihood ±": float(density.std() / math.sqrt(len(density))),
        "CRPS": float(crps(obs, y).mean()),
        "in 50 %": interval_coverage(obs, y, 0.5),
        "in 90 %": interval_coverage(obs, y, 0.9),
        "calibration": calibration_error(obs, y),
    }


def run_regression(args: argparse.Namespace) -> tuple[RegressionResults, list[Path]]:
    data = load_concrete()
    fits = fit_regression(data, args)
    # Chains of NUTS are draws from one posterior, runs of an SVI from several: the first is what would be used.
    chosen = {name: runs if name == NUTS_NAME else runs[:1] for name, runs in fits.items()}
    idatas = {name: export(runs, data.x, data.y, data) for name, runs in chosen.items()}
    held_out = {name: export(runs, data.x_test, data.y_test, data) for name, runs in chosen.items()}
    loos = {name: leave_one_out(idata) for name, idata in idatas.items()}
    learned = {name: rates_as_draws(runs) for name, runs in fits.items() if runs[0].rates}
    agreement = {name: r_hat(export(runs, data.x, data.y, data), "mean") for name, runs in fits.items()}
    for name, rates in learned.items():
        agreement |= {f"{name}, {site}": r_hat(rates, site) for site in rates["posterior"].data_vars}
    results = RegressionResults(
        scores={name: score(idata) for name, idata in held_out.items()},
        loo={name: loo_summary(loo) for name, loo in loos.items()},
        approximate=approximate_loo(fits[NORMAL_NAME][0], data),
        r_hat=agreement,
        comparison=compare(loos),
    )
    report(results)
    pictures = [
        save(plot_checks(idatas), args.outputs / "posterior_checks_predictive.png", dpi=110),
        save(plot_comparison(results), args.outputs / "posterior_checks_comparison.png", dpi=110),
        save(plot_calibration(held_out), args.outputs / "posterior_checks_calibration.png", dpi=110),
        save(plot_rates(fits, agreement), args.outputs / "posterior_checks_rates.png", dpi=110),
    ]
    return results, pictures


# Pictures


def plot_checks(idatas: dict[str, Groups]) -> plt.Figure:
    """Posterior predictive check and LOO-PIT of each guide, on the training points."""
    figure, axes = panels(2, len(idatas), 3.6 * len(idatas), 7.5, sharex="row", sharey="row")
    for (name, idata), (top, bottom) in zip(idatas.items(), axes.T, strict=True):
        plot_replicates(top, idata, draws=50, legend=name == NUTS_NAME)
        top.set(title=name, xlabel=TARGET)
        plot_loo_pit(bottom, idata, legend=name == NUTS_NAME)
        bottom.set(xlabel="probability of less, point left out", ylim=(0, 2.5))
    axes[0, 0].set_ylabel("density: posterior predictive check")
    axes[1, 0].set_ylabel("density: LOO-PIT")
    return figure


def plot_comparison(results: RegressionResults) -> plt.Figure:
    """ArviZ's comparison beside what it estimates."""
    figure, ((left, right),) = panels(1, 2, 14, 4.5)
    table = results.comparison
    rows = np.arange(len(table))
    left.errorbar(table["elpd"], rows, xerr=table["se"], fmt="o", capsize=3, label="elpd and its error")
    others = table.iloc[1:]  # as ArviZ draws it: where they are, with the error of the difference
    left.errorbar(others["elpd"], rows[1:] - 0.2, xerr=others["dse"], fmt="^", color="grey", label="error of the gap")
    left.axvline(table["elpd"].iloc[0], color="grey", linestyle="--", linewidth=0.8)
    left.set(yticks=rows, yticklabels=table.index, xlabel="log-likelihood, nats")
    left.set(title="az.compare: leave-one-out, sums over training points")
    left.invert_yaxis()
    left.legend()
    names = list(results.scores)
    rows = np.arange(len(names))
    for table, key, shift, label in (
        (results.loo, "elpd_loo", -0.1, "leave-one-out estimate, training points"),
        (results.scores, "log-likelihood", 0.1, "held-out points"),
    ):
        centers, errors = ([table[name][k] for name in names] for k in (key, f"{key} ±"))
        right.errorbar(centers, rows + shift, xerr=errors, fmt="o", capsize=3, label=label)
    right.set(yticks=rows, yticklabels=names, xlabel="log-likelihood per point, nats", title="Is the estimate right?")
    right.invert_yaxis()
    right.legend()
    return figure


def plot_calibration(held_out: dict[str, Groups]) -> plt.Figure:
    """Shares of held-out points below predictive quantiles."""
    figure, ((axis,),) = panels(1, 1, 6, 6)
    levels = torch.arange(1, 20) / 20
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    for name, idata in held_out.items():
        share = quantile_coverage(idata["posterior_predictive"]["obs"], idata["observed_data"]["obs"], levels)
        axis.plot(levels, share, marker=".", label=name)
    axis.set(xlabel="probability of the predictive quantile", ylabel="share of held-out points below it")
    axis.set(title="Calibration: on the diagonal if calibrated")
    axis.legend()
    return figure


def plot_rates(fits: dict[str, list[Fit]], agreement: Table) -> plt.Figure:
    """A line for each run."""
    learned = {name: runs for name, runs in fits.items() if runs[0].rates}
    sites = list(next(iter(learned.values()))[0].rates)
    figure, axes = panels(len(sites), len(learned), 11, 7, sharex=True, sharey=True)
    for (name, runs), column in zip(learned.items(), axes.T, strict=True):
        for site, axis in zip(sites, column, strict=True):
            for run, one in enumerate(runs):
                axis.semilogy(one.steps, one.rates[site], label=f"run {run + 1}")
            axis.axvspan(runs[0].steps[len(runs[0].steps) // 2], runs[0].steps[-1], color="black", alpha=0.06)
            axis.set_title(f"{name}, {site}: R-hat {agreement[f'{name}, {site}']['largest']:.2f} of the grey half")
    for axis in axes[:, 0]:
        axis.set_ylabel("drop rate")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    axes[0, 0].legend()
    return figure
