"""Random numbers that are a function of a key: the published hash, and as random as they should be."""

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from pyro_dropout.training._steps.randomness import KeyedRandomness, pcg4d

N = 200_000


def key(a=1, b=2):
    return torch.tensor([a, b], dtype=torch.int32)


def drawn(function, *keys):
    with KeyedRandomness(key(*keys)):
        return function()


def test_the_hash_is_the_published_one():
    """Jarzynski & Olano 2020, listing pcg4d, in numpy's own unsigned arithmetic."""
    counter = np.arange(1000, dtype=np.uint32)
    v = [counter, np.uint32(7), np.uint32(2**32 - 5), np.uint32(123456789)]
    with np.errstate(over="ignore"):
        x, y, z, w = (a * np.uint32(1664525) + np.uint32(1013904223) for a in v)
        x += y * w
        y = y + z * x
        z = z + x * y
        w = w + y * z
        x, y, z, w = (a ^ (a >> np.uint32(16)) for a in (x, y, z, w))
        x = x + y * w
        y = y + z * x
        z = z + x * y
        w = w + y * z
    found = pcg4d(key(-5, 123456789), torch.arange(1000, dtype=torch.int32), call=7)
    for ours, theirs in zip(found, (w, z), strict=True):
        assert np.array_equal(ours.numpy().view(np.uint32), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("draw", "law"),
    [
        (lambda d: torch.rand(N, dtype=d), scipy.stats.uniform()),
        (lambda d: torch.rand_like(torch.empty(N, dtype=d)), scipy.stats.uniform()),
        (lambda d: torch.empty(N, dtype=d).uniform_(-1, 3), scipy.stats.uniform(-1, 4)),
        (lambda d: torch.randn(N, dtype=d), scipy.stats.norm()),
        (lambda d: torch.randn_like(torch.empty(N, dtype=d)), scipy.stats.norm()),
        (lambda d: torch.empty(N, dtype=d).normal_(2, 3), scipy.stats.norm(2, 3)),
        (
            lambda d: torch.normal(torch.full((N,), 2.0, dtype=d), torch.full((N,), 3.0, dtype=d)),
            scipy.stats.norm(2, 3),
        ),
        (lambda d: torch.normal(torch.full((N,), 2.0, dtype=d), 3.0), scipy.stats.norm(2, 3)),
        (lambda d: torch.normal(2.0, torch.full((N,), 3.0, dtype=d)), scipy.stats.norm(2, 3)),
        (lambda d: torch.empty(N, dtype=d).exponential_(2.0), scipy.stats.expon(scale=0.5)),
    ],
)
def test_distributions(draw, law, dtype):
    sample = drawn(lambda: draw(dtype))
    assert sample.dtype == dtype
    assert scipy.stats.kstest(sample.double().numpy(), law.cdf).pvalue > 1e-3


def test_uniforms_are_below_one_and_reach_zero_as_often_as_they_should():
    sample = drawn(lambda: torch.rand(2**24))
    assert 0 <= sample.min() < sample.max() < 1
    assert (sample == 0).sum() < 12  # expected: 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_types(dtype):
    sample = drawn(lambda: torch.rand(2**20, dtype=dtype))
    assert sample.dtype == dtype
    assert sample.max() < 1  # 24 bits would round to 1
    assert sample.double().mean().item() == pytest.approx(0.5, abs=3e-3)  # the lattice begins at 0
    assert drawn(lambda: torch.empty(2**20, dtype=dtype).exponential_()).isfinite().all()


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda: torch.bernoulli(torch.full((N,), 0.3)), 0.3),
        (lambda: torch.bernoulli(torch.full((N,), 0.3, dtype=torch.float64)), 0.3),
        (lambda: torch.empty(N).bernoulli_(0.3), 0.3),
        (lambda: torch.empty(N).bernoulli_(torch.tensor(0.3)), 0.3),
        (lambda: F.dropout(torch.ones(N), 0.7) * 0.3, 0.3),
        (lambda: torch.native_dropout(torch.ones(N), 0.7, True)[0] * 0.3, 0.3),
    ],
)
def test_masks(draw, mean):
    sample = drawn(draw)
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    assert abs(sample.mean() - mean) < 5 * (mean * (1 - mean) / N) ** 0.5


def test_permutations_and_integers():
    first = []
    for a in range(3000):
        sample = drawn(lambda: torch.randperm(10), a, 5)
        assert sample.sort().values.tolist() == list(range(10))
        first.append(sample[0].item())
    assert scipy.stats.chisquare(np.bincount(first, minlength=10)).pvalue > 1e-3
    for low, draw in ((0, lambda: torch.randint(10, (N,))), (-3, lambda: torch.randint(-3, 7, (N,)))):
        sample = drawn(draw) - low
        assert scipy.stats.chisquare(np.bincount(sample, minlength=10)).pvalue > 1e-3


def test_neighbours_calls_and_keys_are_uncorrelated():
    """Every bit that is used of a number with every bit of the next one, of the next call's, of another key's."""
    n = 2**16

    def signs(a=1, b=2, call=1, start=0):
        words = pcg4d(key(a, b), torch.arange(start, start + n, dtype=torch.int32), call)
        return torch.stack([(word >> i) & 1 for word in words for i in range(5, 32)]).double() * 2 - 1

    base = signs()
    keys = torch.randint(-(2**31), 2**31, (20, 2)).tolist()
    others = [signs(start=1), signs(start=50), signs(a=2), signs(b=3), signs(call=2), signs(call=3), signs(a=2, b=1)]
    for other in others + [signs(*k) for k in keys]:
        assert (other @ base.T).abs().max() / n < 6 / n**0.5  # of 27 · 54 · 54
    assert (base @ base.T - n * torch.eye(54)).abs().max() / n < 6 / n**0.5


def test_every_key_gives_unbiased_masks():
    means = torch.stack([drawn(lambda: torch.rand(2**12), *k).mean() for k in torch.randint(2**31, (500, 2)).tolist()])
    z = (means - 0.5) * (12 * 2**12) ** 0.5
    assert scipy.stats.kstest(z.numpy(), scipy.stats.norm().cdf).pvalue > 1e-3


def test_draws_of_one_key_differ_and_repeat():
    def twice():
        return torch.rand(100), torch.rand(100)

    a, b = drawn(twice)
    again = drawn(twice)
    assert not torch.equal(a, b)
    assert torch.equal(a, again[0])
    assert torch.equal(b, again[1])
    assert not torch.equal(a, drawn(twice, 1, 3)[0])
    before = torch.get_rng_state()
    drawn(twice)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.poisson(torch.ones(3)),
        lambda: torch.multinomial(torch.ones(3), 1),
        lambda: torch.randint(2**30, (3,)),
    ],
)
def test_what_has_no_such_form_raises(draw):
    with pytest.raises(NotImplementedError, match="function of a key"):
        drawn(draw)
