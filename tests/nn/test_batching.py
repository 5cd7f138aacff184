"""Networks of every kind whose weights have batch dimensions, against explicit loops over draws."""

import copy

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

from pyro_dropout import AutoBernoulliDropout, BayesianModule
from pyro_dropout.masks import DatumMasks


class Residual(nn.Module):
    """A class with a forward of its own, a shared layer and a parameter outside of layers."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.same = self.inner
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.scale + self.same(self.inner(x).relu()).view(x.shape[0], 4)


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.block(x).mean(1)


class Recurrent(nn.Module):
    """The last output, and what all times add up to."""

    def __init__(self, make=nn.LSTM, time_first=False, **options):
        super().__init__()
        self.lstm, self.time_first = make(4, 3, batch_first=not time_first, **options), time_first

    def forward(self, x):
        h = self.lstm(x.mT.movedim(-1, 0))[0].movedim(0, 1) if self.time_first else self.lstm(x)[0]
        return h[:, -1] + h.sum(1)


class Stepwise(nn.Module):
    """Cells in a loop over time, one on the states of the other, from a state that is learned."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.start = nn.LSTMCell(4, 3), nn.GRUCell(3, 2), nn.Parameter(torch.randn(3))

    def forward(self, x):
        h, c, k = self.start.expand(len(x), -1), x.new_zeros(len(x), 3), x.new_zeros(len(x), 2)
        for x_t in x.unbind(1):
            h, c = self.first(x_t, (h, c))
            k = self.second(h, k)
        return k


