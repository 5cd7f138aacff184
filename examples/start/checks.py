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

from examples.common.standardised import Data
from examples.start.posterior_fits import Fit
from pyro_dropout import from_pyro_svi

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
    import arviz as az

Table = dict[str, dict[str, float]]  # of measures, by guide


def in_units(idata: az.InferenceData, data: Data) -> az.InferenceData:
    """Replicates, observations and their densities in the units of the target, in place."""
    idata.map(data.in_units, groups=["posterior_predictive", "observed_data"], inplace=True)
    idata.map(lambda density: density - math.log(data.scale), groups="log_likelihood", inplace=True)
    return idata


def export(fits: list[Fit], x: Tensor, y: Tensor, data: Data) -> az.InferenceData:
    """Draws, replicates and log-likelihoods of these points, in units of the target; fits are chains."""
    idatas = [from_pyro_svi(fit, model_args=(x, y), num_samples=fit.draws) for fit in fits]
    idata = az.concat(*idatas, dim="chain", reset_dim=True) if len(fits) > 1 else idatas[0]
    in_units(idata, data)
    idata.posterior["mean"] = data.in_units(idata.posterior["mean"])
    return idata


def leave_one_out(idata: az.InferenceData) -> az.ELPDData:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")  # the tables have the counts
        return az.loo(idata, pointwise=True)


def compare(loos: dict[str, az.ELPDData]) -> Any:
    """ArviZ's table. Pareto smoothing gives NaN where the draws repeat each other: such a guide cannot be compared."""
    usable = {name: loo for name, loo in loos.items() if math.isfinite(loo.elpd_loo)}
    for name in loos:
        if name not in usable:
            print(f"{name} is not in the comparison: its leave-one-out estimate is not finite")
    return az.compare(usable)


def r_hat(runs: az.InferenceData, variable: str) -> dict[str, float]:
    """Do runs agree? Median and largest R-hat over the entries of a variable, runs as chains."""
    values = az.rhat(runs, var_names=[variable])[variable].values
    return {"median": float(np.median(values)), "largest": float(np.max(values))}


def rates_as_draws(fits: list[Fit]) -> az.InferenceData:
    """Rates do not vary among draws of a run: their draws are the records of the second half of training."""
    half = len(fits[0].steps) // 2
    return az.from_dict(posterior={site: np.array([f.rates[site][half:] for f in fits]) for site in fits[0].rates})


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
    idata = az.from_dict(log_likelihood={"obs": likelihood[None]})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        plain = stats.loo(idata, pointwise=True, reff=1.0)  # draws of a guide are independent
        corrected = stats.loo_approximate_posterior(idata, log_p.numpy(), log_q.numpy(), pointwise=True)
    return {name: loo_summary(loo.elpd, loo) for name, loo in (("q as it is", plain), ("log p - log q", corrected))}


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


def loo_summary(elpd: float, loo: Any) -> dict[str, float]:
    """Per point, with its standard error, and the share of points whose importance weights are not to be trusted."""
    points, bad = loo.n_data_points, loo.pareto_k.values > 0.7
    return {"elpd_loo": float(elpd) / points, "elpd_loo ±": float(loo.se) / points, "k > 0.7": float(bad.mean())}
