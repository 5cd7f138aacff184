"""Networks for photographs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def vgg_features(channels: Sequence[int] = (32, 64, 128, 256), convolutions: int = 2) -> nn.Sequential:
    """The convolutional part of a VGG (Simonyan & Zisserman 2015) for small images, with batch normalisation.

    :param channels: of each group; after it the image has half the height and width.
    :param convolutions: of each group, 3 × 3.

    Example::

        >>> import torch
        >>> vgg_features()(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 1024])
    """
    layers: list[nn.Module] = []
    before = 3
    for after in channels:
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten())
