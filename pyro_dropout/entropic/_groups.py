"""What ArviZ takes of draws and data: replicated responses, and log-likelihoods of two kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats
import torch

from pyro_dropout.entropic._chunk import Chunk, describe
from pyro_dropout.entropic._fitted import Fitted
from pyro_dropout.entropic.draws import PosteriorDraws
from pyro_dropout.interop.groups import inference_data


def export(fit: Fitted, draws: PosteriorDraws, data: Chunk | None, names: Any, random: np.random.RandomState) -> Any:
    """Draws as one chain, with names of covariates, and what they say of data."""
    import arviz  # here: it is slow to import, and 0.23 warns as it is

    groups: dict[str, dict[str, Any]] = {"posterior": {k: v[None] for k, v in draws._asdict().items()}}
    if data is not None:
        groups |= _data_groups(fit, draws, data, random)
    output = ["output"] * fit.b.dim()
    dims = {name: ["data", *output] for name in ("y", "y_constrained")}
    dims |= {"coef": [*output, "feature"], "intercept": output, "noise_variance": output}
    return inference_data(arviz, groups, {} if names is None else {"feature": list(names)}, dims)


def _data_groups(fit: Fitted, draws: PosteriorDraws, data: Chunk, random: np.random.RandomState) -> dict[str, Any]:
    """Groups of data ``X [n, p]``, ``y [n]`` or ``[n, outputs]`` under draws, in one chain."""
    if data.y.shape[1:] != fit.b.shape:
        raise ValueError(f"y must be {describe(fit.b.shape)}, as in the fit, but found {describe(data.y.shape[1:])}")
    X, y, several = data.X, data.y.numpy(), draws.coef.shape[:-1]
    root = data.root.numpy()

    def by_row(values: np.ndarray) -> np.ndarray:
        """``[draws, n, ...]`` of values of every draw and output, ``[n, draws · outputs]``."""
        return np.moveaxis(values.T.reshape(*several, len(y)), -1, 1)

    mean = draws.intercept[:, None] + by_row(X @ draws.coef.reshape(-1, X.shape[1]).T)
    deviation = np.sqrt(draws.noise_variance)[:, None] / (root if y.ndim == 1 else root[:, None])
    noise = scipy.stats.norm(mean, deviation)
    likelihood = {"y": noise.logpdf(y)}
    if fit.drops:
        w = (draws.coef / fit.prior.keep.numpy()).reshape(-1, X.shape[1])
        masks = by_row(fit.mask_variance(fit.design(X), torch.from_numpy(w**2).T).numpy())
        likelihood["y_constrained"] = likelihood["y"] - 0.5 * masks / deviation**2
    return {
        "posterior_predictive": {"y": noise.rvs(random_state=random)[None]},
        "log_likelihood": {name: values[None] for name, values in likelihood.items()},
        "observed_data": {"y": y.copy()},
    }
