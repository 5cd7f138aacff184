"""The point mass at a masked weight: its density there and elsewhere, its shapes, its draws."""

import math

import pyro
import pyro.poutine as poutine
import torch
from torch.distributions import constraints

from pyro_dropout import MaskedUnits
from pyro_dropout.masks import BernoulliMask, DatumMask
from pyro_dropout.weights import MaskedDelta, MaskedWeight, Switch
from tests.support.tensors import KEEP, bits, randn


def test_masked_delta_is_a_point_mass():
    weight = MaskedWeight(torch.randn(4, 3), torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]), torch.tensor([0.6]))
    delta = MaskedDelta(weight)
    assert delta.batch_shape == (2,)
    assert delta.event_shape == (4, 3)
    assert delta().loc is weight.loc
    assert delta.log_prob(weight).tolist() == [0, 0]
    assert delta.log_prob(weight.dense()).tolist() == [0, 0]
    assert delta.log_prob(torch.zeros(4, 3)).tolist() == [-math.inf, -math.inf]
    assert delta.expand((5, 2))().shape == (5, 2, 4, 3)


def test_density_is_zero_where_a_single_entry_differs():
    weight = MaskedWeight(randn(4, 3), torch.ones(2, 3).double(), KEEP)
    other = weight.dense().clone()
    other[1, 2, 0] += 1e-9
    assert MaskedDelta(weight).log_prob(other).tolist() == [0, -math.inf]
    lacks_a_unit = weight.replace(mask=torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]).double())
    assert MaskedDelta(weight).log_prob(lacks_a_unit).tolist() == [0, -math.inf]


def test_density_is_zero_where_the_outputs_mask_differs():
    inputs, units = torch.ones(3).double(), MaskedUnits(dim=0)
    weight = MaskedWeight(randn(4, 3), inputs, KEEP, other=Switch(torch.ones(4).double(), KEEP, units))
    lacks_a_row = weight.replace(other=Switch(torch.tensor([1.0, 0.0, 1.0, 1.0]).double(), KEEP, units))
    assert MaskedDelta(weight).log_prob(weight).item() == 0
    assert MaskedDelta(weight).log_prob(lacks_a_row).item() == -math.inf


def test_events_are_whole_weights_of_any_layer():
    weight = MaskedWeight(randn(4, 3, 5, 2), torch.ones(6, 1, 3).double(), KEEP, MaskedUnits(4))
    delta = MaskedDelta(weight)
    assert (delta.batch_shape, delta.event_shape) == ((6, 1), (4, 3, 5, 2))
    assert delta.log_prob(weight.dense()).tolist() == [[0.0]] * 6
    assert delta.log_prob(weight.dense().flip(-1)).tolist() == [[-math.inf]] * 6
    support = delta.support
    assert support.event_dim == 4
    assert support.base_constraint is constraints.real
    assert bool(support.check(torch.randn(4, 3, 5, 2)))


def test_expanded_it_is_the_same_point_in_each_plate():
    weight = MaskedWeight(randn(4, 3), bits(2, 3), KEEP)
    delta = MaskedDelta(weight, relaxed=True).expand((5, 2))
    dense = weight.dense().expand(5, 2, 4, 3)
    assert (delta.batch_shape, delta.event_shape, delta.relaxed) == ((5, 2), (4, 3), True)
    assert torch.equal(delta().dense(), dense)
    assert delta().loc is weight.loc
    assert delta.log_prob(dense).tolist() == [[0.0, 0.0]] * 5
    one = dense.clone()
    one[3, 1, 0, 0] += 1
    assert (delta.log_prob(one) == 0).sum() == 9
    assert delta.log_prob(one)[3, 1] == -math.inf


def test_several_draws_are_the_same_point():
    weight = MaskedWeight(randn(4, 3), bits(2, 3), KEEP)
    drawn = MaskedDelta(weight).rsample((7,))
    assert torch.equal(drawn.dense(), weight.dense().expand(7, 2, 4, 3))
    assert drawn.loc is weight.loc


def test_a_sample_site_has_the_weight_itself_for_its_value():
    loc = randn(4, 3).requires_grad_()
    weight = MaskedWeight(loc, bits(3), KEEP)
    trace = poutine.trace(lambda: pyro.sample("w", MaskedDelta(weight))).get_trace()
    assert trace.nodes["w"]["value"] is weight
    assert trace.log_prob_sum() == 0
    assert trace.nodes["w"]["fn"].has_rsample  # the gradient goes through the value
    assert trace.nodes["w"]["value"].requires_grad


def test_a_weight_whose_mask_is_not_drawn_yet_has_its_own_density():
    """Nothing dense is asked for, which masks per datum could not give."""
    mask = DatumMask(BernoulliMask(0.4, units=3).expand((2,)))
    weight = MaskedWeight(torch.randn(4, 3), mask, torch.tensor([0.6]))
    assert MaskedDelta(weight).log_prob(weight).tolist() == [0, 0]
    assert mask.draws == {}
