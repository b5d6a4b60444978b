"""Problems inside of problems: `value`, `argmin` and `layer`; equations inside of them: `fixed_point`.

With expressions they are recorded as a function of the parameters, with tensors they are computed at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from constrain._lazy import attribute
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import suggest
from constrain.language.expr import Constraint, Expr, shown
from constrain.language.keywords import keywords
from constrain.language.location import here
from constrain.language.problem import Problem
from constrain.language.symbols import Parameter, Variable
from constrain.language.types import type_of

if TYPE_CHECKING:
    from constrain.inner import FixedPoint, Layer
    from constrain.language.symbols import Model

__all__ = ["argmin", "fixed_point", "layer", "value"]


@keywords
def value(problem: Problem, at: Any = None, *, track: str | None = None) -> Any:
    """The optimal value of a problem as a function of its parameters.

    Its gradient is that of the Lagrangian (envelope theorem): in the right-hand side of a constraint, minus
    the multiplier. Of a problem with integer variables it is the gradient of the problem with the integers
    fixed at the optimum.

    Args:
        problem: over variables and parameters.
        at: what stands in the place of its parameter: an expression or a tensor, per row or not; for several
            parameters a mapping from each (or its name).
        track: name of the constraint that holds the parameter which `at` replaces; needed where the problem
            has several parameters and `at` is no mapping.

    Returns:
        An expression, or of tensors a tensor of one value per row.

    Raises:
        ModelingError: E112 (shapes), E127 (a parameter without value), E190, E191, E194 (parameters that the
            problem does not have).
        RouteError: E192 (no solution in a row), E193, when it is computed.
    """
    return _applied(problem, _placed(problem, at, track), ("value",), "value")


@keywords
def argmin(problem: Problem, *outputs: Variable | str, at: Any = None, track: str | None = None) -> Any:
    """The solution of a problem as a function of its parameters, by implicit differentiation.

    Args:
        problem: over variables and parameters.
        outputs: variables of the problem, names of constraints (for their multipliers), or `"value"`; its
            only variable when left out. Several of them only with tensors.
        at: as in `value`.
        track: as in `value`.

    Returns:
        An expression, or of tensors a tensor per output (a tuple of several).

    Raises:
        ModelingError: as in `value`, and E189 (an output that the problem does not have).
        RouteError: E192, E193, when it is computed.
    """
    return _applied(problem, _placed(problem, at, track), _outputs(problem, outputs), "argmin")


@keywords
def layer(
    problem: Problem,
    inputs: Sequence[Parameter | str] | Parameter | str | None = None,
    outputs: Sequence[Variable | str] | Variable | str | None = None,
) -> Layer:
    """The solution of a problem as a `torch.nn.Module`: parameters go in, the solution comes out.

    Args:
        problem: over variables and parameters.
        inputs: parameters, in the order of the arguments of `forward`; all of them when left out. Those that
            are no inputs keep their own values.
        outputs: variables, names of constraints (for their multipliers), or `"value"`; all variables when
            left out.

    Returns:
        A module without weights; each argument has any number of axes of rows in front of the shape of its
        parameter.

    Raises:
        ModelingError: E190, E191, E194, E189.
    """
    given = [inputs] if isinstance(inputs, (Parameter, str)) else inputs
    chosen = problem.parameters if given is None else tuple(_parameter(problem, p) for p in given)
    wanted = [outputs] if isinstance(outputs, (Variable, str)) else outputs
    symbols = tuple(problem.variables) if wanted is None else _outputs(problem, tuple(wanted))
    call = attribute("constrain.inner.layer:Call")(problem, chosen, symbols, "layer")
    return attribute("constrain.inner:layer")(call)  # type: ignore[no-any-return]


@keywords
def fixed_point(
    equation: Constraint, inputs: Sequence[Parameter | str] | Parameter | str | None = None
) -> FixedPoint:
    """The solution of an equation `z == F(z, x)` as a `torch.nn.Module`, by implicit differentiation.

    Args:
        equation: a variable on one side; on the other a function of it, of parameters and of models, whose
            weights are those of the module where they are not frozen. The value of the variable is the start.
        inputs: parameters, in the order of the arguments of `forward`; all of them when left out. Those that
            are no inputs keep their own values.

    Returns:
        A module; each argument has any number of axes of rows in front of the shape of its parameter. Called
        with expressions it is recorded, and its trained models are decisions.

    Raises:
        ModelingError: E188 (no equation of this form), E112 (shapes), E194 (inputs it does not have).
        RouteError: E193 (no fixed point found in a row), when it is computed.
    """
    unknown, image = _sides(equation)
    models = tuple(
        dict.fromkeys(
            x.model
            for x in n.postorder(image)
            if isinstance(x, (n.Call, n.Weights)) and not x.model.frozen and _trained(x.model)
        )
    )
    found = attribute("constrain.inner.fixed:Equation")(unknown, image, models)
    given = [inputs] if isinstance(inputs, (Parameter, str)) else inputs
    symbols: tuple[n.ParameterSymbol, ...] = found.parameters
    chosen = symbols if given is None else tuple(_named(symbols, key, "the equation") for key in given)
    call = attribute("constrain.inner.implicit:Implicit")(found, chosen)
    return attribute("constrain.inner.implicit:FixedPoint")(call)  # type: ignore[no-any-return]


def _trained(model: Model) -> bool:
    return any(p.requires_grad for p in model.module.parameters())


def _sides(equation: Any) -> tuple[n.VariableSymbol, n.Node]:
    """z and F of `z == F(z)` (E188)."""
    node = equation.node if isinstance(equation, (Constraint, Expr)) else None
    fix = "cn.fixed_point(z == torch.tanh(W @ z + x)), with a Variable z and a Parameter x"
    if not isinstance(node, n.Comparison) or node.op != "==":
        raise ModelingError(
            "E188", f"a fixed point is an equation z == F(z), got {shown(equation)}", at=here(), fix=fix
        )
    pairs = [(node.lhs, node.rhs), (node.rhs, node.lhs)]
    sides = next(((z.symbol, image) for z, image in pairs if isinstance(z, n.Decision)), None)
    if sides is None:
        raise ModelingError("E188", f"no side of {shown(equation)} is a Variable alone", at=here(), fix=fix)
    for x in n.postorder(sides[1]):
        if isinstance(x, n.Decision) and x.symbol is not sides[0]:
            what, instead = f"Variable {x.symbol.name!r}", "a cn.Parameter"
        elif isinstance(x, (n.Column, n.Moment, n.Mean)):
            what, instead = f"{shown(Expr(x))}, of rows", "a cn.Parameter, one per row when it is called"
        else:
            continue
        raise ModelingError(
            "E188", f"the equation of a fixed point holds {what}", at=here(), fix=f"{instead} in its place"
        )
    shape = type_of(sides[1]).shape
    if shape != sides[0].shape:
        text = f"Variable {sides[0].name!r} has shape {sides[0].shape}, and what it equals {shape}"
        raise ModelingError("E112", text, at=here(), fix="a Variable of the shape of F(z)")
    return sides


def _applied(
    problem: Problem, at: Mapping[n.ParameterSymbol, Any], outputs: tuple[Any, ...], name: str
) -> Any:
    """Records a call of expressions, computes one of tensors."""
    call = attribute("constrain.inner.layer:Call")(problem, tuple(at), outputs, name)
    attribute("constrain.inner:compiled")(problem, solution=outputs != ("value",))
    return call(*at.values())


def _placed(problem: Problem, at: Any, track: str | None) -> dict[n.ParameterSymbol, Any]:
    """What stands in the place of each parameter."""
    _check_problem(problem)
    if isinstance(at, Mapping):
        places = cast("Mapping[Any, Any]", at)
        return {_parameter(problem, key): x for key, x in places.items()}
    found = problem.parameters
    if track is not None:
        if track not in problem.constraints:
            close = suggest(track, tuple(problem.constraints))
            raise ModelingError("E194", f"the inner problem has no constraint {track!r}{close}", at=here())
        relation = problem.constraints[track]
        found = tuple(dict.fromkeys(x.symbol for x in n.postorder(relation) if isinstance(x, n.Knob)))
    if at is None and track is None and not found:
        return {}
    if at is None or len(found) != 1:
        where = "the inner problem" if track is None else f"its constraint {track!r}"
        names = ", ".join(symbol.name for symbol in found) or "none"
        raise ModelingError(
            "E194",
            f"what at= replaces is not clear: the parameters of {where} are {names}",
            at=here(),
            fix=f"at={{{found[0].name if found else 'target'}: ...}}",
        )
    return {found[0]: at}


def _check_problem(problem: Any) -> None:
    if not isinstance(problem, Problem):
        raise ModelingError(
            "E190",
            f"an inner problem is a Problem, got a {type(problem).__name__}",
            at=here(),
            fix="cn.minimize(...).subject_to(...)",
        )


def _parameter(problem: Problem, key: Any) -> n.ParameterSymbol:
    _check_problem(problem)
    return _named(problem.parameters, key, "the inner problem")


def _named(symbols: Sequence[n.ParameterSymbol], key: Any, what: str) -> n.ParameterSymbol:
    if not isinstance(key, (Parameter, str)):
        raise ModelingError(
            "E194",
            f"a parameter is named by itself or by its name, got {shown(key)}",
            at=here(),
            fix="at={demand: ...}, with demand = cn.Parameter(...)",
        )
    name = key if isinstance(key, str) else key.name
    for symbol in symbols:
        if symbol.name == name and (isinstance(key, str) or symbol is key.symbol):
            return symbol
    known = [symbol.name for symbol in symbols]
    listed = ", ".join(known) or "none"
    raise ModelingError(
        "E194",
        f"{what} has no Parameter {name!r}{suggest(name, known)}",
        at=here(),
        fix=f"one of its parameters: {listed}",
    )


def _outputs(problem: Problem, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Symbols of variables, names of constraints, or `value` (E189)."""
    _check_problem(problem)
    if not outputs:
        if len(problem.variables) != 1:
            names = ", ".join(symbol.name for symbol in problem.variables)
            raise ModelingError(
                "E189",
                f"the inner problem has several variables: {names}",
                at=here(),
                fix="cn.argmin(inner, x, at=...), with the one that is wanted",
            )
        return (problem.variables[0],)
    known = [*(s.name for s in problem.variables), *problem.constraints, "value"]
    found: list[Any] = []
    for output in outputs:
        symbol = output.symbol if isinstance(output, Variable) else None
        text = output if isinstance(output, str) else None
        named = next((s for s in problem.variables if s is symbol or s.name == text), None)
        if named is not None:
            found.append(named)
        elif text is not None and text in known:
            found.append(output)
        else:
            name = text if symbol is None else symbol.name
            raise ModelingError(
                "E189",
                f"the inner problem has no variable or constraint {name!r}{suggest(str(name), known)}",
                at=here(),
                fix=f"one of {', '.join(known)}",
            )
    return tuple(found)
