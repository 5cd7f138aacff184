"""Runs of agents in their worlds: what they earn, looked at on the way, resumed where they were interrupted."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from tqdm import tqdm

from examples.common.fits import named_by
from examples.common.results import whole
from examples.mc.thompson_agents import DEMO, PAPER, POLICIES, Agents, Setting
from examples.mc.world import Worlds
from examples.mc.world_pictures import SHOWN

MARK = 200  # steps that a "batch" of the figure stands for, which the paper does not say
SAVING = 120.0  # seconds between states in a file
EVALUATION = 2_000  # steps by the mean function, at the end
WATCHED = 400  # steps of the first agent that are kept to be looked at
STOCK = Setting(discount=0.99, optimiser="adam", random=1_000, floor=20_000)
SETTINGS = {"paper": PAPER, "demo": DEMO, "CartPole-v1": STOCK, "Acrobot-v1": STOCK}


def worlds_of(setting: str, number: int) -> VectorEnv:
    if setting in ("paper", "demo"):
        return Worlds(number)
    made = [partial(gymnasium.make, setting)] * number  # which can be written to a file, as gymnasium's own cannot
    return SyncVectorEnv(made, autoreset_mode=AutoresetMode.SAME_STEP)


class Run:
    """Several agents of one policy, and what they earn: sums over ``MARK`` steps, ``[marks, agents]``."""

    def __init__(self, setting: str, policy: str, seeds: list[int], backend: str) -> None:
        self.worlds = worlds_of(setting, len(seeds))
        self.observed, _ = self.worlds.reset(seed=seeds)
        observations = self.worlds.single_observation_space.shape[0]
        actions = int(self.worlds.single_action_space.n)
        self.agents = Agents(POLICIES[policy], SETTINGS[setting], observations, actions, seeds, backend)
        self.earned: list[np.ndarray] = []
        self.ends: list[np.ndarray] = []  # of episodes
        self.rates: list[np.ndarray] = []
        self.seconds = {"world": 0.0, "acting": 0.0, "learning": 0.0}

    def mark(self) -> None:
        earned, ends = np.zeros(len(self.observed)), np.zeros(len(self.observed), int)
        for _ in range(MARK):
            reward, ended = self.step()
            earned += reward
            ends += ended
        self.earned.append(earned)
        self.ends.append(ends)
        if self.agents.rates is not None:
            self.rates.append(self.agents.rates.numpy().copy())

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        begin = time.perf_counter()
        action = self.agents.act(self.observed)
        acted = time.perf_counter()
        self.observed, reward, terminated, ended, after = stepped(self.worlds, action)
        moved = time.perf_counter()
        self.agents.remember(reward, after, terminated, ended)
        self.agents.learn()
        spent = (moved - acted, acted - begin, time.perf_counter() - moved)
        for name, seconds in zip(self.seconds, spent, strict=True):
            self.seconds[name] += seconds
        return reward, ended

    def watched(self, steps: int) -> dict[str, np.ndarray]:
        """What the first agent does in the two-dimensional world, by the mean function; ``[steps, ...]``."""
        if not isinstance(self.worlds, Worlds):
            return {}
        seen: list[dict[str, np.ndarray]] = []
        for _ in range(steps):
            seen.append({name: getattr(self.worlds, name)[0].copy() for name in SHOWN})
            self.by_mean(1)
        return {name: np.array([each[name] for each in seen]) for name in SHOWN}

    def by_mean(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """What greedy agents with the mean function earn, and how many episodes end, without learning."""
        earned, ends = np.zeros(len(self.observed)), np.zeros(len(self.observed), int)
        for _ in range(steps):
            self.observed, reward, _, ended, after = stepped(self.worlds, self.agents.greedy(self.observed))
            self.agents.see(after, ended)
            earned += reward
            ends += ended
        return earned, ends


def stepped(worlds: VectorEnv, action: np.ndarray) -> tuple[np.ndarray, ...]:
    """What is shown next, rewards, whether a world terminated, whether an episode ended, and what it showed last."""
    observed, reward, terminated, truncated, info = worlds.step(action)
    ended, after = terminated | truncated, observed
    if ended.any():
        after = observed.copy()
        after[ended] = np.stack(list(info["final_obs"][ended]))
    return observed, reward, terminated, ended, after


def run(setting: str, policy: str, options: argparse.Namespace) -> dict[str, Any]:
    """What agents earn at each mark, ``earned [marks, agents]``, and what else was seen; kept in a file."""
    seeds = list(range(options.agents))
    about = {"setting": setting, "policy": policy, **SETTINGS[setting]._asdict(), **POLICIES[policy]._asdict()}
    name = f"{setting}-{policy}".replace(", ", "-").replace(" ", "-")
    path = named_by(options.outputs / f"{name}.pt", {**about, "seeds": seeds, "marks": options.steps // MARK})
    state = torch.load(path, weights_only=False) if path.exists() else {}  # written by this script
    if "found" in state:
        return state["found"]
    made = Run(setting, policy, seeds, options.backend)
    if state:
        made.agents.restore(state.pop("agents"))
        vars(made).update(state)
    marks = max(1, options.steps // MARK)
    saved = time.monotonic()
    with tqdm(initial=len(made.earned), total=marks, desc=name, disable=None) as bar:
        while len(made.earned) < marks:
            made.mark()
            bar.update()
            bar.set_postfix(reward=float(made.earned[-1].mean() / MARK))
            if time.monotonic() - saved > SAVING and made.agents.learns:
                write(path, {**without_agents(made), "agents": made.agents.state()})
                saved = time.monotonic()
    seconds, steps = dict(made.seconds), len(made.earned) * MARK
    greedy, ends = made.by_mean(min(EVALUATION, options.steps))
    found = {
        "earned": np.array(made.earned),
        "ends": np.array(made.ends),
        "rates": np.array(made.rates),
        "greedy": greedy,
        "greedy ends": ends,
        "watched": made.watched(min(WATCHED, options.steps)),
        "seconds": seconds,
        "steps": steps,
    }
    write(path, {"found": found})
    return found


def without_agents(made: Run) -> dict[str, Any]:
    return {name: value for name, value in vars(made).items() if name != "agents"}


def write(path: Path, state: dict[str, Any]) -> None:
    with whole(path) as file:
        torch.save(state, file)
