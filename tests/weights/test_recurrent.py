"""Recurrent layers with masked weights against PyTorch's own kernels, with each draw's or datum's dense weights."""

import itertools

import pytest
import torch
from torch import nn

from pyro_dropout.masks import BernoulliMask, ConcreteMask, DatumMask
from pyro_dropout.weights import MaskedWeight
from tests.support.tensors import bits, randn

INPUTS, UNITS, TIMES = 3, 4, 3
WAYS = pytest.mark.parametrize("draws", [2, 4], ids=["draw by draw", "time by time"])  # as few draws as times, or more
KINDS = {
    "lstm": (nn.LSTM, {}, torch.lstm),
    "lstm projected": (nn.LSTM, {"proj_size": 2}, torch.lstm),
    "gru": (nn.GRU, {}, torch.gru),
    "rnn tanh": (nn.RNN, {}, torch.rnn_tanh),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}, torch.rnn_relu),
}
CELLS = {
    "lstm": (nn.LSTMCell, {}, torch.lstm_cell),
    "gru": (nn.GRUCell, {}, torch.gru_cell),
    "rnn tanh": (nn.RNNCell, {}, torch.rnn_tanh_cell),
    "rnn relu": (nn.RNNCell, {"nonlinearity": "relu"}, torch.rnn_relu_cell),
}
WHICH = {
    "all": lambda name: True,
    "inputs": lambda name: "_ih" in name,
    "states": lambda name: "_hh" in name,
    "first layer": lambda name: "_l0" in name,
    "last layer": lambda name: "_l1" in name or name.endswith("_ih_l0"),
    "forwards": lambda name: not name.endswith("_reverse"),
    "backwards, or what is projected": lambda name: "_reverse" in name or "_hr" in name or name == "weight_hh_l0",
}


def build(kind, kinds=KINDS, **options):
    make, own, kernel = kinds[kind]
    layer = make(INPUTS, UNITS, **own, **options).double().requires_grad_(False)
    for p in layer.parameters():
        p.normal_()
    return layer, kernel


def masked(layer, which, batch, rate=0.4):
    """A mask ``[*batch, units]`` and a keep probability of its own for each unit of each weight that ``which`` says."""
    z, keep = {}, {}
    for name, p in layer.named_parameters():
        if p.dim() == 2 and which(name):
            z[name] = bits(*batch, p.shape[1])
            keep[name] = torch.rand(p.shape[1], dtype=torch.float64) * 0.5 + 0.5
    return z, keep


def by_hand(layer, z, keep, index):
    """The dense weights of one draw."""
    return {n: p * (z[n][index] / keep[n]) if n in z else p for n, p in layer.named_parameters()}


def states(layer, rows):
    sizes = [layer.proj_size or UNITS, UNITS] if isinstance(layer, nn.LSTM) else [UNITS]
    number = layer.num_layers * (1 + layer.bidirectional)
    return tuple(randn(number, rows, size) for size in sizes)


def one(hx):
    return hx if len(hx) == 2 else hx[0]


def flat(out):
    """Outputs and last states, ``[batch, ...]`` of the batch-first output."""
    return out[0], *(out[1] if isinstance(out[1], tuple) else out[1:])


def structured(layer, kernel, weights, x, hx, dropout=0.0):
    params = [weights.get(n, p) for n, p in layer.named_parameters()]
    options = (layer.num_layers, dropout, layer.training, layer.bidirectional, layer.batch_first)
    return flat(kernel(x, one(hx), params, layer.bias, *options))


def reference(layer, dense, x, hx):
    return flat(torch.func.functional_call(layer, dense, (x, one(hx))))


OPTIONS = list(itertools.product([False, True], [1, 2], [False, True], [False, True]))


@WAYS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bidirectional", "num_layers", "batch_first", "bias"), OPTIONS)
def test_draws_in_one_batch_are_each_draw_with_its_dense_weights(
    kind, bidirectional, num_layers, batch_first, bias, draws
):
    layer, kernel = build(kind, bidirectional=bidirectional, num_layers=num_layers, batch_first=batch_first, bias=bias)
    rows, at = 5, 0 if batch_first else 1
    for which in WHICH.values():
        z, keep = masked(layer, which, (draws, 1))
        x, hx = randn(rows, TIMES, INPUTS), states(layer, rows)
        x = x if batch_first else x.transpose(0, 1)
        expected = [reference(layer, by_hand(layer, z, keep, (k, 0)), x, hx) for k in range(draws)]
        expected = [torch.cat(each, at if i == 0 else 1) for i, each in enumerate(zip(*expected, strict=True))]
        for trunk in (False, True):  # the inputs once for all draws, or for each
            weights = {
                n: MaskedWeight(layer.get_parameter(n), z[n], keep[n], merged=(draws, rows), trunk=int(trunk))
                for n in z
            }
            times = [1, 1, 1]
            times[at] = 1 if trunk else draws
            every = tuple(h.repeat(1, times[at], 1) for h in hx)
            found = structured(layer, kernel, weights, x.repeat(*times), every)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@WAYS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", WHICH)
