"""Imports run one way: examples, models, the package; a paper's examples know common/ and their own folder."""

import ast
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
FILES = sorted(EXAMPLES.rglob("*.py"))
PUBLIC = {"pyro_dropout", "pyro_dropout.entropic", "pyro_dropout.masks", "pyro_dropout.metrics"}
PUBLIC |= {"pyro_dropout.distributions"}  # until masks have their folder


def imports(path):
    """Modules of this repository that a file names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not read here"
            names = [node.module]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.split(".")[0] in ("examples", "models", "pyro_dropout", "tests"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_files_import_what_is_below_them_and_public(path):
    folder = path.relative_to(EXAMPLES).parts[0]
    for name in imports(path):
        top, *rest = name.split(".")
        below = name in PUBLIC if top == "pyro_dropout" else top == "models" or (rest and rest[0] in {"common", folder})
        assert below, f"{path.relative_to(EXAMPLES)} imports {name}"
