"""Smallest conflicts, least relaxations and certificates against brute force, HiGHS and the definition."""

from __future__ import annotations

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

import constrain as cn
from constrain import E, forall


# ---------------------------------------------------------------------------- random linear programs
def random_rows(seed):
    """A x <= b and the lower bounds of x (some free), infeasible more often than not."""
    rng = np.random.default_rng(seed)
    count, size = int(rng.integers(4, 7)), int(rng.integers(2, 4))
    a = rng.integers(-3, 4, size=(count, size)).astype(float)
    a[np.all(a == 0, axis=1), 0] = 1.0
    return a, rng.integers(-4, 3, size=count).astype(float), bool(rng.integers(2))


def written(a, b, nonneg):
    x = cn.Variable(a.shape[1], "x", nonneg=nonneg)
    return cn.minimize(cn.sum(x)).subject_to(
        **{f"c{i}": row @ x <= r for i, (row, r) in enumerate(zip(a, b, strict=True))}
    )


def holds(a, b, bounds):
    """Whether A x <= b has a point within these bounds (HiGHS)."""
    return optimize.linprog(np.zeros(len(bounds)), A_ub=a, b_ub=b, bounds=bounds, method="highs").status == 0


def members(a, nonneg):
    """All that can be in a conflict: the constraints, and the bound of every variable."""
    names = [f"c{i}" for i in range(len(a))]
    return names, [f"x[{j}] >= 0" for j in range(a.shape[1])] if nonneg else []


def excluded(a, b, nonneg, chosen):
    names, _ = members(a, nonneg)
    rows = [i for i, name in enumerate(names) if name in chosen]
    bounds = [(0.0 if f"x[{j}] >= 0" in chosen else None, None) for j in range(a.shape[1])]
    return not holds(a[rows], b[rows], bounds) if rows else False


CASES = [(seed, *random_rows(seed)) for seed in range(40)]
WHOLE = [(None if not c[3] else 0.0, None) for c in CASES]
INFEASIBLE = [
    c for c, limit in zip(CASES, WHOLE, strict=True) if not holds(c[1], c[2], [limit] * c[1].shape[1])
]
FEASIBLE = [c for c, limit in zip(CASES, WHOLE, strict=True) if holds(c[1], c[2], [limit] * c[1].shape[1])]


@pytest.mark.parametrize(("seed", "a", "b", "nonneg"), INFEASIBLE[:7])
def test_random_linear_programs(seed, a, b, nonneg):
    found = written(a, b, nonneg).diagnose_infeasible()
    assert found.verdict == "infeasible"
    assert found.minimal
    # irreducible, and one of all smallest conflicting sets, by brute force over all subsets
    names, bounds = members(a, nonneg)
    everything = [*names, *bounds]
    conflicts = [
        set(s)
        for size in range(1, len(everything) + 1)
        for s in itertools.combinations(everything, size)
        if excluded(a, b, nonneg, s)
    ]
    smallest = [s for s in conflicts if not any(t < s for t in conflicts)]
    assert set(found.conflict) in smallest
    assert set(found.names) == set(found.conflict) & set(names)

    # least total violation in units of 1 + |bound|
    units = 1.0 + np.abs(b)
    m, k = a.shape
    limits = [(0.0 if nonneg else None, None)] * k + [(0.0, None)] * m
    phase = optimize.linprog(
        np.r_[np.zeros(k), 1 / units], A_ub=np.c_[a, -np.eye(m)], b_ub=b, bounds=limits, method="highs"
    )
    assert found.total == pytest.approx(phase.fun, rel=1e-7)
    x = found.point["x"]
    needed = np.maximum(a @ x - b, 0.0)
    assert sum(found.entries.values()) == pytest.approx(needed.sum(), rel=1e-6)

    # fewest constraints to relax, by brute force
    own = [limits[0]] * k
    least = next(
        size
        for size in range(1, m + 1)
        if any(
            holds(np.delete(a, list(s), axis=0), np.delete(b, list(s)), own)
            for s in itertools.combinations(range(m), size)
        )
    )
    assert found.fewest is not None
    assert len(found.fewest) == least
    relaxed = b + np.array([found.fewest.get(name, 0.0) for name in names]) + 1e-6
    assert holds(a, relaxed, own)

    # relaxing one alone by its amount is enough, by a little less it is not
    for name, by in found.alone.items():
        i = names.index(name)
        step = np.eye(m)[i]
        if math.isinf(by):
            assert not holds(np.delete(a, i, axis=0), np.delete(b, i), own)
            continue
        assert holds(a, b + (by + 1e-6) * step, own)
        assert not holds(a, b + 0.999 * by * step, own)


