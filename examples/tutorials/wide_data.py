"""
Entropic regression for wide data
=================================

With many more columns than rows a linear regression needs to be held back. Ridge regression shrinks all coefficients by
one penalty, which presumes that columns come in comparable units. Entropic dropout asks for a regression that does well
when columns drop out at random. Its posterior is exact, in closed form, and no matrix of columns times columns is made.
This tutorial chooses rate and shrinkage by held-out log-density, and checks the predictive intervals.
"""

# %%
# Customers and what they bought
# ------------------------------
# The data are made up. Each row is a customer, each column what the customer spent on one of 3,000 products. Customers
# are mixtures of ten tastes. A product's price has nothing to do with taste, yet it sets the unit of its column. The
# response depends on taste, with noise of deviation 0.5. We have 150 customers to learn from and 2,000 to judge by.

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import sparse
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from pyro_dropout.entropic import regression_path

rng = np.random.default_rng(0)
customers, products, tastes, train, test = 2150, 3000, 10, slice(150), slice(150, None)
popularity = np.arange(1, products + 1) ** -0.7 * np.exp(2 * rng.normal(size=(tastes, products)))
mixture = rng.dirichlet(np.full(tastes, 0.3), customers)
bought = rng.poisson(150 * mixture @ (popularity / popularity.sum(1, keepdims=True)))
x = sparse.csr_matrix(bought * np.exp(rng.normal(size=products)))  # times the price
signal = mixture @ rng.normal(size=tastes)
y = signal / signal.std() + 0.5 * rng.normal(size=customers)
print(f"{x[train].shape[0]} rows, {x[train].shape[1]} columns, {x[train].nnz / x[train].shape[0]:.0f} entries in a row")
print(f"columns that are zero in all of these rows: {(x[train].getnnz(0) == 0).sum()}")

# %%
# A grid at once
# --------------
# ``rate`` is the probability of dropping a column, ``shrinkage`` the ridge penalty λ0. A rate of 0 is ridge regression,
# in its conjugate Bayesian form. ``regression_path`` fits ``EntropicLinearRegression`` for every pair of a grid. With
# ``cv`` each model also has the log-density of every row under the posterior without that row's fold.

rates, shrinkages = [0.0, 0.01, 0.03, 0.1, 0.3, 0.5], [0.1, 1, 10, 100, 1_000, 10_000]
folds = KFold(5, shuffle=True, random_state=0)
path = regression_path(x[train], y[train], rates, shrinkages, cv=folds)
score = np.array([[model.cv_log_density_.mean() for model in row] for row in path])

figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
picture = axes.imshow(score, aspect="auto")
for (row, column), value in np.ndenumerate(score):
    axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="black" if value > -1.4 else "white")
axes.set_xticks(range(len(shrinkages)), shrinkages)
axes.set_yticks(range(len(rates)), rates)
axes.set(xlabel="shrinkage λ0", ylabel="rate (0 is ridge regression)", title="Held-out log-density of a row")
figure.colorbar(picture, label="nats")
plt.show()

# %%
# Rate and shrinkage work together. Dropout's own penalty of a column grows with the column's sum of squares, and a
# column without entries has none: λ0 alone holds it. With λ0 = 0.1 rates of 0.03 and more leave new rows that do have
# entries there far too uncertain, and are worse than ridge. With 10 and 100 every positive rate is better.
#
# Against ridge, on new rows
# --------------------------
# We take the best pair, and the best of ridge alone. A third model is ridge regression of columns divided by their
# deviations, the usual remedy for units, chosen in the same way.


def best(models):
    return max(models, key=lambda model: model.cv_log_density_.mean())


scaler = StandardScaler(with_mean=False).fit(x[train])  # dividing alone keeps the matrix sparse
scaled = regression_path(scaler.transform(x[train]), y[train], [0.0], shrinkages, cv=folds)[0]
dropout = best(model for row in path for model in row)
models = {"dropout": (dropout, x[test]), "ridge": (best(path[0]), x[test])}
models["ridge, scaled columns"] = best(scaled), scaler.transform(x[test])

density = {}
print("                       rate     λ0  log-density   RMSE  in 50 %  in 90 %")
for name, (model, new) in models.items():
    density[name] = model.predictive(new).log_prob(torch.tensor(y[test])).numpy()
    bounds = [model.predictive_interval(new, mass).T for mass in (0.5, 0.9)]
    inside = [((low < y[test]) & (y[test] < high)).mean() for low, high in bounds]
    rmse = np.sqrt(np.mean((model.predict(new) - y[test]) ** 2))
    print(f"{name:22}{model.rate:5g}{model.shrinkage:7g}{density[name].mean():13.3f}{rmse:7.3f}", end="")
    print("".join(f"{share:9.1%}" for share in inside))
for name in list(models)[1:]:
    gain = density["dropout"] - density[name]
    print(
        f"dropout above {name}: {gain.mean():.3f} ± {gain.std() / len(gain) ** 0.5:.3f} nats a row (± standard error)"
    )

# %%
# On these data dropout predicts better than either ridge. It is a compromise: its own penalty ignores units, as scaling
# does, and λ0 respects them, as ridge does. On other data one of the extremes may win; the grid will tell.
#
# Intervals
# ---------
# The predictive distribution of a row is a Student-t, with noise and uncertain coefficients in it. The table has the
# shares of new responses inside of the central 50 and 90 % intervals: here all of them are a little too wide.

rows = np.random.default_rng(1).choice(2000, 60, replace=False)
rows = rows[np.argsort(dropout.predict(x[test][rows]))]
low, high = dropout.predictive_interval(x[test][rows], 0.9).T
hit = (low < y[test][rows]) & (y[test][rows] < high)
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
axes.vlines(np.arange(60), low, high, color="#9ecae1", lw=4, label="90 % interval")
for some, color, where in ((hit, "black", "inside"), (~hit, "tab:red", "outside")):
    axes.scatter(
        np.arange(60)[some], y[test][rows[some]], 14, color, zorder=3, label=f"response {where} ({some.sum()})"
    )
axes.set(xlabel="60 new rows, in order of their predicted mean", ylabel="response", ylim=(-2, 4.5))
axes.legend(ncols=3, loc="upper left")
plt.show()

# %%
# What to remember
# ----------------
# A rate of 0 is ridge regression, so that a grid with it compares the two. Choose rate and shrinkage together, by
# held-out log-density. Sparse matrices stay sparse, and with few rows the work grows slowly with the columns. The data
# here were made with columns of very different units, which dropout does not mind; with others ridge did as well.
