"""
Heteroscedastic noise, in physical units
========================================

Measurements are often noisier in some places than in others. A network with a second output can say where. This
tutorial fits one, standardises the data for the fit, brings densities and intervals back to the units of the target,
and compares with a network that has one noise precision for all data.
"""

# %%
# Proteins, and distances in ångström
# -----------------------------------
# The target is how far a predicted protein structure is from the real one, in Å; nine properties of the structure are
# the inputs. Of the 45,730 rows of the set we take 4,000 to train and 2,000 to test. Centers and deviations for
# standardising come from the training part alone.

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.nn.functional import softplus

from examples.common.data import load_uci
from examples.common.standardised import Data
from models.regression import Regression
from pyro_dropout import AutoConcreteDropout, BayesianModule, CompiledSVI, DropoutPredictive
from pyro_dropout.metrics import crps, interval_coverage

pyro.set_rng_seed(0)
pyro.settings.set(module_local_params=True)  # each guide keeps its own parameters
table = load_uci("protein-tertiary-structure")
x, y = (torch.as_tensor(part, dtype=torch.float32) for part in (table.x, table.y))
train, test = torch.randperm(len(x))[:6000].split([4000, 2000])
data = Data.of(x[train], y[train], x[test], y[test])
print(f"target: {data.center:.2f} Å on average, deviation {data.scale:.2f} Å")

# %%
# A model with two outputs
# ------------------------
# The first output is the mean, the second one gives the deviation of the noise, by a function that keeps it positive.
# Nothing else changes: the guide has masks for both, as they share the hidden units.


class TwoOutputs(PyroModule):
    def __init__(self, features, size):
        super().__init__()
        self.size = size
        self.net = BayesianModule(nn.Sequential(nn.Linear(features, 50), nn.ReLU(), nn.Linear(50, 2)))

    def forward(self, x, y=None):
        mean, raw = self.net(x).unbind(-1)
        with pyro.plate("data", max(self.size, len(x)), subsample_size=len(x)):
            return pyro.sample("obs", dist.Normal(mean, 0.01 + softplus(raw)), obs=y)


models = {
    "one noise": Regression(x.shape[1], len(train), (50,), precision="parameter"),
    "noise by network": TwoOutputs(x.shape[1], len(train)),
}
predictive = {}
for name, model in models.items():
    pyro.set_rng_seed(0)
    guide = AutoConcreteDropout(model, rate=0.05)
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.005}), backend="eager", progress=False)
    batches = torch.randint(len(train), (2000, 128))
    svi.scan(data.x[batches], data.y[batches])
    predictive[name] = DropoutPredictive(model, guide=guide, num_samples=500, return_sites=["obs"], seed=0)

# %%
# Back to units
# -------------
# A deviation of the standardised target times the scale is a deviation in Å. A density of the target in Å is the
# standardised one divided by the scale, so that log-densities lose ``log(scale)``. Predictive draws are mapped by
# ``center + scale * draw``; their quantiles are intervals.

moments, draws, density = {}, {}, {}
print("                   log-density     RMSE     CRPS   in 50 %  in 90 %  width of 90 %")
for name, predict in predictive.items():
    moments[name], draws[name] = predict.moments(data.x_test)["obs"], data.in_units(predict(data.x_test)["obs"])
    density[name] = predict.log_likelihood(data.x_test, data.y_test)["obs"] - torch.tensor(data.scale).log()
    rmse = (data.in_units(moments[name].mean) - y[test]).square().mean().sqrt()
    inside = [interval_coverage(draws[name], y[test], mass) for mass in (0.5, 0.9)]
    low, high = draws[name].quantile(torch.tensor([0.05, 0.95]), dim=0)
    print(f"{name:19}{density[name].mean():8.3f} {rmse:9.2f} Å {crps(draws[name], y[test]).mean():6.2f} Å", end="")
    print(f"{inside[0]:8.1%}{inside[1]:9.1%} {(high - low).mean():9.1f} Å")
gain = density["noise by network"] - density["one noise"]
print(f"gain in log-density: {gain.mean():.3f} ± {gain.std() / len(gain) ** 0.5:.3f} nats a row (± standard error)")

# %%
# The second output gains log-density, but not everywhere else: the network takes less care of rows that it thinks are
# noisy, and the error of its mean is larger.
#
# Is it noisier where the network says so?
# ----------------------------------------
# Over all rows both have about the coverage that they should. Now we sort the test rows by the deviation that the
# second model predicts, and cut them into ten groups. On the left, errors against predicted deviations of these groups.
# On the right, the share of targets inside of 90 % intervals in the same groups.

order = moments["noise by network"].variance.argsort()
groups = order.reshape(10, -1)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, color in zip(models, ("tab:gray", "tab:blue"), strict=True):
    predicted = data.scale * moments[name].variance[groups].mean(1).sqrt()
    found = (data.in_units(moments[name].mean) - y[test])[groups].square().mean(1).sqrt()
    left.scatter(predicted, found, color=color, label=name)
    covered = [interval_coverage(draws[name][:, group], y[test][group], 0.9) for group in groups]
    print(f"{name:19}" + "".join(f"{share:7.1%}" for share in covered))
    right.plot(range(1, 11), covered, color=color, marker="o", label=name)
left.axline((4, 4), slope=1, color="black", lw=0.7, label="equal")
left.set(xlabel="predicted deviation of a group (Å)", ylabel="root mean squared error (Å)")
right.axhline(0.9, color="black", lw=0.7)
right.set(xlabel="group, in order of the deviation that the network predicts", ylabel="share inside of 90 % intervals")
left.legend(loc="lower right")
right.legend(loc="lower left")
plt.show()

# %%
# One noise is right on average and wrong nearly everywhere: its intervals are too wide in the quiet groups and too
# narrow in the noisy ones. With a second output errors grow as predicted, and the coverage stays close to 90 % in most
# groups. In the last one it is too cautious: the normal noise that it needs there is wider than the errors.
#
# What to remember
# ----------------
# Standardise by the training part; multiply deviations by the scale, and subtract its logarithm from log-densities.
# Check coverage in groups, as the coverage of all rows hides what differs between them. ``Regression(...,
# precision="network")`` of the examples is a model of this kind, with the logarithm of the precision as second output.
