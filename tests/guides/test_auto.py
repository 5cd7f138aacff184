"""Dropout guides: parameters, copies, loading, and one model under every stock Pyro tool."""

import copy
import io
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from torch import nn

from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, BayesianModule, TraceDropout_ELBO, init_to_module
from pyro_dropout.masks import BernoulliMask, ConcreteMask
from pyro_dropout.weights import MaskedWeight
from tests.support.scenarios import PlainPyroBNN, assert_same_mean, regression_data

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


@pytest.fixture
def data():
    return regression_data(20, dtype=torch.float32)


def train(model, guide, x, y, steps=5, loss=None):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss or TraceDropout_ELBO())
    return [svi.step(x, y) for _ in range(steps)]


def same_draw(a, b, x):
    pyro.set_rng_seed(7)
    first = {k: v.dense() if isinstance(v, MaskedWeight) else v for k, v in a(x).items()}
    pyro.set_rng_seed(7)
    second = {k: v.dense() if isinstance(v, MaskedWeight) else v for k, v in b(x).items()}
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# Sites and parameters


def test_a_weight_site_is_a_mask_and_a_point_mass_at_the_masked_weight(data):
    guide = AutoBernoulliDropout(Regression(3, size=20, hidden=(4,)), rate=0.5)
    trace = poutine.trace(guide).get_trace(*data)
    mask, weight = trace.nodes["net.2.weight.mask"], trace.nodes["net.2.weight"]
    assert isinstance(mask["fn"], BernoulliMask)
    assert mask["infer"]["is_auxiliary"]
    assert mask["value"].shape == (4,)
    assert weight["value"].mask is mask["value"]
    loc = guide.median()["net.2.weight"]
    torch.testing.assert_close(weight["value"].dense(), loc * mask["value"] / 0.5)


def test_masks_can_be_conditioned_on_and_replayed(data):
    guide = AutoConcreteDropout(Regression(3, size=20, hidden=(4,)))
    guide(*data)
    z = torch.tensor([1.0, 0.0, 0.5])
    conditioned = poutine.condition(guide, {"net.0.weight.mask": z})
    assert torch.equal(conditioned(*data)["net.0.weight"].mask, z)
    trace = poutine.trace(guide).get_trace(*data)
    replayed = poutine.replay(guide, trace=trace)(*data)
    assert torch.equal(replayed["net.0.weight"].dense(), trace.nodes["net.0.weight"]["value"].dense())


def test_loc_starts_from_the_modules_own_weights_and_so_do_biases(data):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    model = BayesianModule(net)
    guide = AutoConcreteDropout(model)
    guide(data[0])
    for name, value in guide.median().items():
        assert torch.equal(value, net.get_parameter(name)), name


def test_median_is_the_weight_averaged_network(data):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    model = BayesianModule(net)
    guide = AutoBernoulliDropout(model, rate=0.3)
    guide(data[0])
    torch.testing.assert_close(poutine.condition(model, guide.median())(data[0]), net(data[0]))


def test_mean_of_the_draws_is_loc(data):
    guide = AutoBernoulliDropout(BayesianModule(nn.Linear(3, 2)), rate=0.3)
    guide(data[0])
    draws = Predictive(guide, num_samples=4000)(data[0])["weight"].dense().flatten(1)
    assert_same_mean(draws.detach().double(), guide.median()["weight"].flatten().double())


@pytest.mark.parametrize("make", [AutoBernoulliDropout, partial(AutoConcreteDropout, temperature=0.4)])
def test_quantiles_are_those_of_draws(make, data):
    model = Regression(3, size=20, hidden=(2,))
    guide = make(model, rate=0.3, rest=AutoNormal)
    guide(*data)
    levels = [0.1, 0.2, 0.5, 0.9]
    quantiles = guide.quantiles(levels)
    draws = Predictive(guide, num_samples=20_000, parallel=True)(*data)["net.0.weight"]
    draws = draws.dense().flatten(0, -3)
    for q, exact in zip(levels, quantiles["net.0.weight"], strict=True):
        below = (draws <= exact + 1e-6).double().mean(0)
        at_most = (draws < exact - 1e-6).double().mean(0)
        assert bool((below >= q - 0.02).all())
        assert bool((at_most <= q + 0.02).all())
    assert quantiles["precision"].shape[0] == 4


