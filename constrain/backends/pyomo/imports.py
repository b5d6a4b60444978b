"""From a `pyomo.ConcreteModel` to a problem of the language.

A component of variables becomes one `Variable`, whose entries are in the order of its index. A component of
linear constraints becomes one constraint with a matrix; others become one constraint per index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain.backends.pyomo.package import pyo, repn, visitor
from constrain.errors import ModelingError, RouteError
from constrain.language import functions as f
from constrain.language.problem import Problem, find, maximize, minimize
from constrain.language.statistics import between
from constrain.language.symbols import Variable
from constrain.runtime.lowering import identifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["Imported", "from_pyomo", "imported"]

_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "exp": f.exp,
    "log": f.log,
    "sqrt": f.sqrt,
    "abs": f.abs,
    "log10": lambda x: f.log(x) / math.log(10.0),
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": lambda x: torch.sin(x) / torch.cos(x),
    "tanh": torch.tanh,
    "sinh": lambda x: (f.exp(x) - f.exp(-x)) / 2,
    "cosh": lambda x: (f.exp(x) + f.exp(-x)) / 2,
}
_MATH: dict[str, Callable[[float], float]] = {
    name: getattr(math, name) for name in (*_FUNCTIONS, "asin", "acos", "atan") if hasattr(math, name)
}


@dataclass(frozen=True)
class Imported:
    """A problem, and what its names stand for.

    Attributes:
        problem: of the language.
        variables: each variable with its Pyomo data, in the order of its entries.
        constraints: by name, the Pyomo constraint data in the order of its entries.
    """

    problem: Problem
    variables: tuple[tuple[Variable, tuple[Any, ...]], ...]
    constraints: dict[str, tuple[Any, ...]]


class _Importer:
    """Converts a model; `place` finds the variable and the position of a Pyomo variable."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.taken: set[str] = set()
        self.variables: list[tuple[Variable, tuple[Any, ...]]] = []
        self.place: dict[int, tuple[Variable, int]] = {}
        self.relations: dict[str, Any] = {}
        self.constraints: dict[str, tuple[Any, ...]] = {}

    # ---- variables
    def declare(self) -> None:
        """Variables that are not fixed; a component with mixed domains is taken apart."""
        for component in self.model.component_objects(pyo.Var, active=True, descend_into=True):
            free = [data for data in component.values() if not data.fixed]
            kinds: dict[str, list[Any]] = {}
            for data in free:
                kind = "boolean" if data.is_binary() else "integer" if data.is_integer() else "real"
                kinds.setdefault(kind, []).append(data)
            for kind, group in kinds.items():
                suffix = "" if len(kinds) == 1 else f"_{kind}"
                self._declared(component.name + suffix, group, kind, scalar=not component.is_indexed())

    def _declared(self, name: str, group: list[Any], kind: str, *, scalar: bool) -> None:
        low = np.array([-math.inf if v.lb is None else v.lb for v in group], dtype=np.float64)
        high = np.array([math.inf if v.ub is None else v.ub for v in group], dtype=np.float64)
        bounds: tuple[Any, Any] | None = None
        if kind != "boolean" and (np.isfinite(low).any() or np.isfinite(high).any()):
            ends = (low if np.isfinite(low).any() else None, high if np.isfinite(high).any() else None)
            bounds = ends if not scalar else (_first(ends[0]), _first(ends[1]))
        shape = () if scalar else (len(group),)
        made: Any = Variable(
            shape,
            identifier(name, self.taken),
            boolean=kind == "boolean",
            integer=kind == "integer",
            bounds=bounds,
        )
        if all(v.value is not None for v in group):
            start = np.array([float(v.value) for v in group])
            made.value = start.reshape(shape)
        self.variables.append((made, tuple(group)))
        for k, data in enumerate(group):
            self.place[id(data)] = (made, k)

    def entry(self, data: Any) -> Any:
        """One Pyomo variable."""
        if id(data) not in self.place:
            raise RouteError("E125", f"from_pyomo: the variable {data.name} is not active in the model")
        variable, k = self.place[id(data)]
        return variable if variable.shape == () else variable[k]

    # ---- expressions
    def expression(self, expr: Any) -> Any:
        """A Pyomo expression; its linear part as coefficients times variables."""
        found = repn.generate_standard_repn(expr, quadratic=False, compute_values=True)
        total: Any = self._row(found) if found.linear_vars else None
        if found.nonlinear_expr is not None:
            curved = self._walked(found.nonlinear_expr)
            total = curved if total is None else total + curved
        constant = float(pyo.value(found.constant))
        if total is None:
            return constant
        return total + constant if constant else total

    def _row(self, found: Any) -> Any:
        """The linear part of one expression: coefficients times variables."""
        pairs = list(zip(found.linear_coefs, found.linear_vars, strict=True))
        entries = [(float(c), self.entry(v), v) for c, v in pairs]
        scalars = [c * e for c, e, v in entries if not self.place[id(v)][0].shape]
        used = [self.place[id(v)][0] for v in found.linear_vars]
        vectors = {id(variable): variable for variable in used if variable.shape}
        terms = list(scalars)
        for variable in vectors.values():
            factors = np.zeros(variable.shape or ())
            for factor, data in pairs:
                if self.place[id(data)][0] is variable:
                    factors[self.place[id(data)][1]] += float(factor)
            terms.append(factors @ variable)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def linear(self, rows: list[Any]) -> Any:
        """The linear parts of several expressions as one vector: matrices times variables."""
        matrices: dict[Any, NDArray[Any]] = {}
        used: dict[Any, Variable] = {}
        for k, row in enumerate(rows):
            for factor, data in zip(row.linear_coefs, row.linear_vars, strict=True):
                self.entry(data)
                variable, j = self.place[id(data)]
                symbol = variable.symbol
                if symbol not in matrices:
                    matrices[symbol] = np.zeros((len(rows), math.prod(variable.shape or (1,))))
                    used[symbol] = variable
                matrices[symbol][k, j] += float(factor)
        total: Any = None
        for symbol, matrix in matrices.items():
            variable = used[symbol]
            if variable.shape == ():
                term: Any = matrix[:, 0] * variable
            else:
                term = matrix @ variable
            total = term if total is None else total + term
        return total if total is not None else np.zeros(len(rows))

    def _walked(self, expr: Any) -> Any:
        walker = visitor.StreamBasedExpressionVisitor(
            exitNode=self._exit, beforeChild=self._before, initializeWalker=self._start
        )
        return walker.walk_expression(expr)

    def _start(self, expr: Any) -> tuple[bool, Any]:
        return self._before(None, expr, 0)

    def _before(self, _parent: Any, child: Any, _place: Any) -> tuple[bool, Any]:
        if not hasattr(child, "is_expression_type"):
            return False, float(child)
        if not child.is_potentially_variable():
            return False, float(pyo.value(child))
        if child.is_variable_type():
            return False, float(child.value) if child.fixed else self.entry(child)
        return True, None

    @staticmethod
    def _exit(node: Any, args: list[Any]) -> Any:
        kind = type(node).__name__
        if kind in ("SumExpression", "LinearExpression", "NPV_SumExpression"):
            total = args[0]
            for other in args[1:]:
                total = total + other
            return total
        match kind:
            case "ProductExpression" | "MonomialTermExpression":
                return args[0] * args[1]
            case "DivisionExpression":
                return args[0] / args[1]
            case "PowExpression":
                whole = isinstance(args[1], float) and args[1].is_integer()
                return args[0] ** (int(args[1]) if whole else args[1])
            case "NegationExpression":
                return -args[0]
            case "AbsExpression":
                return f.abs(args[0])
            case "MaxExpression" | "MinExpression":
                pick = f.maximum if kind == "MaxExpression" else f.minimum
                total = args[0]
                for other in args[1:]:
                    total = pick(total, other)
                return total
            case "UnaryFunctionExpression" if node.getname() in _FUNCTIONS:
                name = node.getname()
                return _MATH[name](args[0]) if isinstance(args[0], float) else _FUNCTIONS[name](args[0])
            case _ if node.is_named_expression_type():
                return args[0]
            case _:
                name = node.getname() if hasattr(node, "getname") else kind
                raise RouteError("E125", f"from_pyomo has no form of {name}")

    # ---- constraints
    def constrain(self) -> None:
        """All active constraints."""
        for component in self.model.component_objects(pyo.Constraint, active=True, descend_into=True):
            active = [data for data in component.values() if data.active]
            reduced = [
                repn.generate_standard_repn(c.body, quadratic=False, compute_values=True) for c in active
            ]
            kinds = {_sense(c) for c in active}
            moving = all(r.nonlinear_expr is None and r.linear_vars for r in reduced)
            if component.is_indexed() and moving and len(kinds) == 1 and kinds != {"free"}:
                self._block(component.name, active, reduced)
                continue
            for data in active:
                self._single(data)

    def _block(self, name: str, active: list[Any], reduced: list[Any]) -> None:
        body = self.linear(reduced)
        constants = np.array([float(pyo.value(r.constant)) for r in reduced])
        low, high = (
            np.array([0.0 if end is None else float(pyo.value(end)) for end in ends]) - constants
            for ends in ([c.lower for c in active], [c.upper for c in active])
        )
        self._add(name, _relation(_sense(active[0]), low, body, high), tuple(active))

    def _single(self, data: Any) -> None:
        sense = _sense(data)
        body = self.expression(data.body)
        if sense == "free":
            return
        low, high = (None if end is None else float(pyo.value(end)) for end in (data.lower, data.upper))
        if isinstance(body, float):
            inside = (low is None or body >= low - 1e-8) and (high is None or body <= high + 1e-8)
            if inside:
                return
            body = next(iter(self.variables))[0]
            body = (body if body.shape == () else body[0]) * 0.0 + float(pyo.value(data.body))
        self._add(data.name, _relation(sense, low, body, high), (data,))

    def _add(self, text: str, relation: Any, rows: tuple[Any, ...]) -> None:
        name = identifier(text, self.taken)
        self.relations[name] = relation
        self.constraints[name] = rows


