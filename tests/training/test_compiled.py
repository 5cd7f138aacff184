"""A compiled step does what an eager one does: the same with the same random numbers, the same in distribution without.

``backend="eager"`` runs what was traced, so that tests start at once; the slow ones compile.
"""

import math
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn

from models.regression import Regression, mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    CompiledSVI,
    RenyiDropout_ELBO,
    ReplicatedSVI,
    TraceDropout_ELBO,
)
from pyro_dropout.training._steps.program import Program
from pyro_dropout.training._steps.randomness import KeyedRandomness, random_keys
from pyro_dropout.training._steps.state import parameters_of
from tests.support.scenarios import FixedNoise, assert_same_mean, regression_data

F64 = torch.float64
BACKENDS = ["eager", pytest.param("inductor", marks=pytest.mark.slow)]


class Local(PyroModule):
    """A latent for each datum, in the data plate."""

    def __init__(self, size):
        super().__init__()
        self.net, self.size = BayesianModule(mlp(3, (4,)).double()), size

    def forward(self, x, y=None):
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", self.size, subsample_size=len(x)):
            offset = pyro.sample("offset", dist.Normal(x.new_zeros(()), 1.0))
            return pyro.sample("obs", dist.StudentT(x.new_tensor(4.0), mean + offset, 0.5), obs=y)


class Images(PyroModule):
    def __init__(self, size):
        super().__init__()
        net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
        self.net, self.size = BayesianModule(net), size

    def forward(self, x, y=None):
        logits = self.net(x)
        with pyro.plate("data", self.size, subsample_size=len(x)):
            return pyro.sample("obs", dist.Categorical(logits=logits), obs=y)


def _data(name, n):
    x, y = regression_data(n)
    if name == "images":
        return torch.randn(n, 1, 3, 3, dtype=F64), torch.arange(n) % 3
    return x, y


MODELS = {
    "regression": lambda: Regression(3, 20, hidden=(4, 4)).double(),
    "laplace": lambda: FixedNoise(mlp(3, (4,)).double(), size=20, prior=dist.Laplace(0.0, 1.0)),
    "shifted": lambda: FixedNoise(mlp(3, (4,)).double(), size=20, prior=dist.Normal(0.3, 2.0)),
    "batchnorm": lambda: FixedNoise(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double(), size=20
    ),
    "local": lambda: Local(20),
    "images": lambda: Images(20),
}
GUIDES = {
    "fixed": AutoBernoulliDropout,
    "unit rates": partial(AutoBernoulliDropout, rate=lambda name: torch.linspace(0.1, 0.3, 3 if "0" in name else 4)),
    "concrete": AutoConcreteDropout,
    "concrete by unit": partial(AutoConcreteDropout, per_unit=True, temperature=0.5, rest=AutoNormal),
    "learned": partial(AutoBernoulliDropout, learnable=True),
    "learned by unit": partial(AutoBernoulliDropout, learnable=True, per_unit=True, rest=AutoNormal),
    "shared": partial(AutoBernoulliDropout, learnable=True, shared=True),
    "normal": AutoNormal,
    "rest normal": partial(AutoBernoulliDropout, rest=AutoNormal),
}
LOSSES = {
    "elbo": TraceDropout_ELBO,
    "three particles": partial(TraceDropout_ELBO, 3),
    "three particles in turn": partial(TraceDropout_ELBO, 3, vectorize_particles=False),
    "draw": partial(TraceDropout_ELBO, masks="draw"),
    "alpha": partial(RenyiDropout_ELBO, 0.5, 3),
    "alpha 0": partial(RenyiDropout_ELBO, 0.0, 3),
    "alpha negative": partial(RenyiDropout_ELBO, -1.0, 3),
    "alpha in turn": partial(RenyiDropout_ELBO, 0.5, 3, vectorize_particles=False),
    "arm": partial(TraceDropout_ELBO, gradient="arm"),
    "reinforce": partial(TraceDropout_ELBO, gradient="reinforce", masks="draw"),
    "alpha disarm": partial(RenyiDropout_ELBO, 0.5, 3, gradient="disarm"),
}
FAST = {
    ("regression", "learned by unit", "elbo"),
    ("regression", "shared", "reinforce"),
    ("regression", "learned", "alpha disarm"),
    ("regression", "fixed", "alpha 0"),
    ("regression", "normal", "elbo"),
    ("laplace", "concrete", "elbo"),
    ("local", "rest normal", "elbo"),
    ("images", "concrete", "elbo"),
}


