"""Networks that are trained in one step end where each of them alone would."""

import copy
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample
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
    load_checkpoint,
    save_checkpoint,
)
from pyro_dropout.training import replicates
from tests.support.scenarios import regression_data

R, N, STEPS = 5, 8, 6
SEEDS = [3, 1, 4, 11, 5]


class Model(PyroModule):
    """Regression with all that may differ between replicates."""

    def __init__(self, scale, precision, norm=False, size=20):
        super().__init__()
        layers = mlp(3, (4,)).double()
        net = nn.Sequential(layers[0], nn.BatchNorm1d(4).double(), *layers[1:]) if norm else layers
        self.net = BayesianModule(net, prior=dist.Normal(0.0, torch.tensor(scale, dtype=torch.float64)))
        self.register_buffer("precision", torch.tensor(precision, dtype=torch.float64))
        self.size = size

    def forward(self, x, y=None):
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", self.size, subsample_size=len(x)):
            return pyro.sample("obs", dist.Normal(mean, self.precision.rsqrt()), obs=y)


def concrete(rate, scale, precision, **kwargs):
    model = Model(scale, precision, **kwargs)
    return model, AutoConcreteDropout(model, rate=rate)


def fixed(rate, scale, precision, **kwargs):
    model = Model(scale, precision, **kwargs)
    return model, AutoBernoulliDropout(model, rate=rate)


def learned(rate, scale, precision, **kwargs):
    model = Model(scale, precision, **kwargs)
    return model, AutoBernoulliDropout(model, rate=rate, learnable=True, per_unit=True)


def grid(**kwargs):
    rates, scales = torch.linspace(0.05, 0.45, R).tolist(), torch.linspace(0.3, 2.0, R).tolist()
    return [
        {"rate": a, "scale": b, "precision": 1.0 + i, **kwargs}
        for i, (a, b) in enumerate(zip(rates, scales, strict=True))
    ]


def data():
    torch.manual_seed(0)
    x, y = zip(*(regression_data(N) for _ in range(R)), strict=True)
    return torch.stack(x), torch.stack(y)


def adam(lr=0.05):
    return pyro.optim.Adam({"lr": lr})


def separate(make, values, seed, x, y, loss, optim):
    """One replicate by itself: losses, and its state afterwards."""
    with pyro.settings.context(module_local_params=True):
        pyro.set_rng_seed(seed)
        model, guide = make(**values)
        svi = CompiledSVI(model, guide, optim, loss, backend="eager", progress=False)
        losses = torch.tensor([svi.step(x, y) for _ in range(STEPS)], dtype=torch.float64)
    return losses, state(model, guide)


def state(model, guide):
    return {**guide.state_dict(), **getattr(model, "net", model).state_dict()}


def latent(rate, scale, precision):
    """With other latents, whose initial values are random."""
    model = Regression(3, 20, hidden=(4,), lengthscale=1 / scale).double()
    rest = partial(AutoNormal, init_loc_fn=init_to_sample)
    return model, AutoConcreteDropout(model, rate=rate, rest=lambda m: rest(m))


def function(rate, scale, precision):
    """A model that is a function, with batch norm in it."""
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    net = BayesianModule(layers, prior=dist.Normal(0.0, torch.tensor(scale, dtype=torch.float64)))
    noise = torch.tensor(precision, dtype=torch.float64).rsqrt()

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, noise), obs=y)

    model.net = net
    return model, AutoBernoulliDropout(model, rate=rate)


def ordinary(rate, scale, precision):
    """With biases that have no prior: parameters of a module, as stock PyTorch has them."""
    model = Model(scale, precision)
    weights = dist.Normal(0.0, torch.tensor(scale, dtype=torch.float64))
    model.net = BayesianModule(mlp(3, (4,)).double(), lambda name, _: weights if "weight" in name else None)
    return model, AutoConcreteDropout(model, rate=rate)


PER_DRAW = partial(TraceDropout_ELBO, masks="draw")  # batch statistics are of all rows
CASES = {
    "concrete": (concrete, {}, TraceDropout_ELBO),
    "fixed": (fixed, {}, lambda: TraceDropout_ELBO(2)),
    "learned": (learned, {}, lambda: TraceDropout_ELBO(gradient="disarm")),
    "batch norm": (fixed, {"norm": True}, PER_DRAW),
    "alpha": (concrete, {}, lambda: RenyiDropout_ELBO(0.5, 3)),
    "latent": (latent, {}, TraceDropout_ELBO),
    "function": (function, {}, PER_DRAW),
    "ordinary": (ordinary, {}, TraceDropout_ELBO),
}


