"""Products of two decisions: exactly linear where one of them is discrete, and a bound where neither is.

The product w = z x of a binary z and an x in [l, u] is the only number with

    l z <= w <= u z,    x - u (1 - z) <= w <= x - l (1 - z)

and a bounded integer is a sum of binaries times powers of two. Of two continuous factors in [a, b] and [c, d]
the same inequalities, in their general form, hold a polygon in which the product lies:

    w >= a y + c x - a c,   w >= b y + d x - b d,   w <= b y + c x - b c,   w <= a y + d x - a d

so that a linear program with w in the place of each product bounds the optimum from below.

Source: McCormick, "Computability of global solutions to factorable nonconvex programs" (1976); Glover,
"Improved linear integer programming formulations of nonlinear integer problems" (1975).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.backends.pyomo.bounds import lower_bound
from constrain.backends.pyomo.engines import LINEAR, run
from constrain.backends.pyomo.integers import finite
from constrain.backends.pyomo.package import pyo
from constrain.backends.pyomo.term import Space, Term, combine, expression_of
from constrain.errors import RouteError

if TYPE_CHECKING:
    from collections.abc import Callable

    from constrain.backends.pyomo.build import Built
    from constrain.backends.pyomo.integers import Pieces
    from constrain.language import nodes as n

__all__ = ["Products", "convex", "product_bound"]

PSD_TOLERANCE = 1e-9
"""A quadratic term is convex when its least eigenvalue is at least -tolerance * largest."""
LARGEST = 3000
"""Most variables of a quadratic form whose eigenvalues are looked at."""
DIGITS = 12
"""Most binary digits of an integer factor."""
MOST = 2000
"""Most products of a program that is bounded by a linear one."""


def convex(item: Any) -> bool:
    """Whether a term of degree two is convex."""
    if not isinstance(item, Term) or not item.quadratic:
        return True
    used = sorted({i for pair in item.quadratic for i in pair})
    if len(used) > LARGEST:
        return False
    place = {number: k for k, number in enumerate(used)}
    matrix = np.zeros((len(used), len(used)))
    for (i, j), factor in item.quadratic.items():
        matrix[place[i], place[j]] += factor / 2
        matrix[place[j], place[i]] += factor / 2
    values = np.linalg.eigvalsh(matrix)
    return bool(values[0] >= -PSD_TOLERANCE * max(abs(values[-1]), 1e-300))


class Products:
    """Variables in the place of products with a discrete factor, of one model.

    Attributes:
        node: what is being written, for messages.
    """

    def __init__(self, pieces: Pieces, space: Space, node: n.Node) -> None:
        self.node = node
        self._pieces = pieces
        self._space = space
        self._known: dict[tuple[int, int], Any] = {}
        self._digits: dict[int, tuple[float, list[Term]]] = {}

    def linear(self, item: Any, *, equality: bool = False) -> Any:
        """A term without products of a discrete factor, where it is not convex as it is.

        Args:
            item: of an objective that is minimized, or a residual `<= 0` (`== 0` with `equality`).
            equality: whether it is a residual that equals zero: nothing but affine is convex there.

        Raises:
            RouteError: E125 when the other factor has no bounds.
        """
        if not isinstance(item, Term) or not item.quadratic or (convex(item) and not equality):
            return item
        chosen = [p for p in item.quadratic if self._space.discrete & {*p}]
        if not chosen:
            return item
        rest = {p: factor for p, factor in item.quadratic.items() if p not in chosen}
        bare = Term(self._space, item.constant, dict(item.linear), rest, item.rest)
        products = [self._product(*pair) for pair in chosen]
        return combine([1.0, *(item.quadratic[p] for p in chosen)], [bare, *products])

    def _product(self, i: int, j: int) -> Any:
        if (i, j) not in self._known:
            if j in self._space.discrete and (i not in self._space.discrete or self._binary(j)):
                i, j = j, i  # the first factor is the discrete one, a binary if there is one
            other = self._variable(j)
            low, digits = self._binary_digits(i)
            weights = [2.0**k for k in range(len(digits))]
            parts = [self._switched(z, other, same=z.single == j) for z in digits]
            self._known[min(i, j), max(i, j)] = combine([low, *weights], [other, *parts])
        return self._known[min(i, j), max(i, j)]

    def _variable(self, number: int) -> Term:
        return Term(self._space, 0.0, {number: 1.0}, {})

    def _binary(self, number: int) -> bool:
        return (self._space.lower[number], self._space.upper[number]) == (0.0, 1.0)

    def _binary_digits(self, number: int) -> tuple[float, list[Term]]:
        """An integer as a number plus binaries times powers of two; a binary is its own digit."""
        if number not in self._digits:
            own = self._variable(number)
            if self._binary(number):
                self._digits[number] = 0.0, [own]
            else:
                low, high = (math.ceil(end) if end < 0 else math.floor(end) for end in finite(own, self.node))
                count = max(int(high - low).bit_length(), 1)
                if count > DIGITS:
                    raise RouteError(
                        "E125",
                        f"pyomo writes an integer factor in binary, and {high - low + 1:.0f} values are many",
                        at=self.node.loc,
                        fix=f"bounds that are at most {2**DIGITS - 1} apart",
                    )
                digits = [self._pieces.switch() for _ in range(count)]
                total = combine([2.0**k for k in range(count)], digits) + float(low) - own
                self._pieces.equal(total)
                self._digits[number] = float(low), digits
        return self._digits[number]

    def _switched(self, z: Term, other: Term, *, same: bool) -> Any:
        """The product of a binary and a bounded variable."""
        if same:  # z * z
            return z
        low, high = finite(other, self.node)
        product = self._pieces.variable(min(low, 0.0), max(high, 0.0))
        self._pieces.below(low * z - product)
        self._pieces.below(product - high * z)
        self._pieces.below(other - high * (1.0 - z) - product)
        self._pieces.below(product - other + low * (1.0 - z))
        return product


def product_bound(built: Built, time_limit: float | None = None) -> tuple[float | None, bool]:
    """A lower bound of a program whose objective and residuals are polynomials of degree two.

    Args:
        built: the model, without integers.
        time_limit: of the linear program, in seconds.

    Returns:
        The bound, None without one (a function that is no such polynomial, a factor without bounds); and
        whether the linear program has no point, which proves that the program has none.
    """
    terms = [(row.term, row.constraint) for row in built.rows] + list(built.auxiliary)
    items = [t for t in (built.objective, *(t for t, _ in terms)) if isinstance(t, Term)]
    pairs = {pair for item in items for pair in item.quadratic}
    own = built.space
    factors = {k for pair in pairs for k in pair}
    closed = all(math.isfinite(own.lower[k]) and math.isfinite(own.upper[k]) for k in factors)
    if not pairs or len(pairs) > MOST or not closed or any(item.rest is not None for item in items):
        return None, False
    model: Any = pyo.ConcreteModel()
    space = Space()
    model.v = pyo.VarList()
    for low, high in zip(own.lower, own.upper, strict=True):
        _added(space, model.v, low, high)
    model.rules = pyo.ConstraintList()
    rules: list[tuple[Any, Any]] = []

    def require(term: Any, *, equality: bool = False) -> None:
        if isinstance(term, Term):
            body = expression_of(term)
            rules.append((term, model.rules.add(body == 0 if equality else body <= 0)))

    products = {pair: _hull(space, model.v, *pair, require) for pair in pairs}
    for term, constraint in terms:
        if constraint is not None:
            require(_lifted(space, term, products), equality=bool(constraint.equality))
    objective = _lifted(space, built.objective, products)
    anything = 0.0 * next(iter(model.v.values()))
    model.objective = pyo.Objective(expr=expression_of(objective) + anything)
    found = run(LINEAR, model, time_limit=time_limit)
    if found.ending == "infeasible":
        return None, True
    if found.ending != "converged" or found.duals is None:
        return None, False
    x = np.array([float(found.values.get(v, v.lb or 0.0)) for v in space.variables])
    for variable, value in zip(space.variables, x, strict=True):
        variable.set_value(float(value), skip_validation=True)
    return lower_bound(space, objective, rules, found.duals, x), False


def _added(space: Space, variables: Any, low: float, high: float) -> Term:
    made = variables.add()
    made.setlb(None if math.isinf(low) else low)
    made.setub(None if math.isinf(high) else high)
    return space.add(made)


def _lifted(space: Space, item: Any, products: dict[tuple[int, int], Term]) -> Any:
    """The same term with a variable in the place of each product, in another space."""
    if not isinstance(item, Term):
        return item
    bare = Term(space, item.constant, dict(item.linear), {})
    return combine([1.0, *item.quadratic.values()], [bare, *(products[pair] for pair in item.quadratic)])


def _hull(space: Space, variables: Any, i: int, j: int, require: Callable[..., None]) -> Term:
    """A variable between the four planes of McCormick; of a square also above its tangent in the middle."""
    (a, b), (c, d) = ((space.lower[k], space.upper[k]) for k in (i, j))
    x, y = (Term(space, 0.0, {k: 1.0}, {}) for k in (i, j))
    ends = (a * c, a * d, b * c, b * d)
    w = _added(space, variables, 0.0 if i == j and a <= 0 <= b else min(ends), max(ends))
    require(a * y + c * x - a * c - w)
    require(b * y + d * x - b * d - w)
    require(w - b * y - c * x + b * c)
    if i == j:
        middle = (a + b) / 2
        require(2 * middle * x - middle**2 - w)
    else:
        require(w - a * y - d * x + a * d)
    return w
