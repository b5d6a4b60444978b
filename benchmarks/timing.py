"""Ratios of CPU time that can be trusted on a noisy machine.

Two pieces of work are timed in alternation inside of one process, so that both see the same machine; the
ratio of a round is what counts, and its median over the rounds is reported with the smallest and the largest.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ratio", "alternate"]


class Ratio(NamedTuple):
    """CPU time of the work over that of the base: median, smallest and largest over the rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:5.2f}  ({self.least:.2f} to {self.most:.2f})"


def _seconds(work: Callable[[], None], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        work()
    return time.process_time() - start


def alternate(
    work: Callable[[], None],
    base: Callable[[], None],
    *,
    rounds: int = 7,
    repeats: int = 100,
    untimed: bool = True,
) -> Ratio:
    """Times `work` against `base`; one untimed round first, unless the first calls are to be counted."""
    if untimed:
        _seconds(work, repeats // 4 + 1)
        _seconds(base, repeats // 4 + 1)
    ratios = [_seconds(work, repeats) / _seconds(base, repeats) for _ in range(rounds)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
