"""Masks of output units in a guide: names, rates, exact losses and gradients, and all that is done with a guide."""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from models.regression import mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    CompiledSVI,
    DropoutPredictive,
    MaskedUnits,
    RenyiDropout_ELBO,
    ReplicatedSVI,
    TraceDropout_ELBO,
    from_pyro_svi,
    load_checkpoint,
    save_checkpoint,
)
from pyro_dropout.weights import MaskedWeight
from tests.support.scenarios import FixedNoise, PlainPyroBNN, assert_same_mean, gradients, regression_data

F64 = torch.float64
SIDES = {
    "outputs": {"net.0": "output"},
    "inputs and outputs": {"net.0": "both"},
    "a branch": {"net.0": "branch"},
    "inputs and a branch": {"net.0": ("input", "branch")},
}


def fitted(units, rate=0.3, features=2, hidden=(3,), kind=AutoBernoulliDropout, **kwargs):
    torch.manual_seed(11)
    x, y = regression_data(4, features)
    model = FixedNoise(mlp(features, hidden).double(), size=10)
    guide = kind(model, rate=rate, units=units, **kwargs)
    guide(x, y)
    return model, guide, x, y


class Exact:
    """Loss and gradients of a network of one hidden layer, by all masks, in plain torch."""

    def __init__(self, sides, **kwargs):
        kwargs = {"learnable": True, "per_unit": True, **kwargs}
        self.model, self.guide, self.x, self.y = fitted({"net.0": sides}, **kwargs)
        self.parameters = dict(self.guide.named_parameters())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if name.startswith("logits"):
                    parameter += torch.randn_like(parameter)
        self.shapes = {"net.0.weight": 2, "net.0.output": 3, "net.2.weight": 3}

    def value(self, name):
        for tree in ("locs", "rest"):
            if f"{tree}.{name}_unconstrained" in self.parameters:
                return self.parameters[f"{tree}.{name}_unconstrained"]
        raise KeyError(name)

    def exact(self, alpha=0.0, copies=1):
        """The ELBO (α = 0) or an α energy of two particles, and its gradients by name."""
        logits = {m: self.parameters[f"logits.{m}_unconstrained"] for m in self.guide.rates()}
        keep = {mask: torch.sigmoid(a) for mask, a in logits.items()}
        choices = list(itertools.product(*(itertools.product((0.0, 1.0), repeat=len(a)) for a in logits.values())))
        log_q, log_p = [], []
        w, b, v, c = (self.value(f"net.{i}.{kind}") for i in (0, 2) for kind in ("weight", "bias"))
        for masks in choices:
            z = {m: torch.tensor(mask, dtype=F64) for m, mask in zip(logits, masks, strict=True)}
            log_q.append(sum((z[m] * keep[m].log() + (1 - z[m]) * (1 - keep[m]).log()).sum() for m in z))
            one = torch.ones(1, dtype=F64)
            inputs, outputs = (z.get(m, one) / keep.get(m, one) for m in ("net.0.weight", "net.0.output"))
            first = outputs.reshape(-1, 1) * w * inputs
            hidden = (self.x @ first.T + b * outputs).relu()
            mean = hidden @ (v * z["net.2.weight"] / keep["net.2.weight"]).T + c
            log_p.append(dist.Normal(mean[:, 0], self.model.scale).log_prob(self.y))
        log_q, log_p = torch.stack(log_q), torch.stack(log_p)
        if alpha:
            pairs = torch.logaddexp(alpha * log_p[:, None], alpha * log_p[None]) - math.log(2)
            energy = -((log_q[:, None] + log_q[None]).exp().unsqueeze(-1) * pairs).sum() / alpha
        else:
            energy = -(log_q.exp() @ log_p).sum()
        normal = dist.Normal(torch.zeros((), dtype=F64), 1.0)
        kl = (log_q.exp() * log_q).sum()  # minus the entropy of all masks
        kept = keep.get("net.0.weight", torch.ones(2, dtype=F64)), keep.get("net.0.output", torch.ones(3, dtype=F64))
        rows = kept[1].expand(3)
        entries = [(w, rows[:, None] * kept[0]), (b, rows), (v, keep["net.2.weight"].expand_as(v)), (c, None)]
        for loc, k in entries:
            k = torch.ones_like(loc) if k is None else k
            kl = kl - (k * normal.log_prob(loc / k) + (1 - k) * normal.log_prob(torch.zeros_like(loc))).sum()
        loss = 2.5 * copies * energy + kl
        names = list(self.parameters)
        found = torch.autograd.grad(loss, [self.parameters[name] for name in names])
        return loss.detach(), {name: gradient.flatten() for name, gradient in zip(names, found, strict=True)}


