"""Dropout as an inference method in Pyro."""

from importlib.metadata import version

from pyro_dropout.arviz import from_pyro_svi
from pyro_dropout.checkpoint import load_checkpoint, save_checkpoint
from pyro_dropout.compiled import CompiledSVI, ReplicatedSVI
from pyro_dropout.conversion import from_torch, to_torch
from pyro_dropout.distributions import Mask
from pyro_dropout.estimators import ARM, DisARM, GradientEstimator, Reinforce
from pyro_dropout.guides import AutoBernoulliDropout, AutoConcreteDropout, DropoutGuide
from pyro_dropout.initialization import init_to_module
from pyro_dropout.losses import TraceDropout_ELBO
from pyro_dropout.module import BayesianModule
from pyro_dropout.predictive import DropoutPredictive
from pyro_dropout.renyi import RenyiDropout_ELBO
from pyro_dropout.weight import MaskedUnits

__version__ = version("pyro-dropout")

__all__ = [
    "ARM",
    "AutoBernoulliDropout",
    "AutoConcreteDropout",
    "BayesianModule",
    "CompiledSVI",
    "DisARM",
    "DropoutGuide",
    "DropoutPredictive",
    "GradientEstimator",
    "Mask",
    "MaskedUnits",
    "Reinforce",
    "RenyiDropout_ELBO",
    "ReplicatedSVI",
    "TraceDropout_ELBO",
    "__version__",
    "from_pyro_svi",
    "from_torch",
    "init_to_module",
    "load_checkpoint",
    "save_checkpoint",
    "to_torch",
]
