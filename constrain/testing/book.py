"""Problems of Hock & Schittkowski, "Test Examples for Nonlinear Programming Codes" (1981), by their numbers.

Values are the book's. Multipliers, in the convention L = f + sum multiplier * (lhs - rhs), are those of an
independent interior-point solve, and by hand for problems 10, 12, 22, 29 and 43. Each starts from the book's
start.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain.language.functions import log
from constrain.language.problem import minimize
from constrain.language.symbols import Variable
from constrain.testing.hock_schittkowski import STATEMENTS
from constrain.testing.known import CONVEX, EXACT, FULL_DATA, NO_DATA, KnownProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.language.expr import Expr
    from constrain.language.problem import Problem
    from constrain.testing.statements import Statement

__all__ = ["book_problems"]

_CERTIFIED = frozenset((11, 14, 21, 32, 34, 49, 53, 64, 65, 66, 72, 118))
"""Numbers of the statements whose convexity the rules see."""
_ROOT = math.sqrt(2)
_PRODUCT = "is a product of two expressions that depend on decisions"


def _start(values: Sequence[float]) -> tuple[Expr, ...]:
    x = Variable(len(values), "x")
    x.value = np.asarray(values, dtype=np.float64)
    return tuple(x[i] for i in range(len(values)))


def _hs6() -> Problem:
    a, b = _start((-1.2, 1))
    return minimize((1 - a) ** 2).subject_to(c=10 * (b - a**2) == 0)


def _hs7() -> Problem:
    a, b = _start((2, 2))
    return minimize(log(1 + a**2) - b).subject_to(c=(1 + a**2) ** 2 + b**2 == 4)


def _hs10() -> Problem:
    a, b = _start((-10, 10))
    return minimize(a - b).subject_to(c=-3 * a**2 + 2 * a * b - b**2 + 1 >= 0)


def _hs12() -> Problem:
    a, b = _start((0, 0))
    return minimize(0.5 * a**2 + b**2 - a * b - 7 * a - 7 * b).subject_to(c=25 - 4 * a**2 - b**2 >= 0)


def _hs22() -> Problem:
    a, b = _start((2, 2))
    return minimize((a - 2) ** 2 + (b - 1) ** 2).subject_to(line=a + b <= 2, parabola=b - a**2 >= 0)


def _hs28() -> Problem:
    a, b, c = _start((-4, 1, 1))
    return minimize((a + b) ** 2 + (b + c) ** 2).subject_to(c=a + 2 * b + 3 * c == 1)


def _hs29() -> Problem:
    a, b, c = _start((1, 1, 1))
    return minimize(-a * b * c).subject_to(c=a**2 + 2 * b**2 + 4 * c**2 <= 48)


def _hs40() -> Problem:
    a, b, c, d = _start((0.8,) * 4)
    return minimize(-a * b * c * d).subject_to(c1=a**3 + b**2 == 1, c2=a**2 * d - c == 0, c3=d**2 - b == 0)


def _hs42() -> Problem:
    a, b, c, d = _start((1,) * 4)
    cost = (a - 1) ** 2 + (b - 2) ** 2 + (c - 3) ** 2 + (d - 4) ** 2
    return minimize(cost).subject_to(c1=a == 2, c2=c**2 + d**2 == 2)


def _hs43() -> Problem:
    a, b, c, d = _start((0,) * 4)
    cost = a**2 + b**2 + 2 * c**2 + d**2 - 5 * a - 5 * b - 21 * c + 7 * d
    return minimize(cost).subject_to(
        c1=a**2 + b**2 + c**2 + d**2 + a - b + c - d <= 8,
        c2=a**2 + 2 * b**2 + c**2 + 2 * d**2 - a - d <= 10,
        c3=2 * a**2 + b**2 + c**2 + 2 * a - b - d <= 5,
    )


def _hs48() -> Problem:
    a, b, c, d, e = _start((3, 5, -3, 2, -2))
    return minimize((a - 1) ** 2 + (b - c) ** 2 + (d - e) ** 2).subject_to(
        c1=a + b + c + d + e == 5, c2=c - 2 * (d + e) == -3
    )


def _hs50() -> Problem:
    a, b, c, d, e = _start((35, -31, 11, 5, -5))
    return minimize((a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 2).subject_to(
        c1=a + 2 * b + 3 * c == 6, c2=b + 2 * c + 3 * d == 6, c3=c + 2 * d + 3 * e == 6
    )


def _hs51() -> Problem:
    a, b, c, d, e = _start((2.5, 0.5, 2, -1, 0.5))
    return minimize((a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2).subject_to(
        c1=a + 3 * b == 4, c2=c + d - 2 * e == 0, c3=b - e == 0
    )


def _hs52() -> Problem:
    a, b, c, d, e = _start((2,) * 5)
    return minimize((4 * a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2).subject_to(
        c1=a + 3 * b == 0, c2=c + d - 2 * e == 0, c3=b - e == 0
    )


def _hs77() -> Problem:
    a, b, c, d, e = _start((2,) * 5)
    cost = (a - 1) ** 2 + (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6
    return minimize(cost).subject_to(c1=a**2 * d + _sin(d - e) == 2 * _ROOT, c2=b + c**4 * d**2 == 8 + _ROOT)


def _sin(e: Expr) -> Any:
    return torch.sin(e)  # type: ignore[arg-type]  # records an expression


def _hs78() -> Problem:
    a, b, c, d, e = _start((-2, 1.5, 2, -1, -1))
    return minimize(a * b * c * d * e).subject_to(
        c1=a**2 + b**2 + c**2 + d**2 + e**2 == 10, c2=b * c - 5 * d * e == 0, c3=a**3 + b**3 == -1
    )


def _hs79() -> Problem:
    a, b, c, d, e = _start((2,) * 5)
    return minimize((a - 1) ** 2 + (a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 4).subject_to(
        c1=a + b**2 + c**3 == 2 + 3 * _ROOT, c2=b - c**2 + d == 2 * _ROOT - 2, c3=a * e == 2
    )


def _entry(
    number: int,
    build: Callable[[], Problem],
    value: float,
    multipliers: tuple[float, ...],
    reason: str | None,
) -> KnownProblem:
    names = tuple(build().constraints)
    routes = {"newton": EXACT, "augmented": FULL_DATA, **({} if reason else {"cvxpy": CONVEX})}
    refusals = {"lagrangian": NO_DATA, "cooper": NO_DATA, **({"cvxpy": reason} if reason else {})}
    duals = dict(zip(names, multipliers, strict=True)) if multipliers else {}
    source = f"Hock & Schittkowski (1981), problem {number}"
    return KnownProblem(f"hs{number}", build, value, source, duals, {}, routes, refusals, local=bool(reason))


def _stated(statement: Statement) -> KnownProblem:
    """The record of a statement of `hock_schittkowski.py`."""
    convex = statement.number in _CERTIFIED
    value = statement.value if statement.near is None else statement.near
    source = f"Hock & Schittkowski (1981), problem {statement.number}"
    if statement.near is not None:
        source += f": the local optimum next to the start (the best is {statement.value:.10g})"
    routes = {"newton": EXACT, **({"cvxpy": CONVEX} if convex else {})}
    refusals = {} if convex else {"cvxpy": "not certified convex"}
    return KnownProblem(
        f"hs{statement.number}", statement.build, value, source, {}, {}, routes, refusals,
        "solved" if statement.qualified else "unqualified", local=not convex,
    )  # fmt: skip


def book_problems() -> list[KnownProblem]:
    """The problems whose optimum is known, by their numbers."""
    equality = "an equality is convex only when its sides are affine"
    return [
        _entry(6, _hs6, 0.0, (0.0,), equality),
        _entry(7, _hs7, -math.sqrt(3), (0.288675,), "log"),
        _entry(10, _hs10, -1.0, (0.5,), _PRODUCT),
        _entry(12, _hs12, -30.0, (0.5,), _PRODUCT),
        _entry(22, _hs22, 1.0, (2 / 3, 2 / 3), None),
        _entry(28, _hs28, 0.0, (0.0,), None),
        _entry(29, _hs29, -16 * _ROOT, (_ROOT / 2,), _PRODUCT),
        _entry(40, _hs40, -0.25, (0.5, -0.471937, 0.353553), _PRODUCT),
        _entry(42, _hs42, 28 - 10 * _ROOT, (-2.0, 2.535534), equality),
        _entry(43, _hs43, -44.0, (1.0, 0.0, 2.0), None),
        _entry(48, _hs48, 0.0, (0.0, 0.0), None),
        _entry(50, _hs50, 0.0, (0.0, 0.0, 0.0), None),
        _entry(51, _hs51, 0.0, (0.0, 0.0, 0.0), None),
        _entry(52, _hs52, 5.326647564, (3.277937, 2.905444, -7.747851), None),
        _entry(77, _hs77, 0.24150513, (-0.08554, -0.031878), _PRODUCT),
        _entry(78, _hs78, -2.91970041, (0.744446, -0.703575, 0.096806), _PRODUCT),
        _entry(79, _hs79, 0.0787768209, (-0.038821, -0.016727, -0.000287), "is convex only where"),
        *map(_stated, STATEMENTS),
    ]
