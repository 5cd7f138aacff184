"""The two-dimensional world against cases computed by hand, and against gymnasium's own checks."""

import math

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from examples.mc.world import EYES, ITEMS, OLD, REACH, WALLS, WHEELS, World, Worlds


@pytest.fixture
def world():
    """One, without items."""
    worlds = Worlds(1)
    worlds.reset(seed=0)
    worlds.there[:] = False
    return worlds


def look(world, position, heading=0.0):
    world.position[0], world.heading[0] = position, heading
    world._distance, world._seen = world._sense()
    return world._distance[0], world._seen[0]


def put(world, place, good=True, item=0):
    world.items[0, item], world.good[0, item], world.there[0, item] = place, good, True


@pytest.mark.filterwarnings("ignore:.*not within the observation space|.*render")
def test_gymnasium_s_checks():
    env = gymnasium.make("World-v0")
    check_env(env.unwrapped, skip_render_check=True)
    observation, _ = env.reset(seed=3)
    assert env.observation_space.contains(observation)


def test_ten_walls():
    assert WALLS.shape == (10, 4)
    lengths = np.abs(WALLS[:, 2:] - WALLS[:, :2]).sum(1)
    assert sorted(lengths) == [200, 200, 200, 200, 300, 300, 480, 480, 680, 680]
    assert not any((wall[0] == wall[2] and wall[0] in (100, 400)) for wall in WALLS)  # open on the left


def test_rays_meet_walls(world):
    """Looking along y at heading 0, along x at a quarter turn; the outer box is 10 pixels inside."""
    distance, seen = look(world, (50, 430), 0.0)
    ahead = int(np.argmin(np.abs(EYES)))
    assert distance[ahead] == pytest.approx(490 - 430)
    assert seen[ahead] == 0
    slanted = int(np.argmin(np.abs(EYES - 0.5)))
    assert distance[slanted] == pytest.approx(60 / math.cos(0.5))
    assert seen[np.argmin(np.abs(EYES - 1.25))] == -1  # 60 / cos 1.25 is beyond its reach
    distance, seen = look(world, (250, 250), math.pi / 2)
    assert distance[ahead] == pytest.approx(50)  # the right side of the first inner box
    distance, seen = look(world, (60, 250), math.pi / 2)
    assert seen[ahead] == -1  # whose left side is open
    assert distance[ahead] == REACH


def test_rays_meet_items(world):
    """The nearest of walls and items; a disc that a ray passes within its radius, where it is nearest to its centre."""
    ahead = int(np.argmin(np.abs(EYES)))
    put(world, (57, 300))
    distance, seen = look(world, (50, 250))
    assert (distance[ahead], seen[ahead]) == (pytest.approx(50), 1)
    put(world, (45, 280), good=False, item=1)
    distance, seen = look(world, (50, 250))
    assert (distance[ahead], seen[ahead]) == (pytest.approx(30), 2)
    inputs = world._observed()[0].reshape(9, 3)
    assert inputs[ahead].tolist() == pytest.approx([1, 1, 30 / 85])
    put(world, (61, 270), item=2)  # 11 pixels beside
    distance, seen = look(world, (50, 250))
    assert (distance[ahead], seen[ahead]) == (pytest.approx(30), 2)
    world.there[0, 1] = False
    put(world, (50, 240), item=1)  # behind
    distance, seen = look(world, (50, 250))
    assert (distance[ahead], seen[ahead]) == (pytest.approx(50), 1)
    put(world, (50, 480))
    distance, seen = look(world, (50, 430))
    assert (distance[ahead], seen[ahead]) == (pytest.approx(50), 1)
    put(world, (50, 495))
    distance, seen = look(world, (50, 430))
    assert (distance[ahead], seen[ahead]) == (pytest.approx(60), 0)  # behind the wall


def by_wheels(position, heading, first, second):
    """Each half of the body turns about the other wheel."""
    side = np.array([5 * math.cos(heading), -5 * math.sin(heading)])

    def turned(v, a):  # clockwise
        return np.array([v[0] * math.cos(a) + v[1] * math.sin(a), -v[0] * math.sin(a) + v[1] * math.cos(a)])

    one, two = position + side, position - side
    return 0.5 * (two + turned(position - two, -first)) + 0.5 * (one + turned(position - one, second))


