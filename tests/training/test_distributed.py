"""Several processes: their mean gradient is that of one process with all rows, and they go on or stop together."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyro
import pytest
import torch
import torch.distributed as dist
from torch import nn

from models.classification import Classification
from models.regression import Regression, mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
    load_checkpoint,
)
from pyro_dropout.training import (
    DistributedSVI,
    distributed_loss,
    distributed_step,
    load_distributed,
    save_distributed,
)
from tests.support.ranks import ranks

ROWS, SIZE = 16, 40
NO_MASKS = {"elbo": TraceDropout_ELBO, "alpha": partial(RenyiDropout_ELBO, 0.5, 2)}
MASKS = {
    "concrete": (AutoConcreteDropout, TraceDropout_ELBO),
    "alpha": (partial(AutoBernoulliDropout, rate=0.3), partial(RenyiDropout_ELBO, 0.5, 3)),
    "disarm": (partial(AutoBernoulliDropout, learnable=True), partial(TraceDropout_ELBO, gradient="disarm")),
}


def data(rows=ROWS):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 3, dtype=torch.float64, generator=generator)
    return x, x.sin().sum(-1) + 0.1 * torch.randn(rows, dtype=torch.float64, generator=generator)


def own(rank, number=2):
    return tuple(part.chunk(number)[rank] for part in data())


def made(guide, start=0):
    pyro.set_rng_seed(start)
    model = Regression(3, SIZE, hidden=(6,), precision=4.0).double()
    return model, guide(model)


def gradients(guide):
    return {name: p.grad.clone() for name, p in guide.named_parameters() if p.grad is not None}


# One process, to compare with


def of_all_rows(loss):
    model, guide = made(partial(AutoBernoulliDropout, rate=0.0))
    module = loss()(model, guide)
    guide(*data())
    module(*data()).backward()
    return gradients(guide)


def of_one_rank(rank, guide, loss):
    """What this rank has by itself, by the masks of its seed."""
    model, guide = made(guide)
    loss = loss()
    loss.set_up(model, guide, *own(rank))
    pyro.set_rng_seed(rank)
    loss(model, guide)(*own(rank)).backward()
    return gradients(guide)


def trained_alone():
    model, guide = made(partial(AutoBernoulliDropout, rate=0.1))
    guide(*data())
    module = TraceDropout_ELBO()(model, guide)
    optim = torch.optim.Adam(module.parameters(), lr=0.02)
    pyro.set_rng_seed(0)
    for _ in range(500):
        optim.zero_grad()
        module(*data()).backward()
        optim.step()
    return evaluated(model, guide)


def evaluated(model, guide):
    pyro.set_rng_seed(9)
    losses = torch.tensor([TraceDropout_ELBO().loss(model, guide, *data()) for _ in range(400)])
    return losses.mean().item(), (losses.std() / 20).item()


# What each of two processes does, all in one start


def job(rank, folder):
    found = {}
    for name, loss in NO_MASKS.items():
        model, guide = made(partial(AutoBernoulliDropout, rate=0.0), start=rank)  # the first rank's values are taken
        module = distributed_loss(loss(), model, guide, *own(rank))
        module(*own(rank)).backward()
        found["no masks", name] = gradients(guide)
    for name, (guide, loss) in MASKS.items():
        model, guide = made(guide, start=rank)
        module = distributed_loss(loss(), model, guide, *own(rank))
        module(*own(rank)).backward()
        found["masks", name] = gradients(guide)
    found["refusals"] = refusals(rank)
    found["trained"], found["means"] = trained(rank)
    found["compiled"] = compiled(rank)
    found["functions"], found["sides"] = functions(rank), sides(rank)
    for compiling in (False, True):
        found["resumed", compiling] = [resumed(rank, Path(folder), compiling, at) for at in (None, 3)]
    return found


def message_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def refusals(rank):
    found = {}
    model, guide = made(AutoConcreteDropout)
    x, y = own(rank)
    loss = distributed_loss(TraceDropout_ELBO(), model, guide, x, y)
    optim = torch.optim.Adam(loss.parameters())
    distributed_step(loss, optim, x, y)
    before = [p.detach().clone() for p in loss.parameters()]
    bad = x.clone()
    if rank == 1:
        bad[3, 0] = torch.nan
    found["loss"] = message_of(distributed_step, loss, optim, bad, y)
    found["rows"] = message_of(distributed_step, loss, optim, x[: 8 - rank], y[: 8 - rank])
    found["goes on"] = distributed_step(loss, optim, x, y)
    found["changed"] = not all(torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))
    with torch.no_grad():
        before = [p.clone() for p in loss.parameters()]
    model.net.register_forward_hook(lambda module, inputs, output: _Broken.apply(output, rank == 1))
    found["gradient"] = message_of(distributed_step, loss, optim, x, y)
    found["unchanged"] = all(torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))
    norm = Classification(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), SIZE)
    found["norm"] = message_of(
        distributed_loss, TraceDropout_ELBO(masks="draw"), norm, AutoConcreteDropout(norm), x.float(), (y > 0).long()
    )
    found["function"] = message_of(distributed_loss, TraceDropout_ELBO(), lambda x, y: None, guide, x, y)
    found["type"] = message_of(distributed_step, loss, optim, x, None if rank else y)
    svi = DistributedSVI(*made(AutoConcreteDropout), pyro.optim.Adam({}), backend="eager", progress=False)
    svi.step(x, y)
    found["compiled loss"] = [message_of(svi.step, bad, y) for _ in range(3)]  # the first is eager
    found["compiled goes on"] = svi.step(x, y)
    return found


class _Broken(torch.autograd.Function):
    """The identity, whose gradient is NaN where it is meant to be."""

    @staticmethod
    def forward(ctx, x, broken):
        ctx.broken = broken
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (torch.nan if ctx.broken else 1.0), None


def functions(rank):
    """A model and a network that are in no module: parameters in the store, layers in a closure."""
    pyro.set_rng_seed(rank)
    found = {}
    with pyro.settings.context(module_local_params=False):
        pyro.clear_param_store()
        prior = pyro.distributions.Normal(0.0, 1.0)
        net = BayesianModule(mlp(3, (4,)).double(), lambda name, p: prior if name[0] == "0" else None)

        def model(x, y=None):
            mean = net(x).squeeze(-1)
            with pyro.plate("data", SIZE, subsample_size=len(x)):
                return pyro.sample("obs", pyro.distributions.Normal(mean, 1.0), obs=y)

        guide = AutoConcreteDropout(model)
        svi = DistributedSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), backend="eager", progress=False)
        losses = [svi.step(*own(rank)) for _ in range(3)]
        store = pyro.get_param_store().named_parameters()
        found["parameters"] = {name: p.detach().clone() for name, p in store}
        assert len(losses) == 3
        norm = BayesianModule(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double())

        def mixing(x, y=None):
            mean = norm(x).squeeze(-1)
            with pyro.plate("data", SIZE, subsample_size=len(x)):
                return pyro.sample("obs", pyro.distributions.Normal(mean, 1.0), obs=y)

        loss = TraceDropout_ELBO(masks="draw")
        guide = AutoConcreteDropout(mixing)
        svi = DistributedSVI(mixing, guide, pyro.optim.Adam({}), loss, backend="eager", progress=False)
        found["norm"] = message_of(svi.step, *own(rank))
        pyro.clear_param_store()
    return found


class Sides(pyro.nn.PyroModule):
    """Ranks that run other layers have gradients of other parameters."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (BayesianModule(nn.Linear(3, 1).double()) for _ in range(2))

    def forward(self, x, y=None, left=True):
        mean = (self.a if left else self.b)(x).squeeze(-1)
        with pyro.plate("data", SIZE, subsample_size=len(x)):
            return pyro.sample("obs", pyro.distributions.Normal(mean, 1.0), obs=y)


