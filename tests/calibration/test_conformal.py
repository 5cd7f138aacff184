"""Sets and intervals: coverage by enumeration of which datum is new, thresholds counted by hand."""

import math

import numpy as np
import pytest
import torch

from pyro_dropout.calibration import conformal_factor, conformal_threshold

COVERAGES = [0.0, 0.3, 0.5, 0.75, 0.8, 0.9]


def classes(size, seed=0):
    torch.manual_seed(seed)
    return torch.randn(4, size, 3).softmax(-1), torch.randint(3, (size,))


def without(values, i, dim):
    return torch.cat([values.narrow(dim, 0, i), values.narrow(dim, i + 1, values.shape[dim] - i - 1)], dim)


@pytest.mark.parametrize("coverage", COVERAGES)
def test_sets_hold_a_new_label_as_often_as_is_asked_for(coverage):
    """Each of ten data is the new one, in turn: that is the probability over exchangeable data, exactly."""
    probs, labels = classes(10)
    held = []
    for i in range(10):
        threshold = conformal_threshold(without(probs, i, 1), without(labels, i, 0), coverage)
        held.append(bool(probs.mean(0)[i, labels[i]] >= threshold))
    assert sum(held) == max(1, math.ceil(round(10 * coverage, 9)))


@pytest.mark.parametrize("coverage", COVERAGES)
def test_intervals_hold_a_new_response_as_often_as_is_asked_for(coverage):
    torch.manual_seed(0)
    draws, y = torch.randn(6, 10) * torch.rand(10), torch.randn(10)
    held = []
    for i in range(10):
        factor = conformal_factor(without(draws, i, 1), without(y, i, 0), coverage)
        new = draws[:, i].double()
        held.append(bool((y[i] - new.mean()).abs() <= factor * new.std()))
    assert sum(held) == max(1, math.ceil(round(10 * coverage, 9)))


def test_by_hand():
    """Of nine labels with probabilities .1 to .9 the first is below the threshold of 80 %: the second smallest."""
    p = torch.arange(1, 10) / 10
    probs = torch.stack([p, 1 - p], -1)
    order = torch.randperm(9)
    labels = torch.zeros(9, dtype=torch.long)
    for coverage, expected in ((0.8, 0.2), (0.9, 0.1), (0.5, 0.5), (0.1, 0.9)):
        assert conformal_threshold(probs[order][None], labels, coverage) == pytest.approx(expected)
    draws = torch.stack([-torch.ones(9), torch.ones(9)])  # deviation sqrt(2)
    for coverage, expected in ((0.8, 8.0), (0.9, 9.0), (0.5, 5.0)):
        factor = conformal_factor(draws, torch.arange(1.0, 10.0)[order], coverage)
        assert factor == pytest.approx(expected / math.sqrt(2))


def test_draws_are_averaged_first():
    probs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5]]])
    assert conformal_threshold(probs, torch.tensor([0, 0]), coverage=0.6) == 0.5
    assert conformal_threshold(probs, torch.tensor([0, 0]), coverage=0.3) == 0.75


@pytest.mark.parametrize(("coverage", "least"), [(0.9, 9), (0.75, 3), (0.95, 19), (0.5, 1)])
def test_too_few_data_are_refused(coverage, least):
    probs, labels = classes(least)
    conformal_threshold(probs, labels, coverage)
    if least > 1:
        with pytest.raises(ValueError, match=f"needs {least} held-out data or more, but found {least - 1}"):
            conformal_threshold(probs[:, 1:], labels[1:], coverage)
        with pytest.raises(ValueError, match=f"needs {least} held-out"):
            conformal_factor(torch.randn(5, least - 1), torch.randn(least - 1), coverage)


def test_labelled_arrays_are_matched_by_their_labels():
    xarray = pytest.importorskip("xarray")
    probs, labels = classes(20)
    data = {"datum": np.arange(20)}
    array = xarray.DataArray(probs.numpy(), dims=("draw", "datum", "class"), coords=data)
    of_data = xarray.DataArray(labels.numpy(), dims=("datum",), coords=data)
    assert conformal_threshold(array, of_data[::-1]) == conformal_threshold(probs, labels)
    numbers = xarray.DataArray(np.random.default_rng(0).normal(size=(8, 20)), dims=("draw", "datum"), coords=data)
    y = xarray.DataArray(np.linspace(-1, 1, 20), dims=("datum",), coords=data)
    assert conformal_factor(numbers, y[::-1]) == conformal_factor(numbers.values, y.values)


def test_draws_that_do_not_differ_are_refused():
    with pytest.raises(ValueError, match="draws must differ, but those of 1 data"):
        conformal_factor(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), torch.zeros(2), 0.5)
