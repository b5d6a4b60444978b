"""`python -m benchmarks.surrogates`: which surrogate a rate should have.

Three tables. The first trains problems with constraints on exact rates with every candidate, three seeds:
the violation on the training data in exact rates (a solver that ends infeasible has failed), and by how much
the objective exceeds the best one that a feasible run of any candidate reached. The second is a problem whose
optimum and price are known (the lemma of Neyman and Pearson). The third compares two ways to combine the
surrogates of a compound event, where the true rate and its gradient are known: the product of the parts, and
the surrogate of the least margin. About eleven minutes of one CPU thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E, P

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from constrain.language.surrogates import Surrogate

Sigmoid, Hinge, Power = cn.surrogate.Sigmoid, cn.surrogate.Hinge, cn.surrogate.Power
CANDIDATES: dict[str, Surrogate] = {
    "sigmoid, 0.05 spread": Sigmoid(temperature=0.05),
    "sigmoid, 0.1 spread": Sigmoid(temperature=0.1),
    "sigmoid, 0.25 spread": Sigmoid(temperature=0.25),
    "sigmoid, 0.5 spread": Sigmoid(temperature=0.5),
    "sigmoid, fixed at 0.25": Sigmoid(scale=0.25),
    "sigmoid, fixed at 1": Sigmoid(scale=1.0),
    "power 1, 0.5 spread": Power(order=1.0, width=0.5),
    "power 2, 0.5 spread": Power(order=2.0, width=0.5),
    "hinge, 0.25 spread": Hinge(margin=0.25),
    "hinge, 1 spread": Hinge(margin=1.0),
}
SEEDS = 3
FEASIBLE = 0.005
"""Violation of an exact rate up to which a run counts as feasible here."""


# ------------------------------------------------------------------------------------------ problems
def adult() -> cn.Data:
    """The training split of UCI Adult."""
    import adult_data

    rows = adult_data.load().train
    x, y = torch.tensor(rows.x).float(), torch.tensor(rows.y).float()
    return cn.Data("adult", x=x, y=y, sex=rows.sex, race=rows.race)


def cancer() -> cn.Data:
    """Breast cancer (Wisconsin) from scikit-learn, standardized: 569 rows."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return cn.Data("cancer", x=torch.tensor(x).float(), y=torch.tensor(1.0 - y).float())


def model(width: int, hidden: int) -> cn.Model:
    """A perceptron with one hidden layer, or a linear score."""
    layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1)] if hidden else [nn.Linear(width, 1)]
    return cn.Model(nn.Sequential(*layers, nn.Flatten(0)), "f")


def fair(D: cn.Data, s: Surrogate) -> cn.Problem:
    """Selection and recall of both sexes within 0.1 (hard predictions of a perceptron)."""
    score = model(95, 64)(D.x)

    def gap(**also: object) -> cn.Expr:
        given = [(D.sex == v) & (D.y == 1) if also else D.sex == v for v in ("Female", "Male")]
        return P(score > 0, given=given[0], surrogate=s) - P(score > 0, given=given[1], surrogate=s)

    return cn.minimize(loss(D, score)).subject_to(parity=abs(gap()) <= 0.1, odds=abs(gap(y=1)) <= 0.1)


def prescribed(D: cn.Data, s: Surrogate) -> cn.Problem:
    """The same rate of one half for every race; the smallest group has 231 rows."""
    score = model(95, 0)(D.x)
    return cn.minimize(loss(D, score)).subject_to(rate=P(score > 0, by=D.race, surrogate=s) == 0.5)


def powerful(D: cn.Data, s: Surrogate) -> cn.Problem:
    """Fewest misses at a false-alarm rate of 0.05; objective and constraint are rates."""
    score = model(95, 64)(D.x)
    misses, alarms = P(score <= 0, given=D.y == 1, surrogate=s), P(score > 0, given=D.y == 0, surrogate=s)
    return cn.minimize(misses).subject_to(false_alarm=alarms <= 0.05)


