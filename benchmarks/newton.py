"""Newton's method against the augmented Lagrangian and SciPy's SLSQP on known problems, deterministic.

All see the same compiled program with exact derivatives. Times are CPU times of the solver alone, of the
second of two runs; errors are those of the optimal value, relative to the larger of 1 and its size.
`python -m benchmarks.newton adult` compares `solve()` on a large logistic regression with a method by hand.
"""

from __future__ import annotations

import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
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
    from numpy.typing import NDArray

    from constrain.runtime.evaluator import Evaluator

    Floats = NDArray[np.float64]

__all__ = ["GOLDEN", "METHODS", "Outcome", "adult", "by_hand", "run", "table"]

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


# --------------------------------------------------------------------------------------- Adult, by hand
def by_hand(x: Floats, y: Floats, gaps: Floats, bound: float, weight: float) -> tuple[float, Floats]:
    """A logistic regression under |gaps w| <= bound, by an augmented Lagrangian with exact Newton steps.

    What one writes for this one problem: 12 Newton steps, with an update of the multipliers after each. The
    penalty is tuned for it: ten times more, and it circles.

    Args:
        x: (rows, features), without the intercept.
        y: (rows,), 0 or 1.
        gaps: (constraints, features + 1) of the linear constraints, the intercept last.
        bound: of their sizes.
        weight: of |w|^2 in the objective, without the intercept.

    Returns:
        The objective, and w with the intercept last.
    """
    features = np.concatenate([x, np.ones((len(x), 1))], 1)
    both = np.concatenate([gaps, -gaps])
    ridge = np.full(features.shape[1], 2 * weight)
    ridge[-1] = 0.0
    w, prices, penalty = np.zeros(features.shape[1]), np.zeros(len(both)), 0.1
    for _ in range(12):
        share = 1 / (1 + np.exp(-(features @ w)))
        pushes = np.maximum(prices + penalty * (both @ w - bound), 0.0)
        slope = features.T @ (share - y) / len(x) + ridge * w + both.T @ pushes
        bent = features.T @ ((share * (1 - share) / len(x))[:, None] * features) + np.diag(ridge)
        active = both[pushes > 0]
        w = w - np.linalg.solve(bent + penalty * active.T @ active, slope)
        prices = np.maximum(prices + penalty * (both @ w - bound), 0.0)
    score = features @ w
    loss = np.logaddexp(0.0, score) - y * score
    return float(loss.mean() + 0.5 * ridge @ w**2), w


def adult(rounds: int = 5) -> dict[str, list[float]]:
    """CPU seconds of `solve()` on `examples/adult.py` (a) and of the hand-written method, in turns.

    Both begin with the arrays in memory; ours includes the analysis, the setup and the judgment.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    data = import_module("adult_data").load().train
    example = import_module("adult")
    x, y = np.asarray(data.x, dtype=float), np.asarray(data.y, dtype=float)
    sex = np.asarray(data.sex)
    features = np.concatenate([x, np.ones((len(x), 1))], 1)
    high = y == 1

    def gap(rows: NDArray[np.bool_]) -> Floats:
        male, female = rows & (sex == "Male"), rows & (sex == "Female")
        return features[male].mean(0) - features[female].mean(0)

    found: dict[str, list[float]] = {"by hand": [], "solve()": []}
    for _ in range(rounds):
        start = time.process_time()
        gaps = np.stack([gap(np.ones(len(x), dtype=bool)), gap(high)])
        value, _ = by_hand(x, y, gaps, 0.1, 0.5e-3)
        found["by hand"].append(time.process_time() - start)
        problem = example.score_gap(example.sample(data), example.linear())
        start = time.process_time()
        solution = problem.solve(progress=False)
        found["solve()"].append(time.process_time() - start)
        if abs(solution.objective - value) > 1e-6:
            raise AssertionError(f"{solution.objective} is not {value}")  # a benchmark
    return found


def show_adult() -> None:
    """Prints the seconds of both and their ratio."""
    found = adult()
    ratios = [ours / hand for ours, hand in zip(found["solve()"][1:], found["by hand"][1:], strict=True)]
    for name, seconds in found.items():
        print(f"adult, {name}: {np.median(seconds[1:]):.2f} s of CPU (median of {len(seconds) - 1})")
    print(f"ratio {np.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    show_adult() if sys.argv[1:] == ["adult"] else show()
