"""Is a posterior to be trusted? Checks with ArviZ, on one regression and one classification.

Concrete's compressive strength by 8 covariates: 200 points for a network of 50 hidden units, all others held out. The
same model under dropout at a fixed rate, Concrete masks, learned hard masks, ``AutoNormal``, and NUTS as the reference;
a table of what held-out points say, posterior predictive checks, LOO-PIT, ``az.loo`` and ``az.compare``, calibration.
Several runs of each guide are exported as chains, so that R-hat says whether runs agree, about predictions and about
rates (which do not vary among draws: their "draws" are records of the second half of training). Then a LeNet for
digits, with some digits held out of training: which measure of uncertainty tells them from known ones?

What comes out. Learned rates come closest to NUTS (held-out log-likelihood -3.28 to -3.31 a point against -3.17; rate
0.1 and ``AutoNormal`` -3.57 and -3.64, with intervals that are too wide: 97 and 99 % inside of 90 %). Predictions agree
between runs (median R-hat up to 1.07), rates do not (1.9 to 3.0): they still fall after 1,500 steps, the output layer's
at another level in each run. On digits mutual information separates held-out classes as well as entropy does and no
better (AUROC 0.96 and 0.96; over other seeds and held-out digits either is ahead by up to 0.02). The variation ratio,
of few labels, is behind both.

What PSIS means here. ``az.loo`` weights draws by 1 / p(y_n | W): it takes the point's likelihood out of the posterior
the draws are from. Of NUTS that is leave-one-out cross-validation. An approximate posterior q is not proportional to
likelihood times prior; weighting gives "q without point n's factor", which no fit without the point would give. No
diagnostic says that q is wrong: k tells whether the weights are well-behaved, not whether q is the posterior. So read
it beside held-out points (the second picture): where the two part, as for rate 0.1 and ``AutoNormal``, the estimate is
off. Here 26 to 40 % of the points have k > 0.7, those of NUTS too: 50 hidden units for 200 points, and each point
matters. ``loo_approximate_posterior`` puts log p - log q into the weights, where both exist. For ``AutoNormal`` they
do, and every k is above 0.7: in hundreds of dimensions one draw takes all the weight. A dropout posterior has no
density with respect to the prior's, so there is no log q of its weights.

Takes about 6 minutes on one core. ``python -m examples.start.posterior_checks --help``
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_median
from pyro.poutine.util import prune_subsample_sites
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import trange

from examples.common.data import load_mnist, load_uci
from models.classification import Classification, lenet
from models.regression import Regression
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    TraceDropout_ELBO,
    from_pyro_svi,
    init_to_module,
)
from pyro_dropout.metrics import (
    calibration_error,
    crps,
    expected_entropy,
    interval_coverage,
    mutual_information,
    pavpu,
    predictive_entropy,
    predictive_log_likelihood,
    quantile_coverage,
    variation_ratio,
)

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
    import arviz as az

matplotlib.use("Agg")  # pictures go to files, no window needed

POINTS, HIDDEN, LENGTHSCALE = 200, 50, 2.0  # regression
IMAGES, BATCH, TEST_IMAGES, LOO_IMAGES, MOST_DRAWS = 10_000, 100, 1000, 500, 100  # classification
TARGET = "compressive strength, MPa"
NUTS_NAME, NORMAL_NAME = "NUTS", "AutoNormal"
RECORDS = 100  # of the rates, over training
TITLES = {
    "scores": "Held-out points",
    "loo": "Leave-one-out by importance sampling, training points",
    "approximate": f"{NORMAL_NAME}: the same draws weighted in two ways",
    "r_hat": "R-hat of predictions, and of rates over the second half of training; runs are chains",
    "auroc": "AUROC of held-out classes against known ones",
}

Table = dict[str, dict[str, float]]  # of measures, by guide


@dataclass(frozen=True)
class Data:
    """Concrete, standardised by the training points; ``center`` and ``scale`` lead back to MPa."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    center: float
    scale: float

    def in_units(self, y: Any) -> Any:
        return y * self.scale + self.center


@dataclass(frozen=True)
class Fit:
    """An approximate posterior, as ``from_pyro_svi`` takes it, with its learned rates over training."""

    model: Callable
    guide: Callable
    draws: int
    steps: list[int] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RegressionResults:
    """Log-likelihoods and ``elpd`` are per point in units of y; ``r_hat`` of predictions and of rates over training."""

    scores: Table
    loo: Table
    approximate: Table
    r_hat: Table
    comparison: Any


