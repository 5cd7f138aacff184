"""How a prediction is taken apart: by rows of data, by draws, within a number of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pyro_dropout._settings as settings
from pyro_dropout._memory import PeakMemory
from pyro_dropout._modes import forked_rng
from pyro_dropout._sites import plate_nesting, sample_sites
from pyro_dropout.weights.weight import MaskedWeight

_PROBES = (2, 3)  # rows of data: enough to see what grows with them
_LEAVES = 13  # rows of data that are looked at for a dependence on each other
_ENOUGH = 2**14  # draws times rows of the largest run that is only measured, as it costs time; or 1/32 of all
_GROWTH = 8  # at most, from one measured size to the next


class Inputs:
    """A model's arguments, and which of them have one row per datum.

    :param data: positions or names of these; by default all tensors as long as the first.
    """

    def __init__(self, args: Any, kwargs: Any, data: Sequence[int | str] | None = None) -> None:
        self.args, self.kwargs = args, kwargs
        given: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
        tensors = {key: a for key, a in given.items() if isinstance(a, Tensor) and a.dim()}
        if data is None and any(_holds_tensors(a) for a in given.values()):
            data = ()  # what is inside of lists and dicts is not taken apart
        if data is None:
            length = len(next(iter(tensors.values()))) if tensors else 0
            data = [key for key, a in tensors.items() if len(a) == length]
        if unknown := [key for key in data if key not in tensors]:
            raise ValueError(f"data names the arguments {unknown}, but found tensors at {list(tensors)}")
        if len({len(tensors[key]) for key in data}) > 1:
            raise ValueError(f"the data have different lengths: { {key: len(tensors[key]) for key in data} }")
        if any(len(tensors[key]) == 0 for key in data):
            raise ValueError("the data have no rows: there is nothing to predict")
        self.keys = list(data)
        self.size = len(tensors[self.keys[0]]) if self.keys else 1
        self.probes: Sequence[int] = _PROBES if self.keys and self.size > max(_PROBES) else (self.size,)

    @property
    def kind(self) -> Any:
        """What arguments have in common that are taken apart in the same way."""

        def of(a: Any) -> Any:
            return (a.shape, a.dtype, a.device) if isinstance(a, Tensor) else a

        return tuple(map(of, self.args)), tuple((name, of(a)) for name, a in self.kwargs.items()), tuple(self.keys)

    def rows(self, some: slice) -> tuple[Any, Any]:
        """The arguments with some rows of the data."""
        if some == slice(0, self.size):
            return self.args, self.kwargs
        args = tuple(a[some] if i in self.keys else a for i, a in enumerate(self.args))
        return args, {name: a[some] if name in self.keys else a for name, a in self.kwargs.items()}

    def leaves(self) -> tuple[int, Any, Any, list[Tensor]]:
        """Some rows whose numbers require gradients: how many, the arguments, and what requires them."""
        number, leaves = min(self.size, _LEAVES), list[Tensor]()

        def leaf(key: int | str, a: Any) -> Any:
            if key not in self.keys:
                return a
            a = a[:number].detach().clone()
            if not a.is_floating_point():
                return a
            leaves.append(a.requires_grad_())
            return a * 1  # a network may change its input in place

        args = tuple(leaf(i, a) for i, a in enumerate(self.args))
        return number, args, {name: leaf(name, a) for name, a in self.kwargs.items()}, leaves


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple | dict) and any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


class _Site(NamedTuple):
    """The shape of what is read at a site, without draws, and which of its dimensions is that of the data."""

    shape: torch.Size
    data_dim: int | None
    padding: int  # of size-1 dimensions between draws and the rest, as stock ``Predictive`` has them


@dataclass
class Layout:
    """Shapes of a model's sites, from runs with two and three rows of data."""

    size: int
    nesting: int
    sites: dict[str, _Site]
    event_dims: dict[str, int]
    data_dims: dict[str, int]  # of latent values, from the right

    @staticmethod
    def of(
        model: Callable,
        inputs: Inputs,
        draw: dict[str, Tensor],
        read: Callable[[Any], dict[str, tuple[Tensor, ...]]],
    ) -> Layout:
        """
        :param draw: a value of each of the guide's sites.
        """
        latent = set(draw)
        # Of other latents, which may be of a datum, the prior's: only shapes count. Those of large weights take long.
        weights = {name: value for name, value in draw.items() if isinstance(value, MaskedWeight)}

        def look(rows: int) -> tuple[Any, dict[str, torch.Size]]:
            args, kwargs = inputs.rows(slice(0, rows))
            with forked_rng(), pyro.validation_enabled(False):
                trace = poutine.trace(poutine.condition(model, data=weights)).get_trace(*args, **kwargs)
                return trace, {name: values[0].shape for name, values in read(trace).items()}

        traces, found = [], []
        for rows in inputs.probes:
            try:
                trace, shapes = look(rows)
            except (RuntimeError, ValueError) as error:
                look(inputs.size)  # if not on all, the error is the model's
                raise ValueError(
                    f"the model does not run on {rows} of the {inputs.size} rows of {inputs.keys} alone ({error}): "
                    "give data=() to take them whole, or positions or names of the arguments with one row per datum"
                ) from error
            traces.append(trace)
            found.append(shapes)
        last = dict(sample_sites(traces[-1]))
        nesting = plate_nesting(traces[-1])
        sites = {}
        for name, shape in found[-1].items():
            padding = 0 if name == "_RETURN" else nesting - len(last[name]["fn"].batch_shape)
            sites[name] = _Site(shape, _growing(name, [f[name] for f in found]), padding)
        dims = {n: _growing(n, [trace.nodes[n]["value"].shape for trace in traces]) for n in latent & last.keys()}
        data_dims = {n: dim - last[n]["value"].dim() for n, dim in dims.items() if dim is not None}
        return Layout(inputs.size, nesting, sites, {n: s["fn"].event_dim for n, s in last.items()}, data_dims)

    def shape(self, name: str, draws: int, rows: int | None = None) -> torch.Size:
        """Of all draws and data, or of some."""
        site = self.sites[name]
        shape = list(site.shape)
        if site.data_dim is not None:
            shape[site.data_dim] = self.size if rows is None else rows
        return torch.Size((draws, *(1,) * site.padding, *shape))

    def where(self, name: str, rows: slice) -> tuple[slice, ...]:
        """Where some rows of data are in the dimensions right of the draws."""
        site = self.sites[name]
        return () if site.data_dim is None else (slice(None),) * (site.padding + site.data_dim) + (rows,)

    def arrange(self, found: dict[str, tuple[Tensor, ...]], draws: slice, rows: slice) -> dict[str, tuple[Tensor, ...]]:
        """What was read of some draws on some rows, in the shape it is to have.

        :raises StalePlan: what has another shape than the model's sites had.
        """
        arranged = {}
        for name, values in found.items():
            if name not in self.sites:
                raise StalePlan
            shape = self.shape(name, draws.stop - draws.start, rows.stop - rows.start)
            own = shape[len(shape) - len(self.sites[name].shape) :]
            if any(v.shape[v.dim() - len(own) :] != own or v.dim() < len(own) for v in values):
                raise StalePlan
            arranged[name] = tuple(v.reshape(shape) if v.numel() == shape.numel() else v.expand(shape) for v in values)
        return arranged

    def latent(self, name: str, value: Tensor, rows: slice, inputs: Inputs, parallel: bool) -> Tensor:
        """Draws of a latent site, of some rows; with a dimension for each plate, ``[draws, *plates, *event]``."""
        event_dim = self.event_dims.get(name, 0)
        batch = value.shape[1 : value.dim() - event_dim]
        while len(batch) > self.nesting and batch[0] == 1:
            batch = batch[1:]
        event = value.shape[value.dim() - event_dim :]
        padding = (1,) * (self.nesting - len(batch)) if parallel else ()
        value = value.reshape(value.shape[0], *padding, *batch, *event)
        dim = self.data_dims.get(name)
        if dim is None or value.shape[dim] == rows.stop - rows.start:
            return value
        if value.shape[dim] != inputs.size:
            raise ValueError(
                f"latent {name!r} was drawn for {value.shape[dim]} data, but there are {inputs.size}: draws of latents "
                "in a data plate are for these data alone"
            )
        return value.narrow(value.dim() + dim, rows.start, rows.stop - rows.start)

    def check_parts(self, latent: set[str], inputs: Inputs) -> None:
        """Where data come in parts, everything must belong to the draw or to a datum."""
        for name, site in self.sites.items():
            if site.data_dim is None and name not in latent and len(inputs.probes) > 1:
                raise ValueError(
                    f"site {name!r} of shape {tuple(site.shape)} has no dimension that grows with the data, and is not "
                    "among the guide's sites: it would be another one for each part of the data; give "
                    'data=() to take them whole, or name the other sites in return_sites (masks="datum" allows '
                    "none of the first kind)"
                )


