"""The table of known problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constrain.testing.book import book_problems
from constrain.testing.decisions import decision_problems
from constrain.testing.learning import learning_problems

if TYPE_CHECKING:
    from constrain.testing.known import KnownProblem

__all__ = ["known_problem", "known_problems"]


def known_problems() -> list[KnownProblem]:
    """Every known problem that needs no file, in a fixed order; data is made when one is built."""
    return [*decision_problems(), *learning_problems(), *book_problems()]


def known_problem(name: str) -> KnownProblem:
    """A known problem by name.

    Raises:
        KeyError: when the table has no problem of that name.
    """
    return {known.name: known for known in known_problems()}[name]
