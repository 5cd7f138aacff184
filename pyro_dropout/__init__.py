"""Dropout as an inference method in Pyro."""

from pyro_dropout.arviz import from_pyro_svi
from pyro_dropout.guides import AutoBernoulliDropout, AutoConcreteDropout
from pyro_dropout.initialization import init_to_module
from pyro_dropout.losses import TraceDropout_ELBO
from pyro_dropout.module import BayesianModule

__all__ = [
    "AutoBernoulliDropout",
    "AutoConcreteDropout",
    "BayesianModule",
    "TraceDropout_ELBO",
    "from_pyro_svi",
    "init_to_module",
]
