"""What ``lora`` trains and scores: a base network of upright digits, and its adaptations to turned ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import Predictive
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error
from tqdm import trange

from examples.common.data import load_mnist
from models.adapters import adapter_prior, rank_dropout, with_adapters
from models.classification import Classification
from models.transformer import VisionTransformer
from pyro_dropout import BayesianModule, DropoutPredictive, TraceDropout_ELBO
from pyro_dropout.metrics import predictive_log_likelihood

BASE_IMAGES, VALIDATION_IMAGES = 20_000, 2_000  # of the 60,000; the others are there to adapt to
BATCH, BASE_BATCH, BASE_LEARNING_RATE = 50, 100, 3e-3
BINS = 15  # of the calibration error

Data = tuple[Tensor, Tensor]  # images [N, 28, 28] and labels [N]
Scores = dict[str, float]


class Method(NamedTuple):
    """How ranks are dropped: at a fixed rate at each token, by hard masks of a datum, or not at all."""

    rate: float = 0.0
    tied: bool = False
    learned: bool = False


class Size(NamedTuple):
    """Of an adaptation."""

    images: int
    steps: int
    rank: int


# Data


def upright(part: str) -> Data:
    """All images of a part, always in the same random order."""
    x, y = (torch.from_numpy(array) for array in load_mnist(part))
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[rows] / 255, y[rows].long()


def turned(data: Data, rows: Tensor | slice = slice(None)) -> Data:
    """Some images, by a quarter turn: what was in one row, a token, is now spread over all."""
    return data[0][rows].rot90(1, (-2, -1)), data[1][rows]


def to_adapt(train: Data, images: int, seed: int) -> Data:
    """Turned images that neither the base network nor validation has seen."""
    first = BASE_IMAGES + VALIDATION_IMAGES
    rows = torch.randperm(len(train[0]) - first, generator=torch.Generator().manual_seed(seed))
    return turned(train, first + rows[:images])


def batches(data: Data, size: int, seed: int) -> Iterator[Data]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(data[0]), (size,), generator=generator)
        yield data[0][rows], data[1][rows]


# Training


def train_base(train: Data, steps: int) -> VisionTransformer:
    """The network of upright images."""
    net = VisionTransformer()
    images = train[0][:BASE_IMAGES], train[1][:BASE_IMAGES]
    chosen = batches(images, BASE_BATCH, seed=0)
    descend(list(net.parameters()), lambda x, y: F.cross_entropy(net(x), y), chosen, steps, BASE_LEARNING_RATE, "base")
    return net.eval()


def adapted(base: nn.Module, data: Data, method: Method, size: Size, learning_rate: float, seed: int) -> Adaptation:
    """A network with trained adapters. All methods start from the same adapters and see the same batches.

    What they minimise differs in the masks alone: without a guide it is the cross-entropy with the penalty of the same
    prior, per datum.
    """
    pyro.set_rng_seed(seed)
    net = with_adapters(base, size.rank, 0.0 if method.tied else method.rate)
    number, chosen = len(data[0]), batches(data, BATCH, seed)
    result: Adaptation
    if method.tied:
        model = Classification(BayesianModule(net, adapter_prior(), event_dim=2), number)
        guide = rank_dropout(model, method.rate, learnable=method.learned)
        guide(data[0][:BATCH], data[1][:BATCH])  # makes its parameters
        elbo = TraceDropout_ELBO(max_plate_nesting=1)(model, guide)
        parameters = list(guide.parameters())
        result = Tied(model, guide)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return elbo(x, y) / number
    else:
        parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        result = PerToken(net, method.rate)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            penalty = sum(0.5 * parameter.square().sum() for parameter in parameters)
            return F.cross_entropy(net(x), y) + penalty / number

    descend(parameters, loss, chosen, size.steps, learning_rate, f"seed {seed}")
    return result


def descend(
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    chosen: Iterator[Data],
    steps: int,
    learning_rate: float,
    what: str,
) -> None:
    """Adam, with a learning rate that goes down to 0."""
    optimiser = torch.optim.Adam(parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for _ in trange(steps, desc=what, leave=False, disable=None):
        optimiser.zero_grad()
        loss(*next(chosen)).backward()
        optimiser.step()
        schedule.step()


# Predictions


class PerToken(NamedTuple):
    """A network of PyTorch, with dropout of ranks at each token or with none."""

    net: nn.Module
    rate: float

    def draws(self, x: Tensor, number: int) -> Tensor | None:
        """Class probabilities by passes in training mode, ``[number, N, classes]``, where they are random."""
        if not self.rate:
            return None
        with torch.no_grad():
            return torch.stack([self.net.train()(x).softmax(-1) for _ in range(number)])

    def mean(self, x: Tensor) -> Tensor:
        """Of the network in evaluation mode, ``[1, N, classes]``."""
        with torch.no_grad():
            return self.net.eval()(x).softmax(-1).unsqueeze(0)

    def rates(self) -> dict[str, list[float]]:
        return {}


class Tied(NamedTuple):
    """A model and its guide."""

    model: Any
    guide: Any

    def draws(self, x: Tensor, number: int) -> Tensor | None:
        """Class probabilities by networks of one mask each, ``[number, N, classes]``."""
        predict = DropoutPredictive(self.model, guide=self.guide, num_samples=number, return_sites=["probs"])
        return predict(x)["probs"].reshape(number, len(x), -1)

    def mean(self, x: Tensor) -> Tensor:
        """Of the network at the guide's median, ``[1, N, classes]``."""
        median = {name: value.unsqueeze(0) for name, value in self.guide.median(x).items()}
        predict = Predictive(self.model, posterior_samples=median, return_sites=["probs"])
        with torch.no_grad():
            return predict(x)["probs"].reshape(1, len(x), -1)

    def rates(self) -> dict[str, list[float]]:
        """Of each adapter's ranks."""
        rates = {name: rate for name, rate in self.guide.rates().items() if name.endswith("down.output")}
        return {name.removeprefix("net.").removesuffix(".down.output"): rate.tolist() for name, rate in rates.items()}


Adaptation = PerToken | Tied


def scored(adaptation: Adaptation, data: Data, draws: int) -> dict[str, Scores]:
    """Scores of what draws predict together, where there are such, and of the mean network."""
    x, y = data
    found = {"draws": adaptation.draws(x, draws), "mean": adaptation.mean(x)}
    return {kind: scores(probs, y) for kind, probs in found.items() if probs is not None}


def scores(probs: Tensor, y: Tensor) -> Scores:
    """Accuracy, negative log-likelihood of a label in nats, and calibration error (ECE, Guo et al. 2017, eq. 3).

    :param probs: class probabilities, ``[draws, N, classes]``.
    :param y: labels, ``[N]``.
    """
    mean = probs.mean(0)
    gap = multiclass_calibration_error(mean, y, num_classes=mean.shape[-1], n_bins=BINS, norm="l1")
    log_density = predictive_log_likelihood(probs[:, torch.arange(len(y)), y].clamp_min(1e-30).log())
    return {
        "accuracy": (mean.argmax(-1) == y).float().mean().item(),
        "nll": -log_density.mean().item(),
        "ece": gap.item(),
    }
