"""The trunk once: what precedes the first mask sees each datum once for any number of draws, with equal results."""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive
from torch import nn

from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    CompiledSVI,
    DropoutPredictive,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)

F64, ROWS, DRAWS = torch.float64, 5, 4


class Counted(nn.Module):
    """Notes how many rows it sees."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, h):
        self.rows.append(len(h))
        return h


class Head(nn.Module):
    """A trunk, and a head that has the masks."""

    def __init__(self, trunk, head, join=None):
        super().__init__()
        self.trunk, self.counted, self.head, self.join = trunk, Counted(), head, join

    def forward(self, x):
        h = self.counted(self.trunk(x))
        return self.head(h) if self.join is None else self.join(h, self.head(h))


def convolutional():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())


TRUNKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh()), (3,), 1),
    "convolutions": (convolutional, (2, 6, 6), 3),
    "recurrent": (lambda: Last(nn.LSTM(3, 6, batch_first=True)), (4, 3), 2),
    "tokens": (lambda: nn.Sequential(nn.Embedding(7, 2), nn.Flatten()), (3,), 1),
    "nothing": (nn.Identity, (6,), 1),
}
JOINS = {
    "residual": lambda before, behind: before[..., :2] + behind,
    "concatenated": lambda before, behind: torch.cat([before, behind], -1)[:, -3:],
    "sizes kept": lambda before, behind: behind.view(before.shape[0], -1)[:, :2],
}


class Last(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0][:, -1]


def network(name, join=None):
    torch.manual_seed(0)
    make, shape, event_dim = TRUNKS[name]
    trunk = make()
    x = torch.randint(0, 7, (ROWS, *shape)) if name == "tokens" else torch.randn(ROWS, *shape, dtype=F64)
    width = trunk.to(F64).eval()(x).shape[-1]
    head = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 2))
    return BayesianModule(Head(trunk, head, join).to(F64).eval(), event_dim=event_dim), x


def rate(site):
    return 0.4 if "head" in site else 0.0


def drawn(module, x, make=AutoBernoulliDropout):
    guide = make(module, rate=rate)
    guide(x)
    with pyro.plate("draws", DRAWS, dim=-2):
        return poutine.trace(guide).get_trace(x)


def one_by_one(module, trace, x):
    """Each draw with its own dense weights, in the network itself."""
    outs = []
    net = module._modules["net"]
    for k in range(DRAWS):
        dense = {}
        for name, slot in module._slots.items():
            value = trace.nodes[name]["value"]
            value = value.dense() if hasattr(value, "dense") else value
            dense[name] = value.expand(DRAWS, 1, *slot.value.shape)[k, 0]
        outs.append(torch.func.functional_call(net, dense, x))
    return torch.stack(outs)


def rows_of(module):
    counted = module._modules["net"].counted
    seen, counted.rows = counted.rows, []
    return seen


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", TRUNKS)
def test_draws_share_the_trunk(name, gradients):
    module, x = network(name)
    trace = drawn(module, x)
    with torch.set_grad_enabled(gradients):
        out = poutine.replay(module, trace=trace)(x)
        rows_of(module)
        out = poutine.replay(module, trace=trace)(x)
    assert rows_of(module) == [ROWS]
    torch.testing.assert_close(out, one_by_one(module, trace, x))


@pytest.mark.parametrize("join", JOINS)
def test_what_joins_trunk_and_head_sees_each_draw(join):
    module, x = network("linear", JOINS[join])
    trace = drawn(module, x)
    for _ in range(2):
        rows_of(module)
        out = poutine.replay(module, trace=trace)(x)
    assert rows_of(module) == [DRAWS * ROWS]
    torch.testing.assert_close(out, one_by_one(module, trace, x))


@pytest.mark.parametrize("join", [None, "added", "concatenated"])
def test_one_large_image_is_tried_as_it_is(join):
    """Not three times over, as two draws of three images may be gigabytes; calls of more images are tried anew."""
    joins = {"added": torch.add, "concatenated": lambda before, behind: torch.cat([before, behind], 1)[:, 1:4]}
    torch.manual_seed(0)
    net = Head(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), joins.get(join))
    module, x = BayesianModule(net.to(F64).eval()), torch.randn(3, 1, 256, 256, dtype=F64)
    trace = drawn(module, x[:1])
    rows_of(module)
    with torch.no_grad():
        for images in (x[:1], x[1:2], x, x[:2]):
            out = poutine.replay(module, trace=trace)(images)
            torch.testing.assert_close(out, one_by_one(module, trace, images))
            if len(images) == 1:
                assert max(rows_of(module)) <= DRAWS  # not 2 · 3
            rows_of(module)


def test_chance_in_the_trunk_is_not_shared():
    """A network that draws numbers of its own draws them anew for each draw of weights, which run in turn."""
    module, x = network("linear")
    module._modules["net"].trunk.append(nn.Dropout(0.5)).train()
    trace = drawn(module, x)
    for _ in range(2):
        rows_of(module)
        out = poutine.replay(module, trace=trace)(x)
    assert rows_of(module) == DRAWS * [ROWS]
    assert not torch.allclose(out[0], out[1])


def test_other_masks_have_another_trunk():
    """What was found for one guide is not taken for another."""
    module, x = network("linear")
    poutine.replay(module, trace=drawn(module, x))(x)
    rows_of(module)
    guide = AutoBernoulliDropout(module, rate=0.3)
    guide(x)
    with pyro.plate("draws", DRAWS, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
    for _ in range(2):
        rows_of(module)
        out = poutine.replay(module, trace=trace)(x)
    assert rows_of(module) == [DRAWS * ROWS]
    torch.testing.assert_close(out, one_by_one(module, trace, x))


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
@pytest.mark.parametrize("draws", [1, 2, 3, 6])
def test_numbers_of_rows_and_draws(rows, draws):
    module, x = network("linear")
    guide = AutoBernoulliDropout(module, rate=rate)
    guide(x)
    x = torch.randn(rows, 3, dtype=F64)
    with pyro.plate("draws", draws, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
    out = poutine.replay(module, trace=trace)(x)
    assert out.shape == (draws, rows, 2)
    for k in range(draws):
        each = {n: v["value"] for n, v in trace.nodes.items() if n in module._slots}
        dense = {
            n: (v.dense() if hasattr(v, "dense") else v).expand(draws, 1, *module._slots[n].value.shape)[k, 0]
            for n, v in each.items()
        }
        torch.testing.assert_close(out[k], torch.func.functional_call(module._modules["net"], dense, x))


def test_plates_of_networks_and_their_own_data():
    """Of three networks with two draws each, on data of each network and on common data."""
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), Counted(), nn.Linear(6, 2)).to(F64)
    module = BayesianModule(net, event_dim=1)

    def model(x):
        with pyro.plate("networks", 3, dim=-2):
            return module(x)

    for x in (torch.randn(ROWS, 3, dtype=F64), torch.randn(3, ROWS, 3, dtype=F64)):
        guide = AutoBernoulliDropout(model, rate=lambda site: 0.4 if "3" in site else 0.0)
        pyro.clear_param_store()
        guide(x)
        with torch.no_grad():
            for p in guide.locs.parameters():
                p.add_(torch.randn_like(p))
        with pyro.plate("draws", 2, dim=-3):
            trace = poutine.trace(guide).get_trace(x)
        out = poutine.replay(model, trace=trace)(x)
        assert out.shape == (2, 3, ROWS, 2)
        for k in range(2):
            for r in range(3):
                dense = {}
                for name, slot in module._slots.items():
                    value = trace.nodes[name]["value"]
                    value = value.dense() if hasattr(value, "dense") else value
                    dense[name] = value.expand(2, 3, 1, *slot.value.shape)[k, r, 0]
                inputs = x if x.dim() == 2 else x[r]
                torch.testing.assert_close(out[k, r], torch.func.functional_call(module._modules["net"], dense, inputs))


class Model(pyro.nn.PyroModule):
    def __init__(self, module):
        super().__init__()
        self.net = module

    def forward(self, x, y=None):
        mean = self.net(x)[..., 0]
        with pyro.plate("data", len(x)):
            pyro.deterministic("mean", mean, event_dim=0)
            return pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)


@pytest.mark.parametrize("masks", ["datum", "draw"])
@pytest.mark.parametrize("loss", [TraceDropout_ELBO, RenyiDropout_ELBO])
@pytest.mark.parametrize("make", [AutoBernoulliDropout, AutoConcreteDropout])
def test_particles_and_energies_share_it(make, loss, masks):
    """A step of several particles gives the trunk the gradient that it has with all draws apart."""
    module, x = network("convolutions")
    model, y = Model(module), torch.randn(ROWS, dtype=F64)
    guide = make(model, rate=rate)
    elbo = loss(num_particles=6, masks=masks)
    elbo.loss(model, guide, x, y)
    gradients = []
    for shared in (True, False):
        rows_of(module)
        if not shared:
            for key in module._trunks:
                module._trunks[key] = module._trunks[key]._replace(shared=False)
        guide.zero_grad()
        pyro.set_rng_seed(1)
        elbo.loss_and_grads(model, guide, x, y)
        gradients.append([p.grad.clone() for p in guide.parameters() if p.grad is not None])
        assert rows_of(module) == [ROWS if shared else 6 * ROWS]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().sum() > 0


def test_pairs_of_learned_masks_share_it():
    module, x = network("linear")
    model, y = Model(module), torch.randn(ROWS, dtype=F64)
    guide = AutoBernoulliDropout(model, rate=rate, learnable=True)
    elbo = TraceDropout_ELBO(num_particles=3)
    elbo.loss_and_grads(model, guide, x, y)
    rows_of(module)
    elbo.loss_and_grads(model, guide, x, y)
    assert rows_of(module) == [ROWS]


def test_compiled_steps_share_it():
    module, x = network("linear")
    model, y = Model(module), torch.randn(ROWS, dtype=F64)
    guide = AutoBernoulliDropout(model, rate=rate)
    svi = CompiledSVI(model, guide, pyro.optim.SGD({"lr": 0.0}), TraceDropout_ELBO(6), backend="eager", progress=False)
    svi.step(x, y)
    rows_of(module)
    svi.step(x, y)
    assert set(rows_of(module)) == {ROWS}


def test_predictions_share_it():
    module, x = network("convolutions")
    model = Model(module)
    guide = AutoBernoulliDropout(model, rate=rate)
    guide(x, torch.zeros(ROWS, dtype=F64))
    predict = DropoutPredictive(model, guide=guide, num_samples=40).draw(x)
    first = predict(x)["mean"]
    rows_of(module)
    again = predict(x)["mean"]
    assert max(rows_of(module)) == ROWS  # of the probes fewer
    torch.testing.assert_close(again, first)
    samples = {n: v.dense() if hasattr(v, "dense") else v for n, v in predict.posterior_samples.items()}
    torch.testing.assert_close(first.reshape(40, ROWS), Predictive(model, samples)(x)["mean"].reshape(40, ROWS))


def test_slices_take_more_draws_where_the_trunk_costs_more():
    """What no cache holds is taken in slices, each of which runs the trunk again: it must be worth it."""
    module, x = network("convolutions")
    trace = drawn(module, x)
    with torch.no_grad(), pyro.settings.context(dropout_cached_activations=1):
        for _ in range(2):
            rows_of(module)
            out = poutine.replay(module, trace=trace)(x)
    assert rows_of(module) == [ROWS]
    torch.testing.assert_close(out, one_by_one(module, trace, x))


class Folded(nn.Module):
    """Has times in the place of its batch, or in its batch, between its layers."""

    def __init__(self, fold, unfold):
        super().__init__()
        self.first, self.second, self.fold, self.unfold = nn.Linear(3, 5), nn.Linear(5, 2), fold, unfold

    def forward(self, x):
        return self.unfold(self.second(torch.tanh(self.first(self.fold(x)))), x)


FOLDS = {
    "times as rows": (lambda x: x.reshape(-1, 3), lambda h, x: h.unflatten(0, x.shape[:2]).mean(1)),
    "rows by times": (lambda x: x.transpose(0, 1).flatten(0, 1), lambda h, x: h.unflatten(0, (x.shape[1], -1)).mean(0)),
    "time first": (lambda x: x.transpose(0, 1), lambda h, x: h.mean(0)),
}


def assert_draws_are_right(module, x):
    guide = AutoBernoulliDropout(module, rate=0.4)
    guide(x)
    with pyro.plate("draws", DRAWS, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
    torch.testing.assert_close(poutine.replay(module, trace=trace)(x), one_by_one(module, trace, x))


@pytest.mark.parametrize("times", [1, 2, 3, 4, 6, 20])
@pytest.mark.parametrize("name", FOLDS)
def test_networks_that_fold_times_into_their_batch(name, times):
    """Where the batch's dimension holds times, it may look like draws and data, and is none."""
    module = BayesianModule(Folded(*FOLDS[name]).to(F64), event_dim=2)
    for rows in (1, 2, ROWS):
        assert_draws_are_right(module, torch.randn(rows, times, 3, dtype=F64))


@pytest.mark.parametrize("name", FOLDS)
def test_other_numbers_of_times_are_tried_anew(name):
    """With one time per datum these networks may be merged; what was found for that says nothing of four times."""
    module = BayesianModule(Folded(*FOLDS[name]).to(F64), event_dim=2)
    for times in (1, DRAWS, 1, 2, DRAWS * ROWS):
        assert_draws_are_right(module, torch.randn(ROWS, times, 3, dtype=F64))
