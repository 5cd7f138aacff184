"""Lengthscales of weights, by what the likelihood of a drawn weight is."""

import pyro.poutine as poutine
import pytest
import scipy.stats
import torch

from models.classification import Classification, digit_cnn
from models.priors import normal_prior


@pytest.mark.parametrize(("scaled", "inputs"), [(False, (1, 1, 1)), (True, (9, 288, 4608))])
def test_scaled_lengthscales_grow_with_inputs(scaled, inputs):
    """Of a convolution: channels times pixels; a bias keeps its own."""
    model = Classification(digit_cnn((32, 32), 100), 10, 0.5, scaled=scaled)
    trace = poutine.trace(model).get_trace(torch.zeros(2, 1, 28, 28))
    trace.compute_log_prob()
    for name, number in zip(("net.0", "net.2", "net.6"), inputs, strict=True):
        weight, bias = (trace.nodes[f"{name}.{kind}"] for kind in ("weight", "bias"))
        expected = scipy.stats.norm(0, 1 / (0.5 * number**0.5)).logpdf(weight["value"].detach()).sum()
        assert weight["log_prob_sum"].item() == pytest.approx(expected, rel=1e-4)
        expected = scipy.stats.norm(0, 2.0).logpdf(bias["value"].detach()).sum()
        assert bias["log_prob_sum"].item() == pytest.approx(expected, rel=1e-4)


def test_tensors_stay_tensors():
    prior = normal_prior(torch.tensor(2.0), scaled=True)
    torch.testing.assert_close(prior("weight", torch.zeros(3, 4)).scale, torch.tensor(0.25))
