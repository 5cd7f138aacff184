"""What ArviZ takes of draws and data: replicated responses, and log-likelihoods of two kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats
import torch

from pyro_dropout.entropic._fitted import Fitted


def data_groups(fit: Fitted, draws: Any, X: Any, y: np.ndarray, random: np.random.RandomState) -> dict[str, Any]:
    """Groups of data ``X [n, p]``, ``y [n]`` under draws, in one chain."""
    mean = draws.intercept[:, None] + (X @ draws.coef.T).T
    deviation = np.sqrt(draws.noise_variance)[:, None]
    noise = scipy.stats.norm(mean, deviation)
    likelihood = {"y": noise.logpdf(y)}
    if fit.drops:
        masks = fit.mask_variance(fit.design(X), torch.from_numpy((draws.coef / fit.prior.keep.numpy()) ** 2).T)
        likelihood["y_constrained"] = likelihood["y"] - 0.5 * masks.T.numpy() / deviation**2
    return {
        "posterior_predictive": {"y": noise.rvs(random_state=random)[None]},
        "log_likelihood": {name: values[None] for name, values in likelihood.items()},
        "observed_data": {"y": y.copy()},
    }
