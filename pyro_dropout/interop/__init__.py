"""Ways in and out: PyTorch networks that have dropout, ArviZ.

``from_torch`` takes a trained network with dropout layers to a Pyro model and its dropout posterior, with the network's
own weights and rates; ``to_torch`` writes a posterior back into a plain network whose training mode draws from it. The
network's graphs in both modes (``_graphs``) must differ in nothing random but dropout (``_randomness``). Which weight a
dropout masks is found by following its mask (``_dataflow``) through what each operation does to it (``_operations``),
at sizes that tell dimensions apart (``_sizes``); what is no mask of a weight is refused, with the names of the layers.
Weights without dropout take rates by name or type (``_given_rates``). ``arviz`` exports a fitted SVI, posterior,
predictions and pointwise log-likelihoods from the same draws, to ``InferenceData`` or ``DataTree`` (``groups``).
``export`` makes a plain module of functions that were kept, with their masks as buffers, for ``torch.export`` and ONNX.
Nothing here is needed to train.
"""

from pyro_dropout.interop.arviz import from_pyro_svi
from pyro_dropout.interop.export import export
from pyro_dropout.interop.from_torch import from_torch
from pyro_dropout.interop.to_torch import to_torch

__all__ = ["export", "from_pyro_svi", "from_torch", "to_torch"]
