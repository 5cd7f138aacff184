"""Densities of the regression models against scipy."""

import math

import pyro
import pyro.poutine as poutine
import pytest
import scipy.stats
import torch

from models.regression import Regression


@pytest.mark.parametrize("precision", ["latent", "parameter", "network", 4.0, torch.tensor(0.25)])
def test_the_noise_is_what_it_is_called(precision):
    pyro.set_rng_seed(0)
    model = Regression(3, 20, (4, 4), lengthscale=0.5, precision=precision)
    x, y = 0.2 * torch.randn(6, 3), torch.randn(6)
    trace = poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    mean = trace.nodes["mean"]["value"]
    if precision == "latent":
        tau = trace.nodes["precision"]["value"]
        expected = scipy.stats.gamma(0.1, scale=1 / 0.01).logpdf(tau.item())
        assert trace.nodes["precision"]["log_prob"].item() == pytest.approx(expected, rel=1e-5)
    elif precision == "parameter":
        tau = torch.tensor(1.0)
        assert "learned_precision" in dict(model.named_pyro_params())
    elif precision == "network":
        weights = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}
        hidden = torch.relu(x @ weights["net.0.weight"].T + weights["net.0.bias"])
        hidden = torch.relu(hidden @ weights["net.2.weight"].T + weights["net.2.bias"])
        out = hidden @ weights["net.4.weight"].T + weights["net.4.bias"]
        torch.testing.assert_close(mean, out[:, 0])
        tau = out[:, 1].exp()
    else:
        tau = torch.as_tensor(precision)
        assert model.state_dict()["fixed_precision"] == tau
    expected = scipy.stats.norm(mean.detach(), tau.rsqrt().detach()).logpdf(y).sum() * 20 / 6
    assert trace.nodes["obs"]["log_prob_sum"].item() == pytest.approx(expected, rel=1e-4)
    weight = trace.nodes["net.2.weight"]
    expected = scipy.stats.norm(0, 2.0).logpdf(weight["value"].detach()).sum()
    assert weight["log_prob_sum"].item() == pytest.approx(expected, rel=1e-4)


def test_a_network_for_the_noise_does_not_overflow():
    """Far from the data the second output has any size."""
    pyro.set_rng_seed(0)
    model = Regression(1, 20, (4,), precision="network")
    x = torch.tensor([[1e8], [-1e8]])
    trace = poutine.trace(model).get_trace(x, torch.zeros(2))
    scale = trace.nodes["obs"]["fn"].scale
    assert torch.isfinite(trace.nodes["mean"]["value"]).all()
    assert {round(math.log(s)) for s in scale.tolist()} <= {-10, 10}


def test_scaled_lengthscales_grow_with_the_inputs():
    pyro.set_rng_seed(0)
    model = Regression(3, 20, (4, 5), lengthscale=torch.tensor(0.5), scaled=True)
    nodes = poutine.trace(model).get_trace(torch.randn(6, 3)).nodes
    for site, scale in {"net.0.weight": 3, "net.2.weight": 4, "net.4.weight": 5, "net.2.bias": 1}.items():
        value = nodes[site]["value"].detach()
        expected = scipy.stats.norm(0, 1 / (0.5 * scale**0.5)).logpdf(value).sum()
        assert nodes[site]["fn"].log_prob(value).sum().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("precision", ["gamma", 0.0, -1.0, torch.ones(2), float("nan")])
def test_precisions_that_are_none(precision):
    with pytest.raises(ValueError, match=r"precision must be .*but found"):
        Regression(3, 20, precision=precision)
