"""Whether data may be taken in parts: a datum's distribution must not depend on the data beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_dropout._modes import forked_rng, trial_run
from pyro_dropout._rows import mixes
from pyro_dropout._values import same_values
from pyro_dropout.masks.messengers import LeafMasks
from pyro_dropout.prediction._parts import Inputs


def check_rows(inputs: Inputs, locations: Callable[[int, Any, Any], dict[str, Tensor]]) -> None:
    """Raises where rows know each other: by exact zeros of gradients, of inputs without gradients by values.

    :param locations: where the distributions of one draw are, by site, for so many rows and such arguments.
    """
    with trial_run():
        number, args, kwargs, leaves = inputs.leaves()
        wrong = _dependent(locations(number, args, kwargs), number, leaves) if leaves else None
    if not leaves:  # tokens, say
        with forked_rng():
            few, more = (locations(n, *inputs.rows(slice(0, n))) for n in inputs.probes)
        inside = {name: tuple(slice(0, size) for size in found.shape) for name, found in few.items()}
        wrong = next((name for name in few if not same_values(more[name][inside[name]], few[name])), None)
    if wrong is not None:
        raise ValueError(
            f"site {wrong!r} has another distribution for a datum with other data beside it, so that data "
            "cannot be taken in parts: give data=() to take them whole"
        )


def check_masks(trace: Callable[[Callable], Any], guide: Callable, read: Callable[[Any], dict[str, Tensor]]) -> None:
    """Raises where, with masks per datum, a datum's distribution depends on the masks of others.

    :param trace: of the model, for a guide.
    :param read: where the distributions of a trace are, by site.
    """
    with trial_run():
        masks = LeafMasks()
        found = read(trace(masks(guide)))
        for number in {leaf.shape[-2] for leaf in masks.leaves if leaf.dim() > 1} - {1}:
            leaves = [leaf for leaf in masks.leaves if leaf.shape[-2:-1] == (number,)]
            wrong = _dependent(found, number, leaves, -2)
            if wrong is not None:
                raise ValueError(
                    f"site {wrong!r} depends on the masks of other data (attention or sums over rows, a graph, batch "
                    'statistics), so that masks per datum would be wrong: use masks="draw"'
                )


def _dependent(locations: dict[str, Tensor], number: int, leaves: list[Tensor], rows: int = 0) -> str | None:
    """A site whose rows have gradients at other rows of the leaves, which are their dimension ``rows``."""
    for name, found in locations.items():
        # Of two dimensions of this size either may be that of the rows.
        dims = [dim for dim, size in enumerate(found.shape) if size == number]
        if dims and all(mixes([(found, dim)], [(leaf, rows) for leaf in leaves]) for dim in dims):
            return name
    return None
