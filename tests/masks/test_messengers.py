"""How a loss draws masks: undrawn for each datum, or all members of an estimator at once."""

import itertools

import pyro
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import ARM, AutoBernoulliDropout, BayesianModule, DisARM, Reinforce, TraceDropout_ELBO
from pyro_dropout.masks import BernoulliMask, ConcreteMask, DatumMask, DatumMasks, MemberMask, Members
from tests.support.exact import Case
from tests.support.scenarios import assert_same_mean, bernoulli_entropy

F64 = torch.float64
X = torch.ones(8, 3)


def guide_of(*widths, **options):
    """A guide of linear layers, set up."""
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    guide = AutoBernoulliDropout(BayesianModule(nn.Sequential(*layers)), **{"rate": 0.5, **options})
    guide(X)
    return guide


# One mask per datum


def test_masks_per_datum_are_left_undrawn():
    guide = guide_of(3, 40, 1)
    state = torch.get_rng_state()
    with DatumMasks():
        trace = poutine.trace(guide).get_trace(X)
    assert torch.equal(torch.get_rng_state(), state)
    for name, units in (("0.weight", 3), ("1.weight", 40)):
        mask = trace.nodes[name]["value"].mask
        assert isinstance(mask, DatumMask)
        assert mask.draws == {}
        assert mask.distribution is trace.nodes[f"{name}.mask"]["fn"]
        assert mask.distribution.units == units
    hidden = F.linear(X, trace.nodes["0.weight"]["value"])
    F.linear(hidden, trace.nodes["1.weight"]["value"])
    z = trace.nodes["1.weight"]["value"].mask.draws
    assert list(z) == [(8,)]
    assert len({tuple(row) for row in z[8,].tolist()}) == 8


def test_other_sites_are_drawn_as_ever():
    def program():
        return pyro.sample("z", BernoulliMask(0.5, units=3)), pyro.sample("b", pyro.distributions.Normal(0.0, 1.0))

    with DatumMasks():
        z, b = program()
    assert isinstance(z, DatumMask)
    assert isinstance(b, torch.Tensor)


def test_masks_that_are_given_are_taken():
    guide = guide_of(3, 1)
    trace = poutine.trace(guide).get_trace(X)
    z = trace.nodes["0.weight.mask"]["value"]
    for given in (poutine.condition(guide, {"0.weight.mask": z}), poutine.replay(guide, trace=trace)):
        for messenger in (DatumMasks(), Members(DisARM(), max_plate_nesting=1)):
            with messenger:
                site = poutine.trace(given).get_trace(X).nodes["0.weight.mask"]
            assert site["value"] is z
            assert isinstance(site["fn"], BernoulliMask)  # its density is of one mask


# Members of an estimator


@pytest.mark.parametrize("estimator", [ARM(), DisARM(), Reinforce(4)], ids=str)
def test_masks_at_fixed_rates_are_the_same_for_all_members(estimator):
    guide = guide_of(3, 40, 1)
    with Members(estimator, max_plate_nesting=1) as members:
        weights = guide(X)
    for name, units in (("0.weight", 3), ("1.weight", 40)):
        mask = weights[name].mask
        assert mask.shape == (estimator.members, 1, units)
        assert bool((mask == mask[0]).all())
    assert 0 < weights["1.weight"].mask.mean() < 1
    assert members.draws == []  # nothing to learn from


def test_relaxed_masks_are_the_same_for_all_members():
    """Their rates learn along the path."""
    mask = ConcreteMask(logits=torch.zeros(1, requires_grad=True), units=40)
    z = MemberMask(mask, ARM(), torch.Size([2, 5]), draws := [])()
    assert torch.equal(z[0], z[1])
    assert z.requires_grad
    assert draws == []


@pytest.mark.parametrize("estimator", [ARM(), DisARM()], ids=str)
def test_masks_at_learned_rates_are_an_antithetic_pair(estimator):
    """One uniform u for both, ``u < keep`` and ``u > 1 - keep``: both keep with probability ``max(0, 2 keep - 1)``."""
    keep = torch.tensor([0.1, 0.5, 0.7, 0.95], dtype=F64)
    mask = BernoulliMask(logits=torch.logit(keep).requires_grad_(), units=4)
    first, second = MemberMask(mask, estimator, torch.Size([2, 50_000]), [])()
    assert_same_mean(first, keep)
    assert_same_mean(second, keep)
    assert_same_mean(first * second, (2 * keep - 1).clamp(min=0.0))
    assert torch.equal(second[:, 1], 1 - first[:, 1])  # at keep 1/2 always the opposite
    assert_same_mean(first[:, 2] * second[:, 3], 0.7 * 0.95)  # units are independent


