"""Gradient estimators of the rates against enumeration of all masks, alone and inside the losses."""

from dataclasses import dataclass

import pytest
import torch
from pyro.poutine.messenger import Messenger

from pyro_dropout import (
    ARM,
    DisARM,
    GradientEstimator,
    Reinforce,
    TraceDropout_ELBO,
)
from pyro_dropout.masks import BernoulliMask, ConcreteMask
from pyro_dropout.weights import MaskedDelta
from tests.support import enumeration
from tests.support.exact import Case, loss_for
from tests.support.scenarios import assert_same_mean

F64 = torch.float64


# Further estimators: one small class each, and nothing else anywhere


@dataclass(frozen=True)
class PlainReinforce(GradientEstimator):
    """The score function without a baseline."""

    members = 1

    def sample(self, mask, shape):
        return mask.expand(shape)((1,)), None

    def surrogate(self, losses, mask, z, noise):
        return (losses.detach() * mask.log_prob(z)).sum()


@dataclass(frozen=True)
class Rebar(GradientEstimator):
    """Tucker et al. 2017: the score function minus a relaxed copy of itself, whose mean is pathwise."""

    scale: float = 1.0
    temperature: float = 0.5
    members = 3
    weights = (1.0, 0.0, 0.0)  # the relaxed masks are no draws of the mask's distribution

    def sample(self, mask, shape):
        u, v = torch.rand(2, *shape, mask.units, dtype=mask.keep.dtype)
        relaxed = mask.logits + torch.logit(u)
        hard = (relaxed > 0).to(relaxed)
        rate = mask.rate
        conditional = mask.logits + torch.logit(torch.where(hard > 0, rate + v * (1 - rate), v * rate))
        z = torch.stack([hard, *(torch.sigmoid(r / self.temperature) for r in (relaxed, conditional))])
        return z, None

    def surrogate(self, losses, mask, z, noise):
        hard, relaxed, conditional = losses
        score = (hard - self.scale * conditional).detach() * mask.log_prob(z[0].detach())
        path = torch.autograd.grad((relaxed - conditional).sum(), z, retain_graph=True)[0]
        return score.sum() + self.scale * (path * z).sum()


ESTIMATORS = [ARM(), DisARM(), Reinforce(), Reinforce(4), PlainReinforce(), Rebar()]


# The published mistakes (PITFALLS 9 to 11), as doubles


class SwappedARM(ARM):
    def surrogate(self, losses, mask, z, noise):
        return super().surrogate(losses.flip(0), mask, z, noise)


class BatchMeanARM(ARM):
    def surrogate(self, losses, mask, z, noise):
        return super().surrogate(losses.mean(-1, keepdim=True).expand_as(losses), mask, z, noise)


class FreshNoiseARM(ARM):
    def surrogate(self, losses, mask, z, noise):
        return super().surrogate(losses, mask, z, torch.rand_like(noise))


class SecondWeights(Messenger):
    """The second evaluation sees weights that moved in between."""

    def _pyro_sample(self, msg):
        if isinstance(msg["fn"], MaskedDelta) and len(msg["fn"].batch_shape) == 3:
            weight = msg["fn"].weight
            pair = torch.stack([weight.loc, 0.5 * weight.loc])
            msg["value"], msg["done"] = weight.replace(loc=pair[:, None, None]), True


# Alone: any function of the mask


def functions(units):
    """A random function of all masks, and it as a lookup."""
    table = torch.randn(2**units, dtype=F64) * 3 + 10
    place = 2.0 ** torch.arange(units - 1, -1, -1, dtype=F64)
    return table, lambda z: table[(z @ place).long()]


def estimates(estimator, logits, f, n):
    """``n`` independent estimates of the gradient."""
    own = logits.expand(n, -1).clone().requires_grad_()
    mask = BernoulliMask(logits=own, units=len(logits))
    z, noise = estimator.sample(mask, torch.Size([n]))
    estimator.surrogate(f(z), mask, z, noise).backward()
    return own.grad


@pytest.mark.parametrize("estimator", ESTIMATORS[:5], ids=str)
def test_estimator_is_unbiased_for_any_function(estimator):
    table, f = functions(units=5)
    logits = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0], dtype=F64, requires_grad=True)
    z, keep = enumeration.all_masks(5), torch.sigmoid(logits)
    exact = torch.autograd.grad((torch.where(z > 0, keep, 1 - keep).prod(1) * table).sum(), logits)[0]
    assert_same_mean(estimates(estimator, logits.detach(), f, 200_000), exact)


def test_disarm_at_most_arm_and_both_far_below_the_plain_score_function(capsys):
    worst, lines = 0.0, []
    for units in (1, 2, 5, 10):
        for centre in (-2.0, 0.0, 2.0):
            _, f = functions(units)
            logits = centre + 0.5 * torch.randn(units, dtype=F64)
            plain, loo, arm, disarm = (
                estimates(e, logits, f, 50_000).var(0).sum().item()
                for e in (PlainReinforce(), Reinforce(), ARM(), DisARM())
            )
            worst = max(worst, disarm / arm)
            lines.append(f"{units:5d} {centre:5.1f} {plain / arm:8.1f} {loo / arm:8.2f} {arm / disarm:8.2f}")
            assert disarm <= 1.02 * arm  # the theorem, and the noise of a variance of 50,000
            assert arm < plain / 5
    with capsys.disabled():
        print("\nvariance ratios\nunits logit  plain/ARM  leave-one-out/ARM  ARM/DisARM", *lines, sep="\n")


