"""Checks of what steps are made of: losses, optimisers, and what replicates differ in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyro.optim import PyroOptim
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_dropout._checks import check_choice, said
from pyro_dropout._failures import listed
from pyro_dropout.losses.elbo import TraceDropout_ELBO


def check_loss_and_backend(who: str, losses: Iterable[Any], backend: str, *more: str) -> None:
    """Raises where a loss or a backend is none that compiled steps have."""
    for loss in losses:
        if not isinstance(loss, TraceDropout_ELBO):
            raise ValueError(
                f"{who} traces the losses of pyro_dropout, but found {type(loss).__name__}: use TraceDropout_ELBO or "
                "RenyiDropout_ELBO, or pyro.infer.SVI for this loss"
            )
    check_choice(("inductor", "eager", *more), backend=backend)


def check_optimisers(**named: Any) -> None:
    """Raises where an optimiser is none of Pyro's."""
    for name, optim in named.items():
        if not isinstance(optim, PyroOptim):
            raise TypeError(
                f'{name} must be a PyroOptim, such as pyro.optim.Adam({{"lr": 0.01}}), but found {said(optim)}'
            )


def rows_of(args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    """The arguments of each step."""
    leaves, spec = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    numbers = {len(t) if t.dim() else -1 for t in tensors}
    if len(numbers) != 1 or numbers == {-1}:
        found = listed(args, kwargs)
        raise ValueError(f"scan takes one step for each entry of its tensors' first dimension, but found {found}")
    columns = [leaf.unbind() if isinstance(leaf, Tensor) else None for leaf in leaves]
    return [
        tree_unflatten([leaf if rows is None else rows[i] for leaf, rows in zip(leaves, columns, strict=True)], spec)
        for i in range(numbers.pop())
    ]


def number_of(hyperparameters: Any) -> int:
    if isinstance(hyperparameters, Mapping | str) or not isinstance(hyperparameters, Sequence):
        raise TypeError(f"hyperparameters must be a list of a mapping for each, but found {said(hyperparameters)}")
    for r, values in enumerate(hyperparameters):
        if not isinstance(values, Mapping):
            raise TypeError(f"hyperparameters[{r}] must be a mapping of names to values, but found {said(values)}")
    return len(hyperparameters)


def one_for_each(name: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be one, or a list of one for each replicate, but found {said(values)}")
    return list(values)


def made_by(replicate: int, made: Any) -> tuple[Any, Any]:
    """Model and guide of a replicate."""
    if not (isinstance(made, tuple | list) and len(made) == 2 and all(callable(function) for function in made)):
        raise TypeError(f"make must return model and guide, but returned {said(made)} for replicate {replicate}")
    return made[0], made[1]
