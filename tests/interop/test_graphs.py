"""What may differ between training and evaluation, how inputs come in, and what cannot be followed."""

import copy

import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import DropoutPredictive, from_torch
from tests.support.networks import X4, Functions, assert_same_distribution, dropout_passes, scaled


def stochastic_depth(x, rate, training):
    """As torchvision has it, a step of its own."""
    if rate == 0 or not training:
        return x
    return x * torch.empty(len(x), 1).bernoulli_(1 - rate) / (1 - rate)


torch.fx.wrap("stochastic_depth")


class Norm(nn.Module):
    """Batch normalisation written with the function."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 0.5, 1.5]))
        self.register_buffer("mean", torch.tensor([0.1, -0.2, 0.3, 0.0]))
        self.register_buffer("var", torch.tensor([1.0, 2.0, 0.5, 1.0]))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, self.weight, training=self.training)


DIFFERENCES = {
    "batch norm": lambda n, x: n.a(n.drop(n.norm(x).relu())),
    "stochastic depth at rate 0": lambda n, x: n.a(n.drop(stochastic_depth(n.b(x), 0.0, n.training).relu())) + x,
    "a factor": lambda n, x: n.a(n.drop(n.b(x) * (2.0 if n.training else 1.0))),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_between_modes_that_are_not_random_convert(name):
    """Draws are passes with the dropout layers alone in training mode."""
    net, x = scaled(Functions(DIFFERENCES[name], norm=Norm())).double().eval(), X4.double()
    before = copy.deepcopy(net.state_dict())
    model, guide = from_torch(net, x)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    draws = DropoutPredictive(model, guide=guide, num_samples=2000, return_sites=["_RETURN"])(x)["_RETURN"]
    passes = dropout_passes(net, x, 2000)
    assert_same_distribution(passes[:, 0], draws.reshape(passes.shape)[:, 0])


FUNCTIONS = {
    "batch norm": lambda n, x, p: n.a(F.dropout(n.norm(x).relu(), p, n.training)),
    "stochastic depth": lambda n, x, p: n.a(F.dropout(stochastic_depth(n.b(x), 0.0, n.training), p, n.training)),
    "a factor": lambda n, x, p: n.a(F.dropout(n.b(x) * (2.0 if n.training else 1.0), p, n.training)),
    "not in training": lambda n, x, p: n.a(F.dropout(F.elu(n.b(x), inplace=not n.training), p, n.training)) * 2,
    "in training alone": lambda n, x, p: n.a(F.dropout(n.norm(x), p) if n.training else n.norm(x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_network_that_calls_dropout_keeps_what_else_its_modes_mean(name):
    """Without its dropouts, it is in each mode what the network is."""
    net = Functions(lambda n, x: FUNCTIONS[name](n, x, 0.3), norm=Norm())
    without = Functions(lambda n, x: FUNCTIONS[name](n, x, 0.0), norm=Norm())
    without.load_state_dict(net.state_dict())
    model, guide = from_torch(net, X4.clone())
    assert guide.rates()["a.weight"].item() == pytest.approx(0.3)
    for training in (False, True):
        median = poutine.condition(model.train(training), data=guide.median())
        torch.testing.assert_close(median(X4.clone()), without.train(training)(X4.clone()))


class Auxiliary(nn.Module):
    """A head in training alone, as in GoogLeNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.drop, self.main = nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 2)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.7), nn.Linear(4, 2))

    def forward(self, x):
        h = self.stem(x)
        out = self.main(self.drop(h.relu()))
        return (out, self.head(h)) if self.training else out


class Dictionary(Auxiliary):
    def forward(self, x):
        out = self.main(self.drop(self.stem(x)))
        return {"out": out, "again": out} if self.training else out


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Auxiliary(), r"Linear 'head.0' differs between training and evaluation, and is not random.* auxiliary head"),
        (Dictionary(), r"the network's output differs between training and evaluation"),
        (
            Functions(lambda n, x: n.a(n.drop(stochastic_depth(n.b(x), 0.2, n.training)))),
            r"stochastic_depth \(stochastic_depth\) differs between training and evaluation: it draws random numbers",
        ),
    ],
)
def test_what_a_difference_is_is_said(net, message):
    with pytest.raises(ValueError, match=message):
        from_torch(net, X4)
