"""Whether masks per datum met the data: plates of weights told from plates of data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from pyro_dropout._modes import trial_run
from pyro_dropout._sites import is_of_network
from pyro_dropout.masks.datum import DatumMask
from pyro_dropout.masks.messengers import MemberMask
from pyro_dropout.weights.delta import MaskedDelta
from pyro_dropout.weights.weight import MaskedWeight


def plates_of_weights(guide_trace: Any) -> set[str]:
    """Names of the plates that hold draws and networks, not data."""
    return {f.name for site in masked_sites(guide_trace) for f in site["cond_indep_stack"]} | {
        "num_particles_vectorized"
    }


def beside_data(model_sites: dict[str, Any], guide_trace: Any) -> set[str]:
    """Names of the observed sites that are in no plate of data."""
    names = plates_of_weights(guide_trace)
    observed = {name: site for name, site in model_sites.items() if site["is_observed"]}
    return {n for n, site in observed.items() if all(f.name in names for f in site["cond_indep_stack"])}


def apart(
    names: set[str], model: Callable, guide_trace: Any, args: Any, kwargs: Any, network: bool = False
) -> set[str]:
    """Those of a model's sites that depend on no mask: with other masks, and all else equal, they are the same bits.

    :param network: on no weight of a network either.
    """
    with trial_run(), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        generator = torch.Generator().manual_seed(0)
        traces = _with_other_masks(guide_trace, network, generator)
        first, *others = [_values(names, model, trace, args, kwargs) for trace in traces]
    return {name for name in names if all(all(map(torch.equal, first[name], other[name])) for other in others)}


def _with_other_masks(guide_trace: Any, network: bool, generator: torch.Generator) -> list[Any]:
    """What the guide drew, three times with other masks: some units, the other units, real numbers."""
    traces = [guide_trace.copy() for _ in range(3)]
    for name, site in guide_trace.nodes.items():
        value, values = site.get("value"), []
        if isinstance(value, MaskedWeight) and value.masked:
            values = list(_three_others(value, generator))
        elif network and site["type"] == "sample" and is_of_network(site):
            values = [value * 2 * torch.rand(value.shape, generator=generator).to(value) for _ in traces]
        for trace, other in zip(traces, values, strict=False):
            trace.nodes[name] = {**site, "value": other}
    return traces


def _three_others(weight: MaskedWeight, generator: torch.Generator) -> Iterator[MaskedWeight]:
    shapes = [(*s.batch_shape, s.units.count(weight.event_shape)) for s in weight.switches]
    drawn = [torch.rand(shape, generator=generator).to(weight.keep) for shape in shapes]
    for of_unit in (lambda u: (u < 0.5).to(u), lambda u: (u >= 0.5).to(u), lambda u: u):
        masks = map(of_unit, drawn)
        yield weight.with_switches(
            lambda s, masks=masks: s._replace(mask=torch.where(s.keep == 1, 1.0, next(masks)))  # type: ignore[misc]
        )


def _values(names: set[str], model: Callable, guide_trace: Any, args: Any, kwargs: Any) -> dict[str, list[Tensor]]:
    """Values and log-densities of sites, always with the same random numbers of the model's own."""
    torch.manual_seed(0)
    trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    trace.compute_log_prob(site_filter=lambda name, _: name in names)
    return {n: [site["value"], site["log_prob"]] for n, site in trace.nodes.items() if n in names}


def check_data_plates(
    model_sites: dict[str, Any], guide_trace: Any, rows: int | None = None, apart: Collection[str] = ()
) -> None:
    """One mask per datum needs a likelihood that factorises over data, and layers that see the data first.

    :param rows: number of data, where there is no plate to say so.
    :param apart: observed sites that depend on no mask.
    """
    weights = masked_sites(guide_trace)
    names = plates_of_weights(guide_trace)
    around = {f for site in weights for f in site["cond_indep_stack"]}
    sizes = {} if rows is None else {"data": rows}
    for name, site in model_sites.items():
        if weights and site["is_observed"] and name not in apart:
            data = {f.name: f.size for f in site["cond_indep_stack"] if f.name not in names}
            if not data:
                raise ValueError(
                    f"observed site {name!r} is in no data plate and depends on masks, but masks per datum need to "
                    f'know what one datum is: put it into `with pyro.plate("data", N)`, or use masks="draw"'
                )
            sizes.update(data)
    known = {1, *sizes.values(), *(f.size for f in around)}
    pairs = [(site, switch.mask) for site in weights for switch in site["fn"].weight.switches]
    for site, mask in pairs:
        if not isinstance(mask, DatumMask):
            continue
        shapes = _drawn_shapes(mask)
        drawn = {size for shape in shapes for size in shape}
        last = {shape[-1] for shape in shapes if shape}
        if 1 in last and len(last) > 1:
            raise ValueError(
                f"weight {site['name']!r} drew a mask for one datum and masks for {max(last)}: where an observation "
                'depends on both, masks per datum would be independent; use masks="draw"'
            )
        if not drawn <= known:
            raise ValueError(
                f"weight {site['name']!r} drew masks for {min(drawn - known)} data, but the data plates are "
                f'{sizes}: the first dimension of a layer\'s input must be the data, or use masks="draw"'
            )


def _drawn_shapes(mask: DatumMask) -> list[tuple[int, ...]]:
    """Plates and data that masks were drawn for, without the members of an estimator."""
    if mask.entries:  # drawn for networks that ran in turn
        return [shape for entry in mask.entries.values() for shape in entry.draws]
    skip = 1 if isinstance(mask.distribution, MemberMask) else 0
    return [shape[skip:] for shape in mask.draws]


def masked_sites(guide_trace: Any) -> list[Any]:
    """The sites of masked weights."""
    return [site for site in guide_trace.nodes.values() if isinstance(site.get("fn"), MaskedDelta)]
