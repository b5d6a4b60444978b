"""A program as a `pyomo.ConcreteModel`, and what its parts stand for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from constrain.backends.pyomo.expressions import Lowerer
from constrain.backends.pyomo.package import pyo
from constrain.backends.pyomo.products import Products, convex
from constrain.backends.pyomo.term import Term, expression_of, mapped, named
from constrain.runtime.binding import parameter_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from constrain.backends.pyomo.integers import Event, Room
    from constrain.backends.pyomo.term import Space
    from constrain.language import nodes as n
    from constrain.language.data import Data
    from constrain.language.symbols import Model
    from constrain.lowering.program import Part, Program

__all__ = ["Built", "ModelClass", "build"]

ModelClass = Literal["LP", "QP", "NLP", "MILP", "MIQP", "MINLP"]


@dataclass(frozen=True)
class Row:
    """One scalar constraint: `term <= 0` or `term == 0`.

    Attributes:
        part: key of its part.
        place: position in the residual of the part, flattened.
        term: the residual.
        constraint: the Pyomo constraint; None of a number, which no decision can change.
    """

    part: str
    place: int
    term: Any
    constraint: Any


@dataclass(frozen=True)
class Built:
    """A Pyomo model and what its parts stand for.

    Attributes:
        program: the program it was built from.
        model: the Pyomo model; it minimizes `model.objective`.
        space: its variables, numbered.
        objective: what is minimized.
        variables: arrays of terms per `Variable`, auxiliary ones included.
        weights: per trainable model, arrays of terms by parameter name.
        rows: all scalar constraints.
        shapes: shape of the residual per part key.
        kind: class of the model; `QP` and `MIQP` have a convex quadratic objective and affine constraints.
        auxiliary: terms and constraints that kinks, jumps and events brought along.
        switches: number of binary variables that stand for kinks, jumps and events.
        zero: pairs of numbers of a variable and of the switch without which it is 0.
        discrete: boolean and integer variables, those of switches included.
        events: of decisions, with their switches.
        roomy: whether events have to hold, or not, with some room.
        again: the same model with other room; its variables stand in the same order.
    """

    program: Program
    model: Any
    space: Space
    objective: Any
    variables: dict[n.VariableSymbol, NDArray[Any]]
    weights: dict[Model, dict[str, NDArray[Any]]]
    rows: tuple[Row, ...]
    shapes: dict[str, tuple[int, ...]]
    kind: ModelClass
    auxiliary: tuple[tuple[Any, Any], ...]
    switches: int
    zero: tuple[tuple[int, int], ...]
    discrete: tuple[Any, ...]
    events: tuple[Event, ...]
    roomy: bool
    again: Callable[[Room], Built]

    @property
    def integer(self) -> bool:
        """Whether there are boolean or integer variables."""
        return bool(self.discrete)


def build(
    program: Program,
    data: Mapping[Data, Data] | None = None,
    parameters: Mapping[str, Any] | None = None,
    room: Room = "open",
) -> Built:
    """The program as a Pyomo model, with parameters and data as numbers.

    Args:
        program: see `support`.
        data: samples to use in the place of the problem's own.
        parameters: values of parameters by name; the current ones when left out.
        room: which sides of events hold with some room.

    Raises:
        RouteError: E125 when an expression has no form in Pyomo, or integers that it needs have no bounds.
        ModelingError: E127 for a parameter without a value.
        DataError: E124 and others about the data.
    """
    values = parameter_values(program.parameters, parameters)
    model = pyo.ConcreteModel()
    model.objective = pyo.Objective(expr=0.0)  # its name is taken before a decision or constraint asks for it
    builder = Lowerer(program, data or {}, values, model, room)
    products = Products(builder.pieces, builder.space, program.objective)
    builder.pieces.straight = products.linear
    objective = products.linear(builder.expression(program.objective).reshape(-1)[0])
    rows: list[Row] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for part in program.parts:
        shapes[part.key] = _part(builder, products, part, rows)
    model.objective.set_value(_not_constant(model, objective))
    discrete = tuple(v for v in builder.space.variables if not v.is_continuous())
    terms = [row.term for row in rows] + [term for term, _ in builder.pieces.terms]
    kind = _kind(objective, terms, integer=bool(discrete))
    return Built(
        program,
        model,
        builder.space,
        objective,
        builder.variables,
        builder.weights,
        tuple(rows),
        shapes,
        kind,
        tuple(builder.pieces.terms),
        builder.pieces.switches,
        tuple((number, next(iter(z.linear))) for number, z in builder.pieces.zero.items()),
        discrete,
        tuple(builder.pieces.events),
        builder.pieces.roomy,
        partial(build, program, data, parameters),
    )


def _not_constant(model: Any, item: Any) -> Any:
    """Solvers want a variable in the objective, and a model to have one."""
    if isinstance(item, Term) and (item.linear or item.quadratic or item.rest is not None):
        return expression_of(item)
    anything = next(model.component_data_objects(pyo.Var))
    return 0.0 * anything + (item.constant if isinstance(item, Term) else float(item))


def _part(builder: Lowerer, products: Products, part: Part, rows: list[Row]) -> tuple[int, ...]:
    """Adds the constraints of a part; returns the shape of its residual."""
    products.node, equality = part.residual, part.kind == "=="
    terms = builder.expression(part.residual)
    residual = mapped(lambda item: products.linear(item, equality=equality), terms)
    chosen = np.ones(residual.shape, dtype=bool)
    if part.rows is not None and residual.ndim and part.where is not None:
        selected = builder.constants.array(part.where).astype(bool)
        chosen = np.broadcast_to(selected.reshape(-1, *([1] * (residual.ndim - 1))), residual.shape)
    made = named(builder.model, part.key, pyo.ConstraintList())
    for place, item in enumerate(residual.reshape(-1)):
        if not chosen.reshape(-1)[place]:
            continue
        constraint = None
        if isinstance(item, Term) and (item.linear or item.quadratic or item.rest is not None):
            body = expression_of(item)
            constraint = made.add(body == 0 if part.kind == "==" else body <= 0)
        elif not _holds(item, part.kind):
            builder.pieces.below(1.0)
        rows.append(Row(part.key, place, item, constraint))
    return residual.shape


def _holds(item: Any, kind: str) -> bool:
    value = item.constant if isinstance(item, Term) else float(item)
    return value <= 1e-9 if kind == "<=" else abs(value) <= 1e-9


def _kind(objective: Any, terms: list[Any], *, integer: bool) -> ModelClass:
    """The class of the model, from its objective and all of its constraints."""
    affine = all(not isinstance(term, Term) or term.degree in (0, 1) for term in terms)
    own = objective.degree if isinstance(objective, Term) else 0
    if affine and own in (0, 1):
        return "MILP" if integer else "LP"
    if affine and own == 2 and convex(objective):
        return "MIQP" if integer else "QP"
    return "MINLP" if integer else "NLP"