def _of_rows(model):
    """Batch statistics mix rows."""
    return "draw" if model == "batchnorm" else "elbo"


COMBINATIONS = [
    pytest.param(model, guide, loss, id=f"{model}, {guide}, {loss}", marks=marks)
    for model in MODELS
    for guide in GUIDES
    for loss in LOSSES
    if (model == "regression" or (guide in ("fixed", "concrete", "rest normal") and loss == _of_rows(model)))
    and ("learned" in guide or guide == "shared" or loss not in ("arm", "reinforce", "alpha disarm"))
    and (guide != "normal" or loss in ("elbo", "alpha"))
    for marks in [() if (model, guide, loss) in FAST else pytest.mark.slow]
]


def scenario(model, guide, loss):
    pyro.set_rng_seed(3)
    args = _data(model, 8)
    model = MODELS[model]()
    if GUIDES[guide] is AutoNormal:
        poutine.block(model)(*args)
    guide, loss = GUIDES[guide](model), LOSSES[loss]()
    loss.loss(model, guide, *args)
    return SimpleNamespace(model=model, guide=guide, loss=loss, args=args)


def not_said(error, seconds):
    assert not error


def eager_gradients(s, key):
    """Loss and gradients with the random numbers of a key, by the loss's own eager code."""
    parameters = parameters_of(s.model, s.guide, s.loss, s.args, {})
    with KeyedRandomness(key), pyro.validation_enabled(False):
        loss = s.loss.differentiable_loss(s.model, s.guide, *s.args)
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return loss.detach(), {n: g for n, g in zip(parameters, gradients, strict=True) if g is not None}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("model", "guide", "loss"), COMBINATIONS)
def test_with_the_same_masks_it_is_the_same(model, guide, loss, backend):
    s = scenario(model, guide, loss)
    parameters = parameters_of(s.model, s.guide, s.loss, s.args, {})
    program = Program(s.model, s.guide, s.loss, s.args, {}, parameters=parameters)
    if backend == "inductor":
        program.compile(wait=True, say=not_said)
    program.refresh()
    values = []
    for key in program.keys(6):
        found, finite = program(key, s.args).tolist()
        expected, gradients = eager_gradients(s, key)
        assert finite == 1.0
        assert found == pytest.approx(expected.item(), rel=1e-6)
        names = [next(n for n, p in parameters.items() if p is q) for q in program._with_gradient]
        assert names == list(gradients)
        for name, gradient in zip(names, program._gradients, strict=True):
            torch.testing.assert_close(
                gradient, gradients[name], rtol=2e-5, atol=1e-6 * gradients[name].abs().max().item()
            )
        values.append(found)
    assert len(set(values)) >= 3  # few masks: some are the same


# Steps


def compiled_svi(s, optim, backend="eager", **kwargs):
    return CompiledSVI(s.model, s.guide, optim, s.loss, backend=backend, progress=False, **kwargs)


def state(guide):
    return {name: value.clone() for name, value in guide.state_dict().items()}


def assert_same_state(a, b, tolerance=1e-6):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


OPTIMISERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05}),
    "decay": lambda: pyro.optim.AdamW({"lr": 0.05, "weight_decay": 0.3, "amsgrad": True}),
    "two rates": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "locs" in name else 0.01}),
    "clipped": lambda: pyro.optim.Adam({"lr": 0.05}, {"clip_norm": 0.1}),
    "RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.05, "momentum": 0.5}),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}),
    "schedule": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.5}
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("Adam", "SGD", "schedule") else pytest.mark.slow) for n in OPTIMISERS],
)
def test_steps_are_those_of_the_optimiser(name):
    """Six steps, of which the first is eager, and six eager ones with the same random numbers."""
    ends = []
    for compiling in (True, False):
        pyro.clear_param_store()
        s = scenario("regression", "concrete", "elbo")
        optim = OPTIMISERS[name]()
        args = (s.model, s.guide, optim, s.loss)
        svi = CompiledSVI(*args, backend="eager", progress=False) if compiling else SVI(*args)
        pyro.set_rng_seed(0)
        for i in range(6):
            if compiling:
                svi.step(*s.args)
            else:
                with KeyedRandomness(random_keys(1)[0]), pyro.validation_enabled(False):
                    svi.step(*s.args)
            if name == "schedule" and i % 2:
                optim.step()
        states = {n: o for n, o in optim.get_state().items()}
        ends.append((state(s.guide), states))
    assert_same_state(ends[0][0], ends[1][0], 1e-6)
    assert ends[0][1].keys() == ends[1][1].keys()
    for parameter in ends[0][1]:
        found, expected = (end[1][parameter] for end in ends)
        found, expected = (o.get("optimizer", o)["state"].get(0, {}) for o in (found, expected))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-9, check_dtype=False)


