"""A network without active dropout is an error that says so; with ``rate`` it is the network with dropout put in."""

import pyro
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import DropoutPredictive, from_torch, to_torch
from tests.support.networks import PASSES, X3D, X4, Functions, assert_same_distribution, dropout_passes, scaled


def convolutional():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)),
    )


IMAGES, WORDS = torch.randn(2, 1, 6, 6), torch.randint(3, (2, 4))
RATES = {  # what is given, and the rates of "0.weight", "2.weight", "5.weight", "7.weight"
    "a number": (0.2, (0.2, 0.2, 0.2, 0.2)),
    "a type": ({nn.Linear: 0.2}, (0, 0, 0.2, 0.2)),
    "a wider type": ({nn.Module: 0.1, nn.Linear: 0.2}, (0.1, 0.1, 0.2, 0.2)),
    "a path": ({"2": 0.3, "7": 0.4}, (0, 0.3, 0, 0.4)),
    "a weight": ({"5.weight": 0.3}, (0, 0, 0.3, 0)),
    "the most particular": ({nn.Linear: 0.2, "5": 0.3, "5.weight": 0.4, "7": 0.0}, (0, 0, 0.4, 0)),
    "a function": (lambda name, layer: 0.1 if isinstance(layer, nn.Conv2d) and name != "0.weight" else None, (0, 0.1)),
}


@pytest.mark.parametrize("name", RATES)
def test_a_key_means_what_the_docstring_says(name):
    rate, expected = RATES[name]
    _, guide = from_torch(convolutional(), torch.randn(2, 1, 6, 6), rate=rate)
    expected = dict(zip(("0.weight", "2.weight", "5.weight", "7.weight"), (*expected, 0, 0)[:4], strict=True))
    assert {site: r.item() for site, r in guide.rates().items()} == pytest.approx(expected)


def test_a_path_is_all_weights_in_a_module_and_the_innermost_decides():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4), nn.LSTM(4, 3))
    _, guide = from_torch(net, X3D, rate={"0": 0.1, "0.1": 0.2, "2.weight_hh_l0": 0.3})
    assert {site: round(r.item(), 6) for site, r in guide.rates().items() if r > 0} == {
        "0.0.weight": 0.1,
        "0.1.weight": 0.2,
        "2.weight_hh_l0": 0.3,
    }
    pyro.clear_param_store()
    _, guide = from_torch(net, X3D, rate=0.1)
    assert [site for site, r in guide.rates().items() if r == 0] == ["2.weight_hh_l0"]


def test_given_rates_are_dropout_put_before_the_layers():
    net, x = scaled(convolutional()).double(), torch.randn(3, 1, 6, 6).double()
    rates = {"2": 0.3, "5": 0.4, "7": 0.2}
    model, guide = from_torch(net, x, rate=rates)
    predict = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"], masks="datum")
    layers = list(net)
    for path, rate in rates.items():
        before = nn.Dropout2d(rate) if path == "2" else nn.Dropout(rate)
        layers[int(path)] = nn.Sequential(before, layers[int(path)])
    passes = dropout_passes(nn.Sequential(*layers), x, PASSES)
    assert_same_distribution(passes, predict(x)["_RETURN"])
    assert_same_distribution(passes, dropout_passes(to_torch(model, guide, x), x, PASSES))


def test_rates_stand_beside_dropouts_of_other_weights():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2))
    _, guide = from_torch(net, X4, rate={"0": 0.1})
    assert {s: r.item() for s, r in guide.rates().items()} == pytest.approx({"0.weight": 0.1, "3.weight": 0.3})


def test_what_has_a_dropout_is_left_out_by_a_mapping():
    """As the refusal of one rate for all says."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2))
    _, guide = from_torch(net, X4, rate={nn.Linear: 0.1, "3": 0.0})
    assert {s: r.item() for s, r in guide.rates().items()} == pytest.approx({"0.weight": 0.1, "3.weight": 0.3})


# Errors

NONE = "has no active dropout.*: give rate"


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(self.embedding(x))


def lstm():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        return nn.LSTM(4, 3, dropout=0.5, batch_first=True)


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (lambda: nn.Linear(4, 1), X4),
        (lambda: nn.Sequential(nn.Linear(4, 1), nn.ReLU()), X4),
        (lambda: nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 1)), X4),
        (lambda: Functions(lambda n, x: n.a(F.dropout(x, 0.0, n.training))), X4),
        (lambda: Functions(lambda n, x: n.a(x)), X4),  # its dropout layer is not called
        (lstm, X3D),
        (lambda: nn.Sequential(lstm()), X3D),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), X3D),
    ],
)
def test_no_active_dropout_is_an_error_that_says_so(net, x):
    net = net()
    with pytest.raises(ValueError, match=NONE):
        from_torch(net, x)


def test_the_dropouts_that_drop_nothing_are_named():
    with pytest.raises(ValueError, match=r"\(Dropout '0' drops nothing\)"):
        from_torch(nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 1)), X4)


class Holder(nn.Module):
    """As Transformers have it, ``self.dropout`` is a layer."""

    def __init__(self):
        super().__init__()
        self.dropout, self.head = nn.Dropout(0.0), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.dropout(x))


def test_a_module_that_holds_a_dropout_is_not_named_for_one():
    with pytest.raises(ValueError, match=r"no active dropout \(Dropout 'dropout' drops nothing\)"):
        from_torch(Holder(), X4)


@pytest.mark.parametrize(
    ("net", "rate", "error", "message"),
    [
        (convolutional(), {"3": 0.1}, ValueError, r"rate\['3'\] matches no weight of Sequential; it has 0.weight"),
        (convolutional(), {nn.LSTM: 0.1}, ValueError, r"rate\[LSTM\] matches no weight"),
        (convolutional(), {3: 0.1}, TypeError, r"a key of rate is a name or a type of layers, but found 3"),
        (convolutional(), {"2": 1.0}, ValueError, r"rate\['2'\] must be in \[0, 1\), but found 1.0"),
        (convolutional(), float("nan"), ValueError, r"rate must be in \[0, 1\), but found nan"),
        (convolutional(), "0.1", TypeError, "rate must be a number"),
        (convolutional(), nn.Linear, TypeError, "rate must be a number"),
        (convolutional(), lambda name, layer: "0.1", TypeError, r"rate\('0.weight', ...\) must be a number"),
        (convolutional(), lambda name, layer: None, ValueError, "rate gives no weight of Sequential a rate above 0"),
        (convolutional(), 0.0, ValueError, "rate gives no weight of Sequential a rate above 0"),
        (nn.Sequential(nn.Embedding(3, 2), nn.Flatten()), 0.1, ValueError, "Sequential has none"),
        (Words(), 0.1, ValueError, "rate gives embedding.weight a rate, which Embedding 'embedding' uses too"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))),
            0.1,
            ValueError,
            r"rate gives 0.weight a rate, which is no parameter",
        ),
        (
            nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 2)),
            0.1,
            ValueError,
            "rate gives 1.weight a rate, which a dropout of Sequential masks already: leave it out, or give it 0",
        ),
    ],
)
def test_wrong_rates(net, rate, error, message):
    x = (
        IMAGES
        if len(list(net.modules())) > 6
        else WORDS
        if any(isinstance(m, nn.Embedding) for m in net.modules())
        else X4
    )
    with pytest.raises(error, match=message):
        from_torch(net, x, rate=rate)
