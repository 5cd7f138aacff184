"""Dropout posteriors as Pyro AutoGuides.

For each weight site of a model a guide samples an auxiliary mask site, ``net.0.weight.mask``, and then the weight from
the point mass at the masked weight; a layer whose output units are masked has the mask ``net.0.output.mask``, which its
bias shares (``_sides`` says which masks there are). All other latents go to a guide of the user's choice, ``AutoDelta``
by default. So masks can be traced, replayed and conditioned on, and stock losses have the right gradient by themselves.
A weight whose rate is fixed at 0 has no mask. ``base`` has what the guides share, ``auto`` the two families: hard masks
(``AutoBernoulliDropout``, at fixed or learned rates) and relaxed masks (``AutoConcreteDropout``), ``rates`` what a
whole guide's are. ``initialization`` is where they start: the network's own weights. Parameters are made at the first
call, as of every AutoGuide; ``_state`` lets a state be loaded before it.
"""

from pyro_dropout.guides.auto import AutoBernoulliDropout, AutoConcreteDropout
from pyro_dropout.guides.base import DropoutGuide
from pyro_dropout.guides.initialization import init_to_module
from pyro_dropout.guides.rates import rates_of, units_of, zero_rates

__all__ = [
    "AutoBernoulliDropout",
    "AutoConcreteDropout",
    "DropoutGuide",
    "init_to_module",
    "rates_of",
    "units_of",
    "zero_rates",
]
