"""Wrong arguments of ``nn`` and ``weights``."""

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

from pyro_dropout import BayesianModule
from pyro_dropout.nn import AuxiliaryDropout, lengthscale_of, weight_decay_of
from pyro_dropout.weights import (
    MaskedDelta,
    MaskedUnits,
    MaskedWeight,
    Switch,
    implements,
    point_cross_entropy,
    quantised_cross_entropy,
)
from tests.arguments.cases import Of, Wrong, call
from tests.arguments.world import INF, META, NAN, X


def not_a_network(x):
    return x


def learned_prior():
    return dist.Normal(0.0, nn.Parameter(torch.ones(())))


NN = [
    call(
        "BayesianModule",
        lambda w: BayesianModule,
        lambda w: {"net": w.net, "prior": dist.Normal(0.0, 1.0)},
        net=[
            Wrong(not_a_network, r"net must be .*function"),
            Wrong(nn.Linear, r"net .*class Linear"),
            Wrong(None, r"\bnet\b"),
            Wrong("mlp", r"\bnet\b"),
            Wrong(torch.ones(3, 1), r"\bnet\b"),
            Wrong(nn.ReLU(), "no parameter of ReLU"),
            Wrong(Of(lambda w: nn.Sequential(nn.LazyLinear(2)), "lazy"), r"net .*without values"),
        ],
        prior=[
            1.0,
            "normal",
            None,
            [dist.Normal(0.0, 1.0)],
            Wrong(dist.Normal, r"prior.*class Normal"),
            Wrong(torch.distributions.Normal(0.0, 1.0), r"prior.*pyro\.distributions"),
            Wrong(torch.distributions.Laplace, r"prior.*class Laplace"),
            lambda name, parameter: 1.0,
            lambda name, parameter: dist.Normal,
            lambda name, parameter: torch.distributions.Normal(0.0, 1.0),
            dist.Normal(torch.zeros(7), 1.0),
            dist.Normal(torch.zeros(2, 2), 1.0).to_event(2),
            Of(lambda w: learned_prior(), "learned"),
            dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        ],
        event_dim=["two", 1.5, -1, [1, "a"], [-1], True, {1: 1}],
    ),
    call(
        "BayesianModule.forward",
        lambda w: w.module,
        lambda w: {"_0": X},
        _0=[
            Wrong(value, rf"Sequential.*{words}")
            for value, words in [
                ("x", "str"),
                (None, "None"),
                (X[:, :2], r"\[6, 2\]|\(6, 2\)"),
                (X.long(), "int64"),
                (X.double(), "float64"),
                (META, "meta"),
                (torch.tensor(1.0), r"\(\)"),
                ([X], "list"),
            ]
        ],
    ),
    call(
        "BayesianModule.forward of draws",
        lambda w: w.draws.model,
        lambda w: {"x": X},
        x=[Wrong(X[:, :2], r"\(6, 2\)")],
        z=[Wrong(X, r"\bz\b")],
    ),
    call(
        "BayesianModule.site_name", lambda w: w.module.site_name, lambda w: {"name": "0.weight"}, name=[3, "7.weight"]
    ),
    call(
        "AuxiliaryDropout",
        lambda w: AuxiliaryDropout,
        lambda w: {"units": 3, "rate": 0.5, "learnable": True, "per_unit": True, "temperature": 0.5},
        units=[0, -1, 1.5, "3", None],
        rate=[1.0, -0.1, 0.0, NAN, "0.5a", None, torch.full((2,), 0.5), torch.full((2, 3), 0.5)],
        learnable=["yes", 2, None, Wrong(False, "give learnable=True")],
        per_unit=["yes", 2, None],
        temperature=[0.0, -1.0, NAN, INF, "0.5"],
        sparse=["yes", 2, None],
        name=[3, None, ""],
    ),
    call(
        "AuxiliaryDropout.forward",
        lambda w: AuxiliaryDropout(3),
        lambda w: {"x": X},
        x=[
            Wrong(value, words)
            for value, words in [("x", "x must"), (None, "x must"), (X[:, :2], r"3 units.*\(6, 2\)")]
        ],
    ),
    call(
        "lengthscale_of",
        lambda w: lengthscale_of,
        lambda w: {"weight_decay": 0.1, "size": 10, "keep": 0.9, "precision": 1.0},
        weight_decay=[0.0, -1.0, NAN, INF, "0.1", None],
        size=[None, 0, -5, "10", NAN],
        keep=[0.0, 1.5, -0.1, NAN, "0.9", None],
        precision=[0.0, -1.0, NAN, INF, "1"],
    ),
    call(
        "weight_decay_of",
        lambda w: weight_decay_of,
        lambda w: {"lengthscale": 1.0, "size": 10, "keep": 0.9, "precision": 1.0},
        lengthscale=[0.0, -1.0, NAN, INF, "1", None],
        size=[None, 0, -5, "10"],
        keep=[0.0, 1.5, NAN, "0.9"],
        precision=[0.0, -1.0, NAN, None],
    ),
]

