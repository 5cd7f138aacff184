"""What each measure for a fast start or a fast step is worth: each is taken away alone, against all of them."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import torch
from torch import Tensor

from pyro_dropout import CompiledSVI
from pyro_dropout.training._steps import graph, library, maker, update
from pyro_dropout.training._steps.internals import compile_graph
from pyro_dropout.training._steps.program import Program
from tests.benchmarks import peers
from tests.benchmarks.measure import Row, in_turn


@contextmanager
def _maker_with(old: str, new: str) -> Iterator[None]:
    """The program that compiles, with something of it replaced."""
    source, found = re.subn(old, new, Path(maker.__file__).read_text())
    assert found, old
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "maker.py"
        path.write_text(source)
        with patch.object(library.maker, "__file__", str(path)):
            yield


class _InProcess:
    """In the place of a library: the compiler of ``torch.compile``, called here."""

    error, folder = "", None

    def __init__(self, module: Any, inputs: Sequence[Tensor], options: Any) -> None:
        self._function = compile_graph(module, list(inputs))

    def poll(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def load(self) -> Callable[..., Any]:
        return lambda *inputs: self._function(*inputs)


def _same_graph(traced: Any) -> Any:
    return traced


LEVERS: dict[str, Callable[[], AbstractContextManager]] = {
    "all": nullcontext,
    "each draw of random numbers by itself": lambda: patch.object(Program, "_count_numbers", lambda *_: None),
    "each parameter updated by itself": lambda: patch.object(update, "_SMALL", 0),
    "numbers that many entries share not kept": lambda: patch.object(graph, "_with_shared_numbers", _same_graph),
    "biases in the matrix products": lambda: patch.object(graph, "_with_biases_apart", _same_graph),
    "small loops by two threads too": lambda: patch.dict(graph._OPTIONS, {"cpp.min_chunk_size": 512}),
    "all products by mm": lambda: _maker_with(r"with _fast_products\(\):", "with contextlib.nullcontext():"),
    "the vector unit tried": lambda: _maker_with(r"vec_isa_ok = True.*", "vec_isa_ok = None"),
    "torch.compile's compiler in this process": lambda: patch.object(graph, "Library", _InProcess),
}


def _scan(svi: CompiledSVI, store: Any, many: Sequence[Tensor]) -> Tensor:
    with pyro.get_param_store().scope(store):  # its parameters have the same names as those of the others
        return svi.scan(*many)


def levers(repeats: int) -> list[Row]:
    rows = []
    for batch, width, calls in ((32, 50, 100), (128, 1024, 10)):
        shape = f"{peers.FEATURES}-{width}-{width}-1, batch {batch}"
        many = [t.expand(calls, *t.shape) for t in (torch.randn(batch, peers.FEATURES), torch.randn(batch))]
        seconds, scans = {}, {}
        for name, without in LEVERS.items():
            with (
                tempfile.TemporaryDirectory() as fresh,
                patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": fresh}),
                pyro.get_param_store().scope() as store,
            ):
                svi = peers.compiled_svi(width)
                svi.step(*(t[0] for t in many))
                with without():
                    start = time.perf_counter()
                    svi.step(*(t[0] for t in many))
                    seconds[name] = time.perf_counter() - start
            scans[name] = partial(_scan, svi, store, many)
        times = in_turn(f"steps {shape}", scans, repeats, calls)
        for name, milliseconds in times.items():
            start_up = f"{seconds[name]:.1f} s, {seconds[name] / seconds['all']:.2f} of all"
            step = f"{milliseconds:.3g} ms, {milliseconds / times['all']:.2f} of all"
            work = f"{shape}: {'with all levers' if name == 'all' else 'instead of a lever, ' + name}"
            rows.append(Row(work, f"start {start_up}; step {step}", "", "", ""))
    return rows
