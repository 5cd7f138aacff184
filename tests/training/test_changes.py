"""What changes between steps is noticed: a compiled step goes on as an eager one with the same random numbers would."""

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn

from models.regression import mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    CompiledSVI,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from pyro_dropout.training._steps.program import Program
from pyro_dropout.training._steps.randomness import KeyedRandomness, random_keys
from tests.support.scenarios import FixedNoise, regression_data

F64 = torch.float64


class Noise(PyroModule):
    """Its noise is a buffer."""

    def __init__(self):
        super().__init__()
        self.net = BayesianModule(mlp(3, (4,)).double())
        self.register_buffer("noise", torch.tensor(1.0, dtype=F64))

    def forward(self, x, y=None):
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, self.noise), obs=y)


def function_of(net):
    """A model that is a function, of which only a call shows the modules."""

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    return model


class Run:
    """A model, its guide and optimiser, whose steps are compiled or eager; all random numbers come from keys."""

    def __init__(self, compiling, model, guide=AutoConcreteDropout, loss=None, optim=None):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self.x, self.y = regression_data(8)
        self.model = model()
        self.guide, self.loss = guide(self.model), loss() if loss else TraceDropout_ELBO()
        self.optim = optim() if optim else pyro.optim.Adam({"lr": 0.05})
        args = (self.model, self.guide, self.optim, self.loss)
        self.svi = CompiledSVI(*args, backend="eager", progress=False) if compiling else SVI(*args)
        self.compiling, self.losses = compiling, []
        self.loss.set_up(self.model, self.guide, self.x, self.y)
        pyro.set_rng_seed(1)

    def __call__(self, what, number=1, *args):
        for _ in range(number):
            if self.compiling:
                self.losses.append(getattr(self.svi, what)(*args or (self.x, self.y)))
            else:
                with KeyedRandomness(random_keys(1)[0]):
                    self.losses.append(getattr(self.svi, what)(*args or (self.x, self.y)))


def assert_alike(happens, *args, warns=None, **kwargs):
    losses = []
    for compiling in (True, False):
        run = Run(compiling, *args, **kwargs)
        if warns and compiling:
            with pytest.warns(UserWarning, match=warns):
                happens(run)
        else:
            happens(run)
        losses.append(torch.tensor(run.losses, dtype=F64))
        if compiling:
            compiled = run.svi
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0.0)
    return [p for p in compiled._programs.values() if isinstance(p, Program)]


def net():
    return BayesianModule(mlp(3, (4,)).double())


def test_losses_are_those_of_the_parameters_now():
    def happens(run):
        run("step", 3)
        with torch.no_grad():
            run.guide(run.x, run.y)  # a draw, which keeps the parameters that it was made of
        run("evaluate_loss", 3)
        run("step", 3)
        run("evaluate_loss")
        store = pyro.get_param_store()
        state = store.get_state()
        store.set_state(
            {**state, "params": {n: (10 * p).detach().requires_grad_() for n, p in state["params"].items()}}
        )
        run("evaluate_loss", 2)
        run("step", 3)

    assert_alike(happens, lambda: FixedNoise(mlp(3, (4,)).double(), size=20))


def test_a_cleared_store():
    def happens(run):
        run("step", 3)
        pyro.clear_param_store()
        run("step", 3)
        assert pyro.get_param_store().keys()

    def model():
        def linear(x, y=None):
            slope = pyro.param("slope", torch.ones(3, dtype=F64))
            weight = pyro.sample("weight", dist.Normal(torch.zeros(1, 3, dtype=F64), 1.0).to_event(2))
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal((torch.nn.functional.linear(x * slope, weight)).squeeze(-1), 1.0), obs=y)

        return linear

    assert_alike(happens, model)


def test_frozen_parameters_and_buffers():
    def happens(run):
        run("step", 3)
        run.model.noise.fill_(2.0)  # in place
        run("step", 2)
        run.model.noise = torch.tensor(0.3, dtype=F64)  # another tensor
        run("step", 3)
        frozen = next(p for n, p in run.guide.named_parameters() if n.startswith("locs")).requires_grad_(False)
        before = frozen.clone()
        if run.compiling:  # Pyro goes on to move it, by its momentum
            run("step", 3)
            run.losses = run.losses[:-3]
            assert torch.equal(frozen, before)

    pyro.settings.set(module_local_params=True)
    assert_alike(happens, Noise)


