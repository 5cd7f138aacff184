"""Rates of all dropout guides that a guide or its modules hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pyro_dropout._checks import check_functions
from pyro_dropout.guides._state import value_at
from pyro_dropout.guides.base import DropoutGuide


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
    check_functions(guide=guide)
    modules = guide.modules() if isinstance(guide, nn.Module) else ()
    guides = [module for module in modules if isinstance(module, DropoutGuide)]
    return {name: rate for each in guides for name, rate in each.rates().items()}
