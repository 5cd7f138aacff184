"""Dropout as an inference method in Pyro."""

from pyro_dropout.arviz import from_pyro_svi
from pyro_dropout.compiled import CompiledSVI
from pyro_dropout.conversion import from_torch, to_torch
from pyro_dropout.estimators import ARM, DisARM, Reinforce
from pyro_dropout.guides import AutoBernoulliDropout, AutoConcreteDropout
from pyro_dropout.initialization import init_to_module
from pyro_dropout.losses import TraceDropout_ELBO
from pyro_dropout.module import BayesianModule
from pyro_dropout.predictive import DropoutPredictive
from pyro_dropout.renyi import RenyiDropout_ELBO

__all__ = [
    "ARM",
    "AutoBernoulliDropout",
    "AutoConcreteDropout",
    "BayesianModule",
    "CompiledSVI",
    "DisARM",
    "DropoutPredictive",
    "Reinforce",
    "RenyiDropout_ELBO",
    "TraceDropout_ELBO",
    "from_pyro_svi",
    "from_torch",
    "init_to_module",
    "to_torch",
]
