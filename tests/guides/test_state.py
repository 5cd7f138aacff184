"""States of guides: loading before the first call, copies, pickles, moves, the parameter store."""

import copy
import io
import pickle
from functools import partial

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout
from pyro_dropout.weights import MaskedWeight
from tests.support.fits import train

GUIDES = [
    partial(AutoBernoulliDropout, rate=0.2),
    partial(AutoConcreteDropout, rate=0.2),
    partial(AutoConcreteDropout, rate=0.2, per_unit=True),
    partial(AutoConcreteDropout, rate={"net.0.weight": 0.0, "net.2.weight": 0.3}),
    partial(AutoBernoulliDropout, rate=0.2, rest=AutoNormal),
    partial(AutoBernoulliDropout, rate=0.2, learnable=True, per_unit=True),
    partial(AutoBernoulliDropout, rate=0.2, learnable=True, shared=True),
]
IDS = ["bernoulli", "concrete", "per unit", "one deterministic", "normal rest", "learned", "shared"]


def same_draw(a, b, x):
    pyro.set_rng_seed(7)
    first = {k: v.dense() if isinstance(v, MaskedWeight) else v for k, v in a(x).items()}
    pyro.set_rng_seed(7)
    second = {k: v.dense() if isinstance(v, MaskedWeight) else v for k, v in b(x).items()}
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("local", [False, True], ids=["global store", "module local"])
@pytest.mark.parametrize("make", GUIDES, ids=IDS)
def test_state_dict_loads_into_a_fresh_guide(make, local, data):
    x, y = data
    pyro.settings.set(module_local_params=local)
    guide = make(Regression(3, size=20, hidden=(4,)))
    train(guide.model, guide, x, y)
    state = copy.deepcopy(guide.state_dict())
    pyro.clear_param_store()
    fresh = make(Regression(3, size=20, hidden=(4,)))
    assert not fresh.load_state_dict(state).missing_keys
    assert fresh.rates().keys() == guide.rates().keys()  # before the first call
    before = {id(p) for p in fresh.parameters()}
    fresh(x)  # a prediction, without y, may be the first call
    assert same_draw(guide, fresh, x)
    assert {id(p) for p in fresh.parameters()} == before  # an optimiser made before still holds them
    again = make(Regression(3, size=20, hidden=(4,)))
    again(x, y)
    again.load_state_dict(state)  # after the first call, as for any module
    assert same_draw(guide, again, x)


@pytest.mark.parametrize("make", GUIDES, ids=IDS)
def test_a_parameter_store_that_was_loaded_is_what_a_new_guide_has(make, data, tmp_path):
    """As a new AutoNormal has it; after another guide in the same store a new one begins anew."""
    x, y = data
    model = Regression(3, size=20, hidden=(4,))
    guide = make(model)
    train(model, guide, x, y)
    pyro.get_param_store().save(tmp_path / "store")
    expected, rates = guide.median(x), guide.rates()
    begun = make(model)
    begun(x, y)
    assert not torch.equal(begun.median(x)["net.0.weight"], expected["net.0.weight"])
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    fresh = make(model)
    fresh(x, y)
    for name, value in fresh.median(x).items():
        assert torch.equal(value, expected[name]), name
    assert {n: r.tolist() for n, r in fresh.rates().items()} == {n: r.tolist() for n, r in rates.items()}
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    with pytest.raises(ValueError, match=r"was loaded with '.*weight' of shape \(4, 3\), but this model's is \(5, 3\)"):
        make(Regression(3, size=20, hidden=(5,)))(x, y)


def test_a_state_of_another_model_raises(data):
    guide = AutoConcreteDropout(Regression(3, size=20, hidden=(4,)))
    guide(*data)
    fresh = AutoConcreteDropout(Regression(3, size=20, hidden=(5,)))
    fresh.load_state_dict(guide.state_dict())
    with pytest.raises(ValueError, match=r"loaded has locs.net.0.weight\S* of shape \(4, 3\), but .* needs \(5, 3\)"):
        fresh(*data)
    with pytest.raises(ValueError, match=r"was loaded"):  # again
        fresh(*data)
    fresh = AutoConcreteDropout(Regression(3, size=20, hidden=(4, 4)))
    fresh.load_state_dict(guide.state_dict())
    with pytest.raises(ValueError, match=r"not of this model.*missing \['locs.net.4.weight"):
        fresh(*data)


def through_torch_save(guide):
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g)), through_torch_save])
@pytest.mark.parametrize("make", GUIDES, ids=IDS)
def test_copies_draw_the_same_and_leave_the_original_as_it_was(duplicate, make, data):
    pyro.settings.set(module_local_params=True)  # the global store would hold one set of values for both
    model = Regression(3, size=20, hidden=(4,))
    guide = make(model)
    train(model, guide, *data)
    twin = duplicate(guide)
    assert same_draw(guide, twin, data[0])
    assert twin.rates().keys() == guide.rates().keys()
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(next(twin.parameters()), next(guide.parameters()))


def test_a_copy_made_before_the_first_call_works(data):
    guide = AutoConcreteDropout(Regression(3, size=20), rate=lambda name: 0.2)
    twin = copy.deepcopy(guide)
    assert twin(*data).keys() == guide(*data).keys()
    model = Regression(3, size=20)
    model_twin, twin = copy.deepcopy((model, AutoConcreteDropout(model)))
    with torch.no_grad():
        model_twin.net._modules["net"][0].weight.fill_(0.25)
    assert twin(*data)["net.0.weight"].loc.unique().tolist() == [0.25]  # of the copied model


def test_unpickled_before_the_first_call_raises_when_called(data):
    twin = pickle.loads(pickle.dumps(AutoConcreteDropout(Regression(3, size=20))))
    with pytest.raises(RuntimeError, match=r"unpickled before its first call and has no model.*load_state_dict"):
        twin(*data)


@pytest.mark.parametrize(
    "move",
    [
        "double",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
)
def test_dtype_and_device_move_with_model_and_guide(move, data):
    x, y = (getattr(t, move)() for t in data)
    model = Regression(3, size=20, hidden=(4,))
    guide = AutoConcreteDropout(model)
    guide(*data)
    for module in (model, guide):
        getattr(module, move)()
    pyro.clear_param_store()
    drawn = guide(x, y)["net.0.weight"]
    losses = train(model, guide, x, y)
    assert losses[0] == losses[0]
    for weight in (drawn, guide.median()["net.0.weight"]):
        assert (weight.dtype, weight.device) == (x.dtype, x.device)


def test_the_param_store_saves_and_loads(tmp_path, data):
    model = Regression(3, size=20, hidden=(4,))
    guide = AutoConcreteDropout(model)
    train(model, guide, *data)
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    fresh = AutoConcreteDropout(Regression(3, size=20, hidden=(4,)))
    fresh(*data)
    assert same_draw(guide, fresh, data[0])