@dataclass(frozen=True)
class ClassificationResults:
    """``auroc`` says how well a measure of uncertainty tells held-out classes from known ones."""

    scores: Table
    auroc: Table
    loo: Table
    comparison: Any


@dataclass(frozen=True)
class Results:
    regression: RegressionResults | None
    classification: ClassificationResults | None
    pictures: list[Path]


# Fits


def fit(model: Callable, guide: Callable, batches: Iterator[Any], args: argparse.Namespace, name: str) -> Fit:
    """A plain SVI loop, which writes down the rates if they are learned."""
    loss = TraceDropout_ELBO(max_plate_nesting=1)
    if isinstance(guide, AutoNormal):  # one draw of the weights for all points is noisy: it needs more of them
        loss = TraceMeanField_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / args.steps)}), loss)
    done = Fit(model, guide, args.draws)
    for step in trange(1, args.steps + 1, desc=name, unit="step", disable=None):
        svi.step(*next(batches))
        if getattr(guide, "learnable", False) and step % max(1, args.steps // RECORDS) == 0:
            done.steps.append(step)
            for site, rate in guide.rates().items():
                done.rates.setdefault(site, []).append(rate.item())
    return done


def sample(model: Callable, data: Data, args: argparse.Namespace) -> Fit:
    """One chain of NUTS, on the model as it is."""
    start = init_to_module(fallback=init_to_median)
    kernel = NUTS(model, init_strategy=start, max_tree_depth=6, max_plate_nesting=1)
    mcmc = MCMC(kernel, args.nuts_draws, args.warmup, disable_progbar=not sys.stderr.isatty())
    mcmc.run(data.x, data.y)
    return Fit(model, as_guide(mcmc.get_samples()), args.nuts_draws)


def as_guide(samples: dict[str, Tensor]) -> Callable:
    """A guide that gives draws back: what exports an SVI then exports NUTS, held-out points included."""

    def guide(*args: Any) -> None:
        for name, value in samples.items():
            pyro.sample(name, dist.Delta(value.unsqueeze(1), event_dim=value.dim() - 1))  # [draws, place of the data]

    return guide


# Checks: each takes what from_pyro_svi exports


def leave_one_out(idata: az.InferenceData) -> az.ELPDData:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")  # the tables have the counts
        return az.loo(idata, pointwise=True)


def compare(loos: dict[str, az.ELPDData]) -> Any:
    """ArviZ's table. Pareto smoothing gives NaN where the draws repeat each other: such a guide cannot be compared."""
    usable = {name: loo for name, loo in loos.items() if math.isfinite(loo.elpd_loo)}
    for name in loos:
        if name not in usable:
            print(f"{name} is not in the comparison: its leave-one-out estimate is not finite")
    return az.compare(usable)


def r_hat(runs: az.InferenceData, variable: str) -> dict[str, float]:
    """Do runs agree? Median and largest R-hat over the entries of a variable, runs as chains."""
    values = az.rhat(runs, var_names=[variable])[variable].values
    return {"median": float(np.median(values)), "largest": float(np.max(values))}


def rates_as_draws(fits: list[Fit]) -> az.InferenceData:
    """Rates do not vary among draws of a run: their draws are the records of the second half of training."""
    half = len(fits[0].steps) // 2
    return az.from_dict(posterior={site: np.array([f.rates[site][half:] for f in fits]) for site in fits[0].rates})


def approximate_loo(fit: Fit, data: Data) -> Table:
    """LOO of one set of draws, with importance weights as if q were the posterior and with log p - log q in them."""
    stats = optional("arviz_stats", "loo_approximate_posterior", "arviz-stats[xarray]")
    if stats is None:
        return {}
    with torch.no_grad(), pyro.plate("draws", fit.draws, dim=-2):
        drawn = poutine.trace(fit.guide).get_trace(data.x, data.y)
        joint = poutine.trace(poutine.replay(fit.model, drawn)).get_trace(data.x, data.y)
    likelihood = joint.nodes["obs"]["fn"].log_prob(data.y) - math.log(data.scale)
    log_q = log_density(drawn, fit.draws)
    log_p = log_density(joint, fit.draws) + likelihood.sum(-1)
    idata = az.from_dict(log_likelihood={"obs": likelihood[None]})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        plain = stats.loo(idata, pointwise=True, reff=1.0)  # draws of a guide are independent
        corrected = stats.loo_approximate_posterior(idata, log_p.numpy(), log_q.numpy(), pointwise=True)
    return {name: loo_summary(loo.elpd, loo) for name, loo in (("q as it is", plain), ("log p - log q", corrected))}


@torch.no_grad()
def log_density(trace: poutine.Trace, draws: int) -> Tensor:
    """Of all latents, by draw; a guide's sites before and after a transform both count, and give its Jacobian."""
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    return sum(site["log_prob"].reshape(draws, -1).sum(1) for _, site in trace.iter_stochastic_nodes())


def optional(module: str, purpose: str, package: str) -> ModuleType | None:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        print(f"{purpose} is left out: it needs {module} (pip install '{package}')")
        return None


def loo_summary(elpd: float, loo: Any) -> dict[str, float]:
    """Per point, with its standard error, and the share of points whose importance weights are not to be trusted."""
    points, bad = loo.n_data_points, loo.pareto_k.values > 0.7
    return {"elpd_loo": float(elpd) / points, "elpd_loo ±": float(loo.se) / points, "k > 0.7": float(bad.mean())}


# Regression


def load_concrete() -> Data:
    """The first points of the first published training split; all others are held out."""
    table = load_uci("concrete")
    rows = np.concatenate([table.train[0], table.test[0]])
    x, y = (torch.tensor(part[rows], dtype=torch.float32) for part in (table.x, table.y))
    center, scale = y[:POINTS].mean(), y[:POINTS].std()
    x, y = (x - x[:POINTS].mean(0)) / x[:POINTS].std(0), (y - center) / scale
    return Data(x[:POINTS], y[:POINTS], x[POINTS:], y[POINTS:], center.item(), scale.item())


def regression_guides(model: Callable) -> dict[str, Callable]:
    """Biases and noise get normal posteriors: PSIS needs draws that do not repeat each other, as those of masks do."""
    rest = partial(AutoNormal, init_scale=0.02)
    return {
        "rate 0.1": AutoBernoulliDropout(model, rate=0.1, rest=rest),
        "Concrete": AutoConcreteDropout(model, rate=0.1, rest=rest),
        "learned hard": AutoBernoulliDropout(model, rate=0.1, learnable=True, rest=rest),
        NORMAL_NAME: AutoNormal(model, init_loc_fn=init_to_module(fallback=init_to_median), init_scale=0.02),
    }


def fit_regression(data: Data, args: argparse.Namespace) -> dict[str, list[Fit]]:
    """Several runs of each guide and chains of NUTS, all on the same models."""
    fits: dict[str, list[Fit]] = {}
    for run in range(max(args.restarts, args.chains)):
        pyro.set_rng_seed(args.seed + run)
        model = Regression(data.x.shape[1], size=POINTS, hidden=(HIDDEN,), lengthscale=LENGTHSCALE)
        if run < args.restarts:
            for name, guide in regression_guides(model).items():
                done = fit(model, guide, itertools.repeat((data.x, data.y)), args, f"{name}, run {run + 1}")
                fits.setdefault(name, []).append(done)
        if run < args.chains:
            fits.setdefault(NUTS_NAME, []).append(sample(model, data, args))
    return fits


def export(fits: list[Fit], x: Tensor, y: Tensor, data: Data) -> az.InferenceData:
    """Draws, replicates and log-likelihoods of these points in MPa; fits are chains."""
    idatas = [from_pyro_svi(fit, model_args=(x, y), num_samples=fit.draws) for fit in fits]
    idata = az.concat(*idatas, dim="chain", reset_dim=True) if len(fits) > 1 else idatas[0]
    idata.map(data.in_units, groups=["posterior_predictive", "observed_data"], inplace=True)
    idata.map(lambda density: density - math.log(data.scale), groups="log_likelihood", inplace=True)
    idata.posterior["mean"] = data.in_units(idata.posterior["mean"])
    return idata


def score(held_out: az.InferenceData) -> dict[str, float]:
    """Of points that no fit has seen."""
    y, obs = held_out.observed_data["obs"], held_out.posterior_predictive["obs"]
    density = predictive_log_likelihood(held_out.log_likelihood["obs"]).values
    error = (held_out.posterior["mean"].mean(("chain", "draw")) - y.values).values
    return {
        "RMSE": float(np.sqrt((error**2).mean())),
        "log-likelihood": float(density.mean()),
        "log-likelihood ±": float(density.std() / math.sqrt(len(density))),
        "CRPS": float(crps(obs, y).mean()),
        "in 50 %": interval_coverage(obs, y, 0.5),
        "in 90 %": interval_coverage(obs, y, 0.9),
        "calibration": calibration_error(obs, y),
    }


def run_regression(args: argparse.Namespace) -> tuple[RegressionResults, list[Path]]:
    data = load_concrete()
    fits = fit_regression(data, args)
    # Chains of NUTS are draws from one posterior, runs of an SVI from several: the first is what would be used.
    chosen = {name: runs if name == NUTS_NAME else runs[:1] for name, runs in fits.items()}
    idatas = {name: export(runs, data.x, data.y, data) for name, runs in chosen.items()}
    held_out = {name: export(runs, data.x_test, data.y_test, data) for name, runs in chosen.items()}
    loos = {name: leave_one_out(idata) for name, idata in idatas.items()}
    learned = {name: rates_as_draws(runs) for name, runs in fits.items() if runs[0].rates}
    agreement = {name: r_hat(export(runs, data.x, data.y, data), "mean") for name, runs in fits.items()}
    for name, rates in learned.items():
        agreement |= {f"{name}, {site}": r_hat(rates, site) for site in rates.posterior.data_vars}
    results = RegressionResults(
        scores={name: score(idata) for name, idata in held_out.items()},
        loo={name: loo_summary(loo.elpd_loo, loo) for name, loo in loos.items()},
        approximate=approximate_loo(fits[NORMAL_NAME][0], data),
        r_hat=agreement,
        comparison=compare(loos),
    )
    report(results)
    pictures = [
        save(args.outputs / "posterior_checks_predictive.png", plot_checks(idatas)),
        save(args.outputs / "posterior_checks_comparison.png", plot_comparison(results)),
        save(args.outputs / "posterior_checks_calibration.png", plot_calibration(held_out)),
        save(args.outputs / "posterior_checks_rates.png", plot_rates(fits, agreement)),
    ]
    return results, pictures


# Classification


def load_digits(part: str, images: int, held_out: list[int]) -> tuple[Tensor, Tensor]:
    """Random images and labels: known classes are counted from 0, held-out ones are -1 and not for training."""
    x, y = (torch.from_numpy(array) for array in load_mnist(part))
    known = torch.tensor([c for c in range(10) if c not in held_out])
    labels = torch.full((10,), -1)
    labels[known] = torch.arange(len(known))
    y = labels[y.long()]
    rows = (y >= 0).nonzero().squeeze(1) if part == "train" else torch.arange(len(y))
    rows = rows[torch.randperm(len(rows))[:images]]
    return x[rows].unsqueeze(1) / 255, y[rows]


def classification_guides(model: Callable) -> dict[str, Callable]:
    """The image itself, the one channel that the first convolution has, is never dropped."""

    def rate(site: str) -> float:
        return 0.0 if site == "net.0.weight" else 0.1

    return {"rate 0.1": AutoBernoulliDropout(model, rate), "Concrete": AutoConcreteDropout(model, rate)}


def batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        rows = torch.randint(len(x), (BATCH,))
        yield x[rows], y[rows]


def uncertainties(drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of each image; mutual information is the part of the entropy that is about the weights."""
    return {
        "entropy": predictive_entropy(drawn["probs"]),
        "expected entropy": expected_entropy(drawn["probs"]),
        "mutual information": mutual_information(drawn["probs"]),
        "variation ratio": variation_ratio(drawn["obs"]),
    }


def score_classes(probs: Tensor, y: Tensor, entropy: Tensor) -> dict[str, float]:
    """Of test images of known classes, from draws of the classes' probabilities."""
    mean = probs.mean(0)
    correct = mean.argmax(-1) == y
    scores = {
        "accuracy": correct.float().mean().item(),
        "log-likelihood": mean.gather(-1, y.unsqueeze(-1)).log().mean().item(),
        "PAvPU": pavpu(entropy, correct).item(),  # at the mean entropy
    }
    metrics = optional("torchmetrics.functional.classification", "the calibration of classes", "torchmetrics")
    if metrics is not None:
        error = metrics.multiclass_calibration_error(mean, y, num_classes=probs.shape[-1], norm="l2")
        scores["calibration"] = error.item()
    return scores


def run_classification(args: argparse.Namespace) -> tuple[ClassificationResults, list[Path]]:
    pyro.set_rng_seed(args.seed)
    x, y = load_digits("train", IMAGES, args.held_out)
    x_test, y_test = load_digits("test", TEST_IMAGES, args.held_out)
    known, draws = y_test >= 0, min(args.draws, MOST_DRAWS)
    model = Classification(lenet(classes=10 - len(args.held_out), width=8), size=len(x))
    scores, auroc, loos, found = {}, {}, {}, {}
    for name, guide in classification_guides(model).items():
        done = fit(model, guide, batches(x, y), args, f"digits, {name}")
        drawn = Predictive(model, guide=guide, num_samples=draws, parallel=True)(x_test)
        drawn = {"probs": drawn["probs"].squeeze(1), "obs": drawn["obs"]}
        found[name] = uncertainties(drawn)
        auroc[name] = {measure: float(roc_auc_score(~known, value)) for measure, value in found[name].items()}
        scores[name] = score_classes(drawn["probs"][:, known], y_test[known], found[name]["entropy"][known])
        part = x[:LOO_IMAGES], y[:LOO_IMAGES]
        loos[name] = leave_one_out(from_pyro_svi(done, model_args=part, num_samples=draws))
    loo = {name: loo_summary(estimate.elpd_loo, estimate) for name, estimate in loos.items()}
    results = ClassificationResults(scores, auroc, loo, compare(loos))
    report(results)
    picture = args.outputs / "posterior_checks_classes.png"
    return results, [save(picture, plot_classes(found["Concrete"], known, auroc["Concrete"], args.held_out))]


# Pictures


def panels(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> tuple[plt.Figure, Any]:
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **kwargs)


def save(path: Path, figure: plt.Figure) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def plot_checks(idatas: dict[str, az.InferenceData]) -> plt.Figure:
    """Posterior predictive check and LOO-PIT of each guide, on the training points."""
    figure, axes = panels(2, len(idatas), 3.6 * len(idatas), 7.5, sharex="row", sharey="row")
    for (name, idata), (top, bottom) in zip(idatas.items(), axes.T, strict=True):
        az.plot_ppc(
            idata,
            num_pp_samples=min(50, idata.posterior_predictive["obs"].size // POINTS),
            random_seed=0,
            textsize=9,
            legend=name == NUTS_NAME,
            ax=top,
        )
        top.set(title=name, xlabel=TARGET)
        az.plot_loo_pit(idata, y="obs", textsize=9, legend=name == NUTS_NAME, ax=bottom)
        bottom.set(xlabel="probability of less, point left out", ylim=(0, 2.5))
    axes[0, 0].set_ylabel("density: posterior predictive check")
    axes[1, 0].set_ylabel("density: LOO-PIT")
    return figure


def plot_comparison(results: RegressionResults) -> plt.Figure:
    """ArviZ's comparison beside what it estimates."""
    figure, ((left, right),) = panels(1, 2, 14, 4.5)
    az.plot_compare(results.comparison, insample_dev=False, textsize=9, ax=left)
    left.set(title="az.compare: leave-one-out, sums over training points")
    names = list(results.scores)
    rows = np.arange(len(names))
    for table, key, shift, label in (
        (results.loo, "elpd_loo", -0.1, "leave-one-out estimate, training points"),
        (results.scores, "log-likelihood", 0.1, "held-out points"),
    ):
        centers, errors = ([table[name][k] for name in names] for k in (key, f"{key} ±"))
        right.errorbar(centers, rows + shift, xerr=errors, fmt="o", capsize=3, label=label)
    right.set(yticks=rows, yticklabels=names, xlabel="log-likelihood per point, nats", title="Is the estimate right?")
    right.invert_yaxis()
    right.legend()
    return figure


def plot_calibration(held_out: dict[str, az.InferenceData]) -> plt.Figure:
    """Shares of held-out points below predictive quantiles."""
    figure, ((axis,),) = panels(1, 1, 6, 6)
    levels = torch.arange(1, 20) / 20
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    for name, idata in held_out.items():
        share = quantile_coverage(idata.posterior_predictive["obs"], idata.observed_data["obs"], levels)
        axis.plot(levels, share, marker=".", label=name)
    axis.set(xlabel="probability of the predictive quantile", ylabel="share of held-out points below it")
    axis.set(title="Calibration: on the diagonal if calibrated")
    axis.legend()
    return figure


def plot_rates(fits: dict[str, list[Fit]], agreement: Table) -> plt.Figure:
    """A line for each run."""
    learned = {name: runs for name, runs in fits.items() if runs[0].rates}
    sites = list(next(iter(learned.values()))[0].rates)
    figure, axes = panels(len(sites), len(learned), 11, 7, sharex=True, sharey=True)
    for (name, runs), column in zip(learned.items(), axes.T, strict=True):
        for site, axis in zip(sites, column, strict=True):
            for run, one in enumerate(runs):
                axis.semilogy(one.steps, one.rates[site], label=f"run {run + 1}")
            axis.axvspan(runs[0].steps[len(runs[0].steps) // 2], runs[0].steps[-1], color="black", alpha=0.06)
            axis.set_title(f"{name}, {site}: R-hat {agreement[f'{name}, {site}']['largest']:.2f} of the grey half")
    for axis in axes[:, 0]:
        axis.set_ylabel("drop rate")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    axes[0, 0].legend()
    return figure


def plot_classes(found: dict[str, Tensor], known: Tensor, auroc: dict[str, float], held_out: list[int]) -> plt.Figure:
    """Entropy and mutual information of images of known and of held-out classes."""
    figure, (axes,) = panels(1, 2, 12, 4.5, sharey=True)
    for axis, measure in zip(axes, ("entropy", "mutual information"), strict=True):
        edges = np.linspace(0, found[measure].max().item(), 40)
        for rows, label in ((known, "known classes"), (~known, f"held-out classes {', '.join(map(str, held_out))}")):
            axis.hist(found[measure][rows], edges, density=True, alpha=0.6, label=label)
        axis.set(title=f"{measure}: AUROC {auroc[measure]:.3f}", xlabel="nats", yscale="log")
    axes[0].set_ylabel("density of test images")
    axes[0].legend()
    return figure


# Tables


def print_table(title: str, table: Table) -> None:
    print(f"\n{title}\n")
    columns = [name for name in next(iter(table.values())) if not name.endswith("±")]
    print(" " * 28 + "".join(f"{name:>20}" for name in columns))
    for name, row in table.items():
        errors = {key: f" ± {row[key + ' ±']:.3f}" if key + " ±" in row else "" for key in columns}
        print(f"{name:28}" + "".join(f"{f'{row[key]:.3f}{errors[key]}':>20}" for key in columns))


def report(results: RegressionResults | ClassificationResults) -> None:
    for name, table in vars(results).items():
        if name != "comparison" and table:
            print_table(TITLES[name], table)
    print(f"\naz.compare\n\n{results.comparison.to_string(float_format='{:.2f}'.format)}")


def main(argv: list[str] | None = None) -> Results:
    parser = argparse.ArgumentParser(
        prog="python -m examples.start.posterior_checks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", choices=("regression", "classification"), help="one part (default: both)")
    parser.add_argument("--steps", type=int, default=1000, help="SVI steps of each fit (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=500, help="posterior draws of each fit (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=3, help="runs of each guide (default: %(default)s)")
    parser.add_argument("--chains", type=int, default=2, help="of NUTS (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=100, help="NUTS steps before draws (default: %(default)s)")
    parser.add_argument("--nuts-draws", type=int, default=150, help="of each chain (default: %(default)s)")
    parser.add_argument(
        "--held-out", type=int, nargs="+", default=[7, 8, 9], choices=range(10), help="digits (default: 7 8 9)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder (default: %(default)s)")
    args = parser.parse_args(argv)
    if min(args.restarts, args.chains) < 2:
        parser.error("R-hat compares: --restarts and --chains must be 2 or more")

    pyro.settings.set(module_local_params=True)  # parameters live in the guide, not in a global store
    torch.set_num_threads(1)  # more only get in each other's way in networks this small
    regression = classification = None
    pictures: list[Path] = []
    if args.only != "classification":
        regression, made = run_regression(args)
        pictures += made
    if args.only != "regression":
        classification, made = run_classification(args)
        pictures += made
    print("\n" + "\n".join(f"wrote {path}" for path in pictures))
    return Results(regression, classification, pictures)


if __name__ == "__main__":
    main()
