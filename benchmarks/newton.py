"""Newton's method against the augmented Lagrangian and SciPy's SLSQP on known problems, deterministic.

All see the same compiled program with exact derivatives. Times are CPU times of the solver alone, of the
second of two runs; errors are those of the optimal value, relative to the larger of 1 and its size.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from constrain.driver.setup import lowered, prepare
from constrain.solvers.augmented import AugmentedLagrangian
from constrain.solvers.kinks import smoothed
from constrain.solvers.newton import projected_gradient
from constrain.solvers.progress import Silent
from constrain.solvers.second_order import Newton, Scaled
from constrain.testing import known_problem

if TYPE_CHECKING:
    from constrain.runtime.evaluator import Evaluator

__all__ = ["GOLDEN", "METHODS", "Outcome", "run", "table"]

BOOK = (6, 7, 10, 12, 22, 28, 29, 40, 42, 43, 48, 50, 51, 52, 77, 78, 79)
FURTHER = (15, 24, 71, 81, 100, 104, 106, 113, 114, 118)
GOLDEN = (
    *(f"hs{number}" for number in (*BOOK, *FURTHER)),
    *("tilt", "maxent", "trust-region-kl", "hydro", "worst-of-three-max-min", "allocation"),
    *("frozenlake-cost", "sphere-logistic", "synthetic-parity", "lasso-budget"),
)


class Outcome(NamedTuple):
    """One run.

    Attributes:
        milliseconds: of CPU time.
        steps: Newton steps, multiplier updates, or SLSQP iterations.
        error: of the optimal value.
        violation: largest, in the units of the constraints.
    """

    milliseconds: float
    steps: int
    error: float
    violation: float

    @property
    def off(self) -> float:
        """The larger of error and violation."""
        return max(self.error, self.violation)

    def __str__(self) -> str:
        return f"{self.milliseconds:.0f} ms, {self.steps}, {self.off:.0e}"


def _evaluator(name: str) -> tuple[Evaluator, float]:
    known = known_problem(name)
    program = lowered(known.build())
    setup = prepare(program, device=torch.device("cpu"), dtype=torch.float64)
    return setup.evaluator, known.value


def _newton(evaluator: Evaluator) -> int:
    return len(Newton().solve(evaluator, progress=Silent()).history) - 1


def _augmented(evaluator: Evaluator) -> int:
    return len(AugmentedLagrangian().solve(evaluator, progress=Silent()).history)


def _slsqp(evaluator: Evaluator) -> int:
    problem = Scaled(smoothed(evaluator)[0])
    x = problem.whole[problem.free].copy()
    found: list[dict[str, Any]] = []
    for kind, chosen in (("eq", problem.equal), ("ineq", ~problem.equal)):
        sign = 1.0 if kind == "eq" else -1.0
        if chosen.any():
            found.append({
                "type": kind,
                "fun": lambda x, k=chosen, s=sign: s * problem.values(x)[1][k],
                "jac": lambda x, k=chosen, s=sign: s * problem.derivatives(x)[1][k],
            })  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: Any = minimize(
            lambda x: problem.values(x)[0], x, jac=lambda x: problem.derivatives(x)[0], method="SLSQP",
            bounds=list(zip(problem.low, problem.high, strict=True)), constraints=found,
            options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
    problem.place(result.x)
    return int(result.nit)


METHODS = {"newton": _newton, "augmented": _augmented, "slsqp": _slsqp}


def run(name: str, method: str) -> Outcome:
    """The second of two runs from the problem's start."""
    seconds, steps, evaluator, value = np.inf, 0, None, 0.0
    for _ in range(2):
        evaluator, value = _evaluator(name)
        start = time.process_time()
        steps = METHODS[method](evaluator)
        seconds = time.process_time() - start
    assert evaluator is not None  # the loop ran
    problem = Scaled(evaluator)
    f, c = problem.raw()
    low, high = evaluator.decisions.bounds()
    x = evaluator.decisions.get()
    outside = np.abs(projected_gradient(x, np.zeros_like(x), low, high)).max(initial=0.0)
    violation = max(float(np.where(problem.equal, np.abs(c), c).max(initial=0.0)), float(outside))
    error = abs(evaluator.program.sign * f - value) / max(1.0, abs(value))
    return Outcome(1e3 * seconds, steps, error, violation)


def table() -> dict[str, dict[str, Outcome]]:
    """Every problem by every method."""
    return {name: {method: run(name, method) for method in METHODS} for name in GOLDEN}


def show() -> None:
    """Prints the table in Markdown: CPU time, steps, and the larger of error and violation."""
    found = table()
    print("| problem | " + " | ".join(METHODS) + " |")
    print("| --- |" + " --- |" * len(METHODS))
    for name, row in found.items():
        print(f"| {name} | " + " | ".join(map(str, row.values())) + " |")
    solved = {m: sum(row[m].off <= 1e-6 for row in found.values()) for m in METHODS}
    total = {m: sum(row[m].milliseconds for row in found.values()) / 1e3 for m in METHODS}
    cells = [f"{solved[m]} of {len(found)} to 1e-6, {total[m]:.1f} s" for m in METHODS]
    print("| all | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    show()
