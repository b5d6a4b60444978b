"""Shadow prices of 50 groups, the smallest with 0.2 % of the rows, from batches of 128 rows."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.estimates import rare_problem, rare_sample
from benchmarks.peers.loops import Evaluated, Step, cooper_step, human_step
from benchmarks.peers.table import Table, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["table"]

BATCH, BOUND = 128, 0.3
STEPS = 12_520
"""As many as ours makes by default: 40 epochs of 313 steps."""


def _off(
    found: NDArray[np.float64],
    truth: NDArray[np.float64],
    means: NDArray[np.float64],
    value: float,
    best: float,
) -> tuple[float, float, float]:
    """Median relative error of the prices that are not zero, relative error of the objective, violation."""
    active = truth > 1e-4
    price = float(np.median(np.abs(found - truth)[active] / truth[active]))
    return price, value / best - 1, max(0.0, float(means.max()) - BOUND)


def by_peer(
    make: Callable[..., Step], form: str, steps: int, seed: int, **options: Any
) -> tuple[Any, Any, float, float]:
    """Prices (averages over the last third), means of the groups, objective and CPU time."""
    columns = rare_sample()
    x, y, one_hot = (torch.tensor(columns[name]) for name in ("x", "y", "one_hot"))
    group, count = torch.tensor(columns["g"]), one_hot.shape[1]
    z = torch.cat([x, one_hot], 1)
    w = torch.zeros(z.shape[1], dtype=z.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(steps // 6, 1), 0.5)
    generator = torch.Generator().manual_seed(seed)

    def evaluate() -> Evaluated:
        i = torch.randint(len(y), (BATCH,), generator=generator)
        score = z[i] @ w
        sums = torch.zeros(count, dtype=z.dtype).index_add(0, group[i], score)
        sizes = torch.bincount(group[i], minlength=count)
        loss = ((score - y[i]) ** 2).mean()
        if form == "present":  # only groups in the batch have a value, and only their multipliers move
            present = sizes.nonzero().ravel()
            return Evaluated(loss, [sums[present] / sizes[present] - BOUND], rows=[present])
        return Evaluated(loss, [sums / sizes.clamp(min=1) - BOUND])  # an absent group counts as rate 0

    step = make(evaluate, [count], optimizer, **options)
    total, averaged = torch.zeros(count, dtype=z.dtype), 0
    start = time.process_time()
    for k in range(steps):
        step()
        schedule.step()
        if k >= 2 * steps // 3 and k % 10 == 0:
            total += step.multipliers()
            averaged += 1
    spent = time.process_time() - start
    with torch.no_grad():
        score = z @ w
        means = torch.zeros(count, dtype=z.dtype).index_add(0, group, score) / torch.bincount(group)
        value = float(((score - y) ** 2).mean())
    return (total / averaged).numpy(), means.numpy(), value, spent


def table(seeds: int = 1, steps: int = STEPS) -> Table:
    """Medians over the seeds; the violation is the largest."""
    result = Table(
        "rare-groups",
        ("method", "CPU time", "median error of prices", "objective", "violation on all rows", "seeds"),
    )
    problem = rare_problem()
    exact = problem.solve("cvxpy", progress=False)
    truth, best = np.atleast_1d(exact["rate"].multiplier), exact.objective

    def ours(seed: int) -> tuple[Any, Any, float, float]:
        for variable in problem.variables:
            variable.value = None
        start = time.process_time()
        # The problem is convex, and `solve()` alone exact: minibatches are asked for.
        found = problem.solve("lagrangian", batch=BATCH, seed=seed, progress=False)
        spent = time.process_time() - start
        return found["rate"].multiplier, np.asarray(found["rate"].value), found.objective, spent

    settings: tuple[tuple[str, str, Callable[[int], Any]], ...] = (
        ("ours: `solve(\"lagrangian\", batch=128)`", "torch", ours),
        ("Cooper, `IndexedMultiplier` of the groups present, lr 0.01, dual lr 0.001", "cooper-optim",
         lambda k: by_peer(cooper_step, "present", steps, k, dual_lr=0.001, indexed=True)),
        ("Cooper, `IndexedMultiplier`, plausible: lr 0.01, dual lr 0.01", "cooper-optim",
         lambda k: by_peer(cooper_step, "present", steps, k, dual_lr=0.01, indexed=True)),
        ("Cooper, one vector, absent groups as 0, lr 0.01, dual lr 0.001", "cooper-optim",
         lambda k: by_peer(cooper_step, "dense", steps, k, dual_lr=0.001)),
        ("humancompatible-train, ALM, absent groups as 0, lr 0.01, dual lr 0.001", "humancompatible-train",
         lambda k: by_peer(human_step, "dense", steps, k, dual_lr=0.001)),
    )  # fmt: skip
    for who, package, run in settings:
        if result.absent(package, who):
            continue
        runs = [run(seed) for seed in range(seeds)]
        offs = [_off(np.asarray(prices), truth, means, value, best) for prices, means, value, _ in runs]
        result.add(
            who, milliseconds(statistics.median(r[3] for r in runs)),
            f"{statistics.median(o[0] for o in offs):.1%}", f"{statistics.median(o[1] for o in offs):+.2%}",
            f"{max(o[2] for o in offs):.4f}", str(seeds),
        )  # fmt: skip
    return result
