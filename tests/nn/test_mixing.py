"""Networks that mix rows never see rows of two draws; those that do not still run all draws at once."""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive
from pyro.nn import PyroModule
from torch import nn
from torch.func import functional_call

from pyro_dropout import AutoBernoulliDropout, BayesianModule, DropoutPredictive
from pyro_dropout.masks import DatumMasks
from tests.support.mixers import MIXERS, OTHERS, ROWS, Mixer, MultiHead

F64 = torch.float64


def network(make, **kwargs):
    torch.manual_seed(3)
    return Mixer(make(), **kwargs).double(), torch.randn(ROWS, 3, dtype=F64)


def drawn(module, x, draws):
    """Weights of some draws, as stock Pyro draws them in a plate."""
    guide = AutoBernoulliDropout(module, rate=lambda site: 0.4 if site in ("first.weight", "second.weight") else 0.0)
    guide(x.clone())
    with torch.no_grad(), pyro.plate("draws", draws, dim=-2):
        return guide, poutine.trace(guide).get_trace(x)


def one_by_one(net, trace, x, draws):
    """The network itself, once for each draw, with dense weights."""
    outs = []
    for k in range(draws):
        values = {}
        for name, parameter in net.named_parameters():
            value = trace.nodes[name]["value"]
            value = value.dense() if hasattr(value, "dense") else value
            values[name] = value.expand(draws, 1, *parameter.shape)[k, 0]
        outs.append(functional_call(net, values, x.clone()))
    return torch.stack(outs)


ALL = {**MIXERS, **OTHERS}
# layers of normalisation have the width of the hidden layer
PLACES = [(name, first) for name in ALL for first in (False, True) if not (first and "norm" in name)]


@pytest.mark.parametrize("draws", [1, 2, 3])
@pytest.mark.parametrize(("name", "first"), PLACES, ids=[f"{n}{', first' if first else ''}" for n, first in PLACES])
def test_draws_at_once_are_draws_one_by_one(name, first, draws):
    net, x = network(ALL[name], first=first)
    module = BayesianModule(net)
    _, trace = drawn(module, x, draws)
    with torch.no_grad():
        out = poutine.replay(module, trace=trace)(x.clone())
        torch.testing.assert_close(out, one_by_one(net, trace, x, draws))


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_run_all_draws_in_one_pass(name):
    net, x = network(OTHERS[name])
    module = BayesianModule(net)
    _, trace = drawn(module, x, 3)
    poutine.replay(module, trace=trace)(x)
    calls = []
    hook = module._modules["net"].register_forward_hook(lambda m, args, out: calls.append(len(out)))
    poutine.replay(module, trace=trace)(x)
    hook.remove()
    assert calls == [3 * ROWS]


@pytest.mark.parametrize("name", ALL)
def test_draws_that_run_one_at_a_time_need_no_trial(name):
    """It would keep all activations of the data, for its gradients: gigabytes of large images."""
    net, x = network(ALL[name])
    module = BayesianModule(net)
    _, trace = drawn(module, x, 3)
    module.eval()  # where batch statistics are learned, draws run at once
    with torch.no_grad(), pyro.settings.context(dropout_cached_activations=1):
        out = poutine.replay(module, trace=trace)(x.clone())
    torch.testing.assert_close(out, one_by_one(net, trace, x, 3))
    assert module._mixing == {}


