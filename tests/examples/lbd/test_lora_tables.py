"""Tables of the adapters' example, from numbers that are known."""

import matplotlib.image
import numpy as np
import pytest

from examples.lbd.lora_tables import (
    by_prediction,
    differences,
    differences_table,
    draw,
    judged,
    rates_table,
    scores_table,
    tuning_table,
    verdict,
)

START = 0.1


def seed(accuracy, draws=True, rates=None):
    scores = {"accuracy": accuracy, "nll": 1 - accuracy, "ece": 0.02}
    return {"scores": {"draws": scores, "mean": scores} if draws else {"mean": scores}, "rates": rates or {}}


FOUND = {
    "none": [seed(0.8, draws=False), seed(0.6, draws=False)],
    "per token": [seed(0.81), seed(0.63)],
    "tied": [seed(0.9), seed(0.7)],
    "learned": [
        seed(0.85, rates={"blocks.0.q": [0.1, 0.6], "blocks.0.v": [0.2, 0.1]}),
        seed(0.67, rates={"blocks.0.q": [0.1, 0.2], "blocks.0.v": [0.1, 0.1]}),
    ],
}


def test_differences_are_paired():
    """Of 5 and 7 points to none, whatever single seeds are like."""
    rows = by_prediction(FOUND)
    assert ("none", "draws") not in rows
    assert ("learned", "draws") not in differences(rows)
    assert differences(rows)["none", "mean"]["accuracy"] == pytest.approx([0.05, 0.07])
    assert "| none | mean | +6.00 ± 1.00 | -0.060 ± 0.010 | +0.00 ± 0.00 |" in differences_table(rows)
    table = scores_table({"base": {"accuracy": 0.1, "nll": 5.0, "ece": 0.5}}, rows)
    assert "| base | | 10.00 | 5.000 | 50.00 |" in table
    assert "| none | mean | 70.00 ± 10.00 | 0.300 ± 0.100 | 2.00 ± 0.00 |" in table


def test_ranks_are_counted_by_layer():
    table = rates_table(FOUND["learned"])
    assert "| blocks.0.q | 1.5 ± 0.5 of 2 | 0.250 ± 0.100 | 0.100 | 0.100 | 0.150 | 0.300 | 0.600 |" in table
    assert "| all | 3.5 ± 0.5 of 4 |" in table


def test_tuning_names_the_best():
    table = tuning_table({"none": {0.01: 2.0, 0.1: 1.0}, "learned": {0.01: 1.0, 0.1: 1.5}}, 0.1)
    assert table.splitlines()[0].endswith("chosen by the mean: 0.1")
    assert "| mean | 1.500 | 1.250 |" in table
    assert table.endswith("By itself better elsewhere, of one seed: learned at 0.01.")


@pytest.mark.parametrize(
    ("values", "word"),
    [([1.0, 1.2], "better"), ([-1.0, -1.2], "worse"), ([-1.0, 1.2], "no different"), ([0.0] * 2, "no different")],
)
def test_a_difference_counts_above_two_standard_errors(values, word):
    opposite = {"better": "worse", "worse": "better"}
    assert judged(np.array(values), higher=True) == word
    assert judged(np.array(values), higher=False) == opposite.get(word, word)


def test_one_seed_tells_nothing():
    assert judged(np.array([1.0]), higher=True) == "not known"


def test_the_verdict_is_what_the_numbers_say():
    against_none, _, _, against_tied, rates = verdict(by_prediction(FOUND), FOUND["learned"], START)
    words = "accuracy {}, negative log-likelihood {}, ECE no different."
    assert against_none == "Learned rates, draws, against none, mean: " + words.format("better", "better")
    assert against_tied == "Learned rates, draws, against tied, draws: " + words.format("worse", "worse")
    assert rates.startswith("Of 8 learned rates 7 are below one half; 3 are more than 0.05 from 0.1")


def test_picture(tmp_path):
    path = draw(FOUND["learned"], START, tmp_path / "rates.png")
    assert matplotlib.image.imread(path).std() > 0.01
