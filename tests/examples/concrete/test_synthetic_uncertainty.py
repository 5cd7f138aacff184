"""The synthetic example, cut down."""

import json
from pathlib import Path

import pytest
import torch

from examples.concrete import synthetic_uncertainty

CUT = ["--sizes", "10", "50", "--units", "16", "--steps", "40", "--draws", "20", "--repeats", "2", "--backend", "eager"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_data_are_those_of_the_formula():
    x, y = synthetic_uncertainty.data(100_000, torch.Generator().manual_seed(0))
    assert x.shape == (100_000, 1)
    noise = y - 2 * x[:, 0] - 8
    error = 1 / 100_000**0.5
    assert abs(x.mean()) < 4 * error
    assert abs(noise.mean()) < 4 * error
    assert noise.std().item() == pytest.approx(1.0, abs=4 * error)
    assert abs((x[:, 0] * noise).mean()) < 4 * error


def test_table_picture_and_what_a_second_run_reads(capsys, monkeypatch):
    synthetic_uncertainty.main(CUT)
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith(("| 10 |", "| 50 |"))]
    assert len(rows) == 2
    for size in (10, 50):
        result = json.loads(Path(f"outputs/synthetic_uncertainty/{size}.json").read_text())["found"]
        assert len(result["epistemic"]) == 2
        assert len(result["rates"][0]) == 4
    assert Path("outputs/synthetic_uncertainty.png").stat().st_size > 10_000
    monkeypatch.setattr(synthetic_uncertainty, "run", lambda *_: pytest.fail("computed again"))
    synthetic_uncertainty.main(CUT)
    assert capsys.readouterr().out == out


def test_noise_is_aleatoric_and_rates_move(monkeypatch):
    """A network of few units, on 3,000 points: the noise is near 1, the function is known far better than that."""
    monkeypatch.setitem(synthetic_uncertainty.LEARNING_RATES, "weights", 1e-2)
    arguments = ["--sizes", "3000", "--units", "32", "--steps", "600", "--repeats", "1", "--draws", "50"]
    synthetic_uncertainty.main([*arguments, "--backend", "eager"])
    result = json.loads(Path("outputs/synthetic_uncertainty/3000.json").read_text())["found"]
    ((epistemic,), (aleatoric,), (predictive,)) = (result[k] for k in ("epistemic", "aleatoric", "predictive"))
    assert aleatoric == pytest.approx(1.0, abs=0.25)
    assert epistemic < 0.7 * aleatoric
    assert predictive == pytest.approx((epistemic**2 + aleatoric**2) ** 0.5, rel=0.1)
    assert result["rates"][0][0] < 0.05  # that of the only input


def test_a_loss_that_is_not_finite_raises(monkeypatch):
    whole = synthetic_uncertainty.ReplicatedSVI.scan

    def scan(svi, *args):
        losses = whole(svi, *args)
        svi.alive[1] = False
        return losses

    monkeypatch.setattr(synthetic_uncertainty.ReplicatedSVI, "scan", scan)
    with pytest.raises(RuntimeError, match="10 points: the loss"):
        synthetic_uncertainty.main(CUT)
