"""Whether a mask is tied over places or times follows from layers and dimensions, not from the example's sizes."""

import pytest
import torch
from torch import nn

from pyro_dropout import DropoutPredictive, from_torch
from tests.support.networks import Functions, TiedDropout, assert_same_distribution, dropout_passes, scaled

PASSES, PLACE = 1000, "draws a mask for each place or time"
OTHERS = {
    "conv": lambda: nn.Conv2d(4, 2, 1),
    "wide": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "conv1": lambda: nn.Conv1d(4, 2, 1),
    "head": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.3), nn.Conv2d(4, 2, 1)),
    "rnn": lambda: nn.GRU(4, 3, batch_first=True),
    "tied": lambda: TiedDropout(0.3),
    "drop2": lambda: nn.Dropout2d(0.3),
    "one": lambda: nn.Linear(1, 2),
    "fixed": lambda: nn.Linear(12, 2),
    "mix": lambda: nn.Linear(4, 4),
}


def network(do):
    return scaled(Functions(do, **{name: make() for name, make in OTHERS.items()})).double().eval()


def deep(net, x):
    """The place is single behind the pools alone."""
    return net.conv(net.drop(nn.functional.max_pool2d(net.wide(x), 4)))


def across(net, x):
    """One mask for each time, shared by the rows of data."""
    h = x.transpose(0, 1)
    return net.a(net.tied(h).transpose(0, 1))


def swapped(net, x):
    return net.a(net.tied(x.transpose(0, 1))).transpose(0, 1)


REFUSED = {
    "pixels": (lambda n, x: n.conv(n.drop(x)), (2, 4, 1, 1), PLACE),
    "a row of pixels": (lambda n, x: n.conv(n.drop(x)), (2, 4, 1, 7), PLACE),
    "pixels behind pools": (deep, (2, 4, 4, 4), PLACE),
    "times": (lambda n, x: n.a(n.drop(x)), (2, 1, 4), PLACE),
    "times of a convolution": (lambda n, x: n.conv1(n.drop(x)), (2, 4, 1), PLACE),
    "times of a recurrent layer": (lambda n, x: n.rnn(n.drop(x))[0], (2, 1, 4), PLACE),
    "times as rows": (lambda n, x: n.a(n.drop(x.reshape(-1, 4))).reshape(x.size(0), -1), (2, 1, 4), PLACE),
    "one unit": (lambda n, x: n.one(n.drop(x).unsqueeze(-1)), (2, 1), PLACE),
    "one unit of times": (lambda n, x: n.one(n.drop(x)), (2, 1, 1), PLACE),
    "as many times as rows": (swapped, (3, 3, 4), PLACE),
    "as many times as rows, fixed": (lambda n, x: n.fixed(swapped(n, x).flatten(1)), (3, 3, 4), PLACE),
    "as many times as rows, back": (across, (3, 3, 4), PLACE),
    "single times": (lambda n, x: n.a(n.drop(x.squeeze(1))), (2, 1, 4), PLACE),
    "images as rows": (lambda n, x: n.conv(n.drop2(x.flatten(0, 1))).flatten(1), (2, 1, 4, 3, 3), PLACE),
    "two inputs": (lambda n, x, y: n.a(n.drop(x)) * y, [(2, 1, 4), (2, 1, 4)], PLACE),
    "channels": (
        lambda n, x: n.a(n.drop2(x).flatten(2).squeeze(1)),
        (2, 1, 2, 2),
        "switches several input units|draws a mask for each",
    ),
}


class Several(Functions):
    def forward(self, *inputs):
        return self.do(self, *inputs)


@pytest.mark.parametrize("name", REFUSED)
def test_a_single_place_is_no_mask_for_all_places(name):
    do, shape, message = REFUSED[name]
    shapes = shape if isinstance(shape, list) else [shape]
    net = network(do)
    net.__class__ = Several
    with pytest.raises(ValueError, match=message):
        from_torch(net, [torch.randn(s).double() for s in shapes])


FOLLOWED = {  # the example, and other data
    "channels of single pixels": (lambda n, x: n.conv(n.drop2(x)), (2, 4, 1, 1), (2, 4, 3, 3)),
    "channels of a single time": (lambda n, x: n.a(n.tied(x)), (2, 1, 4), (2, 5, 4)),
    "input of a recurrent layer": (lambda n, x: n.rnn(n.tied(x))[0], (2, 1, 4), (2, 5, 4)),
    "behind an adaptive pool": (lambda n, x: n.head(x), (2, 4, 1, 1), (2, 4, 3, 3)),
    "at a size that is fixed": (lambda n, x: n.a(n.drop(n.mix(x.flatten(1)))), (2, 4, 1, 1), (2, 4, 1, 1)),
    "a time that is read": (lambda n, x: n.a(n.drop(x[:, -1])), (2, 1, 4), (2, 5, 4)),
    "one unit": (lambda n, x: n.one(n.tied(x)), (2, 1, 1), (2, 5, 1)),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_converts_at_one_place_is_equal_in_distribution_at_many(name):
    do, shape, other = FOLLOWED[name]
    net, x = network(do), torch.randn(other).double()
    model, guide = from_torch(net, torch.randn(shape).double())
    draws = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"])(x)["_RETURN"]
    passes = dropout_passes(net, x, PASSES)
    for row in range(2):
        assert_same_distribution(passes[:, row], draws.reshape(passes.shape)[:, row])


def test_where_sizes_cannot_be_varied_an_example_with_several_places_is_asked_for():
    """A graph that runs only on data, here by a value that it reads."""

    def do(net, x):
        return net.a(net.drop(x)) * x.abs().sum().item()

    with pytest.raises(ValueError, match="give an example with two or more of them"):
        from_torch(network(do), torch.randn(2, 1, 4).double())
    with pytest.raises(ValueError, match=PLACE):
        from_torch(network(do), torch.randn(2, 3, 4).double())
    from_torch(network(lambda n, x: do(n, x.flatten(1))), torch.randn(2, 4).double())