def test_parameters_that_are_assigned():
    def happens(run):
        run("step", 3)
        state = {n: 2 * v for n, v in run.guide.state_dict().items()}
        run.guide.load_state_dict(state, assign=True)
        run("evaluate_loss", 2)
        run("step", 3)

    pyro.settings.set(module_local_params=True)
    assert_alike(happens, lambda: FixedNoise(mlp(3, (4,)).double(), size=20))


def test_an_optimiser_s_state_and_options():
    def groups(run):
        return [group for o in run.optim.optim_objs.values() for group in o.param_groups]

    def happens(run):
        run("step", 3)
        states = [copy.deepcopy(o.state_dict()) for o in run.optim.optim_objs.values()]
        run("step", 3)
        for o, state in zip(run.optim.optim_objs.values(), states, strict=True):
            o.load_state_dict(state)
        run("step", 3)
        for group in groups(run):
            group["weight_decay"] = 3.0
        run("step", 3)

    assert_alike(happens, lambda: function_of(net()))


READS = {"float": float, "list": lambda t: t.reshape(1).tolist()[0], "array": lambda t: t.numpy().item()}


@pytest.mark.parametrize("how", READS)
def test_values_of_buffers_that_change(how):
    """Read as a number, a buffer is no part of a graph: its value would stay that of the trace."""

    def model():
        inner = FixedNoise(mlp(3, (4,)).double(), size=20)
        inner.register_buffer("factor", torch.tensor(1.0, dtype=F64))

        def scaled(x, y=None):
            return inner(x * READS[how](inner.factor), y)

        scaled.inner = inner
        return scaled

    def happens(run):
        for i in range(4):
            run("step")
            run.model.inner.factor.fill_(2.0 + i)

    still = partial(AutoBernoulliDropout, rate=0.0)  # eager steps draw other numbers
    assert not assert_alike(happens, model, still, warns="cannot be traced .*reads the value of a tensor")


def test_values_of_constants_are_a_part_of_graphs():
    def model():
        inner = FixedNoise(mlp(3, (4,)).double(), size=20)

        def scaled(x, y=None):
            table = torch.arange(3.0, dtype=F64)
            return inner(x * torch.tensor(0.7).item() * table[torch.tensor(1)], y)

        return scaled

    assert len(assert_alike(lambda run: run("step", 4), model)) == 1


def test_constants_that_something_was_written_to_are_none():
    def model():
        inner = FixedNoise(mlp(3, (4,)).double(), size=20)

        def scaled(x, y=None):
            table = torch.zeros(2, dtype=F64)
            table[0] = x[0, 0]
            return inner(x * table[0].item(), y)

        return scaled

    still = partial(AutoBernoulliDropout, rate=0.0)
    assert not assert_alike(lambda run: run("step", 4), model, still, warns="reads the value of a tensor")


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_rates_that_are_tensors_and_change(kind):
    def happens(run):
        for _ in range(8):
            run("step")
            for o in run.optim.optim_objs.values():
                o.param_groups[0]["lr"].mul_(0.7)

    optim = lambda: pyro.optim.PyroOptim(kind, {"lr": torch.tensor(1e-2, dtype=F64)})  # noqa: E731
    assert len(assert_alike(happens, lambda: function_of(net()), optim=optim)) == 1


def rates_fall(run):
    for _ in range(10):
        run("step")
        for o in run.optim.optim_objs.values():
            o.param_groups[0]["lr"] *= 0.9


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta])
def test_rates_that_change_where_pytorch_wants_numbers(kind):
    optim = lambda: pyro.optim.PyroOptim(kind, {"lr": 1e-2})  # noqa: E731
    assert len(assert_alike(rates_fall, lambda: function_of(net()), optim=optim)) == 1


class Plain(torch.optim.Optimizer):
    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p -= float(group["lr"]) * p.grad


def test_a_rate_that_is_a_number_and_changes():
    """No tensor will do for it: after some steps that were compiled in vain the update is eager."""
    plain = lambda: pyro.optim.PyroOptim(Plain, {"lr": 1e-2})  # noqa: E731
    warns = "runs the update eagerly: the optimiser's options change"
    assert len(assert_alike(rates_fall, lambda: function_of(net()), optim=plain, warns=warns)) <= 4


