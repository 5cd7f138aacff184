"""
Many networks at once
=====================

A small network leaves a processor mostly idle: the time of a step is Python's. ``ReplicatedSVI`` trains many networks
of one architecture in the same step. They may differ in data, rates, prior scales, learning rates and initial values.
That makes a cross-validated grid search cheap, and the best setting's restarts are an ensemble.
"""

# %%
# Data and a function that makes a network
# ----------------------------------------
# The strength of concrete in MPa, by eight properties. Nine tenths are for training, in four folds; the rest is a test
# set that has no say in any choice. Inputs and target are standardised by the training part.
#
# ``make`` gives the model and the guide of one replicate. Whatever differs between replicates has to be a tensor
# somewhere in them: the rates of a guide are, and the model puts the lengthscale into its prior as a tensor.

import itertools
import time

import matplotlib.pyplot as plt
import pyro
import torch

from examples.common.data import load_uci
from examples.common.standardised import Scaling
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, CompiledSVI, DropoutPredictive, ReplicatedSVI
from pyro_dropout.metrics import merge

pyro.set_rng_seed(0)
table = load_uci("concrete")
x, y = (torch.as_tensor(part, dtype=torch.float32) for part in (table.x, table.y))
train, test = torch.as_tensor(table.train[0]), torch.as_tensor(table.test[0])
inputs, target = Scaling.of(x[train]), Scaling.of(y[train])
x, y, log_scale = inputs(x), target(y), target.deviation.log()
folds = torch.randperm(len(train))[: len(train) // 4 * 4].reshape(4, -1)


def make(rate, lengthscale, size):
    model = Regression(x.shape[1], size, hidden=(50,), lengthscale=torch.tensor(lengthscale), precision="parameter")
    return model, AutoBernoulliDropout(model, rate=rate)


# %%
# The grid, four folds of each pair
# ---------------------------------
# The arguments of a step have a first dimension for the replicates: each has its own rows. ``scan`` takes several
# steps, ``[replicates, steps, batch, ...]``. With ``backend="eager"`` it starts soon; the default compiles the step
# first, which pays where training is long.

rates, lengthscales = (0.005, 0.02, 0.08), (0.5, 1.5, 4.0)
pairs = list(itertools.product(rates, lengthscales))
rows = torch.stack([train[folds[[f for f in range(4) if f != out]].flatten()] for out in range(4)])


def fit(settings, rows, steps=800, chunk=100):
    settings = [{"rate": rate, "lengthscale": scale, "size": rows.shape[1]} for rate, scale in settings]
    svi = ReplicatedSVI(make, settings, pyro.optim.Adam({"lr": 0.01}), backend="eager", progress=False)
    each, seconds = torch.arange(len(rows))[:, None, None], 0.0
    for _ in range(steps // chunk):
        batches = rows[each, torch.randint(rows.shape[1], (len(rows), chunk, 64))]
        start = time.perf_counter()
        svi.scan(x[batches], y[batches])
        seconds = time.perf_counter() - start  # of the last chunk
    return svi, seconds / chunk


grid, step_of_all = fit([pair for pair in pairs for _ in range(4)], rows.repeat(len(pairs), 1))

model, guide = make(0.05, 1.0, rows.shape[1])
alone = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), backend="eager", progress=False)
batches = rows[0][torch.randint(rows.shape[1], (100, 64))]
alone.scan(x[batches[:10]], y[batches[:10]])
start = time.perf_counter()
alone.scan(x[batches], y[batches])
step_of_one = (time.perf_counter() - start) / 100
print(f"{len(grid)} networks: {1000 * step_of_all:.1f} ms a step; one network: {1000 * step_of_one:.1f} ms a step")
print(f"one step of all against as many steps of one: {len(grid) * step_of_one / step_of_all:.1f} times as fast")

# %%
# The better pair is the one with the larger log-likelihood of held-out points, each the log of a density averaged over
# 100 functions, in nats and in units of the target (1/MPa).


def log_likelihood(svi, r, rows):
    predict = DropoutPredictive(svi.models[r], guide=svi.guides[r], num_samples=100, seed=r)
    return predict.log_likelihood(x[rows], y[rows])["obs"] - log_scale


held_out = torch.stack([log_likelihood(grid, r, train[folds[r % 4]]).mean() for r in range(len(grid))])
score = held_out.reshape(len(rates), len(lengthscales), 4).mean(-1)
best = pairs[int(score.argmax())]
print(f"best: rate {best[0]}, lengthscale {best[1]}")

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
picture = axes.imshow(score, aspect="auto")
for (row, column), value in zip(itertools.product(range(3), repeat=2), score.flatten(), strict=True):
    axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < score.mean() else "black")
axes.set_xticks(range(3), lengthscales)
axes.set_yticks(range(3), rates)
axes.set(
    xlabel="lengthscale of the prior", ylabel="rate", title="Log-likelihood of a held-out point, mean of four folds"
)
figure.colorbar(picture, label="nats")
plt.show()

# %%
# Rates matter more than lengthscales here, and small ones are better.
#
# Restarts, and their ensemble
# ----------------------------
# The best pair is trained on the whole training part, from ten initial values. An ensemble's density is the mean of the
# members' densities; ``merge`` takes it, weighting each member by its number of draws.

restarts, _ = fit([best] * 10, train.expand(10, -1))
members = [log_likelihood(restarts, r, test) for r in range(10)]
sizes = [1, 2, 3, 5, 10]
ensembles = [merge(members[:size], draws=[100] * size).mean() for size in sizes]
single = torch.stack(members).mean(-1)
print(f"test log-likelihood of a point: members {single.mean():.3f} ({single.min():.3f} to {single.max():.3f})")
print(f"ensemble of ten {ensembles[-1]:.3f}")

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.scatter(torch.ones(10), single, color="tab:gray", label="each of ten networks")
axes.plot(sizes, ensembles, marker="o", label="ensemble of the first ones")
axes.set(xlabel="networks in the ensemble", ylabel="test log-likelihood of a point (nats)")
axes.legend()
plt.show()

# %%
# The members differ by their initial values and batches alone, and differ a lot. The ensemble of ten is better than the
# average member and as good as the best one, and nobody has to know in advance which that is.
#
# What to remember
# ----------------
# Give ``ReplicatedSVI`` a function that makes one network, and data with a first dimension for the replicates. What
# differs has to be a tensor. Choose by held-out log-likelihood, and average densities, not their logarithms.
