"""How a loss draws masks: one per datum instead of one per draw, several at once where rates are learned.

Between guides and losses in the chain weight → distributions → guides → losses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dropout.masks.distributions import BernoulliMask, ConcreteMask
from pyro_dropout.masks.estimators import GradientEstimator
from pyro_dropout.weights.weight import DatumMask


class DatumMasks(Messenger):
    """Leaves a guide's masks undrawn, so that each layer draws one mask per datum when it sees the data.

    Example::

        >>> from torch import nn
        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule
        >>> model = BayesianModule(nn.Linear(3, 1))
        >>> guide = AutoBernoulliDropout(model, rate=0.5)
        >>> with DatumMasks():
        ...     weight = guide(torch.zeros(8, 3))["weight"]
        >>> _ = nn.functional.linear(torch.ones(8, 3), weight)
        >>> weight.mask.draw((8,)).shape
        torch.Size([8, 3])
    """

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], BernoulliMask | ConcreteMask | MemberMask) and msg["value"] is None:
            msg["value"] = DatumMask(msg["fn"])
            msg["done"] = True


class Draw(NamedTuple):
    """A joint draw of an estimator's members: ``z`` has shape ``[members, *shape, units]``."""

    mask: BernoulliMask
    z: Tensor
    noise: Any


class Members(Messenger):
    """Draws the members of an estimator at every mask, in a dimension left of all plates, and keeps the draws.

    Masks that are not learned are the same for all members, as every other latent is: members differ in what is to
    be learned alone.

    :param estimator: a :class:`~pyro_dropout.masks.estimators.GradientEstimator`.
    :param max_plate_nesting: number of plate dimensions, those of the particles included.
    """

    def __init__(self, estimator: GradientEstimator, max_plate_nesting: int) -> None:
        super().__init__()
        self.estimator, self.max_plate_nesting = estimator, max_plate_nesting
        self.draws: list[Draw] = []

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, BernoulliMask | ConcreteMask) and msg["value"] is None:
            pad = self.max_plate_nesting - len(fn.batch_shape)
            if pad < 0:
                raise ValueError(
                    f"mask {msg['name']!r} is in {len(fn.batch_shape)} plates, more than the {self.max_plate_nesting}"
                    " of the loss's first model (or its max_plate_nesting): use a new loss for a model of another depth"
                )
            plates = torch.Size((self.estimator.members, *(1,) * pad, *fn.batch_shape))
            msg["fn"] = MemberMask(fn, self.estimator, plates, self.draws)


class MemberMask:
    """A mask distribution that draws all members of an estimator at once: ``[members, *plates, units]``."""

    has_rsample, event_dim = True, 1
    event_shape: torch.Size

    def __init__(
        self,
        mask: BernoulliMask | ConcreteMask,
        estimator: GradientEstimator,
        plates: torch.Size,
        draws: list[Draw],
        batch_shape: torch.Size | None = None,
    ) -> None:
        self.mask, self.estimator, self.plates, self.draws = mask, estimator, plates, draws
        self.batch_shape = plates if batch_shape is None else batch_shape
        self.event_shape = mask.event_shape

    def expand(self, batch_shape: tuple[int, ...]) -> MemberMask:
        return MemberMask(self.mask, self.estimator, self.plates, self.draws, torch.Size(batch_shape))

    @property
    def learned(self) -> bool:
        return isinstance(self.mask, BernoulliMask) and self.mask.learned

    def entropy(self) -> Tensor:
        return self.mask.entropy()

    def __call__(self) -> Tensor:
        shape, outer = self.batch_shape, self.plates[:-1]
        if shape[: len(outer)] != outer and shape[:1] == (outer.numel(),):
            shape = outer + shape[1:]  # BayesianModule ran the plates' networks in turn, and flattened them
        if isinstance(self.mask, BernoulliMask) and self.learned:
            z, noise = self.estimator.sample(self.mask, shape[1:])
            self.draws.append(Draw(self.mask, z, noise))
        else:
            z = self.mask.expand(shape[1:])().expand(*shape, self.mask.units)
        return z.reshape(*self.batch_shape, self.mask.units)
