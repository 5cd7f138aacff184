"""Dropout as an inference method in Pyro."""

from importlib.metadata import version

from pyro_dropout.interop.arviz import from_pyro_svi
from pyro_dropout.training.checkpoint import load_checkpoint, save_checkpoint
from pyro_dropout.training import CompiledSVI, ReplicatedSVI
from pyro_dropout.interop.from_torch import from_torch, to_torch
from pyro_dropout.masks.distributions import Mask
from pyro_dropout.masks.estimators import ARM, DisARM, GradientEstimator, Reinforce
from pyro_dropout.guides.base import AutoBernoulliDropout, AutoConcreteDropout, DropoutGuide
from pyro_dropout.guides.initialization import init_to_module
from pyro_dropout.losses.elbo import TraceDropout_ELBO
from pyro_dropout.nn.module import BayesianModule
from pyro_dropout.prediction.predictive import DropoutPredictive
from pyro_dropout.losses.renyi import RenyiDropout_ELBO
from pyro_dropout.weights.weight import MaskedUnits

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
