"""The synthetic example, cut down."""

import json
from pathlib import Path

import pytest
import torch

from examples import synthetic_uncertainty

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
    found = json.loads(Path("outputs/synthetic_uncertainty.json").read_text())
    assert len(found) == 2
    for result in found.values():
        assert len(result["epistemic"]) == 2
        assert len(result["rates"][0]) == 4
        for total, *parts in zip(result["predictive"], result["epistemic"], result["aleatoric"], strict=True):
            assert max(parts) < total < sum(parts)
    assert Path("outputs/synthetic_uncertainty.png").stat().st_size > 10_000
    monkeypatch.setattr(synthetic_uncertainty, "run", None)
    synthetic_uncertainty.main(CUT)
    assert capsys.readouterr().out == out
