"""Rates of all dropout guides that a guide or its modules hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pyro_dropout._checks import check_functions
from pyro_dropout.guides._state import value_at
from pyro_dropout.guides.base import DropoutGuide
from pyro_dropout.weights.units import MaskedUnits


def zero_rates(modules: Iterable[nn.Module]) -> list[tuple[DropoutGuide, str, Tensor]]:
    """Fixed rates that are 0, by guide and site: what is written into a graph, as their weights have no masks.

    Example::

        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule
        >>> import torch
        >>> net = nn.Sequential()
        >>> net.first, net.last = nn.Linear(3, 3), nn.Linear(3, 1)
        >>> guide = AutoBernoulliDropout(BayesianModule(net), rate={"first.weight": 0.0, "last.weight": 0.5})
        >>> _ = guide(torch.zeros(5, 3))
        >>> [(site, rate) for _, site, rate in zero_rates(guide.modules())]
        [('first.weight', tensor([0.]))]
    """
    guides = [module for module in modules if isinstance(module, DropoutGuide)]
    sites = [(guide, name) for guide in guides for name, zero in guide._at_zero.items() if zero]
    return [(guide, name, value_at(guide, "rate_buffers." + name)) for guide, name in sites]


def rates_of(guide: Any) -> dict[str, Tensor]:
    """Rates of every dropout guide inside this one, by site; none of what is no dropout guide.

    :param guide: an ``AutoGuideList``, say.

    Example::

        >>> import torch
        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule
        >>> guide = AutoBernoulliDropout(BayesianModule(nn.Linear(3, 1)), rate=0.25)
        >>> _ = guide(torch.zeros(5, 3))
        >>> rates_of(nn.ModuleList([guide]))
        {'weight': tensor(0.2500)}
    """
    return {name: rate for each in _guides_in(guide) for name, rate in each.rates().items()}


def units_of(guide: Any) -> dict[str, MaskedUnits]:
    """Which units of its weight each mask of these guides switches, by mask.

    :param guide: as of :func:`rates_of`.

    Example::

        >>> import torch
        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule
        >>> guide = AutoBernoulliDropout(BayesianModule(nn.Linear(3, 1)), rate=0.25, units="output")
        >>> _ = guide(torch.zeros(5, 3))
        >>> units_of(guide)["output"].dim
        0
    """
    return {name: units for each in _guides_in(guide) for name, units in each.units.items()}


def _guides_in(guide: Any) -> list[DropoutGuide]:
    check_functions(guide=guide)
    modules = guide.modules() if isinstance(guide, nn.Module) else ()
    return [module for module in modules if isinstance(module, DropoutGuide)]
