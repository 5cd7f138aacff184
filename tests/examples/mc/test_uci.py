"""The table of the papers' regression results, cut down."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest

from examples.common.data import UCI, load_uci
from examples.common.engines import ENGINES
from examples.mc import uci
from tests.examples.staged import staged

pytestmark = staged
CUT = ["--epochs", "0.002", "--draws", "20", "--splits", "2", "--backend", "eager"]
OPTIONS = argparse.Namespace(
    splits=2,
    draws=20,
    layers=1,
    epochs=0.002,
    lengthscales=uci.LENGTHSCALES,
    restarts=None,
    backend="eager",
    output=Path("outputs/uci"),
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def results(name, method, layers=1, splits=2, folder="outputs/uci"):
    return json.loads(Path(folder, f"{name}-{method}-{layers}-layers-{splits}-splits.json").read_text())["found"]


def test_a_grid_is_searched_on_validation_rows_alone(monkeypatch, capsys):
    seen = []
    whole = uci.fit

    def fit(name, data, runs, *args, **kwargs):
        seen.append((data, runs))
        return whole(name, data, runs, *args, **kwargs)

    monkeypatch.setattr(uci, "fit", fit)
    uci.main(["--dataset", "yacht", "--method", "mc", *CUT])
    (data, inside), (_, outside) = seen
    assert len(inside) == 2 * 4 * 3
    for i, (train, validation, _) in enumerate(inside):
        stored = data.train[i // 12]
        assert np.array_equal(np.concatenate([train, validation]), stored)
        assert len(validation) == len(stored) // 5
    for split, (train, test, chosen) in enumerate(outside):
        assert np.array_equal(train, data.train[split])
        assert np.array_equal(test, data.test[split])
        assert chosen["rate"] in uci.RATES
        assert chosen["precision"] in uci.SETS["yacht"].precisions
    assert len({tuple(values.items()) for _, _, values in inside[:12]}) == 12
    found = results("yacht", "mc")
    assert all(math.isfinite(v) for v in found["log_likelihood"] + found["rmse"])
    out = capsys.readouterr().out
    assert "| yacht | -" in out
    assert "| -1.250 ± 0.015 |" in out
    monkeypatch.setattr(uci, "fit", None)  # what is there is not computed again
    uci.main(["--dataset", "yacht", "--method", "mc", *CUT])
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("mc", ["log_likelihood"]),
        ("concrete", ["log_likelihood", "after_m_step"]),
        ("held", ["log_likelihood", "after_m_step"]),
    ],
)
def test_results_are_in_the_units_of_the_response(method, kinds, monkeypatch):
    """Ten times the response has a tenth of the density; precisions of the grid are in its units, too."""
    data = load_uci("yacht")
    own, found = uci.SETS["yacht"], []
    for factor in (1.0, 10.0):
        changed = UCI(data.x * 3 + 1, factor * data.y - 7, data.train, data.test)
        monkeypatch.setattr(uci, "load_uci", lambda _, changed=changed: changed)
        grid = tuple(precision / factor**2 for precision in own.precisions)
        monkeypatch.setitem(uci.SETS, "yacht", own._replace(precisions=grid))
        uci.main(["--dataset", "yacht", "--method", method, *CUT, "--output", str(factor)])
        found.append(results("yacht", method, folder=str(factor)))
    ours, tenfold = found
    for kind in kinds:
        assert np.allclose(np.array(ours[kind]) - math.log(10), tenfold[kind], atol=1e-3), kind
    assert np.allclose(10 * np.array(ours["rmse"]), tenfold["rmse"], rtol=1e-3)


def test_early_stopping_is_chosen_by_validation_rows(monkeypatch):
    """Of two lengths and three lengthscales; splits choose apart, and what failed is not chosen. Of restarts the one of
    the lowest loss counts."""
    calls = []

    def fit(name, data, runs, method, lengths, options, seed, choosing=False, training=None):
        calls.append([values["lengthscale"] for _, _, values in runs])
        if choosing:
            early, late = np.zeros(6), np.zeros(6)
            early[2], late[2], late[4] = 1.0, 0.5, 2.0  # split 0: early, third; split 1: late, second
            late[5] = math.nan
            return [{"score": score} for score in (early, late)], 6.0
        losses = [[0.0, 5.0, math.nan, 3.0, 2.0, 1.0], [5.0, 1.0, 2.0, math.nan, 1.0, 0.0]]
        return [
            {"loss": losses[i], "log_likelihood": [base + i for i in range(6)]} for i, base in enumerate((10.0, 20.0))
        ], 4.0

    monkeypatch.setattr(uci, "fit", fit)
    found = uci.run("yacht", "concrete", argparse.Namespace(**{**vars(OPTIONS), "restarts": 3}))
    assert calls == [[*uci.LENGTHSCALES] * 2, [uci.LENGTHSCALES[2]] * 3 + [uci.LENGTHSCALES[1]] * 3]
    assert found["log_likelihood"] == [10.0, 25.0]
    assert found["seconds"] == 5.0  # a split
    assert [values["steps"] for values in found["chosen"]] == [uci.EARLY, 1.0]


@pytest.mark.parametrize(
    ("method", "given", "number"), [("network", None, 3), ("network", 1, 1), ("concrete", None, 1)]
)
def test_restarts_are_what_a_method_needs_or_what_is_asked_for(method, given, number):
    options = argparse.Namespace(**{**vars(OPTIONS), "restarts": given})
    assert uci.experiment("yacht", method, options, range(2)).restarts == number


@pytest.mark.slow
def test_processes_share_the_work(tmp_path, capsys):
    given = ["--dataset", "yacht", "boston", "--method", "alpha0", "alpha1", *CUT, "--splits", "1"]
    tables = []
    for processes in ("1", "2"):
        uci.main([*given, "--processes", processes, "--output", str(tmp_path / processes)])
        lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        tables.append([cells[:8] + cells[9:] for cells in lines])  # without the seconds
    assert len(tables[0]) == 2 * 4 + 4  # with heads and lines
    assert tables[0] == tables[1]


def by_split(folder):
    files = sorted(Path(folder).glob("yacht-mc-1-layers-split-?-????????.json"))
    found = {int(path.stem.split("-")[5]): json.loads(path.read_text())["found"] for path in files}
    return {split: {**results, "seconds": None, "date": None} for split, results in found.items()}


ENGINE = ["--dataset", "yacht", "--method", "mc", *CUT, "--splits", "3", "--processes"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_splits_of_every_engine_are_those_of_the_loop(tmp_path, engine, capsys):
    pytest.importorskip(
        {"dask": "distributed", "loky": "joblib"}.get(engine, engine), reason=f"{engine} is not installed"
    )
    tables = []
    for name, processes in (("loky", "1"), (engine, "2")):
        uci.main([*ENGINE, processes, "--engine", name, "--output", str(tmp_path / processes)])
        tables.append([line.split("|")[:8] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")])
    assert tables[0] == tables[1]
    loop, found = by_split(tmp_path / "1"), by_split(tmp_path / "2")
    assert list(loop) == [0, 1, 2]
    assert found == loop
    assert len({tuple(results["rmse"]) for results in loop.values()}) == 3


@pytest.mark.slow
def test_a_split_that_fails_leaves_others_and_is_all_that_is_computed_then(monkeypatch, capsys):
    seen, whole = [], uci.fit
    bad = load_uci("yacht").train[1]

    def fit(name, data, runs, *args, **kwargs):
        seen.append(args[3])  # the first seed
        if broken and np.isin(runs[0][0], bad).all() and not kwargs.get("choosing"):
            raise ValueError("no such rows")
        return whole(name, data, runs, *args, **kwargs)

    monkeypatch.setattr(uci, "fit", fit)
    broken = True
    words = r"1 of 3 failed.*\n  run_split\('yacht', 'mc', 1\): ValueError: no such rows"
    with pytest.raises(RuntimeError, match=words):
        uci.main([*ENGINE, "1", "--engine", "loky"])
    assert list(by_split("outputs/uci")) == [0, 2]
    assert seen == [0, 0, 12, 1, 24, 2]  # of 12 points of a grid, and of what was chosen
    broken, seen[:] = False, []
    uci.main([*ENGINE, "1", "--engine", "loky"])
    assert seen == [1]  # neither other splits nor what validation found
    assert list(by_split("outputs/uci")) == [0, 1, 2]
    assert "| yacht | -" in capsys.readouterr().out
    uci.main([*ENGINE, "1", "--engine", "loky", "--draws", "10"])
    assert len(list(Path("outputs/uci").glob("*split-1*.json"))) == 4  # other settings, other files


def test_the_first_split_by_itself_is_the_first_of_one():
    """Random numbers are those of all splits at once, where these are one."""
    uci.main(["--dataset", "yacht", "--method", "mc", *CUT, "--splits", "1"])
    uci.main(["--dataset", "yacht", "--method", "mc", *CUT, "--splits", "1", "--engine", "loky"])
    assert results("yacht", "mc", splits=1)["rmse"] == pytest.approx(by_split("outputs/uci")[0]["rmse"], rel=1e-4)


def test_methods_are_compared_on_the_same_splits(monkeypatch, capsys):
    """The differences 0.1 and 0.3 have the error 0.1, whatever single splits are like; of the M-step where it is."""
    known = {"rmse": [1.0, 1.0], "rates": [{"layer": 0.1}] * 2, "epochs": 1.0, "seconds": 1.0, "date": "2026-11-21"}
    scores = {
        "mc": {"log_likelihood": [-3.0, -1.0]},
        "network": {"log_likelihood": [-2.9, -0.7]},
        "disarm": {"log_likelihood": [-3.0, -1.0], "after_m_step": [-4.0, -2.0]},
    }
    monkeypatch.setattr(uci, "run", lambda name, method, options: {**known, **scores[method]})
    uci.main(["--dataset", "yacht", "--method", *scores])
    out = capsys.readouterr().out
    assert "| set | mc | network less mc | disarm less mc |" in out
    assert "| yacht | -2.000 ± 1.000 | 0.200 ± 0.100 | -1.000 ± 0.000 |" in out


def test_what_is_beside_was_found_the_same_way(capsys):
    """Before the last M-step and after it, by as many layers."""
    results = {"log_likelihood": [-1.0] * 2, "after_m_step": [-2.0] * 2, "rmse": [1.0] * 2, "rates": [{"net": 0.1}] * 2}
    found = {"yacht": {**results, "seconds": 1.0, "epochs": 1.0, "date": "today"}}
    for layers, method, before, after in [
        (1, "concrete", "-1.250 ± 0.015", "-1.250 ± 0.015"),
        (2, "concrete", "-1.75 ± 0.00", "-0.77 ± 0.06"),
        (2, "held", "-1.75 ± 0.00", "-0.77 ± 0.06"),
    ]:
        uci.print_table(found, method, argparse.Namespace(layers=layers))
        first, last = capsys.readouterr().out.splitlines()[-2:]
        assert first.startswith(f"| yacht | -1.000 ± 0.000 | {before} |")
        assert last.startswith(f"| yacht, after a last M-step | -2.000 ± 0.000 | {after} |")
    del found["yacht"]["after_m_step"]
    uci.print_table(found, "network", argparse.Namespace(layers=2))
    assert "| -0.77 ± 0.06 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--restarts", "0"], "--restarts: must be a whole number, at least 1, but found 0"),
        (["--processes", "0"], "--processes: must be a whole number, at least 1, but found 0"),
        (["--splits", "0"], "must be a whole number, at least 1, but found 0"),
        (["--splits", "21"], "boston has 20, but found 21"),
        (["--epochs", "0"], "--epochs: must be a positive number, but found 0"),
        (["--epochs", "nan"], "must be a positive number, but found nan"),
        (["--lengthscales", "1", "long"], "--lengthscales: must be a positive number, but found long"),
        (["--draws", "1.5"], "--draws: must be a whole number, at least 1, but found 1.5"),
        (["--rates", "0", "1"], "--rates: must be a rate of at least 0 and below 1, but found 1"),
        (["--layers", "3"], "layers"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        uci.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", [*uci.METHODS, "alpha"])
@pytest.mark.parametrize("layers", [1, 2])
def test_every_method_runs(method, layers):
    uci.main(["--dataset", "boston", "--method", method, "--layers", str(layers), *CUT])
    for own in uci.ALPHAS if method == "alpha" else [method]:
        found = results("boston", own, layers)
        assert all(math.isfinite(v) for v in found["log_likelihood"] + found["rmse"])
        assert len(found["rates"][0]) == layers + 1
