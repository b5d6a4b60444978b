"""The record of one known problem."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from constrain.language.problem import Problem

__all__ = ["CONVEX", "EXACT", "FULL_DATA", "NO_DATA", "KnownProblem", "Tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """How closely a route has to meet a known problem; differences are relative to the largest |expected|.

    Attributes:
        value: of the optimal value.
        multiplier: of each multiplier.
        primal: of each decision.
    """

    value: float
    multiplier: float
    primal: float


CONVEX = Tolerance(value=1e-6, multiplier=1e-4, primal=1e-4)
"""What the convex route has to meet."""
EXACT = Tolerance(value=1e-6, multiplier=1e-4, primal=1e-5)
"""What second-order methods have to meet: the last digits of books and tables."""
FULL_DATA = Tolerance(value=1e-4, multiplier=1e-4, primal=1e-3)
"""What full-data methods have to meet."""
NO_DATA = "the problem has no data"
"""The reason for which minibatch methods refuse a problem of variables only."""


@dataclass(frozen=True)
class KnownProblem:
    """A problem whose optimum is known from a source that is not this package.

    Attributes:
        name: unique in the table.
        build: makes the problem anew, with its start; nothing is shared between two calls.
        value: optimal value in the problem's own sense; NaN when the problem is infeasible.
        source: who says so: a closed form, a solver, a book.
        multipliers: by constraint, in the convention of semantics S10; an array for a block.
        primal: by variable, where the optimum is unique and known.
        routes: methods that can take it, with the tolerance that they have to meet.
        refusals: methods that have to refuse it, with words that their reason has to contain.
        outcome: `solved`; `unqualified` when the optimum has no multipliers, so that the most that is known
            of a solution is that it is `feasible`; or `infeasible` when no point satisfies the constraints.
        local: the value is that of the local optimum next to the start.
        needs: optional packages that `build` imports.
    """

    name: str
    build: Callable[[], Problem]
    value: float
    source: str
    multipliers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    primal: Mapping[str, Any] = field(default_factory=dict[str, Any])
    routes: Mapping[str, Tolerance] = field(default_factory=dict[str, Tolerance])
    refusals: Mapping[str, str] = field(default_factory=dict[str, str])
    outcome: Literal["solved", "unqualified", "infeasible"] = "solved"
    local: bool = False
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> str | None:
        """Why the problem cannot be built here: the first package that is not installed, or None."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{self.name} needs {absent[0]}, which is not installed" if absent else None