@pytest.mark.parametrize(("seed", "a", "b", "nonneg"), INFEASIBLE[7:12])
def test_certificates_of_linear_programs(seed, a, b, nonneg):
    """Farkas: y >= 0, A'y = 0 (>= 0 where x >= 0), and y'b < 0."""
    proof = written(a, b, nonneg).diagnose_infeasible().certificate
    assert proof is not None
    assert proof.verified
    y = np.array([proof.multipliers.get(f"c{i}", 0.0) for i in range(len(a))])
    assert (y >= 0).all()
    slope = a.T @ y
    assert (slope >= -1e-9).all() if nonneg else np.abs(slope).max() <= 1e-9
    assert -(y @ b) > 0
    assert -(y @ b) == pytest.approx(proof.value, rel=1e-9)
    used = {f"x[{j}] >= 0" for j in np.flatnonzero(slope > 1e-8)}
    assert set(proof.bounds) == (used if nonneg else set())


@pytest.mark.parametrize(("seed", "a", "b", "nonneg"), FEASIBLE[:6])
def test_feasible_ones_stay_silent(seed, a, b, nonneg):
    found = written(a, b, nonneg).diagnose_infeasible()
    assert found.feasible
    assert not found.conflict
    assert found.certificate is None
    assert found.advice == ""


@pytest.mark.parametrize(("seed", "a", "b", "nonneg"), INFEASIBLE[:3])
def test_relaxed_twins_stay_silent(seed, a, b, nonneg):
    """What the diagnosis advises makes the problem feasible."""
    found = written(a, b, nonneg).diagnose_infeasible()
    moved = b + np.array([found.amounts.get(f"c{i}", 0.0) for i in range(len(b))]) + 1e-5
    assert written(a, moved, nonneg).diagnose_infeasible().feasible


# ----------------------------------------------------------------------------- convex, not linear
def disks(centers, radii):
    v = cn.Variable(2, "v")
    return cn.find().subject_to(
        **{
            f"d{i}": cn.sum_squares(v - c) <= r * r
            for i, (c, r) in enumerate(zip(centers, radii, strict=True))
        }
    )


@pytest.mark.parametrize("seed", range(4))
def test_quadratic_constraints(seed):
    """Disks in the plane: pairs and triples (Helly) are the only smallest conflicts."""
    rng = np.random.default_rng(seed)
    centers, radii = rng.normal(size=(5, 2)) * 1.2, rng.uniform(0.7, 1.2, size=5)
    v = cp.Variable(2)

    def together(chosen):
        depth = cp.Problem(
            cp.Minimize(cp.max(cp.hstack([cp.sum_squares(v - centers[i]) - radii[i] ** 2 for i in chosen])))
        )
        return depth.solve(solver="CLARABEL") <= 1e-7

    found = disks(centers, radii).diagnose_infeasible()
    if together(range(5)):
        assert found.feasible
        return
    chosen = [int(name[1:]) for name in found.conflict]
    assert not together(chosen)
    assert len(chosen) <= 3
    assert all(together([i for i in chosen if i != out]) for out in chosen)
    slacks = cp.Variable(5, nonneg=True)
    rules = [cp.sum_squares(v - c) - r * r <= s for c, r, s in zip(centers, radii, slacks, strict=True)]
    phase = cp.Problem(cp.Minimize(slacks @ (1 / (1 + radii**2))), rules)
    assert found.total == pytest.approx(phase.solve(solver="CLARABEL"), rel=1e-6)
    # the certificate: sum y (|v - c|^2 - r^2) is positive at its own minimum, hence everywhere
    proof = found.certificate
    assert proof is not None
    assert proof.verified
    y = np.array([proof.multipliers.get(f"d{i}", 0.0) for i in range(5)])
    lowest = y @ centers / y.sum()
    value = float(y @ (((lowest - centers) ** 2).sum(axis=1) - radii**2))
    assert value == pytest.approx(proof.value, rel=1e-5)
    assert value > 0


