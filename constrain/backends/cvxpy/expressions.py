"""From nodes to cvxpy expressions: decisions, models, functions; averages are made in `averages.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from constrain.analysis.models import AffineModel, Features, affine_model, refusal_of, trainable
from constrain.backends.cvxpy.atoms import LOWERINGS, Arguments
from constrain.backends.cvxpy.averages import SUMS, VARIANCES, Averager, added
from constrain.backends.cvxpy.declared import lowering_of
from constrain.backends.cvxpy.inner import inner_value, written_out
from constrain.backends.cvxpy.matrices import EIGENVALUES, Inequality, eigenvalue
from constrain.backends.cvxpy.package import cp
from constrain.errors import RouteError
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.types import type_of
from constrain.runtime import rowwise
from constrain.runtime.binding import as_array
from constrain.runtime.constants import Constants
from constrain.runtime.coordinates import affine_parts
from constrain.runtime.lowering import made_from

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from constrain.inner import Call
    from constrain.language.data import Data
    from constrain.language.symbols import Model
    from constrain.lowering.program import Program

__all__ = ["Lowerer"]

_SPARSE_BELOW = 0.3
_SPARSE_FROM = 10_000


def _variable(symbol: n.VariableSymbol) -> Any:
    """Declared bounds become attributes, so that cvxpy knows the sign."""
    low, high = symbol.bounds if symbol.bounds is not None else (None, None)
    lower = None if low is None else np.asarray(as_array(low), dtype=np.float64)
    upper = None if high is None else np.asarray(as_array(high), dtype=np.float64)
    if symbol.nonneg and lower is not None:
        lower = np.maximum(lower, 0.0)
    attributes: dict[str, Any] = {}
    if lower is not None or upper is not None:
        attributes["bounds"] = [
            -np.inf
            if lower is None and not symbol.nonneg
            else np.zeros(symbol.shape)
            if lower is None
            else lower,
            np.inf if upper is None else upper,
        ]
        attributes["bounds"] = [np.broadcast_to(b, symbol.shape).copy() for b in attributes["bounds"]]
    elif symbol.nonneg:
        attributes["nonneg"] = True
    if symbol.boolean:
        attributes["boolean"] = True
    elif symbol.integer:
        attributes["integer"] = True
    if symbol.symmetric and not attributes:
        attributes["symmetric"] = True
    return cp.Variable(symbol.shape, name=symbol.name, **attributes)


def _compact(matrix: NDArray[Any]) -> Any:
    """A mostly empty large matrix as a sparse one."""
    if matrix.size >= _SPARSE_FROM and np.count_nonzero(matrix) < _SPARSE_BELOW * matrix.size:
        return sparse.csr_matrix(matrix)
    return matrix


class Lowerer:
    """Lowers nodes to cvxpy expressions; every distinct node once."""

    def __init__(
        self, program: Program, bind: Mapping[Data, Data], values: Mapping[Any, Any], *, symbolic: bool
    ) -> None:
        self._values = values
        self.constants = Constants(bind, values, tails=program.tails)
        self.variables = {symbol: _variable(symbol) for symbol in program.variables}
        self.inequalities: list[Inequality] = []
        """Semidefinite constraints that expressions brought along."""
        self.rules: list[Any] = [
            v == v.T for s, v in self.variables.items() if s.symmetric and not v.attributes["symmetric"]
        ]
        """Constraints that no one asked for: symmetry, where cvxpy has no attribute for it."""
        self.weights = {
            model: {
                k: cp.Variable(tuple(p.shape), name=f"{model.name}.{k}") for k, p in trainable(model.module)
            }
            for model in program.models
            if not model.frozen
        }
        self.parameters: dict[n.ParameterSymbol, Any] = {}
        if symbolic:
            for symbol in program.parameters:
                value = np.asarray(as_array(values[symbol]), dtype=np.float64)
                self.parameters[symbol] = cp.Parameter(symbol.shape, name=symbol.name, value=value)
        self._models: dict[Model, AffineModel] = {}
        self._features: dict[n.Call, Features] = {}
        self._lowered: dict[n.Node, Any] = {}
        self._fixed: dict[int, bool] = {}
        self._kept: list[n.Node] = []

    # ---- what is a number
    def fixed(self, node: n.Node) -> bool:
        """Whether the value of a node is known now: no decision and no symbolic parameter."""

        def step(x: n.Node, parts: tuple[bool, ...]) -> bool:
            match x:
                case n.Decision():
                    return False
                case n.Knob(symbol=symbol):
                    return symbol not in self.parameters
                case n.Call(model=model) | n.Weights(model=model):
                    return model.frozen and all(parts)
                case _:
                    return all(parts)

        self._kept.append(node)
        return n.fold(node, step, self._fixed)

    def number(self, node: n.Node) -> NDArray[Any] | None:
        """Its value when it is known now."""
        return self.constants.array(node) if self.fixed(node) else None

    # ---- expressions
    def expression(self, root: n.Node) -> Any:
        """The cvxpy expression of a node."""
        return made_from(root, self._lowered, self._needs, self._lower)

    def _needs(self, node: n.Node) -> tuple[n.Node, ...]:
        if self.fixed(node) or isinstance(node, (n.Moment, n.Call)):
            return ()
        if isinstance(node, n.Opaque):
            return n.children(node)
        if isinstance(node, n.Apply) and node.atom in VARIANCES:
            return ()
        if isinstance(node, n.Apply) and node.atom in SUMS:
            return tuple(term for _, term in self.terms(node))
        return node.args if isinstance(node, n.Apply) else ()

    def terms(self, root: n.Node) -> list[tuple[float, n.Node]]:
        """Terms of a sum with their signs, sums within sums opened."""
        found: list[tuple[float, n.Node]] = []
        stack = [(1.0, root)]
        while stack:
            sign, node = stack.pop()
            if isinstance(node, n.Apply) and node.atom in SUMS and not self.fixed(node):
                signs = {"add": (sign, sign), "sub": (sign, -sign), "neg": (-sign,)}[node.atom]
                stack.extend(reversed(list(zip(signs, node.args, strict=True))))
            else:
                found.append((sign, node))
        return found

    def _lower(self, node: n.Node) -> Any:
        if self.fixed(node):
            return cp.Constant(self.constants.array(node))
        match node:
            case n.Decision(symbol=symbol):
                return self.variables[symbol]
            case n.Knob(symbol=symbol):
                return self.parameters[symbol]
            case n.Weights(model=model):
                return cp.hstack([cp.vec(v, order="C") for v in self.weights[model].values()])
            case n.Call():
                return self._call(node)
            case n.Gradient():
                return self._derivative(node)
            case n.Moment():
                return Averager(self).moment(node)
            case n.Apply():
                return self._function(node)
            case n.Opaque() if (call := inner_value(node)) is not None:
                return self._inner(node, call)
            case _:
                raise RouteError("E125", f"cvxpy has no form of a {type(node).__name__}", at=node.loc)

    def _function(self, node: n.Apply) -> Any:
        if node.atom in SUMS:
            return added(
                [self._lowered[x] if sign > 0 else -self._lowered[x] for sign, x in self.terms(node)]
            )
        if node.atom in VARIANCES:
            return Averager(self).variance(node)
        if node.atom in EIGENVALUES:
            level = eigenvalue(self, node)
            if level is not None:
                return level
        argument = node.args[0] if node.atom == "symmetric_part" else None
        if isinstance(argument, n.Decision) and argument.symbol.symmetric:
            return self.variables[argument.symbol]
        return self.apply(node, [self._lowered[x] for x in node.args], [type_of(x).lead for x in node.args])

    def _inner(self, node: n.Opaque, call: Call) -> Any:
        """The optimal value of an inner problem, which is written out."""
        inputs = n.children(node)

        def make(program: Program) -> Lowerer:
            return Lowerer(program, {}, {p: p.value for p in program.parameters}, symbolic=False)

        found, rules = written_out(
            call, [self._lowered[x] for x in inputs], [type_of(x).lead for x in inputs], make
        )
        self.rules.extend(rules)
        return found

    def apply(self, node: n.Apply, values: Iterable[Any], leads: Iterable[int]) -> Any:
        """One atom of lowered arguments."""
        lowering = LOWERINGS.get(node.atom) or lowering_of(node)
        if lowering is None:
            reason = ATOMS[node.atom].refusals.get("cvxpy", "it has no lowering")
            raise RouteError("E125", f"cvxpy cannot take {node.atom}: {reason}", at=node.loc)
        numbers = tuple(self.number(x) for x in node.args)
        return lowering(Arguments(node, tuple(values), numbers, tuple(leads)))

    def _derivative(self, node: n.Gradient) -> Any:
        """A derivative as an affine expression of the decisions."""
        knobs = [x.symbol.name for x in n.postorder(node) if isinstance(x, n.Knob)]
        if knobs and self.parameters:
            raise RouteError(
                "E125",
                f"cvxpy cannot take a derivative in which the parameter {knobs[0]!r} stays symbolic",
                at=node.loc,
                fix="the parameter outside of the derivative",
            )
        base, matrices = affine_parts(node, self.constants, self._values)
        result: Any = cp.Constant(base.reshape(-1))
        for key, matrix in matrices.items():
            unknown = self.weights[key[0]][key[1]] if isinstance(key, tuple) else self.variables[key]
            result = result + _compact(matrix) @ cp.vec(unknown, order="C")
        return cp.reshape(result, base.shape, order="C")

    # ---- models
    def features(self, node: n.Call) -> tuple[AffineModel, Features]:
        """The certificate of a call and its fixed features."""
        model = node.model
        if model not in self._models:
            certified = affine_model(model.module)
            if certified is None:
                reason = refusal_of(model.module)
                raise RouteError("E125", f"cvxpy cannot take the model {model.name}: {reason}", at=node.loc)
            self._models[model] = certified
        if node not in self._features:
            inputs = self.constants.inputs(node)
            per_row = any(type_of(x).lead for x in node.args)
            if node.features:
                inputs = [rowwise.stacked(*inputs, dtype=torch.float64)]
            try:
                found = self._models[model].features(*inputs, per_row=per_row)
                row_shape = (type_of(node).shape or ()) if node.features else found.row_shape
                self._features[node] = replace(found, row_shape=row_shape)
            except ValueError as error:
                raise RouteError(
                    "E125", f"cvxpy cannot take the model {model.name}: {error}", at=node.loc
                ) from None
        return self._models[model], self._features[node]

    def _call(self, node: n.Call) -> Any:
        certified, features = self.features(node)
        lead = int(any(type_of(x).lead for x in node.args))
        return self.layer(node, certified, features, features.values, lead, 1.0)

    def layer(
        self,
        node: n.Call,
        certified: AffineModel,
        features: Features,
        values: NDArray[Any],
        lead: int,
        ones: Any,
    ) -> Any:
        """`values @ weight.T + ones * bias` with the entries moved as the model moves them."""
        weight = self.weights[node.model][certified.weight]
        bias = None if certified.bias is None else self.weights[node.model][certified.bias]
        moved = features.moved
        inner = values.shape[lead:-1]
        if moved is not None and not inner:
            weight, bias, moved = weight[moved], None if bias is None else bias[moved], None
        flat = _compact(values.reshape(-1, values.shape[-1])) @ weight.T
        result = cp.reshape(flat, (*values.shape[:-1], weight.shape[0]), order="C")
        if bias is not None:
            result = result + cp.multiply(ones, bias)
        if moved is not None:
            result = cp.reshape(result, (*values.shape[:lead], -1), order="C")[..., moved.tolist()]
        return cp.reshape(result, (*values.shape[:lead], *features.row_shape), order="C")
