"""Recurrent layers and cells with masked weights, whose masks are the same at all times.

This is the variational RNN of Gal & Ghahramani (2016): the mask of ``weight_ih`` is on a layer's input, that of
``weight_hh`` on its state, that of ``weight_hr`` on what an LSTM projects. Inputs are multiplied for all times at once,
then the state goes from time to time; where it has no mask, PyTorch's own kernel takes the masked input. Of few draws,
or of much data, the kernel takes each draw's dense weights in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_dropout._values import drop_equal, is_traced
from pyro_dropout.weights.shapes import BatchDims
from pyro_dropout.weights.units import MaskedUnits
from pyro_dropout.weights.weight import MaskedWeight, implements

_INPUTS = MaskedUnits()
_LARGE = 2**13  # entries of one draw's states at all times from which on it is worth a call of the kernel
_State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM
_Product = Callable[[Tensor], Tensor]


class _Weights(NamedTuple):
    """Those of one layer in one direction, in the kernels' order; ``hr`` where an LSTM projects its state."""

    ih: Any
    hh: Any
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    hr: Any = None

    def map(self, of_matrix: Callable, of_bias: Callable) -> _Weights:
        ih, hh, hr = (None if w is None else of_matrix(w) for w in (self.ih, self.hh, self.hr))
        b_ih, b_hh = (None if b is None else of_bias(b) for b in (self.b_ih, self.b_hh))
        return _Weights(ih, hh, b_ih, b_hh, hr)

    @property
    def masked(self) -> list[MaskedWeight]:
        return [w for w in self if isinstance(w, MaskedWeight)]

    @property
    def one_bias(self) -> bool:
        """Whether biases, if there are any, are the same for all draws."""
        return all(b is None or b.dim() == 1 for b in (self.b_ih, self.b_hh))

    @property
    def masks_input_alone(self) -> bool:
        """Whether the kernel can take the masked input, ``loc`` and all else as they are."""
        masks_state = isinstance(self.hh, MaskedWeight) or isinstance(self.hr, MaskedWeight)
        return self.one_bias and not masks_state and _loc(self.ih).dim() == 2


def _layers(kernel: Callable, step: Callable) -> Callable:
    """``torch.lstm`` and its like."""

    def layers(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 9 or not isinstance(args[3], bool):
            return NotImplemented  # a packed sequence
        x, hx, params, biases, number, dropout, train, bidirectional, batch_first = args
        directions = 1 + bidirectional
        size = len(params) // (number * directions)
        parts = [params[k : k + size] for k in range(0, len(params), size)]
        parts = parts if biases else [[*part[:2], None, None, *part[2:]] for part in parts]
        weights = [_Weights(*part).map(_plain, _same) for part in parts]
        dims = _dims(weights, x.shape[0 if batch_first else 1])
        if dims is None:
            return NotImplemented
        hx = tuple(hx) if step is _lstm else (hx,)
        x = x if batch_first else x.transpose(0, 1)
        if _pays_by_draw(weights, dims, x):
            out, *after = _by_draw(kernel, weights, dims, x, hx, args[3:8])
            return (out if batch_first else out.transpose(0, 1), *after)
        states: list[_State] = list(zip(*hx, strict=True))
        for first in range(0, len(weights), directions):
            outs = []
            for k in range(first, first + directions):
                out, states[k] = _run(kernel, step, weights[k], dims, x, states[k], backwards=k > first)
                outs.append(out)
            x = torch.cat(_alike(dims, *outs), -1)
            x = torch.dropout(x, dropout, train) if first + directions < len(weights) else x
        x = _whole(dims, x)
        last = (torch.stack([_whole(dims, t) for t in each]) for each in zip(*states, strict=True))
        return (x if batch_first else x.transpose(0, 1), *last)

    return layers


def _cell(kernel: Callable, step: Callable) -> Callable:
    """``torch.lstm_cell`` and its like: a layer at one time."""

    def at_one_time(x: Tensor, hx: Any, *params: Any, **kwargs: Any) -> Any:
        if kwargs:
            return NotImplemented
        weights = _Weights(*params).map(_plain, _same)
        dims = _dims([weights], len(x))
        if dims is None:
            return NotImplemented
        state = tuple(hx) if step is _lstm else (hx,)
        _, state = _run(kernel, step, weights, dims, x.unsqueeze(1), state)
        state = tuple(_whole(dims, t) for t in state)
        return state if step is _lstm else state[0]

    return at_one_time


def _run(
    kernel: Callable, step: Callable, w: _Weights, dims: BatchDims, x: Tensor, state: _State, backwards: bool = False
) -> tuple[Tensor, _State]:
    """One layer in one direction, on ``[batch, times, units]``: outputs at all times, and the last state."""
    if w.masks_input_alone:
        x = dims.rejoin(w.ih.mask_input(x)) if w.masked else x
        x, *now = _alike(dims, x.flip(1) if backwards else x, *state)
        hx = [t.unsqueeze(0) for t in now]
        flat = [t for t in w._replace(ih=_loc(w.ih)) if t is not None]
        out, *last = kernel(x, hx if step is _lstm else hx[0], flat, w.b_ih is not None, 1, 0.0, False, False, True)
        return out.flip(1) if backwards else out, tuple(t[0] for t in last)
    b_ih, b_hh = w.b_ih, w.b_hh
    if step is not _gru and w.one_bias and b_ih is not None and b_hh is not None:
        b_ih, b_hh = b_ih + b_hh, None  # of a GRU one stands inside of a product
    inputs, *now = (_whole(dims, t) for t in (F.linear(x, w.ih, b_ih), *state))
    hidden = _product(w.hh, b_hh, now[0])
    project = None if w.hr is None else _product(w.hr, None, now[1])
    outs, state = [], tuple(now)
    for x_t in reversed(inputs.unbind(1)) if backwards else inputs.unbind(1):
        state = step(x_t, hidden, state)
        state = state if project is None else (project(state[0]), *state[1:])
        outs.append(state[0])
    return torch.stack(outs[::-1] if backwards else outs, 1), state


def _product(weight: Any, bias: Tensor | None, like: Tensor) -> _Product:
    """``h -> W h + b``, whose mask is laid out once for all times."""
    if not isinstance(weight, MaskedWeight) or _loc(weight).dim() > 2 or (bias is not None and bias.dim() > 1):
        return partial(F.linear, weight=weight, bias=bias)
    scale, loc = weight.dims.rejoin(weight.mask_input(torch.ones_like(like))), _loc(weight)
    return lambda h: F.linear(h * scale, loc, bias)


# Draw by draw


def _pays_by_draw(weights: list[_Weights], dims: BatchDims, x: Tensor) -> bool:
    """Whether the kernel is faster, though called for each draw, than a step of all draws at each time."""
    if not dims.merged or not _of_draws(weights) or all(w.masks_input_alone for w in weights):
        return False
    draws, rows, times = torch.Size(dims.merged[:-1]).numel(), dims.merged[-1], x.shape[1]
    if draws > 1 and is_traced():
        return False  # would write down each draw
    return times >= draws or rows * times * weights[0].hh.shape[-1] >= _LARGE


def _by_draw(
    kernel: Callable, weights: list[_Weights], dims: BatchDims, x: Tensor, hx: _State, options: Sequence[Any]
) -> tuple[Tensor, ...]:
    plates = dims.merged[:-1]
    if isinstance(weights[0].ih, MaskedWeight):
        weights[0].ih.check_input(x)

    def laid_out(t: Tensor, event_dim: int) -> Tensor:
        return t.expand(*plates, 1, *t.shape[t.dim() - event_dim :]).squeeze(len(plates))

    def factors(w: Any) -> list[Tensor]:
        if not isinstance(w, MaskedWeight):
            return [laid_out(w, 2)]
        mask: Any = w.mask
        return [laid_out(w.loc, 2), laid_out((mask / w.keep).unsqueeze(-2), 2)]

    products = [t for w in weights for t in w.map(factors, lambda b: [laid_out(b, 1)]) if t is not None]
    x, *states = (dims.whole(dims.split(t)) for t in (x, *(h.transpose(0, 1) for h in hx)))
    outs = []
    for draw in itertools.product(*map(range, plates)):
        dense = [reduce(torch.mul, (t[draw] for t in factors)) for factors in products]
        state = [h[draw].transpose(0, 1).contiguous() for h in states]
        outs.append(kernel(x[draw], state if len(state) == 2 else state[0], dense, *options, True))
    out, *last = zip(*outs, strict=True)
    return torch.cat(out), *(torch.cat(each, 1) for each in last)


# One step: what comes from the input, the product with the state, the state


def _lstm(x: Tensor, hidden: _Product, state: _State) -> _State:
    h, c = state
    i, f, g, o = (x + hidden(h)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, hidden: _Product, state: _State) -> _State:
    (h,) = state
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, 1), hidden(h).chunk(3, 1)
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return (n + (x_z + h_z).sigmoid() * (h - n),)


