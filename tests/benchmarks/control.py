"""Control: the two-dimensional world, acting by one drawn function, steps of one agent and of ten."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
import pyro
import torch

from examples.mc.thompson_agents import PAPER, POLICIES, START, Agents, network
from examples.mc.thompson_runs import Run
from examples.mc.world import INPUTS, WHEELS, Worlds
from tests.benchmarks.measure import Row, interleaved

STEPS, SEEDS = 300_000, 10
WARM = START + 400  # steps before time is taken: learning has begun, and its step is compiled


def control(repeats: int) -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pyro.settings.context(module_local_params=True):
            return list(_rows(repeats))
    finally:
        torch.set_num_threads(threads)


def _rows(repeats: int) -> Iterator[Row]:
    worlds, forwards = Worlds(SEEDS), np.zeros(SEEDS, int)
    worlds.reset(seed=0)
    random = np.random.default_rng(0)
    actions = random.integers(len(WHEELS), size=(500, SEEDS))
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        for action in actions:
            worlds.step(action)
        rates.append(len(actions) * len(forwards) / (time.perf_counter() - start))
    yield Row(f"steps a second of {SEEDS} worlds", f"{statistics.median(rates):,.0f}", "", "", "≥ 20,000")
    agents = Agents(POLICIES["Thompson"], PAPER, INPUTS, len(WHEELS), [0], backend="eager")
    for _ in range(START):
        agents.act(random.random((1, INPUTS)))
        agents.remember(np.ones(1), random.random((1, INPUTS)), np.zeros(1, bool), np.zeros(1, bool))
    agents.learn()
    net, state = network(INPUTS, len(WHEELS)), torch.rand(1, 1, INPUTS)

    @torch.no_grad()
    def plain() -> torch.Tensor:
        return net(state[0])

    kept = agents.noise(1)
    work = f"values of a state by one {{}} function, 27-50-50-{len(WHEELS)} / forward pass of the network"
    yield interleaved(work.format("kept"), lambda: agents.values(state, kept), plain, "≤ 2", repeats, 500)
    yield interleaved(work.format("new"), lambda: agents.values(state, agents.noise(1)), plain, "", repeats, 500)
    for number, minutes in ((1, 6), (SEEDS, 30)):
        run = Run("paper", "Thompson", list(range(number)), "inductor")
        for _ in range(WARM):
            run.step()
        time.sleep(20)  # the compiler
        for _ in range(WARM):
            run.step()
        run.seconds = dict.fromkeys(run.seconds, 0.0)
        for _ in range(200 * repeats):
            run.step()
        total = sum(run.seconds.values())
        a_second = 200 * repeats / total
        shares = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in run.seconds.items())
        what = f"{STEPS:,} steps of {number} agent{'s' if number > 1 else ''}, {a_second:,.0f} a second: {shares}"
        yield Row(what, f"{STEPS / a_second / 60:.2g} min", "", "", f"≤ {minutes} min")