def sides(rank):
    def guide(x, y=None, left=True):
        return (guides[0] if left else guides[1])(x, y, left)

    model = Sides()
    guides = [AutoBernoulliDropout(model) for _ in range(2)]
    for left, each in zip((True, False), guides, strict=True):
        each(*own(rank), left)
    svi = DistributedSVI(model, guide, pyro.optim.Adam({}), backend="eager", progress=False)
    return message_of(svi.step, *own(rank), rank == 0)


def trained(rank):
    model, guide = made(partial(AutoBernoulliDropout, rate=0.1), start=rank)
    loss = distributed_loss(TraceDropout_ELBO(), model, guide, *own(rank))
    optim = torch.optim.Adam(loss.parameters(), lr=0.02)
    means = [distributed_step(loss, optim, *own(rank)) for _ in range(500)]
    return evaluated(model, guide), means


def compiled(rank):
    """Losses and parameters of compiled steps and of the same steps by DistributedDataParallel."""
    ends = []
    for how in ("ddp", "svi", "scan"):
        model, guide = made(partial(AutoBernoulliDropout, rate=0.0), start=rank)
        if how == "ddp":
            loss = distributed_loss(TraceDropout_ELBO(), model, guide, *own(rank))
            optim = torch.optim.SGD(loss.parameters(), lr=1e-4)
            losses = [distributed_step(loss, optim, *own(rank)) for _ in range(6)]
        else:
            svi = DistributedSVI(model, guide, pyro.optim.SGD({"lr": 1e-4}), backend="eager", progress=False)
            if how == "svi":
                losses = [svi.step(*own(rank)) for _ in range(6)]
            else:
                losses = svi.scan(*(part.expand(6, *part.shape) for part in own(rank))).tolist()
        ends.append((losses, {name: p.detach().clone() for name, p in guide.named_parameters()}))
    return ends


