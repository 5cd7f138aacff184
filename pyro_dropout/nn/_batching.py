"""Running a network whose weights have batch dimensions: merged with the data's, mapped over, in slices.

Merged where every layer with such a weight can split its batch again (``BatchDims`` of ``weights.shapes``); mapped over
weights, by ``vmap`` or in turn, where one cannot; in slices of the first plate where all draws at once would be many
activations and no gradient is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import pyro_dropout._settings as settings
from pyro_dropout._values import drop_equal
from pyro_dropout.nn._call import Call, Network
from pyro_dropout.nn._merging import Trunk, merge_batch, trunk_of
from pyro_dropout.nn._mixing import mixes_rows
from pyro_dropout.nn.slots import CONVOLUTIONS, NORMALISATIONS, Slot
from pyro_dropout.weights.shapes import has_place_of_data, with_place_of_data
from pyro_dropout.weights.weight import MaskedWeight

_WORTH = 8  # a slice of draws costs at least as often what the trunk costs, which it runs again
_NO_HOOKS = (
    "dense weights of several networks run by vmap, in which activations cannot be checkpointed nor moved: run one "
    "network at a time (vectorize_particles=False, parallel=False)"
)
_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
_WITHOUT_VMAP = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)  # fused kernels without batching rules


def run(network: Network, call: Call) -> Any:
    """The network's output for sampled weights, ``[*plates, data, ...]`` where these have plates."""
    plates = torch.Size()
    for name, slot in network.slots.items():
        shape = call.values[name].shape
        if len(shape) > slot.event_dim:
            plates = torch.broadcast_shapes(plates, shape[: len(shape) - slot.event_dim])
    values = {name: _placed(value, network.slots[name], plates) for name, value in call.values.items()}
    plates = with_place_of_data(plates) if plates else plates
    call = call._replace(values=values, plates=plates, event_dims=_event_dims(network, call.args, plates))
    places = {owner: name for name, slot in network.slots.items() for owner in slot.owners}
    mapped = plates and any(_must_map(slot, name, values, places) for name, slot in network.slots.items())
    mapped = mapped or (bool(call.event_dims) and _draws_meet(network, call) and mixes_rows(network, call))
    mapped = mapped or (bool(plates) and not trunk_of(network, call).merges)
    way = _map_over_weights if mapped else merge_batch
    if plates and (size := _draws_at_once(network, call, bool(mapped))) < plates[0]:
        return _run_slices(way, network, call, size)
    return way(network, call)


def _draws_meet(network: Network, call: Call) -> bool:
    """Whether a batch has rows of more than one network."""
    alone = bool(call.plates) and _draws_at_once(network, call, False) == 1
    first = 1 if alone else None
    sizes = [1, *call.plates[first:-1], *(size for batch in call.batches for size in batch[first:-1])]
    return max(sizes) > 1


def _placed(value: Tensor, slot: Slot, plates: torch.Size) -> Tensor:
    """A value whose batch shape has the place of the data; one that is dense, and the same for all, without any."""
    batch_dim = len(value.shape) - slot.event_dim
    if batch_dim and plates and not has_place_of_data(plates):
        value = value.unsqueeze(batch_dim)
    if isinstance(value, MaskedWeight):
        return value if value.masked or value.loc.dim() > slot.event_dim else value.loc
    return drop_equal(value, slot.event_dim)


def _must_map(slot: Slot, name: str, values: dict[str, Tensor], places: dict[tuple[nn.Module, str], str]) -> bool:
    """Whether a value has batch dimensions that its layer cannot take with the batch of the data.

    Linear, convolutional and recurrent layers with a masked weight can, with the bias of this weight; embeddings and
    normalisation layers whose output units are masked; nothing else can.

    :param places: names of values by layer and attribute.
    """
    if len(values[name].shape) == slot.event_dim:
        return False
    for layer, attribute in slot.owners:
        weight = values.get(places.get((layer, attribute.replace("bias", "weight")), ""))
        takes_draws = isinstance(layer, (nn.Linear, *CONVOLUTIONS)) or type(layer) in _RECURRENT  # not what is like one
        if isinstance(layer, (nn.Embedding, *NORMALISATIONS)) and isinstance(weight, MaskedWeight):
            takes_draws = weight.along(weight.units.event_dim - 1) is not None and weight.other is None
            takes_draws = takes_draws and weight.loc.dim() == weight.units.event_dim
        if not (takes_draws and isinstance(weight, MaskedWeight)):
            return True
    return False


def _event_dims(network: Network, args: Sequence[Any], plates: torch.Size) -> Sequence[int]:
    """Event dimensions of each input; empty where none are known and none are needed."""
    given, layer = network.event_dim, network.first
    if given is not None:
        event_dims = [given] * len(args) if isinstance(given, int) else given
        if len(event_dims) != len(args):
            raise ValueError(f"event_dim={given} names {len(event_dims)} inputs, but found {len(args)}")
        return event_dims
    if isinstance(layer, CONVOLUTIONS):
        return [len(layer.kernel_size) + 1] * len(args)
    if not plates:
        return []
    shapes = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
    if isinstance(layer, nn.Linear) and all(len(shape) <= 2 for shape in shapes):
        return [1] * len(args)
    raise ValueError(
        f"weights of {type(network.net).__name__} have batch shape {tuple(plates)}, and its first layer, a "
        f"{type(layer).__name__} on inputs of shape {', '.join(map(str, shapes))}, does not tell which dimensions "
        "are one datum: give BayesianModule event_dim (1 for [..., features], 2 for [..., time, features])"
    )


