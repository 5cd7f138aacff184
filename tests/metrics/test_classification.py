"""Entropies, variation ratio and PAvPU against hand-computed cases, enumeration, scipy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from sklearn.metrics import mutual_info_score

from pyro_dropout.metrics import (
    expected_entropy,
    least_confidence,
    mutual_information,
    pavpu,
    predictive_entropy,
    uncertainty_thresholds,
    variation_ratio,
)


def probabilities(*shape):
    return torch.randn(*shape, dtype=torch.float64).mul(2).softmax(-1)


def test_entropies_are_those_of_scipy():
    probs = probabilities(7, 5, 3)
    np.testing.assert_allclose(predictive_entropy(probs), stats.entropy(probs.mean(0), axis=-1))
    np.testing.assert_allclose(expected_entropy(probs), stats.entropy(probs, axis=-1).mean(0))


def test_mutual_information_is_that_of_draw_and_label():
    """The joint distribution of (draw, label) is p(label | draw) / T: scikit-learn has its mutual information."""
    counts = np.random.default_rng(0).multinomial(1000, [0.2, 0.5, 0.3], size=(7, 5))
    expected = [mutual_info_score(None, None, contingency=counts[:, n]) for n in range(5)]
    np.testing.assert_allclose(mutual_information(torch.tensor(counts) / torch.tensor(1000.0).double()), expected)


def test_draws_that_agree_have_no_mutual_information_and_certain_ones_no_expected_entropy():
    same = probabilities(1, 5, 3).expand(10, 5, 3)
    assert mutual_information(same).abs().max() < 1e-12
    assert bool((mutual_information(same.float()) >= 0).all())
    certain = torch.eye(3)[torch.tensor([[0, 0], [0, 1], [0, 2]])]
    assert expected_entropy(certain).tolist() == [0.0, 0.0]
    assert mutual_information(certain).tolist() == pytest.approx([0.0, math.log(3)])
    torch.testing.assert_close(mutual_information(certain), predictive_entropy(certain))


def test_variation_ratio_is_one_minus_the_share_of_the_modal_sampled_label():
    """PITFALLS 17: by hand; draws are the first axis, and the mean's argmax has no part in it."""
    labels = torch.tensor([[0, 1, 2], [0, 2, 2], [0, 2, 1], [0, 0, 1]])
    assert variation_ratio(labels).tolist() == [0.0, 0.5, 0.5]
    assert variation_ratio(labels.T.contiguous()).tolist() == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 3])
    # Two of five passes say 0 with certainty, three say 1 hesitantly: the mode is 1, the argmax of the mean 0.
    probs = torch.tensor([[0.99, 0.01]] * 2 + [[0.45, 0.55]] * 3).unsqueeze(1)
    assert probs.mean(0).argmax(-1).item() == 0
    assert variation_ratio(probs.argmax(-1)).item() == pytest.approx(1 - 3 / 5)


def test_variation_ratio_of_many_sampled_labels_is_that_of_the_mean():
    """With T → ∞ sampled labels it is 1 - max of the mean probability (MC section 5.2)."""
    probs = torch.tensor([0.2, 0.5, 0.3])
    labels = torch.distributions.Categorical(probs.expand(40_000, 3)).sample().unsqueeze(1)
    assert variation_ratio(labels).item() == pytest.approx(0.5, abs=5 * 0.5 / 200)


def test_pavpu_is_equation_9():
    """2 accurate and certain, 1 inaccurate and uncertain, 1 of each other kind, 1 more accurate and uncertain."""
    entropy = torch.tensor([0.1, 0.2, 0.9, 0.8, 0.3, 0.7])
    correct = torch.tensor([True, True, False, True, False, True])
    assert pavpu(entropy, correct, threshold=0.5).item() == pytest.approx(3 / 6)
    at = pavpu(entropy, correct, threshold=[0.0, 0.5, 0.7, 1.0])  # uncertain if greater, so not at 0.7 itself
    assert at.tolist() == pytest.approx([2 / 6, 3 / 6, 4 / 6, 4 / 6])
    assert pavpu(entropy, correct).item() == pytest.approx(3 / 6)  # the mean, 0.5


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_equal_uncertainties_are_not_above_their_mean(n):
    assert pavpu(torch.full((n,), 0.1), torch.ones(n, dtype=torch.bool)).item() == 1.0


def test_thresholds_run_from_the_smallest_to_the_largest_uncertainty():
    found = uncertainty_thresholds(torch.tensor([[1.0, 2.0], [5.0, 3.0]]), torch.linspace(0, 1, 5))
    assert found.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert uncertainty_thresholds(torch.tensor([1, 2]), 0.25).item() == 1.25  # counts of labels that disagree, say


