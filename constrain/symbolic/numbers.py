# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Floats as exact numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

__all__ = ["exact"]

_LARGEST_DENOMINATOR = 1000
_ROUNDING = 4e-16


def exact(value: Any) -> Any:
    """The simplest number that a float stands for.

    A decimal of up to twelve digits is that decimal; a longer one is a fraction with a small denominator, a
    multiple of pi or the root of a fraction where that is the same float up to its last bit, else the decimal
    that Python prints.
    """
    if isinstance(value, bool):
        return sp.Integer(int(value))
    if float(value).is_integer():
        return sp.Integer(int(value))
    number = float(str(value)) if isinstance(value, np.floating) else float(value)  # 0.1 of float32 is 0.1
    if not math.isfinite(number):
        return sp.nan if math.isnan(number) else sp.oo if number > 0 else -sp.oo
    decimal = sp.Rational(repr(number))
    if len(repr(number).partition("e")[0].strip("-").replace(".", "").lstrip("0")) <= 12:
        return decimal
    for unit, inverse in ((sp.Integer(1), number), (sp.pi, number / math.pi)):
        fraction = _fraction(inverse)
        if fraction is not None:
            return fraction * unit
    square = _fraction(number * number)
    return decimal if square is None else sp.sqrt(square) * int(math.copysign(1, number))


def _fraction(value: float) -> Any:
    """The fraction with a small denominator that rounds to `value`, or None."""
    near = Fraction(value).limit_denominator(_LARGEST_DENOMINATOR)
    close = near and abs(float(near) - value) <= _ROUNDING * abs(value)
    return sp.Rational(near.numerator, near.denominator) if close else None
