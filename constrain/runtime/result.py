"""What a solver or backend hands back, before anyone has judged it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from constrain.language import nodes as n
    from constrain.language.symbols import Model

__all__ = ["Answer", "Ending", "RawResult", "Support", "put_back"]

Ending = Literal[
    "converged", "limit", "diverged", "infeasible", "likely_infeasible", "unbounded", "interrupted", "error"
]


def put_back(
    values: Mapping[n.VariableSymbol, NDArray[Any]], weights: Mapping[Model, Mapping[str, NDArray[Any]]]
) -> None:
    """Puts values into `Variable`s and weights (by parameter name) into modules; dtype and device stay."""
    for symbol, value in values.items():
        symbol.value = value
    with torch.no_grad():
        for model, arrays in weights.items():
            parameters = dict(model.module.named_parameters())
            for name, array in arrays.items():
                parameters[name].copy_(torch.as_tensor(array))


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
        bound_if_convex: the same, proven only where the program is convex (weak duality).
        message: in words.
        candidates: iterates from which a mixture can be made (`solvers.mixtures.Candidates`); None without.
    """

    ending: Ending
    multipliers: dict[str, NDArray[Any]] | None
    solver: str
    seconds: float = 0.0
    iterations: int = 0
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    bound: float | None = None
    message: str = ""
    bound_if_convex: float | None = None
    candidates: Any = None


# ------------------------------------------------------------------------ backends of other packages
@dataclass(frozen=True)
class Support:
    """Whether a backend takes a program.

    Attributes:
        ok: yes or no.
        reason: why, or why not, in a sentence that `explain()` shows.
    """

    ok: bool
    reason: str


@dataclass(frozen=True)
class Answer:
    """What a backend found, as its `solve` returns it.

    Attributes:
        raw: how the run ended, with the multipliers by part key.
        values: per variable of the program (auxiliary ones included) an array of its shape; empty without a
            point.
        weights: per trainable model, parameter name to array.
    """

    raw: RawResult
    values: Mapping[n.VariableSymbol, NDArray[Any]] = field(default_factory=dict["n.VariableSymbol", Any])
    weights: Mapping[Model, Mapping[str, NDArray[Any]]] = field(default_factory=dict["Model", Any])

    def write_back(self) -> None:
        """Puts the values into the `Variable`s and the weights into the modules; dtype and device stay."""
        put_back(self.values, self.weights)

    def result(self) -> RawResult:
        """The record that solvers and backends share."""
        return self.raw
