"""Draws of a posterior as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class PosteriorDraws(NamedTuple):
    """Joint posterior draws: coefficients (1-f) w ``[draws, p]``, intercepts and noise variances ``[draws]``.

    Of several outputs they are ``[draws, outputs, p]`` and ``[draws, outputs]``.

    Example::

        >>> from pyro_dropout.entropic import EntropicLinearRegression
        >>> x = np.random.default_rng(0).normal(size=(20, 2))
        >>> draws = EntropicLinearRegression().fit(x, x @ [1.0, -1.0]).sample(5, random_state=0)
        >>> isinstance(draws, PosteriorDraws), draws.coef.shape, draws.noise_variance.shape
        (True, (5, 2), (5,))
    """

    coef: np.ndarray
    intercept: np.ndarray
    noise_variance: np.ndarray
