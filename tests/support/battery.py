"""What every mask, estimator, guide, loss and masked layer must pass, whoever wrote it.

A subclass says what is to be tested, and pytest runs all of its tests::

    class TestMine(EstimatorBattery):
        estimator = Mine()

References are enumerations of all masks, quadratures, closed forms, and networks of plain torch with dense weights.
Each battery's docstring says what a subclass gives; ``tests/test_battery.py`` has the package's own.
"""

import copy
import math
import pickle
from itertools import product

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn

from models.regression import mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    BayesianModule,
    CompiledSVI,
    DropoutPredictive,
    RenyiDropout_ELBO,
    TraceDropout_ELBO,
)
from pyro_dropout.masks import BernoulliMask, DatumMask
from pyro_dropout.nn.slots import filled
from pyro_dropout.training._steps.randomness import KeyedRandomness, random_keys
from pyro_dropout.weights import MaskedWeight
from tests.support import enumeration
from tests.support.exact import Case
from tests.support.scenarios import FixedNoise, assert_same_mean, regression_data

F64 = torch.float64


def copies(value):
    """A deep copy, and what comes back from a pickle."""
    return copy.deepcopy(value), pickle.loads(pickle.dumps(value))


def mlp_of(model):
    """The network in a ``BayesianModule``, with its own values."""
    return model.net._modules["net"]


