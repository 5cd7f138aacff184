"""What is found of a model is found once for arguments of a kind, and anew where the model is another."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_dropout import AutoBernoulliDropout, BayesianModule, DropoutPredictive


class Model(PyroModule):
    """Counts its runs; ``outputs`` of the mean are given as a site."""

    def __init__(self):
        super().__init__()
        self.net = BayesianModule(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6)))
        self.outputs, self.runs, self.last_dim = 4, 0, True

    def forward(self, x, y=None, scale=1.0):
        self.runs += 1
        out = self.net(x)[..., : self.outputs]
        with pyro.plate("data", len(x)):
            pyro.deterministic("out", out if self.last_dim else out.sum(-1), event_dim=int(self.last_dim))
            return pyro.sample("obs", dist.Normal(out.sum(-1), scale), obs=y)


@pytest.fixture
def setting():
    model = Model()
    guide, x = AutoBernoulliDropout(model, rate=0.4), torch.randn(7, 3)
    guide(x, x[:, 0])
    return model, DropoutPredictive(model, guide=guide, num_samples=20, return_sites=["out"], seed=0), x


def runs_of(model, call):
    before = model.runs
    result = call()
    return model.runs - before, result


def test_the_second_call_runs_the_model_once(setting):
    model, predict, x = setting
    first, one = runs_of(model, lambda: predict(x)["out"])
    second, other = runs_of(model, lambda: predict(x)["out"])
    assert first > second == 1
    assert torch.equal(one, other)
    kept = predict.draw(x)
    functions = [kept[k] for k in range(3)]
    runs_of(model, lambda: functions[0](x))
    for k, function in enumerate(functions):
        number, out = runs_of(model, lambda function=function: function(x)["out"])
        assert number == 1
        torch.testing.assert_close(out[0], one[k])
    number, moments = runs_of(model, lambda: predict.moments(x)["out"])
    assert number > 1  # another reading
    torch.testing.assert_close(moments.mean, one.mean(0))


@pytest.mark.parametrize(
    "change",
    [
        lambda model, predict: setattr(model, "outputs", 2),
        lambda model, predict: setattr(model, "last_dim", False),
        lambda model, predict: setattr(predict, "return_sites", ["obs"]),
        lambda model, predict: setattr(predict, "num_samples", 9),
        lambda model, predict: setattr(predict, "max_memory", 10**4),
    ],
)
def test_a_model_that_has_changed_is_looked_at_again(setting, change):
    model, predict, x = setting
    predict(x)
    change(model, predict)
    fresh = DropoutPredictive(
        model,
        guide=predict.guide,
        num_samples=predict.num_samples,
        return_sites=predict.return_sites,
        max_memory=predict.max_memory,
        seed=0,
    )
    found, expected = predict(x), fresh(x)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def test_other_arguments_are_of_another_kind(setting):
    model, predict, x = setting
    predict(x)
    for args, kwargs in (((x[:3],), {}), ((x.double().float(), None), {}), ((x,), {"scale": 2.0})):
        number, found = runs_of(model, lambda args=args, kwargs=kwargs: predict(*args, **kwargs)["out"])
        assert number > 1
        assert found.shape == (20, len(args[0]), 4)


def test_arguments_without_a_hash_are_looked_at_each_time():
    class Lists(Model):
        def forward(self, x, y=None, scales=()):
            return super().forward(x, y, scales[0] if scales else 1.0)

    model = Lists()
    guide, x = AutoBernoulliDropout(model, rate=0.4), torch.randn(7, 3)
    guide(x, x[:, 0])
    predict = DropoutPredictive(model, guide=guide, num_samples=20, return_sites=["obs"])
    for _ in range(2):
        number, _ = runs_of(model, lambda: predict(x, scales=[2.0]))
        assert number > 1


def test_rows_are_looked_at_in_each_call():
    """Rows that know each other, in parts: refused each time, also of a model that did not mix them before."""

    class Mixing(Model):
        mixes = False

        def forward(self, x, y=None):
            return super().forward(x + x.mean(0, keepdim=True) if self.mixes else x, y)

    model = Mixing()
    guide, x = AutoBernoulliDropout(model, rate=0.4), torch.randn(300, 3)
    guide(x, x[:, 0])
    predict = DropoutPredictive(model, guide=guide, num_samples=3, return_sites=["out"], max_memory=30_000)
    predict(x)
    model.mixes = True
    for _ in range(2):
        with pytest.raises(ValueError, match="give data="):
            predict(x)
