"""Curvature of optimal values, and problems that hold them written out for CVXPY."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import constrain as cn
from constrain import E
from constrain.inner.convexity import curvature_of

cp = pytest.importorskip("cvxpy")
F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


A = torch.tensor([[1.0, 2.0, 0.5], [0.5, 0.3, 2.0]], dtype=F64)
COST = torch.tensor([1.0, 3.0, 2.0], dtype=F64)


def rhs(x, t):
    return cn.minimize(COST @ x).subject_to(cover=A @ x >= t)


def joint(x, t):
    return cn.minimize(cn.sum_squares(x - 1) + cn.sum_squares(A @ x - t) + cn.sum(cn.exp(t)))


def prices(x, t):
    return cn.minimize((t @ A) @ x + cn.sum(x**2)).subject_to(cap=cn.sum(x) <= 4)


def revenue(x, t):
    return cn.maximize(COST @ x).subject_to(supply=A @ x <= t + 5)


def bids(x, t):
    return cn.maximize((t @ A) @ x).subject_to(cap=cn.sum(x) <= 4)


CURVES = {rhs: "convex", joint: "convex", prices: "concave", revenue: "concave", bids: "convex"}


def made(make):
    x, t = cn.Variable(3, "x", bounds=(0, 9)), cn.Parameter("t", shape=2)
    return make(x, t), t


@pytest.mark.parametrize("make", CURVES, ids=lambda f: f.__name__)
def test_certified_curvature_holds_between_points(make):
    problem, t = made(make)
    known = curvature_of(problem, (t.symbol,))
    assert known.curve == CURVES[make]
    assert known.joint == (make not in (prices, bids))
    a, b = normal(40, 2, seed=1), normal(40, 2, seed=2)
    ends = (cn.value(problem, at=a) + cn.value(problem, at=b)) / 2
    middle = cn.value(problem, at=(a + b) / 2)
    gap = ends - middle if known.curve == "convex" else middle - ends
    assert float(gap.min()) >= -1e-8


@pytest.mark.parametrize("make", [rhs, joint, revenue], ids=lambda f: f.__name__)
def test_a_value_in_a_problem_is_its_inner_problem_written_out(make):
    """The same optimum as with variables and constraints of the inner problem in the outer one."""
    problem, _ = made(make)
    u = cn.Variable(2, "u", bounds=(-1, 2))
    value = cn.value(problem, at=2 * u + 0.5)
    outer = cn.minimize if problem.sense == "minimize" else cn.maximize
    sign = 1 if problem.sense == "minimize" else -1
    problem = outer(value + sign * cn.sum_squares(u - 1)).subject_to(near=u[0] + u[1] >= 1.2)
    assert "-> cvxpy" in str(problem.explain())
    solution = problem.solve(progress=False)
    x, v = cn.Variable(3, "x", bounds=(0, 9)), cn.Variable(2, "v", bounds=(-1, 2))
    flat = make(x, 2 * v + 0.5)
    objective = {rhs: COST @ x, revenue: COST @ x}.get(make)
    if objective is None:
        objective = (
            cn.sum_squares(x - 1) + cn.sum_squares(A @ x - (2 * v + 0.5)) + cn.sum(cn.exp(2 * v + 0.5))
        )
    written = (
        outer(objective + sign * cn.sum_squares(v - 1))
        .subject_to(near=v[0] + v[1] >= 1.2, **{k: cn.Constraint(r) for k, r in flat.constraints.items()})
        .solve(progress=False)
    )
    assert float(solution.objective) == pytest.approx(float(written.objective), abs=1e-6)
    np.testing.assert_allclose(u.value, v.value, atol=1e-4)
    assert float(solution["near"].multiplier) == pytest.approx(float(written["near"].multiplier), abs=1e-4)


def test_a_linear_decision_rule_is_solved_to_its_optimum():
    """E[value] of a linear rule, against the linear program over the rule and all scenarios by HiGHS."""
    problem, _ = made(rhs)
    features = torch.cat([torch.ones(6, 1, dtype=F64), normal(6, 1, seed=3)], 1)
    need = normal(6, 2, seed=4).abs()
    D = cn.Data("days", x=features, need=need)
    f = cn.Model(nn.Linear(2, 2, bias=False).double(), "f")
    shortage = torch.relu(D.need - f(D.x))
    model = cn.minimize(E(cn.value(problem, at=f(D.x))) + 20 * E(cn.sum(shortage, axis=-1)))
    solution = model.solve(progress=False)
    # variables: W (2 x 2), then x (3) and shortage (2) per scenario
    size, rows, rhs_ = 4 + 6 * 5, [], []
    c = np.concatenate([np.zeros(4), np.tile(np.r_[COST.numpy(), 20, 20] / 6, 6)])
    for i in range(6):
        for k in range(2):
            cover, short = np.zeros(size), np.zeros(size)
            cover[2 * k : 2 * k + 2] = features[i]
            cover[4 + 5 * i : 7 + 5 * i] = -A[k]
            short[2 * k : 2 * k + 2] = -features[i]
            short[7 + 5 * i + k] = -1
            rows += [cover, short]
            rhs_ += [0, -need[i, k]]
    bounds = [(None, None)] * 4 + ([(0, 9)] * 3 + [(0, None)] * 2) * 6
    reference = linprog(c, A_ub=np.array(rows), b_ub=np.array(rhs_), bounds=bounds)
    assert str(solution.status) == "optimal"
    assert float(solution.objective) == pytest.approx(reference.fun, abs=1e-6)


def test_what_is_not_certified_is_said():
    x, t = cn.Variable(2, "x", bounds=(0, 2)), cn.Parameter("t")
    on = cn.Variable(2, "on", boolean=True)
    u = cn.Variable((), "u", bounds=(0.5, 1))
    for problem, at, text in [
        (
            cn.minimize(cn.sum(x)).subject_to(c=t * x[0] + x[1] >= 1),
            u,
            "certified convex in variables and para",
        ),
        (cn.minimize(cn.sum(x + on)).subject_to(c=x + on >= t), u, "its integer variables (on) make it jump"),
        (
            cn.minimize(cn.sum(x)).subject_to(c=x >= t),
            u**3 - u,
            "value(u³ - u) is convex in its parameters, and",
        ),
    ]:
        told = str(cn.minimize(cn.value(problem, at=at) + u).explain())
        assert "not certified convex" in told
        assert text in told
    floor = cn.minimize(cn.sum(x)).subject_to(c=x >= t)
    told = str(cn.maximize(cn.value(floor, at=u)).explain())
    assert "-value(u) is concave because of value(u); convex is needed" in told


def test_what_cannot_be_written_out_is_said():
    problem, _ = made(bids)
    u = cn.Variable(2, "u", bounds=(0, 1))
    told = str(cn.minimize(cn.value(problem, at=u)).explain())
    assert "convex in all decisions" in told
    assert (
        "cvxpy      closed an inner problem is written out in place of its value where it is convex in"
        in told
    )
    many = cn.Data("many", x=torch.zeros(3000, 2))
    w = cn.Variable(2, "w")
    told = str(cn.minimize(E(cn.value(made(rhs)[0], at=many.x + w))).explain())
    assert "its inner problem would be written out for 3,000 rows, more than 1,000" in told
