"""A compiled graph computes what the function computes."""

import pytest
import torch

from pyro_dropout.training._steps.graph import Compiled, trace


def views(x, big):
    """Parts of a computed tensor, each of which many entries share."""
    t = x.exp()
    left, right = t.chunk(2)
    square = t.reshape(2, 3)
    return [
        big * t[1],
        big * t[4] + t[0],
        big.reshape(-1, 2) + t[2:4],
        big * left[1] - right[2],
        big.reshape(-1, 3) * square[1],
        big.reshape(-1, 2) * square.T[2],
        big * t.unsqueeze(0).expand(3, 6)[2, 5],
        big * torch.softmax(t, 0)[1],
        big * t.sum().reciprocal(),
    ]


def test_views_of_what_is_computed():
    x, big = torch.linspace(-1, 1, 6, dtype=torch.float64), torch.randn(600, dtype=torch.float64)
    traced = trace(views, [x, big])
    errors = []
    found = Compiled(traced, [x, big], wait=True, say=lambda error, _: errors.append(error))(x, big)
    assert errors == [""]
    for value, expected in zip(found, views(x, big), strict=True):
        torch.testing.assert_close(value, expected)


def test_tensors_of_the_function_are_inputs_of_the_graph():
    held, x = torch.ones(3), torch.ones(3)

    def function(x):
        held.add_(1)
        return [x * held]

    traced = trace(function, [x])
    assert [t is held for t in traced.tensors] == [True]
    pure = traced.out_of_place([x])
    before = held.clone()
    assert torch.equal(pure(x, other := torch.full((3,), 5.0))[0], torch.full((3,), 6.0))
    assert torch.equal(other, torch.full((3,), 6.0))
    assert torch.equal(held, before)


@pytest.mark.parametrize("function", [lambda x: [x[x > 0]], lambda x: [x.nonzero()], lambda x: [torch.unique(x)]])
def test_sizes_that_depend_on_values(function):
    with pytest.raises(NotImplementedError, match="depends on values"):
        trace(function, [torch.ones(3)])
