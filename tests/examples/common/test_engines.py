"""Tasks that are spread over processes: the same results by every engine, and failures that others survive."""

import argparse
import json
import os
import sys

import pytest
import torch

from examples.common.engines import ENGINES, add_engine, engine, spread
from examples.common.results import kept


def options(tmp_path, name="loky", processes=1):
    return argparse.Namespace(engine=name, processes=processes, outputs=tmp_path)


def fit(split, setting, options):
    """A draw that the split decides, kept in a file beside the process that made it."""
    path = options.outputs / f"{split}-{setting}.json"

    def compute():
        if split == 1 and (options.outputs / "broken").exists():
            raise ValueError(f"split {split} is broken")
        return {"value": torch.randn(3, generator=torch.Generator().manual_seed(split)).tolist(), "by": os.getpid()}

    return kept(path, {"split": split}, compute)


@pytest.mark.parametrize("name", ["loky", *(pytest.param(name, marks=pytest.mark.slow) for name in ENGINES[1:])])
def test_engines_find_what_a_loop_finds_and_a_failure_leaves_the_others(tmp_path, name):
    pytest.importorskip({"dask": "distributed", "loky": "joblib"}.get(name, name), reason=f"{name} is not installed")
    tasks = [(split, "a") for split in range(4)]
    (tmp_path / "loop").mkdir()
    (tmp_path / "engine").mkdir()
    expected = spread(fit, tasks, options(tmp_path / "loop"))
    broken = tmp_path / "engine" / "broken"
    broken.touch()
    with pytest.raises(RuntimeError, match=r"1 of 4 failed.*\n  fit\(1, 'a'\): ValueError: split 1 is broken") as error:
        spread(fit, tasks, options(tmp_path / "engine", name, 2))
    assert "in compute" in error.value.__notes__[0]
    kept_already = {int(path.stem[0]): path.read_text() for path in broken.parent.glob("*.json")}
    assert sorted(kept_already) == [0, 2, 3]
    broken.unlink()
    found = spread(fit, tasks, options(tmp_path / "engine", name, 2))
    assert [each["value"] for each in found] == [each["value"] for each in expected]
    assert all(each["by"] != os.getpid() for each in found)
    for split, text in kept_already.items():
        assert json.loads(text)["found"] == found[split]  # by the processes of the first start


def test_one_process_is_a_loop_here(tmp_path):
    (tmp_path / "broken").touch()
    with pytest.raises(RuntimeError, match="1 of 3 failed"):
        spread(fit, [(split, "a") for split in range(3)], options(tmp_path))
    (tmp_path / "broken").unlink()
    found = spread(fit, [(split, "a") for split in range(3)], options(tmp_path))
    assert {each["by"] for each in found} == {os.getpid()}


def test_an_interruption_is_not_a_failure(tmp_path):
    def interrupted(split, options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spread(interrupted, [(0,)], options(tmp_path))


@pytest.mark.parametrize(("name", "module"), [("ray", "ray"), ("dask", "distributed")])
def test_an_engine_that_is_not_installed(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    words = rf'^{module} is not installed: pip install "pyro-dropout\[{name}\]"'
    with pytest.raises(ModuleNotFoundError, match=words), engine(name, 2):
        pass


def test_the_argument(capsys):
    parser = argparse.ArgumentParser()
    add_engine(parser)
    assert parser.parse_args([]).engine == "loky"
    assert parser.parse_args(["--engine", "dask"]).engine == "dask"
    with pytest.raises(SystemExit):
        parser.parse_args(["--engine", "spark"])
    assert "invalid choice: 'spark'" in capsys.readouterr().err
