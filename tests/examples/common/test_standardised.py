"""Scaling is by the training part alone, and back again."""

import pytest
import torch

from examples.common.standardised import Data, Scaling


def test_rows_have_mean_zero_and_deviation_one():
    values = 3 + 5 * torch.randn(50, 4, dtype=torch.float64)
    for correction in (0, 1):
        scaled = Scaling.of(values, correction=correction)(values)
        torch.testing.assert_close(scaled.mean(0), torch.zeros(4, dtype=torch.float64))
        torch.testing.assert_close(scaled.std(0, correction=correction), torch.ones(4, dtype=torch.float64))


def test_constant_columns_are_left_as_large_as_they_are():
    scaling = Scaling.of(torch.full((7, 2), 3.5))
    assert scaling(torch.tensor([[3.5, 4.5]])).tolist() == [[0.0, 1.0]]


def test_several_runs_at_once_are_what_each_is_by_itself():
    values = torch.randn(3, 20, 2) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    together = Scaling.of(values, dim=1)
    new = torch.randn(5, 2)
    for run in range(3):
        alone = Scaling.of(values[run])
        torch.testing.assert_close(together(values)[run], alone(values[run]))
        torch.testing.assert_close(together[run](new), alone(new))


def test_data_are_scaled_by_the_training_part_and_lead_back_to_units():
    x, y, x_test, y_test = torch.randn(30, 2), 4 + 2 * torch.randn(30), torch.randn(9, 2), torch.randn(9)
    data = Data.of(x, y, x_test, y_test)
    torch.testing.assert_close(data.in_units(data.y), y)
    torch.testing.assert_close(data.in_units(data.y_test), y_test)
    torch.testing.assert_close(data.x_test, (x_test - x.mean(0)) / x.std(0))
    assert (data.center, data.scale) == pytest.approx((y.mean().item(), y.std().item()))