def test_rates_report_the_probability_of_dropping():
    model = Regression(3, size=20, hidden=(4,))
    x = torch.zeros(5, 3)
    for rate, expected in (
        (0.2, {"net.0.weight": 0.2, "net.2.weight": 0.2}),
        ({"net.0.weight": 0.0, "net.2.weight": 0.4}, {"net.0.weight": 0.0, "net.2.weight": 0.4}),
        (lambda name: 0.1 if "0" in name else 0.3, {"net.0.weight": 0.1, "net.2.weight": 0.3}),
    ):
        for guide_class in (AutoBernoulliDropout, AutoConcreteDropout):
            guide = guide_class(model, rate=rate)
            guide(x)
            assert {k: v.shape for k, v in guide.rates().items()} == dict.fromkeys(expected, ())
            assert {k: v.item() for k, v in guide.rates().items()} == pytest.approx(expected)
    per_unit = {"net.0.weight": torch.tensor([0.1, 0.2, 0.3]), "net.2.weight": 0.5}
    guide = AutoConcreteDropout(model, rate=per_unit)
    guide(x)
    torch.testing.assert_close(guide.rates()["net.0.weight"], per_unit["net.0.weight"])


@pytest.mark.parametrize("make", [AutoConcreteDropout, partial(AutoBernoulliDropout, learnable=True)])
def test_learned_rates_move_and_a_rate_of_zero_does_not(make, data):
    model = Regression(3, size=20, hidden=(4,))
    guide = make(model, rate={"net.0.weight": 0.0, "net.2.weight": 0.1})
    train(model, guide, *data, steps=30)
    assert guide.rates()["net.0.weight"] == 0
    assert abs(guide.rates()["net.2.weight"] - 0.1) > 1e-3


def test_relaxed_masks_where_rates_are_learned_and_hard_ones_where_they_are_zero(data):
    guide = AutoConcreteDropout(Regression(3, size=20, hidden=(4,)), rate={"net.0.weight": 0.0, "net.2.weight": 0.1})
    nodes = poutine.trace(guide).get_trace(*data).nodes
    assert isinstance(nodes["net.0.weight.mask"]["fn"], BernoulliMask)
    assert isinstance(nodes["net.2.weight.mask"]["fn"], ConcreteMask)


@pytest.mark.parametrize("make", [AutoBernoulliDropout, AutoConcreteDropout])
@pytest.mark.parametrize(
    ("kind", "shapes", "logits"),
    [({}, [(), ()], [1, 1]), ({"per_unit": True}, [(3,), (4,)], [3, 4]), ({"shared": True}, [(), ()], [1])],
    ids=["per site", "per unit", "shared"],
)
def test_one_logit_per_unit_per_site_or_for_all(make, kind, shapes, logits, data):
    model = Regression(3, size=20, hidden=(4,))
    guide = make(model, rate=0.3, **kind, **({"learnable": True} if make is AutoBernoulliDropout else {}))
    guide(*data)
    assert [p.numel() for name, p in guide.named_parameters() if name.startswith("logits")] == logits
    assert [tuple(rate.shape) for rate in guide.rates().values()] == shapes
    train(model, guide, *data, steps=20)
    rates = list(guide.rates().values())
    assert all(bool((rate != 0.3).all()) for rate in rates)
    assert torch.equal(*rates) if "shared" in kind else rates[0].flatten()[0] != rates[1].flatten()[0]


