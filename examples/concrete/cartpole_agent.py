"""An agent that learns how a system moves, and plans by functions drawn of it (CD section 4.5)."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor, nn
from tqdm import tqdm

from examples.concrete.cartpole_world import FORCE, SPREAD, STEPS, SwingUps, rewards
from models.control import Dynamics, functions, masks_of
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    CompiledSVI,
    DropoutPredictive,
    TraceDropout_ELBO,
    init_to_module,
    load_checkpoint,
    save_checkpoint,
)

HIDDEN, BATCH, HELD_OUT = 200, 100, 10  # units of each layer; of a step of the dynamics; every tenth change is held out
RATE, TEMPERATURE, LENGTHSCALE = 0.1, 0.1, 0.2
LAYERS = (0, 2, 4)
SCALES = torch.tensor([0.5, 2.0, math.pi, 6.0])  # of place, velocity, angle and angular velocity
CHANGES = torch.tensor([0.2, 1.0, 0.5, 3.0])  # of these, in a step


class Plan(NamedTuple):
    """How long an agent learns after each episode.

    :param fits: steps of the dynamics.
    :param updates: of the policy.
    :param particles: that are simulated.
    :param draws: of the measured deviation.
    """

    fits: int = 5_000
    updates: int = 1_000
    particles: int = 10
    draws: int = 100


class Policy(nn.Module):
    """Gaussian basis functions of place, velocity, sine and cosine of the angle and angular velocity; a force in N."""

    def __init__(self, functions: int = 50) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(functions, 5))
        self.log_widths = nn.Parameter(torch.zeros(5))
        self.weights = nn.Parameter(0.1 * torch.randn(functions))

    def forward(self, state: Tensor) -> Tensor:
        place, velocity, angle, turning = (state / SCALES).unbind(-1)
        angle = angle * SCALES[2]
        features = torch.stack([place, velocity, angle.sin(), angle.cos(), turning], -1)
        distance = ((features.unsqueeze(-2) - self.centres) * (-self.log_widths).exp()).square().sum(-1)
        return FORCE * ((-0.5 * distance).exp() @ self.weights).sin()


class Agent:
    """Its data, its dynamics and its policy; an episode after the other.

    :param learned: whether rates are learned; else they stay at 0.1.
    """

    def __init__(self, learned: bool, seed: int, backend: str = "inductor", lengthscale: float = LENGTHSCALE) -> None:
        pyro.set_rng_seed(seed)
        self.learned, self.seed = learned, seed
        self.model = Dynamics(5, 4, size=1, hidden=(HIDDEN, HIDDEN), lengthscale=lengthscale)
        if learned:
            self.guide: Any = AutoConcreteDropout(self.model, RATE, temperature=TEMPERATURE, rest=_rest)
        else:
            self.guide = AutoBernoulliDropout(self.model, RATE, rest=_rest)
        self.guide(torch.zeros(BATCH, 5), torch.zeros(BATCH, 4))
        self.optim = pyro.optim.Adam({"lr": 1e-3})
        self.svi = CompiledSVI(self.model, self.guide, self.optim, TraceDropout_ELBO(), backend=backend, progress=False)
        self.policy = Policy()
        self.planner = torch.optim.Adam(self.policy.parameters(), 1e-3)
        self.inputs, self.outputs = torch.empty(0, 5), torch.empty(0, 4)  # all changes that were seen, scaled
        self.history: list[dict[str, Any]] = []

    # In the world

    def episode(self, number: int, how: str) -> float:
        """Acts in the world and keeps what it saw; the reward.

        :param how: ``"random"`` forces, those of the ``"policy"``, or ``"pumping"`` energy into the pendulum.
        """
        world, random = SwingUps(1), np.random.default_rng([self.seed, number])
        state, _ = world.reset(seed=10_000 * self.seed + number)
        earned, seen = 0.0, []
        for _ in range(STEPS):
            force = self._force(how, state[0], random)
            after, reward, *_ = world.step([[force]])
            seen.append((state[0], force, after[0]))
            earned, state = earned + float(reward[0]), after
        before, forces, after = (torch.tensor(np.array(each), dtype=torch.float32) for each in zip(*seen, strict=True))
        self.inputs = torch.cat([self.inputs, as_inputs(before, forces)])
        self.outputs = torch.cat([self.outputs, (after - before) / CHANGES])
        return earned

    def _force(self, how: str, state: np.ndarray, random: np.random.Generator) -> float:
        if how == "random":
            return random.uniform(-FORCE, FORCE)
        if how == "pumping":  # pushes against the way the tip moves, and back to the middle; with some noise
            pushed = FORCE * np.sign(state[3] * np.cos(state[2]) + 1e-6) * 0.6 - 2 * state[0] - state[1]
            return float(np.clip(pushed + random.normal(0, 2), -FORCE, FORCE))
        with torch.no_grad():
            return float(self.policy(torch.from_numpy(state)))

    def parts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Changes to learn from, and those that are held out."""
        out = torch.arange(len(self.inputs)) % HELD_OUT == HELD_OUT - 1
        return (self.inputs[~out], self.outputs[~out]), (self.inputs[out], self.outputs[out])

    # What it learns

    def fit(self, steps: int) -> None:
        """Goes on with the dynamics, on all data that there are; the prior counts as much as their number says."""
        (x, y), _ = self.parts()
        self.model.size.fill_(len(x))
        for begin in range(0, steps, 500):
            rows = torch.randint(len(x), (min(500, steps - begin), BATCH))
            self.svi.scan(x[rows], y[rows])

    def plan(self, updates: int, particles: int) -> float:
        """Improves the policy by gradients through drawn functions; the reward that it expects at the end."""
        expected = torch.zeros(())
        for _ in range(updates):
            expected = self.expected(particles)
            self.planner.zero_grad()
            (-expected).backward()
            nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
            self.planner.step()
        return float(expected.detach())

    def expected(self, particles: int) -> Tensor:
        """Reward of an episode, mean over particles; each has one function for all of it.

        After each step the particles are drawn anew from a Gaussian of their mean and deviation (moment matching).
        """
        layers, masks = self.functions(particles)
        noise = self.guide.median()["precision"].rsqrt() * CHANGES
        state = torch.tensor([0.0, 0.0, math.pi, 0.0]) + SPREAD * torch.randn(particles, 4)
        earned = torch.zeros(())
        for _ in range(STEPS):
            x = as_inputs(state, self.policy(state)).unsqueeze(0)
            state = state + CHANGES * functions(layers, masks, x, torch.sigmoid)[0] + noise * torch.randn(particles, 4)
            state = state.mean(0) + (state.var(0) + 1e-10).sqrt() * torch.randn(particles, 4)
            earned = earned + rewards(state, torch).mean()
        return earned

    def functions(self, number: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor | None]]:
        """Layers and masks of so many functions of the posterior, to be kept for a while."""
        median, rates = self.guide.median(), self.guide.rates()
        layers = [(median[f"net.{i}.weight"][None], median[f"net.{i}.bias"][None]) for i in LAYERS]
        relaxed = TEMPERATURE if self.learned else None
        masks: list[Tensor | None] = [
            masks_of(torch.rand(1, number, weight.shape[-1]), rates[f"net.{i}.weight"].detach(), relaxed)
            for i, (weight, _) in zip(LAYERS, layers, strict=True)
        ]
        return layers, masks

    def save(self, path: Path) -> None:
        learners = {"guide": self.guide, "optim": self.optim, "policy": self.policy, "planner": self.planner}
        save_checkpoint(path, **learners, inputs=self.inputs, outputs=self.outputs, history=self.history)

    def load(self, path: Path) -> None:
        self.svi.step(torch.zeros(BATCH, 5), torch.zeros(BATCH, 4))  # so that the optimiser has parameters
        learners = {"guide": self.guide, "optim": self.optim, "policy": self.policy, "planner": self.planner}
        state = load_checkpoint(path, **learners)
        self.inputs, self.outputs, self.history = state["inputs"], state["outputs"], state["history"]

    def measured(self, draws: int) -> dict[str, Any]:
        """Rates, noise, and of held-out changes the mean epistemic deviation and the log-likelihood."""
        _, (x, y) = self.parts()
        predict = DropoutPredictive(self.model, guide=self.guide, num_samples=draws, return_sites=["mean"], seed=0)
        epistemic = predict.moments(x)["mean"].epistemic.sqrt().mean(0) * CHANGES
        density = DropoutPredictive(self.model, guide=self.guide, num_samples=draws, seed=0).log_likelihood(x, y)["obs"]
        return {
            "size": int(self.model.size),
            "rates": [float(self.guide.rates()[f"net.{i}.weight"]) for i in LAYERS],
            "noise": (self.guide.median()["precision"].rsqrt() * CHANGES).tolist(),
            "epistemic": epistemic.tolist(),
            "log-likelihood": float(density.mean() - CHANGES.log().sum()),
        }


