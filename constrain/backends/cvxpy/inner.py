"""Optimal values of inner problems in a cvxpy program: the inner problem is written out, once per row.

    V(e) <= s   for a minimum, convex in x and e together   is   f(x, e) <= s, g(x, e) <= 0, h(x, e) == 0

Exact: in a position where less of the value is better, the variables x of the inner problem are decisions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from constrain.backends.cvxpy.package import cp
from constrain.inner import Call
from constrain.inner.convexity import curvature_of
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.lowering.lower import lower

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.backends.cvxpy.expressions import Lowerer
    from constrain.lowering.program import Program

__all__ = ["ROWS", "inner_value", "refused", "written_out"]

ROWS = 1000
"""Copies of an inner problem that are written out at most."""


def inner_value(node: n.Node) -> Call | None:
    """The inner problem whose optimal value a node is, if it can be written out."""
    call: Any = node.function if isinstance(node, n.Opaque) else None
    if not isinstance(call, Call) or call.outputs != ("value",):
        return None
    return call if curvature_of(call.problem, call.inputs).joint else None


def refused(program: Program) -> str | None:
    """Why the values of inner problems in a program cannot be written out, in a sentence."""
    for node in n.postorder(program.objective, *(part.residual for part in program.parts)):
        if not isinstance(node, n.Opaque) or not isinstance(node.function, Call):
            continue
        if inner_value(node) is None:
            what = "convex in variables and parameters together"
            return f"an inner problem is written out in place of its value where it is {what}"
        copies = max(
            (len(rows) for x in n.children(node) if (rows := type_of(x).rows) is not None), default=1
        )
        if copies > ROWS:
            return f"its inner problem would be written out for {copies:,} rows, more than {ROWS:,}"
    return None


def written_out(
    call: Call, values: Sequence[Any], leads: Sequence[int], make: Callable[[Program], Lowerer]
) -> tuple[Any, list[Any]]:
    """The value of an inner problem, and the constraints that make it so.

    Args:
        call: the inner problem.
        values: cvxpy expressions of its inputs, with an axis of rows in front where `leads` says so.
        leads: 1 for an input per row, else 0.
        make: a lowerer with variables of its own for one copy of the inner program.
    """
    program = lower(call.problem, use_epigraph=False)
    rules: list[Any] = []

    def copy(inputs: Sequence[Any]) -> Any:
        builder = make(program)
        builder.parameters.update(zip(call.inputs, inputs, strict=True))
        objective = builder.expression(program.objective)
        for part in program.parts:
            residual = builder.expression(part.residual)
            rules.append(residual == 0 if part.kind == "==" else residual <= 0)
        rules.extend([*builder.rules, *(own.constraint for own in builder.inequalities)])
        return program.sign * objective

    if not any(leads):
        return copy(values), rules
    count = next(v.shape[0] for v, lead in zip(values, leads, strict=True) if lead)
    rows = [copy([v[i] if lead else v for v, lead in zip(values, leads, strict=True)]) for i in range(count)]
    return cp.hstack(rows), rules
