"""What compiling says: what it was for and how long it took, and why it could not be."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def shapes_of(args: Any, kwargs: Any) -> str:
    leaves = [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves((args, kwargs))]
    return ", ".join(map(str, leaves))


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


NOTHING_TO_LEARN = (
    "there is nothing to learn, as neither the model nor the guide registers a parameter (pyro.module, pyro.param, or "
    "a PyroModule that is called)"
)
NOT_LEARNED = (
    "no parameter has a gradient, so that nothing is learned: are they of another module of the same name, in Pyro's "
    "parameter store (pyro.clear_param_store())?"
)
