"""Every public callable with wrong arguments: an error of ours that names the argument, and nothing has changed.

The tables are in ``tests/arguments``.
"""

import contextlib
import importlib
import re
import traceback
from pathlib import Path

import pytest

import pyro_dropout
from tests.arguments.cases import cases
from tests.arguments.constraint import ENTROPIC
from tests.arguments.inference import GUIDES, LOSSES, PREDICTION
from tests.arguments.masks import MASKS
from tests.arguments.networks import NN, WEIGHTS
from tests.arguments.outside import CALIBRATION, INTEROP, METRICS
from tests.arguments.training import TRAINING
from tests.arguments.world import World, changed

ROOT = Path(pyro_dropout.__file__).parent
CALLS = [*NN, *WEIGHTS, *MASKS, *GUIDES, *LOSSES, *PREDICTION, *TRAINING, *INTEROP, *METRICS, *CALIBRATION, *ENTROPIC]
CASES = list(cases(CALLS))
# Python's own words for arguments that a function does not have, which name them.
BINDING = r"unexpected keyword argument|missing \d+ required|positional arguments? but|multiple values for"
WITHOUT_ARGUMENTS = {
    "ARM": "has none; its methods are in the table",
    "DisARM": "has none; its methods are in the table",
    "DatumMasks": "has none",
    "LeafMasks": "has none",
    "LeafSource": "has none; its method is in the table",
    "GradientEstimator": "an abstract class",
    "JointDraw": "a record, which losses make",
    "RiskCoverage": "a record, which risk_coverage makes",
    "zero_rates": "takes any modules, of which it looks at guides",
}


@pytest.fixture(scope="module", autouse=True)
def _in_a_folder_of_its_own(tmp_path_factory):
    with contextlib.chdir(tmp_path_factory.mktemp("arguments")):
        yield


def is_ours(error):
    """Whether the package raised it, scikit-learn's checks of arrays did, or Python refused the call itself."""
    where = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)][-1]
    if isinstance(error, TypeError) and re.search(BINDING, str(error)):
        return True
    return ROOT in where.parents or "sklearn" in where.parts


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_wrong_argument_is_named_and_nothing_changes(case):
    world = World()
    function, args, kwargs = case.call.made(world, **{case.argument: case.wrong.value})
    before = world.state()
    allowed = case.wrong.error or (ValueError, TypeError, NotImplementedError)
    with pytest.raises(allowed) as found:
        function(*args, **kwargs)
    assert case.wrong.error or is_ours(found.value), f"raised by {traceback.extract_tb(found.value.__traceback__)[-1]}"
    assert re.search(case.words, str(found.value)), f"{case.words!r} is not in {found.value}"
    assert not changed(before, world.state())


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_the_right_arguments_pass(call):
    """Or the errors above might be of something else."""
    function, args, kwargs = call.made(World())
    function(*args, **kwargs)


def test_every_public_callable_is_in_the_table():
    folders = [path.parent.name for path in ROOT.glob("*/__init__.py")]
    modules = [pyro_dropout, *(importlib.import_module(f"pyro_dropout.{folder}") for folder in folders)]
    public = {name for module in modules for name in module.__all__ if callable(getattr(module, name))}
    tried = {re.split(r"[ .,(]", call.name)[0] for call in CALLS if call.wrong}
    assert public - tried == WITHOUT_ARGUMENTS.keys() - tried
    assert len(CASES) >= 300, len(CASES)
