# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# ruff: noqa: ARG001, ARG005  # a statement names every entry of x, also those that a function does not use
"""Further statements of Hock & Schittkowski, "Test Examples for Nonlinear Programming Codes" (1981).

Functions, bounds, starts and optima are the book's. Those with data or many terms are in `book_data.py`.
"""

from __future__ import annotations

import math
from typing import Any

from constrain.testing.book_data import WITH_DATA
from constrain.testing.statements import Statement, cos, exp, log, sin

__all__ = ["STATEMENTS"]

_INF = math.inf
_ROOT = math.sqrt(2)


def _banana(a: Any, b: Any) -> Any:
    return 100 * (b - a**2) ** 2 + (1 - a) ** 2


# ------------------------------------------------------------------------------------ two, three decisions
_TWO = [
    Statement(8, -1, (2, 1), lambda a, b: 0 * a - 1, zero=lambda a, b: [a**2 + b**2 - 25, a * b - 9]),
    Statement(9, -0.5, (0, 0), lambda a, b: sin(math.pi * a / 12) * cos(math.pi * b / 16),
              zero=lambda a, b: [4 * a - 3 * b]),
    Statement(11, -8.498464223, (4.9, 0.1), lambda a, b: (a - 5) ** 2 + b**2 - 25, lambda a, b: [b - a**2]),
    Statement(13, 1, (-2, -2), lambda a, b: (a - 2) ** 2 + b**2, lambda a, b: [(1 - a) ** 3 - b], low=0,
              qualified=False),
    Statement(14, 9 - 2.875 * math.sqrt(7), (2, 2), lambda a, b: (a - 2) ** 2 + (b - 1) ** 2,
              lambda a, b: [1 - 0.25 * a**2 - b**2], lambda a, b: [a - 2 * b + 1]),
    Statement(15, 306.5, (-2, 1), _banana, lambda a, b: [a * b - 1, a + b**2], high=(0.5, _INF)),
    Statement(16, 0.25, (-2, 1), _banana, lambda a, b: [a + b**2, a**2 + b],
              low=(-0.5, -_INF), high=(0.5, 1)),
    Statement(17, 1, (-2, 1), _banana, lambda a, b: [b**2 - a, a**2 - b], low=(-0.5, -_INF), high=(0.5, 1)),
    Statement(18, 5, (2, 2), lambda a, b: 0.01 * a**2 + b**2, lambda a, b: [a * b - 25, a**2 + b**2 - 25],
              low=(2, 0), high=50),
    Statement(19, -6961.81381, (20.1, 5.84), lambda a, b: (a - 10) ** 3 + (b - 20) ** 3,
              lambda a, b: [(a - 5) ** 2 + (b - 5) ** 2 - 100, 82.81 - (b - 5) ** 2 - (a - 6) ** 2],
              low=(13, 0), high=100),
    Statement(20, 81.5 - 25 * math.sqrt(3), (-2, 1), _banana,
              lambda a, b: [a + b**2, a**2 + b, a**2 + b**2 - 1], low=(-0.5, -_INF), high=(0.5, _INF),
              near=100 * (math.sqrt(0.75) - 0.25) ** 2 + 2.25),
    Statement(21, -99.96, (-1, -1), lambda a, b: 0.01 * a**2 + b**2 - 100, lambda a, b: [10 * a - b - 10],
              low=(2, -50), high=50),
    Statement(23, 2, (3, 1), lambda a, b: a**2 + b**2,
              lambda a, b: [a + b - 1, a**2 + b**2 - 1, 9 * a**2 + b**2 - 9, a**2 - b, b**2 - a],
              low=-50, high=50),
    Statement(24, -1, (1, 0.5), lambda a, b: ((a - 3) ** 2 - 9) * b**3 / (27 * math.sqrt(3)),
              lambda a, b: [a / math.sqrt(3) - b, a + math.sqrt(3) * b, 6 - a - math.sqrt(3) * b], low=0),
    Statement(26, 0, (-2.6, 2, 2), lambda a, b, c: (a - b) ** 2 + (b - c) ** 4,
              zero=lambda a, b, c: [(1 + b**2) * a + c**4 - 3]),
    Statement(27, 0.04, (2, 2, 2), lambda a, b, c: 0.01 * (a - 1) ** 2 + (b - a**2) ** 2,
              zero=lambda a, b, c: [a + c**2 + 1]),
    Statement(30, 1, (1, 1, 1), lambda a, b, c: a**2 + b**2 + c**2, lambda a, b, c: [a**2 + b**2 - 1],
              low=(1, -10, -10), high=10),
    Statement(31, 6, (1, 1, 1), lambda a, b, c: 9 * a**2 + b**2 + 9 * c**2, lambda a, b, c: [a * b - 1],
              low=(-10, 1, -10), high=(10, 10, 1)),
    Statement(32, 1, (0.1, 0.7, 0.2), lambda a, b, c: (a + 3 * b + c) ** 2 + 4 * (a - b) ** 2,
              lambda a, b, c: [6 * b + 4 * c - a**3 - 3], lambda a, b, c: [1 - a - b - c], low=0),
    Statement(33, _ROOT - 6, (0, 0, 3), lambda a, b, c: (a - 1) * (a - 2) * (a - 3) + c,
              lambda a, b, c: [c**2 - b**2 - a**2, a**2 + b**2 + c**2 - 4], low=0, high=(_INF, _INF, 5)),
    Statement(34, -math.log(math.log(10)), (0, 1.05, 2.9), lambda a, b, c: -a,
              lambda a, b, c: [b - exp(a), c - exp(b)], low=0, high=(100, 100, 10)),
    Statement(35, 1 / 9, (0.5,) * 3,
              lambda a, b, c: 9 - 8 * a - 6 * b - 4 * c + 2 * a**2 + 2 * b**2 + c**2 + 2 * a * b + 2 * a * c,
              lambda a, b, c: [3 - a - b - 2 * c], low=0),
    Statement(36, -3300, (10,) * 3, lambda a, b, c: -a * b * c, lambda a, b, c: [72 - a - 2 * b - 2 * c],
              low=0, high=(20, 11, 42)),
    Statement(37, -3456, (10,) * 3, lambda a, b, c: -a * b * c,
              lambda a, b, c: [72 - a - 2 * b - 2 * c, a + 2 * b + 2 * c], low=0, high=42),
    Statement(60, 0.03256820025, (2,) * 3, lambda a, b, c: (a - 1) ** 2 + (a - b) ** 2 + (b - c) ** 4,
              zero=lambda a, b, c: [a * (1 + b**2) + c**4 - 4 - 3 * _ROOT], low=-10, high=10),
    Statement(61, -143.6461422, (0,) * 3,
              lambda a, b, c: 4 * a**2 + 2 * b**2 + 2 * c**2 - 33 * a + 16 * b - 24 * c,
              zero=lambda a, b, c: [3 * a - 2 * b**2 - 7, 4 * a - c**2 - 11]),
    Statement(62, -26272.51448, (0.7, 0.2, 0.1),
              lambda a, b, c: -32.174 * (255 * log((a + b + c + 0.03) / (0.09 * a + b + c + 0.03))
                                         + 280 * log((b + c + 0.03) / (0.07 * b + c + 0.03))
                                         + 290 * log((c + 0.03) / (0.13 * c + 0.03))),
              zero=lambda a, b, c: [a + b + c - 1], low=0, high=1),
    Statement(63, 961.7151721, (2,) * 3, lambda a, b, c: 1000 - a**2 - 2 * b**2 - c**2 - a * b - a * c,
              zero=lambda a, b, c: [8 * a + 14 * b + 7 * c - 56, a**2 + b**2 + c**2 - 25], low=0),
    Statement(64, 6299.842428, (1,) * 3,
              lambda a, b, c: 5 * a + 50000 / a + 20 * b + 72000 / b + 10 * c + 144000 / c,
              lambda a, b, c: [1 - 4 / a - 32 / b - 120 / c], low=1e-5),
    Statement(65, 0.9535288567, (-5, 5, 0),
              lambda a, b, c: (a - b) ** 2 + ((a + b - 10) / 3) ** 2 + (c - 5) ** 2,
              lambda a, b, c: [48 - a**2 - b**2 - c**2], low=(-4.5, -4.5, -5), high=(4.5, 4.5, 5)),
    Statement(66, 0.5181632741, (0, 1.05, 2.9), lambda a, b, c: 0.2 * c - 0.8 * a,
              lambda a, b, c: [b - exp(a), c - exp(b)], low=0, high=(100, 100, 10)),
]  # fmt: skip


