"""Wrong arguments of ``training``."""

import gc
import tempfile
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_dropout import (
    AutoConcreteDropout,
    BayesianModule,
    CompiledSVI,
    ReplicatedSVI,
    TraceDropout_ELBO,
    load_checkpoint,
    save_checkpoint,
    training,
)
from tests.arguments.cases import Of, Wrong, call
from tests.arguments.data import BOTH, DATA, FUNCTION, data, some
from tests.arguments.world import META, NAN, X_NAN, X, Y

ADAM = pyro.optim.Adam({"lr": 0.01})


def make(scale=1.0):
    """Model and guide of one replicate."""
    net = BayesianModule(nn.Linear(3, 1), prior=dist.Normal(0.0, torch.tensor(scale)))

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    return model, AutoConcreteDropout(model)


_OF_ONE = r"\bx\b|network Linear|weight 'weight'"
GRID = [{"scale": 0.1}, {"scale": 1.0}]
TWO = {"x": torch.stack([X, X]), "y": torch.stack([Y, Y])}
STEPS = {"x": TWO["x"].unsqueeze(1), "y": TWO["y"].unsqueeze(1)}


def replicated(**options):
    return ReplicatedSVI(**{"make": make, "hyperparameters": GRID, "optim": ADAM, "backend": "eager", **options})


def compiled(w):
    return CompiledSVI(w.model, w.guide, ADAM, backend="eager", progress=False)


def started(w):
    svi = replicated(progress=False)
    svi.step(**TWO)
    return svi


LAYER, FILE = nn.Linear(2, 1), Path("checkpoint.pt")


def saved(w):
    """A file with a layer and a number, in the working directory of the test."""
    save_checkpoint(FILE, layer=LAYER, count=3)
    Path("text.pt").write_text("not a checkpoint")
    torch.save({"weights": torch.ones(2)}, "other.pt")
    return load_checkpoint


def in_group(function):
    """Of one process."""

    def called(*args, **kwargs):
        with tempfile.TemporaryDirectory() as folder:
            torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/at", rank=0, world_size=1)
            try:
                function(*args, **kwargs)
            finally:
                gc.collect()  # what holds the group must not outlive it
                torch.distributed.destroy_process_group()

    return called


class Held(nn.Module):
    """The world's model as a module."""

    def __init__(self, w):
        super().__init__()
        self.net, self.forward = w.module, w.model


def wrapped(elbo, model, guide, **options):
    return training.distributed_loss(elbo, model, guide, X, Y, **options)


def svi_of_ranks(x=X, **options):
    return training.DistributedSVI(**options, backend="eager", progress=False).step(x, Y)


def stepped(w):
    def step(x, y, **wrong):
        with torch.random.fork_rng():  # it seeds each rank
            loss = training.distributed_loss(TraceDropout_ELBO(), Held(w), w.guide, X, Y)
        return training.distributed_step(
            **{"loss": loss, "optim": torch.optim.SGD([X.new_zeros(1)]), **wrong}, x=x, y=y
        )

    return in_group(step)


def loaded_by_ranks(w):
    in_group(training.save_distributed)(FILE, layer=LAYER, count=3)
    save_checkpoint("alone.pt", layer=LAYER)
    return in_group(training.load_distributed)


