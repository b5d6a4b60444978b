"""A backend that is wrong and calls its answer optimal: every lie is caught, or said next to the answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E
from constrain.backends import cvxpy as honest
from constrain.runtime.result import RawResult, Support

RNG = np.random.default_rng(5)
A, B = RNG.normal(size=(30, 3)), RNG.normal(size=30)
TABLE = cn.Data("table", x=torch.tensor(A), y=torch.tensor(B))


def linear():
    x = cn.Variable(3, "x", bounds=(0.0, 4.0))
    return cn.maximize(x[0] + 2 * x[1] + x[2]).subject_to(cap=cn.sum(x) <= 5.0, mix=x[0] - x[1] >= -1.0)


def quadratic():
    x = cn.Variable(3, "x")
    return cn.minimize(cn.sum_squares(A @ x - B)).subject_to(cap=cn.sum(x) <= -0.5, level=x[0] == 0.1)


def curved():
    x = cn.Variable(2, "x")
    return cn.minimize(x[0] + x[1]).subject_to(disk=cn.sum_squares(x) <= 2.0)


def absolute():
    x = cn.Variable(3, "x", bounds=(-5.0, 5.0))
    return cn.minimize(cn.sum(abs(A @ x - B)) / 30).subject_to(cap=cn.sum(x) <= -0.5)


def fitted():
    w = cn.Variable(3, "w")
    return cn.minimize(E((TABLE.x @ w - TABLE.y) ** 2)).subject_to(level=E(TABLE.x @ w) >= 0.2)


def tail():
    w = cn.Variable(3, "w", bounds=(-3.0, 3.0))
    return cn.minimize(cn.CVaR((TABLE.x @ w - TABLE.y) ** 2, 0.8)).subject_to(cap=w[0] + w[1] <= -1.0)


def integer():
    n, x = cn.Variable(2, "n", integer=True, bounds=(0, 3)), cn.Variable(2, "x", nonneg=True)
    return cn.maximize(n @ np.array([2.0, 1.0]) + 1.5 * cn.sum(x)).subject_to(
        cap=cn.sum(n) + cn.sum(x) <= 4.5, first=x[0] <= 1.0 + n[1]
    )


PROBLEMS = {f.__name__: f for f in (linear, quadratic, curved, absolute, fitted, tail, integer)}
INNER = {  # a feasible point that is no optimum, by variable
    "linear": {"x": [0.5, 0.5, 0.5]},
    "quadratic": {"x": [0.1, -2.0, -1.0]},
    "curved": {"x": [0.3, 0.4]},
    "absolute": {"x": [-1.0, -1.0, -1.0]},
    "fitted": None,
    "tail": {"w": [-1.0, -1.0, 1.0]},
    "integer": {"n": [1.0, 1.0], "x": [0.2, 0.1]},
}
INNER["fitted"] = {"w": (2 * A.mean(0) / (A.mean(0) @ A.mean(0))).tolist()}


class Liar:
    """The convex backend with an answer that is changed before it is handed over."""

    def __init__(self, lie):
        self.lie = lie
        self.build = honest.build

    def support(self, *_):
        return Support(True, "anything")

    def solve(self, built, facts, *, time_limit=None):
        answer = honest.solve(built, facts, time_limit=time_limit)
        result = answer.result()
        raw = RawResult("converged", result.multipliers, "a liar", bound=result.bound)
        if raw.bound is None:
            raw.bound = result.bound_if_convex
        return self.lie(raw, dict(answer.values), dict(answer.weights))


class Told:
    """What the judge reads of an answer."""

    def __init__(self, raw, values, weights):
        self.raw, self.values, self.weights = raw, values, weights

    def result(self):
        return self.raw

    def write_back(self):
        for symbol, value in self.values.items():
            symbol.value = value


@pytest.fixture
def told(monkeypatch):
    """A problem as a lying backend solves it."""

    def solve(problem, lie, **options):
        monkeypatch.setattr("constrain.driver.run.installed_backend", lambda _: Liar(lie))
        return problem.solve("liar", progress=False, **options)

    return solve


def moved(values, point):
    return {s: np.reshape(point[s.name], s.shape) if s.name in point else v for s, v in values.items()}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_truth_is_believed(name, told):
    solution = told(PROBLEMS[name](), Told)
    assert solution.status == "optimal"
    assert not [w for w in solution.warnings if w.code in ("W228", "W216")]
    assert name == "integer" or not any(solution[c].uncertified for c in solution.names)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("duals", ["kept", "zero", "none"])
def test_a_point_that_is_no_optimum_with_its_own_value_as_bound(name, duals, told):
    """A feasible point beyond the bound refutes it: the bound is dropped, and the word."""
    problem, start = PROBLEMS[name](), None

    def lie(raw, values, weights):
        zero = {key: np.zeros_like(m) for key, m in (raw.multipliers or {}).items()}
        given = {"kept": raw.multipliers, "zero": zero, "none": None}[duals]
        return Told(replace(raw, multipliers=given, bound=start), moved(values, INNER[name]), weights)

    start = -1e9
    value = told(problem, lie).objective
    start = -value if problem.sense == "maximize" else value
    before = {k: np.array(v) for k, v in INNER[name].items()}
    solution = told(problem, lie)
    assert solution.status == "feasible", duals
    if duals != "kept" or name in ("curved", "fitted"):  # others have no complementarity, which is seen first
        assert solution.bound is None
        (warning,) = [w for w in solution.warnings if w.code == "W228"]
        assert "a liar calls its point optimal" in warning.message
    for key, value in before.items():  # the point stays
        np.testing.assert_array_equal(
            solution.variables[key], value.reshape(np.shape(solution.variables[key]))
        )
    told(problem, Told)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("excess", [1e-3, 10.0])
def test_a_bound_beyond_the_value(name, excess, told):
    """No bound is beyond what its own point attains: it is moved, with a warning, and proves nothing."""
    solution = told(PROBLEMS[name](), lambda raw, *rest: Told(replace(raw, bound=raw.bound + excess), *rest))
    sign = -1 if solution.sense == "maximize" else 1
    assert sign * solution.bound <= sign * solution.objective
    assert [w.code for w in solution.warnings if w.code == "W216"]
    assert solution.status != "optimal" or name not in ("linear", "tail", "absolute", "integer")


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_point_that_violates(name, told):
    """Not solved, whatever the word."""

    def lie(raw, values, weights):
        return Told(raw, {s: v + 7.0 for s, v in values.items()}, weights)

    solution = told(PROBLEMS[name](), lie)
    assert solution.status == "limit"
    assert solution.record.feasibility > 0.1


@pytest.mark.parametrize("name", ["linear", "quadratic", "curved", "fitted", "tail"])
@pytest.mark.parametrize("factor", [-1.0, 0.0, 3.0])
def test_multipliers_of_another_point(name, factor, told):
    """The optimum stays one, and its prices are marked; negative ones contradict the bound."""

    def lie(raw, values, weights):
        return Told(
            replace(raw, multipliers={k: factor * m for k, m in raw.multipliers.items()}), values, weights
        )

    solution = told(PROBLEMS[name](), lie)
    marked = [solution[c].uncertified for c in solution.names]
    assert all(marked)
    if factor >= 0:
        assert solution.status == "optimal"
        assert "do not balance the slopes" in marked[0]
        assert "(?)" in str(solution)


def test_a_problem_that_can_be_solved_is_not_infeasible(told):
    def lie(raw, values, weights):
        return Told(replace(raw, ending="infeasible", bound=None), {s: v + 9 for s, v in values.items()}, {})

    solution = told(linear(), lie)
    assert solution.status == "limit"
    assert "a point satisfies all constraints" in str(solution)
