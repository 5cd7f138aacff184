"""Tables of the rotated digit, from numbers that are known."""

import matplotlib.image
import numpy as np
import torch

from examples.mc.rotated_digit_tables import (
    CLAIMS,
    MEASURES,
    angles_table,
    claims_table,
    draw,
    measures_table,
    referral_table,
    verdict,
)

DIGITS = 4


def found(share):
    shown = np.arange(DIGITS) < share * DIGITS
    claims = dict.fromkeys(CLAIMS, shown)
    measures = {name: np.full((DIGITS, 2), 0.25) for name in MEASURES}
    return {**claims, **measures, "predicted": np.array([[1, 7]] * 3 + [[1, 5]])}


def test_shares_have_errors_and_verdicts():
    table = claims_table({"left": found(0.5), "right": found(0.0)})
    assert "| 50.0 ± 28.9 % | 0.0 ± 0.0 % | confirmed: of most digits |" in table
    assert [verdict(share) for share in (0.5, 0.02, 0.019)] == [
        "confirmed: of most digits",
        "confirmed: of some digits",
        "refuted",
    ]


def test_angles_name_the_classes_that_are_predicted():
    table = angles_table({"left": found(1.0)}, np.array([0.0, 15.0]))
    assert table.splitlines()[-1].endswith("| 7 (75 %), 5 (25 %) |")
    assert table.splitlines()[-2].startswith("| 0 | 0.250 ± 0.000 |")


def scores():
    error = np.array([True, False, False, False, True, False, False, False, False, False])
    test = {name: np.where(error, 0.9, np.linspace(0, 0.5, 10)) for name in (*MEASURES, "1 - largest mean")}
    return {
        **test,
        "error": error,
        "error, weights averaged": np.zeros(10, bool),
        "log-likelihood": np.full(10, -0.5),
        "log-likelihood, weights averaged": np.full(10, -0.75),
    }


def test_averages_are_compared_in_pairs():
    table = measures_table(scores())
    assert "| error | 20.0000 ± 13.3333 % | 0.0000 ± 0.0000 % | 20.0000 ± 13.3333 % |" in table
    assert "| log-likelihood | -0.5000 ± 0.0000 | -0.7500 ± 0.0000 | 0.2500 ± 0.0000 |" in table


def test_the_most_uncertain_are_referred_first():
    """Of ten images one tenth is one image, which was an error of two; 5 % of ten are none."""
    line = referral_table(scores()).splitlines()[-1]
    area = 100 * (1 / 9 + 2 / 10) / 10
    assert line == f"| 1 - largest mean | 20.000 | 20.000 | 20.000 | 20.000 | 11.111 | {area:.4f} | 1.0000 |"


def test_picture(tmp_path):
    digit, inputs = torch.rand(2, 1, 28, 28), torch.randn(5, 2, 10)
    path = draw(digit, inputs, np.array([0.0, 15.0]), tmp_path / "digit.png")
    assert matplotlib.image.imread(path).std() > 0.01