RUNS = [
    pytest.param(case, memory, backend, marks=() if (case, memory, backend) in fast else pytest.mark.slow)
    for fast in [
        (
            ("concrete", 8_000, "eager"),
            ("latent", None, "eager"),
            ("function", None, "eager"),
            ("ordinary", None, "eager"),
        )
    ]
    for case in CASES
    for memory in (None, 8_000)
    for backend in ("eager", "inductor")
]


@pytest.mark.parametrize(("case", "max_memory", "backend"), RUNS)
def test_replicates_are_separate_runs(case, max_memory, backend):
    make, more, loss = CASES[case]
    torch._C._functorch._set_vmap_fallback_enabled(False)  # nothing is done one replicate after the other
    x, y = data()
    optims = [adam(0.01 * (r + 1)) for r in range(R)]
    svi = ReplicatedSVI(
        make, grid(**more), optims, loss(), seeds=SEEDS, max_memory=max_memory, backend=backend, progress=False
    )
    losses = torch.stack([svi.step(x, y) for _ in range(STEPS)], 1)
    step = next(iter(svi._steps.values()))
    assert (step.parts > 1) == bool(max_memory)
    for r, values in enumerate(grid(**more)):
        expected, end = separate(make, values, SEEDS[r], x[r], y[r], loss(), adam(0.01 * (r + 1)))
        torch.testing.assert_close(losses[r], expected, rtol=1e-6, atol=0.0)
        own = state(svi.models[r], svi.guides[r])
        assert own.keys() == end.keys()
        for name, value in end.items():
            torch.testing.assert_close(own[name], value, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("max_memory", [pytest.param(None, marks=pytest.mark.slow), 40_000])
def test_alphas_of_their_own_or_of_some(max_memory):
    x, y = data()
    alphas = [0.0, 0.3, 0.3, 1.0, -0.5]
    losses = [RenyiDropout_ELBO(a, 3) for a in alphas]
    losses[2] = losses[1]
    svi = ReplicatedSVI(concrete, grid(), adam(), losses, seeds=SEEDS, backend="eager", max_memory=max_memory)
    losses = torch.stack([svi.step(x, y) for _ in range(STEPS)], 1)
    for r, values in enumerate(grid()):
        expected, _ = separate(concrete, values, SEEDS[r], x[r], y[r], RenyiDropout_ELBO(alphas[r], 3), adam())
        torch.testing.assert_close(losses[r], expected, rtol=1e-6, atol=0.0)


def test_a_scan_is_its_steps_and_guides_are_ordinary():
    x, y = data()
    ends = []
    for how in ("scan", "steps"):
        svi = ReplicatedSVI(concrete, grid(), adam(), seeds=SEEDS, backend="eager")
        if how == "scan":
            losses = svi.scan(x.unsqueeze(1).expand(-1, STEPS, -1, -1), y.unsqueeze(1).expand(-1, STEPS, -1))
        else:
            losses = torch.stack([svi.step(x, y) for _ in range(STEPS)], 1)
        ends.append(losses)
    assert torch.equal(*ends)
    assert losses.shape == (R, STEPS)
    assert svi.scan(x[:, None][:, :0], y[:, None][:, :0]).shape == (R, 0)
    rates = torch.stack([torch.stack(list(guide.rates().values())) for guide in svi.guides])
    assert len(rates.unique()) == rates.numel()
    found = TraceDropout_ELBO().loss(svi.models[2], svi.guides[2], x[2], y[2])
    assert found == pytest.approx(losses[2, -1].item(), rel=0.5)
    assert not pyro.get_param_store().keys()


def test_draws_between_steps_are_of_the_parameters_now():
    x, y = data()
    svi = ReplicatedSVI(concrete, grid(), adam(), seeds=SEEDS, backend="eager")
    for steps in (2, 3):
        svi.scan(*(t.unsqueeze(1).expand(-1, steps, *t.shape[1:]) for t in (x, y)))
        kept = []
        for guide in svi.guides:
            with torch.no_grad():
                kept.append(guide(x[0], y[0])["net.0.weight"].loc)
            assert torch.equal(kept[-1], dict(guide.named_parameters())["locs.net.0.weight_unconstrained"])
        assert len({float(k.sum()) for k in kept}) == R
        assert not pyro.get_param_store().keys()


def test_buffers_are_read_at_every_step():
    x, y = data()
    svi = ReplicatedSVI(fixed, [{**v, "rate": 0.0, "precision": 1.0} for v in grid()], adam(0.0), backend="eager")
    before = [svi.step(x, y) for _ in range(2)][-1]
    svi.models[1].precision.fill_(9.0)
    after = svi.step(x, y)
    assert (after != before).tolist() == [False, True, False, False, False]
    svi.models[1].precision.fill_(1.0)
    assert torch.equal(svi.step(x, y), before)


def test_one_that_dies_keeps_its_batch_norm():
    x, y = data()
    svi = ReplicatedSVI(fixed, grid(norm=True), adam(), PER_DRAW(), seeds=SEEDS, backend="eager")
    for _ in range(2):
        svi.step(x, y)
    before = [state(*own) for own in zip(svi.models, svi.guides, strict=True)]
    before = [{n: v.clone() for n, v in own.items()} for own in before]
    x[1, 0, 0] = math.nan
    with pytest.warns(UserWarning, match="1 of 5 replicates is not finite"):
        svi.step(x, y)
    for r, own in enumerate(zip(svi.models, svi.guides, strict=True)):
        now = state(*own)
        count = next(name for name in now if name.endswith("num_batches_tracked"))
        assert now[count] == before[r][count] + (r != 1)
        if r == 1:
            assert all(torch.equal(v, before[r][n]) for n, v in now.items())


def test_what_is_not_finite_at_the_first_steps():
    x, y = data()
    svi = ReplicatedSVI(concrete, grid(), adam(), seeds=SEEDS, backend="eager")
    bad = x.clone()
    bad[2, 0, 0] = math.nan
    with pytest.raises(ValueError, match="parameters were not changed") as caught:
        svi.step(bad, y)
    assert "in replicate 2 ({'rate':" in caught.value.__notes__[0]
    fresh = [{n: v.clone() for n, v in guide.state_dict().items()} for guide in svi.guides[:3]]
    for guide, old in zip(svi.guides, fresh, strict=False):  # none has stepped
        assert all(torch.equal(v, old[n]) for n, v in guide.state_dict().items())
        assert all(p.grad is None or not p.grad.any() for p in guide.parameters())
    svi.step(x, y)
    with pytest.warns(UserWarning, match="1 of 5 replicates is not finite"):
        svi.step(bad, y)  # traces
    svi.step(bad[:, :4], y[:, :4])  # traces again; it is dead already
    assert svi.alive.tolist() == [True, True, False, True, True]


def differing(how):
    """Two models that differ in a number that is no tensor, in some place."""

    def make(value):
        inner = BayesianModule(mlp(3, (4,)).double())
        holders = {"float": value, "numpy": np.float32(value), "array": np.array([value]), "set": {value}}

        def plain(x, y=None, scale=None, *, other=value if how == "keyword" else 1.0):
            mean = inner(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                return pyro.sample("obs", dist.Normal(mean, float(scale or other)), obs=y)

        class Around(PyroModule):
            def __init__(self):
                super().__init__()
                self.inner = inner
                if how in holders:
                    self._rate = holders[how]

            def forward(self, x, y=None):
                scale = max(self._rate) if how in ("set", "array") else getattr(self, "_rate", 1.0)
                return plain(x, y, value if how == "class" else scale)

        model = plain if how == "keyword" else Around()
        return model, AutoBernoulliDropout(model)

    return make


@pytest.mark.parametrize("how", ["keyword", "class", "float", "numpy", "array", "set"])
def test_numbers_that_differ_are_found_wherever_they_are(how):
    x, y = data()
    svi = ReplicatedSVI(differing(how), [{"value": 1.0}, {"value": 2.0}], adam(), backend="eager")
    svi.step(x[:2], y[:2])
    with pytest.raises(ValueError, match=r"replicate 0, but .* in replicate 1"):
        svi.step(x[:2], y[:2])
    same = ReplicatedSVI(differing(how), [{"value": 1.0}, {"value": 1.0}], adam(), backend="eager")
    assert same.scan(x[:2, None].expand(2, 3, N, 3), y[:2, None].expand(2, 3, N)).isfinite().all()


@pytest.mark.parametrize("max_memory", [pytest.param(None, marks=pytest.mark.slow), 4_000])
def test_other_batches_schedules_states_and_modes(max_memory):
    """Whatever makes a second graph: a partial batch, parts of another size, evaluation mode, a loaded state.

    At rate 0 nothing is random: steps of another shape are eager ones at first, but for replicates.
    """
    (x, y), number = data(), 3
    x, y, values = x[:number], y[:number], [{**v, "rate": 0.0} for v in grid(norm=True)[:number]]
    separate_losses = []
    with pyro.settings.context(module_local_params=True):
        for r in range(number):
            pyro.set_rng_seed(SEEDS[r])
            model, guide = fixed(**values[r])
            optim = adam()
            one = CompiledSVI(model, guide, optim, backend="eager", progress=False)
            separate_losses.append(
                eventful(lambda rows, one=one, r=r: one.step(x[r, rows], y[r, rows]), [optim], [model])
            )
    optims = [adam() for _ in range(number)]
    svi = ReplicatedSVI(fixed, values, optims, seeds=SEEDS[:number], backend="eager", max_memory=max_memory)
    losses = eventful(lambda rows: svi.step(x[:, rows], y[:, rows]), optims, svi.models)
    expected = torch.tensor(separate_losses, dtype=torch.float64).T
    sizes = [step.size * step.parts for step in svi._steps.values()]
    assert len(set(sizes)) == 1
    assert (sizes[0] > number) == bool(max_memory)
    torch.testing.assert_close(torch.stack(losses), expected, rtol=1e-6, atol=0.0)


def eventful(step, optims, models):
    """The losses of a training with a partial batch, a schedule, a loaded state, and batch norm that stands still."""
    losses = [step(slice(None)), step(slice(None)), step(slice(0, 3)), step(slice(0, 3))]
    inner = [o for optim in optims for o in optim.optim_objs.values()]
    for o in inner:
        o.param_groups[0]["lr"] *= 0.1
    losses += [step(slice(None)), step(slice(0, 3))]
    states = [copy.deepcopy(o.state_dict()) for o in inner]
    losses += [step(slice(None)) for _ in range(3)]
    for o, state in zip(inner, states, strict=True):
        o.load_state_dict(state)
    losses += [step(slice(None)) for _ in range(3)]
    for model in models:
        model.eval()
    return losses + [step(rows) for rows in (slice(None), slice(0, 3), slice(None))]


@pytest.mark.parametrize("shared", [True, False])
def test_an_optimiser_may_choose_by_name(shared):
    """Rates go ten times as far as weights; Adam's first step has the size of the learning rate."""
    names = []

    def options(name):
        names.append(name)
        return {"lr": 1e-2 if "logits" in name else 1e-3}

    optim = pyro.optim.Adam(options) if shared else [pyro.optim.Adam(options) for _ in range(2)]
    grid = [{"rate": 0.2, "scale": 1.0, "precision": 2.0}] * 2
    svi = ReplicatedSVI(concrete, grid, optim, seeds=[0, 1], backend="eager")
    x, y = torch.randn(2, 3, 8, 3, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    svi.step(x[:, 0], y[:, 0])
    for guide in svi.guides:
        for logits in guide.logits.parameters():
            assert (logits - math.log(0.8 / 0.2)).abs().item() == pytest.approx(1e-2, rel=1e-3)
    before = [{name: p.detach().clone() for name, p in guide.locs.named_parameters()} for guide in svi.guides]
    svi.step(x[:, 1], y[:, 1])
    for guide, old in zip(svi.guides, before, strict=True):
        for name, loc in guide.locs.named_parameters():
            assert 1e-5 < (loc - old[name]).abs().max() < 2e-3, name
    assert any("logits.net.0.weight" in name for name in names)
    assert not pyro.get_param_store()._param_to_name


@pytest.mark.parametrize(("make", "shared"), [(concrete, True), (learned, False)])
def test_training_goes_on_where_it_was_interrupted(make, shared, tmp_path, monkeypatch):
    """From a file, in networks that were made anew and have taken another first step: a schedule, batch norm, one dead
    replicate and the random numbers go on, too."""
    monkeypatch.setattr(replicates, "_KEYS", 3)
    x, y = (t[:3] for t in data())
    x[1, -1] = math.nan  # seen by the fourth step alone
    order = torch.stack([torch.randperm(N - 1)[:4] for _ in range(5)])
    order[3, -1] = N - 1

    def start():
        def schedule():
            return pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.8})

        optims = schedule() if shared else [schedule() for _ in range(3)]
        svi = ReplicatedSVI(make, grid(norm=True)[:3], optims, PER_DRAW(), seeds=SEEDS[:3], backend="eager")
        return svi, {id(optim): optim for optim in svi.optims}.values()

    def go(svi, optims, steps):
        for rows in steps:
            losses = svi.step(x[:, rows], y[:, rows])
            for optim in optims:
                optim.step()
        return losses

    whole, optims = start()
    with pytest.warns(UserWarning, match="not finite"):
        losses = go(whole, optims, [*order, *order[:3]])

    svi, optims = start()
    with pytest.warns(UserWarning, match="not finite"):
        go(svi, optims, order)
    save_checkpoint(tmp_path / "svi.pt", svi=svi, step=5)
    again, optims = start()
    again.step(x[:, :4] * 0, y[:, :4])
    if make is concrete:  # with programs and draws of parameters that are no more
        go(again, optims, order[:2])
    assert load_checkpoint(tmp_path / "svi.pt", svi=again) == {"step": 5}
    assert again.alive.tolist() == [True, False, True]
    assert torch.allclose(go(again, optims, order[:3]), losses, rtol=1e-9, equal_nan=True)
    for models in (whole.models, again.models), (whole.guides, again.guides):
        for ours, theirs in zip(*models, strict=True):
            for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
                assert torch.allclose(a, b, rtol=1e-9, atol=1e-12), name


def test_a_state_of_other_networks_changes_nothing():
    x, y = data()
    svi = ReplicatedSVI(fixed, grid(), adam(), seeds=SEEDS, backend="eager")
    with pytest.raises(ValueError, match="before the first step"):
        svi.state_dict()
    svi.step(x, y)
    before = copy.deepcopy(svi.state_dict())
    fewer = ReplicatedSVI(fixed, grid()[:3], adam(), seeds=SEEDS[:3], backend="eager")
    with pytest.raises(ValueError, match="before the first step"):
        fewer.load_state_dict(before)
    fewer.step(x[:3], y[:3])
    other = ReplicatedSVI(learned, grid(), adam(), seeds=SEEDS, backend="eager")
    other.step(x, y)
    for wrong in (fewer, other):
        with pytest.raises(ValueError, match="which are not those of these 5 with"):
            svi.load_state_dict(wrong.state_dict())
    after = svi.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(after["tensors"], before["tensors"], strict=True))
    assert torch.equal(after["keys"], before["keys"])


