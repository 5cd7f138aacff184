"""Dotted names in a guide's trees of parameters, and states that are loaded before its first call.

A guide has no parameters before its first call, which needs a model and data. What is loaded earlier waits under the
state's own names, and the first call puts the very tensors in the place of its initial values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.nn.module import PyroModule
from torch import Tensor, nn

from pyro_dropout._sites import is_weight
from pyro_dropout._store import replace_stored


def leaf_of(root: nn.Module, name: str) -> tuple[Any, str]:
    """The module and attribute that a dotted name stands for; modules on the way are made."""
    *path, attribute = name.split(".")
    for step in path:
        if step not in root._modules:
            setattr(root, step, PyroModule())
        root = root._modules[step]  # type: ignore[assignment]
    return root, attribute


def value_at(root: nn.Module, name: str) -> Any:
    """``root.<dotted name>``, or None. Only the last step goes through Pyro, whose attribute access is slow."""
    *path, attribute = name.split(".")
    for step in path:
        if step not in root._modules:
            return None
        root = root._modules[step]  # type: ignore[assignment]
    value = getattr(root, attribute, None)
    return root._parameters.get(attribute + "_unconstrained") if value is None else value  # loaded, not set up yet


def tensors_of(guide: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(guide.named_parameters()), **dict(guide.named_buffers())}


def make_room(guide: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
    """Before the first call: parameters and buffers with the names and shapes of a state that is to be loaded."""
    for key, value in state.items():
        if key.startswith(prefix):
            leaf, attribute = leaf_of(guide, key[len(prefix) :])
            if key.startswith(prefix + "rate_buffers."):
                leaf.register_buffer(attribute, torch.empty_like(value))
            else:
                leaf.register_parameter(attribute, nn.Parameter(torch.empty_like(value)))


def unknown_sites(trace: Any, loaded: Mapping[str, Any]) -> list[str]:
    """Latents other than weights that a loaded state says nothing of, where it names the others.

    They are data that this first call, a prediction, does not observe. A parameter of the guide of the rest ends in its
    site's name: ``rest.precision`` of ``AutoDelta``, ``rest.locs.precision`` of ``AutoNormal``.
    """
    paths = ["." + name.removesuffix("_unconstrained") for name in loaded if name.startswith(("rest.", "locs."))]
    latents = [name for name, site in trace.iter_stochastic_nodes() if not is_weight(site)]
    unknown = [name for name in latents if not any(path.endswith("." + name) for path in paths)]
    return unknown if loaded and len(unknown) < len(latents) else []


def adopt(guide: nn.Module, loaded: dict[str, Tensor]) -> None:
    """Puts what was loaded before the first call, the very tensors, in the place of initial values."""
    made = tensors_of(guide)
    if made.keys() != loaded.keys():
        raise ValueError(
            "the state that was loaded into this guide is not of this model: "
            f"without a site {sorted(loaded.keys() - made.keys())}, missing {sorted(made.keys() - loaded.keys())}"
        )
    for name, value in loaded.items():
        if value.shape != made[name].shape:
            raise ValueError(
                f"the state that was loaded has {name} of shape {tuple(value.shape)}, "
                f"but the model needs {tuple(made[name].shape)}"
            )
        leaf, attribute = leaf_of(guide, name)
        if not isinstance(value, nn.Parameter):
            leaf._buffers[attribute] = value
            continue
        leaf._parameters[attribute] = value
        replace_stored(leaf._pyro_get_fullname(attribute.removesuffix("_unconstrained")), value)
