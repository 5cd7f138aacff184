"""Pictures of the two-dimensional world: a frame for each step, the agent where it is."""

import numpy as np
import pytest
from PIL import Image

from examples.mc.world import WIDTH, Worlds
from examples.mc.world_pictures import SHOWN, film, path_of


@pytest.fixture
def seen():
    """Six steps straight ahead, from the left."""
    worlds = Worlds(2)
    worlds.reset(seed=0)
    worlds.position[0], worlds.heading[0] = (50.0, 250.0), np.pi / 2
    steps = []
    for _ in range(6):
        steps.append({name: getattr(worlds, name)[0].copy() for name in SHOWN})
        worlds.step(np.zeros(2, int))
    return {name: np.array([step[name] for step in steps]) for name in SHOWN}


def blue(image):
    """Columns of pixels that are of the agent's colour."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.nonzero((np.abs(pixels - [31, 119, 180]).sum(-1) < 30).any(0))[0] / image.width


def test_the_agent_is_where_it_is(seen, tmp_path):
    image = Image.open(path_of(seen, tmp_path / "path.png"))
    assert np.median(blue(image)) == pytest.approx(seen["position"][-1, 0] / WIDTH, abs=0.03)


def test_films_have_every_second_step(seen, tmp_path):
    film(seen, tmp_path / "made" / "film.gif")
    with Image.open(tmp_path / "made" / "film.gif") as frames:
        assert frames.n_frames == 3
        places = []
        for frame in range(3):
            frames.seek(frame)
            places.append(np.median(blue(frames)))
    assert places == sorted(places)
    assert places[2] - places[0] == pytest.approx(4 * 4.21 / WIDTH, abs=0.01)
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["film.gif"]