def run(path: Path, learned: bool, seed: int, episodes: int, plan: Plan, backend: str, scripted: bool) -> list[Any]:
    """What was measured after each episode; goes on from the file, which has the state after the last one.

    :param scripted: random forces in the first fifth of the episodes, then pumping energy, and no policy is learned.
    """
    agent = Agent(learned, seed, backend)
    if path.exists():
        agent.load(path)
    with tqdm(initial=len(agent.history), total=episodes, desc=path.stem, disable=None) as bar:
        while len(agent.history) < episodes:
            number, begin = len(agent.history), time.monotonic()
            pyro.set_rng_seed(1_000 * seed + number)
            how = ("random" if number < max(1, episodes // 5) else "pumping") if scripted else "policy"
            reward = agent.episode(number, "random" if number == 0 else how)
            agent.fit(plan.fits)
            fitted = time.monotonic()
            expected = None if scripted else agent.plan(plan.updates, plan.particles)
            seconds = [fitted - begin, time.monotonic() - fitted]
            seen = {"reward": reward, "expected": expected, "seconds": seconds, **agent.measured(plan.draws)}
            agent.history.append(seen)
            path.parent.mkdir(parents=True, exist_ok=True)
            agent.save(path)
            bar.update()
            bar.set_postfix(reward=reward, rates=" ".join(f"{rate:.3f}" for rate in seen["rates"]))
    return agent.history


def _rest(model: Any) -> AutoDelta:
    """Biases from the network's own; of the noise a fifth of what changes are like."""
    start = init_to_value(values={"precision": torch.full((4,), 25.0)}, fallback=init_to_module)
    return AutoDelta(model, init_loc_fn=start)


def as_inputs(state: Tensor, force: Tensor) -> Tensor:
    return torch.cat([state / SCALES, force.unsqueeze(-1) / FORCE], -1)
