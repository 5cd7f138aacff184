"""How a loss draws masks: one per datum instead of one per draw, several at once where rates are learned."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dropout._checks import check_counts, checked_shape, said
from pyro_dropout.masks._joint import check_mask
from pyro_dropout.masks.datum import DatumMask, LeafSource
from pyro_dropout.masks.distributions import Mask
from pyro_dropout.masks.estimators import GradientEstimator


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
        if isinstance(msg["fn"], Mask) and msg["value"] is None:
            msg["value"] = DatumMask(msg["fn"])
            msg["done"] = True


class LeafMasks(Messenger):
    """Masks per datum with real numbers that require gradients: how a dependence of rows on other rows' masks is seen.

    Units that are never dropped have the mask 1.

    Example::

        >>> from torch import nn
        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule
        >>> model = BayesianModule(nn.Linear(3, 1))
        >>> guide = AutoBernoulliDropout(model, rate=0.5)
        >>> with LeafMasks() as masks:
        ...     weight = guide(torch.zeros(8, 3))["weight"]
        >>> _ = nn.functional.linear(torch.ones(8, 3), weight)
        >>> [leaf.shape for leaf in masks.leaves]
        [torch.Size([8, 3])]
    """

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, LeafSource] = {}

    @property
    def leaves(self) -> list[Tensor]:
        """Those that layers have drawn so far, ``[*plates, rows, units]``."""
        return [leaf for source in self.sources.values() for leaf in source.leaves]

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, Mask) and msg["value"] is None:
            source = self.sources[msg["name"]] = LeafSource()
            never = None if fn.rate.requires_grad else fn.rate == 0  # such a unit is no matter of chance
            msg["value"], msg["done"] = DatumMask(source.of(fn.units, fn.keep, fn.batch_shape, never)), True


class JointDraw(NamedTuple):
    """One draw of all members of an estimator: ``z`` has shape ``[members, *shape, units]``.

    Example::

        >>> from pyro_dropout.masks import ARM, BernoulliMask
        >>> mask = BernoulliMask(logits=torch.zeros(1, requires_grad=True), units=2)
        >>> JointDraw(mask, *ARM().sample(mask, torch.Size([5]))).z.shape
        torch.Size([2, 5, 2])
    """

    mask: Mask
    z: Tensor
    noise: Any


class Members(Messenger):
    """Draws the members of an estimator at every mask, in a dimension left of all plates, and keeps the draws.

    Masks that are not learned are the same for all members, as every other latent is: members differ in what is to
    be learned alone.

    :param estimator: a :class:`~pyro_dropout.GradientEstimator`.
    :param max_plate_nesting: number of plate dimensions, those of the particles included.

    Example::

        >>> from torch import nn
        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule, DisARM
        >>> model = BayesianModule(nn.Linear(3, 1))
        >>> guide = AutoBernoulliDropout(model, rate=0.5, learnable=True)
        >>> with Members(DisARM(), max_plate_nesting=1) as members:
        ...     weight = guide(torch.zeros(8, 3))["weight"]
        >>> weight.mask.shape, len(members.draws)
        (torch.Size([2, 1, 3]), 1)
    """

    def __init__(self, estimator: GradientEstimator, max_plate_nesting: int) -> None:
        super().__init__()
        _check_estimator(estimator)
        check_counts(least=0, max_plate_nesting=max_plate_nesting)
        self.estimator, self.max_plate_nesting = estimator, max_plate_nesting
        self.draws: list[JointDraw] = []

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, Mask) and msg["value"] is None:
            pad = self.max_plate_nesting - len(fn.batch_shape)
            if pad < 0:
                raise ValueError(
                    f"mask {msg['name']!r} is in {len(fn.batch_shape)} plates, more than the {self.max_plate_nesting}"
                    " of the loss's first model (or its max_plate_nesting): use a new loss for a model of another depth"
                )
            plates = torch.Size((self.estimator.members, *(1,) * pad, *fn.batch_shape))
            msg["fn"] = MemberMask(fn, self.estimator, plates, self.draws)


class MemberMask(Mask):
    """A mask distribution that draws all members of an estimator at once: ``[members, *plates, units]``.

    :param mask: the distribution of one member.
    :param estimator: draws them jointly, if the mask's rates are learned.
    :param batch_shape: members and plates.
    :param draws: gets what is drawn.

    Example::

        >>> from pyro_dropout.masks import ARM, BernoulliMask
        >>> mask = BernoulliMask(logits=torch.zeros(1, requires_grad=True), units=3)
        >>> draws = []
        >>> MemberMask(mask, ARM(), torch.Size([2, 1]), draws)().shape, len(draws)
        (torch.Size([2, 1, 3]), 1)
    """

    has_rsample = True  # for Pyro's checks: what gradient there is, the estimator makes

    def __init__(
        self, mask: Mask, estimator: GradientEstimator, batch_shape: torch.Size, draws: list[JointDraw]
    ) -> None:
        check_mask(mask)
        _check_estimator(estimator)
        if not isinstance(draws, list):
            raise TypeError(f"draws must be a list, which gets what is drawn, but found {said(draws)}")
        self.of_one, self.estimator, self.draws, self.units = mask, estimator, draws, mask.units
        self._rates = mask.rate, mask.keep  # known before it is drawn, so that drawing it again is the same work
        self._batch_shape, self._event_shape = checked_shape("batch_shape", batch_shape), mask.event_shape

    def expand(self, batch_shape: Any, _instance: Any = None) -> MemberMask:
        return MemberMask(self.of_one, self.estimator, batch_shape, self.draws)

    @property
    def rate(self) -> Tensor:
        return self.of_one.rate

    @property
    def keep(self) -> Tensor:
        return self.of_one.keep

    @property
    def logits(self) -> Tensor:
        return self.of_one.logits

    @property
    def learned(self) -> bool:
        return self.of_one.learned

    def entropy(self) -> Tensor:
        return self.of_one.entropy()

    def __call__(self, sample_shape: Any = torch.Size()) -> Tensor:
        if sample_shape:
            raise NotImplementedError(f"members are drawn together, once, but found sample_shape={tuple(sample_shape)}")
        members, *shape = self.batch_shape
        if not self.learned:
            return self.of_one.expand(torch.Size(shape))().expand(members, *shape, self.units)
        z, noise = self.estimator.sample(self.of_one, torch.Size(shape))
        self.draws.append(JointDraw(self.of_one, z, noise))
        return z


def _check_estimator(estimator: Any) -> None:
    if not isinstance(estimator, GradientEstimator):
        raise TypeError(f"estimator must be a GradientEstimator, such as DisARM(), but found {said(estimator)}")
