"""The KL to a quantised prior against Monte Carlo, the papers' closed forms and what torch is offered."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_dropout import MaskedUnits
from pyro_dropout.masks import BernoulliMask
from pyro_dropout.weights import MaskedDelta, MaskedWeight, Switch, quantised_cross_entropy
from tests.support.scenarios import assert_same_mean

F64 = torch.float64
PRIORS = {
    "Normal": lambda shape: dist.Normal(torch.tensor(0.0, dtype=F64), 0.7).expand(shape),
    "Normal off zero": lambda shape: dist.Normal(torch.tensor(0.3, dtype=F64), 0.7).expand(shape),
    "Normal per weight": lambda shape: dist.Normal(
        torch.linspace(-1, 1, shape.numel(), dtype=F64).reshape(shape),
        torch.linspace(0.5, 2, shape.numel(), dtype=F64).reshape(shape),
    ),
    "Laplace": lambda shape: dist.Laplace(torch.tensor(0.0, dtype=F64), 0.7).expand(shape),
    "Student-t": lambda shape: dist.StudentT(3.0, torch.tensor(0.0, dtype=F64), 0.7).expand(shape),
}
RATES = {"shared": [0.3], "per unit": [0.1, 0.3, 0.6], "deterministic": [0.0], "mixed": [0.0, 0.3, 0.6]}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("units", [MaskedUnits(), MaskedUnits(4), MaskedUnits(4, dim=0), MaskedUnits(4, groups=3)])
def test_kl_matches_monte_carlo_for_any_factorised_prior(prior, rates, units):
    """KL(q‖p) = E[log q(z) - log p(W)], the right side with dense weights and torch's own densities."""
    rate = torch.tensor(RATES[rates], dtype=F64)
    event = {2: (4, 3), 4: (3, 3, 2, 1) if units.groups == 1 else (3, 1, 2, 1)}[units.event_dim]
    loc = torch.randn(event, dtype=F64)
    p = PRIORS[prior](loc.shape)
    mask = BernoulliMask(rate, units=units.count(event))
    kl = (
        quantised_cross_entropy(MaskedWeight(loc, torch.ones(mask.units, dtype=F64), mask.keep, units), p.to_event())
        - mask.entropy()
    )

    n = 20_000
    z = torch.bernoulli(mask.keep.expand(n, mask.units))
    log_q = torch.where(z == 1, mask.keep.log(), mask.rate.log()).sum(-1)
    shape = [n, *(1,) * len(event)]
    shape[1 + units.dim if units.groups == 1 else 1] = (
        mask.units
    )  # one input channel for each output in the grouped case
    w = loc * (z / mask.keep).reshape(shape)
    assert_same_mean(log_q - p.log_prob(w).flatten(1).sum(-1), kl, standard_errors=4)


BOTH = {
    "linear": ((4, 3), MaskedUnits(), MaskedUnits(dim=0)),
    "grouped convolution": ((4, 2, 2), MaskedUnits(3, groups=2), MaskedUnits(3, dim=0)),
    "transposed in groups": ((4, 3, 2), MaskedUnits(3, dim=0), MaskedUnits(3, dim=1, groups=2)),
    "a branch": ((4, 3), MaskedUnits(), MaskedUnits(dim=0, together=4)),
    "outputs in pairs": ((4, 3), MaskedUnits(), MaskedUnits(dim=0, together=2)),
}


