"""The demo, cut down: every method is scored in units of the target, and pairs are of one split."""

import math

import matplotlib.image
import numpy as np
import torch

from examples.common.data import load_uci
from examples.common.standardised import Data
from examples.start import demo
from examples.start.demo import OURS, PLAIN, Score, of_normal, said
from tests.examples.staged import staged


@staged
def test_what_is_found_and_written(tmp_path, capsys):
    scores = demo.main(["--splits", "2", "--steps", "150", "--gap-steps", "50", "--outputs", str(tmp_path)])
    assert list(scores) == [OURS, PLAIN, "BayesianRidge", "gradient boosting", "Gaussian process"]
    scale = load_uci("yacht").y.std()
    for of in scores.values():
        assert len(of) == 2
        for score in of:
            assert 0.1 < score.rmse < scale
            assert -math.log(scale) - 2 < score.log_likelihood < 1
    assert max(s.rmse for s in scores["Gaussian process"]) < min(s.rmse for s in scores["BayesianRidge"])
    assert matplotlib.image.imread(tmp_path / "demo.png").std() > 0.05
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in scores)


def test_scores_are_in_units():
    y = torch.tensor([1.0, 3.0, 5.0, 7.0])
    data = Data.of(torch.zeros(4, 1), y, torch.zeros(2, 1), torch.tensor([2.0, 6.0]))
    score = of_normal(np.zeros(2), 1.0, data)  # of standardised values: the mean and deviation of the training part
    expected = torch.distributions.Normal(4.0, y.std()).log_prob(torch.tensor([2.0, 6.0])).mean()
    assert math.isclose(score.log_likelihood, expected, rel_tol=1e-5)
    assert math.isclose(score.rmse, 2.0, rel_tol=1e-5)


def test_pairs_are_of_one_split():
    """Each 0.5 ahead, whatever the split: no scatter in the difference."""
    scores = {
        OURS: [Score(v, 1.0) for v in (-1.0, -2.0, -3.0)],
        "other": [Score(v - 0.5, 1.0) for v in (-1.0, -2.0, -3.0)],
    }
    assert "+0.50 (+0.50 to +0.50)" in said(scores)
