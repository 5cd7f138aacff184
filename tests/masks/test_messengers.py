"""How a loss draws masks: undrawn for each datum, or all members of an estimator at once."""

import pyro
import torch

from pyro_dropout import AutoBernoulliDropout, TraceDropout_ELBO
from pyro_dropout.masks import BernoulliMask
from tests.support.exact import Case


def test_masks_that_are_not_learned_are_the_same_for_both_members():
    case = Case()
    guide = AutoBernoulliDropout(case.model, {"net.0.weight": 0.5, "net.2.weight": 0.5, "net.4.weight": 0.5})
    seen = {}

    def mixed(x, y):
        out = guide(x, y)
        mask = BernoulliMask(logits=pyro.param("a", torch.zeros(1)), units=2)
        seen["learned"] = pyro.sample("other.mask", mask, infer={"is_auxiliary": True})
        seen["fixed"] = out["net.2.weight"].mask
        return out

    torch.manual_seed(0)
    TraceDropout_ELBO(masks="draw").loss_and_grads(case.model, mixed, case.x, case.y)
    assert torch.equal(*seen["fixed"])
    assert any(not torch.equal(*_draw(case, mixed, seen)) for _ in range(10))


def _draw(case, guide, seen):
    TraceDropout_ELBO(masks="draw").loss_and_grads(case.model, guide, case.x, case.y)
    return seen["learned"]
