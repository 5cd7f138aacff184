"""The two-dimensional world of MC section 5.4: an agent with nine eyes among walls, good items and bad ones.

After the authors' demo, which extends one of Karpathy's; many worlds at once, as arrays. ``World-v0`` is one of them
for ``gymnasium.make``, :class:`Worlds` a ``gymnasium.vector`` environment of several, which never end.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import VectorEnv

WIDTH, HEIGHT, RADIUS, REACH = 700.0, 500.0, 10.0, 85.0  # pixels; of the agent and of items; of eyes
EYES = (np.arange(9) - 3) * 0.25  # rad, from the heading: not symmetric
WHEELS = np.array([(1.0, 1.0), (0.8, 1.0), (1.0, 0.8), (0.5, 0.0), (0.0, 0.5)])  # rad a step
ITEMS, OLD = 30, 5000
GOOD, BAD, AHEAD, CLEAR = 5.0, -6.0, 0.1, 0.75  # rewards; of the mean of eyes
INPUTS = 3 * len(EYES)


def _box(x: float, y: float, width: float, height: float) -> list[tuple[float, float, float, float]]:
    right, below = x + width, y + height
    return [(x, y, right, y), (right, y, right, below), (right, below, x, below), (x, below, x, y)]


# An outer box, and two inner ones without their left sides.
WALLS = np.array([*_box(10, 10, 680, 480), *_box(100, 100, 200, 300)[:3], *_box(400, 100, 200, 300)[:3]])


class Worlds(VectorEnv):
    """Several worlds, each with random numbers of its own, so that one does not depend on how many there are.

    Observations ``[worlds, 27]``: of each eye three inputs for wall, good and bad, 1 but for the kind that it sees
    nearest, which has the distance over the eye's reach. An item is where a ray passes its centre nearest. Actions are
    pairs of wheel turns; the first is straight ahead.

    :param num_envs: number of worlds.

    Example::

        >>> worlds = Worlds(3)
        >>> worlds.reset(seed=0)[0].shape
        (3, 27)
        >>> observations, rewards, *_ = worlds.step(np.zeros(3, int))
        >>> worlds.position.round(2).tolist()  # from (50, 50) straight ahead
        [[50.0, 54.21], [50.0, 54.21], [50.0, 54.21]]
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}

    def __init__(self, num_envs: int = 1) -> None:
        self.num_envs = num_envs
        self.single_observation_space = Box(0.0, 1.0, (INPUTS,), np.float32)
        self.single_action_space = Discrete(len(WHEELS))
        self.observation_space = Box(0.0, 1.0, (num_envs, INPUTS), np.float32)
        self.action_space = MultiDiscrete([len(WHEELS)] * num_envs)
        self._random: list[np.random.Generator] = []

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New worlds; of a number the seeds are it, it + 1, ..."""
        if seed is not None or not self._random:
            seeds = (
                [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
            )
            self._random = [np.random.default_rng(each) for each in seeds]
        self.clock = 0
        self.position = np.full((self.num_envs, 2), 50.0)
        self.heading = np.zeros(self.num_envs)
        self.there = np.ones((self.num_envs, ITEMS), bool)
        self.items = np.empty((self.num_envs, ITEMS, 2))
        self.good = np.empty((self.num_envs, ITEMS), bool)
        self.age = np.zeros((self.num_envs, ITEMS), int)
        for world in range(self.num_envs):
            for item in range(ITEMS):
                self._new_item(world, item)
        self._distance, self._seen = self._sense()
        return self._observed(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Moves, eats, and looks around; the reward is of what was seen before the move."""
        actions = np.asarray(actions)
        self.clock += 1
        open_ = np.where(self._seen == 0, self._distance / REACH, 1.0).mean(1)
        rewards = open_ + AHEAD * open_ * ((actions == 0) & (open_ > CLEAR))
        self._move(WHEELS[actions])
        good, bad = self._eat()
        rewards = rewards + GOOD * good + BAD * bad
        self._renew()
        self._distance, self._seen = self._sense()
        no = np.zeros(self.num_envs, bool)
        return self._observed(), rewards, no, no.copy(), {"good": good, "bad": bad}

    def _observed(self) -> np.ndarray:
        found = np.ones((self.num_envs, len(EYES), 3), np.float32)
        world, eye = np.nonzero(self._seen >= 0)
        found[world, eye, self._seen[world, eye]] = self._distance[world, eye] / REACH
        return found.reshape(self.num_envs, INPUTS)

    def _sense(self) -> tuple[np.ndarray, np.ndarray]:
        """By eye the distance of what is nearest, and what it is: a wall 0, good 1, bad 2, nothing -1."""
        angle = self.heading[:, None] + EYES
        ray = np.stack([np.sin(angle), np.cos(angle)], -1)  # [worlds, eyes, 2]
        walls = REACH * _crossing(self.position[:, None], REACH * ray)
        offset = self.items - self.position[:, None]  # [worlds, items, 2]
        near = self.there & (np.square(offset).sum(-1) < (REACH + RADIUS) ** 2)
        offset = np.where(near[..., None], offset, np.inf)
        with np.errstate(invalid="ignore"):
            along = ray @ offset.swapaxes(1, 2)  # [worlds, eyes, items]
            beside = np.abs(ray[..., :1] * offset[:, None, :, 1] - ray[..., 1:] * offset[:, None, :, 0])
            hit = (beside <= RADIUS) & (along > 0) & (along < REACH)
        along = np.where(hit, along, np.inf)
        item = along.argmin(-1)
        nearest = np.take_along_axis(along, item[..., None], -1)[..., 0]
        kind = np.where(np.take_along_axis(self.good, item, 1), 1, 2)
        distance = np.minimum(walls, nearest)
        seen = np.where(walls <= nearest, 0, kind)
        nothing = ~np.isfinite(distance)
        return np.where(nothing, REACH, distance), np.where(nothing, -1, seen)

    def _move(self, turns: np.ndarray) -> None:
        """The mean of turning the body about either wheel; not through walls."""
        first, second = turns[:, 0], turns[:, 1]
        # The wheels are at half a radius to either side; at heading 0 the agent looks along y.
        side = RADIUS / 2 * np.stack([np.cos(self.heading), -np.sin(self.heading)], -1)
        moved = 0.5 * (_turned(side, -first) - side) + 0.5 * (side - _turned(side, second))
        free = ~np.isfinite(_crossing(self.position, moved))
        self.position = np.clip(self.position + np.where(free[:, None], moved, 0.0), 0.0, (WIDTH, HEIGHT))
        self.heading = (self.heading + second - first) % (2 * np.pi)

    def _eat(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of good and bad items that were reached, with no wall between."""
        self.age += 1
        offset = self.items - self.position[:, None]
        good, bad = np.zeros(self.num_envs, int), np.zeros(self.num_envs, int)
        for world, item in np.argwhere(self.there & (np.square(offset).sum(-1) < (2 * RADIUS) ** 2)):
            if np.isfinite(_crossing(self.position[world], offset[world, item])):
                continue
            self.there[world, item] = False
            (good if self.good[world, item] else bad)[world] += 1
        return good, bad

    def _renew(self) -> None:
        if self.clock % 100 == 0:
            for world, item in np.argwhere(self.there & (self.age > OLD)):
                self.there[world, item] = self._random[world].random() >= 0.1
        if self.clock % 10 == 0:
            for world in np.nonzero(~self.there.all(1))[0]:
                if self._random[world].random() < 0.25:
                    self._new_item(world, int(np.argmin(self.there[world])))

    def _new_item(self, world: int, item: int) -> None:
        random = self._random[world]
        self.items[world, item] = random.uniform(20, WIDTH - 20), random.uniform(20, HEIGHT - 20)
        self.good[world, item] = random.random() < 0.5
        self.age[world, item], self.there[world, item] = 0, True


def _crossing(start: np.ndarray, way: np.ndarray) -> np.ndarray:
    """Share of the way from ``start [..., 2]`` at which it meets the first wall, ``[...]``; infinite if none."""
    wall = WALLS[:, 2:] - WALLS[:, :2]
    offset = WALLS[:, :2] - start[..., None, :]  # [..., walls, 2]
    across = way[..., None, 0] * wall[:, 1] - way[..., None, 1] * wall[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (offset[..., 0] * wall[:, 1] - offset[..., 1] * wall[:, 0]) / across
        place = (offset[..., 0] * way[..., None, 1] - offset[..., 1] * way[..., None, 0]) / across
        hit = (share > 0) & (share < 1) & (place > 0) & (place < 1)
    return np.where(hit, share, np.inf).min(-1)


def _turned(vector: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Clockwise, where y points upwards."""
    sine, cosine = np.sin(angle), np.cos(angle)
    x, y = vector[..., 0], vector[..., 1]
    return np.stack([x * cosine + y * sine, y * cosine - x * sine], -1)


class World(gymnasium.Env):
    """One of :class:`Worlds`.

    Example::

        >>> gymnasium.make("World-v0").reset(seed=0)[0].shape
        (27,)
    """

    def __init__(self) -> None:
        self.worlds = Worlds(1)
        self.observation_space = self.worlds.single_observation_space
        self.action_space = self.worlds.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        observations, _ = self.worlds.reset(seed=seed)
        return observations[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observations, rewards, *_ = self.worlds.step([action])
        return observations[0], float(rewards[0]), False, False, {}


if "World-v0" not in gymnasium.registry:
    gymnasium.register("World-v0", entry_point=World)
