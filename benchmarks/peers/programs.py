"""Small nonlinear programs of Hock and Schittkowski, from the book's starts.

Every solver gets the same statement: ours as expressions, SciPy as functions with exact gradients made by
SymPy (not timed), Cooper and humancompatible-train as torch functions on the unbounded ones.
"""

from __future__ import annotations

import statistics
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy
import torch
from scipy.optimize import minimize

from benchmarks.peers.loops import Evaluated, Step, cooper_step, human_step
from benchmarks.peers.table import Table, milliseconds
from constrain.testing.hock_schittkowski import STATEMENTS, Statement

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["polynomial", "table"]

TOLERANCE = 1e-6
FIRST_ORDER = 6
"""Problems that the first-order methods get."""
STEPS = 1_500


def _symbolic(s: Statement) -> tuple[Any, Any, Any, Any] | None:
    """Symbols, objective, inequalities and equations, or None where a function is not one of SymPy's."""
    x = sympy.symbols(f"x0:{len(s.start)}")
    try:
        return x, sympy.sympify(s.f(*x)), s.nonneg(*x), s.zero(*x)
    except (TypeError, AttributeError):
        return None


def polynomial() -> list[Statement]:
    """The statements that need nothing but arithmetic."""
    return [s for s in STATEMENTS if _symbolic(s) is not None]


def off(s: Statement, x: NDArray[np.float64]) -> float:
    """The larger of the relative error of the objective and the violation (bounds included)."""
    low, high = s.bounds()
    low_high = np.concatenate([low - x, x - high, [0.0]])
    violations = [*(-g for g in s.nonneg(*x)), *(abs(h) for h in s.zero(*x)), low_high.max()]
    value = float(s.f(*x))
    known = [v for v in (s.value, s.near) if v is not None]
    error = min(abs(value - v) / max(1.0, abs(v)) for v in known)
    worst = max(error, float(max(violations)))
    return worst if np.isfinite(worst) else np.inf


def by_ours(s: Statement) -> tuple[float, NDArray[np.float64]]:
    start = time.process_time()
    problem = s.build()
    problem.solve(progress=False)
    spent = time.process_time() - start
    return spent, np.asarray(problem.variables[0].value, dtype=float)


def by_slsqp(s: Statement) -> tuple[float, NDArray[np.float64]]:
    symbolic = _symbolic(s)
    assert symbolic is not None  # of `polynomial`
    x, f, above, zero = symbolic

    def functions(expressions: list[Any]) -> tuple[Any, Any]:
        jacobian = [[sympy.diff(e, v) for v in x] for e in expressions]
        return sympy.lambdify([x], expressions), sympy.lambdify([x], jacobian)

    f_value, f_slope = functions([f])
    parts: list[Any] = []
    for kind, expressions in (("ineq", above), ("eq", zero)):
        if expressions:
            value, slope = functions(list(expressions))
            parts.append({
                "type": kind,
                "fun": lambda z, v=value: np.asarray(v(z), dtype=float),
                "jac": lambda z, d=slope: np.asarray(d(z), dtype=float),
            })  # fmt: skip
    start = time.process_time()
    found: Any = minimize(
        lambda z: float(f_value(z)[0]), np.asarray(s.start, dtype=float), method="SLSQP",
        jac=lambda z: np.asarray(f_slope(z)[0], dtype=float), bounds=list(zip(*s.bounds(), strict=True)),
        constraints=parts, options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    return time.process_time() - start, found.x


def by_first_order(
    s: Statement, make: Callable[..., Step], steps: int = STEPS, **options: Any
) -> tuple[float, NDArray[np.float64]]:
    """Adam with learning rate 0.02 on the entries, all constraints as one vector per kind."""
    x = torch.tensor(s.start, dtype=torch.float64, requires_grad=True)

    def evaluate() -> Evaluated:
        entries = x.unbind()
        kinds = ([-g for g in s.nonneg(*entries)], s.zero(*entries))
        return Evaluated(s.f(*entries), [torch.stack(list(kind)) for kind in kinds if kind])

    sizes = [(len(s.nonneg(*s.start)), False), (len(s.zero(*s.start)), True)]
    sizes = [(size, equal) for size, equal in sizes if size]
    optimizer = torch.optim.Adam([x], lr=0.02)
    step = make(evaluate, [n for n, _ in sizes], optimizer, equal=[equal for _, equal in sizes], **options)
    start = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - start, x.detach().numpy()


def _first_order_problems() -> list[Statement]:
    """Unbounded, with constraints, and an objective that is not constant."""
    chosen = [
        s for s in polynomial()
        if not np.isfinite(s.bounds()).any() and (s.nonneg(*s.start) or s.zero(*s.start)) and s.number != 8
    ]  # fmt: skip
    return chosen[:FIRST_ORDER]


def table(limit: int | None = None) -> Table:
    """Solved to 1e-6 (value and violation), and CPU time per problem."""
    every, some = polynomial()[:limit], _first_order_problems()[:limit]
    result = Table(
        "hock-schittkowski",
        (
            "solver",
            "solved to 1e-6",
            "within 1e-4",
            "median error or violation",
            "median time",
            "all",
            "unsolved",
        ),
    )
    settings = {"dual_lr": 0.1, "penalty": 10.0}
    solvers: list[tuple[str, str, list[Statement], Callable[[Statement], Any]]] = [
        ("ours: `solve()`, problem written and solved", "torch", every, by_ours),
        ("SciPy SLSQP, exact gradients", "scipy", every, by_slsqp),
        ("ours, on the unbounded ones", "torch", some, by_ours),
        (f"Cooper, augmented, lr 0.02, dual lr 0.1, penalty 10, {STEPS} steps", "cooper-optim", some,
         lambda s: by_first_order(s, cooper_step, **settings)),
        (f"humancompatible-train, ALM, lr 0.02, dual lr 0.1, penalty 10, {STEPS} steps",
         "humancompatible-train", some,
         lambda s: by_first_order(s, human_step, **settings)),
    ]  # fmt: skip
    if every:
        by_ours(every[0])  # imports and caches
    for who, package, statements, solve in solvers:
        if result.absent(package, who):
            continue
        times: list[float] = []
        errors: dict[int, float] = {}
        for s in statements:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                spent, x = solve(s)
                errors[s.number] = off(s, x)
            times.append(spent)
        unsolved = [str(number) for number, error in errors.items() if error > TOLERANCE]
        result.add(
            who, f"{len(errors) - len(unsolved)} of {len(errors)}",
            str(sum(e <= 1e-4 for e in errors.values())), f"{statistics.median(errors.values()):.0e}",
            milliseconds(statistics.median(times)), milliseconds(sum(times)), ", ".join(unsolved) or "none",
        )  # fmt: skip
    return result
