"""Masks per datum: drawn by the layer that sees the data, once for each shape of a batch."""

import pyro
import pyro.distributions as dist
import pytest

from pyro_dropout import TraceDropout_ELBO
from pyro_dropout.masks import BernoulliMask
from tests.support.exact import Case


def test_a_guide_that_computes_with_its_masks_needs_masks_per_draw():
    def guide(x, y):
        z = pyro.sample("net.weight.mask", BernoulliMask(0.5, units=3), infer={"is_auxiliary": True})
        pyro.sample("net.weight", dist.Delta(z.unsqueeze(0).double(), event_dim=2))

    case = Case(widths=(3,))
    with pytest.raises(AttributeError, match=r"a mask per datum is not drawn yet.*masks=\"draw\""):
        TraceDropout_ELBO().loss(case.model, guide, case.x, case.y)