def _first(bound: NDArray[Any] | None) -> float | None:
    return None if bound is None else float(bound[0])


def _sense(data: Any) -> str:
    if data.equality:
        return "=="
    if data.lower is None:
        return "<=" if data.upper is not None else "free"
    return ">=" if data.upper is None else "between"


def _relation(sense: str, low: Any, body: Any, high: Any) -> Any:
    match sense:
        case "==":
            return body == high
        case "<=":
            return body <= high
        case ">=":
            return body >= low
        case _:
            return between(low, body, high)


_KNOWN = ("Var", "Constraint", "Objective", "Set", "Param", "Expression", "Block", "Suffix", "RangeSet")


def _check_model(model: Any) -> None:
    """E117 for what is no concrete model."""
    if getattr(model, "ctype", None) is not pyo.Block or not hasattr(model, "component_objects"):
        own = isinstance(model, Problem)
        hint = "a problem of this language already" if own else f"got {type(model).__name__}"
        raise ModelingError(
            "E117", f"from_pyomo takes a pyomo.ConcreteModel, {hint}", fix="model = pyo.ConcreteModel()"
        )
    if not model.is_constructed():
        raise ModelingError(
            "E117",
            "the model is abstract: its data are missing",
            fix="from_pyomo(model.create_instance(...))",
        )


