"""What the losses refuse, with the reason: data that masks per datum cannot serve, numbers that are not finite.

Beside the losses in the chain weight → distributions → guides → losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_dropout.distributions import MaskedDelta
from pyro_dropout.weight import DatumMask


def plates_of_weights(guide_trace: Any) -> set[str]:
    """Names of the plates that hold draws and networks, not data."""
    return {f.name for site in _weights(guide_trace) for f in site["cond_indep_stack"]} | {"num_particles_vectorized"}


def check_data_plates(model_sites: dict[str, Any], guide_trace: Any, members: int) -> None:
    """One mask per datum needs a likelihood that factorises over data, and layers that see the data first."""
    weights = _weights(guide_trace)
    names = plates_of_weights(guide_trace)
    around = {f for site in weights for f in site["cond_indep_stack"]}
    sizes = {}
    for name, site in model_sites.items():
        if weights and site["is_observed"]:
            data = {f.name: f.size for f in site["cond_indep_stack"] if f.name not in names}
            if not data:
                raise ValueError(
                    f"observed site {name!r} is in no data plate, but masks per datum need to know what one datum is: "
                    f'put it into `with pyro.plate("data", N)`, or use masks="draw"'
                )
            sizes.update(data)
    known = {1, members, *sizes.values(), *(f.size for f in around)}
    for site in weights:
        mask = site["fn"].weight.mask
        if not isinstance(mask, DatumMask):
            continue
        masks = list(mask.entries.values()) or [mask]
        drawn = {size for m in masks for shape in m.draws for size in shape}
        if not drawn <= known:
            raise ValueError(
                f"weight {site['name']!r} drew masks for {min(drawn - known)} data, but the data plates are "
                f'{sizes}: the first dimension of a layer\'s input must be the data, or use masks="draw"'
            )


def without_members(trace: Any, max_plate_nesting: int) -> Any:
    """The trace as Pyro's checks expect it: no dimension left of the plates."""
    trace = trace.copy()
    for name, site in trace.nodes.items():
        fn = site.get("fn")
        if site["type"] == "sample" and len(getattr(fn, "batch_shape", ())) > max_plate_nesting:
            trace.nodes[name] = {**site, "fn": _Shape(fn, max_plate_nesting)}
    return trace


class _Shape:
    def __init__(self, fn: Any, max_plate_nesting: int) -> None:
        self.event_dim = fn.event_dim
        self._shape = fn.batch_shape[len(fn.batch_shape) - max_plate_nesting :] + fn.event_shape

    def shape(self, *args: Any, **kwargs: Any) -> torch.Size:
        return self._shape


def _weights(guide_trace: Any) -> list[Any]:
    return [site for site in guide_trace.nodes.values() if isinstance(site.get("fn"), MaskedDelta)]


def finite_gradients(parameters: dict[str, Tensor]) -> bool:
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if not gradients:
        return True
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients, float("inf"))).sum()))


def explain_gradients(parameters: dict[str, Tensor], culprit: str | None) -> str:
    broken = [n for n, p in parameters.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    why = culprit or "a function may have no slope where it was evaluated"
    return f"the loss is finite, but the gradient of {', '.join(broken)} is not: {why}; parameters were not changed"


def find_nonfinite(model: Any, guide: Any, args: Any, kwargs: Any) -> str | None:
    """Names the argument or parameter that has NaN or infinite entries."""
    named = [(f"argument {i}", a) for i, a in enumerate(args)] + [(f"argument {k!r}", a) for k, a in kwargs.items()]
    for owner, module in (("guide", guide), ("model", model)):
        if isinstance(module, nn.Module):
            named += [(f"the {owner}'s parameter {n!r}", p) for n, p in module.named_parameters()]
    for name, value in named:
        if isinstance(value, Tensor) and value.is_floating_point():
            broken = int((~torch.isfinite(value)).sum())
            if broken:
                return f"{name} has {broken} NaN or infinite entries of {value.numel()}"
    return None
