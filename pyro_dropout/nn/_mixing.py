"""Whether a network mixes the rows of its batch: attention or sums over rows, graphs, batch statistics.

Such a network must never see rows of two draws in one batch. One run of one draw tells, the first time that plates and
data are to be merged: masks with real numbers, a row for each datum, and inputs are leaves, at which the output's rows
have gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_dropout._modes import trial_run
from pyro_dropout._rows import mixes
from pyro_dropout._values import is_traced
from pyro_dropout.masks.datum import DatumMask, LeafSource
from pyro_dropout.nn._call import Call, Network, first_entry
from pyro_dropout.weights.weight import MaskedWeight, Switch


def mixes_rows(network: Network, call: Call) -> bool:
    """The answer for calls of this kind; kept.

    Where the trial fails, gradients being what a network is not made for, say, it counts as one that mixes: its draws
    run in turn, which is always right.
    """
    kind = network.kind(call)
    if kind not in network.mixing:
        if is_traced():  # what is traced has run before
            return False
        with trial_run():
            try:
                network.mixing[kind] = _trial(network, call)
            except Exception:
                network.mixing[kind] = True
    return network.mixing[kind]


def _trial(network: Network, call: Call) -> bool:
    masks = LeafSource()
    values = {name: _first(value, network.slots[name].event_dim, masks) for name, value in call.values.items()}
    args: list[Any] = []
    inputs: list[Tensor] = []
    for a, event_dim in zip(call.args, call.event_dims, strict=True):
        if isinstance(a, Tensor):
            a = a.detach()[(0,) * (a.dim() - event_dim - 1)].clone()
            a = torch.cat([a, a]) if len(a) == 1 else a  # one row alone has nothing to mix with
            if a.is_floating_point():
                inputs.append(a.requires_grad_())
                a = a * 1  # a network may change its input in place
        args.append(a)
    outputs = [out for out in tree_leaves(network.run(values, args, call.kwargs)) if isinstance(out, Tensor)]
    rows = max(len(a) for a in args if isinstance(a, Tensor))
    outputs = [out for out in outputs if out.dim() and len(out) == rows and out.is_floating_point()]
    leaves = [leaf for leaf in (*inputs, *masks.leaves) if len(leaf) == rows]
    return mixes([(out, 0) for out in outputs], [(leaf, 0) for leaf in leaves])


def _first(value: Tensor, event_dim: int, masks: LeafSource) -> Tensor:
    """Of the first entry of all plates: a dense value, or a masked weight whose masks per datum are leaves."""
    if isinstance(value, MaskedWeight) and not value.masked:
        value = value.loc
    if not isinstance(value, MaskedWeight):
        return first_entry(value.detach(), event_dim).clone()
    loc = first_entry(value.loc.detach(), event_dim).clone()

    def of_switch(switch: Switch) -> Switch:
        mask = DatumMask(masks.of(switch.units.count(value.event_shape), loc))
        return switch._replace(mask=mask, keep=first_entry(switch.keep.detach(), 1).clone())

    return value.with_switches(of_switch, loc=loc, merged=(), trunk=0)
