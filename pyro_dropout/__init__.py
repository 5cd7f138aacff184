"""Dropout as an inference method in Pyro.

A mask is drawn (``masks``), a weight wears it (``weights``); a network is made of such weights (``nn``), a guide
samples them (``guides``), a loss scores them (``losses``), draws predict (``prediction``); steps train (``training``),
others take them in and out (``interop``); numbers judge (``metrics``) and mend (``calibration``). ``entropic`` takes
dropout as a constraint instead.
"""

from importlib.metadata import version

from pyro_dropout.guides import AutoBernoulliDropout, AutoConcreteDropout, DropoutGuide, init_to_module
from pyro_dropout.interop import export, from_pyro_svi, from_torch, to_torch
from pyro_dropout.losses import RenyiDropout_ELBO, SemiImplicitDropout_ELBO, TraceDropout_ELBO
from pyro_dropout.masks import ARM, DisARM, GradientEstimator, Mask, Reinforce
from pyro_dropout.nn import AuxiliaryDropout, BayesianModule
from pyro_dropout.prediction import DropoutPredictive
from pyro_dropout.training import (
    CompiledSVI,
    DistributedSVI,
    ReplicatedSVI,
    distributed_loss,
    distributed_step,
    load_checkpoint,
    load_distributed,
    save_checkpoint,
    save_distributed,
)
from pyro_dropout.weights import MaskedUnits

__version__ = version("pyro-dropout")

__all__ = [
    "ARM",
    "AutoBernoulliDropout",
    "AutoConcreteDropout",
    "AuxiliaryDropout",
    "BayesianModule",
    "CompiledSVI",
    "DisARM",
    "DistributedSVI",
    "DropoutGuide",
    "DropoutPredictive",
    "GradientEstimator",
    "Mask",
    "MaskedUnits",
    "Reinforce",
    "RenyiDropout_ELBO",
    "ReplicatedSVI",
    "SemiImplicitDropout_ELBO",
    "TraceDropout_ELBO",
    "__version__",
    "distributed_loss",
    "distributed_step",
    "export",
    "from_pyro_svi",
    "from_torch",
    "init_to_module",
    "load_checkpoint",
    "load_distributed",
    "save_checkpoint",
    "save_distributed",
    "to_torch",
]
