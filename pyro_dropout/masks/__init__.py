"""Masks: which units of a weight are switched off.

A mask is a vector ``z`` with one entry for each unit, 1 to keep it and 0 to drop it, drawn with probability
``rate`` of dropping. ``distributions`` has the hard mask (Bernoulli) and the relaxed one (Concrete), both Pyro
distributions with the entropy that the KL needs. A guide draws one mask for all data, which makes its draw a function;
a loss may draw one for each datum instead, an estimator of lower variance: ``datum`` has the mask that is not drawn
until a layer sees the data. Where rates of hard masks are learned, several masks are drawn jointly, an antithetic pair
say, and their losses make a gradient: ``estimators`` has the rules, and calls the masks of one joint draw its
*members*. ``messengers`` is how a loss turns a guide's draws into either, by Pyro's own mechanism.
A user's mask is a subclass of ``Mask``, a user's estimator one of ``GradientEstimator``.
"""

from pyro_dropout.masks.datum import DatumMask, LeafSource
from pyro_dropout.masks.distributions import BernoulliMask, ConcreteMask, Mask
from pyro_dropout.masks.estimators import ARM, DisARM, GradientEstimator, Reinforce
from pyro_dropout.masks.messengers import DatumMasks, JointDraw, LeafMasks, MemberMask, Members

__all__ = [
    "ARM",
    "BernoulliMask",
    "ConcreteMask",
    "DatumMask",
    "DatumMasks",
    "DisARM",
    "GradientEstimator",
    "JointDraw",
    "LeafMasks",
    "LeafSource",
    "Mask",
    "MemberMask",
    "Members",
    "Reinforce",
]
