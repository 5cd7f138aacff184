"""The CO2 and solar examples, cut down."""

import os
from pathlib import Path

import numpy as np
import pytest

from examples.common.data import VARIABLE
from examples.mc import co2
from tests.examples.staged import staged

pytestmark = staged
CUT = ["--units", "32", "--steps", "60", "--draws", "50", "--rates", "0.2", "--backend", "eager"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_data_are_the_papers():
    series = co2.co2()
    with np.load(Path(os.environ[VARIABLE]) / "co2/gal_co2_regression.npz") as published:
        assert np.allclose(series.x[series.seen], published["train_x"].ravel(), atol=1e-6)
        assert np.allclose(series.y[series.seen], published["train_y"].ravel(), atol=1e-6)
    assert series.seen.tolist() == [True] * 272 + [False] * 273


def test_five_gaps_of_twenty_years_in_the_record_of_the_sun():
    series = co2.solar()
    hidden = series.years[~series.seen]
    assert len(hidden) == 100
    assert sorted(set(np.diff(hidden))) == [1.0, 55.0, 57.0]
    assert series.y[series.seen].std() == pytest.approx(1.0)


def test_the_band_of_relu_widens_and_that_of_tanh_does_not(capsys, monkeypatch):
    co2.main(["--series", "co2", "--layers", "4", *CUT])
    out = capsys.readouterr().out
    bands = {
        line.split(" | ")[0].strip("| "): [float(cell) for cell in line.split(" | ")[1:6]]
        for line in out.splitlines()
        if "rate 0.2" in line or "Gaussian" in line
    }
    (*_, decade, _, far), (*_, tanh_decade, _, tanh_far) = (bands[f"{a}, 4 layers, rate 0.2"] for a in ("relu", "tanh"))
    assert far > 1.3 * decade
    assert tanh_far < 1.15 * tanh_decade
    assert "truth there" in out
    assert Path("outputs/co2.png").stat().st_size > 10_000
    monkeypatch.setattr(co2, "fit", None)  # what is there is not computed again
    co2.main(["--series", "co2", "--layers", "4", *CUT])
    assert capsys.readouterr().out == out


def test_the_sun_with_its_gaps(capsys):
    co2.main(["--series", "solar", *CUT])
    out = capsys.readouterr().out
    assert "| years seen | gaps |" in out
    process = next(line for line in out.splitlines() if line.startswith("| Gaussian process"))
    seen, gaps = (float(cell) for cell in process.split(" | ")[1:3])
    assert gaps > 1.3 * seen
    assert Path("outputs/solar.png").stat().st_size > 10_000


def test_deviations_of_the_process_are_without_noise():
    """Where there are many points, they are far below the noise; far from all, they are the kernel's."""
    generator = np.random.default_rng(0)
    x = np.concatenate([np.linspace(-1, 1, 300), [1000.0]])
    y = np.sin(3 * x) + generator.normal(0, 0.5, len(x))
    series = co2.Series(x, x, y, np.arange(301) < 300)
    mean, deviation = co2.gaussian_process(series)
    assert np.abs(mean - np.sin(3 * x))[:300].max() < 0.3
    assert deviation[:300].max() < 0.25
    assert deviation[-1] > 0.5
