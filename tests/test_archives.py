"""What is handed out: a source archive without tests, which makes the wheel, and a wheel of the package alone."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# As an installer calls a backend (PEP 517): in the folder of the project, with the backend's path in front.
BUILD = "import sys; sys.path.insert(0, sys.argv[1]); import backend; print(getattr(backend, sys.argv[2])(sys.argv[3]))"


def build(project, what, target):
    """The archive that a project makes of itself."""
    system = tomllib.loads((project / "pyproject.toml").read_text())["build-system"]
    assert system["build-backend"] == "backend"
    (path,) = system["backend-path"]
    command = [sys.executable, "-c", BUILD, str(project / path), what, str(target)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def package_files():
    return {str(path.relative_to(ROOT)) for path in (ROOT / "pyro_dropout").rglob("*.py")} | {"pyro_dropout/py.typed"}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The unpacked source archive of a copy of the checkout, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("archives")
    project = folder / "checkout"
    # of what is hidden .ci and .docs alone: the rest are environments, which have gigabytes, and caches
    unwanted = shutil.ignore_patterns(".[!cd]*", "outputs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, project, ignore=unwanted)
    with tarfile.open(build(project, "build_sdist", folder)) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return source, build(source, "build_wheel", folder)


def test_the_source_archive_has_the_package_whole_and_no_tests(archives):
    source, _ = archives
    found = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    made = {name for name in found if ".egg-info/" in name or name.startswith("build/")} | {"PKG-INFO", "setup.cfg"}
    project = {".ci/backend.py", "LICENSE", "README.md", "pyproject.toml"}
    assert found - made == package_files() | project


def test_a_second_source_archive_in_the_same_folder_is_the_same(archives, tmp_path):
    """setuptools adds what it listed before, which may have been with tests."""
    source, _ = archives
    project = tmp_path / "checkout"
    shutil.copytree(source, project)
    (listed,) = project.glob("*.egg-info/SOURCES.txt")
    for name in ("test_a.py", "support/b.py"):
        (project / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "tests" / name).touch()
        listed.write_text(listed.read_text() + f"tests/{name}\n")
    with tarfile.open(build(project, "build_sdist", tmp_path)) as archive:
        assert not [name for name in archive.getnames() if "/tests" in name]


def test_the_wheel_has_the_package_alone(archives):
    _, wheel = archives
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == package_files()
    described = {name.split("/", 1)[1] for name in names if ".dist-info/" in name}
    assert described >= {"METADATA", "licenses/LICENSE"}
