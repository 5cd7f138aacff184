"""Which units of a network's layers a guide masks: those of a weight's inputs, or of its layer's outputs.

A mask of input units belongs to one weight and has its name, ``net.0.weight``; one of output units belongs to the
layer, ``net.0.output``, and switches the layer's weight and its bias together. Of a site ``w`` that is no layer's it is
``w_output``.
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
        weight, output = _weight_and_output(name)
        masks = []
        if "input" in sides.get(name, ()) and is_weight(site):
            masks.append((name, site["infer"].get("masked_units") or MaskedUnits(site["fn"].event_dim)))
        for side in ("output", "branch"):
            if side in sides.get(weight, ()) and (weight == name or _outputs(name, site)):
                masks.append((output, _of_side(name, site, side)))
        if masks:
            found[name] = masks
    _check_names({key for masks in found.values() for key, _ in masks})
    return found


def rates_by_mask(rate: Any, names: list[str]) -> dict[str, Any]:
    """A number, a mapping or a function of a mask's name, for each mask."""
    if isinstance(rate, Mapping):
        unknown, missing = sorted(rate.keys() - set(names), key=str), sorted(set(names) - rate.keys())
        if unknown or missing:
            raise ValueError(
                f"rate must name the masks, {', '.join(names)}; found no such mask {unknown}, missing {missing}"
            )
        return dict(rate)
    return {name: rate(name) if callable(rate) else rate for name in names}


def _check_names(keys: set[str]) -> None:
    """Rates stand in a tree by the parts of their names, where none can be both a leaf and a branch."""
    for key in keys:
        for other in keys:
            if other.startswith(f"{key}."):
                raise ValueError(
                    f"the mask {key!r} of a layer's outputs has the name of the layer that {other!r} belongs to: call "
                    'that layer otherwise than "output"'
                )


def _weight_and_output(name: str) -> tuple[str, str]:
    """The name of the weight of a site's layer, and that of the mask of its outputs."""
    layer, _, attribute = name.rpartition(".")
    if attribute not in ("weight", "bias"):
        return name, f"{name}_output"
    return f"{layer}.weight".lstrip("."), f"{layer}.output".lstrip(".")


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
    layers = {name.removesuffix(".weight"): name for name in (*weights, *scales)}
    names = layers | {name: name for name in layers.values()}
    if unknown := [key for key in units if key not in names]:
        raise ValueError(
            f"units names {', '.join(unknown)}, but found the weight sites {', '.join(layers.values())} and the layers "
            f"{', '.join(layers)}"
        )
    found: dict[str, tuple[str, ...]] = {}
    for key, value in units.items():
        sides = _sides(value, f"units[{key!r}]")
        if names[key] in found:
            raise ValueError(f"units names {names[key]!r} twice, as a weight and by its layer: give it once")
        if names[key] in scales and "input" in sides:
            raise ValueError(f"units[{key!r}] is {value!r}, but a normalisation has no input units, only output units")
        found[names[key]] = sides
    return dict.fromkeys(weights, ("input",)) | found


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
    """Output units of a site: as its module says, or of one that is written by hand as of ``torch.nn.Linear``.

    Where its input units are said to be along the first dimension, its outputs are along the second.
    """
    infer, event_dim = site["infer"], site["fn"].event_dim
    if "output_units" in infer:
        return infer["output_units"]
    inputs = infer.get("masked_units")
    if event_dim >= 2:
        return MaskedUnits(event_dim, dim=1 if inputs is not None and inputs.dim == 0 else 0)
    return MaskedUnits(1, dim=0) if event_dim == 1 and _is_bias(name) else None


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