@pytest.mark.parametrize("action", range(5))
@pytest.mark.parametrize("heading", [0.0, 0.7, 4.0])
def test_wheels(world, action, heading):
    look(world, (350, 250), heading)
    world.step([action])
    first, second = WHEELS[action]
    assert world.position[0] == pytest.approx(by_wheels(np.array([350, 250]), heading, first, second))
    assert world.heading[0] == pytest.approx((heading + second - first) % (2 * math.pi))


def test_straight_ahead_is_4_2_pixels(world):
    look(world, (350, 250), 0.3)
    world.step([0])
    assert world.position[0] - (350, 250) == pytest.approx(5 * math.sin(1) * np.array([math.sin(0.3), math.cos(0.3)]))


def test_walls_stop(world):
    look(world, (50, 488), 0.0)
    world.step([1])
    assert world.position[0].tolist() == [50, 488]
    assert world.heading[0] == pytest.approx(0.2)  # it turns none the less


def test_eating(world):
    """Nearer than both radii after the move, with no wall between; rewards of what was seen before it."""
    look(world, (50, 250))
    put(world, (50, 250 + 4.2 + 19))
    put(world, (50 + 20.1, 254.2), good=False, item=1)
    look(world, (50, 250))
    open_ = np.where(world._seen[0] == 0, world._distance[0] / REACH, 1.0).mean()
    _, rewards, *_, info = world.step([0])
    assert (info["good"].tolist(), info["bad"].tolist()) == ([1], [0])
    assert rewards[0] == pytest.approx(open_ + 0.1 * open_ + 5)
    assert world.there[0, :2].tolist() == [False, True]
    look(world, (295, 250))
    put(world, (305, 250), good=False, item=3)  # behind the wall at 300
    assert world.step([3])[4]["bad"].tolist() == [0]
    put(world, (290, 250), good=False, item=4)
    _, rewards, *_, info = world.step([3])
    assert info["bad"].tolist() == [1]
    assert rewards[0] < -5


def test_ahead_is_rewarded_where_it_is_open(world):
    look(world, (50, 484))
    seen = np.where(world._seen[0] == 0, world._distance[0] / REACH, 1.0).mean()
    assert seen < 0.75
    assert world.step([0])[1][0] == pytest.approx(seen)
    look(world, (350, 250), math.pi / 2)
    assert world.step([3])[1][0] == pytest.approx(1.0)
    look(world, (350, 250), math.pi / 2)
    assert world.step([0])[1][0] == pytest.approx(1.1)


def test_items_come_and_go():
    """Expected: a quarter at every tenth step where one is missing; a tenth of old ones at every hundredth."""
    worlds = Worlds(400)
    worlds.reset(seed=0)
    worlds.position[:] = (5, 5)  # outside of the box, where nothing is reached
    worlds.there[:, 0] = False
    for _ in range(10):
        assert not worlds.there[:, 0].any()
        worlds.step(np.full(400, 3))
        worlds.position[:] = (5, 5)
    share = worlds.there[:, 0].mean()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    worlds.there[:] = True
    worlds.age[:] = OLD
    worlds.clock = 98
    worlds.step(np.full(400, 3))
    assert worlds.there.all()
    worlds.step(np.full(400, 3))
    gone = 1 - worlds.there.mean()
    # A quarter of the worlds have one back at once.
    expected = 0.1 - 0.25 * (1 - 0.9**ITEMS) / ITEMS
    assert abs(gone - expected) < 4 * (0.09 / (400 * ITEMS)) ** 0.5


def test_a_world_does_not_depend_on_how_many_there_are():
    many, one = Worlds(3), Worlds(1)
    many.reset(seed=5)
    one.reset(seed=7)
    actions = np.random.default_rng(0).integers(5, size=(300, 3))
    for action in actions:
        observations, rewards, *_ = many.step(action)
        alone, reward, *_ = one.step(action[2:])
        assert np.array_equal(observations[2], alone[0])
        assert rewards[2] == reward[0]
    with_seed = [Worlds(2).reset(seed=1)[0] for _ in range(2)]
    assert np.array_equal(*with_seed)


def test_one_for_gymnasium():
    env = World()
    first, _ = env.reset(seed=2)
    assert np.array_equal(first, Worlds(1).reset(seed=2)[0][0])
    observation, reward, terminated, truncated, _ = env.step(0)
    assert observation.shape == (27,)
    assert isinstance(reward, float)
    assert not terminated
    assert not truncated
