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
_PRODUCTS = 32  # of matrices at once, each of which is a call of its own in what is compiled


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
    changed = (aten.mm.default, aten.addmm.default, aten.bmm.default)
    mm, addmm, bmm = (lowerings[each] for each in changed)
    add, select, cat, view = (lowerings[getattr(aten, name)] for name in ("add", "select", "cat", "view"))

    def is_slow(a: Any, b: Any) -> bool:
        large = a.get_size()[-2] * b.get_size()[-1] * b.get_size()[-2] >= _LARGE
        return large and a.get_dtype() == torch.float32 and a.get_device().type == "cpu"

    def product(a: Any, b: Any, **options: Any) -> Any:
        if not is_slow(a, b):
            return mm(a, b, **options)
        size = [a.get_size()[0], b.get_size()[1]]
        inputs = [mkldnn_ir.LinearUnary.realize_input(t) for t in (a, permute(b, [1, 0]))]
        layout = ir.FixedLayout(device=a.get_device(), dtype=a.get_dtype(), size=size)
        call = mkldnn_ir.LinearUnary(layout, inputs, [None, "none", [-1], ""])
        return ir.TensorBox.create(mkldnn_ir._create_output_node(call))

    def added(bias: Any, a: Any, b: Any, *, alpha: float = 1, beta: float = 1, **options: Any) -> Any:
        plain = (alpha, beta) != (1, 1)
        return addmm(bias, a, b, alpha=alpha, beta=beta, **options) if plain else add(bias, product(a, b))

    def products(a: Any, b: Any, **options: Any) -> Any:
        number = a.get_size()[0]
        if not is_slow(a, b) or number > _PRODUCTS:
            return bmm(a, b, **options)
        a.realize(), b.realize()
        each = [product(select(a, 0, i), select(b, 0, i)) for i in range(number)]
        return cat([view(one, [1, *one.get_size()]) for one in each], 0)

    if torch.backends.mkldnn.is_available():
        lowerings.update(zip(changed, (product, added, products), strict=True))
    try:
        yield
    finally:
        lowerings.update(zip(changed, (mm, addmm, bmm), strict=True))


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
