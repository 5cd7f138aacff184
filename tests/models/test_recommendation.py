"""The autoencoder's densities against scipy, its scores by hand, the linear model against its own problem."""

import math

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import scipy.stats
import torch
from scipy.sparse import csr_array
from torch import nn

from models.recommendation import MultDAE, MultVAE, dense, ease, log_likelihood, two_layers
from pyro_dropout import AuxiliaryDropout, CompiledSVI, SemiImplicitDropout_ELBO

X = torch.tensor([[1.0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def _settled():
    pyro.set_rng_seed(0)
    with pyro.settings.context(module_local_params=True):
        yield


def test_densities():
    vae = MultVAE(6, users=10, hidden=5, latent=2)
    guide = poutine.trace(vae.guide).get_trace(X)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(X)
    z, eta = guide.nodes["mask"]["value"], guide.nodes["eta"]["value"]
    assert guide.nodes["eta"]["infer"].get("is_auxiliary") is None
    inputs = X / torch.tensor([[3.0], [2.0]]).sqrt() * z / 0.5
    mean, log_variance = (half.detach().numpy() for half in vae.encoder(inputs).chunk(2, -1))
    found, latent = guide.nodes["eta"]["fn"].log_prob(eta).detach().numpy(), eta.detach().numpy()
    assert np.allclose(found, scipy.stats.norm(mean, np.exp(log_variance / 2)).logpdf(latent).sum(-1), atol=1e-5)
    assert torch.equal(guide.nodes["mask"]["infer"]["relevant"], X != 0)
    model.compute_log_prob()
    probs = vae.decoder(eta).softmax(-1).detach().double().numpy()
    ordered = scipy.stats.multinomial(X.sum(-1).numpy(), probs / probs.sum(-1, keepdims=True)).logpmf(X.numpy())
    ordered -= [math.log(6), math.log(2)]  # the coefficients, which there are not
    assert np.allclose(model.nodes["items"]["fn"].log_factor.detach().numpy(), ordered, atol=1e-5)
    assert model.nodes["items"]["scale"] == guide.nodes["eta"]["scale"] == 10 / 2
    prior = 5 * scipy.stats.norm().logpdf(latent).sum()
    assert model.nodes["eta"]["log_prob_sum"].item() == pytest.approx(prior, rel=1e-5)


def test_scores():
    vae = MultVAE(6, users=10, dropout=AuxiliaryDropout(6, 0.3), hidden=5, latent=2)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(3)
    inputs = X / X.norm(dim=-1, keepdim=True)
    expected = vae.decoder(vae.encoder(inputs)[:, :2]).log_softmax(-1)
    torch.testing.assert_close(vae.scores(X), expected)
    probs = torch.stack([vae.scores(X, draws=1).exp() for _ in range(4000)])
    mean = vae.scores(X, draws=4000).exp()
    assert ((mean - probs.mean(0)).abs() < 5 * (2 / 4000) ** 0.5 * probs.std(0)).all()
    assert ((mean - vae.scores(X).exp()).abs() > 0.01).any()
    assert not vae.scores(X).requires_grad


@pytest.mark.parametrize("dropout", [{}, {"learnable": True}, {"learnable": True, "per_unit": True}])
@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_it_learns(dropout, extra, activation):
    vae = MultVAE(6, 2, AuxiliaryDropout(6, 0.5, sparse=True, **dropout), hidden=5, latent=2, activation=activation)
    optim = pyro.optim.Adam({"lr": 0.02})
    loss = SemiImplicitDropout_ELBO(extra, annealing=0.2)
    svi = CompiledSVI(vae.model, vae.guide, optim, loss, backend="eager", progress=False)
    losses = [svi.step(X) for _ in range(200)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 1
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in vae.parameters())
    assert (
        vae.scores(X).masked_fill(X > 0, -math.inf) < vae.scores(X).masked_fill(X == 0, math.inf).amin(1, True)
    ).all()


def test_denoising_is_in_training_alone():
    dae = MultDAE(6, hidden=5)
    inputs = X / X.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(dae.scores(X), dae.net(inputs).log_softmax(-1))
    assert not torch.equal(dae(X), dae(X))


def test_weights_start_as_they_are_said_to():
    net = two_layers(300, 200, 100, nn.Tanh)
    bound = (6 / 500) ** 0.5
    assert 0.99 * bound < net[0].weight.abs().max() <= bound
    assert 0 < net[2].bias.abs().max() <= 0.002


def test_log_likelihood():
    assert log_likelihood(torch.tensor([0.0, 0.0, math.log(2)]), torch.tensor([0.0, 2.0, 1.0])).item() == pytest.approx(
        2 * math.log(1 / 4) + math.log(1 / 2)
    )


@pytest.mark.parametrize("make", [np.asarray, csr_array])
def test_ease_solves_its_problem(make):
    """Column by column a ridge regression on the other items; sums of small integers do not overflow."""
    rng = np.random.default_rng(0)
    x = (rng.random((400, 5)) < 0.6).astype(np.int8)
    found = ease(make(x), penalty=7.0)
    assert (np.diag(found) == 0).all()
    for item in range(5):
        others = np.delete(np.arange(5), item)
        stacked = np.vstack([x[:, others], 7**0.5 * np.eye(4)])
        expected, *_ = np.linalg.lstsq(stacked, np.r_[x[:, item], np.zeros(4)], rcond=None)
        np.testing.assert_allclose(found[others, item], expected, atol=1e-8)


def test_dense_rows():
    matrix = csr_array(np.array([[0, 3, 0], [1, 0, 1], [0, 0, 0]], np.int8))
    assert dense(matrix).tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert dense(matrix, np.array([2, 1])).tolist() == [[0, 0, 0], [1, 0, 1]]
    assert dense(matrix).dtype == torch.float32
