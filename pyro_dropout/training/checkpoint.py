"""Saving what was fitted, and training that goes on where it was interrupted."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.optim import PyroOptim
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn

from pyro_dropout._checks import said
from pyro_dropout._store import load_state_of, state_of, stored
from pyro_dropout.training._files import FORMAT, checked_path, read_state
from pyro_dropout.training._random import random_state, set_random_state


def save_checkpoint(path: str | os.PathLike, **parts: Any) -> None:
    """Writes models, guides, optimisers and numbers to one file, with the states of all random number generators.

    The file replaces an older one at once, so that an interruption leaves either. It holds tensors and plain values
    alone, and is read without running any code from it.

    :param path: of the file.
    :param parts: by name what to save: modules, optimisers of ``torch.optim`` or ``pyro.optim``, schedulers, anything
        with ``state_dict``; ``pyro.get_param_store()``, for what a model has by ``pyro.param``; numbers, strings,
        tensors, lists and dicts of these.
    :raises ValueError: a guide before its first call, which has no parameters; an optimiser of ``pyro.optim`` with
        parameters that are in none of the parts.
    :raises TypeError: other values than these.
    :raises FileNotFoundError: a folder that does not exist.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> layer = nn.Linear(2, 1)
        >>> path = Path(tempfile.mkdtemp()) / "fit.pt"
        >>> save_checkpoint(path, layer=layer, step=3)
        >>> load_checkpoint(path, layer=nn.Linear(2, 1))
        {'step': 3}
    """
    path = checked_path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise FileNotFoundError(f"path must be that of a file in a folder that exists, but found {path}")
    names = _names(parts)
    states = {name: _state(name, part, names) for name, part in parts.items() if _has_state(part)}
    _warn_of_statements(parts)
    values = {name: part for name, part in parts.items() if name not in states}
    for name, value in values.items():
        _check_plain(name, value)
    state = {"format": FORMAT, "states": states, "values": values, "random": random_state()}
    temporary = path.with_name(path.name + ".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: str | os.PathLike, map_location: Any = None, **parts: Any) -> dict[str, Any]:
    """Loads what :func:`save_checkpoint` wrote into parts made as at the start, and goes on with its random numbers.

    A guide may be loaded before its first call. To go on with training, where an optimiser is among the parts, it must
    have been called once with the data, so that it has parameters; the steps that follow are those of a run that was
    not interrupted, bit by bit; with compiled steps to rounding, as the first one is eager again.

    :param path: of the file.
    :param map_location: device to load to, as in ``torch.load``.
    :param parts: modules, optimisers and schedulers, by the names they were saved under.
    :returns: the other values, by name: step numbers and the like.
    :raises ValueError: names that the file has not, or has and are missing here; a guide before its first call together
        with an optimiser.
    :raises FileNotFoundError: no such file.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "fit.pt"
        >>> save_checkpoint(path, layer=nn.Linear(2, 1), step=3)
        >>> load_checkpoint(path, layer=nn.Linear(2, 1))["step"]
        3
    """
    path = checked_path(path)
    for name, part in parts.items():
        if not _has_state(part):
            raise TypeError(f"{name} must have a state to load, as modules and optimisers have, but found {said(part)}")
    state = read_state(path, map_location)
    states = state["states"]
    if parts.keys() != states.keys():
        raise ValueError(
            f"{path} has states of {sorted(states)}, but found {sorted(parts)} to load them into: give each of them, "
            "by the name it was saved under"
        )
    if not all(isinstance(part, nn.Module) for part in parts.values()):
        for name, part in parts.items():
            if _is_new(part):
                raise ValueError(
                    f"{name} has no parameters for the optimiser yet: call it once with the data before loading (its "
                    "first call takes random numbers)"
                )
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    for name, module in modules.items():
        _check_fits(name, module, states[name])
    stores = {name: _statements(name, part) for name, part in parts.items() if isinstance(part, ParamStoreDict)}
    for name, tensors in stores.items():
        if missing := sorted(n for n, p in states[name].items() if n not in tensors or tensors[n].shape != p.shape):
            raise ValueError(
                f"{name} has no {', '.join(missing)} of the shape that was saved: run the model once with the data "
                "before loading"
            )
    for name, module in modules.items():  # first: optimisers know their parameters by name
        module.load_state_dict(states[name])
    for name, tensors in stores.items():
        with torch.no_grad():
            for key, value in states[name].items():
                tensors[key].copy_(value)
    names = _names(parts)
    for name, part in parts.items():
        if isinstance(part, PyroOptim):
            _load_pyro_optimiser(part, states[name], names)
        elif name not in modules and name not in stores:
            part.load_state_dict(states[name])
    set_random_state(state["random"])
    return state["values"]


def _names(parts: dict[str, Any]) -> dict[str, Tensor]:
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    names = {f"{name}.{n}": p for name, module in modules.items() for n, p in module.named_parameters()}
    stores = {name: part for name, part in parts.items() if isinstance(part, ParamStoreDict)}
    return names | {f"{name}.{n}": p for name, store in stores.items() for n, p in _statements(name, store).items()}


def _statements(name: str, store: ParamStoreDict) -> dict[str, Tensor]:
    """What ``pyro.param`` has made, unconstrained; what modules have in the store are ``nn.Parameter``."""
    if store is not pyro.get_param_store():
        raise ValueError(f"{name} must be Pyro's own parameter store, pyro.get_param_store(), but found another")
    return {n: p for n, p in stored(store) if not isinstance(p, nn.Parameter)}


def _has_state(part: Any) -> bool:
    return not isinstance(part, type) and (isinstance(part, PyroOptim | ParamStoreDict) or hasattr(part, "state_dict"))


def _warn_of_statements(parts: dict[str, Any]) -> None:
    """Of what ``pyro.param`` has made, for a guide's model maybe, where the store is none of the parts."""
    kinds = [type(part) for part in parts.values()]
    lost = () if ParamStoreDict in kinds else _statements("store", pyro.get_param_store())
    if lost and any(issubclass(kind, AutoGuide) for kind in kinds):
        warnings.warn(
            f"the parameter store has {', '.join(lost)}, which are not saved, as they are in none of the parts: if the "
            "model has them by pyro.param, save them with store=pyro.get_param_store()",
            stacklevel=3,
        )


