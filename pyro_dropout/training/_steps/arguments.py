"""Checks of what steps are made of: losses, optimisers, and what replicates differ in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyro.optim import PyroOptim

from pyro_dropout._checks import check_choice, said
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
