"""What the adapters' example trains: its data, that methods differ in masks alone, and its scores."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from examples.common.arguments import settle
from examples.lbd import lora_training
from examples.lbd.lora_training import (
    BASE_IMAGES,
    VALIDATION_IMAGES,
    Method,
    Size,
    adapted,
    scored,
    scores,
    to_adapt,
    turned,
)
from models.transformer import VisionTransformer

SIZE = Size(images=60, steps=8, rank=2)
METHODS = [Method(), Method(0.3), Method(0.3, tied=True), Method(0.3, tied=True, learned=True)]


@pytest.fixture
def base():
    settle(0)
    return VisionTransformer()


def digits(n=60):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 28, 28, generator=generator), torch.randint(10, (n,), generator=generator)


# Data


def test_images_are_turned_by_a_quarter():
    x, y = digits(4)
    found = turned((x, y), slice(1, 3))
    assert np.array_equal(found[0][0], np.rot90(x[1]))
    assert found[1].tolist() == y[1:3].tolist()


def test_images_to_adapt_to_are_new():
    number = torch.arange(BASE_IMAGES + VALIDATION_IMAGES + 50)
    train = number.float().reshape(-1, 1, 1), number
    (x, y), (_, again), (_, other) = (to_adapt(train, 20, seed) for seed in (0, 0, 1))
    assert x.shape == (20, 1, 1)
    assert y.min() >= BASE_IMAGES + VALIDATION_IMAGES
    assert len(set(y.tolist())) == 20
    assert x.flatten().tolist() == y.tolist() == again.tolist() != other.tolist()


# Methods


def test_all_methods_start_from_the_same_adapters(base):
    means = [adapted(base, digits(), method, SIZE, 1e-12, seed=3).mean(digits(5)[0]) for method in METHODS]
    for found in means:
        torch.testing.assert_close(found, base(digits(5)[0]).softmax(-1).detach()[None])
    down = [adapted(base, digits(), method, SIZE, 1e-12, seed=3) for method in METHODS]
    first = down[0].net.blocks[1].hidden.down.weight
    torch.testing.assert_close(down[1].net.blocks[1].hidden.down.weight, first)
    for tied in down[2:]:
        torch.testing.assert_close(tied.guide.median(digits()[0])["net.blocks.1.hidden.down.weight"], first)


def test_methods_differ_in_masks_alone(base):
    """Where nothing is dropped, steps with a guide and without end at the same network."""
    without, tied = (adapted(base, digits(), m, SIZE, 1e-2, seed=3) for m in (Method(), Method(0.0, tied=True)))
    median = tied.guide.median(digits()[0])
    moved = dict(without.net.named_parameters())
    names = [name for name in median if name.startswith("net.blocks")]
    assert len(names) == 2 * 2 * 6
    for name in names:
        torch.testing.assert_close(median[name], moved[name.removeprefix("net.")], rtol=1e-3, atol=1e-4)
    assert moved["blocks.0.v.up.weight"].abs().max() > 0.01


@pytest.mark.parametrize("method", METHODS[2:])
def test_the_mean_network_has_the_mean_weights(base, method):
    x, _ = digits(5)
    found = adapted(base, digits(), method, SIZE, 1e-2, seed=0)
    median = {name.removeprefix("net."): value for name, value in found.guide.median(x).items()}
    net = lora_training.with_adapters(base, SIZE.rank)
    torch.testing.assert_close(found.mean(x)[0], functional_call(net, median, (x,)).softmax(-1).detach())


@pytest.mark.parametrize("method", METHODS)
def test_draws_are_there_where_masks_are(base, method):
    x, y = digits(5)
    found = adapted(base, digits(), method, SIZE, 1e-2, seed=0)
    draws = found.draws(x, 7)
    assert (draws is None) == (method.rate == 0)
    if draws is not None:
        assert draws.shape == (7, 5, 10)
        assert draws.std(0).max() > 1e-4
        torch.testing.assert_close(draws.sum(-1), torch.ones(7, 5))
    assert found.mean(x).shape == (1, 5, 10)
    assert torch.equal(found.mean(x), found.mean(x))
    assert list(scored(found, (x, y), 3)) == ["draws", "mean"][method.rate == 0 :]
    rates = found.rates()
    assert list(rates) == [f"blocks.{b}.{n}" for b in range(2) for n in ("q", "k", "v", "proj", "hidden", "out")] * (
        method.tied
    )
    moved = {abs(rate - method.rate) > 1e-4 for values in rates.values() for rate in np.atleast_1d(values)}
    assert moved == ({method.learned} if method.tied else set())


# Scores


def test_scores_are_those_of_the_mean_of_draws():
    probs = torch.tensor([[[0.8, 0.2], [0.4, 0.6]], [[0.4, 0.6], [0.2, 0.8]]])  # means 0.6, 0.4 and 0.3, 0.7
    found = scores(probs, torch.tensor([0, 0]))
    assert found["accuracy"] == 0.5
    assert found["nll"] == pytest.approx(-(np.log(0.6) + np.log(0.3)) / 2, rel=1e-5)
    assert found["ece"] == pytest.approx((0.4 + 0.7) / 2, rel=1e-5)
