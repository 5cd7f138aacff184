"""Low-rank adapters of a network that stays as it is, with a dropout posterior over their ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_dropout import AutoBernoulliDropout

LAYERS = ("q", "k", "v", "proj", "hidden", "out")  # of a block of models.transformer


class Adapted(nn.Module):
    r"""A frozen linear layer with a low-rank adapter (LoRA, Hu et al. 2021, eq. 3; no scaling):

    .. math:: f(x) = W_0 x + b_0 + B \, \mathrm{diag}(z / \mathrm{keep}) \, A x

    The adapter is two linear layers without biases, ``down`` (A, ``[rank, in]``) and ``up`` (B, ``[out, rank]``, which
    starts at zero: at first the layer is what it was). ``z`` stands between them, one number for each rank. Here it
    is that of PyTorch's dropout, another one for each token; that of a guide, :func:`rank_dropout`, is the same for all
    tokens of a datum.

    :param linear: the layer, which is frozen.
    :param rank: number of ranks.
    :param dropout: probability of dropping a rank at a token, without a guide.

    Example::

        >>> import torch
        >>> layer, x = nn.Linear(4, 3), torch.randn(5, 28, 4)
        >>> adapted = Adapted(layer, rank=2)
        >>> torch.equal(adapted(x), layer(x)), [name for name, p in adapted.named_parameters() if p.requires_grad]
        (True, ['down.weight', 'up.weight'])
    """

    def __init__(self, linear: nn.Linear, rank: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = linear.requires_grad_(False)
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.drop(self.down(x)))


def with_adapters(net: nn.Module, rank: int, dropout: float = 0.0, layers: Collection[str] = LAYERS) -> nn.Module:
    """A copy of a network, frozen, but for new adapters of some of its linear layers.

    :param net: any network.
    :param rank: number of ranks of each adapter.
    :param dropout: of ranks at tokens, as in :class:`Adapted`.
    :param layers: the last parts of the names of layers that get an adapter.
    :raises ValueError: no linear layer has such a name.

    Example::

        >>> from models.transformer import VisionTransformer
        >>> net = with_adapters(VisionTransformer(depth=1), rank=4, layers=("q", "v"))
        >>> [name for name, p in net.named_parameters() if p.requires_grad]  # doctest: +NORMALIZE_WHITESPACE
        ['blocks.0.q.down.weight', 'blocks.0.q.up.weight', 'blocks.0.v.down.weight', 'blocks.0.v.up.weight']
    """
    net = copy.deepcopy(net).requires_grad_(False)
    linear = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    found = {name: layer for name, layer in linear.items() if name.rpartition(".")[2] in layers}
    if not found:
        raise ValueError(f"layers must name linear layers of {type(net).__name__}, but found {', '.join(layers)}")
    for name, layer in found.items():
        net.set_submodule(name, Adapted(layer, rank, dropout))
    return net


def adapter_prior(lengthscale: float = 1.0) -> Callable[[str, nn.Parameter], dist.Normal | None]:
    """The ``prior`` of a ``BayesianModule`` whose frozen parameters stay as they are, and the others are Bayesian.

    :param lengthscale: l, of which l² is the prior precision.

    Example::

        >>> from pyro_dropout import BayesianModule
        >>> net = BayesianModule(Adapted(nn.Linear(4, 3), rank=2), adapter_prior())
        >>> list(net.slots)
        ['down.weight', 'up.weight']
    """
    return lambda _, parameter: dist.Normal(0.0, 1.0 / lengthscale) if parameter.requires_grad else None


def rank_dropout(model: Callable, rate: float = 0.1, learnable: bool = True) -> AutoBernoulliDropout:
    """The guide that drops ranks of adapters, by hard masks, at a learned rate for each rank.

    The ranks are masked as output units of ``down`` (``"net.blocks.0.q.down.output"``), not as input units of ``up``.
    Both give the same network, but the first says what is meant, dropout behind ``down``, where :class:`Adapted` has
    it, and one word, ``units="output"``, says it of all layers; the output units of ``up`` have rate 0.

    :param model: a Pyro model of a network with adapters.
    :param rate: of dropping a rank; where learning starts.
    :param learnable: learn one rate for each rank.

    Example::

        >>> import torch
        >>> from pyro_dropout import BayesianModule
        >>> guide = rank_dropout(BayesianModule(Adapted(nn.Linear(4, 3), rank=2), adapter_prior()).eval())
        >>> _ = guide(torch.zeros(5, 4))
        >>> guide.rates()
        {'down.output': tensor([0.1000, 0.1000]), 'up.output': tensor(0.)}
    """
    return AutoBernoulliDropout(
        model,
        rate=lambda mask: rate if mask.endswith("down.output") else 0.0,
        learnable=learnable,
        per_unit=learnable,
        units="output",
    )
