"""What every layer with masked output units must pass, whoever wrote it: as ``battery``, whose helpers it shares."""

from itertools import product

import pyro.poutine as poutine
import pytest
import torch

from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, BayesianModule, TraceDropout_ELBO
from pyro_dropout.masks import BernoulliMask, DatumMask
from pyro_dropout.nn.slots import filled
from pyro_dropout.weights import MaskedWeight
from tests.support.battery import F64, AllOutputs, assert_compiled_is_eager


class OutputBattery:
    """A layer whose output units are masked: ``net()`` with the layer and nothing else, ``x(n)`` with n rows of data.

    References are the plain layer's outputs, multiplied by ``z / keep``. ``units_dim`` is where outputs have units;
    ``both = False`` for layers that have no input units beside; ``plain = False`` where draws need a
    ``BayesianModule``.
    """

    units_dim = 1
    both = plain = True

    def net(self):
        raise NotImplementedError

    def x(self, n):
        raise NotImplementedError

    def module(self):
        torch.manual_seed(1)
        net, x = self.net().double().eval(), self.x(4)
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                if tensor.is_floating_point() and (tensor == 0).all() | (tensor == 1).all():
                    tensor.copy_(torch.rand_like(tensor) + 0.5)  # running statistics, scales and shifts
        return BayesianModule(net, event_dim=x.dim() - 1), x

    def width(self, module):
        return module._modules["net"](self.x(1)).shape[self.units_dim]

    def masked(self, module, batch=(), mask=None, together=1):
        """Weight and bias of the layer with one mask of its output units, of keep 0.6."""
        keep, values = torch.tensor([0.6], dtype=F64), {}
        count = self.width(module) // together
        mask = torch.bernoulli(keep.expand(*batch, count)) if mask is None else mask(BernoulliMask(0.4, units=count))
        for name, slot in module._slots.items():
            loc, units = slot.value.clone().requires_grad_(), slot.outputs._replace(together=together)
            values[name] = MaskedWeight(loc, mask, keep, units, name, mask_name="output")
        return values

    def run(self, module, values, x):
        return poutine.condition(module, data=values)(x)

    def expected(self, module, values, x, z):
        """What plain torch returns, masked; ``z`` broadcasts against ``[rows, units]``."""
        out = torch.func.functional_call(module._modules["net"], {n: v.loc for n, v in values.items()}, (x,))
        where = [1] * out.dim()
        where[0], where[self.units_dim] = len(z), z.shape[-1]
        return out * (z / 0.6).reshape(where)

    def test_one_mask_multiplies_the_outputs(self):
        """Output, and gradients in weight, bias and input; the dense weights give the same."""
        module, x = self.module()
        values = self.masked(module)
        tensors = [value.loc for value in values.values()]
        if x.is_floating_point():
            tensors.append(x.requires_grad_())
        out = self.run(module, values, x)
        expected = self.expected(module, values, x, values["weight"].mask[None])
        torch.testing.assert_close(out, expected)
        dense = {name: value.dense() for name, value in values.items()}
        torch.testing.assert_close(torch.func.functional_call(module._modules["net"], dense, (x,)), expected)
        cotangent = torch.randn_like(out)
        found, exact = (torch.autograd.grad(o, tensors, cotangent) for o in (out, expected))
        torch.testing.assert_close(found, exact)

    @pytest.mark.parametrize("batch", [(3,), (3, 1), (2, 3, 1)])
    @pytest.mark.parametrize("gradient", [True, False])
    def test_draws_at_once_are_draws_one_by_one(self, batch, gradient):
        module, x = self.module()
        values = self.masked(module, batch)
        with torch.set_grad_enabled(gradient):
            out = self.run(module, values, x)
            draws = batch if batch[-1] != 1 else batch[:-1]
            assert out.shape[: len(draws) + 1] == (*draws, len(x))
            for k in product(*map(range, draws)):
                z = values["weight"].mask.reshape(*draws, 1, -1)[k]
                torch.testing.assert_close(out[k], self.expected(module, values, x, z))

    def test_networks_at_once_are_networks_one_by_one(self):
        """Each with its own weights and masks, ``[R, 1]`` of a plate at -2."""
        module, x = self.module()
        values = self.masked(module, (3, 1))
        values = {n: v.replace(loc=torch.randn(3, 1, *v.loc.shape, dtype=F64)) for n, v in values.items()}
        out = self.run(module, values, x)
        for k in range(3):
            one = {name: value[k, 0] for name, value in values.items()}
            torch.testing.assert_close(out[k], self.expected(module, one, x, one["weight"].mask[None]))

    def test_a_plain_layer_takes_draws_too(self):
        module, x = self.module()
        values = self.masked(module, (3,))
        with filled(module._slots, values):
            if not self.plain:
                with pytest.raises(RuntimeError, match="must match the size"):
                    module._modules["net"](x)
                return
            out = module._modules["net"](x)
        for k in range(3):
            torch.testing.assert_close(out[k], self.expected(module, values, x, values["weight"].mask[k][None]))

    @pytest.mark.parametrize("draws", [(), (3, 1)])
    def test_a_mask_per_datum(self, draws):
        module, x = self.module()
        values = self.masked(module, mask=lambda mask: DatumMask(mask.expand(draws)))
        out = self.run(module, values, x)
        (drawn,) = values["weight"].mask.draws.values()
        assert drawn.shape == (*draws[:1], len(x), self.width(module))
        assert len(drawn.flatten(0, -2).unique(dim=0)) > 1
        for k in product(*map(range, draws[:1])):
            torch.testing.assert_close(out[k], self.expected(module, values, x, drawn[k]))

    def test_one_unit_for_all_outputs(self):
        module, x = self.module()
        values = self.masked(module, mask=DatumMask, together=self.width(module))
        out = self.run(module, values, x)
        (drawn,) = values["weight"].mask.draws.values()
        assert drawn.shape == (len(x), 1)
        torch.testing.assert_close(out, self.expected(module, values, x, drawn))

    def test_units_in_groups(self):
        module, x = self.module()
        if self.width(module) % 2:
            with pytest.raises(ValueError, match="cannot be switched 2 at a time"):
                self.masked(module, together=2)
            return
        values = self.masked(module, (3, 1), together=2)
        out = self.run(module, values, x)
        for k in range(3):
            z = values["weight"].mask[k].repeat_interleave(2, -1)
            torch.testing.assert_close(out[k], self.expected(module, values, x, z))
        dense = {name: value[0, 0].dense() for name, value in values.items()}
        torch.testing.assert_close(torch.func.functional_call(module._modules["net"], dense, (x,)), out[0])

    @pytest.mark.parametrize("draws", [(), (3, 1)])
    def test_input_and_output_units(self, draws):
        module, x = self.module()
        slot = module._slots["weight"]
        if not self.both:
            return
        values = self.masked(module, draws)
        count = slot.units.count(slot.value.shape)
        z = torch.bernoulli(torch.full((*draws, count), 0.7, dtype=F64))
        other = values["weight"].switches[0]
        keep = torch.tensor([0.7], dtype=F64)
        values["weight"] = MaskedWeight(slot.value, z, keep, slot.units, "weight", other=other)
        out = self.run(module, values, x)
        for k in product(*map(range, draws[:1])):
            inputs = x * (z[k].reshape(-1) / 0.7).reshape([-1 if d == self.input_dim(x) else 1 for d in range(x.dim())])
            expected = self.expected(module, values, inputs, other.mask[k].reshape(1, -1))
            torch.testing.assert_close(out[k], expected)
        one = {n: v[(0, 0)] if draws else v for n, v in values.items()}
        dense = {name: value.dense() for name, value in one.items()}
        torch.testing.assert_close(
            torch.func.functional_call(module._modules["net"], dense, (x,)), out[0] if draws else out
        )

    def input_dim(self, x):
        return self.units_dim % x.dim()

    @pytest.mark.parametrize("masks", ["datum", "draw"])
    def test_compiled_is_eager(self, masks):
        module, x = self.module()
        y = torch.randn(len(x), module(x)[0].numel(), dtype=F64)

        def make():
            model = AllOutputs(self.module()[0])
            return model, AutoBernoulliDropout(model, rate=0.4, units=lambda site: "output")

        assert_compiled_is_eager(make, TraceDropout_ELBO(masks=masks), x, y)

    def test_kl_and_its_gradient_are_exact(self):
        """Of weight and bias together, to the two values that an entry takes; the entropy once."""
        module, x = self.module()
        model = AllOutputs(module)
        guide = AutoConcreteDropout(model, rate=0.3, per_unit=True, units=lambda site: "output")
        y = torch.randn(len(x), module(x)[0].numel(), dtype=F64)
        guide(x, y)
        parameters = dict(guide.named_parameters())
        (logits,) = (p for name, p in parameters.items() if name.startswith("logits."))
        with torch.no_grad():
            logits.copy_(torch.linspace(-1.0, 1.0, len(logits)))
        locs = {n.split(".")[-1][: -len("_unconstrained")]: p for n, p in parameters.items() if n.startswith("locs.")}
        assert locs.keys() == module._slots.keys()
        keep = torch.sigmoid(logits)
        expected = -(torch.distributions.Bernoulli(keep).entropy()).sum()
        for name, loc in locs.items():
            for k, of_unit in enumerate(self.by_unit(name, loc)):
                for value, probability in ((of_unit / keep[k], keep[k]), (torch.zeros_like(of_unit), 1 - keep[k])):
                    expected = expected - probability * torch.distributions.Normal(0.0, 1.0).log_prob(value).sum()
        loss = TraceDropout_ELBO(masks="draw").differentiable_loss(poutine.block(model, hide=["obs"]), guide, x, y)
        torch.testing.assert_close(loss, expected)
        tensors = [*locs.values(), logits]
        found, exact = (torch.autograd.grad(value, tensors) for value in (loss, expected))
        torch.testing.assert_close(found, exact)

    def by_unit(self, name, loc):
        """The entries of weight or bias that belong to each output."""
        return loc.unbind(0)
