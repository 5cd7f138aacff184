"""Who may import whom: a floor imports from floors below it, rooms of one floor do not know each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent / "pyro_dropout"
FLOORS = [
    {"traces", "memory", "initialization", "metrics"},
    {"layers", "parts", "streaming"},
    {"weight"},
    {"distributions", "parameters"},
    {"estimators", "module", "guides", "dataflow"},
    {"messengers", "arviz", "conversion"},
    {"checks"},
    {"losses", "predictive", "entropic"},
    {"renyi", "compiled"},
    {"checkpoint"},
]


def imports(path):
    """Modules of the package that a file names; the package itself is "face"."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not read here"
            names = [node.module or ""]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name == "pyro_dropout":
                yield "face"
            elif name.startswith("pyro_dropout."):
                yield name.removeprefix("pyro_dropout.")


def test_imports_go_down():
    level = {room: i for i, floor in enumerate(FLOORS) for room in floor}
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for name in imports(path):
            other = name.split(".")[0]
            assert other != "face", f"{path.relative_to(ROOT)} imports the package's face: name the file"
            assert other == room or level[other] < level[room], f"{path.relative_to(ROOT)} imports {name}"


def test_no_circles():
    files = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts): p for p in ROOT.rglob("*.py")}
    names = {name.removesuffix(".__init__").removeprefix("pyro_dropout."): path for name, path in files.items()}
    TopologicalSorter({name: set(imports(path)) - {"face"} for name, path in names.items()}).prepare()


def test_private_files_stay_at_home():
    for path in ROOT.rglob("*.py"):
        home = path.relative_to(ROOT).parts[:-1]
        for name in imports(path):
            parts = name.split(".")
            hidden = [i for i, part in enumerate(parts) if part.startswith("_")]
            if hidden and hidden[0] > 0:
                assert home[: hidden[0]] == tuple(parts[: hidden[0]]), f"{path} imports {name}"
