"""Masks of output units: a small DenseNet with Concrete dropout before its concatenations, against the same by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classification import Classification
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, CompiledSVI, DropoutPredictive, TraceDropout_ELBO
from tests.benchmarks.measure import Row, interleaved
from tests.benchmarks.peers import RATE, TEMPERATURE, step_of

SIZE, STEM, GROWTH, LAYERS = 50_000, 16, 12, 3


class DenseLayer(nn.Module):
    """What a convolution adds is joined with what there was (Huang et al. 2017); running statistics."""

    def __init__(self, ins: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(ins), nn.Conv2d(ins, GROWTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.norm(x).relu())], 1)


def densenet(classes: int = 10) -> nn.Sequential:
    """Two blocks of three layers, with pooling between."""
    layers: list[nn.Module] = [nn.Conv2d(3, STEM, 3, padding=1)]
    width = STEM
    for block in range(2):
        for _ in range(LAYERS):
            layers.append(DenseLayer(width))
            width += GROWTH
        layers.append(nn.AvgPool2d(2) if block == 0 else nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, classes)).eval()


def is_new(name: str) -> bool:
    """Whether a weight is that of a convolution whose outputs are joined."""
    return name.endswith("conv.weight")


def _units(site: str) -> str | None:
    return "output" if is_new(site) else None


def _rate(mask: str) -> float:
    return RATE if mask.endswith("conv.output") else 0.0


def hand_written_step(x: Tensor, y: Tensor) -> Callable[[], float]:
    """Concrete masks on what each layer adds, one a datum and channel; the KL of weights and biases; Adam."""
    net = densenet()
    layers = [layer for layer in net.modules() if isinstance(layer, DenseLayer)]
    logits = [nn.Parameter(torch.tensor(math.log((1 - RATE) / RATE))) for _ in layers]
    masked = [layer.conv.weight for layer in layers] + [layer.conv.bias for layer in layers]
    others = [p for p in net.parameters() if all(p is not m for m in masked)]
    optimiser = torch.optim.Adam([*logits, *net.parameters()], lr=1e-3)
    constant = 0.5 * math.log(2 * math.pi) * sum(p.numel() for p in net.parameters())

    def forward() -> Tensor:
        given = iter(logits)
        h = x
        for layer in net:
            if not isinstance(layer, DenseLayer):
                h = layer(h)
                continue
            logit = next(given)
            new = layer.conv(layer.norm(h).relu())
            u = torch.rand(len(x), GROWTH, 1, 1)
            z = torch.sigmoid((logit + torch.logit(u, eps=1e-7)) / TEMPERATURE)
            h = torch.cat([h, new * z / torch.sigmoid(logit)], 1)
        return h

    def step() -> float:
        optimiser.zero_grad()
        kl = constant + sum(0.5 * p.square().sum() for p in others)
        for layer, logit in zip(layers, logits, strict=True):
            keep, rate = torch.sigmoid(logit), torch.sigmoid(-logit)
            entropy = -keep * torch.log(keep) - rate * torch.log(rate)
            squares = layer.conv.weight.square().sum() + layer.conv.bias.square().sum()
            kl = kl + 0.5 * squares / keep - GROWTH * entropy
        loss = kl + SIZE * F.cross_entropy(forward(), y)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def _made(kind: Callable) -> tuple[Classification, Callable]:
    pyro.clear_param_store()
    model = Classification(densenet(), SIZE)
    return model, kind(model, rate=_rate, units=_units)


def eager_step(x: Tensor, y: Tensor) -> Callable[[], float]:
    return step_of(TraceDropout_ELBO()(*_made(AutoConcreteDropout)), x, y)


def compiled_densenet() -> CompiledSVI:
    return CompiledSVI(*_made(AutoConcreteDropout), pyro.optim.Adam({"lr": 1e-3}), wait=True, progress=False)


def compiled_scan(x: Tensor, y: Tensor, steps: int) -> Callable[[], Tensor]:
    svi = compiled_densenet()
    many = [t.expand(steps, *t.shape) for t in (x, y)]
    svi.scan(*many)
    return partial(svi.scan, *many)


@torch.no_grad()
def raw_loop(net: nn.Sequential, x: Tensor, draws: int) -> Tensor:
    """One pass a draw, with one mask for all images on what each layer adds; what is before them once."""
    stem, out = net[0](x), []
    for _ in range(draws):
        h = stem
        for layer in net[1:]:
            if isinstance(layer, DenseLayer):
                z = F.dropout(torch.ones(GROWTH, 1, 1), RATE)
                h = torch.cat([h, layer.conv(layer.norm(h).relu()) * z], 1)
            else:
                h = layer(h)
        out.append(h.softmax(-1))
    return torch.stack(out)


def outputs(repeats: int) -> list[Row]:
    return list(_rows(max(3, repeats // 3)))


def _rows(repeats: int) -> Iterator[Row]:
    torch.manual_seed(0)
    steps = 10
    x, y = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    name, by_hand = "step of a small DenseNet, Concrete masks of outputs, 32 images", hand_written_step(x, y)
    yield interleaved(f"{name}: ELBO()(model, guide) / by hand", eager_step(x, y), by_hand, "≤ 1.4", repeats, steps)
    scan = compiled_scan(x, y, steps)
    yield interleaved(f"{name}: compiled scan / by hand", scan, by_hand, "≤ 0.7", repeats, steps, (steps, 1))
    images = torch.randn(64, 3, 32, 32)
    model, guide = _made(AutoBernoulliDropout)
    guide(images, torch.zeros(64, dtype=torch.long))
    predict = DropoutPredictive(model, guide=guide, num_samples=100, return_sites=["probs"])
    net = model.net._modules["net"]
    ours, peer = partial(predict, images), partial(raw_loop, net, images, 100)
    yield interleaved("100 draws of it on 64 images / raw loop", ours, peer, "≤ 1.1", max(3, repeats // 2), 1)
