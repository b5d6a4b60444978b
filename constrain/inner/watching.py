"""Optimal values, recorded while an expression is evaluated: the judge looks at their multipliers."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor

    from constrain.inner.program import Inner
    from constrain.inner.quadratic import Solved

__all__ = ["Valued", "record", "values_seen"]


@dataclass(frozen=True)
class Valued:
    """An optimal value on a batch.

    Attributes:
        inner: the problem.
        batched: whether each parameter has an axis of rows.
        parameters: with their graphs.
        solved: the solutions and multipliers of the batch.
        value: (B,) of the minimized objective, with its graph.
    """

    inner: Inner
    batched: tuple[bool, ...]
    parameters: Sequence[Tensor]
    solved: Solved
    value: Tensor


_SEEN: ContextVar[list[Valued] | None] = ContextVar("values_seen", default=None)


@contextmanager
def values_seen() -> Generator[list[Valued]]:
    """The optimal values that are computed within it, those of formulas left out."""
    found: list[Valued] = []
    token = _SEEN.set(found)
    try:
        yield found
    finally:
        _SEEN.reset(token)


def record(valued: Valued) -> None:
    """Keeps an optimal value where someone watches."""
    seen = _SEEN.get()
    if seen is not None and valued.value.requires_grad:
        seen.append(valued)
