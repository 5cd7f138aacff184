"""Learned rates of a dynamics model whose data grow (CD section 4.5, figure 9): swinging up a pendulum on a cart.

After each episode an agent goes on fitting how the system moves to all that it saw, with rates that are learned or stay
at 0.1, then improves its policy by gradients through drawn functions, each kept for a whole simulated episode. What is
measured: the rates of the three layers, the epistemic deviation of the four outputs on held-out changes, reward. The
number of data that the prior is weighed by is always the current one. Besides, the same dynamics on data of scripted
policies (random forces, then pumping energy), where both arms see the same.

A run goes on from its last episode. ``python -m examples.concrete.cartpole --help``
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from examples.common.arguments import add_backend, add_outputs, count, parsed, script, settle
from examples.common.engines import add_engine, spread
from examples.common.fits import named_by
from examples.common.pictures import panels, save
from examples.common.results import whole
from examples.common.verdicts import interval, larger
from examples.concrete.cartpole_agent import Plan, run

ARMS = {"fixed, 0.1": False, "learned": True}
LAYERS = ("inputs", "second layer", "third layer")
OUTPUTS = ("place, m", "velocity, m/s", "angle, rad", "angular velocity, rad/s")
PUBLISHED = 16.5  # reward in 25 steps
LAST = 5  # episodes that a reward is the mean of

Found = dict[str, list[list[dict[str, Any]]]]  # by arm the histories of its seeds


def main(arguments: list[str] | None = None) -> dict[str, Found]:
    parser = script("concrete.cartpole", __doc__)
    parser.add_argument("--episodes", type=count, default=40, help="(default 40)")
    parser.add_argument("--seeds", type=count, default=3, help="runs of each arm (default 3)")
    parser.add_argument("--policies", type=count, help="of them that also plan for themselves (default all)")
    for name, default in Plan()._asdict().items():
        parser.add_argument(f"--{name}", type=count, default=default, help="(default %(default)s)")
    parser.add_argument("--processes", type=count, default=1, help="that share the runs (default 1)")
    add_engine(parser)
    add_backend(parser)
    add_outputs(parser, default="outputs/cartpole")
    quick = {"episodes": 3, "seeds": 2, "fits": 30, "updates": 2, "particles": 4, "draws": 5, "backend": "eager"}
    options = parsed(parser, arguments, quick)
    numbers = {True: options.seeds, False: options.policies or options.seeds}  # by whether actions are of a script
    tasks = [(scripted, arm, seed) for scripted, n in numbers.items() for seed in range(n) for arm in ARMS]
    histories = spread(_run, tasks, options)
    found: dict[str, Found] = {name: {arm: [] for arm in ARMS} for name in ("policy", "scripted")}
    for (scripted, arm, _), history in zip(tasks, histories, strict=True):
        found["scripted" if scripted else "policy"][arm].append(history)
    text = "\n\n".join([tables(found, options), "\n".join(claims(found))])
    print(f"\n{text}\n")
    with whole(options.outputs / "cartpole.md") as file:
        file.write_text(text + "\n")
    for path in (options.outputs / "cartpole.md", draw(found, options)):
        print(f"written to {path}")
    return found


def _run(scripted: bool, arm: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    settle(seed)
    plan = Plan(*(getattr(options, name) for name in Plan._fields))
    data = "scripted" if scripted else "policy"
    settings = {**plan._asdict(), "episodes": options.episodes, "data": data, "arm": arm, "seed": seed}
    path = named_by(options.outputs / f"{data}-{'learned' if ARMS[arm] else 'fixed'}-{seed}.pt", settings)
    return run(path, ARMS[arm], seed, options.episodes, plan, options.backend, scripted)


def course(histories: list[list[dict[str, Any]]], what: str) -> np.ndarray:
    """``[seeds, episodes, ...]``."""
    return np.array([[seen[what] for seen in history] for history in histories], float)


def fallen(histories: list[list[dict[str, Any]]], what: str) -> np.ndarray:
    """By how much the logarithm is lower in the last third of the episodes than in the first, ``[seeds, ...]``."""
    values = np.log(np.maximum(course(histories, what), 1e-6))
    third = max(1, values.shape[1] // 3)
    return values[:, :third].mean(1) - values[:, -third:].mean(1)


def tables(found: dict[str, Found], options: argparse.Namespace) -> str:
    numbers = ", ".join(f"{len(arms['learned'])} of {data}" for data, arms in found.items())
    lines = [f"{options.episodes} episodes, seeds: {numbers}; means over them, first and last third of episodes"]
    lines += ["", f"| data, rates | {' | '.join(LAYERS)} | {' | '.join(OUTPUTS)} | reward, last {LAST} |"]
    lines += ["| --- " * (2 + len(LAYERS) + len(OUTPUTS)) + "|"]
    third = max(1, options.episodes // 3)
    for data, arms in found.items():
        for arm, histories in arms.items():
            cells = []
            for what in ("rates", "epistemic"):
                values = course(histories, what).mean(0)
                first, last = values[:third].mean(0), values[-third:].mean(0)
                cells += [f"{a:.3f}, {b:.3f}" for a, b in zip(first, last, strict=True)]
            reward = course(histories, "reward")[:, -LAST:].mean(1)
            cells.append(f"{reward.mean():.1f} ({reward.min():.1f} to {reward.max():.1f})")
            lines.append(f"| {data}, {arm} | {' | '.join(cells)} |")
    seconds = {arm: course(histories, "seconds").mean((0, 1)) for arm, histories in found["policy"].items()}
    spent = "; ".join(f"{arm}: {fit:.1f} s fitting, {plan:.1f} s planning" for arm, (fit, plan) in seconds.items())
    return "\n".join([*lines, "", f"An episode takes, {spent}. Published reward: {PUBLISHED}."])


def claims(found: dict[str, Found]) -> list[str]:
    lines = []
    for data, arms in found.items():
        learned, fixed = arms["learned"], arms["fixed, 0.1"]
        rates = fallen(learned, "rates")
        falls = ", ".join(f"{name} {said(rates[:, i])}" for i, name in enumerate(LAYERS))
        lines.append(f"* 1. {data}: learned rates fall, as the logarithm of a factor: {falls}")
        own, other = fallen(learned, "epistemic"), fallen(fixed, "epistemic")
        for name, values in (("falls", own), ("falls more than with the fixed rate", own - other)):
            parts = ", ".join(f"{output} {said(values[:, i])}" for i, output in enumerate(OUTPUTS))
            lines.append(f"* 2. {data}: epistemic deviation {name}: {parts}")
    rewards = {arm: course(histories, "reward")[:, -LAST:].mean(1) for arm, histories in found["policy"].items()}
    ahead, of_published = said(rewards["learned"] - rewards["fixed, 0.1"]), said(rewards["learned"] - PUBLISHED)
    lines.append(f"* 3. the reward is above that with the fixed rate: {ahead}; above the published one: {of_published}")
    return lines


def said(differences: np.ndarray) -> str:
    low, high = interval(differences)
    return f"{larger(differences)} ({differences.mean():+.2f}, {low:+.2f} to {high:+.2f})"


def draw(found: dict[str, Found], options: argparse.Namespace) -> object:
    figure, axes = panels(2, 6, 18, 6)
    for line, (data, arms) in zip(axes, found.items(), strict=True):
        episodes = np.arange(1, options.episodes + 1)
        for number, name in enumerate(LAYERS):
            line[0].plot(episodes, course(arms["learned"], "rates").mean(0)[:, number], label=name)
        line[0].set(ylabel=f"{data}: learned rate", xlabel="episodes")
        line[0].legend(fontsize=7)
        for number, name in enumerate(OUTPUTS):
            for arm, histories in arms.items():
                line[1 + number].plot(episodes, course(histories, "epistemic").mean(0)[:, number], label=arm)
            line[1 + number].set(title=f"epistemic deviation: {name}", xlabel="episodes", yscale="log")
            line[1 + number].title.set_fontsize(9)
        for arm, histories in arms.items():
            line[5].plot(episodes, course(histories, "reward").mean(0), label=arm)
        line[5].set(title="reward", xlabel="episodes")
        line[5].legend(fontsize=7)
    return save(figure, options.outputs / "cartpole.png")


if __name__ == "__main__":
    main()
