"""The two-dimensional world, drawn: an agent's path, and a film of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.collections import EllipseCollection, LineCollection

from examples.common.pictures import panels, save
from examples.common.results import whole
from examples.mc.world import EYES, HEIGHT, RADIUS, REACH, WALLS, WIDTH

SHOWN = ("position", "heading", "items", "good", "there")  # of a world, that it is drawn from
COLOURS = {True: "tab:red", False: "tab:green"}  # good and bad, as in the paper


def path_of(seen: dict[str, np.ndarray], path: Path) -> Path:
    """A picture of the last step, and of the way there.

    :param seen: attributes of a world by step, ``[steps, ...]``.
    """
    figure, axes = panels(1, 1, 7, 5.2)
    _draw(axes[0, 0], seen, len(seen["position"]) - 1)
    axes[0, 0].plot(*seen["position"].T, color="grey", linewidth=0.8, zorder=0)
    return save(figure, path)


def film(seen: dict[str, np.ndarray], path: Path, every: int = 2) -> Path:
    """An animation, of every second step, as a GIF."""
    figure, axes = panels(1, 1, 5, 3.8)

    def draw(step: int) -> list[Any]:
        axes[0, 0].clear()
        _draw(axes[0, 0], seen, step)
        return []

    made = FuncAnimation(figure, draw, frames=range(0, len(seen["position"]), every), blit=False)
    with whole(path) as file:
        made.save(file, writer=_Gif(fps=20), dpi=70)
    return path


class _Gif(PillowWriter):
    """Whatever the file's name ends in."""

    def finish(self) -> None:
        options = {"format": "GIF", "save_all": True, "duration": int(1000 / self.fps), "loop": 0}
        self._frames[0].save(self.outfile, append_images=self._frames[1:], **options)


def _draw(ax: Any, seen: dict[str, np.ndarray], step: int) -> None:
    position, heading, items, good, there = (seen[name][step] for name in SHOWN)
    ax.add_collection(LineCollection(WALLS.reshape(-1, 2, 2), color="black"))
    angle = heading + EYES
    ends = position + REACH * np.stack([np.sin(angle), np.cos(angle)], 1)
    ax.add_collection(LineCollection([(position, end) for end in ends], color="lightgrey", linewidth=0.8))
    for kind, colour in COLOURS.items():
        _discs(ax, items[there & (good == kind)], colour)
    _discs(ax, position[None], "tab:blue")
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    ax.set_axis_off()


def _discs(ax: Any, centres: np.ndarray, colour: str) -> None:
    sizes = np.full(len(centres), 2 * RADIUS)
    discs = EllipseCollection(sizes, sizes, np.zeros(len(centres)), units="xy", offsets=centres, facecolor=colour)
    discs.set_offset_transform(ax.transData)
    ax.add_collection(discs)
