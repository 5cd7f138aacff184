"""Networks for images, counted by hand."""

import torch
from torch import nn

from models.classification import digit_cnn
from models.vision import vgg_features


def weights(net):
    return sum(p.numel() for p in net.parameters() if p.dim() > 1)


def test_a_vgg_of_ten_convolutions():
    net = vgg_features((8, 16), convolutions=3)
    assert weights(net) == 9 * (3 * 8 + 2 * 8 * 8 + 8 * 16 + 2 * 16 * 16)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 16 * 8 * 8)
    kinds = [type(layer) for layer in net[:3]]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_the_papers_networks_of_digits():
    """BBα section 5.2: 26 x 26, 24 x 24, 12 x 12 pixels and 4,608 features; Concrete dropout's notebook: 9,216."""
    alpha, concrete = digit_cnn((32, 32), 100), digit_cnn()
    assert weights(alpha) == 9 * 32 + 9 * 32 * 32 + 4608 * 100 + 100 * 10
    assert weights(concrete) == 9 * 32 + 9 * 32 * 64 + 9216 * 128 + 128 * 10
    assert [tuple(alpha[: i + 1](torch.zeros(1, 1, 28, 28)).shape[1:]) for i in (0, 2, 4)] == [
        (32, 26, 26),
        (32, 24, 24),
        (32, 12, 12),
    ]
