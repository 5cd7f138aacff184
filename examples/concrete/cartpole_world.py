"""Swinging up a pendulum that hangs from a cart (Gal, McAllister & Rasmussen 2016; CD section 4.5), several at once.

Constants are those of two public ports; motion is integrated by Runge and Kutta's method, as accurate as a solver's.
``SwingUp-v0`` is one of them for ``gymnasium.make``, :class:`SwingUps` a ``gymnasium.vector`` environment of several.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

CART, PENDULUM, LENGTH = 0.5, 0.5, 0.6  # kg, kg, m
FRICTION, GRAVITY, FORCE = 0.1, 9.82, 10.0  # N s / m, m / s², N at most
TIME, STEPS, PARTS = 0.1, 25, 10  # s of a step; of an episode; in which a step is integrated
SPREAD, WIDTH = 0.02, 0.25  # of the start; of the reward, m


def accelerations(state: np.ndarray, force: np.ndarray, friction: float = FRICTION) -> np.ndarray:
    """Derivatives of place, velocity, angle and angular velocity, ``[..., 4]``; at angle 0 the pendulum stands."""
    _, velocity, angle, turning = np.moveaxis(state, -1, 0)
    sine, cosine, both = np.sin(angle), np.cos(angle), CART + PENDULUM
    pushed = force - friction * velocity
    below = 4 * both - 3 * PENDULUM * cosine**2
    swing = PENDULUM * LENGTH * turning**2 * sine
    of_cart = (-2 * swing + 3 * PENDULUM * GRAVITY * sine * cosine + 4 * pushed) / below
    of_pendulum = (-3 * swing * cosine + 6 * both * GRAVITY * sine + 6 * pushed * cosine) / (LENGTH * below)
    return np.stack([velocity, of_cart, turning, of_pendulum], -1)


def moved(state: np.ndarray, force: np.ndarray, friction: float = FRICTION) -> np.ndarray:
    """A step later, with this force all the time."""
    h = TIME / PARTS
    for _ in range(PARTS):
        a = accelerations(state, force, friction)
        b = accelerations(state + h / 2 * a, force, friction)
        c = accelerations(state + h / 2 * b, force, friction)
        d = accelerations(state + h * c, force, friction)
        state = state + h / 6 * (a + 2 * b + 2 * c + d)
    return state


def rewards(state: Any, library: Any = np) -> Any:
    """1 less the saturating cost of the distance between the tip and its place above the origin.

    :param library: numpy, or torch, for gradients.
    """
    place, angle = state[..., 0], state[..., 2]
    distance = (place - LENGTH * library.sin(angle)) ** 2 + (LENGTH - LENGTH * library.cos(angle)) ** 2
    return library.exp(-distance / (2 * WIDTH**2))


class SwingUps(VectorEnv):
    """Several carts, each with random numbers of its own. All episodes are of ``STEPS`` steps.

    Observations ``[carts, 4]``: place in m, velocity, angle in rad, which counts turns, and angular velocity; actions
    ``[carts, 1]`` are forces in N.

    Example::

        >>> carts = SwingUps(2)
        >>> carts.reset(seed=0)[0].round(1).tolist()  # hanging, at rest
        [[0.0, -0.0, 3.200000047683716, 0.0], [0.0, 0.0, 3.0999999046325684, -0.0]]
        >>> _, reward, *_ = carts.step(np.zeros((2, 1)))
        >>> bool((reward < 0.001).all())
        True
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}

    def __init__(self, num_envs: int = 1) -> None:
        self.num_envs = num_envs
        self.single_observation_space = Box(-np.inf, np.inf, (4,), np.float32)
        self.single_action_space = Box(-FORCE, FORCE, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._random: list[np.random.Generator] = []

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """At rest and hanging, nearly; of a number the seeds are it, it + 1, ..."""
        if seed is not None or not self._random:
            seeds = (
                [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
            )
            self._random = [np.random.default_rng(each) for each in seeds]
        self.clock = 0
        self.state = np.array([0, 0, np.pi, 0]) + SPREAD * np.stack([each.normal(size=4) for each in self._random])
        return self.state.astype(np.float32), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        force = np.clip(np.asarray(actions, float)[:, 0], -FORCE, FORCE)
        self.state = moved(self.state, force)
        self.clock += 1
        ended = np.full(self.num_envs, self.clock >= STEPS)
        return self.state.astype(np.float32), rewards(self.state), np.zeros(self.num_envs, bool), ended, {}


class SwingUp(gymnasium.Env):
    """One of :class:`SwingUps`.

    Example::

        >>> gymnasium.make("SwingUp-v0").reset(seed=0)[0].shape
        (4,)
    """

    def __init__(self) -> None:
        self.carts = SwingUps(1)
        self.observation_space = self.carts.single_observation_space
        self.action_space = self.carts.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.carts.reset(seed=seed)[0][0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observations, reward, terminated, truncated, _ = self.carts.step(np.asarray(action)[None])
        return observations[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


if "SwingUp-v0" not in gymnasium.registry:
    gymnasium.register("SwingUp-v0", entry_point=SwingUp)
