"""What users may import: each folder says it in its ``__all__``, and every name is documented and tested."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import pyro_dropout

ROOT = Path(pyro_dropout.__file__).parent
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
# For other folders, not for users: no underscore, as those may import them, and in no ``__all__``.
SHARED = {
    "weights/plates",
    "weights/shapes",
    "nn/slots",
    "losses/nonfinite",
    "prediction/draws",
    "interop/groups",
    "metrics/labels",
}


def public_files(folder):
    paths = sorted((ROOT / folder).glob("*.py"))
    return [p for p in paths if not p.stem.startswith("_") and f"{folder}/{p.stem}" not in SHARED]


def public_definitions(path):
    """Names of the functions and classes that a file defines for users."""
    nodes = ast.parse(path.read_text()).body
    return {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_names_of_a_folder_are_sorted_and_complete(folder):
    names = importlib.import_module(f"pyro_dropout.{folder}").__all__
    assert names == sorted(names)
    assert set(names) == set().union(*(public_definitions(path) for path in public_files(folder)))


def test_shared_files_exist():
    for name in SHARED:
        assert (ROOT / f"{name}.py").exists()


def test_each_name_of_the_face_is_in_one_folder():
    assert pyro_dropout.__all__ == sorted(pyro_dropout.__all__)
    folders = {folder: importlib.import_module(f"pyro_dropout.{folder}").__all__ for folder in FOLDERS}
    for name in set(pyro_dropout.__all__) - {"__version__"}:
        homes = [folder for folder, names in folders.items() if name in names]
        assert len(homes) == 1, f"{name} is in {homes}"
        assert getattr(pyro_dropout, name) is getattr(importlib.import_module(f"pyro_dropout.{homes[0]}"), name)


def test_the_version_is_the_distribution_s():
    assert pyro_dropout.__version__ == importlib.metadata.version("pyro-dropout")


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_public_name_has_a_docstring_with_an_example(folder):
    module = importlib.import_module(f"pyro_dropout.{folder}")
    for name in module.__all__:
        doc = inspect.getdoc(getattr(module, name)) or ""
        assert "Example" in doc, f"{folder}.{name} has no example"
        assert ">>>" in doc, f"{folder}.{name} has no example"


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_says_what_it_is_about(folder):
    prose = (importlib.import_module(f"pyro_dropout.{folder}").__doc__ or "").strip().splitlines()
    assert len(prose) >= 5, f"{folder}/__init__.py has {len(prose)} lines of prose"


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_public_file_has_a_test_file_of_its_name(folder):
    for path in public_files(folder):
        assert (Path(__file__).parent / folder / f"test_{path.stem}.py").exists(), f"{folder}/{path.name} has no tests"
