"""Lengthscales of priors and weight decays: MC eq. 12 by hand, and a step of an optimiser."""

import itertools

import pytest
import torch

from pyro_dropout.nn import lengthscale_of, weight_decay_of

SETTINGS = list(itertools.product([1e-4, 0.07, 2.0], [1, 30, 10_000], [0.3, 0.8, 1.0], [1.0, 1.25, 2.5]))


@pytest.mark.parametrize(
    ("decay", "size", "keep", "precision", "lengthscale"),
    [
        (0.01, 1000, 0.9, 1.0, 3.0),  # √(1000 · 0.01 · 0.9)
        (0.01, 1000, 0.9, 4.0, 6.0),
        (0.5, 2, 1.0, 1.0, 1.0),
        (0.02, 100, 0.5, 0.25, 0.5),
    ],
)
def test_values_by_hand(decay, size, keep, precision, lengthscale):
    assert lengthscale_of(decay, size, keep, precision) == pytest.approx(lengthscale)
    assert weight_decay_of(lengthscale, size, keep, precision) == pytest.approx(decay)


def test_there_and_back_in_the_papers_own_form():
    """MC eq. 12, ``τ = keep l² / (2 N λ)`` for ``λ ‖M‖²`` of unscaled ``M = loc / keep``: ``λ / keep² = decay / 2``."""
    for decay, size, keep, precision in SETTINGS:
        length, paper = lengthscale_of(decay, size, keep, precision), decay / 2 * keep**2
        assert precision == pytest.approx(keep * length**2 / (2 * size * paper))
        assert weight_decay_of(length, size, keep, precision) == pytest.approx(decay)


def test_a_step_of_weight_decay_is_a_step_down_the_prior():
    """Of the kept weights, ``loc / keep``, per datum and unit of precision; no data pull at the parameter."""
    for decay, size, keep, precision in SETTINGS:
        loc = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        prior = torch.distributions.Normal(0.0, 1 / lengthscale_of(decay, size, keep, precision))
        (slope,) = torch.autograd.grad(-keep * prior.log_prob(loc / keep).sum() / (size * precision), loc)
        expected = loc.detach() - 0.1 * slope
        loc.grad = torch.zeros_like(loc)
        torch.optim.SGD([loc], lr=0.1, weight_decay=decay).step()
        torch.testing.assert_close(loc.detach(), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": None}, "give size, the number of data points, but found None"),
        ({"size": 0}, "size must be positive, but found 0"),
        ({"weight_decay": 0.0}, "weight_decay must be positive, but found 0.0: the prior would be flat; give one"),
        ({"precision": -1.0}, "precision must be positive, but found -1.0"),
    ],
)
def test_decays_that_no_prior_stands_for(arguments, message):
    with pytest.raises(ValueError, match=message):
        lengthscale_of(**{"weight_decay": 0.1, "size": 10, **arguments})
