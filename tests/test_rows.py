"""Rows that know each other are found by exact zeros of gradients, every pair of few rows."""

import pytest
import torch

from pyro_dropout._rows import mixes


def leaf(rows):
    return torch.randn(rows, 2, requires_grad=True)


@pytest.mark.parametrize("rows", [2, 3, 5, 8, 31, 32])
def test_any_row_that_reads_any_other_is_seen(rows):
    for i in range(rows):
        for j in {0, 1, rows // 2, rows - 1} - {i}:
            x = leaf(rows)
            out = x.tanh()
            out = torch.where((torch.arange(rows) == i)[:, None], out + 1e-6 * x[j], out)
            assert mixes([(out, 0)], [(x, 0)])
    x = leaf(rows)
    assert not mixes([(x.tanh() @ torch.randn(2, 3), 0)], [(x, 0)])


@pytest.mark.parametrize("rows", [33, 100, 1000])
def test_permutations_and_sums_of_many_rows_are_seen(rows):
    for mix in (lambda h: h.roll(1, 0), lambda h: h.flip(0), lambda h: h + h.mean(0), lambda h: h.softmax(0)):
        x = leaf(rows)
        assert mixes([(mix(x.tanh()), 0)], [(x, 0)])


def test_rows_anywhere_and_leaves_of_their_own():
    x, z = torch.randn(2, 5, 3, requires_grad=True), torch.rand(5, 3, requires_grad=True)
    assert not mixes([((x * z).sum((0, 2)), 0)], [(x, 1), (z, 0)])
    assert mixes([((x * z.flip(0)).sum((0, 2)), 0)], [(x, 1), (z, 0)])
    assert not mixes([((x * z.flip(0)).sum((0, 2)), -1)], [(x, -2)])


def test_what_is_not_finite_in_its_own_row_does_not_count():
    x = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
    assert not mixes([(x.sqrt() * 0.0, 0)], [(x, 0)])


def test_outputs_without_gradients_mix_nothing():
    x = leaf(3)
    assert not mixes([(x.detach().roll(1, 0), 0)], [(x, 0)])
    assert not mixes([(x.sum(1), 0)], [])
