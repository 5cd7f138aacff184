"""A property of all networks: what comes out is equal in distribution, or the network is refused by name.

Small networks are put together from a seed: random operations, operations that give several tensors, moves, and what
depends on the number of dimensions, around dropouts.
"""

import operator
import random
import re

import pyro
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import DropoutPredictive, from_torch
from tests.support.scenarios import assert_same_mean

WIDTH, PASSES = 4, 3000


def halves(h):
    a, b = h.chunk(2, -1)
    return a, b


MOVES = {
    "relu": lambda h: h.relu(),
    "leaky": lambda h: F.leaky_relu(h, 0.3),
    "abs": lambda h: h.abs(),
    "negative": lambda h: -h,
    "twice": lambda h: h * 2,
    "third": lambda h: h / 3,
    "width": lambda h: h / h.shape[-1] ** 0.5,
    "double": lambda h: h.to(torch.float64),
    "clone": lambda h: h.clone(),
    "flip": lambda h: h.flip(-1),
    "mT": lambda h: h.unsqueeze(1).mT.squeeze(-1),
    "slice": lambda h: h[..., :2],
    "steps": lambda h: h[..., ::2],
    "unflatten": lambda h: h.unflatten(1, (2, -1)).flatten(1),
    "swap": lambda h: h.unflatten(1, (2, -1)).transpose(1, 2).flatten(1),
}
TUPLES = {
    "chunk": lambda h: h.chunk(2, -1)[0],
    "second": lambda h: h.chunk(2, dim=1)[-1],
    "split": lambda h: h.split(2, -1)[0],
    "sizes": lambda h: h.split([1, h.shape[-1] - 1], -1)[1],
    "tensor_split": lambda h: torch.tensor_split(h, 2, 1)[0],
    "unbind": lambda h: h.unflatten(1, (2, -1)).unbind(1)[1],
    "unpacked": lambda h: halves(h)[1],
    "of a slice": lambda h: h.chunk(4, -1)[1:3][0],
    "joined": lambda h: torch.cat(h.chunk(2, -1)[::-1], -1),
    "added": lambda h: operator.add(*halves(h)),
    "stacked": lambda h: torch.stack(h.unbind(-1), -1),
    "sort": lambda h: h.sort(-1)[0],
    "max": lambda h: h.unflatten(1, (2, -1)).max(1)[0],
    "topk": lambda h: h.topk(2, -1).values,
    "moments": lambda h: torch.stack(torch.std_mean(h, -1), -1),
}
DIMENSIONS = {
    "average": lambda h: F.avg_pool1d(h, 3, 1, 1),
    "maximum": lambda h: F.max_pool1d(h, 3, 1, 1),
    "batched": lambda h: F.avg_pool1d(h.unsqueeze(1), 3, 1, 1).squeeze(1),
    "channels": lambda h: F.max_pool1d(h.unsqueeze(-1), 1).squeeze(-1),
    "integers": lambda h: h.to(torch.int32).double(),
    "floor": lambda h: torch.div(h, 0.5, rounding_mode="floor"),
    "bits": lambda h: h.view(torch.int64).view(torch.float64),
    "resized": lambda h: F.interpolate(h.unsqueeze(1), scale_factor=2.0).squeeze(1),
}
OTHERS = {
    "plus one": lambda h: h + 1,
    "gelu": lambda h: F.gelu(h),
    "sigmoid": lambda h: h.sigmoid(),
    "softmax": lambda h: h.softmax(-1),
    "largest": lambda h: h * (h > 0.1),
    "its maximum": lambda h: h * h.amax(-1, keepdim=True),
    "relu in place": lambda h: F.relu(h, inplace=True),
    "leaky in place": lambda h: F.leaky_relu(h, -0.5, True),
}
RANDOM = {
    "always": lambda h: F.dropout(h, 0.4, True),
    "torch.dropout": lambda h: torch.dropout(h, 0.4, True),
    "rrelu": lambda h: F.rrelu(h, training=True),
    "constant": lambda h: h * (torch.rand(h.shape[-1] if isinstance(h, torch.Tensor) else 1) > 0.3),
    "noise": lambda h: h + 0.3 * torch.randn_like(h),
    "bernoulli": lambda h: h * torch.bernoulli(torch.full_like(h, 0.5)),
    "uniform": lambda h: h * torch.empty_like(h).uniform_(),
    "Python": lambda h: h * random.random(),
}
PARTS = {name: TUPLES[name] for name in ("chunk", "second", "split", "sizes", "tensor_split", "unbind", "unpacked")}
PLAIN, ANY = [(MOVES, 4), (PARTS, 1)], [(MOVES, 6), (TUPLES, 3), (DIMENSIONS, 2), (OTHERS, 2)]


NAMED = r"'[\w.]+'|\w+ \(\w+\)|forward of Program|Program has"  # a layer, a step, or the network where it has no step


