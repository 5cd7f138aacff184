"""Kept functions as a plain module: what it returns is what they return, in torch.export and ONNX too."""

from functools import partial

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from models.regression import Regression
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    DropoutPredictive,
    from_torch,
)
from pyro_dropout.interop import export

K = 6
ROWS = [({0: torch.export.Dim.DYNAMIC},)]


class Both(nn.Module):
    """Convolutions with masks before and behind, batch normalisation, channels in groups, a residual sum."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.grouped, self.up = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.drop, self.behind, self.last = nn.Dropout2d(0.3), nn.Dropout2d(0.3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.norm(self.behind(self.first(x))).relu()
        x = x + self.grouped(self.drop(x))
        return self.last(self.up(x).relu().mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, batch_first=True):
        super().__init__()
        self.rnn, self.head = kind(3, 5, batch_first=batch_first), nn.Linear(5, 2)
        self.batch_first = batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        out, _ = self.rnn(x)
        return self.head(out[:, -1] if self.batch_first else out[-1])


class Own(nn.Module):
    """A parameter that no layer has, and layers below it; an embedding whose table is also the last layer."""

    def __init__(self):
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.rand(3)), nn.Linear(3, 2)

    def forward(self, x):
        return self.inner(x * self.scale)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(self.layer(x).relu())


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.last = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.norm(self.embedding(x)).mean(1))


def mc():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def words(rows):
    return torch.randint(7, (rows, 5))


NETS = {
    "mc": (mc, lambda n: torch.randn(n, 3)),
    "time": (mc, lambda n: torch.randn(n, 4, 3)),
    "both": (Both, lambda n: torch.randn(n, 2, 6, 6)),
    "lstm": (Recurrent, lambda n: torch.randn(n, 4, 3)),
    "gru": (partial(Recurrent, nn.GRU, False), lambda n: torch.randn(n, 4, 3)),
    "own": (Own, lambda n: torch.randn(n, 3)),
    "tied": (Tied, lambda n: torch.randn(n, 3)),
    "words": (Words, words),
}
GUIDES = {
    "fixed": partial(AutoBernoulliDropout, rate=0.4),
    "concrete": partial(AutoConcreteDropout, rate=0.3, per_unit=True),
    "outputs": partial(AutoBernoulliDropout, rate=0.4, units="output"),
    "rest": partial(AutoConcreteDropout, rate=0.3, rest=AutoNormal),
    "dense": partial(AutoNormal, init_scale=0.3),
}
WITHOUT = {("own", "outputs"), ("lstm", "outputs"), ("gru", "outputs"), ("words", "fixed"), ("words", "concrete")}
CASES = [(net, guide) for net in NETS for guide in GUIDES if (net, guide) not in WITHOUT]


def kept(net, guide, seed=0, rows=5):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    make, data = NETS[net]
    module = BayesianModule(make(), event_dim=2 if net in ("time", "lstm", "gru") else 1 if net == "words" else None)
    module.eval()
    guide, x = GUIDES[guide](module), data(rows)
    guide(x)
    draws = DropoutPredictive(module, guide=guide, num_samples=K, return_sites=["_RETURN"], seed=1, parallel=False)
    return module, draws.draw(x), data(9)


def by_hand(module, draws, x):
    """Each function by itself, with dense weights."""
    outs = []
    for k in range(K):
        values = {n: v[k] for n, v in draws.posterior_samples.items()}
        values = {n: v.dense() if hasattr(v, "dense") else v for n, v in values.items()}
        with torch.no_grad():
            outs.append(poutine.condition(module, data=values)(x))
    return torch.stack(outs)


@pytest.mark.parametrize(("net", "guide"), CASES)
def test_it_returns_what_the_functions_do(net, guide):
    module, draws, x = kept(net, guide)
    plain = export(draws, x[:4])
    expected = by_hand(module, draws, x)
    torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-4)
    assert not any(isinstance(m, BayesianModule) for m in plain.modules())
    assert type(plain.state_dict()["net." + next(iter(plain.net.state_dict()))]) is torch.Tensor


def test_moments_and_a_link():
    module, draws, x = kept("mc", "fixed")
    probs = by_hand(module, draws, x).softmax(-1)
    mean, variance = export(draws, x, moments=True, link=nn.Softmax(-1))(x)
    torch.testing.assert_close(mean, probs.mean(0))
    torch.testing.assert_close(variance, probs.var(0, correction=0))
    torch.testing.assert_close(export(draws, x, link=nn.Softmax(-1))(x), probs)


def test_a_network_in_a_model():
    model = Regression(3, size=50, hidden=(6,))
    guide = AutoConcreteDropout(model)
    x = torch.randn(7, 3)
    guide(x, x[:, 0])
    draws = DropoutPredictive(model, guide=guide, num_samples=K, seed=0).draw(x)
    torch.testing.assert_close(export(draws, x)(x).squeeze(-1), draws(x)["mean"])


@pytest.mark.parametrize("net", ["mc", "both", "lstm", "gru", "words"])
def test_torch_export_for_any_number_of_rows(net):
    _, draws, x = kept(net, "outputs" if net == "words" else "fixed")
    plain = export(draws, x)
    program = torch.export.export(plain, (x,), dynamic_shapes=ROWS)
    for rows in (2, 9):
        torch.testing.assert_close(program.module()(x[:rows]), plain(x[:rows]), rtol=1e-5, atol=1e-5)
    names = " ".join(str(node.target) for node in program.graph.nodes)
    assert "rand" not in names
    assert "bernoulli" not in names


@pytest.mark.filterwarnings("ignore")  # of the exporter about itself
@pytest.mark.parametrize("net", ["mc", "both", "lstm"])
def test_onnx_for_any_number_of_rows(net, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module, draws, x = kept(net, "fixed")
    plain = export(draws, x)
    program = torch.onnx.export(plain, (x,), dynamo=True, dynamic_shapes=ROWS, verbose=False)
    program.save(tmp_path / "plain.onnx")
    session = runtime.InferenceSession(tmp_path / "plain.onnx")
    for n in (2, 9):
        (found,) = session.run(None, {session.get_inputs()[0].name: x[:n].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), by_hand(module, draws, x[:n]), rtol=1e-5, atol=1e-5)


def test_states_go_through_safetensors(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    _, draws, x = kept("both", "fixed")
    plain = export(draws, x)
    files.save_model(plain, str(tmp_path / "plain.safetensors"))
    _, others, _ = kept("both", "fixed", seed=5)
    other = export(others, x)
    assert not torch.allclose(other(x), plain(x))
    files.load_model(other, str(tmp_path / "plain.safetensors"))
    assert torch.equal(other(x), plain(x))


def test_networks_with_dropout_of_their_own():
    pyro.set_rng_seed(0)
    net = Both().eval()
    x = torch.randn(5, 2, 6, 6)
    model, guide = from_torch(net, x)
    draws = DropoutPredictive(model, guide=guide, num_samples=K, return_sites=["_RETURN"], seed=0).draw(x)
    plain = export(draws, x)
    torch.testing.assert_close(plain(x), draws(x)["_RETURN"], rtol=1e-5, atol=1e-5)
    buffers = {name.rsplit(".", 1)[-1] for name, _ in plain.named_buffers()}
    assert {"inputs", "outputs"} <= buffers


# What is refused


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        out = self.layer(x)
        return out - out.mean(0, keepdim=True)


def test_networks_that_mix_rows_are_refused():
    module = BayesianModule(Mixing())
    guide, x = AutoBernoulliDropout(module, rate=0.3), torch.randn(5, 3)
    guide(x)
    draws = DropoutPredictive(module, guide=guide, num_samples=K, return_sites=["_RETURN"], seed=1).draw(x)
    with pytest.raises(ValueError, match="the network mixes the rows of a batch"):
        export(draws, x)


def test_mixing_is_seen_in_small_outputs_too():
    class Small(Mixing):
        def forward(self, x):
            return 1e-5 * super().forward(x)

    module = BayesianModule(Small())
    guide, x = AutoBernoulliDropout(module, rate=0.3), torch.randn(5, 3)
    guide(x)
    draws = DropoutPredictive(module, guide=guide, num_samples=K, return_sites=["_RETURN"], seed=1).draw(x)
    with pytest.raises(ValueError, match="the network mixes the rows of a batch"):
        export(draws, x)


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.body = nn.Sequential(self.one, nn.ReLU(), self.one)

    def forward(self, x):
        return self.body(x)


def of_prior(name, parameter):
    return None if "bias" in name else pyro.distributions.Normal(0.0, 1.0)


@pytest.mark.parametrize(
    ("net", "units", "prior"),
    [
        (Twice(), "input", pyro.distributions.Normal(0.0, 1.0)),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), "output", of_prior),
        (Recurrent(), "input", of_prior),
        (nn.Linear(3, 2), "input", pyro.distributions.Normal(0.0, 1.0)),
    ],
    ids=["one layer twice", "outputs of a bias without prior", "recurrent", "a layer alone"],
)
def test_other_networks(net, units, prior):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    recurrent = isinstance(net, Recurrent)
    module = BayesianModule(net, prior, event_dim=2 if recurrent else None)
    x = torch.randn(6, 4, 3) if recurrent else torch.randn(6, 3)
    guide = AutoBernoulliDropout(module, rate=0.4, units=units)
    guide(x)
    predict = DropoutPredictive(module, guide=guide, num_samples=K, return_sites=["_RETURN"], seed=1, parallel=False)
    draws = predict.draw(x)
    found = export(draws, x)(x)
    assert not found.requires_grad
    torch.testing.assert_close(found, by_hand(module, draws, x), rtol=1e-5, atol=1e-5)


class Positions(nn.Module):
    """Rows of an embedding that are not the data's."""

    def __init__(self):
        super().__init__()
        self.layer, self.positions = nn.Linear(3, 2), nn.Embedding(5, 3)

    def forward(self, x):
        return self.layer(x + self.positions(torch.arange(5)))