def assert_compiled_is_eager(make, loss, x, y, steps=4):
    """Traced steps end where eager ones end that draw the same random numbers.

    :param make: a function of nothing that gives model and guide.
    """
    ends = []
    for compiling in (True, False):
        pyro.clear_param_store()
        torch.manual_seed(3)
        model, guide = make()
        args = (model, guide, pyro.optim.Adam({"lr": 0.01}), copy.deepcopy(loss))
        svi = CompiledSVI(*args, backend="eager", progress=False) if compiling else SVI(*args)
        args[3].set_up(model, guide, x, y)
        pyro.set_rng_seed(0)
        losses = []
        for _ in range(steps):
            if compiling:
                losses.append(svi.step(x, y))
            else:
                with KeyedRandomness(random_keys(1)[0]):
                    losses.append(svi.step(x, y))
        ends.append((torch.tensor(losses), [p.detach().clone() for p in guide.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-8)


class MaskBattery:
    """A mask distribution: ``make(**rate_or_logits, units=...)``; ``relaxed`` where entries lie between 0 and 1.

    ``mean(keep)``, the mean of an entry, where it is not ``keep``.
    """

    relaxed = False

    def make(self, **kwargs):
        raise NotImplementedError

    def mean(self, keep):
        return keep

    def test_mean_of_draws(self):
        rate = torch.tensor([0.1, 0.5, 0.8], dtype=F64)
        z = self.make(rate=rate, units=3).expand([100_000])()
        assert z.shape == (100_000, 3)
        assert z.dtype == F64
        assert_same_mean(z, self.mean(1 - rate))

    def test_entries_are_zero_and_one_or_between(self):
        z = self.make(rate=0.5, units=1000)()
        assert bool(((z >= 0) & (z <= 1)).all())
        assert bool(((z == 0) | (z == 1)).all()) != self.relaxed

    def test_entropy_is_that_of_the_binary_mask(self):
        keep = torch.tensor([0.9, 0.5, 0.2], dtype=F64)
        expected = -(keep * keep.log() + (1 - keep) * (1 - keep).log()).sum()
        torch.testing.assert_close(self.make(rate=1 - keep, units=3).entropy(), expected)
        torch.testing.assert_close(self.make(logits=torch.logit(keep), units=3).entropy(), expected)

    def test_densities_add_up_to_one(self):
        mask = self.make(rate=torch.tensor([0.3, 0.6], dtype=F64), units=2)
        if not self.relaxed:
            torch.testing.assert_close(mask.log_prob(enumeration.all_masks(2)).exp().sum(), torch.ones((), dtype=F64))
            return
        y = torch.linspace(-60.0, 60.0, 6001, dtype=F64)  # in logits of z, where nothing is steep
        z = torch.sigmoid(y)
        one = self.make(rate=torch.tensor([0.3], dtype=F64), units=1)
        density = (one.log_prob(z[:, None]).exp() * z * (1 - z)).nan_to_num()
        torch.testing.assert_close(torch.trapezoid(density, y), torch.ones((), dtype=F64), rtol=1e-4, atol=0.0)

    def test_gradients_of_the_density_and_of_the_entropy(self):
        logits = torch.tensor([0.3, -1.2], dtype=F64, requires_grad=True)
        mask = self.make(logits=logits, units=2)
        keep = torch.sigmoid(logits)
        entropy = -(keep * keep.log() + (1 - keep) * (1 - keep).log()).sum()
        found, expected = (torch.autograd.grad(value, logits)[0] for value in (mask.entropy(), entropy))
        torch.testing.assert_close(found, expected)
        z = torch.tensor([0.8, 0.3], dtype=F64) if self.relaxed else torch.tensor([1.0, 0.0], dtype=F64)
        gradient = torch.autograd.grad(mask.log_prob(z), logits)[0]
        steps = 1e-6 * torch.eye(2, dtype=F64)
        for k in range(2):  # central differences
            up, down = (self.make(logits=logits.detach() + s * steps[k], units=2).log_prob(z) for s in (1, -1))
            assert gradient[k].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-6)

    def test_gradients_go_through_relaxed_draws_alone(self):
        logits = torch.tensor([0.3, -1.2], dtype=F64, requires_grad=True)
        mask = self.make(logits=logits, units=2)
        assert mask.learned != self.relaxed
        z = mask.expand([200_000])()
        assert z.requires_grad == self.relaxed
        if self.relaxed:
            found = torch.autograd.grad(z.mean(0).sum(), logits)[0]
            steps = 1e-3 * torch.eye(2, dtype=F64)
            up, down = (
                torch.stack([self.mean(torch.sigmoid(logits.detach() + s * e)) for e in steps]) for s in (1, -1)
            )
            torch.testing.assert_close(found, ((up - down) / 2e-3).diagonal(), rtol=0.02, atol=0.0)

    def test_quantiles_are_those_of_draws(self):
        mask = self.make(rate=torch.tensor([0.3], dtype=F64), units=1)
        draws = mask.expand([100_000])().squeeze(-1)
        for q in (0.1, 0.25, 0.5, 0.9):
            value = mask.icdf(torch.tensor(q, dtype=F64)).squeeze()
            error = 5 * math.sqrt(q * (1 - q) / len(draws))
            assert (draws < value - 1e-12).double().mean() <= q + error
            assert (draws <= value + 1e-12).double().mean() >= q - error

    def test_rates_that_are_none_raise(self):
        for rate in (-0.1, 1.0, 1.5, math.nan):
            with pytest.raises(ValueError, match="probability of dropping"):
                self.make(rate=rate, units=2)

    def test_extreme_logits_stay_finite(self):
        logits = torch.tensor([-40.0, 40.0], requires_grad=True)
        mask = self.make(logits=logits, units=2)
        mask.entropy().backward()
        assert torch.isfinite(logits.grad).all()
        assert torch.isfinite(mask()).all()

    def test_copies_draw_the_same(self):
        mask = self.make(rate=0.4, units=50)
        for other in copies(mask):
            torch.manual_seed(0)
            expected = mask()
            torch.manual_seed(0)
            assert torch.equal(other(), expected)


class EstimatorBattery:
    """An estimator of the gradient of hard masks' rates: ``estimator``."""

    estimator = None

    def test_unbiased_for_any_function(self):
        table = torch.randn(2**4, dtype=F64) * 3 + 10
        logits = torch.tensor([-2.0, -0.5, 0.0, 3.0], dtype=F64, requires_grad=True)
        z, keep = enumeration.all_masks(4), torch.sigmoid(logits)
        exact = torch.autograd.grad((torch.where(z > 0, keep, 1 - keep).prod(1) * table).sum(), logits)[0]

        def f(z):  # multilinear, so that relaxed members have a loss too
            entries = [torch.stack([1 - z[..., k], z[..., k]], -1) for k in range(4)]
            return torch.einsum("...a,...b,...c,...d,abcd->...", *entries, table.reshape(2, 2, 2, 2))

        logits = logits.detach().expand(200_000, -1).clone().requires_grad_()
        mask = BernoulliMask(logits=logits, units=4)
        members, noise = self.estimator.sample(mask, torch.Size([len(logits)]))
        self.estimator.surrogate(f(members), mask, members, noise).backward()
        assert_same_mean(logits.grad, exact)

    def test_members_that_count_have_the_masks_distribution(self):
        keep = torch.tensor([0.2, 0.9], dtype=F64)
        mask = BernoulliMask(logits=torch.logit(keep).requires_grad_(), units=2)
        z, _ = self.estimator.sample(mask, torch.Size([50_000]))
        assert z.shape == (self.estimator.members, 50_000, 2)
        assert sum(self.estimator.weights) == pytest.approx(1.0)
        for member, weight in zip(z, self.estimator.weights, strict=True):
            if weight:
                assert bool(((member == 0) | (member == 1)).all())
                assert_same_mean(member, keep)

    @pytest.mark.parametrize("alpha", [0, 0.5])
    @pytest.mark.parametrize("masks", ["datum", "draw"])
    def test_loss_and_gradient_of_a_network_are_exact(self, alpha, masks):
        case = Case(copies=40 if masks == "datum" else 1)
        particles = 2 if alpha else 1
        kwargs = {"masks": masks, "gradient": self.estimator}
        loss = RenyiDropout_ELBO(alpha, particles, **kwargs) if alpha else TraceDropout_ELBO(particles, **kwargs)
        case.check(loss, alpha, particles, 150 if masks == "datum" else 500)

    def test_loss_is_loss_and_grads(self):
        case, loss = Case(), TraceDropout_ELBO(gradient=self.estimator)
        loss.set_up(case.model, case.guide, case.x, case.y)
        values = []
        for function in (loss.loss, loss.loss_and_grads):
            torch.manual_seed(0)
            values.append(function(case.model, case.guide, case.x, case.y))
        assert values[0] == pytest.approx(values[1], rel=1e-12)

    def test_extreme_logits_stay_finite(self):
        logits = torch.tensor([-40.0, 40.0], requires_grad=True)
        mask = BernoulliMask(logits=logits, units=2)
        z, noise = self.estimator.sample(mask, torch.Size([100]))
        self.estimator.surrogate(z.sum(-1), mask, z, noise).backward()
        assert torch.isfinite(logits.grad).all()

    def test_copies_are_equal(self):
        for other in copies(self.estimator):
            assert other == self.estimator

    def test_compiled_is_eager(self):
        def make():
            case = Case()
            return case.model, case.guide

        case = Case()
        assert_compiled_is_eager(make, TraceDropout_ELBO(gradient=self.estimator), case.x, case.y)


class GuideBattery:
    """A dropout guide: ``make(model)``, with rates of ``rate`` at all sites; ``relaxed`` as of its masks.

    A relaxed guide gives ``relax(keep, u)``: an entry of its mask, in plain torch, from a uniform number u.
    """

    rate = 0.3
    relaxed = False

    def make(self, model):
        raise NotImplementedError

    def relax(self, keep, u):
        raise NotImplementedError

    def fitted(self, hidden=(4,), dtype=F64):
        torch.manual_seed(5)
        x, y = regression_data(8, dtype=dtype)
        model = FixedNoise(mlp(3, hidden).to(dtype), size=8)
        guide = self.make(model)
        guide(x, y)
        return model, guide, x, y

    def test_rates_are_those_it_was_given(self):
        _, guide, _, _ = self.fitted()
        rates = guide.rates()
        assert list(rates) == ["net.0.weight", "net.2.weight"]
        for rate in rates.values():
            torch.testing.assert_close(rate, torch.full_like(rate, self.rate))

    def test_loss_and_gradient_are_exact(self):
        """Linear regression on two inputs: all masks are enumerated, of relaxed ones the uniform numbers integrated."""
        torch.manual_seed(2)
        x, y = regression_data(4, 2)
        model = FixedNoise(nn.Linear(2, 1).double(), size=10)
        guide = self.make(model)
        guide(x, y)
        parameters = dict(guide.named_parameters())
        loc = next(p for name, p in parameters.items() if name.startswith("locs."))
        bias = next(p for name, p in parameters.items() if name.startswith("rest."))
        logits = [p for name, p in parameters.items() if name.startswith("logits.")]
        a = logits[0].expand(2) if logits else torch.logit(torch.full((2,), 1 - self.rate, dtype=F64))
        keep = torch.sigmoid(a)
        if self.relaxed:
            u = (torch.arange(1500, dtype=F64) + 0.5) / 1500
            entries = torch.stack([self.relax(keep[k], u) for k in range(2)])
            z = torch.stack(torch.meshgrid(*entries, indexing="ij"), -1).reshape(-1, 2)
            weights = torch.full((len(z),), 1 / len(z), dtype=F64)
        else:
            z = enumeration.all_masks(2)
            weights = torch.where(z > 0, keep, 1 - keep).prod(1)
        mean = x @ (loc * z / keep).T + bias  # [data, masks]
        log_likelihood = torch.distributions.Normal(mean, model.scale).log_prob(y[:, None])
        kl = enumeration.kl([loc], [a]) + 0.5 * bias.square().sum() + 0.5 * math.log(2 * math.pi)
        exact = kl - 10 / 4 * (log_likelihood @ weights).sum()
        gradient = torch.autograd.grad(exact, list(parameters.values()))
        values, gradients = [], []
        loss = TraceDropout_ELBO(200)
        for _ in range(50):
            guide.zero_grad()
            values.append(loss.loss_and_grads(model, guide, x, y))
            gradients.append(torch.cat([p.grad.flatten() for p in parameters.values()]))
        assert_same_mean(torch.tensor(values, dtype=F64), exact.detach())
        assert_same_mean(torch.stack(gradients), torch.cat([g.flatten() for g in gradient]))

    def test_kl_and_its_gradient_are_exact(self):
        """Without data the loss has no noise: CD eq. 3 with the prior's constants, and the penalty of biases."""
        model, guide, x, y = self.fitted()
        parameters = dict(guide.named_parameters())
        locs = [p for name, p in parameters.items() if name.startswith("locs.")]
        biases = [p for name, p in parameters.items() if name.startswith("rest.")]
        logits = [p for name, p in parameters.items() if name.startswith("logits.")]
        fixed = torch.logit(torch.tensor([1 - self.rate], dtype=F64))
        by_unit = [(logits[i] if logits else fixed).expand(loc.shape[1]) for i, loc in enumerate(locs)]
        expected = enumeration.kl(locs, by_unit)
        expected = expected + sum(0.5 * (b.square() + math.log(2 * math.pi)).sum() for b in biases)
        loss = TraceDropout_ELBO(masks="draw").differentiable_loss(poutine.block(model, hide=["obs"]), guide, x, y)
        torch.testing.assert_close(loss, expected)
        tensors = [*locs, *biases, *logits]
        found, exact = (torch.autograd.grad(value, tensors) for value in (loss, expected))
        torch.testing.assert_close(found, exact)

    def test_loss_is_loss_and_grads(self):
        model, guide, x, y = self.fitted()
        loss = TraceDropout_ELBO()
        loss.set_up(model, guide, x, y)
        values = []
        for function in (loss.loss, loss.loss_and_grads, lambda *args: loss.differentiable_loss(*args).item()):
            torch.manual_seed(0)
            values.append(function(model, guide, x, y))
        assert values == pytest.approx([values[0]] * 3, rel=1e-12)

    def test_masks_and_weights_are_sites(self):
        _, guide, x, y = self.fitted()
        trace = poutine.trace(guide).get_trace(x, y)
        for site in ("net.0.weight", "net.2.weight"):
            assert trace.nodes[f"{site}.mask"]["infer"]["is_auxiliary"]
            assert trace.nodes[site]["value"].mask is trace.nodes[f"{site}.mask"]["value"]

    def test_a_draw_is_a_function(self):
        """The same row twice has the same output under one draw, and another under another."""
        model, guide, x, _ = self.fitted(hidden=(20,))
        functions = DropoutPredictive(model, guide=guide, num_samples=5, seed=0).draw(x)
        twice = torch.cat([x[:4], x[:4]])
        assert functions.moments(twice)["obs"].epistemic.min() > 0
        for function in functions:
            mean = function.moments(twice)["obs"].mean
            torch.testing.assert_close(mean[:4], mean[4:])

    def test_means_start_from_the_networks_own_weights(self):
        model, guide, _, _ = self.fitted()
        parameters = dict(guide.named_parameters())
        for name, value in ((n, v) for n, v in dict(mlp_of(model).named_buffers()).items() if n.endswith("weight")):
            assert torch.equal(parameters[f"locs.net.{name}_unconstrained"], value)

    def test_median_is_the_weight_averaged_network(self):
        _, guide, _, _ = self.fitted()
        median = guide.median()
        parameters = dict(guide.named_parameters())
        for site in ("net.0.weight", "net.2.weight"):
            assert torch.equal(median[site], parameters[f"locs.{site}_unconstrained"])

    def test_copies_draw_the_same(self):
        _, guide, x, y = self.fitted()
        for other in copies(guide):
            draws = []
            for each in (guide, other):
                torch.manual_seed(0)
                draws.append({name: torch.as_tensor(value[...]) for name, value in each(x, y).items()})
            torch.testing.assert_close(draws[0], draws[1])

    @pytest.mark.parametrize("local", [False, True], ids=["global store", "module local"])
    def test_a_state_loads_before_the_first_call(self, local):
        pyro.settings.set(module_local_params=local)
        model, guide, x, y = self.fitted()
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter += 0.1
        pyro.clear_param_store()
        fresh = self.make(model)
        fresh.load_state_dict(guide.state_dict())
        fresh(x, y)
        for name, value in guide.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], value)

    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_everything_has_the_models_dtype(self, dtype):
        _, guide, x, y = self.fitted(dtype=dtype)
        assert {p.dtype for p in guide.parameters()} == {dtype}
        assert {value.dtype for value in guide(x, y).values()} == {dtype}

    def test_compiled_is_eager(self):
        _, _, x, y = self.fitted()

        def make():
            model, guide, _, _ = self.fitted()
            return model, guide

        assert_compiled_is_eager(make, TraceDropout_ELBO(), x, y)


