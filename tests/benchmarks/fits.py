"""Many fits: 20 splits of a set, each a fit of its own, by two processes of every engine against a plain loop."""

from __future__ import annotations

import contextlib
import io
import tempfile
from functools import partial
from importlib.util import find_spec

from examples.mc import uci
from tests.benchmarks.measure import Row, in_turn

WAYS = {  # what is given, and the module that it needs
    "a plain loop": (["--engine", "loky"], "joblib"),
    "loky": (["--engine", "loky", "--processes", "2"], "joblib"),
    "Ray": (["--engine", "ray", "--processes", "2"], "ray"),
    "Dask": (["--engine", "dask", "--processes", "2"], "distributed"),
    "all splits at once": ([], "joblib"),
}


def fits(repeats: int, epochs: float = 0.02, splits: str = "all") -> list[Row]:
    """The start of Ray and of Dask is part of it, while joblib keeps its own processes from one time to the next."""
    given = ["--dataset", "yacht", "--method", "mc", "--backend", "eager", "--draws", "100"]
    given += ["--epochs", str(epochs), "--splits", splits]
    ways = {name: way for name, (way, module) in WAYS.items() if find_spec(module)}
    functions = {name: partial(_fitted, [*given, *way]) for name, way in ways.items()}
    seconds = {name: ms / 1e3 for name, ms in in_turn("splits of yacht", functions, max(1, repeats // 10), 1).items()}
    loop = seconds.pop("a plain loop")
    return [
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


def _fitted(arguments: list[str]) -> None:
    """Anew, as nothing is in the folder."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        uci.main([*arguments, "--output", folder])