def screening(D: cn.Data, s: Surrogate) -> cn.Problem:
    """Fewest false alarms at a recall of 0.99, on a small sample."""
    score = model(30, 0)(D.x)
    alarms, recall = P(score > 0, given=D.y == 0, surrogate=s), P(score > 0, given=D.y == 1, surrogate=s)
    return cn.minimize(alarms + 0.1 * loss(D, score)).subject_to(recall=recall >= 0.99)


def precise(D: cn.Data, s: Surrogate) -> cn.Problem:
    """Precision at least 0.85 and a selection of at least 0.1; the hinge is multiplied out."""
    score = model(95, 64)(D.x)
    alarm = score > 0
    selected = P(alarm, surrogate=s)
    if isinstance(s, Hinge):
        wrong = P(alarm & (D.y == 0), surrogate=s) <= 0.15 * selected
        return cn.minimize(loss(D, score)).subject_to(precision=wrong, selected=selected >= 0.1)
    precision = P(D.y == 1, given=alarm, surrogate=s)
    return cn.minimize(loss(D, score)).subject_to(precision=precision >= 0.85, selected=selected >= 0.1)


def decided(D: cn.Data, s: Surrogate) -> cn.Problem:
    """At most 0.15 of the rows undecided, and at most 0.1 confidently wrong: compound events."""
    score = model(95, 64)(D.x)
    wrong = ((score > 1) & (D.y == 0)) | ((score < -1) & (D.y == 1))
    undecided = P((score >= -1) & (score <= 1), surrogate=s) <= 0.15
    return cn.minimize(loss(D, score)).subject_to(undecided=undecided, wrong=P(wrong, surrogate=s) <= 0.1)


def loss(D: cn.Data, score: cn.Expr) -> cn.Expr:
    """Average cross entropy."""
    return E(F.binary_cross_entropy_with_logits(score, D.y, reduction="none"))


class Task(NamedTuple):
    """Data, problem and options of `solve`."""

    data: Callable[[], cn.Data]
    make: Callable[[cn.Data, Surrogate], cn.Problem]
    options: Mapping[str, object]


PROBLEMS = {
    "fair": Task(adult, fair, {"epochs": 20}),
    "prescribed": Task(adult, prescribed, {"epochs": 150, "batch": 4096, "lr": 1e-2, "gain": 10.0}),
    "powerful": Task(adult, powerful, {"epochs": 20, "warmup": 0}),
    "screening": Task(cancer, screening, {"epochs": 250}),
    "precise": Task(adult, precise, {"epochs": 20}),
    "decided": Task(adult, decided, {"epochs": 20}),
}


# ------------------------------------------------------------------------------------------ training
class Run(NamedTuple):
    """One run: largest violation of a constraint in exact rates, and the objective."""

    violation: float
    objective: float


def train(problem: str, surrogate: Surrogate, seed: int, D: cn.Data) -> Run:
    """Solves with the options of the problem; all else is left to the defaults of training."""
    torch.manual_seed(seed)
    built = PROBLEMS[problem].make(D, surrogate)
    solution = built.solve("lagrangian", seed=seed, progress=False, **PROBLEMS[problem].options)
    worst = max(float(np.max(solution[name].violation)) for name in built.constraints)
    return Run(worst, float(solution.objective))


def report(problem: str, seeds: int) -> dict[str, list[Run]]:
    """Trains one problem with every candidate and prints its table."""
    task = PROBLEMS[problem]
    D = task.data()
    options = ", ".join(f"{name}={value}" for name, value in task.options.items())
    print(f"\n{problem} ({options}): {(task.make.__doc__ or '').splitlines()[0]}")
    print(f"  {'surrogate':<24} {'violation':>9} {'worst':>7} {'objective':>10} {'above best':>11}")
    runs = {name: [train(problem, s, k, D) for k in range(seeds)] for name, s in CANDIDATES.items()}
    feasible = [r.objective for found in runs.values() for r in found if r.violation <= FEASIBLE]
    best = min(feasible, default=math.nan)
    for name, found in runs.items():
        violations = [r.violation for r in found]
        objective = statistics.median(r.objective for r in found)
        line = f"  {name:<24} {statistics.median(violations):9.4f} {max(violations):7.4f} {objective:10.4f}"
        print(f"{line} {objective - best:+11.4f}", flush=True)
    return runs


