"""The named traps: each provoked and named, each with a healthy twin that stays silent."""

import warnings

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=256)
D = cn.Data("d", x=1 + 0.1 * X, z=X, y=0.5 * X + 0.1, g=np.arange(256) % 3)


def sgd(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def run(problem, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return problem.solve(progress=False, **options)


def codes(solution):
    return {warning.code for warning in solution.warnings}


def named(solution, code):
    (warning,) = [w for w in solution.warnings if w.code == code]
    return f"{warning.name}: {warning.message}"


# ------------------------------------------------------------------------------- redundant-constraints
def parity(drop):
    w = cn.Variable(3, "w")
    s = w[0] * D.z + w[1] * D.z**2 + w[2] * cn.indicator(D.g == 1)
    gaps = {f"g{k}": E(s, given=D.g == k) - E(s) == 0 for k in range(3) if k != drop}
    return run(cn.minimize(E((s - D.y - D.z**2 - D.g) ** 2)).subject_to(**gaps))


def test_redundant_constraints():
    message = named(parity(drop=None), "W203")
    assert message.startswith("redundant-constraints: ")
    assert all(name in message for name in ("g0", "g1", "g2"))
    assert "W203" not in codes(parity(drop=2))


# --------------------------------------------------------------------------------------- surrogate-gap
def rate(scale):
    w = cn.Variable((), "w", bounds=(-3.0, 3.0))
    problem = cn.minimize((w + 1) ** 2).subject_to(
        rate=P(D.z > w, surrogate=cn.surrogate.Sigmoid(scale=scale)) <= 0.2
    )
    return run(problem, method="augmented")


def test_surrogate_gap():
    assert named(rate(2.0), "C301").startswith("surrogate-gap: rate: ")
    assert "C301" not in codes(rate(0.02))


# ---------------------------------------------------------------------------------- vanishing-gradient
def residual(square):
    w = cn.Variable((), "w")
    relation = E((D.x * w) ** 2) == 0 if square else E(D.x * w) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(cn.minimize((w - 1) ** 2).subject_to(zero=relation), method="augmented")


def test_vanishing_gradient():
    assert named(residual(square=True), "W204").startswith("vanishing-gradient: ")
    assert "W204" not in codes(residual(square=False))


# ----------------------------------------------------------------------------------------- oscillation
def linear(**options):
    w = cn.Variable((), "w", bounds=(-3.0, 3.0))
    w.value = 0.0
    problem = cn.minimize(E(D.x * w)).subject_to(floor=E(D.x * w) >= 1)
    return run(problem, method="lagrangian", batch=32, epochs=60, **options)


def test_oscillation():
    message = named(linear(gain=0.0, rate=0.3, optimizer=sgd(0.3)), "C303")
    assert message.startswith("oscillation: ")
    assert "floor (about every" in message
    assert "C303" not in codes(linear(optimizer=sgd(0.1)))


@pytest.mark.parametrize(("rate", "lr"), [(0.02, 0.1), (0.05, 0.1), (0.1, 0.1), (0.1, 0.3), (0.3, 0.3)])
def test_oscillation_that_only_the_falling_rate_ends(rate, lr):
    """Each of these runs stands still at its end, at another multiplier than the price of 1."""
    solution = linear(gain=0.0, rate=rate, optimizer=sgd(lr))
    assert "C303" in codes(solution)
    assert abs(solution.history[-1]["multiplier:floor"] - 1) > 0.1
    assert "C303" not in codes(linear(gain=0.3, rate=rate, optimizer=sgd(lr)))


def course(residual, multiplier):
    return [
        {"step": k, "epoch": k + 1, "objective": 1.0, "violation": abs(r), "residual:c": r, "multiplier:c": m}
        for k, (r, m) in enumerate(zip(residual, multiplier, strict=True))
    ]


def test_cycles_by_the_way_that_the_rate_allows(place, rng):
    """Cycles in the time of the rate are named; those that die out by themselves, and noise, are not."""
    w = cn.Variable((), "w")
    w.value = 0.5
    placed = place(cn.minimize(w**2).subject_to(c=w <= 1.0))
    t = np.arange(80) / 80
    way = 40 * (t + np.sin(np.pi * t) / np.pi) / 2  # of half a cosine
    fade = np.exp(-t / 0.12)
    noise = rng.normal(size=(2, 80))
    runs = {
        "driven": (np.cos(way), 1 + 0.8 * np.sin(way), True),
        "damped": (fade * np.cos(way), 1 + fade * np.sin(way), False),
        "noise": (noise[0] * (1 - t), 1 + 0.1 * noise[1] * (1 - t), False),
        "cheap": (np.cos(way), 1e-3 * (1 + 0.8 * np.sin(way)), False),
        "monotone": (fade, 1 - fade, False),
        "arrived": (np.where(t < 0.6, np.cos(40 * t), 0.0), 1 + (t < 0.6) * np.sin(40 * t), False),
    }
    for name, (residual, multiplier, found) in runs.items():
        rows = course(residual, multiplier)
        solution = placed.solution(multipliers={"c": 1.0}, ending="limit", rows=rows)
        assert ("C303" in codes(solution)) is found, name


# -------------------------------------------------------------------------------------- mixture-needed
def concave(sign, **options):
    w = cn.Variable((), "w", bounds=(0.0, 1.0))
    w.value = 0.7
    objective = sign * E((D.x * w + 0.2) ** 2) if sign < 0 else E((D.x * w - 1.0) ** 2)
    problem = cn.minimize(objective).subject_to(cap=E(D.x * w) <= 0.5)
    return run(problem, method="lagrangian", batch=32, epochs=100, **options)


def test_mixture_needed():
    message = named(concave(-1, gain=0.0, rate=0.1, optimizer=sgd(0.5)), "C304")
    assert message.startswith("mixture-needed: ")
    assert "C304" not in codes(concave(-1))
    assert "C304" not in codes(concave(1))


# ------------------------------------------------------------------------------------------ infeasible
def narrow(floor, **options):
    w = cn.Variable((), "w", bounds=(0.0, 1.0))
    problem = cn.minimize(E((D.x * w) ** 2)).subject_to(up=E(D.x * w) >= floor, down=E(D.x * w) <= 0.5)
    return run(problem, **options)


@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
def test_infeasible(method):
    assert named(narrow(0.8, method=method), "C305").startswith("infeasible: ")
    assert "C305" not in codes(narrow(0.3, method=method))


def growing(slope, violation):
    return [
        {"step": k, "epoch": k + 1, "objective": 1.0, "violation": violation, "residual:c": violation,
         "multiplier:c": 1.0 + slope * k}
        for k in range(60)
    ]  # fmt: skip


def test_multipliers_that_grow_without_end(place):
    w = cn.Variable((), "w")
    w.value = 0.5
    placed = place(cn.minimize(w**2).subject_to(c=w >= 1.0))
    for slope, found in ((0.5, True), (0.0, False)):
        solution = placed.solution(multipliers={"c": 1.0}, ending="limit", rows=growing(slope, 0.5))
        assert ("C305" in codes(solution)) is found
    assert "c stays violated by 0.5" in named(
        placed.solution(multipliers={"c": 1.0}, ending="limit", rows=growing(0.5, 0.5)), "C305"
    )


# --------------------------------------------------------------------- absent-group, biased-ratio: check
def test_absent_group():
    x = GENERATOR.normal(size=400)
    sample = cn.Data("d", x=x, rare=(np.arange(400) % 20 == 0).astype(int))
    w = cn.Variable((), "w")
    problem = cn.minimize(E((sample.x - w) ** 2)).subject_to(few=E(sample.x * w, given=sample.rare == 1) <= 1)
    assert "W208" in [f.code for f in problem.check(batch=32).findings]
    assert "W208" not in [f.code for f in problem.check(batch=400).findings]


def test_biased_ratio():
    w = cn.Variable((), "w")
    biased = cn.minimize(w**2).subject_to(c=E(D.x * w) ** 2 >= 0.01)
    affine = cn.minimize(w**2).subject_to(c=E(D.x * w) >= 0.1)
    assert "W205" in [f.code for f in biased.check(batch=8).findings]
    assert "W205" not in [f.code for f in affine.check(batch=8).findings]


# ------------------------------------------------------------------------------------ degenerate-duals
def corner(bound):
    w = cn.Variable(2, "w")
    problem = cn.minimize(-w[0] - w[1]).subject_to(a=w[0] <= 1, b=w[1] <= 1, c=w[0] + 2 * w[1] <= bound)
    return run(problem, method="cvxpy", solver="HIGHS")


def test_degenerate_duals():
    solution = corner(3.0)
    assert named(solution, "W215").startswith("degenerate-duals: ")
    assert "W215" not in codes(corner(4.0))
    assert "W215" not in codes(corner(2.0))


# ------------------------------------------------------------------------------- certificate-tolerance
def test_certificate_tolerance(place):
    w = cn.Variable((), "w")
    w.value = 1.0
    placed = place(cn.minimize(w**2).subject_to(c=w >= 1.0))
    off = placed.solution(multipliers={"c": 2.0}, bound=1.0 + 3e-6, convex=True)
    assert named(off, "W216").startswith("certificate-tolerance: ")
    assert off.bound == pytest.approx(1.0 - 3e-6, abs=1e-9)
    good = placed.solution(multipliers={"c": 2.0}, bound=1.0 - 1e-8, convex=True)
    assert "W216" not in codes(good)
    assert good.bound == 1.0 - 1e-8
    rounding = placed.solution(multipliers={"c": 2.0}, bound=1.0 + 1e-12, convex=True)
    assert rounding.bound <= rounding.objective
    w.value = 1.0 - 1e-7  # a violation at its price explains a value below the bound
    short = place(cn.minimize(w**2).subject_to(c=w >= 1.0)).solution(multipliers={"c": 2.0}, bound=1.0)
    assert "W216" not in codes(short)
    assert short.bound == 1.0


# ---------------------------------------------------------------------------------- overfit-constraint
def held(shift):
    w = cn.Variable((), "w")
    later = cn.Data("d", x=D.values("x"), z=D.values("z"), y=D.values("y") + shift, g=D.values("g"))
    problem = cn.minimize(w**2).subject_to(error=E(D.y - w) <= 0.0)
    return run(problem, holdout=later)


def test_overfit_constraint():
    message = named(held(0.5), "C312")
    assert message.startswith("overfit-constraint: error: ")
    needed = float(message.split("by about ")[1].split(" ")[0])
    assert needed == pytest.approx(0.5 + 1.97 * np.std(D.values("y"), ddof=1) / 16, rel=1e-2)
    assert "C312" not in codes(held(-0.5))


# ------------------------------------------------------------------------------------------- conflict
def excluded(first, second):
    f = cn.Model(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Flatten(0)).double(), "f")
    score = f(D.z[..., None])
    sides = {"first": first(score), "second": second(score)}
    return run(cn.minimize(E((score - D.y) ** 2)).subject_to(**sides), method="lagrangian", epochs=2, seed=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda s: E(s) >= 0.8, lambda s: E(s, by=D.g) <= 0.6),
        (lambda s: P(s > 0) >= 0.8, lambda s: P(s > 0, by=D.g) <= 0.6),
    ],
)
def test_a_run_that_misses_a_conflict_says_that_no_longer_one_would_help(first, second):
    told = named(excluded(first, second), "W202")
    assert told.startswith("conflict: first and second exclude each other")
    assert ".relax(cost=...)" in told
    apart = excluded(first, lambda s: E(s, by=D.g) <= 90.0)
    assert "W202" not in codes(apart)
