"""Networks that mix the rows of their batch, and some that look so and do not."""

import torch
from torch import nn

ROWS = 5


class Mixer(nn.Module):
    """Linear layers with something between them that makes rows depend on each other."""

    def __init__(self, mix, features=3, hidden=4, first=False, outputs=1):
        super().__init__()
        self.first, self.second = nn.Linear(features, hidden), nn.Linear(hidden, outputs)
        self.mix, self.before = mix, first

    def forward(self, x):
        if self.before:
            return self.second(torch.tanh(self.first(self.mix(x))))
        return self.second(self.mix(torch.tanh(self.first(x))))


class Attention(nn.Module):
    """Softmax attention over rows."""

    def forward(self, h):
        return torch.softmax(h @ h.mT, -1) @ h


class Graph(nn.Module):
    """Sums over neighbours in a graph whose nodes are the rows."""

    def __init__(self, rows=ROWS):
        super().__init__()
        torch.manual_seed(7)
        self.register_buffer("adjacency", torch.rand(rows, rows))

    def forward(self, h):
        return self.adjacency.to(h.dtype) @ h


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


class MultiHead(nn.Module):
    """PyTorch's attention, over rows as a sequence of one batch."""

    def __init__(self, width=4):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, h):
        return self.attention(h[None], h[None], h[None], need_weights=False)[0][0]


MIXERS = {
    "attention": Attention,
    "graph": Graph,
    "rolled": lambda: Function(lambda h: h.roll(1, 0)),
    "reversed": lambda: Function(lambda h: h.flip(0)),
    "set": lambda: Function(lambda h: h + h.mean(0, keepdim=True)),
    "largest": lambda: Function(lambda h: h * h.amax(0)),
    "running sum": lambda: Function(lambda h: h.cumsum(0)),
    "neighbours": lambda: Function(lambda h: torch.cat([h[:1], h[1:] - h[:-1]])),
    "batch norm": lambda: nn.BatchNorm1d(4, track_running_stats=False),
}
OTHERS = {
    "layer norm": lambda: nn.LayerNorm(4),
    "in place": lambda: Function(lambda h: (h + 1.0).mul_(2.0)),
    "softmax of features": lambda: nn.Softmax(-1),
    "batch norm by running statistics": lambda: nn.BatchNorm1d(4).eval(),
    "nothing": nn.Identity,
}
