"""Distributions of masks against closed forms of the papers, torch's own densities and quadrature."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import integrate

from pyro_dropout.masks import ARM, BernoulliMask, ConcreteMask
from pyro_dropout.weights import MaskedWeight, quantised_cross_entropy
from tests.support.scenarios import assert_same_mean, bernoulli_entropy

F64 = torch.float64


@pytest.mark.parametrize("keep", [1.0, 0.9, 0.5, 0.01])
def test_entropy_is_the_number_of_masked_units_times_the_binary_entropy(keep):
    expected = 7 * bernoulli_entropy(keep)
    assert BernoulliMask(1 - keep, units=7).entropy().item() == pytest.approx(expected, rel=1e-5)
    assert ConcreteMask(1 - keep, units=7).entropy().item() == pytest.approx(expected, rel=1e-5)
    if keep < 1:
        logits = torch.tensor(math.log(keep / (1 - keep)), dtype=F64)
        assert BernoulliMask(logits=logits, units=7).entropy().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("mask", [BernoulliMask, ConcreteMask])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_extreme_logits_stay_finite_in_value_and_gradient(mask, dtype):
    logits = torch.tensor([40.0, -40.0, 20.0, -20.0, 0.0], dtype=dtype, requires_grad=True)
    m = mask(logits=logits, units=5)
    loc = torch.ones(2, 5, dtype=dtype, requires_grad=True)
    z = m()
    weight = MaskedWeight(loc, z, m.keep)
    prior = dist.Normal(torch.tensor(0.0, dtype=dtype), 1.0).expand([2, 5]).to_event(2)
    loss = quantised_cross_entropy(weight, prior) - m.entropy() + m.log_prob(z) + weight.dense().sum()
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(logits.grad).all())
    assert bool(torch.isfinite(loc.grad).all())
    assert bool((m.rate > 0).all())


def test_rate_zero_is_exact_and_deterministic():
    mask = BernoulliMask(0.0, units=3)
    assert mask().tolist() == [1.0, 1.0, 1.0]
    assert mask.entropy().item() == 0
    assert mask.log_prob(torch.ones(3)).item() == 0
    assert mask.log_prob(torch.tensor([1.0, 0.0, 1.0])).item() == -math.inf
    weight = MaskedWeight(torch.ones(1, 3), mask(), mask.keep)
    gamma = dist.Gamma(2.0, 1.0).expand([1, 3]).to_event(2)  # density 0 at 0, where no weight lies
    torch.testing.assert_close(quantised_cross_entropy(weight, gamma), -gamma.log_prob(torch.ones(1, 3)))


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 0.9985), (2 / 3, 0.950)])
def test_a_relaxed_mask_does_not_keep_the_mean(temperature, expected):
    """PITFALLS 7, and by quadrature over u."""
    mask = ConcreteMask(0.1, units=1, temperature=temperature)
    z = mask.expand((200_000,))()
    exact, _ = integrate.quad(lambda u: 1 / (1 + math.exp(-(math.log(9) + math.log(u / (1 - u))) / temperature)), 0, 1)
    assert exact / 0.9 == pytest.approx(expected, abs=5e-4)
    assert_same_mean(z.double(), torch.tensor([exact], dtype=F64))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_density_of_a_relaxed_mask_is_torchs(temperature):
    logits = torch.tensor([1.2], dtype=F64)
    mask = ConcreteMask(logits=logits, units=1, temperature=temperature)
    z = torch.linspace(0.05, 0.95, 19, dtype=F64).unsqueeze(-1)
    torchs = torch.distributions.RelaxedBernoulli(torch.tensor(temperature, dtype=F64), logits=logits)
    torch.testing.assert_close(mask.log_prob(z), torchs.log_prob(z).squeeze(-1))


def test_density_of_a_relaxed_mask_integrates_to_one():
    mask = ConcreteMask(logits=torch.tensor([1.2], dtype=F64), units=1, temperature=0.7)

    def density(y):  # of logit(z), which has no poles
        z = torch.sigmoid(torch.tensor([y], dtype=F64))
        return (mask.log_prob(z).exp() * z * (1 - z)).item()

    total, _ = integrate.quad(density, -25, 25)
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_density_of_a_drawn_relaxed_mask_survives_rounding_to_zero_and_one(dtype):
    """E[log q(z)] by quadrature over the logistic noise; at temperature 0.1 most draws round to 0 or 1."""
    a, t = 1.2, 0.1
    mask = ConcreteMask(logits=torch.tensor([a], dtype=dtype), units=1, temperature=t).expand((100_000,))
    z = mask()
    if dtype == torch.float32:
        assert ((z == 0) | (z == 1)).float().mean() > 0.2

    def log_logistic(noise):
        return -abs(noise) - 2 * math.log1p(math.exp(-abs(noise)))

    def log_density(noise):
        y = (a + noise) / t
        return math.log(t) + log_logistic(noise) + abs(y) + 2 * math.log1p(math.exp(-abs(y)))

    exact, _ = integrate.quad(lambda n: math.exp(log_logistic(n)) * log_density(n), -40, 40, points=[-a], limit=400)
    assert_same_mean(mask.log_prob(z).double(), torch.tensor(exact, dtype=F64))


def test_relaxed_masks_follow_the_papers_formula_of_the_noise():
    """CD eq. 5 writes the mask of dropped units; ours is one minus it."""
    torch.manual_seed(3)
    z = ConcreteMask(torch.tensor([0.2], dtype=F64), units=4, temperature=0.5)()
    torch.manual_seed(3)
    u = torch.rand(4, dtype=F64)
    dropped = torch.sigmoid((math.log(0.2) - math.log(0.8) + (1 - u).log() - u.log()) / 0.5)
    torch.testing.assert_close(z, 1 - dropped)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_a_relaxed_mask_has_a_tenth_less_variance_than_a_hard_one(rate):
    """At the temperature 0.1, by quantiles of the noise; a hard z / (1 - rate) has rate / (1 - rate)."""
    torch.manual_seed(0)
    number, hard = 200_000, rate / (1 - rate)
    u = (torch.arange(number, dtype=F64) + 0.5) / number
    z = ((-math.log(hard) + u.log() - (-u).log1p()) / 0.1).sigmoid() / (1 - rate)
    assert 0.9 <= z.var() / hard <= 0.92
    ours = ConcreteMask(torch.tensor([rate], dtype=F64), units=number)() / (1 - rate)
    squares = (ours - z.mean()).square()
    assert abs(squares.mean() - z.var()) < 5 * squares.std() / number**0.5


def test_hard_masks_are_reparametrised_only_at_fixed_rates():
    assert BernoulliMask(0.3, units=2).has_rsample
    assert not BernoulliMask(logits=torch.zeros(1, requires_grad=True), units=2).has_rsample


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BernoulliMask(1.0, units=3), r"rate is the probability of dropping.*\[0, 1\).*found 1.0"),
        (lambda: BernoulliMask(-0.1, units=3), r"\[0, 1\).*found -0.1"),
        (lambda: BernoulliMask(float("nan"), units=3), r"\[0, 1\).*found nan"),
        (lambda: ConcreteMask(torch.tensor([0.1, 0.2]), units=3), r"3 units takes one rate or 3.*\(2,\)"),
        (lambda: ConcreteMask(0.1, units=3, temperature=0.0), r"temperature must be positive, but found 0.0"),
        (lambda: BernoulliMask(units=3), "either rate.*or logits"),
    ],
)
def test_wrong_masks_say_what_was_found(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("learned", [False, True])
def test_small_rates_drop_in_half_precision(dtype, learned):
    """Numbers close to 1 are 1 in these types: rates are what is kept."""
    logits = torch.tensor([7.0], dtype=dtype, requires_grad=True)
    mask = (
        BernoulliMask(logits=logits, units=1000) if learned else BernoulliMask(rate=logits.neg().sigmoid(), units=1000)
    )
    z = ARM().sample(mask, torch.Size([1000]))[0][0] if learned else mask.expand([1000])()
    assert z.dtype == dtype
    expected = mask.rate.item()
    assert expected == pytest.approx(9.1e-4, rel=0.01)
    assert abs((z == 0).double().mean().item() - expected) < 5 * math.sqrt(expected / 1e6)
