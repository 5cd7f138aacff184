"""Which units of a network's layers a guide masks: those of a weight's inputs, or of its layer's outputs.

A mask of input units belongs to one weight and has its name, ``net.0.weight``; one of output units belongs to the
layer, ``net.0.output``, and switches the layer's weight and its bias together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_dropout._checks import said
from pyro_dropout._sites import is_weight
from pyro_dropout.weights.units import MaskedUnits

_SIDES = ("input", "output", "branch")
Masks = dict[str, list[tuple[str, MaskedUnits]]]


def checked_sides(units: Any) -> Any:
    """What a user gave for ``units``, if it is of a kind that may be given."""
    if isinstance(units, Mapping):
        for key, value in units.items():
            if not isinstance(key, str):
                raise TypeError(f"a key of units is the name of a weight site or of a layer, but found {said(key)}")
            _sides(value, f"units[{key!r}]")
    elif not callable(units):
        _sides(units, "units")
    return units


def masks_of(sites: Mapping[str, Any], units: Any) -> Masks:
    """By weight the names of its masks, each with its units, in the order of the sites.

    :param sites: latent sites of the model, by name.
    :param units: as a guide takes it.
    :raises ValueError: a name that is none of theirs; a layer whose output units no mask can switch.
    """
    sides = _by_site(sites, units)
    found: Masks = {}
    for name, site in sites.items():
        layer, weight = _layer_and_weight(name)
        masks = []
        if "input" in sides.get(name, ()) and is_weight(site):
            masks.append((name, site["infer"].get("masked_units") or MaskedUnits(site["fn"].event_dim)))
        for side in ("output", "branch"):
            if side in sides.get(weight, ()) and (weight == name or _outputs(name, site)):
                masks.append((f"{layer}.output".lstrip("."), _of_side(name, site, side)))
        if masks:
            found[name] = masks
    return found


def _layer_and_weight(name: str) -> tuple[str, str]:
    """The layer that a site belongs to, and the name of its weight; a site that is no layer's is one by itself."""
    layer, _, attribute = name.rpartition(".")
    if attribute not in ("weight", "bias"):
        return name, name
    return layer, f"{layer}.weight".lstrip(".")


def _by_site(sites: Mapping[str, Any], units: Any) -> dict[str, tuple[str, ...]]:
    """Sides by the names of weights and of normalisations' scales, these only where they are named."""
    weights = [name for name, site in sites.items() if is_weight(site)]
    scales = [n for n, site in sites.items() if n not in weights and _outputs(n, site) and not _is_bias(n)]
    if isinstance(units, str | tuple | list):
        return dict.fromkeys(weights, _sides(units, "units"))
    if callable(units):
        given = {name: units(name) for name in (*weights, *scales)}
        given = {name: "input" if side is None else side for name, side in given.items()}
        return {name: _sides(side, f"units({name!r})") for name, side in given.items()}
    by_name = {name: name for name in (*weights, *scales)}
    by_layer = {_layer_and_weight(name)[0]: name for name in by_name}
    if unknown := [key for key in units if key not in by_name and key not in by_layer]:
        raise ValueError(
            f"units names {', '.join(unknown)}, but found the weight sites {', '.join(by_name)} and the layers "
            f"{', '.join(by_layer)}"
        )
    found = dict.fromkeys(weights, ("input",))
    return found | {by_name.get(k) or by_layer[k]: _sides(v, f"units[{k!r}]") for k, v in units.items()}


def _sides(value: Any, what: str) -> tuple[str, ...]:
    sides = ("input", "output") if value == "both" else (value,) if isinstance(value, str) else value
    if not (isinstance(sides, tuple | list) and sides and all(side in _SIDES for side in sides)):
        raise ValueError(
            f'{what} must be "input", "output", "both", or "branch" (one unit of all outputs), but found {said(value)}'
        )
    if "output" in sides and "branch" in sides:
        raise ValueError(f"{what} asks for two masks of the outputs of one layer, of its units and of all together")
    return tuple(sides)


def _outputs(name: str, site: Any) -> MaskedUnits | None:
    """Output units of a site: as its module says, or of one that is written by hand as of ``torch.nn.Linear``."""
    infer, event_dim = site["infer"], site["fn"].event_dim
    if "output_units" in infer or "masked_units" in infer:
        return infer.get("output_units")
    return MaskedUnits(event_dim, dim=0) if event_dim >= 2 or (event_dim == 1 and _is_bias(name)) else None


def _of_side(name: str, site: Any, side: str) -> MaskedUnits:
    outputs = _outputs(name, site)
    if outputs is None:
        raise ValueError(
            f"units asks for a mask of the outputs of {name!r}, which are not that of one linear layer, convolution, "
            "embedding or normalisation: a recurrent layer's outputs are its states, of parameters that layers share "
            "no mask is one layer's"
        )
    return outputs._replace(together=outputs.width(site["fn"].event_shape)) if side == "branch" else outputs


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"
