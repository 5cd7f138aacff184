"""Layers with masked weights against explicit loops with dense weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import AutoBernoulliDropout, BayesianModule, DropoutPredictive, MaskedUnits
from pyro_dropout.masks import BernoulliMask, ConcreteMask, DatumMask
from pyro_dropout.weights import MaskedWeight
from pyro_dropout.weights._linear import _few_kept
from tests.support.tensors import KEEP, bits, randn


def by_hand(loc, z, keep, dim):
    """``loc · diag(z) / keep`` for one weight without batch dimensions."""
    shape = [1] * loc.dim()
    shape[dim] = -1
    return loc * (z / keep).reshape(shape)


LAYERS = {
    "linear": (nn.Linear(3, 4), (3,), 1),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 7), 1),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), dilation=2, padding=2), (3, 6, 5), 1),
    "conv2d reflect": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 6, 5), 1),
    "conv3d": (nn.Conv3d(3, 4, 2), (3, 3, 4, 3), 1),
    "conv_transpose1d": (nn.ConvTranspose1d(3, 4, 3, stride=2), (3, 5), 0),
    "conv_transpose2d": (nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (3, 4, 5), 0),
    "conv_transpose3d": (nn.ConvTranspose3d(3, 4, 2), (3, 2, 3, 2), 0),
    "conv_transpose2d groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 4, 5), 0),
}


def call(layer, x, weight):
    """The layer's own forward with another weight."""
    layer = copy.deepcopy(layer).double()
    bias = layer.bias.detach()
    del layer._parameters["weight"], layer._parameters["bias"]
    layer.register_buffer("weight", weight)
    layer.register_buffer("bias", bias)
    return layer(x)


@pytest.mark.parametrize("name", LAYERS)
def test_one_mask_per_datum_equals_a_loop_over_data_with_dense_weights(name):
    layer, datum, dim = LAYERS[name]
    loc, x = layer.weight.detach().double(), randn(5, *datum)
    mask = DatumMask(BernoulliMask(0.4, units=datum[0]).expand(()))
    out = call(layer, x, MaskedWeight(loc, mask, KEEP, MaskedUnits(loc.dim(), dim)))
    z = mask.draw((5,))
    assert z.shape == (5, datum[0])
    assert 0 < z.mean() < 1
    loop = torch.cat([call(layer, x[n : n + 1], by_hand(loc, z[n].double(), 0.6, dim)) for n in range(5)])
    torch.testing.assert_close(out, loop, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch", [(), (6,), (6, 1), (2, 3, 1)])
def test_one_mask_per_draw_equals_a_loop_over_draws_with_dense_weights(name, batch):
    layer, datum, dim = LAYERS[name]
    loc, x, z = layer.weight.detach().double(), randn(5, *datum), bits(*batch, datum[0])
    out = call(layer, x, MaskedWeight(loc, z, KEEP, MaskedUnits(loc.dim(), dim)))
    outer = batch[:-1] if batch[-1:] == (1,) else batch
    assert out.shape[: len(outer) + 1] == (*outer, 5)
    flat, masks = out.reshape(-1, 5, *out.shape[len(outer) + 1 :]), z.reshape(-1, datum[0])
    loop = torch.stack([call(layer, x, by_hand(loc, mask, 0.6, dim)) for mask in masks])
    torch.testing.assert_close(flat, loop, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in LAYERS if "reflect" not in name])  # pads 4 dimensions at most
def test_batched_loc_is_one_network_per_plate_entry(name):
    layer, datum, dim = LAYERS[name]
    shape = layer.weight.shape
    loc, x, z = randn(2, 1, *shape), randn(2, 5, *datum), bits(3, 2, 1, datum[0])
    out = call(layer, x, MaskedWeight(loc, z, KEEP, MaskedUnits(len(shape), dim)))
    for draw in range(3):
        for r in range(2):
            one = call(layer, x[r], by_hand(loc[r, 0], z[draw, r, 0], 0.6, dim))
            torch.testing.assert_close(out[draw, r], one, rtol=0, atol=1e-12)