def test_hard_rates_are_learned_in_plates(data):
    net = BayesianModule(nn.Linear(3, 1))

    def model(x, y):
        with pyro.plate("networks", 2, dim=-2):
            mean = net(x).squeeze(-1)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    for kind, shape in (({}, (2, 1)), ({"per_unit": True}, (2, 1, 3)), ({"shared": True}, (2, 1))):
        guide = AutoBernoulliDropout(model, learnable=True, **kind)
        train(model, guide, *data)
        assert guide.rates()["weight"].shape == shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_unit": True}, "per_unit and shared say how rates are learned: give learnable=True too"),
        ({"shared": True}, "give learnable=True too"),
        ({"learnable": True, "per_unit": True, "shared": True}, "choose one"),
    ],
)
def test_wrong_ways_to_learn(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoBernoulliDropout(Regression(3, size=20), **arguments)


@pytest.mark.parametrize("rate", [{"net.0.weight": 0.1, "net.2.weight": 0.2}, lambda name: torch.full((3,), 0.1)])
def test_rates_that_differ_cannot_be_shared(rate, data):
    guide = AutoBernoulliDropout(Regression(3, size=20, hidden=(3,)), rate, learnable=True, shared=True)
    with pytest.raises(ValueError, match=r"shared=True learns one rate for all sites, but site 'net\.[02]\.weight'"):
        guide(*data)


@pytest.mark.parametrize("make", [AutoConcreteDropout, partial(AutoBernoulliDropout, learnable=True)])
def test_learned_rates_follow_the_data(make):
    """CD section 2: data push a rate to 0; the entropy holds up that of an input that explains nothing."""
    x = torch.randn(2000, 2)
    y = 2 * x[:, 0] + 0.5 * torch.randn(2000)
    model = Regression(2, size=2000, hidden=())
    guide = make(model, rate=0.3, per_unit=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceDropout_ELBO())
    history = []
    for step in range(800):
        index = torch.arange(100) + 100 * (step % 20)
        svi.step(x[index], y[index])
        history.append(guide.rates()["net.0.weight"])
    rates = torch.stack(history[-400:]).mean(0)
    assert rates[0] < 0.01
    assert rates[1] > 0.05


# Copies and loading


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


def test_dtype_moves_with_model_and_guide(data):
    x, y = (t.double() for t in data)
    model = Regression(3, size=20, hidden=(4,))
    guide = AutoConcreteDropout(model)
    guide(*data)
    model.double()
    guide.double()
    pyro.clear_param_store()
    assert guide(x, y)["net.0.weight"].dtype == torch.float64
    losses = train(model, guide, x, y)
    assert guide.median()["net.0.weight"].dtype == torch.float64
    assert losses[0] == losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_moves_with_model_and_guide(data):
    x, y = (t.cuda() for t in data)
    model = Regression(3, size=20, hidden=(4,))
    guide = AutoConcreteDropout(model)
    guide(*data)
    model.cuda()
    guide.cuda()
    pyro.clear_param_store()
    train(model, guide, x, y)
    assert guide.median()["net.0.weight"].is_cuda


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


# One model, every stock tool


@pytest.mark.parametrize("local", [False, True], ids=["global store", "module local"])
def test_one_model_object_under_every_stock_tool(local, data):
    x, y = data
    with pyro.settings.context(module_local_params=local):
        model = Regression(3, size=20, hidden=(4,))
        for make in (AutoBernoulliDropout, AutoConcreteDropout):
            guide = make(model)
            for loss in (TraceDropout_ELBO(), TraceDropout_ELBO(2), Trace_ELBO(), TraceGraph_ELBO()):
                train(model, guide, x, y, loss=loss)
            if make is AutoBernoulliDropout:
                train(model, guide, x, y, loss=TraceMeanField_ELBO())
            elbo = TraceDropout_ELBO()(model, guide)
            elbo(x, y)
            optimiser = torch.optim.Adam(elbo.parameters(), lr=0.02)
            before = guide.median()["net.0.weight"].clone()
            elbo(x, y).backward()
            optimiser.step()
            assert not torch.equal(before, guide.median()["net.0.weight"])
            for parallel in (False, True):
                draws = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(x)
                assert draws["obs"].shape == (6, 20)
                assert isinstance(draws["net.0.weight"], MaskedWeight)

        normal = AutoNormal(model, init_loc_fn=init_to_module(fallback=pyro.infer.autoguide.init_to_median))
        train(model, normal, x, y, loss=Trace_ELBO())
        train(model, normal, x, y, loss=Trace_ELBO(3, vectorize_particles=True))
        train(model, normal, x, y, loss=TraceMeanField_ELBO())
        for parallel in (False, True):
            assert Predictive(model, guide=normal, num_samples=6, parallel=parallel)(x)["obs"].shape == (6, 20)

        mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=4, warmup_steps=4, disable_progbar=True)
        mcmc.run(x, y)
        samples = mcmc.get_samples()
        assert samples["net.0.weight"].shape == (4, 4, 3)
        for parallel in (False, True):
            assert Predictive(model, posterior_samples=samples, parallel=parallel)(x)["obs"].shape == (4, 20)