def _state(name: str, part: Any, names: dict[str, Tensor]) -> Any:
    if isinstance(part, PyroOptim):
        known = {id(parameter): n for n, parameter in names.items()}
        if any(id(parameter) not in known for parameter in part.optim_objs):
            raise ValueError(
                f"{name} has parameters that are in none of the parts: save the modules of model and guide with it, "
                "and what the model has by pyro.param with store=pyro.get_param_store()"
            )
        return {known[id(parameter)]: state_of(optimiser) for parameter, optimiser in part.optim_objs.items()}
    if isinstance(part, ParamStoreDict):
        return {n: p.detach() for n, p in _statements(name, part).items()}
    if _is_new(part):
        raise ValueError(f"{name} has no parameters before its first call: there is nothing to save")
    return part.state_dict()


def _check_fits(name: str, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Before anything is loaded, so that a wrong file changes nothing."""
    if _is_new(module):
        return
    fitting = module.state_dict()
    wrong = sorted(fitting.keys() ^ state.keys())
    for key in fitting.keys() & state.keys():
        if getattr(fitting[key], "shape", 0) != getattr(state[key], "shape", 0):
            wrong.append(key)
    if wrong:
        raise ValueError(f"{name} is not what was saved: {', '.join(sorted(wrong))} are missing or of another shape")


def _is_new(part: Any) -> bool:
    """Whether a guide has not been called yet."""
    return hasattr(part, "prototype_trace") and part.prototype_trace is None


def _check_plain(name: str, value: Any) -> None:
    parts = [*value.keys(), *value.values()] if type(value) is dict else value
    for part in parts if type(parts) in (list, tuple) else ():
        _check_plain(name, part)
    if type(value) not in (Tensor, nn.Parameter, bool, int, float, str, type(None), dict, list, tuple):
        raise TypeError(
            f"{name} has a {type(value).__name__}, which cannot be read back without running code: save parts with a "
            "state_dict, tensors, Python's numbers, strings, and lists and dicts of these"
        )


def _load_pyro_optimiser(optimiser: Any, states: dict[str, Any], names: dict[str, Tensor]) -> None:
    """``pyro.optim`` has an optimiser for each parameter, which it makes at the first step."""
    for key, state in states.items():
        parameter = names[key]
        if parameter not in optimiser.optim_objs:
            optimiser.optim_objs[parameter] = optimiser._get_optim(parameter)
            optimiser.grad_clip[parameter] = optimiser._get_grad_clip(parameter)
        load_state_of(optimiser.optim_objs[parameter], state)
