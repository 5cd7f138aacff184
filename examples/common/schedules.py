"""Learning rates that come down."""

from __future__ import annotations


class Decay:
    """The learning rate of a chunk of steps: up to each end, as it is for half of the way, then down to a hundredth."""

    def __init__(self, ends: list[int]) -> None:
        self.ends = ends

    def __call__(self, chunk: int) -> float:
        end = next((end for end in self.ends if chunk < end), self.ends[-1])
        start = max((end for end in self.ends if end <= chunk), default=0)
        return 0.01 ** max(0.0, 2 * (chunk - start) / max(1, end - start) - 1)
