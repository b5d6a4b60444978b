"""Derivatives of per-row expressions with respect to coordinates and columns, and weak forms.

    x = cn.Uniform("x", 0.0, 1.0)
    residual = -cn.diff(u(x), x, 2) - torch.sin(x)

The derivative is taken row by row: by how much the expression of a row changes with the coordinate of that
row. Mixed derivatives are derivatives of derivatives.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

from constrain.errors import ModelingError
from constrain.language import nodes
from constrain.language.data import as_list, static_shape
from constrain.language.expr import Expr, apply, as_expr, code, shown
from constrain.language.functions import stack
from constrain.language.keywords import keywords
from constrain.language.location import here
from constrain.language.regions import Region
from constrain.language.statistics import E

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language.data import Data

__all__ = ["diff", "div", "grad", "hessian", "jacobian", "laplacian", "weak"]

_MOST_MODES = 4096
_FLOATING = ("float", "double", "half")


# ---------------------------------------------------------------------------------------- derivatives
@keywords
def diff(e: Any, x: Any, n: int = 1) -> Expr:
    """The `n`-th partial derivative with respect to one number per row.

    Args:
        e: an expression per row, of any shape.
        x: a scalar coordinate or column, or a component of a vector one: `z[..., 0]`.
        n: order, at least 1.

    Returns:
        An expression of the shape of `e`.

    Raises:
        ModelingError: E117 (order), E160 (`x` is no coordinate or column of real numbers, or a whole vector),
            E161 (`e` does not depend on `x`), E162 (`e` is an event).
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ModelingError("E117", f"the order of a derivative is {n!r}", at=here(), fix="an integer >= 1")
    column, component = _variable(x)
    shape = column.data.row_shape(column.name)
    if shape and component is None:
        raise ModelingError(
            "E160",
            f"{shown(x)} has shape {shape}: its components have a derivative each",
            at=here(),
            fix=f"cn.diff(e, {code(x)}[..., 0]) for one, cn.grad(e, {code(x)}) for all",
        )
    found = _differentiable(e, column)
    for _ in range(n):
        found = Expr(nodes.Gradient(found.node, column, loc=here()))
        if component is not None:
            found = found[..., component]
    return found


@keywords
def grad(e: Any, z: Any) -> Expr:
    """The gradient with respect to all components of a coordinate or column.

    Args:
        e: an expression per row, of any shape.
        z: a coordinate or a column.

    Returns:
        An expression of the shape of `e` followed by that of `z`: of a vector the Jacobian.

    Raises:
        ModelingError: E160, E161, E162 as `diff`.
    """
    column = _whole(z, "grad")
    return Expr(nodes.Gradient(_differentiable(e, column).node, column, loc=here()))


@keywords
def jacobian(v: Any, z: Any) -> Expr:
    """The matrix of derivatives of a vector: entry `[..., i, j]` is that of `v[..., i]` by `z[..., j]`.

    Raises:
        ModelingError: E160, E161, E162 as `diff`, E164 (`v` or `z` is no vector).
    """
    column = _whole(z, "jacobian")
    found = _differentiable(v, column)
    if found.shape is not None and len(found.shape) != 1:
        raise _wrong_shape("jacobian", found, column, "a vector per row, such as cn.stack(a, b)")
    if len(column.data.row_shape(column.name)) != 1:
        raise _wrong_shape("jacobian", found, column, "cn.diff(e, x) for a scalar coordinate")
    return Expr(nodes.Gradient(found.node, column, loc=here()))


@keywords
def hessian(e: Any, z: Any) -> Expr:
    """The matrix of second derivatives of a scalar expression.

    Raises:
        ModelingError: E160, E161, E162 as `diff`, E164 (`e` is no scalar).
    """
    column = _whole(z, "hessian")
    found = _differentiable(e, column)
    if found.shape not in ((), None):
        raise _wrong_shape("hessian", found, column, f"{code(found)}[..., 0], one number per row")
    first = Expr(nodes.Gradient(found.node, column, loc=here()))
    return Expr(nodes.Gradient(first.node, column, loc=here()))


