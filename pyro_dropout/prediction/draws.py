"""Draws of a guide in a plate of their own, left of the model's, and the model's run of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from pyro_dropout._modes import forked_rng
from pyro_dropout._sites import plate_nesting, sample_sites

PLATE = "_draws"


def draws_plate(number: int, nesting: int) -> Any:
    """The plate of draws, for a model or a guide whose plates take ``nesting`` dimensions."""
    return pyro.plate(PLATE, number, dim=-nesting - 1)


def drawn(
    guide: Callable, number: int, parallel: bool, args: Any, kwargs: Any, nesting: int | None = None
) -> dict[str, Tensor]:
    """Draws from the guide by site, ``[number, ...]``, in one run or in as many.

    :param nesting: dimensions that its plates take, where that is known; else a run tells.
    """
    with torch.no_grad(), poutine.block():
        if not parallel:
            runs = [poutine.trace(guide).get_trace(*args, **kwargs) for _ in range(number)]
            names = [name for name, site in sample_sites(runs[0]) if not site["infer"].get("is_auxiliary")]
            return {name: torch.stack([run.nodes[name]["value"] for run in runs]) for name in names}
        if nesting is None:
            with forked_rng():
                nesting = plate_nesting(poutine.trace(guide).get_trace(*args, **kwargs))
        trace = poutine.trace(draws_plate(number, nesting)(guide)).get_trace(*args, **kwargs)
        return {n: site["value"] for n, site in sample_sites(trace) if not site["infer"].get("is_auxiliary")}


def replayed(model: Callable, guide: Callable, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Traces of the guide, and of the model with what the guide drew."""
    gradients = torch.is_grad_enabled()
    # Out of inference mode, as the guide keeps copies of its parameters; that alone would switch gradients on.
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    return guide_trace, poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
