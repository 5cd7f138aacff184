"""What ``sivae`` trains on which users, until which epoch, and what users' held-out choices say of it."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from scipy.sparse import csr_array
from torch import Tensor
from tqdm import tqdm

from examples.common.arguments import settle
from examples.common.data import Choices, load_movielens
from examples.common.fits import SAVING, named_by
from examples.common.results import kept
from models.ranking import ndcg_at, recall_at
from models.recommendation import MultDAE, MultVAE, dense, ease, log_likelihood
from pyro_dropout import AuxiliaryDropout, CompiledSVI, SemiImplicitDropout_ELBO, load_checkpoint, save_checkpoint

FIRST_SPLIT, CLIMB = 98765, 0.85  # of Liang et al.; share of training over which β rises
TARGETS, FEWEST = 0.2, 5  # share of a held-out user's items, of those who have as many
ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}
STEP, RATES_STEP = 1e-3, 1e-2  # Adam's learning rates: rates have some 1,000 steps, published 50,000 of 1e-3
DECAY, TEMPERATURE = 0.01 / 500, 0.1  # of DAE's weights; of relaxed masks
PENALTIES = (100.0, 200.0, 500.0, 1000.0)
MEASURES = {"Recall@20": (recall_at, 20), "Recall@50": (recall_at, 50), "NDCG@100": (ndcg_at, 100)}


class Method(NamedTuple):
    """An autoencoder with a latent.

    :param how: rates ``"fixed"``, or learned by item with ``"relaxed"`` or ``"hard"`` masks.
    :param extra: masks beside the one that a latent is drawn with.
    """

    rate: float = 0.5
    how: str = "fixed"
    extra: int = 0


METHODS = {
    "VAE": Method(rate=0.0),
    "VAE + Drop": Method(),
    "SIVAE + Drop": Method(extra=2),
    "SIVAE + CDrop": Method(how="relaxed", extra=2),
    "SIVAE + LBDrop, V = 0": Method(how="hard"),
    "SIVAE + LBDrop": Method(how="hard", extra=2),
}
NAMES = ("popularity", "EASE", "DAE", *METHODS)

Fold = tuple[csr_array, csr_array]  # items that a recommender is shown, and those it should find


class Split(NamedTuple):
    train: csr_array
    validation: Fold
    test: Fold
    users: np.ndarray  # who is tested


def split_of(choices: Choices, number: int, held_out: int) -> Split:
    """Users in three, as Liang et al. (2018); of held-out users a fifth of the items is to be found.

    Items are those of training users; held-out users have five of them at least.
    """
    rng = np.random.RandomState(FIRST_SPLIT + number)
    order = rng.permutation(choices.matrix.shape[0])
    train = choices.matrix[order[: -2 * held_out]]
    items = np.unique(train.indices)
    folds, users = [], order
    for rows in (order[-2 * held_out : -held_out], order[-held_out:]):
        matrix = choices.matrix[rows][:, items].tocsr()
        enough = np.diff(matrix.indptr) >= FEWEST
        matrix, users = matrix[enough], rows[enough]
        hidden = np.zeros(matrix.nnz, bool)
        for first, last in zip(matrix.indptr, matrix.indptr[1:], strict=False):
            hidden[rng.choice(np.arange(first, last), int(TARGETS * (last - first)), replace=False)] = True
        row, col = matrix.tocoo().coords
        shown, found = (
            csr_array((np.ones(part.sum(), np.int8), (row[part], col[part])), shape=matrix.shape)
            for part in (~hidden, hidden)
        )
        folds.append((shown, found))
    return Split(train[:, items].tocsr(), *folds, users)


def measured(scores: Tensor, fold: Fold) -> dict[str, list[float]]:
    """By user. What is shown is not recommended."""
    shown, targets = dense(fold[0]), dense(fold[1])
    ranked = scores.masked_fill(shown > 0, -math.inf)
    return {name: measure(k, ranked, targets).tolist() for name, (measure, k) in MEASURES.items()}


def chosen_by(scores: Tensor, fold: Fold) -> float:
    """What chooses epochs and penalties: the mean NDCG@100 of validation users."""
    return float(np.mean(measured(scores, fold)["NDCG@100"]))


def result(name: str, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """By way of predicting the measures of test users, and what was seen on the way; from a file where there is one."""
    settings: dict[str, Any] = {"method": name, "split": number, "users": options.users, "held_out": options.held_out}
    if name not in ("popularity", "EASE"):
        recipe = ("epochs", "batch", "hidden", "latent", *(("beta", "activation", "draws") if name in METHODS else ()))
        settings |= {each: getattr(options, each) for each in recipe}
    path = named_by(options.outputs / f"{name.replace(' ', '')}-split-{number}.json", settings)
    state = path.with_suffix(".pt")
    found = kept(path, settings, lambda: computed(settings, options, state))
    state.unlink(missing_ok=True)
    return found


def computed(settings: dict[str, Any], options: argparse.Namespace, path: Path) -> dict[str, Any]:
    choices = load_movielens()
    choices = choices._replace(matrix=choices.matrix[: options.users])
    split = split_of(choices, settings["split"], options.held_out)
    settle(settings["split"])
    make = {"popularity": popular, "EASE": linear, "DAE": denoised}.get(settings["method"], autoencoded)
    return {"users": split.users.tolist(), **make(settings, split, options, path)}


def popular(settings: dict[str, Any], split: Split, options: argparse.Namespace, path: Path) -> dict[str, Any]:
    counts = torch.from_numpy(np.asarray(split.train.sum(0))).float()
    validation, test = (measured(counts.expand(fold[0].shape), fold) for fold in (split.validation, split.test))
    return {"mean": test, "validation": float(np.mean(validation["NDCG@100"]))}


def linear(settings: dict[str, Any], split: Split, options: argparse.Namespace, path: Path) -> dict[str, Any]:
    weights = {penalty: torch.from_numpy(ease(split.train, penalty)).float() for penalty in PENALTIES}
    seen = dense(split.validation[0])
    quality = {penalty: chosen_by(seen @ w, split.validation) for penalty, w in weights.items()}
    best = max(PENALTIES, key=lambda penalty: quality[penalty])
    found = measured(dense(split.test[0]) @ weights[best], split.test)
    return {"mean": found, "validation": quality[best], "penalty": best}


def denoised(settings: dict[str, Any], split: Split, options: argparse.Namespace, path: Path) -> dict[str, Any]:
    dae = MultDAE(split.train.shape[1], options.latent)
    optim = torch.optim.Adam(dae.parameters(), lr=STEP, weight_decay=DECAY)

    def step(x: Tensor, done: int) -> float:
        optim.zero_grad()
        loss = -log_likelihood(dae(x), x).mean()
        loss.backward()
        optim.step()
        return loss.item()

    history = trained(dae, optim, step, split, settings, path)
    return {"mean": measured(dae.scores(dense(split.test[0])), split.test), "history": history}


def autoencoded(settings: dict[str, Any], split: Split, options: argparse.Namespace, path: Path) -> dict[str, Any]:
    users, items = split.train.shape
    method = METHODS[settings["method"]]
    activation = ACTIVATIONS[options.activation]
    vae = MultVAE(items, users, dropout_of(method, items), options.hidden, options.latent, activation)
    rising, beta = CLIMB * options.epochs * (users // options.batch), [0.0]
    loss = SemiImplicitDropout_ELBO(method.extra, annealing=lambda: beta[0])
    pyro.settings.set(module_local_params=False)  # so that parameters have names, which Pyro's optimisers ask for
    pyro.clear_param_store()
    optim = pyro.optim.Adam(lambda name: {"lr": RATES_STEP if name.endswith("logits") else STEP})
    svi = CompiledSVI(vae.model, vae.guide, optim, loss, backend=options.backend, progress=False)

    def step(x: Tensor, done: int) -> float:
        beta[0] = options.beta * min(1.0, done / rising)
        return svi.step(x) / users

    svi.evaluate_loss(dense(split.train, range(options.batch)))  # makes its parameters
    history = trained(vae, optim, step, split, settings, path)
    shown = dense(split.test[0])
    found: dict[str, Any] = {"mean": measured(vae.scores(shown), split.test), "history": history}
    if method.rate:
        found["draws"] = measured(vae.scores(shown, options.draws), split.test)
    if method.how != "fixed":
        found["rates"] = vae.dropout.mask().rate.tolist()
        found["popularity"] = split.train.sum(0).tolist()
    return found


def dropout_of(method: Method, items: int) -> AuxiliaryDropout:
    if method.how == "fixed":
        return AuxiliaryDropout(items, method.rate, sparse=True)
    temperature = TEMPERATURE if method.how == "relaxed" else None
    return AuxiliaryDropout(items, method.rate, learnable=True, per_unit=True, temperature=temperature, sparse=True)


def trained(
    net: Any, optim: Any, step: Callable[[Tensor, int], float], split: Split, settings: dict[str, Any], path: Path
) -> list[dict[str, float]]:
    """Trains a network and leaves it as it was at its best epoch; goes on from the state in a file where there is one.

    :param step: one of training, of rows and the number of steps before it; returns the loss of a user.
    """
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    if path.exists():
        state = load_checkpoint(path, net=net, optim=optim)
        history, best = state["history"], state["best"]
    path.parent.mkdir(parents=True, exist_ok=True)
    seen, users, saved = dense(split.validation[0]), split.train.shape[0], time.monotonic()
    if users < settings["batch"]:
        raise ValueError(f"there are {users} training users, fewer than a batch of {settings['batch']}: give --batch")
    in_epoch = users // settings["batch"]
    with tqdm(initial=len(history), total=settings["epochs"], desc=path.stem, disable=None) as bar:
        for epoch in range(len(history), settings["epochs"]):
            generator = torch.Generator().manual_seed(settings["split"] * 10**6 + epoch)
            order = torch.randperm(users, generator=generator)[: in_epoch * settings["batch"]].numpy()
            began, total = time.monotonic(), 0.0
            for i, rows in enumerate(order.reshape(in_epoch, -1)):
                total += step(dense(split.train, rows), epoch * in_epoch + i)
            seconds, quality = time.monotonic() - began, chosen_by(net.scores(seen), split.validation)
            if quality > max((each["NDCG@100"] for each in history), default=0.0):
                best = {name: value.clone() for name, value in net.state_dict().items()}
            history.append({"loss": total / in_epoch, "NDCG@100": quality, "seconds": seconds})
            bar.update()
            bar.set_postfix(loss=history[-1]["loss"], ndcg=quality)
            if time.monotonic() - saved > SAVING:
                save_checkpoint(path, net=net, optim=optim, history=history, best=best)
                saved = time.monotonic()
    net.load_state_dict(best)
    return history
