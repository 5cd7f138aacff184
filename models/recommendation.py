"""Recommendation from what users chose: a multinomial autoencoder over items, and two baselines without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_dropout import AuxiliaryDropout


class MultVAE(nn.Module):
    r"""A variational autoencoder of which items a user chose (Liang et al. 2018), its encoder with dropout:

    .. math:: \log p(x \mid \eta) = \sum_i x_i \log \mathrm{softmax}(f(\eta))_i, \quad \eta \sim \mathrm{Normal}(0, I),
        \quad q(\eta \mid x) = \mathbb{E}_z \mathrm{Normal}(\mu(x, z), \mathrm{diag}\, \Sigma(x, z))

    (LBD eq. 5; without the multinomial coefficient, as there). The mask z is on the user's items, divided by their
    norm. Both networks have one hidden layer. Their parameters are ``encoder``, ``decoder`` and ``dropout`` in Pyro's
    store: before a second model of these names ``pyro.clear_param_store()``.

    :param items: number of items.
    :param users: number of users of the data set; mini-batches are scaled to it.
    :param dropout: of the inputs; by default at the fixed rate 0.5, which is Liang's.
    :param hidden: units of the hidden layers.
    :param latent: dimensions of η.
    :param activation: of the hidden layers: ``nn.Tanh`` (Liang) or ``nn.ReLU`` (LBD's code).

    Example, with learned rates, one for each item:

        >>> from pyro_dropout import CompiledSVI, SemiImplicitDropout_ELBO
        >>> x = (torch.rand(20, 50) < 0.1).float()
        >>> dropout = AuxiliaryDropout(50, learnable=True, per_unit=True, sparse=True)
        >>> vae = MultVAE(50, users=20, dropout=dropout, hidden=8, latent=2)
        >>> loss = SemiImplicitDropout_ELBO(extra_masks=2, annealing=0.2)
        >>> svi = CompiledSVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss, backend="eager")
        >>> svi.step(x) > 0
        True
        >>> vae.scores(x).shape, vae.scores(x, draws=5).shape
        (torch.Size([20, 50]), torch.Size([20, 50]))
    """

    def __init__(
        self,
        items: int,
        users: int,
        dropout: AuxiliaryDropout | None = None,
        hidden: int = 600,
        latent: int = 200,
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.users, self.latent = users, latent
        self.dropout = AuxiliaryDropout(items, 0.5, sparse=True) if dropout is None else dropout
        self.encoder = two_layers(items, hidden, 2 * latent, activation)
        self.decoder = two_layers(latent, hidden, items, activation)

    def model(self, x: Tensor) -> None:
        """Of rows ``[users, items]``, 1 where a user chose an item and 0 elsewhere."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("users", max(self.users, len(x)), subsample_size=len(x)):
            eta = pyro.sample("eta", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.factor("items", log_likelihood(self.decoder(eta), x))

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder), pyro.module("dropout", self.dropout)
        with pyro.plate("users", max(self.users, len(x)), subsample_size=len(x)):
            mean, log_variance = self.encoder(self.dropout(F.normalize(x))).chunk(2, -1)
            pyro.sample("eta", dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1))

    def scores(self, x: Tensor, draws: int | None = None) -> Tensor:
        """What to recommend, the larger the better, ``[users, items]``; mean log-probabilities of η's mean.

        :param x: rows of users, their items included: a recommender leaves them out.
        :param draws: log of the mean probabilities of so many draws of mask and η instead.
        """
        with torch.no_grad():
            if draws is None:
                return self.decoder(self.encoder(F.normalize(x))[..., : self.latent]).log_softmax(-1)
            total = torch.zeros_like(x)
            for _ in range(draws):
                eta = poutine.trace(self.guide).get_trace(x).nodes["eta"]["value"]
                total += self.decoder(eta).softmax(-1)
            return (total / draws).log()


class MultDAE(nn.Module):
    """A denoising autoencoder of which items a user chose (Liang et al. 2018): no latent, one hidden layer.

    :param items: number of items.
    :param hidden: its units.
    :param rate: of dropping an item of the input, by a plain ``nn.Dropout``.

    Example::

        >>> dae = MultDAE(50, hidden=8)
        >>> dae.scores((torch.rand(20, 50) < 0.1).float()).shape
        torch.Size([20, 50])
    """

    def __init__(self, items: int, hidden: int = 200, rate: float = 0.5) -> None:
        super().__init__()
        self.dropout, self.net = nn.Dropout(rate), two_layers(items, hidden, items, nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.dropout(F.normalize(x)))

    def scores(self, x: Tensor) -> Tensor:
        """Log-probabilities of items without dropout, ``[users, items]``."""
        with torch.no_grad():
            return self.net(F.normalize(x)).log_softmax(-1)


def two_layers(inputs: int, hidden: int, outputs: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Weights start as Glorot and Bengio's, biases normal within two deviations of 0.001 (Liang et al. 2018).

    Example::

        >>> two_layers(3, 4, 2, nn.Tanh)(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    net = nn.Sequential(nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, outputs))
    for layer in (net[0], net[2]):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.trunc_normal_(layer.bias, std=0.001, a=-0.002, b=0.002)
    return net


def log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Log-probability of all chosen items, one by one, ``[..., users]``.

    Example::

        >>> log_likelihood(torch.zeros(2, 4), torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 1]]))  # 2 log 1/4, log 1/4
        tensor([-2.7726, -1.3863])
    """
    return (x * logits.log_softmax(-1)).sum(-1)


def ease(matrix: Any, penalty: float = 500.0) -> np.ndarray:
    r"""Weights of a linear item-item model (Steck 2019), ``[items, items]``; ``x @ weights`` are the scores:

    .. math:: \min_B \|X - X B\|^2 + \lambda \|B\|^2, \quad \mathrm{diag}\, B = 0

    :param matrix: what users chose, ``[users, items]``, dense or of scipy.sparse.
    :param penalty: λ.

    Example::

        >>> ease(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]), penalty=1.0)[0].round(2)
        array([ 0.  ,  0.67, -0.  ])
    """
    matrix = matrix.astype(np.float64)  # small integers would overflow
    gram = matrix.T @ matrix
    gram = gram.toarray() if hasattr(gram, "toarray") else gram
    inverse = np.linalg.inv(gram + penalty * np.eye(len(gram)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def dense(matrix: Any, rows: Any = slice(None)) -> Tensor:
    """Rows of a user × item matrix of scipy.sparse as a tensor of ones and zeros.

    Example::

        >>> from scipy.sparse import csr_array
        >>> dense(csr_array(([1, 1, 3], ([0, 0, 1], [2, 0, 1])), shape=(2, 4)), [1, 0])
        tensor([[0., 1., 0., 0.],
                [1., 0., 1., 0.]])
    """
    return torch.from_numpy((matrix[rows].toarray() != 0).astype(np.float32))
