"""Steps of the autoencoder over items against the same in plain PyTorch: the bound of a mixture over masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.lbd.sivae_training import METHODS, dropout_of
from models.recommendation import MultVAE, log_likelihood, two_layers
from pyro_dropout import CompiledSVI, SemiImplicitDropout_ELBO
from tests.benchmarks.measure import Row, interleaved

USERS, BATCH, ITEMS, OWN, HIDDEN, LATENT, BETA = 4834, 200, 3497, 95, 600, 200, 0.2  # as MovieLens-1M has them


def hand_written_step(x: Tensor) -> Callable[[], float]:
    """Dropout of the input, the latent, the KL, Adam."""
    encoder, decoder = (two_layers(*sizes, nn.Tanh) for sizes in ((ITEMS, HIDDEN, 2 * LATENT), (LATENT, HIDDEN, ITEMS)))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)

    def step() -> float:
        optimiser.zero_grad()
        mean, log_variance = encoder(F.dropout(F.normalize(x), 0.5)).chunk(2, -1)
        eta = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        kl = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1)
        loss = (BETA * kl - log_likelihood(decoder(eta), x)).sum() * (USERS / len(x))
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def step_of(method: str, x: Tensor, compiled: bool) -> Callable[[], float]:
    pyro.clear_param_store()  # whose parameters of the same names would be taken for those of this one
    vae = MultVAE(ITEMS, USERS, dropout_of(METHODS[method], ITEMS), HIDDEN, LATENT)
    loss, adam = SemiImplicitDropout_ELBO(METHODS[method].extra, annealing=BETA), pyro.optim.Adam({"lr": 1e-3})
    if compiled:
        svi = CompiledSVI(vae.model, vae.guide, adam, loss, wait=True, progress=False)
    else:
        svi = pyro.infer.SVI(vae.model, vae.guide, adam, loss)
    before = next(vae.parameters()).clone()
    svi.step(x), svi.step(x)
    assert not torch.equal(before, next(vae.parameters()))
    return lambda: svi.step(x)


def recommendation(repeats: int) -> list[Row]:
    with pyro.settings.context(module_local_params=True):
        return list(_rows(max(3, repeats // 3)))


def _rows(repeats: int) -> Iterator[Row]:
    torch.manual_seed(0)
    x = torch.zeros(BATCH, ITEMS).scatter_(1, torch.rand(BATCH, ITEMS).topk(OWN).indices, 1.0)
    by_hand = hand_written_step(x)
    for method, target in (
        ("VAE + Drop", "≤ 1.15"),
        ("SIVAE + Drop", "≤ 4"),
        ("SIVAE + CDrop", "≤ 4"),
        ("SIVAE + LBDrop, V = 0", ""),
        ("SIVAE + LBDrop", "≤ 4"),
    ):
        what = f"{method}, V = 2" if METHODS[method].extra else method
        for compiled in (True, False):
            how = "compiled step" if compiled else "SVI step"
            work = f"{how} of {what}, {BATCH} users of {ITEMS:,} items / VAE + Drop in plain PyTorch"
            yield interleaved(work, step_of(method, x, compiled), by_hand, target, repeats, 2)
