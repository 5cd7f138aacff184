"""An optimiser's update as a part of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_dropout.training._steps.internals import capturable_anywhere


class Update:
    """The update of a ``PyroOptim``, whose state must consist of tensors to be traced.

    PyTorch's own optimisers have such a form, which they call capturable.

    :param optim: has seen all parameters.
    :param parameters: those that it updates.
    :param fixed_rates: write learning rates into the graph. Else they are tensors, which a schedule may change between
        calls; not all optimisers take those.
    """

    def __init__(self, optim: PyroOptim, parameters: Sequence[Tensor], fixed_rates: bool = False) -> None:
        self.optim, self.parameters, self.fixed_rates = optim, parameters, fixed_rates
        wrapped = [optim.optim_objs[p] for p in parameters]
        self.optimisers = [getattr(o, "optimizer", o) for o in wrapped]  # a scheduler has one
        self.states = [o.state for o in self.optimisers]
        self.groups = [group for o in self.optimisers for group in o.param_groups]
        alike: dict[float, list[Any]] = {}
        for group in self.groups:
            alike.setdefault(float(group["lr"]), []).append(group)
        device = parameters[0].device
        self.rates = [
            (groups, torch.tensor(rate, dtype=torch.float64, device=device)) for rate, groups in alike.items()
        ]
        self._last = list(alike)
        self._options = [options_of(group) for group in self.groups]
        for state, parameter in zip(self.states, parameters, strict=True):
            count = state[parameter].get("step")
            if isinstance(count, Tensor):  # 1 - 0.999^count needs more than float32
                state[parameter]["step"] = count.to(device, torch.float64)

    @property
    def tensors(self) -> list[Tensor]:
        """What an update changes: parameters, and the optimisers' states of them."""
        states = [state[p] for state, p in zip(self.states, self.parameters, strict=True)]
        return [*self.parameters, *(t for state in states for t in state.values() if isinstance(t, Tensor))]

    def is_current(self) -> bool:
        """Whether the optimisers hold these tensors still (a state that was loaded comes in new ones), with the options
        that are a part of the graph."""
        return (
            all(o.state is state for o, state in zip(self.optimisers, self.states, strict=True)) and self.same_options()
        )

    def same_options(self) -> bool:
        """Whether groups that had one learning rate have one, and all else of them is as it was."""
        for (groups, _), last in zip(self.rates, self._last, strict=True):
            rate = last if self.fixed_rates else groups[0]["lr"]
            for group in groups:
                if group["lr"] != rate:
                    return False
        pairs = zip(self._options, self.groups, strict=True)
        return all(options.items() <= group.items() for options, group in pairs)

    def refresh(self) -> None:
        """Takes learning rates over that have changed."""
        for i, (groups, rate) in enumerate(self.rates):  # fixed ones have not changed
            if groups[0]["lr"] != self._last[i]:
                self._last[i] = groups[0]["lr"]
                rate.fill_(groups[0]["lr"])

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        """Updates the parameters in place.

        :raises NotImplementedError: an optimiser that counts in Python, whose count a graph would repeat.
        """
        before = self._contents()
        try:
            with self._capturable(), torch.no_grad():
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    parameter.grad = gradient
                self.optim(self.parameters)
            if any(_differ(old, new) for old, new in zip(before, self._contents(), strict=True)):
                names = {type(o).__name__ for o in self.optimisers}
                raise NotImplementedError(f"{', '.join(sorted(names))} keeps a part of its state outside of tensors")
        finally:
            for parameter, state, old in zip(self.parameters, self.states, before, strict=False):
                parameter.grad = None
                state[parameter].update(old)

    def _contents(self) -> list[dict[str, Any]]:
        states = [dict(state[p]) for state, p in zip(self.states, self.parameters, strict=True)]
        return states + [options_of(group) for group in self.groups]

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        before = [dict(group) for group in self.groups]
        try:
            for groups, rate in self.rates:
                for group in groups:
                    if not self.fixed_rates:
                        group["lr"] = rate
                    if "capturable" in group:
                        group["capturable"] = True
            with capturable_anywhere():
                yield
        finally:
            for group, options in zip(self.groups, before, strict=True):
                group.update(options)


def options_of(group: dict[str, Any]) -> dict[str, Any]:
    """What is written into a graph as it is."""
    return {key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}


def _differ(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return old.keys() != new.keys() or any(
        new[key] is not value if isinstance(value, Tensor) else new[key] != value for key, value in old.items()
    )