def test_layers_whose_rows_are_not_the_datas_are_refused():
    module = BayesianModule(Positions(), event_dim=2)
    guide, x = AutoNormal(module, init_scale=0.1), torch.randn(4, 5, 3)
    guide(x)
    options = {"num_samples": K, "return_sites": ["_RETURN"], "seed": 1, "parallel": False}
    with pytest.raises(ValueError, match=r"has 6 rows for each of the data's.*\(positions, say\)"):
        export(DropoutPredictive(module, guide=guide, **options).draw(x), x)


def test_masks_for_each_datum_are_refused():
    module = BayesianModule(mc())
    guide, x = AutoBernoulliDropout(module, rate=0.3), torch.randn(5, 3)
    guide(x)
    predict = DropoutPredictive(module, guide=guide, num_samples=K, masks="datum")
    with pytest.raises(TypeError, match=r"draws are not kept yet: predictive.draw"):
        export(predict, x)
    with pytest.raises(ValueError, match='masks="datum" has no draws to keep'):
        export(predict.draw(x), x)


def test_a_model_whose_network_is_not_known():
    _, draws, x = kept("mc", "fixed")
    module = draws.model
    options = {"num_samples": K, "return_sites": ["_RETURN"]}
    draws = DropoutPredictive(lambda x: module(x), posterior_samples=draws.posterior_samples, **options)
    with pytest.raises(TypeError, match="the model has 0 networks"):
        export(draws, x)
    assert export(draws, x, module=module)(x).shape == (K, 9, 2)
