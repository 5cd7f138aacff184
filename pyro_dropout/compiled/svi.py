"""SVI without Python in its steps: model, guide, loss and optimiser are traced once and compiled.

After program in the chain randomness → graph → update → program → svi → replicates.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from pyro.infer import SVI
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pyro_dropout.checks import find_nonfinite
from pyro_dropout.compiled.program import Program, parameters_of, step_program, tensors_of
from pyro_dropout.losses import TraceDropout_ELBO


class CompiledSVI(SVI):
    """``pyro.infer.SVI`` whose steps run as one compiled graph.

    The first step with arguments of a shape is an eager one, with all checks. At the second the loss, its gradients
    and the optimiser's update are traced: they run once more in Python and are written down as operations on tensors,
    which are compiled. From then on a step is one call of the result. Masks and all other random numbers are drawn
    anew at every step, from a key that PyTorch's generator gives: ``pyro.set_rng_seed`` makes runs repeatable.
    Parameters and the optimiser's state are where they always are; guide, parameter store and checkpoints see no
    difference.

    What the trace saw holds until it is made again: for arguments of another shape, dtype or device, for other
    arguments that are no tensors, for modules in another mode (``train``, ``eval``). A number that changes at every
    step must be a tensor, else every step is compiled; learning rates and α are taken care of. What cannot be traced,
    such as a model that branches on values, runs eagerly, with a warning that says why. An optimiser that counts
    outside of tensors (Pyro's ``ClippedAdam``) runs beside compiled gradients.

    :param model: a Pyro model.
    :param guide: its guide.
    :param optim: a ``PyroOptim``.
    :param loss: a :class:`~pyro_dropout.TraceDropout_ELBO` (the default) or :class:`~pyro_dropout.RenyiDropout_ELBO`.
    :param backend: ``"inductor"`` compiles; ``"eager"`` runs what was traced operation by operation, which starts
        at once.
    :param progress: print what was compiled, and how long it took.
    :raises ValueError: a loss that is not of this package; at a step: a loss or a gradient that is not finite, with
        parameters left as they were before that step.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from torch import nn
        >>> from pyro_dropout import AutoConcreteDropout, BayesianModule
        >>> net = BayesianModule(nn.Linear(3, 1))
        >>> def model(x, y=None):
        ...     mean = net(x).squeeze(-1)
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)
        >>> guide, adam = AutoConcreteDropout(model), pyro.optim.Adam({"lr": 0.01})
        >>> svi = CompiledSVI(model, guide, adam, backend="eager", progress=False)
        >>> svi.step(torch.zeros(5, 3), torch.zeros(5)) > 0
        True
        >>> svi.scan(torch.zeros(10, 5, 3), torch.zeros(10, 5)).shape  # ten steps
        torch.Size([10])
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: PyroOptim,
        loss: TraceDropout_ELBO | None = None,
        *,
        backend: str = "inductor",
        progress: bool = True,
    ) -> None:
        loss = TraceDropout_ELBO() if loss is None else loss
        if not isinstance(loss, TraceDropout_ELBO):
            raise ValueError(
                f"CompiledSVI traces the losses of pyro_dropout, but found {type(loss).__name__}: use "
                "TraceDropout_ELBO or RenyiDropout_ELBO, or pyro.infer.SVI for this loss"
            )
        if backend not in ("inductor", "eager"):
            raise ValueError(f'backend must be "inductor" or "eager", but found {backend!r}')
        super().__init__(model, guide, optim, loss)
        self.elbo, self.backend, self.progress = loss, backend, progress
        self._plain = SVI(model, guide, optim, loss)
        self.loss_and_grads = self._loss_and_grads
        self._programs: dict[Any, Any] = {}
        self._warned, self._said = False, dict[str, int]()

    def step(self, *args: Any, **kwargs: Any) -> float:
        """A step, and its estimate of the loss."""
        program, inputs = self._program("step", args, kwargs)
        if program is _FAILED:  # perhaps the update alone
            program, inputs = self._program("gradients", args, kwargs)
        if program in (_SEEN, _FAILED):
            return self._plain.step(*args, **kwargs)
        loss = self._finite(program, program(program.keys(1)[0], inputs), args, kwargs)
        if program.update is None:
            program.accumulate()
            self.optim(list(program.parameters.values()))
            zero_grads(program.parameters.values())
        return loss

    def scan(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step for each entry of the first dimension of all tensors among the arguments; the losses, ``[steps]``.

        Like ``lax.scan``: no step waits for the loss of the one before.

        :raises ValueError: tensors that differ in their first dimension, or none; what :meth:`step` raises, with the
            number of the step: parameters are those before it.
        """
        rows = _rows(args, kwargs)
        losses: list[float] = []
        for arguments in rows:
            program, _ = self._program("step", *arguments)
            if program not in (_SEEN, _FAILED):
                break
            step = self._plain.step if program is _SEEN else self.step
            losses.append(step(*arguments[0], **arguments[1]))  # the first one, or all
        else:
            return torch.tensor(losses, dtype=torch.float64)
        keys = program.keys(len(rows) - len(losses)).unbind()
        inputs = list(zip(*(leaf.unbind() for leaf in tensors_of(args, kwargs)), strict=True))[len(losses) :]
        results = torch.stack([program(key, values) for key, values in zip(keys, inputs, strict=True)])
        finite = results[:, 1].tolist()
        if not all(finite):
            failed = len(losses) + finite.index(0.0)
            where = f"step {failed} of {len(rows)}: "
            self._finite(program, results[failed - len(losses)], *rows[failed], where)
        return torch.cat([torch.tensor(losses, dtype=torch.float64), results[:, 0].cpu().double()])

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss."""
        program, inputs = self._program("loss", args, kwargs)
        if program in (_SEEN, _FAILED):
            return self._plain.evaluate_loss(*args, **kwargs)
        return self._finite(program, program(program.keys(1)[0], inputs), args, kwargs)

    def _loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss, whose gradient is added to the parameters' ``grad``."""
        program: Any = _FAILED
        if model is self.model and guide is self.guide:
            program, inputs = self._program("gradients", args, kwargs)
        if program in (_SEEN, _FAILED):
            return self.elbo.loss_and_grads(model, guide, *args, **kwargs)
        loss = self._finite(program, program(program.keys(1)[0], inputs), args, kwargs)
        program.accumulate()
        return loss

    def _finite(self, program: Program, result: Tensor, args: Any, kwargs: Any, where: str = "") -> float:
        loss, finite = result.tolist()
        if finite:
            return loss
        program.go_on()
        what = "the loss is finite, but its gradient is not" if math.isfinite(loss) else f"the loss is {loss}"
        culprit = find_nonfinite(self.model, self.guide, args, kwargs)
        raise ValueError(f"{where}{f'{culprit}: ' if culprit else ''}{what}; parameters were not changed")

    def _program(self, kind: str, args: Any, kwargs: Any) -> tuple[Any, list[Tensor]]:
        """What was compiled for such arguments, or that they were seen, or cannot be; and the tensors among them."""
        leaves: Any
        spec: Any
        flat = not kwargs and all(type(a) is Tensor for a in args)  # soon known
        leaves, spec = (args, None) if flat else tree_flatten((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        kinds = tuple((leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = (kind, spec, kinds)
        try:
            program = self._programs.get(key)
        except TypeError as error:
            self._warn(f"an argument is neither a tensor nor can it be compared ({error})")
            return _FAILED, inputs
        if program is _SEEN:
            program = self._build(kind, args, kwargs)
        elif program is None or (program is not _FAILED and not program.is_current()):
            program = _SEEN
        self._programs[key] = program
        if isinstance(program, Program):
            program.refresh()
        return program, inputs

    def _build(self, kind: str, args: Any, kwargs: Any) -> Any:
        start = time.perf_counter()
        functions = (self.model, self.guide, self.elbo, args, kwargs)
        try:
            parameters = parameters_of(*functions) if kind != "loss" else {}
            if kind == "step":
                program = step_program(*functions, parameters=parameters, optim=self.optim)
            else:
                program = Program(*functions, parameters=parameters)
        except Exception as error:
            reason, what = "the model or its guide", "everything"
            if kind == "step":
                with suppress(Exception):
                    Program(*functions, parameters=parameters)
                    reason, what = "the optimiser's update", "the update"
            self._warn(f"{reason} cannot be traced ({_first_line(error)})", what)
            return _FAILED
        if self.backend == "inductor":
            try:
                program.compile()
            except Exception as error:
                self._warn(f"the compiler failed ({_first_line(error)})")
                return _FAILED
            self._say(kind, args, kwargs, time.perf_counter() - start)
        return program

    def _warn(self, reason: str, what: str = "everything") -> None:
        if not self._warned:
            warnings.warn(f"CompiledSVI runs {what} eagerly: {reason}", stacklevel=2)
        self._warned = True

    def _say(self, kind: str, args: Any, kwargs: Any, seconds: float) -> None:
        """Once for each kind, and once that it can happen again."""
        self._said[kind] = self._said.get(kind, 0) + 1
        if self.progress and self._said[kind] <= 2:
            again = " again; further times are not said" if self._said[kind] == 2 else ""
            announce(f"CompiledSVI: compiled a {kind}", args, kwargs, seconds, again)


_SEEN, _FAILED = "seen", "failed"  # arguments of which the next will be compiled, and which cannot be


def _rows(args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    """The arguments of each step."""
    leaves, spec = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    numbers = {len(t) if t.dim() else -1 for t in tensors}
    if len(numbers) != 1 or numbers == {-1}:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors) or "none"
        raise ValueError(f"scan takes one step for each entry of its tensors' first dimension, but found {shapes}")
    columns = [leaf.unbind() if isinstance(leaf, Tensor) else None for leaf in leaves]
    return [
        tree_unflatten([leaf if rows is None else rows[i] for leaf, rows in zip(leaves, columns, strict=True)], spec)
        for i in range(numbers.pop())
    ]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def announce(what: str, args: Any, kwargs: Any, seconds: float, more: str = "") -> None:
    leaves = [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves((args, kwargs))]
    print(f"{what} for {', '.join(map(str, leaves))} in {seconds:.1f} s{more}")
