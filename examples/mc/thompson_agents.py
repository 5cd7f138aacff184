"""Agents that learn the values of actions (MC section 5.4): several at once, each in a world of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta
from torch import Tensor, nn

from models.control import QNetwork, functions, masks_of
from models.regression import mlp
from pyro_dropout import (
    AutoBernoulliDropout,
    AutoConcreteDropout,
    BayesianModule,
    ReplicatedSVI,
    TraceDropout_ELBO,
    init_to_module,
)

REPLAY, START, BATCH = 30_000, 1_000, 64  # experiences: kept, before learning starts, of a step
HIDDEN, TEMPERATURE = (50, 50), 0.1
ALWAYS, BEFORE = 0.05, 3_000  # ε at the end; steps before it comes down


class Setting(NamedTuple):
    """What the first version of the paper and the authors' demo differ in, and what another world needs.

    :param memory: whether an agent also sees its last observation and action.
    :param rates: of dropping the inputs of each layer, for networks with dropout.
    :param decay: of weights, as beside a mean loss.
    :param random: steps that are random before Thompson sampling.
    :param floor: step at which ε has come down.
    :param optimiser: ``"sgd"``, or ``"adam"``.
    """

    memory: bool = False
    rates: tuple[float, ...] = (0.0, 0.1, 0.1)
    decay: float = 1.6e-5
    random: int = 5_000
    floor: int = 200_000
    discount: float = 0.7
    learning_rate: float = 1e-3
    optimiser: str = "sgd"


PAPER = Setting()
DEMO = Setting(memory=True, rates=(0.0, 0.2, 0.0), decay=1.6e-4, random=3_000)


class Policy(NamedTuple):
    """How an agent acts.

    :param masks: ``"none"``, with ``"fixed"`` rates, or with ``"learned"`` ones, relaxed.
    :param thompson: whether it takes the best action of one drawn function; else it is ε-greedy.
    :param kept: steps that it keeps a function for.
    """

    masks: str
    thompson: bool
    kept: int = 1


POLICIES = {
    "ε-greedy": Policy("none", thompson=False),
    "Thompson": Policy("fixed", thompson=True),
    "Thompson, 20 steps": Policy("fixed", thompson=True, kept=20),
    "ε-greedy, dropout": Policy("fixed", thompson=False),
    "Thompson, Concrete": Policy("learned", thompson=True),
}


class Memory:
    """Experiences of several agents: all, and once there are too many, new ones in the places of random ones."""

    def __init__(self, agents: int, inputs: int, size: int = REPLAY) -> None:
        self.size, self.number = size, 0
        self.state, self.after = (np.zeros((agents, size, inputs), np.float32) for _ in range(2))
        self.action = np.zeros((agents, size), np.int64)
        self.reward, self.going = (np.zeros((agents, size), np.float32) for _ in range(2))
        self._agents = np.arange(agents)

    def add(self, places: np.ndarray, state: Any, action: Any, reward: Any, going: Any, after: Any) -> None:
        """
        :param places: numbers in [0, 1) that say where, once there is no room, ``[agents]``.
        """
        full = self.number == self.size
        at = (places * self.size).astype(int) if full else np.full(len(places), self.number)
        pairs = ((self.state, state), (self.action, action), (self.reward, reward), (self.going, going))
        for kept, new in (*pairs, (self.after, after)):
            kept[self._agents, at] = new
        self.number += not full

    def rows(self, places: np.ndarray) -> list[Tensor]:
        """State, action, reward, whether the world went on, and state after it.

        :param places: numbers in [0, 1) that say which, ``[agents, batch]``.
        """
        at = self._agents[:, None], (places * self.number).astype(int)
        return [torch.from_numpy(each[at]) for each in (self.state, self.action, self.reward, self.going, self.after)]


class Agents:
    """One agent for each seed; all learn by one compiled step.

    Each step of their worlds is :meth:`act`, the worlds' own, :meth:`remember` and :meth:`learn`. What a state after an
    experience is worth, is the best value of one stochastic pass, with a mask for each experience; the step that learns
    draws others.

    :param observations: number of what a world shows at once.
    """

    def __init__(
        self,
        policy: Policy,
        setting: Setting,
        observations: int,
        actions: int,
        seeds: list[int],
        backend: str = "inductor",
    ) -> None:
        self.policy, self.setting, self.actions, self.age = policy, setting, actions, 0
        self.inputs = 2 * observations + actions if setting.memory else observations
        self.memory = Memory(len(seeds), self.inputs)
        self.svi = self._learner(seeds, backend)
        self._random = np.random.default_rng(seeds)
        self._noise = torch.Generator().manual_seed(seeds[0])
        self._past = np.zeros((len(seeds), self.inputs - observations), np.float32)
        self._function: list[Tensor | None] = []  # that is acted by: the noise of its masks
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._rates: list[Tensor] = []

    def _learner(self, seeds: list[int], backend: str) -> ReplicatedSVI:
        setting, policy = self.setting, self.policy
        rates = setting.rates if policy.masks != "none" else [0.0] * len(setting.rates)
        self._masked = [rate > 0 for rate in rates]
        sites = {f"{2 * layer}.weight": rate for layer, rate in enumerate(rates)}

        def prior(name: str, _: Tensor) -> dist.Normal | None:
            """Whose negative log-density is the decay; biases have none."""
            return dist.Normal(0.0, (REPLAY * setting.decay * (1 - sites[name])) ** -0.5) if name in sites else None

        def make() -> tuple[QNetwork, Any]:
            model = QNetwork(BayesianModule(network(self.inputs, self.actions), prior), REPLAY)
            of_sites = {f"net.{name}": rate for name, rate in sites.items()}
            if policy.masks == "none":
                return model, AutoDelta(model, init_loc_fn=init_to_module)
            if policy.masks == "learned":
                return model, AutoConcreteDropout(model, of_sites, temperature=TEMPERATURE)
            return model, AutoBernoulliDropout(model, of_sites)

        if setting.optimiser == "adam":
            optim = pyro.optim.Adam({"lr": setting.learning_rate})
        else:  # a step of the mean loss; Pyro's is that of all experiences
            optim = pyro.optim.SGD({"lr": setting.learning_rate / REPLAY})
        loss = TraceDropout_ELBO(masks="datum")
        return ReplicatedSVI(make, [{}] * len(seeds), optim, loss, seeds=seeds, backend=backend, progress=False)

    def act(self, observed: np.ndarray) -> np.ndarray:
        self._state = np.concatenate([observed, self._past], 1, dtype=np.float32)
        self._action = self._random.integers(self.actions, size=len(observed))
        explores = self._random.random(len(observed)) < self.chance
        if not explores.all():
            if not self._function or not self.policy.thompson or self.age % self.policy.kept == 0:
                self._function = self.noise(1)
            best = self.values(torch.from_numpy(self._state).unsqueeze(1), self._function)[:, 0].argmax(-1)
            self._action = np.where(explores, self._action, best.numpy())
        return self._action

    def greedy(self, observed: np.ndarray) -> np.ndarray:
        """The best action by the mean function."""
        self._state = np.concatenate([observed, self._past], 1, dtype=np.float32)
        self._action = self.values(torch.from_numpy(self._state).unsqueeze(1))[:, 0].argmax(-1).numpy()
        return self._action

    @property
    def learns(self) -> bool:
        return bool(self._layers)

    @property
    def chance(self) -> float:
        """Of a random action."""
        if not self._layers:
            return 1.0
        if self.policy.thompson:
            return float(self.age < self.setting.random)
        return min(1.0, max(ALWAYS, 1 - (self.age - BEFORE) / (self.setting.floor - BEFORE)))

    def remember(self, reward: np.ndarray, after: np.ndarray, terminated: np.ndarray, ended: np.ndarray) -> None:
        """
        :param after: what the worlds show next, of an episode.
        :param terminated: whether nothing comes after it.
        :param ended: whether the next that they show is of another episode.
        """
        state_after = self.see(after, ended)
        places = self._random.random(len(after))
        self.memory.add(places, self._state, self._action, reward, ~terminated, state_after)
        self.age += 1

    def see(self, after: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """The state after an action; an agent with a memory remembers what led to it."""
        number = after.shape[1]
        if self.setting.memory:
            chosen = number * np.eye(self.actions, dtype=np.float32)[self._action]
            self._past = np.concatenate([self._state[:, :number], chosen], 1)
        state = np.concatenate([after, self._past], 1, dtype=np.float32)
        self._past = np.where(ended[:, None], np.float32(0), self._past)
        return state

    def learn(self) -> None:
        if self.memory.number < START:
            return
        places = self._random.random((len(self._action), BATCH))
        state, action, reward, going, after = self.memory.rows(places)
        if self._layers:
            reward = reward + self.setting.discount * going * self.values(after, self.noise(BATCH)).amax(-1)
        self.svi.step(state, action, reward)
        self._see()

    def _see(self) -> None:
        """The networks as they are now."""
        medians = [guide.median() for guide in self.svi.guides]
        layers = range(0, 2 * len(self._masked), 2)
        weights = [torch.stack([median[f"net.{layer}.weight"] for median in medians]) for layer in layers]
        biases = [torch.stack([model.net.net[layer].bias.detach() for model in self.svi.models]) for layer in layers]
        self._layers = list(zip(weights, biases, strict=True))
        if self.policy.masks == "learned" or (any(self._masked) and not self._rates):
            rates = [guide.rates() for guide in self.svi.guides]
            self._rates = [torch.stack([of[f"net.{layer}.weight"] for of in rates]).view(-1, 1, 1) for layer in layers]

    @property
    def rates(self) -> Tensor | None:
        """Of each agent's layers, ``[agents, layers]``; None before they are known, or where nothing is dropped."""
        return torch.cat(self._rates, 2)[:, 0] if self._rates else None

    def state(self) -> dict[str, Any]:
        """All that goes on; before learning starts there is nothing to keep."""
        kept = {name: value for name, value in vars(self).items() if name not in ("svi", "_noise")}
        return {**kept, "learner": self.svi.state_dict(), "random": self._noise.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a :meth:`state`."""
        state = dict(state)
        rows = torch.zeros(len(self._past), BATCH)
        self.svi.step(torch.zeros(*rows.shape, self.inputs), rows.long(), rows)  # makes the parameters
        self.svi.load_state_dict(state.pop("learner"))
        self._noise.set_state(state.pop("random"))
        vars(self).update(state)

    def noise(self, rows: int) -> list[Tensor | None]:
        """Uniform numbers, by which functions are drawn: of each layer's inputs, ``[agents, rows, inputs]``."""
        widths = (self.inputs, *HIDDEN)
        return [
            torch.rand(len(self._past), rows, width, generator=self._noise) if masked else None
            for width, masked in zip(widths, self._masked, strict=True)
        ]

    @torch.no_grad()
    def values(self, states: Tensor, noise: list[Tensor | None] | None = None) -> Tensor:
        """Of all actions, ``[agents, rows, actions]``, by the functions of this noise; or by the mean functions.

        :param states: ``[agents, rows, inputs]``.
        """
        noise = noise or [None] * len(self._layers)
        relaxed = TEMPERATURE if self.policy.masks == "learned" else None
        masks = [None if u is None else masks_of(u, self._rates[layer], relaxed) for layer, u in enumerate(noise)]
        return functions(self._layers, masks, states)


def network(inputs: int, actions: int) -> nn.Sequential:
    """Weights of variance 1 over their inputs, hidden biases of 0.1, as in the authors' demo."""
    net = mlp(inputs, HIDDEN, actions)
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in linear:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.constant_(layer.bias, 0.0 if layer is linear[-1] else 0.1)
    return net