def resumed(rank, folder, compiling, at):
    """Six steps, from a file of the third on or from the start."""
    model, guide = made(AutoConcreteDropout, start=rank)
    path = folder / f"state-{compiling}.pt"
    if compiling:
        optim = pyro.optim.Adam({"lr": 0.01})
        svi = DistributedSVI(model, guide, optim, backend="eager", progress=False, seed=3)
        svi.start(*own(rank))
        step_of = svi.step
    else:
        loss = distributed_loss(TraceDropout_ELBO(), model, guide, *own(rank), seed=3)
        optim = torch.optim.Adam(loss.parameters())
        step_of = partial(distributed_step, loss, optim)
    done = 0
    if at is not None:
        done = load_distributed(path, guide=guide, optim=optim)["done"]
    losses = []
    for step in range(done, 6):
        losses.append(step_of(*own(rank)))
        if at is None and step == 2:
            save_distributed(path, guide=guide, optim=optim, done=step + 1)
    return losses, {name: p.detach().clone() for name, p in guide.named_parameters()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return [*ranks(job, 2, str(folder)), folder]


@pytest.mark.parametrize("name", NO_MASKS)
def test_without_masks_it_is_the_gradient_of_all_rows(found, name):
    with pyro.settings.context(module_local_params=True):
        expected = of_all_rows(NO_MASKS[name])
    for rank in range(2):
        gradients = found[rank]["no masks", name]
        assert gradients.keys() == expected.keys()
        for parameter, value in expected.items():
            torch.testing.assert_close(gradients[parameter], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", MASKS)
def test_with_masks_it_is_the_mean_of_ranks_with_masks_of_their_own(found, name):
    with pyro.settings.context(module_local_params=True):
        first, second = (of_one_rank(rank, *MASKS[name]) for rank in range(2))
    assert any(not torch.allclose(first[p], second[p]) for p in first)
    for rank in range(2):
        for parameter, gradient in found[rank]["masks", name].items():
            torch.testing.assert_close(gradient, (first[parameter] + second[parameter]) / 2, rtol=1e-6, atol=1e-9)


def test_training_reaches_what_one_process_with_all_rows_does(found):
    with pyro.settings.context(module_local_params=True):
        loss, error = trained_alone()
    (ours, our_error), means = found[0]["trained"], found[0]["means"]
    assert means == found[1]["means"]
    start = sum(means[:20]) / 20
    assert loss < 0.8 * start
    assert abs(ours - loss) < 4 * (error**2 + our_error**2) ** 0.5 + 0.02 * (start - loss)  # two noisy ends


def test_steps_are_refused_by_all_with_one_message(found):
    for what, message in {
        "loss": r"^rank 1: argument 0 has 1 NaN",
        "rows": "ranks have 8, 7 rows.*DistributedSampler",
        "gradient": "the loss is finite, but the gradient of .* is not",
        "norm": r"net.net.1 \(BatchNorm1d\) takes the statistics of each rank's own rows",
        "function": "model must be a module",
        "type": "^rank 1: ",
    }.items():
        messages = {found[rank]["refusals"][what] for rank in range(2)}
        assert len(messages) == 1, messages
        assert re.search(message, messages.pop())
    for rank in range(2):
        refusals = found[rank]["refusals"]
        assert refusals["goes on"] > 0
        assert refusals["changed"]
        assert refusals["unchanged"]
        assert all(re.search("^rank 1: argument 0 has 1 NaN", m) for m in refusals["compiled loss"])
        assert refusals["compiled goes on"] > 0


def test_compiled_steps_are_those_of_the_module(found):
    for rank in range(2):
        (expected, values), *others = found[rank]["compiled"]
        for losses, parameters in others:
            assert losses == pytest.approx(expected, rel=1e-9)
            for name, value in values.items():
                torch.testing.assert_close(parameters[name], value, rtol=1e-7, atol=1e-9)


def test_parameters_and_layers_of_functions_are_known(found):
    first, second = (found[rank]["functions"] for rank in range(2))
    assert first["parameters"].keys() == second["parameters"].keys()
    assert len(first["parameters"]) > 2
    assert all(torch.equal(value, second["parameters"][name]) for name, value in first["parameters"].items())
    assert first["norm"] == second["norm"]
    assert "takes the statistics of each rank's own rows" in first["norm"]


def test_ranks_that_learn_other_parameters_are_refused(found):
    for rank in range(2):
        assert "ranks have gradients of different parameters" in found[rank]["sides"]


@pytest.mark.parametrize("compiling", [False, True])
def test_a_run_that_goes_on_is_one_that_was_not_interrupted(found, compiling):
    for rank in range(2):
        (losses, values), (after, resumed) = found[rank]["resumed", compiling]
        assert after == pytest.approx(losses[3:], rel=1e-9 if compiling else 0)  # the first step is an eager one
        for name, value in values.items():
            torch.testing.assert_close(resumed[name], value, rtol=1e-9 if compiling else 0, atol=1e-12)


def test_states_of_ranks_are_for_as_many(found, tmp_path):
    with pytest.raises(RuntimeError, match="no process group: start the script by torchrun"):
        load_distributed(found[2] / "state-False.pt")
    values = load_checkpoint(found[2] / "state-False.pt", **parts())
    assert values["done"] == 3
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/at", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="is of 2 ranks, but found 1"):
            load_distributed(found[2] / "state-False.pt", **parts())
    finally:
        dist.destroy_process_group()


def parts():
    with pyro.settings.context(module_local_params=True):
        model, guide = made(AutoConcreteDropout)
        guide(*data())
    return {"guide": guide, "optim": torch.optim.Adam(TraceDropout_ELBO()(model, guide).parameters())}


def test_without_a_group_it_says_what_to_do():
    model, guide = made(AutoConcreteDropout)
    with pytest.raises(RuntimeError, match="start the script by torchrun"):
        distributed_loss(TraceDropout_ELBO(), model, guide, *data())


JOB = Path(__file__).parents[1] / "support" / "interrupted_ranks.py"


@pytest.mark.slow
def test_torchrun_starts_again_where_a_rank_was_killed(tmp_path):
    ends = []
    for kill in ("", "yes"):
        folder = tmp_path / f"run{kill}"
        folder.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parents[2])}
        done = subprocess.run(
            [*command, "--max-restarts=1", str(JOB), str(folder), kill],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        ends.append(torch.load(folder / "end.pt"))
        assert (folder / "killed").exists() == bool(kill)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
