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
from pyro_dropout.guides.rates import rates_of, units_of
from pyro_dropout.interop._operations import set_rate
from pyro_dropout.interop._outputs import output_of
from pyro_dropout.nn.module import BayesianModule
from pyro_dropout.nn.slots import CONVOLUTIONS, NORMALISATIONS

_CHANNELS = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}


def to_torch(module: BayesianModule, guide: AutoGuide, example: Tensor | Sequence[Tensor]) -> nn.Module:
    """A plain network with dropout layers, whose training mode is the guide's posterior and evaluation mode its median.

    Of ``AutoConcreteDropout`` it has hard masks at the learned rates, where the guide's are relaxed at its temperature:
    at 0.1 the guide's outputs have about a tenth less variance.

    The network of :func:`from_torch` gets its own dropout layers back, at the guide's rates, so that its state fits the
    original class. Any other layer with a rate is put behind a dropout layer (``nn.Sequential``), or before it where
    its outputs are masked. Masks are hard also where the guide relaxed them.

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
    values, rates, units = guide.median(), rates_of(guide), units_of(guide)
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
    shapes, calls = _shapes(net, inputs)
    for name, path in owners.items():
        site = names[name]
        for mask, key in ((site, name), (output_of(site), output_of(name))):
            if name.endswith("bias") or not bool(rates.get(mask, torch.zeros(())).any()):
                continue
            rate = _one_rate(mask, rates[mask])
            if len(module.slots[name]) > 1 or calls.count(path) > 1:
                raise ValueError(
                    f"{mask} has one mask wherever the network uses it, which is more than once: dropout layers would "
                    "draw one for each"
                )
            if key in module.dropout_layers:
                set_rate(net.get_submodule(module.dropout_layers[key]), rate)
            else:
                behind = mask != site
                shape = shapes.get(path, ((), ()))[behind]
                if units[mask].together > 1:
                    raise ValueError(
                        f"{mask} switches several outputs at once (stochastic depth), as no nn.Dropout does"
                    )
                layer = module._modules["net"].get_submodule(path)
                dropout = _dropout_for(layer, path, rate, shape, behind, len(inputs[0]))
                net = _put_beside(net, path, dropout, behind)
    try:
        with torch.no_grad():
            copy.deepcopy(net).eval()(*inputs)
    except AttributeError as error:
        raise ValueError(
            f"the network uses a layer that is now behind a dropout layer by its attributes: {error}"
        ) from error
    return net


def _one_rate(mask: str, rate: Tensor) -> float:
    if rate.dim():
        raise ValueError(f"{mask} has a rate for each unit, which nn.Dropout has not")
    return round(rate.item(), 6)


def _shapes(net: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Of the inputs and outputs of weight layers, and the layers in the order of their calls."""
    shapes: dict[str, tuple[Any, Any]] = {}
    calls: list[str] = []

    def note(path: str, layer_input: Tensor, output: Tensor) -> None:
        shapes[path] = tuple(layer_input.shape), tuple(output.shape)
        calls.append(path)

    probe = copy.deepcopy(net).eval()
    for path, layer in probe.named_modules():
        if isinstance(layer, (nn.Linear, nn.Embedding, *CONVOLUTIONS, *NORMALISATIONS)):
            layer.register_forward_hook(lambda _, args, out, path=path: note(path, args[0], out))
    with torch.no_grad(), said_of_arguments("the network, run on example,", inputs, {}):
        probe(*inputs)
    return shapes, calls


def _dropout_for(
    layer: nn.Module, path: str, rate: float, shape: tuple[int, ...], behind: bool, rows: int
) -> nn.Module:
    """The dropout layer that draws a mask of the units of what has this shape."""
    channels = isinstance(layer, (*CONVOLUTIONS, *NORMALISATIONS)) and not isinstance(layer, nn.LayerNorm)
    if shape[:1] == (rows,) and (behind or not isinstance(layer, nn.Embedding)):
        if len(shape) == 2:
            return nn.Dropout(rate)
        if channels and len(shape) - 2 in _CHANNELS:
            return _CHANNELS[len(shape) - 2](rate)
    raise ValueError(
        f"{type(layer).__name__} {path!r} has rate {rate:.3g} for {'outputs' if behind else 'inputs'} of shape "
        f"{shape}: its mask is one for all times or places, which no dropout layer beside it is"
    )


def _put_beside(net: nn.Module, path: str, dropout: nn.Module, behind: bool) -> nn.Module:
    layer = net.get_submodule(path)
    both = nn.Sequential(layer, dropout) if behind else nn.Sequential(dropout, layer)
    if not path:
        return both
    parent, _, child = path.rpartition(".")
    setattr(net.get_submodule(parent), child, both)
    return net
