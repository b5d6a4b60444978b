"""The sample-average program of a certified problem as a `cvxpy.Problem`.

Data enter as constants; a moment is a sparse averaging matrix times a per-row expression.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.backends.cvxpy.averages import added
from constrain.backends.cvxpy.expressions import Lowerer
from constrain.backends.cvxpy.matrices import Inequality, inequality
from constrain.backends.cvxpy.package import cp
from constrain.errors import RouteError
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.lowering.relaxation import rows_of
from constrain.runtime.binding import parameter_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from constrain.language.data import Data
    from constrain.language.symbols import Model
    from constrain.lowering.program import Form, Part, Program

__all__ = ["Built", "Rows", "build"]

_PARAMETRIC_ENTRIES = 64


@dataclass(frozen=True)
class Rows:
    """The rows of a constraint per row that take part: positions, and the number of all rows."""

    selected: NDArray[np.int64]
    count: int


@dataclass(frozen=True)
class Built:
    """A `cvxpy.Problem` and what its parts stand for.

    Attributes:
        program: the program it was built from.
        problem: the cvxpy problem; it minimizes.
        variables: cvxpy variable per `Variable`, auxiliary ones included.
        weights: per trainable model, cvxpy variable per parameter name.
        parameters: cvxpy parameter per `Parameter`, when they stay symbolic (the problem is DPP then).
        constraints: cvxpy constraint per part key.
        rows: per part key of a constraint per row, the rows that take part.
        levels: per part key of a `by=` block, the level names.
        inequalities: semidefinite constraints, by part key where they stand for a part, else by a number.
        messages: what cvxpy warned about while building.
        rules: constraints that expressions brought along, such as those of an inner problem.
    """

    program: Program
    problem: Any
    variables: dict[n.VariableSymbol, Any]
    weights: dict[Model, dict[str, Any]]
    parameters: dict[n.ParameterSymbol, Any]
    constraints: dict[str, Any]
    rows: dict[str, Rows]
    levels: dict[str, tuple[Any, ...]]
    inequalities: dict[str | int, Inequality]
    messages: tuple[str, ...] = ()
    rules: tuple[Any, ...] = ()


def _residual(builder: Lowerer, part: Part, built_rows: dict[str, Rows]) -> Any:
    """The residual of a part, on the rows that take part."""
    residual = builder.expression(part.residual)
    if part.rows is not None:
        count = builder.constants.rows(part.rows)
        chosen = np.arange(count)
        if part.where is not None:
            chosen = np.flatnonzero(builder.constants.array(part.where))
            residual = residual[chosen.tolist()] if len(chosen) < count else residual
        built_rows[part.key] = Rows(chosen, count)
    return residual


def _shares(builder: Lowerer, form: Form, rows: Rows, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """How much each slack counts: 1 for the rows of a sample, the weight of a point of a region."""
    assert form.rows is not None  # callers check
    if rows_of(form.rows) is not None:
        return np.ones(shape)
    averaging = builder.constants.averaging(n.Moment(form.rows, form.lhs))
    weight = np.asarray(averaging.matrix.toarray()[0])[rows.selected]
    return np.broadcast_to(weight.reshape(-1, *(1 for _ in shape[1:])), shape).copy()


def _relaxed(builder: Lowerer, form: Form, built_rows: dict[str, Rows]) -> tuple[Any, dict[str, Any]]:
    """A relaxed constraint per row with a slack for every row, which has the exact multipliers as duals.

    Returns:
        The cost, and the constraints by part key.
    """
    relaxation = form.relaxation
    assert relaxation is not None  # callers check
    residuals = {part.key: _residual(builder, part, built_rows) for part in relaxation.parts}
    shape = next(iter(residuals.values())).shape
    equality = form.op == "=="
    slacks = [cp.Variable(shape, name=f"{form.name} {i}", nonneg=True) for i in range(1 + equality)]
    z = slacks[0] - slacks[1] if equality else slacks[0]
    share = _shares(builder, form, built_rows[relaxation.parts[0].key], shape)
    costs: list[Any] = []
    for kind, weight in zip(relaxation.cost, relaxation.weights, strict=True):
        each = [cp.square(s) / 2 if kind == "squared" else s for s in slacks]
        costs.append(builder.expression(weight) * sum(cp.sum(cp.multiply(share, x)) for x in each))
    rules = {key: r - z == 0 if equality else r - z <= 0 for key, r in residuals.items()}
    return added(costs), rules


def _assemble(
    program: Program, bind: Mapping[Data, Data], values: Mapping[Any, Any], *, symbolic: bool
) -> Built:
    builder = Lowerer(program, bind, values, symbolic=symbolic)
    rows: dict[str, Rows] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        objective = builder.expression(program.judged.objective)
        constraints: dict[str, Any] = {}
        inequalities: dict[str | int, Inequality] = {}
        for form in program.forms:
            if form.relaxation is not None and form.relaxation.parts:
                cost, relaxed = _relaxed(builder, form, rows)
                objective, constraints = objective + cost, constraints | relaxed
            for part in form.parts:
                matrix = inequality(builder, part.residual) if part.kind == "<=" and not part.rows else None
                if matrix is not None:
                    inequalities[part.key], constraints[part.key] = matrix, matrix.constraint
                    continue
                residual = _residual(builder, part, rows)
                constraints[part.key] = residual == 0 if part.kind == "==" else residual <= 0
        for key, constraint in constraints.items():
            constraint.set_label(key)
        inequalities |= dict(enumerate(builder.inequalities))
        rules = [*builder.rules, *(own.constraint for own in builder.inequalities)]
        asked = [*constraints.values(), *rules]
        problem = cp.Problem(cp.Minimize(cp.reshape(objective, (), order="C")), asked)
    levels = {part.key: _levels(builder, part.residual) for part in program.judged.parts}
    return Built(
        program,
        problem,
        builder.variables,
        builder.weights,
        builder.parameters,
        constraints,
        rows,
        {key: names for key, names in levels.items() if names},
        inequalities,
        tuple(str(w.message) for w in caught),
        tuple(rules),
    )


def _levels(builder: Lowerer, residual: n.Node) -> tuple[Any, ...]:
    axis = type_of(residual).levels
    if axis is None:
        return ()
    moment = next(x for x in n.postorder(residual) if isinstance(x, n.Moment) and type_of(x).levels == axis)
    return builder.constants.averaging(moment).levels


def build(
    program: Program,
    data: Mapping[Data, Data] | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    symbolic_parameters: bool = False,
) -> Built:
    """The sample-average program.

    Args:
        program: a certified-convex program (see `support`).
        data: samples to use in the place of the problem's own.
        parameters: values of parameters by name; the current ones when left out.
        symbolic_parameters: keep each `Parameter` a `cvxpy.Parameter` where the result is DPP.

    Raises:
        RouteError: E125 when an expression has no cvxpy form, or cvxpy does not accept its curvature.
        ModelingError: E127 for a parameter without a value.
        DataError: E124 and others about the data.
    """
    values = parameter_values(program.parameters, parameters)
    bind: Mapping[Data, Data] = {} if data is None else data
    symbolic = (
        symbolic_parameters and sum(math.prod(s.shape) for s in program.parameters) <= _PARAMETRIC_ENTRIES
    )
    if symbolic:
        built = _assemble(program, bind, values, symbolic=True)
        if built.problem.is_dcp(dpp=True):
            return built
    built = _assemble(program, bind, values, symbolic=False)
    if not built.problem.is_dcp():
        refused = [key for key, c in built.constraints.items() if not c.is_dcp()] or ["objective"]
        raise RouteError("E125", f"cvxpy does not accept the curvature of {', '.join(refused)}")
    return built