# -------------------------------------------------------------------------------------------- four, five
def _colville(a: Any, b: Any, c: Any, d: Any) -> Any:
    return (
        100 * (b - a**2) ** 2
        + (1 - a) ** 2
        + 90 * (d - c**2) ** 2
        + (1 - c) ** 2
        + 10.1 * ((b - 1) ** 2 + (d - 1) ** 2)
        + 19.8 * (b - 1) * (d - 1)
    )


def _cattle(a: Any, b: Any, c: Any, d: Any) -> list[Any]:
    spread = (0.28 * a**2 + 0.19 * b**2 + 20.5 * c**2 + 0.62 * d**2) ** 0.5
    return [
        2.3 * a + 5.6 * b + 11.1 * c + 1.3 * d - 5,
        12 * a + 11.9 * b + 41.8 * c + 52.1 * d - 21 - 1.645 * spread,
    ]


def _power(number: int, value: float, width: float) -> Statement:
    def flows(a: Any, b: Any, c: Any, d: Any) -> list[Any]:
        return [
            1000 * sin(-c - 0.25) + 1000 * sin(-d - 0.25) + 894.8 - a,
            1000 * sin(c - 0.25) + 1000 * sin(c - d - 0.25) + 894.8 - b,
            1000 * sin(d - 0.25) + 1000 * sin(d - c - 0.25) + 1294.8,
        ]

    return Statement(
        number, value, (0,) * 4, lambda a, b, c, d: 3 * a + 1e-6 * a**3 + 2 * b + 2e-6 / 3 * b**3,
        lambda a, b, c, d: [d - c + width, c - d + width], flows,
        low=(0, 0, -width, -width), high=(1200, 1200, width, width),
    )  # fmt: skip