@pytest.mark.parametrize("parallel", [False, True])
def test_stock_predictive_gives_function_draws(parallel):
    """One mask for all data: equal inputs have equal outputs within a draw; and draws differ."""
    model = Regression(3, size=20, hidden=(8,))
    guide = AutoBernoulliDropout(model, rate=0.5)
    x = torch.ones(4, 3)
    guide(x)
    mean = Predictive(model, guide=guide, num_samples=50, parallel=parallel)(x)["mean"]
    mean = mean.reshape(50, 4)
    torch.testing.assert_close(mean, mean[:, :1].expand(50, 4))
    assert len(set(mean[:, 0].tolist())) > 10


def test_predictive_both_ways_has_the_distribution_of_dense_draws(data):
    model = Regression(3, size=20, hidden=(4,))
    guide = AutoBernoulliDropout(model, rate=0.3)
    x = data[0][:3]
    guide(x)
    point = guide.median()
    z0, z1 = (torch.bernoulli(torch.full((4000, 1, n), 0.7)) / 0.7 for n in (3, 4))
    hidden = torch.relu((x * z0) @ point["net.0.weight"].T + point["net.0.bias"])
    by_hand = ((hidden * z1) @ point["net.2.weight"].T + point["net.2.bias"]).squeeze(-1).double()
    for parallel in (False, True):
        mean = Predictive(model, guide=guide, num_samples=4000, parallel=parallel)(x)["mean"].reshape(4000, 3).double()
        assert_same_mean(mean, by_hand)
        assert_same_mean(mean.square(), by_hand.square())


def test_predictive_keeps_one_loc_for_all_draws(data):
    model = Regression(3, size=20, hidden=(64,))
    guide = AutoBernoulliDropout(model)
    guide(*data)
    for parallel in (False, True):
        weight = Predictive(model, guide=guide, num_samples=100, parallel=parallel)(data[0])["net.0.weight"]
        assert weight.loc.numel() == 64 * 3
        assert weight.shape[0] == 100


@pytest.mark.parametrize("parallel", [False, True])
def test_kept_draws_do_not_change_when_training_goes_on(parallel, data):
    x, y = data
    model = Regression(3, size=20, hidden=(4,))
    guide = AutoBernoulliDropout(model)
    train(model, guide, x, y)
    draws = Predictive(model, guide=guide, num_samples=5, parallel=parallel)(x)
    before = draws["net.0.weight"].dense().clone()
    rates = guide.rates()
    train(model, guide, x, y)
    assert torch.equal(draws["net.0.weight"].dense(), before)
    rates["net.0.weight"].fill_(0.9)
    assert guide.rates()["net.0.weight"].item() == pytest.approx(0.1)


@pytest.mark.parametrize("points", [1, 7, 20, 33])
def test_prediction_on_fewer_or_more_points_than_the_training_set(points, data):
    model = Regression(3, size=20)
    guide = AutoConcreteDropout(model)
    guide(*data)
    for parallel in (False, True):
        draws = Predictive(model, guide=guide, num_samples=3, parallel=parallel)(torch.randn(points, 3))
        assert draws["obs"].shape == (3, points)


@pytest.mark.parametrize("make", [AutoBernoulliDropout, AutoConcreteDropout])
def test_a_users_own_bnn_takes_a_dropout_guide_with_no_edit(make, data):
    x, y = data
    model = PlainPyroBNN()
    guide = make(model)
    for loss in (TraceDropout_ELBO(), TraceDropout_ELBO(3), TraceDropout_ELBO(3, masks="draw"), Trace_ELBO()):
        losses = train(model, guide, x, y, steps=30, loss=loss)
        assert losses[-1] == losses[-1]
    assert sum(losses[-5:]) < 1e4
    for parallel in (False, True):
        draws = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(x)
        assert draws["obs"].shape == (6, 20)
    per_particle = Trace_ELBO(3, vectorize_particles=True)
    train(model, guide, x, y, loss=per_particle)


def test_inside_an_auto_guide_list(data):
    x, y = data
    model = Regression(3, size=20, hidden=(4,))
    guide = AutoGuideList(model)
    guide.append(AutoConcreteDropout(poutine.block(model, expose=["net.0.weight", "net.0.bias"])))
    guide.append(AutoNormal(poutine.block(model, hide=["net.0.weight", "net.0.bias"]), init_loc_fn=init_to_module()))
    for loss in (TraceDropout_ELBO(), TraceDropout_ELBO(2, masks="draw"), Trace_ELBO()):
        assert all(loss == loss for loss in train(model, guide, x, y, loss=loss))
    assert set(guide[0].rates()) == {"net.0.weight"}
    assert guide.median(x, y).keys() == {f"net.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")} | {"precision"}