def test_a_scan_is_its_steps_and_seeds_repeat_them():
    ends = []
    for how in ("scan", "scan", "steps"):
        pyro.clear_param_store()
        s = scenario("regression", "concrete", "elbo")
        svi = compiled_svi(s, pyro.optim.Adam({"lr": 0.05}))
        x, y = (t.expand(6, *t.shape) for t in s.args)
        pyro.set_rng_seed(1)
        if how == "scan":
            losses = svi.scan(x, y)
        else:
            losses = torch.tensor([svi.step(*s.args) for _ in range(6)], dtype=F64)
        assert len(losses.unique()) == 6
        ends.append((losses, state(s.guide)))
    assert torch.equal(ends[0][0], ends[1][0])
    assert_same_state(ends[0][1], ends[1][1], 0.0)
    assert torch.equal(ends[0][0], ends[2][0])
    assert_same_state(ends[0][1], ends[2][1], 0.0)


@pytest.mark.parametrize(
    "args", [(), (torch.zeros(3, 2), torch.zeros(4)), (torch.zeros(()),), (torch.zeros(()), torch.zeros(3))]
)
def test_a_scan_needs_one_number_of_steps(args):
    s = scenario("regression", "fixed", "elbo")
    with pytest.raises(ValueError, match=r"one step for each entry of its tensors' first dimension, but found"):
        compiled_svi(s, pyro.optim.Adam({})).scan(*args)


@pytest.mark.slow
def test_gradients_add_up_and_losses_are_evaluated():
    s = scenario("regression", "concrete", "elbo")
    svi = compiled_svi(s, pyro.optim.Adam({}))
    for kind in (svi.evaluate_loss, lambda *args: svi.loss_and_grads(s.model, s.guide, *args)):
        kind(*s.args)
        before = state(s.guide)
        eager = torch.tensor([s.loss.loss(s.model, s.guide, *s.args) for _ in range(200)], dtype=F64)
        assert_same_mean(torch.tensor([kind(*s.args) for _ in range(200)], dtype=F64), eager)
        assert_same_state(before, state(s.guide), 0.0)
    s.guide.zero_grad(set_to_none=True)
    svi.loss_and_grads(s.model, s.guide, *s.args)
    once = {n: p.grad.clone() for n, p in s.guide.named_parameters()}
    svi.loss_and_grads(s.model, s.guide, *s.args)
    biases = [n for n in once if n.endswith("2.bias_unconstrained")]
    assert biases
    for name, parameter in s.guide.named_parameters():
        assert not torch.equal(parameter.grad, once[name])
    other = scenario("regression", "fixed", "elbo")  # somebody else's model and guide
    assert svi.loss_and_grads(other.model, other.guide, *other.args) > 0


# What makes a trace again, and what falls back


def programs(svi):
    return [p for p in svi._programs.values() if isinstance(p, Program)]


def test_a_last_partial_batch_has_a_program_of_its_own():
    s = scenario("regression", "concrete", "elbo")
    svi = compiled_svi(s, pyro.optim.Adam({"lr": 0.01}))
    x, y = s.args
    for _ in range(3):
        svi.step(x, y)
        svi.step(x[:5], y[:5])
    assert len(programs(svi)) == 2
    with torch.no_grad():
        small = torch.tensor([svi.evaluate_loss(x[:5], y[:5]) for _ in range(200)], dtype=F64)
        eager = torch.tensor([s.loss.loss(s.model, s.guide, x[:5], y[:5]) for _ in range(200)], dtype=F64)
    assert_same_mean(small, eager)


