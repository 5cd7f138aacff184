"""Caffe's LeNet on MNIST-like images: a step with Concrete masks, and a hundred functions of all test images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classification import Classification, caffe_lenet
from pyro_dropout import AutoConcreteDropout, CompiledSVI, DropoutPredictive, TraceDropout_ELBO, from_torch
from tests.benchmarks.measure import Row, interleaved
from tests.benchmarks.peers import RATE, TEMPERATURE, step_of

SIZE = 60_000


def _plain() -> nn.Sequential:
    """The network with no dropout of its own."""
    return nn.Sequential(*(layer for layer in caffe_lenet() if not isinstance(layer, nn.Dropout)))


def _rate(mask: str) -> float:
    """The image itself, the one channel of the first convolution, is never dropped."""
    return 0.0 if mask == "net.0.weight" else RATE


def hand_written_step(x: Tensor, y: Tensor) -> Callable[[], float]:
    """Concrete masks on the inputs of all layers but the first, one a datum; the KL; Adam."""
    net = _plain()
    weighted = [layer for layer in net if isinstance(layer, nn.Conv2d | nn.Linear)]
    first, *masked = weighted
    logits = {layer: nn.Parameter(torch.tensor(math.log((1 - RATE) / RATE))) for layer in masked}
    optimiser = torch.optim.Adam([*logits.values(), *net.parameters()], lr=1e-3)
    constant = 0.5 * math.log(2 * math.pi) * sum(p.numel() for p in net.parameters())

    def step() -> float:
        optimiser.zero_grad()
        h, kl = x, constant + 0.5 * first.weight.square().sum()
        for layer in net:
            if layer in logits:
                logit = logits[layer]
                keep, rate = torch.sigmoid(logit), torch.sigmoid(-logit)
                u = torch.rand(*h.shape[:2], *(1,) * (h.dim() - 2))
                h = h * torch.sigmoid((logit + torch.logit(u, eps=1e-7)) / TEMPERATURE) / keep
                entropy = -keep * torch.log(keep) - rate * torch.log(rate)
                kl = kl + 0.5 * layer.weight.square().sum() / keep - layer.weight.shape[1] * entropy
            h = layer(h)
        kl = kl + sum(0.5 * layer.bias.square().sum() for layer in weighted)
        loss = kl + SIZE * F.cross_entropy(h, y)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def _model() -> tuple[Classification, Callable]:
    pyro.clear_param_store()
    model = Classification(_plain(), SIZE)
    return model, AutoConcreteDropout(model, rate=_rate)


def eager_step(x: Tensor, y: Tensor) -> Callable[[], float]:
    return step_of(TraceDropout_ELBO()(*_model()), x, y)


@torch.no_grad()
def raw_loop(net: nn.Sequential, x: Tensor, draws: int) -> Tensor:
    """What precedes the mask once, then the last layer for each mask, which is one for all images."""
    h = torch.cat([net[:7](part) for part in x.split(1000)])
    return torch.stack([net[8](h * F.dropout(torch.ones(500), 0.5)) for _ in range(draws)])


def lenet(repeats: int) -> list[Row]:
    return list(_rows(max(3, repeats // 3)))


def _rows(repeats: int) -> Iterator[Row]:
    torch.manual_seed(0)
    steps = 10
    x, y = torch.rand(64, 1, 28, 28), torch.randint(10, (64,))
    name, by_hand = "step of Caffe's LeNet, Concrete masks, 64 images", hand_written_step(x, y)
    yield interleaved(f"{name}: ELBO()(model, guide) / by hand", eager_step(x, y), by_hand, "≤ 1.1", repeats, steps)
    svi = CompiledSVI(*_model(), pyro.optim.Adam({"lr": 1e-3}), wait=True, progress=False)
    many = [t.expand(steps, *t.shape) for t in (x, y)]
    svi.scan(*many)
    scan = partial(svi.scan, *many)
    yield interleaved(f"{name}: compiled scan / by hand", scan, by_hand, "≤ 0.7", repeats, steps, (steps, 1))
    images, net = torch.rand(10_000, 1, 28, 28), caffe_lenet().eval()
    pyro.clear_param_store()
    module, guide = from_torch(net, images[:2])
    predict = DropoutPredictive(module, guide=guide, num_samples=100, return_sites=["_RETURN"])
    ours, peer = partial(predict, images), partial(raw_loop, net, images, 100)
    yield interleaved("100 functions of it on 10,000 images / raw loop", ours, peer, "≤ 1.0", max(3, repeats // 2), 1)