class StalePlan(Exception):
    """What was found of a model is no longer so."""


@dataclass
class Plan:
    """What is found once of arguments of a kind.

    :param latent: names of the guide's sites.
    :param layout: of the model's sites.
    :param nesting: dimensions that the guide's plates take.
    :param sizes: of parts, by the number of draws that are to be taken apart.
    :param draws: of the guide at once, once that is known.
    """

    latent: set[str]
    layout: Layout
    nesting: int
    sizes: dict[int, Sizes] = field(default_factory=dict)
    draws: int | None = None


def _growing(name: str, shapes: list[torch.Size]) -> int | None:
    """The dimension in which the shapes, of two and three rows of data, differ."""
    if any(len(shape) != len(shapes[0]) for shape in shapes):
        raise ValueError(f"site {name!r} has shape {' or '.join(str(tuple(s)) for s in shapes)}, by the number of data")
    sizes = list(zip(*shapes, strict=True))
    dims = [d for d, size in enumerate(sizes) if len(set(size)) > 1]
    if len(dims) > 1 or (dims and sizes[dims[0]] != _PROBES):
        raise ValueError(
            f"site {name!r} has shape {' or '.join(str(tuple(s)) for s in shapes)} for {_PROBES} data, which cannot be "
            "put together from parts of the data: give data=() to take them whole"
        )
    return dims[0] if dims else None