def _powell(a: Any, b: Any, c: Any, d: Any, e: Any) -> list[Any]:
    return [a**2 + b**2 + c**2 + d**2 + e**2 - 10, b * c - 5 * d * e, a**3 + b**3 + 1]


_BOX: Any = {"low": (-2.3, -2.3, -3.2, -3.2, -3.2), "high": (2.3, 2.3, 3.2, 3.2, 3.2)}


def _colville_3(a: Any, b: Any, c: Any, d: Any, e: Any) -> list[Any]:
    first = 85.334407 + 0.0056858 * b * e + 0.0006262 * a * d - 0.0022053 * c * e
    second = 80.51249 + 0.0071317 * b * e + 0.0029955 * a * b + 0.0021813 * c**2
    third = 9.300961 + 0.0047026 * c * e + 0.0012547 * a * c + 0.0019085 * c * d
    return [first, 92 - first, second - 90, 110 - second, third - 20, 25 - third]


_FIVE = [
    Statement(38, 0, (-3, -1, -3, -1), _colville, low=-10, high=10),
    Statement(39, -1, (2,) * 4, lambda a, b, c, d: -a,
              zero=lambda a, b, c, d: [b - a**3 - c**2, a**2 - b - d**2]),
    Statement(41, 52 / 27, (2,) * 4, lambda a, b, c, d: 2 - a * b * c,
              zero=lambda a, b, c, d: [a + 2 * b + 2 * c - d], low=0, high=(1, 1, 1, 2)),
    Statement(44, -15, (0,) * 4, lambda a, b, c, d: a - b - c - a * c + a * d + b * c - b * d,
              lambda a, b, c, d: [8 - a - 2 * b, 12 - 4 * a - b, 12 - 3 * a - 4 * b, 8 - 2 * c - d,
                                  8 - c - 2 * d, 5 - c - d], low=0),
    Statement(45, 1, (2,) * 5, lambda a, b, c, d, e: 2 - a * b * c * d * e / 120,
              low=0, high=(1, 2, 3, 4, 5)),
    Statement(46, 0, (_ROOT / 2, 1.75, 0.5, 2, 2),
              lambda a, b, c, d, e: (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6,
              zero=lambda a, b, c, d, e: [a**2 * d + sin(d - e) - 1, b + c**4 * d**2 - 2]),
    Statement(49, 0, (10, 7, 2, -3, 0.8),
              lambda a, b, c, d, e: (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6,
              zero=lambda a, b, c, d, e: [a + b + c + 4 * d - 7, c + 5 * e - 6]),
    Statement(53, 176 / 43, (2,) * 5,
              lambda a, b, c, d, e: (a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2,
              zero=lambda a, b, c, d, e: [a + 3 * b, c + d - 2 * e, b - e], low=-10, high=10),
    Statement(71, 17.0140173, (1, 5, 5, 1), lambda a, b, c, d: a * d * (a + b + c) + c,
              lambda a, b, c, d: [a * b * c * d - 25],
              lambda a, b, c, d: [a**2 + b**2 + c**2 + d**2 - 40], low=1, high=5),
    Statement(72, 727.67937, (1,) * 4, lambda a, b, c, d: 1 + a + b + c + d,
              lambda a, b, c, d: [0.0401 - 4 / a - 2.25 / b - 1 / c - 0.25 / d,
                                  0.010085 - 0.16 / a - 0.36 / b - 0.64 / c - 0.64 / d],
              low=0.001, high=(4e5, 3e5, 2e5, 1e5)),
    Statement(73, 29.894378, (1,) * 4, lambda a, b, c, d: 24.55 * a + 26.75 * b + 39 * c + 40.5 * d, _cattle,
              lambda a, b, c, d: [a + b + c + d - 1], low=0),
    _power(74, 5126.4981, 0.55),
    _power(75, 5174.4129, 0.48),
    Statement(76, -4.681818182, (0.5,) * 4,
              lambda a, b, c, d: (a**2 + 0.5 * b**2 + c**2 + 0.5 * d**2 - a * c + c * d
                                  - a - 3 * b + c - d),
              lambda a, b, c, d: [5 - a - 2 * b - c - d, 4 - 3 * a - b - 2 * c + d, b + 4 * c - 1.5], low=0),
    Statement(80, 0.0539498478, (-2, 2, 2, -1, -1), lambda a, b, c, d, e: exp(a * b * c * d * e),
              zero=_powell, **_BOX),
    Statement(81, 0.0539498478, (-2, 2, 2, -1, -1),
              lambda a, b, c, d, e: exp(a * b * c * d * e) - 0.5 * (a**3 + b**3 + 1) ** 2,
              zero=_powell, **_BOX),
    Statement(83, -30665.53867, (78, 33, 27, 27, 27),
              lambda a, b, c, d, e: 5.3578547 * c**2 + 0.8356891 * a * e + 37.293239 * a - 40792.141,
              _colville_3, low=(78, 33, 27, 27, 27), high=(102, 45, 45, 45, 45)),
]  # fmt: skip


# -------------------------------------------------------------------------------------------- six to ten
def _transformer(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> tuple[Any, Any]:
    return a * d * (a + b + c), b * c * (a + 1.57 * b + d)


def _transformer_cost(*x: Any) -> Any:
    first, second = _transformer(*x)
    return 0.0204 * first + 0.0187 * second + 0.0607 * first * x[4] ** 2 + 0.0437 * second * x[5] ** 2


def _transformer_limits(*x: Any) -> list[Any]:
    first, second = _transformer(*x)
    product = x[0] * x[1] * x[2] * x[3] * x[4] * x[5]
    return [0.001 * product - 2.07, 1 - 0.00062 * first * x[4] ** 2 - 0.00058 * second * x[5] ** 2]


def _sinter(number: int, value: float, least: tuple[float, float, float, float]) -> Statement:
    def rows(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> list[Any]:
        first = (
            17.1 * a + 38.2 * b + 204.2 * c + 212.3 * d + 623.4 * e + 1495.5 * f
            - 169 * a * c - 3580 * c * e - 3810 * d * e - 18500 * d * f - 24300 * e * f
        )  # fmt: skip
        second = (
            17.9 * a + 36.8 * b + 113.9 * c + 169.7 * d + 337.8 * e + 1385.2 * f
            - 139 * a * c - 2450 * d * e - 16600 * d * f - 17200 * e * f
        )  # fmt: skip
        third = -273 * b - 70 * d - 819 * e + 26000 * d * e
        fourth = 159.9 * a - 311 * b + 587 * d + 391 * e + 2198 * f - 14000 * a * f
        return [g - bound for g, bound in zip((first, second, third, fourth), least, strict=True)]

    def cost(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        return 4.3 * a + 31.8 * b + 63.3 * c + 15.8 * d + 68.5 * e + 4.7 * f

    return Statement(number, value, (0,) * 6, cost, rows, low=0,
                     high=(0.31, 0.046, 0.068, 0.042, 0.028, 0.0134))  # fmt: skip


def _geometric(number: int, value: float, power: float) -> Statement:
    def cost(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> Any:
        return (
            10 * a * b**-1 * d**2 * f**-3 * g**power
            + 15 * a**-1 * b**-2 * c * d * e**-1 * g**-0.5
            + 20 * a**-2 * b * d**-1 * e**-2 * f
            + 25 * a**2 * b**2 * c**-1 * e**0.5 * f**-2 * g
        )

    def limits(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> list[Any]:
        third = 1 / 3
        total = cost(a, b, c, d, e, f, g)
        return [
            1 - 0.5 * a**0.5 * c**-1 * f**-2 * g - 0.7 * a**3 * b * c**-2 * f * g**0.5
            - 0.2 * b**-1 * c * d**-0.5 * f ** (2 / 3) * g**0.25,
            1 - 1.3 * a**-0.5 * b * c**-1 * e**-1 * f - 0.8 * c * d**-1 * e**-1 * f**2
            - 3.1 * a**-1 * b**0.5 * d**-2 * e**-1 * f**third,
            1 - 2 * a * c**-1.5 * e * f**-1 * g**third - 0.1 * b * c**-0.5 * e * f**-1 * g**-0.5
            - a**-1 * b * c**0.5 * e - 0.65 * b**-2 * c * e * f**-1 * g,
            1 - 0.2 * a**-2 * b * d**-1 * e**0.5 * g**third
            - 0.3 * a**0.5 * b**2 * c * d**third * e ** (-2 / 3) * g**0.25
            - 0.4 * a**-3 * b**-2 * c * e * g**0.75 - 0.5 * c**-2 * d * g**0.5,
            total - 100,
            3000 - total,
        ]  # fmt: skip

    return Statement(number, value, (6,) * 7, cost, limits, low=(*(0.1,) * 6, 0.01), high=10)


def _seven(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> Any:
    return (
        (a - 10) ** 2 + 5 * (b - 12) ** 2 + c**4 + 3 * (d - 11) ** 2 + 10 * e**6 + 7 * f**2 + g**4
        - 4 * f * g - 10 * f - 8 * g
    )  # fmt: skip


def _seven_limits(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> list[Any]:
    return [
        127 - 2 * a**2 - 3 * b**4 - c - 4 * d**2 - 5 * e,
        282 - 7 * a - 3 * b - 10 * c**2 - d + e,
        196 - 23 * a - b**2 - 6 * f**2 + 8 * g,
        -4 * a**2 - b**2 + 3 * a * b - 2 * c**2 - 5 * f + 11 * g,
    ]


def _reactors_cost(*x: Any) -> Any:
    return 0.4 * x[0] ** 0.67 * x[6] ** -0.67 + 0.4 * x[1] ** 0.67 * x[7] ** -0.67 + 10 - x[0] - x[1]


def _reactors(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> list[Any]:
    cost = _reactors_cost(a, b, c, d, e, f, g, h)
    return [
        1 - 0.0588 * e * g - 0.1 * a,
        1 - 0.0588 * f * h - 0.1 * a - 0.1 * b,
        1 - 4 * c * e**-1 - 2 * c**-0.71 * e**-1 - 0.0588 * c**-1.3 * g,
        1 - 4 * d * f**-1 - 2 * d**-0.71 * f**-1 - 0.0588 * d**-1.3 * h,
        cost - 1,
        4.2 - cost,
    ]


def _exchangers(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> list[Any]:
    return [
        1 - 0.0025 * (d + f),
        1 - 0.0025 * (e + g - d),
        1 - 0.01 * (h - e),
        a * f - 833.33252 * d - 100 * a + 83333.333,
        b * g - 1250 * e - b * d + 1250 * d,
        c * h - 1250000 - c * e + 2500 * e,
    ]


def _hexagon(*x: Any) -> Any:
    a, b, c, d, e, f, g, h, k = x
    return -0.5 * (a * d - b * c + c * k - e * k + e * h - f * g)


def _hexagon_limits(*x: Any) -> list[Any]:
    a, b, c, d, e, f, g, h, k = x
    return [
        1 - c**2 - d**2,
        1 - k**2,
        1 - e**2 - f**2,
        1 - a**2 - (b - k) ** 2,
        1 - (a - e) ** 2 - (b - f) ** 2,
        1 - (a - g) ** 2 - (b - h) ** 2,
        1 - (c - e) ** 2 - (d - f) ** 2,
        1 - (c - g) ** 2 - (d - h) ** 2,
        1 - g**2 - (h - k) ** 2,
        a * d - b * c,
        c * k,
        -e * k,
        e * h - f * g,
    ]


_ENERGIES = (-6.089, -17.164, -34.054, -5.914, -24.721, -14.986, -24.1, -10.708, -26.662, -22.179)


def _elements(*x: Any) -> list[Any]:
    return [
        x[0] + 2 * x[1] + 2 * x[2] + x[5] + x[9] - 2,
        x[3] + 2 * x[4] + x[5] + x[6] - 1,
        x[2] + x[6] + x[7] + 2 * x[8] + x[9] - 1,
    ]


def _free_energy(*x: Any) -> Any:
    total = sum(x[1:], x[0])
    terms = [e * (c + log(e / total)) for e, c in zip(x, _ENERGIES, strict=True)]
    return sum(terms[1:], terms[0])


def _logs(*x: Any) -> Any:
    product = x[0]
    for e in x[1:]:
        product = product * e
    terms = [log(e - 2) ** 2 + log(10 - e) ** 2 for e in x]
    return sum(terms[1:], terms[0]) - product**0.2


def _wong(*x: Any) -> Any:
    a, b, c, d, e, f, g, h, k, m = x
    return (
        a**2 + b**2 + a * b - 14 * a - 16 * b + (c - 10) ** 2 + 4 * (d - 5) ** 2 + (e - 3) ** 2
        + 2 * (f - 1) ** 2 + 5 * g**2 + 7 * (h - 11) ** 2 + 2 * (k - 10) ** 2 + (m - 7) ** 2 + 45
    )  # fmt: skip


def _wong_limits(*x: Any) -> list[Any]:
    a, b, c, d, e, f, g, h, k, m = x
    return [
        105 - 4 * a - 5 * b + 3 * g - 9 * h,
        -10 * a + 8 * b + 17 * g - 2 * h,
        8 * a - 2 * b - 5 * k + 2 * m + 12,
        -3 * (a - 2) ** 2 - 4 * (b - 3) ** 2 - 2 * c**2 + 7 * d + 120,
        -5 * a**2 - 8 * b - (c - 6) ** 2 + 2 * d + 40,
        -0.5 * (a - 8) ** 2 - 2 * (b - 4) ** 2 - 3 * e**2 + f + 30,
        -(a**2) - 2 * (b - 2) ** 2 + 2 * a * b - 14 * e + 6 * f,
        3 * a - 6 * b - 12 * (k - 8) ** 2 + 7 * m,
    ]


def _alkylation(*x: Any) -> list[Any]:
    share, other = 0.99, 0.9
    acid = 35.82 - 0.222 * x[9] - other * x[8]
    strength = -133 + 3 * x[6] - share * x[9]
    yielded = 1.12 * x[0] + 0.13167 * x[0] * x[7] - 0.00667 * x[0] * x[7] ** 2 - share * x[3]
    octane = 57.425 + 1.098 * x[7] - 0.038 * x[7] ** 2 + 0.325 * x[5] - share * x[6]
    return [
        acid,
        strength,
        -acid + x[8] * (1 / other - other),
        -strength + (1 / share - share) * x[9],
        yielded,
        octane,
        -yielded + (1 / share - share) * x[3],
        -octane + (1 / share - share) * x[6],
    ]


def _alkylation_balance(*x: Any) -> list[Any]:
    return [
        1.22 * x[3] - x[0] - x[4],
        98000 * x[2] / (x[3] * x[8] + 1000 * x[2]) - x[5],
        (x[1] + x[4]) / x[0] - x[7],
    ]


def _periods_cost(*x: Any) -> Any:
    terms = [
        2.3 * x[k] + 0.0001 * x[k] ** 2 + 1.7 * x[k + 1] + 0.0001 * x[k + 1] ** 2
        + 2.2 * x[k + 2] + 0.00015 * x[k + 2] ** 2
        for k in range(0, 15, 3)
    ]  # fmt: skip
    return sum(terms[1:], terms[0])


def _periods(*x: Any) -> list[Any]:
    steps = [x[i] - x[i - 3] + 7 for i in range(3, 15)]
    ceilings = [(13, 14, 13)[i % 3] - step for i, step in enumerate(steps)]
    demands = zip(range(0, 15, 3), (60, 50, 70, 85, 100), strict=True)
    return [*steps, *ceilings, *(x[k] + x[k + 1] + x[k + 2] - least for k, least in demands)]


_TEN = [
    Statement(55, 19 / 3, (1, 2, 0, 0, 0, 2), lambda a, b, c, d, e, f: a + 2 * b + 4 * e + exp(a * d),
              zero=lambda a, b, c, d, e, f: [a + 2 * b + 5 * e - 6, a + b + c - 3, d + e + f - 2, a + d - 1,
                                             b + e - 2, c + f - 2],
              low=0, high=(1, _INF, _INF, 1, _INF, _INF), near=20 / 3),
    Statement(56, -3.456, (1, 1, 1, *(math.asin(math.sqrt(1 / 4.2)),) * 3, math.asin(math.sqrt(5 / 7.2))),
              lambda a, b, c, d, e, f, g: -a * b * c,
              zero=lambda a, b, c, d, e, f, g: [a - 4.2 * sin(d) ** 2, b - 4.2 * sin(e) ** 2,
                                                c - 4.2 * sin(f) ** 2,
                                                a + 2 * b + 2 * c - 7.2 * sin(g) ** 2]),
    Statement(93, 135.0759628, (5.54, 4.4, 12.02, 11.82, 0.702, 0.852), _transformer_cost,
              _transformer_limits, low=0),
    _sinter(95, 0.015619514, (4.97, -1.88, -29.08, -78.02)),
    _sinter(96, 0.015619514, (4.97, -1.88, -69.08, -118.02)),
    _sinter(97, 3.135809, (32.97, 25.12, -29.08, -78.02)),
    _sinter(98, 3.135809, (32.97, 25.12, -124.08, -173.02)),
    Statement(100, 680.6300573, (1, 2, 0, 4, 0, 1, 1), _seven, _seven_limits),
    _geometric(101, 1809.76476, -0.25),
    _geometric(102, 911.880571, 0.125),
    _geometric(103, 543.667958, 0.5),
    Statement(104, 3.9511634396, (6, 3, 0.4, 0.2, 6, 6, 1, 0.5), _reactors_cost, _reactors, low=0.1, high=10),
    Statement(106, 7049.248, (5000, 5000, 5000, 200, 350, 150, 225, 425),
              lambda a, b, c, d, e, f, g, h: a + b + c, _exchangers, low=(100, 1000, 1000, *(10,) * 5),
              high=(*(10000,) * 3, *(1000,) * 5)),
    Statement(108, -math.sqrt(3) / 2, (1,) * 9, _hexagon, _hexagon_limits, low=(*(-_INF,) * 8, 0)),
    Statement(110, -45.77846971, (9,) * 10, _logs, low=2.001, high=9.999),
    Statement(111, -47.76109026, (-2.3,) * 10, lambda *x: _free_energy(*map(exp, x)),
              zero=lambda *x: _elements(*map(exp, x)), low=-100, high=100),
    Statement(112, -47.76109026, (0.1,) * 10, _free_energy, zero=_elements, low=1e-6),
    Statement(113, 24.3062091, (2, 3, 5, 5, 1, 2, 7, 3, 6, 10), _wong, _wong_limits),
    Statement(114, -1768.80696, (1745, 12000, 110, 3048, 1974, 89.2, 92.8, 8, 3.6, 145),
              lambda *x: 5.04 * x[0] + 0.035 * x[1] + 10 * x[2] + 3.36 * x[4] - 0.063 * x[3] * x[6],
              _alkylation, _alkylation_balance,
              low=(*(1e-5,) * 5, 85, 90, 3, 1.2, 145),
              high=(2000, 16000, 120, 5000, 2000, 93, 95, 12, 4, 162)),
    Statement(118, 664.82045, (20, 55, 15, *(20, 60, 20) * 4), _periods_cost, _periods,
              low=(8, 43, 3, *(0,) * 12), high=(21, 57, 16, *(90, 120, 60) * 4)),
]  # fmt: skip

STATEMENTS: tuple[Statement, ...] = tuple(sorted((*_TWO, *_FIVE, *_TEN, *WITH_DATA), key=lambda s: s.number))
