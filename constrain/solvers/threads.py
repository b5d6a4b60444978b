"""One thread for small dense linear algebra, where handing work to others costs more than the work itself.

Torch and the BLAS of NumPy and SciPy have a pool each, whose idle threads wait for each other in loops.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Generator

    from constrain.runtime.evaluator import Evaluator

__all__ = ["threads_for"]

_DECISIONS, _NUMBERS = 300, 300_000
"""Most decisions, and decisions times rows, that one thread is enough for."""


@contextmanager
def threads_for(evaluator: Evaluator) -> Generator[None]:
    """Runs a block with one thread where the problem is small and on the CPU, else with all of them."""
    size = evaluator.decisions.size
    rows = max([population.rows for population in evaluator.populations.values()], default=1)
    before = torch.get_num_threads()
    small = size <= _DECISIONS and size * rows <= _NUMBERS
    if not small or evaluator.device.type != "cpu":
        yield
        return
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