@pytest.mark.parametrize("sides", ["output", "both", "branch", ("input", "branch")], ids=str)
@pytest.mark.parametrize("gradient", [pytest.param("arm", marks=pytest.mark.slow), "disarm"])
def test_losses_and_gradients_are_those_of_all_masks(sides, gradient):
    """Of weights, biases and rates, with one mask for all data."""
    case = Exact(sides)
    value, exact = case.exact()
    loss = TraceDropout_ELBO(masks="draw", gradient=gradient)
    losses, draws = gradients(loss, case.model, case.guide, case.x, case.y, 1000)
    assert_same_mean(losses, value)
    for name, found in draws.items():
        assert_same_mean(found, exact[name])


@pytest.mark.parametrize("sides", ["output", "both"])
def test_with_a_mask_for_each_datum(sides):
    case = Exact(sides)
    case.model.size = 10 * 40
    value, exact = case.exact(copies=40)
    x, y = case.x.repeat(40, 1), case.y.repeat(40)
    losses, draws = gradients(TraceDropout_ELBO(), case.model, case.guide, x, y, 150)
    assert_same_mean(losses, value)
    for name, found in draws.items():
        assert_same_mean(found, exact[name])


@pytest.mark.parametrize("sides", ["output", "both"])
def test_an_alpha_energy(sides):
    case = Exact(sides)
    value, exact = case.exact(alpha=0.5)
    loss = RenyiDropout_ELBO(0.5, 2, masks="draw")
    losses, draws = gradients(loss, case.model, case.guide, case.x, case.y, 600)
    assert_same_mean(losses, value)
    for name, found in draws.items():
        assert_same_mean(found, exact[name])


def test_stock_losses_have_the_same_gradient():
    """The score function, of few units."""
    case = Exact("output")
    _, exact = case.exact()
    loss = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    _, draws = gradients(loss, case.model, case.guide, case.x, case.y, 400)
    for name, found in draws.items():
        assert_same_mean(found, exact[name])


# Names


@pytest.mark.parametrize("name", SIDES)
def test_a_layer_has_one_mask_site_of_its_own_name(name):
    _, guide, x, y = fitted(SIDES[name])
    trace = poutine.trace(guide).get_trace(x, y)
    masks = [n for n in trace.nodes if n.endswith(".mask")]
    expected = ["net.0.weight.mask"] * ("inputs" in name) + ["net.0.output.mask", "net.2.weight.mask"]
    assert masks == expected
    z = trace.nodes["net.0.output.mask"]["value"]
    assert z.shape == ((1,) if "branch" in name else (3,))
    weight, bias = (trace.nodes[f"net.0.{kind}"]["value"] for kind in ("weight", "bias"))
    assert weight.switches[-1].mask is z
    assert bias.mask is z
    assert list(guide.rates()) == [mask.removesuffix(".mask") for mask in masks]
    torch.testing.assert_close(bias.dense(), bias.loc * z / 0.7)


def test_units_by_site_by_layer_and_by_function():
    for units in (
        {"net.0": "output"},
        {"net.0.weight": "output"},
        lambda name: "output" if name == "net.0.weight" else None,
    ):
        pyro.clear_param_store()
        _, guide, _, _ = fitted(units)
        assert list(guide.rates()) == ["net.0.output", "net.2.weight"]
    pyro.clear_param_store()
    _, guide, _, _ = fitted("output", rate=lambda mask: {"net.0.output": 0.2, "net.2.output": 0.0}[mask])
    assert {name: float(rate) for name, rate in guide.rates().items()} == pytest.approx(
        {"net.0.output": 0.2, "net.2.output": 0.0}
    )


def normalised():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1)).double()


def test_normalisation_layers_are_masked_where_they_are_named():
    x, _ = regression_data(5)
    for units, expected in (
        ("output", ["0.output", "3.output"]),
        ({"1": "output"}, ["0.weight", "1.output", "3.weight"]),
        (lambda name: "output", ["0.output", "1.output", "3.output"]),
    ):
        pyro.clear_param_store()
        model = BayesianModule(normalised())
        guide = AutoBernoulliDropout(model, rate=0.3, units=units)
        guide(x)
        assert sorted(guide.rates()) == expected


@pytest.mark.parametrize("learnable", [False, True])
def test_both_sides_of_a_site_that_is_no_layers(learnable):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(nn.functional.linear(x, w), 1.0).to_event(1), obs=y)

    x, y = torch.randn(4, 3), torch.randn(4, 2)
    guide = AutoBernoulliDropout(model, rate=0.5, units="both", learnable=learnable)
    SVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO()).step(x, y)
    assert list(guide.rates()) == ["w", "w_output"]


