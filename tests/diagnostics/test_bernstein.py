"""Empirical Bernstein intervals: the formula, coverage where the normal limit fails, verdicts, refusals."""

import numpy as np
import pytest

import constrain as cn
from constrain import E, P


def by_hand(values, width, level):
    """Half width of an average at a two-sided level, from the theorem."""
    n, logarithm = len(values), np.log(4 / level)
    return np.sqrt(2 * values.var(ddof=1) * logarithm / n) + 7 * width * logarithm / (3 * (n - 1))


def evaluated(D, bounded, **constraints):
    w = cn.Variable((), "w")
    w.value = 1.0
    written = {name: make(w) for name, make in constraints.items()}
    return cn.minimize(w**2).subject_to(**written).evaluate(D, bounded=bounded)


def test_intervals_are_those_of_the_theorem(rng):
    g = rng.integers(0, 3, 400)
    x = rng.uniform(-1, 2, 400)
    D = cn.Data("d", x=x, g=g)
    limits = (-1.0, 2.0)
    found = evaluated(
        D,
        dict.fromkeys(("mean", "group", "levels", "gap", "absolute", "rate", "range", "equal"), limits),
        mean=lambda w: E(w * D.x) <= 0.9,
        group=lambda w: E(w * D.x, given=D.g == 1) >= 0.1,
        levels=lambda w: E(w * D.x, by=D.g) <= 0.9,
        gap=lambda w: 2 * E(w * D.x, given=D.g == 1) - E(w * D.x, given=D.g == 0) <= 2.0,
        absolute=lambda w: abs(E(w * D.x, given=D.g == 1) - E(w * D.x)) <= 1.5,
        rate=lambda w: P(w * D.x > 1.0) <= 0.5,
        range=lambda w: cn.between(0.0, E(w * D.x), 1.0),
        equal=lambda w: E(w * D.x) == 0.5,
    )
    one, zero, level = x[g == 1], x[g == 0], 0.05
    halves = {
        "mean": by_hand(x, 3.0, level),
        "group": by_hand(one, 3.0, level),
        "levels": [by_hand(x[g == k], 3.0, level) for k in range(3)],
        "gap": 2 * by_hand(one, 3.0, level / 2) + by_hand(zero, 3.0, level / 2),
        "rate": by_hand((x > 1.0).astype(float), 1.0, level),
        "range": by_hand(x, 3.0, level),
        "equal": by_hand(x, 3.0, level),
    }
    for name, half in halves.items():
        low, high = found[name].interval
        np.testing.assert_allclose(found[name].half_width, half, rtol=1e-10)
        np.testing.assert_allclose((np.asarray(low) + high) / 2, found[name].value, rtol=1e-12)
    value = abs(one.mean() - x.mean())
    half = by_hand(one, 3.0, level / 2) + by_hand(x, 3.0, level / 2)
    np.testing.assert_allclose(found["absolute"].interval, [max(0.0, value - half), value + half])


@pytest.mark.parametrize(("share", "rows"), [(0.02, 60), (0.005, 300)])
def test_rare_large_losses_are_covered_where_the_normal_limit_is_not(rng, share, rows):
    truth, hits = 5.0 * share, {True: 0, False: 0}
    for _ in range(100):
        D = cn.Data("d", x=5.0 * (rng.random(rows) < share))
        for bounded in (True, False):
            found = evaluated(D, {"c": (0.0, 5.0)} if bounded else None, c=lambda w, D=D: E(w * D.x) <= 1.0)
            low, high = found["c"].interval
            hits[bounded] += low <= truth <= high
    assert hits[True] >= 97
    assert hits[False] <= 90


def test_the_verdict_agrees_with_the_interval(rng):
    """Of a single number: it holds exactly where the interval stays off the bound."""
    D = cn.Data("d", x=rng.uniform(0, 1, 300))
    upper = evaluated(D, {"c": (0.0, 1.0)}, c=lambda w: E(w * D.x) <= 1.0)["c"].upper
    words = [
        evaluated(D, {"c": (0.0, 1.0)}, c=lambda w, b=b: E(w * D.x) <= b)["c"].verdict
        for b in (upper - 1e-6, upper + 1e-6, 0.2)
    ]
    assert words == ["undecided", "holds", "violated"]


def test_holm_counts_all_constraints_together(rng):
    D = cn.Data("d", x=rng.uniform(0, 1, 300))
    bounded = {"a": (0.0, 1.0), "b": (0.0, 1.0)}
    alone = evaluated(D, bounded, a=lambda w: E(w * D.x) <= 1.0, b=lambda w: E(w * D.x) <= 1.0)["a"].upper
    both = evaluated(
        D, bounded, a=lambda w: E(w * D.x) <= alone + 1e-6, b=lambda w: E(w * D.x) <= alone + 1e-6
    )
    assert both["a"].verdict == both["b"].verdict == "undecided"


def test_a_solution_is_judged_so_on_a_hold_out(rng):
    x = rng.uniform(0, 1, 500)
    D, w = cn.Data("d", x=x), cn.Variable((), "w")
    problem = cn.maximize(w).subject_to(budget=E(w * D.x) <= 0.3, cap=w <= 2.0)
    solution = problem.solve(progress=False)
    held = cn.Data("held", x=rng.uniform(0, 1, 400))
    normal, every = (
        solution.evaluate(held)["budget"],
        solution.evaluate(held, bounded={"budget": (0, 1)})["budget"],
    )
    assert every.half_width > normal.half_width
    assert every.value == normal.value


def test_what_has_no_such_interval_is_refused_with_the_reason(rng):
    D = cn.Data("d", x=rng.uniform(0.5, 1, 50), y=rng.uniform(1, 2, 50))
    cases = [
        (lambda w: E(w * D.x) / E(D.y) <= 1.0, (0.0, 2.0), "no weighted sum"),
        (lambda w: cn.Var(w * D.x) <= 1.0, (0.0, 2.0), "no weighted sum"),
        (lambda w: E(w * D.x) <= E(D.y), (0.0, 2.0), "its bound depends on data"),
        (lambda w: E(w * D.x) <= 1.0, (0.6, 2.0), "a row has the value"),
        (lambda w: E(w * D.x) <= 1.0, (1.0, 0.0), "is no range"),
    ]
    for make, limits, why in cases:
        with pytest.raises(cn.ModelingError, match=f"E141.*{why}"):
            evaluated(D, {"c": limits}, c=make)
    with pytest.raises(cn.ModelingError, match=r"E139.*'d'"):
        evaluated(D, {"d": (0.0, 1.0)}, c=lambda w: E(w * D.x) <= 1.0)