class Sizes(NamedTuple):
    """Numbers of draws and of rows of data that are evaluated at once."""

    draws: int
    rows: int

    @staticmethod
    def within(
        memory: int, run: Callable[[slice, slice], Any], draws: int, inputs: Inputs, what: str = "of the model"
    ) -> Sizes:
        """As many as need at most so many bytes, all rows of the data first.

        Found by runs of growing size, from two draws of three data on. What a run needs is at most proportional to its
        size (a part of it is needed once), so each may be as much larger than the one before as the memory is.
        """
        budget, everything = settings.memory_share * memory, Sizes(draws, inputs.size)
        sizes = Sizes(min(2, draws), inputs.probes[-1])
        used = _bytes(run, sizes)
        least = sizes
        if used > budget and sizes.draws == 2:
            sizes = Sizes(1, sizes.rows)
            used = _bytes(run, sizes)
        if used > budget:
            raise ValueError(
                f"one draw {what} for {f'{sizes.rows} data' if inputs.keys else 'all data'} needs about "
                f"{used / settings.memory_share:,.0f} bytes, but max_memory leaves {memory:,} for it: give more"
            )
        rows_first = sizes._largest(used, budget, run, everything)
        if rows_first.draws == draws or least.draws == draws or least.rows == inputs.size:
            return rows_first
        # What all draws have in common is computed once for each part: it may pay to have all of them in each.
        together = Sizes(draws, least.rows)
        used = _bytes(run, together)
        if used > budget:
            return rows_first
        draws_first = together._largest(used, budget, run, everything)
        return draws_first if 2 * draws_first._parts(everything) <= rows_first._parts(everything) else rows_first

    def _largest(self, used: int, budget: float, run: Callable[[slice, slice], Any], most: Sizes) -> Sizes:
        """By runs of growing size, from one that needs so many bytes."""
        sizes, enough = self, max(_ENOUGH, most.draws * most.rows // 32)
        while sizes != most:
            larger = sizes._grown(budget / max(1, used), most)
            if larger.draws * larger.rows < 1.5 * sizes.draws * sizes.rows:
                break
            if larger == most or larger.draws * larger.rows >= enough:
                return larger
            used = _bytes(run, larger)
            if used > budget:  # more than proportional
                break
            sizes = larger
        return sizes

    def _parts(self, most: Sizes) -> int:
        """In how many of this size the whole is taken."""
        return math.ceil(most.draws / self.draws) * math.ceil(most.rows / self.rows)

    @staticmethod
    def of_draws(memory: int, run: Callable[[slice], Any], draws: int) -> int:
        """As many draws of a guide, which has no rows of data."""
        return Sizes.within(memory, lambda some, _: run(some), draws, Inputs((), {}, data=()), "of the guide").draws

    def _grown(self, factor: float, most: Sizes) -> Sizes:
        """Larger by at most a factor: rows of the data first, and by what they leave of it the draws.

        Draws do not know each other, and what they need is as much as their number; of rows it is seen step by step.
        """
        rows = min(most.rows, int(self.rows * min(factor, _GROWTH)))
        if rows < most.rows:
            return Sizes(self.draws, rows)
        return Sizes(max(self.draws, min(most.draws, int(self.draws * factor * self.rows / rows))), rows)


def _bytes(run: Callable[[slice, slice], Any], sizes: Sizes) -> int:
    with forked_rng(), PeakMemory() as memory:
        run(slice(0, sizes.draws), slice(0, sizes.rows))
    return memory.peak


def slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