def test_inputs_along_the_first_dimension_have_outputs_along_the_second():
    """As of a transposed convolution, or a table, whose site says where its inputs are."""

    def model(x):
        units = {"masked_units": MaskedUnits(3, dim=0)}
        return pyro.sample("up.weight", dist.Normal(0.0, 1.0).expand([2, 3, 1]).to_event(3), infer=units)

    guide = AutoBernoulliDropout(model, rate=0.5, units="output")
    assert guide(torch.zeros(1))["up.weight"].mask.shape == (3,)


def test_a_layer_of_the_masks_name_raises():
    net = nn.Linear(3, 3)
    net.output = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"the mask '.*output' .* the name of the layer that '.*output.weight'"):
        AutoBernoulliDropout(BayesianModule(nn.Sequential(net)), rate=0.5, units={"0": "output"})(torch.zeros(2, 3))


def test_one_rate_of_all_has_its_own_name_before_the_first_call():
    model, guide, x, _ = fitted("output", learnable=True, shared=True)
    fresh = AutoBernoulliDropout(model, learnable=True, shared=True, units="output")
    fresh.load_state_dict(guide.state_dict())
    assert list(fresh.rates()) == ["shared"]
    pyro.clear_param_store()
    fresh(x)
    assert list(fresh.rates()) == ["net.0.output", "net.2.output"]


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"1": "input"}, "a normalisation has no input units"),
        ({"1": "both"}, "a normalisation has no input units"),
        ({"0": "output", "0.weight": "input"}, "names '0.weight' twice, as a weight and by its layer"),
    ],
)
def test_what_cannot_be_meant_raises(units, message):
    with pytest.raises(ValueError, match=message):
        AutoBernoulliDropout(BayesianModule(normalised()), rate=0.3, units=units)(regression_data(5)[0])


def test_a_bnn_of_stock_pyro():
    x, y = (t.float() for t in regression_data(5))
    model = PlainPyroBNN()
    guide = AutoBernoulliDropout(model, rate=0.5, units={"first": "output"})
    values = guide(x, y)
    assert list(guide.rates()) == ["first.output", "second.weight"]
    assert values["first.bias"].mask is values["first.weight"].mask
    assert not isinstance(values["second.bias"], MaskedWeight)


def test_a_layer_without_a_bias_and_a_root_layer():
    net = BayesianModule(nn.Linear(3, 2, bias=False))
    guide = AutoBernoulliDropout(net, rate=0.3, units="output")
    assert list(guide(torch.zeros(4, 3))) == ["weight"]
    assert list(guide.rates()) == ["output"]


def test_weights_that_are_written_by_hand():
    """Of a site that is no module's the first dimension has the outputs, and a bias is its layer's by its name."""

    def model(x, y=None):
        w = pyro.sample("fc.weight", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        b = pyro.sample("fc.bias", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        own = {"output_units": MaskedUnits(2, dim=0)}
        v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2), infer=own)
        mean = nn.functional.linear(nn.functional.linear(x, w, b).tanh(), v).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    x, y = (t.float() for t in regression_data(5))
    guide = AutoBernoulliDropout(model, rate=0.5, units="output")
    values = guide(x, y)
    assert list(guide.rates()) == ["fc.output", "v_output"]
    assert values["fc.bias"].mask is values["fc.weight"].mask
    for masks in ("datum", "draw"):
        SVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO(masks=masks)).step(x, y)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ("outputs", r'units must be "input", "output", "both", or "branch".*found \'outputs\''),
        ({"net.0": "out"}, r"units\['net.0'\] must be"),
        (("output", "branch"), "asks for two masks of the outputs of one layer"),
        (
            {"net.1": "output"},
            r"units names net.1, but found the weight sites net.0.weight, net.2.weight and the layers",
        ),
        (lambda name: 1, r"units\('net.0.weight'\) must be"),
    ],
)
def test_wrong_units_raise(units, message):
    with pytest.raises(ValueError, match=message):
        fitted(units)


def test_keys_of_another_kind_raise():
    with pytest.raises(TypeError, match="a key of units is the name of a weight site or of a layer, but found"):
        fitted({nn.Linear: "output"})


