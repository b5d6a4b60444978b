"""Do 95 % intervals cover the truth 95 % of the time? A simulation of every kind of interval.

Statistics are evaluated on fresh samples at a fixed point, which is what a hold-out is; their population
values are known in closed form or by quadrature. Multipliers are those of least squares under a bound on the
loss of a group: each replication draws a sample, solves it exactly, and asks for standard errors; the
population problem is solved from its known second moments.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

import constrain as cn
from constrain import E, P
from constrain.diagnostics.binomial import wilson

if TYPE_CHECKING:
    from collections.abc import Callable

    from constrain.solution.noise import RunError

SHARE, SHIFT, LEVEL = 0.3, 0.5, 0.9
"""Share of group 1, shift of its mean, level of the CVaR."""

BERNSTEIN = ", empirical Bernstein"


@dataclass(frozen=True)
class Coverage:
    """How often intervals covered.

    Attributes:
        covered: share of the intervals that contain the truth.
        error: standard error of that share.
        count: replications with an interval.
        of: replications.
    """

    covered: float
    error: float
    count: int
    of: int

    def __str__(self) -> str:
        kept = "" if self.count == self.of else f", given in {self.count} of {self.of}"
        return f"{100 * self.covered:5.1f} % ± {100 * self.error:.1f}{kept}"


def _share(hits: list[bool], of: int) -> Coverage:
    p = float(np.mean(hits)) if hits else float("nan")
    return Coverage(p, float(np.sqrt(p * (1 - p) / max(1, len(hits)))), len(hits), of)


# ------------------------------------------------------------------------------------------ statistics
def _rows(rng: np.random.Generator, rows: int) -> cn.Data:
    group = rng.random(rows) < SHARE
    x = rng.normal(size=rows) + SHIFT * group
    return cn.Data("d", x=x, z=rng.exponential(size=rows) + 0.5 * x**2, g=group.astype(int))


def _truths() -> dict[str, float]:
    def density(t: float) -> float:
        return (1 - SHARE) * norm.pdf(t) + SHARE * norm.pdf(t - SHIFT)

    def above(t: float) -> float:
        return (1 - SHARE) * norm.sf(t) + SHARE * norm.sf(t - SHIFT)

    threshold = brentq(lambda t: above(t) - (1 - LEVEL), -5, 10)
    square = 1 + SHARE * SHIFT**2
    return {
        "mean": SHARE * SHIFT,
        "conditional mean": SHIFT,
        "rate": above(1.0),
        "difference of rates": norm.sf(1 - SHIFT) - norm.sf(1),
        "ratio": SHARE * SHIFT / (1 + 0.5 * square),
        "CVaR": quad(lambda t: t * density(t), threshold, 15)[0] / (1 - LEVEL),
    }


def statistics(rows: int = 500, replications: int = 1000, seed: int = 0) -> dict[str, Coverage]:
    """Coverage of the intervals of a hold-out of this many rows, by statistic."""
    rng = np.random.default_rng(seed)
    D, w = _rows(rng, 200), cn.Variable((), "w")
    x = D.x * w
    problem = cn.minimize((w - 1) ** 2).subject_to(
        **{
            "mean": E(x) <= 9,
            "conditional mean": E(x, given=D.g == 1) <= 9,
            "rate": P(x > 1) <= 1,
            "difference of rates": P(x > 1, given=D.g == 1) - P(x > 1, given=D.g == 0) <= 9,
            "ratio": E(x) / E(D.z) <= 9,
            "CVaR": cn.CVaR(x, LEVEL) <= 9,
        }
    )
    solution = problem.solve("augmented", progress=False)
    truths = _truths()
    hits: dict[str, list[bool]] = {}
    events = {"rate": (0.0, 1.0), "difference of rates": (0.0, 1.0)}
    for _ in range(replications):
        sample = _rows(rng, rows)
        for bounded, suffix in (({}, ""), (events, BERNSTEIN)):
            found = solution.evaluate(sample, bounded=bounded)
            for name in bounded or truths:
                low, high = found[name].interval
                hits.setdefault(name + suffix, []).append(bool(low <= truths[name] <= high))
    return {name: _share(own, replications) for name, own in hits.items()}


THRESHOLDS = {"common": 1.0, "rare": 2.4}
"""What x is compared with in the rates of few rows."""


def few(rows: int, replications: int = 1000, seed: int = 3) -> dict[str, tuple[Coverage, Coverage, float]]:
    """Coverage of the intervals of rates over few rows, that of Wilson's, and how much wider they are.

    `common` and `rare` are rates of all rows of a hold-out, `group` is one of a group that has about so many.
    """
    rng = np.random.default_rng(seed)
    D, w = _rows(rng, 200), cn.Variable((), "w")
    x = D.x * w
    rates = {name: P(x > t) <= 1 for name, t in THRESHOLDS.items()}
    whole = cn.minimize((w - 1) ** 2).subject_to(**rates).solve("augmented", progress=False)
    among = P(x > THRESHOLDS["common"], given=D.g == 1) <= 1
    part = cn.minimize((w - 1) ** 2).subject_to(group=among).solve("augmented", progress=False)
    truths = {n: (1 - SHARE) * norm.sf(t) + SHARE * norm.sf(t - SHIFT) for n, t in THRESHOLDS.items()}
    truths["group"] = norm.sf(THRESHOLDS["common"] - SHIFT)
    hits: dict[str, list[tuple[bool, bool, float, float]]] = {name: [] for name in truths}
    for _ in range(replications):
        own = {
            "whole": whole.evaluate(_rows(rng, rows)),
            "part": part.evaluate(_rows(rng, round(rows / SHARE))),
        }
        for name, truth in truths.items():
            found = own["part" if name == "group" else "whole"][name]
            (low, high), (left, right) = found.interval, wilson(found.value, found.smallest)
            hits[name].append((low <= truth <= high, bool(left <= truth <= right), high - low, right - left))
    return {
        name: (
            _share([h[0] for h in own], replications),
            _share([h[1] for h in own], replications),
            float(np.sum([h[2] for h in own]) / np.sum([h[3] for h in own])),
        )
        for name, own in hits.items()
    }


def fitted(
    train: int = 200, rows: int = 500, replications: int = 1000, seed: int = 2
) -> tuple[Coverage, Coverage]:
    """Coverage of the interval of the loss of a fitted model, on a hold-out and on its own training rows.

    Ten weights are fitted by least squares in every replication; the loss that the fitted ones have in the
    population is known. On the training rows it is too small, and the interval leaves it out too often.
    """
    rng = np.random.default_rng(seed)
    size, noise = 10, 0.5
    coefficients = np.linspace(-1, 1, size)
    w = cn.Variable(size, "w")
    hits: dict[str, list[bool]] = {"held": [], "train": []}
    for _ in range(replications):
        samples: dict[str, cn.Data] = {}
        for name, count in (("train", train), ("held", rows)):
            x = rng.normal(size=(count, size))
            y = x @ coefficients + noise * rng.normal(size=count)
            samples[name] = cn.Data("d", x=x, y=y)
            if name == "train":
                w.value = np.linalg.lstsq(x, y, rcond=None)[0]
        D = samples["train"]
        problem = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(loss=E((D.x @ w - D.y) ** 2) <= 9)
        truth = float(np.sum((w.value - coefficients) ** 2)) + noise**2
        for name, sample in samples.items():
            low, high = problem.evaluate(sample)["loss"].interval
            hits[name].append(bool(low <= truth <= high))
    return _share(hits["held"], replications), _share(hits["train"], replications)


# ----------------------------------------------------------------------------------------- multipliers
WEIGHTS = np.array([[1.0, 0.5, 0.0], [0.2, 1.0, 0.3]])
"""Coefficients by group of (x1, x2, 1) in the outcome."""


def _solved(moments: list[np.ndarray], share: float, bound: float) -> tuple[np.ndarray, float]:
    """Weights and multiplier of least squares under a bound on the loss of group 1.

    Args:
        moments: per group second moments of (x1, x2, 1, y).
        share: of group 1.
        bound: of its mean squared error.
    """

    def at(lam: float) -> tuple[np.ndarray, float]:
        total = (1 - share) * moments[0] + (share + lam) * moments[1]
        w = np.linalg.solve(total[:3, :3], total[:3, 3])
        v = np.append(w, -1.0)
        return w, float(v @ moments[1] @ v)

    lam = brentq(lambda t: at(t)[1] - bound, 0, 1e4, xtol=1e-14) if at(0)[1] > bound else 0.0
    return at(lam)[0], lam


def _sample(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    group = (rng.random(rows) < SHARE).astype(int)
    x = np.c_[rng.normal(size=(rows, 2)) + SHIFT * group[:, None], np.ones(rows)]
    return x, np.sum(x * WEIGHTS[group], axis=1) + 0.5 * rng.standard_t(8, size=rows), group


def _population() -> list[np.ndarray]:
    """Second moments of (x1, x2, 1, y) by group."""
    found: list[np.ndarray] = []
    for g in (0, 1):
        mean = np.array([SHIFT * g, SHIFT * g, 1.0])
        second = np.diag([1.0, 1.0, 0.0]) + np.outer(mean, mean)
        mix = np.vstack([np.eye(3), WEIGHTS[g]])
        full = mix @ second @ mix.T
        full[3, 3] += 0.25 * 8 / 6  # variance of Student's t with 8 degrees of freedom is 8/6
        found.append(full)
    return found


def multipliers(
    bound: float = 0.5, rows: int = 2000, replications: int = 500, seed: int = 1
) -> tuple[Coverage, float, float, float]:
    """Coverage of the interval of a multiplier; the truth, the spread of estimates, the mean error."""
    rng = np.random.default_rng(seed)
    truth = _solved(_population(), SHARE, bound)[1]
    hits: list[bool] = []
    values: list[float] = []
    errors: list[float] = []
    for _ in range(replications):
        x, y, group = _sample(rng, rows)
        z = np.c_[x, y]
        own = [z[group == g].T @ z[group == g] / (group == g).sum() for g in (0, 1)]
        weights, lam = _solved(own, float(group.mean()), bound)
        values.append(lam)
        D, w = cn.Data("d", x=x, y=y, g=group), cn.Variable(3, "w")
        loss = (D.x @ w - D.y) ** 2
        problem = cn.minimize(E(loss)).subject_to(group=E(loss, given=D.g == 1) <= bound)
        record = problem.kkt({"w": weights}, {"group": lam}, order=2)
        error = float(record.standard_errors.get("group", np.array(np.nan)))
        if np.isfinite(error):
            low, high = record.interval("group")
            hits.append(bool(low <= truth <= high))
            errors.append(error)
    spread = float(np.std(values))
    return _share(hits, replications), truth, spread, float(np.mean(errors)) if errors else float("nan")


# ------------------------------------------------------------------------------------------------ runs
def runs(epochs: int = 1200, replications: int = 32) -> tuple[Coverage, float, float]:
    """Coverage of the interval of the averaged multiplier of a run that goes on from a trained network.

    The runs differ in their batches only, and have a constant rate. The truth is the mean over all of them.

    Returns:
        The coverage, the spread of the averages over runs, and the mean error.
    """
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(200, 2)), (rng.random(200) < 0.4).astype(int)
    y = np.sin(2 * x[:, 0]) + np.where(group == 1, x[:, 1], 0.0) + 0.3 * rng.normal(size=200)
    D = cn.Data("d", x=x, y=y, g=group)
    torch.manual_seed(0)
    layers = torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1), torch.nn.Flatten(0)
    f = cn.Model(torch.nn.Sequential(*layers).double(), "f")
    low = E(f(D.x), given=D.g == 1) >= 0.4
    problem = cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(low=low)
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    options = {"batch": 50, "lr": 0.01, "rate": 0.05, "scheduler": constant, "progress": False}
    first = problem.solve("lagrangian", epochs=900, seed=999, **options)
    trained = copy.deepcopy(f.module.state_dict())
    found: list[RunError] = []
    for seed in range(replications):
        f.module.load_state_dict(trained)
        own = problem.solve("lagrangian", epochs=epochs, seed=seed, start=first, **options)
        found.append(own.run_errors()["low"])
    values = np.array([e.value for e in found])
    given = [e for e in found if not e.reason]
    hits = [bool(e.interval()[0] <= values.mean() <= e.interval()[1]) for e in given]
    error = float(np.mean([e.error for e in given])) if given else float("nan")
    return _share(hits, replications), float(np.std(values, ddof=1)), error


def _print_statistics() -> None:
    for name, found in statistics().items():
        print(f"  {name:<34} {found}")


def _print_few() -> None:
    for rows in (10, 20, 39):
        for name, (exact, score, wider) in few(rows).items():
            label = f"rate, {rows} rows, {name}"
            print(f"  {label:<34} {exact}; Wilson's {score}, {wider:.2f} times as wide")


def _print_fitted() -> None:
    held, own = fitted()
    print(f"  {'loss of a fitted model, held out':<34} {held}")
    print(f"  {'the same on its training rows':<34} {own}")


def _print_multipliers() -> None:
    for bound in (0.45, 0.5, 0.55):
        found, truth, spread, error = multipliers(bound)
        label = f"multiplier {truth:.3f}"
        print(f"  {label:<34} {found}; spread {spread:.3f}, mean standard error {error:.3f}")


def _print_runs() -> None:
    found, spread, error = runs()
    label = "multiplier of a run, trained on"
    print(f"  {label:<34} {found}; spread {spread:.5f}, mean error {error:.5f}")


PARTS: dict[str, Callable[[], None]] = {
    "statistics": _print_statistics,
    "few": _print_few,
    "fitted": _print_fitted,
    "multipliers": _print_multipliers,
    "runs": _print_runs,
}


def main() -> None:
    """Prints the table of docs/how-to/kkt.md, or the parts of it that are asked for."""
    parser = argparse.ArgumentParser(description="Do 95 % intervals cover the truth 95 % of the time?")
    parser.add_argument("part", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; all by default")
    chosen: list[str] = parser.parse_args().part
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}: one of {', '.join(PARTS)}")
    for name in chosen:
        PARTS[name]()


if __name__ == "__main__":
    main()