def test_one_that_is_not_finite_stays_and_the_others_go_on():
    x, y = data()
    svi = ReplicatedSVI(concrete, grid(), adam(), seeds=SEEDS, backend="eager")
    for _ in range(2):
        svi.step(x, y)
    before = [{n: v.clone() for n, v in g.state_dict().items()} for g in svi.guides]
    bad = x.clone()
    bad[3, 0, 0] = math.nan
    with pytest.warns(UserWarning, match=r"of 1 of 5 replicates is not finite; they stay .*\(3: {'rate': 0.3"):
        losses = svi.step(bad, y)
    assert losses.isnan().tolist() == [False] * 3 + [True, False]
    svi.step(x, y)  # said once
    assert svi.alive.tolist() == [True] * 3 + [False, True]
    for r, (guide, old) in enumerate(zip(svi.guides, before, strict=True)):
        assert all(torch.equal(v, old[n]) for n, v in guide.state_dict().items()) == (r == 3)


def test_numbers_that_differ_raise_with_their_name():
    x, y = data()
    values = grid()
    values[2]["size"] = 21
    svi = ReplicatedSVI(concrete, values, adam(), backend="eager")
    svi.step(x, y)
    with pytest.raises(
        ValueError, match=r"model\.size is 20 in replicate 0, but 21 in replicate 2: .*must be a tensor"
    ):
        svi.step(x, y)
    values[2] = {**values[2], "size": 20, "norm": True}
    svi = ReplicatedSVI(concrete, values, adam(), PER_DRAW(), backend="eager")
    svi.step(x, y)
    with pytest.raises(ValueError, match=r"replicates 0 and 2 differ|replicate 2"):
        svi.step(x, y)


