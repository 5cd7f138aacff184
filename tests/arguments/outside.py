"""Wrong arguments of ``interop``, ``metrics`` and ``calibration``."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_dropout import (
    AutoBernoulliDropout,
    BayesianModule,
    calibration,
    from_pyro_svi,
    from_torch,
    interop,
    metrics,
    to_torch,
)
from tests.arguments.cases import Of, Wrong, call
from tests.arguments.world import EMPTY, INF, META, NAN, X_NAN, X, Y


def local_from_torch(w):
    """In a store of its own, so that the world's guide does not stand in its way."""

    def convert(**arguments):
        with pyro.settings.context(module_local_params=True):
            return from_torch(**arguments)

    return convert


INTEROP = [
    call(
        "from_torch",
        local_from_torch,
        lambda w: {"net": w.dropout_net, "example": X},
        net=["net", None, nn.Linear, lambda x: x, Wrong(Of(lambda w: w.module, "a BayesianModule"), "BayesianModule")],
        example=[
            "x",
            None,
            3,
            X[:1],
            EMPTY,
            X[:, :2],
            torch.tensor(1.0),
            {"x": X},
            [X, None],
            X.long(),
            X.double(),
            [X, X],
            META,
        ],
        model=["model", 3, lambda module: None, lambda module: 3],
        rate=[
            "0.1",
            -0.1,
            1.0,
            NAN,
            {"nothing": 0.1},
            {3: 0.1},
            lambda name, layer: "a",
            True,
            [0.1],
            {"3.weight": 0.1},
        ],
        guide=["guide", None, 3, Wrong(AutoNormal, "AutoNormal.*rate"), lambda model, rate: None],
        prior=[1.0, "normal", dist.Normal, torch.distributions.Normal(0.0, 1.0), lambda name, parameter: 1.0],
        weight_decay=[Wrong(0.1, "size"), -1.0, "0.1", NAN],
        size=[Wrong(0, "size"), "10"],
        precision=["1", -1.0, NAN, None],
        refused=["warn", None, 3, True],
    ),
    call(
        "from_torch of a weight decay",
        local_from_torch,
        lambda w: {"net": w.dropout_net, "example": X, "weight_decay": 1e-3, "size": 10, "precision": 1.0},
        weight_decay=[0.0, -1.0, NAN, INF, "0.1"],
        size=[0, -1, None, "10", NAN],
        precision=[0.0, "1", NAN, None],
        prior=[dist.Normal(0.0, 1.0)],
    ),
    call(
        "export",
        lambda w: lambda draws, x, **options: interop.export(draws, x, **{"module": w.module, **options}),
        lambda w: {"draws": w.draws, "x": X},
        draws=["draws", None, Of(lambda w: w.predict, "not kept")],
        x=[
            Wrong(v, r"example|network Sequential|plain network")
            for v in ("x", None, X[:1], X[:, :2], torch.tensor(1.0))
        ],
        module=["net", Of(lambda w: w.net, "a network"), Wrong(None, "module: the model has 0 networks")],
        moments=["yes", 2],
        link=["softmax", torch.softmax],
    ),
    call(
        "to_torch",
        lambda w: to_torch,
        lambda w: {"module": w.module, "guide": w.guide, "example": X},
        module=["module", None, Of(lambda w: w.net, "a network"), BayesianModule],
        guide=["guide", None, AutoBernoulliDropout, Of(lambda w: w.new_guide, "new"), Of(lambda w: w.model, "a model")],
        example=["x", None, X[:, :2], [None], [], X.long(), META],
    ),
    call(
        "from_pyro_svi",
        lambda w: partial(from_pyro_svi),
        lambda w: {"svi": w.svi, "model_args": (X, Y), "num_samples": 2},
        svi=["svi", None, Of(lambda w: w.model, "a model"), SVI],
        model_args=[
            *(
                Wrong((x, y), "argument|network Sequential")
                for x, y in ((X[:, :2], Y), (X, Y[:4]), ("x", "y"), (X.double(), Y))
            ),
            *(Wrong((x, Y), "argument|network Sequential") for x in (META, X_NAN, EMPTY)),
            *((), (X,), X, None, "xy", (X, Y, X)),
        ],
        model_kwargs=["kwargs", 3, {"z": X}, {3: X}],
        num_samples=[0, -1, 1.5, "2", None, True],
        prior=["yes", 2, None],
        weights=["yes", 2, None],
        parallel=["yes", 2, None],
        constant_data=["x", 3],
        coords=["x", 3, {"data": 3}],
        dims=["x", 3, {"obs": 3}],
    ),
]

