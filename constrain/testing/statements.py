# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
"""The record of one statement of Hock & Schittkowski, on expressions and on floats alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from constrain.language.expr import Constraint, Expr
from constrain.language.functions import where as choose
from constrain.language.problem import minimize
from constrain.language.symbols import Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.language.problem import Problem

__all__ = ["Statement", "cos", "exp", "log", "sin", "where"]

_INF = math.inf


def sin(e: Any) -> Any:
    """Sine of an expression, a number or an array."""
    return torch.sin(e) if isinstance(e, Expr) else np.sin(e)  # type: ignore[arg-type]  # records an expression


def cos(e: Any) -> Any:
    """Cosine of an expression, a number or an array."""
    return torch.cos(e) if isinstance(e, Expr) else np.cos(e)  # type: ignore[arg-type]  # records an expression


def exp(e: Any) -> Any:
    """Exponential of an expression, a number or an array."""
    return torch.exp(e) if isinstance(e, Expr) else np.exp(e)  # type: ignore[arg-type]  # records an expression


def log(e: Any) -> Any:
    """Natural logarithm of an expression, a number or an array."""
    return torch.log(e) if isinstance(e, Expr) else np.log(e)  # type: ignore[arg-type]  # records an expression


def where(event: Any, a: Any, b: Any) -> Any:
    """`a` where the event holds, else `b`: of expressions, numbers or arrays."""
    if isinstance(event, (Expr, Constraint)):
        return choose(event, a, b)
    return cast("Any", np.where)(event, a, b)


def _none(*_x: Any) -> list[Any]:
    return []


@dataclass(frozen=True)
class Statement:
    """minimize f(x)  subject to  nonneg(x) >= 0,  zero(x) == 0,  low <= x <= high.

    Attributes:
        number: in the book.
        value: the book's optimal value.
        near: value of the local optimum that is next to the start, where it is another one.
        start: the book's start.
        f: objective of the entries of x.
        nonneg: expressions that must be at least 0.
        zero: expressions that must be 0.
        low: lower bounds, one number for all or one per entry.
        high: upper bounds.
        qualified: whether the optimum has multipliers.
    """

    number: int
    value: float
    start: Sequence[float]
    f: Callable[..., Any]
    nonneg: Callable[..., list[Any]] = _none
    zero: Callable[..., list[Any]] = _none
    low: float | Sequence[float] = -_INF
    high: float | Sequence[float] = _INF
    near: float | None = None
    qualified: bool = True

    def bounds(self) -> tuple[Any, Any]:
        """Lower and upper bounds, one per entry."""
        size = len(self.start)
        return tuple(np.broadcast_to(np.asarray(b, dtype=float), size).copy() for b in (self.low, self.high))  # type: ignore[return-value]  # two

    def build(self) -> Problem:
        """The problem at the book's start."""
        low, high = self.bounds()
        bounded = bool(np.isfinite(low).any() or np.isfinite(high).any())
        x = Variable(len(self.start), "x", bounds=(low, high) if bounded else None)
        x.value = np.asarray(self.start, dtype=np.float64)
        entries = [x[i] for i in range(len(self.start))]
        relations = {f"g{i}": g >= 0 for i, g in enumerate(self.nonneg(*entries), 1)}
        relations |= {f"h{i}": h == 0 for i, h in enumerate(self.zero(*entries), 1)}
        return minimize(self.f(*entries)).subject_to(**relations)
