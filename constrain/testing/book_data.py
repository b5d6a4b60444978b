# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# ruff: noqa: ARG001, ARG005  # a statement names every entry of x, also those that a function does not use
"""Statements of Hock & Schittkowski (1981) with data, special functions or many terms.

Functions, bounds, starts and optima are the book's, with these exceptions:

- 47: the second square is printed as a cube in places, with which the book's optimum is no minimum.
- 54: the equality as in Betts (1977), "An accelerated multiplier method for nonlinear programming".
- 67: what the book computes by iteration, y2 to y8, are decisions here, and its equations are constraints.
  The optimum is that of the exact equations; the book's has the tolerance 1e-3 of the iteration.
- 58, 59, 85, 105, 109, 116: the optimum with more digits, or a lower one, by SLSQP on the same statement.
- 87: the cost jumps, and the optimum is that of its piece, where x1 < 300 and 100 <= x2 < 200. Just below
  x2 = 100 the cost tends to 8853.54, which no point has.

These are all of problems 6 to 119 (the book has none of the numbers 82, 94 and 115). The optimum of 13, the
tip of a cusp, has no multipliers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.special
import torch
from scipy import optimize

from constrain.language.expr import Expr
from constrain.language.functions import sum as total
from constrain.testing.statements import Statement, cos, exp, log, sin, where

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WITH_DATA"]

_INF = math.inf
_ROOT = math.sqrt(2)


def _sum(e: Any) -> Any:
    return total(e) if isinstance(e, Expr) else np.sum(e)


def _erf(e: Any) -> Any:
    return torch.erf(e) if isinstance(e, Expr) else scipy.special.erf(e)  # type: ignore[arg-type]  # records an expression


def _power(e: Any, exponent: Any) -> Any:
    """e^exponent for e > 0, where both may be expressions."""
    return exp(exponent * log(e))


def _add(terms: Sequence[Any]) -> Any:
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def _between(low: Sequence[float], values: Sequence[Any], high: Sequence[float]) -> list[Any]:
    pairs = zip(low, values, high, strict=True)
    return [side for a, v, b in pairs for side in (v - a, b - v)]


# ---------------------------------------------------------------------------------------- least squares
_SHARES = 0.01 * np.arange(1, 100)
_PLACES = 25 + (-50 * np.log(_SHARES)) ** (2 / 3)


def _holzmann(a: Any, b: Any, c: Any) -> Any:
    return _sum((exp(-_power(_PLACES - b, c) / a) - _SHARES) ** 2)


_AGES = np.repeat(np.arange(8.0, 43.0, 2.0), (2, 4, 4, 3, 3, 2, 3, 3, 3, 3, 2, 3, 2, 1, 2, 2, 1, 1))
_CHLORINE = np.array([
    0.49, 0.49, 0.48, 0.47, 0.48, 0.47, 0.46, 0.46, 0.45, 0.43, 0.45, 0.43, 0.43, 0.44, 0.43, 0.43, 0.46,
    0.45, 0.42, 0.42, 0.43, 0.41, 0.41, 0.40, 0.42, 0.40, 0.40, 0.41, 0.40, 0.41, 0.41, 0.40, 0.40, 0.40,
    0.38, 0.41, 0.40, 0.40, 0.41, 0.38, 0.40, 0.40, 0.39, 0.39,
])  # fmt: skip


def _chlorine(a: Any, b: Any) -> Any:
    return _sum((_CHLORINE - a - (0.49 - a) * exp(-b * (_AGES - 8))) ** 2)


_TIMES = np.array([0.1, *range(1, 19)])
_OBSERVED = np.array([
    0.00189, 0.1038, 0.268, 0.506, 0.577, 0.604, 0.725, 0.898, 0.947, 0.845, 0.702, 0.528, 0.385, 0.257,
    0.159, 0.0869, 0.0453, 0.01509, 0.00189,
])  # fmt: skip


def _tracer(a: Any, b: Any, c: Any, d: Any) -> Any:
    mean = c + (1 - c) * d

    def bump(shape: Any, weight: Any, rate: Any) -> Any:
        level = weight * _power(rate, shape) * (shape / 6.2832) ** 0.5 / (1 + 1 / (12 * shape))
        return level * exp((shape - 1) * np.log(_TIMES / 7.658) + shape - rate * _TIMES * shape / 7.658)

    return _sum((bump(b, c, mean) + bump(a, 1 - c, mean / d) - _OBSERVED) ** 2)


_WEIGHTS = np.array([95.0, 105.0, *np.arange(110.0, 225.0, 5.0), 230.0, 235.0, 240.0, 245.0, 250.0])
_COUNTS = np.array([
    1, 1, 4, 4, 15, 15, 15, 13, 21, 12, 17, 4, 20, 8, 17, 8, 6, 6, 7, 4, 3, 3, 8, 1, 6, 5, 1, 7, 1, 2,
])  # fmt: skip


def _mixture(*x: Any) -> Any:
    shares = (x[0], x[1], 1 - x[0] - x[1])
    density = _add(
        [
            share / s * exp(-((_WEIGHTS - mean) ** 2) / (2 * s**2))
            for share, mean, s in zip(shares, x[2:5], x[5:], strict=True)
        ]
    )
    return -_sum(_COUNTS * log(density / math.sqrt(2 * math.pi)))


# --------------------------------------------------------------------------------- control and sampling
_MU = np.array([
    cast("Any", optimize).brentq(lambda m: m * math.sin(m) - math.cos(m), k * math.pi, (k + 0.5) * math.pi)
    for k in range(30)
])  # fmt: skip
_AMPLITUDE = 2 * np.sin(_MU) / (_MU + np.sin(_MU) * np.cos(_MU))


def _heat(size: int) -> Statement:
    """Optimal heating: x are roots of switching times, the residual of the temperature is at most 1e-4."""

    def residual(*x: Any) -> list[Any]:
        tails = [_add([e**2 for e in x[i:]]) for i in range(size)]
        rest: Any = (-1.0) ** size
        for i, tail in enumerate(tails):
            rest = rest + (1 if i == 0 else 2 * (-1.0) ** i) * exp(-(_MU**2) * tail)
        curved = 0.5 * _AMPLITUDE**2 * (1 + np.sin(2 * _MU) / (2 * _MU))
        sloped = 2 * _AMPLITUDE / _MU**2 * (np.sin(_MU) / _MU - np.cos(_MU))
        return [1e-4 - 2 / 15 - _sum(curved * rest**2 + sloped * rest)]

    start = [0.5 * (-1.0) ** i for i in range(size)]
    return Statement(86 + size, 1.36265681, start, lambda *x: _add([e**2 for e in x]), residual)


def _network_cost(a: Any, b: Any, *_x: Any) -> Any:
    return where(a >= 300, 31 * a, 30 * a) + where(b >= 200, 30 * b, where(b >= 100, 29 * b, 28 * b))


def _network_flows(*x: Any) -> list[Any]:
    a, b, c, d, e, f = x
    reactive, active = 0.90798 * math.cos(1.47588) / 131.078, 0.90798 * math.sin(1.47588) / 131.078
    both = c * d / 131.078
    return [
        300 - both * cos(1.48477 - f) + reactive * c**2 - a,
        -both * cos(1.48477 + f) + reactive * d**2 - b,
        -both * sin(1.48477 + f) + active * d**2 - e,
        200 - both * sin(1.48477 - f) + active * c**2,
    ]


_FORCES = (50, 50, 75, 75, 75, 100, 100)
_STEPS = np.diff([0, 25, 50, 100, 150, 200, 290, 380])


def _orbit(*x: Any) -> list[Any]:
    gains = [h * (force * sin(e) - 32) for h, force, e in zip(_STEPS, _FORCES, x, strict=True)]
    heights = [
        h * (0.5 * gain + _add([0.0, *gains[:i]]))
        for i, (h, gain) in enumerate(zip(_STEPS, gains, strict=True))
    ]
    return [_add(heights) - 1e5, _add(gains) - 1e3]


def _speed(*x: Any) -> Any:
    return -(_add([f * h * cos(e) for f, h, e in zip(_FORCES, _STEPS, x, strict=True)]) ** 2)


def _normal(e: Any) -> Any:
    return 0.5 * (1 + _erf(e / _ROOT))


def _inspection(number: int, value: float, cost: float, gain: float, rows: int) -> Statement:
    def loss(a: Any, b: Any, c: Any, d: Any) -> Any:
        grown = exp(a) - 1
        return (cost * rows - (gain * grown - c) / (grown + d) * d) / a

    def shares(a: Any, b: Any, c: Any, d: Any) -> list[Any]:
        root = math.sqrt(rows)
        return [c - 2 * _normal(-b), d - _normal(-b + root) - _normal(-b - root)]

    return Statement(number, value, (1,) * 4, loss, zero=shares, low=(1e-4, 0, 0, 0), high=(100, 100, 2, 2))


def _bound(*x: Any) -> Any:
    a, b, *_ = x
    square = ((a - 1e4) ** 2 / 6.4e7 + (a - 1e4) * (b - 1) / 2e4 + (b - 1) ** 2) / 0.96
    h = (
        square + (x[2] - 2e6) ** 2 / 4.9e13 + (x[3] - 10) ** 2 / 2.5e3 + (x[4] - 1e-3) ** 2 / 2.5e-3
        + (x[5] - 1e8) ** 2 / 2.5e17
    )  # fmt: skip
    return -exp(-h / 2)


# ---------------------------------------------------------------------------------------------- plants
def _reactor(a: Any, b: Any) -> Any:
    return (
        -75.196 + 3.8112 * a + 0.0020567 * a**3 - 1.0345e-5 * a**4 + 6.8306 * b - 0.030234 * a * b
        + 1.28134e-3 * b * a**2 + 2.266e-7 * a**4 * b - 0.25645 * b**2 + 0.0034604 * b**3
        - 1.3514e-5 * b**4 + 28.106 / (b + 1) + 5.2375e-6 * a**2 * b**2 + 6.3e-8 * a**3 * b**2
        - 7e-10 * a**3 * b**3 - 3.4054e-4 * a * b**2 + 1.6638e-6 * a * b**3 + 2.8673 * exp(0.0005 * a * b)
        - 3.5256e-5 * a**3 * b - 0.12694 * a**2
    )  # fmt: skip


def _alkylation(a: Any, b: Any, c: Any, *y: Any) -> list[Any]:
    return [
        y[1] - 1.22 * y[0] + a,
        y[4] - (b + y[1]) / a,
        y[0] - 0.01 * a * (112 + 13.167 * y[4] - 0.6667 * y[4] ** 2),
        y[3] - 86.35 - 1.098 * y[4] + 0.038 * y[4] ** 2 - 0.325 * (y[2] - 89),
        y[6] - 3 * y[3] + 133,
        y[5] - 35.82 + 0.222 * y[6],
        y[2] - 98000 * c / (y[0] * y[5] + 1000 * c),
    ]


_YIELDS = (
    (-145421.402, 2931.1506, -40.427932, 5106.192, 15711.36),
    (-155011.1084, 4360.53352, 12.9492344, 10236.884, 13176.786),
    (-326669.5104, 7390.68412, -27.8986976, 16643.076, 30988.146),
)


def _sugar(*x: Any) -> list[Any]:
    rows = [x[0] * (r[0] + _add([c * e for c, e in zip(r[1:], x[1:], strict=True)])) for r in _YIELDS]
    return _between((0, 0, 0), rows, (294000, 294000, 277200))


def _sugar_gain(*x: Any) -> Any:
    rates = (150512.5253, -156.6950325, 476470.3222, 729482.8271)
    inner = -8720288.849 + _add([c * e for c, e in zip(rates, x[1:], strict=True)])
    return 24345 - x[0] * inner


_LEAST = (17.505, 11.275, 214.228, 7.458, 0.961, 1.612, 0.146, 107.99, 922.693, 926.832, 18.766, 1072.163,
          8961.448, 0.063, 71084.33, 2802713)  # fmt: skip
_MOST = (1053.6667, 35.03, 665.585, 584.463, 265.916, 7.046, 0.222, 273.366, 1286.105, 1444.046, 537.141,
         3247.039, 26844.086, 0.386, 140000, 12146108)  # fmt: skip


def _pulp(a: Any, b: Any, c: Any, d: Any, e: Any) -> tuple[list[Any], Any, Any]:
    """The quantities y1 to y17 of the plant, and two divisors."""
    y1 = b + c + 41.6
    y2 = 12.5 / (0.024 * d - 4.62) + 12
    y3 = (0.0003535 * a**2 + 0.5311 * a + 0.08705 * y2 * a) / (0.052 * a + 78 + 0.002377 * y2 * a)
    y4 = 19 * y3
    used = 0.04782 * (a - y3) + 0.1956 * (a - y3) ** 2 / b + 0.6376 * y4 + 1.594 * y3
    y5 = (a - y3 - y4) * (0.95 - used / (100 * b))
    y6 = a - y5 - y4 - y3
    y7 = (y5 + y4) * 0.995 / y1
    y8 = (y5 + y4) * 0.995 / 3798
    y9 = 96.82 / (y7 - 0.0663 * y7 / y8 - 0.3153) + 0.321 * y1
    y10 = 1.29 * y5 + 1.258 * y4 + 2.29 * y3 + 1.71 * y6
    y11 = 1.71 * a - 0.452 * y4 + 0.58 * y3
    whole = 0.995 * y10 + 1998
    y12 = 12.3 / 752.3 * a + 1.75 * y2 * 0.995 * a / whole
    y13 = whole - 1.75 * y2
    y14 = 3623 + 64.4 * b + 58.4 * c + 146312 / (y9 + e)
    y15 = y13 / (0.995 * y10 + 60.8 * b + 48 * d - 0.1121 * y14 - 5095)
    y16 = 148000 - 331000 * y15 + 40 * y13 - 61 * y15 * y13
    y17 = 14130000 - 1328 * y10 - 531 * y11 + (2324 * y10 - 28740000 * y2) / whole
    return [y1, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12, y13, y14, y15, y16, y17], whole, y9 + e


def _pulp_limits(*x: Any) -> list[Any]:
    y, whole, heat = _pulp(*x)
    return [
        1.5 * x[1] - x[2],
        *_between((213.1,), y[:1], (405.23,)),
        *_between(_LEAST, y[1:], _MOST),
        y[3] - 0.28 / 0.72 * y[4],
        21 - 3496 * y[1] / whole,
        62212 / heat - 110.6 - y[0],
    ]


def _pulp_cost(*x: Any) -> Any:
    y, whole, _ = _pulp(*x)
    return (
        -5.843e-7 * y[16] + 1.17e-4 * y[13] + 2.358e-5 * y[12] + 1.502e-6 * y[15] + 0.0321 * y[11]
        + 0.004324 * y[4] + 1e-4 * (y[12] / y[14] - y[12] / 0.52) / (1.104 - 0.72 * y[14])
        + 37.48 * y[1] / whole + 0.1365
    )  # fmt: skip


def _membranes(*x: Any) -> list[Any]:
    a, b, c, d, e, f, g, h, i, j, k, m, n = x
    return [
        c - b,
        b - a,
        1 - 0.002 * g + 0.002 * h,
        k + m + n - 50,
        250 - k - m - n,
        n - 1.262626 * j + 1.231059 * c * j,
        e - 0.03475 * b - 0.975 * b * e + 0.00975 * b**2,
        f - 0.03475 * c - 0.975 * c * f + 0.00975 * c**2,
        e * g - a * h - d * g + d * h,
        1 - 0.002 * (b * i + e * h - a * h - f * i) - e - f,
        b * i - c * j - f * i - 500 * b + 500 * f + b * j,
        b - 0.9 - 0.002 * (b * j - c * j),
        d - 0.03475 * a - 0.975 * a * d + 0.00975 * a**2,
        k - 1.262626 * h + 1.231059 * a * h,
        m - 1.262626 * i + 1.231059 * b * i,
    ]


# ------------------------------------------------------------------------------------------ power flow
def _generators(*x: Any) -> list[Any]:
    a, b, c, d, u, v, w, p, q = x
    s, t = 48.4 / 50.176 * math.sin(0.25), 48.4 / 50.176 * math.cos(0.25)
    return [
        0.4 - a + 2 * s * u**2 - u * v * (t * sin(p) + s * cos(p)) - u * w * (t * sin(q) + s * cos(q)),
        0.4
        - b
        + 2 * s * v**2
        + u * v * (t * sin(p) - s * cos(p))
        + v * w * (t * sin(p - q) - s * cos(p - q)),
        0.8 + 2 * s * w**2 + u * w * (t * sin(q) - s * cos(q)) - v * w * (t * sin(p - q) + s * cos(p - q)),
        0.2 - c + 2 * t * u**2 + u * v * (s * sin(p) - t * cos(p)) + u * w * (s * sin(q) - t * cos(q)),
        0.2
        - d
        + 2 * t * v**2
        - u * v * (s * sin(p) + t * cos(p))
        - v * w * (s * sin(p - q) + t * cos(p - q)),
        -0.337 + 2 * t * w**2 - u * w * (s * sin(q) + t * cos(q)) + v * w * (s * sin(p - q) - t * cos(p - q)),
    ]


def _network(*x: Any) -> list[Any]:
    a, b, p, q, u, v, w, g, h = x
    k, s, t = 50.176, math.sin(0.25), math.cos(0.25)
    loss = 2 * t - 0.7533e-3 * k
    return [
        u * v * sin(-p - 0.25) + u * w * sin(-q - 0.25) + 2 * s * u**2 - k * a + 400 * k,
        u * v * sin(p - 0.25) + v * w * sin(p - q - 0.25) + 2 * s * v**2 - k * b + 400 * k,
        u * w * sin(q - 0.25) + v * w * sin(q - p - 0.25) + 2 * s * w**2 + 881.779 * k,
        k * g + u * v * cos(-p - 0.25) + u * w * cos(-q - 0.25) - 200 * k - loss * u**2,
        k * h + u * v * cos(p - 0.25) + v * w * cos(p - q - 0.25) - 200 * k - loss * v**2,
        u * w * cos(q - 0.25) + v * w * cos(q - p - 0.25) - 22.938 * k - loss * w**2,
    ]


# --------------------------------------------------------------------------------------------- Colville
_A = np.array([
    [-16, 2, 0, 1, 0], [0, -2, 0, 4, 2], [-3.5, 0, 2, 0, 0], [0, -2, 0, -4, -1], [0, -9, -2, 1, -2.8],
    [2, 0, -4, 0, 0], [-1, -1, -1, -1, -1], [-1, -2, -3, -2, -1], [1, 2, 3, 4, 5], [1, 1, 1, 1, 1],
])  # fmt: skip
_B = np.array([-40, -2, -0.25, -4, -4, -1, -40, -60, 5, 1])
_C = np.array([
    [30, -20, -10, 32, -10], [-20, 39, -6, -31, 32], [-10, -6, 10, -6, -10], [32, -31, -6, 39, -20],
    [-10, 32, -10, -20, 30],
])  # fmt: skip
_D = np.array([4, 8, 10, 6, 2])
_E = np.array([-15, -27, -36, -18, -12])


def _dot(row: Any, x: Sequence[Any]) -> Any:
    """A sum over the entries that are not 0."""
    return _add([float(c) * e for c, e in zip(row, x, strict=True) if c])


def _quadratic(x: Sequence[Any]) -> Any:
    return _add([e * _dot(row, x) for e, row in zip(x, _C, strict=True)])


def _dual(*x: Any) -> list[Any]:
    z, y = x[:10], x[10:]
    return [2 * _dot(_C[j], y) + 3 * _D[j] * y[j] ** 2 + _E[j] - _dot(_A[:, j], z) for j in range(5)]


_NEIGHBORS = (
    (0, 3, 6, 7, 15), (1, 2, 6, 9), (2, 6, 8, 9, 13), (3, 6, 10, 14), (4, 5, 9, 11, 15), (5, 7, 14),
    (6, 10, 12), (7, 9, 14), (8, 11, 15), (9, 13), (10, 12), (11, 13), (12, 13), (13,), (14,), (15,),
)  # fmt: skip
_BALANCE = np.array([
    [0.22, 0.20, 0.19, 0.25, 0.15, 0.11, 0.12, 0.13], [-1.46, 0, -1.30, 1.82, -1.15, 0, 0.80, 0],
    [1.29, -0.89, 0, 0, -1.16, -0.96, 0, -0.49], [-1.10, -1.06, 0.95, -0.54, 0, -1.78, -0.41, 0],
    [0, 0, 0, -1.43, 1.51, 0.59, -0.33, -0.43], [0, -1.72, -0.33, 0, 1.62, 1.24, 0.21, -0.26],
    [1.12, 0, 0, 0.31, 0, 0, 1.12, 0], [0, 0.45, 0.26, -1.10, 0.58, 0, -1.03, 0.10],
])  # fmt: skip
_SUPPLY = (2.5, 1.1, -3.1, -3.5, 1.3, 2.1, 2.3, -1.5)


def _pipes(*x: Any) -> Any:
    h = [e**2 + e + 1 for e in x]
    return _add([h[i] * _add([h[j] for j in near]) for i, near in enumerate(_NEIGHBORS)])


def _pipe_balance(*x: Any) -> list[Any]:
    rows = [_dot(row, x[:8]) + e for row, e in zip(_BALANCE, x[8:], strict=True)]
    rows[6] = rows[6] - 0.36 * x[8]
    return [row - supply for row, supply in zip(rows, _SUPPLY, strict=True)]


WITH_DATA: tuple[Statement, ...] = (
    Statement(25, 0, (100, 12.5, 3), _holzmann, low=(0.1, 0, 0), high=(100, 25.6, 5)),
    Statement(47, 0, (2, _ROOT, -1, 2 - _ROOT, 0.5),
              lambda a, b, c, d, e: (a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 4,
              zero=lambda a, b, c, d, e: [a + b**2 + c**3 - 3, b - c**2 + d - 1, a * e - 1]),
    Statement(54, -math.exp(-27 / 280), (6e3, 1.5, 4e6, 2, 3e-3, 5e7), _bound,
              zero=lambda *x: [x[0] + 4e3 * x[1] - 1.76e4],
              low=(0, -10, 0, 0, -1, 0), high=(2e4, 10, 1e7, 20, 1, 2e8)),
    Statement(57, 0.0284596697213, (0.42, 5), _chlorine, lambda a, b: [0.49 * b - a * b - 0.09],
              low=(0.4, -4)),
    Statement(58, (1 + math.sqrt((math.sqrt(5) - 1) / 2)) ** 2, (-2, 1),
              lambda a, b: 100 * (b - a**2) ** 2 + (1 - a) ** 2,
              lambda a, b: [b**2 - a, a**2 - b, a**2 + b**2 - 1], low=(-2, -_INF), high=(0.5, _INF)),
    Statement(59, -7.80423595366, (90, 10), _reactor,
              lambda a, b: [a * b - 700, b - a**2 / 125, (b - 50) ** 2 - 5 * (a - 55)],
              low=0, high=(75, 65)),
    Statement(67, -1162.02698, (1745, 12000, 110, 3048, 1974, 89.2, 92.8, 8, 3.6, 145),
              lambda *x: 5.04 * x[0] + 0.035 * x[1] + 10 * x[2] + 3.36 * x[4] - 0.063 * x[3] * x[6],
              zero=_alkylation, low=(1e-5, 1e-5, 1e-5, 0, 0, 85, 90, 3, 0.01, 145),
              high=(2000, 16000, 120, 5000, 2000, 93, 95, 12, 4, 162)),
    _inspection(68, -0.920425026, 1e-4, 1, 24),
    _inspection(69, -956.71288, 0.1, 1000, 4),
    Statement(70, 0.00749846356, (2, 4, 0.04, 2), _tracer, lambda a, b, c, d: [c + (1 - c) * d],
              low=1e-5, high=(100, 100, 1, 100)),
    Statement(84, -5280335.133, (2.52, 2, 37.5, 9.25, 6.8), _sugar_gain, _sugar,
              low=(0, 1.2, 20, 9, 6.5), high=(1000, 2.4, 60, 9.3, 7)),
    Statement(85, -1.9051552585, (900, 80, 115, 267, 27), _pulp_cost, _pulp_limits,
              low=(704.4148, 68.6, 0, 193, 25), high=(906.3855, 288.88, 134.75, 287.0966, 84.1988)),
    Statement(86, -32.34867897, (0, 0, 0, 0, 1),
              lambda *x: _dot(_E, x) + _quadratic(x) + _dot(_D, [e**3 for e in x]),
              lambda *x: [_dot(row, x) - b for row, b in zip(_A, _B, strict=True)], low=0),
    Statement(87, 8927.5977, (390, 1000, 419.5, 340.5, 198.175, 0.5), _network_cost, zero=_network_flows,
              low=(0, 0, 340, 340, -1000, 0), high=(400, 1000, 420, 420, 10000, 0.5236)),
    *(_heat(size) for size in range(2, 7)),
    Statement(99, -831079891.6, (0.5,) * 7, _speed, zero=_orbit, low=0, high=1.58),
    Statement(105, 1136.307304, (0.1, 0.2, 100, 125, 175, 11.2, 13.2, 15.8), _mixture,
              lambda *x: [1 - x[0] - x[1]], low=(0.001, 0.001, 100, 130, 170, 5, 5, 5),
              high=(0.499, 0.499, 180, 210, 240, 25, 25, 25)),
    Statement(107, 5055.011803, (0.8, 0.8, 0.2, 0.2, 1.0454, 1.0454, 1.0454, 0, 0),
              lambda *x: 3000 * x[0] + 1000 * x[0] ** 3 + 2000 * x[1] + 666.667 * x[1] ** 3,
              zero=_generators, low=(0, 0, -_INF, -_INF, *(0.90909,) * 3, -_INF, -_INF),
              high=(*(_INF,) * 4, *(1.0909,) * 3, _INF, _INF)),
    Statement(109, 5362.069181, (0,) * 9,
              lambda *x: 3 * x[0] + 1e-6 * x[0] ** 3 + 2 * x[1] + 0.522074e-6 * x[1] ** 3,
              lambda *x: [x[3] - x[2] + 0.55, x[2] - x[3] + 0.55, 2250000 - x[0] ** 2 - x[7] ** 2,
                          2250000 - x[1] ** 2 - x[8] ** 2],
              _network, low=(0, 0, -0.55, -0.55, 196, 196, 196, -400, -400),
              high=(_INF, _INF, 0.55, 0.55, 252, 252, 252, 800, 800)),
    Statement(116, 97.58750956, (0.5, 0.8, 0.9, 0.1, 0.14, 0.5, 489, 80, 650, 450, 150, 150, 150),
              lambda *x: x[10] + x[11] + x[12], _membranes,
              low=(0.1, 0.1, 0.1, 0.0001, 0.1, 0.1, 0.1, 0.1, 500, 0.1, 1, 0.0001, 0.0001),
              high=(1, 1, 1, 0.1, 0.9, 0.9, 1000, 1000, 1000, 500, 150, 150, 150)),
    Statement(117, 32.34867897, (*(0.001,) * 6, 60, *(0.001,) * 8),
              lambda *x: _quadratic(x[10:]) + 2 * _dot(_D, [e**3 for e in x[10:]]) - _dot(_B, x[:10]),
              _dual, low=0),
    Statement(119, 244.899698, (10,) * 16, _pipes, zero=_pipe_balance, low=0, high=5),
)  # fmt: skip