@keywords
def laplacian(e: Any, z: Any) -> Expr:
    """The sum of the second derivatives of a scalar expression: the trace of its Hessian.

    Raises:
        ModelingError: E160, E161, E162 as `diff`, E164 (`e` is no scalar).
    """
    column = _whole(z, "laplacian")
    if not column.data.row_shape(column.name):
        return diff(e, z, 2)
    found = _differentiable(e, column)
    if found.shape not in ((), None):
        raise _wrong_shape("laplacian", found, column, f"{code(found)}[..., 0], one number per row")
    return apply("trace", hessian(found, z))


@keywords
def div(v: Any, z: Any) -> Expr:
    """The divergence of a vector field: the sum of the derivatives of `v[..., i]` by `z[..., i]`.

    Raises:
        ModelingError: E160, E161, E162 as `diff`, E164 (`v` has another shape than `z`).
    """
    column = _whole(z, "div")
    if not column.data.row_shape(column.name):
        return diff(v, z)
    found = _differentiable(v, column)
    if found.shape not in (column.data.row_shape(column.name), None):
        raise _wrong_shape("div", found, column, "a vector with one entry per component, cn.stack(a, b)")
    return apply("trace", Expr(nodes.Gradient(found.node, column, loc=here())))


def _wrong_shape(word: str, e: Expr, column: nodes.Column, fix: str) -> ModelingError:
    shape = column.data.row_shape(column.name)
    return ModelingError(
        "E164", f"cn.{word}: {shown(e)} has shape {e.shape} and the coordinate {shape}", at=here(), fix=fix
    )


def _variable(x: Any) -> tuple[nodes.Column, int | None]:
    """The column that a derivative is taken by, and the component when it is one of a vector."""
    node = x.node if isinstance(x, Expr) else None
    component: int | None = None
    if isinstance(node, nodes.Apply) and node.atom == "index" and isinstance(node.args[0], nodes.Column):
        key = tuple(k for k in node.option("key") if k != "...")
        shape = node.args[0].data.row_shape(node.args[0].name)
        if len(key) == len(shape) == 1 and isinstance(key[0], int):
            node, component = node.args[0], key[0] % shape[0]
    if not isinstance(node, nodes.Column):
        raise ModelingError(
            "E160",
            f"a derivative with respect to {shown(x)}, which is no coordinate and no column",
            at=here(),
            fix='a coordinate such as cn.Uniform("x", 0.0, 1.0), a component z[..., 0], or a column D.x',
        )
    if not _real(node.data, node.name):
        raise ModelingError(
            "E160",
            f"a derivative with respect to {shown(Expr(node))}, a column that holds no real numbers",
            at=here(),
            fix="a column of floating-point numbers",
        )
    return node, component


def _real(data: Data, name: str) -> bool:
    """Whether a column holds real numbers, as far as its type says it."""
    if isinstance(data, Region):
        return True
    value = data.example(name)
    kind = getattr(value, "dtype", None)
    if kind is not None:
        return any(word in str(kind).lower() for word in _FLOATING)
    while isinstance(value, (list, tuple)) and value:
        value = value[0]  # pyright: ignore[reportUnknownVariableType]
    return isinstance(value, float) or (static_shape(value) is not None)


def _whole(z: Any, word: str) -> nodes.Column:
    column, component = _variable(z)
    if component is not None:
        raise ModelingError(
            "E160",
            f"cn.{word} takes all components together, got {shown(z)}",
            at=here(),
            fix=f"cn.{word}(e, {code(Expr(column))}), or cn.diff(e, {code(z)}) for this one",
        )
    return column


def _differentiable(e: Any, column: nodes.Column) -> Expr:
    """The expression, checked to be one that changes with the column."""
    found = as_expr(e)
    if found.type.event:
        raise ModelingError(
            "E162",
            f"the event {shown(found)} has no derivative: it is true or false",
            at=here(),
            fix="its margin, the difference of its sides",
        )
    if not _depends(found.node, column):
        closed = nodes.mentions(found.node, nodes.Column) and not found.type.random
        why = "it is an average, which depends on no single row" if closed else "it does not depend on it"
        raise ModelingError(
            "E161",
            f"the derivative of {shown(found)} with respect to {shown(Expr(column))} is zero: {why}",
            at=here(),
            fix=f"an expression of {code(Expr(column))}, such as u({code(Expr(column))})",
        )
    return found