def test_wrong_arguments_raise():
    x, y = data()
    with pytest.raises(ValueError, match="no replicates"):
        ReplicatedSVI(concrete, [], adam())
    for kwargs, what in (
        ({"backend": "fast"}, "backend must be .* but found 'fast'"),
        ({"max_memory": 0}, "max_memory must be positive, but found 0"),
        ({"loss": Trace_ELBO()}, "traces the losses of pyro_dropout, but found Trace_ELBO"),
    ):
        with pytest.raises(ValueError, match=what):
            ReplicatedSVI(concrete, grid(), adam(), **kwargs)
    for kwargs, what in (({"seeds": [1]}, "1 seeds"), ({"loss": [TraceDropout_ELBO()]}, "1 losses")):
        with pytest.raises(ValueError, match=f"found {what} for 5 replicates"):
            ReplicatedSVI(concrete, grid(), adam(), **kwargs)
    svi = ReplicatedSVI(concrete, grid(), adam(), backend="eager", max_memory=100)
    with pytest.raises(ValueError, match=r"argument of shape \(8, 3\) for 5 replicates"):
        svi.step(x[0], y)
    with pytest.raises(ValueError, match=r"\[replicates, steps, \.\.\.\], but found .*shape \(5,\)"):
        svi.scan(torch.zeros(5))
    svi.step(x, y)
    with pytest.raises(ValueError, match=r"one replicate takes about [\d,]+ bytes, but max_memory is 100"):
        svi.step(x, y)


