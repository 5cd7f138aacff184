"""The transformer against PyTorch's own."""

import pytest
import torch
from torch import nn

from models.transformer import Block, VisionTransformer


def test_a_block_is_an_encoder_layer_of_pytorch():
    ours = Block(width=8, heads=2)
    theirs = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        for kind in ("weight", "bias"):
            stacked = torch.cat([getattr(layer, kind) for layer in (ours.q, ours.k, ours.v)])
            getattr(theirs.self_attn, f"in_proj_{kind}").copy_(stacked)
    pairs = [
        (theirs.self_attn.out_proj, ours.proj),
        (theirs.linear1, ours.hidden),
        (theirs.linear2, ours.out),
        (theirs.norm1, ours.before_attention),
        (theirs.norm2, ours.before_mlp),
    ]
    for their, our in pairs:
        nn.init.normal_(our.bias)
        nn.init.normal_(our.weight)
        their.load_state_dict(our.state_dict())
    h = torch.randn(5, 7, 8)
    torch.testing.assert_close(ours(h), theirs(h))


def test_shapes():
    net = VisionTransformer(tokens=6, features=4, classes=3, width=8, depth=2, heads=2)
    x = torch.randn(2, 5, 6, 4)
    assert net(x[0]).shape == (5, 3)
    torch.testing.assert_close(net(x), torch.stack([net(x[0]), net(x[1])]))  # as draws would be


def test_the_place_of_a_row_counts():
    net = VisionTransformer(tokens=6, features=4, classes=3, width=8)
    x = torch.randn(5, 6, 4)
    assert (net(x) - net(x.flip(1))).abs().max() > 1e-3
    nn.init.zeros_(net.positions)
    torch.testing.assert_close(net(x), net(x.flip(1)))


def test_heads_that_do_not_share_the_width():
    with pytest.raises(ValueError, match="width must be a multiple of heads, but found 8 and 3"):
        VisionTransformer(width=8, heads=3)