DISTRIBUTED = [
    call(
        "distributed_loss",
        lambda w: in_group(wrapped),
        lambda w: {"elbo": TraceDropout_ELBO(), "model": Held(w), "guide": w.guide},
        elbo=["elbo", None, TraceDropout_ELBO, Trace_ELBO()],
        model=["model", None, lambda x, y=None: None],
        guide=["guide", None, lambda x, y=None: None],
        seed=["seed", -1, 0.5],
    ),
    call("distributed_step", stepped, lambda w: BOTH, loss=["loss", 3, LAYER], optim=["adam", ADAM]),
    call(
        "DistributedSVI",
        lambda w: in_group(svi_of_ranks),
        lambda w: {"model": w.model, "guide": w.guide, "optim": ADAM},
        model=FUNCTION,
        optim=["adam", None],
        seed=["seed", -1, 0.5],
    ),
    call(
        "save_distributed",
        lambda w: in_group(training.save_distributed),
        lambda w: {"path": FILE, "layer": LAYER},
        path=[None, 3, Wrong("nowhere/checkpoint.pt", "nowhere", FileNotFoundError)],
        layer=[lambda: 3, nn.Linear],
    ),
    call(
        "load_distributed",
        loaded_by_ranks,
        lambda w: {"path": FILE, "layer": LAYER},
        path=[None, 3, Wrong("nowhere.pt", "nowhere", FileNotFoundError), Wrong("alone.pt", "save_distributed writes")],
        layer=[None, 3, nn.Linear(7, 1)],
    ),
]
TRAINING = [
    *DISTRIBUTED,
    call(
        "CompiledSVI",
        lambda w: partial(CompiledSVI, backend="eager", progress=False),
        lambda w: {"model": w.model, "guide": w.guide, "optim": ADAM},
        model=FUNCTION,
        guide=["guide", None, 3],
        optim=["adam", None, pyro.optim.Adam, Of(lambda w: torch.optim.Adam(w.net.parameters()), "of torch")],
        loss=["elbo", 3, TraceDropout_ELBO, Trace_ELBO()],
        backend=["jit", None, 3],
        progress=["no", 2],
    ),
    call(
        "CompiledSVI.step",
        lambda w: compiled(w).step,
        lambda w: BOTH,
        **{**DATA, "x": [v for v in DATA["x"] if not hasattr(v.value, "__array_interface__")]},
    ),
    call("CompiledSVI.evaluate_loss", lambda w: compiled(w).evaluate_loss, lambda w: BOTH, **some()),
    call(
        "CompiledSVI.scan",
        lambda w: compiled(w).scan,
        lambda w: {"x": X.unsqueeze(0), "y": Y.unsqueeze(0)},
        x=[
            torch.tensor(1.0),
            X.expand(2, 6, 3),
            *data("x", "x", X[None, :, :2], X.double()[None], X_NAN[None], META[None]),
        ],
        y=[Y, *data("y", Y[None, :4])],
    ),
    call(
        "ReplicatedSVI",
        lambda w: replicated,
        lambda w: {"progress": False},
        make=["make", None, 3, lambda scale: None, lambda scale: (1, 2), lambda scale: make(scale)[0]],
        hyperparameters=[[], None, 3, [3], ["a", "b"], {"scale": 0.1}, Wrong([{"width": 1}], "width")],
        optim=["adam", None, 3, [], [ADAM], [1, 2], Of(lambda w: torch.optim.Adam(w.net.parameters()), "of torch")],
        loss=["elbo", 3, [TraceDropout_ELBO()], Trace_ELBO()],
        seeds=["ab", 3, [1], ["a", "b"], [0.5, 1.5], [-1, 2**70]],
        max_memory=[0, -1, "1 GB", NAN],
        backend=["jit", None],
        progress=["no"],
    ),
    *(
        call(
            f"ReplicatedSVI.step{said}",
            of,
            lambda w: TWO,
            x=[Wrong(v, _OF_ONE) for v in ("x", None, TWO["x"][:, :, :2], TWO["x"].double(), TWO["x"].to("meta"))]
            + [X, torch.tensor(1.0)],
            y=["y", Y, TWO["y"][:, :4]],
        )
        for said, of in [(", the first", lambda w: replicated(progress=False).step), ("", lambda w: started(w).step)]
    ),
    call(
        "ReplicatedSVI.scan",
        lambda w: replicated(progress=False).scan,
        lambda w: STEPS,
        x=["x", X, TWO["x"].unsqueeze(1).expand(2, 2, 6, 3), Wrong(TWO["x"][:, None, :, :2], _OF_ONE)],
        y=[Wrong(TWO["y"][:, 0], "scan"), Wrong(None, "data plates")],
    ),
    call(
        "ReplicatedSVI.state_dict",
        lambda w: lambda svi: svi.state_dict(),
        lambda w: {"svi": Of(started, "started")},
        svi=[Wrong(Of(lambda w: replicated(progress=False), "new"), "first step")],
    ),
    call(
        "ReplicatedSVI.load_state_dict",
        lambda w: started(w).load_state_dict,
        lambda w: {"state": Of(lambda w: started(w).state_dict(), "of another")},
        state=[None, "state", {}, {"tensors": []}, Of(lambda w: {**started(w).state_dict(), "keys": 3}, "wrong keys")],
    ),
    call(
        "save_checkpoint",
        lambda w: save_checkpoint,
        lambda w: {"path": FILE, "layer": LAYER, "step": 3},
        path=[
            None,
            3,
            Wrong("nowhere/checkpoint.pt", "nowhere", FileNotFoundError),
            Wrong(".", "path", FileNotFoundError),
        ],
        layer=[lambda: 3, X.numpy(), {1, 2}, nn.Linear, Of(lambda w: w.new_guide, "new guide"), 1j],
        step=[[lambda: 3], {"a": object()}, Path("a")],
    ),
    call(
        "load_checkpoint",
        saved,
        lambda w: {"path": FILE, "layer": LAYER},
        path=[
            None,
            3,
            Wrong("nowhere.pt", "nowhere", FileNotFoundError),
            Wrong("text.pt", "text.pt"),
            Wrong("other.pt", "other.pt"),
            Wrong(".", "path", FileNotFoundError),
        ],
        layer=[None, 3, "layer", nn.Linear(7, 1), nn.Linear, Of(lambda w: w.guide, "another")],
        other=[nn.Linear(2, 1)],
        map_location=["nowhere", 3.5],
    ),
]
