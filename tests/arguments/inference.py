"""Wrong arguments of ``guides``, ``losses`` and ``prediction``."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal, init_to_median

from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    DropoutGuide,
    DropoutPredictive,
    RenyiDropout_ELBO,
    SemiImplicitDropout_ELBO,
    TraceDropout_ELBO,
    init_to_module,
)
from pyro_dropout.guides import rates_of, units_of
from tests.arguments.cases import Of, Wrong, call
from tests.arguments.data import BOTH, COUNT, DATA, FLAG, FUNCTION, NETWORK_INPUTS, data, some
from tests.arguments.world import EMPTY, INF, NAN, X, Y

RATES = ["0.1", -0.1, 1.0, NAN, INF, None, 1j, [0.1, "a"], torch.full((7,), 0.1), torch.ones(2, 2, 2) / 2]
ADAM = pyro.optim.Adam({"lr": 0.01})


def first_call(guide):
    """A guide made and called."""
    return lambda w: lambda model, **options: guide(model, **options)(X, Y)


def without_weights(x, y=None):
    with pyro.plate("data", len(x)):
        return pyro.sample("obs", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def wrong_names(w):
    return {"0.weight": 0.1, "1.weight": 0.1, "2.weight": 0.1}


GUIDES = [
    *(
        call(
            cls.__name__,
            first_call(cls),
            lambda w, options=options: {"model": w.model, "rate": 0.1, **options},
            model=FUNCTION if cls is not AutoConcreteDropout else FUNCTION[:2],
            rate=[
                *RATES,
                {"0.weight": 0.1},
                Of(wrong_names, "unknown site"),
                {"0.weight": 0.1, "2.weight": "a"},
                {"0.weight": 0.1, "2.weight": 1.5},
                {0: 0.1, 1: 0.1},
                lambda site: None,
                lambda site: "0.1",
                lambda site: 1.5,
                torch.tensor([0.1, NAN, 0.1]),
            ],
            per_unit=FLAG,
            shared=FLAG,
            units=["outputs", None, 3, (), {"0": 1}, {"nothing": "output"}, {0: "output"}, ("output", "branch")],
            rest=["AutoDelta", None, 3, lambda model: None, lambda model: 3],
            init_loc_fn=["median", None, 3],
            create_plates=["plates", 3],
            blend=[Wrong(1, r"\bblend\b")],
            **wrong,
        )
        for cls, options, wrong in [
            (AutoBernoulliDropout, {}, {"learnable": FLAG}),
            (AutoConcreteDropout, {"temperature": 0.1}, {"temperature": [0.0, -1.0, NAN, INF, "0.1", None, 1j]}),
        ]
    ),
    call(
        "DropoutGuide",
        lambda w: lambda **options: DropoutGuide(**options)(X, Y),
        lambda w: {"model": w.model, "rate": 0.0, "learnable": False},
        model=FUNCTION[:2],
        learnable=[Wrong("yes", "learnable")],
        rate=["0.1", -0.1],
        rest=[None],
    ),
    call(
        "DropoutGuide of a mask",
        lambda w: lambda **options: DropoutGuide(**options)(X, Y),
        lambda w: {"model": w.model, "rate": 0.0, "learnable": True},
        rate=[Wrong(0.1, "_learned_mask")],
    ),
    call(
        "DropoutGuide.__call__, the first",
        lambda w: w.new_guide,
        lambda w: BOTH,
        x=[*NETWORK_INPUTS, *data("x", EMPTY)],
        z=[X],
    ),
    call(
        "DropoutGuide of a model without weights",
        lambda w: lambda model: AutoBernoulliDropout(model)(X, Y),
        lambda w: {"model": w.model},
        model=[Wrong(without_weights, "weight site")],
    ),
    call(
        "DropoutGuide.quantiles",
        lambda w: w.guide.quantiles,
        lambda w: {"quantiles": [0.1, 0.5]},
        quantiles=["0.5", None, [-0.1], [1.5], [NAN], [], [[0.1, 0.2]], ["a"]],
    ),
    *(
        call(
            f"DropoutGuide.{method}, before the first call",
            lambda w, method=method, arguments=arguments: lambda guide: getattr(guide, method)(*arguments),
            lambda w: {"guide": w.guide},
            guide=[Wrong(Of(lambda w: w.new_guide, "new"), "first call|call")],
        )
        for method, arguments in [("quantiles", ([0.5],)), ("median", ())]
    ),
    call(
        "init_to_module",
        lambda w: lambda **options: AutoNormal(w.model, init_loc_fn=init_to_module(**options))(X, Y),
        lambda w: {"fallback": init_to_median},
        fallback=["median", 3, torch.ones(3)],
        site=["0.weight", 3],
    ),
    *(
        call(function.__name__, lambda w, f=function: f, lambda w: {"guide": w.guide}, guide=["guide", None, 3])
        for function in (rates_of, units_of)
    ),
]


def step(loss):
    """A step of a loss."""

    def of(w):
        svi = pyro.infer.SVI(w.model, w.guide, ADAM, loss())
        return svi.step

    return of


LOSSES = [
    *(
        call(
            cls.__name__,
            lambda w, cls=cls: cls,
            lambda w: {"num_particles": 1},
            num_particles=COUNT,
            vectorize_particles=FLAG,
            masks=["each", None, 3],
            gradient=["score", 3, DropoutGuide, [1]],
            max_plate_nesting=["1", -1, 1.5, NAN, None],
            retain_graph=["yes", 2],
            particles=[Wrong(1, r"\bparticles\b")],
        )
        for cls in (TraceDropout_ELBO, RenyiDropout_ELBO)
    ),
    call(
        "RenyiDropout_ELBO of alpha",
        lambda w: lambda alpha: step(lambda: RenyiDropout_ELBO(alpha, 2))(w)(X, Y),
        lambda w: {"alpha": 0.5},
        alpha=["0.5a", NAN, INF, None, [0.5], 1j, torch.ones(2), lambda: "a", lambda: NAN, lambda: None],
    ),
    call(
        "SemiImplicitDropout_ELBO",
        lambda w: lambda **options: step(lambda: SemiImplicitDropout_ELBO(**options))(w)(X, Y),
        lambda w: {"extra_masks": 1, "annealing": 1.0, "masks": "draw"},
        extra_masks=[-1, 1.5, "2", None, True, NAN],
        annealing=["0.5a", NAN, INF, None, [0.5], 1j, torch.ones(2), lambda: "a", lambda: NAN, lambda: None],
        masks=["datum", "row", None],
        num_particles=COUNT,
        gradient=[*[Wrong(g, r"\bgradient\b") for g in ("sgd", 3)]],
    ),
    *(
        call(
            f"TraceDropout_ELBO.{method}",
            lambda w, method=method: getattr(w.loss, method),
            lambda w: {"model": w.model, "guide": w.guide, **BOTH},
            model=FUNCTION,
            guide=["guide", None, 3],
        )
        for method in ("loss", "loss_and_grads", "differentiable_loss")
    ),
    call("TraceDropout_ELBO in a step", step(TraceDropout_ELBO), lambda w: BOTH, **DATA),
    call("TraceDropout_ELBO in svi.step", lambda w: w.svi.step, lambda w: BOTH, **DATA),
    call("TraceDropout_ELBO in svi.evaluate_loss", lambda w: w.svi.evaluate_loss, lambda w: BOTH, **some()),
    call("TraceDropout_ELBO without x", lambda w: w.svi.step, lambda w: {"y": Y, "x": X}, w=[Wrong(X, r"\bw\b")]),
    call("RenyiDropout_ELBO in a step", step(lambda: RenyiDropout_ELBO(0.5, 2)), lambda w: BOTH, **some(6)),
    call(
        "TraceDropout_ELBO of another guide",
        lambda w: lambda guide: w.loss.loss(w.model, guide, X, Y),
        lambda w: {"guide": w.guide},
        guide=[Wrong(Of(lambda w: AutoBernoulliDropout(without_weights), "of another model"), "weight site")],
    ),
]

SAMPLES = {"0.weight": torch.ones(4, 4, 3), "2.weight": torch.ones(4, 1, 4)}
SAMPLES |= {"0.bias": torch.zeros(4, 4), "2.bias": torch.zeros(4, 1), "precision": torch.ones(4)}


def predictive(w):
    return lambda x=X, **options: DropoutPredictive(**options)(x)


PREDICTION = [
    call(
        "DropoutPredictive",
        predictive,
        lambda w: {"model": w.model, "guide": w.guide, "num_samples": 3},
        model=FUNCTION,
        guide=["guide", None, 3],
        num_samples=[0, -1, 1.5, "3", True, NAN],
        return_sites=["obs", ["nothing"], [3], 3],
        parallel=FLAG,
        masks=["each", None, 3],
        max_memory=[0, -1, "1 GB", NAN, None, 1],
        data=["x", 0, [7], ["nothing"], [1.5]],
        seed=["a", 1.5, NAN, 2**70],
        progress=["no", 2],
        draws=[Wrong(3, r"\bdraws\b")],
    ),
    call(
        "DropoutPredictive of samples",
        predictive,
        lambda w: {"model": w.model, "posterior_samples": SAMPLES},
        posterior_samples=[
            "samples",
            3,
            [1.0],
            Wrong({}, "posterior_samples"),
            {"0.weight": "a"},
            {"0.weight": 1.0},
            {"0.weight": torch.tensor(1.0)},
            Wrong({**SAMPLES, "0.weight": torch.ones(3, 4, 3)}, "0.weight"),
            Wrong({"nothing": torch.ones(4)}, "nothing"),
            Wrong({**SAMPLES, "0.weight": torch.ones(4, 4, 7)}, r"0\.weight|\(6, 3\)"),
            {"0.weight": torch.ones(0, 4, 3)},
        ],
        masks=[Wrong("datum", "masks")],
    ),
    *(
        call(
            f"DropoutPredictive.{method}",
            lambda w, method=method: getattr(w.predict, method),
            lambda w, right=right: right,
            **wrong,
        )
        for method, right, wrong in [
            ("__call__", {"x": X}, {"x": NETWORK_INPUTS, "z": [X]}),
            ("moments", {"x": X}, {"x": NETWORK_INPUTS[:4]}),
            ("log_likelihood", BOTH, {"x": DATA["x"][1:6], "y": [Wrong(None, "observations"), *DATA["y"][:2]]}),
        ]
    ),
    call(
        "DropoutPredictive.draw, masks per datum",
        lambda w: lambda masks: DropoutPredictive(w.model, guide=w.guide, num_samples=2, masks=masks).draw(X),
        lambda w: {"masks": "draw"},
        masks=["datum"],
    ),
    call(
        "DropoutPredictive.__getitem__",
        lambda w: w.draws.__getitem__,
        lambda w: {"index": 0},
        index=[
            "0",
            None,
            1.5,
            [0, 1],
            torch.tensor([0, 1]),
            Wrong(4, "draw 4 of 4", IndexError),
            *(Wrong(s, "index") for s in (slice("a", None), slice(2, 2), slice(None, None, -1))),
        ],
    ),
    call(
        "DropoutPredictive.__getitem__ of a guide",
        lambda w: lambda predict: predict[0],
        lambda w: {"predict": w.draws},
        predict=[Wrong(Of(lambda w: w.predict, "not kept"), "draws are not kept")],
    ),
]
