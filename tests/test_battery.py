"""The package's own masks, estimators, guides, losses and layers, through the battery that a user's own take too."""

from dataclasses import dataclass

import torch
from torch import nn

from pyro_dropout import (
    ARM,
    AutoBernoulliDropout,
    AutoConcreteDropout,
    DisARM,
    GradientEstimator,
    Reinforce,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from pyro_dropout.masks import BernoulliMask, ConcreteMask
from tests.support.battery import EstimatorBattery, GuideBattery, LayerBattery, LossBattery, MaskBattery
from tests.support.output_battery import OutputBattery

F64 = torch.float64


class TestBernoulliMask(MaskBattery):
    def make(self, **kwargs):
        return BernoulliMask(**kwargs)


class TestConcreteMask(MaskBattery):
    relaxed = True

    def make(self, **kwargs):
        return ConcreteMask(temperature=0.4, **kwargs)

    def mean(self, keep):
        """CD eq. 5, integrated over its uniform number."""
        u = (torch.arange(100_000, dtype=F64) + 0.5) / 100_000
        return torch.sigmoid((torch.logit(keep)[:, None] + torch.logit(u)) / 0.4).mean(1)


class TestARM(EstimatorBattery):
    estimator = ARM()


class TestDisARM(EstimatorBattery):
    estimator = DisARM()


class TestReinforce(EstimatorBattery):
    estimator = Reinforce(3)


@dataclass(frozen=True)
class Score(GradientEstimator):
    """A user's own: the score function with half of the other member's loss for a baseline."""

    members = 2

    def sample(self, mask, shape):
        return mask.expand(shape)((2,)), None

    def surrogate(self, losses, mask, z, noise):
        return ((losses - 0.5 * losses.flip(0)).detach() * mask.log_prob(z)).mean(0).sum()


class TestAUsersOwnEstimator(EstimatorBattery):
    estimator = Score()


class TestFixedRates(GuideBattery):
    def make(self, model):
        return AutoBernoulliDropout(model, rate=0.3)


class TestLearnedRates(GuideBattery):
    def make(self, model):
        return AutoBernoulliDropout(model, rate=0.3, learnable=True)


class TestLearnedRatesByUnit(GuideBattery):
    def make(self, model):
        return AutoBernoulliDropout(model, rate=0.3, learnable=True, per_unit=True)


class TestRelaxedMasks(GuideBattery):
    relaxed = True

    def make(self, model):
        return AutoConcreteDropout(model, rate=0.3, temperature=0.4)

    def relax(self, keep, u):
        return torch.sigmoid((torch.logit(keep) + torch.logit(u)) / 0.4)


class TestTheELBO(LossBattery):
    def make(self, **kwargs):
        return TraceDropout_ELBO(**kwargs)


class TestTheELBOByParticles(LossBattery):
    def make(self, **kwargs):
        return TraceDropout_ELBO(2, **kwargs)


class TestAlphaOfOneHalf(LossBattery):
    alpha, particles = 0.5, 2

    def make(self, **kwargs):
        return RenyiDropout_ELBO(0.5, 2, **kwargs)


class TestAlphaOfMinusOneInTurn(LossBattery):
    alpha, particles = -1.0, 2

    def make(self, **kwargs):
        return RenyiDropout_ELBO(-1.0, 2, vectorize_particles=False, **kwargs)


class TestLinear(LayerBattery):
    units_dim = -1

    def net(self):
        return nn.Linear(5, 3)

    def x(self, n):
        return torch.randn(n, 5, dtype=F64)


class TestLinearOverTime(LayerBattery):
    units_dim = -1
    plain = False  # time or plates? the layer cannot know

    def net(self):
        return nn.Linear(5, 3)

    def x(self, n):
        return torch.randn(n, 6, 5, dtype=F64)


class TestConv1d(LayerBattery):
    def net(self):
        return nn.Conv1d(3, 4, 2, stride=2)

    def x(self, n):
        return torch.randn(n, 3, 7, dtype=F64)


class TestConv2d(LayerBattery):
    def net(self):
        return nn.Conv2d(3, 4, 3, padding=1)

    def x(self, n):
        return torch.randn(n, 3, 5, 6, dtype=F64)


class TestGroupedConv2d(LayerBattery):
    def net(self):
        return nn.Conv2d(4, 6, 3, groups=2)

    def x(self, n):
        return torch.randn(n, 4, 5, 6, dtype=F64)


class TestConv3d(LayerBattery):
    def net(self):
        return nn.Conv3d(2, 3, 2)

    def x(self, n):
        return torch.randn(n, 2, 3, 4, 3, dtype=F64)


class TestConvTranspose2d(LayerBattery):
    def spread(self, per_unit, loc):  # input channels come first
        return per_unit.reshape(-1, *(1,) * (loc.dim() - 1))

    def net(self):
        return nn.ConvTranspose2d(3, 4, 3, stride=2)

    def x(self, n):
        return torch.randn(n, 3, 5, 4, dtype=F64)


class TestGroupedConvTranspose1d(LayerBattery):
    def spread(self, per_unit, loc):
        return per_unit.reshape(-1, *(1,) * (loc.dim() - 1))

    def net(self):
        return nn.ConvTranspose1d(4, 2, 3, groups=2)

    def x(self, n):
        return torch.randn(n, 4, 5, dtype=F64)


class TestLinearOutputs(OutputBattery):
    units_dim = -1

    def net(self):
        return nn.Linear(5, 4)

    def x(self, n):
        return torch.randn(n, 5, dtype=F64)


class TestLinearOutputsOverTime(TestLinearOutputs):
    plain = False  # time or plates? the layer cannot know

    def x(self, n):
        return torch.randn(n, 6, 5, dtype=F64)


class TestConv1dOutputs(OutputBattery):
    def net(self):
        return nn.Conv1d(3, 5, 2, stride=2)

    def x(self, n):
        return torch.randn(n, 3, 7, dtype=F64)


class TestConv2dOutputs(OutputBattery):
    def net(self):
        return nn.Conv2d(3, 4, 3, padding=1)

    def x(self, n):
        return torch.randn(n, 3, 5, 6, dtype=F64)


class TestGroupedConv2dOutputs(OutputBattery):
    def net(self):
        return nn.Conv2d(4, 6, 3, groups=2)

    def x(self, n):
        return torch.randn(n, 4, 5, 6, dtype=F64)


class TestConv3dOutputs(OutputBattery):
    def net(self):
        return nn.Conv3d(2, 3, 2)

    def x(self, n):
        return torch.randn(n, 2, 3, 4, 3, dtype=F64)


class TestConvTranspose2dOutputs(OutputBattery):
    def net(self):
        return nn.ConvTranspose2d(3, 4, 3, stride=2)

    def x(self, n):
        return torch.randn(n, 3, 5, 4, dtype=F64)

    def by_unit(self, name, loc):
        return loc.unbind(0 if name == "bias" else 1)


class TestGroupedConvTranspose1dOutputs(OutputBattery):
    def net(self):
        return nn.ConvTranspose1d(4, 6, 3, groups=2)

    def x(self, n):
        return torch.randn(n, 4, 5, dtype=F64)

    def by_unit(self, name, loc):
        if name == "bias":
            return loc.unbind(0)
        return [loc[2 * group : 2 * group + 2, k] for group in range(2) for k in range(3)]


class TestEmbeddingOutputs(OutputBattery):
    units_dim = -1
    both = plain = False

    def net(self):
        return nn.Embedding(7, 4)

    def x(self, n):
        return torch.randint(7, (n, 3))

    def by_unit(self, name, loc):
        return loc.unbind(1)


class TestBatchNorm2dOutputs(OutputBattery):
    both = False

    def net(self):
        return nn.BatchNorm2d(4)

    def x(self, n):
        return torch.randn(n, 4, 3, 2, dtype=F64)


class TestBatchNorm1dOutputs(OutputBattery):
    both = False

    def net(self):
        return nn.BatchNorm1d(4)

    def x(self, n):
        return torch.randn(n, 4, dtype=F64)


class TestLayerNormOutputs(OutputBattery):
    units_dim = -1
    both = plain = False

    def net(self):
        return nn.LayerNorm(4)

    def x(self, n):
        return torch.randn(n, 3, 4, dtype=F64)


class TestGroupNormOutputs(OutputBattery):
    both = False

    def net(self):
        return nn.GroupNorm(2, 6)

    def x(self, n):
        return torch.randn(n, 6, 3, 2, dtype=F64)