def _depends(root: nodes.Node, column: nodes.Column) -> bool:
    """Whether a column occurs in an expression, outside of statistics."""
    stack_, seen = [root], set[int]()
    while stack_:
        node = stack_.pop()
        if node == column:
            return True
        closing = isinstance(node, (nodes.Mean, nodes.Rate, nodes.Moment))
        if id(node) not in seen and not closing:
            seen.add(id(node))
            stack_.extend(nodes.children(node))
    return False


# ----------------------------------------------------------------------------------------- weak forms
@keywords
def weak(residual: Any, tests: int | Expr | Sequence[Any]) -> Expr:
    """The weak form of a residual: the vector of E(residual * test) over test functions.

    `cn.weak(r, tests=8) == 0` is one equality with a multiplier per test function. Its gradient does not
    vanish where it holds, as that of `E(r**2) == 0` does.

    Args:
        residual: a number per row (per point of a region).
        tests: test functions: a list of expressions per row, or one vector expression per row. An integer
            means sine modes, which vanish on the boundary of a uniform region: `sin(j pi (x - a) / (b - a))`
            for j = 1, …, tests; on a box all products of them, `tests ** d` functions.

    Returns:
        A deterministic vector with one entry per test function.

    Raises:
        ModelingError: E107 (test functions of another population), E165 (a residual that is no number per
            row, no test functions, modes on a region that is not uniform).
    """
    r = as_expr(residual)
    if not r.type.random or r.type.event or r.shape not in ((), None):
        what = "an event" if r.type.event else f"of shape {r.shape}" if r.type.random else "deterministic"
        raise ModelingError(
            "E165",
            f"the residual {shown(r)} of a weak form is {what}",
            at=here(),
            fix="one number per row, such as cn.diff(u(x), x, 2) + f",
        )
    return E(r[..., None] * _tests(r, tests))


def _tests(r: Expr, tests: Any) -> Expr:
    """The test functions as one vector per row."""
    if isinstance(tests, int) and not isinstance(tests, bool):
        return _modes(r, tests)
    if isinstance(tests, Expr):
        if tests.shape is not None and len(tests.shape) != 1:
            raise _no_tests(f"the test functions {shown(tests)} have shape {tests.shape}")
        return tests
    functions = as_list(tests) if isinstance(tests, (list, tuple)) else []
    if not functions:
        raise _no_tests(f"tests is {shown(tests)}")
    return stack(*functions)


def _no_tests(message: str) -> ModelingError:
    return ModelingError(
        "E165", message, at=here(), fix="tests=[x, x**2], a vector per row, or tests=8 for sine modes"
    )


def _modes(r: Expr, count: int) -> Expr:
    """Products of sine modes on a uniform region."""
    region = r.type.rows
    if not isinstance(region, Region) or region.law.kind != "uniform":
        name = "" if region is None else region.name
        raise ModelingError(
            "E165",
            f"sine modes belong to a uniform interval or box; {name!r} is none",
            at=here(),
            fix="tests=[x, x**2], the test functions themselves",
        )
    ends = list(zip(region.law.first, region.law.second, strict=True))
    if not 1 <= count <= _MOST_MODES or count ** len(ends) > _MOST_MODES:
        raise ModelingError(
            "E165",
            f"{count} sine modes per axis make {count ** len(ends)} test functions",
            at=here(),
            fix=f"from 1 to {_MOST_MODES} functions in all",
        )
    whole = region.coordinate
    axes = [whole] if not region.row_shape(region.name) else [whole[..., i] for i in range(len(ends))]
    numbers = list(product(range(1, count + 1), repeat=len(ends)))
    result: Expr | None = None
    for i, ((a, b), x) in enumerate(zip(ends, axes, strict=True)):
        frequencies = [math.pi * j[i] / (b - a) for j in numbers]
        mode = apply("sin", (x - a if a else x)[..., None] * frequencies)
        result = mode if result is None else result * mode
    assert result is not None  # a region has an axis
    return result
