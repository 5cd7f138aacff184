"""A model that is ready to predict, and how often it runs."""

from pyro.infer.autoguide import AutoNormal

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout
from tests.support.scenarios import regression_data

DRAWS = 40
SMALL = 40_000  # bytes: forces parts of both draws and data for the models of these tests


def fitted(model=None, guide=AutoBernoulliDropout, n=50, rate=0.3, **options):
    """A model and its guide, set up with observed data."""
    x, y = regression_data(n)
    model = model or Regression(3, n, hidden=(8,)).double()
    guide = guide(model, rate=rate, **options) if guide is not AutoNormal else AutoNormal(model)
    guide(x, y)
    return model, guide, x, y


def count_runs(model):
    """Calls of the model's network: how many parts there were."""
    calls = []
    hook = model.net.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls, hook
