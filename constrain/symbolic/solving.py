# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Closed forms: all KKT points of a small problem."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import sympy as sp

from constrain.errors import RouteError
from constrain.symbolic.elimination import Question
from constrain.symbolic.printing import shown

if TYPE_CHECKING:
    from constrain.symbolic.derivation import System

__all__ = ["ClosedForm", "KKTPoint", "solve"]

_MOST_INEQUALITIES = 12
_MOST_DECISIONS = 40
_DIGITS = 30
_ZERO = 1e-12


@dataclass(frozen=True, repr=False, eq=False)
class KKTPoint:
    """A point with multipliers, in closed form.

    Attributes:
        decisions: values by name, `x[0]`.
        multipliers: by constraint part, bounds included.
        value: of the objective, in the user's sense.
        feasible: whether the constraints hold; None where parameters without a value, or free symbols, leave
            it open.
        dual_feasible: whether the multipliers of inequalities are nonnegative; None likewise.
    """

    decisions: dict[str, Any]
    multipliers: dict[str, Any]
    value: Any
    feasible: bool | None
    dual_feasible: bool | None

    def __str__(self) -> str:
        at = ", ".join(f"{name} = {shown(value)}" for name, value in self.decisions.items())
        with_ = ", ".join(f"{name}: {shown(value)}" for name, value in self.multipliers.items() if value != 0)
        return f"{at}   value {shown(self.value)}" + (f"   multipliers {with_}" if with_ else "")

    __repr__ = __str__


@dataclass(frozen=True, repr=False, eq=False)
class ClosedForm:
    """What `derive().solve()` returns.

    Attributes:
        candidates: every point where the Lagrangian is stationary, equalities hold and multipliers of
            inactive inequalities vanish.
        points: the KKT points: those candidates that are feasible with multipliers of the right sign, or
            where that is left open.
        best: the KKT point of the best value. It is the solution of the problem if the problem has one and
            its constraints are qualified there. None where no point is known to be one, or values cannot be
            compared.
    """

    candidates: tuple[KKTPoint, ...]
    points: tuple[KKTPoint, ...]
    best: KKTPoint | None

    def __str__(self) -> str:
        if not self.points:
            return f"no KKT point ({len(self.candidates)} stationary points violate a sign or a constraint)"
        lines = [f"{'*' if p is self.best else ' '} {p}" for p in self.points]
        return "\n".join(lines)

    __repr__ = __str__

    def latex(self) -> str:
        """The points as an `aligned` environment, without dollar signs."""
        lines = [
            ",\\; ".join(f"{sp.latex(sp.Symbol(k))} = {sp.latex(v)}" for k, v in p.decisions.items())
            for p in self.points
        ]
        return "\\begin{aligned}\n& " + " \\\\\n& ".join(lines) + "\n\\end{aligned}"

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex()}\n$$"


def solve(system: System, time_limit: float) -> ClosedForm:
    """All KKT points.

    Args:
        system: entry by entry.
        time_limit: seconds.

    Raises:
        RouteError: E197.
    """
    if len(system.inequalities) > _MOST_INEQUALITIES or len(system.decisions) > _MOST_DECISIONS:
        raise RouteError(
            "E197",
            f"{len(system.decisions)} decisions and {len(system.inequalities)} inequalities are too many for "
            f"a closed form: each of 2^{len(system.inequalities)} active sets is a system of its own",
            fix=f"problem.solve(), or at most {_MOST_DECISIONS} decisions and {_MOST_INEQUALITIES} "
            "inequalities (bounds count)",
        )
    known = {symbol: value for symbol, value in system.parameters.items() if value is not None}
    question = Question(
        tuple(system.gradient),
        tuple(system.decisions.values()),
        *_halves(system.equalities),
        *_halves(system.inequalities),
        known,
    )
    found = [_point(system, values, known) for values in _asked(question, time_limit)]
    candidates = tuple(map(partial(_settled, among=_distinct(found)), _distinct(found)))
    points = tuple(p for p in candidates if p.feasible is not False and p.dual_feasible is not False)
    return ClosedForm(candidates, points, _best(system, points, known))