def test_what_a_step_changes_stays_bound_in_steps_that_do_not():
    """A tensor of the model's own, counted in training mode: evaluation mode sees it as it is, at every step."""

    class Counts(PyroModule):
        def __init__(self):
            super().__init__()
            self.net, self.count = BayesianModule(nn.Linear(3, 1).double()), [torch.zeros((), dtype=torch.float64)]

        def forward(self, x, y=None):
            if self.training:
                self.count[0].add_(1.0)
            mean = self.net(x).squeeze(-1) + self.count[0]
            with pyro.plate("data", len(x)):
                return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    def counting(rate):
        model = Counts()
        return model, AutoBernoulliDropout(model, rate=rate)

    x, y = (t[:2] for t in data())
    svi = ReplicatedSVI(counting, [{"rate": 0.0}] * 2, pyro.optim.SGD({"lr": 0.0}), seeds=[0, 1], backend="eager")
    for mode in "ttteettee":
        for model in svi.models:
            model.train(mode == "t")
        losses = svi.step(x, y)
        for r, (model, guide) in enumerate(zip(svi.models, svi.guides, strict=True)):
            weight, bias = (parameter.detach() for parameter in guide.parameters())
            mean = x[r] @ weight[0] + bias + model.count[0]
            likelihood = dist.Normal(mean, 1.0).log_prob(y[r]).sum()
            prior = sum(dist.Normal(0.0, 1.0).log_prob(value).sum() for value in (weight, bias))
            assert losses[r].item() == pytest.approx(-(likelihood + prior).item())


