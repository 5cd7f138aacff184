"""From a PyTorch network with dropout layers to a Pyro model and its dropout posterior."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_dropout._checks import check_functions, check_positive, said
from pyro_dropout._modes import evaluation_mode
from pyro_dropout.guides.auto import AutoBernoulliDropout
from pyro_dropout.interop._dataflow import Flow, follow_dropouts
from pyro_dropout.interop._given_rates import given_rates
from pyro_dropout.interop._graphs import is_dropout, twin, without_hidden
from pyro_dropout.interop._inputs import inputs_of
from pyro_dropout.interop._operations import drop_path_rate, set_rate
from pyro_dropout.interop._outputs import output_of
from pyro_dropout.nn.module import BayesianModule
from pyro_dropout.nn.priors import lengthscale_of


def from_torch(
    net: nn.Module,
    example: Tensor | Sequence[Tensor],
    model: Callable[[BayesianModule], Callable] | None = None,
    *,
    rate: Any = None,
    guide: Callable = AutoBernoulliDropout,
    prior: Any = None,
    weight_decay: float | None = None,
    size: int | None = None,
    precision: float = 1.0,
    refused: str = "raise",
) -> tuple[Any, Any]:
    r"""A trained network as a Pyro model and its dropout posterior (MC section 3).

    Each dropout layer's rate goes to the weight whose input units it masks; the weights are the network's own
    (``loc = E[W]`` is PyTorch's inverted scaling). A layer may stand before ReLU, pooling of whole channels, reshaping
    and transposing, with which its mask commutes; several in a row multiply, ``keep = keep₁ keep₂``. Where what follows
    does not commute with it, a normalisation, a concatenation, a residual sum, it masks the output units of the layer
    that it stands behind, with the bias: then the guide is given ``units`` too. Stochastic depth (``StochasticDepth``,
    ``DropPath``) is one unit for all outputs of a residual branch's last layer. Weights without a
    dropout have rate 0, or the one that ``rate`` gives them: so networks come in that were trained without dropout.
    Draws have the distribution of the network's passes with its dropout layers alone in training mode: those of each
    datum as function draws, those of all data jointly with masks per datum; ``guide.median()`` is ``net.eval()``.
    ``guide=AutoConcreteDropout`` has relaxed masks instead, also in predictions, of about a tenth less variance.

    ``weight_decay`` λ of ``torch.optim``, which adds λ/2 ‖w‖² to the mean loss of a datum, becomes the prior
    ``Normal(0, 1/l)`` with

    .. math:: l^2 = N \lambda \, \mathrm{keep} \, \tau

    (MC eq. 12, ``τ = keep · l² / (2 N λ_MC)``, with the paper's unscaled ``M = loc / keep`` and ``λ_MC ‖M‖²`` taken to
    ``loc`` and λ/2).

    :param net: any network that ``torch.fx`` can follow; it is not changed. With ``rate`` also one that it cannot
        follow, if nothing in it is random.
    :param example: inputs of the network by position, two rows of data or more; only shapes matter. Those that are
        left out have their defaults.
    :param model: makes the Pyro model from the ``BayesianModule``, such as a likelihood around it; by default the
        module is the model.
    :param rate: rates, in [0, 1), of weights that have no dropout: masks of their input units. A number is for all
        linear layers, convolutions and recurrent layers. A function gets the weight's name and its layer, and returns a
        number, or None for no dropout. In a mapping to numbers a key means

        * a weight's own name, as in ``net.named_parameters()``: ``"fc1.weight"``, ``"lstm.weight_hh_l0"``;
        * the path of a module, as in ``net.named_modules()``: all weights in it, ``"fc1"``, ``"features"``;
        * a type: all layers of it, ``nn.Linear``.

        The most particular key decides, in this order, then the innermost module or narrowest type; what no key
        matches has no dropout. A recurrent layer's ``weight_hh_*``, whose masks are on its state, are meant by their
        own name, or by a function, alone.
    :param guide: makes the guide from model and ``rate``: ``AutoBernoulliDropout`` for the given rates,
        ``partial(AutoBernoulliDropout, learnable=True)`` or ``AutoConcreteDropout`` to learn them from here. Where
        outputs are masked it gets ``units`` too.
    :param prior: as in :class:`~pyro_dropout.BayesianModule`, instead of a weight decay; ``Normal(0, 1)`` by default.
        All parameters are learned, frozen ones too, unless a function gives None for them.
    :param weight_decay: λ, with which the network was trained.
    :param size: number of data points N, for ``weight_decay``.
    :param precision: negative log-likelihood of a datum per unit of the training loss: 1 for cross-entropy, τ for ½
        squared error, τ/2 for ``nn.MSELoss``.
    :param refused: what happens with dropout that is no mask of a weight, of attention's probabilities say:
        ``"raise"``, or ``"leave out"``, which converts the network with these at rate 0, and warns of each.
    :returns: the model, and the guide; like any AutoGuide the guide of a ``model`` is set up at its first call.
    :raises ValueError: no active dropout in the network, and no ``rate``; a key of ``rate`` that matches nothing, or a
        weight that has a dropout already; a dropout that is no mask of input or output units (of a sum of branches;
        inside attention or between recurrent layers; one mask for each pixel or time step), any other random numbers,
        a network that computes other things in training, naming the layers; a weight decay without size, or that is
        not positive; parameters of another guide in Pyro's global store.
    :raises TypeError: a network or inputs of another kind (compiled, scripted, a mapping); a ``rate`` that is no
        number, or is given by what is neither name nor type.

    Example::

        >>> net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))
        >>> x = torch.randn(5, 3)
        >>> model, guide = from_torch(net, x, weight_decay=1e-4, size=1000)
        >>> guide.rates()
        {'0.weight': tensor(0.), '3.weight': tensor(0.2000)}
        >>> from pyro_dropout import DropoutPredictive
        >>> DropoutPredictive(model, guide=guide, num_samples=100, return_sites=["_RETURN"])(x)["_RETURN"].shape
        torch.Size([100, 5, 1])
        >>> trained_without = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> pyro.clear_param_store()
        >>> from_torch(trained_without, x, rate={nn.Linear: 0.1, "0": 0.0})[1].rates()
        {'0.weight': tensor(0.), '2.weight': tensor(0.1000)}
    """
    inputs = inputs_of(net, example)
    check_functions(guide=guide, **({} if model is None else {"model": model}))
    check_positive(precision=precision, **({} if size is None else {"size": size}))
    if weight_decay is not None and prior is not None:
        raise ValueError("give prior or weight_decay, not both: weight_decay is the prior's precision")
    if refused not in ("raise", "leave out"):
        raise ValueError(f'refused must be "raise" or "leave out", but found {said(refused)}')
    added = {} if rate is None else given_rates(net, rate)
    given, hidden = (net, {}) if refused == "raise" else without_hidden(net)
    flow = follow_dropouts(given, inputs, may_have_none=bool(added), leave_out=refused == "leave out")
    if left := [*hidden.values(), *flow.left_out.values()]:
        warnings.warn(f"left out of {type(net).__name__}, at rate 0: {'; '.join(left)}", stacklevel=2)
    _check_active(given, flow, added)
    keeps = {name: math.prod(1 - d.rate for d in dropouts) for name, dropouts in flow.dropouts.items()}
    keeps |= {name: 1 - value for name, value in added.items()}
    bare = _without_dropout(given, flow)

    def decayed(name: str, _: Tensor) -> Any:
        assert weight_decay is not None
        keep = keeps.get(name, 1.0) * keeps.get(output_of(name), 1.0)
        return dist.Normal(0.0, 1 / lengthscale_of(weight_decay, size, keep, precision))

    if weight_decay is not None:
        prior = decayed
    module = BayesianModule(bare, dist.Normal(0.0, 1.0) if prior is None else prior, [x.dim() - 1 for x in inputs])
    parameters = {name for name, _ in net.named_parameters()}
    masked = {n for n in parameters if n in keeps or (output_of(n) in keeps and n.endswith(("weight", "bias")))}
    if lost := sorted(masked - module.slots.keys()):
        raise ValueError(
            f"a dropout masks {', '.join(lost)}, but prior gives no distribution for it, and a weight without a "
            "posterior has no mask: give it a prior, or its dropout rate 0"
        )
    for name in sorted(masked):
        _check_units(module, name, inputs=name in keeps, outputs=output_of(name) in keeps)
    module.dropout_layers = _dropout_layers(flow)
    made = module if model is None else model(module)
    if not callable(made):
        raise TypeError(f"model must make a Pyro model from the module, but made {said(made)}")

    posterior = guide(made, rate=partial(_rate_of, module, keeps), **_units(module, flow, added))
    if not callable(posterior):
        raise TypeError(f"guide must make a guide from model and rate, but made {said(posterior)}")
    _check_store(posterior, module)
    if model is None:
        # Only shapes matter, so batch normalisation keeps its statistics. With gradients, as guides copy means without.
        with evaluation_mode(), torch.enable_grad(), _CopiedOnce(module):
            posterior(*inputs)
    return made, posterior


def _check_units(module: BayesianModule, name: str, inputs: bool, outputs: bool) -> None:
    """The layer of a parameter must be one of which it is known what its units are."""
    slot = module._slots[name]
    is_bias = name.rpartition(".")[2] == "bias"
    if (inputs and slot.units is None) or (outputs and slot.outputs is None and not is_bias):
        raise ValueError(
            f"a dropout masks units of {name}, a parameter of {type(slot.owners[0][0]).__name__}, which is no layer "
            "that has such: make it one of nn.Linear, a convolution, nn.Embedding or a normalisation"
        )


def _rate_of(module: BayesianModule, keeps: dict[str, float], mask: str) -> float:
    """Of a mask of the model, by the names of the network's own."""
    keep = {_site_name(module, name): keep for name, keep in keeps.items()}.get(mask, 1.0)
    return 1 - keep


