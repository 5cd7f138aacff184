"""Bayesian classification networks."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.priors import normal_prior
from pyro_dropout import BayesianModule


class Classification(PyroModule):
    r"""Any network with a softmax on its outputs (MC section 5.2):

    .. math:: p(y_n = c \mid x_n, W) = \mathrm{softmax}(f^W(x_n))_c, \quad W \sim \mathrm{Normal}(0, 1/l)

    :param net: gives logits ``[..., classes]`` for inputs ``x``; a ``BayesianModule`` (of ``from_torch``) keeps its
        own priors.
    :param size: number of data points N of the data set; mini-batches are scaled to it.
    :param lengthscale: prior lengthscale l, a number or a tensor; l² is the prior precision of a weight.
    :param event_dim: as in :class:`~pyro_dropout.BayesianModule`, where its first layer does not tell.
    :param scaled: weights of K inputs have the lengthscale l √K instead (CD appendix D).

    Example::

        >>> import torch
        >>> from pyro.infer import SVI, Predictive
        >>> from pyro_dropout import AutoConcreteDropout, TraceDropout_ELBO
        >>> x, y = torch.randn(5, 1, 28, 28), torch.tensor([0, 2, 1, 0, 2])
        >>> model = Classification(lenet(classes=3), size=100)
        >>> guide = AutoConcreteDropout(model, rate=lambda site: 0.0 if site == "net.0.weight" else 0.1)
        >>> loss = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceDropout_ELBO()).step(x, y)
        >>> draws = Predictive(model, guide=guide, num_samples=7, parallel=True)(x)
        >>> draws["probs"].shape, draws["obs"].shape
        (torch.Size([7, 5, 3]), torch.Size([7, 5]))
    """

    def __init__(
        self,
        net: nn.Module,
        size: int,
        lengthscale: float | Tensor = 1.0,
        event_dim: Any = None,
        *,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        if not isinstance(net, BayesianModule):
            net = BayesianModule(net, normal_prior(lengthscale, scaled=scaled), event_dim=event_dim)
        self.net = net

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        logits = self.net(x)
        with pyro.plate("data", max(self.size, len(x)), subsample_size=len(x)):
            pyro.deterministic("probs", logits.softmax(-1), event_dim=1)
            return pyro.sample("obs", dist.Categorical(logits=logits), obs=y)


def lenet(classes: int = 10, width: int = 16) -> nn.Sequential:
    """Two convolutions and two linear layers for one-channel images of 28 × 28 pixels (after LeCun et al. 1998).

    :param classes: number of outputs.
    :param width: channels of the first convolution; the second has twice, the hidden layer eight times as many.

    Example::

        >>> import torch
        >>> lenet(classes=10)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """
    return nn.Sequential(
        nn.Conv2d(1, width, kernel_size=5),  # 24 × 24, pooled to 12 × 12
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, kernel_size=5),  # 8 × 8, pooled to 4 × 4
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 8 * width),
        nn.ReLU(),
        nn.Linear(8 * width, classes),
    )


def caffe_lenet(classes: int = 10, rate: float = 0.5) -> nn.Sequential:
    r"""Caffe's LeNet with dropout before its last layer, as MC section 5.2 has it: no non-linearity after convolutions.

    Weights start uniform on ``±sqrt(3 / fan-in)``, Caffe's "xavier", biases at 0.

    :param classes: number of outputs.
    :param rate: of dropping a hidden unit.

    Example::

        >>> import torch
        >>> caffe_lenet()(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """
    net = nn.Sequential(
        nn.Conv2d(1, 20, kernel_size=5),  # 24 × 24, pooled to 12 × 12
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, kernel_size=5),  # 8 × 8, pooled to 4 × 4
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Dropout(rate),
        nn.Linear(500, classes),
    )
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = (3 / layer.weight[0].numel()) ** 0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
    return net


def digit_cnn(channels: tuple[int, int] = (32, 64), hidden: int = 128, classes: int = 10) -> nn.Sequential:
    """Two 3 × 3 convolutions, one pooling and two linear layers for images of 28 × 28 pixels.

    With ``(32, 64)`` and 128 the network of the later notebook of Concrete dropout's authors, with ``(32, 32)`` and 100
    that of BBα section 5.2.

    :param channels: of the convolutions.
    :param hidden: units between the linear layers.
    :param classes: number of outputs.

    Example::

        >>> import torch
        >>> digit_cnn()(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """
    first, second = channels
    return nn.Sequential(
        nn.Conv2d(1, first, kernel_size=3),  # 26 × 26
        nn.ReLU(),
        nn.Conv2d(first, second, kernel_size=3),  # 24 × 24, pooled to 12 × 12
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 144, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
