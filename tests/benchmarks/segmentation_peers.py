"""FC-DenseNet by hand with ``nn.Dropout2d``, and by this package: steps, and predictions by draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.segmentation import SMALL, Convolution, FCDenseNet, Segmentation, has_dropout
from pyro_dropout import AutoConcreteDropout, CompiledSVI, DropoutPredictive, TraceDropout_ELBO

CLASSES, RATE, SIZE = 11, 0.2, 367


def by_hand() -> FCDenseNet:
    """Channels are dropped before the convolutions that are masked otherwise."""
    net = FCDenseNet(CLASSES, **SMALL)
    for layer in net.modules():
        if isinstance(layer, Convolution):
            layer.relu = nn.Sequential(nn.ReLU(), nn.Dropout2d(RATE))
    return net


def hand_written_step(x: Tensor, y: Tensor) -> Callable[[], float]:
    net = by_hand()
    optimiser = torch.optim.RMSprop(net.parameters(), lr=1e-3)

    def step() -> float:
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), y, ignore_index=CLASSES)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def made(kind: Callable[..., Any] = AutoConcreteDropout) -> tuple[Segmentation, Any]:
    pyro.clear_param_store()
    model = Segmentation(FCDenseNet(CLASSES, **SMALL), SIZE, ignored=CLASSES)
    return model, kind(model, lambda mask: RATE if has_dropout(mask) else 0.0)


def step(x: Tensor, y: Tensor, compiled: bool, kind: Callable[..., Any] = AutoConcreteDropout) -> Callable[[], float]:
    optim, loss = pyro.optim.RMSprop({"lr": 1e-3}), TraceDropout_ELBO(masks="draw")
    if compiled:
        svi = CompiledSVI(*made(kind), optim, loss, wait=True, progress=False)
    else:
        svi = pyro.infer.SVI(*made(kind), optim, loss)
    svi.step(x, y), svi.step(x, y)
    return lambda: svi.step(x, y)


def image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width)


def streamed(_: Tensor, height: int, width: int, draws: int) -> Callable[[], list[Tensor]]:
    """Mean probabilities and mean entropy."""
    x = image(height, width)
    model, guide = made()
    guide(x, torch.zeros(1, height, width, dtype=torch.long))
    predict = DropoutPredictive(model, guide=guide, num_samples=draws, return_sites=["probs", "entropy"])
    return lambda: [site.mean for site in predict.moments(x).values()]


@torch.no_grad()
def raw_loop(_: Tensor, height: int, width: int, draws: int) -> Callable[[], list[Tensor]]:
    x, net = image(height, width), by_hand().eval()
    for layer in net.modules():
        if isinstance(layer, nn.Dropout2d):
            layer.train()

    @torch.no_grad()
    def run() -> list[Tensor]:
        mean, entropy = torch.zeros(1, CLASSES, height, width), torch.zeros(1, height, width)
        for _ in range(draws):
            log_probs = net(x).log_softmax(1)
            probs = log_probs.exp()
            mean += probs / draws
            entropy -= (probs * log_probs).sum(1) / draws
        return [mean, entropy]

    return run