def test_batch_norm_counts_each_step_once_and_knows_its_mode():
    counts = []
    for backend in ("eager", None):
        pyro.clear_param_store()
        s = scenario("batchnorm", "fixed", "draw")
        svi = compiled_svi(s, pyro.optim.Adam({})) if backend else SVI(s.model, s.guide, pyro.optim.Adam({}), s.loss)
        norm = next(m for m in s.model.modules() if isinstance(m, nn.BatchNorm1d))
        start = norm.num_batches_tracked.item()
        for _ in range(4):
            svi.step(*s.args)
        counts.append(norm.num_batches_tracked.item() - start)
        s.model.eval()
        for _ in range(3):
            svi.step(*s.args)
        assert norm.num_batches_tracked.item() - start == counts[-1]
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_an_alpha_that_changes_is_used():
    s = scenario("regression", "concrete", "alpha")
    now = [0.0]
    s.loss.alpha = lambda: now[0]
    svi = compiled_svi(s, pyro.optim.Adam({}))
    svi.evaluate_loss(*s.args)
    for now[0] in (0.0, 0.7, -0.5):
        pyro.set_rng_seed(0)
        found = svi.evaluate_loss(*s.args)
        pyro.set_rng_seed(0)
        with KeyedRandomness(programs(svi)[0].keys(1)[0]), pyro.validation_enabled(False):
            assert found == pytest.approx(s.loss.loss(s.model, s.guide, *s.args), rel=1e-6)
    assert len(programs(svi)) == 1


@pytest.mark.slow
def test_other_parameters_are_taken_up():
    """A parameter store that was loaded holds other tensors than the trace saw."""
    s = scenario("regression", "concrete", "elbo")
    svi = compiled_svi(s, pyro.optim.Adam({"lr": 0.05}))
    store = pyro.get_param_store()
    kept = {name: p.detach().clone() for name, p in store._params.items()}
    for _ in range(20):
        svi.step(*s.args)
    loaded = {**store.get_state(), "params": {n: p.clone().requires_grad_() for n, p in kept.items()}}
    store.set_state(loaded)
    svi.step(*s.args)
    svi.step(*s.args)
    for name, p in store._params.items():
        assert 0 < (p - kept[name]).abs().max() < 0.11  # two steps of Adam from what was loaded
    assert len(programs(svi)) == 1


def test_an_argument_that_is_no_tensor_is_a_part_of_the_program():
    s = scenario("regression", "concrete", "elbo")

    def model(x, y=None, weight=1.0):
        with poutine.scale(scale=weight):
            return s.model(x, y)

    svi = CompiledSVI(model, s.guide, pyro.optim.Adam({}), backend="eager", progress=False)
    values = {}
    for weight in (1.0, 2.0, torch.tensor(2.0, dtype=F64)):
        svi.evaluate_loss(*s.args, weight=weight)
        pyro.set_rng_seed(0)
        values[weight] = svi.evaluate_loss(*s.args, weight=weight)
    one, two, tensor = values.values()
    assert one != two
    assert tensor == pytest.approx(two, rel=1e-9)


@pytest.mark.parametrize("why", ["branch", "poisson", "array"])
def test_what_cannot_be_traced_runs_eagerly_and_says_why(why):
    s = scenario("regression", "concrete", "elbo")

    def model(x, y=None, extra=None):
        if why == "branch" and x.sum() > 1e9:
            raise AssertionError
        if why == "poisson":
            torch.poisson(torch.ones(3))
        return s.model(x, y)

    extra = {"extra": [torch.zeros(2).numpy()]} if why == "array" else {}
    message = {"branch": "reads the value of a tensor", "poisson": "poisson", "array": "neither a tensor nor"}[why]
    ends = []
    for kind in (partial(CompiledSVI, backend="eager"), SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoConcreteDropout(model)
        elbo = TraceDropout_ELBO()
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
        if kind is SVI:
            elbo.set_up(model, guide, *s.args, **extra)  # initial values are no function of a key
            with (
                KeyedRandomness(random_keys(1)[0]) if why == "branch" else nullcontext()
            ):  # it is found out at the second
                losses = [svi.step(*s.args, **extra)]
            losses += [svi.step(*s.args, **extra) for _ in range(4)]
        else:
            with pytest.warns(UserWarning, match=rf"CompiledSVI runs everything eagerly: .*({message})"):
                losses = [svi.step(*s.args, **extra) for _ in range(5)]
        ends.append(losses)
    assert ends[0] == ends[1]


def test_an_optimiser_that_counts_in_python_runs_beside_compiled_gradients():
    ends = []
    for compiling in (True, False):
        pyro.clear_param_store()
        s = scenario("regression", "concrete", "elbo")
        args = (s.model, s.guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9}), s.loss)
        svi = CompiledSVI(*args, backend="eager", progress=False) if compiling else SVI(*args)
        pyro.set_rng_seed(0)
        if compiling:
            svi.step(*s.args)
            with pytest.warns(UserWarning, match=r"runs the update eagerly: .*ClippedAdam keeps a part of its state"):
                svi.step(*s.args)
            for _ in range(4):
                svi.step(*s.args)
            assert len(programs(svi)) == 1
        else:
            for _ in range(6):
                with KeyedRandomness(random_keys(1)[0]), pyro.validation_enabled(False):
                    svi.step(*s.args)
        ends.append(state(s.guide))
    assert_same_state(*ends, 1e-6)