class Encoded(nn.Module):
    """A recurrent layer that starts where another one ends."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.GRU(4, 3, batch_first=True), nn.GRU(4, 3, batch_first=True)

    def forward(self, x):
        return self.decoder(x.flip(1), self.encoder(x)[1])[0].sum(1)


class First(nn.Module):
    """Takes the data for times."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Packed(nn.Module):
    """Sequences of lengths that the data tell."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        lengths = 1 + (x[:, 0, 0] > 0).long()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.lstm(packed)[1][0][-1]


class Centred(nn.LSTM):
    """Is like an LSTM, but does something else with its biases."""

    def forward(self, x):
        return super().forward(x)[0] + self.bias_ih_l0.mean()


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), (4,), None),
    "convolutional": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)),
        (2, 6, 6),
        None,
    ),
    "grouped and transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3, groups=2), nn.Flatten()),
        (2, 5),
        None,
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)), (4,), None),
    "residual": (Residual, (4,), 1),
    "transformer": (TransformerBlock, (3, 4), 2),
    "recurrent": (Recurrent, (2, 4), 2),
    "recurrent, both ways": (lambda: Recurrent(nn.GRU, bidirectional=True, num_layers=2), (2, 4), 2),
    "recurrent, time first": (lambda: Recurrent(nn.RNN, time_first=True, bias=False), (2, 4), 2),
    "recurrent, projected": (lambda: Recurrent(proj_size=2, num_layers=2), (2, 4), 2),
    "recurrent cells": (Stepwise, (2, 4), 2),
    "recurrent, encoded": (Encoded, (2, 4), 2),
    "recurrent, packed": (Packed, (2, 4), 2),
    "recurrent, its own class": (lambda: Centred(4, 3, batch_first=True), (2, 4), 2),
    "recurrent, times for rows": (lambda: First(nn.GRU(4, 3)), (2, 4), 2),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), (3, 4), 2),
}


def build(name):
    make, datum, event_dim = NETWORKS[name]
    return make().double(), datum, event_dim


def run_with(net, values, x):
    """The plain network with given weights: the reference."""
    net = copy.deepcopy(net)
    names = {id(p): n for n, p in net.named_parameters()}
    with torch.no_grad():
        for parameter in net.parameters():
            value = values[names[id(parameter)]]
            parameter.copy_(value.dense() if hasattr(value, "dense") else value)
        return net(x)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_states_of_recurrent_layers_keep_their_place(layers, rows):
    """``[layers, rows, units]`` of each draw."""
    net = nn.LSTM(4, 3, layers, batch_first=True).double()
    bayesian, x = BayesianModule(net, event_dim=2), torch.randn(rows, 2, 4, dtype=torch.float64)
    guide = AutoBernoulliDropout(bayesian, rate=0.4)
    guide(x)
    with torch.no_grad(), pyro.plate("draws", 3, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
        out, (h, c) = poutine.replay(bayesian, trace=trace)(x)
    assert h.shape == (3, layers, rows, 3)
    for k in range(3):
        values = {n: trace.nodes[n]["value"].expand(3, 1, *p.shape)[k, 0] for n, p in net.named_parameters()}
        of_one, states = run_with(net, values, x)
        for found, expected in zip((out, h, c), (of_one, *states), strict=True):
            torch.testing.assert_close(found[k], expected)


@pytest.mark.parametrize("draws", [1, 2, 3, 17])
@pytest.mark.parametrize("name", ["recurrent", "recurrent, both ways", "recurrent, time first", "recurrent cells"])
@pytest.mark.parametrize("masked", ["weight", "_ih", "_hh"])
@pytest.mark.parametrize("rest", [AutoDelta, AutoNormal])
def test_recurrent_networks_with_any_numbers_of_draws_and_rows(name, draws, masked, rest):
    """As many rows as draws, times, layers, or one."""
    net, datum, event_dim = build(name)
    bayesian = BayesianModule(net, event_dim=event_dim)
    guide = AutoBernoulliDropout(bayesian, rate=lambda site: 0.4 if masked in site else 0.0, rest=rest)
    for rows in (1, 2, 3, 17):
        x = torch.randn(rows, *datum, dtype=torch.float64)
        guide(x)
        with torch.no_grad(), pyro.plate("draws", draws, dim=-2):
            trace = poutine.trace(guide).get_trace(x)
            out = poutine.replay(bayesian, trace=trace)(x)
        assert out.shape[:2] == (draws, rows)
        for k in range(draws):
            values = {n: trace.nodes[n]["value"].expand(draws, 1, *p.shape)[k, 0] for n, p in net.named_parameters()}
            torch.testing.assert_close(out[k], run_with(net, values, x), rtol=1e-9, atol=1e-9)


def test_all_draws_of_recurrent_layers_run_at_once():
    """With cells, and where states are returned, or the rows are in the second dimension."""
    nets = [nn.GRU(4, 3, 2, batch_first=True), Recurrent(nn.RNN, time_first=True), Recurrent(bidirectional=True)]
    for net, cells in (*((net, 1) for net in nets), (Stepwise(), 3)):
        bayesian, x = BayesianModule(net, event_dim=2), torch.randn(5, 3, 4)
        pyro.clear_param_store()
        guide = AutoBernoulliDropout(bayesian, rate=0.4)
        guide(x)
        with pyro.plate("draws", 7, dim=-2):
            trace = poutine.trace(guide).get_trace(x)
            poutine.replay(bayesian, trace=trace)(x)
            layers = [m for m in bayesian._modules["net"].modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase)]
            calls = []
            hook = layers[0].register_forward_hook(lambda m, i, o, calls=calls: calls.append(o[0].numel()))
            poutine.replay(bayesian, trace=trace)(x)
            hook.remove()
        assert len(calls) == cells
        assert calls[0] % 35 == 0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("draws", ["dense", "masked", "masked, random rest"])
@pytest.mark.parametrize("gradients", [True, False])
def test_networks_that_do_not_broadcast_run_as_a_loop_over_draws(name, draws, gradients):
    net, datum, event_dim = build(name)
    bayesian = BayesianModule(net, event_dim=event_dim)
    x = torch.randn(5, *datum, dtype=torch.float64)
    if draws == "dense":
        vectorised, guide = bayesian, None
    else:
        rest = AutoNormal if "rest" in draws else AutoDelta
        guide = AutoBernoulliDropout(bayesian, rate=0.4, rest=rest)
        guide(x)
    with torch.set_grad_enabled(gradients), pyro.plate("draws", 3, dim=-2):
        trace = poutine.trace(guide).get_trace(x) if guide else None
        vectorised = poutine.replay(bayesian, trace=trace) if trace else bayesian
        trace = poutine.trace(vectorised).get_trace(x)
    out = trace.nodes["_RETURN"]["value"]
    assert out.shape[:2] == (3, 5)
    sites = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample"}
    for k in range(3):
        values = {n: v.expand(3, 1, *v.shape[2:])[k, 0] if v.dim() > 2 else v[k, 0] for n, v in sites.items()}
        torch.testing.assert_close(out[k].detach(), run_with(net, values, x), rtol=1e-9, atol=1e-9)


def test_many_draws_go_through_in_slices_without_gradients():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    bayesian = BayesianModule(net)
    guide = AutoBernoulliDropout(bayesian, rate=0.4)
    x = torch.randn(5, 4)
    guide(x)
    with torch.no_grad(), pyro.plate("draws", 7, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
        whole = poutine.replay(bayesian, trace=trace)(x)
        rows = []
        hook = bayesian._modules["net"].register_forward_hook(lambda m, i, o: rows.append(o.shape[0]))
        with pyro.settings.context(dropout_cached_activations=50):  # ten rows of five units
            sliced = poutine.replay(bayesian, trace=trace)(x)
        hook.remove()
    assert rows == [10, 10, 10, 5]
    torch.testing.assert_close(sliced, whole)


@pytest.mark.parametrize("bias", [None, "one", "by draw"])
@pytest.mark.parametrize("per_unit", [False, True])
def test_draws_that_meet_many_data_are_multiplied_out_and_give_the_same(bias, per_unit):
    """Without gradients the smaller of weights and inputs is masked: 30 data against 4 outputs."""
    net = nn.Linear(6, 4, bias=bias is not None).double()
    module = BayesianModule(net)
    rate = torch.linspace(0.1, 0.6, 6) if per_unit else 0.4
    guide = AutoBernoulliDropout(module, rate=rate, rest=AutoNormal if bias == "by draw" else AutoDelta)
    x = torch.randn(30, 6, dtype=torch.float64)
    guide(x)
    with pyro.plate("draws", 5, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
        masked = poutine.replay(module, trace=trace)(x)
        with torch.no_grad():
            multiplied = poutine.replay(module, trace=trace)(x)
            with pytest.raises(ValueError, match=r"masks 6 input units, but the layer's input has shape \(30, 5\)"):
                poutine.replay(module, trace=trace)(x[:, :5])
    torch.testing.assert_close(multiplied, masked)
    weights = trace.nodes["weight"]["value"].dense().squeeze(1)
    shift = trace.nodes["bias"]["value"].reshape(5, -1, 4).expand(5, 1, 4) if bias else 0.0
    torch.testing.assert_close(multiplied, x @ weights.mT + shift)


NOT_AT_ONCE = {
    "transformer",
    "layer norm",
    "recurrent, packed",
    "recurrent, its own class",
    "recurrent, times for rows",
}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in NOT_AT_ONCE])
def test_particles_with_masks_per_datum_run_as_a_loop_over_particles(name):
    net, datum, event_dim = build(name)
    bayesian = BayesianModule(net, event_dim=event_dim)
    guide = AutoBernoulliDropout(bayesian, rate=0.4)
    x = torch.randn(5, *datum, dtype=torch.float64)
    guide(x)
    with pyro.plate("particles", 3, dim=-2):
        trace = poutine.trace(DatumMasks()(guide)).get_trace(x)
        out = poutine.replay(bayesian, trace=trace)(x)
    sites = {
        n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and n in dict(net.named_parameters())
    }
    for k in range(3):
        for n in range(5):
            values = {}
            for site, value in sites.items():
                if hasattr(value, "dense"):
                    z = value.mask.draw((3, 5))[k, n]
                    value = value.replace(mask=z)
                else:
                    value = value.expand(3, 1, *value.shape[2:])[k, 0]
                values[site] = value
            one = run_with(net, values, x[n : n + 1])
            torch.testing.assert_close(out[k, n], one[0], rtol=1e-9, atol=1e-9)


def test_many_networks_in_a_plate_with_data_of_their_own():
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 1)).double()
    bayesian = BayesianModule(net)  # a convolution tells what one datum is

    def model(x):
        with pyro.plate("networks", 4, dim=-2):
            return bayesian(x)

    guide = AutoBernoulliDropout(model, rate=0.4)
    x = torch.randn(4, 5, 2, 4, dtype=torch.float64)
    guide(x)
    assert guide.median()["0.weight"].shape == (4, 1, 3, 2, 2)
    with torch.no_grad():
        guide.locs._modules["0"].weight_unconstrained.normal_()
    trace = poutine.trace(guide).get_trace(x)
    out = poutine.replay(model, trace=trace)(x)
    for r in range(4):
        values = {name: trace.nodes[name]["value"][r, 0] for name, _ in net.named_parameters()}
        torch.testing.assert_close(out[r].detach(), run_with(net, values, x[r]))


def test_a_layer_shared_with_one_that_needs_dense_weights_runs_draw_by_draw():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 6, bias=False)
            self.embedding = nn.Embedding(6, 4)
            self.embedding.weight = self.out.weight

        def forward(self, i):
            return self.out(self.embedding(i.squeeze(-1)).tanh())

    net = Tied().double()
    bayesian = BayesianModule(net, event_dim=1)
    guide = AutoBernoulliDropout(bayesian, rate=0.4)
    i = torch.tensor([[0], [3], [5]])
    guide(i)
    with pyro.plate("draws", 2, dim=-2):
        trace = poutine.trace(guide).get_trace(i)
        out = poutine.replay(bayesian, trace=trace)(i)
    for k in range(2):
        value = trace.nodes["out.weight"]["value"][k, 0]
        torch.testing.assert_close(out[k].detach(), run_with(net, {"out.weight": value}, i))


def test_a_bayesian_last_layer_of_a_convolutional_network():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1))
    bayesian = BayesianModule(net, prior=lambda name, p: dist.Normal(0.0, 1.0) if name.startswith("3") else None)
    guide = AutoBernoulliDropout(bayesian)
    x = torch.randn(5, 2, 4, 4)
    guide(x)
    with pyro.plate("draws", 3, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
        assert poutine.replay(bayesian, trace=trace)(x).shape == (3, 5, 1)


def test_training_batch_norm_runs_under_random_dense_weights():
    bayesian = BayesianModule(
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)),
        prior=lambda name, p: None if name.startswith("1") else dist.Normal(0.0, 1.0),
    )
    with pyro.plate("draws", 3, dim=-2):
        assert bayesian(torch.randn(5, 4)).shape == (3, 5, 1)


def test_a_scalar_parameter_has_batch_dimensions_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.layer(x) * self.scale

    net = Scaled().double()
    bayesian = BayesianModule(net, event_dim=1)
    x = torch.randn(5, 4, dtype=torch.float64)
    with pyro.plate("draws", 3, dim=-2):
        trace = poutine.trace(bayesian).get_trace(x)
    for k in range(3):
        values = {name: trace.nodes[name]["value"][k, 0] for name, _ in net.named_parameters()}
        torch.testing.assert_close(trace.nodes["_RETURN"]["value"][k], run_with(net, values, x))


# Errors


def in_plate(net, x, event_dim=None, dim=-2):
    bayesian = BayesianModule(net, event_dim=event_dim)
    with pyro.plate("draws", 3, dim=dim):
        return bayesian(x)


def test_batch_dimensions_that_cannot_be_told_apart_raise():
    with pytest.raises(ValueError, match=r"LSTM on inputs of shape \(5, 2, 4\), does not tell.*event_dim"):
        in_plate(Recurrent(), torch.zeros(5, 2, 4))
    guide = AutoBernoulliDropout(BayesianModule(nn.Linear(4, 1)))
    guide(torch.zeros(5, 4))
    net = BayesianModule(nn.Linear(4, 1))
    with pyro.plate("draws", 3, dim=-2):
        replayed = poutine.replay(net, trace=poutine.trace(guide).get_trace())
        with pytest.raises(ValueError, match=r"Linear on inputs of shape \(3, 2, 4\), does not tell"):
            replayed(torch.zeros(3, 2, 4))  # as many data as draws: not a guess to make
    net = BayesianModule(nn.Linear(4, 1), event_dim=1)
    with pyro.plate("draws", 3, dim=-2):
        replayed = poutine.replay(net, trace=poutine.trace(guide).get_trace())
        with pytest.raises(ValueError, match=r"weights of batch shape \(3, 1\) do not broadcast.*\(5, 2\).*event_dim"):
            replayed(torch.zeros(5, 2, 4))


def test_an_output_without_the_batch_first_raises():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            return self.layer(x).sum()

    net = BayesianModule(Sum())
    guide = AutoBernoulliDropout(net)
    guide(torch.zeros(5, 4))
    with pyro.plate("draws", 3, dim=-2):
        replayed = poutine.replay(net, trace=poutine.trace(guide).get_trace())
        with pytest.raises(ValueError, match=r"Sum returned shape \(\) for a batch of 15"):
            replayed(torch.zeros(5, 4))


def test_tensors_by_keyword_raise_where_batches_are_merged():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x, w):
            return self.layer(x) * w

    net = BayesianModule(Weighted(), event_dim=1)
    guide = AutoBernoulliDropout(net)
    guide(torch.zeros(5, 4), w=torch.ones(5, 1))
    with pyro.plate("draws", 3, dim=-2):
        replayed = poutine.replay(net, trace=poutine.trace(guide).get_trace())
        with pytest.raises(ValueError, match=r"the tensor 'w' by keyword.*pass it by position"):
            replayed(torch.zeros(5, 4), w=torch.ones(5, 1))
