"""A network with sampled values of its parameters, and one call of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_dropout.nn._again import Again
from pyro_dropout.nn.slots import Slot, filled


class Network(NamedTuple):
    """A network, and what ``BayesianModule`` knows of it.

    :param net: the network.
    :param slots: where its parameters stood, by name.
    :param first: its first layer with parameters.
    :param event_dim: number of dimensions of one datum, as the user gave it.
    :param mixing: by ``kind`` whether it mixes rows, as far as that is known (``_mixing``).
    :param trunks: by ``kind`` and its masked weights what is known of its trunk (``_merging``).
    """

    net: nn.Module
    slots: dict[str, Slot]
    first: nn.Module
    event_dim: int | Sequence[int] | None
    mixing: dict[Any, bool]
    trunks: dict[Any, Any]

    def run(self, values: dict[str, Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The network itself, with these values in the places of its parameters."""
        again = Again(self.slots, values)
        with filled(self.slots, values):
            outputs = self.net(*args, **kwargs)
        again.after(outputs)
        return outputs

    def kind(self, call: Call) -> Any:
        """What a trial's answer holds for: the modules' modes (``train``, ``eval``), and the shapes of one datum."""
        pairs = zip(call.args, call.event_dims, strict=False)
        data = tuple(a.shape[a.dim() - event_dim :] for a, event_dim in pairs if isinstance(a, Tensor))
        return tuple(module.training for module in self.net.modules()), data

    @property
    def trains_batch_norm(self) -> bool:
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.net.modules())


class Call(NamedTuple):
    """One call of a network.

    :param values: sampled values by name, ``[*plates, *event]``.
    :param args, kwargs: the call's own.
    :param plates: what the values' batch shapes broadcast to, with the place of the data; empty if they have none.
    :param event_dims: of each positional input; empty where it is not known and not needed.
    """

    values: dict[str, Tensor]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    plates: torch.Size = torch.Size()
    event_dims: Sequence[int] = ()

    @property
    def batches(self) -> list[torch.Size]:
        """Batch shapes of the inputs."""
        pairs = zip(self.args, self.event_dims, strict=False)
        return [a.shape[: a.dim() - event_dim] for a, event_dim in pairs if isinstance(a, Tensor)]

    @property
    def rows(self) -> int:
        """Number of data of one network."""
        return max((batch[-1] for batch in self.batches if batch), default=1)


def first_entry(t: Tensor, event_dim: int) -> Tensor:
    """Of all plates: ``[*plates, *event]`` to ``[*event]``."""
    return t[(0,) * (t.dim() - event_dim)]
