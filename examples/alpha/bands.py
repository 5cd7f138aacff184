"""What α changes: one dropout network, three divergences, on data that one curve with constant noise cannot describe.

``RenyiDropout_ELBO(alpha)`` is the ELBO at α = 0: every draw of the network must explain every point, so what a curve
cannot follow becomes noise, of one size everywhere. At α = 1 the draws share the work: a point is explained where some
of them pass through it, so masks learn to be the noise that the likelihood lacks (Li & Gal 2017, section 4).

Two sets of data (after Depeweg et al. 2017), e standard normal: "bimodal", ``y = 10 sin x + e`` or ``10 cos x + e``
with even chances, and "heteroscedastic", ``y = 7 sin x + 3 |cos(x / 2)| e``. Network, starts, batches and steps are the
same for every α: the training loop differs by its loss alone. The noise precision is learned, so that no α is held to
a noise that suits another. Several networks are fitted at once, in a plate, each with its own data, start and masks;
"±" is the standard error over them.

What to look at. 90 % intervals of the ELBO can be right on average: the table splits the test points where the truth
is wide and where it is narrow. On the heteroscedastic data they are over-confident in the one half and too wide in the
other; on the bimodal data they cover enough, of a density that has its mode between the branches, which is why half of
the mass holds a third of the points. RMSE hardly tells the fits apart.

What to beware of. Where masks act as noise (last column: their share of the predictive variance), "epistemic" variance
is no longer what more data would remove. And α = 0.5 has two optima on the bimodal data: from here it ends in the
ELBO's; the last fit, which starts at α = 1, keeps both branches. All it takes is that ``alpha`` may be a function.

``python -m examples.alpha.bands --help``
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive
from pyro.nn import PyroModule
from torch import Tensor
from tqdm import trange

from examples.common.arguments import add_outputs, add_seed, script, settle
from examples.common.pictures import save
from models.regression import mlp
from pyro_dropout import AutoConcreteDropout, BayesianModule, RenyiDropout_ELBO, init_to_module
from pyro_dropout.metrics import interval_coverage, predictive_log_likelihood, predictive_moments

POINTS, BATCH, TEST_POINTS, DRAWS, PARTICLES = 500, 50, 500, 1000, 10
SHOWN = ("α = 0", "α = 0.5", "α = 1")
Score = dict[str, Tensor]  # by name of the measure one value for each network


def bimodal(x: Tensor) -> dist.Distribution:
    """Two branches that cross, with constant noise."""
    branches = dist.Normal(10 * torch.stack([x.sin(), x.cos()], -1), 1.0)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(*x.shape, 2)), branches)


def heteroscedastic(x: Tensor) -> dist.Distribution:
    """One curve, with noise that comes and goes."""
    return dist.Normal(7 * x.sin(), 3 * (x / 2).cos().abs())


TRUTHS = {"bimodal": (bimodal, 2.0), "heteroscedastic": (heteroscedastic, 4.0)}  # x is uniform between ± the number


@dataclass(frozen=True)
class Data:
    """``[networks, points]``, in the units of the formulas; the networks see x and y divided by their scales."""

    truth: Callable[[Tensor], dist.Distribution]
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    grid: Tensor

    @classmethod
    def draw(cls, name: str, networks: int) -> Data:
        """Training and test points for each network, and a grid for the picture."""
        truth, width = TRUTHS[name]
        x, x_test = (width * (2 * torch.rand(networks, n) - 1) for n in (POINTS, TEST_POINTS))
        grid = torch.linspace(-width, width, 201).expand(networks, -1)
        return cls(truth, x, truth(x).sample(), x_test, truth(x_test).sample(), grid)

    def features(self, x: Tensor) -> Tensor:
        """What the networks see of x."""
        return (x / self.x.std()).unsqueeze(-1)


class Networks(PyroModule):
    """As ``models.Regression``, several at once: inputs are ``[networks, points, 1]``."""

    def __init__(self, networks: int) -> None:
        super().__init__()
        self.networks = networks
        self.net = BayesianModule(mlp(1, (30, 30)), prior=dist.Normal(0.0, 1.0), event_dim=1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        points = x.shape[1]
        with pyro.plate("networks", self.networks, dim=-2):
            mean = self.net(x).squeeze(-1)
            precision = pyro.sample("precision", dist.Gamma(x.new_full((), 0.1), 0.01))
            with pyro.plate("data", max(POINTS, points), subsample_size=points, dim=-1):
                pyro.deterministic("mean", mean, event_dim=0)
                return pyro.sample("obs", dist.Normal(mean, precision.rsqrt()), obs=y)


def losses(steps: int) -> dict[str, RenyiDropout_ELBO]:
    """All that differs between the fits."""
    falling = itertools.chain(itertools.repeat(1.0, 3 * steps // 4), itertools.repeat(0.5))
    alphas = {"α = 0": 0.0, "α = 0.5": 0.5, "α = 1": 1.0, "α = 1, then 0.5": lambda: next(falling)}
    return {name: RenyiDropout_ELBO(alpha, PARTICLES, max_plate_nesting=2) for name, alpha in alphas.items()}


def start(site: dict[str, Any]) -> Tensor | None:
    """Each network starts from weights of its own, and with all of y (in its own units) as noise."""
    if site["name"] == "precision":
        return torch.ones(site["fn"].shape())
    return init_to_module({**site, "infer": {}})  # without the module's values, which all networks would share


def fit(data: Data, loss: RenyiDropout_ELBO, steps: int, name: str) -> SVI:
    """A plain SVI loop."""
    x, y = data.features(data.x), data.y / data.y.std()
    model = Networks(len(x))
    guide = AutoConcreteDropout(
        model,
        rate={"net.0.weight": 0.0, "net.2.weight": 0.2, "net.4.weight": 0.2},  # the only input is never dropped
        per_unit=True,
        init_loc_fn=start,
    )
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.1 ** (1 / steps)}), loss)
    for _ in trange(steps, desc=name, unit="step", disable=None):
        rows = torch.randperm(POINTS)[:BATCH]
        svi.step(x[:, rows], y[:, rows])
    return svi


def predict(svi: SVI, data: Data, x: Tensor) -> dict[str, Tensor]:
    """Draws of ``mean``, noise ``deviation`` and ``obs``, ``[draws, networks, points]``, in units of y."""
    drawn = Predictive(svi.model, guide=svi.guide, num_samples=DRAWS, parallel=True)(data.features(x))
    drawn["deviation"] = drawn["precision"].rsqrt()
    return {name: drawn[name] * data.y.std() for name in ("mean", "deviation", "obs")}


def score(density: Tensor, mean: Tensor, obs: Tensor, data: Data) -> Score:
    """Of log-densities and means of the test points, and draws of ``obs`` for the intervals of the mixture."""

    def coverage(probability: float, part: Tensor) -> Tensor:
        cases = zip(obs.unbind(1), data.y_test, part, strict=True)
        return torch.tensor([interval_coverage(draws[:, rows], y[rows], probability) for draws, y, rows in cases])

    spread = data.truth(data.x_test).stddev
    wide = spread > spread.median()
    return {
        "RMSE": (mean - data.y_test).square().mean(1).sqrt(),
        "log-likelihood": density.mean(1),
        "in 50 %": coverage(0.5, torch.ones_like(wide)),
        "in 90 %": coverage(0.9, torch.ones_like(wide)),
        "wide half": coverage(0.9, wide),
        "narrow half": coverage(0.9, ~wide),
    }


def evaluate(drawn: dict[str, Tensor], data: Data) -> Score:
    """Scores of a fit, and the share of its predictive variance that comes from masks."""
    moments = predictive_moments(drawn["mean"], drawn["deviation"].square())
    density = predictive_log_likelihood(dist.Normal(drawn["mean"], drawn["deviation"]).log_prob(data.y_test))
    share = moments.epistemic.mean(1) / moments.variance.mean(1)
    return {**score(density, moments.mean, drawn["obs"], data), "from masks": share}


def report(scores: dict[str, Score]) -> None:
    """Prints means and standard errors over networks."""
    names = list(scores["α = 0"])
    print(f"\nTest points. Halves: where the truth is wide and where it is narrow, in 90 % intervals\n{'':16}", end="")
    print("".join(f"{name:>17}" for name in names))
    for row, values in scores.items():
        cells = (f"{v.mean():.3f} ± {v.std(correction=len(v) > 1) / math.sqrt(len(v)):.3f}" for v in values.values())
        print(f"{row:16}" + "".join(f"{cell:>17}" for cell in cells))


def plot(curves: dict[str, dict[str, Tensor]], scores: dict[str, Score], data: Data, path: Path) -> None:
    """Predictive density, intervals and mean of the first network, on its data."""
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(14, 5), sharex=True, sharey=True, layout="constrained")
    x, limit = data.grid[0], 1.25 * data.y.abs().max()
    y = torch.linspace(-limit, limit, 241)
    for axis, name in zip(axes, SHOWN, strict=True):
        mean, deviation = curves[name]["mean"][:, 0], curves[name]["deviation"][:, 0]
        normals = dist.Normal(mean, deviation)
        density = torch.stack([predictive_log_likelihood(normals.log_prob(value)) for value in y]).exp()
        below = torch.stack([normals.cdf(value).mean(0) for value in y])  # its contours are quantiles of the mixture
        axis.pcolormesh(x.numpy(), y.numpy(), density.sqrt().numpy(), cmap="Blues", vmin=0, vmax=0.6, shading="gouraud")
        axis.scatter(data.x[0], data.y[0], s=6, color="black", alpha=0.5, linewidths=0, label="training data")
        for levels, style in (((0.05, 0.95), "-"), ((0.25, 0.75), "--")):
            axis.contour(x, y, below, levels=levels, colors="tab:red", linestyles=style, linewidths=1.2)
            axis.plot([], [], style, color="tab:red", label=f"{levels[1] - levels[0]:.0%} interval")
        axis.plot(x, mean.mean(0), color="tab:orange", lw=2, label="mean")
        log_likelihood, rmse = (scores[name][key].mean() for key in ("log-likelihood", "RMSE"))
        axis.set(title=f"{name}: test log-likelihood {log_likelihood:.2f}, RMSE {rmse:.2f}", xlabel="x")
    axes[0].set_ylabel("y")
    figure.suptitle(f"Predictive density of one network on {data.truth.__name__} data; scores of {len(data.x)}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Score]:
    parser = script("alpha.bands", __doc__)
    parser.add_argument("--data", choices=TRUTHS, default="bimodal", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="SVI steps of each fit (default: %(default)s)")
    parser.add_argument("--networks", type=int, default=5, help="repetitions (default: %(default)s)")
    add_seed(parser)
    add_outputs(parser)
    args = parser.parse_args(argv)

    settle(args.seed)
    data = Data.draw(args.data, args.networks)
    truth = data.truth(data.x_test)
    scores = {"the truth": score(truth.log_prob(data.y_test), truth.mean, truth.sample((DRAWS,)), data)}
    curves = {}
    for name, loss in losses(args.steps).items():
        pyro.set_rng_seed(args.seed + 1)  # the same start, batches and mask noise for all
        svi = fit(data, loss, args.steps, name)
        scores[name] = evaluate(predict(svi, data, data.x_test), data)
        curves[name] = predict(svi, data, data.grid)
    report(scores)
    picture = args.outputs / f"alpha_divergence_{args.data}.png"
    plot(curves, scores, data, picture)
    print(f"\nwrote {picture}")
    return scores


if __name__ == "__main__":
    main()
