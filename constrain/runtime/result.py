"""What a solver or backend hands back, before anyone has judged it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Ending", "RawResult"]

Ending = Literal[
    "converged", "limit", "diverged", "infeasible", "likely_infeasible", "unbounded", "interrupted", "error"
]


@dataclass
class RawResult:
    """How a run ended. The decisions themselves are in the tensors of `Decisions`, already written.

    Attributes:
        ending: in the solver's own judgment; the judge has the last word on the status.
        multipliers: per `Part.key` an array of the shape of the residual (levels first, or one entry per
            selected row of a constraint per row; 0 for rows that are not selected), in the sign of L = f +
            sum multiplier * residual of the program (which minimizes); None when the solver has none,
            `message` says why.
        history: one record per recorded step, plain numbers: `step`, `epoch`, `objective`,
            `violation` (largest, in the constraint's units), and per part key `residual:KEY`,
            `multiplier:KEY`.
        solver: name and version, for the report.
        seconds: wall time.
        iterations: solver steps.
        bound: proven bound of the program's optimal value (lower, since it minimizes), if any.
        message: in words.
    """

    ending: Ending
    multipliers: dict[str, NDArray[Any]] | None
    solver: str
    seconds: float = 0.0
    iterations: int = 0
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    bound: float | None = None
    message: str = ""