class Program(nn.Module):
    """Layers and functions in a row, some of them dropouts, one perhaps skipped, and in three of five a trap."""

    def __init__(self, seed):
        super().__init__()
        self.layers, self.steps = nn.ModuleDict(), []
        chance, x = random.Random(seed), torch.randn(2, WIDTH)
        trap = chance.choice(["", "", "any", "random", "beside"])
        for block in range(chance.choice([1, 2])):
            self._add(f"lin{block}", nn.Linear(self._width(x), WIDTH), chance.random() < 0.3)
            dropout = chance.choice(["layer", "layer", "function", "in place"])
            steps = [self._step(chance, ANY if trap == "any" else PLAIN) for _ in range(chance.choice([0, 1, 1, 2, 3]))]
            steps.insert(chance.randint(0, len(steps)), dropout)
            for step in steps:
                if step in ("layer", "in place"):
                    self._add(f"drop{block}", nn.Dropout(0.3, inplace=step == "in place"))
                elif step == "function":
                    self.steps.append((lambda net, h: F.dropout(h, 0.3, net.training), False))
                else:
                    self.steps.append((lambda net, h, step=step: step(h), False))
        if trap == "random":
            draws = RANDOM[chance.choice(sorted(RANDOM))]
            self.steps.insert(chance.randint(0, len(self.steps)), (lambda net, h: draws(h), False))
        if trap == "beside":  # behind one dropout a layer, and beside it something else
            self._add("drop", nn.Dropout(0.4))
            self.layers["beside"], step = nn.Linear(self._width(x), 1), self._step(chance, ANY)
            self.steps.append((lambda net, h: net.layers["beside"](h) + step(h)[..., :1], False))
            self._add("last", nn.Linear(self._width(x), 3))
        elif chance.random() < 0.3:  # two halves to two layers
            half, rest = (self._width(x) + 1) // 2, self._width(x) // 2
            self.layers["left"], self.layers["right"] = nn.Linear(half, 3), nn.Linear(max(rest, 1), 3)
            self.steps.append((lambda net, h: self._halves(net, h), False))
        else:
            self._add("last", nn.Linear(self._width(x), 3))
        self.double().eval()

    def _halves(self, net, h):
        a, b = halves(h)
        return net.layers["left"](a) + net.layers["right"](b)

    def _step(self, chance, kinds):
        kind = chance.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
        return kind[chance.choice(sorted(kind))]

    def _add(self, name, layer, skipped=False):
        self.layers[name] = layer
        self.steps.append((lambda net, h: net.layers[name](h), skipped))

    def _width(self, x):
        with torch.no_grad():
            return self.double().eval()(x.double()).shape[1]

    def forward(self, x):
        for step, skipped in self.steps:
            x = x + step(self, x) if skipped else step(self, x)
        return x


def program(seed):
    """The first one from this seed on that PyTorch runs."""
    for attempt in range(100):
        torch.manual_seed(seed)
        try:
            net = Program(1000 * seed + attempt)
            with torch.no_grad():
                for p in net.parameters():
                    p.mul_(2)
                net(torch.randn(2, WIDTH).double())
            return net
        except (RuntimeError, ValueError, IndexError, TypeError, UserWarning):
            continue
    raise AssertionError("no program runs")


def check(seed):
    net, x = program(seed), torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
    pyro.clear_param_store()
    try:
        model, guide = from_torch(net, x)
    except ValueError as error:
        said = str(error)
    else:
        said = None
    if said is not None:
        assert re.search(NAMED, said), said
        return
    torch.manual_seed(seed)
    draws = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"])(x)["_RETURN"]
    draws = draws.reshape(PASSES, 2, -1)
    functions = DropoutPredictive(model, guide=guide, num_samples=3, return_sites=["_RETURN"]).draw(x)
    torch.testing.assert_close(functions(x)["_RETURN"], functions(x)["_RETURN"])  # all that is random is in the weights
    net.train()
    for datum in range(2):
        with torch.no_grad():
            passes = net(x[datum].repeat(PASSES, 1))
        mine = draws[:, datum]
        center = passes.mean(0)
        assert_same_mean(passes - center, mine - center)
        pairs = [(t - center).unsqueeze(1) * (t - center).unsqueeze(2) for t in (passes, mine)]
        assert_same_mean(*(p.flatten(1) for p in pairs))


@pytest.mark.parametrize("seed", range(60))
def test_equal_in_distribution_or_refused_by_name(seed):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60, 1060))
def test_equal_in_distribution_or_refused_by_name_for_many(seed):
    check(seed)


def test_the_property_is_not_kept_by_refusing_all():
    converted = 0
    for seed in range(60):
        pyro.clear_param_store()
        try:
            from_torch(program(seed), torch.randn(2, WIDTH).double())
            converted += 1
        except ValueError:
            pass
    assert converted >= 20