def test_medians_are_each_replicates_own():
    """Also of the rest, whose names are the same in all, with Pyro's global store."""
    x, y = data()
    svi = ReplicatedSVI(concrete, grid(), adam(), seeds=SEEDS, backend="eager")
    for _ in range(2):
        svi.step(x, y)
    for guide in svi.guides:
        named = dict(guide.named_parameters())
        median = guide.median()
        for site in ("net.0.bias", "net.2.bias"):
            assert torch.equal(median[site], named[f"rest.{site}_unconstrained"])


@pytest.mark.parametrize("scan", [False, True])
def test_arguments_of_another_shape_are_checked_as_the_first_were(scan):
    """Responses [N, 1] would be broadcast against N means."""
    x, y = data()
    svi = ReplicatedSVI(concrete, grid(), pyro.optim.Adam({"lr": 0.01}), seeds=SEEDS, backend="eager")
    svi.step(x, y)
    svi.step(x, y)
    before, random = [p.clone() for guide in svi.guides for p in guide.parameters()], torch.get_rng_state()
    with pytest.raises(ValueError, match=r"the step fails on .* Expected \[8\], actual \[8, 8\]"):
        svi.scan(x[:, None], y[:, None, :, None]) if scan else svi.step(x, y[..., None])
    assert all(map(torch.equal, before, [p for guide in svi.guides for p in guide.parameters()]))
    assert torch.equal(torch.get_rng_state(), random)
    assert svi.step(x[:, :3], y[:, :3]).isfinite().all()
