"""Kept functions as an ordinary module, for where there is neither Pyro nor this package, nor Python."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from pyro_dropout._checks import check_flags, said
from pyro_dropout._failures import said_of_arguments
from pyro_dropout._modes import evaluation_mode
from pyro_dropout.nn.module import BayesianModule
from pyro_dropout.nn.slots import CONVOLUTIONS, NORMALISATIONS
from pyro_dropout.prediction.predictive import DropoutPredictive
from pyro_dropout.weights.weight import MaskedWeight

_SHARING = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *NORMALISATIONS)  # whose weight is one for all, beside masks


def export(
    draws: DropoutPredictive,
    *example: Tensor,
    module: BayesianModule | None = None,
    moments: bool = False,
    link: nn.Module | None = None,
) -> nn.Module:
    r"""The network of K functions that were kept, as a plain ``nn.Module``: :math:`f^{W_1}(x), \ldots, f^{W_K}(x)`.

    Means of weights are its parameters, masks its buffers (all of ``state_dict``, which safetensors takes); there are
    no random numbers and no plates in it. What it returns is what the functions return, so that ``torch.export.export``
    and ``torch.onnx.export`` have nothing to approximate. A datum goes through all K functions as K rows of one batch.
    Layers with one weight for all draws, of linear, convolutional, embedding and normalisation layers, multiply what
    goes in or comes out by the masks; of others each draw's weight is computed, and the layer called K times.

    :param draws: of :meth:`DropoutPredictive.draw <pyro_dropout.DropoutPredictive.draw>`.
    :param example: the network's inputs, with two rows or more, which both are tried with.
    :param module: the network, if the model is none and has more than one.
    :param moments: return mean and variance over functions instead, ``[N, ...]`` each: the variance is the epistemic
        one, with K below it.
    :param link: applied to what each function returns, ``nn.Softmax(-1)`` say, before moments are taken.
    :returns: a module in evaluation mode: of inputs ``[N, ...]``, outputs ``[K, N, ...]`` or their moments.
    :raises TypeError: draws that are not kept; a model without a network that can be found.
    :raises ValueError: a network that mixes the rows of a batch, or whose outputs do not have the data first; one that
        does in the plain module something else than in the model.

    Example::

        >>> from pyro_dropout import from_torch
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
        >>> x = torch.randn(5, 3)
        >>> model, guide = from_torch(net, x)
        >>> draws = DropoutPredictive(model, guide=guide, num_samples=20, seed=0).draw(x)
        >>> plain = export(draws, x)
        >>> plain(x[:2]).shape
        torch.Size([20, 2, 2])
        >>> rows = [({0: torch.export.Dim.DYNAMIC},)]  # of each input the first dimension
        >>> program = torch.export.export(plain, (x,), dynamic_shapes=rows)
        >>> torch.allclose(program.module()(x[:3]), plain(x[:3]))
        True
    """
    if not isinstance(draws, DropoutPredictive):
        raise TypeError(f"draws must be what predictive.draw(...) returns, but found {said(draws)}")
    if draws.guide is not None:
        raise TypeError("draws are not kept yet: predictive.draw(x) has functions to export")
    check_flags(moments=moments)
    if link is not None and not isinstance(link, nn.Module):
        raise TypeError(f"link must be a module, but found {said(link)}")
    for i, x in enumerate(example):
        if not isinstance(x, Tensor) or x.dim() == 0 or len(x) < 2:
            raise ValueError(f"example[{i}] must be a tensor with two rows or more, but found {said(x)}")
    if not example:
        raise ValueError("example: give inputs of the network, with two rows or more")
    module = _network_of(draws, module)
    values = {name: draws.posterior_samples.get(module.site_name(name)) for name in module.slots}
    if missing := [module.site_name(name) for name, value in values.items() if value is None]:
        raise ValueError(f"draws have no {', '.join(missing)}: are they of this module?")
    for name, value in values.items():
        if not isinstance(value, MaskedWeight):
            values[name] = value.reshape(len(draws), *module._slots[name].value.shape)
    net = _plain(module, values, len(draws))
    plain = _KeptFunctions(net, len(draws), None, False).eval()
    with torch.no_grad(), said_of_arguments("the plain network", example, {}):
        try:
            found = plain(*example)
        except RuntimeError as error:
            raise ValueError(
                f"the plain network fails ({str(error).splitlines()[0]}): it has {len(draws)} rows for each of the "
                "data's, and a layer with masks or weights of each function gets others (positions, say)"
            ) from error
        _check_rows(plain, found, example)
        _check_same(module, draws, found, example)
    return _KeptFunctions(net, len(draws), copy.deepcopy(link), moments).eval()


class _KeptFunctions(nn.Module):
    """K functions of a network, of which a datum is K rows.

    :param net: for ``[K N, ...]``, the N rows of the first function before those of the second.
    :param number: K.
    :param link: applied to outputs, or None.
    :param moments: whether mean and variance are returned.
    """

    def __init__(self, net: nn.Module, number: int, link: nn.Module | None, moments: bool) -> None:
        super().__init__()
        self.net, self.link, self.number, self.moments = net, link, number, moments

    def forward(self, *inputs: Tensor) -> Any:
        rows = [x.repeat(self.number, *[1] * (x.dim() - 1)) for x in inputs]
        out = tree_map(lambda t: _split(t, self.number), self.net(*rows))
        if self.link is not None:
            out = tree_map(self.link, out)
        if not self.moments:
            return out
        return tree_map(lambda t: t.mean(0), out), tree_map(lambda t: t.var(0, correction=0), out)


class _Masked(nn.Module):
    """A layer with one weight for all functions, around which their masks are."""

    inputs: Tensor | None
    outputs: Tensor | None

    def __init__(self, layer: nn.Module, inputs: Tensor | None, outputs: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("inputs", inputs)  # z / keep, [K, units]
        self.register_buffer("outputs", outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.inputs is None else self._times(x, self.inputs)
        out = self.layer(x)
        return out if self.outputs is None else self._times(out, self.outputs)

    def _times(self, x: Tensor, factor: Tensor) -> Tensor:
        number, units = factor.shape
        channels = 1 if isinstance(self.layer, (*CONVOLUTIONS, *_BY_CHANNEL)) else x.dim() - 1
        shape = [number, 1, *[1] * (x.dim() - 1)]
        shape[1 + channels] = units
        return (_split(x, number) * factor.reshape(shape)).reshape(x.shape)


_BY_CHANNEL = tuple(layer for layer in NORMALISATIONS if layer is not nn.LayerNorm)


class _Value(nn.Module):
    """A parameter of K functions: ``loc`` times ``z / keep`` of each mask."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.units = [switch.units for switch in value.switches] if isinstance(value, MaskedWeight) else []
        self.event, loc = _event_and_loc(value)
        self.loc = nn.Parameter(loc.detach().clone(), requires_grad=False)
        for i, factor in enumerate(_factors(value)):
            self.register_buffer(f"factor_{i}", factor)

    def forward(self, draw: int) -> Tensor:
        value = self.loc if self.loc.dim() == self.event else self.loc[draw]
        for i, units in enumerate(self.units):
            value = value * units.spread(self.get_buffer(f"factor_{i}")[draw], tuple(value.shape))
        return value