def _halves(constraints: dict[str, tuple[Any, Any]]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    pairs = list(constraints.values())
    return tuple(r for r, _ in pairs), tuple(m for _, m in pairs)


def _asked(question: Question, time_limit: float) -> list[dict[Any, Any]]:
    """The candidates, found in a process that is stopped at the time limit."""
    program = "from constrain.symbolic.elimination import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        ran = subprocess.run(  # this Python, fixed code, no shell
            [sys.executable, "-c", program],
            input=pickle.dumps(question),
            capture_output=True,
            timeout=time_limit,
            check=True,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        cases = 2 ** len(question.inequalities)
        raise RouteError(
            "E197",
            f"SymPy did not solve the KKT system within {time_limit:g} seconds ({cases} active sets)",
            fix="solve(time_limit=600), fewer inequalities, or problem.solve() for numbers",
        ) from None
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RouteError("E197", f"SymPy failed: {last}", fix="problem.solve() for numbers") from None
    word, answer = pickle.loads(ran.stdout)
    if word == "failed":
        raise RouteError(
            "E197", f"SymPy has no closed form of the KKT system: {answer}", fix="problem.solve() for numbers"
        )
    return answer  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ points
def _number(expr: Any, known: dict[Any, Any]) -> float | None:
    """The value as a float; None with free symbols or without a real value."""
    value = sp.N(sp.sympify(expr).subs(known), _DIGITS)
    if value.free_symbols or value.has(sp.nan, sp.zoo) or abs(sp.im(value)) > _ZERO:
        return None
    return float(sp.re(value))


def _all(tests: list[bool | None]) -> bool | None:
    """False where one fails, None where one is open."""
    return False if False in tests else None if None in tests else True


def _point(system: System, values: dict[Any, Any], known: dict[Any, Any]) -> KKTPoint:
    def at(expr: Any) -> Any:
        return sp.sympify(expr).subs(values)

    def sign(expr: Any, direction: int) -> bool | None:
        number = _number(at(expr), known)
        return None if number is None else direction * number >= -_ZERO

    inequalities = system.inequalities.values()
    constraints = {**system.equalities, **system.inequalities}
    return KKTPoint(
        {name: _short(at(symbol)) for name, symbol in system.decisions.items()},
        {name: _short(at(multiplier)) for name, (_, multiplier) in constraints.items()},
        _short(system.sign * at(system.objective)),
        _all([sign(residual, -1) for residual, _ in inequalities]),
        _all([sign(multiplier, 1) for _, multiplier in inequalities]),
    )


def _short(expr: Any) -> Any:
    """The simpler form; numbers of many digits and implicit roots stay as they are."""
    if expr.has(sp.CRootOf) or expr.count_ops() > 200:
        return expr
    found = sp.simplify(expr)
    return found if found.count_ops() <= expr.count_ops() else expr


def _distinct(points: list[KKTPoint]) -> tuple[KKTPoint, ...]:
    """Each point once: active sets that share a point find it several times."""
    kept: list[KKTPoint] = []
    for point in points:
        mine = [*point.decisions.values(), *point.multipliers.values()]
        if not any(_same(mine, [*p.decisions.values(), *p.multipliers.values()]) for p in kept):
            kept.append(point)
    return tuple(kept)


def _settled(point: KKTPoint, among: tuple[KKTPoint, ...]) -> KKTPoint:
    """A point whose multipliers are not unique, with the sign question answered.

    Nonnegative multipliers exist exactly when some exist that belong to constraints with independent
    gradients (Caratheodory), and these are a candidate of their own, of a smaller active set.
    """
    if point.dual_feasible is not None or not point.feasible:
        return point
    mine = list(point.decisions.values())
    if any(value.free_symbols for value in mine):
        return point
    basic = [p for p in among if p.dual_feasible is not None and _same(mine, list(p.decisions.values()))]
    return replace(point, dual_feasible=any(p.dual_feasible for p in basic)) if basic else point


def _same(a: list[Any], b: list[Any]) -> bool:
    for x, y in zip(a, b, strict=True):
        if x == y:
            continue
        gap = _number(x - y, {})
        if gap is None or abs(gap) > _ZERO:
            return False
    return True


def _best(system: System, points: tuple[KKTPoint, ...], known: dict[Any, Any]) -> KKTPoint | None:
    if len(points) == 1:
        return points[0] if points[0].feasible and points[0].dual_feasible else None
    values = [_number(p.value, known) for p in points]
    ranked = sorted((system.sign * v, i) for i, v in enumerate(values) if v is not None)
    if not ranked or len(ranked) < len(points):
        return None
    first = points[ranked[0][1]]
    return first if first.feasible and first.dual_feasible else None