@pytest.mark.parametrize("per_unit", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", BOTH)
def test_input_and_output_units_are_summed_over_their_four_values(name, prior, per_unit):
    """Entry by entry in plain torch: both kept, or one dropped, the other, both."""
    event, *units = BOTH[name]
    loc, p = torch.randn(event, dtype=F64), PRIORS[prior](torch.Size(event))
    counts = [unit.count(event) for unit in units]
    keeps = [
        torch.linspace(0.3, 0.9, n, dtype=F64) if each else torch.tensor([0.6 + 0.1 * n / 10], dtype=F64)
        for n, each in zip(counts, per_unit, strict=True)
    ]
    inputs, outputs = (torch.ones(n, dtype=F64) for n in counts)
    weight = MaskedWeight(loc, inputs, keeps[0], units[0], other=Switch(outputs, keeps[1], units[1]))
    expected = torch.zeros((), dtype=F64)
    for index in itertools.product(*map(range, event)):
        k_in, k_out = (
            keep.expand(n)[unit_of(name, side, index)] for keep, n, side in zip(keeps, counts, (0, 1), strict=True)
        )
        for z_in, z_out in itertools.product((0, 1), repeat=2):
            probability = (k_in if z_in else 1 - k_in) * (k_out if z_out else 1 - k_out)
            value = torch.full(event, float(loc[index] * z_in * z_out / (k_in * k_out)), dtype=F64)
            expected -= probability * p.log_prob(value)[index]
    torch.testing.assert_close(quantised_cross_entropy(weight, p.to_event()), expected)


def unit_of(name, side, index):
    """The entry of the input's (0) or the output's (1) mask that switches an entry of the weight."""
    row, column, *_ = index
    if name == "grouped convolution":  # two groups of two outputs, each with two inputs
        return row // 2 * 2 + column if side == 0 else row
    if name == "transposed in groups":  # two groups of two inputs, each with three outputs
        return row if side == 0 else row // 2 * 3 + column
    return column if side == 0 else {"a branch": 0, "outputs in pairs": row // 2}.get(name, row)


def test_gradient_is_the_papers_regulariser_after_the_change_of_variables():
    """CD eq. 3 with M = loc / keep: ``l²/2 · keep · ‖M‖²``, the same as ``l²/2 · ‖loc‖² / keep`` (PITFALLS 2)."""
    lengthscale = 1.7
    loc = torch.randn(5, 3, dtype=F64, requires_grad=True)
    logits = torch.tensor([1.3], dtype=F64, requires_grad=True)
    mask = BernoulliMask(logits=logits, units=3)
    prior = dist.Normal(torch.tensor(0.0, dtype=F64), 1 / lengthscale).expand([5, 3]).to_event(2)
    ours = quantised_cross_entropy(MaskedWeight(loc, torch.ones(3, dtype=F64), mask.keep), prior) - mask.entropy()
    keep = logits.sigmoid()
    unscaled = loc / keep
    entropy = -keep * keep.log() - (1 - keep) * (1 - keep).log()
    paper = lengthscale**2 / 2 * (keep * unscaled.square()).sum() - 3 * entropy.sum()
    for a, b in zip(torch.autograd.grad(ours, (loc, logits)), torch.autograd.grad(paper, (loc, logits)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    constant = 15 * (0.5 * math.log(2 * math.pi) - math.log(lengthscale))
    torch.testing.assert_close(ours - paper, torch.tensor(constant, dtype=F64))  # comparable across lengthscales


def test_published_mistake_of_multiplying_inverted_weights_by_keep_fails():
    loc = torch.ones(2, 3, dtype=F64)
    weight = MaskedWeight(loc, torch.ones(3, dtype=F64), torch.tensor([0.5], dtype=F64))
    prior = dist.Normal(torch.tensor(0.0, dtype=F64), 1.0).expand([2, 3]).to_event(2)
    value = quantised_cross_entropy(weight, prior) - 6 * 0.5 * math.log(2 * math.pi)
    assert value.item() == pytest.approx(6 / 0.5 / 2)
    assert value.item() != pytest.approx(6 * 0.5 / 2)


def test_what_torch_is_offered_is_the_cross_entropy_alone():
    loc, keep = torch.randn(4, 3, dtype=F64), torch.tensor([0.6], dtype=F64)
    weight = MaskedWeight(loc, torch.ones(5, 1, 3, dtype=F64), keep)
    prior = dist.Laplace(torch.tensor(0.0, dtype=F64), 1.0).expand([4, 3]).to_event(2)
    kl = kl_divergence(MaskedDelta(weight), prior)
    expected = -(0.6 * prior.log_prob(loc / 0.6) + 0.4 * prior.log_prob(torch.zeros(4, 3, dtype=F64)))
    assert kl.shape == (5, 1)
    torch.testing.assert_close(kl, expected.expand(5, 1))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (dist.Gamma(0.5, 1.0).expand([2, 3]).to_event(2), r"'w' \(Gamma\) has density 0 or infinity at 0"),
        (dist.Gamma(2.0, 1.0).expand([2, 3]).to_event(2), r"'w' \(Gamma\) has density 0 or infinity at 0"),
        (dist.LogNormal(0.0, 1.0).expand([2, 3]).to_event(2), r"'w' \(LogNormal\) has density 0 or infinity at 0"),
        (dist.Exponential(1.0).expand([2, 3]).to_event(2), r"'w': the prior has no density at loc / keep"),
        (
            dist.MultivariateNormal(torch.zeros(3), torch.eye(3)).expand([2]).to_event(1),
            r"'w' is MultivariateNormal, which has no density per weight.*poutine.block",
        ),
    ],
)
def test_priors_without_a_finite_density_at_zero_raise(prior, message):
    weight = MaskedWeight(-torch.ones(2, 3), torch.ones(3), torch.tensor([0.5]), site="w")
    with pytest.raises(ValueError, match=message):
        quantised_cross_entropy(weight, prior)
