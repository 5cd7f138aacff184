"""Networks and inputs that can be followed; of others what to give instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_dropout._checks import check_initialised

_WRAPPER = "a module whose forward takes these tensors in order and calls the network"


def inputs_of(net: Any, example: Any) -> tuple[Tensor, ...]:
    """The network's inputs by position.

    :raises TypeError: a network or inputs of another kind, naming what to give instead.
    :raises ValueError: inputs that do not fit the network's forward, or that are not two rows or more.
    """
    _check_network(net)
    if isinstance(example, Mapping):
        raise TypeError(
            f"example is a mapping ({', '.join(map(str, example))}), but inputs go by position: give from_torch "
            f"{_WRAPPER}, and example as a tuple"
        )
    if not isinstance(example, Tensor | Sequence):
        raise TypeError(f"example must be a tensor or a sequence of tensors, but found {type(example).__name__}")
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            instead = (
                "leave it out, with what follows" if x is None else f"give from_torch {_WRAPPER}, with all else set"
            )
            raise TypeError(f"example[{i}] is a {type(x).__name__}, but must be a tensor: {instead}")
    if not inputs or any(x.dim() == 0 or len(x) < 2 for x in inputs):
        raise ValueError("the example needs two rows of data or more, to tell which dimension is that of the data")
    try:
        inspect.signature(net.forward).bind(*inputs)
    except TypeError as error:
        raise ValueError(
            f"forward{inspect.signature(net.forward)} of {type(net).__name__} does not take the {len(inputs)} tensors "
            f"of example ({error}): give one for each input without default, or {_WRAPPER}"
        ) from error
    return inputs


def _check_network(net: Any) -> None:
    if not isinstance(net, nn.Module):
        found = f"the class {net.__name__}: give an instance" if isinstance(net, type) else type(net).__name__
        raise TypeError(f"net must be a torch.nn.Module, but found {found}")
    check_initialised(net)
    scripted = "the module that it was made from, which scripting leaves as it is"
    compiled = "its ._orig_mod, and compile what comes out"
    for path, layer in net.named_modules():
        if isinstance(layer, nn.DataParallel | nn.parallel.DistributedDataParallel):
            instead = "its .module"
        elif isinstance(layer, torch.jit.ScriptModule) or hasattr(layer, "_orig_mod"):  # the compiler is slow to import
            instead = scripted if isinstance(layer, torch.jit.ScriptModule) else compiled
        else:
            continue
        where = f"{type(net).__name__} has at {path!r}" if path else "net is"
        kind = "ScriptModule" if isinstance(layer, torch.jit.ScriptModule) else type(layer).__name__
        raise TypeError(f"{where} a {kind}, whose operations cannot be followed: give {instead}")