def patchwise(entropy, correct, threshold, window, stride=1, where=None):
    """As the paper says it, patch by patch."""
    good = total = 0
    for image, right, counts in zip(entropy, correct, where, strict=True):
        height, width = image.shape
        for i in range(0, height - window + 1, stride):
            for j in range(0, width - window + 1, stride):
                patch = np.s_[i : i + window, j : j + window]
                kept = counts[patch]
                if kept.any():
                    uncertain = image[patch][kept].mean() > threshold
                    accurate = right[patch][kept].mean() > 0.5
                    good, total = good + (uncertain != accurate), total + 1
    return good / total


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("labelled", [1.0, 0.4])
def test_patchwise_pavpu_counts_windows_of_rows_and_columns(window, stride, labelled):
    rng = np.random.default_rng(0)
    entropy, correct = rng.random((3, 6, 9)), rng.random((3, 6, 9)) < 0.6
    where = rng.random((3, 6, 9)) < labelled
    where[0] = labelled == 1.0  # an image of which nothing counts
    expected = [patchwise(entropy, correct, t, window, stride, where) for t in (0.3, 0.5, 0.6)]
    where = torch.tensor(where)
    found = pavpu(
        torch.tensor(entropy), torch.tensor(correct), [0.3, 0.5, 0.6], window=window, stride=stride, where=where
    )
    np.testing.assert_allclose(found, expected)


def test_an_ideal_segmentation_scores_one():
    """PITFALLS 18: uncertain exactly where it is wrong. A slice of rows alone, or the wrong one, does not see this."""
    correct = torch.ones(1, 8, 10, dtype=torch.bool)
    correct[0, :, 5:] = False
    entropy = (~correct).double()
    assert pavpu(entropy, correct, 0.49, window=2, stride=1).item() == 1.0
    assert pavpu(entropy.mT.contiguous(), correct.mT.contiguous(), 0.49, window=2).item() == 1.0
    assert pavpu(1 - entropy, correct, 0.51, window=2).item() == pytest.approx(0.0)


def test_pixels_that_do_not_count_may_hold_anything():
    entropy = torch.tensor([[0.1, math.nan], [0.9, math.inf]])
    where = torch.tensor([[True, False], [True, False]])
    assert pavpu(entropy, torch.tensor([[True, True], [False, False]]), where=where).item() == 1.0
    assert pavpu(entropy, torch.tensor([[True, True], [True, False]]), 0.6, where=where, window=2).item() == 1.0


def test_labelled_probabilities():
    probs = probabilities(2, 4, 5, 3)
    array = xr.DataArray(probs.numpy(), dims=("chain", "draw", "point", "class"), coords={"point": list("abcde")})
    found = mutual_information(array)
    assert found.dims == ("point",)
    assert list(found.point) == list("abcde")
    np.testing.assert_allclose(found, mutual_information(probs.flatten(0, 1)))
    np.testing.assert_allclose(
        predictive_entropy(array.stack(sample=("chain", "draw")).transpose("point", "sample", "class")),
        predictive_entropy(probs.flatten(0, 1)),
    )
    labels = array.argmax("class")
    np.testing.assert_allclose(variation_ratio(labels), variation_ratio(probs.flatten(0, 1).argmax(-1)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: predictive_entropy(torch.tensor(0.5)), ValueError, "draws on its first dimension"),
        (lambda: predictive_entropy(torch.tensor([0.5, 0.5])), ValueError, r"\[draws, ..., classes\]"),
        (lambda: mutual_information(torch.randn(3, 2, 4)), ValueError, "sum to one over the last dimension"),
        (lambda: expected_entropy(torch.full((3, 2), 0.25)), ValueError, "sums from 0.5 to 0.5"),
        (lambda: expected_entropy(torch.full((3, 2), math.nan)), ValueError, "probs has 6 NaN"),
        (lambda: variation_ratio(torch.rand(3, 2)), TypeError, "labels must be integers"),
        (lambda: pavpu(torch.rand(3), torch.ones(4) > 0), ValueError, r"one shape, but found \(3,\), \(4,\)"),
        (lambda: pavpu(torch.rand(3), torch.ones(3)), TypeError, "must be bool"),
        (lambda: pavpu(torch.rand(0), torch.ones(0) > 0), ValueError, "nothing to count"),
        (lambda: pavpu(torch.rand(3), torch.ones(3) > 0, window=2), ValueError, r"2 by 2 pixels do not fit .*\(3,\)"),
        (lambda: pavpu(torch.tensor([math.nan]), torch.ones(1) > 0), ValueError, "uncertainty has 1 NaN"),
        (lambda: uncertainty_thresholds(torch.rand(3), 1.5), ValueError, r"t must be in \[0, 1\], but found 1.5"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_least_confidence_keeps_its_order_where_networks_are_sure():
    """In single precision 1 - p is 0 for all of these; by exact fractions for others."""
    inputs = torch.tensor([[[20.0, 0.0, 0.0], [25.0, 0.0, 0.0], [60.0, 0.0, 0.0]]])
    expected = [2 / (math.exp(x) + 2) for x in (20, 25, 60)]
    assert least_confidence(inputs.softmax(-1)).tolist() == pytest.approx(expected, rel=1e-5)
    draws = torch.tensor([[[0.5, 0.25, 0.25]], [[0.0, 0.75, 0.25]]])  # means 1/4, 1/2, 1/4
    assert least_confidence(draws).tolist() == [0.5]
