"""Whether guide and model take the same rows of a subsampled plate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.util import site_is_subsample

from pyro_dropout._modes import forked_rng, unchanged_buffers


def check_subsamples(guide_trace: Any, model: Callable, args: Any, kwargs: Any) -> None:
    """Raises where the guide drew an index of its own for a plate of latents whose index the model is given.

    A replay would put the guide's index into the model, whose data are already those of another. Two runs of the model
    by itself tell an index that is given from one that it draws.

    :raises ValueError: naming the plate.
    """
    latents = [s for s in guide_trace.nodes.values() if s["type"] == "sample" and not site_is_subsample(s)]
    around = {frame.name for site in latents for frame in site["cond_indep_stack"]}
    drawn = {n: s["value"] for n, s in guide_trace.nodes.items() if n in around and s["type"] == "sample"}
    if not drawn:
        return
    with forked_rng(), unchanged_buffers(), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        first, second = (poutine.trace(model).get_trace(*args, **kwargs) for _ in range(2))
    for name, index in drawn.items():
        if name not in first.nodes or name not in second.nodes:
            continue
        given, again = (trace.nodes[name]["value"] for trace in (first, second))
        if torch.equal(given, again) and not torch.equal(given, index):
            raise ValueError(
                f"the guide drew an index of its own for plate {name!r}, whose index the model is given "
                "(subsample=...): latents of each datum would meet other data; give the guide create_plates, a "
                "function of the model's arguments that returns this plate with the same subsample"
            )
