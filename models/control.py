"""Control: the value of actions, and what a system does next, as Bayesian networks whose data grow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.priors import normal_prior
from models.regression import mlp
from pyro_dropout import BayesianModule


class QNetwork(PyroModule):
    r"""The values of all actions in a state (MC section 5.4), learned from targets, such as
    :math:`r + \gamma \max_{a'} Q(s', a')`:

    .. math:: y_n \sim \mathrm{Normal}(Q^W(s_n)_{a_n}, 1), \quad W \sim \mathrm{Normal}(0, 1/l)

    The deterministic site ``values``, ``[N, actions]``, is what agents act by; that of one draw, for Thompson sampling.

    :param net: gives values ``[N, actions]`` for states ``[N, inputs]``; of numbers ``(inputs, actions)`` a network of
        two hidden layers of 50.
    :param size: number of experiences N that a batch stands for, kept in the buffer ``size``, which may change between
        steps, compiled ones too.
    :param lengthscale: prior lengthscale l, a number or a tensor; l² is the prior precision of a weight.

    Example::

        >>> from pyro.infer import SVI
        >>> from pyro_dropout import AutoBernoulliDropout, TraceDropout_ELBO
        >>> model = QNetwork((4, 2), size=1000)
        >>> guide = AutoBernoulliDropout(model, rate=0.1)
        >>> svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-6}), TraceDropout_ELBO())
        >>> state, action, target = torch.randn(64, 4), torch.randint(2, (64,)), torch.randn(64)
        >>> svi.step(state, action, target) > 0
        True
        >>> model.size.fill_(2000)
        tensor(2000.)
    """

    def __init__(self, net: nn.Module | tuple[int, int], size: int, lengthscale: float | Tensor = 1.0) -> None:
        super().__init__()
        self.register_buffer("size", torch.tensor(float(size)))
        net = mlp(net[0], (50, 50), net[1]) if isinstance(net, tuple) else net
        self.net = net if isinstance(net, BayesianModule) else BayesianModule(net, normal_prior(lengthscale))

    def forward(self, state: Tensor, action: Tensor | None = None, target: Tensor | None = None) -> Any:
        values = self.net(state)
        with standing_for(self.size, len(state)):
            pyro.deterministic("values", values, event_dim=1)
            if action is None:
                return values
            chosen = values.gather(-1, action.expand(values.shape[:-1]).unsqueeze(-1)).squeeze(-1)
            return pyro.sample("obs", dist.Normal(chosen, 1.0), obs=target)


class Dynamics(PyroModule):
    r"""By how much a system changes, with a noise that is learned for each of its variables (CD section 4.5):

    .. math:: y_n \sim \mathrm{Normal}(f^W(x_n), \mathrm{diag}(\tau)^{-1/2}), \quad W \sim \mathrm{Normal}(0, 1/l),
        \quad \tau_d \sim \mathrm{Gamma}(0.1, 0.01)

    :param inputs: number of variables of state and control.
    :param outputs: of the state.
    :param size: number of observed changes N, in the buffer ``size``: it grows with the data, and the prior counts for
        less, with nothing compiled anew.
    :param hidden: widths of the hidden layers.
    :param lengthscale: prior lengthscale l √K of a matrix with K inputs, of a bias l.
    :param activation: between layers.

    Example::

        >>> model = Dynamics(inputs=5, outputs=4, size=25)
        >>> model(torch.zeros(3, 5)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        hidden: Sequence[int] = (200, 200),
        lengthscale: float | Tensor = 1.0,
        activation: type[nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.register_buffer("size", torch.tensor(float(size)))
        self.outputs = outputs
        prior = normal_prior(lengthscale, scaled=True)
        self.net = BayesianModule(mlp(inputs, hidden, outputs, activation), prior)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        mean = self.net(x)
        precision = pyro.sample("precision", dist.Gamma(x.new_full((), 0.1), 0.01).expand([self.outputs]).to_event(1))
        with standing_for(self.size, len(x)):
            pyro.deterministic("mean", mean, event_dim=1)
            return pyro.sample("obs", dist.Normal(mean, precision.rsqrt()).to_event(1), obs=y)


@contextlib.contextmanager
def standing_for(size: Tensor, batch: int) -> Iterator[None]:
    """A data plate of a batch that stands for ``size`` data, a tensor, where a plate's own size is a constant.

    Example::

        >>> with standing_for(torch.tensor(10.0), 2):
        ...     site = poutine.trace(lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0))).get_trace().nodes["x"]
        >>> site["scale"]
        tensor(5.)
    """
    with poutine.scale(scale=size / batch), pyro.plate("data", batch):
        yield


def functions(
    layers: Sequence[tuple[Tensor, Tensor]],
    masks: Sequence[Tensor | None],
    x: Tensor,
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> Tensor:
    r"""What fully connected networks with these masks say, several at once, nearly as fast as without masks.

    :param layers: weights ``[R, outputs, inputs]`` and biases ``[R, outputs]`` of R networks.
    :param masks: of the inputs of each layer, ``[R, rows, inputs]``, divided by the probability of keeping; or None.
        A row is a function: the same mask for several rows of ``x`` is one function at several places.
    :param x: ``[R, rows, inputs]``.
    :param activation: between layers.
    :returns: ``[R, rows, outputs]``.

    Example::

        >>> layers = [(torch.ones(1, 2, 3), torch.zeros(1, 2)), (torch.ones(1, 1, 2), torch.zeros(1, 1))]
        >>> functions(layers, [None, torch.tensor([[[2.0, 0.0]]])], torch.ones(1, 1, 3))
        tensor([[[6.]]])
    """
    for number, ((weight, bias), mask) in enumerate(zip(layers, masks, strict=True)):
        x = activation(x) if number else x
        x = x if mask is None else x * mask
        x = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
    return x


def masks_of(uniform: Tensor, rate: Tensor, temperature: float | None = None) -> Tensor:
    """Masks over the probability of keeping, by uniform numbers: hard, or relaxed at a temperature (CD eq. 5).

    Example::

        >>> masks_of(torch.tensor([0.1, 0.6]), torch.tensor(0.5))
        tensor([0., 2.])
    """
    if temperature is None:
        return (uniform >= rate) / (1 - rate)
    logits = torch.logit(1 - rate) + torch.logit(uniform, eps=1e-6)
    return torch.sigmoid(logits / temperature) / (1 - rate)