class _ByDraw(nn.Module):
    """A layer, or a part of a network, that is called for each function with its own weights."""

    def __init__(self, layer: nn.Module, values: dict[str, Tensor], number: int) -> None:
        super().__init__()
        self.recurrence = _Recurrence(layer) if isinstance(layer, nn.RNNBase) else None
        self.number, self.names, self.kind = number, list(values), type(layer).__name__
        self.layer = nn.Identity() if isinstance(layer, nn.RNNBase) else layer
        self.values = nn.ModuleList(_Value(value) for value in values.values())
        first = isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and not layer.batch_first
        if isinstance(layer, nn.MultiheadAttention) and first:
            raise NotImplementedError("attention is exported with batch_first=True alone")
        self.dim, self.states = int(first), int(isinstance(layer, nn.RNNBase))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            raise NotImplementedError(
                f"{self.kind}, which has other weights in each function, is called with {', '.join(kwargs)}: it is "
                "exported with tensors by position alone"
            )
        first, *others = args
        parts = [_chunks(first, self.number, self.dim), *(_chunks(a, self.number, self.states) for a in others)]
        outs = []
        for draw in range(self.number):
            weights = {name: value(draw) for name, value in zip(self.names, self.values, strict=True)}
            given = [part[draw] if isinstance(part, tuple) else part for part in parts]
            if self.recurrence is not None:
                outs.append(self.recurrence(weights, *given))
            else:
                outs.append(functional_call(self.layer, weights, tuple(given)))
        if self.recurrence is None:
            return tree_map(lambda *t: torch.cat(t, self.dim), *outs)
        out, states = zip(*outs, strict=True)
        return torch.cat(out, self.dim), tree_map(lambda *t: torch.cat(t, self.states), *states)