class LossBattery:
    """A loss of dropout posteriors: ``make(**kwargs)``, and ``alpha`` and ``particles`` of the energy that it has.

    A loss with another exact value gives ``exact(case)``, value and gradient.
    """

    alpha, particles = 0.0, 1

    def make(self, **kwargs):
        raise NotImplementedError

    def exact(self, case):
        return case.exact(self.alpha, self.particles)

    @pytest.mark.parametrize("masks", ["datum", "draw"])
    def test_value_and_gradient_are_exact(self, masks):
        """Of a mini-batch that is scaled, with learned rates: all weights, rates and biases."""
        case = Case(copies=40 if masks == "datum" else 1)
        loss = self.make(masks=masks)
        value, exact = self.exact(case)
        tensors = [*case.locs, *case.logits, *case.biases]
        values, gradients = [], []
        for _ in range(150 if masks == "datum" else 500):
            case.guide.zero_grad(set_to_none=True)
            values.append(loss.loss_and_grads(case.model, case.guide, case.x, case.y))
            gradients.append(torch.cat([t.grad.flatten() for t in tensors]))
        assert_same_mean(torch.tensor(values, dtype=F64), value)
        assert_same_mean(torch.stack(gradients), exact)

    def test_all_ways_to_ask_for_the_value_agree(self):
        case, loss = Case(), self.make()
        loss.set_up(case.model, case.guide, case.x, case.y)
        args = (case.model, case.guide, case.x, case.y)
        ways = [loss.loss, loss.loss_and_grads, lambda *args: loss.differentiable_loss(*args).item()]
        ways += [lambda *args: loss.estimate(*args).item(), lambda *args: loss(*args[:2])(*args[2:]).item()]
        loss.refresh()  # before estimates, which are traced
        values = []
        for way in ways:
            torch.manual_seed(0)
            values.append(way(*args))
        assert values == pytest.approx([values[0]] * len(ways), rel=1e-9)

    def test_copies_have_the_same_value(self):
        case, loss = Case(), self.make()
        values = []
        for each in (loss, *copies(loss)):
            each.set_up(case.model, case.guide, case.x, case.y)
            torch.manual_seed(0)
            values.append(each.loss(case.model, case.guide, case.x, case.y))
        assert values == pytest.approx([values[0]] * 3, rel=1e-12)

    def test_a_loss_that_is_not_finite_leaves_parameters_as_they_were(self):
        case = Case()
        before = copy.deepcopy(case.guide.state_dict())
        y = case.y.clone()
        y[0] = math.nan
        with pyro.validation_enabled(False), pytest.raises(ValueError, match="argument 1 has 1 NaN"):
            SVI(case.model, case.guide, pyro.optim.Adam({}), self.make()).step(case.x, y)
        torch.testing.assert_close(case.guide.state_dict(), before)
        assert all(p.grad is None or not p.grad.any() for p in case.guide.parameters())

    def test_compiled_is_eager(self):
        def make():
            case = Case()
            return case.model, case.guide

        case = Case()
        assert_compiled_is_eager(make, self.make(), case.x, case.y)


