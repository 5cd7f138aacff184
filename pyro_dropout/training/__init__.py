"""Training: steps without Python, many networks in one step, runs that go on where they were interrupted.

Stock ``pyro.infer.SVI`` trains every guide of this package. ``CompiledSVI`` (``compiled``) is the same with model,
guide, loss, gradient and the optimiser's update traced once into one graph that is compiled; ``ReplicatedSVI``
(``replicates``) maps that graph over many networks. ``checkpoint`` saves what training goes on from;
``distributed`` is for several processes, each with rows of its own. The machinery is
in ``_steps``, in this order: ``arguments`` (what is refused), ``randomness`` (numbers as a function of a key),
``graph`` (what a function does to tensors), ``library`` (a graph that another process compiles, with ``maker``),
``update`` (an optimiser's), ``state`` (what model and guide hold), ``program`` (a whole step), ``differences`` and
``shared`` (the step of many replicates), ``messages``. The compiler and its tracing are called in ``internals`` and in
``maker`` alone, as PyTorch may change them.
"""

from pyro_dropout.training.checkpoint import load_checkpoint, save_checkpoint
from pyro_dropout.training.compiled import CompiledSVI
from pyro_dropout.training.distributed import (
    DistributedSVI,
    distributed_loss,
    distributed_step,
    load_distributed,
    save_distributed,
)
from pyro_dropout.training.replicates import ReplicatedSVI

__all__ = [
    "CompiledSVI",
    "DistributedSVI",
    "ReplicatedSVI",
    "distributed_loss",
    "distributed_step",
    "load_checkpoint",
    "load_distributed",
    "save_checkpoint",
    "save_distributed",
]
