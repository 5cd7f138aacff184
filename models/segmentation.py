"""Segmentation: a fully convolutional DenseNet, and a softmax on every pixel that has a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.priors import normal_prior
from pyro_dropout import BayesianModule


class Segmentation(PyroModule):
    r"""Any network with a softmax on its outputs at each pixel (CD section 4.4):

    .. math:: p(y_n \mid x_n, W) = \prod_{i \text{ with a label}} \mathrm{softmax}(f^W(x_n)_i)_{y_{n i}}, \quad
        W \sim \mathrm{Normal}(0, 1/l)

    A datum is an image, with all its pixels. Batch normalisation by the statistics of a batch mixes images: train with
    ``TraceDropout_ELBO(masks="draw")``. The sites ``probs``, ``[N, height, width, classes]``, and ``entropy``, that of
    one draw, ``[N, height, width]``, have means over draws by ``DropoutPredictive.moments``, which keeps no draws.

    :param net: gives logits ``[N, classes, height, width]`` for images ``[N, channels, height, width]``.
    :param size: number of images N of the data set; mini-batches are scaled to it.
    :param lengthscale: prior lengthscale l, a number or a tensor; l² is the prior precision of a weight.
    :param ignored: label of pixels that have none.
    :param autocast: type that the network computes in, ``torch.bfloat16`` say; all else, the KL and the softmax
        included, stays as it is.

    Example::

        >>> from pyro.infer import SVI
        >>> from pyro_dropout import AutoConcreteDropout, TraceDropout_ELBO
        >>> net = FCDenseNet(classes=3, first=4, down=(2,), middle=2, up=(2,), growth=2)
        >>> model = Segmentation(net, size=100, ignored=3)
        >>> guide = AutoConcreteDropout(model, rate=lambda site: 0.2 if has_dropout(site) else 0.0)
        >>> x, y = torch.randn(2, 3, 8, 8), torch.randint(4, (2, 8, 8))  # 3 is no class
        >>> SVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO(masks="draw")).step(x, y) > 0
        True
    """

    def __init__(
        self,
        net: nn.Module,
        size: int,
        lengthscale: float | Tensor = 1.0,
        ignored: int = 255,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size, self.ignored, self.autocast = size, ignored, autocast
        self.net = net if isinstance(net, BayesianModule) else BayesianModule(net, normal_prior(lengthscale))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            logits = self.net(x)
        logits = logits.movedim(-3, -1)
        labelled = True if y is None else y != self.ignored
        with pyro.plate("images", max(self.size, len(x)), subsample_size=len(x)):
            log_probs = logits.log_softmax(-1)
            pyro.deterministic("probs", log_probs.exp(), event_dim=3)
            pyro.deterministic("entropy", -(log_probs.exp() * log_probs).sum(-1), event_dim=2)
            fn = dist.Categorical(logits=logits).mask(labelled).to_event(2)
            return pyro.sample("obs", fn, obs=None if y is None else y.where(y != self.ignored, 0))


class FCDenseNet(nn.Module):
    """The one hundred layers tiramisu (Jégou et al. 2017), without its dropout, for images of any size.

    Dense blocks on the way down, each with all maps before it as inputs and as skip connection; one in the middle; on
    the way up of their new maps alone, beside the skip connection. Its own dropout is behind the convolutions of dense
    layers and of transitions, which :func:`has_dropout` names.

    :param classes: number of outputs.
    :param first: maps of the first convolution.
    :param down: dense layers of each block before a pooling.
    :param middle: dense layers of the block between.
    :param up: dense layers of each block behind an upsampling.
    :param growth: maps of a dense layer.
    :param channels: of images.

    Example::

        >>> FCDenseNet(11, **SMALL)(torch.zeros(1, 3, 45, 60)).shape
        torch.Size([1, 11, 45, 60])
    """

    def __init__(
        self,
        classes: int,
        first: int = 48,
        down: Sequence[int] = (4, 5, 7, 10, 12),
        middle: int = 15,
        up: Sequence[int] = (12, 10, 7, 5, 4),
        growth: int = 16,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if len(down) != len(up):
            raise ValueError(
                f"down and up must have as many blocks, but found {len(down)} and {len(up)}: {down} and {up}"
            )
        self.first = nn.Conv2d(channels, first, 3, padding=1)
        maps, skips = first, []
        self.down, self.poolings = nn.ModuleList(), nn.ModuleList()
        for layers in down:
            self.down.append(DenseBlock(maps, layers, growth))
            maps += layers * growth
            skips.append(maps)
            self.poolings.append(Convolution(maps, maps, 1))
        self.middle = DenseBlock(maps, middle, growth)
        new = middle * growth
        self.upsamplings, self.up = nn.ModuleList(), nn.ModuleList()
        for layers, skip in zip(up, reversed(skips), strict=True):
            self.upsamplings.append(nn.ConvTranspose2d(new, new, 3, stride=2))
            maps = new + skip
            self.up.append(DenseBlock(maps, layers, growth))
            new = layers * growth
        self.last = nn.Conv2d(maps + new, classes, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), []
        for block, pooling in zip(self.down, self.poolings, strict=True):
            x = torch.cat([x, block(x)], 1)
            skips.append(x)
            x = F.max_pool2d(pooling(x), 2)
        new = self.middle(x)
        for upsampling, block, skip in zip(self.upsamplings, self.up, reversed(skips), strict=True):
            x = torch.cat([_centre(upsampling(new), skip.shape[-2:]), skip], 1)
            new = block(x)
        return self.last(torch.cat([x, new], 1))


class Convolution(nn.Sequential):
    """Batch normalisation, ReLU, convolution.

    Example::

        >>> Convolution(2, 4, 3)(torch.zeros(1, 2, 5, 5)).shape
        torch.Size([1, 4, 5, 5])
    """

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(before), nn.ReLU()
        self.masked = nn.Conv2d(before, after, kernel, padding=kernel // 2)


class DenseBlock(nn.Module):
    """Convolutions that each have all maps before them as inputs; the new maps.

    Example::

        >>> DenseBlock(5, layers=3, growth=2)(torch.zeros(1, 5, 4, 4)).shape
        torch.Size([1, 6, 4, 4])
    """

    def __init__(self, maps: int, layers: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Convolution(maps + i * growth, growth, 3) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps[1:], 1)


def has_dropout(site: str) -> bool:
    """Whether the published network has dropout behind this layer: its weight site, or its name.

    Example::

        >>> [has_dropout(site) for site in ("net.down.0.layers.1.masked.weight", "net.first.weight")]
        [True, False]
    """
    return ".masked" in site


def _centre(x: Tensor, size: Sequence[int]) -> Tensor:
    top, left = ((have - wanted) // 2 for have, wanted in zip(x.shape[-2:], size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]


SMALL: dict[str, Any] = {"down": (2, 3, 3), "middle": 4, "up": (3, 3, 2), "growth": 8}  # 0.2 million weights
FC_DENSENET56: dict[str, Any] = {"down": (4,) * 5, "middle": 4, "up": (4,) * 5, "growth": 12}
FC_DENSENET67: dict[str, Any] = {"down": (5,) * 5, "middle": 5, "up": (5,) * 5, "growth": 16}
FC_DENSENET103: dict[str, Any] = {}
