"""Predictions of networks that are not dense layers alone, against the loops that a user would write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_dropout import AutoBernoulliDropout, BayesianModule, DropoutPredictive
from tests.benchmarks.measure import Row, interleaved


class Classifier(PyroModule):
    """Any network in front of a categorical likelihood."""

    def __init__(self, net: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.net = BayesianModule(net, event_dim=event_dim)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = self.net(x)
        pyro.deterministic("logits", logits, event_dim=1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Categorical(logits=logits), obs=y)


class Block(nn.Module):
    """Two convolutions and a way past them (He et al. 2016)."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outs), nn.BatchNorm2d(outs)
        self.past = nn.Sequential()
        if stride > 1:
            self.past = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (h + self.past(x)).relu()


def resnet18(classes: int = 1000) -> nn.Sequential:
    """A trunk of 11 million weights and a linear head."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Sequential(*stem, *blocks, *pool), nn.Linear(512, classes)).eval()


def small_convolutional() -> nn.Sequential:
    first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    rest = (nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))
    return nn.Sequential(first, nn.ReLU(), second, *rest)


class ReadsLast(nn.Module):
    """An LSTM, and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


def predictor(net: nn.Module, x: Tensor, draws: int, rate: Any, **options: Any) -> Callable[[], Any]:
    """``DropoutPredictive``, which draws masks at each call, as the loops do."""
    pyro.clear_param_store()
    model = Classifier(net, x.dim() - 1)
    guide = AutoBernoulliDropout(model, rate=rate)
    guide(x, torch.zeros(len(x), dtype=torch.long))
    predict = DropoutPredictive(model, guide=guide, num_samples=draws, return_sites=["logits"], **options)
    return lambda: predict(x)


def masks(draws: int, units: int, rate: float) -> Tensor:
    return F.dropout(torch.ones(draws, units), rate)


@torch.no_grad()
def raw_head(net: nn.Sequential, x: Tensor, draws: int, rate: float) -> Tensor:
    """The trunk once, the head for each draw."""
    h, head = net[0](x), net[1]
    return torch.stack([head(h * z) for z in masks(draws, 512, rate)])


@torch.no_grad()
def raw_convolutional(net: nn.Sequential, x: Tensor, draws: int, rate: float) -> Tensor:
    """One pass a draw, with a mask for each layer's input."""
    out = []
    for _ in range(draws):
        h = x
        for layer in net:
            if isinstance(layer, nn.Conv2d):
                h = h * masks(1, layer.in_channels, rate)[..., None, None]
            elif isinstance(layer, nn.Linear):
                h = h * masks(1, layer.in_features, rate)
            h = layer(h)
        out.append(h)
    return torch.stack(out)


@torch.no_grad()
def raw_recurrent(net: ReadsLast, x: Tensor, draws: int, rate: float) -> Tensor:
    """All draws in one batch: inputs masked, and at every time the hidden state (Gal & Ghahramani 2016)."""
    cell, (rows, times, features) = net.lstm, x.shape
    z, z_hidden, z_out = (masks(draws, units, rate).repeat_interleave(rows, 0) for units in (features, 16, 16))
    inputs = F.linear(x.repeat(draws, 1, 1) * z[:, None], cell.weight_ih_l0, cell.bias_ih_l0 + cell.bias_hh_l0)
    h = c = x.new_zeros(draws * rows, 16)
    for t in range(times):
        i, f, g, o = (inputs[:, t] + F.linear(h * z_hidden, cell.weight_hh_l0)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return net.out(h * z_out).unflatten(0, (draws, rows))


def networks(repeats: int) -> list[Row]:
    torch.manual_seed(0)
    repeats = max(3, repeats // 5)
    rows = []

    def head_only(site: str) -> float:
        return 0.5 if "net.1." in site else 0.0

    images, net = torch.randn(4, 3, 224, 224), resnet18()
    ours, peer = predictor(net, images, 40, head_only), partial(raw_head, net, images, 40, 0.5)
    rows.append(
        interleaved("40 draws, ResNet-18, dropout in its head / trunk once by hand", ours, peer, "≤ 1.2", repeats, 1)
    )
    images, net = torch.randn(16, 3, 32, 32), small_convolutional().eval()
    ours, peer = predictor(net, images, 200, 0.3), partial(raw_convolutional, net, images, 200, 0.3)
    rows.append(interleaved("200 draws, small convolutional network / raw loop", ours, peer, "≤ 1.2", repeats, 1))
    series, net = torch.randn(10, 20, 8), ReadsLast().eval()
    ours, peer = predictor(net, series, 1500, 0.3), partial(raw_recurrent, net, series, 1500, 0.3)
    rows.append(interleaved("1,500 draws, LSTM / all masks in a batch by hand", ours, peer, "≤ 3", repeats, 1))
    return rows