# ------------------------------------------------------------------------------- names of all kinds
def test_entries_levels_rows_and_bounds_are_named():
    x = cn.Variable(4, "x", bounds=(0.0, 2.0))
    flow = cn.find().subject_to(flow=x[:3] - x[1:] == np.array([1.0, 1.0, 1.0]), start=x[3] >= 0.5)
    found = flow.diagnose_infeasible()
    assert found.conflict == ("flow[1]", "flow[2]", "start", "x[1] <= 2")
    assert found.bounds == ("x[1] <= 2",)

    D = cn.Data("people", x=[1.0, 3.0, 3.0, 6.0], sex=["F", "M", "F", "M"])
    w, cap = cn.Variable((), "w"), cn.Parameter("cap", 0.5)
    rates = cn.find().subject_to(rate=E(D.x * w, by=D.sex) == 1.0, cap=w <= cap + 1)
    assert set(rates.diagnose_infeasible().conflict) == {"rate[sex=F]", "rate[sex=M]"}
    rows = cn.find().subject_to(fit=forall(D.where(D.sex == "F"), D.x * w >= 3), cap=w <= cap)
    found = rows.diagnose_infeasible()
    assert found.names == ("fit", "cap")
    assert found.conflict[0] in ("fit[row 0]", "fit[row 2]")
    assert found.parameters == {"cap": 0.5}
    assert found.columns == ("people.sex", "people.x")
    assert found.alone == {"fit": pytest.approx(2.5), "cap": pytest.approx(2.5)}
    assert rows.diagnose_infeasible(params={"cap": 4.0}).feasible
    other = cn.Data("people", x=[6.0, 2.0, 6.0], sex=["F", "M", "F"])
    assert rows.diagnose_infeasible(data=other).feasible


def test_sides_of_a_range():
    w = cn.Variable((), "w")
    found = cn.find().subject_to(band=abs(w) <= 1, far=w >= 3).diagnose_infeasible()
    assert found.conflict == ("band (upper side)", "far")
    assert found.advice == "relax band by 2.0000 or far by 2.0000 and it becomes feasible"


def test_units_decide_who_gives_way():
    w = cn.Variable((), "w")
    problem = cn.find().subject_to(low=(w <= 0).scale(100.0), high=w >= 3)
    found = problem.diagnose_infeasible()
    assert found.amounts == {"low": pytest.approx(3.0)}
    assert found.total == pytest.approx(0.03)


def test_what_may_give_way_excludes_nothing():
    w = cn.Variable((), "w", nonneg=True)
    problem = cn.minimize(w).subject_to(a=(w <= -1).relax(cost=cn.linear(1.0)))
    assert problem.diagnose_infeasible().feasible
    found = problem.subject_to(b=w <= -2).diagnose_infeasible()
    assert found.conflict == ("b", "w >= 0")


def test_integers():
    k = cn.Variable((), "k", integer=True)
    found = cn.minimize(k).subject_to(a=2 * k >= 1, b=2 * k <= 1.5).diagnose_infeasible()
    assert found.verdict == "infeasible"
    assert found.conflict == ("a", "b")
    assert found.integers == ("k",)
    assert found.alone == {"a": pytest.approx(1.0), "b": pytest.approx(0.5)}
    assert found.certificate is None
    assert cn.find().subject_to(a=2 * k >= 1).diagnose_infeasible().feasible


def test_two_conflicts_need_two_relaxations():
    x = cn.Variable(2, "x", nonneg=True)
    found = cn.find().subject_to(
        a=x[0] >= 2, b=x[0] <= 1, c=x[1] >= 5, d=x[1] <= 1, e=cn.sum(x) <= 20
    ).diagnose_infeasible()  # fmt: skip
    assert len(found.conflict) == 2
    assert all(math.isinf(by) for by in found.alone.values())
    assert found.fewest is not None
    assert set(found.fewest) <= {"a", "b", "c", "d"}
    assert len(found.fewest) == 2
    assert "fewest      2" in str(found)


