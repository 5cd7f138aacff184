"""Which units a mask switches: their number and their places, against loops over entries and masked inputs."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import MaskedUnits
from tests.support.tensors import randn

CASES = {
    "linear": (nn.Linear(3, 4), MaskedUnits(), 3),
    "conv1d": (nn.Conv1d(3, 4, 2), MaskedUnits(3), 3),
    "conv2d": (nn.Conv2d(3, 4, (2, 1)), MaskedUnits(4), 3),
    "conv2d in groups": (nn.Conv2d(6, 4, 2, groups=2), MaskedUnits(4, groups=2), 6),
    "conv1d depthwise": (nn.Conv1d(3, 6, 2, groups=3), MaskedUnits(3, groups=3), 3),
    "conv3d in groups": (nn.Conv3d(4, 2, 1, groups=2), MaskedUnits(5, groups=2), 4),
    "conv_transpose1d": (nn.ConvTranspose1d(3, 4, 2), MaskedUnits(3, dim=0), 3),
    "conv_transpose2d in groups": (nn.ConvTranspose2d(4, 6, 2, groups=2), MaskedUnits(4, dim=0), 4),
}
INPUTS = {2: (5,), 3: (5, 4), 4: (5, 4, 3), 5: (5, 2, 3, 2)}


def unit_of(name, index):
    """The input unit that a weight's entry takes its input from."""
    layer = CASES[name][0]
    if "transpose" in name:
        return index[0]  # [in, out / groups, ...]
    if isinstance(layer, nn.Linear):
        return index[1]
    return index[0] // (layer.out_channels // layer.groups) * (layer.in_channels // layer.groups) + index[1]


@pytest.mark.parametrize("name", CASES)
def test_units_are_the_layers_inputs(name):
    layer, units, count = CASES[name]
    assert units.event_dim == layer.weight.dim()
    assert units.count(layer.weight.shape) == count


@pytest.mark.parametrize("batch", [(), (2,), (2, 1)])
@pytest.mark.parametrize("name", CASES)
def test_each_entry_of_a_weight_gets_the_value_of_its_unit(name, batch):
    layer, units, count = CASES[name]
    shape = tuple(layer.weight.shape)
    per_unit = randn(*batch, count)
    found = units.spread(per_unit, shape).expand(*batch, *shape)
    expected = torch.empty(*batch, *shape, dtype=torch.float64)
    for index in itertools.product(*map(range, shape)):
        expected[(..., *index)] = per_unit[..., unit_of(name, index)]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("batch", [(), (2, 1)])
@pytest.mark.parametrize("name", CASES)
def test_one_value_is_that_of_all_units(name, batch):
    layer, units, _ = CASES[name]
    shape = tuple(layer.weight.shape)
    one = randn(*batch, 1)
    expected = one.reshape(*batch, *(1,) * len(shape)).expand(*batch, *shape)
    assert torch.equal(units.spread(one, shape).expand(*batch, *shape), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_spread_mask_is_a_mask_of_the_layers_input(name):
    """PyTorch's own layer on a masked input is the layer with masked weights on the whole input."""
    layer, units, count = CASES[name]
    layer = layer.double()
    z = torch.arange(count, dtype=torch.float64) % 2
    x = randn(INPUTS[units.event_dim][0], count, *INPUTS[units.event_dim][1:])
    expected = layer(x * z.reshape(-1, *(1,) * (units.event_dim - 2)))
    masked = {"weight": layer.weight * units.spread(z, tuple(layer.weight.shape))}
    torch.testing.assert_close(torch.func.functional_call(layer, masked, (x,)), expected)


def test_values_by_hand():
    """Two groups of two inputs, each group with two outputs."""
    units = MaskedUnits(3, groups=2)
    spread = units.spread(torch.tensor([1.0, 2.0, 3.0, 4.0]), (4, 2, 1))
    assert spread.squeeze(-1).tolist() == [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [3.0, 4.0]]
    spread = MaskedUnits(3, dim=0).spread(torch.tensor([1.0, 2.0, 3.0, 4.0]), (4, 2, 1))
    assert spread.expand(4, 2, 1).squeeze(-1).tolist() == [[k, k] for k in (1.0, 2.0, 3.0, 4.0)]


def test_without_more_said_a_mask_is_over_the_columns_of_a_matrix():
    assert MaskedUnits() == (2, 1, 1, 1)
    ones = torch.ones(2, 3)
    spread = MaskedUnits().spread(torch.tensor([1.0, 0.0, 1.0]), (2, 3))
    assert F.linear(torch.eye(3), ones * spread).tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
