"""Several processes on this machine: a function that each runs, and what it returned."""

import gc
import pickle
import tempfile
from pathlib import Path

import pyro
import torch
import torch.distributed as dist
import torch.multiprocessing


def ranks(function, number=2, *args):
    """``function(rank, *args)`` in as many processes of one group; what each returned."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_run, (function, number, folder, args), nprocs=number)
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(number)]


def _run(rank, function, number, folder, args):
    torch.set_num_threads(1)
    pyro.settings.set(module_local_params=True)
    dist.init_process_group("gloo", init_method=f"file://{folder}/at", rank=rank, world_size=number)
    try:
        found = function(rank, *args)
        (Path(folder) / str(rank)).write_bytes(pickle.dumps(found))
    finally:
        gc.collect()  # what holds the group must not outlive it
        dist.destroy_process_group()
