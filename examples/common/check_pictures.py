"""Pictures of posterior checks: replicated data beside observed ones, and leave-one-out probabilities."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from examples.common.arviz_versions import Groups, loo_pit

BINS = 20


def plot_replicates(axes: plt.Axes, groups: Groups, draws: int, legend: bool = True) -> None:
    """Densities of observations and of replicated data sets, one for each of some draws: posterior predictive check."""
    observed = groups["observed_data"]["obs"].values
    replicates = groups["posterior_predictive"]["obs"].values.reshape(-1, len(observed))
    chosen = np.random.default_rng(0).choice(len(replicates), min(draws, len(replicates)), replace=False)
    low, high = np.quantile(replicates, [0.001, 0.999])
    grid = np.linspace(min(low, observed.min()), max(high, observed.max()), 200)
    for i, row in enumerate(replicates[chosen]):
        density = scipy.stats.gaussian_kde(row)(grid)
        axes.plot(grid, density, color="C0", alpha=0.15, label=None if i else "replicated")
    axes.plot(grid, scipy.stats.gaussian_kde(observed)(grid), color="black", label="observed")
    if legend:
        for handle in axes.legend().legend_handles:
            handle.set_alpha(1.0)


def plot_loo_pit(axes: plt.Axes, groups: Groups, legend: bool = True) -> None:
    """Histogram of leave-one-out probabilities: if calibrated uniform, with nine bars of ten in the band."""
    found = loo_pit(groups, "obs")
    axes.set(xlim=(0, 1))
    if not np.isfinite(found).all():
        axes.text(0.5, 0.5, "no estimate of these draws", ha="center", transform=axes.transAxes)
        return
    axes.hist(found, bins=BINS, range=(0, 1), density=True, histtype="step", linewidth=1.5, label="observed")
    band = scipy.stats.binom(len(found), 1 / BINS).ppf([0.05, 0.95]) * BINS / len(found)
    axes.axhspan(*band, color="black", alpha=0.12, label="90 % of uniform ones")
    axes.axhline(1.0, color="black", linewidth=0.8)
    if legend:
        axes.legend()
