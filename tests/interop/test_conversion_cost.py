"""What ``from_torch`` costs beside the network: its weights twice, in the model and in the guide, and a few passes."""

import subprocess
import sys

import pyro
import pytest
import torch
from torch import nn

from pyro_dropout import from_torch
from tests.support.products import Products

MEMORY, PASSES = 2.5, 5


def vgg11(hidden=4096):
    """VGG-11's layers (Simonyan & Zisserman 2015)."""
    layers, channels = [], 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    for inputs in (512 * 49, hidden):
        layers += [nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(hidden, 1000)).eval()


def small():
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1)), torch.randn(2, 3)


def memory(hidden, size):
    """The growth of the process's largest memory by a conversion, in networks; printed."""
    from resource import RUSAGE_SELF, getrusage

    from_torch(*small())  # what is imported on demand
    pyro.clear_param_store()
    net, x = vgg11(hidden), torch.randn(2, 3, size, size)
    with torch.no_grad():
        net(x)
    before = getrusage(RUSAGE_SELF).ru_maxrss
    kept = from_torch(net, x)
    grown = getrusage(RUSAGE_SELF).ru_maxrss - before
    print(1024 * grown / sum(p.numel() * p.element_size() for p in net.parameters()), len(kept))


@pytest.mark.skipif(sys.platform != "linux", reason="the largest memory of a process has another unit elsewhere")
@pytest.mark.parametrize(
    ("hidden", "size"), [(2048, 32), pytest.param(4096, 224, marks=pytest.mark.slow, id="as published")]
)
def test_a_conversion_takes_two_and_a_half_networks_of_memory(hidden, size):
    """In a process of its own, whose largest memory so far is known."""
    code = f"from tests.interop.test_conversion_cost import memory; memory({hidden}, {size})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(out.split()[0]) < MEMORY


@pytest.mark.parametrize("make", [small, lambda: (vgg11(64), torch.randn(2, 3, 64, 64))], ids=["small", "vgg11"])
def test_a_conversion_takes_a_few_passes(make):
    """By operations, which are the same on every machine."""
    net, x = make()
    with Products() as one:
        net(x)
    with Products() as all_of_them:
        from_torch(net, x)
    assert one.count <= all_of_them.count <= PASSES * one.count


def test_what_is_not_copied_is_not_shared():
    """Training the guide leaves the network and the model's initial values as they were."""
    net, x = small()
    model, guide = from_torch(net, x)
    kept = {p.data_ptr() for p in guide.parameters()}
    others = [*net.parameters(), *(slot.value for slot in model._slots.values())]
    assert not kept & {p.data_ptr() for p in others}
    assert not {p.data_ptr() for p in net.parameters()} & {slot.value.data_ptr() for slot in model._slots.values()}
    assert all(p.requires_grad for p in guide.parameters())
