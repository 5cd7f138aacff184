"""Verdicts of differences whose intervals are known."""

import numpy as np
import pytest
import scipy.stats

from examples.common.verdicts import CONFIRMED, NOT_SETTLED, REFUTED, alike, interval, larger


def test_intervals_are_those_of_scipys_t_test():
    d = np.array([0.3, 0.1, 0.5, -0.1])
    expected = scipy.stats.ttest_1samp(d, 0).confidence_interval(0.95)
    np.testing.assert_allclose(interval(d), expected)
    assert interval([1.0]) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.0, 1.1, 0.9], CONFIRMED),
        ([-1.0, -1.1, -0.9], REFUTED),
        ([1.0, -1.0, 0.5], NOT_SETTLED),
        ([1.0], NOT_SETTLED),
        ([1.0, 2.0], NOT_SETTLED),  # two are few: 1.5 ± 6.4
    ],
)
def test_larger(differences, verdict):
    assert larger(differences) == verdict


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([0.1, -0.1, 0.0], 0.5, CONFIRMED),
        ([0.1, -0.1, 0.0], 0.1, NOT_SETTLED),
        ([1.0, 1.1, 0.9], 0.5, REFUTED),
        ([-1.0, -1.1, -0.9], 0.5, REFUTED),
        ([0.0], 0.5, NOT_SETTLED),
    ],
)
def test_alike(differences, margin, verdict):
    assert alike(differences, margin) == verdict
