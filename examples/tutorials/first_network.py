"""
A first Bayesian neural network
===============================

A network that is fitted by least squares gives one number for each input. A Bayesian network gives a distribution: wide
where there are no data, about as wide as the noise where there are many. Here we declare such a network as a Pyro
model, fit a dropout posterior with learned rates, and look at what it predicts of a function of one variable. At the
end the same model runs under Pyro's own ``AutoNormal``.
"""

# %%
# The data
# --------
#
# Eighty noisy points of a smooth function, with a gap in the middle. The noise has the same deviation, 0.1, everywhere.

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_median
from torch import nn

from pyro_dropout import AutoConcreteDropout, BayesianModule, DropoutPredictive, TraceDropout_ELBO, init_to_module

pyro.settings.set(module_local_params=True)  # each guide keeps its own parameters
pyro.set_rng_seed(0)


def truth(x):
    return torch.sin(2 * x) + 0.3 * x


x = torch.cat([torch.linspace(-2.5, -0.5, 40), torch.linspace(1.0, 2.5, 40)])[:, None]
y = truth(x[:, 0]) + 0.1 * torch.randn(80)
grid = torch.linspace(-4.0, 4.0, 201)[:, None]

# %%
# The model
# ---------
#
# ``BayesianModule`` puts a prior on every parameter of a PyTorch network. What is around it is plain Pyro: a prior on
# the precision of the noise, and a plate that says what one data point is. Nothing here knows about dropout. The
# ``deterministic`` site keeps the mean of the network among the draws.


def make_model():
    layers = nn.Linear(1, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1)
    net = BayesianModule(nn.Sequential(*layers), prior=dist.Normal(0.0, 1.0))

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        precision = pyro.sample("precision", dist.Gamma(0.1, 0.01))
        with pyro.plate("data", max(80, len(x)), subsample_size=len(x)):  # the size is N, the batch is len(x)
            pyro.deterministic("mean", mean, event_dim=0)
            return pyro.sample("obs", dist.Normal(mean, precision.rsqrt()), obs=y)

    return model


# %%
# The posterior
# -------------
#
# The guide drops input units of each layer at random, with a rate, the probability of dropping, that is learned. The
# first layer has a single input. Dropping it would leave a constant function, so that its rate is set to 0, which
# stays as it is. Biases and the precision are point estimates.

model = make_model()
guide = AutoConcreteDropout(model, rate=lambda site: 0.0 if site == "0.weight" else 0.1)
svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceDropout_ELBO())
losses = [svi.step(x, y) for _ in range(2500)]

print(f"loss at the start {losses[0]:.0f}, over the last 100 steps {sum(losses[-100:]) / 100:.0f}")
print({site: round(rate.item(), 3) for site, rate in guide.rates().items()})

# %%
# The prediction
# --------------
#
# A draw is a network, that is, a mask for each layer. ``moments`` splits the variance of the prediction: the
# *epistemic* part is the variance of the network's mean over draws, and goes down with more data; the *aleatoric* part
# is the variance of the noise, and does not.

predict = DropoutPredictive(model, guide=guide, num_samples=1000, seed=0)


def plot(axes, predict, title):
    moments = predict.moments(grid)["obs"]
    at, mean = grid[:, 0], moments.mean
    for variance, color, label in (
        (moments.variance, "#c6dbef", "with noise: mean ± 2 deviations"),
        (moments.epistemic, "#6baed6", "epistemic alone: mean ± 2 deviations"),
    ):
        axes.fill_between(at, mean - 2 * variance.sqrt(), mean + 2 * variance.sqrt(), color=color, label=label)
    axes.plot(at, mean, color="#08306b", label="predictive mean")
    axes.plot(at, truth(at), color="black", linestyle="--", linewidth=0.9, label="truth")
    axes.scatter(x[:, 0], y, s=8, color="black", zorder=3, label="data")
    axes.set(xlabel="x", ylabel="y", ylim=(-4, 4), title=title)
    print(title)
    for name, place in (("in the data", -1.5), ("in the gap", 0.25), ("outside", 3.5)):
        row = (at - place).abs().argmin()
        e, a = moments.epistemic[row].sqrt(), moments.aleatoric[row].sqrt()
        print(f"  x = {place:5.2f}, {name:12} epistemic deviation {e:.2f}, aleatoric {a:.2f}")


figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
plot(axes, predict, "Learned dropout")
axes.legend(loc="upper left")
plt.show()

# %%
# The epistemic band is about twice as wide in the gap as among the data, and the truth is near its edge there. To the
# left and to the right it is far outside: the network goes on as a nearly straight line, and its draws agree on that.
# Far from the data a band says what the posterior's functions have in common, not what the truth may do. The aleatoric
# deviation is 0.17, more than the 0.1 of the noise: what the network misses near the data counts as noise too.
#
# The same model under AutoNormal
# -------------------------------
#
# The model does not know its guide. ``AutoNormal`` gives every weight a normal posterior of its own. It starts from the
# module's weights, like the dropout guide, and is trained by Pyro's own loss for as many steps.

normal_model = make_model()
start = init_to_module(fallback=init_to_median)
normal = AutoNormal(normal_model, init_loc_fn=start, init_scale=0.02)
normal_svi = SVI(normal_model, normal, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO())
for _ in range(2500):
    normal_svi.step(x, y)

figure, both = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
plot(both[0], predict, "Learned dropout")
plot(both[1], DropoutPredictive(normal_model, guide=normal, num_samples=1000, seed=0), "AutoNormal")
both[0].legend(loc="upper left", fontsize=8)
plt.show()

# %%
# It has not found the function: its mean is flat, and it takes the data for noise. Each of 2,701 parameters pays for
# being different from its prior, and 80 points are not worth that here. Dropout posteriors can do the same where a
# prior is too strong, so look at a prediction before you trust a band.
#
# What to remember
# ----------------
#
# A model is plain Pyro, and a guide is exchanged without touching it. The epistemic part of a prediction goes down with
# data, the aleatoric part does not. Both are statements of the posterior, which is right at most as far as it was
# checked.
