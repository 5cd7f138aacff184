"""A dropout is followed to the one weight whose mask it is; one that is no mask of a weight is a named error."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import (
    from_torch,
)
from tests.support.networks import IMAGE, X3D, X4, Encoder, Functions, Recurrent, Residual, merged


def branching(net, x):
    return net.a(x) if x.sum() > 0 else net.b(x)


ERRORS = {
    "after an activation": (
        lambda n, x: n.drop(n.a(x).tanh()),
        X4,
        {},
        "Dropout 'drop' is followed by the network's output",
    ),
    "before batch norm": (
        lambda n, x: n.a(n.norm(n.drop(x))),
        X4,
        {"norm": nn.BatchNorm1d(4)},
        "Dropout 'drop' is followed by BatchNorm1d 'norm', with which its mask does not commute",
    ),
    "before GELU": (lambda n, x: n.a(F.gelu(n.drop(x))), X4, {}, "Dropout 'drop' is followed by gelu"),
    "before sigmoid": (lambda n, x: n.a(n.drop(x).sigmoid()), X4, {}, r"is followed by sigmoid \(sigmoid\)"),
    "before addition": (lambda n, x: n.a(x + n.drop(x)), X4, {}, "Dropout 'drop' is followed by add"),
    "plus a number": (lambda n, x: n.a(n.drop(x) + 1), X4, {}, "Dropout 'drop' is followed by add"),
    "one for two weights": (
        lambda n, x: (lambda h: n.a(h) + n.b(h))(n.drop(x)),
        X4,
        {},
        "Dropout 'drop' feeds a.weight, b.weight at once, which share its mask",
    ),
    "one weight used twice": (
        lambda n, x: n.a(n.a(n.drop(x))),
        X4,
        {},
        r"feeds a.weight, which the network uses 2 times",
    ),
    "of a parameter that is no layer's": (
        lambda n, x: F.linear(n.drop(x), n.own),
        X4,
        {"own": nn.Parameter(torch.randn(2, 4))},
        "a dropout masks units of own, a parameter of Functions, which is no layer that has such",
    ),
    "for each time": (
        lambda n, x: n.a(n.drop(x)),
        X3D,
        {},
        "mask for each place or time, but Linear 'a' has one weight",
    ),
    "for each pixel": (
        lambda n, x: n.conv(n.drop(x)),
        IMAGE,
        {"conv": nn.Conv2d(4, 2, 3)},
        r"Dropout 'drop' draws a mask for each place .* Conv2d 'conv' .*nn.Dropout2d",
    ),
    "pixels before pooling": (
        lambda n, x: n.conv(F.max_pool2d(n.drop(x), 2)),
        IMAGE,
        {"conv": nn.Conv2d(4, 2, 2)},
        "Dropout 'drop' is followed by .*max_pool2d",
    ),
    "channels then flatten": (
        lambda n, x: n.wide(n.drop2(x).flatten(1)),
        IMAGE,
        {"wide": nn.Linear(100, 2), "drop2": nn.Dropout2d(0.3)},
        "Dropout2d 'drop2' switches several input units of Linear 'wide' together",
    ),
    "channels of a vector": (
        lambda n, x: n.a(n.drop1(x)),
        X4,
        {"drop1": nn.Dropout1d(0.3)},
        r"Dropout1d 'drop1' masks channels, but its input has shape \(3, 4\)",
    ),
    "always on": (
        lambda n, x: n.a(F.dropout(x, 0.2)),
        X4,
        {},
        r"dropout \(dropout\) drops units in evaluation mode too",
    ),
    "another network in training": (
        lambda n, x: n.a(x) if n.training else n.b(x),
        X4,
        {},
        "Linear 'a' differs between training and evaluation",
    ),
    "noise in training": (
        lambda n, x: n.a(x + torch.randn_like(x) if n.training else x),
        X4,
        {},
        "differs between training and evaluation",
    ),
    "noise": (lambda n, x: n.a(x + torch.randn_like(x)), X4, {}, r"randn_like \(randn_like\) draws random numbers"),
    "data-dependent": (branching, X4, {}, "the forward of Functions cannot be followed"),
    "alpha dropout": (
        lambda n, x: n.a(n.alpha(x)),
        X4,
        {"alpha": nn.AlphaDropout(0.1)},
        "AlphaDropout 'alpha' has dropout",
    ),
    "everything": (lambda n, x: n.a(n.all(x)), X4, {"all": nn.Dropout(1.0)}, "Dropout 'all' drops everything"),
    "fused attention": (
        lambda n, x: n.mha(x, x, x)[0],
        X3D,
        {"mha": nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)},
        "MultiheadAttention 'mha' has dropout inside it",
    ),
    "fused encoder": (
        lambda n, x: n.layer(x),
        X3D,
        {"layer": nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)},
        "TransformerEncoderLayer 'layer' has dropout inside it",
    ),
    "attention function": (
        lambda n, x: n.a(F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if n.training else 0.0)),
        X3D,
        {},
        "scaled_dot_product_attention .* differs between training and evaluation",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_dropout_that_is_no_mask_of_a_weight_is_named(name):
    """PITFALLS 15: nothing is missed, nothing in between."""
    do, x, layers, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        from_torch(Functions(do, **layers), x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Encoder(nn.Dropout), "Dropout 'drops.0' draws a mask for each place or time, but Linear 'q' has one weight"),
        (Encoder(attention=0.1), r"dropout \(dropout\) is followed by matmul"),
        (Recurrent(nn.Dropout), "Dropout 'drop' draws a mask for each place or time, but LSTM 'lstm' has one weight"),
        (Recurrent(num_layers=2, dropout=0.2), "LSTM 'lstm' has dropout inside it"),
        (Recurrent(bidirectional=True), "'drop.mask' feeds LSTM 'lstm', which shares it between directions"),
        (Residual(nn.Dropout), r"Dropout 'drop' draws a mask for each place or time, but Conv2d 'conv2'"),
    ],
)
def test_the_usual_networks_with_other_dropout_are_named_errors(net, message):
    shape = (2, 6, 6) if isinstance(net, Residual) else (5, 6) if isinstance(net, Encoder) else (6, 4)
    with pytest.raises(ValueError, match=message):
        from_torch(net, torch.randn(3, *shape))


class Words(nn.Module):
    """Embedding and decoder share a weight; what is dropped is what an activation returns."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.drop = nn.Embedding(10, 6), nn.Linear(6, 6), nn.Dropout(0.5)
        self.decoder = nn.Linear(6, 10)
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(self.drop(self.hidden(self.embedding(x)).tanh()))


