"""Dropout as a constraint of maximum entropy, instead of a variational family.

The posterior must do well when weights drop out, while data say nothing about which do (Herlau, Mørup & Schmidt). For
linear regression it is conjugate, so exact and sampled exactly: ``regression`` has the scikit-learn estimator, ``path``
a grid of them, ``draws`` what it samples, ``distribution`` the posterior, the normal-inverse-gamma as a Pyro
distribution that can be the next model's prior.

Underneath, on the way of data: ``_chunk`` are rows that arrive together, with their weights, ``_design`` the products
with covariates, dense or sparse, ``_data`` what is kept of chunks, ``_prior`` the parameters and ``_rate`` drop rates,
``_solve`` makes of both the posterior, ``_fitted``. Its matrix Λ is in ``_precision`` by its factor, and where rows are
fewer than columns in ``_rows``, by products with them (``_gradients``) and a factor of their number. ``_intervals`` and
``_groups`` (what ArviZ takes) are asked of it.

``handler`` puts the constraint on any other Pyro model, for NUTS and SVI: its observed log-likelihood becomes the
expectation over masks. Nothing here rescales by 1 / keep, as the paper does not.
"""

from pyro_dropout.entropic.distribution import NormalInverseGamma
from pyro_dropout.entropic.draws import PosteriorDraws
from pyro_dropout.entropic.handler import entropic_dropout
from pyro_dropout.entropic.path import regression_path
from pyro_dropout.entropic.regression import EntropicLinearRegression

__all__ = [
    "EntropicLinearRegression",
    "NormalInverseGamma",
    "PosteriorDraws",
    "entropic_dropout",
    "regression_path",
]