def test_members_of_the_leave_one_out_estimator_are_independent():
    keep = torch.tensor([0.3, 0.8], dtype=F64)
    mask = BernoulliMask(logits=torch.logit(keep).requires_grad_(), units=2)
    z = MemberMask(mask, Reinforce(3), torch.Size([3, 50_000]), [])()
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert_same_mean(z[a], keep)
        assert_same_mean(z[a] * z[b], keep**2)


def test_the_draws_of_learned_masks_are_kept():
    guide = guide_of(3, 4, 1, learnable=True)
    with Members(ARM(), max_plate_nesting=1) as members:
        weights = guide(X)
    assert [draw.mask.units for draw in members.draws] == [3, 4]
    for draw, weight in zip(members.draws, (weights["0.weight"], weights["1.weight"]), strict=True):
        assert draw.z is weight.mask
        uniform, keep = draw.noise, draw.mask.keep
        assert torch.equal(draw.z, torch.stack([uniform < keep, uniform > 1 - keep]).float())


def test_members_stand_left_of_all_plates():
    guide = guide_of(3, 1, learnable=True)
    with Members(ARM(), max_plate_nesting=3) as members:
        assert guide(X)["0.weight"].mask.shape == (2, 1, 1, 1, 3)
        with pyro.plate("networks", 5, dim=-2):
            assert pyro.sample("z", BernoulliMask(logits=torch.zeros(1), units=4)).shape == (2, 1, 5, 1, 4)
    assert len(members.draws) == 1


def test_masks_in_more_plates_than_there_is_room_for_raise():
    mask = BernoulliMask(torch.full((2, 1, 1), 0.5), units=3)
    with (
        Members(ARM(), max_plate_nesting=1),
        pytest.raises(ValueError, match=r"mask 'z' is in 2 plates, more than the 1 of the loss's first model"),
    ):
        pyro.sample("z", mask)


def test_members_and_masks_per_datum_go_together():
    """What the loss does: a pair of masks for each datum, drawn when the layer sees the data."""
    guide = guide_of(3, 1, learnable=True)
    members = Members(ARM(), max_plate_nesting=1)
    with DatumMasks(), members:
        weight = guide(X)["0.weight"]
    assert members.draws == []
    assert weight.batch_shape == (2, 1)
    z = weight.mask.draw((2, 8))
    (draw,) = members.draws
    assert draw.z is z
    assert torch.equal(z[1], 1 - z[0])  # at rate 1/2
    assert len({tuple(row) for row in z[0].tolist()}) > 1


def test_all_members_have_the_rate_and_entropy_of_one():
    keep = 0.8
    mask = BernoulliMask(logits=torch.logit(torch.tensor([keep], dtype=F64)).requires_grad_(), units=3)
    joint = MemberMask(mask, ARM(), torch.Size([2, 5]), [])
    assert joint.entropy().item() == pytest.approx(3 * bernoulli_entropy(keep))
    assert joint.keep.item() == pytest.approx(keep)
    assert joint.rate.item() == pytest.approx(1 - keep)
    assert joint.logits is mask.logits
    assert joint.learned
    assert not MemberMask(BernoulliMask(0.2, units=3), ARM(), torch.Size([2]), []).learned
    assert joint.expand((2, 7))().shape == (2, 7, 3)
    assert (joint.batch_shape, joint.event_shape, joint.units) == ((2, 5), (3,), 3)


# In a loss


def test_masks_that_are_not_learned_are_the_same_for_both_members():
    case = Case()
    guide = AutoBernoulliDropout(case.model, {"net.0.weight": 0.5, "net.2.weight": 0.5, "net.4.weight": 0.5})
    seen = {}

    def mixed(x, y):
        out = guide(x, y)
        mask = BernoulliMask(logits=pyro.param("a", torch.zeros(1)), units=2)
        infer = {"is_auxiliary": True, "of_weights": True}  # as if a weight wore it
        seen["learned"] = pyro.sample("other.mask", mask, infer=infer)
        seen["fixed"] = out["net.2.weight"].mask
        return out

    torch.manual_seed(0)
    TraceDropout_ELBO(masks="draw").loss_and_grads(case.model, mixed, case.x, case.y)
    assert torch.equal(*seen["fixed"])
    assert any(not torch.equal(*_draw(case, mixed, seen)) for _ in range(10))


def _draw(case, guide, seen):
    TraceDropout_ELBO(masks="draw").loss_and_grads(case.model, guide, case.x, case.y)
    return seen["learned"]
