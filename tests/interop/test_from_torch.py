"""Networks with dropout layers as dropout posteriors: equal in distribution and in evaluation; training goes on."""

import copy
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import nn

from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    DropoutPredictive,
    TraceDropout_ELBO,
    from_torch,
    to_torch,
)
from tests.support.networks import (
    NETWORKS,
    PASSES,
    RATES,
    X3D,
    Functions,
    assert_same_distribution,
    case,
    dropout_passes,
    orders,
)


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_in_evaluation_and_in_distribution(name):
    net, x = case(name)
    before = copy.deepcopy(net.state_dict())
    model, guide = from_torch(net, x)
    rates = {site: rate.item() for site, rate in guide.rates().items() if rate > 0}
    assert rates == pytest.approx(RATES[name])
    median = poutine.condition(model, data=guide.median())
    model.eval()
    torch.testing.assert_close(median(x), net(x))
    model.train()
    predict = DropoutPredictive(model, guide=guide, num_samples=PASSES, return_sites=["_RETURN"])
    draws = predict(x)["_RETURN"].reshape(PASSES, len(x), -1)
    passes = dropout_passes(net, x, PASSES).reshape(PASSES, len(x), -1)
    for datum in range(len(x)):
        assert_same_distribution(passes[:, datum], draws[:, datum])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["lenet", "orders", "residual", "encoder"])
def test_masks_per_datum_are_the_joint_distribution_of_a_batch(name):
    net, x = case(name)
    model, guide = from_torch(net, x)
    options = {"num_samples": PASSES, "return_sites": ["_RETURN"]}
    draws = DropoutPredictive(model, guide=guide, masks="datum", **options)(x)["_RETURN"]
    passes = dropout_passes(net, torch.cat([x[:1]] * 3), PASSES)
    functions = DropoutPredictive(model, guide=guide, **options)(torch.cat([x[:1]] * 3))["_RETURN"]
    assert_same_distribution(dropout_passes(net, x, PASSES), draws)
    torch.testing.assert_close(functions, functions[:, :1].expand_as(functions))  # one function, other than a pass
    assert not torch.allclose(passes, passes[:, :1].expand_as(passes))


class Labels(PyroModule):
    def __init__(self, net, size):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x, y=None):
        logits = self.net(x)
        with pyro.plate("data", self.size, subsample_size=len(x)):
            return pyro.sample("obs", dist.Categorical(logits=logits), obs=y)


