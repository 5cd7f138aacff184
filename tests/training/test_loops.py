"""The loss as a module in the loops of Lightning and Accelerate, where they are installed."""

import pyro
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from models.regression import Regression
from pyro_dropout import AutoConcreteDropout, TraceDropout_ELBO

pytestmark = pytest.mark.filterwarnings("ignore")  # of the engines about themselves


def made():
    pyro.set_rng_seed(0)
    x = torch.randn(64, 3)
    y = x.sum(-1)
    model = Regression(3, 64, hidden=(8,), precision=4.0)
    guide = AutoConcreteDropout(model)
    guide(x, y)  # makes its parameters
    return model, guide, DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)


def loss_of(model, guide, loader):
    x, y = loader.dataset.tensors
    return sum(TraceDropout_ELBO().loss(model, guide, x, y) for _ in range(20)) / 20


@pytest.fixture(autouse=True)
def _local():
    with pyro.settings.context(module_local_params=True):
        yield


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Fit(lightning.LightningModule):
        def __init__(self, model, guide):
            super().__init__()
            self.loss = TraceDropout_ELBO()(model, guide)

        def training_step(self, batch):
            return self.loss(*batch)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.02)

    model, guide, loader = made()
    before = loss_of(model, guide, loader)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=10, accelerator="cpu", default_root_dir=tmp_path, **options)
    trainer.fit(Fit(model, guide), loader)
    assert loss_of(model, guide, loader) < 0.7 * before


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    model, guide, loader = made()
    before = loss_of(model, guide, loader)
    loss = TraceDropout_ELBO()(model, guide)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    loss, optim, loader_ = accelerator.prepare(loss, torch.optim.Adam(loss.parameters(), lr=0.02), loader)
    for _ in range(10):
        for batch in loader_:
            optim.zero_grad()
            value = loss(*batch)
            assert value.dtype == torch.float32
            accelerator.backward(value)
            optim.step()
    assert loss_of(model, guide, loader) < 0.7 * before
