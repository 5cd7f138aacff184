"""Any number of draws and of rows, one included, on any network: outputs are those of dense weights, draw by draw."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn
from torch.func import functional_call

from pyro_dropout import AutoBernoulliDropout, BayesianModule, DropoutPredictive, from_torch

F64 = torch.float64
ROWS = range(1, 18)


class Last(nn.Module):
    """The last output of a recurrent layer, or the sum of attention, through a linear layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.last = layer, nn.Linear(4, 2)

    def forward(self, x):
        out = (
            self.layer(x, x, x, need_weights=False) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        )
        return self.last(out[0][:, -1])


NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), 1),
    "convolution": (lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), 2),
    "words": (lambda: nn.Sequential(nn.Embedding(11, 8), nn.Flatten(), nn.Linear(40, 2)), 1),
    "LSTM": (lambda: Last(nn.LSTM(4, 4, batch_first=True)), 2),
    "GRU": (lambda: Last(nn.GRU(4, 4, batch_first=True)), 2),
    "attention": (lambda: Last(nn.MultiheadAttention(4, 2, batch_first=True)), 2),
}
GUIDES = {"dropout": lambda model: AutoBernoulliDropout(model, rate=0.4), "normal": AutoNormal}


class InAPlate(PyroModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y=None):
        out = self.net(x)
        with pyro.plate("data", len(x)):
            pyro.deterministic("out", out, event_dim=1)
            pyro.sample("obs", dist.Normal(out, 1.0).to_event(1), obs=y)


def data(name, rows):
    torch.manual_seed(rows)
    if name == "words":
        return torch.randint(11, (rows, 5))
    shape = {"linear": (4,), "convolution": (3, 4)}.get(name, (6, 4))
    return torch.randn(rows, *shape, dtype=F64)


def predicted(name, guide, plate, draws, rows):
    """Outputs of kept functions, and what dense weights give, both ``[draws, rows, 2]``."""
    torch.manual_seed(0)
    make, event_dim = NETWORKS[name]
    net = make().double()
    module = BayesianModule(net, event_dim=event_dim)
    model = InAPlate(module) if plate else module
    guide = GUIDES[guide](model)
    guide(data(name, 3), torch.zeros(3, 2, dtype=F64)) if plate else guide(data(name, 3))
    x = data(name, rows)
    site = "out" if plate else "_RETURN"
    kept = DropoutPredictive(model, guide=guide, num_samples=draws, return_sites=[site], data=[0]).draw(x)
    expected = []
    for k in range(draws):
        values = {}
        for parameter, shape in ((n, p.shape) for n, p in net.named_parameters()):
            value = kept.posterior_samples[("net." if plate else "") + parameter]
            value = value.dense() if hasattr(value, "dense") else value
            values[parameter] = value.reshape(draws, *shape)[k]
        expected.append(functional_call(net, values, x))
    return kept, x, site, torch.stack(expected)


@pytest.mark.parametrize("draws", [1, 2, 3, 17])
@pytest.mark.parametrize("plate", [True, False], ids=["in a plate", "the module alone"])
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_draws(name, guide, plate, draws):
    kept, x, site, expected = predicted(name, guide, plate, draws, rows=5)
    torch.testing.assert_close(kept(x)[site], expected)
    torch.testing.assert_close(kept[0](x)[site], expected[:1])
    torch.testing.assert_close(kept[draws - 1](x[:1])[site], expected[draws - 1 :, :1])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_rows(name, rows):
    for plate in (True, False):
        pyro.clear_param_store()
        kept, x, site, expected = predicted(name, "dropout", plate, draws=2, rows=rows)
        torch.testing.assert_close(kept(x)[site], expected)
        small = DropoutPredictive(kept.model, kept.posterior_samples, return_sites=[site], max_memory=20_000, data=[0])
        torch.testing.assert_close(small(x)[site], expected)


@pytest.mark.parametrize("rows", ROWS)
def test_many_draws_of_few_rows_go_through_in_few_runs(rows):
    """No number of rows makes the search for sizes stop at two draws."""
    torch.manual_seed(0)
    module = BayesianModule(nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 1)))
    guide, x = AutoBernoulliDropout(module, rate=0.4), torch.randn(rows, 4)
    guide(x)
    calls = []
    module._modules["net"].register_forward_hook(lambda *_: calls.append(1))
    DropoutPredictive(module, guide=guide, num_samples=2000, return_sites=["_RETURN"])(x)
    assert len(calls) < 40


def test_what_draws_have_in_common_is_computed_once_for_each_datum():
    """Much before the only mask, in memory for a part of the data: all draws come together, not all data."""
    net = nn.Sequential(nn.Linear(4, 2000), nn.Tanh(), nn.Linear(2000, 5), nn.Dropout(0.5), nn.Linear(5, 2)).eval()
    module, guide = from_torch(net, torch.randn(3, 4))
    x, seen = torch.randn(3000, 4), []
    module._modules["net"][1].register_forward_hook(lambda _, args, out: seen.append(len(out)))
    predict = DropoutPredictive(module, guide=guide, num_samples=50, return_sites=["_RETURN"], max_memory=20_000_000)
    first = predict(x)["_RETURN"]
    seen.clear()
    assert predict(x)["_RETURN"].shape == first.shape == (50, 3000, 2)
    assert 3000 <= sum(seen) < 3100  # with a few that are looked at for a dependence on each other
    assert max(seen) < 3000
