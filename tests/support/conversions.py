"""Whether a network converts exactly: masks of kept functions put into the network itself, by hand."""

import copy
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyro_dropout import DropoutPredictive, from_torch
from tests.support.products import Products

DRAWS, ROWS = 2, 2


class Case(NamedTuple):
    """A network to convert.

    :param name: in the table.
    :param make: the network in evaluation mode, for images of this size.
    :param dropouts: by mask the dropout layer that draws it; of one that is called several times, with the number of
        the call. Or a function of the network that gives these.
    :param refused: a regular expression of the sentence that says why the network does not convert, if it does not.
    :param rate: given to ``from_torch``; then all linear layers and convolutions have masks.
    :param sizes: of images.
    :param fixed: whether the network takes no other size than that which it was made for.
    :param output: the tensor in what the network returns.
    """

    name: str
    make: Callable[[int], nn.Module]
    dropouts: Mapping[str, Any] | Callable[[nn.Module], Mapping[str, Any]] = MappingProxyType({})
    refused: str = ""
    rate: float | None = None
    sizes: tuple[int, int] = (64, 224)
    fixed: bool = False
    output: Callable[[Any], Tensor] = lambda out: out


class Outcome(NamedTuple):
    """What came out of a conversion at one size.

    :param sentence: why it was refused, or nothing.
    :param masked: masks with a rate above 0.
    :param expected: those that should have one.
    :param passes: that the conversion took, by products with weights.
    :param seconds: that it took.
    :param deviation: the largest, of the functions from the network with their masks, at all sizes, relative to it.
    :param effect: the deviation that no masks at all would make; the smallest.
    """

    sentence: str
    masked: set[str]
    expected: set[str]
    passes: float
    seconds: float
    deviation: float = 0.0
    effect: float = 0.0


def convert(case: Case, size: int) -> Outcome:
    """Converts a network by an example of this size, and compares kept functions at all sizes that it takes."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    net, x = case.make(size), torch.randn(ROWS, 3, size, size)
    with torch.no_grad(), Products() as one:
        net(x)
    start = time.perf_counter()
    try:
        with Products() as all_of_them:
            model, guide = from_torch(net, x, lambda module: lambda x: case.output(module(x)), rate=case.rate)
            guide(x)
        sentence = ""
    except ValueError as error:
        sentence = str(error)
    seconds, passes = time.perf_counter() - start, all_of_them.count / one.count
    dropouts = case.dropouts(net) if callable(case.dropouts) else case.dropouts
    case = case._replace(dropouts=dropouts)
    expected = _weights(net) if case.rate is not None else set(dropouts)
    if sentence:
        return Outcome(sentence, set(), expected, passes, seconds)
    predict = DropoutPredictive(model, guide=guide, num_samples=DRAWS, return_sites=["_RETURN"], seed=1)
    masked = {name for name, rate in guide.rates().items() if rate > 0}
    functions = predict.draw(x)
    sizes = [size] if case.fixed else case.sizes
    found = [_compare(case, net, functions, masked, torch.randn(ROWS, 3, s, s)) for s in sizes]
    deviations, effects = zip(*found, strict=True)
    return Outcome("", masked, expected, passes, seconds, max(deviations), min(effects))


def _compare(
    case: Case, net: nn.Module, functions: DropoutPredictive, masked: set[str], x: Tensor
) -> tuple[float, float]:
    """Deviation of functions from the network with their masks, and of the network without masks."""
    out = functions(x)["_RETURN"]
    deviations, effects = [], []
    with torch.no_grad():
        plain = case.output(net(x))
        for draw in range(DRAWS):
            masks = {name: _mask(functions.posterior_samples, name)[draw].flatten() for name in masked}
            expected = case.output(_with_masks(net, case, masks)(x))
            deviations.append(((out[draw] - expected).abs().max() / expected.abs().max()).item())
            effects.append(((plain - expected).abs().max() / expected.abs().max()).item())
    return max(deviations), min(effects)


def _mask(samples: Any, name: str) -> Tensor:
    weight = name.removesuffix("output") + "weight" if name.endswith(".output") else name
    return next(switch.mask for switch in samples[weight].switches if switch.name == name)


def _hook(scale: Tensor, number: int) -> Callable:
    """Multiplies what one of a layer's calls returns: by channels, which are last where there are no places."""
    calls = []

    def scaled(_: Any, args: Any, out: Tensor) -> Tensor:
        calls.append(len(calls))
        factor = scale.reshape(-1, *(1,) * (out.dim() - 2)) if len(scale) > 1 else scale
        return out * factor if calls[-1] == number else out

    return scaled


def _with_masks(net: nn.Module, case: Case, masks: dict[str, Tensor]) -> nn.Module:
    """The network itself, in evaluation mode, whose dropout layers have these masks, or else its weights."""
    net = copy.deepcopy(net)
    for name, z in masks.items():
        path, _, attribute = name.rpartition(".")
        if case.rate is None:
            found: Any = case.dropouts[name]  # type: ignore[index]
            path, number = (found, 0) if isinstance(found, str) else found
            dropout: Any = net.get_submodule(path)
            dropout.register_forward_hook(_hook(z / (1 - dropout.p), number))
        else:
            layer = net.get_submodule(path)
            weight, groups = getattr(layer, attribute), getattr(layer, "groups", 1)
            scale = (z / (1 - case.rate)).reshape(groups, 1, -1, *(1,) * (weight.dim() - 2))
            weight.data = (weight.unflatten(0, (groups, -1)) * scale).flatten(0, 1)
    return net


def _weights(net: nn.Module) -> set[str]:
    """Names of the weights that one rate for all is for."""
    return {f"{path}.weight" for path, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
