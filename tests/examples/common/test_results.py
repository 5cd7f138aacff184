"""Results are kept whole, for their settings."""

import json
import math

import pytest

from examples.common.results import kept, mean_and_error


def test_what_is_there_is_not_computed_again(tmp_path, capsys):
    path, calls = tmp_path / "folder" / "a.json", []

    def compute():
        calls.append(1)
        return {"value": len(calls)}

    assert kept(path, {"steps": (1, 2)}, compute) == {"value": 1}
    assert kept(path, {"steps": [1, 2]}, compute) == {"value": 1}
    assert capsys.readouterr().out == ""
    assert kept(path, {"steps": [1, 3]}, compute) == {"value": 2}
    assert "other settings" in capsys.readouterr().out
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_an_interrupted_run_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    kept(path, {}, lambda: {"value": 1})

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(path, {"other": 1}, interrupted)
    assert json.loads(path.read_text())["found"] == {"value": 1}


def test_standard_errors():
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))
    assert mean_and_error([1.0]) == (1.0, pytest.approx(math.nan, nan_ok=True))
