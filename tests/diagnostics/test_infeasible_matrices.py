"""Conflicts of matrix inequalities, whose unit is the eigenvalue, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

import constrain as cn


def symmetric(**options):
    return cn.Variable((2, 2), "Y", symmetric=True, **options)


def declared():
    return cn.Variable((2, 2), "X", psd=True)


def below_and_above():
    y = symmetric()
    return {"a": y << 0, "b": y >> np.eye(2)}, {"a": 1.0, "b": 1.0}


def eigenvalues():
    y = symmetric()
    return {"a": cn.lambda_min(y) >= 1, "b": cn.lambda_max(y) <= 0}, {"a": 1.0, "b": 1.0}


def indefinite():
    w = cn.Variable((), "w")
    return {"a": w * np.diag([1.0, -1.0]) >> np.eye(2)}, {"a": 1.0}  # the best is w = 0


def negative_diagonal():
    x = declared()
    return {"a": x[0, 0] <= -1}, {"a": 1.0, "X psd": 1.0}


def correlation():
    """|x01| <= sqrt(x00 x11): 2 <= 1 fails, 2 <= sqrt(1 * 4) holds."""
    x = declared()
    rules = {"a": x[0, 0] <= 1, "b": x[1, 1] <= 1, "c": x[0, 1] >= 2}
    return rules, {"a": 3.0, "b": 3.0, "c": 1.0, "X psd": 1.0}


def correlation_as_constraint():
    y = symmetric()
    rules = {"p": y >> 0, "a": y[0, 0] <= 1, "b": y[1, 1] <= 1, "c": y[0, 1] >= 2}
    return rules, {"p": 1.0, "a": 3.0, "b": 3.0, "c": 1.0}


def sum_with_eigenvalue():
    """lambda_max(Y) >= Y11 >= 1, and Y00 >= -1/2: their sum is at least 1/2."""
    y = symmetric()
    rules = {"a": cn.lambda_max(y) + y[0, 0] <= 0, "b": y[1, 1] >= 1, "c": y[0, 0] >= -0.5}
    return rules, {"a": 0.5, "b": 0.5, "c": 0.5}


CASES = (
    below_and_above,
    eigenvalues,
    indefinite,
    negative_diagonal,
    correlation,
    correlation_as_constraint,
    sum_with_eigenvalue,
)


@pytest.mark.parametrize("case", CASES)
def test_conflicts_of_matrix_inequalities(case):
    rules, alone = case()
    decision = next(iter(cn.find().subject_to(**rules).variables))
    aim = cn.Variable(decision.shape, "other", bounds=(0, 1))
    solution = cn.minimize(cn.sum(aim)).subject_to(**rules).solve(progress=False)
    assert solution.status == "infeasible"
    (told,) = [w.message for w in solution.warnings if w.code == "C305"]
    assert "exclude each other" in told or "cannot hold" in told
    found = solution.infeasibility()
    assert found.verdict == "infeasible"
    assert found.minimal
    assert set(found.names) == set(alone)
    assert found.alone == pytest.approx(alone, abs=1e-5)
    assert found.certificate.verified


def test_feasible_matrix_with_negative_entries():
    y = symmetric()
    problem = cn.find().subject_to(p=y >> 0, a=y[0, 0] == 1, b=y[0, 1] == -0.5)
    assert problem.diagnose_infeasible().verdict == "feasible"


def test_declared_matrix_against_its_own_bounds():
    x = cn.Variable((2, 2), "X", psd=True, bounds=(None, -1))
    found = cn.find().subject_to(a=x[0, 1] <= 5).diagnose_infeasible()
    assert found.verdict == "infeasible"
    assert found.names == ("X psd",)
    assert len(found.bounds) == 1
    assert found.alone == pytest.approx(
        {"X psd": 2.0}, abs=1e-5
    )  # the eigenvalues of -1 everywhere: -2 and 0


def test_eigenvalue_in_an_inner_problem():
    """The least t with t >= lambda_max(d A) is d lambda_max(A) where d >= 0."""
    d, t = cn.Parameter("d"), cn.Variable((), "t")
    inner = cn.minimize(t).subject_to(s=cn.lambda_max(d * np.diag([1.0, 3.0])) <= t)
    z = cn.Variable((), "z", bounds=(0, 5))
    problem = cn.minimize(z).subject_to(k=cn.value(inner, at=z, track="s") <= 3, c=z >= 2)
    assert problem.diagnose_infeasible().verdict == "infeasible"
    solution = cn.minimize(cn.value(inner, at=z, track="s") - z).subject_to(c=z >= 2).solve(progress=False)
    assert solution.objective == pytest.approx(4.0, abs=1e-6)  # 3 z - z at z = 2
