"""Any network as a component of a Pyro model: its parameters become sample sites."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_dropout._checks import check_counts, check_initialised, said
from pyro_dropout._failures import said_of_arguments
from pyro_dropout._modes import autocast_state, in_backward
from pyro_dropout.nn._batching import run
from pyro_dropout.nn._call import Call, Network
from pyro_dropout.nn._full_prior import moved
from pyro_dropout.nn.slots import Slot, make_slots


class BayesianModule(PyroModule):
    """A network whose weights are sample sites: ``W ~ prior`` for every parameter ``W`` of ``net``.

    The sites carry the parameters' own names (``"net.0.weight"``). The network's class is not copied and ``net``
    is not changed: the module runs a deep copy in which sampled values stand where the parameters stood. Their
    initial (or pretrained) values are where guides start, see :func:`~pyro_dropout.init_to_module`.

    Sampled weights may have batch dimensions: particles, posterior draws, a ``pyro.plate`` at dim -2 or further
    left around the call. The network then sees one leading batch dimension, and its output is split again
    (BatchApply in Haiku and Sonnet), so that convolution and pooling work; recurrent layers have one mask for all
    times (Gal & Ghahramani 2016). Dense weights that differ along these dimensions (``AutoNormal``) go through
    :func:`torch.vmap`, in recurrent layers one draw after the other, as all draws of attention layers do.

    Layers inside ``net`` may be checkpointed (:func:`torch.utils.checkpoint.checkpoint`, ``use_reentrant=False``):
    what runs again in the backward pass sees the weights and masks of its own call. ``net`` returns tensors, or lists,
    tuples and dictionaries of them; no function, which would run its layers later.

    Under ``torch.autocast`` the network computes in the lower precision and returns single precision.

    :param net: any :class:`torch.nn.Module`; the first dimension of its inputs and outputs is the batch
        (of recurrent layers' last states the second).
    :param prior: a distribution over one weight, expanded to each parameter's shape, or a function of name and
        parameter that returns a distribution (over one weight or the whole parameter), or ``None`` to leave that
        parameter an ordinary learnable one. ``Normal(0., 1/l)`` has lengthscale l: l² is a prior *precision*,
        l = 1e-4 means a standard deviation of 1e4.
    :param event_dim: number of dimensions of one datum in the network's positional inputs, an int or one per
        input. Needed only if weights will have batch dimensions and the first layer does not tell: a linear layer
        on ``[N, in]`` has 1, ``Conv2d`` 3; for ``[N, T, in]`` say 2, for data of each network, ``[R, N, in]``, 1.
    :raises ValueError: no parameter has a prior; a prior of the wrong shape, or with parameters of its own; batch
        dimensions that do not fit; inputs that the network cannot take.
    :raises TypeError: a ``net`` that is no module, a ``prior`` that is neither a distribution of Pyro nor a function,
        an ``event_dim`` of another kind.

    Example::

        >>> import torch
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
        _check(net, event_dim)
        super().__init__()
        self.event_dim = event_dim
        self.net = copy.deepcopy(net)
        self._first = next((m for m in self.net.modules() if any(True for _ in m.parameters(recurse=False))), self.net)
        self._slots = make_slots(self.net, prior)
        if not self._slots:
            raise ValueError(f"no parameter of {type(net).__name__} has a prior: nothing in it would be Bayesian")
        self.dropout_layers: dict[str, str] = {}  # by weight, of a network that came with them (from_torch)
        self._learns = any(True for _ in self.net.parameters())
        self._mixing: dict[Any, bool] = {}  # what trials found of it, by the kind of call, see Network
        self._trunks: dict[Any, Any] = {}
        self._said = f"the network {type(net).__name__}"

    @property
    def slots(self) -> dict[str, list[tuple[str, str]]]:
        """Path of layer and attribute of each parameter that has a prior; several where layers share it."""
        paths = {id(layer): path for path, layer in self.net.named_modules()}
        return {n: [(paths[id(layer)], a) for layer, a in slot.owners] for n, slot in self._slots.items()}

    def site_name(self, name: str) -> str:
        """Name of the sample site of a parameter, in the model that the module is a part of."""
        if name not in self._slots:
            raise ValueError(
                f"name must be that of a parameter with a prior, {', '.join(self._slots)}, but found {name!r}"
            )
        return self._pyro_get_fullname(name) if self._pyro_context.used else name

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for slot in self._slots.values():
            slot.empty()  # after a backward pass that failed
        super()._apply(fn, recurse)
        for slot in self._slots.values():
            slot.prior = moved(slot.prior, slot.value)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if in_backward():
            raise NotImplementedError(
                f"{self._said} runs again in a backward pass, where no guide says which weights to take: checkpoint "
                "layers inside of the network, not the BayesianModule"
            )
        with said_of_arguments(self._said, args, kwargs):
            values = {name: self._sample(name, slot) for name, slot in self._slots.items()}
            # Reading self.net makes Pyro register its parameters: wanted where some are learnable, slow where none are,
            # and of frozen ones Pyro warns.
            net: Any = self._modules["net"]
            if self._learns and any(parameter.requires_grad for parameter in net.parameters()):
                net = self.net
            first: Any = self._modules["_first"]
            network = Network(net, self._slots, first, self.event_dim, self._mixing, self._trunks)
            return _in_single_precision(run(network, Call(values, args, kwargs)))

    def _sample(self, name: str, slot: Slot) -> Tensor:
        fullname = self._pyro_get_fullname(name)
        value = self._pyro_context.get(fullname)
        if value is None:
            infer = {"initial_value": slot.value, "masked_units": slot.units, "output_units": slot.outputs}
            value = pyro.sample(fullname, slot.prior, infer=infer)
            self._pyro_context.set(fullname, value)
        return value


def _in_single_precision(found: Any) -> Any:
    """What a network returns, without the lower precision that autocast gave it: sums of log-densities need more."""
    lower = {dtype for _, dtype in autocast_state()}
    if not lower:
        return found
    return tree_map(lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in lower else leaf, found)


def _check(net: Any, event_dim: Any) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, but found {said(net)}")
    check_initialised(net)
    for number in event_dim if isinstance(event_dim, Sequence) and not isinstance(event_dim, str) else [event_dim]:
        if number is not None:
            check_counts(least=0, event_dim=number)
