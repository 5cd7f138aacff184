"""Data that a model, its guide and a step refuse; others that tables share."""

import torch

from tests.arguments.cases import Wrong
from tests.arguments.world import EMPTY, META, X_NAN, Y_INF, X, Y

FLAG = ["yes", None, 2, 0.5]
COUNT = [0, -1, 1.5, "2", None, True, float("nan")]
FUNCTION = ["model", None, 3, torch.ones(3)]
# Data of a call of model and guide; an error must say which argument is how, or which network or weight met it.
_WHERE = r"\b{}\b|'0\.weight'|network Sequential|'obs'"


def data(name, *values):
    return [Wrong(value, _WHERE.format(name)) for value in values]


NETWORK_INPUTS = data(
    "x", "x", None, [[1.0]], X[:, :2], torch.tensor(1.0), X.double(), X.to(torch.complex64), META, X.numpy()
)
DATA = {
    "x": [*NETWORK_INPUTS, *data("x", X[0], X[:5], X_NAN, EMPTY)],
    "y": data(
        "y", "y", Y[:4], Y_INF, Y.to(torch.complex64), Y.unsqueeze(-1).expand(6, 2), Y.to("meta"), Y.to_sparse(), 1j
    ),
    "z": [X],
}
BOTH = {"x": X, "y": Y}


def some(number=4):
    """Of a long table, for callables that take the same as others."""
    return {name: DATA[name][3 : 3 + number] for name in ("x", "y")}