def test_batch_norm_of_a_model_that_is_a_function():
    counts = []

    def happens(run):
        run("step", 5)
        norms.append(norm := next(m for m in made[-1].modules() if isinstance(m, nn.BatchNorm1d)))
        counts.append(norm.num_batches_tracked.item())
        made[-1].eval()
        run("step", 3)
        made[-1].train()
        run("step", 2)
        counts.append(norm.num_batches_tracked.item())

    made, norms = [], []

    def model():
        made.append(BayesianModule(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()))
        return function_of(made[-1])

    assert_alike(happens, model, AutoBernoulliDropout, loss=partial(TraceDropout_ELBO, masks="draw"))
    assert counts[:2] == counts[2:]
    torch.testing.assert_close(norms[0].running_var, norms[1].running_var)


def test_modes_in_turn_have_one_program_each():
    def happens(run):
        for _ in range(4):
            run.model.train()
            run("step")
            run.model.eval()
            run("evaluate_loss")

    assert len(assert_alike(happens, lambda: FixedNoise(mlp(3, (4,)).double(), size=20))) == 2


def test_one_tensor_in_two_places():
    def model():
        held = regression_data(8)[0]

        def three(x, y=None, z=None):
            mean = (inner(x if z is None else x - 2 * z) + held.sum(-1, keepdim=True)).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

        inner = net()
        three.held = held
        return three

    def happens(run):
        run("evaluate_loss", 2, run.x, run.y, run.x)
        run("evaluate_loss", 2, run.x, run.y, 3 * run.x)
        held = run.model.held
        run("evaluate_loss", 2, held, run.y, None)
        run("evaluate_loss", 2, 2 * held, run.y, None)

    assert len(assert_alike(happens, model)) == 2


def test_tied_parameters_are_updated_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(3, 3).double() for _ in range(3))
            self.b.bias = self.a.bias

        def forward(self, x):
            return self.c(self.b(self.a(x))).sum(-1, keepdim=True)

    def prior(name, parameter):
        return dist.Normal(0.0, 1.0) if parameter.dim() == 2 else None

    assert_alike(lambda run: run("step", 5), lambda: function_of(BayesianModule(Tied(), prior=prior)))


def test_alpha_in_a_scan_changes_at_every_step():
    calls = []

    def loss():
        calls.append(0)

        def alpha():
            calls[-1] += 1
            return 0.1 * calls[-1]

        return RenyiDropout_ELBO(alpha, 3)

    def happens(run):
        calls[-1] = 0  # of a step there is one
        x, y = (t.expand(6, *t.shape) for t in (run.x, run.y))
        if run.compiling:
            run.losses = run.svi.scan(x, y).tolist()
        else:
            run("step", 6)

    assert_alike(happens, lambda: FixedNoise(mlp(3, (4,)).double(), size=20), loss=loss)
    assert calls == [6, 6]


def test_alpha_zero_of_draws_that_differ_much():
    run = Run(
        True, lambda: FixedNoise(mlp(3, (50,)).double(), size=2000, scale=1e-3), loss=lambda: RenyiDropout_ELBO(0.0, 10)
    )
    run("step", 10)
    assert all(math.isfinite(loss) for loss in run.losses)


def test_a_bad_second_batch_does_not_end_compiling():
    run = Run(True, lambda: FixedNoise(mlp(3, (4,)).double(), size=20))
    run("step")
    with pytest.raises(ValueError, match="the loss is nan; parameters were not changed"):
        run("step", 1, run.x * math.nan, run.y)
    run("step", 2)
    assert any(isinstance(p, Program) for p in run.svi._programs.values())


def test_what_a_scan_starts_with_says_which_step_it_is():
    run = Run(True, lambda: FixedNoise(mlp(3, (4,)).double(), size=20))
    with pytest.raises(ValueError, match="step 0 of 2: argument 0 has 24 NaN"):
        run.svi.scan(run.x.expand(2, 8, 3) * math.nan, run.y.expand(2, 8))


