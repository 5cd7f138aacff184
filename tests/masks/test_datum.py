"""Masks per datum: drawn by the layer that sees the data, once for each shape of a batch."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dropout import TraceDropout_ELBO
from pyro_dropout.masks import BernoulliMask, ConcreteMask, DatumMask
from pyro_dropout.weights import MaskedWeight
from tests.support.exact import Case
from tests.support.scenarios import assert_same_mean


class Counted(BernoulliMask):
    """Keeps the shapes of what is drawn."""

    def __call__(self, *args, **kwargs):
        z = super().__call__(*args, **kwargs)
        self.shapes.append(tuple(z.shape))
        return z


def counted(units, rate=0.5):
    mask = Counted(rate, units=units)
    mask.shapes = []  # expanding a mask keeps the list
    return mask


def test_nothing_is_drawn_before_a_layer_asks():
    source = counted(units=3)
    mask = DatumMask(source.expand((2, 1)))
    mask.entry((0, 0))
    mask.relaid(torch.Size((1, 2)))
    assert source.shapes == []
    assert mask.draws == {}


def test_one_draw_for_each_shape_of_a_batch():
    source = counted(units=50)
    mask = DatumMask(source)
    first, other = mask.draw((4,)), mask.draw((6,))
    assert mask.draw((4,)) is first
    assert mask.draw((6,)) is other
    assert source.shapes == [(4, 50), (6, 50)]
    assert len({tuple(row) for row in torch.cat([first, other]).tolist()}) == 10  # each datum has its own


def test_draws_have_the_distribution_of_the_mask():
    """Means are those of keeping; masks of two data, and of two units, are independent."""
    rate = torch.tensor([0.0, 0.2, 0.5, 0.9], dtype=torch.float64)
    z = DatumMask(BernoulliMask(rate, units=4)).draw((20_000, 2))
    assert_same_mean(z.flatten(0, 1), 1 - rate)
    assert_same_mean(z[:, 0] * z[:, 1], (1 - rate) ** 2)
    assert_same_mean(z[:, 0, 1] * z[:, 0, 2], torch.tensor(0.8 * 0.5, dtype=torch.float64))


def test_entries_are_entries_of_one_joint_draw():
    """Networks that run in turn, one for each entry of the plates, get what they would get together."""
    source = counted(units=40)
    mask = DatumMask(source.expand((3, 2)))
    found = {(i, j): mask.entry((i, j)).draw((5,)) for i in range(3) for j in range(2)}
    assert source.shapes == [(3, 2, 5, 40)]
    whole = mask.draw((3, 2, 5))
    for index, z in found.items():
        assert torch.equal(z, whole[index])
        assert mask.entry(index) is mask.entry(index)
        assert mask.entry(index).draw((5,)) is z
    assert len({tuple(row) for z in found.values() for row in z.tolist()}) == 30
    assert mask.entry((0, 0)).draw((7,)).shape == (7, 40)  # other data: another joint draw
    assert source.shapes == [(3, 2, 5, 40), (3, 2, 7, 40)]


def test_a_part_of_the_index_is_a_part_of_the_plates():
    """``W[0]`` of weights in plates ``[3, 1]``, the place of the data among them: one network, whose mask is kept."""
    weight = MaskedWeight(torch.randn(2, 50), DatumMask(counted(units=50).expand((3, 1))), torch.tensor([0.5]))
    first, again, second = weight[0], weight[0], weight[1]
    out = torch.nn.functional.linear(torch.ones(7, 50), first)
    assert out.shape == (7, 2)
    assert torch.equal(torch.nn.functional.linear(torch.ones(7, 50), again), out)
    assert not torch.equal(torch.nn.functional.linear(torch.ones(7, 50), second), out)
    assert weight.mask.distribution.shapes == [(3, 7, 50)]  # all networks at once
    deeper = MaskedWeight(torch.randn(2, 50), DatumMask(counted(units=50).expand((3, 2, 1))), torch.tensor([0.5]))
    assert torch.nn.functional.linear(torch.ones(7, 50), deeper[1]).shape == (2, 7, 2)
    assert deeper.mask.distribution.shapes == [(3, 2, 7, 50)]


def test_rates_by_plate_stay_with_their_plate():
    rate = torch.tensor([0.0, 0.5]).reshape(2, 1, 1)
    mask = DatumMask(BernoulliMask(rate, units=100))
    assert bool((mask.draw((2, 6))[0] == 1).all())
    assert 0.3 < mask.draw((2, 6))[1].mean() < 0.7


def test_in_plates_of_another_shape_it_is_the_same_mask():
    source = counted(units=40)
    mask = DatumMask(source.expand((3,)))
    z, entry = mask.draw((3, 5)), mask.entry((1,))
    moved = mask.relaid(torch.Size((3, 1)))
    assert moved.distribution.batch_shape == (3, 1)
    assert moved.draw((3, 5)) is z
    assert moved.entry((1,)) is entry
    assert moved.draw((3, 1, 6)) is mask.draw((3, 1, 6))  # also what either draws from here on
    assert source.shapes == [(3, 5, 40), (3, 1, 6, 40)]


def test_in_more_plates_it_is_another_mask():
    mask = DatumMask(BernoulliMask(0.5, units=40).expand((1,)))
    z = mask.draw((2, 5))
    more = mask.relaid(torch.Size((2, 1)))
    assert more.draws == {}
    assert not torch.equal(more.draw((2, 5)), z)


def test_gradients_of_learned_rates_go_through_relaxed_draws():
    logits = torch.zeros(1, requires_grad=True)
    mask = DatumMask(ConcreteMask(logits=logits, units=3, temperature=0.5))
    z = mask.draw((5,))
    (slope,) = torch.autograd.grad(z.sum(), logits)
    torch.testing.assert_close(slope, (z * (1 - z) / 0.5).sum().reshape(1))  # of σ((logits + noise) / temperature)


def test_a_guide_that_computes_with_its_masks_needs_masks_per_draw():
    def guide(x, y):
        z = pyro.sample("net.weight.mask", BernoulliMask(0.5, units=3), infer={"is_auxiliary": True})
        pyro.sample("net.weight", dist.Delta(z.unsqueeze(0).double(), event_dim=2))

    case = Case(widths=(3,))
    with pytest.raises(AttributeError, match=r"a mask per datum is not drawn yet.*masks=\"draw\""):
        TraceDropout_ELBO().loss(case.model, guide, case.x, case.y)