def test_concrete_is_biased_where_arm_and_disarm_are_not():
    """On a function that is not linear in z, as no network's loss is."""
    logits = torch.tensor([0.5, -1.0], dtype=F64, requires_grad=True)

    def f(z):
        return (3 * z[..., 0] - 2 * z[..., 1] * z[..., 0] - 1) ** 2

    z, keep = enumeration.all_masks(2), torch.sigmoid(logits)
    exact = torch.autograd.grad((torch.where(z > 0, keep, 1 - keep).prod(1) * f(z)).sum(), logits)[0]
    for temperature in (0.5, 1.0):
        own = logits.detach().expand(100_000, -1).clone().requires_grad_()
        f(ConcreteMask(logits=own, units=2, temperature=temperature)()).sum().backward()
        error = (own.grad.mean(0) - exact).abs() / (own.grad.std(0) / len(own) ** 0.5)
        assert error.max() > 20  # standard errors
    for estimator in (ARM(), DisARM()):
        assert_same_mean(estimates(estimator, logits.detach(), f, 100_000), exact)


def test_estimators_take_extreme_logits():
    for estimator in ESTIMATORS:
        logits = torch.tensor([-40.0, 40.0], requires_grad=True)
        mask = BernoulliMask(logits=logits, units=2)
        z, noise = estimator.sample(mask, torch.Size([100]))
        estimator.surrogate(z.sum(-1), mask, z, noise).backward()
        assert torch.isfinite(logits.grad).all()


# Inside the losses: networks of several layers


@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("alpha", [0, 0.5, 1.0])
@pytest.mark.parametrize("estimator", ["arm", "disarm", "reinforce"])
def test_mean_gradient_is_that_of_enumeration(estimator, alpha, masks):
    """The loss, and its gradient in every rate, weight and bias; the mini-batch is scaled by 2.5."""
    case = Case(copies=40 if masks == "datum" else 1)
    particles = 2 if alpha else (1 if masks == "datum" else 40)
    steps = 150 if masks == "datum" or not alpha else 600
    case.check(loss_for(alpha, particles, masks=masks, gradient=estimator), alpha, particles, steps)


@pytest.mark.parametrize("alpha", [0, 1.0])
def test_ten_units_in_three_layers(alpha):
    case = Case(widths=(3, 4, 3), data=2, copies=60)
    case.check(loss_for(alpha, 2), alpha, 2, 100)


@pytest.mark.parametrize(("alpha", "masks"), [(0, "datum"), (0.5, "draw"), (0.5, "datum"), (-1.0, "datum")])
def test_particles_in_turn(alpha, masks):
    case = Case(copies=30 if masks == "datum" else 1)
    steps = 100 if masks == "datum" else 500
    case.check(loss_for(alpha, 2, masks=masks, vectorize_particles=False), alpha, 2, steps)


@pytest.mark.parametrize(("alpha", "masks"), [(0, "datum"), (0.5, "datum"), (0.5, "draw")])
@pytest.mark.parametrize("estimator", [Rebar(), Reinforce(3), PlainReinforce()], ids=str)
def test_a_further_estimator_is_one_class(estimator, alpha, masks):
    case = Case(copies=40 if masks == "datum" else 1)
    case.check(loss_for(alpha, 2, masks=masks, gradient=estimator), alpha, 2, 150 if masks == "datum" else 500)


@pytest.mark.parametrize("alpha", [0, 0.5])
@pytest.mark.parametrize("wrong", [SwappedARM(), BatchMeanARM(), FreshNoiseARM(), "weights"], ids=str)
def test_published_mistakes_fail(wrong, alpha):
    case = Case(copies=40)
    guide = SecondWeights()(case.guide) if wrong == "weights" else None
    loss = loss_for(alpha, 2, gradient=ARM() if wrong == "weights" else wrong)
    with pytest.raises(AssertionError, match="standard errors"):
        case.check(loss, alpha, 2, 150, guide)


def test_pathwise_part_of_the_scaling_matters():
    """Without the 1/keep in the graph, the test above would fail."""
    case = Case(copies=40)

    class Detached(Messenger):
        def _pyro_sample(self, msg):
            if isinstance(msg["fn"], MaskedDelta):
                weight = msg["fn"].weight
                msg["value"], msg["done"] = weight.replace(keep=weight.keep.detach()), True

    with pytest.raises(AssertionError, match="standard errors"):
        case.check(TraceDropout_ELBO(2), 0, 2, 150, Detached()(case.guide))


def test_one_pass_holds_the_pair():
    case, calls = Case(), []
    handle = case.model.net.net[0].register_forward_hook(lambda module, args, out: calls.append(out.shape))
    loss = TraceDropout_ELBO(max_plate_nesting=1)
    loss.loss_and_grads(case.model, case.guide, case.x, case.y)
    calls.clear()
    loss.loss_and_grads(case.model, case.guide, case.x, case.y)
    handle.remove()
    assert calls == [(2 * len(case.x), 3)]
