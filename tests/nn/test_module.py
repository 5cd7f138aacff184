"""BayesianModule: sites by the parameters' names, priors, dtype, copies, and named errors."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from pyro_dropout import AutoBernoulliDropout, BayesianModule, TraceDropout_ELBO


def test_sites_carry_the_parameters_names_and_the_net_is_not_changed():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    before = copy.deepcopy(net.state_dict())

    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.net = BayesianModule(net)

        def forward(self, x):
            return self.net(x)

    trace = poutine.trace(Model()).get_trace(torch.zeros(2, 3))
    assert set(trace.stochastic_nodes) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    assert trace.nodes["net.0.weight"]["fn"].event_shape == (4, 3)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert isinstance(net[0].weight, nn.Parameter)


def test_priors_by_name_and_parameters_left_out():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def prior(name, parameter):
        if name.startswith("1."):
            return None
        return (
            dist.Laplace(0.0, 2.0)
            if parameter.dim() == 2
            else dist.Normal(torch.zeros(parameter.shape), 3.0).to_event(1)
        )

    bayesian = BayesianModule(net, prior=prior)
    trace = poutine.trace(bayesian).get_trace(torch.randn(6, 3))
    assert trace.nodes["0.weight"]["fn"].base_dist.scale.unique().tolist() == [2.0]
    assert trace.nodes["0.bias"]["fn"].base_dist.scale.unique().tolist() == [3.0]
    assert not any(name.startswith("1.") for name in trace.stochastic_nodes)
    learned = [name for name, site in trace.nodes.items() if site["type"] == "param"]
    assert sorted(name.split("$$$")[-1] for name in learned) == ["1.bias", "1.weight"]  # SVI trains them


def test_a_module_called_twice_uses_one_draw():
    bayesian = BayesianModule(nn.Linear(3, 1))

    class Twice(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.net = bayesian

        def forward(self, x):
            return self.net(x), self.net(x)

    first, second = Twice()(torch.randn(4, 3))
    assert torch.equal(first, second)


def test_dtype_follows_the_module():
    bayesian = BayesianModule(nn.Linear(3, 1)).double()
    assert bayesian(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64
    prior = poutine.trace(bayesian).get_trace(torch.zeros(2, 3).double()).nodes["weight"]["fn"]
    assert prior.base_dist.scale.dtype == torch.float64


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_run(duplicate):
    bayesian = BayesianModule(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))
    twin = duplicate(bayesian)
    x = torch.randn(5, 3)
    pyro.set_rng_seed(1)
    a = bayesian(x)
    pyro.set_rng_seed(1)
    assert torch.equal(a, twin(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BayesianModule(nn.ReLU()), ValueError, "no parameter of ReLU has a prior"),
        (
            lambda: BayesianModule(nn.Linear(3, 1), prior=lambda n, p: dist.Normal(torch.zeros(7), 1.0)),
            ValueError,
            r"'weight' has batch shape \(7,\), which does not expand.*\(1, 3\)",
        ),
        (
            lambda: BayesianModule(nn.Linear(3, 1), prior=lambda n, p: dist.Normal(torch.zeros(7), 1.0).to_event(1)),
            ValueError,
            r"'weight' has shape \(7,\), but the parameter has shape \(1, 3\)",
        ),
        (
            lambda: BayesianModule(nn.Linear(3, 1), prior=lambda n, p: 1.0),
            TypeError,
            r"prior of 'weight' must be a distribution of pyro\.distributions, but found 1\.0",
        ),
        (
            lambda: BayesianModule(nn.Linear(3, 1), event_dim=(1, 2))(torch.zeros(2, 3)),
            ValueError,
            r"event_dim=\(1, 2\) names 2 inputs, but found 1",
        ),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_normalisation_layers_are_no_weights_to_drop():
    bayesian = BayesianModule(nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)), nn.LayerNorm((2, 2))))
    guide = AutoBernoulliDropout(bayesian)
    guide(torch.zeros(5, 4))
    assert set(guide.rates()) == {"0.weight"}
    assert guide.median()["2.weight"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("local", [False, True], ids=["global store", "module local"])
def test_frozen_parameters_stay_what_they_are_in_stock_svi(local):
    """Where nothing else has no prior; Pyro would warn of each, or fail where parameters are modules' own."""
    pyro.settings.set(module_local_params=local)
    net = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 1))
    before = net[0].weight.clone()
    module = BayesianModule(net, prior=lambda _, p: dist.Normal(0.0, 1.0) if p.requires_grad else None).train()

    def model(x, y=None):
        mean = module(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    guide = AutoBernoulliDropout(model, rate=0.2)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceDropout_ELBO())
    for _ in range(3):
        svi.step(torch.randn(5, 3), torch.randn(5))
    assert torch.equal(module._modules["net"][0].weight, before)
    assert list(guide.rates()) == ["2.weight"]
