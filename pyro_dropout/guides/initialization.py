"""Where guides start: an initialisation strategy as Pyro's own are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pyro_dropout._checks import check_functions, said
from pyro_dropout._sites import has_real_support


def init_to_module(site: Any = None, fallback: Any = None) -> Any:
    """Initialisation strategy: a :class:`~pyro_dropout.BayesianModule` weight starts from the module's own value.

    As Pyro's other strategies (``init_to_median``, ...) for ``init_loc_fn`` of an AutoGuide or ``init_strategy``
    of a kernel. Without a module's value, a site with two or more event dimensions starts as ``torch.nn`` would
    start a layer, uniform on ``±1/sqrt(fan-in)``: a prior draw with unit scale is a poor start for a network.

    :param fallback: strategy for all other sites; without one they keep their guide's own.

    Example::

        >>> from pyro.infer.autoguide import AutoNormal, init_to_median
        >>> from torch import nn
        >>> from pyro_dropout import BayesianModule
        >>> model = BayesianModule(nn.Linear(2, 1))
        >>> guide = AutoNormal(model, init_loc_fn=init_to_module(fallback=init_to_median))
        >>> _ = guide(torch.zeros(4, 2))
        >>> bool((guide.median()["weight"] == model.net.weight).all())
        True
    """
    if fallback is not None:
        check_functions(fallback=fallback)
    if site is None:
        return lambda site: init_to_module(site, fallback)
    if not isinstance(site, Mapping):
        raise TypeError(f"site must be a sample site of a trace, but found {said(site)}")
    initial = site["infer"].get("initial_value")
    if initial is not None:
        shape = site["fn"].shape()
        return initial.expand(shape).clone() if initial.shape != shape else initial.clone()
    if site["fn"].event_dim >= 2 and has_real_support(site["fn"]):
        event = site["fn"].event_shape
        bound = (event.numel() / event[0]) ** -0.5
        return torch.empty_like(site["fn"].sample()).uniform_(-bound, bound)
    return fallback(site) if fallback is not None else None
