"""From a dropout posterior to a PyTorch network with dropout layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from pyro_dropout._checks import said
from pyro_dropout._failures import said_of_arguments
from pyro_dropout.guides.rates import rates_of
from pyro_dropout.nn.module import BayesianModule
from pyro_dropout.nn.slots import CONVOLUTIONS

_CHANNELS = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}


def to_torch(module: BayesianModule, guide: AutoGuide, example: Tensor | Sequence[Tensor]) -> nn.Module:
    """A plain network with dropout layers, whose training mode is the guide's posterior and evaluation mode its median.

    The network of :func:`from_torch` gets its own dropout layers back, at the guide's rates, so that its state fits the
    original class. Any other layer with a rate is put behind a dropout layer (``nn.Sequential``). Masks are hard also
    where the guide relaxed them.

    :param module: the ``BayesianModule`` in the guide's model.
    :param guide: a dropout guide, set up (after a step, or a first call).
    :param example: inputs of the network, as a check of their shapes.
    :returns: a network with parameters of its own, in the module's mode.
    :raises ValueError: a guide without this module's weights; what a dropout layer cannot do: a rate per unit, one mask
        for all times or of a recurrent layer, a layer that the network calls by its attributes.

    Example::

        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule
        >>> module = BayesianModule(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)))
        >>> guide, x = AutoBernoulliDropout(module, rate=0.1), torch.randn(5, 3)
        >>> _ = guide(x)
        >>> to_torch(module, guide, x)[2]
        Sequential(
          (0): Dropout(p=0.1, inplace=False)
          (1): Linear(in_features=8, out_features=1, bias=True)
        )
    """
    if not isinstance(module, BayesianModule):
        raise TypeError(f"module must be the BayesianModule of the guide's model, but found {said(module)}")
    if not isinstance(guide, AutoGuide):
        raise TypeError(f"guide must be a dropout guide, but found {said(guide)}")
    if getattr(guide, "prototype_trace", None) is None:
        raise ValueError("guide has no parameters before its first call: call it with data")
    inputs = (example,) if isinstance(example, Tensor) else example
    if not (isinstance(inputs, tuple | list) and inputs and all(isinstance(x, Tensor) for x in inputs)):
        raise TypeError(f"example must be a tensor, or a tuple of tensors, but found {said(example)}")
    inputs = tuple(inputs)
    values, rates = guide.median(), rates_of(guide)
    names = {name: module.site_name(name) for name in module.slots}
    if missing := [site for site in names.values() if site not in values]:
        raise ValueError(
            f"the guide has no {', '.join(missing)}: give the guide of a model with this module, after its first call"
        )
    net = copy.deepcopy(module.net)
    owners = {}
    for name, places in module.slots.items():
        owners[name] = places[0][0]
        parameter = nn.Parameter(values[names[name]].detach().clone())
        for path, attribute in places:
            owner = net.get_submodule(path)
            del owner._buffers[attribute]
            setattr(owner, attribute, parameter)
    shapes, calls = _input_shapes(net, inputs)
    for name, path in owners.items():
        rate = rates.get(names[name], torch.zeros(()))
        if not bool(rate.any()):
            continue
        if rate.dim():
            raise ValueError(f"{names[name]} has a rate for each unit, which nn.Dropout has not")
        if len(module.slots[name]) > 1 or calls.count(path) > 1:
            raise ValueError(
                f"{names[name]} has one mask wherever the network uses it, which is more than once: dropout layers "
                "would draw one for each"
            )
        if name in module.dropout_layers:
            layer: Any = net.get_submodule(module.dropout_layers[name])
            layer.p = round(rate.item(), 6)
        else:
            net = _put_dropout_before(net, path, round(rate.item(), 6), shapes.get(path, ()), len(inputs[0]))
    try:
        with torch.no_grad():
            copy.deepcopy(net).eval()(*inputs)
    except AttributeError as error:
        raise ValueError(
            f"the network uses a layer that is now behind a dropout layer by its attributes: {error}"
        ) from error
    return net


def _input_shapes(net: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Of the inputs of weight layers, and the layers in the order of their calls."""
    shapes: dict[str, tuple[int, ...]] = {}
    calls: list[str] = []

    def note(path: str, layer_input: Tensor) -> None:
        shapes[path] = tuple(layer_input.shape)
        calls.append(path)

    probe = copy.deepcopy(net).eval()
    for path, layer in probe.named_modules():
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            layer.register_forward_pre_hook(lambda _, args, path=path: note(path, args[0]))
    with torch.no_grad(), said_of_arguments("the network, run on example,", inputs, {}):
        probe(*inputs)
    return shapes, calls


def _put_dropout_before(net: nn.Module, path: str, rate: float, shape: tuple[int, ...], rows: int) -> nn.Module:
    layer = net.get_submodule(path)
    if isinstance(layer, nn.Linear) and len(shape) == 2 and shape[0] == rows:
        dropout: nn.Module = nn.Dropout(rate)
    elif isinstance(layer, CONVOLUTIONS) and shape[:1] == (rows,):
        dropout = _CHANNELS[len(layer.kernel_size)](rate)
    else:
        raise ValueError(
            f"{type(layer).__name__} {path!r} has rate {rate:.3g} for inputs of shape {shape}: its mask is one for all "
            "times or places, which no dropout layer before it is"
        )
    if not path:
        return nn.Sequential(dropout, layer)
    parent, _, child = path.rpartition(".")
    setattr(net.get_submodule(parent), child, nn.Sequential(dropout, layer))
    return net
