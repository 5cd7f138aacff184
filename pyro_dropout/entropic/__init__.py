"""Dropout as a constraint of maximum entropy, instead of a variational family.

The posterior must do well when weights drop out, while data say nothing about which do (Herlau, Mørup & Schmidt). For
linear regression it is conjugate, so exact and sampled exactly: ``regression`` has the scikit-learn estimator, ``path``
a grid of them, ``distribution`` the posterior, the normal-inverse-gamma as a Pyro distribution that can be the next
model's prior. Underneath, ``_design`` are rows of covariates, dense or sparse, ``_data`` what is kept of chunks of
them, ``_precision`` the matrix Λ by its factor, ``_rows`` the same where rows are fewer than columns, by products with
them (``_gradients``) and a factor of their number, ``_fitted`` what a fit leaves, ``_groups`` what ArviZ takes of it,
``_rate`` drop rates.
``handler`` puts the constraint on any other Pyro model, for NUTS and SVI: its observed log-likelihood becomes the
expectation over masks. Nothing here rescales by 1 / keep, as the paper does not.
"""

from pyro_dropout.entropic.distribution import NormalInverseGamma
from pyro_dropout.entropic.handler import entropic_dropout
from pyro_dropout.entropic.path import regression_path
from pyro_dropout.entropic.regression import EntropicLinearRegression, PosteriorDraws

__all__ = [
    "EntropicLinearRegression",
    "NormalInverseGamma",
    "PosteriorDraws",
    "entropic_dropout",
    "regression_path",
]
