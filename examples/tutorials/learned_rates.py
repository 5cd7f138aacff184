"""
Learned rates, and what they mean
=================================

``AutoConcreteDropout`` learns how much to drop. A rate, the probability of dropping a unit, is a parameter of the
posterior like a mean weight. Dropping costs likelihood, and brings the posterior closer to the prior; the rate that is
learned is where the two balance. Here we look at how rates depend on the number of data, on the prior, on the layer
and on the input.
"""

# %%
# A function of five inputs out of ten
# ------------------------------------
#
# Friedman's function has ten inputs, of which the last five do nothing. The noise has deviation 1, and the target a
# deviation of about 5; we standardise both.

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import make_friedman1
from torch import nn

from pyro_dropout import AutoConcreteDropout, BayesianModule, CompiledSVI, DropoutPredictive, TraceDropout_ELBO

pyro.settings.set(module_local_params=True)  # each guide keeps its own parameters
x_all, y_all = (torch.tensor(part, dtype=torch.float32) for part in make_friedman1(2000, noise=1.0, random_state=0))
x_all, y_all = (x_all - x_all.mean(0)) / x_all.std(0), (y_all - y_all.mean()) / y_all.std()

# %%
# A function that fits
# --------------------
#
# The prior of a weight is normal with deviation 1/l, where l is the *lengthscale*. The plate has the size N of the data
# set, which weighs the data against the prior. We write down the rates every 50 steps, and at the end the deviation of
# the predicted means over the training points. Targets have deviation 1, and a network that predicts nothing has 0.
# ``CompiledSVI`` traces a step once, and takes many by ``scan``.


def fit(size, lengthscale=1.0, steps=1500, **kwargs):
    pyro.set_rng_seed(0)
    layers = nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1)
    net = BayesianModule(nn.Sequential(*layers), prior=dist.Normal(0.0, 1 / lengthscale))

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        precision = pyro.sample("precision", dist.Gamma(0.1, 0.01))
        with pyro.plate("data", size, subsample_size=len(x)):
            return pyro.sample("obs", dist.Normal(mean, precision.rsqrt()), obs=y)

    guide = AutoConcreteDropout(model, rate=0.1, **kwargs)
    adam = pyro.optim.Adam({"lr": 0.01})
    svi = CompiledSVI(model, guide, adam, TraceDropout_ELBO(), backend="eager", progress=False)
    batch, record = min(size, 50), []
    for _ in range(steps // 50):
        rows = torch.stack([torch.randperm(size)[:batch] for _ in range(50)])
        svi.scan(x_all[rows], y_all[rows])
        record.append({site: rate.detach().clone() for site, rate in guide.rates().items()})
    mean = DropoutPredictive(model, guide=guide, num_samples=100, seed=0).moments(x_all[:size])["obs"].mean
    return record, mean.std().item()


def show(title, fitted):
    record, deviation = fitted
    rates = "".join(f"{site}: {rate.item():.3f}   " for site, rate in record[-1].items())
    print(f"{title:18}{rates}deviation of predicted means: {deviation:.2f}")


# %%
# More data, lower rates
# ----------------------
#
# The log-likelihood is a sum over N points, the KL to the prior is not.

by_size = {size: fit(size) for size in (20, 200, 2000)}
for size, fitted in by_size.items():
    show(f"N = {size}", fitted)

figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained", sharey=True)
for axis, (size, (record, _)) in zip(axes, by_size.items(), strict=True):
    for site in record[0]:
        axis.semilogy([50 * (i + 1) for i in range(len(record))], [rates[site] for rates in record], label=site)
    axis.set(xlabel="step", title=f"N = {size}")
axes[0].set_ylabel("rate")
axes[0].legend()
plt.show()

# %%
# Rates go down as N goes up, in every layer. At N = 20 they are 0.5, and the network predicts the same mean everywhere.
# This is how a prior that is too strong for its data looks: mean weights have gone to nothing, then dropping them costs
# nothing, and 0.5 is the rate of largest entropy. A rate of 0.5 that was learned says that the layer is not used.
#
# At N = 200 rates first rise to there, until the network has found something that is worth the cost. They still go
# down when we stop: Adam moves the logit of a rate by about its learning rate a step, so that small rates take long.
# Read them on a logarithmic scale, and as upper bounds.
#
# The first layer has the lowest rate. If one of ten inputs is dropped, no other has what it said. Of 50 hidden units
# several may say nearly the same.
#
# The lengthscale of the prior
# ----------------------------
#
# The same 200 points under four priors. A larger l pulls weights towards 0.

by_lengthscale = {lengthscale: fit(200, lengthscale) for lengthscale in (0.1, 0.3, 3.0)}
by_lengthscale[1.0] = by_size[200]
by_lengthscale = dict(sorted(by_lengthscale.items()))
for lengthscale, fitted in by_lengthscale.items():
    show(f"lengthscale {lengthscale}", fitted)

figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
for site in ("0.weight", "2.weight", "4.weight"):
    axis.loglog(list(by_lengthscale), [record[-1][site] for record, _ in by_lengthscale.values()], "o-", label=site)
axis.set(xlabel="lengthscale l", ylabel="rate after training", title="N = 200")
axis.legend()
plt.show()

# %%
# From 0.1 to 1 the rates of the first two layers hardly change, and that of the last grows. At 3 the prior has won. So
# rates under different priors are not to be compared. Choose l by the log-likelihood of held-out data, not by rates.
#
# One rate for each input
# -----------------------
#
# With ``per_unit=True`` every input of every layer has its own rate. Here are those of the first layer, at N = 2000.

record, _ = fit(2000, per_unit=True)
each = record[-1]["0.weight"]
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
axis.bar(range(1, 11), each.numpy(), color=["C0"] * 5 + ["C1"] * 5, log=True)
axis.set(xlabel="input: 1 to 5 matter, 6 to 10 do not", ylabel="rate after training", xticks=range(1, 11))
plt.show()
print("inputs that matter:", [round(rate, 4) for rate in each[:5].tolist()])
print("inputs that do not:", [round(rate, 4) for rate in each[5:].tolist()])

# %%
# Inputs that do nothing have about ten times the rates of those that do. This is a hint of what matters, not a test.
#
# What to remember
# ----------------
#
# A learned rate says how much a layer can lose at this N and under this prior; it is no property of the network. Rates
# go down with data. Where all go to 0.5 the network predicts nothing: weaken the prior, or get more data.
