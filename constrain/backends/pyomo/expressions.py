"""From nodes to arrays of terms: decisions, models that are affine in their weights, averages, events."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain.analysis.fact import is_square
from constrain.analysis.models import affine_model, refusal_of, trainable
from constrain.backends.pyomo.atoms import LOWERINGS, Arguments
from constrain.backends.pyomo.declared import lowering_of
from constrain.backends.pyomo.events import asked_rows
from constrain.backends.pyomo.integers import Pieces
from constrain.backends.pyomo.package import pyo
from constrain.backends.pyomo.term import (
    Space,
    Term,
    combine,
    lifted,
    mapped,
    mapped_all,
    named,
    squared_rows,
)
from constrain.errors import RouteError
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.types import type_of
from constrain.lowering.orientation import direction
from constrain.runtime import rowwise
from constrain.runtime.binding import as_array
from constrain.runtime.constants import Constants
from constrain.runtime.lowering import made_from

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from constrain.analysis.fact import Fact
    from constrain.analysis.models import Features
    from constrain.backends.pyomo.integers import Room
    from constrain.language.data import Data
    from constrain.lowering.program import Program

__all__ = ["Lowerer", "moving", "sides"]


def moving(node: n.Node, memo: dict[int, bool] | None = None) -> bool:
    """Whether the value of a node depends on a decision."""

    def step(x: n.Node, parts: tuple[bool, ...]) -> bool:
        own = isinstance(x, n.Decision) or (isinstance(x, (n.Call, n.Weights)) and not x.model.frozen)
        return own or any(parts)

    return n.fold(node, step, memo)


def sides(program: Program) -> dict[int, int]:
    """By `id` of every node: how objective and residuals move with it; 0 where not one way."""
    facts: dict[int, Fact] = {}
    found: dict[int, int] = {}
    roots = [(program.objective, 1), *((p.residual, int(p.kind == "<=")) for p in program.parts)]
    for root, side in roots:
        own = {id(root): side}
        for node in reversed(n.postorder(root)):
            for place, child in enumerate(n.children(node)):
                moved = own[id(node)] and own[id(node)] * direction(node, place, facts)
                own[id(child)] = moved if own.get(id(child), moved) == moved else 0
        for key, side_of in own.items():
            found[key] = side_of if found.get(key, side_of) == side_of else 0
    return found


class Lowerer:
    """Lowers nodes to arrays of terms; every distinct node once."""

    def __init__(
        self,
        program: Program,
        bind: Mapping[Data, Data],
        values: Mapping[Any, Any],
        model: Any,
        room: Room = "open",
    ) -> None:
        self.constants = Constants(bind, values, tails=program.tails)
        self.model = model
        self.space = Space()
        self.variables = {symbol: self._variable(symbol) for symbol in program.variables}
        self.weights = {
            m: {k: self._weight(f"{m.name}.{k}", p) for k, p in trainable(m.module)}
            for m in program.models
            if not m.frozen
        }
        self.pieces = Pieces(model, self.space, room)
        self._sides = sides(program)
        self._asked = asked_rows(program, self.constants)
        self._lowered: dict[n.Node, NDArray[Any]] = {}
        self._moving: dict[int, bool] = {}
        self._kept: list[n.Node] = []

    # ---- decisions
    def _variable(self, symbol: n.VariableSymbol) -> NDArray[Any]:
        domain = pyo.Binary if symbol.boolean else pyo.Integers if symbol.integer else pyo.Reals
        low, high = symbol.bounds if symbol.bounds is not None else (None, None)
        lower = np.full(symbol.shape, -np.inf) if low is None else _filled(low, symbol.shape)
        upper = np.full(symbol.shape, np.inf) if high is None else _filled(high, symbol.shape)
        if symbol.nonneg:
            lower = np.maximum(lower, 0.0)
        start = None if symbol.value is None else _filled(symbol.value, symbol.shape)
        return self._declared(symbol.name, symbol.shape, domain, (lower, upper), start)

    def _weight(self, name: str, parameter: torch.Tensor) -> NDArray[Any]:
        start = parameter.detach().cpu().double().numpy()
        free = np.full(start.shape, np.inf)
        return self._declared(name, start.shape, pyo.Reals, (-free, free), start)

    def _declared(
        self,
        name: str,
        shape: tuple[int, ...],
        domain: Any,
        bounds: tuple[NDArray[Any], NDArray[Any]],
        start: NDArray[Any] | None,
    ) -> NDArray[Any]:
        made = named(self.model, name, pyo.Var(*(range(size) for size in shape), domain=domain))
        result = np.empty(shape, dtype=object)
        for place in np.ndindex(*shape):
            variable = made[place if len(shape) > 1 else place[-1]] if shape else made
            low, high = (float(b[place]) for b in bounds)
            if np.isfinite(low) and not (domain is pyo.Binary and low <= 0):
                variable.setlb(low)
            if np.isfinite(high) and not (domain is pyo.Binary and high >= 1):
                variable.setub(high)
            if start is not None:
                variable.set_value(float(start[place]), skip_validation=True)
            result[place] = self.space.add(variable)
        return result

    # ---- expressions
    def fixed(self, node: n.Node) -> bool:
        """Whether the value of a node is a number."""
        self._kept.append(node)
        return not moving(node, self._moving)

    def expression(self, root: n.Node) -> NDArray[Any]:
        """The array of terms of a node."""
        return made_from(root, self._lowered, self._needs, self._lower)

    def _needs(self, node: n.Node) -> tuple[n.Node, ...]:
        if self.fixed(node) or isinstance(node, (n.Call, n.Indicator)):
            return ()
        if isinstance(node, n.Moment):
            return (_root_of(node.integrand) or node.integrand,)
        return node.args if isinstance(node, n.Apply) else ()

    def _lower(self, node: n.Node) -> NDArray[Any]:
        if self.fixed(node):
            return lifted(self.constants.array(node))
        match node:
            case n.Decision(symbol=symbol):
                return self.variables[symbol]
            case n.Weights(model=model):
                return np.concatenate([v.reshape(-1) for v in self.weights[model].values()])
            case n.Call():
                return self._call(node)
            case n.Moment():
                return self._moment(node)
            case n.Indicator():
                return self._event(node.event, self._sides.get(id(node), 0), self._asked[node])
            case n.Apply(atom=atom) if atom in LOWERINGS or lowering_of(node) is not None:
                values = tuple(self._lowered[x] for x in node.args)
                numbers = tuple(self.constants.array(x) if self.fixed(x) else None for x in node.args)
                leads = tuple(type_of(x).lead for x in node.args)
                side = self._sides.get(id(node), 0)
                lowering = LOWERINGS.get(atom) or lowering_of(node)
                assert lowering is not None  # of the case
                return lifted(lowering(Arguments(node, values, numbers, leads, side, self.pieces)))
            case n.Apply(atom=atom):
                reason = ATOMS[atom].refusals.get("pyomo", "it has no lowering")
                raise RouteError("E125", f"pyomo cannot take {atom}: {reason}", at=node.loc)
            case _:
                raise RouteError("E125", f"pyomo has no form of a {type(node).__name__}", at=node.loc)

    # ---- averages
    def _moment(self, node: n.Moment) -> NDArray[Any]:
        """Weighted sums over rows, which fold into the coefficients."""
        averaging = self.constants.averaging(node)
        root = _root_of(node.integrand)
        if root is not None:
            squares = squared_rows(self.space, averaging.matrix, self._lowered[root], type_of(root).lead)
            if squares is not None:
                return squares if averaging.leveled else lifted(squares[0])
            self.expression(node.integrand)
        values = self._lowered[node.integrand]
        if not type_of(node.integrand).lead:
            values = np.broadcast_to(values, (averaging.matrix.shape[1], *values.shape))
        rows = values.reshape(len(values), -1)
        count = averaging.matrix.shape[0]
        result = np.empty((count, rows.shape[1]), dtype=object)
        for level in range(count):
            weights = averaging.matrix.getrow(level)
            for k in range(rows.shape[1]):
                result[level, k] = combine(weights.data, rows[weights.indices, k])
        shaped = result.reshape(count, *values.shape[1:])
        return shaped if averaging.leveled else lifted(shaped[0])

    # ---- events
    def _event(self, event: n.Node, side: int, rows: NDArray[np.bool_]) -> NDArray[Any]:
        """Binary variables for an event of decisions, one for each of these rows; 0 in the others."""
        if self.fixed(event):
            return lifted(self.constants.array(event))
        match event:
            case n.Comparison(op="<=" | "<", lhs=lhs, rhs=rhs):
                return self._compared(event, (rhs, lhs), side, rows)
            case n.Comparison(op=">=" | ">", lhs=lhs, rhs=rhs):
                return self._compared(event, (lhs, rhs), side, rows)
            case n.Logic(op="not", args=(inner,)):
                return mapped(_complement, self._event(inner, -side, rows))
            case n.Logic(op=op, args=args):
                parts = [self._event(x, side, rows) for x in args]
                return self._joined(parts, union=op == "or")
            case _:
                raise RouteError("E125", "pyomo takes events of <=, >=, <, > and their logic", at=event.loc)

    def _compared(
        self, event: n.Comparison, order: tuple[n.Node, n.Node], side: int, rows: NDArray[np.bool_]
    ) -> NDArray[Any]:
        """The switches of `order[0] >= order[1]`."""
        margin = n.Apply("sub", order, loc=event.loc)
        self._kept.append(margin)
        terms = self.expression(margin)
        result = np.zeros(terms.shape, dtype=object)
        for k in np.flatnonzero(rows):
            result[k : k + 1] = mapped(
                lambda x: self.pieces.event(x, side, event, strict=event.op in "<>"), terms[k : k + 1]
            )
        return result

    def _joined(self, parts: list[NDArray[Any]], *, union: bool) -> NDArray[Any]:
        """`and` as a switch below all of its parts and above their sum less k - 1; `or` by its complement."""

        def both(*switches: Any) -> Any:
            each = [1.0 - z for z in switches] if union else list(switches)
            if not any(isinstance(z, Term) for z in each):
                return 1.0 - min(each) if union else min(each)
            z = self.pieces.switch()
            for one in each:
                self.pieces.below(z - one)
            self.pieces.below(combine([1.0] * len(each), each) - (len(each) - 1.0) - z)
            return 1.0 - z if union else z

        return mapped_all(both, *parts)

    # ---- models
    def _features(self, node: n.Call) -> tuple[Any, Features]:
        certified = affine_model(node.model.module)
        if certified is None:
            reason = refusal_of(node.model.module)
            raise RouteError("E125", f"pyomo cannot take the model {node.model.name}: {reason}", at=node.loc)
        inputs = self.constants.inputs(node)
        per_row = any(type_of(x).lead for x in node.args)
        if node.features:
            inputs = [rowwise.stacked(*inputs, dtype=torch.float64)]
        try:
            found = certified.features(*inputs, per_row=per_row)
        except ValueError as error:
            text = f"pyomo cannot take the model {node.model.name}: {error}"
            raise RouteError("E125", text, at=node.loc) from None
        return certified, replace(found, row_shape=type_of(node).shape or ()) if node.features else found

    def _call(self, node: n.Call) -> NDArray[Any]:
        """`values @ weight.T + bias`, entries moved as the model moves them."""
        if any(not self.fixed(x) for x in node.args):
            text = f"pyomo cannot take the model {node.model.name} of an expression with decisions"
            raise RouteError("E125", text, at=node.loc)
        certified, features = self._features(node)
        own = self.weights[node.model]
        weight = own[certified.weight]
        bias = None if certified.bias is None else own[certified.bias]
        lead = int(any(type_of(x).lead for x in node.args))
        values = features.values
        rows = values.reshape(-1, values.shape[-1])
        flat = np.empty((len(rows), len(weight)), dtype=object)
        for i, row in enumerate(rows):
            for k in range(len(weight)):
                factors = [*row, 1.0] if bias is not None else row
                terms = [*weight[k], bias[k]] if bias is not None else weight[k]
                flat[i, k] = combine(factors, terms)
        result = flat.reshape(*values.shape[:lead], -1)
        if features.moved is not None:
            result = result[..., features.moved]
        return result.reshape(*values.shape[:lead], *features.row_shape)


def _root_of(node: n.Node) -> n.Node | None:
    """Of a square, what is squared."""
    if not isinstance(node, n.Apply) or type_of(node).shape != ():
        return None
    if node.atom == "mse_loss":
        return n.Apply("sub", node.args, loc=node.loc)
    power = node.args[1] if node.atom == "pow" else None
    two = isinstance(power, n.Constant) and float(power.value) == 2.0
    squared = node.atom == "square" or two or is_square(node)
    return node.args[0] if squared and type_of(node.args[0]).shape == () else None


def _complement(switch: Any) -> Any:
    return 1.0 - switch


def _filled(value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.array(np.broadcast_to(np.asarray(as_array(value), dtype=np.float64), shape))