def _site_name(module: BayesianModule, mask: str) -> str:
    """The name that a mask of the network has in the model."""
    if mask in module.slots:
        return module.site_name(mask)
    return output_of(module.site_name(mask.removesuffix("output") + "weight"))


def _units(module: BayesianModule, flow: Flow, added: dict[str, float]) -> dict[str, Any]:
    """What a guide must be told of the units that are masked, where these are not all input units."""
    if not flow.sides:
        return {}
    inputs = {*flow.dropouts, *added}
    sides = {name: ("input", side) if name in inputs else side for name, side in flow.sides.items()}
    return {"units": {module.site_name(name): side for name, side in sides.items()}}


def _check_active(net: nn.Module, flow: Flow, added: dict[str, float]) -> None:
    """Each weight has the rate of its dropouts or a given one; without any there is no posterior."""
    if both := sorted(added.keys() & flow.dropouts.keys()):
        raise ValueError(
            f"rate gives {', '.join(both)} a rate, which a dropout of {type(net).__name__} masks already: leave it "
            "out, or give it 0, in a mapping of rates"
        )
    if not added and not flow.dropouts:
        idle = [f"{type(m).__name__} {path!r}" for path, m in net.named_modules() if _could_drop(m)]
        there = f" ({', '.join(idle[:3])} {'drop' if len(idle) > 1 else 'drops'} nothing)" if idle else ""
        raise ValueError(
            f"{type(net).__name__} has no active dropout{there}, so that its posterior would be a single function: "
            "give rate, a number for all weight layers or a mapping such as {nn.Linear: 0.1}"
        )


