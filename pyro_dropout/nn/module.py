"""Any network as a component of a Pyro model: priors on its weights, batch dimensions merged around its layers.

Beside the chain weight → distributions → guides → losses; it knows the weight alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_dropout.weights._linear import drop_equal
from pyro_dropout.nn.slots import CONVOLUTIONS, Slot, make_slots, move
from pyro_dropout.weights.weight import DatumMask, MaskedWeight

_WITHOUT_VMAP = (nn.RNNBase, nn.MultiheadAttention)  # fused kernels without batching rules
_ACTIVATIONS = 2**20  # of a layer at once where no gradient is taken: few for caches, many for matrix products


class BayesianModule(PyroModule):
    """A network whose weights are sample sites: ``W ~ prior`` for every parameter ``W`` of ``net``.

    The sites carry the parameters' own names (``"net.0.weight"``). The network's class is not copied and ``net``
    is not changed: the module runs a deep copy in which sampled values stand where the parameters stood. Their
    initial (or pretrained) values are where guides start, see :func:`~pyro_dropout.init_to_module`.

    Sampled weights may have batch dimensions: particles, posterior draws, a ``pyro.plate`` at dim -2 or further
    left around the call. The network then sees one leading batch dimension, and its output is split again
    (BatchApply in Haiku and Sonnet), so that convolution and pooling work. Dense weights that
    differ along these dimensions (``AutoNormal``) go through :func:`torch.vmap`, recurrent and attention layers
    one draw after the other.

    :param net: any :class:`torch.nn.Module`; the first dimension of its inputs and outputs is the batch.
    :param prior: a distribution over one weight, expanded to each parameter's shape, or a function of name and
        parameter that returns a distribution (over one weight or the whole parameter), or ``None`` to leave that
        parameter an ordinary learnable one. ``Normal(0., 1/l)`` has lengthscale l: l² is a prior *precision*,
        l = 1e-4 means a standard deviation of 1e4.
    :param event_dim: number of dimensions of one datum in the network's positional inputs, an int or one per
        input. Needed only if weights will have batch dimensions and the first layer does not tell: a linear layer
        on ``[N, in]`` has 1, ``Conv2d`` 3; for ``[N, T, in]`` say 2, for data of each network, ``[R, N, in]``, 1.
    :raises ValueError: no parameter has a prior; a prior of the wrong shape; batch dimensions that do not fit.

    Example::

        >>> net = BayesianModule(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)))
        >>> net(torch.zeros(7, 3)).shape
        torch.Size([7, 1])
        >>> pyro.poutine.trace(net).get_trace(torch.zeros(7, 3)).stochastic_nodes
        ['0.weight', '2.weight', '0.bias', '2.bias']
    """

    def __init__(
        self,
        net: nn.Module,
        prior: Any = dist.Normal(0.0, 1.0),
        event_dim: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.net = copy.deepcopy(net)
        self._first = next((m for m in self.net.modules() if any(True for _ in m.parameters(recurse=False))), self.net)
        self._slots = make_slots(self.net, prior)
        if not self._slots:
            raise ValueError(f"no parameter of {type(net).__name__} has a prior: nothing in it would be Bayesian")
        self.dropout_layers: dict[str, str] = {}  # by weight, of a network that came with them (from_torch)
        self._width = max(max(slot.initial.shape, default=1) for slot in self._slots.values())
        self._learns = any(True for _ in self.net.parameters())

    @property
    def slots(self) -> dict[str, list[tuple[str, str]]]:
        """Path of layer and attribute of each parameter that has a prior; several where layers share it."""
        paths = {id(layer): path for path, layer in self.net.named_modules()}
        return {n: [(paths[id(layer)], a) for layer, a in slot.owners] for n, slot in self._slots.items()}

    def site_name(self, name: str) -> str:
        """Name of the sample site of a parameter, in the model that the module is a part of."""
        return self._pyro_get_fullname(name) if self._pyro_context.used else name

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for slot in self._slots.values():
            slot.prior = move(slot.prior, slot.initial)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = {name: self._sample(name, slot) for name, slot in self._slots.items()}
        plates = torch.Size()
        for name, slot in self._slots.items():
            shape = values[name].shape
            plates = torch.broadcast_shapes(plates, shape[: len(shape) - slot.event_dim])
        if plates:
            plates = _add_place_of_data(values, plates, {n: slot.event_dim for n, slot in self._slots.items()})
        event_dims = self._event_dims(args, plates)
        mapped = plates and any(self._must_map(name, values) for name in values)
        run = self._map_over_weights if mapped else self._merge_batch
        if plates and self._in_slices(values, plates, event_dims, args):
            return self._run_slices(run, values, plates, event_dims, args, kwargs)
        return run(values, plates, event_dims, args, kwargs)

    def _sample(self, name: str, slot: Slot) -> Tensor:
        fullname = self._pyro_get_fullname(name)
        value = self._pyro_context.get(fullname)
        if value is None:
            infer = {"initial_value": slot.initial, "masked_units": slot.units}
            value = pyro.sample(fullname, slot.prior, infer=infer)
            self._pyro_context.set(fullname, value)
        return value

    def _must_map(self, name: str, values: dict[str, Tensor]) -> bool:
        """Whether a value has batch dimensions that its layer cannot take with the batch of the data.

        Linear layers and convolutions with a masked weight can, with their bias; nothing else can.
        """
        slot, value = self._slots[name], values[name]
        if len(value.shape) == slot.event_dim:
            return False
        for layer, attribute in slot.owners:
            weight = value if attribute == "weight" else values.get(name.removesuffix("bias") + "weight")
            masks_input = isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and attribute in ("weight", "bias")
            if not (masks_input and isinstance(weight, MaskedWeight)):
                return True
        return False

    def _event_dims(self, args: Any, plates: torch.Size) -> Sequence[int]:
        """Event dimensions of each input; empty where none are known and none are needed."""
        if self.event_dim is not None:
            event_dims = [self.event_dim] * len(args) if isinstance(self.event_dim, int) else self.event_dim
            if len(event_dims) != len(args):
                raise ValueError(f"event_dim={self.event_dim} names {len(event_dims)} inputs, but found {len(args)}")
            return event_dims
        layer = self._first
        if isinstance(layer, CONVOLUTIONS):
            return [len(layer.kernel_size) + 1] * len(args)
        if not plates:
            return []
        shapes = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
        if isinstance(layer, nn.Linear) and all(len(shape) <= 2 for shape in shapes):
            return [1] * len(args)
        raise ValueError(
            f"weights of {type(self.net).__name__} have batch shape {tuple(plates)}, and its first layer, a "
            f"{type(layer).__name__} on inputs of shape {', '.join(map(str, shapes))}, does not tell which dimensions "
            "are one datum: give BayesianModule event_dim (1 for [..., features], 2 for [..., time, features])"
        )

    def _merge_batch(
        self, values: dict[str, Tensor], plates: torch.Size, event_dims: Sequence[int], args: Any, kwargs: Any
    ) -> Any:
        if not event_dims:
            return self._run(values, args, kwargs)
        batches = [a.shape[: a.dim() - e] for a, e in zip(args, event_dims, strict=False) if isinstance(a, Tensor)]
        try:
            lead = torch.broadcast_shapes(plates, *batches)
        except RuntimeError as error:
            raise ValueError(
                f"weights of batch shape {tuple(plates)} do not broadcast with inputs of batch shape "
                f"{', '.join(str(tuple(b)) for b in batches)} (event_dim {', '.join(map(str, event_dims))}): give "
                "BayesianModule the event_dim of its inputs, and put plates around weights at dim -2 or further left"
            ) from error
        if len(lead) < 2:
            return self._run(values, args, kwargs)
        for key, value in kwargs.items():
            if isinstance(value, Tensor):
                raise ValueError(
                    f"the network got the tensor {key!r} by keyword, whose batch cannot be merged with that of "
                    "positional inputs: pass it by position, with its event_dim"
                )
        values = {n: v.replace(lead=tuple(lead)) if isinstance(v, MaskedWeight) else v for n, v in values.items()}
        merged = [
            a.expand(*lead, *a.shape[a.dim() - e :]).flatten(0, len(lead) - 1) if isinstance(a, Tensor) else a
            for a, e in zip(args, event_dims, strict=True)
        ]

        def split(out: Any) -> Any:
            if not isinstance(out, Tensor):
                return out
            if out.dim() == 0 or out.shape[0] != lead.numel():
                raise ValueError(
                    f"{type(self.net).__name__} returned shape {tuple(out.shape)} for a batch of {lead.numel()}: "
                    "the first dimension of its output must be the batch"
                )
            return out.unflatten(0, lead)

        return tree_map(split, self._run(values, merged, kwargs))

    def _map_over_weights(
        self, values: dict[str, Tensor], plates: torch.Size, event_dims: Sequence[int], args: Any, kwargs: Any
    ) -> Any:
        """One network per entry of the plates: all at once by ``vmap``, or in turn where it cannot."""
        plates = plates[:-1]
        for a, event_dim in zip(args, event_dims, strict=True):
            if isinstance(a, Tensor) and a.dim() > event_dim + 1:
                plates = torch.broadcast_shapes(plates, a.shape[: a.dim() - event_dim - 1])
        own, data = {}, {}
        for name, value in values.items():
            event = self._slots[name].initial.shape
            batch = len(value.shape) - len(event)
            if batch:
                own[name] = value.squeeze(batch - 1).expand(*plates, *event).reshape(-1, *event)
        for i, (a, event_dim) in enumerate(zip(args, event_dims, strict=True)):
            if isinstance(a, Tensor) and a.dim() > event_dim + 1:
                datum = a.shape[a.dim() - event_dim - 1 :]
                data[i] = a.expand(*plates, *datum).reshape(-1, *datum)

        def run(own: dict[str, Tensor], data: dict[int, Tensor]) -> Any:
            return self._run({**values, **own}, [data.get(i, a) for i, a in enumerate(args)], kwargs)

        in_turn = any(isinstance(v, MaskedWeight) for v in own.values())
        if in_turn or self._trains_batch_norm() or any(isinstance(m, _WITHOUT_VMAP) for m in self.net.modules()):
            outs = [
                run({name: v[k] for name, v in own.items()}, {i: a[k] for i, a in data.items()})
                for k in range(plates.numel())
            ]
            out = tree_map(lambda *entries: torch.stack(entries), *outs)
        else:
            out = torch.vmap(run, randomness="different")(own, data)
        return tree_map(lambda t: t.unflatten(0, plates) if isinstance(t, Tensor) else t, out)

    def _in_slices(self, values: dict[str, Tensor], plates: torch.Size, event_dims: Sequence[int], args: Any) -> bool:
        """Draws need not be in memory at once where no gradient is taken and none looks at the others."""
        return (
            not torch.is_grad_enabled()
            and plates.numel() * self._data_rows(event_dims, args) > self._rows_at_once(event_dims, args)
            and not any(isinstance(v, MaskedWeight) and isinstance(v.mask, DatumMask) for v in values.values())
            and not self._trains_batch_norm()
        )

    def _trains_batch_norm(self) -> bool:
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.net.modules())

    def _data_rows(self, event_dims: Sequence[int], args: Any) -> int:
        batches = [a.shape[: a.dim() - e] for a, e in zip(args, event_dims, strict=False) if isinstance(a, Tensor)]
        return max((batch[-1] for batch in batches if batch), default=1)

    def _rows_at_once(self, event_dims: Sequence[int], args: Any) -> int:
        data = [a.shape[a.dim() - e :].numel() for a, e in zip(args, event_dims, strict=False) if isinstance(a, Tensor)]
        return _ACTIVATIONS // max(self._width, *data, 1)

    def _run_slices(
        self, run: Any, values: dict[str, Tensor], plates: torch.Size, event_dims: Sequence[int], args: Any, kwargs: Any
    ) -> Any:
        """Slices of the first plate."""
        rows = plates.numel() // plates[0] * self._data_rows(event_dims, args)
        size = max(1, self._rows_at_once(event_dims, args) // rows)
        out: Any = None
        for start in range(0, plates[0], size):
            part = slice(start, min(start + size, plates[0]))

            def cut(t: Any, event_dim: int, part: slice = part) -> Any:
                whole = isinstance(t, Tensor) and len(t.shape) == event_dim + len(plates) and t.shape[0] == plates[0]
                return t[part] if whole else t

            cut_values = {n: cut(v, self._slots[n].event_dim) for n, v in values.items()}
            cut_args = [cut(a, e) for a, e in zip(args, event_dims, strict=True)]
            cut_plates = torch.Size((part.stop - part.start, *plates[1:]))
            slice_out = run(cut_values, cut_plates, event_dims, cut_args, kwargs)
            if out is None:  # at once: small outputs between large activations would split up the heap
                out = tree_map(
                    lambda t: t.new_empty((plates[0], *t.shape[1:])) if isinstance(t, Tensor) else t, slice_out
                )
            tree_map(lambda whole, t, part=part: whole[part].copy_(t) if isinstance(t, Tensor) else t, out, slice_out)
        return out

    def _run(self, values: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        # Reading self.net makes Pyro register its parameters: wanted where some are learnable, slow where none are.
        net = self.net if self._learns else self._modules["net"]
        initial = {name: slot.initial for name, slot in self._slots.items()}
        try:
            for name, slot in self._slots.items():
                slot.put(values[name])
            return net(*args, **kwargs)
        finally:
            for name, slot in self._slots.items():
                slot.put(initial[name])


def _add_place_of_data(values: dict[str, Tensor], plates: torch.Size, event_dims: dict[str, int]) -> torch.Size:
    """Gives all batch shapes a last dimension of size 1, where the data are; drops equal copies of dense values."""
    missing = plates[-1] != 1  # stock Predictive leaves it out
    for name, value in values.items():
        own = len(value.shape) - event_dims[name]
        if own and missing:
            value = value.unsqueeze(own)
        values[name] = value if isinstance(value, MaskedWeight) else drop_equal(value, event_dims[name])
    return plates + (1,) if missing else plates
