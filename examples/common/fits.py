"""Classifiers trained by compiled steps: looked at on the way, resumed where they were interrupted, scored by draws."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor
from tqdm import tqdm

from examples.common.data import load_mnist
from pyro_dropout import CompiledSVI, DropoutPredictive, TraceDropout_ELBO, load_checkpoint, save_checkpoint
from pyro_dropout.metrics import predictive_log_likelihood

CHUNK = 100  # steps between messages
SAVING = 60.0  # seconds between states of training in a file

Data = tuple[Tensor, Tensor]  # images [N, ...] and labels [N]
Take = Callable[[Tensor, int], Data]  # what steps see of rows [steps, batch], and the number of the first
Look = Callable[[Any, Any, bool], dict[str, Any]]  # of model and guide, at the end or before: plain values to keep


class Recipe(NamedTuple):
    """How a network is trained.

    :param every: steps between looks at it.
    :param optimiser: ``"adam"``, ``"sgd"`` without momentum, ``"decayed"``: Adam, with a learning rate down to 0, or
        ``"rmsprop"``, whose learning rate is multiplied by 0.995 after each epoch,
        looked at every 100 steps.
    """

    steps: int
    batch: int = 128
    every: int = 10**9
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    seed: int = 0
    backend: str = "inductor"

    def optim(self, size: int) -> pyro.optim.PyroOptim:
        """Pyro's loss is that of all data, N times the mean loss that the step of ``"sgd"`` is meant for."""
        arguments = {"lr": self.learning_rate}
        if self.optimiser == "sgd":
            return pyro.optim.SGD({"lr": self.learning_rate / size})
        if self.optimiser == "adam":
            return pyro.optim.Adam(arguments)
        chunks, in_epoch = math.ceil(self.steps / CHUNK), size // min(self.batch, size)
        kind, rate = {
            "decayed": (torch.optim.Adam, lambda i: max(0.0, 1 - i / chunks)),
            "rmsprop": (torch.optim.RMSprop, lambda i: 0.995 ** (i * CHUNK // in_epoch)),
        }[self.optimiser]
        scheduled = {"optimizer": kind, "optim_args": arguments, "lr_lambda": rate}
        return pyro.optim.PyroLRScheduler(torch.optim.lr_scheduler.LambdaLR, scheduled)


class Fitted(NamedTuple):
    """A trained network, and what was seen of it, with the number of steps, a mean loss and seconds of training."""

    model: Any
    guide: Any
    history: list[dict[str, Any]]


def digits(part: str, flat: bool = True) -> Data:
    """MNIST with pixels in [0, 1], as vectors or as images of one channel."""
    x, y = (torch.from_numpy(array) for array in load_mnist(part))
    x = x.flatten(1) / 255
    return (x if flat else x.unflatten(1, (1, 28, 28))), y.long()


def fitted(
    path: Path,
    make: Callable[[], tuple[Any, Any]],
    loss: TraceDropout_ELBO,
    data: Data,
    recipe: Recipe,
    look: Look = lambda model, guide, ended: {},
    about: dict[str, Any] | None = None,
    take: Take | None = None,
) -> Fitted:
    """Trains model and guide, from the state in a file on where there is one of the same settings.

    Each epoch takes all data in an order that the seed and its number decide.

    :param path: of the states, which also have what was seen; its name gets a part that all settings decide.
    :param make: model and guide at their start, the same for one seed.
    :param look: called after each ``recipe.every`` steps and after the last.
    :param about: what else decides the result, that of ``look`` included.
    :param take: what is learned from of these rows, crops say; by default they themselves.
    """
    x, y = data
    take = take or (lambda rows, first: (x[rows], y[rows]))
    number = recipe.steps
    settings = {**recipe._asdict(), "data": list(x.shape), **(about or {})}
    del settings["backend"]  # which decides how long it takes
    path = named_by(path, settings)
    pyro.set_rng_seed(recipe.seed)
    model, guide = make()
    guide(*(part[0] for part in take(torch.arange(min(recipe.batch, len(x))).unsqueeze(0), 0)))  # makes its parameters
    optim, history, done, seconds = recipe.optim(len(x)), [], 0, 0.0
    if path.exists():
        device = next(guide.parameters()).device
        state = load_checkpoint(path, map_location=device, guide=guide, optim=optim)
        history, done, seconds = state["history"], state["done"], state["seconds"]
        for name, buffer in model.named_buffers():  # running statistics, which no guide has
            if name in state.get("buffers", {}):
                buffer.copy_(state["buffers"][name])
    if done == number:
        return Fitted(model, guide, history)
    path.parent.mkdir(parents=True, exist_ok=True)
    svi = CompiledSVI(model, guide, optim, loss, backend=recipe.backend, progress=False)
    saved = time.monotonic()
    with tqdm(initial=done, total=number, desc=path.stem, disable=None) as bar:
        while done < number:
            last = min((done // CHUNK + 1) * CHUNK, (done // recipe.every + 1) * recipe.every, number)
            rows = batches(len(x), recipe.batch, recipe.seed, done, last)
            before = time.monotonic()
            losses = svi.scan(*take(rows, done))
            seconds += time.monotonic() - before
            bar.update(last - done)
            if last // CHUNK > done // CHUNK and isinstance(optim, pyro.optim.PyroLRScheduler):
                optim.step()
            done = last
            looks = done % recipe.every == 0 or done == number
            if looks:
                seen = {
                    "step": done,
                    "loss": losses.mean().item(),
                    "seconds": seconds,
                    **look(model, guide, done == number),
                }
                history.append(seen)
                bar.set_postfix({name: v for name, v in seen.items() if isinstance(v, float) and name != "seconds"})
            if looks or time.monotonic() - saved > SAVING:
                parts = {"guide": guide, "optim": optim, "settings": settings, "buffers": dict(model.named_buffers())}
                save_checkpoint(path, **parts, history=history, done=done, seconds=seconds)
                saved = time.monotonic()
    return Fitted(model, guide, history)


def named_by(path: Path, settings: dict[str, Any]) -> Path:
    """A file for each of all settings, so that none is taken for another or written over."""
    known = json.dumps(settings, sort_keys=True)
    return path.with_name(f"{path.stem}-{hashlib.sha256(known.encode()).hexdigest()[:8]}{path.suffix}")


def batches(size: int, batch: int, seed: int, first: int, last: int) -> Tensor:
    """Rows of steps ``first`` to ``last``, ``[steps, batch]``: epochs in random orders, of whole batches alone."""
    batch = min(batch, size)
    in_epoch = size // batch
    rows = []
    for epoch in range(first // in_epoch, (last - 1) // in_epoch + 1):
        generator = torch.Generator().manual_seed(seed * 10**6 + epoch)
        order = torch.randperm(size, generator=generator)[: in_epoch * batch].unflatten(0, (in_epoch, batch))
        start = epoch * in_epoch
        rows.append(order[max(first - start, 0) : last - start])
    return torch.cat(rows)


def softmax_inputs(model: Any, guide: Any, x: Tensor, draws: int, seed: int = 0) -> Tensor:
    """Of functions, one and the same for all images, ``[draws, N, classes]``."""
    predict = DropoutPredictive(model.net, guide=guide, num_samples=draws, return_sites=["_RETURN"], seed=seed)
    return predict(x)["_RETURN"].reshape(draws, len(x), -1)


def mean_inputs(model: Any, guide: Any, x: Tensor) -> Tensor:
    """Softmax inputs of the mean network, ``[1, N, classes]``."""
    with torch.no_grad():
        return poutine.condition(model.net, data=guide.median(x))(x).unsqueeze(0)


def scores(inputs: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy of the mean class probabilities, and the mean log-likelihood of a label.

    :param inputs: softmax inputs, ``[draws, N, classes]``.
    """
    log_probs = predictive_log_likelihood(inputs.log_softmax(-1).movedim(-1, 1)).T  # [N, classes], of all draws
    return {
        "accuracy": (log_probs.argmax(-1) == y).double().mean().item(),
        "log_likelihood": log_probs[torch.arange(len(y)), y].double().mean().item(),
    }
