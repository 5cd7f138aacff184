"""Risk against coverage, by hand and by all orders of equally uncertain predictions."""

import itertools

import numpy as np
import pytest
import torch

from pyro_dropout.metrics import risk_coverage

F64 = torch.float64


def by_orders(uncertainty, loss):
    """Mean risk of the k most certain, over all orders that do not contradict the uncertainties."""
    n, curves = len(loss), []
    for order in itertools.permutations(range(n)):
        if all(uncertainty[a] <= uncertainty[b] for a, b in itertools.pairwise(order)):
            curves.append([sum(loss[i] for i in order[:k]) / k for k in range(1, n + 1)])
    return np.mean(curves, 0)


@pytest.mark.parametrize(
    "uncertainty",
    [[0.1, 0.5, 0.2, 0.9, 0.3], [0.1, 0.5, 0.1, 0.5, 0.3], [1.0] * 5, [0.2, 0.2, 0.1, 0.1, 0.2]],
    ids=str,
)
def test_risk_is_the_mean_over_orders(uncertainty):
    loss = [3.0, 1.0, 0.0, 2.0, 5.0]
    curve = risk_coverage(torch.tensor(uncertainty), torch.tensor(loss, dtype=F64))
    np.testing.assert_allclose(curve.risk.numpy(), by_orders(uncertainty, loss), rtol=1e-12)
    np.testing.assert_allclose(curve.coverage.numpy(), [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-12)
    assert curve.area.item() == pytest.approx(by_orders(uncertainty, loss).mean())


def test_a_perfect_measure_a_useless_one_and_the_worst():
    """Two errors of ten: found first, last, or not at all."""
    wrong = torch.arange(10) >= 8
    perfect, worst, useless = (risk_coverage(u, wrong) for u in (torch.arange(10), -torch.arange(10), torch.zeros(10)))
    assert perfect.risk[:8].tolist() == [0.0] * 8
    assert worst.risk[:2].tolist() == [1.0] * 2
    torch.testing.assert_close(useless.risk, torch.full((10,), 0.2))
    assert perfect.area < useless.area < worst.area
    for curve in (perfect, worst, useless):
        assert curve.risk[-1].item() == pytest.approx(0.2)


def test_any_order_of_the_data_and_any_shape():
    u, loss = torch.randint(5, (4, 6)), torch.rand(4, 6)
    order = torch.randperm(24)
    torch.testing.assert_close(
        tuple(risk_coverage(u, loss)), tuple(risk_coverage(u.flatten()[order], loss.flatten()[order]))
    )
    found = risk_coverage(u.numpy(), loss.numpy())
    torch.testing.assert_close(tuple(found), tuple(risk_coverage(u, loss)))


@pytest.mark.parametrize(
    ("uncertainty", "loss", "message"),
    [
        (torch.zeros(3), torch.zeros(2), r"one shape, but found \(3,\) and \(2,\)"),
        (torch.zeros(0), torch.zeros(0), "nothing to count"),
        (torch.tensor([float("nan")]), torch.zeros(1), "uncertainty has 1 NaN"),
        (torch.zeros(1), torch.tensor([float("inf")]), "loss has 1 NaN or infinite"),
    ],
)
def test_wrong_arguments(uncertainty, loss, message):
    with pytest.raises(ValueError, match=message):
        risk_coverage(uncertainty, loss)
