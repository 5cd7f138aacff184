"""The masked weight as a tensor: what keeps its structure, what sees the dense product, what is refused."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from pyro_dropout.weights import MaskedUnits, MaskedWeight, Switch
from tests.support.tensors import KEEP, bits, randn


def outputs():
    return Switch(bits(4), torch.tensor([0.7], dtype=torch.float64), MaskedUnits(dim=0), "outputs")


@pytest.mark.parametrize("other", [lambda: None, outputs], ids=["of inputs", "of inputs and outputs"])
def test_batch_operations_keep_the_structure_and_the_values(other):
    loc = randn(4, 3)
    weights = [MaskedWeight(loc, bits(3), KEEP, other=other()) for _ in range(6)]
    stacked = torch.stack(weights)
    dense = torch.stack([w.dense() for w in weights])
    cases = {
        "stack": (stacked, dense),
        "index": (stacked[2], dense[2]),
        "negative": (stacked[-1], dense[-1]),
        "slice": (stacked[1:4], dense[1:4]),
        "step": (stacked[None, ::2], dense[None, ::2]),
        "draws": (stacked[torch.tensor([5, 0, 0])], dense[[5, 0, 0]]),
        "reshape": (stacked.reshape(2, 3, 1, 4, 3), dense.reshape(2, 3, 1, 4, 3)),
        "reshape -1": (stacked.reshape((2, -1, 4, 3)), dense.reshape(2, 3, 4, 3)),
        "view": (stacked.view(3, 2, 4, 3), dense.view(3, 2, 4, 3)),
        "expand": (stacked.expand(2, 6, 4, 3), dense.expand(2, 6, 4, 3)),
        "expand -1": (stacked.expand(2, -1, -1, -1), dense.expand(2, -1, -1, -1)),
        "unsqueeze": (stacked.unsqueeze(1), dense.unsqueeze(1)),
        "unsqueeze -3": (stacked.unsqueeze(-3), dense.unsqueeze(-3)),
        "squeeze": (stacked.unsqueeze(1).squeeze(1), dense),
        "detach": (stacked.detach(), dense),
        "clone": (stacked.clone(), dense),
        "to": (stacked.to(torch.float32), dense.to(torch.float32)),
        "deepcopy": (copy.deepcopy(stacked), dense),
        "pickle": (pickle.loads(pickle.dumps(stacked)), dense),
        "stack again": (torch.stack([stacked, stacked], 1), torch.stack([dense, dense], 1)),
    }
    for name, (weight, values) in cases.items():
        assert isinstance(weight, MaskedWeight), name
        assert weight.shape == values.shape, name
        assert weight.loc.shape == (4, 3), name
        torch.testing.assert_close(weight.dense(), values, msg=name)


def test_batch_operations_with_batched_loc():
    loc, z = randn(2, 1, 4, 3), bits(5, 2, 1, 3)
    weight = MaskedWeight(loc, z, KEEP)
    dense = weight.dense()
    for result, values in (
        (weight[1], dense[1]),
        (weight[:, 1], dense[:, 1]),
        (weight.squeeze(2), dense.squeeze(2)),
        (weight.reshape(10, 4, 3), dense.reshape(10, 4, 3)),
        (torch.stack([weight, weight]), torch.stack([dense, dense])),
    ):
        assert isinstance(result, MaskedWeight)
        torch.testing.assert_close(result.dense(), values)


def test_stacking_a_thousand_draws_stores_one_loc():
    loc = torch.randn(512, 512)
    stacked = torch.stack([MaskedWeight(loc, torch.ones(512), torch.tensor([0.9])) for _ in range(1000)])
    assert stacked.shape == (1000, 512, 512)
    assert stacked.loc.data_ptr() == loc.data_ptr()
    assert stacked.mask.shape == (1000, 512)
    with torch._C.DisableTorchFunctionSubclass():
        nbytes = stacked.untyped_storage().nbytes()
    assert nbytes == 4  # one float stands behind its own shape


def test_other_operations_see_the_dense_tensor():
    weight = MaskedWeight(randn(4, 3), bits(3), KEEP)
    dense = weight.dense()
    assert not isinstance(weight + 1, MaskedWeight)
    for a, b in (
        (weight * 2, dense * 2),
        (weight.T, dense.T),
        (torch.einsum("oi,i->o", weight, torch.ones(3).double()), dense.sum(1)),
        (weight[0, 1], dense[0, 1]),
        (torch.cat([weight, weight]), torch.cat([dense, dense])),
        (F.embedding(torch.tensor([1, 3]), weight), dense[[1, 3]]),
        (weight.norm(), dense.norm()),
        (weight.reshape(-1), dense.reshape(-1)),
    ):
        torch.testing.assert_close(a, b)


def test_metadata_is_a_tensors_own():
    weight = MaskedWeight(torch.randn(4, 3), torch.ones(7, 1, 3), torch.tensor([0.5]))
    assert (weight.shape, weight.dim(), weight.size(-1), len(weight)) == ((7, 1, 4, 3), 4, 3, 7)
    assert (weight.dtype, weight.device.type, weight.numel()) == (torch.float32, "cpu", 84)
    assert isinstance(weight, torch.Tensor)


@pytest.mark.parametrize("change", [lambda w: w.mul_(2), lambda w: w.__setitem__(0, 0.0), lambda w: w.zero_()])
def test_in_place_changes_raise(change):
    with pytest.raises(TypeError, match=r"in place.*change its loc or mask"):
        change(MaskedWeight(randn(4, 3), bits(3), KEEP))


def test_a_mask_of_the_wrong_size_names_the_site_and_both_sizes():
    with pytest.raises(ValueError, match=r"'net.0.weight'.*shape \(4,\).*has 3 masked units"):
        MaskedWeight(randn(4, 3), bits(4), KEEP, site="net.0.weight")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Switch(torch.ones(3), torch.ones(1), MaskedUnits()), "along another dimension than the first"),
        (
            Switch(torch.ones(3), torch.ones(1), MaskedUnits(dim=0)),
            r"shape \(3,\), but a weight of shape .* has 4 masked",
        ),
        (Switch(torch.ones(4), torch.ones(3), MaskedUnits(dim=0)), r"keep must be \[..., 1\] or \[..., 4\]"),
        (Switch(torch.ones(1, 4), torch.ones(1), MaskedUnits(3, dim=0)), "4 masked units|another dimension"),
    ],
)
def test_a_second_mask_that_does_not_fit_raises(other, message):
    with pytest.raises(ValueError, match=message):
        MaskedWeight(torch.ones(4, 3), torch.ones(3), torch.ones(1), other=other)


def test_a_second_mask_of_another_kind_raises():
    with pytest.raises(TypeError, match="other must be a Switch, a second mask, but found"):
        MaskedWeight(torch.ones(4, 3), torch.ones(3), torch.ones(1), other=torch.ones(4))
