"""Started by torchrun: sixty steps with a state in a file after each ten; a rank kills itself once, if told to."""

import os
import signal
import sys
from pathlib import Path

import pyro
import torch
import torch.distributed as dist

from models.regression import Regression
from pyro_dropout import AutoConcreteDropout, TraceDropout_ELBO
from pyro_dropout.training import distributed_loss, distributed_step, load_distributed, save_distributed


def main() -> None:
    folder, kill = Path(sys.argv[1]), len(sys.argv) > 2 and sys.argv[2] == "yes"
    pyro.settings.set(module_local_params=True)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    pyro.set_rng_seed(0)
    x = torch.randn(2, 10, 3)[rank]
    y = x.sum(-1)
    model = Regression(3, 20, hidden=(5,))
    guide = AutoConcreteDropout(model)
    loss = distributed_loss(TraceDropout_ELBO(), model, guide, x, y)
    optim = torch.optim.Adam(loss.parameters())
    done = 0
    if (folder / "state.pt").exists():
        done = load_distributed(folder / "state.pt", guide=guide, optim=optim)["done"]
    for step in range(done, 60):
        if kill and rank == 1 and step == 37 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        distributed_step(loss, optim, x, y)
        if step % 10 == 9:
            save_distributed(folder / "state.pt", guide=guide, optim=optim, done=step + 1)
    if rank == 0:
        torch.save({name: p.detach() for name, p in guide.named_parameters()}, folder / "end.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
