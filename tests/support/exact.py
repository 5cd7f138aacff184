"""A random network with learned rates whose gradients are known by enumeration of its masks."""

import math

import torch

from models.regression import mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from tests.support import enumeration
from tests.support.scenarios import FixedNoise, assert_same_mean, regression_data

F64 = torch.float64


class Case:
    """A random network with a learnable guide, and its exact gradients by enumeration."""

    def __init__(self, widths=(2, 3, 3), data=4, scale=2.5, copies=1):
        torch.manual_seed(11)
        x, y = regression_data(data, widths[0])
        self.x, self.y = x.repeat(copies, 1), y.repeat(copies)  # copies average an estimate over masks per datum
        self.model = FixedNoise(mlp(widths[0], widths[1:]).double(), size=round(scale * data * copies))
        self.guide = AutoBernoulliDropout(self.model, rate=0.3, learnable=True, per_unit=True)
        self.guide(self.x, self.y)
        parameters = dict(self.guide.named_parameters())
        self.sites = list(self.guide.rates())
        self.locs, self.logits = (
            [parameters[f"{tree}.{site}_unconstrained"] for site in self.sites] for tree in ("locs", "logits")
        )
        self.biases = [parameters[f"rest.{site.replace('weight', 'bias')}_unconstrained"] for site in self.sites]
        for logits in self.logits:
            logits.data += torch.randn_like(logits)
        self.distinct, self.factor = (x, y), scale * copies

    def exact(self, alpha, particles):
        tensors = [*self.locs, *self.logits, *self.biases]
        table = enumeration.log_likelihoods(self.locs, self.biases, self.logits, *self.distinct, self.model.scale)
        loss = self.factor * enumeration.energy(*table, alpha, particles) + enumeration.kl(self.locs, self.logits)
        loss = loss + sum(0.5 * b.square().sum() + 0.5 * b.numel() * math.log(2 * math.pi) for b in self.biases)
        return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, tensors)])

    def check(self, loss, alpha, particles, steps, guide=None):
        value, exact = self.exact(alpha, particles)
        guide = guide or self.guide
        values, draws = [], []
        for _ in range(steps):
            self.guide.zero_grad(set_to_none=True)
            values.append(loss.loss_and_grads(self.model, guide, self.x, self.y))
            draws.append(torch.cat([t.grad.flatten() for t in (*self.locs, *self.logits, *self.biases)]))
        assert_same_mean(torch.tensor(values, dtype=F64), value)
        assert_same_mean(torch.stack(draws), exact)


def loss_for(alpha, particles, **kwargs):
    if alpha == 0:
        return TraceDropout_ELBO(particles, **kwargs)
    return RenyiDropout_ELBO(alpha, particles, **kwargs)
