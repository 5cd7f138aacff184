"""The quickstart runs, prints its table, writes its pictures and returns numbers that make sense."""

import contextlib
import io
import math

import matplotlib.image
import pytest
import torch

from examples.start.quickstart import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Results of a short run, and what it printed."""
    threads = torch.get_num_threads()
    outputs = tmp_path_factory.mktemp("quickstart") / "made" / "when missing"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        results = main(["--steps", "700", "--draws", "200", "--outputs", str(outputs)])
    torch.set_num_threads(threads)
    return results, printed.getvalue()


def test_every_model_predicts_better_than_the_mean(run):
    results, _ = run
    assert list(results.scores) == ["dropout network", "deterministic network", "BayesianRidge"]
    chance = -math.log(results.target_deviation) - 0.5 * math.log(2 * math.pi * math.e)  # a normal with these moments
    for score in results.scores.values():
        assert 40 < score.rmse < 0.9 * results.target_deviation
        assert chance < score.log_likelihood < chance + 0.5
        assert 0 < score.standard_error < 0.2
        assert abs(score.coverage_50 - 0.5) < 0.2  # 4 standard errors of a share of 111
        assert abs(score.coverage_90 - 0.9) < 0.12


def test_rates_are_learned_probabilities_of_dropping(run):
    results, _ = run
    assert list(results.rates) == ["net.0.weight", "net.2.weight"]
    assert all(0 < rate < 0.5 and abs(rate - 0.1) > 0.01 for rate in results.rates.values())


def test_leave_one_out_agrees_with_the_test_part(run):
    results, _ = run
    score = results.scores["dropout network"]
    assert results.elpd_loo == pytest.approx(score.log_likelihood, abs=4 * score.standard_error)


def test_pictures_are_written_and_not_blank(run):
    results, _ = run
    assert len(results.pictures) == 3
    for path in results.pictures:
        picture = matplotlib.image.imread(path)
        assert min(picture.shape[:2]) > 400
        assert picture[..., :3].std() > 0.05


def test_table_rates_and_pictures_are_printed(run):
    results, printed = run
    for name, score in results.scores.items():
        assert any(line.startswith(name) and f"{score.rmse:.1f}" in line for line in printed.splitlines())
    assert all(f"{site} {rate:.3f}" in printed for site, rate in results.rates.items())
    assert all(f"wrote {path}" in printed for path in results.pictures)
    assert "elpd_loo" in printed
