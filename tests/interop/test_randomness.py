"""Whatever draws random numbers in a network is one of its dropouts, or is refused by name."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import BayesianModule, from_torch
from tests.support.networks import IMAGE, X3D, X4, Functions

GENERATOR, OWN = torch.Generator(), np.random.default_rng(0)


def drop_path(x, training):
    return x * x.new_empty(len(x), 1).bernoulli_(0.7) / 0.7 if training else x


ALWAYS = {  # what is done to [3, 4] in both modes, and the name that the refusal has
    "torch.dropout": (lambda x: torch.dropout(x, 0.4, True), "dropout"),
    "dropout in place": (lambda x: F.dropout(x.clone(), 0.4, True, True), "dropout|clone"),
    "alpha dropout": (lambda x: F.alpha_dropout(x, 0.4, True), "alpha_dropout"),
    "feature dropout": (lambda x: torch.feature_dropout(x, 0.4, True), "feature_dropout"),
    "native dropout": (lambda x: torch.native_dropout(x, 0.4, True)[0], "native_dropout"),
    "rrelu": (lambda x: F.rrelu(x, training=True), "rrelu"),
    "a constant's mask": (lambda x: x * (torch.rand(4) > 0.3), "rand"),
    "a constant's noise": (lambda x: x + torch.normal(torch.zeros(4), 0.1), "normal"),
    "rand_like": (lambda x: x * (torch.rand_like(x) > 0.3), "rand_like"),
    "bernoulli": (lambda x: x * torch.bernoulli(x.sigmoid()), "bernoulli"),
    "in place": (lambda x: x * torch.empty_like(x).bernoulli_(0.5), "bernoulli_"),
    "exponential_": (lambda x: x * torch.empty_like(x).exponential_(), "exponential_"),
    "poisson": (lambda x: torch.poisson(x.exp()), "poisson"),
    "multinomial": (lambda x: x * torch.multinomial(x.softmax(-1), 1), "multinomial"),
    "permutation": (lambda x: x[:, torch.randperm(4)], "randperm"),
    "gumbel softmax": (lambda x: F.gumbel_softmax(x), "exponential_"),
    "a distribution": (lambda x: x + torch.distributions.Normal(0.0, 1.0).sample((4,)), "normal"),
    "another generator": (lambda x: x * torch.rand(4, generator=GENERATOR), "rand"),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.2), "scaled_dot_product_attention"),
    "Python": (lambda x: x * random.random(), "Python's random"),
    "NumPy": (lambda x: x * float(np.random.rand()), "numpy.random"),  # noqa: NPY002
    "a generator of NumPy": (lambda x: x * float(OWN.random()), "generator of its own|mul"),
    "constants of it": (lambda x: x * float(OWN.random()) + 1.0, "generator of its own|mul"),
}


@pytest.mark.parametrize("name", ALWAYS)
@pytest.mark.parametrize("training", [False, True])
def test_random_operations_are_refused_by_name(name, training):
    """In both modes, and in training alone; beside a dropout that would be followed."""
    do, said = ALWAYS[name]
    for then in (lambda n, h: n.b(h), lambda n, h: n.b(h).relu()):
        net = Functions(lambda n, x, then=then: then(n, n.a(n.drop(x)) + (do(x) if n.training or not training else x)))
        with pytest.raises(ValueError, match=said):
            from_torch(net, X4)


def test_numbers_that_change_from_call_to_call_in_training_are_refused():
    """Of a generator that nobody knows of, as constants of steps that evaluation has too."""
    net = Functions(lambda n, x: n.a(n.drop(x)) * (OWN.random() if n.training else 1.0))
    with pytest.raises(ValueError, match=r"mul \(mul\) is another at each call"):
        from_torch(net, X4)


def own_noise(x):
    return x * float(OWN.random())


torch.fx.wrap("own_noise")


def test_a_step_with_a_generator_of_its_own_is_refused():
    """Nobody sees it draw, but a pass of the network itself differs."""
    with pytest.raises(ValueError, match="two passes of Functions in evaluation mode differ"):
        from_torch(Functions(lambda n, x: own_noise(n.a(n.drop(x)))), X4)


LAYERS = {
    "RReLU": (nn.RReLU(), X4),
    "FractionalMaxPool2d": (nn.FractionalMaxPool2d(2, output_size=3), IMAGE),
    "AlphaDropout": (nn.AlphaDropout(0.2), X4),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout(0.2), IMAGE),
    "MultiheadAttention": (nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True), X3D),
    "TransformerEncoderLayer": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), X3D),
    "GRU": (nn.GRU(4, 4, 2, dropout=0.2, batch_first=True), X3D),
}


@pytest.mark.parametrize("name", LAYERS)
def test_random_layers_are_refused_by_name(name):
    layer, x = LAYERS[name]

    def do(net, x):
        out = net.layer(x, x, x) if name == "MultiheadAttention" else net.layer(x)
        return net.a(net.drop(x.flatten(1)[:, :4])), out

    with pytest.raises(ValueError, match=f"{name} 'layer'"):
        from_torch(Functions(do, layer=layer), x)


def test_what_could_draw_but_does_not_is_no_obstacle():
    """Attention at rate 0 is tagged as random; a layer of one step has no dropout between its layers."""

    def do(net, x):
        h = F.scaled_dot_product_attention(x, x, x, dropout_p=0.0)
        h = net.attention(h, h, h, need_weights=False)[0]
        return net.a(net.drop(F.rrelu(h.flatten(1)[:, :4], training=False)))

    net = Functions(do, attention=nn.MultiheadAttention(4, 2, batch_first=True))
    assert {s for s, r in from_torch(net, X3D)[1].rates().items() if r > 0} == {"a.weight"}


def test_random_numbers_of_the_user_stay_as_they_were():
    net = Functions(lambda n, x: n.a(n.drop(x)) * random.random())
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(ValueError, match="draws random numbers"):
        from_torch(net, X4)
    assert torch.equal(before[0], torch.get_rng_state())
    from_torch(Functions(lambda n, x: n.a(n.drop(x))), X4)
    assert before[1] == random.getstate()
    np.testing.assert_array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("dropout", [F.dropout, torch.dropout])
def test_a_dropout_is_active_if_it_draws_in_training(dropout):
    """Not by its rate: one that is called with training=False drops nothing."""
    net = Functions(lambda n, x: n.b(dropout(n.a(dropout(x, 0.4, False)), 0.3, n.training)))
    rates = from_torch(net, X4)[1].rates()
    assert {s: round(r.item(), 6) for s, r in rates.items()} == {"a.weight": 0.0, "b.weight": 0.3}


def test_a_dropout_that_is_called_in_training_alone_is_one():
    net = Functions(lambda n, x: n.b(F.dropout(n.a(x).relu(), 0.3) if n.training else n.a(x).relu()))
    model, guide = from_torch(net, X4)
    assert guide.rates()["b.weight"].item() == pytest.approx(0.3)
    torch.testing.assert_close(model.eval().net.forward(X4), net.eval()(X4))


def branching(net, x):
    return net.a(x) if x.sum() > 0 else net.b(F.dropout(x, 0.5, net.training and net.noisy))


def test_a_network_that_cannot_be_followed_takes_rates_if_nothing_in_it_is_random():
    """There is no mask in it to follow."""
    net = Functions(branching)
    net.noisy = False
    model, guide = from_torch(net, -X4.abs(), rate={"a": 0.1})
    assert isinstance(model, BayesianModule)
    assert guide.rates()["a.weight"].item() == pytest.approx(0.1)
    net.noisy = True
    with pytest.raises(ValueError, match="the forward of Functions cannot be followed"):
        from_torch(net, -X4.abs(), rate={"a": 0.1})
