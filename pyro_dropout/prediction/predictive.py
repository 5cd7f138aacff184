"""Prediction with many draws over many data, in bounded memory; draws that can be kept and called again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from pyro.infer import Predictive
from torch import Tensor
from tqdm import tqdm

from pyro_dropout._checks import (
    check_choice,
    check_counts,
    check_flags,
    check_functions,
    check_positive,
    check_seeds,
    said,
)
from pyro_dropout._failures import said_of_arguments
from pyro_dropout._modes import borrowed_parameters, evaluation_mode, forked_rng
from pyro_dropout._sites import is_deterministic, is_of_network, plate_nesting, sample_sites
from pyro_dropout.masks.messengers import DatumMasks
from pyro_dropout.metrics.moments import PredictiveMoments
from pyro_dropout.prediction._accumulators import Accumulator, LogMean, Moments, Stack
from pyro_dropout.prediction._arguments import check_names, check_samples
from pyro_dropout.prediction._independence import check_masks, check_rows
from pyro_dropout.prediction._parts import Inputs, Layout, Plan, Sizes, StalePlan, slices
from pyro_dropout.prediction._reads import location, read_log_density, read_moments, read_value
from pyro_dropout.prediction.draws import drawn, draws_plate, replayed
from pyro_dropout.weights.plates import apart, beside_data, check_data_plates
from pyro_dropout.weights.weight import MaskedWeight


class DropoutPredictive(Predictive):
    r"""Draws from the posterior predictive distribution, as :class:`pyro.infer.Predictive`, for many draws and data:

    .. math:: p(y^* \mid x^*, X, Y) \approx \frac{1}{T} \sum_t p(y^* \mid x^*, W_t), \quad W_t \sim q(W)

    (MC eq. 8 to 11). Draws and data are taken in parts that fit into a given number of bytes. A draw is a *function*:
    its masks are the same for all data. Networks run in evaluation mode, so that batch normalisation uses its running
    statistics and changes none, and only the guide is random; afterwards they are as they were. No gradient is kept.

    :param model: a Pyro model whose plates follow its data: ``pyro.plate("data", max(size, len(x)),
        subsample_size=len(x))``.
    :param posterior_samples: draws by site, ``[draws, ...]``, instead of a guide.
    :param guide: any Pyro guide.
    :param num_samples: number of draws T.
    :param return_sites: sites to return, ``"_RETURN"`` for what the model returns; by default all but the weights of
        networks.
    :param parallel: evaluate draws at once, in a plate left of the model's; or one at a time.
    :param masks: ``"draw"`` for function draws; ``"datum"`` draws a mask for each datum, which gives each
        datum the same distribution but says nothing about data together.
    :param max_memory: bytes of tensors at once, besides the result, the model and the data.
    :param data: positions or names of the arguments with one row per datum; by default all tensors as long as the
        first. ``()`` for models that do not take their data in parts.
    :param seed: makes calls repeatable, and leaves Pyro's own random numbers as they were. Function draws for one
        seed are the same whatever the data and the parts, if all draws of the guide fit into half of the memory (of
        dropout guides these are masks).
    :param progress: show a progress bar.
    :raises ValueError: neither guide nor samples; a bound that not even one draw of one datum fits into; at a call,
        a model whose sites cannot be taken apart by data.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from torch import nn
        >>> from pyro_dropout import AutoBernoulliDropout, BayesianModule
        >>> net = BayesianModule(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)))
        >>> def model(x, y=None):
        ...     mean = net(x).squeeze(-1)
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)
        >>> guide, x = AutoBernoulliDropout(model, rate=0.1), torch.randn(20, 3)
        >>> _ = guide(x, x[:, 0])  # set up with the data observed, as SVI does
        >>> predict = DropoutPredictive(model, guide=guide, num_samples=100)
        >>> predict(x)["obs"].shape
        torch.Size([100, 20])
        >>> predict.moments(x)["obs"].aleatoric[0]  # streamed: no [draws, data] array
        tensor(0.2500)
        >>> function = predict.draw(x)[0].moments  # one function, to keep (Thompson sampling)
        >>> torch.allclose(function(x)["obs"].mean[5:], function(x[5:])["obs"].mean)
        True
    """

    def __init__(
        self,
        model: Callable,
        posterior_samples: Mapping[str, Tensor] | None = None,
        guide: Callable | None = None,
        num_samples: int | None = None,
        return_sites: Sequence[str] = (),
        parallel: bool = True,
        *,
        masks: str = "draw",
        max_memory: int = 2**30,
        data: Sequence[int | str] | None = None,
        seed: int | None = None,
        progress: bool = False,
    ) -> None:
        check_functions(model=model)
        check_flags(parallel=parallel, progress=progress)
        check_choice(("draw", "datum"), masks=masks)
        check_positive(max_memory=max_memory)
        if seed is not None:
            check_seeds(seed=seed)
        if isinstance(return_sites, str) or isinstance(data, str | int):
            raise TypeError('return_sites and data take lists: return_sites=["obs"], data=[0]')
        check_names(return_sites, data)
        check_samples(posterior_samples)
        if guide is None and not posterior_samples:
            raise ValueError("give a guide or posterior_samples (for the prior predictive: pyro.infer.Predictive)")
        if guide is not None:
            check_functions(guide=guide)
        if num_samples is not None or not posterior_samples:
            check_counts(num_samples=num_samples)
        super().__init__(model, posterior_samples, guide, num_samples, return_sites, parallel)
        if masks == "datum" and (guide is None or not parallel):
            raise ValueError('masks="datum" draws masks when layers see the data: it needs a guide, and parallel=True')
        self.masks, self.max_memory, self.data, self.seed, self.progress = masks, max_memory, data, seed, progress
        self._plans: dict[Any, Plan] = {}  # by kind of arguments

    # Three ways to keep what is predicted

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Values by site, ``[draws, ...]``, in the shapes of stock ``Predictive(parallel=True)``."""
        return self._evaluate(args, kwargs, read_value, Stack)

    def moments(self, *args: Any, **kwargs: Any) -> dict[str, PredictiveMoments]:
        """Mean, epistemic and aleatoric variance of each site that depends on the data, without keeping draws.

        Those of a site's distribution: of ``Normal(mean, scale)`` the epistemic part is the variance of ``mean`` over
        draws, the aleatoric part the mean of ``scale²``. Of a ``Categorical`` they are of its indicators,
        ``[..., classes]``: the mean is the class probabilities. Deterministic sites have no aleatoric variance.

        :raises NotImplementedError: a site whose distribution has no moments; name the others in ``return_sites``.
        """
        return self._evaluate(args, kwargs, read_moments, Moments)

    def log_likelihood(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Log of the mean density over draws of each observation, by observed site (MC eq. 13), without keeping draws.

        Of the data that the model observes with these arguments, without scales of plates; 0 where ``poutine.mask``
        hides an observation.

        :raises ValueError: the model observes nothing.
        """
        return self._evaluate(args, kwargs, read_log_density, LogMean)

    # Draws to keep

    def draw(self, *args: Any, **kwargs: Any) -> DropoutPredictive:
        """The draws themselves, as a ``DropoutPredictive`` that evaluates the same functions at every call.

        They stay as they are when training goes on. ``draw(x)[3]`` is one function; ``posterior_samples`` holds its
        weights, for ``poutine.condition(model, data=...)`` where gradients through a function are wanted.

        :param args: arguments of the guide; ours need them before their first call alone.
        """
        if self.masks == "datum":
            raise ValueError('masks="datum" has no draws to keep, as masks depend on the data: use masks="draw"')
        if self.guide is None:
            return self
        with said_of_arguments("the guide", args, kwargs), self._seeded(), evaluation_mode():
            latents = drawn(self.guide, self.num_samples, self.parallel, args, kwargs)
        return self._keep({name: _copy(value) for name, value in latents.items()})

    def _keep(self, latents: Mapping[str, Tensor]) -> DropoutPredictive:
        options = {name: getattr(self, name) for name in ("return_sites", "parallel", "max_memory", "data", "seed")}
        kept = DropoutPredictive(self.model, posterior_samples=latents, progress=self.progress, **options)
        kept._plans = self._plans
        return kept

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int | slice) -> DropoutPredictive:
        """One draw or several of those that are kept."""
        if self.guide is not None:
            raise TypeError("draws are not kept yet: predictive.draw(x)[index]")
        try:
            taken = range(len(self))[index] if isinstance(index, slice) else operator.index(index)
        except TypeError as error:
            raise TypeError(f"index must be an integer or a slice, but found {said(index)}") from error
        if isinstance(taken, range) and (not taken or taken.step < 0):
            raise ValueError(f"index must take one draw or more, forwards, but found {index} of {len(self)}")
        if not isinstance(taken, range):  # also of numpy and of tensors
            if not -len(self) <= taken < len(self):
                raise IndexError(f"draw {taken} of {len(self)}")
            index = slice(taken % len(self), taken % len(self) + 1)
        return self._keep({name: value[index] for name, value in self.posterior_samples.items()})

    # Evaluation in parts

    def _evaluate(self, args: Any, kwargs: Any, read: Callable, accumulator: type[Accumulator]) -> dict[str, Any]:
        inputs = Inputs(args, kwargs, self.data)
        try:
            return self._collect(inputs, read, accumulator)
        except StalePlan:  # the model has changed
            self._plans.clear()
            return self._collect(inputs, read, accumulator)

    def _collect(self, inputs: Inputs, read: Callable, accumulator: type[Accumulator]) -> dict[str, Any]:
        results: dict[str, Accumulator] = {}
        with (
            self._advised(),
            said_of_arguments("the model", inputs.args, inputs.kwargs),
            self._seeded(),
            evaluation_mode(),
            torch.no_grad(),
            borrowed_parameters(),
            poutine.block(),
            tqdm(total=self.num_samples * inputs.size, unit_scale=True, disable=not self.progress) as bar,
        ):
            plan = self._plan(inputs, read)
            layout = plan.layout
            for block in self._blocks(inputs, plan):
                task = _Task(inputs, layout, plan.latent, read, block.latents)
                run = partial(self._found, task)
                if block.number not in plan.sizes:
                    at_once = block.number if self.parallel else 1
                    plan.sizes[block.number] = Sizes.within(self.max_memory, run, at_once, inputs)
                sizes = plan.sizes[block.number]
                parts = sizes.rows < inputs.size
                if block.latents is None or parts:  # at each call, as a model of the same shapes may have changed
                    layout.check_parts(plan.latent, inputs)
                    self._check_rows(task, parts)
                for rows in slices(inputs.size, sizes.rows):
                    for draws in slices(block.number, sizes.draws):
                        for name, values in run(draws, rows).items():
                            if name not in results:
                                results[name] = accumulator(layout.shape(name, self.num_samples), values[0])
                            among_all = slice(block.first + draws.start, block.first + draws.stop)
                            results[name].add(among_all, layout.where(name, rows), *values)
                        bar.update((draws.stop - draws.start) * (rows.stop - rows.start))
        return {name: result.result() for name, result in results.items()}

    def _found(self, task: _Task, draws: slice, rows: slice) -> dict[str, tuple[Tensor, ...]]:
        """What is read of some draws on some rows of the data."""
        with torch.inference_mode():
            trace = self._trace(task, draws, rows, *task.inputs.rows(rows))
            return task.layout.arrange(self._read(trace, task.read, task.latent), draws, rows)

    def _check_rows(self, task: _Task, parts: bool) -> None:
        """Whether data may come in parts, if they do, and may have masks of their own, if they have."""

        def read(trace: Any) -> dict[str, Tensor]:
            return {n: location(site["fn"]) for n, site in sample_sites(trace) if n not in task.latent}

        def locations(number: int, args: Any, kwargs: Any) -> dict[str, Tensor]:
            return read(self._trace(task, slice(0, 1), slice(0, number), args, kwargs))

        if parts:
            check_rows(task.inputs, locations)
        if task.latents is None:
            assert self.guide is not None
            args, kwargs = task.inputs.rows(slice(0, min(task.inputs.size, 13)))
            check_masks(lambda guide: replayed(self.model, guide, args, kwargs)[1], self.guide, read)

    def _read(self, trace: Any, read: Callable, latent: set[str]) -> dict[str, tuple[Tensor, ...]]:
        """What ``read`` finds at each site that is wanted."""
        found = {}
        known = [name for name, _ in sample_sites(trace)]
        if not latent & set(known):
            raise ValueError(f"none of the samples {sorted(latent)} is of the model, which has the sites {known}")
        redrawn = latent if self.masks == "datum" else set()  # for each part of the data
        for name in self.return_sites or ():
            if name not in (*known, "_RETURN") or name in redrawn:
                raise ValueError(
                    f"return_sites names {name!r}, but the model has the sites {known}"
                    + (f', of which masks="datum" has {sorted(redrawn)} anew for each part' if redrawn else "")
                )
        for name in self.return_sites or known:
            site = trace.nodes[name]
            hidden = not self.return_sites and name in latent and (name in redrawn or is_of_network(site))
            values = None if hidden else read(name, site, name in latent)
            if values is not None:
                found[name] = values
        if not found:
            raise ValueError(
                f"the model has nothing of what is asked for (return_sites={self.return_sites!r}): found the sites "
                f"{known}; a log-likelihood needs the observations among the arguments"
            )
        return found

    def _trace(self, task: _Task, draws: slice, rows: slice, args: Any, kwargs: Any) -> Any:
        """The model's trace of some draws on some data, the arguments' rows."""
        plate = draws_plate(draws.stop - draws.start, task.layout.nesting)
        if task.latents is None:
            return self._trace_per_datum(plate, args, kwargs, rows)
        values = {
            name: task.layout.latent(name, value[draws], rows, task.inputs, self.parallel)
            for name, value in task.latents.items()
        }
        if self.parallel:
            return poutine.trace(poutine.condition(plate(self.model), data=values)).get_trace(*args, **kwargs)
        values = {name: value[0] for name, value in values.items()}
        return poutine.trace(poutine.condition(self.model, data=values)).get_trace(*args, **kwargs)

    def _trace_per_datum(self, plate: Any, args: Any, kwargs: Any, rows: slice) -> Any:
        assert self.guide is not None
        guide = DatumMasks()(plate(self.guide))
        guide_trace, trace = replayed(plate(self.model), guide, args, kwargs)
        data = {n: s for n, s in sample_sites(trace) if n not in guide_trace.nodes and not is_deterministic(s)}
        sites = {n: {**s, "is_observed": True} for n, s in data.items()}
        beside = beside_data(sites, guide_trace)
        free = apart(beside, plate(self.model), guide_trace, args, kwargs) if beside else ()
        number = rows.stop - rows.start if sites.keys() <= set(free) else None
        check_data_plates(sites, guide_trace, number, free)
        return trace

    def _plan(self, inputs: Inputs, read: Callable) -> Plan:
        """What arguments of this kind need to be known of; kept for others of the kind."""
        options = (self.num_samples, self.parallel, self.masks, self.max_memory, tuple(self.return_sites or ()))
        of_draws = None if self.guide else tuple((n, v.shape[1:]) for n, v in self.posterior_samples.items())
        kind: Any = (self.model, self.guide, of_draws, read, *options, inputs.kind)
        try:
            if kind in self._plans:
                return self._plans[kind]
        except TypeError:  # an argument that has no hash, a list say
            kind = None
        weights, nesting = self._one_draw(inputs)
        latent = set(weights)
        layout = Layout.of(self.model, inputs, weights, lambda trace: self._read(trace, read, latent))
        plan = Plan(latent, layout, nesting)
        if kind is not None:
            self._plans[kind] = plan
        return plan

    def _one_draw(self, inputs: Inputs) -> tuple[dict[str, Tensor], int]:
        """A value of each of the guide's sites, and the dimensions that its plates take."""
        if self.guide is None:
            return {name: value[0] for name, value in self.posterior_samples.items()}, 0
        with forked_rng():  # on all data, as this may be the guide's first call
            trace = poutine.trace(self.guide).get_trace(*inputs.args, **inputs.kwargs)
        return {name: site["value"] for name, site in sample_sites(trace)}, plate_nesting(trace)

    def _blocks(self, inputs: Inputs, plan: Plan) -> Iterator[_Block]:
        """The draws that are kept at once: all, unless they need half the memory."""
        if self.guide is None:
            yield _Block(0, self.num_samples, self.posterior_samples)
        elif self.masks == "datum":
            yield _Block(0, self.num_samples, None)
        else:

            def draw(draws: slice) -> dict[str, Tensor]:
                number = draws.stop - draws.start
                return drawn(self.guide, number, self.parallel, inputs.args, inputs.kwargs, plan.nesting)

            if plan.draws is None:
                plan.draws = Sizes.of_draws(self.max_memory // 2, draw, self.num_samples)
            for draws in slices(self.num_samples, plan.draws):
                yield _Block(draws.start, draws.stop - draws.start, draw(draws))

    @contextmanager
    def _advised(self) -> Iterator[None]:
        """What to try where PyTorch or Pyro refuse draws at once, or rows of the data."""
        try:
            yield
        except Exception as error:
            if self.parallel and error.__cause__ is not None:  # what this package refuses has none
                error.add_note(
                    "Draws are evaluated at once, and data in parts: a model that does not broadcast over draws "
                    "(x @ w, w[rows], a loop over rows) needs parallel=False, one that takes rows of its arguments "
                    "by itself data=()"
                )
            raise

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        if self.seed is None:
            yield
            return
        with forked_rng():
            torch.manual_seed(self.seed)
            yield


class _Block(NamedTuple):
    """Draws that are in memory at once.

    :param first: position of the first among all.
    :param number: of them.
    :param latents: their values by site, ``[number, ...]``; None where masks are drawn for each datum.
    """

    first: int
    number: int
    latents: Mapping[str, Tensor] | None


class _Task(NamedTuple):
    """What is to be read of which draws.

    :param latent: names of the guide's sites.
    :param read: what is read at a site (``_reads``).
    :param latents: draws of the guide, ``[number, ...]``; None where masks are drawn for each datum.
    """

    inputs: Inputs
    layout: Layout
    latent: set[str]
    read: Callable
    latents: Mapping[str, Tensor] | None


def _copy(value: Tensor) -> Tensor:
    """Not a view of a guide's parameter; point estimates, which are one for all draws, stay one."""
    if isinstance(value, MaskedWeight):
        return value  # guides make these of copies
    value = value.detach()
    return value[:1].clone().expand(value.shape) if value.stride(0) == 0 else value.clone()