@pytest.mark.parametrize("guide", [partial(AutoBernoulliDropout, learnable=True), AutoConcreteDropout])
def test_training_goes_on_with_learned_rates(guide):
    net, x = case("lenet", rows=40)
    y = torch.randint(3, (40,))
    pyro.settings.set(module_local_params=True)
    model, guide = from_torch(net, x[:2], lambda module: Labels(module, 40), guide=guide, weight_decay=0.1, size=40)
    elbo = TraceDropout_ELBO(num_particles=4)(model, guide)
    first = elbo(x, y)
    sites = {f"net.{site}": rate for site, rate in RATES["lenet"].items()}
    assert {n: r.item() for n, r in guide.rates().items() if r > 0} == pytest.approx(sites)
    torch.testing.assert_close(guide.median()["net.fc1.weight"], net.fc1.weight.detach())
    optimiser = torch.optim.Adam(elbo.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = elbo(x, y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < first.item()
    assert all(abs(guide.rates()[site] - rate) > 1e-3 for site, rate in sites.items())
    back = to_torch(model.net, guide, x[:2]).eval()
    conditioned = poutine.trace(poutine.condition(model, data=guide.median())).get_trace(x)
    torch.testing.assert_close(back(x).log_softmax(-1), conditioned.nodes["obs"]["fn"].logits)


@pytest.mark.parametrize("loss", ["cross-entropy", "half squared error", "MSELoss"])
def test_weight_decay_becomes_the_prior(loss):
    """The gradient of the KL, per datum and unit of the training loss, is the weight decay's, λ times the parameter."""
    n, decay, keep, tau = 30, 0.07, 0.8, 2.5
    precision = {"cross-entropy": 1.0, "half squared error": tau, "MSELoss": tau / 2}[loss]
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(1 - keep), nn.Linear(5, 1)).double().eval()
    model, _ = from_torch(net, torch.randn(2, 3).double(), weight_decay=decay, size=n, precision=precision)
    sites = poutine.trace(model).get_trace(torch.randn(2, 3).double())
    for name, parameter in net.named_parameters():
        own = keep if name == "3.weight" else 1.0
        loc = parameter.detach().clone().requires_grad_()
        prior = sites.nodes[name]["fn"]
        kl = -own * prior.log_prob(loc / own)  # of kept weights; that of dropped ones is constant
        (slope,) = torch.autograd.grad(kl, loc)
        torch.testing.assert_close(slope / (n * precision), decay * parameter.detach())


def test_recurrent_dropout_is_a_rate_of_the_recurrent_weight():
    """Gal & Ghahramani's second mask, on the state, tied over time: against steps written out."""
    lstm = nn.LSTM(3, 4, batch_first=True)
    module = BayesianModule(lstm, event_dim=2)
    guide, x = AutoBernoulliDropout(module, rate={"weight_ih_l0": 0.3, "weight_hh_l0": 0.5}), torch.randn(2, 6, 3)
    guide(x)
    predict = DropoutPredictive(module, guide=guide, num_samples=5)
    weights = predict.draw(x).posterior_samples
    cell = nn.LSTMCell(3, 4)
    for k in range(5):
        one = {name: value[k] for name, value in weights.items()}
        expected, _ = poutine.condition(module, data=one)(x)
        masks = {name: one[name].mask / one[name].keep for name in ("weight_ih_l0", "weight_hh_l0")}
        cell.load_state_dict({name: lstm.get_parameter(f"{name}_l0") for name in cell.state_dict()})
        h = c = torch.zeros(2, 4)
        for t in range(6):
            h, c = cell(x[:, t] * masks["weight_ih_l0"], (h * masks["weight_hh_l0"], c))
            torch.testing.assert_close(h, expected[:, t])


def test_a_network_in_training_mode_keeps_its_statistics_and_its_modes():
    """Only shapes of the example matter; functional dropout takes another way."""
    pyro.settings.set(module_local_params=True)
    for do in (lambda n, x: n.a(n.drop(n.norm(x))), lambda n, x: n.a(F.dropout(n.norm(x), 0.3, n.training))):
        net = Functions(do, norm=nn.BatchNorm1d(4))
        nn.init.uniform_(net.norm.running_mean)
        net.train()
        net.b.eval()
        model, guide = from_torch(net, torch.zeros(2, 4))
        torch.testing.assert_close(model.net.norm.running_mean, net.norm.running_mean)
        assert [model.net.get_submodule(name).training for name in ("", "norm", "a")] == [True, True, True]
        x = torch.randn(20, 4)
        median = poutine.condition(model.eval(), data=guide.median())(x)
        torch.testing.assert_close(median, copy.deepcopy(net).eval()(x))


def test_two_networks_do_not_share_weights_by_name():
    nets = [orders() for _ in range(2)]
    from_torch(nets[0], torch.randn(2, 6))
    for model in (None, lambda module: Labels(module, 5)):
        with pytest.raises(ValueError, match=r"global store has AutoBernoulliDropout.locs.1.weight.* of another guide"):
            from_torch(nets[1], torch.randn(2, 6), model)
    pyro.clear_param_store()
    guide = from_torch(nets[1], torch.randn(2, 6))[1]
    assert torch.equal(guide.median()["1.weight"], nets[1][1].weight)


def test_a_dropout_whose_weight_gets_no_prior_is_not_lost():
    with pytest.raises(
        ValueError, match=r"a dropout masks 1.weight, 4.weight, 8.weight, but prior gives no distribution"
    ):
        from_torch(orders(), torch.randn(2, 6), prior=lambda name, _: dist.Normal(0.0, 1.0) if "bias" in name else None)


def test_a_layer_whose_dropout_is_off_needs_none():
    """Beside an active one; alone it is an error (``test_given_rates``)."""
    idle = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model, guide = from_torch(nn.Sequential(idle, nn.Flatten(), nn.Dropout(0.3), nn.Linear(20, 2)).eval(), X3D)
    assert [site for site, rate in guide.rates().items() if rate.any()] == ["3.weight"]
    assert isinstance(model, BayesianModule)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_torch(orders(), torch.randn(1, 6)), "two rows of data or more"),
        (lambda: from_torch(orders(), torch.randn(2, 6), weight_decay=0.1), "give size, the number of data points"),
        (lambda: from_torch(orders(), torch.randn(2, 6), weight_decay=0.0, size=9), "must be positive, but found 0.0"),
        (
            lambda: from_torch(orders(), torch.randn(2, 6), weight_decay=0.1, size=9, prior=dist.Normal(0.0, 1.0)),
            "prior or weight_decay, not both",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_network_without_values_is_refused():
    """Not converted with values of its own, which the network never had."""
    net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Dropout(0.1), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"net has parameters without values, 0\.weight, .*: call it once with data"):
        from_torch(net, torch.randn(5, 3))
    net(torch.randn(5, 3))
    assert from_torch(net, torch.randn(5, 3))[1].rates()["3.weight"] == 0.1
