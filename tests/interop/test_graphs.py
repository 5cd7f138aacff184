"""What may differ between training and evaluation, how inputs come in, and what cannot be followed."""

import copy
import warnings
from functools import partial

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
    net, x = scaled(Functions(DIFFERENCES[name], norm=Norm())).double().eval(), 1 + torch.rand(3, 4).double()
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


class Block(nn.Module):
    def __init__(self, do):
        super().__init__()
        self.do = do

    def forward(self, x):
        return self.do(x, self.training)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (
            lambda x, training: stochastic_depth(x, 0.2, training),
            r"stochastic_depth \(stochastic_depth\) in Block '1.0' differs .*: take it out, or set its rate to 0",
        ),
        (lambda x, training: F.dropout(x, 0.3, training) + x, r"dropout \(dropout\) in Block '1.0' is followed by add"),
        (lambda x, training: x.tanh() if training else x, r"tanh \(tanh\) in Block '1.0' differs"),
    ],
)
def test_a_function_is_named_with_the_module_that_calls_it(do, message):
    """The function's own name says nothing of where to look in a large network."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Block(do)), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=message):
        from_torch(net, X4)


class Pooling(nn.Module):
    """Its head in training needs more places than the rest of it, as in Inception; ``choose`` makes it untraceable."""

    def __init__(self, choose=False):
        super().__init__()
        self.conv, self.head, self.choose = nn.Conv2d(4, 2, 3), nn.AvgPool2d(5), choose

    def forward(self, x):
        out = self.conv(x)
        if self.choose and x.sum() > 1e9:
            return out
        return (out, self.head(out)) if self.training else out


@pytest.mark.parametrize(
    ("net", "rate"),
    [
        (Pooling(), None),
        (Pooling(), 0.1),
        (Pooling(choose=True), 0.1),
        (nn.Conv2d(4, 2, 9), None),
        (nn.Conv2d(4, 2, 9), 0.1),
    ],
)
def test_a_network_that_fails_for_the_example_is_named(net, rate):
    with pytest.raises(ValueError, match=f"{type(net).__name__} fails in training mode for the example: "):
        from_torch(net, torch.randn(2, 4, 5, 5), rate=rate)


# Inputs


class Masked(nn.Module):
    """What transformers look like: optional inputs, numbers, flags."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(4, 4), nn.Linear(4, 2), nn.Dropout(0.3)

    def forward(self, x, mask=None, scale=2.0, flip=False, *, name="mean"):
        h = self.a(x)
        if mask is not None:
            h = h * mask
        if flip:
            h = h.flip(-1)
        out = self.b(self.drop(h.relu()) * scale)
        return out if name == "mean" else -out


@pytest.mark.parametrize("inputs", [(X4,), (X4, (X4 > 0).float())])
def test_inputs_that_are_not_given_have_their_defaults(inputs):
    net, inputs = scaled(Masked()).double().eval(), [x.double() for x in inputs]
    model, guide = from_torch(net, inputs)
    assert {s: round(r.item(), 6) for s, r in guide.rates().items()} == {"a.weight": 0.0, "b.weight": 0.3}
    torch.testing.assert_close(poutine.condition(model.eval(), data=guide.median())(*inputs), net(*inputs))


def test_a_forward_of_any_number_of_inputs():
    class Sum(Masked):
        def forward(self, *inputs):
            return self.b(self.drop(self.a(inputs[0] + inputs[1]).relu()))

    assert from_torch(Sum(), (X4, X4))[1].rates()["b.weight"].item() == pytest.approx(0.3)


class Mapped(Masked):
    def forward(self, batch):
        return self.b(self.drop(self.a(batch["x"])))


class Asserting(Masked):
    def forward(self, x):
        assert x.shape[1] == 4
        return self.b(self.drop(self.a(x)))


class Checking(Masked):
    def forward(self, x):
        if x.size(1) != 4:
            raise ValueError("wrong width")
        return self.b(self.drop(self.a(x)))


class Looping(Masked):
    def forward(self, x):
        return sum(self.b(self.drop(self.a(row.unsqueeze(0)))) for row in x)


def wrapped(kind):
    return nn.Sequential(nn.Linear(4, 4), kind(Masked()))


@pytest.mark.parametrize(
    ("net", "example", "error", "message"),
    [
        (nn.DataParallel(Masked()), X4, TypeError, "net is a DataParallel.*: give its .module"),
        (wrapped(nn.DataParallel), X4, TypeError, "Sequential has at '1' a DataParallel.*: give its .module"),
        (lambda x: x, X4, TypeError, "net must be a torch.nn.Module, but found function"),
        (Masked, X4, TypeError, "net must be a torch.nn.Module, but found the class Masked: give an instance"),
        (Mapped(), {"x": X4}, TypeError, r"example is a mapping \(x\).*: give from_torch a module whose forward takes"),
        (Mapped(), ({"x": X4},), TypeError, r"example\[0\] is a dict, but must be a tensor"),
        (Masked(), (X4, None), TypeError, r"example\[1\] is a NoneType, but must be a tensor: leave it out"),
        (Masked(), 3.0, TypeError, "example must be a tensor or a sequence of tensors, but found float"),
        (Masked(), (X4,) * 6, ValueError, r"forward\(x, mask=None.* does not take the 6 tensors of example"),
        (Asserting(), X4, ValueError, r"forward of Asserting cannot be followed at 'assert x.shape\[1\] == 4'"),
        (
            Checking(),
            X4,
            ValueError,
            r"forward of Checking cannot be followed at 'if x.size\(1\) != 4:'.*: give a module",
        ),
        (Looping(), X4, ValueError, "forward of Looping cannot be followed at 'return sum"),
        (Masked(), torch.randn(3, 5), ValueError, "Masked fails in evaluation mode for the example: "),
    ],
)
def test_what_to_give_instead_is_said(net, example, error, message):
    with pytest.raises(error, match=message):
        from_torch(net, example)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda compiled: compiled(Masked()), "net is a OptimizedModule.*: give its ._orig_mod"),
        (lambda compiled: wrapped(compiled), "Sequential has at '1' a OptimizedModule.*_orig_mod"),
        (lambda compiled: compiled(lambda x: x), "net must be a torch.nn.Module, but found function"),
    ],
)
def test_what_to_give_instead_of_what_is_compiled(make, message):
    net = make(partial(torch.compile, backend="eager"))  # here: torch.compile switches the validation of priors off
    with pytest.raises(TypeError, match=message):
        from_torch(net, X4)


def scripted(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated
        return make(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3)))


@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net.eval(), X4)])
def test_a_scripted_network_is_asked_for_as_it_was(make):
    with pytest.raises(TypeError, match=r"net is a ScriptModule.*: give the module that it was made from"):
        from_torch(scripted(make), X4)