UNITS = MaskedUnits()
KEEP = torch.tensor([0.9])


def masked_weight(**changes):
    arguments = {"loc": torch.ones(2, 3), "mask": torch.ones(3), "keep": KEEP} | changes
    return MaskedWeight(**arguments)


PRIOR = dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2)

WEIGHTS = [
    call(
        "MaskedUnits",
        lambda w: MaskedUnits,
        lambda w: {"event_dim": 2, "dim": 1, "groups": 1, "together": 1},
        event_dim=["2", 0, -1, 1.5, None],
        dim=["1", 2, -3, 1.5, None],
        groups=["1", 0, -1, 1.5, None],
        together=["1", 0, -1, 1.5, None],
    ),
    call(
        "Switch",
        lambda w: lambda **of_outputs: masked_weight(other=Switch(**of_outputs)),
        lambda w: {"mask": torch.ones(2), "keep": KEEP, "units": MaskedUnits(dim=0)},
        mask=["z", None, [1.0] * 2, torch.ones(3), torch.tensor(1.0)],
        keep=["k", None, 0.9, torch.tensor(0.9), torch.ones(3)],
        units=[2, None, (2, 0), MaskedUnits(), MaskedUnits(3, dim=0)],
    ),
    call(
        "MaskedUnits.count",
        lambda w: UNITS.count,
        lambda w: {"event_shape": (2, 3)},
        event_shape=[(2,), 3, None],
    ),
    call(
        "MaskedWeight",
        lambda w: MaskedWeight,
        lambda w: {"loc": torch.ones(2, 3), "mask": torch.ones(3), "keep": KEEP, "units": UNITS},
        loc=["w", None, [[1.0]], Wrong(torch.ones(3), "loc"), Wrong(torch.ones(2, 3).long(), "loc")],
        mask=["z", None, [1.0] * 3, torch.ones(2), torch.tensor(1.0)],
        keep=["k", None, 0.9, torch.tensor(0.9), torch.ones(2)],
        units=[2, None, (2, 1)],
        other=[2, torch.ones(2), MaskedUnits(dim=0)],
    ),
    call("MaskedWeight.replace", lambda w: masked_weight().replace, lambda w: {"site": "w"}, weight=[torch.ones(1)]),
    call(
        "MaskedWeight.mask_input",
        lambda w: masked_weight(site="fc").mask_input,
        lambda w: {"x": X},
        x=[Wrong(X[:, :2], "fc"), Wrong(torch.tensor(1.0), "fc"), "x", None],
    ),
    call(
        "MaskedWeight in F.linear",
        lambda w: F.linear,
        lambda w: {"input": X, "weight": Of(lambda w: masked_weight(site="fc"), "masked")},
        input=[Wrong(X[:, :2], "fc")],
    ),
    call(
        "MaskedDelta",
        lambda w: MaskedDelta,
        lambda w: {"weight": Of(lambda w: masked_weight(), "masked")},
        weight=[torch.ones(2, 3), None, "w"],
    ),
    call(
        "MaskedDelta.log_prob",
        lambda w: MaskedDelta(masked_weight()).log_prob,
        lambda w: {"value": torch.ones(2, 3)},
        value=["w", None, torch.ones(7), torch.ones(3, 2)],
    ),
    call("implements", lambda w: implements, lambda w: {}, _0=[Wrong(v, "functions") for v in ("linear", None, 3)]),
    call(
        "implements()",
        lambda w: implements(nn.functional.bilinear),
        lambda w: {"operation": lambda *args: NotImplemented},
        operation=["linear", None],
    ),
    call(
        "point_cross_entropy",
        lambda w: point_cross_entropy,
        lambda w: {"value": torch.ones(2, 3), "prior": PRIOR},
        value=["v", None, torch.ones(4, 5)],
        prior=[None, 1.0, dist.Normal, torch.distributions.Normal(0.0, 1.0)],
    ),
    call(
        "quantised_cross_entropy",
        lambda w: quantised_cross_entropy,
        lambda w: {"weight": Of(lambda w: masked_weight(), "masked"), "prior": PRIOR},
        weight=["w", None, torch.ones(2, 3)],
        prior=[
            None,
            1.0,
            dist.Normal,
            torch.distributions.Normal(0.0, 1.0),
            dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
            dist.Laplace(0.0, 1.0).expand([4, 5]).to_event(2),
        ],
    ),
]
