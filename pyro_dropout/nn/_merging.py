"""Plates and data as one batch, which the network takes for its own; what stands before the first mask runs once.

Layers with masked weights split the batch (``BatchDims`` of ``weights.shapes``). The *trunk*, all that precedes the
first of them, is the same for all draws: the network is given the data once, and the first layer with a mask returns
them for each draw. A trial tells which networks can do with that, which need the data for each draw (one that adds its
trunk to what is behind masks), and which take no two draws in one batch (one that has times in the batch's place).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pyro_dropout._modes import trial_run
from pyro_dropout._values import is_traced, same_values
from pyro_dropout.nn._call import Call, Network, first_entry
from pyro_dropout.weights.shapes import BatchDims
from pyro_dropout.weights.weight import MaskedWeight, Switch

_DRAWS, _ROWS = 2, 3  # of the trial: with one of either, or as many, wrong shapes might fit
_LARGE = 2**16  # entries of a datum from which on a call of one is tried with one: three images may be gigabytes


class NotMerged(ValueError):
    """Inputs or outputs that are no batch: the user's to change, so a trial leaves it to the call to say so."""


class Trunk(NamedTuple):
    """What a trial says of a network and its trunk.

    :param shared: whether all draws may have the trunk in common.
    :param merges: whether draws may be one batch; not where places or times stand in the batch's dimension.
    :param cost: of the trunk, in draws of what stands behind it.
    :param widest: entries of the largest activation of one draw of one datum; 0 if it is not known.
    :param rows_at: the dimension of the rows in each tensor of the output: 1 in the states of recurrent layers.
    """

    shared: bool = False
    merges: bool = True
    cost: float = 0.0
    widest: int = 0
    rows_at: tuple[int, ...] = ()


def merge_batch(network: Network, call: Call, trunk: Trunk | None = None) -> Any:
    """The network's output ``[*plates, data, ...]``, from one run on plates and data as one batch."""
    values, args, kwargs = call.values, call.args, call.kwargs
    if not call.event_dims:
        return network.run(values, args, kwargs)
    sizes = _sizes(call)
    if len(sizes) < 2:
        return network.run(values, args, kwargs)
    _check_keywords(call)
    lacking = _lacking(call, sizes)
    trunk = trunk or (trunk_of(network, call) if call.plates else Trunk())
    dims = BatchDims(call.plates, tuple(sizes), lacking if trunk.shared else 0)
    of_data = BatchDims(torch.Size(), tuple(sizes[dims.trunk :]))
    values = {
        name: value.replace(merged=dims.merged, trunk=dims.trunk) if isinstance(value, MaskedWeight) else value
        for name, value in values.items()
    }
    pairs = zip(args, call.event_dims, strict=True)
    merged = [
        of_data.merge(_without_ones(a, event_dim, len(of_data.merged)), event_dim) if isinstance(a, Tensor) else a
        for a, event_dim in pairs
    ]

    def split(out: Tensor, at: int) -> Tensor:
        if at:
            return split(out.movedim(at, 0), 0).movedim(len(sizes), len(sizes) - 1)
        if out.dim() == 0 or out.shape[0] not in (sizes.numel(), math.prod(of_data.merged)):
            raise NotMerged(
                f"{type(network.net).__name__} returned shape {tuple(out.shape)} for a batch of {sizes.numel()}: "
                "the first dimension of its output must be the batch"
            )
        return dims.whole(dims.split(out))

    leaves, spec = tree_flatten(network.run(values, merged, kwargs))
    at = iter(trunk.rows_at)
    return tree_unflatten([split(t, next(at, 0)) if isinstance(t, Tensor) else t for t in leaves], spec)


def _check_keywords(call: Call) -> None:
    for key, value in call.kwargs.items():
        if isinstance(value, Tensor):
            raise NotMerged(
                f"the network got the tensor {key!r} by keyword, whose batch cannot be merged with that of "
                "positional inputs: pass it by position, with its event_dim"
            )


def _sizes(call: Call) -> torch.Size:
    """Plates and data, broadcast."""
    try:
        return torch.broadcast_shapes(call.plates, *call.batches)
    except RuntimeError as error:
        raise ValueError(
            f"weights of batch shape {tuple(call.plates)} do not broadcast with inputs of batch shape "
            f"{', '.join(str(tuple(b)) for b in call.batches)} (event_dim {', '.join(map(str, call.event_dims))}): "
            "give BayesianModule the event_dim of its inputs, and put plates around weights at dim -2 or further left"
        ) from error


def _lacking(call: Call, sizes: torch.Size) -> int:
    """Number of the first plates that no input has."""
    own = torch.broadcast_shapes(*call.batches)
    while own and own[0] == 1:
        own = own[1:]
    number = min(len(sizes) - len(own), len(sizes) - 1)
    return number if sizes[number:] == (own or (1,)) and sizes[:number].numel() > 1 else 0