# Errors


@pytest.mark.parametrize("how", ["step", "scan", "evaluate_loss"])
def test_what_is_not_finite_raises_and_changes_nothing(how):
    s = scenario("regression", "concrete", "elbo")
    svi = compiled_svi(s, pyro.optim.Adam({"lr": 0.05}))
    x, y = s.args
    for _ in range(2):
        svi.step(x, y), svi.evaluate_loss(x, y)
    bad = x.clone()
    bad[2, 1] = math.nan
    before = state(s.guide)
    match = "argument 0 has 1 NaN or infinite entries of 24: the loss is nan; parameters were not changed"
    if how == "scan":
        pyro.set_rng_seed(5)
        svi.scan(torch.stack([x, x]), torch.stack([y, y]))
        before = state(s.guide)
        s.guide.load_state_dict(before)
        with pytest.raises(ValueError, match="step 0 of 3: " + match):
            svi.scan(torch.stack([bad, x, x]), torch.stack([y, y, y]))
    else:
        random = torch.get_rng_state()
        with pytest.raises(ValueError, match=match):
            getattr(svi, how)(bad, y)
        assert torch.equal(random, torch.get_rng_state())
    assert_same_state(before, state(s.guide), 0.0)
    svi.step(x, y)
    assert any(not torch.equal(before[n], v) for n, v in state(s.guide).items())


def test_a_gradient_that_is_not_finite_changes_nothing():
    net = BayesianModule(nn.Linear(3, 1).double())

    def model(x, y=None):
        root = (net(x).squeeze(-1) * x[:, 0]).abs().sqrt()  # has no slope at 0
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(root, 1.0), obs=y)

    x, y = regression_data(8)
    guide = AutoBernoulliDropout(model)
    svi = CompiledSVI(model, guide, pyro.optim.Adam({}), backend="eager", progress=False)
    for _ in range(2):
        svi.step(x, y)
    before = state(guide)
    x = x.clone()
    x[3, 0] = 0.0
    with pytest.raises(ValueError, match="the loss is finite, but its gradient is not; parameters were not changed"):
        svi.step(x, y)
    assert_same_state(before, state(guide), 0.0)


def test_losses_and_backends_that_are_none_raise():
    s = scenario("regression", "fixed", "elbo")
    with pytest.raises(ValueError, match="traces the losses of pyro_dropout, but found Trace_ELBO"):
        CompiledSVI(s.model, s.guide, pyro.optim.Adam({}), Trace_ELBO())
    with pytest.raises(ValueError, match="backend must be"):
        CompiledSVI(s.model, s.guide, pyro.optim.Adam({}), backend="tvm")


def test_a_graph_of_the_gpu_wants_tensors_on_one():
    s = scenario("regression", "fixed", "elbo")
    svi = CompiledSVI(s.model, s.guide, pyro.optim.Adam({}), s.loss, backend="cudagraphs", progress=False)
    svi.step(*s.args)
    with pytest.raises(ValueError, match='"cudagraphs" runs on a GPU, but found tensors on cpu'):
        svi.step(*s.args)


def test_it_says_what_it_compiled_twice_at_most(capsys, monkeypatch):
    monkeypatch.setattr(Program, "compile", lambda self, wait, say: say("", 1.0))
    s = scenario("regression", "concrete", "elbo")
    svi = CompiledSVI(s.model, s.guide, pyro.optim.Adam({}), s.loss)
    x, y = s.args
    for n in (8, 5, 4):
        for _ in range(2):
            svi.step(x[:n], y[:n])
    first, second = capsys.readouterr().out.splitlines()
    assert first == "CompiledSVI: a step for (8, 3), (8,) is compiled, after 1.0 s"
    assert second.endswith("again; further times are not said")