def in_place(net, x):
    h = net.b(x)
    return net.a(net.off(h)) + h


def frames(net, x):
    return net.conv(net.drop2(x.flatten(0, 1))).flatten(1)


@pytest.mark.parametrize(
    ("net", "x", "message"),
    [
        (Words(), torch.randint(10, (4,)), r"'drop' feeds embedding.weight, which the network uses 2 times"),
        (Functions(merged), X3D, "'drop' draws a mask for each place or time, but Linear 'a' has one weight"),
        (
            Functions(frames, drop2=nn.Dropout2d(0.3), conv=nn.Conv2d(2, 1, 3)),
            torch.randn(3, 4, 2, 5, 5),
            "'drop2' draws a mask for each place or time, but Conv2d 'conv'",
        ),
        (
            Functions(in_place, off=nn.Dropout(0.5, inplace=True)),
            X4,
            r"Dropout 'off' drops in place what add \(add\) uses too",
        ),
        (
            Functions(lambda n, x: n.a(n.drop(x)) + n.a.weight.sum()),
            X4,
            "feeds a.weight, which the network uses 2 times",
        ),
        (
            nn.Sequential(nn.Dropout(0.5), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))),
            X4,
            r"Dropout '0' feeds 1.weight, which is no parameter \(but computed, or a buffer\)",
        ),
    ],
)
def test_a_mask_that_is_not_the_weights_own_is_named(net, x, message):
    with pytest.raises(ValueError, match=message):
        from_torch(net, x)
