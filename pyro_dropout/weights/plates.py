"""Whether masks per datum met the data: plates of weights told from plates of data."""

from __future__ import annotations

from typing import Any

from pyro_dropout.masks.datum import DatumMask
from pyro_dropout.masks.messengers import MemberMask
from pyro_dropout.weights.delta import MaskedDelta


def plates_of_weights(guide_trace: Any) -> set[str]:
    """Names of the plates that hold draws and networks, not data."""
    return {f.name for site in masked_sites(guide_trace) for f in site["cond_indep_stack"]} | {
        "num_particles_vectorized"
    }


def check_data_plates(model_sites: dict[str, Any], guide_trace: Any, rows: int | None = None) -> None:
    """One mask per datum needs a likelihood that factorises over data, and layers that see the data first.

    :param rows: number of data, where there is no plate to say so.
    """
    weights = masked_sites(guide_trace)
    names = plates_of_weights(guide_trace)
    around = {f for site in weights for f in site["cond_indep_stack"]}
    sizes = {} if rows is None else {"data": rows}
    for name, site in model_sites.items():
        if weights and site["is_observed"]:
            data = {f.name: f.size for f in site["cond_indep_stack"] if f.name not in names}
            if not data:
                raise ValueError(
                    f"observed site {name!r} is in no data plate, but masks per datum need to know what one datum is: "
                    f'put it into `with pyro.plate("data", N)`, or use masks="draw"'
                )
            sizes.update(data)
    known = {1, *sizes.values(), *(f.size for f in around)}
    for site in weights:
        mask = site["fn"].weight.mask
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
