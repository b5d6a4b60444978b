"""Kinks and constraints of every row in Newton's method: the algebra against dense matrices, optima."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import constrain as cn
from constrain import E
from constrain.lowering.lower import lower
from constrain.solvers.kinks import kinks_left, without_kinks
from constrain.solvers.row_system import RowBlock, RowFactor, RowHessian, RowJacobian, RowLayout


# ------------------------------------------------------------------------------------------- the algebra
def system(rows, x, p, k, d, seed=0):
    """A random system whose decisions and constraints are in any order."""
    rng = np.random.default_rng(seed)
    places, entries = rng.permutation(x + rows * k), rng.permutation(d + rows * p)
    block = RowBlock(places[x:].reshape(rows, k), entries[d:].reshape(rows, p))
    layout = RowLayout(len(places), len(entries), places[:x], entries[:d], [block])
    J = RowJacobian(
        layout, rng.normal(size=(d, x)), [rng.normal(size=(d, rows, k))],
        [rng.normal(size=(rows, p, x))], [rng.normal(size=(rows, p, k))],
    )  # fmt: skip
    xx, uu = rng.normal(size=(x, x)), rng.normal(size=(rows, k, k))
    W = RowHessian(xx + xx.T, [0.1 * rng.normal(size=(rows, k, x))], [uu + uu.transpose(0, 2, 1)])
    return W, J, rng.uniform(0, 1, layout.n), 10 ** rng.uniform(-6, 1, layout.m)


def dense(W, J, D, C):
    eye = np.eye(J.layout.n)
    A = np.stack([J.push(e) for e in eye], 1)
    H = np.stack([W.times(e, J.layout) for e in eye], 1)
    np.testing.assert_allclose(np.stack([J.pull(e) for e in np.eye(J.layout.m)], 1), A.T, atol=1e-12)
    np.testing.assert_allclose(J.norms(), np.linalg.norm(A, axis=1), atol=1e-12)
    return np.block([[H + np.diag(D), A.T], [A, -np.diag(C)]])


@pytest.mark.parametrize(("p", "k", "d"), [(2, 1, 2), (4, 2, 1), (3, 1, 0), (2, 0, 2), (7, 4, 1)])
def test_eliminating_rows_solves_the_system_and_finds_its_inertia(p, k, d):
    W, J, D, C = system(40, 5, p, k, d)
    whole = dense(W, J, D, C)
    factor = RowFactor(W, J, D, C)
    right = np.random.default_rng(1).normal(size=len(whole))
    found = factor.solve(right)
    np.testing.assert_allclose(found, np.linalg.solve(whole, right), rtol=1e-6, atol=1e-8)
    assert factor.negative == (np.linalg.eigvalsh(whole) < 0).sum()


def test_constraints_that_do_not_count_have_no_multiplier():
    W, J, D, C = system(30, 4, 2, 1, 2)
    C[J.layout.blocks[0].c[::3, 0]] = np.inf
    C[J.layout.d[0]] = np.inf
    right = np.random.default_rng(1).normal(size=len(D) + len(C))
    right[len(D) :][np.isinf(C)] = 0.0
    found = RowFactor(W, J, D, C).solve(right)
    keep = np.concatenate([np.ones(len(D), bool), np.isfinite(C)])
    whole = dense(W, J, D, np.where(np.isfinite(C), C, 1.0))[np.ix_(keep, keep)]
    np.testing.assert_allclose(found[keep], np.linalg.solve(whole, right[keep]), rtol=1e-6, atol=1e-8)
    assert (found[~keep] == 0).all()


# ----------------------------------------------------------------------------------------- convex optima
def sample(rows=300, features=5):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, features))
    y = x @ np.arange(1, features + 1) / 3 + rng.standard_t(2, size=rows)
    group = ["a" if i % 3 else "b" for i in range(rows)]
    return cn.Data("sample", x=torch.tensor(x), y=torch.tensor(y), g=group)


def convex(D, w):
    score, off = D.x @ w, D.x @ w - D.y
    near = abs(E(score, given=D.g == "a") - E(score)) <= 0.01
    return {
        "least deviations": cn.minimize(E(abs(off))),
        "in a ball": cn.minimize(E(abs(off))).subject_to(ball=cn.sum_squares(w) <= 1),
        "tail": cn.minimize(cn.CVaR(off**2, 0.9)),
        "margins": cn.minimize(
            E(torch.relu(1 - torch.sign(D.y) * score)) + 0.01 * cn.sum_squares(w)
        ).subject_to(near=near),
        "tail bound": cn.minimize(E(off**2)).subject_to(tail=cn.CVaR(abs(score), 0.8) <= 1.0),
        "groups": cn.minimize(E(abs(off))).subject_to(groups=E(torch.relu(score), by=D.g) <= 0.5),
        "tails of groups": cn.minimize(E(off**2)).subject_to(tails=cn.CVaR(score, 0.7, by=D.g) <= 0.5),
        "one group": cn.minimize(cn.sum_squares(w)).subject_to(one=E(abs(off), given=D.g == "a") <= 1.5),
        "constraints of rows": cn.minimize(E(abs(off))).subject_to(rows=cn.forall(D, abs(score) <= 6.0)),
        "no kink": cn.minimize(E(off**2)).subject_to(rows=cn.forall(D, score <= 2.0)),
        "1-norm of rows": cn.minimize(E(cn.norm(D.x * w, 1)) - w[0] + cn.sum_squares(w)),
        "squared": cn.minimize(E(torch.relu(off) ** 2) + E(torch.relu(-off))),
        "of decisions": cn.minimize(E(off**2 + 0.3 * cn.sum(abs(w)))),
    }


@pytest.mark.parametrize("name", convex(sample(), cn.Variable(5, "w")))
def test_convex_problems_with_kinks_in_rows_are_solved_exactly(name):
    expected = convex(sample(), cn.Variable(5, "w"))[name].solve("cvxpy", progress=False)
    found = convex(sample(), cn.Variable(5, "w"))[name].solve("newton", progress=False)
    assert found.status.value == "optimal"
    assert found.objective == pytest.approx(expected.objective, rel=1e-7, abs=1e-7)
    assert found.bound == pytest.approx(expected.objective, rel=1e-7, abs=1e-7)
    assert len(found.history) <= 60
    assert set(found.multipliers) == set(expected.multipliers)
    for key, value in expected.multipliers.items():
        np.testing.assert_allclose(found.multipliers[key], value, rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------------------------- nonconvex optima
RNG = np.random.default_rng(1)
X, T = RNG.normal(size=(60, 3)), RNG.uniform(-1, 1, 60)
Y = np.exp(0.8 * T) + 0.3 + 0.1 * RNG.standard_t(2, 60)


def curve(w):
    return np.exp(w[0] * T) + w[1] - Y


def nonconvex(name):
    """The problem, its start, the terms of the kink, and with slack variables: objective, constraints."""
    D = cn.Data("curve", x=torch.tensor(X), t=torch.tensor(T), y=torch.tensor(Y))
    w = cn.Variable(3 if name in ("sphere", "product") else 2, "w")
    off = torch.exp(w[0] * D.t) + w[1] - D.y

    def both(w):
        return [curve(w), -curve(w)]

    match name:
        case "curve":
            return w, cn.minimize(E(abs(off))), [0.1, 0.0], both, lambda _w, u: u.mean(), []
        case "outer":
            problem = cn.minimize(torch.exp(E(abs(off))))
            return w, problem, [0.1, 0.0], both, lambda _w, u: np.exp(u.mean()), []
        case "nested":
            problem = cn.minimize(E(torch.relu(abs(off) - 0.1)))
            terms = lambda w: [curve(w) - 0.1, -curve(w) - 0.1, np.zeros(60)]  # noqa: E731
            return w, problem, [0.1, 0.0], terms, lambda _w, u: u.mean(), []
        case "sphere":
            problem = cn.minimize(E(abs(D.x @ w))).subject_to(sphere=cn.sum_squares(w) == 1)
            unit = [("eq", lambda w, _u: w @ w - 1)]
            return w, problem, [1.0, 0.2, 0.1], lambda w: [X @ w, -X @ w], lambda _w, u: u.mean(), unit
        case "product":
            loss = E(torch.relu(torch.tanh(D.x @ w) - 0.2 * D.y))
            problem = cn.minimize(loss).subject_to(product=w[0] * w[1] * w[2] >= 0.5)
            terms = lambda w: [np.tanh(X @ w) - 0.2 * Y, np.zeros(60)]  # noqa: E731
            above = [("ineq", lambda w, _u: w[0] * w[1] * w[2] - 0.5)]
            return w, problem, [1.0, 1.0, 1.0], terms, lambda _w, u: u.mean(), above
        case _:
            bound = E(torch.relu(D.x[0] * w[0] + D.t * w[1] ** 2 - 0.1)) <= 0.3
            f = torch.sin(w[0]) + w[1] ** 2 - w[0] * w[1] + 0.1 * w[0] ** 4
            terms = lambda w: [X[:, 0] * w[0] + T * w[1] ** 2 - 0.1, np.zeros(60)]  # noqa: E731
            value = lambda w, _u: np.sin(w[0]) + w[1] ** 2 - w[0] * w[1] + 0.1 * w[0] ** 4  # noqa: E731
            low = [("ineq", lambda _w, u: 0.3 - u.mean())]
            return w, cn.minimize(f).subject_to(bound=bound), [0.5, 0.5], terms, value, low


@pytest.mark.parametrize("name", ["curve", "outer", "nested", "sphere", "product", "bound"])
def test_nonconvex_problems_with_kinks_in_rows_end_where_slsqp_does(name):
    """SLSQP solves the same problem, with a slack variable per row written by hand."""
    w, problem, start, terms, value, constraints = nonconvex(name)
    w.value, d = start, len(start)
    start = np.asarray(start)
    found = problem.solve(progress=False)
    bounds = [
        {"type": "ineq", "fun": lambda z, j=j: z[d:] - terms(z[:d])[j]} for j in range(len(terms(start)))
    ]
    further = [{"type": kind, "fun": lambda z, c=c: c(z[:d], z[d:])} for kind, c in constraints]
    expected = minimize(
        lambda z: value(z[:d], z[d:]), np.concatenate([start, np.max(terms(start), 0)]), method="SLSQP",
        constraints=[*bounds, *further], options={"maxiter": 1000, "ftol": 1e-13},
    )  # fmt: skip
    assert "interior point" in found.provenance.solver
    assert found.status.value == "stationary"
    assert found.objective == pytest.approx(expected.fun, rel=1e-6)
    assert found.kkt().stationarity <= 1e-10


# ---------------------------------------------------------------------------------------------- the rule
def test_only_kinks_on_the_right_side_are_replaced():
    D = sample(30)
    w = cn.Variable(5, "w")
    off = D.x @ w - D.y
    assert kinks_left(lower(cn.minimize(E(abs(off))))) is None
    assert kinks_left(lower(cn.maximize(E(cn.minimum(off, 1.0))))) is None
    assert kinks_left(lower(cn.maximize(E(abs(off))))) is not None
    assert kinks_left(lower(cn.minimize(cn.sum_squares(w)).subject_to(c=E(abs(off)) >= 1))) is not None
    assert kinks_left(lower(cn.minimize(E(torch.sign(off))))) is not None
    assert kinks_left(lower(cn.minimize(E(cn.max(D.x * w))))) is not None  # of the entries of a row


def test_equal_kinks_share_a_slack_variable_on_the_rows_that_count():
    D = sample(30)
    w = cn.Variable(5, "w")
    off = abs(D.x @ w - D.y)
    some = cn.minimize(E(off, given=D.g == "a")).subject_to(c=E(off, given=D.x[0] > 0) <= 1)
    (kink,) = without_kinks(lower(some))[1]
    assert len(kink.events) == 2
    (kink,) = without_kinks(lower(some.subject_to(d=E(off) <= 2)))[1]
    assert kink.events is None


def test_an_infeasible_bound_on_rows_is_called_so():
    D = sample(60)
    w = cn.Variable(5, "w")
    problem = cn.minimize(cn.sum_squares(w)).subject_to(c=E(abs(D.x @ w - D.y)) <= 0.01)
    assert problem.solve("newton", progress=False).status.value == "likely_infeasible"


def test_a_time_limit_stops_within_a_hessian():
    D = sample(400)
    w = cn.Variable(5, "w")
    problem = cn.minimize(E(abs(D.x @ w - D.y)))
    solution = problem.solve("newton", time_limit=1e-6, progress=False)
    assert solution.message == "time limit"
    assert np.isfinite(w.value).all()
