"""The point mass at a masked weight."""

import math

import torch

from pyro_dropout.weights import MaskedDelta, MaskedWeight


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