def test_one_row_and_whole_numbers():
    """One row has nothing to mix with, but rows of draws would; tokens have no gradient, but masks have."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.last = nn.Embedding(7, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.words(x)).cumsum(0)

    torch.manual_seed(0)
    for net, x in ((network(MIXERS["attention"])[0], torch.randn(1, 3, dtype=F64)), (Words(), torch.arange(6))):
        module = BayesianModule(net, event_dim=1 if x.is_floating_point() else 0)
        guide = AutoBernoulliDropout(module, rate=lambda site: 0.0 if "words" in site else 0.4)
        guide(x)
        with torch.no_grad(), pyro.plate("draws", 3, dim=-2):
            trace = poutine.trace(guide).get_trace(x)
            out = poutine.replay(module, trace=trace)(x)
        torch.testing.assert_close(out, one_by_one(net, trace, x, 3))


def test_the_mode_counts():
    """Batch statistics mix, running statistics do not; the trial changes neither."""
    net, x = network(lambda: nn.BatchNorm1d(4))
    module = BayesianModule(net)
    _, trace = drawn(module, x, 3)
    norm = module._modules["net"].mix
    module.eval()
    before = norm.running_mean.clone()
    poutine.replay(module, trace=trace)(x)
    assert torch.equal(norm.running_mean, before)
    assert list(module._mixing.values()) == [False]
    module.train()
    counted = norm.num_batches_tracked.item()
    poutine.replay(module, trace=trace)(x)
    assert norm.num_batches_tracked.item() == counted + 3  # one for each draw
    assert list(module._mixing.values()) == [False, True]


def test_the_trial_takes_no_random_numbers_and_works_without_gradients():
    net, x = network(MIXERS["attention"])
    ends = []
    for known in (False, True):
        module = BayesianModule(net)
        _, trace = drawn(module, x, 3)
        if known:
            poutine.replay(module, trace=trace)(x)
        torch.manual_seed(0)
        with torch.inference_mode():
            poutine.replay(module, trace=trace)(x)
        ends.append(torch.rand(3))
    assert torch.equal(*ends)


class Model(PyroModule):
    def __init__(self, net):
        super().__init__()
        self.net = BayesianModule(net)

    def forward(self, x, y=None):
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.deterministic("mean", mean, event_dim=0)
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)


@pytest.mark.parametrize("make", [*MIXERS.values(), MultiHead])
def test_predictions_of_the_same_draws_agree_any_way(make):
    """Stock ``Predictive`` and ours, all draws at once, against one at a time."""
    net, x = network(make)
    model = Model(net)
    rate = {n: 0.4 if n in ("net.first.weight", "net.second.weight") else 0.0 for n in sites(model, x)}
    guide = AutoBernoulliDropout(model, rate=rate)
    guide(x, x[:, 0])
    draws = DropoutPredictive(model, guide=guide, num_samples=20, data=()).draw(x)
    samples = {
        name: value.dense() if hasattr(value, "dense") else value for name, value in draws.posterior_samples.items()
    }
    with torch.no_grad():
        in_turn = Predictive(model, samples)(x)["mean"].reshape(20, ROWS)
        at_once = Predictive(model, draws.posterior_samples, parallel=True)(x)["mean"].reshape(20, ROWS)
    torch.testing.assert_close(at_once, in_turn)
    torch.testing.assert_close(draws(x)["mean"].reshape(20, ROWS), in_turn)


def sites(model, x):
    trace = poutine.trace(model).get_trace(x)
    return [n for n, s in trace.nodes.items() if s["type"] == "sample" and s["infer"].get("masked_units")]


@pytest.mark.parametrize("name", MIXERS)
def test_predictions_with_masks_per_datum_are_refused(name):
    net, x = network(MIXERS[name])
    model = Model(net)
    guide = AutoBernoulliDropout(model, rate={n: 0.4 if "mix" not in n else 0.0 for n in sites(model, x)})
    guide(x, x[:, 0])
    if "norm" in name:  # by the statistics of the batch, also in evaluation mode
        model.eval()
    with pytest.raises(ValueError, match=r"depends on the masks of other data .*masks=\"draw\""):
        DropoutPredictive(model, guide=guide, num_samples=4, masks="datum", return_sites=["mean"], data=())(x)


def test_inputs_that_mix_before_the_masks_may_have_masks_per_datum():
    """Each draw by itself: a datum's output depends on its own masks, and on all inputs."""
    net, x = network(MIXERS["set"], first=True)
    module = BayesianModule(net)
    guide = AutoBernoulliDropout(module, rate=0.4)
    guide(x)
    with torch.no_grad(), pyro.plate("draws", 3, dim=-2):
        trace = poutine.trace(DatumMasks()(guide)).get_trace(x)
        out = poutine.replay(module, trace=trace)(x)
    masks = [trace.nodes[site]["value"].mask for site in ("first.weight", "second.weight")]
    keep, h = 0.6, x + x.mean(0, keepdim=True)
    for k in range(3):
        first, second = (next(iter(mask.entries[(k,)].draws.values())) for mask in masks)
        hidden = torch.tanh((h * first / keep) @ net.first.weight.T + net.first.bias)
        torch.testing.assert_close(out[k], (hidden * second / keep) @ net.second.weight.T + net.second.bias)