def test_recurrent_layers_and_shared_parameters_have_no_output_units():
    net = BayesianModule(nn.LSTM(3, 2, batch_first=True))
    with pytest.raises(ValueError, match=r"outputs of 'weight_ih_l0'.*a recurrent layer's outputs are its states"):
        AutoBernoulliDropout(net, rate=0.3, units="output")(torch.zeros(2, 4, 3))
    first = nn.Linear(3, 3)
    twice = nn.Sequential(first, nn.ReLU(), nn.Linear(3, 3))
    twice[2].weight = first.weight
    with pytest.raises(ValueError, match="of parameters that layers share no mask is one layer's"):
        AutoBernoulliDropout(BayesianModule(twice), rate=0.3, units="output")(torch.zeros(2, 3))


# All that is done with a guide


def test_rate_zero_of_one_side_leaves_the_other():
    rates = {"net.0.weight": 0.0, "net.0.output": 0.4, "net.2.weight": 0.0}
    _, guide, x, y = fitted({"net.0": "both"}, rate=rates)
    trace = poutine.trace(guide).get_trace(x, y)
    assert [n for n in trace.nodes if n.endswith(".mask")] == ["net.0.output.mask"]
    weight = trace.nodes["net.0.weight"]["value"]
    assert weight.masked
    assert [switch.name for switch in weight.switches] == ["net.0.output"]
    pyro.clear_param_store()
    _, guide, x, y = fitted({"net.0": "output"}, rate={"net.0.output": 0.0, "net.2.weight": 0.4})
    values = guide(x, y)
    assert not values["net.0.weight"].masked
    assert not values["net.0.bias"].masked


def test_one_rate_for_the_whole_network():
    _, guide, x, y = fitted("output", learnable=True, shared=True)
    assert [n for n, _ in guide.named_parameters() if n.startswith("logits")] == ["logits.shared_unconstrained"]
    assert list(guide.rates()) == ["net.0.output", "net.2.output"]
    assert len(guide(x, y)) == 4


def test_medians_and_quantiles():
    _, guide, _, _ = fitted({"net.0": "output"})
    median = guide.median()
    assert {"net.0.weight", "net.0.bias"} <= median.keys()
    assert torch.equal(median["net.0.bias"], guide.locs.net._modules["0"].bias)
    quantiles = guide.quantiles([0.1, 0.9])
    loc = median["net.0.bias"]
    expected = torch.stack([torch.where(loc > 0, torch.zeros(3, dtype=F64), loc / 0.7)] * 1)[0]
    torch.testing.assert_close(quantiles["net.0.bias"][0], expected)
    pyro.clear_param_store()
    _, guide, _, _ = fitted({"net.0": "both"})
    with pytest.raises(NotImplementedError, match=r"'net.0.weight' has masks of input and of output units"):
        guide.quantiles([0.1])


@pytest.mark.parametrize("kind", [AutoBernoulliDropout, AutoConcreteDropout])
@pytest.mark.parametrize("name", SIDES)
def test_states_load_and_copies_draw_the_same(name, kind):
    model, guide, x, y = fitted(SIDES[name], kind=kind)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1
    copied = copy.deepcopy(guide)
    draws = []
    for each in (guide, copied):
        torch.manual_seed(0)
        draws.append({n: torch.as_tensor(value[...]) for n, value in each(x, y).items()})
    torch.testing.assert_close(draws[0], draws[1])
    pyro.clear_param_store()
    fresh = kind(model, units=SIDES[name])
    fresh.load_state_dict(guide.state_dict())
    fresh(x)  # data that this first call does not observe
    assert fresh.state_dict().keys() == guide.state_dict().keys()
    for key, value in guide.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value)
    assert fresh.rates().keys() == guide.rates().keys()


@pytest.mark.parametrize("kind", [AutoBernoulliDropout, AutoConcreteDropout])
@pytest.mark.parametrize("name", SIDES)
def test_draws_at_once_are_kept_functions(name, kind):
    """Of ``DropoutPredictive`` and of stock ``Predictive``: each the network with the masks of its draw."""
    model, guide, x, _ = fitted(SIDES[name], kind=kind, hidden=(8,))
    stock = Predictive(model, guide=guide, num_samples=5, return_sites=["obs", "net.0.weight", "net.0.bias"])
    assert stock(x)["obs"].shape == (5, 4)
    functions = DropoutPredictive(model, guide=guide, num_samples=6, seed=0).draw(x)
    found = functions.moments(x)["obs"].mean
    means = []
    for k in range(6):
        values = {n: v[k] for n, v in functions.posterior_samples.items()}
        dense = {n.removeprefix("net."): v.dense() if hasattr(v, "dense") else v for n, v in values.items()}
        net = model.net._modules["net"]
        out = torch.func.functional_call(
            net, {n: v.reshape(v.shape[-2:] if "weight" in n else v.shape[-1:]) for n, v in dense.items()}, (x,)
        )
        means.append(out.squeeze(-1))
    torch.testing.assert_close(found, torch.stack(means).mean(0))
    datum = DropoutPredictive(model, guide=guide, num_samples=6, masks="datum", seed=0)
    assert datum(x)["obs"].shape == (6, 4)
    in_parts = DropoutPredictive(model, guide=guide, num_samples=6, seed=0, parallel=False).draw(x).moments(x)["obs"]
    assert in_parts.mean.shape == (4,)


