"""Wrong arguments of ``entropic``."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_dropout.entropic import (
    EntropicLinearRegression,
    NormalInverseGamma,
    PosteriorDraws,
    entropic_dropout,
    regression_path,
)
from tests.arguments.cases import Wrong, call
from tests.arguments.world import INF, NAN, X, Y

A, B = X.numpy(), Y.numpy()
BROKEN = np.where(np.arange(18).reshape(6, 3) == 4, NAN, A)
# scikit-learn's own words for arrays.
TABLES = [
    Wrong("x", "2D|array|convert string"),
    Wrong(None, r"\bX\b|None|2D"),
    Wrong(A[0], "2D"),
    Wrong(A[None], r"dim|2"),
    Wrong(A[:0], "0 sample|minimum"),
    Wrong(A[:, :0], "0 feature"),
    Wrong(BROKEN, "NaN"),
    Wrong(A * 1j, "[Cc]omplex"),
    Wrong([["a"] * 3] * 6, "numeric|convert|string"),
]
RESPONSES = [
    Wrong("y", "y|1d|array|length"),
    Wrong(None, r"\by\b"),
    Wrong(B[:4], "inconsistent|samples"),
    Wrong(np.where(np.arange(6) == 2, NAN, B), "NaN"),
    Wrong(np.stack([B, B, B])[None], "y|dim"),
    Wrong(["a"] * 6, "convert|string|numeric"),
    Wrong(B * 1j, "[Cc]omplex"),
]
OTHER = [Wrong(A[:, :2], "2 features"), *TABLES[:5], TABLES[6]]
NUMBER = [-1.0, NAN, INF, "1", None, True, [1.0], 1j]
RATES = ["0.1", -0.1, 1.0, NAN, None, [0.1, 0.1], [0.1, 0.1, 2.0], np.ones((3, 3)) / 2, 1j, {"a": 0.1}]


def fitted(w=None):
    return EntropicLinearRegression().fit(A, B)


def fit(w):
    return lambda **options: EntropicLinearRegression(**options).fit(A, B)


def path(**options):
    return regression_path(**{"X": A, "y": B, "rates": [0.1], "shrinkages": [1.0], **options})


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("obs", dist.Normal((x * w).sum(-1), 1.0), obs=y)


def constrained(**options):
    return entropic_dropout(**{"model": linear, "rate": {"w": 0.3}, **options})(X, Y)


PRIOR = NormalInverseGamma(torch.zeros(3), torch.eye(3), 2.0, 1.0)

ENTROPIC = [
    call(
        "EntropicLinearRegression",
        fit,
        lambda w: {"rate": 0.1},
        rate=RATES,
        shrinkage=NUMBER,
        a0=NUMBER[:5],
        b0=NUMBER[:5],
        fit_intercept=["yes", None, 2],
        alpha=[1.0],
    ),
    call(
        "EntropicLinearRegression.fit",
        lambda w: EntropicLinearRegression().fit,
        lambda w: {"X": A, "y": B},
        X=[*TABLES, Wrong(X.to("meta"), "meta|X"), Wrong(X.to_sparse(), "sparse|X")],
        y=[*RESPONSES, Wrong(Y.to("meta"), "meta|y")],
    ),
    call(
        "EntropicLinearRegression.partial_fit",
        lambda w: fitted().partial_fit,
        lambda w: {"X": A, "y": B},
        X=OTHER,
        y=RESPONSES[:4],
    ),
    *(
        call(
            f"EntropicLinearRegression.{method}", lambda w, m=method: getattr(fitted(), m), lambda w: {"X": A}, X=OTHER
        )
        for method in ("predict", "predictive")
    ),
    call(
        "EntropicLinearRegression.predict, its options",
        lambda w: fitted().predict,
        lambda w: {"X": A},
        return_std=["yes", None, 2],
        dropout=["yes", None, 2],
    ),
    call(
        "EntropicLinearRegression.score",
        lambda w: fitted().score,
        lambda w: {"X": A, "y": B},
        X=OTHER[:3],
        y=[RESPONSES[0], Wrong(None, "y_true"), *RESPONSES[2:4]],
    ),
    call(
        "EntropicLinearRegression.sample",
        lambda w: fitted().sample,
        lambda w: {"n_draws": 2, "random_state": 0},
        n_draws=[0, -1, 1.5, "2", None, True],
        random_state=[Wrong("a", "a"), Wrong(1.5, "1.5")],
    ),
    *(
        call(
            f"EntropicLinearRegression.{method}",
            lambda w, method=method: getattr(fitted(), method),
            lambda w, right=right: right,
            mass=[0.0, 1.0, -0.1, NAN, "0.9", None],
            **wrong,
        )
        for method, right, wrong in [
            ("credible_interval", {"mass": 0.9}, {"index": ["a", 3, -4, [0.5], [[0]], [True]]}),
            ("predictive_interval", {"X": A}, {"X": OTHER[:2]}),
        ]
    ),
    call(
        "EntropicLinearRegression.to_arviz",
        lambda w: fitted().to_arviz,
        lambda w: {"n_draws": 3},
        n_draws=[0, "2"],
        X=[Wrong(A, "X and y")],
        feature_names=[["a"], 3, "abcd"],
    ),
    call(
        "EntropicLinearRegression, not fitted",
        lambda w: lambda model: model.predict(A),
        lambda w: {"model": fitted()},
        model=[Wrong(EntropicLinearRegression(), "not fitted")],
    ),
    call(
        "PosteriorDraws", lambda w: PosteriorDraws, lambda w: {"coef": 1, "intercept": 1, "noise_variance": 1}, mu=[1]
    ),
    call(
        "regression_path",
        lambda w: path,
        lambda w: {},
        X=[*TABLES[:4], TABLES[6]],
        y=RESPONSES[:4],
        rates=[[], 3, None, "0.1", *(Wrong([f], r"\brate\b") for f in (2.0, "a", NAN))],
        shrinkages=[[], 3, None, Wrong([-1.0], "shrinkage"), Wrong(["a"], "shrinkage")],
        cv=["five", 2.5, [], [(1, 2)], *(Wrong(n, "n_splits") for n in (0, 1, 7))],
        a0=[-1.0, "a"],
        alpha=[1.0],
    ),
    call(
        "NormalInverseGamma",
        lambda w: NormalInverseGamma,
        lambda w: {"loc": torch.zeros(2), "precision": torch.eye(2), "concentration": 2.0, "noise_rate": 1.0},
        loc=["a", None, torch.zeros(3), torch.tensor(1.0), torch.full((2,), NAN), [["a"]], 1j * torch.ones(2)],
        precision=["a", None, torch.eye(3), -torch.eye(2), torch.full((2, 2), NAN), torch.ones(2), 1.0],
        concentration=[0.0, -1.0, NAN, INF, "2", None, torch.ones(2)],
        noise_rate=[0.0, -1.0, NAN, INF, "a", None],
    ),
    *(
        call(f"NormalInverseGamma.{method}", lambda w, m=method: getattr(PRIOR, m), lambda w, r=right: r, **wrong)
        for method, right, wrong in [
            ("log_prob", {"value": torch.ones(4)}, {"value": ["a", None, torch.ones(3), torch.tensor(1.0)]}),
            ("marginal", {"index": [0]}, {"index": ["a", 3, -4, [0.5], [[0]], [True], 1j]}),
            ("sample", {"sample_shape": (2,)}, {"sample_shape": ["a", 2.5, None, (-1,)]}),
            ("expand", {"batch_shape": (2,)}, {"batch_shape": ["a", None, (-1,)]}),
            ("split", {"value": torch.ones(4)}, {"value": ["a", None, torch.ones(3)]}),
            (
                "update",
                {"x": X, "y": Y},
                {
                    "x": ["a", None, X[:, :2], X[0], X * NAN, 1j * X, X.to("meta")],
                    "y": ["a", None, Y[:4], Y * NAN, X],
                    "rate": RATES,
                },
            ),
        ]
    ),
    call(
        "entropic_dropout",
        lambda w: constrained,
        lambda w: {},
        model=["model", None, 3],
        rate=[
            *(0.3, None, "w", [0.3], {}, {"nothing": 0.3}, {"obs": 0.3}, {3: 0.3}, {"w": 2.0}, {"w": "a"}, {"w": None}),
            *({"w": NAN}, {"w": [0.1, 0.1]}),
        ],
        expectation=["mean", None, 3],
        num_masks=[0, -1, 1.5, "2", None, True],
        max_plate_nesting=["1", -1, 1.5, None, Wrong(0, "max_plate_nesting=1")],
    ),
    call(
        "entropic_dropout, called",
        lambda w: entropic_dropout(linear, rate={"w": 0.3}),
        lambda w: {"x": X, "y": Y},
        x=[X[:, :2], X.to("meta")],
        y=["y", Y[:4]],
        z=[X],
    ),
]
