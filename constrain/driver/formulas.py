"""The route of problems whose solution is a formula (`constrain.solvers.closed`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from constrain.diagnostics.alive import rebind
from constrain.errors import ModelingError, RouteError
from constrain.runtime.binding import parameter_values
from constrain.solvers.closed import ClosedForm, recognize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constrain.language.data import Data
    from constrain.lowering.program import Program

__all__ = ["asked_for_formula", "formula_of"]


def formula_of(
    program: Program,
    data: Data | Mapping[str, Data] | None = None,
    params: Mapping[str, Any] | None = None,
) -> ClosedForm | str:
    """The solver of a program whose solution is a formula, or why it is none.

    Args:
        program: the moment form.
        data: replaces the samples of the problem.
        params: values of parameters by name.
    """
    given = params or {}
    missing = next((s.name for s in program.parameters if given.get(s.name, s.value) is None), None)
    if missing is not None:
        return f"the parameter {missing} has no value"
    named = {} if data is None else rebind(program, data)
    bind = {d: named.get(d.name, d) for d in program.populations}
    return recognize(program, bind, parameter_values(program.parameters, params))


def asked_for_formula(
    program: Program,
    options: Mapping[str, Any],
    data: Data | Mapping[str, Data] | None,
    params: Mapping[str, Any] | None,
) -> ClosedForm:
    """The solver of `method="closed"`.

    Raises:
        RouteError: E125 where the solution is no known formula.
        ModelingError: E141 for an option; there are none.
    """
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        raise ModelingError("E141", f"method 'closed' has no option {given!r}", fix='solve("closed")')
    form = formula_of(program, data, params)
    if isinstance(form, str):
        raise RouteError("E125", f"closed cannot take the problem: {form}", fix='solve(method="auto")')
    return form