DRAWS, TARGET = torch.linspace(0.0, 1.0, 30).reshape(10, 3), torch.tensor([0.1, 0.5, 0.7])
NO_DRAWS = [
    "draws",
    None,
    torch.ones(()),
    torch.ones(0, 3),
    torch.full((10, 3), NAN),
    torch.ones(10, 2),
    [["a"]],
    {"a": 1},
    1j * DRAWS,
    DRAWS.to("meta"),
]
NO_TARGET = [
    "y",
    None,
    torch.ones(2),
    torch.full((3,), INF),
    torch.ones(3, 3),
    ["a"] * 3,
    torch.ones(0),
    1j * TARGET,
    TARGET.to("meta"),
]
PROBABILITY = [0.0, 1.0, -0.1, NAN, "0.9", None, 1j]
PROBS = torch.tensor([[[0.2, 0.8]], [[0.5, 0.5]]])
UNSURE, RIGHT = torch.tensor([0.1, 0.2, 0.9, 0.8]), torch.tensor([True, True, False, True])
IMAGE = {"uncertainty": torch.rand(4, 4), "correct": torch.ones(4, 4, dtype=torch.bool), "window": 2}

MOMENTS = metrics.PredictiveMoments(torch.zeros(3), torch.ones(3), torch.ones(3))

METRICS = [
    call(
        "PredictiveMoments",
        lambda w: metrics.PredictiveMoments,
        lambda w: {"mean": 1.0, "epistemic": 1.0, "aleatoric": 1.0},
        noise=[Wrong(1.0, r"\bnoise\b")],
    ),
    *(
        call(
            name,
            lambda w, name=name: getattr(metrics, name),
            lambda w, more=more: {"draws": DRAWS, "target": TARGET, **more},
            draws=NO_DRAWS if name == "crps" else NO_DRAWS[:6],
            target=NO_TARGET if name == "crps" else NO_TARGET[:4],
            **wrong,
        )
        for name, more, wrong in [
            ("crps", {"fair": False}, {"fair": ["yes", None, 2]}),
            ("interval_coverage", {"probability": 0.9}, {"probability": [*PROBABILITY, [0.5, 0.9], torch.ones(2) / 2]}),
            ("interval_score", {"probability": 0.9}, {"probability": [*PROBABILITY, [0.5, 0.9]]}),
            (
                "quantile_coverage",
                {"probabilities": [0.5]},
                {"probabilities": [*PROBABILITY, ["a"], [0.5, 2.0], [NAN], []]},
            ),
            ("calibration_error", {"probabilities": [0.5]}, {"probabilities": ["0.9", [2.0], [], [NAN], 1j]}),
        ]
    ),
    *(
        call(
            name,
            lambda w, name=name: getattr(metrics, name),
            lambda w: {"probs": PROBS},
            probs=[
                *("p", None, torch.ones(()), torch.ones(3), PROBS[:0], PROBS * 2, -PROBS, PROBS.log(), PROBS * NAN),
                *([["a"]], PROBS[..., :0], PROBS.to("meta")),
            ][: None if name == "predictive_entropy" else 6],
        )
        for name in ("predictive_entropy", "expected_entropy", "mutual_information", "least_confidence")
    ),
    call(
        "variation_ratio",
        lambda w: metrics.variation_ratio,
        lambda w: {"labels": torch.tensor([[0, 1], [1, 1]])},
        labels=["a", None, torch.tensor(3), torch.ones(0, 2).long(), PROBS, 1j * PROBS, [["a", "b"]]],
    ),
    call(
        "predictive_moments",
        lambda w: metrics.predictive_moments,
        lambda w: {"mean": DRAWS, "noise_variance": 1.0},
        mean=["a", None, torch.ones(()), DRAWS[:0], DRAWS * NAN, 1j * DRAWS],
        noise_variance=["a", None, -1.0, NAN, torch.ones(3), torch.ones(10, 7), [["a"]], 1j],
    ),
    call(
        "predictive_log_likelihood",
        lambda w: metrics.predictive_log_likelihood,
        lambda w: {"log_likelihood": DRAWS},
        log_likelihood=["a", None, torch.ones(()), DRAWS[:0], DRAWS * NAN, 1j * DRAWS],
    ),
    call(
        "merge",
        lambda w: metrics.merge,
        lambda w: {"parts": [MOMENTS, MOMENTS], "draws": [2, 3]},
        parts=[
            *("a", None, [], [None, None], MOMENTS, [{"obs": MOMENTS}] * 2, [MOMENTS, torch.ones(3)], torch.ones(2, 3)),
            [MOMENTS, metrics.PredictiveMoments(*[torch.ones(4)] * 3)],
            [MOMENTS, MOMENTS._replace(aleatoric=torch.tensor(1.0))],
            [MOMENTS, MOMENTS._replace(epistemic=-torch.ones(3))],
            [MOMENTS, MOMENTS._replace(mean=torch.full((3,), NAN))],
            *([torch.ones(3), torch.ones(4)], [torch.ones(3), torch.full((3,), NAN)], [1j * torch.ones(3)] * 2),
        ],
        draws=["ab", None, 2, [2], [2, 3, 4], [2, 0], [2, 1.5], [2, None], [True, True]],
    ),
    call(
        "risk_coverage",
        lambda w: metrics.risk_coverage,
        lambda w: {"uncertainty": torch.ones(4), "loss": torch.zeros(4)},
        uncertainty=["u", None, torch.ones(3), torch.full((4,), NAN), EMPTY, 1j * torch.ones(4)],
        loss=["l", None, torch.ones(3), torch.full((4,), INF), 1j * torch.ones(4)],
    ),
    call(
        "pavpu",
        lambda w: metrics.pavpu,
        lambda w: {"uncertainty": UNSURE, "correct": RIGHT, "threshold": 0.5},
        uncertainty=["a", None, UNSURE[:2], UNSURE * NAN, torch.ones(0), 1j * UNSURE],
        correct=["a", None, RIGHT[:2], RIGHT.float(), 3],
        threshold=["a", NAN, 1j, [["a"]]],
        where=["a", RIGHT[:2], ~(RIGHT | True), RIGHT.float()],
        min_accuracy=["a", -0.5, 1.5, NAN, None],
        window=[Wrong(2, "window")],
    ),
    call(
        "pavpu of patches",
        lambda w: metrics.pavpu,
        lambda w: dict(IMAGE),
        window=[0, -1, 1.5, "2", Wrong(5, "windows of 5")],
        stride=[0, -1, 1.5, "1", None],
    ),
    call(
        "uncertainty_thresholds",
        lambda w: metrics.uncertainty_thresholds,
        lambda w: {"uncertainty": UNSURE, "t": [0.5]},
        uncertainty=["a", None, UNSURE * NAN, torch.ones(0), 1j * UNSURE],
        t=["a", None, -0.1, [1.5], NAN, [["a"]], 1j],
    ),
]

