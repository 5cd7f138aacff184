"""The records: what is staged is what was meant, converters read the sources' formats."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from examples.common.data import VARIABLE, load_co2, load_solar
from tests.examples.staged import staged


@staged
def test_series():
    co2, solar = load_co2(), load_solar()
    assert co2.t.shape == co2.y.shape == (545,)
    assert co2.y[0] == 315.71  # March 1958, NOAA
    # Gal & Ghahramani's data: the first 272, without their linear trend, standardised.
    with np.load(Path(os.environ[VARIABLE]) / "co2/gal_co2_regression.npz") as published:
        month = np.arange(272)
        rest = co2.y[:272] - np.polyval(np.polyfit(month, co2.y[:272], 1), month)
        assert np.allclose(rest / rest.std(), published["train_y"].ravel(), atol=1e-6)
    assert (solar.t == np.arange(1610, 2001) + 0.5).all()
    assert solar.y[0] == 1364.7338


@staged
def test_series_convert_to_what_is_staged(downloads):
    co2, solar = load_co2(), load_solar()
    mat = io.BytesIO()
    scipy.io.savemat(mat, {"X": co2.t[:, None], "y": co2.y[:, None] - 342.16289048})
    lean = "Lean 2000\n\nYEAR 11yrCYCLE 11yrCYCLE+BKGRND\n" + "\n".join(
        f"  {t:.1f}  1365.0000  {y:.4f}" for t, y in zip(*solar, strict=True)
    )
    downloads({"03-mauna2003.mat": mat.getvalue(), "lean2000_irradiance.txt": lean.encode()})
    for again, original in ((load_co2(), co2), (load_solar(), solar)):
        assert np.allclose(again.t, original.t)
        assert np.allclose(again.y, original.y)


@staged
@pytest.mark.parametrize(
    ("load", "name"), [(load_co2, "co2/mauna_loa_monthly_545"), (load_solar, "solar/lean2004_tsi_391")]
)
def test_other_series_are_refused(load, name, monkeypatch, tmp_path):
    lines = (Path(os.environ[VARIABLE]) / f"{name}.csv").read_text().splitlines()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / name).parent.mkdir()
    for changed in (lines[:-1], [*lines[:-1], "2004.5,400.0,400.0"], [line.split(",")[0] for line in lines]):
        (tmp_path / f"{name}.csv").write_text("\n".join(changed))
        with pytest.raises(ValueError, match="has not the content of"):
            load()