def _chunks(value: Any, number: int, dim: int) -> Any:
    """What each function gets of an argument: of states a tuple, of what is no tensor the same."""
    if isinstance(value, tuple):
        return tuple(zip(*(_chunks(t, number, dim) for t in value), strict=True))
    return value.unflatten(dim, (number, -1)).unbind(dim) if isinstance(value, Tensor) else value


class _Recurrence(nn.Module):
    """A recurrent layer without its sampled weights, which it would keep in a list too."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        if layer.proj_size:
            raise NotImplementedError("recurrent layers are exported without proj_size")
        self.function, self.pair = getattr(torch, layer.mode.lower()), layer.mode == "LSTM"
        self.names, self.states = layer._flat_weights_names, layer.num_layers * (1 + layer.bidirectional)
        self.options = (layer.bias, layer.num_layers, 0.0, False, layer.bidirectional, layer.batch_first)
        self.dim, self.width = int(not layer.batch_first), layer.hidden_size
        for name, parameter in layer.named_parameters():  # without a prior
            if parameter.numel():
                self.register_parameter(name, parameter)

    def forward(self, weights: dict[str, Tensor], x: Tensor, first: Any = None) -> Any:
        if first is None:
            start = x.new_zeros(self.states, x.shape[self.dim], self.width)
            first = (start, start) if self.pair else start
        flat = [weights[name] if name in weights else getattr(self, name) for name in self.names]
        out, *ends = self.function(x, first, flat, *self.options)
        return out, tuple(ends) if self.pair else ends[0]


def _split(t: Tensor, number: int) -> Tensor:
    return t.unflatten(0, (number, -1))


def _network_of(draws: DropoutPredictive, module: Any) -> BayesianModule:
    if module is None:
        model = draws.model
        found = [m for m in model.modules() if isinstance(m, BayesianModule)] if isinstance(model, nn.Module) else []
        if len(found) != 1:
            raise TypeError(f"module: the model has {len(found)} networks that can be found; say which one to export")
        module = found[0]
    if not isinstance(module, BayesianModule):
        raise TypeError(f"module must be the BayesianModule of the model, but found {said(module)}")
    return module


def _plain(module: BayesianModule, values: dict[str, Tensor], number: int) -> nn.Module:
    """The network with plain layers around which, or for each draw of which, the masks are."""
    net = copy.deepcopy(module._modules["net"])
    assert isinstance(net, nn.Module)
    of_owner: dict[str, dict[str, Tensor]] = {}
    for name, places in module.slots.items():
        for path, attribute in places:
            of_owner.setdefault(path, {})[attribute] = values[name]
    for path in sorted(of_owner, key=len):
        above = [other for other in of_owner if _is_below(path, other) and not _shares(net, other, of_owner[other])]
        if above:  # called with the part of the network that it is in
            continue
        layer = net.get_submodule(path)
        if _shares(net, path, of_owner[path]):
            new = _shared_layer(layer, of_owner[path])
        else:
            below = {p: v for p, v in of_owner.items() if p == path or _is_below(p, path)}
            start = len(path) + 1 if path else 0
            flat = {f"{p[start:]}.{a}".lstrip("."): v for p, of in below.items() for a, v in of.items()}
            new = _ByDraw(_with_parameters(layer, flat), flat, number)
        if not path:
            net = new
            break
        for place, other in list(net.named_modules(remove_duplicate=False)):  # it may stand in several
            if other is layer:
                net.set_submodule(place, new)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net


def _is_below(path: str, other: str) -> bool:
    return path != other and (not other or path.startswith(f"{other}."))


def _shares(net: nn.Module, path: str, values: dict[str, Tensor]) -> bool:
    """Whether one weight does for all functions, with masks beside it."""
    if type(net.get_submodule(path)) not in _SHARING:
        return False
    weight, bias = values.get("weight"), values.get("bias")
    if any(loc.dim() > event for event, loc in map(_event_and_loc, values.values())):
        return False
    normal = isinstance(net.get_submodule(path), (nn.Embedding, *NORMALISATIONS))
    if isinstance(weight, MaskedWeight):
        dims = {switch.units.dim for switch in weight.switches}
        output = {_output_dim(net.get_submodule(path))}
        if normal and dims != output:
            return False
        if not dims & output or getattr(net.get_submodule(path), "bias", None) is None:
            return True
        return isinstance(bias, MaskedWeight)  # by the mask of its weight
    return not isinstance(bias, MaskedWeight)


def _output_dim(layer: nn.Module) -> int:
    """Of a weight's event dimensions that of output units."""
    return 1 if isinstance(layer, nn.Embedding | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else 0


def _shared_layer(layer: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    inputs = outputs = None
    for attribute, value in values.items():
        _, loc = _event_and_loc(value)
        del layer._buffers[attribute]
        setattr(layer, attribute, nn.Parameter(loc.detach().clone()))
        if attribute != "weight" or not isinstance(value, MaskedWeight):
            continue
        for switch, factor in zip(value.switches, _factors(value), strict=True):
            laid_out = switch.units.laid_out(factor)
            if bool((laid_out == 1).all()):
                continue
            width = switch.units.width(tuple(value.event_shape))
            laid_out = laid_out.expand(len(laid_out), width).contiguous()
            if switch.units.dim == _output_dim(layer):
                outputs = laid_out
            else:
                inputs = laid_out
    return layer if inputs is outputs is None else _Masked(layer, inputs, outputs)


def _with_parameters(layer: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """Its weights are parameters again, empty ones, which functional calls replace."""
    for name in values:
        path, _, attribute = name.rpartition(".")
        owner = layer.get_submodule(path)
        old = owner._buffers.pop(attribute)
        assert old is not None
        owner.register_parameter(attribute, nn.Parameter(old.new_empty(0)))
    return layer


def _factors(value: Tensor) -> list[Tensor]:
    """``z / keep`` of each mask, ``[K, units]``."""
    if not isinstance(value, MaskedWeight):
        return []
    found = []
    for mask, keep, units, _ in value.switches:
        assert isinstance(mask, Tensor)
        count = units.count(tuple(value.event_shape))
        factor = (mask / keep).reshape(-1, count) if value.masked else torch.ones_like(mask).reshape(-1, count)
        found.append(factor.detach().clone())
    return found


def _event_and_loc(value: Tensor) -> tuple[int, Tensor]:
    """Dimensions of one draw; ``loc``, ``[*event]`` where it is the same in all draws, ``[K, *event]`` elsewhere."""
    if isinstance(value, MaskedWeight):
        event, loc = value.units.event_dim, value.loc
    else:
        event, loc = value.dim() - 1, value
    if loc.dim() == event:
        return event, loc
    flat = loc.reshape(-1, *loc.shape[loc.dim() - event :])
    return event, flat[0] if bool((flat == flat[:1]).all()) else flat


def _check_rows(plain: nn.Module, found: Any, example: tuple[Tensor, ...]) -> None:
    for leaf in tree_leaves(found):
        if not isinstance(leaf, Tensor) or leaf.dim() < 2 or leaf.shape[1] != len(example[0]):
            raise ValueError(f"a network is exported whose outputs have the data first, but found {said(leaf)}")
    alone = plain(*(x[:1] for x in example))
    for one, of_all in zip(tree_leaves(alone), tree_leaves(found), strict=True):
        if not _close(one, of_all[:, :1], of_all):
            raise ValueError(
                "the network mixes the rows of a batch, so that what a function returns for a datum depends on the "
                "others, and on how many functions there are: put batch normalisation into eval mode, or attend over "
                "other dimensions than the first"
            )


def _close(a: Tensor, b: Tensor, among: Tensor) -> bool:
    """To rounding, of outputs of any size."""
    size = among.abs().max().item() if among.is_floating_point() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * size)


def _check_same(module: BayesianModule, draws: DropoutPredictive, found: Any, example: tuple[Tensor, ...]) -> None:
    """With the module itself, function by function."""
    for k in range(min(len(draws), 3)):
        values = {n: v[k] for n, v in draws.posterior_samples.items() if n in map(module.site_name, module.slots)}
        with evaluation_mode():
            expected = poutine.condition(module, data=values)(*example)
        for one, other in zip(tree_leaves(expected), tree_leaves(found), strict=True):
            if not _close(one, other[k], other):
                raise ValueError(
                    f"function {k} of the plain network differs from that of the model by up to "
                    f"{(one - other[k]).abs().max().item():.2g}: the network does something that depends on how its "
                    "weights are held"
                )