def imported(model: Any) -> Imported:
    """A Pyomo model as a problem of the language, with the way back to its components.

    Raises:
        RouteError: E125 for a component or function without a form in the language, or several objectives.
    """
    _check_model(model)
    for kind in model.collect_ctypes(active=True, descend_into=True):
        if kind.__name__ not in _KNOWN and kind.__name__ not in ("Port", "Any", "BuildAction", "BuildCheck"):
            raise RouteError(
                "E125",
                f"from_pyomo has no form of the component {kind.__name__}",
                fix="a transformation to constraints first, such as TransformationFactory('gdp.bigm')",
            )
    objectives = list(model.component_data_objects(pyo.Objective, active=True))
    if len(objectives) > 1:
        raise RouteError("E125", f"from_pyomo takes one active objective, the model has {len(objectives)}")
    importer = _Importer(model)
    importer.declare()
    importer.constrain()
    problem = find()
    if objectives:
        value = importer.expression(objectives[0].expr)
        problem = minimize(value) if objectives[0].sense == pyo.minimize else maximize(value)
    full = problem.subject_to(**importer.relations)
    return Imported(full, tuple(importer.variables), importer.constraints)


def from_pyomo(model: Any) -> Problem:
    """A `pyomo.ConcreteModel` as a problem of the language.

    Names are those of the components, made identifiers. Values of variables become starts, mutable parameters
    and fixed variables become numbers.

    Raises:
        RouteError: E125 for a component or function without a form in the language, or several objectives.
    """
    return imported(model).problem
