"""An optimiser's update as a part of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_dropout.training._steps.internals import capturable_anywhere

_SMALL = 2**14  # entries of a parameter up to which it is updated with others
_BY_ENTRY: set[type] = {  # optimisers of which each entry of a parameter learns by itself
    *(torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Rprop),
}


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
        self.together = self._alike()
        self._counts = self._counted()
        self._versions: list[int] = []

    @property
    def tensors(self) -> list[Tensor]:
        """What an update changes: parameters, and the optimisers' states of them."""
        return [t for i in range(len(self.parameters)) for t in self._tensors_of(i)]

    def _tensors_of(self, i: int) -> list[Tensor]:
        state = self.states[i][self.parameters[i]]
        return [self.parameters[i], *(t for t in state.values() if isinstance(t, Tensor))]

    def is_current(self, others_ran: bool = False) -> bool:
        """Whether the optimisers hold these tensors still (a state that was loaded comes in new ones), with the options
        that are a part of the graph, and parameters in one vector have been updated as often.

        :param others_ran: other graphs may have updated some of the parameters.
        """
        same = all(o.state is state for o, state in zip(self.optimisers, self.states, strict=True))
        return same and self.same_options() and self._same_counts(others_ran)

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
                self._last[i] = float(groups[0]["lr"])
                rate.fill_(groups[0]["lr"])

    def __call__(self, gradients: Sequence[Tensor | None], finite: Tensor) -> None:
        """Updates the parameters in place, if all is finite.

        :raises NotImplementedError: an optimiser that counts in Python, whose count a graph would repeat.
        """
        before = self._contents()
        alone = list(range(len(self.parameters)))
        try:
            with self._capturable(), torch.no_grad():
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    parameter.grad = gradient
                for members in self.together:
                    with_gradient = [i for i in members if gradients[i] is not None]
                    if len(with_gradient) > 1:
                        self._update_together(with_gradient, finite)
                        alone = [i for i in alone if i not in with_gradient]
                changed = [(t, t.clone()) for i in alone for t in self._tensors_of(i)]
                self.optim([self.parameters[i] for i in alone])
                for t, value in changed:
                    t.copy_(torch.where(finite, t, value))
            if any(_differ(old, new) for old, new in zip(before, self._contents(), strict=True)):
                names = {type(o).__name__ for o in self.optimisers}
                raise NotImplementedError(f"{', '.join(sorted(names))} keeps a part of its state outside of tensors")
        finally:
            for parameter, state, old in zip(self.parameters, self.states, before, strict=False):
                parameter.grad = None
                state[parameter].update(old)

    # Small parameters in one vector: a graph of few operations

    def _alike(self) -> list[list[int]]:
        """Small parameters that one update of one vector updates: of one optimiser, options, rate and count."""
        groups: dict[Any, list[int]] = {}
        clipped = self.optim.grad_clip
        for i, (parameter, optimiser) in enumerate(zip(self.parameters, self.optimisers, strict=True)):
            state = self.states[i][parameter]
            entries = parameter.numel() <= _SMALL and type(optimiser) in _BY_ENTRY and clipped.get(parameter) is None
            if entries and all(isinstance(value, Tensor) for value in state.values()):
                (group,) = optimiser.param_groups
                options = tuple(sorted((k, str(v)) for k, v in options_of(group).items()))
                counts = tuple((k, v.item()) for k, v in state.items() if v.shape != parameter.shape or _counts(k))
                kind = (type(optimiser), options, float(group["lr"]), counts, parameter.dtype, parameter.device)
                groups.setdefault(kind, []).append(i)
        return list(groups.values())

    def _update_together(self, members: list[int], finite: Tensor) -> None:
        first = members[0]
        parameters = [self.parameters[i] for i in members]
        states = [self.states[i][p] for i, p in zip(members, parameters, strict=True)]
        (group,) = self.optimisers[first].param_groups
        flat = _flat(parameters).clone()
        flat.grad = _flat([p.grad for p in parameters])
        optimiser = object.__new__(type(self.optimisers[first]))  # the constructor would look at the rate's value
        optimiser.__dict__.update(self.optimisers[first].__dict__)
        optimiser.param_groups = [{**group, "params": [flat]}]
        shaped = [key for key, value in states[0].items() if value.shape == parameters[0].shape and not _counts(key)]
        state = {k: _flat([s[k] for s in states]) if k in shaped else v.clone() for k, v in states[0].items()}
        old = {key: value.clone() for key, value in state.items()}
        optimiser.state = {flat: state}
        type(optimiser).step(optimiser)  # a schedule has put its own, of the first, in its place
        if any(value is not optimiser.state[flat].get(key) for key, value in state.items()):
            raise NotImplementedError(f"{type(optimiser).__name__} replaces its state")
        sizes = [p.numel() for p in parameters]
        _write(parameters, torch.where(finite, flat, _flat(parameters)).split(sizes))
        for key, value in state.items():
            new = torch.where(finite, value, old[key])
            _write([s[key] for s in states], new.split(sizes) if key in shaped else [new] * len(states))

    def _counted(self) -> list[list[Tensor]]:
        """Counts of the parameters in one vector, which goes by the first one's, by vector and by kind."""
        found = []
        for members in self.together:
            states = [self.states[i][self.parameters[i]] for i in members]
            found += [[state[key] for state in states] for key in states[0] if _counts(key)]
        return found

    def _same_counts(self, others_ran: bool) -> bool:
        """Whether the counts of each vector are the same: looked at where others may have written them."""
        versions = [count._version for counts in self._counts for count in counts]
        if versions == self._versions and not others_ran:
            return True
        self._versions = versions
        return all(len({count.item() for count in counts}) == 1 for counts in self._counts)

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
                    if "foreach" in group:  # on a GPU the default, which cannot be mapped over replicates
                        group["foreach"] = False
            with capturable_anywhere(), _TensorsForNumbers():
                yield
        finally:
            for group, options in zip(self.groups, before, strict=True):
                group.update(options)


class _TensorsForNumbers(TorchFunctionMode):
    """In-place sums that are scaled by a learning rate, which PyTorch wants as a number, take it as a tensor too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        scale = kwargs.get(_SCALES.get(func, ""))
        if not isinstance(scale, Tensor):
            return func(*args, **kwargs)
        target, *others = args
        term = others[0] if len(others) == 1 else others[0] / others[1]
        return target.add_((scale * term).to(target.dtype))


_SCALES = {Tensor.add_: "alpha", Tensor.addcdiv_: "value"}


def _counts(key: str) -> bool:
    """Whether a part of an optimiser's state is one number, whatever the parameter's shape."""
    return key in ("step", "mu_product")


def _flat(tensors: Sequence[Any]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _write(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value.reshape(tensor.shape))


def options_of(group: dict[str, Any]) -> dict[str, Any]:
    """What is written into a graph as it is."""
    return {key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}


def _differ(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return old.keys() != new.keys() or any(
        new[key] is not value if isinstance(value, Tensor) else new[key] != value for key, value in old.items()
    )
