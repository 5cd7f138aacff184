"""Networks with dropout layers of every kind, and whether two of them have outputs of one distribution."""

import copy

import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from tests.support.scenarios import assert_same_mean

PASSES = 2000


class LeNet(nn.Module):
    """Channels dropped before the second convolution, units before both linear layers, one by a function."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 6, 3)
        self.drop = nn.Dropout2d(0.3)
        self.fc1, self.fc2 = nn.Linear(24, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = F.max_pool2d(self.drop(F.relu(self.conv1(x))), 2)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.dropout(x.view(x.size(0), -1), 0.2, training=self.training)
        return self.fc2(F.dropout(F.relu(self.fc1(x)), training=self.training))


def orders():
    """Dropout before ReLU, after it, twice in a row, on the input, and a rate of 0."""
    return nn.Sequential(
        *(
            nn.Dropout(0.1),
            nn.Linear(6, 8),
            nn.Dropout(0.4),
            nn.ReLU(),
            nn.Linear(8, 8),
            nn.LeakyReLU(),
            nn.Dropout(0.3),
        ),
        *(nn.Dropout(0.2), nn.Linear(8, 7), nn.Dropout(0.0), nn.ReLU(), nn.Linear(7, 2)),
    )


class Residual(nn.Module):
    """Batch normalisation, a skip connection, channels dropped before a convolution and before pooling."""

    def __init__(self, dropout=nn.Dropout2d):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop = dropout(0.3)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Dropout2d(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        for norm in (self.norm, self.norm1, self.norm2):
            (
                nn.init.uniform_(norm.running_mean),
                nn.init.uniform_(norm.running_var, 0.5, 2),
                nn.init.uniform_(norm.weight),
            )

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        y = self.norm1(self.conv1(x)).relu()
        return self.head((x + self.norm2(self.conv2(self.drop(y)))).relu())


class TiedDropout(nn.Module):
    """One mask for all times of ``[batch, time, features]``."""

    def __init__(self, p):
        super().__init__()
        self.mask = nn.Dropout1d(p)

    def forward(self, x):
        return self.mask(x.mT).mT


class Encoder(nn.Module):
    """A Transformer encoder layer with projections of its own, a dropout before each."""

    def __init__(self, dropout=TiedDropout, attention=0.0):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.first, self.second = nn.LayerNorm(6), nn.LayerNorm(6)
        self.drops = nn.ModuleList(dropout(0.1 * (i + 1)) for i in range(6))
        self.attention = attention

    def forward(self, x):
        h = self.first(x)
        q, k, v = (layer(drop(h)) for layer, drop in zip((self.q, self.k, self.v), self.drops, strict=False))
        share = ((q @ k.mT) / 6**0.5).softmax(-1)
        x = x + self.o(self.drops[3](F.dropout(share, self.attention, self.training) @ v))
        return x + self.down(self.drops[5](self.up(self.drops[4](self.second(x))).relu()))


class Recurrent(nn.Module):
    """Gal & Ghahramani's input masks, tied over time, and dropout on what is read off."""

    def __init__(self, mask=TiedDropout, **options):
        super().__init__()
        self.drop, self.lstm = mask(0.3), nn.LSTM(4, 5, batch_first=True, **options)
        self.out = nn.Sequential(nn.Dropout(0.4), nn.Linear(10 if options.get("bidirectional") else 5, 2))

    def forward(self, x):
        return self.out(self.lstm(self.drop(x))[0][:, -1])


NETWORKS = {
    "lenet": (LeNet, (1, 16, 16)),
    "orders": (orders, (6,)),
    "residual": (Residual, (2, 6, 6)),
    "encoder": (Encoder, (5, 6)),
    "lstm": (Recurrent, (6, 4)),
}
RATES = {
    "lenet": {"conv2.weight": 0.3, "fc1.weight": 0.2, "fc2.weight": 0.5},
    "orders": {"1.weight": 0.1, "4.weight": 0.4, "8.weight": 1 - 0.7 * 0.8},
    "residual": {"conv2.weight": 0.3, "head.3.weight": 0.2},
    "encoder": {f"{name}.weight": 0.1 * (i + 1) for i, name in enumerate(("q", "k", "v", "o", "up", "down"))},
    "lstm": {"lstm.weight_ih_l0": 0.3, "out.1.weight": 0.4},
}


class StochasticDepth(nn.Module):
    """As torchvision has it."""

    def __init__(self, p, mode="row"):
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x):
        if not self.training or self.p == 0.0:
            return x
        size = [len(x) if self.mode == "row" else 1] + [1] * (x.ndim - 1)
        noise = torch.empty(size, dtype=x.dtype).bernoulli_(1 - self.p)
        return x * noise.div_(1 - self.p)


class DropPath(nn.Module):
    """As timm has it."""

    def __init__(self, drop_prob, scale_by_keep=True):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        noise = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)
        return x * (noise.div_(1 - self.drop_prob) if self.scale_by_keep else noise)


def scaled(net):
    """Weights large enough for dropout to show in every output."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.0)
    return net


def case(name, rows=3):
    make, shape = NETWORKS[name]
    return scaled(make()).double().eval(), torch.randn(rows, *shape).double()


def dropout_passes(net, x, n):
    """Outputs ``[n, *out]`` of passes with dropout alone in training mode."""
    training = net.training
    net = copy.deepcopy(net).eval()
    net.training = training  # of functions that the network itself calls
    for part in net.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd | StochasticDepth | DropPath):
            part.train()
    if isinstance(net, LeNet):
        net.training = True  # its own dropout functions; it has no other use of it
    with torch.no_grad():
        return torch.stack([net(x) for _ in range(n)])


def median_of(module, guide):
    """The network at the guide's medians."""
    net = copy.deepcopy(module._modules["net"])
    return lambda x: torch.func.functional_call(net, guide.median(), (x,))


def assert_same_distribution(a, b):
    """Each output by Kolmogorov and Smirnov's test, all pairs of outputs by their mean products.

    Rounded, as outputs of few masks have few values, which rounding errors would tell apart.
    """
    a, b = a.flatten(1).double().round(decimals=5), b.flatten(1).double().round(decimals=5)
    assert bool((a.std(0) > 1e-3).all())
    smallest = min(stats.ks_2samp(a[:, k], b[:, k], method="asymp").pvalue for k in range(a.shape[1]))
    assert smallest > 1e-4 / a.shape[1], smallest
    center = torch.cat([a, b]).mean(0)
    first, second = a[:, :30] - center[:30], b[:, :30] - center[:30]
    assert_same_mean(first, second)
    assert_same_mean(first.unsqueeze(1) * first.unsqueeze(2), second.unsqueeze(1) * second.unsqueeze(2))


class Functions(nn.Module):
    """What a network may do, chosen by name."""

    def __init__(self, do, **layers):
        super().__init__()
        self.do, self.a, self.b, self.drop = do, nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.3)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.do(self, x)


def merged(net, x):
    return net.a(net.drop(x.reshape(-1, 4))).reshape(x.shape)


X4, X3D, IMAGE = torch.randn(3, 4), torch.randn(3, 5, 4), torch.randn(3, 4, 5, 5)
