"""A small vision transformer, of whose weights every one is that of an ordinary linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VisionTransformer(nn.Module):
    r"""A pre-norm transformer encoder (after Dosovitskiy et al. 2021) that takes an image's rows as tokens:

    .. math:: h \leftarrow h + \mathrm{Attention}(\mathrm{norm}(h)), \quad
        h \leftarrow h + \mathrm{MLP}(\mathrm{norm}(h))

    for each block, and a linear layer on the mean over tokens. Attention is written with four linear layers, ``q``,
    ``k``, ``v`` and ``proj``, so that masks and adapters can be put on each. In a ``BayesianModule`` say
    ``event_dim=2``: a datum is a matrix.

    :param tokens: T, number of rows of an image.
    :param features: F, number of pixels of a row.
    :param classes: number of outputs.
    :param width: of a token inside the network.
    :param depth: number of blocks.
    :param heads: of attention; they share the width.
    :raises ValueError: a width that heads cannot share.

    Example::

        >>> VisionTransformer(classes=3)(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        tokens: int = 28,
        features: int = 28,
        classes: int = 10,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, T, F]``."""
        h = self.blocks(self.embed(x) + self.positions)
        return self.head(self.norm(h).mean(-2))


class Block(nn.Module):
    """Attention between the tokens of an image, then two layers for each token alone.

    :param width: of a token; the hidden layer is twice as wide.
    :param heads: of attention.
    :raises ValueError: a width that heads cannot share.

    Example::

        >>> Block(width=8, heads=2)(torch.zeros(5, 28, 8)).shape
        torch.Size([5, 28, 8])
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, but found {width} and {heads}")
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.hidden, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self._attention(self.before_attention(h))
        return h + self.out(nn.functional.gelu(self.hidden(self.before_mlp(h))))

    def _attention(self, h: Tensor) -> Tensor:
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for layer in (self.q, self.k, self.v))
        share = ((q @ k.mT) / q.shape[-1] ** 0.5).softmax(-1)  # [N, heads, T, T]
        return self.proj((share @ v).transpose(-2, -3).flatten(-2))
