"""Weights that wear a mask: ``W = loc · diag(z) / keep``, of input units, or ``diag(z) · loc / keep``, of output units.

A draw from a dropout posterior is the pair of a mean weight and a mask, never their dense product, so that a thousand
draws of a network cost a thousand masks. ``weight`` has this structured tensor; ``units`` says which of its entries a
mask's entry switches; ``shapes`` how its batch dimensions (draws, plates of networks, data) stand to its input's. What
PyTorch's functions do with it is registered by ``@implements``, a file for each kind: ``_linear``, ``_convolution``,
``_elementwise`` (which share ``_bias``), ``_recurrent``, ``_batch``; a new layer is one more such file, imported here.
``delta`` is the distribution that a guide samples it from, ``kl`` what it costs under a prior, exactly, as a weight
takes two values; ``plates`` tells whether masks per datum met the data. The layers know nothing of guides, losses or
models.
"""

import pyro_dropout.weights._batch
import pyro_dropout.weights._convolution
import pyro_dropout.weights._elementwise
import pyro_dropout.weights._linear
import pyro_dropout.weights._recurrent  # noqa: F401  these register what they implement
from pyro_dropout.weights.delta import MaskedDelta
from pyro_dropout.weights.kl import point_cross_entropy, quantised_cross_entropy
from pyro_dropout.weights.units import MaskedUnits
from pyro_dropout.weights.weight import MaskedWeight, Switch, implements

__all__ = [
    "MaskedDelta",
    "MaskedUnits",
    "MaskedWeight",
    "Switch",
    "implements",
    "point_cross_entropy",
    "quantised_cross_entropy",
]