# ----------------------------------------------------------------------------------- not convex
def test_evidence_is_no_proof():
    v = cn.Variable(2, "v")
    problem = cn.minimize(v[0]).subject_to(
        ring=cn.sum_squares(v) >= 4, disk=cn.sum_squares(v) <= 1, free=v[0] <= 3
    )
    v.value = np.array([0.3, 0.4])
    found = problem.diagnose_infeasible(starts=2)
    assert v.value == pytest.approx([0.3, 0.4])
    assert found.verdict == "likely_infeasible"
    assert found.conflict == ("ring", "disk")
    assert found.certificate is None
    assert found.evidence is not None
    assert found.evidence.totals == pytest.approx((0.6, 0.6), rel=1e-4)
    assert found.alone == {"ring": pytest.approx(3.0, rel=1e-4), "disk": pytest.approx(3.0, rel=1e-4)}
    assert "prov" not in str(found)
    wider = cn.minimize(v[0]).subject_to(ring=cn.sum_squares(v) >= 4, disk=cn.sum_squares(v) <= 9)
    assert wider.diagnose_infeasible().feasible


@pytest.mark.parametrize("options", [{"method": "augmented"}, {"epochs": 60}])
def test_networks_are_left_as_they_are(options):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    D = cn.Data("d", x=x, y=x[:, 0] * x[:, 1])
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    f = cn.Model(net, "f")
    e = f(D.x)[..., 0]
    problem = cn.minimize(E((e - D.y) ** 2)).subject_to(low=E(e) <= 0.1, high=E(e) >= 0.5)
    before = {k: t.clone() for k, t in net.state_dict().items()}
    found = problem.diagnose_infeasible(starts=1, solves=6, **options)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    assert found.verdict == "likely_infeasible"
    assert found.conflict == ("low", "high")
    if "method" in options:  # to its last digits
        assert found.alone["high"] == pytest.approx(0.4, abs=1e-4)


# ------------------------------------------------------------------------------------- the report
def test_the_report_names_the_conflict():
    x = cn.Variable(2, "x", nonneg=True)
    problem = cn.minimize(cn.sum(x)).subject_to(demand=cn.sum(x) >= 10, budget=x[0] + 2 * x[1] <= 4)
    for method in ("cvxpy", "augmented"):
        solution = problem.solve(method, progress=False)
        (said,) = [w.message for w in solution.warnings if w.code == "C305"]
        assert said.startswith(
            "demand, budget, x[1] >= 0 exclude each other; relax demand by 6.0000 or budget by 6.0000 and"
        )
        assert "solution.infeasibility()" in str(solution)
        found = solution.infeasibility()
        assert found.conflict == ("demand", "budget", "x[1] >= 0")
    feasible = cn.minimize(cn.sum(x)).subject_to(demand=cn.sum(x) >= 10).solve(progress=False)
    assert "infeasib" not in str(feasible)
    assert feasible.infeasibility().feasible


def test_options_are_checked():
    w = cn.Variable((), "w")
    with pytest.raises(cn.ModelingError, match="E141"):
        cn.find().subject_to(a=w >= 1).diagnose_infeasible(starts=0)


@pytest.mark.parametrize(
    "held", [{"mean": lambda y: E(y) <= -5}, {"top": lambda y: cn.Quantile(y, 0.9) <= 0}]
)
def test_constraints_of_the_data_alone(held):
    """No decision is in them: each misses its bound by what NumPy says, whatever is trained."""
    y = np.linspace(1.0, 3.0, 11)
    D, w = cn.Data("d", y=y), cn.Variable((), "w")
    ((name, relation),) = held.items()
    solution = (
        cn.minimize(E((w - D.y) ** 2)).subject_to(**{name: relation(D.y)}).solve("cvxpy", progress=False)
    )
    assert solution.status.value == "infeasible"
    found = solution.infeasibility()
    assert found.conflict == (name,)
    assert found.columns == ("d.y",)
    assert found.amounts[name] == pytest.approx({"mean": y.mean() + 5, "top": y[9]}[name], rel=1e-6)
    assert found.point == {}
