"""Many fits: 20 splits of a set, each a fit of its own, by two processes of every engine against a plain loop."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from examples.mc import uci
from tests.benchmarks.measure import Row, in_turn

WAYS = {  # what is given, and the module that it needs
    "a plain loop": (["--engine", "loky"], "joblib"),
    "loky": (["--engine", "loky", "--processes", "2"], "joblib"),
    "Ray": (["--engine", "ray", "--processes", "2"], "ray"),
    "Dask": (["--engine", "dask", "--processes", "2"], "distributed"),
    "all splits at once": ([], "joblib"),
}


def fits(repeats: int, epochs: float = 0.002, splits: str = "all") -> list[Row]:
    """The start of Ray and of Dask is part of it, while joblib keeps its own processes from one time to the next."""
    given = ["--dataset", "yacht", "--method", "mc", "--backend", "eager", "--draws", "100"]
    given += ["--epochs", str(epochs), "--splits", splits]
    ways = {name: way for name, (way, module) in WAYS.items() if find_spec(module)}
    found: dict[str, dict[str, Any]] = {}
    functions = {name: partial(_fitted, [*given, *way], found, name) for name, way in ways.items()}
    seconds = {name: ms / 1e3 for name, ms in in_turn("splits of yacht", functions, max(1, repeats // 10), 1).items()}
    loop = seconds.pop("a plain loop")
    alone = {name: results for name, results in found.items() if name != "all splits at once"}
    same = all(results == alone["a plain loop"] for results in alone.values())
    said = f"results of {', '.join(alone)}"
    return [
        Row(said, f"{len(alone['a plain loop']) // 2} splits", "", "identical" if same else "differ", "identical"),
    ] + [
        Row(
            f"{splits} splits of yacht, {epochs:g} times the epochs: {name}{'' if name[0] == 'a' else ', 2 processes'} "
            "/ a plain loop",
            f"{each:.3g} s",
            f"{loop:.3g} s",
            f"{each / loop:.3g}",
            "",
        )
        for name, each in seconds.items()
    ]


def _fitted(arguments: list[str], found: dict[str, dict[str, Any]], name: str) -> None:
    """Anew, as nothing is in the folder; by file what was found, without when and how fast."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        uci.main([*arguments, "--output", folder])
        files = {path.name: json.loads(path.read_text()) for path in sorted(Path(folder).rglob("*.json"))}
    found[name] = {
        file: {key: value for key, value in of_one["found"].items() if key not in ("seconds", "date")}
        for file, of_one in files.items()
    }
