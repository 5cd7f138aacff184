"""
Is my posterior any good?
=========================

A fit that has converged may still be too sure of itself, or not sure enough. Two kinds of checks tell: those that use
the training data again, as ArviZ has them (replicated data, leave-one-out cross-validation), and those on data that
were held out. Here two dropout posteriors of one model are put through both.
"""

# %%
# Two posteriors
# --------------
#
# The data are the strengths of 300 samples of concrete, with eight numbers about each; 730 more samples are held out.
# One guide learns its rates, the other has rate 0.3 everywhere. Biases and the precision of the noise get normal
# posteriors (``rest``), as leave-one-out weighs draws, and needs many that differ.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal

from examples.common.arviz_versions import compare, elpd, leave_one_out
from examples.common.check_pictures import plot_loo_pit, plot_replicates
from examples.common.data import load_uci
from examples.common.standardised import Data
from models.regression import Regression
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, TraceDropout_ELBO, from_pyro_svi
from pyro_dropout.metrics import (
    calibration_error,
    crps,
    interval_coverage,
    predictive_log_likelihood,
    quantile_coverage,
)

pyro.settings.set(module_local_params=True)  # each guide keeps its own parameters
table, SIZE = load_uci("concrete"), 300
rows = np.concatenate([table.train[0], table.test[0]])
x, y = (torch.tensor(part[rows], dtype=torch.float32) for part in (table.x, table.y))
data = Data.of(x[:SIZE], y[:SIZE], x[SIZE:], y[SIZE:])  # standardised by the training part

rest = partial(AutoNormal, init_scale=0.02)
guides = {
    "learned rates": lambda model: AutoConcreteDropout(model, rate=0.1, rest=rest),
    "rate 0.3": lambda model: AutoBernoulliDropout(model, rate=0.3, rest=rest),
}
training, held_out = {}, {}
for name, make in guides.items():
    pyro.set_rng_seed(0)
    model = Regression(features=8, size=SIZE, hidden=(50,), lengthscale=1.0)
    svi = SVI(model, make(model), pyro.optim.Adam({"lr": 0.01}), TraceDropout_ELBO())
    for _ in range(2000):
        svi.step(data.x, data.y)
    training[name] = from_pyro_svi(svi, model_args=(data.x, data.y), num_samples=1000)
    held_out[name] = from_pyro_svi(svi, model_args=(data.x_test, data.y_test), num_samples=1000)
    print(name, {site: round(rate.item(), 4) for site, rate in svi.guide.rates().items()})

# %%
# Replicated data
# ---------------
#
# ``from_pyro_svi`` gives ArviZ its groups: draws, replicated data, pointwise log-likelihoods. Replicates should look
# like what was observed.

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for axis, (name, groups) in zip(axes, training.items(), strict=True):
    plot_replicates(axis, groups, draws=50)
    axis.set(title=name, xlabel="strength, standardised")
axes[0].set_ylabel("density")
plt.show()

# %%
# With learned rates they do. With rate 0.3 they spread too far to the left, and have too little on the right. But these
# are the points that both were fitted to: a network that follows its noise passes this check best.
#
# Leave-one-out
# -------------
#
# PSIS-LOO estimates from the same draws how well each point would have been predicted without it. It weighs draws, and
# Pareto's k says for each point whether weights can do that: where k is above 0.7 the estimate is not to be trusted.

loos = {name: leave_one_out(groups) for name, groups in training.items()}
for name, loo in loos.items():
    k = np.asarray(loo.pareto_k)
    print(f"{name:14} elpd per point {elpd(loo) / SIZE:.3f}, k above 0.7 at {(k > 0.7).sum()} of {SIZE} points")
print(compare(loos)[["elpd", "elpd_diff", "dse"]])

# %%
# By this table learned rates are far better. But a fifth of their points has k above 0.7, so that the number stands on
# few draws. We keep it in mind, and shall see.
#
# LOO-PIT
# -------
#
# The probability of less than each observation, leaving that point out, is uniform where predictions are calibrated. A
# hill in the middle says that predictions are too wide, a valley that they are too narrow.

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for axis, (name, groups) in zip(axes, training.items(), strict=True):
    plot_loo_pit(axis, groups)
    axis.set(title=name, xlabel="probability of less, point left out")
axes[0].set_ylabel("density")
plt.show()

# %%
# Neither is uniform. With rate 0.3 low probabilities are rare and high ones are frequent: strengths are larger than
# predicted, more often than they should be. With learned rates low probabilities are too frequent; these are weighted
# by the same draws as above, and share their trouble.
#
# Held-out points
# ---------------
#
# Points that no fit has seen need no estimate of what would have been.

figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
levels = torch.arange(1, 20) / 20
axis.plot([0, 1], [0, 1], color="black", linewidth=0.8)
for name, groups in held_out.items():
    obs, target = groups["posterior_predictive"]["obs"], groups["observed_data"]["obs"]
    density = predictive_log_likelihood(groups["log_likelihood"]["obs"])
    inside = ", ".join(f"{interval_coverage(obs, target, p):.0%} in {p:.0%}" for p in (0.5, 0.9))
    error = calibration_error(obs, target)
    score = float(crps(obs, target).mean())
    print(f"{name:14} log-likelihood {float(density.mean()):.3f}, CRPS {score:.3f}, calibration error {error:.3f}")
    print(f"{'':14} points in central intervals: {inside}")
    axis.plot(levels, quantile_coverage(obs, target, levels), marker=".", label=name)
axis.set(xlabel="probability of the predictive quantile", ylabel="share of held-out points below it")
axis.legend()
plt.show()

# %%
# Learned rates promised 0.2 nats per point, and have about -1.5: the estimate was wrong, as k had warned. Only two
# thirds of the points are in their intervals of 90 %. They are too sure: with so few data and 2,000 full-batch steps
# the rates have gone to almost nothing. Rate 0.3 has the better log-likelihood, as it is rarely far outside, and the
# worse CRPS, as its intervals are wide: 66 % of the points are in those of 50 %. Neither posterior is good, in opposite
# directions; a fixed rate between them is the next thing to try.
#
# What to remember
# ----------------
#
# Look at Pareto's k before you look at a LOO score: where many points are above 0.7, hold data out instead. Look at
# more than one score, since log-likelihood and CRPS punish different errors. The picture of quantiles shows in which
# direction a posterior errs.