def _could_drop(layer: nn.Module) -> bool:
    rate = getattr(layer, "dropout", 0.0)  # of some layers a dropout layer
    depth = drop_path_rate(layer) is not None
    return depth or isinstance(layer, nn.modules.dropout._DropoutNd) or (isinstance(rate, int | float) and rate > 0)


class _CopiedOnce(TorchFunctionMode):
    """Inside, a guide that is set up copies the module's weights once, for itself.

    Setting up runs the model twice at its initial values, for each of which they would be copied too: too much of a
    large network.
    """

    def __init__(self, module: BayesianModule) -> None:
        super().__init__()
        slots = module._slots.values()
        self._weights = {id(slot.value) for slot in slots if slot.units is not None and len(slot.value.shape) > 1}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.clone and id(args[0]) in self._weights:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def _check_store(guide: Any, module: BayesianModule) -> None:
    """Pyro's global store would give a new guide the weights of an older one, by their names."""
    if pyro.settings.get("module_local_params"):
        return
    prefix = f"{getattr(guide, '_pyro_name', type(guide).__name__)}.locs."
    stored = [name for name in pyro.get_param_store() if name.startswith(prefix)]
    if taken := [name for name in stored if any(f".{name}".endswith(f".{slot}") for slot in module.slots)]:
        raise ValueError(
            f"Pyro's global store has {', '.join(taken)} of another guide, which this one would take for its own: "
            "pyro.settings.set(module_local_params=True) keeps guides apart, or pyro.clear_param_store()"
        )


def _without_dropout(net: nn.Module, flow: Flow) -> nn.Module:
    """The network with dropout layers that drop nothing; of one that calls functions, its graph without them.

    Its parameters are the network's own, as ``BayesianModule`` copies them.
    """
    nodes = {d.node for dropouts in flow.dropouts.values() for d in dropouts} | flow.left_out.keys()
    calls = {node for node in nodes if node.op != "call_module"}
    if flow.graphs is None or not calls:
        bare = twin(net, net.training)
    else:
        bare = flow.graphs.of_both({node for node in calls if is_dropout(flow.graphs.training, node)})
    modes = {path: layer.training for path, layer in net.named_modules()}
    for path, layer in bare.named_modules():
        layer.training = modes[path]
    for layer in bare.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) or drop_path_rate(layer) is not None:
            set_rate(layer, 0.0)
    return bare


def _dropout_layers(flow: Flow) -> dict[str, str]:
    """For each mask a dropout layer that is it and nothing else."""
    uses = [d.layer for dropouts in flow.dropouts.values() for d in dropouts]
    alone = {
        name: [d.layer for d in dropouts if d.layer and uses.count(d.layer) == 1]
        for name, dropouts in flow.dropouts.items()
    }
    return {name: layers[0] for name, layers in alone.items() if layers}
