"""The plug-in surfaces: the sign matrix, nonconvex problems with duals, endings, in CVXPY and Pyomo."""

import itertools
import math

import numpy as np
import pytest

from constrain.errors import RouteError

cp = pytest.importorskip("cvxpy")
pe = pytest.importorskip("pyomo.environ")

pytest.importorskip("constrain.integrations.cvxpy")  # importing them registers
pytest.importorskip("constrain.integrations.pyomo")

SENSES = ("minimize", "maximize")
PRICES = {
    ("minimize", "<="): [0.0, -1.5, -1.0],
    ("minimize", ">="): [0.0, 1.5, 1.0],
    ("maximize", "<="): [0.0, 1.5, 1.0],
    ("maximize", ">="): [0.0, -1.5, -1.0],
}
"""Wyndor Glass (Hillier & Lieberman): derivatives of the optimal value in the right-hand sides."""
GAIN = np.array([3.0, 5.0])
ROWS, ROOM = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 2.0]]), np.array([4.0, 12.0, 18.0])


@pytest.mark.parametrize("case", PRICES, ids=" ".join)
def test_dual_signs_of_cvxpy(case):
    sense, op = case
    x = cp.Variable(2, nonneg=True)
    rows = [ROWS[k] @ x <= ROOM[k] if op == "<=" else -ROWS[k] @ x >= -ROOM[k] for k in range(3)]
    objective = cp.Maximize(GAIN @ x) if sense == "maximize" else cp.Minimize(-GAIN @ x)
    problem = cp.Problem(objective, rows)
    assert problem.solve(method="constrain") == pytest.approx(36.0 if sense == "maximize" else -36.0)
    ours = [float(np.squeeze(c.dual_value)) for c in rows]
    problem.solve(solver="CLARABEL")
    assert ours == pytest.approx([float(np.squeeze(c.dual_value)) for c in rows], abs=1e-6)
    assert ours == pytest.approx([0.0, 1.5, 1.0], abs=1e-6)


@pytest.mark.parametrize("sense", SENSES)
@pytest.mark.parametrize("turned", [False, True])
def test_dual_signs_of_equalities_in_cvxpy(sense, turned):
    x = cp.Variable(2, nonneg=True)
    cost = x[0] + 2 * x[1]
    row = 1 == cp.sum(x) if turned else cp.sum(x) == 1  # noqa: SIM300  # both ways of writing it
    problem = cp.Problem(cp.Minimize(cost) if sense == "minimize" else cp.Maximize(-cost), [row])
    problem.solve(method="constrain")
    assert float(np.squeeze(row.dual_value)) == pytest.approx(-1.0)


def wyndor(sense, op):
    m = pe.ConcreteModel()
    m.x = pe.Var(range(2), domain=pe.NonNegativeReals)

    def row(m, k):
        body = sum(ROWS[k][j] * m.x[j] for j in range(2))
        return body <= ROOM[k] if op == "<=" else -body >= -ROOM[k]

    m.c = pe.Constraint(range(3), rule=row)
    gain = sum(GAIN[j] * m.x[j] for j in range(2))
    m.o = pe.Objective(expr=gain if sense == "maximize" else -gain, sense=getattr(pe, sense))
    m.dual = pe.Suffix(direction=pe.Suffix.IMPORT)
    return m