def _rnn(activation: Callable) -> Callable:
    return lambda x, hidden, state: (activation(x + hidden(state[0])),)


# Weights, and the batch of all draws


def _loc(weight: Any) -> Tensor:
    return drop_equal(weight.loc, 2) if isinstance(weight, MaskedWeight) else weight


def _plain(weight: Any) -> Any:
    """``loc`` where no unit can be dropped, and there is but one."""
    never = isinstance(weight, MaskedWeight) and not weight.masked
    return _loc(weight) if never and _loc(weight).dim() == 2 else weight


def _same(bias: Tensor) -> Tensor:
    return drop_equal(bias, 1)


def _dims(weights: list[_Weights], rows: int) -> BatchDims | None:
    """What is merged in the inputs' batch; None where dense weights are wanted: of one draw, or with no place for more.

    Of one draw with dimensions of size 1 the rows are merged with these.
    """
    masked = [w for each in weights for w in each.masked]
    dims = masked[0].dims if masked else BatchDims(torch.Size())
    if any(
        [s.units for s in w.switches] != [_INPUTS] or (w.merged, w.trunk) != (dims.merged, dims.trunk) for w in masked
    ):
        return None
    if dims.merged:
        return dims
    several = any(w.batch_shape for w in masked) or not all(w.one_bias for w in weights)
    if not _of_draws(weights):
        return None if several else dims
    one = torch.Size((1,) * max((len(w.batch_shape) for w in masked), default=0))
    return dims._replace(merged=(*one, rows)) if one and all(w.batch_shape.numel() == 1 for w in masked) else None


def _of_draws(weights: list[_Weights]) -> bool:
    """Whether all masks are those of draws, and none of data."""
    return all(not w.per_datum for each in weights for w in each.masked)


def _whole(dims: BatchDims, t: Tensor) -> Tensor:
    """Of all draws, if it was of the trunk."""
    return dims.rejoin(dims.whole(dims.split(t)))


def _alike(dims: BatchDims, *tensors: Tensor) -> list[Tensor]:
    """Of all draws where one of them is."""
    one_size = len({len(t) for t in tensors}) == 1
    return list(tensors) if one_size else [_whole(dims, t) for t in tensors]


for _name, _step in {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn(torch.tanh), "rnn_relu": _rnn(torch.relu)}.items():
    _kernel = getattr(torch, _name)
    implements(_kernel)(_layers(_kernel, _step))
    implements(getattr(torch, f"{_name}_cell"))(_cell(_kernel, _step))
