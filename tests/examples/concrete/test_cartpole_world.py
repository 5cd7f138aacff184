"""The cart and its pendulum: energy, which no equation of motion was written by, hand-computed rewards, gymnasium."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from examples.concrete.cartpole_world import (
    CART,
    FORCE,
    GRAVITY,
    LENGTH,
    PENDULUM,
    STEPS,
    SwingUp,
    SwingUps,
    accelerations,
    moved,
    rewards,
)


def energy(state):
    """Of the cart and of a uniform rod whose tip is to the left at positive angles."""
    _, velocity, angle, turning = np.moveaxis(state, -1, 0)
    centre = velocity - LENGTH / 2 * turning * np.cos(angle), LENGTH / 2 * turning * np.sin(angle)
    turned = 0.5 * PENDULUM * LENGTH**2 / 12 * turning**2
    moving = 0.5 * CART * velocity**2 + 0.5 * PENDULUM * (centre[0] ** 2 + centre[1] ** 2) + turned
    return moving + PENDULUM * GRAVITY * LENGTH / 2 * np.cos(angle)


def test_energy_stays_without_friction_and_force():
    state = np.random.default_rng(0).normal(size=(20, 4)) * [1, 2, 2, 5]
    later = state
    for _ in range(25):
        later = moved(later, np.zeros(20), friction=0.0)
    assert energy(later) == pytest.approx(energy(state), abs=2e-4)
    assert np.abs(later - state).max() > 1


def test_power_is_that_of_the_force_and_of_friction():
    state, force, h = np.random.default_rng(0).normal(size=(20, 4)), np.linspace(-10, 10, 20), 1e-6
    change = accelerations(state, force)
    power = (energy(state + h * change) - energy(state - h * change)) / (2 * h)
    assert power == pytest.approx((force - 0.1 * state[:, 1]) * state[:, 1], abs=1e-5)


def test_momentum_along_the_floor():
    state, force, h = np.random.default_rng(1).normal(size=(20, 4)), np.linspace(-10, 10, 20), 1e-6
    change = accelerations(state, force, friction=0.0)

    def momentum(s):
        return CART * s[:, 1] + PENDULUM * (s[:, 1] - LENGTH / 2 * s[:, 3] * np.cos(s[:, 2]))

    assert (momentum(state + h * change) - momentum(state - h * change)) / (2 * h) == pytest.approx(force, abs=1e-5)


def test_rewards():
    """Standing above the origin; hanging; the tip over the origin from the right, 0.1 below its place."""
    right = [LENGTH * np.sin(0.5), 0, 0.5, 0]
    states = np.array([[0, 0, 0, 0], [0, 0, np.pi, 0], [0.25, 9, 2 * np.pi, 9], right])
    below = LENGTH - LENGTH * np.cos(0.5)
    expected = [1, np.exp(-((2 * LENGTH) ** 2) / 0.125), np.exp(-0.5), np.exp(-(below**2) / 0.125)]
    assert rewards(states) == pytest.approx(expected)
    assert rewards(torch.tensor(states), torch) == pytest.approx(expected)


def test_episodes():
    carts = SwingUps(500)
    start, _ = carts.reset(seed=0)
    assert np.allclose(start.mean(0), [0, 0, np.pi, 0], atol=0.004)
    assert start.std(0) == pytest.approx(np.full(4, 0.02), rel=0.15)
    ends = []
    for _ in range(STEPS):
        seen, reward, terminated, ended, _ = carts.step(np.full((500, 1), 3 * FORCE))
        ends.append(ended.all())
        assert not terminated.any()
        assert reward == pytest.approx(rewards(carts.state))
    assert ends == [False] * 24 + [True]
    alone = SwingUps(1)
    alone.reset(seed=7)
    for _ in range(STEPS):
        one, *_ = alone.step([[FORCE]])
    assert np.array_equal(one[0], seen[7])  # whatever is beside it; and no force is larger


@pytest.mark.filterwarnings("ignore:.*(infinity|symmetric|render)")
def test_gymnasium_s_checks():
    env = gymnasium.make("SwingUp-v0")
    assert isinstance(env.unwrapped, SwingUp)
    check_env(env.unwrapped, skip_render_check=True)