@pytest.mark.parametrize("case", PRICES, ids=" ".join)
def test_dual_signs_of_pyomo_in_both_interfaces(case):
    from pyomo.contrib.solver.common.factory import SolverFactory  # noqa: PLC0415  # behind importorskip

    ours, theirs = wyndor(*case), wyndor(*case)
    pe.SolverFactory("appsi_highs").solve(theirs)
    expected = [theirs.dual[theirs.c[k]] for k in range(3)]
    assert expected == pytest.approx(PRICES[case])
    for factory in (pe.SolverFactory, SolverFactory):
        factory("constrain").solve(ours)
        assert [ours.x[j].value for j in range(2)] == pytest.approx([2.0, 6.0])
        assert [ours.dual[ours.c[k]] for k in range(3)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sense", SENSES)
def test_dual_signs_of_equalities_in_pyomo(sense):
    m = pe.ConcreteModel()
    m.x = pe.Var(range(2), domain=pe.NonNegativeReals)
    m.c = pe.Constraint(expr=m.x[0] + m.x[1] == 1)
    cost = m.x[0] + 2 * m.x[1]
    m.o = pe.Objective(expr=cost if sense == "minimize" else -cost, sense=getattr(pe, sense))
    m.dual = pe.Suffix(direction=pe.Suffix.IMPORT)
    pe.SolverFactory("constrain").solve(m)
    assert m.dual[m.c] == pytest.approx(1.0 if sense == "minimize" else -1.0)


# ------------------------------------------------------------------------------- what the hosts cannot do
def test_cvxpy_gets_duals_of_a_problem_that_is_not_convex():
    """The largest eigenvalue as a maximum over the sphere: its dual value is the eigenvalue."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(5, 5))
    A = A @ A.T
    x = cp.Variable(5, value=np.ones(5) / math.sqrt(5))
    sphere = cp.sum_squares(x) == 1
    problem = cp.Problem(cp.Maximize(cp.quad_form(x, A)), [sphere])
    assert not problem.is_dcp()
    problem.solve(method="constrain", route="augmented")
    assert problem.value == pytest.approx(np.linalg.eigvalsh(A)[-1], rel=1e-6)
    assert float(np.squeeze(sphere.dual_value)) == pytest.approx(np.linalg.eigvalsh(A)[-1], rel=1e-5)
    assert problem.status == "optimal_inaccurate"
    assert problem.solution.attr["constrain"].status.value == "stationary"


def test_pyomo_gets_duals_of_hock_schittkowski_71():
    m = pe.ConcreteModel()
    m.x = pe.Var(range(4), bounds=(1, 5))
    for k, value in enumerate((1.0, 5.0, 5.0, 1.0)):
        m.x[k].value = value
    m.product = pe.Constraint(expr=m.x[0] * m.x[1] * m.x[2] * m.x[3] >= 25)
    m.ball = pe.Constraint(expr=sum(m.x[k] ** 2 for k in range(4)) == 40)
    m.o = pe.Objective(expr=m.x[0] * m.x[3] * (m.x[0] + m.x[1] + m.x[2]) + m.x[2])
    m.dual = pe.Suffix(direction=pe.Suffix.IMPORT)
    pe.SolverFactory("constrain").solve(m)
    assert pe.value(m.o) == pytest.approx(17.0140173, rel=1e-6)
    assert [m.dual[m.product], m.dual[m.ball]] == pytest.approx([0.5522937, -0.1614686], rel=1e-4)


def test_endings_are_those_of_the_hosts():
    x = cp.Variable(nonneg=True)
    problem = cp.Problem(cp.Minimize(x), [x <= -1])
    assert problem.solve(method="constrain") == math.inf
    assert problem.status == "infeasible"
    with pytest.raises(RouteError, match="E125"):
        cp.Problem(cp.Minimize(cp.lambda_sum_largest(cp.Variable((2, 2)), 1))).solve(method="constrain")
    m = pe.ConcreteModel()
    m.x = pe.Var(domain=pe.NonNegativeReals)
    m.c = pe.Constraint(expr=m.x <= -1)
    m.o = pe.Objective(expr=m.x)
    found = pe.SolverFactory("constrain").solve(m, load_solutions=False)
    assert found.solver.termination_condition == pe.TerminationCondition.infeasible


def test_options_reach_the_solve():
    m = wyndor("maximize", "<=")
    pe.SolverFactory("constrain").solve(m, options={"route": "pyomo"})
    assert pe.value(m.o) == pytest.approx(36.0)
    x = cp.Variable(3, boolean=True)
    problem = cp.Problem(cp.Maximize(np.array([4.0, 3.0, 2.0]) @ x), [np.array([3.0, 2.0, 2.0]) @ x <= 4])
    picks = [p for p in itertools.product((0, 1), repeat=3) if np.dot([3, 2, 2], p) <= 4]
    problem.solve(method="constrain", route="pyomo", time_limit=20.0)
    assert problem.value == pytest.approx(max(np.dot([4, 3, 2], p) for p in picks))
    assert problem.status == "optimal"
