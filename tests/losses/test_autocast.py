"""Mixed precision: the network computes in bfloat16, what comes out of it, the KL and all sums in single precision."""

from functools import partial

import pyro
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.classification import Classification
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    CompiledSVI,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)

LOW = torch.bfloat16
GUIDES = {
    "concrete": (AutoConcreteDropout, TraceDropout_ELBO),
    "disarm": (partial(AutoBernoulliDropout, learnable=True), TraceDropout_ELBO),
    "alpha": (partial(AutoBernoulliDropout, rate=0.2), partial(RenyiDropout_ELBO, 0.5, 3)),
}


def made(guide):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 5))
    model = Classification(net, size=1000)
    guide = guide(model)
    x, y = torch.randn(50, 8), torch.arange(50) % 5
    guide(x, y)
    return model, guide, net, (x, y)


def without_data(model):
    """The same weights, and observations that count for nothing."""

    def hidden(x, y=None):
        logits = model.net(x)
        with pyro.plate("data", 1000, subsample_size=len(x)), poutine.mask(mask=False):
            return pyro.sample("obs", pyro.distributions.Categorical(logits=logits), obs=y)

    return hidden


@pytest.mark.parametrize("name", GUIDES)
def test_the_kl_is_that_of_single_precision(name):
    guide, loss = GUIDES[name]
    model, guide, _, data = made(guide)
    hidden = without_data(model)
    found = []
    for low in (False, True):
        pyro.set_rng_seed(1)
        with torch.autocast("cpu", LOW, enabled=low):
            found.append(loss().differentiable_loss(hidden, guide, *data))
    assert found[1].dtype == torch.float32
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("loss", [TraceDropout_ELBO, partial(RenyiDropout_ELBO, 0.5, 3)])
def test_the_likelihood_is_that_of_a_network_in_bfloat16(loss):
    model, guide, net, (x, y) = made(partial(AutoBernoulliDropout, rate=0.0))
    weights = {name.removeprefix("net."): value for name, value in guide.median().items()}
    kl = loss().loss(without_data(model), guide, x, y)
    with torch.autocast("cpu", LOW):
        found = loss().differentiable_loss(model, guide, x, y)
        logits = torch.func.functional_call(net, weights, x)
    assert logits.dtype == LOW
    expected = 20 * F.cross_entropy(logits.float(), y, reduction="sum")
    assert found.item() - kl == pytest.approx(expected.item(), rel=2e-5)
    whole = 20 * F.cross_entropy(torch.func.functional_call(net, weights, x), y, reduction="sum")
    assert found.item() - kl != pytest.approx(whole.item(), rel=2e-5)  # in bfloat16 indeed


@pytest.mark.parametrize("name", GUIDES)
def test_gradients_are_near_those_of_single_precision(name):
    guide, loss = GUIDES[name]
    gradients = []
    for low in (False, True):
        model, guide_, _, data = made(guide)
        pyro.set_rng_seed(2)
        with torch.autocast("cpu", LOW, enabled=low):
            value = loss()(model, guide_)(*data)
        value.backward()
        gradients.append({name: p.grad for name, p in guide_.named_parameters() if p.grad is not None})
    for name, expected in gradients[0].items():
        found = gradients[1][name]
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.06 * expected.norm() + 0.5


def test_what_leaves_a_network_is_in_single_precision():
    net = BayesianModule(nn.LSTM(3, 4, batch_first=True))
    with torch.autocast("cpu", LOW):
        out, (h, c) = net(torch.randn(2, 5, 3))
    assert {out.dtype, h.dtype, c.dtype} == {torch.float32}
    plain = BayesianModule(nn.Linear(3, 4).bfloat16(), lambda name, p: pyro.distributions.Normal(0.0, 1.0))
    assert plain(torch.randn(2, 3).bfloat16()).dtype == LOW  # without autocast nothing is changed


def test_compiled_steps_in_and_out_of_autocast_are_different_ones():
    losses = []
    for low in (False, True, None):
        model, guide, _, data = made(partial(AutoBernoulliDropout, rate=0.0))
        svi = CompiledSVI(model, guide, pyro.optim.SGD({"lr": 0.0}), backend="eager", progress=False)
        found = []
        for step in range(6):
            with torch.autocast("cpu", LOW, enabled=step % 2 == 1 if low is None else low):
                found.append(svi.step(*data))
        losses.append(found)
    whole, low, both = losses
    assert len(set(whole)) == len(set(low)) == 1
    assert whole[0] != low[0]
    assert both == pytest.approx([whole[0], low[0]] * 3, rel=1e-6)
