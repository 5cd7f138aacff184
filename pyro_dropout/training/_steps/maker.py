"""The program of a child process that makes a graph into a shared library: it imports PyTorch alone.

Called with a folder, which has the request, and gets the library. It ends, with the compilers that it has started, when
its parent does: then the pipe that is its standard input closes.
"""

import os
import pickle
import shutil
import signal
import sys
import threading
from pathlib import Path


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def make(folder: Path) -> None:
    """From ``request`` to ``graph.so``, and ``graph.json`` if it calls operations that are not compiled."""
    import torch
    import torch._inductor.compile_fx  # without which graphs are not read

    request = pickle.loads((folder / "request").read_bytes())
    torch.set_num_threads(request["threads"])
    graph = pickle.loads(request["graph"])
    inputs = tuple(torch.empty_strided(*shape, dtype=dtype) for *shape, dtype in request["inputs"])
    made = None
    for known in (True, None):  # that compilers know the processor's vector unit: to ask takes seconds
        torch._inductor.config.cpp.vec_isa_ok = known
        try:
            with torch.no_grad():
                made = Path(str(torch._inductor.aot_compile(graph, inputs, options=request["options"])))
            break
        except Exception:
            if known is None:
                raise
    assert made is not None
    if made.with_suffix(".json").exists():
        shutil.copyfile(made.with_suffix(".json"), folder / "graph.json")
    shutil.copyfile(made, folder / "graph.so")
    shutil.rmtree(made.parent, ignore_errors=True)  # sources, and a copy of the library
    (folder / "request").unlink()


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    make(Path(sys.argv[1]))
