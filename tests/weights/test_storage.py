"""What reads a masked weight without asking it gets NaN, never memory; what only reads it works."""

import pytest
import torch
from torch import nn

from pyro_dropout.weights import MaskedWeight


def weight(batch=()):
    torch.manual_seed(0)
    return MaskedWeight(torch.randn(2, 3), torch.bernoulli(torch.full((*batch, 3), 0.5)), torch.tensor([0.5]))


def test_vmap_gets_nan_or_the_dense_values():
    draws = weight((4,))
    found = torch.vmap(lambda w: (w**2).sum())(draws)
    expected = (draws.dense() ** 2).sum((1, 2))
    assert found.isnan().all() or torch.equal(found, expected)


def test_storage_is_no_memory():
    junk = [torch.full((1,), 3e37) for _ in range(100)]  # what freed memory would show
    del junk
    assert torch._C._TensorBase.as_subclass(weight(), torch.Tensor).isnan().all()


@pytest.mark.parametrize("copy", ["setitem", "copy_", "add_", "out of place"])
def test_other_tensors_take_its_values_in_place(copy):
    w = weight()
    target = torch.ones(2, 3)
    if copy == "setitem":
        target[:] = w
    elif copy == "copy_":
        target.copy_(w)
    elif copy == "add_":
        target.add_(w).sub_(1.0)
    else:
        target = target + w - 1.0
    torch.testing.assert_close(target, w.dense())


def test_a_state_takes_its_values():
    w, layer = weight(), nn.Linear(3, 2, bias=False)
    layer.load_state_dict({"weight": w})
    torch.testing.assert_close(layer.weight.detach(), w.dense())
    layer.weight.data.copy_(2 * w)
    torch.testing.assert_close(layer.weight.detach(), 2 * w.dense())


@pytest.mark.parametrize("change", [lambda w: w.add_(1.0), lambda w: w.__setitem__(0, 1.0), lambda w: w.zero_()])
def test_it_is_not_changed_in_place_itself(change):
    with pytest.raises(TypeError, match="would change a masked weight in place"):
        change(weight())
