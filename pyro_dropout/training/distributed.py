"""Training by several processes, each on its own rows: what is easy to get wrong around data parallelism."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
import torch.distributed as dist
from pyro.infer.util import zero_grads
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from pyro_dropout._checks import check_counts, said
from pyro_dropout.losses.elbo import TraceDropout_ELBO
from pyro_dropout.losses.nonfinite import explain_gradients, find_nonfinite, finite_gradients
from pyro_dropout.training._files import checked_path, read_state
from pyro_dropout.training._random import random_state, set_random_state
from pyro_dropout.training._steps.arguments import rows_of
from pyro_dropout.training._steps.state import called_modules
from pyro_dropout.training.checkpoint import load_checkpoint, save_checkpoint
from pyro_dropout.training.compiled import CompiledSVI

_RANDOM = "random states of ranks"


def distributed_loss(
    elbo: TraceDropout_ELBO, model: nn.Module, guide: nn.Module, *args: Any, seed: int = 0, **kwargs: Any
) -> DistributedDataParallel:
    r"""``elbo(model, guide)`` in PyTorch's ``DistributedDataParallel``. With R ranks of B rows each,

    .. math:: \frac{1}{R} \sum_r \Bigl[-\frac{N}{B} \sum_{n \in r} \mathbb{E}_q \log p(y_n \mid x_n, W)
        + \mathrm{KL}\Bigr] = -\frac{N}{R B} \sum_n \mathbb{E}_q \log p(y_n \mid x_n, W) + \mathrm{KL}:

    the mean of gradients, which it takes, is that of one process with all rows. The data plate has the size N of the
    whole data set, and nothing else changes; losses of α and estimators of gradients of rates are sums over rows too.

    Makes the guide's parameters by a first call, takes the first rank's values for all, and seeds each rank by
    itself after that: ranks with one seed would draw the same masks. Process groups are made by
    ``torch.distributed.init_process_group``, as usual, in processes that ``torchrun`` starts.

    :param elbo: a loss of this package.
    :param model: a module, on the device of this rank.
    :param guide: its guide.
    :param args, kwargs: of a step, rows of this rank.
    :param seed: of the first rank; rank r has ``seed + r``.
    :returns: a module, which takes the arguments of model and guide, and returns the loss of this rank's rows.
    :raises RuntimeError: no process group.
    :raises TypeError: a model or guide that is no module.
    :raises ValueError: batch normalisation by each rank's own rows; what the loss raises.

    Example::

        >>> import tempfile
        >>> from pyro_dropout import AutoConcreteDropout, BayesianModule
        >>> at = f"file://{tempfile.mkdtemp()}/at"  # torchrun says this to each process
        >>> dist.init_process_group("gloo", init_method=at, rank=0, world_size=1)
        >>> class Classifier(pyro.nn.PyroModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = BayesianModule(nn.Linear(3, 2))
        ...     def forward(self, x, y=None):
        ...         logits = self.net(x)
        ...         with pyro.plate("data", 100, subsample_size=len(x)):
        ...             return pyro.sample("obs", pyro.distributions.Categorical(logits=logits), obs=y)
        >>> model = Classifier()
        >>> x, y = torch.randn(10, 3), torch.arange(10) % 2
        >>> loss = distributed_loss(TraceDropout_ELBO(), model, AutoConcreteDropout(model), x, y)
        >>> optim = torch.optim.Adam(loss.parameters())
        >>> distributed_step(loss, optim, x, y) > 0
        True
        >>> del loss  # which must not outlive the group
        >>> dist.destroy_process_group()
    """
    for name, function in (("model", model), ("guide", guide)):
        if not isinstance(function, nn.Module):
            raise TypeError(f"{name} must be a module, whose parameters are known, but found {said(function)}")
    _start(elbo, model, guide, args, kwargs, seed)
    device = next(guide.parameters()).device
    return DistributedDataParallel(
        elbo(model, guide), device_ids=[device] if device.type == "cuda" else None, forward_sync_buffers=False
    )


def distributed_step(loss: DistributedDataParallel, optim: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float:
    """A step of all ranks, which all make or all refuse.

    :param loss: what :func:`distributed_loss` returns.
    :param optim: of its parameters.
    :param args, kwargs: of a step, rows of this rank.
    :returns: the loss of all ranks' rows.
    :raises ValueError: in all ranks with the same message: a loss or a gradient of any rank that is not finite, or
        whatever else its loss refuses; ranks with different numbers of rows. Parameters are not changed.
    :raises TypeError: another module, another kind of optimiser.

    Example::

        >>> import tempfile
        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule
        >>> dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/at", rank=0, world_size=1)
        >>> model = BayesianModule(nn.Linear(3, 2))  # a model without data, whose loss is its KL
        >>> guide = AutoBernoulliDropout(model, rate=0.1, learnable=True)
        >>> x = torch.zeros(1, 3)
        >>> loss = distributed_loss(TraceDropout_ELBO(), model, guide, x)
        >>> optim = torch.optim.Adam(loss.parameters(), lr=0.1)
        >>> distributed_step(loss, optim, x) > distributed_step(loss, optim, x)
        True
        >>> del loss  # which must not outlive the group
        >>> dist.destroy_process_group()
    """
    if not isinstance(loss, DistributedDataParallel):
        raise TypeError(f"loss must be what distributed_loss returns, but found {said(loss)}")
    if not isinstance(optim, torch.optim.Optimizer):
        raise TypeError(f"optim must be an optimiser of torch.optim, but found {said(optim)}")
    optim.zero_grad()
    error: Exception | None = None
    value = None
    try:
        value = loss(*args, **kwargs)
    except Exception as raised:  # or the others would wait for this rank
        error = raised
    mean = _agreed(error, math.nan if value is None else value.item(), args, kwargs)
    assert value is not None
    value.backward()
    parameters = dict(loss.module.named_parameters())
    if not finite_gradients(parameters):  # means over ranks, and so in all of them
        found = _first(find_nonfinite(loss.module.model, loss.module.guide, args, kwargs))
        refused = explain_gradients(parameters, found)
        optim.zero_grad()
        raise refused
    optim.step()
    return mean


class DistributedSVI(CompiledSVI):
    """:class:`~pyro_dropout.CompiledSVI` by several processes: gradients are averaged before the update.

    Each rank has its own rows, and B of them at each step; see :func:`distributed_loss` for why the mean is right, and
    what the first step does. Loss and gradients are compiled, as there, the update is the optimiser's own.

    :param seed: of the first rank; rank r has ``seed + r``.
    :param arguments: of ``CompiledSVI``.
    :raises RuntimeError: at the first step: no process group.
    :raises ValueError: at a step, in all ranks: what :func:`distributed_step` raises.

    Example::

        >>> import tempfile
        >>> from pyro_dropout import AutoConcreteDropout, BayesianModule
        >>> dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/at", rank=0, world_size=1)
        >>> net = BayesianModule(nn.Linear(3, 2))
        >>> def model(x, y=None):
        ...     logits = net(x)
        ...     with pyro.plate("data", 100, subsample_size=len(x)):
        ...         return pyro.sample("obs", pyro.distributions.Categorical(logits=logits), obs=y)
        >>> svi = DistributedSVI(model, AutoConcreteDropout(model), pyro.optim.Adam({}), backend="eager")
        >>> svi.step(torch.randn(10, 3), torch.arange(10) % 2) > 0
        True
        >>> dist.destroy_process_group()
    """

    def __init__(self, *arguments: Any, seed: int = 0, **options: Any) -> None:
        check_counts(least=0, seed=seed)
        super().__init__(*arguments, **options)
        self.seed, self._started = seed, False

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Makes the guide's parameters, the first rank's for all, and seeds each rank.

        The first step does so, if nothing has; call it before a state is loaded, whose random numbers go on.
        """
        _start(self.elbo, self.model, self.guide, args, kwargs, self.seed)
        self._started = True

    def step(self, *args: Any, **kwargs: Any) -> float:
        """A step of all ranks, and its estimate of the loss of all their rows."""
        if not self._started:
            self.start(*args, **kwargs)
        error: Exception | None = None
        loss, parameters = math.nan, list[Tensor]()
        try:
            loss, parameters = self._run("gradients", args, kwargs)
        except Exception as raised:  # or the others would wait for this rank
            error = raised
        try:
            mean = _agreed(error, loss, args, kwargs, self._fingerprint(parameters))
            _average([parameter.grad for parameter in parameters if parameter.grad is not None])
            self.optim(parameters)
        finally:
            zero_grads(parameters)
        return mean

    def scan(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step for each entry of the first dimension of all tensors; the losses, ``[steps]``."""
        steps = rows_of(args, kwargs)
        return torch.tensor([self.step(*row, **named) for row, named in steps], dtype=torch.float64)

    def _fingerprint(self, parameters: list[Tensor]) -> float:
        """Of the names of parameters that have gradients, in their order."""
        named = [(f"{i}.{name}", p) for i, m in enumerate(self._modules) for name, p in m.named_parameters()]
        names = {id(p): name for name, p in reversed([*pyro.get_param_store().named_parameters(), *named])}
        found = [f"{names.get(id(p))}{tuple(p.shape)}" for p in parameters if p.grad is not None]
        return float(zlib.crc32(" ".join(found).encode()))


def save_distributed(path: str | os.PathLike, **parts: Any) -> None:
    """:func:`~pyro_dropout.save_checkpoint` by the first rank, with the random states of all; others wait for it.

    :param path: of the file.
    :param parts: as there. Model and guide themselves, not the loss around them.

    Example::

        >>> import tempfile
        >>> dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/at", rank=0, world_size=1)
        >>> path = f"{tempfile.mkdtemp()}/fit.pt"
        >>> save_distributed(path, layer=nn.Linear(2, 1), step=3)
        >>> load_distributed(path, layer=nn.Linear(2, 1))["step"]
        3
        >>> dist.destroy_process_group()
    """
    states: list[Any] = [None] * _ranks()
    dist.all_gather_object(states, random_state())
    error = None
    if dist.get_rank() == 0:
        try:
            save_checkpoint(path, **parts, **{_RANDOM: states})
        except Exception as raised:  # or the others would wait for this rank
            error = raised
    said_by_first = _first(None if error is None else str(error))
    if error is not None:
        raise error
    if said_by_first is not None:
        raise ValueError(said_by_first)


def load_distributed(path: str | os.PathLike, map_location: Any = None, **parts: Any) -> dict[str, Any]:
    """:func:`~pyro_dropout.load_checkpoint` in every rank, each with its own random state.

    :param path: of a file that :func:`save_distributed` wrote.
    :param map_location: device of this rank.
    :param parts: as in ``load_checkpoint``.
    :returns: the other values, by name.
    :raises ValueError: a file of another number of ranks, or of no ranks at all.

    Example::

        >>> import tempfile
        >>> dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/at", rank=0, world_size=1)
        >>> path = f"{tempfile.mkdtemp()}/fit.pt"
        >>> save_distributed(path, layer=nn.Linear(2, 1))
        >>> number = torch.rand(())
        >>> _ = load_distributed(path, layer=nn.Linear(2, 1))
        >>> torch.equal(torch.rand(()), number)  # random numbers go on from there
        True
        >>> dist.destroy_process_group()
    """
    ranks = _ranks()
    states = read_state(checked_path(path), "cpu")["values"].get(_RANDOM)  # before anything is changed
    if states is None:
        raise ValueError(f"{path} has no states of ranks: save_distributed writes them")
    if len(states) != ranks:
        raise ValueError(
            f"{path} is of {len(states)} ranks, but found {ranks}: go on with as many, or load model and guide alone, "
            "by load_checkpoint, and start anew"
        )
    values = load_checkpoint(path, map_location, **parts)
    set_random_state(states[dist.get_rank()])
    return {name: value for name, value in values.items() if name != _RANDOM}


def _start(elbo: Any, model: Callable, guide: Callable, args: Any, kwargs: Any, seed: int) -> None:
    """The guide's first call, the first rank's values for all, a seed for each."""
    if not isinstance(elbo, TraceDropout_ELBO):
        raise TypeError(f"elbo must be a TraceDropout_ELBO or one of its subclasses, but found {said(elbo)}")
    check_counts(least=0, seed=seed)
    _ranks()
    called: dict[nn.Module, None] = {}  # which functions keep to themselves
    with called_modules(called):
        elbo.set_up(model, guide, *args, **kwargs)
    modules = [*(f for f in (model, guide) if isinstance(f, nn.Module)), *called]
    for module in modules:
        _check_normalisation(module)
    stored = [tensor for _, tensor in sorted(pyro.get_param_store().named_parameters())]
    _broadcast([*(tensor for module in modules for tensor in (*module.parameters(), *module.buffers())), *stored])
    pyro.set_rng_seed(seed + dist.get_rank())


def _ranks() -> int:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "no process group: start the script by torchrun, and call torch.distributed.init_process_group() first"
        )
    return dist.get_world_size()


def _check_normalisation(module: nn.Module) -> None:
    if dist.get_world_size() == 1:
        return
    for name, layer in module.named_modules():
        own = isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)
        if own and layer.training:
            raise ValueError(
                f"{name} ({type(layer).__name__}) takes the statistics of each rank's own rows: convert the network "
                "before it is a BayesianModule, by nn.SyncBatchNorm.convert_sync_batchnorm (on GPUs), or put the layer "
                "into eval mode, or use a normalisation of single rows, such as nn.GroupNorm"
            )


def _broadcast(tensors: Iterable[Tensor]) -> None:
    for tensor in {id(t): t for t in tensors}.values():
        dist.broadcast(tensor.detach(), 0)


def _agreed(error: Exception | None, loss: float, args: Any, kwargs: Any, learned: float = 0.0) -> float:
    """The mean loss, if all ranks have one, of equally many rows. Else all raise what went wrong in any."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    rows = float(len(tensors[0])) if tensors and tensors[0].dim() else 0.0
    device = tensors[0].device if tensors and dist.get_backend() == "nccl" else None
    own = torch.tensor([loss, error is not None, rows, learned], dtype=torch.float64, device=device)
    every = [torch.empty_like(own) for _ in range(_ranks())]
    dist.all_gather(every, own)
    losses, failed, numbers, fingerprints = torch.stack(every).cpu().unbind(1)
    if failed.any():
        messages: list[Any] = [None] * len(failed)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        dist.all_gather_object(messages, None if error is None else f"{kind}{error}")
        raise ValueError("; ".join(f"rank {r}: {m}" for r, m in enumerate(messages) if m is not None)) from error
    if numbers.min() != numbers.max():
        raise ValueError(
            f"ranks have {', '.join(f'{int(n)}' for n in numbers)} rows, of which the mean over ranks would weigh some "
            "more than others: give each as many, by DistributedSampler(..., drop_last=True) and drop_last batches"
        )
    if fingerprints.min() != fingerprints.max():
        raise ValueError(
            "ranks have gradients of different parameters, which have no mean: every rank must run the same layers"
        )
    return losses.mean().item()


def _average(gradients: list[Tensor]) -> None:
    """Over ranks, in one message for each type."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = torch.cat([gradient.reshape(-1) for gradient in alike])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, mean in zip(alike, flat.split([g.numel() for g in alike]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _first(own: str | None) -> str | None:
    """What the first rank that knows anything says."""
    every: list[Any] = [None] * _ranks()
    dist.all_gather_object(every, own)
    return next((f"rank {r}: {found}" for r, found in enumerate(every) if found), None)