def summary(found: dict[str, dict[str, list[Run]]]) -> None:
    """Per candidate: runs that ended feasible, the mean of its violations, its worst one."""
    print(
        f"\nall problems: runs that violate nothing by more than {FEASIBLE}, and the violations of all runs"
    )
    for name in CANDIDATES:
        runs = [r for table in found.values() for r in table[name]]
        violations = [r.violation for r in runs]
        good = sum(v <= FEASIBLE for v in violations)
        line = f"  {name:<24} {good:3d} of {len(runs)}   mean {statistics.fmean(violations):.4f}"
        print(f"{line}   worst {max(violations):.4f}")


# ------------------------------------------------------------------------------------------ prices
def prices() -> None:
    """The most powerful test of two normal samples: misses and price against those of the lemma."""
    import neyman_pearson

    print("\nNeyman-Pearson, one dimension: false alarms, misses and the price of false alarms")
    print(f"  {'surrogate':<24} {'alarms':>7} {'misses':>7} {'lemma':>7}   {'price':>6} {'lemma':>6}")
    _, alpha, f = neyman_pearson.problem()
    test, _, _ = neyman_pearson.problem()
    (D,) = test.populations
    alarm = f(D.x).squeeze(-1) > 0
    for name, s in CANDIDATES.items():
        misses, alarms = P(~alarm, given=D.y == 1, surrogate=s), P(alarm, given=D.y == 0, surrogate=s)
        problem = cn.minimize(misses).subject_to(alarms=alarms <= alpha)
        for size in neyman_pearson.SIZES:
            alpha.value = size
            nn.init.ones_(f.module.weight)
            nn.init.zeros_(f.module.bias)
            solution = problem.solve("lagrangian", seed=0, progress=False)
            threshold, shift = statistics.NormalDist().inv_cdf(1 - size), neyman_pearson.SHIFT
            least = statistics.NormalDist().cdf(threshold - shift)
            price = math.exp(threshold * shift - shift**2 / 2)
            line = (
                f"  {name:<24} {float(solution['alarms'].value):7.4f} {solution.objective:7.4f} {least:7.4f}"
            )
            print(f"{line}   {float(solution['alarms'].multiplier):6.3f} {price:6.3f}", flush=True)


# ------------------------------------------------------------------------------------ compound events
def compound_bias(rows: int = 200_000) -> None:
    """Bias of the surrogate of `a1 & ... & ak` and of its gradient, for normal margins."""
    print("\na1 & ... & ak, normal margins with mean 0.5, sigmoid of 0.25 spread")
    print(f"  {'k':>2} {'correlation':>11} {'rate':>6}   {'bias of the value':^19}   {'gradient / true':^17}")
    print(f"  {'':>21}   {'product':>9} {'least':>9}   {'product':>8} {'least':>8}")
    generator = np.random.default_rng(0)
    width, window = 0.25, 0.05
    for k in (2, 4, 8):
        for correlation in (0.0, 0.5, 0.9, 1.0):
            common, own = generator.normal(size=(rows, 1)), generator.normal(size=(rows, k))
            margins = 0.5 + math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
            least = margins.min(1)
            rate, slope = (least > 0).mean(), (np.abs(least) < window).mean() / (2 * window)
            parts = 1 / (1 + np.exp(-margins / width))
            product, soft = parts.prod(1), 1 / (1 + np.exp(-least / width))
            by_product = (product * (1 - parts).sum(1)).mean() / width
            by_least = (soft * (1 - soft)).mean() / width
            values = f"{product.mean() - rate:+9.3f} {soft.mean() - rate:+9.3f}"
            slopes = f"{by_product / slope:8.2f} {by_least / slope:8.2f}"
            print(f"  {k:2d} {correlation:11.1f} {rate:6.3f}   {values}   {slopes}")


def main() -> None:
    """Runs everything on one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    compound_bias()
    prices()
    summary({name: report(name, arguments.seeds) for name in arguments.problems})
    print(f"\n{time.process_time() - start:.0f} s of CPU time")


if __name__ == "__main__":
    main()
