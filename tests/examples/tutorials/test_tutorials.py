"""Every tutorial runs as it stands, is in the gallery's order and in the list of its folder."""

import importlib.util
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tests.examples.staged import staged

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "examples" / "tutorials"
TUTORIALS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def test_all_are_in_the_gallery_and_in_the_list():
    spec = importlib.util.spec_from_file_location("conf", ROOT / ".docs" / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    assert sorted(conf.TUTORIALS) == TUTORIALS
    assert re.findall(r"\((\w+)\.py\)", (FOLDER / "README.md").read_text()) == conf.TUTORIALS


@pytest.mark.parametrize("name", TUTORIALS)
def test_each_begins_with_a_title(name):
    _, title, line = (FOLDER / f"{name}.py").read_text().splitlines()[:3]
    assert line == "=" * len(title)
    assert title in (FOLDER / "README.md").read_text()


@staged
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of ArviZ and its libraries, as a user sees them
@pytest.mark.parametrize("name", TUTORIALS)
def test_each_runs(name):
    plt.switch_backend("Agg")
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert plt.get_fignums()
    plt.close("all")
