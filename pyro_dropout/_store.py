"""What Pyro keeps of parameters by their names: every touch of its store's and its optimisers' own dictionaries.

``pyro.get_param_store()`` has names in public and tensors by constraint; compiled steps, checkpoints and guides that
were loaded before their first call need the very tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from pyro.nn import PyroModule
from pyro.optim.optim import _get_state_dict, _load_state_dict
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_OWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # what guides of this process have made


def unconstrained(trace: Any) -> dict[str, Tensor]:
    """What an optimiser moves, by name, of a trace of parameters.

    Ordinary parameters of a ``PyroModule`` that are its own have no constraint, nor the method that Pyro's have.
    """
    values = {name: site["value"] for name, site in trace.nodes.items()}
    return {name: v.unconstrained() if hasattr(v, "unconstrained") else v for name, v in values.items()}


def stored(names: Iterable[str]) -> list[tuple[str, Tensor]]:
    """Those of the names that the global store has, with their unconstrained tensors."""
    tensors = pyro.get_param_store()._params
    return [(name, tensors[name]) for name in names if name in tensors]


def still_stored(known: list[tuple[str, Tensor]]) -> bool:
    """Whether the store has the same tensors under these names."""
    tensors = pyro.get_param_store()._params
    return all(tensors.get(name) is tensor for name, tensor in known)


def replace_stored(name: str, tensor: Tensor) -> None:
    """Puts another tensor in the place of one that the store has; one that it has not stays out."""
    store = pyro.get_param_store()
    if name in store:  # as PyroModule does when the two disagree
        _OWN[tensor] = True
        store._params[name] = tensor
        store._param_to_name[tensor] = name


@contextmanager
def own_parameter(module: PyroModule, attribute: str) -> Iterator[None]:
    """Makes a parameter at its initial value, not at that of a guide before it, unless the store was loaded with it."""
    store, name = pyro.get_param_store(), module._pyro_get_fullname(attribute)
    if not pyro.settings.get("module_local_params") and store._params.get(name) in _OWN:
        del store[name]
    yield
    _OWN[module._parameters[attribute + "_unconstrained"]] = True


@contextmanager
def store_kept_on_failure() -> Iterator[None]:
    """What is stored inside stays only if nothing is raised."""
    store = pyro.get_param_store()
    held: list[Any] = [store._params, store._constraints, store._param_to_name]
    before = [dict(d) for d in held]
    try:
        yield
    except BaseException:
        for d, kept in zip(held, before, strict=True):
            d.clear()
            d.update(kept)
        raise


@contextmanager
def named(parameters: dict[Tensor, str]) -> Iterator[None]:
    """Parameters of modules have names in the store, by which an optimiser may choose its options."""
    names = pyro.get_param_store()._param_to_name
    names.update(parameters)
    try:
        yield
    finally:
        for parameter in parameters:
            del names[parameter]


def state_of(optimiser: Any) -> Any:
    """State of one parameter's optimiser inside a ``PyroOptim``, or of its schedule."""
    return _get_state_dict(optimiser)


def load_state_of(optimiser: Any, state: Any) -> None:
    """The way back; the state comes in new tensors."""
    _load_state_dict(optimiser, state)
