"""What wrong arguments meet: a small fitted model with all that can be made of it, and what of it must not change."""

import random
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_dropout import AutoBernoulliDropout, BayesianModule, DropoutPredictive, TraceDropout_ELBO

X = torch.linspace(-1.0, 1.0, 18).reshape(6, 3).sin()
Y = X.sum(-1)
NAN, INF = float("nan"), float("inf")
SPARSE, META, EMPTY = X.to_sparse(), torch.empty(6, 3, device="meta"), torch.empty(0, 3)
X_NAN, Y_INF = X.clone().index_fill(0, torch.tensor([2]), NAN), Y.clone().index_fill(0, torch.tensor([2]), INF)


class World:
    """A fitted model of three features, made without random numbers of its own."""

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        self.dropout_net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.ReLU(), nn.Linear(4, 1))
        self.module = module = BayesianModule(self.net)

        def model(x: Any, y: Any = None) -> Any:
            mean = module(x).squeeze(-1)
            precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
            with pyro.plate("data", len(x)):
                return pyro.sample("obs", dist.Normal(mean, precision.rsqrt()), obs=y)

        self.model = model
        self.guide = AutoBernoulliDropout(model, rate=0.2)
        self.loss = TraceDropout_ELBO()
        self.svi = SVI(model, self.guide, pyro.optim.Adam({"lr": 0.01}), self.loss)
        self.guide(X, Y)
        self.new_guide = AutoBernoulliDropout(model, rate=0.2)  # not called yet
        self.normal = AutoNormal(model)  # nor is this one
        self.predict = DropoutPredictive(model, guide=self.guide, num_samples=4)
        self.draws = self.predict.draw(X)

    def state(self) -> dict[str, Any]:
        """Parameters with their gradients, the store, random numbers."""
        found: dict[str, Any] = {}
        modules = {
            "net": self.net,
            "dropout_net": self.dropout_net,
            "module": self.module,
            "guide": self.guide,
            "new_guide": self.new_guide,
            "normal": self.normal,
        }
        for owner, module in modules.items():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                found[f"{owner}.{name}"] = tensor.detach().clone()
                found[f"{owner}.{name}.grad"] = None if tensor.grad is None else tensor.grad.clone()
            for path, layer in module.named_modules():
                found[f"{owner}.{path}.training"] = layer.training
        for name, tensor in pyro.get_param_store().items():
            found[f"store.{name}"] = tensor.detach().clone()
        found["torch"] = torch.get_rng_state()
        found["python"], found["numpy"] = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        found["settings"] = pyro.settings.get()
        return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is not as it was."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b

    names = [*before, *(name for name in after if name not in before)]
    return [n for n in names if n not in before or n not in after or not same(before[n], after[n])]
