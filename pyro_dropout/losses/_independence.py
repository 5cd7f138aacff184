"""Whether masks per datum are an unbiased estimator of a model: a datum's likelihood may depend on its own masks alone.

Where it depends on those of others (batch statistics, attention or sums over rows, graphs, likelihoods that are not of
one datum), gradients may even have the wrong sign. One run with real-valued masks as leaves tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pyro_dropout._modes import trial_run
from pyro_dropout._rows import Rows, mixes
from pyro_dropout.masks.messengers import LeafMasks
from pyro_dropout.weights.plates import plates_of_weights


class _Trial(NamedTuple):
    """One run: observed sites, the leaves by mask, what modules returned, in the order of their calls, their modes."""

    guide_trace: Any
    model_trace: Any
    leaves: dict[str, list[Tensor]]
    outputs: list[tuple[nn.Module, Tensor]]
    modes: dict[nn.Module, bool]


def check_independence(model: Callable, guide: Callable, args: Any, kwargs: Any) -> tuple[bool, dict[nn.Module, bool]]:
    """Raises where a datum's likelihood depends on other data's masks.

    :returns: whether there was something to look at: not with one row of data; and of the modules that were called
        which were in training mode: in another they may compute something else.
    :raises ValueError: naming the layer behind which rows depend on each other.
    """
    with trial_run(), pyro.validation_enabled(False), poutine.block():
        trial = _run(model, guide, args, kwargs)
        numbers = {leaf.shape[-2] for leaves in trial.leaves.values() for leaf in leaves if leaf.dim() > 1}
        for number in numbers - {1}:
            leaves = [leaf for each in trial.leaves.values() for leaf in each if leaf.shape[-2:-1] == (number,)]
            for site in _dependent(trial, leaves, number):
                raise ValueError(
                    f"the likelihood of a datum at site {site!r} depends on the masks of other data: "
                    f'{_where(trial, number)}. Masks per datum would be wrong, even in sign: use masks="draw"'
                )
    return bool(numbers - {1}) or not trial.leaves, trial.modes


def _run(model: Callable, guide: Callable, args: Any, kwargs: Any) -> _Trial:
    masks = LeafMasks()
    outputs: list[tuple[nn.Module, Tensor]] = []
    modes: dict[nn.Module, bool] = {}

    def note(module: nn.Module, _: Any, out: Any) -> None:
        modes[module] = module.training
        outputs.extend((module, t) for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad and t.dim())

    guide_trace = poutine.trace(masks(guide)).get_trace(*args, **kwargs)
    hook = nn.modules.module.register_module_forward_hook(note)
    try:
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    finally:
        hook.remove()
    model_trace.compute_log_prob(site_filter=lambda _, site: site["is_observed"])
    return _Trial(guide_trace, model_trace, {n: s.leaves for n, s in masks.sources.items()}, outputs, modes)


def _dependent(trial: _Trial, leaves: list[Tensor], number: int) -> list[str]:
    """Observed sites in which a datum depends on other data's masks, of so many rows."""
    around_weights = plates_of_weights(trial.guide_trace)
    rows = [(leaf, -2) for leaf in leaves]
    found = []
    for name, site in trial.model_trace.nodes.items():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.name not in around_weights]
        log_prob = site["log_prob"]
        dims = [
            f.dim for f in frames if f.size == number and -f.dim <= log_prob.dim() and log_prob.shape[f.dim] == number
        ]
        # Of two plates of one size either may be that of the rows.
        if dims and all(mixes([(log_prob, dim)], rows) for dim in dims):
            found.append(name)
    return found


def _where(trial: _Trial, number: int) -> str:
    """The first layer whose output has rows that depend on other rows' masks."""
    rows: list[Rows] = [(leaf, -2) for each in trial.leaves.values() for leaf in each if leaf.shape[-2:-1] == (number,)]
    for module, out in trial.outputs:
        if out.shape[0] == number and not list(module.children()) and mixes([(out, 0)], rows):
            return f"rows meet in or before {type(module).__name__}{_statistics(module)}"
    return "rows meet behind the network's layers"


def _statistics(module: nn.Module) -> str:
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return ", whose statistics are of the batch (in evaluation mode they are not)" if batch_norm else ""