@pytest.mark.parametrize("name", SIDES)
def test_arviz_gets_weights_biases_and_masks(name):
    model, guide, x, y = fitted(SIDES[name])
    svi = SVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO())
    svi.step(x, y)
    idata = from_pyro_svi(svi, model_args=(x, y), num_samples=7, weights=True)
    posterior = idata["posterior"]
    masks = [n for n in posterior.data_vars if n.endswith(".mask")]
    assert sorted(masks) == sorted(f"{key}.mask" for key in guide.rates())
    z = torch.as_tensor(posterior["net.0.output.mask"].values)[0]
    b = torch.as_tensor(posterior["net.0.bias"].values)[0]
    torch.testing.assert_close(b, guide.median()["net.0.bias"] * z / 0.7)
    assert posterior["net.0.output.rate"].shape == (1, 7)


@pytest.mark.parametrize("name", SIDES)
def test_training_goes_on_from_a_checkpoint(name, tmp_path):
    """Bit by bit, in another guide of the same model."""
    ends = []
    for interrupted in (False, True):
        pyro.clear_param_store()
        model, guide, x, y = fitted(SIDES[name], learnable=True)
        optim = pyro.optim.Adam({"lr": 0.01})
        for step in range(6):
            if interrupted and step == 3:
                save_checkpoint(tmp_path / "checkpoint.pt", guide=guide, optimiser=optim)
                pyro.clear_param_store()
                model, guide, x, y = fitted(SIDES[name], learnable=True)
                optim = pyro.optim.Adam({"lr": 0.01})
                load_checkpoint(tmp_path / "checkpoint.pt", guide=guide, optimiser=optim)
            SVI(model, guide, optim, TraceDropout_ELBO()).step(x, y)
        ends.append({name: value.clone() for name, value in guide.state_dict().items()})
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert any(key.startswith("logits.net.0.output") for key in ends[0])


@pytest.mark.parametrize("name", SIDES)
def test_replicates_are_each_alone(name):
    torch.manual_seed(0)
    x, y = regression_data(6, 2)

    def make(rate):
        torch.manual_seed(1)
        model = FixedNoise(mlp(2, (3,)).double(), size=6)
        return model, AutoBernoulliDropout(model, rate=rate, learnable=True, units=SIDES[name])

    several = [{"rate": 0.2}, {"rate": 0.4}]
    together = ReplicatedSVI(make, several, pyro.optim.Adam({"lr": 0.01}), seeds=[5, 6], backend="eager")
    losses = together.scan(x.expand(2, 4, 6, 2), y.expand(2, 4, 6))
    for r, values in enumerate(several):
        alone = ReplicatedSVI(make, [values], pyro.optim.Adam({"lr": 0.01}), seeds=[5 + r], backend="eager")
        torch.testing.assert_close(alone.scan(x.expand(1, 4, 6, 2), y.expand(1, 4, 6))[0], losses[r])


def test_a_compiled_step_with_batch_normalisation_behind_a_mask():
    """Evaluation mode, as running statistics are what a datum's output may depend on; in training the loss says so."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)).double()
    x, y = torch.randn(6, 1, 4, 4, dtype=F64), torch.randn(6, dtype=F64)
    model = FixedNoise(net.eval(), size=6)
    guide = AutoBernoulliDropout(model, rate=0.3, units={"net.0": "output", "net.1": "branch"}, learnable=True)
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), backend="eager", progress=False)
    assert all(math.isfinite(svi.step(x, y)) for _ in range(3))
    assert {"net.0.output", "net.1.output", "net.4.weight"} == guide.rates().keys()
    model.train()
    with pytest.raises(ValueError, match=r"masks=.draw"):
        SVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO()).step(x, y)


def test_relaxed_masks_in_a_stock_loss_are_refused_for_biases_too():
    model, guide, x, y = fitted("output", kind=AutoConcreteDropout)
    with pytest.raises(ValueError, match=r"relaxed masks.*use TraceDropout_ELBO"):
        TraceMeanField_ELBO().loss(model, guide, x, y)