def test_weights_in_a_plate_have_rates_of_their_own():
    net = BayesianModule(nn.Linear(3, 1), event_dim=1)

    def model(x, y=None):
        with pyro.plate("networks", 4, dim=-2):
            mean = net(x).squeeze(-1)
            with pyro.plate("data", x.shape[-2], dim=-1):
                return pyro.sample("obs", dist.Normal(mean, 0.1), obs=y)

    x = torch.randn(4, 30, 3)
    y = x.sum(-1)
    guide = AutoConcreteDropout(model, rate=0.4)
    losses = train(model, guide, x, y, steps=60)
    assert losses[-1] < losses[0]
    assert guide.rates()["weight"].shape == (4, 1)
    assert len(set(guide.rates()["weight"].flatten().tolist())) == 4


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (1.0, r"'net.0.weight'.*rate is the probability of dropping.*\[0, 1\).*found"),
        ("0.1", r"'net.0.weight': rate '0.1' is not usable"),
        (lambda name: None, r"'net.0.weight': rate None is not usable"),
        (-0.1, r"'net.0.weight'.*\[0, 1\)"),
        (torch.full((7,), 0.1), r"'net.0.weight'.*a mask over 3 units takes one rate or 3.*\(7,\)"),
        ({"net.0.weight": 0.1}, r"missing \['net.2.weight'\]"),
        ({"net.0.weight": 0.1, "net.2.weight": 0.1, "nat": 0.2}, r"no such site \['nat'\]"),
    ],
)
@pytest.mark.parametrize("guide_class", [AutoBernoulliDropout, AutoConcreteDropout])
def test_wrong_rates_name_the_site(rate, message, guide_class, data):
    guide = guide_class(Regression(3, size=20, hidden=(4,)), rate=rate)
    for _ in range(2):  # the second call does not run with half a guide
        with pytest.raises(ValueError, match=message):
            guide(*data)


def test_wrong_temperature():
    with pytest.raises(ValueError, match="temperature must be positive, but found -1"):
        AutoConcreteDropout(Regression(3, size=20), temperature=-1)


def test_a_rate_that_starts_at_zero_for_some_units_cannot_be_learned(data):
    rate = {"net.0.weight": torch.tensor([0.0, 0.1, 0.1]), "net.2.weight": 0.1}
    guide = AutoConcreteDropout(Regression(3, size=20), rate=rate)
    with pytest.raises(ValueError, match=r"'net.0.weight': a learned rate cannot start at 0 for some units"):
        guide(*data)


def test_no_weight_sites_raises():
    guide = AutoBernoulliDropout(lambda: pyro.sample("w", dist.Normal(0.0, 1.0)))
    with pytest.raises(ValueError, match=r"found no weight site.*found w: declare weights with .to_event\(2\)"):
        guide()


def test_weights_inside_the_data_plate_raise():
    net = BayesianModule(nn.Linear(3, 1))

    def model(x):
        with pyro.plate("data", len(x)):
            net(x)

    with pytest.raises(ValueError, match=r"'weight' is inside plate 'data' at dim -1.*outside.*dim=-2"):
        AutoBernoulliDropout(model)(torch.zeros(5, 3))


def test_constrained_matrices_raise():
    guide = AutoBernoulliDropout(
        lambda: pyro.sample("L", dist.LKJCholesky(3, torch.tensor(1.0)).expand([2]).to_event(1))
    )
    with pytest.raises(ValueError, match=r"'L' has support.*real support.*poutine.block"):
        guide()


def test_rest_may_be_any_guide(data):
    model = Regression(3, size=20, hidden=(4,))
    for rest in (AutoDelta, AutoNormal, partial(AutoNormal, init_scale=0.01)):
        guide = AutoConcreteDropout(model, rest=rest)
        assert "precision" in guide(*data)
    without = BayesianModule(nn.Linear(3, 1, bias=False))
    guide = AutoConcreteDropout(without)
    assert set(guide(data[0])) == {"weight"}