def _map_over_weights(network: Network, call: Call) -> Any:
    """One network per entry of the plates: all at once by ``vmap``, or in turn where it cannot."""
    plates = call.plates[:-1]
    for a, event_dim in zip(call.args, call.event_dims, strict=True):
        if isinstance(a, Tensor) and a.dim() > event_dim + 1:
            plates = torch.broadcast_shapes(plates, a.shape[: a.dim() - event_dim - 1])
    weights, data = {}, {}  # what differs between networks, [*plates, ...]
    for name, value in call.values.items():
        event = network.slots[name].value.shape
        batch = len(value.shape) - len(event)
        if batch:
            weights[name] = value.squeeze(batch - 1).expand(*plates, *event)
    for i, (a, event_dim) in enumerate(zip(call.args, call.event_dims, strict=True)):
        if isinstance(a, Tensor) and a.dim() > event_dim + 1:
            data[i] = a.expand(*plates, *a.shape[a.dim() - event_dim - 1 :])

    def run_one(weights: dict[str, Tensor], data: dict[int, Tensor]) -> Any:
        args = [data.get(i, a) for i, a in enumerate(call.args)]
        return network.run({**call.values, **weights}, args, call.kwargs)

    def entry(index: tuple[int, ...]) -> Any:
        return run_one({n: w[index] for n, w in weights.items()}, {i: a[index] for i, a in data.items()})

    masked = any(isinstance(w, MaskedWeight) for w in call.values.values())
    if masked or network.trains_batch_norm or any(isinstance(m, _WITHOUT_VMAP) for m in network.net.modules()):
        outs = [entry(index) for index in itertools.product(*map(range, plates))]
        out = tree_map(lambda *entries: torch.stack(entries), *outs)
    else:
        flat: Any = [{k: t.reshape(-1, *t.shape[len(plates) :]) for k, t in each.items()} for each in (weights, data)]
        with disable_saved_tensors_hooks(_NO_HOOKS):
            out = torch.vmap(run_one, randomness="different")(*flat)
    return tree_map(lambda t: t.reshape(*plates, *t.shape[1:]) if isinstance(t, Tensor) else t, out)


def _draws_at_once(network: Network, call: Call, mapped: bool) -> int:
    """Entries of the first plate that are in memory at once: all where a gradient is taken, or one looks at the others.

    Else as many as caches hold of the widest layer, and no fewer than make a run of the trunk worth while.
    """
    first = call.plates[0]
    if (
        torch.is_grad_enabled()
        or first == 1
        or any(isinstance(v, MaskedWeight) and v.per_datum for v in call.values.values())
        or network.trains_batch_norm
    ):
        return first
    trunk = Trunk() if mapped else trunk_of(network, call)
    pairs = zip(call.args, call.event_dims, strict=False)
    data = [a.shape[a.dim() - event_dim :].numel() for a, event_dim in pairs if isinstance(a, Tensor)]
    widths = [max(slot.value.shape, default=1) for slot in network.slots.values()]
    widest = trunk.widest or max(*widths, *data, 1)
    rows = call.plates.numel() // first * call.rows
    cached = settings.cached_activations // (widest * rows)
    return min(first, max(1, cached, math.ceil(_WORTH * trunk.cost) if trunk.shared else 0))


def _run_slices(way: Callable[[Network, Call], Any], network: Network, call: Call, size: int) -> Any:
    """Slices of the first plate."""
    first, *others = call.plates
    whole: list[Any] = []
    for start in range(0, first, size):
        rows = slice(start, min(start + size, first))
        leaves, spec = tree_flatten(
            way(network, _sliced(network, call, rows, torch.Size((rows.stop - start, *others))))
        )
        if not whole:  # at once: small outputs between large activations would split up the heap
            whole = [t.new_empty((first, *t.shape[1:])) if isinstance(t, Tensor) else t for t in leaves]
        for out, t in zip(whole, leaves, strict=True):
            if isinstance(t, Tensor):
                out[rows].copy_(t)
    return tree_unflatten(whole, spec)


def _sliced(network: Network, call: Call, rows: slice, plates: torch.Size) -> Call:
    """The call of some entries of the first plate."""

    def cut(t: Any, event_dim: int) -> Any:
        has_plate = isinstance(t, Tensor) and len(t.shape) == event_dim + len(plates) and t.shape[0] == call.plates[0]
        return t[rows] if has_plate else t

    values = {name: cut(value, network.slots[name].event_dim) for name, value in call.values.items()}
    args = [cut(a, event_dim) for a, event_dim in zip(call.args, call.event_dims, strict=True)]
    return call._replace(values=values, args=args, plates=plates)