@pytest.mark.slow
def test_module_local_parameters():
    pyro.settings.set(module_local_params=True)
    s = scenario("regression", "concrete", "elbo")
    svi = compiled_svi(s, pyro.optim.Adam({"lr": 0.05}))
    before = state(s.guide)
    svi.scan(*(t.expand(4, *t.shape) for t in s.args))
    assert programs(svi)[0].update is not None
    assert all(not torch.equal(before[n], v) for n, v in state(s.guide).items())
    assert not pyro.get_param_store().keys()


# In distribution, and compiled


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("guide", "loss"),
    [
        pytest.param(*case, marks=() if case == ("learned by unit", "elbo") else pytest.mark.slow)
        for case in (
            ("fixed", "elbo"),
            ("concrete", "elbo"),
            ("learned by unit", "elbo"),
            ("learned", "arm"),
            ("concrete", "alpha"),
            ("shared", "reinforce"),
            ("learned", "alpha disarm"),
            ("normal", "elbo"),
            ("rest normal", "three particles"),
        )
    ],
)
def test_losses_and_gradients_have_the_distribution_of_eager_ones(guide, loss, backend):
    s = scenario("regression", guide, loss)
    steps = 2000 if backend == "inductor" else 200
    svi = compiled_svi(s, pyro.optim.Adam({}), backend)
    found = []
    for run in (svi.loss_and_grads, s.loss.loss_and_grads):
        run(s.model, s.guide, *s.args)
        losses, draws = [], []
        for _ in range(steps):
            s.guide.zero_grad(set_to_none=True)
            losses.append(run(s.model, s.guide, *s.args))
            draws.append(torch.cat([p.grad.flatten() for p in s.guide.parameters() if p.grad is not None]))
        found.append((torch.tensor(losses, dtype=F64), torch.stack(draws)))
    for compiled, eager in zip(*found, strict=True):
        assert_same_mean(compiled, eager)
        assert_same_mean((compiled - compiled.mean(0)) ** 2, (eager - eager.mean(0)) ** 2)


def test_a_compiled_step_trains():
    """One of what users run, compiled: it must start without a warning and get better."""
    s = scenario("laplace", "concrete", "elbo")
    svi = compiled_svi(s, pyro.optim.Adam({"lr": 0.02}), "inductor")
    x, y = (t.expand(200, *t.shape) for t in s.args)
    losses = svi.scan(x, y)
    assert losses[-50:].mean() < losses[:50].mean()
    assert programs(svi)[0].update is not None


def test_nothing_to_learn_is_said():
    """As where a guide's network is an attribute of a PyroModule that is not called: Pyro registers no parameter."""
    encoder = torch.nn.Linear(3, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(eta, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("eta", dist.Normal(encoder(x)[:, 0], 1.0))

    x, loss = torch.ones(4, 3), TraceDropout_ELBO(masks="draw")
    svi = CompiledSVI(model, guide, pyro.optim.Adam({}), loss, backend="eager", progress=False)
    svi.step(x)
    with pytest.warns(UserWarning, match="nothing to learn, as neither the model nor the guide registers a parameter"):
        svi.step(x)
    with pyro.settings.context(module_local_params=True):
        many = ReplicatedSVI(lambda: (model, guide), [{}] * 2, pyro.optim.Adam({}), loss, backend="eager")
        with pytest.raises(ValueError, match="ReplicatedSVI cannot run: there is nothing to learn"):
            many.step(x.expand(2, *x.shape))


def test_parameters_of_another_module_of_the_same_name_are_noticed():
    """Pyro's store has those of a first model; a second of the same names learns nothing, in stock Pyro silently."""

    def model(x, layer):
        pyro.module("layer", layer)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(layer(x)[:, 0], 1.0), obs=x[:, 0])

    x = torch.ones(4, 3)
    for number in range(2):
        layer = torch.nn.Linear(3, 1)
        before = layer.weight.clone()
        svi = CompiledSVI(
            partial(model, layer=layer),
            lambda x: None,
            pyro.optim.Adam({"lr": 0.1}),
            TraceDropout_ELBO(masks="draw"),
            backend="eager",
            progress=False,
        )
        svi.step(x)
        if number:
            with pytest.warns(UserWarning, match=r"no parameter has a gradient.*pyro\.clear_param_store"):
                svi.step(x)
        else:
            svi.step(x)
        assert torch.equal(layer.weight, before) == bool(number)