def _without_ones(a: Tensor, event_dim: int, batch_dims: int) -> Tensor:
    """An input whose batch has no more dimensions than its own."""
    while a.dim() > event_dim + batch_dims:
        a = a.squeeze(0)
    return a


def trunk_of(network: Network, call: Call) -> Trunk:
    """Known from a trial with few draws and data, for calls of this kind with these masks."""
    _check_keywords(call)
    masked = tuple(name for name, value in call.values.items() if isinstance(value, MaskedWeight))
    key = (network.kind(call), masked, _rows_of_trial(call))
    if key not in network.trunks:
        if is_traced():  # what is traced has run before
            return Trunk()
        with trial_run(), torch.no_grad():
            network.trunks[key] = _trial(network, call)
    return network.trunks[key]


def _rows_of_trial(call: Call) -> int:
    pairs = zip(call.args, call.event_dims, strict=True)
    largest = max(
        (a.shape[a.dim() - event_dim :].numel() for a, event_dim in pairs if isinstance(a, Tensor)), default=0
    )
    return 1 if call.rows == 1 and largest >= _LARGE else _ROWS


def _trial(network: Network, call: Call) -> Trunk:
    """Two draws of three data, or of a large one: each alone, and both at once with the trunk in common and without."""
    number = _rows_of_trial(call)
    values = {name: _two_draws(value, network.slots[name].event_dim) for name, value in call.values.items()}
    args: list[Any] = []
    for a, event_dim in zip(call.args, call.event_dims, strict=True):
        if isinstance(a, Tensor):
            a = a.detach()[(0,) * (a.dim() - event_dim - 1)]
            a = a[torch.arange(number, device=a.device) % len(a)].clone()
        args.append(a)
    at_once = call._replace(values=values, args=args, plates=torch.Size((_DRAWS, 1)))
    rows = _Activations(number)
    try:
        alone = []
        for k in range(_DRAWS):
            of_one = {n: v[k, 0] if isinstance(v, MaskedWeight) else v for n, v in values.items()}
            alone.append(tree_leaves(network.run(of_one, args, call.kwargs)))
        expected = [torch.stack(outs) for outs in zip(*alone, strict=True) if isinstance(outs[0], Tensor)]
    except Exception:
        return Trunk(merges=False)
    outs = [t for t in alone[0] if isinstance(t, Tensor)]
    rows_at = tuple(int(t.dim() > 1 and t.shape[0] != number == t.shape[1]) for t in outs)

    def equal(shared: bool) -> bool:
        try:
            leaves = tree_leaves(merge_batch(network, at_once, Trunk(shared, rows_at=rows_at)))
        except NotMerged:
            return any(t.shape[at : at + 1] != (number,) for t, at in zip(outs, rows_at, strict=True))
        except Exception:
            return False
        found = [t for t in leaves if isinstance(t, Tensor)]
        return all(a.shape == b.shape and same_values(a, b) for a, b in zip(found, expected, strict=True))

    with rows.noted():
        shared = equal(shared=True)
    return Trunk(shared, shared or equal(shared=False), *rows.cost_and_widest(), rows_at)


class _Activations:
    """Entries of a row of what modules return, of the trunk's and of others."""

    def __init__(self, rows: int) -> None:
        self.rows, self.of_trunk, self.others = rows, list[int](), list[int]()

    @contextmanager
    def noted(self) -> Iterator[None]:
        def note(module: nn.Module, _: Any, out: Any) -> None:
            for t in tree_leaves(out):
                if isinstance(t, Tensor) and t.dim() and not any(True for _ in module.children()):
                    if len(t) == self.rows:
                        self.of_trunk.append(t[0].numel())
                    elif len(t) == self.rows * _DRAWS:
                        self.others.append(t[0].numel())

        hook = nn.modules.module.register_module_forward_hook(note)
        try:
            yield
        finally:
            hook.remove()

    def cost_and_widest(self) -> tuple[float, int]:
        return sum(self.of_trunk) / max(1, sum(self.others)), max(self.others, default=0)


def _two_draws(value: Tensor, event_dim: int) -> Tensor:
    """Of the first entry of all plates: a dense value, or a masked weight with two masks of real numbers."""
    if not isinstance(value, MaskedWeight):
        return first_entry(value.detach(), event_dim)
    loc = value.loc.detach()

    def of_switch(switch: Switch) -> Switch:
        mask = loc.new_empty(_DRAWS, 1, switch.units.count(value.event_shape)).uniform_(0.5, 1.0)
        return switch._replace(mask=mask, keep=first_entry(switch.keep.detach(), 1))

    return value.with_switches(of_switch, loc=first_entry(loc, event_dim))
