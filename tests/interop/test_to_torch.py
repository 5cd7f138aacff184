"""Dropout posteriors as networks with dropout layers: the same passes, or a named error."""

import pytest
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import nn

from pyro_dropout import (
    AutoBernoulliDropout,
    BayesianModule,
    DropoutPredictive,
    from_torch,
    to_torch,
)
from tests.support.networks import (
    NETWORKS,
    PASSES,
    RATES,
    X3D,
    X4,
    Functions,
    assert_same_distribution,
    case,
    dropout_passes,
    merged,
    orders,
)


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name):
    """The plain network has the same passes; the original class takes its state."""
    net, x = case(name)
    model, guide = from_torch(net, x)
    back = to_torch(model, guide, x).eval()
    torch.testing.assert_close(back(x), net(x))
    assert not any(isinstance(part, PyroModule) for part in back.modules())
    assert_same_distribution(dropout_passes(net, x, PASSES), dropout_passes(back, x, PASSES))
    if name != "lenet":  # whose dropout functions became layers
        fresh = NETWORKS[name][0]().double().eval()
        fresh.load_state_dict(back.state_dict())
        torch.testing.assert_close(fresh(x), net(x))
        old, new = ([p.p for p in n.modules() if isinstance(p, nn.modules.dropout._DropoutNd)] for n in (net, back))
        assert sum(p > 0 for p in new) == len(RATES[name])
        assert name == "orders" or new == pytest.approx(old)  # two in a row became one
    (back(x).sum()).backward()
    assert all(p.grad is not None for p in back.parameters())


def test_a_layer_that_the_package_made_gets_a_dropout_before_it():
    module = BayesianModule(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)))
    guide, x = AutoBernoulliDropout(module, rate={"0.weight": 0.5, "3.weight": 0.25}), torch.randn(3, 3, 4, 4)
    guide(x)
    net = to_torch(module, guide, x)
    assert isinstance(net[0][0], nn.Dropout2d)
    assert (net[0][0].p, net[3][0].p) == (0.5, 0.25)
    draws = DropoutPredictive(module, guide=guide, num_samples=PASSES, masks="datum", return_sites=["_RETURN"])(x)
    assert_same_distribution(dropout_passes(net, x, PASSES), draws["_RETURN"])


def test_a_network_of_one_layer():
    module = BayesianModule(nn.Linear(4, 2))
    guide = AutoBernoulliDropout(module, rate=0.4)
    guide(X4)
    assert [type(part) for part in to_torch(module, guide, X4)] == [nn.Dropout, nn.Linear]


# Errors


def test_one_mask_for_several_uses_is_more_than_dropout_layers_can_do():
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    for net in (tied, Functions(lambda n, x: n.a(n.a(x)))):
        module = BayesianModule(net, event_dim=1)
        guide = AutoBernoulliDropout(module, rate=0.4)
        guide(X4)
        with pytest.raises(ValueError, match="has one mask wherever the network uses it"):
            to_torch(module, guide, X4)
    module = BayesianModule(Functions(merged), event_dim=2)
    guide = AutoBernoulliDropout(module, rate={"a.weight": 0.4, "b.weight": 0.0})
    guide(X3D)
    with pytest.raises(ValueError, match=r"'a' has rate 0.4 for inputs of shape \(15, 4\)"):
        to_torch(module, guide, X3D)


def test_what_a_dropout_layer_cannot_do():
    x = torch.randn(3, 5, 4)
    module = BayesianModule(nn.Sequential(nn.Linear(4, 2)), event_dim=2)
    guide = AutoBernoulliDropout(module, rate=0.1)
    guide(x)
    with pytest.raises(ValueError, match=r"Linear '0' has rate 0.1 for inputs of shape \(3, 5, 4\)"):
        to_torch(module, guide, x)
    guide = AutoBernoulliDropout(module, rate=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    guide(x)
    with pytest.raises(ValueError, match=r"0.weight has a rate for each unit"):
        to_torch(module, guide, x)
    module = BayesianModule(Functions(lambda n, x: F.linear(x, n.a.weight)))
    guide, x = AutoBernoulliDropout(module, rate={"a.weight": 0.5, "b.weight": 0.0}), torch.randn(2, 4)
    guide(x)
    with pytest.raises(ValueError, match=r"'a' has rate 0.5 for inputs of shape \(\)"):
        to_torch(module, guide, x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: to_torch(
                BayesianModule(orders()), from_torch(nn.Linear(2, 1), torch.randn(2, 2), rate=0.1)[1], torch.randn(2, 6)
            ),
            "the guide has no 1.weight",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