LOGITS = torch.tensor([[[1.0, 0.0], [0.5, 0.0], [2.0, 0.0], [3.0, 0.0]]])
CLASSES = torch.tensor([0, 1, 0, 0])
NO_CLASSES = ["a", None, CLASSES[:3], CLASSES + 1, -CLASSES, CLASSES.double(), CLASSES > 0, CLASSES[None], [["a"]]]
COVERAGE = ["0.9", None, -0.1, 1.0, NAN, True, 0.99]
CALIBRATION = [
    call(
        "fit_temperature",
        lambda w: calibration.fit_temperature,
        lambda w: {"logits": LOGITS, "labels": CLASSES},
        logits=["a", None, LOGITS[0], LOGITS[:0], LOGITS[..., :1], LOGITS * NAN, 100 * LOGITS * INF, 1j * LOGITS],
        labels=NO_CLASSES,
    ),
    call(
        "conformal_threshold",
        lambda w: calibration.conformal_threshold,
        lambda w: {"probs": LOGITS.softmax(-1), "labels": CLASSES, "coverage": 0.5},
        probs=["a", None, LOGITS, LOGITS.softmax(-1)[0], LOGITS[:0], LOGITS[:, :0], 1j * LOGITS],
        labels=NO_CLASSES,
        coverage=COVERAGE,
    ),
    call(
        "conformal_factor",
        lambda w: calibration.conformal_factor,
        lambda w: {"draws": DRAWS, "y": TARGET, "coverage": 0.5},
        draws=["a", None, DRAWS[:1], DRAWS[:, :2], DRAWS[:, :0], DRAWS[:0], DRAWS * 0, DRAWS * NAN],
        y=["a", None, TARGET[:2], TARGET * NAN, TARGET * INF, 1j * TARGET],
        coverage=COVERAGE,
    ),
]
