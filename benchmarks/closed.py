"""`python -m benchmarks.closed`: problems with a formula, by their route and by the solvers that need none.

Tilted policies over prompts and responses, as in the alignment of language models, and the nearest point of
simplices. Whole calls of `problem.solve()`: analysis, solution, multipliers and judgment; median milliseconds
of CPU time, the error of the objective against the best bound, and the largest violation.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

import constrain as cn
from constrain.testing import known_problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["BETA", "Policies", "Row", "alignment", "policies", "simplices", "table"]

ROUNDS = 15


@dataclass
class Row:
    """One problem by one method."""

    problem: str
    method: str
    first: float
    again: float
    error: float
    violation: float

    def __str__(self) -> str:
        return (
            f"| {self.problem} | {self.method} | {self.first:.1f} ms | {self.again:.1f} ms "
            f"| {self.error:.0e} | {self.violation:.0e} |"
        )


class Policies(NamedTuple):
    """Expected reward minus `BETA` times a divergence from a reference, under bounds on expected gains.

    Attributes:
        reward: (prompts, responses).
        gains: (constraints, prompts, responses).
        reference: (prompts, responses) probabilities.
        levels: (constraints,) least expected gains: those of the reference plus 0.1.
    """

    reward: NDArray[np.float64]
    gains: NDArray[np.float64]
    reference: NDArray[np.float64]
    levels: NDArray[np.float64]


BETA = 0.1


def policies(prompts: int = 64, responses: int = 32, constraints: int = 5) -> Policies:
    """The tables of numbers of an alignment problem."""
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(prompts, responses))
    gains = np.stack([rng.normal(size=(prompts, responses)) - 0.6 * reward for _ in range(constraints)])
    reference = rng.dirichlet(np.ones(responses), size=prompts)
    levels = (gains * reference).sum((1, 2)) / prompts + 0.1
    return Policies(reward, gains, reference, levels)


def alignment() -> cn.Problem:
    """Expected reward minus a divergence from a reference, under constraints on expected gains."""
    reward, gains, reference, levels = policies()
    prompts = len(reward)
    pi = cn.Variable(reward.shape, "pi", nonneg=True)
    value = cn.sum(torch.tensor(reward) * pi) / prompts
    distance = cn.sum(cn.rel_entr(pi, torch.tensor(reference))) / prompts
    problem = cn.maximize(value - BETA * distance).subject_to(total=cn.sum(pi, axis=1) == 1)
    for k, (gain, level) in enumerate(zip(gains, levels.tolist(), strict=True)):
        problem = problem.subject_to(**{f"gain{k}": cn.sum(torch.tensor(gain) * pi) / prompts >= level})
    return problem


def simplices(rows: int = 200, entries: int = 50) -> cn.Problem:
    """The nearest row-stochastic matrix."""
    target = np.random.default_rng(0).normal(size=(rows, entries))
    x = cn.Variable((rows, entries), "x", nonneg=True)
    return cn.minimize(cn.sum_squares(x - target)).subject_to(total=cn.sum(x, axis=1) == 1)


def _measured(name: str, make: Callable[[], cn.Problem], method: str, bound: float, rounds: int) -> Row:
    first: list[float] = []
    again: list[float] = []
    solution = make().solve(method, progress=False)
    for _ in range(rounds):
        problem = make()
        start = time.process_time()
        solution = problem.solve(method, progress=False)
        middle = time.process_time()
        problem.solve(method, progress=False)
        first.append(1e3 * (middle - start))
        again.append(1e3 * (time.process_time() - middle))
    error = abs(solution.objective - bound)
    return Row(
        name, method, statistics.median(first), statistics.median(again), error, solution.kkt().feasibility
    )


def table(rounds: int = ROUNDS) -> list[Row]:
    """All problems by all methods."""
    problems: dict[str, tuple[Callable[[], cn.Problem], tuple[str, ...]]] = {
        "tilt (6 x 8, 2 constraints)": (known_problem("tilt").build, ("closed", "cvxpy", "newton")),
        "alignment (64 x 32, 5 constraints)": (alignment, ("closed", "cvxpy")),
        "200 simplices of 50 entries": (simplices, ("closed", "cvxpy")),
    }
    rows: list[Row] = []
    for name, (make, methods) in problems.items():
        bound = float(make().solve("closed", progress=False).bound or 0.0)
        rows += [
            _measured(name, make, m, bound, rounds if m == "closed" else max(3, rounds // 5)) for m in methods
        ]
    return rows


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    print("| problem | method | first solve | again | error | violation |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in table():
        print(row)


if __name__ == "__main__":
    main()