def test_gradients_reach_means_masks_keeps_inputs_and_states(kind, which, draws):
    layer, kernel = build(kind, num_layers=2, bidirectional=True, batch_first=True)
    rows = 3
    z, keep = masked(layer, WHICH[which], (draws, 1))
    z = {n: t + 0.3 for n, t in z.items()}  # no unit without a gradient
    x, hx = randn(rows, TIMES, INPUTS).requires_grad_(), tuple(h.requires_grad_() for h in states(layer, rows))
    layer.requires_grad_(True)
    leaves = [x, *hx, *layer.parameters(), *(t.requires_grad_() for t in (*z.values(), *keep.values()))]
    weights = {n: MaskedWeight(layer.get_parameter(n), z[n], keep[n], merged=(draws, rows), trunk=1) for n in z}
    found = structured(layer, kernel, weights, x, hx)
    dense = [reference(layer, by_hand(layer, z, keep, (k, 0)), x, hx) for k in range(draws)]
    expected = [torch.cat(each, min(i, 1)) for i, each in enumerate(zip(*dense, strict=True))]
    probes = [torch.randn_like(t) for t in expected]
    gradients = [
        torch.autograd.grad(sum((t * p).sum() for t, p in zip(out, probes, strict=True)), leaves)
        for out in (found, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
        assert a.abs().sum() > 0


def undrawn(layer, which, rates=0.4, make=BernoulliMask, plates=()):
    names = [n for n, p in layer.named_parameters() if p.dim() == 2 and which(n)]
    return {n: DatumMask(make(rates, units=layer.get_parameter(n).shape[1]).expand(plates)) for n in names}


@pytest.mark.parametrize("make", [BernoulliMask, ConcreteMask])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("batch_first", [False, True])
def test_masks_per_datum_are_each_row_with_its_dense_weights_at_all_times(kind, which, batch_first, make):
    layer, kernel = build(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
    rows, keep = 4, torch.tensor([0.6], dtype=torch.float64)
    masks = undrawn(layer, WHICH[which], make=make)
    x, hx = randn(rows, TIMES, INPUTS), states(layer, rows)
    x = x if batch_first else x.transpose(0, 1)
    weights = {n: MaskedWeight(layer.get_parameter(n), mask, keep) for n, mask in masks.items()}
    found = structured(layer, kernel, weights, x, hx)
    z = {n: mask.draw((rows,)).double() for n, mask in masks.items()}
    assert all(len(mask.draws) == 1 for mask in masks.values())
    assert any(len(set(map(tuple, each.tolist()))) > 1 for each in z.values())
    for n in range(rows):
        row = (x[n : n + 1] if batch_first else x[:, n : n + 1], tuple(h[:, n : n + 1] for h in hx))
        expected = reference(layer, by_hand(layer, z, dict.fromkeys(z, keep), n), *row)
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            a = a[n : n + 1] if i == 0 and batch_first else a[:, n : n + 1]
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # masks are of float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("plates", [(), (3, 1)], ids=["one for all draws", "of each draw"])
def test_masks_per_datum_of_several_draws(kind, which, plates):
    layer, kernel = build(kind, bidirectional=True, batch_first=True)
    draws, rows, keep = 3, 2, torch.tensor([0.6], dtype=torch.float64)
    masks = undrawn(layer, WHICH[which], plates=plates)
    x, hx = randn(rows, TIMES, INPUTS), states(layer, rows)
    weights = {
        n: MaskedWeight(layer.get_parameter(n), mask, keep, merged=(draws, rows), trunk=1) for n, mask in masks.items()
    }
    found = structured(layer, kernel, weights, x, hx)
    z = {n: m.draw((3, 2) if plates else (3, 1)).double().expand(3, 2, -1) for n, m in masks.items()}
    for k, n in itertools.product(range(draws), range(rows)):
        dense = by_hand(layer, z, dict.fromkeys(z, keep), (k, n))
        expected = reference(layer, dense, x[n : n + 1], tuple(h[:, n : n + 1] for h in hx))
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            torch.testing.assert_close(a.movedim(min(i, 1), 0)[k * rows + n], b.movedim(min(i, 1), 0)[0])


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("which", ["all", "inputs", "states"])
@pytest.mark.parametrize("bias", [False, True])
def test_cells(kind, which, bias):
    layer, cell = build(kind, CELLS, bias=bias)
    draws, rows = 3, 2
    z, keep = masked(layer, WHICH[which], (draws, 1))
    x, hx = randn(rows, INPUTS), tuple(randn(rows, UNITS) for _ in range(2 if kind == "lstm" else 1))
    expected = [torch.func.functional_call(layer, by_hand(layer, z, keep, (k, 0)), (x, one(hx))) for k in range(draws)]
    for trunk in (False, True):
        weights = {
            n: MaskedWeight(layer.get_parameter(n), z[n], keep[n], merged=(draws, rows), trunk=int(trunk)) for n in z
        }
        times = 1 if trunk else draws
        state = one(tuple(h.repeat(times, 1) for h in hx))
        found = cell(x.repeat(times, 1), state, *(weights.get(n, p) for n, p in layer.named_parameters()))
        if kind == "lstm":
            pairs = zip(found, map(torch.cat, zip(*expected, strict=True)), strict=True)
        else:
            pairs = [(found, torch.cat(expected))]
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", CELLS)
def test_cells_with_masks_per_datum_have_one_mask_at_all_times(kind):
    layer, cell = build(kind, CELLS)
    rows, keep = 3, torch.tensor([0.6], dtype=torch.float64)
    masks = undrawn(layer, WHICH["all"])
    params = [MaskedWeight(p, masks[n], keep) if n in masks else p for n, p in layer.named_parameters()]
    x, hx = randn(TIMES, rows, INPUTS), tuple(randn(rows, UNITS) for _ in range(2 if kind == "lstm" else 1))
    found = one(hx)
    for t in range(TIMES):
        found = cell(x[t], found, *params)
    z = {n: mask.draw((rows,)).double() for n, mask in masks.items()}
    for n in range(rows):
        expected = one(tuple(h[n : n + 1] for h in hx))
        for t in range(TIMES):
            dense = by_hand(layer, z, dict.fromkeys(z, keep), n)
            expected = torch.func.functional_call(layer, dense, (x[t, n : n + 1], expected))
        for a, b in zip(*(out if kind == "lstm" else (out,) for out in (found, expected)), strict=True):
            torch.testing.assert_close(a[n : n + 1], b)


@pytest.mark.parametrize("draws", [1, 3], ids=["draw by draw", "time by time"])
@pytest.mark.parametrize("kind", KINDS)
def test_plates_of_networks_with_draws_of_each(kind, draws):
    """Means and biases of two networks."""
    layer, kernel = build(kind, num_layers=2, bidirectional=True, batch_first=True)
    nets, rows = 2, 2
    z, keep = masked(layer, WHICH["all"], (draws, nets, 1))
    x, hx = randn(rows, TIMES, INPUTS), states(layer, rows)
    locs = {n: randn(nets, 1, *p.shape) for n, p in layer.named_parameters()}
    values = {
        n: MaskedWeight(locs[n], z[n], keep[n], merged=(draws, nets, rows), trunk=2) if n in z else locs[n]
        for n in locs
    }
    found = structured(layer, kernel, values, x, hx)
    for i, (k, r) in enumerate(itertools.product(range(draws), range(nets))):
        dense = {n: loc[r, 0] * (z[n][k, r, 0] / keep[n] if n in z else 1) for n, loc in locs.items()}
        for j, (a, b) in enumerate(zip(found, reference(layer, dense, x, hx), strict=True)):
            torch.testing.assert_close(a.movedim(min(j, 1), 0)[rows * i : rows * (i + 1)], b.movedim(min(j, 1), 0))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # PyTorch's, of any bfloat16
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@WAYS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["all", "inputs", "states"])
def test_half_precision(kind, which, dtype, draws):
    layer, kernel = build(kind, batch_first=True)
    rows = 3
    z, keep = masked(layer, WHICH[which], (draws, 1))
    z, keep = ({n: t.to(dtype) for n, t in each.items()} for each in (z, keep))
    layer, x, hx = layer.to(dtype), randn(rows, TIMES, INPUTS).to(dtype), states(layer, rows)
    hx = tuple(h.to(dtype) for h in hx)
    weights = {n: MaskedWeight(layer.get_parameter(n), z[n], keep[n], merged=(draws, rows), trunk=1) for n in z}
    found = structured(layer, kernel, weights, x, hx)
    assert all(t.dtype == dtype for t in found)
    double = layer.double()
    exact = ({n: t.double() for n, t in each.items()} for each in (z, keep))
    z, keep = exact
    for k in range(draws):
        expected = reference(double, by_hand(double, z, keep, (k, 0)), x.double(), tuple(h.double() for h in hx))
        size = max(1.0, expected[0].abs().max().item())
        out = found[0][rows * k : rows * (k + 1)].double()
        assert (out - expected[0]).abs().max() < 30 * torch.finfo(dtype).eps * size


def test_dropout_between_layers_is_pytorchs():
    """At one time, where numbers are drawn in PyTorch's order."""
    layer, kernel = build("lstm", num_layers=2, batch_first=True)
    layer.dropout = 0.5
    keep = torch.ones(1, dtype=torch.float64)
    weights = {n: MaskedWeight(layer.get_parameter(n), m, keep) for n, m in undrawn(layer, WHICH["all"], 0.0).items()}
    x, hx = randn(40, 1, INPUTS), states(layer, 40)
    for training in (True, False):
        layer.train(training)
        structured(layer, kernel, weights, x, hx)  # draws masks
        torch.manual_seed(1)
        found = structured(layer, kernel, weights, x, hx, dropout=0.5)
        torch.manual_seed(1)
        for a, b in zip(found, reference(layer, {}, x, hx), strict=True):
            torch.testing.assert_close(a, b)
    assert not torch.allclose(found[0], structured(layer.train(), kernel, weights, x, hx, dropout=0.5)[0])


def packed(layer, weights):
    sequence = nn.utils.rnn.pack_padded_sequence(randn(2, TIMES, INPUTS), torch.tensor([3, 2]), batch_first=True)
    params = [weights.get(n, p) for n, p in layer.named_parameters()]
    return torch.gru(
        sequence.data, sequence.batch_sizes, torch.zeros(1, 2, UNITS).double(), params, True, 1, 0.0, *(False, False)
    )


def test_packed_sequences_take_one_draw_and_no_masks_per_datum():
    layer, _ = build("gru")
    z, keep = masked(layer, WHICH["all"], ())
    torch.manual_seed(0)
    found = packed(layer, {n: MaskedWeight(layer.get_parameter(n), z[n], keep[n]) for n in z})
    torch.manual_seed(0)
    for a, b in zip(found, packed(layer, by_hand(layer, z, keep, ())), strict=True):
        torch.testing.assert_close(a, b)
    masks = undrawn(layer, WHICH["all"])
    with pytest.raises(NotImplementedError, match=r"'gru' has one mask per datum.*masks=\"draw\""):
        packed(layer, {n: MaskedWeight(layer.get_parameter(n), m, torch.ones(1), site="gru") for n, m in masks.items()})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_merged", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (1, 1), (1, 1, 1)])
def test_one_draw_is_the_kernels(kind, batch, is_merged):
    """Also in plates of size 1, with biases that have them."""
    layer, kernel = build(kind, batch_first=True)
    z, keep = masked(layer, WHICH["all"], batch)
    merged = (*batch[:-1], 2) if is_merged else ()
    values = {n: MaskedWeight(layer.get_parameter(n), z[n], keep[n], merged=merged) for n in z}
    values |= {n: p.reshape(*batch, -1) for n, p in layer.named_parameters() if n not in z}
    x, hx = randn(2, TIMES, INPUTS), states(layer, 2)
    found = structured(layer, kernel, values, x, hx)
    for a, b in zip(found, reference(layer, by_hand(layer, z, keep, (0,) * len(batch)), x, hx), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [(3,), (3, 1)])
def test_several_draws_that_are_not_merged_are_refused(batch):
    """The kernels' outputs have no place for them: BayesianModule merges."""
    layer, kernel = build("gru", batch_first=True)
    z, keep = masked(layer, WHICH["all"], batch)
    x, hx = randn(3, TIMES, INPUTS), states(layer, 3)
    with pytest.raises(RuntimeError):
        structured(layer, kernel, {n: MaskedWeight(layer.get_parameter(n), z[n], keep[n]) for n in z}, x, hx)
    masks = undrawn(layer, WHICH["all"], plates=batch)
    with pytest.raises(NotImplementedError, match="has one mask per datum"):
        structured(layer, kernel, {n: MaskedWeight(layer.get_parameter(n), masks[n], keep[n]) for n in masks}, x, hx)


def test_an_input_of_the_wrong_size_names_the_site():
    layer, kernel = build("gru", batch_first=True)
    weights = {
        n: MaskedWeight(layer.get_parameter(n), m, torch.ones(1), site=n)
        for n, m in undrawn(layer, WHICH["all"]).items()
    }
    z, keep = masked(layer, WHICH["all"], (1, 1))
    in_turn = {n: MaskedWeight(layer.get_parameter(n), z[n], keep[n], site=n, merged=(1, 2)) for n in z}
    for given in (weights, in_turn):
        with pytest.raises(ValueError, match=r"'weight_ih_l0' masks 3 input units.*shape \(2, 3, 2\)"):
            structured(layer, kernel, given, randn(2, TIMES, 2), states(layer, 2))
