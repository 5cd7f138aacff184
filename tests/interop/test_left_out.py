"""Dropout that is a mask of nothing: attention's is refused by its sentence; what may be left out, and what is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import DropoutPredictive, from_torch
from tests.support.networks import (
    PASSES,
    X3D,
    X4,
    Functions,
    TiedDropout,
    assert_same_distribution,
    dropout_passes,
    median_of,
    scaled,
)


class EncoderLayer(nn.Module):
    """Attention by PyTorch's function, with a rate, and an MLP with one mask for all tokens."""

    def __init__(self, attention, by_position=False):
        super().__init__()
        self.by_position = by_position
        self.attention, self.qkv, self.up, self.down = attention, nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.drop = TiedDropout(0.3)

    def forward(self, x):
        h = self.qkv(x)
        rate = self.attention if self.training else 0.0
        by_position = (None, rate, False) if self.by_position else ()
        x = x + F.scaled_dot_product_attention(h, h, h, *by_position, **({} if by_position else {"dropout_p": rate}))
        return (x + self.down(self.drop(self.up(x).relu()))).mean(1)


class Mixed(nn.Module):
    """PyTorch's own attention and encoder layer, dropout per token, and one that is a mask."""

    def __init__(self, rate=0.3):
        super().__init__()
        self.mha = nn.MultiheadAttention(4, 2, dropout=rate, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, dropout=rate, batch_first=True)
        self.tokens, self.last, self.drop = nn.Dropout(rate), nn.Linear(4, 2), nn.Dropout(0.2)

    def forward(self, x):
        x = self.tokens(self.encoder(x + self.mha(x, x, x)[0]).tanh())
        share = F.dropout((x @ x.mT).softmax(-1), 0.4, self.training and self.tokens.p > 0)
        return self.last(self.drop((share @ x).mean(1)))


ATTENTION = "dropout of attention's probabilities is no mask of a weight"


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (EncoderLayer(0.2), f"scaled_dot_product_attention .* {ATTENTION}"),
        (Functions(lambda n, x: n.mha(x, x, x)[0], mha=nn.MultiheadAttention(4, 2, 0.1, batch_first=True)), ATTENTION),
        (Functions(lambda n, x: n.a(F.dropout((x @ x.mT).softmax(-1), 0.2, n.training) @ x)), ATTENTION),
    ],
)
def test_dropout_of_attention_is_refused_by_that_sentence(net, message):
    with pytest.raises(ValueError, match=message):
        from_torch(net.eval(), X3D)


def test_what_is_no_mask_is_left_out_where_that_is_asked_for():
    """All else is the network's own: passes of the same network with these rates at 0. It is warned of each."""
    torch.manual_seed(0)
    net, x = scaled(Mixed()).double().eval(), torch.randn(3, 5, 4, dtype=torch.float64)
    before = [getattr(layer, "p", getattr(layer, "dropout", None)) for layer in net.modules()]
    with pytest.warns(UserWarning, match="left out of Mixed, at rate 0: ") as caught:
        model, guide = from_torch(net, x, refused="leave out")
    (warning,) = [str(w.message) for w in caught if "left out" in str(w.message)]
    for part in ("MultiheadAttention 'mha' has dropout inside", "TransformerEncoderLayer 'encoder' has", "'tokens'"):
        assert part in warning
    assert warning.count(ATTENTION) == 2
    after = [getattr(layer, "p", getattr(layer, "dropout", None)) for layer in net.modules()]
    assert [b for b in before if isinstance(b, float)] == [a for a in after if isinstance(a, float)]
    assert {name: r.item() for name, r in guide.rates().items() if r.any()} == pytest.approx({"last.weight": 0.2})
    without = Mixed(0.0).double().eval()
    without.load_state_dict(net.state_dict())
    torch.testing.assert_close(median_of(model, guide)(x), net(x))
    passes = dropout_passes(without, x, PASSES)
    draws = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"])(x)["_RETURN"]
    assert_same_distribution(passes[:, 0], draws.reshape(passes.shape)[:, 0])


@pytest.mark.parametrize("by_position", [False, True])
def test_a_function_of_attention_loses_its_dropout(by_position):
    torch.manual_seed(0)
    net, x = scaled(EncoderLayer(0.2, by_position)).double().eval(), torch.randn(3, 5, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match=f"left out of EncoderLayer.*{ATTENTION}"):
        model, guide = from_torch(net, x, refused="leave out")
    without = EncoderLayer(0.0).double().eval()
    without.load_state_dict(net.state_dict())
    passes = dropout_passes(without, x, PASSES)
    draws = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"])(x)["_RETURN"]
    assert_same_distribution(passes[:, 0], draws.reshape(passes.shape)[:, 0])
    torch.testing.assert_close(median_of(model, guide)(x), net(x))
    converted = model.train()._modules["net"]  # in the mode in which it would drop
    assert torch.equal(converted(x), converted(x))


def test_only_dropouts_are_left_out():
    noisy = Functions(lambda n, x: n.a(n.drop(x) + torch.randn_like(x)))
    with pytest.raises(ValueError, match="draws random numbers"):
        from_torch(noisy, X4, refused="leave out")
    with pytest.raises(ValueError, match='refused must be "raise" or "leave out", but found'):
        from_torch(noisy, X4, refused="warn")
    with pytest.raises(ValueError, match="no active dropout"), pytest.warns(UserWarning, match="left out"):
        from_torch(Functions(lambda n, x: n.a(n.drop(x).tanh())), X4, refused="leave out")