def test_grouped_convolution_masks_every_input_channel():
    layer = nn.Conv2d(4, 6, 3, groups=2).double()
    z, x = bits(4), randn(5, 4, 6, 6)
    weight = MaskedWeight(layer.weight.detach(), z, KEEP, MaskedUnits(4, groups=2))
    expected = F.conv2d(x * (z / 0.6)[:, None, None], layer.weight, groups=2)
    torch.testing.assert_close(F.conv2d(x, weight, groups=2), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(F.conv2d(x, weight.dense(), groups=2), expected, rtol=0, atol=1e-12)


def test_per_unit_keep_divides_each_unit_by_its_own():
    loc, z, keep, x = randn(4, 3), bits(3), torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64), randn(5, 3)
    torch.testing.assert_close(F.linear(x, MaskedWeight(loc, z, keep)), x @ (loc * z / keep).T)


def test_exact_values_of_a_masked_output():
    out = F.linear(torch.eye(3), MaskedWeight(torch.ones(1, 3), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.5])))
    assert out.flatten().tolist() == [2.0, 0.0, 2.0]  # each is 0 or x / keep


def test_gradients_reach_loc_mask_and_keep_as_through_the_dense_product():
    loc, z, keep = randn(4, 3).requires_grad_(), torch.rand(3).double().requires_grad_(), KEEP.clone().requires_grad_()
    x, probe = randn(5, 3), randn(5, 4)
    weight = MaskedWeight(loc, z, keep)
    assert weight.requires_grad
    structured = torch.autograd.grad((F.linear(x, weight) * probe).sum(), (loc, z, keep))
    dense = torch.autograd.grad((x @ (loc * z / keep).T * probe).sum(), (loc, z, keep))
    for a, b in zip(structured, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_input_is_not_changed():
    x = randn(5, 3)
    before = x.clone()
    F.linear(x, MaskedWeight(randn(4, 3), bits(3), KEEP))
    assert torch.equal(x, before)


def test_an_input_of_the_wrong_size_names_the_site_and_both_sizes():
    with pytest.raises(ValueError, match=r"'net.0.weight' masks 3 input units.*shape \(5, 2\)"):
        F.linear(randn(5, 2), MaskedWeight(randn(4, 3), bits(3), KEEP, site="net.0.weight"))


# Masks per datum


def test_a_function_draw_repeats_and_masks_per_datum_do_not():
    x = torch.ones(1, 200).expand(2, 200)  # the same datum twice
    loc, mask = torch.ones(1, 200), BernoulliMask(0.5, units=200)  # sums of 2's, exact
    drawn = F.linear(x, MaskedWeight(loc, mask(), mask.keep))
    assert drawn[0] == drawn[1]
    per_datum = F.linear(x, MaskedWeight(loc, DatumMask(mask), mask.keep))
    assert per_datum[0] != per_datum[1]


def test_masks_per_datum_are_reused_by_a_second_call_and_tied_over_time():
    mask = DatumMask(BernoulliMask(0.4, units=8))
    weight = MaskedWeight(torch.eye(8), mask, torch.tensor([0.6]))
    out = F.linear(torch.ones(5, 7, 8), weight)
    assert mask.draw((5,)).shape == (5, 8)
    assert bool((out == out[:, :1]).all())  # over time
    assert not bool((out == out[:1]).all())  # not over data
    assert bool((F.linear(torch.ones(5, 8), weight) == out[:, 0]).all())  # the same mask again


def test_masks_per_datum_with_particles_are_one_for_each_particle_and_datum():
    mask = DatumMask(BernoulliMask(0.4, units=50).expand((3, 1)))
    weight = MaskedWeight(torch.eye(50), mask, torch.tensor([0.6]))
    hidden = F.linear(torch.ones(5, 50), weight)
    assert hidden.shape == (3, 5, 50)
    assert len({tuple(row) for row in hidden.reshape(-1, 50).tolist()}) == 15
    assert F.linear(hidden, MaskedWeight(torch.eye(50), DatumMask(mask.distribution), torch.tensor([0.6]))).shape == (
        3,
        5,
        50,
    )


def test_relaxed_masks_per_datum():
    mask = DatumMask(ConcreteMask(0.3, units=3).expand(()))
    x, loc = torch.randn(5, 3), torch.randn(4, 3)
    out = F.linear(x, MaskedWeight(loc, mask, torch.tensor([0.7])))
    z = mask.draw((5,))
    torch.testing.assert_close(out, (x * z / 0.7) @ loc.T)


def per_datum(*shape, dim=1):
    mask = DatumMask(BernoulliMask(0.4, units=shape[dim]))
    return MaskedWeight(torch.randn(*shape), mask, torch.tensor([0.6]), MaskedUnits(dim=dim), site="net.weight")


X = torch.zeros(2, 5, 4)


@pytest.mark.parametrize(
    "operation",
    [
        lambda: F.multi_head_attention_forward(
            X, X, X, 4, 2, per_datum(12, 4), None, None, None, False, 0.0, torch.randn(4, 4), None
        ),
        lambda: F.embedding(torch.tensor([1]), per_datum(3, 4, dim=0)),
    ],
    ids=["fused attention", "embedding"],
)
def test_one_mask_per_datum_is_refused_where_no_input_can_be_masked(operation):
    with pytest.raises(NotImplementedError, match=r"'net.weight' has one mask per datum.*masks=\"draw\""):
        operation()


# Units that are kept


@pytest.mark.parametrize("units", ["one rate", "rates by unit"])
@pytest.mark.parametrize("bias", ["none", "one", "by draw"])
def test_units_that_are_dropped_cost_nothing_and_change_nothing(units, bias):
    """Large layers at high rates take the kept units out; what comes out is the product with the dense weight."""
    draws, rows, inputs, outputs = 3, 300, 700, 400
    loc, x = torch.randn(outputs, inputs, dtype=torch.float64), torch.randn(rows, inputs, dtype=torch.float64)
    keep = torch.full((1 if units == "one rate" else inputs,), 0.4, dtype=torch.float64)
    z = torch.bernoulli(torch.full((draws, 1, inputs), 0.4, dtype=torch.float64))
    z[1] = 0.0
    weight = MaskedWeight(loc, z, keep, merged=(draws, rows))
    b = {"none": None, "one": torch.randn(outputs), "by draw": torch.randn(draws, 1, outputs)}[bias]
    b = None if b is None else b.double()
    merged = x.expand(draws, rows, inputs).flatten(0, 1)
    with torch.no_grad():
        found = torch.nn.functional.linear(merged, weight, b).unflatten(0, (draws, rows))
    expected = x @ (loc * z / 0.4).mT + (0 if b is None else b)
    torch.testing.assert_close(found, expected)
    assert _few_kept(weight)


def test_kept_units_under_autocast():
    """A wide layer at a high rate, whose kept units are taken out: in the type of the products around it."""
    inside: list[torch.dtype] = []
    net, x = nn.Sequential(nn.Linear(600, 600), nn.Identity()), torch.randn(300, 600)
    net[1].register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    module = BayesianModule(net)
    guide = AutoBernoulliDropout(module, rate=0.4)
    guide(x)
    predict = DropoutPredictive(module, guide=guide, num_samples=20, return_sites=["_RETURN"], seed=0)
    expected = predict(x)["_RETURN"]
    inside.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = predict(x)["_RETURN"]
    assert set(inside) == {torch.bfloat16}
    assert found.dtype == torch.float32, "what leaves the module"
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert not torch.equal(found, expected)


def test_masked_outputs_under_autocast_have_its_type():
    mask, keep = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0.6])
    weight = MaskedWeight(torch.randn(4, 3), mask, keep, MaskedUnits(dim=0))
    bias = MaskedWeight(torch.randn(4), mask, keep, MaskedUnits(1, dim=0))
    x = torch.randn(5, 3)
    exact = F.linear(x, weight, bias)
    for b in (bias, None):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = F.linear(x, weight, b)
        assert found.dtype == torch.bfloat16
        expected = exact if b is not None else F.linear(x, weight)
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
