"""Attacks through a predictive distribution that can be enumerated, with gradients by differences."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import torch

from examples.alpha.gradient_sign import drawn_anew, drawn_once, iterated, mean_network, predictive, step
from examples.common.arguments import settle
from models.classification import Classification
from models.regression import mlp
from pyro_dropout import AutoBernoulliDropout

RATE = 0.5


@pytest.fixture
def fit():
    """Three inputs, two hidden units: 32 networks."""
    threads = torch.get_num_threads()
    settle(1)
    model = Classification(mlp(3, [2], 3, torch.nn.Tanh), 10)
    guide = AutoBernoulliDropout(model, rate=RATE, learnable=False)
    guide(torch.zeros(2, 3), torch.tensor([0, 1]))
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    yield model, guide
    torch.set_num_threads(threads)


def enumerated(guide, x):
    """Log of the mean probabilities over all masks, by numpy."""
    w = {name: value.double().numpy() for name, value in guide.median().items()}
    x, total = np.asarray(x, float), 0.0
    for masks in itertools.product((0, 1), repeat=5):
        of_image, of_hidden = (np.array(m) / (1 - RATE) for m in (masks[:3], masks[3:]))
        hidden = np.tanh((x * of_image) @ w["net.0.weight"].T + w["net.0.bias"])
        total += scipy.special.softmax((hidden * of_hidden) @ w["net.2.weight"].T + w["net.2.bias"], -1) / 32
    return np.log(total)


X = torch.tensor([[0.2, 0.8, 0.5], [0.9, 0.4, 0.1]])


def test_functions_are_of_the_posterior(fit):
    """The mean of 20,000 functions, within five standard errors."""
    log_probs = drawn_anew(*fit, 20_000)(X).detach().double()
    assert log_probs.shape == (20_000, 2, 3)
    probs = log_probs.exp()
    error = probs.std(0) / math.sqrt(20_000)
    expected = torch.from_numpy(enumerated(fit[1], X)).exp()
    assert ((probs.mean(0) - expected).abs() < 5 * error + 1e-6).all()
    torch.testing.assert_close(predictive(log_probs), probs.mean(0).log())


def test_which_functions_are_drawn(fit):
    anew, once, mean = drawn_anew(*fit, 5), drawn_once(*fit, 5), mean_network(*fit)
    assert not torch.equal(anew(X), anew(X))
    assert torch.equal(once(X), once(X))
    torch.testing.assert_close(once(X)[:, :1], once(X[:1]))  # of whichever images
    before = torch.get_rng_state()
    once(X)
    assert torch.equal(torch.get_rng_state(), before)
    w = fit[1].median()
    hidden = torch.tanh(X @ w["net.0.weight"].T + w["net.0.bias"])
    expected = (hidden @ w["net.2.weight"].T + w["net.2.bias"]).log_softmax(-1)
    torch.testing.assert_close(mean(X)[0], expected)


@pytest.mark.parametrize("target", [None, 0, 2])
def test_steps_go_along_the_sign_of_the_gradient_of_the_enumerated_predictive(fit, target):
    """Of the largest log-probability downwards, of the target's upwards."""
    functions, guide = drawn_once(*fit, 20_000), fit[1]
    h, expected, known = 1e-5, X.double().numpy().copy(), np.zeros((2, 3), bool)
    for n, i in itertools.product(range(2), range(3)):
        moved = [X.double().numpy() + s * h * np.eye(3)[i] * (np.arange(2) == n)[:, None] for s in (1, -1)]
        values = [enumerated(guide, each)[n] for each in moved]
        chosen = int(np.argmax(enumerated(guide, X)[n])) if target is None else target
        gradient = values[0][chosen] - values[1][chosen]
        known[n, i] = abs(gradient) / (2 * h) > 0.02  # of 20,000 functions, whose error is a fifth of that
        expected[n, i] += 0.05 * np.sign(gradient) * (-1 if target is None else 1)
    assert known.sum() >= 4
    np.testing.assert_allclose(step(functions, X, 0.05, target).numpy()[known], expected[known], atol=1e-6)


def test_networks_that_are_sure_hide_no_gradient():
    """Where p rounds to 1 in single precision, signs are those of double precision."""
    settle(1)
    model = Classification(mlp(20, [16], 4), 10)
    guide = AutoBernoulliDropout(model, rate=RATE, learnable=False)
    x = torch.rand(30, 20)
    guide(x, torch.zeros(30, dtype=torch.long))
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.copy_(10 * torch.randn(parameter.shape))
    functions = mean_network(model, guide)
    assert (functions(x).exp().amax(-1) == 1).float().mean() > 0.8
    single = step(functions, x, 0.01) - x
    w = {name: value.double() for name, value in guide.median(x).items()}

    def exact(x):
        hidden = torch.relu(x @ w["net.0.weight"].T + w["net.0.bias"])
        return (hidden @ w["net.2.weight"].T + w["net.2.bias"]).unsqueeze(0).log_softmax(-1)

    double = step(exact, x.double(), 0.01) - x
    inside = (x > 0.02) & (x < 0.98)
    assert (single.sign() == double.sign())[inside].float().mean() > 0.995
    assert (single[inside] != 0).float().mean() > 0.99


def test_images_stay_images(fit):
    x = torch.tensor([[0.0, 1.0, 0.5]])
    moved = step(mean_network(*fit), x, 0.3)
    assert ((moved >= 0) & (moved <= 1)).all()
    assert not moved.requires_grad
    path = list(iterated(mean_network(*fit), x, 0.1, target=1, steps=3))
    assert len(path) == 3
    torch.testing.assert_close(path[1], step(mean_network(*fit), path[0], 0.1, 1))
    log_p = [predictive(mean_network(*fit)(each))[0, 1] for each in (x, *path)]
    assert log_p[-1] > log_p[0]
