"""`python -m benchmarks`: cost of constraints per step, scaling, minibatch estimates, coverage, routes."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import torch
from torch import nn

import constrain as cn
from benchmarks import coverage, kills, newton
from benchmarks.estimates import gap, rare_groups
from benchmarks.layers import layers
from benchmarks.timing import Ratio, alternate
from constrain import E, forall

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

ROWS, BATCH = 100_000, 256


def network() -> nn.Module:
    """32 features, 64 hidden units, one score per row."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))


def sample(groups: int, rows: int = ROWS) -> cn.Data:
    """Random rows in `groups` groups of about the same size."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 32, generator=g)
    y = (x[:, 0] + torch.randn(rows, generator=g) > 0).float()
    group = torch.arange(rows) % groups
    return cn.Data("rows", x=x, y=y, group=group)


def steps(
    problem: cn.Problem,
    net: nn.Module,
    D: cn.Data,
    *,
    graph: str = "off",
    fused: bool = True,
    batch: int = BATCH,
):
    """One constrained training step, as a function without arguments; `graph` as in `solve`."""
    lagrangian = problem.compile()
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    index = [slice(None)] if batch == len(D) else torch.randint(len(D), (64, batch))
    place = iter(range(10**9))

    def following() -> object:
        return D.rows(index[next(place) % len(index)])

    if graph != "off":
        made = lagrangian.training_step(optimizer, graph)
        return lambda: made(following())

    def step() -> None:
        loss = lagrangian(following())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lagrangian.ascend()

    return step


def plain(net: nn.Module, D: cn.Data):
    """The same step without constraints, as torch users write it."""
    optimizer = torch.optim.Adam(net.parameters())
    x, y = D.values("x"), D.values("y")
    index = torch.randint(len(D), (64, BATCH))
    place = iter(range(10**9))

    def step() -> None:
        rows = index[next(place) % 64]
        loss = nn.functional.binary_cross_entropy_with_logits(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def constrained(count: int, graph: str = "off") -> Ratio:
    """`count` constraints on means of the score over different conditions, written one by one."""
    D, net = sample(max(count, 10)), network()
    f = cn.Model(net, "f")
    score = f(D.x)
    bce = nn.functional.binary_cross_entropy_with_logits(score, D.y, reduction="none")
    relations = {f"group{k}": E(torch.sigmoid(score), given=D.group == k) <= 0.5 for k in range(count)}
    problem = cn.minimize(E(bce)).subject_to(**relations)
    return alternate(steps(problem, net, D, graph=graph), plain(network(), D))


def grouped(groups: int, graph: str = "off") -> Ratio:
    """One `by=` block of `groups` levels."""
    D, net = sample(groups), network()
    f = cn.Model(net, "f")
    bce = nn.functional.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    problem = cn.minimize(E(bce)).subject_to(rate=E(torch.sigmoid(f(D.x)), by=D.group) <= 0.5)
    return alternate(steps(problem, net, D, graph=graph), plain(network(), D))


def per_row(rows: int, graph: str = "off") -> Ratio:
    """One multiplier for each of `rows` rows."""
    D, net = sample(10, rows), network()
    f = cn.Model(net, "f")
    bce = nn.functional.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    problem = cn.minimize(E(bce)).subject_to(fit=forall(D, f(D.x) >= -5.0))
    return alternate(steps(problem, net, D, graph=graph), plain(network(), D))


def convex_routes() -> list[tuple[str, float, float]]:
    """Seconds of CPU time and error of the objective on the Adult score-gap problem, per route."""
    import adult
    import adult_data

    D = adult.sample(adult_data.load().train)
    found: list[tuple[str, float, float]] = []
    for method in ("augmented", "cvxpy"):
        problem = adult.score_gap(D, adult.linear())
        start = time.process_time()
        solution = problem.solve(method, progress=False)
        found.append((method, time.process_time() - start, abs(solution.objective - adult.GOLDEN["value"])))
    return found


def main() -> None:
    """Runs everything on one thread."""
    torch.set_num_threads(1)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{platform.machine()}, {versions}, one thread, CPU time")
    print("\none step over the unconstrained step (MLP 32-64-1, batch 256, Adam)")
    D = sample(10)
    print(f"  {'unconstrained against itself':<34} {alternate(plain(network(), D), plain(network(), D))}")
    for graph in ("off", "recorded", "compiled"):
        print("  steps in Python" if graph == "off" else f"  {graph} steps")
        for count in (1, 5, 1_000):
            print(f"    {f'{count:,} constraints, one by one':<34} {constrained(count, graph)}")
        for groups in (1, 100, 10_000):
            print(f"    {f'by= block of {groups:,} groups':<34} {grouped(groups, graph)}")
        for rows in (1_000, 1_000_000):
            print(f"    {f'a multiplier for each of {rows:,} rows':<34} {per_row(rows, graph)}")
    print("\nminibatch solutions against exact ones")
    for seed, found in enumerate(rare_groups()):
        print(f"  {f'50 rare groups, batch 128, seed {seed}':<34} {found}")
    for batch, found in gap().items():
        print(f"  {f'absolute gap, batch {batch}':<34} {found}")
    print("\ncoverage of 95 % intervals (simulated)")
    coverage.main()
    print("\nNewton's method, augmented Lagrangian and SLSQP: CPU time, steps, error")
    newton.show()
    print("\nquadratic program per row (n 50, batch 32), forward and backward")
    for measured in layers():
        print(f"  {measured}")
    print(f"\na run with checkpoints every {kills.INTERVAL} steps, killed at random moments")
    print(f"  {kills.measure()}")
    print("\nAdult score gap, 30162 rows, 96 decisions")
    for method, seconds, error in convex_routes():
        print(f"  {method:<12} {seconds:7.2f} s   objective off by {error:.1e}")


if __name__ == "__main__":
    main()
