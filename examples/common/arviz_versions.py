"""ArviZ as the examples use it, whichever of its versions is there: what 0.x and 1.x name differently has one name.

0.x has ``InferenceData``, groups of datasets; 1.x the ``DataTree`` of xarray. Both give a group by its name and a
variable of it by its own, ``groups["posterior"]["mean"]``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import xarray

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
    import arviz as az

Groups = Any  # az.InferenceData or xarray.DataTree
BEFORE_1 = az.__version__.startswith("0.")


def from_arrays(groups: dict[str, dict[str, Any]]) -> Groups:
    """Arrays ``[chains, draws, ...]``, by group and variable."""
    return az.from_dict(**groups) if BEFORE_1 else az.from_dict(groups)


def names(groups: Groups) -> list[str]:
    return list(groups.groups() if BEFORE_1 else groups.children)


def as_chains(runs: list[Groups]) -> Groups:
    """Runs of the same variables as the chains of one."""
    if len(runs) == 1:
        return runs[0]
    if BEFORE_1:
        return az.concat(*runs, dim="chain", reset_dim=True)
    joined = {}
    for name, group in runs[0].children.items():
        parts = [run[name].to_dataset() for run in runs]
        drawn = "chain" in group.dims
        joined[name] = xarray.concat(parts, "chain").assign_coords(chain=range(len(runs))) if drawn else parts[0]
    return xarray.DataTree.from_dict(joined)


def leave_one_out(groups: Groups) -> Any:
    """By Pareto-smoothed importance sampling, with what each point has; NaN where draws are too few or all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")  # the tables have the counts
        found = _where_weights_exist(lambda: az.loo(groups, pointwise=True))
    if found is not None:
        return found
    points = _points(groups)
    k = xarray.DataArray(np.full(points, np.inf))
    return SimpleNamespace(elpd=np.nan, se=np.nan, n_data_points=points, pareto_k=k)


def elpd(loo: Any) -> float:
    """Expected log predictive density, of all points together."""
    return float(loo.elpd_loo if BEFORE_1 and isinstance(loo, az.ELPDData) else loo.elpd)


def loo_pit(groups: Groups, variable: str) -> np.ndarray:
    """Probability of less than each observation, leaving that point out, ``[points]``; NaN as in ``leave_one_out``."""
    if BEFORE_1:
        return np.asarray(az.loo_pit(groups, y=variable))
    found = _where_weights_exist(lambda: az.loo_pit(groups, var_names=variable)[variable].values)
    return np.full(_points(groups), np.nan) if found is None else found


def compare(loos: dict[str, Any]) -> Any:
    """ArviZ's table, best first; ``elpd`` and its standard error ``se``, differences to the best and theirs ``dse``."""
    table = az.compare(loos) if BEFORE_1 else az.compare(loos, round_to="none")
    return table.rename(columns={"elpd_loo": "elpd", "p_loo": "p"})


def psis(log_likelihood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed log-weights of 1 / likelihood, ``[points, draws]`` as it, and Pareto's k of each point."""
    if BEFORE_1:
        log_weights, k = az.psislw(-log_likelihood)
    else:  # which takes the likelihood itself
        log_weights, k = xarray.DataArray(log_likelihood).azstats.psislw(dim="dim_1")
    return np.asarray(log_weights), np.asarray(k)


def _where_weights_exist(call: Callable[[], Any]) -> Any:
    """What it returns, or None where 1.x raises because draws are too few or all the same; 0.x gives NaN there."""
    try:
        return call()
    except ValueError as error:
        if not str(error).startswith(("All tail values are the same", "n_draws_tail must be at least")):
            raise
        return None


def _points(groups: Groups) -> int:
    (density,) = groups["log_likelihood"].data_vars.values()
    return density[0, 0].size
