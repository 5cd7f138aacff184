"""Checks of a posterior with ArviZ: each takes what ``from_pyro_svi`` exports, or fits."""

from __future__ import annotations

import importlib
import math
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from examples.common import arviz_versions
from examples.common.arviz_versions import Groups, as_chains, az, elpd, from_arrays
from examples.common.standardised import Data
from examples.start.posterior_fits import Fit
from pyro_dropout import from_pyro_svi

Table = dict[str, dict[str, float]]  # of measures, by guide


def in_units(groups: Groups, data: Data) -> Groups:
    """Replicates, observations and their densities in the units of the target, in place."""
    for name in ("posterior_predictive", "observed_data"):
        groups[name]["obs"] = data.in_units(groups[name]["obs"])
    groups["log_likelihood"]["obs"] = groups["log_likelihood"]["obs"] - math.log(data.scale)
    return groups


def export(fits: list[Fit], x: Tensor, y: Tensor, data: Data) -> Groups:
    """Draws, replicates and log-likelihoods of these points, in units of the target; fits are chains."""
    groups = as_chains([from_pyro_svi(fit, model_args=(x, y), num_samples=fit.draws) for fit in fits])
    groups["posterior"]["mean"] = data.in_units(groups["posterior"]["mean"])
    return in_units(groups, data)


def compare(loos: dict[str, Any]) -> Any:
    """ArviZ's table. Pareto smoothing gives NaN where the draws repeat each other: such a guide cannot be compared."""
    usable = {name: loo for name, loo in loos.items() if math.isfinite(elpd(loo))}
    for name in loos:
        if name not in usable:
            print(f"{name} is not in the comparison: its leave-one-out estimate is not finite")
    return arviz_versions.compare(usable)


def r_hat(runs: Groups, variable: str) -> dict[str, float]:
    """Do runs agree? Median and largest R-hat over the entries of a variable, runs as chains."""
    values = az.rhat(runs, var_names=[variable])[variable].values
    return {"median": float(np.median(values)), "largest": float(np.max(values))}


def rates_as_draws(fits: list[Fit]) -> Groups:
    """Rates do not vary among draws of a run: their draws are the records of the second half of training."""
    half = len(fits[0].steps) // 2
    rates = {site: np.array([f.rates[site][half:] for f in fits]) for site in fits[0].rates}
    return from_arrays({"posterior": rates})


def approximate_loo(fit: Fit, data: Data) -> Table:
    """LOO of one set of draws, with importance weights as if q were the posterior and with log p - log q in them."""
    stats = optional("arviz_stats", "loo_approximate_posterior", "arviz-stats[xarray]")
    if stats is None:
        return {}
    with torch.no_grad(), pyro.plate("draws", fit.draws, dim=-2):
        drawn = poutine.trace(fit.guide).get_trace(data.x, data.y)
        joint = poutine.trace(poutine.replay(fit.model, drawn)).get_trace(data.x, data.y)
    likelihood = joint.nodes["obs"]["fn"].log_prob(data.y) - math.log(data.scale)
    log_q = log_density(drawn, fit.draws)
    log_p = log_density(joint, fit.draws) + likelihood.sum(-1)
    groups = from_arrays({"log_likelihood": {"obs": likelihood[None].numpy()}})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        plain = stats.loo(groups, pointwise=True, reff=1.0)  # draws of a guide are independent
        corrected = stats.loo_approximate_posterior(groups, log_p.numpy(), log_q.numpy(), pointwise=True)
    return {name: loo_summary(loo) for name, loo in (("q as it is", plain), ("log p - log q", corrected))}


@torch.no_grad()
def log_density(trace: poutine.Trace, draws: int) -> Tensor:
    """Of all latents, by draw; a guide's sites before and after a transform both count, and give its Jacobian."""
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    return sum(site["log_prob"].reshape(draws, -1).sum(1) for _, site in trace.iter_stochastic_nodes())


def optional(module: str, purpose: str, package: str) -> ModuleType | None:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        print(f"{purpose} is left out: it needs {module} (pip install '{package}')")
        return None


def loo_summary(loo: Any) -> dict[str, float]:
    """Per point, with its standard error, and the share of points whose importance weights are not to be trusted."""
    points, bad = loo.n_data_points, loo.pareto_k.values > 0.7
    return {"elpd_loo": elpd(loo) / points, "elpd_loo ±": float(loo.se) / points, "k > 0.7": float(bad.mean())}
