"""Dropout as a constraint of maximum entropy: closed form for linear regression, a handler for any Pyro model."""

from pyro_dropout.entropic.distribution import NormalInverseGamma
from pyro_dropout.entropic.handler import entropic_dropout
from pyro_dropout.entropic.regression import EntropicLinearRegression, regression_path

__all__ = ["EntropicLinearRegression", "NormalInverseGamma", "entropic_dropout", "regression_path"]
