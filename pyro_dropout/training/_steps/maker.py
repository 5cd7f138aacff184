"""The program of a child process that makes a graph into a shared library: it imports PyTorch alone.

Called with a folder, which has the request, and gets the library. It ends, with the compilers that it has started, when
its parent does: then the pipe that is its standard input closes.
"""

import contextlib
import os
import pickle
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LARGE = 2**20  # products of numbers, in a product of matrices


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextlib.contextmanager
def _fast_products() -> Iterator[None]:
    """Large products of matrices by oneDNN, which on some processors is twice as fast as what ``mm`` calls."""
    import torch
    from torch._inductor import ir, mkldnn_ir
    from torch._inductor.lowering import lowerings, permute

    aten = torch.ops.aten
    mm, addmm, add = (lowerings[each] for each in (aten.mm.default, aten.addmm.default, aten.add.Tensor))

    def product(a: Any, b: Any, **options: Any) -> Any:
        size = [a.get_size()[0], b.get_size()[1]]
        small = size[0] * size[1] * b.get_size()[0] < _LARGE
        if small or a.get_dtype() != torch.float32 or a.get_device().type != "cpu":
            return mm(a, b, **options)
        inputs = [mkldnn_ir.LinearUnary.realize_input(t) for t in (a, permute(b, [1, 0]))]
        layout = ir.FixedLayout(device=a.get_device(), dtype=a.get_dtype(), size=size)
        call = mkldnn_ir.LinearUnary(layout, inputs, [None, "none", [-1], ""])
        return ir.TensorBox.create(mkldnn_ir._create_output_node(call))

    def added(bias: Any, a: Any, b: Any, *, alpha: float = 1, beta: float = 1, **options: Any) -> Any:
        plain = (alpha, beta) != (1, 1)
        return addmm(bias, a, b, alpha=alpha, beta=beta, **options) if plain else add(bias, product(a, b))

    if torch.backends.mkldnn.is_available():
        lowerings[aten.mm.default], lowerings[aten.addmm.default] = product, added
    try:
        yield
    finally:
        lowerings[aten.mm.default], lowerings[aten.addmm.default] = mm, addmm


def make(folder: Path) -> None:
    """From ``request`` to ``graph.so``, and ``graph.json`` if it calls operations that are not compiled."""
    import torch
    import torch._inductor.compile_fx  # without which graphs are not read

    request = pickle.loads((folder / "request").read_bytes())
    torch.set_num_threads(request["threads"])
    graph = pickle.loads(request["graph"])
    inputs = tuple(torch.empty_strided(*shape, dtype=dtype) for *shape, dtype in request["inputs"])

    def compiled() -> Path:
        with torch.no_grad():
            return Path(str(torch._inductor.aot_compile(graph, inputs, options=request["options"])))

    torch._inductor.config.cpp.vec_isa_ok = True  # that compilers know its instructions: to ask takes seconds
    try:
        with _fast_products():
            made = compiled()
    except Exception:  # of what is taken for granted here
        traceback.print_exc()
        torch._inductor.config.cpp.vec_isa_ok = None
        made = compiled()
    if made.with_suffix(".json").exists():
        shutil.copyfile(made.with_suffix(".json"), folder / "graph.json")
    shutil.copyfile(made, folder / "graph.so")
    shutil.rmtree(made.parent, ignore_errors=True)  # sources, and a copy of the library
    (folder / "request").unlink()


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    make(Path(sys.argv[1]))
