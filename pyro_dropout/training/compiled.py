"""SVI without Python in its steps: model, guide, loss and optimiser are traced once and compiled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Any

import torch
from pyro.infer import SVI
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pyro_dropout._checks import check_flags, check_functions
from pyro_dropout._failures import said_of_arguments
from pyro_dropout._modes import autocast_state
from pyro_dropout.losses.elbo import TraceDropout_ELBO
from pyro_dropout.losses.nonfinite import find_nonfinite, not_finite
from pyro_dropout.training._steps.arguments import check_loss_and_backend, check_optimisers, rows_of
from pyro_dropout.training._steps.messages import NOT_LEARNED, NOTHING_TO_LEARN, first_line, shapes_of
from pyro_dropout.training._steps.program import Program, eager_gradients, step_program
from pyro_dropout.training._steps.randomness import drawn_by, random_keys
from pyro_dropout.training._steps.state import called_modules, modules_of, parameters_of, tensors_of


class CompiledSVI(SVI):
    """``pyro.infer.SVI`` whose steps run as one compiled graph.

    The first step with arguments of a shape is an eager one, with all checks. At the second the loss, its gradients
    and the optimiser's update are traced: they run once more in Python and are written down as operations on tensors.
    Another process compiles these, if none has before; steps run operation by operation until it has. From then on a
    step is one call of the result. Masks and all other random numbers are drawn anew at every step, from a key that
    PyTorch's generator gives: ``pyro.set_rng_seed`` makes runs repeatable, up to rounding, which changes when steps
    are compiled; with ``wait=True`` to the last bit.
    Parameters and the optimiser's state are where they always are; guide, parameter store and checkpoints see no
    difference.

    What the trace saw holds until it is made again: for arguments of another shape, dtype or device, for other
    arguments that are no tensors, for modules in another mode (``train``, ``eval``), in or out of ``torch.autocast``,
    for parameters, buffers or an optimiser's state that are replaced. Other attributes of a model are taken as the
    trace saw them: what changes between steps must be an argument or a buffer. Learning rates and α are taken care of.
    What cannot be traced, such as a model that branches on values or reads them as numbers, runs eagerly, with a
    warning that says why. An optimiser that counts outside of tensors (Pyro's ``ClippedAdam``), or whose learning rate
    must be a number and changes (none of PyTorch's), runs beside compiled gradients.

    :param model: a Pyro model.
    :param guide: its guide.
    :param optim: a ``PyroOptim``.
    :param loss: a :class:`~pyro_dropout.TraceDropout_ELBO` (the default) or a subclass of it.
    :param backend: ``"inductor"`` compiles; ``"eager"`` runs what was traced operation by operation, which starts
        at once; ``"cudagraphs"`` has a GPU run these operations by itself, with nothing to compile and no Python
        between them.
    :param wait: for the compiler at the second step. Else steps go on, operation by operation (on a GPU the compiler is
        always waited for).
    :param progress: print what was compiled, and how long it took.
    :raises ValueError: a loss that is not of this package; at a step: a loss or a gradient that is not finite, with
        parameters left as they were before that step; ``"cudagraphs"`` for what is not on a GPU.

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
        wait: bool = False,
        progress: bool = True,
    ) -> None:
        loss = TraceDropout_ELBO() if loss is None else loss
        check_functions(model=model, guide=guide)
        check_optimisers(optim=optim)
        check_loss_and_backend("CompiledSVI", [loss], backend, "cudagraphs")
        check_flags(wait=wait, progress=progress)
        super().__init__(model, guide, optim, loss)
        self.elbo, self.backend, self.wait, self.progress = loss, backend, wait, progress
        self.loss_and_grads = self._loss_and_grads
        self._programs: dict[Any, Program | _Outcome] = {}
        self._called: dict[nn.Module, None] = {}
        self._modules: list[nn.Module] = []  # all that are known
        self._latest: Program | None = None
        self._has_gradients = False  # that loss_and_grads left for the next step
        self._changed_options = 0
        self._warned, self._said = False, dict[str, int]()

    def step(self, *args: Any, **kwargs: Any) -> float:
        """A step, and its estimate of the loss."""
        loss, parameters = self._run("gradients" if self._has_gradients else "step", args, kwargs)
        if parameters:
            self.optim(parameters)
            zero_grads(parameters)
        self._has_gradients = False
        return loss

    def scan(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step for each entry of the first dimension of all tensors among the arguments; the losses, ``[steps]``.

        Like ``lax.scan``: no step waits for the loss of the one before.

        :raises ValueError: tensors that differ in their first dimension, or none; what :meth:`step` raises, with the
            number of the step: parameters are those before it.
        """
        rows = rows_of(args, kwargs)
        losses: list[float] = []
        for i, arguments in enumerate(rows):
            program, _ = self._look_up("step", *arguments)
            if isinstance(program, Program) and not self._has_gradients:
                break
            try:
                losses.append(self.step(*arguments[0], **arguments[1]))  # the first one, or all
            except ValueError as error:
                raise ValueError(f"step {i} of {len(rows)}: {error}") from error
        else:
            return torch.tensor(losses, dtype=torch.float64)
        inputs = list(zip(*(leaf.unbind() for leaf in tensors_of(args, kwargs)), strict=True))[len(losses) :]
        called: list[Tensor] = []
        for key, values in zip(program.keys(len(inputs)).unbind(), inputs, strict=True):
            if called:  # before the first call _look_up does
                program.refresh()
            called.append(program(key, values))
        results = torch.stack(called)
        finite = results[:, 1].tolist()
        if not all(finite):
            failed = len(losses) + finite.index(0.0)
            where = f"step {failed} of {len(rows)}: "
            self._finite(program, results[failed - len(losses)], *rows[failed], where)
        return torch.cat([torch.tensor(losses, dtype=torch.float64), results[:, 0].cpu().double()])

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss."""
        return self._run("loss", args, kwargs)[0]

    def _loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss, whose gradient is added to the parameters' ``grad``."""
        if model is not self.model or guide is not self.guide:
            return self.elbo.loss_and_grads(model, guide, *args, **kwargs)
        self._has_gradients = True
        return self._run("gradients", args, kwargs)[0]

    # Three ways to run, each to the loss and the parameters that have gradients and are still to be updated

    def _run(self, kind: str, args: Any, kwargs: Any) -> tuple[float, list[Tensor]]:
        """Arguments of a kind that is new run eagerly, from the second time on compiled, eagerly where that cannot be.

        :param kind: ``"loss"``, ``"gradients"`` (added to those that parameters have) or ``"step"``.
        """
        way, inputs = self._look_up(kind, args, kwargs)
        if way is _Outcome.FAILED and kind == "step":  # perhaps the update alone
            return self._run("gradients", args, kwargs)
        if isinstance(way, Program):
            return self._compiled(way, inputs, args, kwargs)
        return self._first(kind, args, kwargs) if way is None else self._eagerly(kind, None, args, kwargs)

    def _first(self, kind: str, args: Any, kwargs: Any) -> tuple[float, list[Tensor]]:
        """The first time: eagerly, with all checks, by the random numbers that a compiled step would have drawn."""
        with said_of_arguments("the first step", args, kwargs):
            return self._tried(kind, args, kwargs)

    def _tried(self, kind: str, args: Any, kwargs: Any) -> tuple[float, list[Tensor]]:
        functions = (self.model, self.guide)
        if not self._modules:
            with called_modules(self._called):
                self.elbo.set_up(*functions, *args, **kwargs)
        before = torch.get_rng_state()
        tensors = [p for m in modules_of(*functions, *self._called) for p in m.parameters()] + tensors_of(args, kwargs)
        key = random_keys(1, tensors[0].device if tensors else None)[0]
        outcome = _Outcome.SEEN
        with called_modules(self._called):
            try:
                result = self._eagerly(kind, key, args, kwargs)
            except NotImplementedError as error:  # random numbers that are no function of a key
                self._warn(f"the model or its guide cannot be traced ({first_line(error)})")
                outcome = _Outcome.FAILED
                torch.set_rng_state(before)
                result = self._eagerly(kind, None, args, kwargs)
        self._modules = modules_of(*functions, *self._called)
        for seen in ("step", "gradients") if kind == "step" else (kind,):  # a step whose update fails has gradients
            self._programs[self._key(seen, args, kwargs)[0]] = outcome
        return result

    def _eagerly(self, kind: str, key: Tensor | None, args: Any, kwargs: Any) -> tuple[float, list[Tensor]]:
        """With all checks, by the random numbers of a key, or without one by PyTorch's own."""
        if kind == "loss":
            with torch.no_grad(), drawn_by(key):
                return self.elbo.loss(self.model, self.guide, *args, **kwargs), []
        loss, parameters = eager_gradients(self.model, self.guide, self.elbo, key, args, kwargs)
        return loss, list(parameters)

    def _compiled(self, program: Program, inputs: list[Tensor], args: Any, kwargs: Any) -> tuple[float, list[Tensor]]:
        before = torch.get_rng_state()
        try:
            loss = self._finite(program, program(program.keys(1)[0], inputs), args, kwargs)
        except ValueError:
            torch.set_rng_state(before)  # as an eager step that is refused
            raise
        if program.update is not None or not program.gradients:
            return loss, []
        program.accumulate()
        return loss, list(program.parameters.values())

    def _finite(self, program: Program, result: Tensor, args: Any, kwargs: Any, where: str = "") -> float:
        loss, finite = result.tolist()
        if finite:
            return loss
        program.revive()
        what = "the loss is finite, but its gradient is not" if math.isfinite(loss) else f"the loss is {loss}"
        raise not_finite(what, find_nonfinite(self.model, self.guide, args, kwargs), where)

    # What is compiled, by kind of arguments

    def _key(self, kind: str, args: Any, kwargs: Any) -> tuple[Any, list[Tensor]]:
        """What a program is made for, and the tensors among the arguments."""
        leaves: Any
        spec: Any
        flat = not kwargs and all(type(a) is Tensor for a in args)  # soon known
        leaves, spec = (args, None) if flat else tree_flatten((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        kinds = tuple((leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        modes = (*(module.training for module in self._modules), *autocast_state())
        return (kind, spec, kinds, modes), inputs

    def _look_up(self, kind: str, args: Any, kwargs: Any) -> tuple[Any, list[Tensor]]:
        """What was compiled for such arguments, None if they are new, or that it cannot be; the tensors among them."""
        key, inputs = self._key(kind, args, kwargs)
        try:
            program = self._programs.get(key)
        except TypeError as error:
            self._warn(f"an argument is neither a tensor nor can it be compared ({error})")
            return _Outcome.FAILED, inputs
        if program is _Outcome.SEEN:
            program = self._programs[key] = self._build(kind, args, kwargs)
        elif isinstance(program, Program) and not program.is_current(others_ran=program is not self._latest):
            self._changed_options += program.update is not None and not program.update.same_options()
            return None, inputs
        if isinstance(program, Program):
            program.refresh()
            self._latest = program
        return program, inputs

    def _build(self, kind: str, args: Any, kwargs: Any) -> Program | _Outcome:
        functions = (self.model, self.guide, self.elbo, args, kwargs)
        modules = self._modules
        if kind == "step" and self._changed_options > 2:
            self._warn("the optimiser's options change, which are a part of what is compiled", "the update eagerly")
            return _Outcome.FAILED
        try:
            parameters = parameters_of(*functions, modules)
            if kind == "step" and not parameters:
                self._warn(NOTHING_TO_LEARN)
                return _Outcome.FAILED
            if kind == "step":
                program = step_program(*functions, parameters=parameters, optim=self.optim, modules=modules)
                if not program.learns:
                    self._warn(NOT_LEARNED)
                    return _Outcome.FAILED
            else:
                program = Program(*functions, parameters=parameters, gradients=kind != "loss", modules=modules)
        except Exception as error:
            reason, what = "the model or its guide", "everything eagerly"
            if kind == "step":
                with suppress(Exception):
                    Program(*functions, parameters=parameters, modules=modules)
                    reason, what = "the optimiser's update", "the update eagerly"
            self._warn(f"{reason} cannot be traced ({first_line(error)})", what)
            return _Outcome.FAILED
        if self.backend == "inductor":
            program.compile(self.wait, partial(self._say, kind, shapes_of(args, kwargs)))
        elif self.backend == "cudagraphs":
            program.capture()
        return program

    def _warn(self, reason: str, what: str = "everything eagerly") -> None:
        if not self._warned:
            warnings.warn(f"CompiledSVI runs {what}: {reason}", stacklevel=2)
        self._warned = True

    def _say(self, kind: str, shapes: str, error: str, seconds: float) -> None:
        """Of compiling that has ended: once for each kind, and once that it can happen again."""
        if error:
            self._warn(f"the compiler failed ({error})", f"a {kind} operation by operation, not compiled")
        self._said[kind] = self._said.get(kind, 0) + 1
        if self.progress and not error and self._said[kind] <= 2:
            again = " again; further times are not said" if self._said[kind] == 2 else ""
            print(f"CompiledSVI: a {kind} for {shapes} is compiled, after {seconds:.1f} s{again}")


class _Outcome(Enum):
    """What became of arguments of a kind that have no program."""

    SEEN = "ran once: the next time they are compiled"
    FAILED = "cannot be compiled"
