"""Constraints that can hold, but not where the objective has a value."""

from __future__ import annotations

import pytest

import constrain as cn


def cost(z):
    """The least u <= 2 with u >= z: it has a value where z <= 2."""
    d, u = cn.Parameter("d"), cn.Variable((), "u", bounds=(0, 2))
    return cn.value(cn.minimize(u).subject_to(s=u >= d), at=z, track="s")


def test_an_inner_problem_without_solution_is_named():
    z = cn.Variable((), "z", bounds=(0, 5))
    solution = cn.minimize(cost(z) - 2 * z).subject_to(c=z >= 3).solve(progress=False)
    assert solution.status == "infeasible"
    (told,) = [w.message for w in solution.warnings if w.code == "C305"]
    reason = "the objective has no value where c holds: its inner problem (s) has no solution there"
    assert told.startswith(f"{reason}; relax c by 1.0000 and it becomes feasible")
    found = solution.infeasibility()
    assert (found.verdict, found.reason) == ("infeasible", reason)
    assert set(found.names) == {"the objective", "c"}
    assert found.advice == "relax c by 1.0000 and it becomes feasible"
    assert set(found.point) == {"z"}


def test_an_inner_problem_without_solution_in_a_constraint():
    z = cn.Variable((), "z", bounds=(0, 5))
    found = cn.minimize(z).subject_to(k=cost(z) <= 10, c=z >= 3).diagnose_infeasible()
    assert found.verdict == "infeasible"
    assert set(found.names) == {"k", "c"}
    assert found.alone["c"] == pytest.approx(1.0, abs=1e-5)


def test_a_logarithm_of_negative_numbers():
    x = cn.Variable((), "x")
    solution = cn.maximize(cn.log(x)).subject_to(a=x <= -1, b=x >= -3).solve(progress=False)
    found = solution.infeasibility()
    assert found.verdict == "infeasible"
    assert set(found.names) == {"the objective", "a"}
    assert found.alone["a"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("rules", [0, 1])
def test_bounds_without_any_value(rules):
    z = cn.Variable((), "z", bounds=(3, 5))
    problem = cn.minimize(cost(z) - 2 * z)
    found = (problem.subject_to(a=z <= 4) if rules else problem).diagnose_infeasible()
    assert found.verdict == "infeasible"
    assert found.names == ("the objective",)
    assert "has no value" in found.reason


def test_an_objective_with_values():
    z = cn.Variable((), "z", bounds=(0, 5))
    problem = cn.minimize(cost(z) - 2 * z).subject_to(c=z >= 1)
    assert problem.diagnose_infeasible().verdict == "feasible"
