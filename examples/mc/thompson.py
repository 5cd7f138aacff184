"""Thompson sampling by dropout against ε-greedy exploration (MC section 5.4, figures 5 and 6), and beside them.

Agents with nine eyes, in worlds of their own, learn what to eat: ε-greedy ones; Thompson sampling by one kept function
for each action, or for 20 actions; ε-greedy ones with the same dropout network, which parts exploration from
regularisation; and Thompson sampling with learned rates. ``--setting paper`` is the first version of the paper,
``demo`` the authors' demo (with a memory, other rates and decay). Reward is a mean over the last 1,000 steps, and a
"batch" 200 steps. The same agents on stock environments: ``--setting CartPole-v1``, ``--setting Acrobot-v1``, with
Adam and a discount of 0.99, where what counts is the return of episodes.

Ten agents learn by one compiled step. A run goes on from its last state. ``python -m examples.mc.thompson --help``
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from examples.common.arguments import add_backend, add_outputs, count, parsed, script, settle
from examples.common.engines import add_engine, spread
from examples.common.pictures import panels, save
from examples.common.results import whole
from examples.common.verdicts import interval, larger
from examples.mc.thompson_agents import POLICIES
from examples.mc.thompson_runs import EVALUATION, MARK, SETTINGS, run
from examples.mc.world_pictures import film, path_of

WINDOW = 5  # marks: 1,000 steps
GOAL = 1.0  # reward that the paper looks at
WORLDS = ("paper", "demo")

Found = dict[str, dict[str, Any]]  # by policy


def main(arguments: list[str] | None = None) -> Found:
    parser = script("mc.thompson", __doc__)
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="paper", help="(default %(default)s)")
    parser.add_argument("--agents", type=count, default=10, help="of each policy, one for each seed (default 10)")
    parser.add_argument("--steps", type=count, default=300_000, help="(default 300,000; published about the same)")
    parser.add_argument("--processes", type=count, default=1, help="that share the policies (default 1)")
    add_engine(parser)
    add_backend(parser)
    add_outputs(parser, default="outputs/thompson")
    options = parsed(parser, arguments, {"agents": 2, "steps": 1_400, "backend": "eager"})
    runs = spread(_settled, [(policy,) for policy in POLICIES], options)
    found = dict(zip(POLICIES, runs, strict=True))
    text = tables(found, options)
    print(f"\n{text}\n")
    with whole(options.outputs / f"{options.setting}.md") as file:
        file.write_text(text + "\n")
    paths = [options.outputs / f"{options.setting}.md", draw(found, options)]
    if watched := found["Thompson"].get("watched"):
        paths += [path_of(watched, options.outputs / f"{options.setting}-path.png")]
        paths += [film(watched, options.outputs / f"{options.setting}.gif")]
    for path in paths:
        print(f"written to {path}")
    return found


def _settled(policy: str, options: argparse.Namespace) -> dict[str, Any]:
    settle(0)
    return run(options.setting, policy, options)


def tables(found: Found, options: argparse.Namespace) -> str:
    title = f"{options.setting}, {options.agents} agents, {options.steps:,} steps: medians (quartiles) over agents"
    return "\n\n".join(
        [title, rewards_table(found, options.setting), "\n".join(claims(found, options.setting)), times(found)]
    )


def course(of: dict[str, Any], setting: str) -> np.ndarray:
    """Reward of a step, mean over the last 1,000; of episodes their mean return. ``[marks, agents]``."""
    earned, ends = (
        np.array([each[max(0, i + 1 - WINDOW) : i + 1].sum(0) for i in range(len(each))])
        for each in (of["earned"], of["ends"])
    )
    if setting in WORLDS:
        steps = MARK * np.minimum(np.arange(1, len(earned) + 1), WINDOW)
        return earned / steps[:, None]
    return earned / np.maximum(ends, 1)


def until(of: dict[str, Any], setting: str) -> np.ndarray:
    """Batches after the random steps until the reward is first that of the goal; infinite where it never is."""
    there = course(of, setting) >= GOAL
    first = np.where(there.any(0), there.argmax(0) + 1.0, np.inf)
    return np.maximum(first - SETTINGS[setting].random / MARK, 1)


def late(of: dict[str, Any], setting: str) -> np.ndarray:
    """Reward of each agent when ε has come down; in the last quarter, if it has not."""
    marks = len(of["earned"])
    begin = min(SETTINGS[setting].floor // MARK, 3 * marks // 4)
    earned, ends = of["earned"][begin:].sum(0), of["ends"][begin:].sum(0)
    return earned / (MARK * (marks - begin)) if setting in WORLDS else earned / np.maximum(ends, 1)


def by_mean(of: dict[str, Any], setting: str) -> np.ndarray:
    steps = min(EVALUATION, of["steps"])
    return of["greedy"] / (steps if setting in WORLDS else np.maximum(of["greedy ends"], 1))


def rewards_table(found: Found, setting: str) -> str:
    what = "reward of a step" if setting in WORLDS else "return of an episode"
    columns = [
        "policy",
        f"batches until {what} {GOAL:g}" if setting in WORLDS else "best",
        "late",
        "by the mean function",
    ]
    lines = [f"| {' | '.join(columns)} |", "| --- " * 4 + "|"]
    for policy, of in found.items():
        first = until(of, setting) if setting in WORLDS else course(of, setting).max(0)
        cells = [quartiles(each) for each in (first, late(of, setting), by_mean(of, setting))]
        lines.append(f"| {policy} | {' | '.join(cells)} |")
    return f"{what}\n\n" + "\n".join(lines)


def quartiles(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="closest_observation")
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def claims(found: Found, setting: str) -> list[str]:
    greedy, thompson, concrete = (found[name] for name in ("ε-greedy", "Thompson", "Thompson, Concrete"))

    def ahead(one: np.ndarray, other: np.ndarray) -> str:
        low, high = interval(one - other)
        return f"{larger(one - other)} ({np.mean(one - other):+.3f}, {low:+.3f} to {high:+.3f})"

    lines = []
    if setting in WORLDS:
        first, second = until(greedy, setting), until(thompson, setting)
        both = np.isfinite(first) & np.isfinite(second)
        sooner = np.log(first[both] / second[both])
        low, high = np.exp(interval(sooner))
        times_sooner = f"{np.exp(sooner.mean()):.1f} times, {low:.1f} to {high:.1f}" if both.any() else "never"
        lines.append(
            f"* 1. Thompson sampling reaches {GOAL:g} sooner: {larger(sooner)} ({times_sooner}; published 7; "
            f"{both.sum()} of {len(both)} pairs of agents reach it)"
        )
    rewards = {name: late(of, setting) for name, of in found.items()}
    plain, drawn = rewards["ε-greedy"], rewards["Thompson"]
    learned = late(concrete, setting)
    return [
        *lines,
        f"* 2. late, ε-greedy is ahead of Thompson sampling: {ahead(plain, drawn)}; of the dropout network's mean "
        f"function: {ahead(plain, by_mean(thompson, setting))}",
        f"* 3. learned rates mend it: Concrete ahead of fixed rates {ahead(learned, drawn)}, of ε-greedy "
        f"{ahead(learned, plain)}",
        f"* exploration or regularisation: with the same dropout network, Thompson ahead of ε-greedy "
        f"{ahead(drawn, rewards['ε-greedy, dropout'])}, ε-greedy with dropout ahead of without "
        f"{ahead(rewards['ε-greedy, dropout'], plain)}",
        f"* a function kept for 20 steps ahead of one for each: {ahead(rewards['Thompson, 20 steps'], drawn)}",
    ]


def times(found: Found) -> str:
    lines = ["| policy | steps a second | environment | acting | learning |", "| --- " * 5 + "|"]
    for policy, of in found.items():
        total = sum(of["seconds"].values())
        shares = " | ".join(f"{100 * of['seconds'][part] / total:.0f} %" for part in ("world", "acting", "learning"))
        lines.append(f"| {policy} | {of['steps'] / total:,.0f} | {shares} |")
    return "\n".join(lines)


def draw(found: Found, options: argparse.Namespace) -> object:
    learned = found["Thompson, Concrete"]["rates"]
    figure, axes = panels(1, 2, 11, 4, width_ratios=[2, 1])
    for number, (policy, of) in enumerate(found.items()):
        curve = course(of, options.setting)
        batches = np.arange(WINDOW, len(curve) + 1)
        low, middle, high = np.quantile(curve[WINDOW - 1 :], [0.25, 0.5, 0.75], axis=1)
        axes[0, 0].plot(batches, middle, color=f"C{number}", label=policy)
        axes[0, 0].fill_between(batches, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    what = "reward of a step" if options.setting in WORLDS else "return of an episode"
    axes[0, 0].set(xscale="log", xlabel=f"batches of {MARK} steps", ylabel=f"{what}, means of 1,000 steps")
    axes[0, 0].legend(fontsize=7)
    for layer in range(learned.shape[-1] if len(learned) else 0):
        if learned[..., layer].any():
            marks = (
                np.arange(len(found["Thompson, Concrete"]["earned"]) - len(learned), len(found["ε-greedy"]["earned"]))
                + 1
            )
            axes[0, 1].plot(marks, np.median(learned[..., layer], 1), label=f"inputs of layer {layer + 1}")
    axes[0, 1].set(xscale="log", xlabel=f"batches of {MARK} steps", ylabel="learned rate, median")
    axes[0, 1].legend(fontsize=7)
    return save(figure, options.outputs / f"{options.setting}.png")


if __name__ == "__main__":
    main()