def test_a_step_takes_gradients_that_are_there():
    def happens(run):
        run("step", 3)
        if run.compiling:
            run.losses.append(run.svi.loss_and_grads(run.model, run.guide, run.x, run.y))
        else:
            with KeyedRandomness(random_keys(1)[0]):
                run.losses.append(run.svi.loss_and_grads(run.model, run.guide, run.x, run.y))
        run("step", 3)
        assert all(p.grad is None or not p.grad.any() for p in run.guide.parameters())

    assert_alike(happens, lambda: FixedNoise(mlp(3, (4,)).double(), size=20))


def test_gradients_add_up():
    grads = []
    for calls in (1, 1, 2):
        run = Run(True, lambda: FixedNoise(mlp(3, (4,)).double(), size=20))
        run.svi.loss_and_grads(run.model, run.guide, run.x, run.y)
        run.guide.zero_grad(set_to_none=True)
        for i in range(calls):
            pyro.set_rng_seed(i if calls == 2 else len(grads))  # the third has the first's key, then the second's
            run.svi.loss_and_grads(run.model, run.guide, run.x, run.y)
        grads.append({n: p.grad.clone() for n, p in run.guide.named_parameters()})
    first, second, both = grads
    for name, value in both.items():
        torch.testing.assert_close(value, first[name] + second[name])


def test_a_resumed_run_draws_what_the_uninterrupted_one_drew():
    whole = Run(True, lambda: FixedNoise(mlp(3, (4,)).double(), size=20))
    whole("step", 8)
    run = Run(True, lambda: FixedNoise(mlp(3, (4,)).double(), size=20))
    run("step", 4)
    run.svi = CompiledSVI(run.model, run.guide, run.optim, run.loss, backend="eager", progress=False)
    run("step", 4)
    assert run.losses == pytest.approx(whole.losses, rel=1e-6)


def test_backends_draw_the_same(monkeypatch):
    monkeypatch.setattr(Program, "compile", lambda self, wait, say: None)
    losses = []
    for backend in ("eager", "inductor"):
        run = Run(True, lambda: FixedNoise(mlp(3, (4,)).double(), size=20))
        run.svi.backend = backend
        run("step", 5)
        losses.append(run.losses)
    assert losses[0] == losses[1]


@pytest.mark.filterwarnings("error")
def test_large_layers_and_sizes_that_depend_on_values():
    x, y = torch.randn(256, 512), torch.randn(256)
    model = FixedNoise(nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 1)), size=256)
    guide = AutoBernoulliDropout(model, rate=0.5)
    svi = CompiledSVI(model, guide, pyro.optim.Adam({}), TraceDropout_ELBO(2, masks="draw"), backend="eager")
    for _ in range(3):
        svi.evaluate_loss(x, y)

    inner = net()

    def picky(x, y=None):
        x = x[x[:, 0] > 0]
        mean = inner(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=x[:, 0])

    x, y = regression_data(8)
    svi = CompiledSVI(picky, AutoBernoulliDropout(picky), pyro.optim.Adam({}), backend="eager")
    svi.step(x)
    with pytest.warns(UserWarning, match=r"the size of what aten.index.Tensor returns depends on values"):
        svi.step(x)
    svi.step(-x)


def with_a_part():
    """A level that only some steps have."""
    layers = net()

    def model(x, y, part=True):
        level = pyro.param("level", torch.tensor(0.3, dtype=F64)) if part else 0.0
        shift = pyro.param("shift", torch.zeros(2, dtype=F64)) if part else torch.zeros(2, dtype=F64)
        mean = layers(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean + level + shift.sum(), 1.0), obs=y)

    return model


@pytest.mark.parametrize("optim", [pyro.optim.Adam, pyro.optim.RMSprop, pyro.optim.NAdam])
def test_small_parameters_that_are_updated_unequally_often(optim):
    """They are updated as one vector, with one count of steps, as long as their counts are the same."""

    def happens(run):
        for part in (True, True, True, False, False, False, True, True, True, False, True):
            run("step", 2, run.x, run.y, part)
        for name, p in pyro.get_param_store().named_parameters():  # by hand, one of them
            if name == "shift":
                p.grad = torch.ones_like(p)
                run.optim([p])
                p.grad = None
        run("step", 3, run.x, run.y, True)

    programs = assert_alike(happens, with_a_part, optim=lambda: optim({"lr": 0.05}))
    assert len(programs) == 2
    together = [sum(map(len, program.update.together)) for program in programs]
    assert max(together) >= 6
