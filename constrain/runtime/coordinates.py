"""Derivatives by coordinates: numbers where they depend on no decision, affine maps of the decisions else.

A derivative is linear in what is differentiated. Of an expression that is affine in the decisions it is
therefore b + A theta, and b and the columns of A are its values at theta = 0 and at the unit vectors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from constrain.analysis.models import on_host, trainable
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.runtime.binding import as_array
from constrain.runtime.codegen import Tables, generate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from constrain.language.symbols import Model
    from constrain.lowering.program import Program
    from constrain.runtime.constants import Constants

__all__ = ["affine_parts", "derivative", "too_large"]

MOST = 2e7
"""Most entries of the matrix A of one derivative."""


def too_large(program: Program) -> str | None:
    """Why the derivatives of a program would make too large matrices; None when they do not."""
    for node in n.postorder(*program.roots):
        if not isinstance(node, n.Gradient) or not depends_on_decisions(node):
            continue
        sizes = {id(x): _size(x) for x in n.postorder(node)}
        entries = len(node.wrt.data) * math.prod(type_of(node).shape or ())
        if entries * sum(sizes.values()) > MOST:
            return f"a derivative on {len(node.wrt.data):,} rows is a dense matrix of too many numbers"
    return None


def _size(node: n.Node) -> int:
    """Decisions that a node brings along."""
    match node:
        case n.Decision(symbol=symbol):
            return math.prod(symbol.shape)
        case n.Call(model=model) | n.Weights(model=model) if not model.frozen:
            return sum(int(p.numel()) for _, p in trainable(model.module))
        case _:
            return 0


def _number(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def derivative(
    node: n.Gradient,
    constants: Constants,
    parameters: Mapping[n.ParameterSymbol, Any],
    decisions: Mapping[n.VariableSymbol, Any],
    modules: Mapping[Model, nn.Module] | None = None,
) -> Tensor:
    """The value of a derivative on all rows, in float64.

    Args:
        node: the derivative.
        constants: binds the columns.
        parameters: values of parameters.
        decisions: values of the variables in it.
        modules: in the place of the models' own; copies of these in float64 when left out.
    """
    tables = Tables()
    function = generate("derivative", tables, [(node, "exact")]).function
    columns = {x.name: constants.column(x) for x in n.postorder(node) if isinstance(x, n.Column)}
    fresh = [m for m in tables.models if modules is None or m not in modules]
    own = {m: on_host(m.module) for m in fresh}
    used = [own[m] if m in own else (modules or {})[m] for m in tables.models]
    flat = [_flat(module) for module in used]
    arrays = [_real(symbol.value) for symbol in tables.arrays]
    with torch.no_grad():
        (value,) = function(
            columns, [_number(as_array(decisions[s])) for s in tables.variables], used, flat,
            [_number(as_array(parameters[s])) for s in tables.parameters], arrays, [], torch.ones(0),
            torch.float64, _number, None,
        )  # fmt: skip
    return value


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for _, p in trainable(module)] or [_number([])])


def _real(value: Any) -> Tensor:
    tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(as_array(value).copy())
    return tensor.double() if tensor.is_floating_point() else tensor


def affine_parts(
    node: n.Gradient, constants: Constants, parameters: Mapping[n.ParameterSymbol, Any]
) -> tuple[NDArray[Any], dict[n.VariableSymbol | tuple[Model, str], NDArray[Any]]]:
    """The derivative as b + sum over decisions of A theta.

    Returns:
        b of the derivative's shape, and per variable (per model and name of a parameter) A of shape
        (entries of b, entries of the decision).
    """
    variables = list(dict.fromkeys(x.symbol for x in n.postorder(node) if isinstance(x, n.Decision)))
    models = list(
        dict.fromkeys(
            x.model for x in n.postorder(node) if isinstance(x, (n.Call, n.Weights)) and not x.model.frozen
        )
    )
    zeros: dict[n.VariableSymbol, Any] = {s: np.zeros(s.shape) for s in variables}
    copies = {m: on_host(m.module) for m in models}
    weights: dict[n.VariableSymbol | tuple[Model, str], Tensor] = {
        (m, name): p.detach() for m in models for name, p in trainable(copies[m])
    }
    for tensor in weights.values():
        tensor.zero_()

    def value() -> NDArray[Any]:
        return derivative(node, constants, parameters, zeros, copies).reshape(-1).numpy().copy()

    shape = tuple(derivative(node, constants, parameters, zeros, copies).shape)
    base = value()
    entries: dict[n.VariableSymbol | tuple[Model, str], Any] = {s: zeros[s].reshape(-1) for s in variables}
    entries |= {key: t.reshape(-1) for key, t in weights.items()}
    found: dict[n.VariableSymbol | tuple[Model, str], NDArray[Any]] = {}
    for key, flat in entries.items():
        columns: list[NDArray[Any]] = []
        for i in range(len(flat)):
            flat[i] = 1.0
            columns.append(value() - base)
            flat[i] = 0.0
        found[key] = np.stack(columns, axis=1)
    return base.reshape(shape), found
