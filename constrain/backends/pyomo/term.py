"""Scalar expressions of the decisions: a polynomial of degree two in numbers, and the rest as Pyomo has it.

    c + sum_i a_i v_i + sum_ij q_ij v_i v_j + rest

Sums over rows of a sample fold into the coefficients, so that a model has the size of the decisions and not
of the data wherever the expression is quadratic. Functions that are no polynomial are Pyomo expressions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.backends.pyomo.package import expression_bounds, expressions, pyo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

__all__ = [
    "Space",
    "Term",
    "bounds_of",
    "combine",
    "expression_of",
    "lifted",
    "mapped",
    "mapped_all",
    "mapped_pairs",
    "named",
    "squared_rows",
    "summed",
]

Number: Any = (int, float, np.integer, np.floating)


@dataclass(eq=False)
class Space:
    """The variables of a Pyomo model, numbered.

    Attributes:
        variables: Pyomo variable data, in the order of their numbers.
        lower: their lower bounds, -inf where there is none.
        upper: their upper bounds.
        discrete: numbers of boolean and integer variables.
    """

    variables: list[Any] = field(default_factory=list[Any])
    lower: list[float] = field(default_factory=list[float])
    upper: list[float] = field(default_factory=list[float])
    discrete: set[int] = field(default_factory=set[int])

    def add(self, variable: Any) -> Term:
        """Numbers a variable."""
        number = len(self.variables)
        self.variables.append(variable)
        low, high = variable.bounds
        self.lower.append(-math.inf if low is None else float(low))
        self.upper.append(math.inf if high is None else float(high))
        if not variable.is_continuous():
            self.discrete.add(number)
        return Term(self, 0.0, {number: 1.0}, {})


class Term:
    """One entry of an expression. Immutable but for `combine`, which fills its own.

    Attributes:
        space: of the variables.
        constant: c.
        linear: a_i by the number of the variable.
        quadratic: q_ij by a pair of numbers, i <= j.
        rest: what is no polynomial of degree two, None when nothing is.
    """

    __slots__ = ("constant", "linear", "quadratic", "rest", "space")

    def __init__(
        self,
        space: Space,
        constant: float,
        linear: dict[int, float],
        quadratic: dict[tuple[int, int], float],
        rest: Any = None,
    ) -> None:
        self.space = space
        self.constant = constant
        self.linear = linear
        self.quadratic = quadratic
        self.rest = rest

    # ---- what it is
    @property
    def degree(self) -> int | None:
        """0, 1 or 2; None when it is no polynomial of degree two."""
        if self.rest is not None:
            return None
        return 2 if self.quadratic else 1 if self.linear else 0

    @property
    def single(self) -> int | None:
        """The number of the variable that it is, None when it is anything else."""
        if self.degree != 1 or self.constant or len(self.linear) != 1:
            return None
        number, factor = next(iter(self.linear.items()))
        return number if factor == 1.0 else None

    # ---- arithmetic
    def __add__(self, other: Any) -> Any:
        return combine((1.0, 1.0), (self, other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return combine((1.0, -1.0), (self, other))

    def __rsub__(self, other: Any) -> Any:
        return combine((1.0, -1.0), (other, self))

    def __neg__(self) -> Any:
        return combine((-1.0,), (self,))

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Number):
            return combine((float(other),), (self,)) if other else 0.0
        if not isinstance(other, Term):
            return NotImplemented
        if self.degree in (0, 1) and other.degree in (0, 1):
            return _product(self, other)
        return Term(self.space, 0.0, {}, {}, expression_of(self) * expression_of(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Number):
            return self * (1.0 / float(other))
        return Term(self.space, 0.0, {}, {}, expression_of(self) / expression_of(other))

    def __rtruediv__(self, other: Any) -> Any:
        return Term(self.space, 0.0, {}, {}, expression_of(other) / expression_of(self))


def _product(a: Term, b: Term) -> Term:
    """Of two affine terms."""
    linear = {i: b.constant * factor for i, factor in a.linear.items() if b.constant}
    if a.constant:
        for i, factor in b.linear.items():
            linear[i] = linear.get(i, 0.0) + a.constant * factor
    quadratic: dict[tuple[int, int], float] = {}
    for i, left in a.linear.items():
        for j, right in b.linear.items():
            key = (i, j) if i <= j else (j, i)
            quadratic[key] = quadratic.get(key, 0.0) + left * right
    return Term(a.space, a.constant * b.constant, linear, quadratic)


def combine(weights: Iterable[float], items: Iterable[Any]) -> Any:
    """The sum of numbers times terms (or numbers); a number when no term is in it."""
    constant = 0.0
    linear: dict[int, float] = {}
    quadratic: dict[tuple[int, int], float] = {}
    rest: list[Any] = []
    space: Space | None = None
    for weight, item in zip(weights, items, strict=True):
        if not isinstance(item, Term):
            constant += weight * float(item)
            continue
        if weight == 0:
            continue
        space = item.space
        constant += weight * item.constant
        for i, factor in item.linear.items():
            linear[i] = linear.get(i, 0.0) + weight * factor
        for key, factor in item.quadratic.items():
            quadratic[key] = quadratic.get(key, 0.0) + weight * factor
        if item.rest is not None:
            rest.append(item.rest if weight == 1.0 else weight * item.rest)
    if space is None:
        return constant
    total = None if not rest else rest[0] if len(rest) == 1 else pyo.quicksum(rest)
    return Term(space, constant, linear, quadratic, total)


def expression_of(item: Any) -> Any:
    """The Pyomo expression of a term, or the number."""
    if not isinstance(item, Term):
        return float(item)
    own = item.space.variables
    linear = {i: factor for i, factor in item.linear.items() if factor}
    result: Any = item.constant
    if linear:
        result = expressions.LinearExpression(
            constant=item.constant,
            linear_coefs=list(linear.values()),
            linear_vars=[own[i] for i in linear],
        )
    products = [f * own[i] ** 2 if i == j else f * own[i] * own[j] for (i, j), f in item.quadratic.items()]
    if products:
        result = result + pyo.quicksum(products)
    return result if item.rest is None else result + item.rest


def bounds_of(item: Any) -> tuple[float, float]:
    """An interval that holds every value of a term within the bounds of its variables."""
    if not isinstance(item, Term):
        return float(item), float(item)
    low, high = item.constant, item.constant
    space = item.space
    for i, factor in item.linear.items():
        ends = (factor * space.lower[i], factor * space.upper[i]) if factor else (0.0, 0.0)
        low, high = low + min(ends), high + max(ends)
    if item.quadratic or item.rest is not None:
        bare = Term(space, 0.0, {}, item.quadratic, item.rest)
        least, largest = expression_bounds(expression_of(bare))
        low += -math.inf if least is None else least
        high += math.inf if largest is None else largest
    return low, high


# ----------------------------------------------------------------------------------------------- arrays
def lifted(value: Any) -> NDArray[Any]:
    """An array of objects."""
    array = np.asarray(value)
    return array if array.dtype == object else array.astype(object)


def mapped(function: Callable[[Any], Any], array: Any) -> NDArray[Any]:
    """A function of one entry, everywhere."""
    return mapped_all(function, array)


def mapped_pairs(function: Callable[[Any, Any], Any], first: Any, second: Any) -> NDArray[Any]:
    """A function of two entries, everywhere, with broadcasting."""
    return mapped_all(function, first, second)


def mapped_all(function: Callable[..., Any], *arrays: Any) -> NDArray[Any]:
    """A function of one entry of each array, everywhere, with broadcasting."""
    lifts = np.broadcast_arrays(*(lifted(a) for a in arrays))
    result = np.empty(lifts[0].shape, dtype=object)
    flat = [a.reshape(-1) for a in lifts]
    result.reshape(-1)[:] = [function(*entries) for entries in zip(*flat, strict=True)]
    return result


def summed(array: NDArray[Any], axes: tuple[int, ...], *, keepdims: bool = False) -> NDArray[Any]:
    """Sums over axes."""
    axes = tuple(a % array.ndim for a in axes)
    kept = tuple(a for a in range(array.ndim) if a not in axes)
    shape = tuple(array.shape[a] for a in kept)
    rows = array.transpose(*kept, *axes).reshape(math.prod(shape), -1)
    result = np.empty(len(rows), dtype=object)
    ones = [1.0] * rows.shape[1]
    for k, row in enumerate(rows):
        result[k] = combine(ones, row)
    if keepdims:
        shape = tuple(1 if a in axes else array.shape[a] for a in range(array.ndim))
    return result.reshape(shape)


def squared_rows(space: Space, weights: Any, rows: NDArray[Any], lead: int) -> NDArray[Any] | None:
    """Weighted sums of the squares of affine terms, by matrices: the sample enters as its second moments.

    Args:
        space: of the variables.
        weights: a sparse matrix (levels, rows).
        rows: one number or affine term per row.
        lead: 1 when there is an axis of rows.

    Returns:
        One term per level, None where a row is not affine.
    """
    if not lead or any(isinstance(x, Term) and x.degree not in (0, 1) for x in rows):
        return None
    used = sorted({i for x in rows if isinstance(x, Term) for i in x.linear})
    place = {number: k for k, number in enumerate(used)}
    table = np.zeros((len(rows), len(used) + 1))
    for row, item in zip(table, rows, strict=True):
        if isinstance(item, Term):
            row[-1] = item.constant
            for number, factor in item.linear.items():
                row[place[number]] = factor
        else:
            row[-1] = float(item)
    result = np.empty(weights.shape[0], dtype=object)
    for level in range(len(result)):
        share = weights.getrow(level)
        own = table[share.indices]
        moments: NDArray[np.float64] = own.T @ (own * share.data[:, None])
        linear = {i: 2 * float(moments[k, -1]) for k, i in enumerate(used)}
        quadratic = {
            (i, j): float(moments[k, m]) * (1 if k == m else 2)
            for k, i in enumerate(used)
            for m, j in enumerate(used)
            if k <= m and moments[k, m]
        }
        result[level] = Term(space, float(moments[-1, -1]), linear, quadratic)
    return result


def named(model: Any, name: str, component: Any) -> Any:
    """Adds a component under a name that no other component or attribute of a Pyomo model has."""
    name = name.replace(".", "_").replace(":", "_").replace("(", "").replace(")", "").replace(" ", "_")
    while hasattr(model, name):
        name += "_"
    model.add_component(name, component)
    return component