class LayerBattery:
    """A layer that masks its input units: ``net()`` with the layer and nothing else, ``x(n)`` with n rows of data.

    ``spread`` lays one number per unit over the weight, by default along its second dimension; ``units_dim`` is where
    the input has them; ``per_datum = False`` for layers that take no mask per datum; ``plain =
    False`` where draws need a ``BayesianModule`` to say which dimensions are one datum.
    """

    units_dim = 1
    per_datum = plain = True

    def net(self):
        raise NotImplementedError

    def x(self, n):
        raise NotImplementedError

    def module(self):
        torch.manual_seed(1)
        x = self.x(4)
        return BayesianModule(self.net().to(x.dtype), event_dim=x.dim() - 1), x

    def spread(self, per_unit, loc):
        """``[units]`` to what broadcasts with the weight: its second dimension, by groups of the first."""
        groups = getattr(self.net(), "groups", 1)
        rows = per_unit.reshape(groups, 1, -1).expand(-1, len(loc) // groups, -1).reshape(len(loc), -1)
        return rows.reshape(*rows.shape, *(1,) * (loc.dim() - 2))

    def dense(self, weight, mask=None):
        """``loc · z / keep`` of one mask, in plain torch."""
        mask = weight.mask if mask is None else mask
        return weight.loc * self.spread(mask / weight.keep, weight.loc)

    def masked(self, module, batch=(), mask=None):
        """A masked weight of the layer, with keep 0.6; a unit for each entry of the input."""
        slot = module._slots["weight"]
        loc, count = slot.value.clone().requires_grad_(), self.x(1).shape[self.units_dim]
        keep = torch.tensor([0.6], dtype=loc.dtype)
        mask = torch.bernoulli(keep.expand(*batch, count)) if mask is None else mask(BernoulliMask(0.4, units=count))
        return MaskedWeight(loc, mask, keep, slot.units, "weight")

    def run(self, module, weight, x):
        return poutine.condition(module, data={"weight": weight, "bias": module._slots["bias"].value})(x)

    def test_one_mask_is_the_dense_weight(self):
        """Output, and gradients in loc and input."""
        module, x = self.module()
        x.requires_grad_()
        weight = self.masked(module)
        out = self.run(module, weight, x)
        dense = self.run(module, self.dense(weight), x)
        torch.testing.assert_close(out, dense)
        torch.testing.assert_close(weight.dense(), self.dense(weight))
        cotangent = torch.randn_like(out)
        found, expected = (torch.autograd.grad(o, (weight.loc, x), cotangent) for o in (out, dense))
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("batch", [(3,), (3, 1), (2, 3, 1)])
    @pytest.mark.parametrize("gradient", [True, False])
    def test_draws_at_once_are_draws_one_by_one(self, batch, gradient):
        module, x = self.module()
        weight = self.masked(module, batch)
        with torch.set_grad_enabled(gradient):
            out = self.run(module, weight, x)
            draws = batch if batch[-1] != 1 else batch[:-1]
            assert out.shape[: len(draws) + 1] == (*draws, len(x))
            for k in product(*map(range, draws)):
                mask = weight.mask.reshape(*draws, -1)[k]
                torch.testing.assert_close(out[k], self.run(module, self.dense(weight, mask), x))

    def test_a_plain_layer_takes_draws_too(self):
        """Without a ``BayesianModule`` around it, and without the place of the data."""
        module, x = self.module()
        weight = self.masked(module, (3,))
        net = module._modules["net"]
        with filled(module._slots, {"weight": weight, "bias": module._slots["bias"].value}):
            if not self.plain:
                with pytest.raises(RuntimeError, match="must match the size"):
                    net(x)
                return
            out = net(x)
        for k in range(3):
            torch.testing.assert_close(out[k], self.run(module, self.dense(weight, weight.mask[k]), x))

    def test_a_mask_per_datum_is_a_dense_weight_per_datum(self):
        module, x = self.module()
        weight = self.masked(module, mask=DatumMask)
        if not self.per_datum:
            with pytest.raises(NotImplementedError, match="one mask per datum"):
                self.run(module, weight, x)
            return
        out = self.run(module, weight, x)
        (drawn,) = weight.mask.draws.values()
        assert drawn.shape == (len(x), x.shape[self.units_dim])
        assert len(drawn.unique(dim=0)) > 1
        for n in range(len(x)):
            torch.testing.assert_close(out[n], self.run(module, self.dense(weight, drawn[n]), x[n : n + 1])[0])

    def test_another_number_of_units_is_named(self):
        module, x = self.module()
        weight = self.masked(module)
        with pytest.raises((ValueError, RuntimeError), match=r"input units|channels|shape"):
            self.run(module, weight, torch.cat([x, x], self.units_dim))

    def test_compiled_is_eager(self):
        module, x = self.module()
        y = torch.randn(len(x), module(x)[0].numel(), dtype=x.dtype)

        def make():
            model = AllOutputs(self.module()[0])
            return model, AutoBernoulliDropout(model, rate=0.4)

        assert_compiled_is_eager(make, TraceDropout_ELBO(masks="datum" if self.per_datum else "draw"), x, y)


class AllOutputs(PyroModule):
    """Regression on all outputs of a network together."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y=None):
        out = self.net(x).flatten(1)  # no particles here: data first
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(out, 1.0).to_event(1), obs=y)
