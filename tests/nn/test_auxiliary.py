"""Dropout in a guide's own network: what the site is, what rates it starts with, what is refused."""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch

from pyro_dropout import RenyiDropout_ELBO, SemiImplicitDropout_ELBO, TraceDropout_ELBO
from pyro_dropout.masks import BernoulliMask, ConcreteMask
from pyro_dropout.nn import AuxiliaryDropout

X = torch.tensor([[1.0, 0.0, 2.0, 3.0], [0.0, 1.0, 1.0, 0.0]])


def traced(dropout, x=X):
    def guide():
        with pyro.plate("data", len(x)):
            return dropout(x)

    return poutine.trace(guide).get_trace()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_one_mask_for_each_row(mode):
    pyro.set_rng_seed(0)
    dropout = getattr(AuxiliaryDropout(4, rate=torch.tensor([0.5, 0.0, 0.25, 0.75]), sparse=True), mode)()
    site = traced(dropout).nodes["mask"]
    assert site["value"].shape == (2, 4)
    assert site["infer"]["is_auxiliary"]
    assert torch.equal(site["infer"]["relevant"], X != 0)
    means = torch.stack([traced(dropout).nodes["_RETURN"]["value"] for _ in range(2000)])
    error = means.std(0) / 2000**0.5
    assert ((means.mean(0) - X).abs() <= 4 * error).all()
    assert set(means[:, 0, 3].tolist()) == {0.0, 12.0}
    assert set(means[:, 0, 0].tolist()) == {0.0, 2.0}


def test_its_mean_leaves_inputs_as_they_are():
    dropout = AuxiliaryDropout(4, rate=0.3, name="of_items")
    with poutine.condition(data={"of_items": dropout.mask().keep}):
        assert torch.allclose(traced(dropout).nodes["_RETURN"]["value"], X)


@pytest.mark.parametrize("per_unit", [False, True])
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_learned_rates_start_where_they_are_said_to(per_unit, temperature):
    dropout = AuxiliaryDropout(4, rate=0.2, learnable=True, per_unit=per_unit, temperature=temperature)
    mask = dropout.mask()
    assert type(mask) is (BernoulliMask if temperature is None else ConcreteMask)
    assert torch.allclose(mask.rate, torch.full((4 if per_unit else 1,), 0.2))
    assert dict(dropout.named_parameters()).keys() == {"logits"}
    traced(dropout).nodes["_RETURN"]["value"].sum().backward()  # through 1 / keep, and through relaxed masks
    assert (dropout.logits.grad != 0).any()


def test_fixed_rates_are_saved_and_moved_with_the_network():
    dropout = AuxiliaryDropout(4, rate=0.2)
    assert not list(dropout.parameters())
    other = AuxiliaryDropout(4, rate=0.7)
    other.load_state_dict(dropout.state_dict())
    assert torch.equal(other.mask().rate, torch.tensor([0.2]))
    assert other.double().mask().rate.dtype == torch.float64


def test_what_contradicts_itself_is_refused():
    for wrong in ({"per_unit": True}, {"temperature": 0.1}):
        with pytest.raises(ValueError, match="give learnable=True too"):
            AuxiliaryDropout(4, **wrong)
    with pytest.raises(ValueError, match="above 0, where rates that are learned start"):
        AuxiliaryDropout(4, rate=0.0, learnable=True)
    with pytest.raises(ValueError, match="give per_unit=True too"):
        AuxiliaryDropout(4, rate=torch.full((4,), 0.5), learnable=True)


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize(
    "loss",
    [TraceDropout_ELBO(), TraceDropout_ELBO(masks="draw"), RenyiDropout_ELBO(), RenyiDropout_ELBO(masks="draw")],
    ids=lambda loss: f"{type(loss).__name__}-{loss.masks}",
)
def test_losses_of_weights_refuse_it(loss, learnable, by_hand):
    """They would count the entropy of a mask that the model has nothing for."""
    dropout = AuxiliaryDropout(4, learnable=learnable)

    def model(x):
        with pyro.plate("data", len(x)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(eta.unsqueeze(-1), torch.ones(4)).to_event(1), obs=x)

    def guide(x):
        pyro.module("dropout", dropout)
        with pyro.plate("data", len(x)):
            if by_hand:
                z = pyro.sample("mask", dropout.mask(), infer={"is_auxiliary": True})
            h = x * z if by_hand else dropout(x)
            pyro.sample("eta", dist.Normal(h.sum(-1), 1.0))

    with pytest.raises(ValueError, match=r"(is of no weight|multiplied with data).*SemiImplicitDropout_ELBO"):
        loss.loss(model, guide, X)
    assert SemiImplicitDropout_ELBO(0).loss(model, guide, X) > 0
