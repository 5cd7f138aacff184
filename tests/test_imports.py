"""Who may import whom: a floor imports from floors below it, rooms of one floor do not know each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

TOP = Path(__file__).parent.parent
ROOT = TOP / "pyro_dropout"
FLOORS = [
    {"_checks"},
    {"_failures", "_sites", "_values", "_modes", "_store", "_memory", "_settings", "_rows"},
    {"masks", "metrics"},
    {"weights", "calibration"},
    {"nn", "guides", "losses", "prediction"},
    {"training", "interop"},
    {"entropic"},
]
ROOMS = {room for floor in FLOORS for room in floor if not room.startswith("_")}


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


def test_files_name_the_file_they_take_from():
    """Inside the package: what a folder's ``__init__`` hands on is for users."""
    for path in ROOT.rglob("*.py"):
        if path != ROOT / "__init__.py":
            assert not ROOMS & set(imports(path)), f"{path.relative_to(ROOT)} imports a whole folder"


def test_no_circles():
    files = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts): p for p in ROOT.rglob("*.py")}
    names = {name.removesuffix(".__init__").removeprefix("pyro_dropout."): path for name, path in files.items()}
    TopologicalSorter({name: set(imports(path)) - {"face"} for name, path in names.items()}).prepare()


def test_no_circles_of_folders():
    rooms: dict[str, set[str]] = {room: set() for floor in FLOORS for room in floor}
    for room, found in rooms.items():
        for path in [*ROOT.glob(f"{room}.py"), *(ROOT / room).rglob("*.py")]:
            found |= {name.split(".")[0] for name in imports(path)} - {room}
    TopologicalSorter(rooms).prepare()


def test_private_files_stay_at_home():
    for path in ROOT.rglob("*.py"):
        home = path.relative_to(ROOT).parts[:-1]
        for name in imports(path):
            parts = name.split(".")
            hidden = [i for i, part in enumerate(parts) if part.startswith("_")]
            if hidden and hidden[0] > 0:
                assert home[: hidden[0]] == tuple(parts[: hidden[0]]), f"{path} imports {name}"


def test_models_import_the_face_alone():
    for path in (TOP / "models").rglob("*.py"):
        assert set(imports(path)) <= {"face"}, f"{path.relative_to(TOP)} imports {set(imports(path))}"


def test_examples_import_the_face_and_public_names_of_folders():
    """Of their own folders the shared one and theirs, never tests."""
    for path in (TOP / "examples").rglob("*.py"):
        assert set(imports(path)) <= {"face", *ROOMS}, f"{path.relative_to(TOP)} imports {set(imports(path))}"
        home = path.relative_to(TOP / "examples").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            top, *rest = (module or "").split(".")
            assert top != "tests", f"{path.relative_to(TOP)} imports {module}"
            if top == "examples":
                assert rest[:1] in ([home], ["common"]), f"{path.relative_to(TOP)} imports {module}"


def test_models_and_examples_are_not_imported_below():
    for folder, forbidden in (("pyro_dropout", {"models", "examples", "tests"}), ("models", {"examples", "tests"})):
        for path in (TOP / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not forbidden & {name.split(".")[0] for name in names}, (
                    f"{path.relative_to(TOP)} imports {names}"
                )
