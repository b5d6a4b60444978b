"""Statistics beside the average: exact values by NumPy, optima by CVXPY, SciPy and closed forms, prices."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.stats import qmc

import constrain as cn
from constrain import E
from constrain.language import nodes as n
from constrain.lowering.classify import classify
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator

RNG = np.random.default_rng(7)
ROWS = 120
X = RNG.normal(size=(ROWS, 3)) * [1.0, 0.5, 0.3] + [0.1, 0.05, 0.03]
Y = RNG.random(ROWS)
GROUP = np.array(["a", "b", "b", "c"] * (ROWS // 4))
SIDE = np.arange(ROWS) % 3 % 2
W = np.array([1.0, -2.0, 0.5])
BASE = np.array([0.8, -0.6, 0.4])


def data():
    return cn.Data("d", x=X, y=Y, g=GROUP, s=SIDE)


def variable(nonneg=False):
    return cn.Variable(3, "w", nonneg=nonneg)


def evaluator_of(problem, at=W):
    program = lower(problem)
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    for symbol, tensor in decisions.variables.items():
        if symbol.name == "w":
            tensor.data.copy_(torch.as_tensor(at))
    return Evaluator(program, decisions, dtype=torch.float64, chunk=17)


def value_of(statistic, at=W):
    """Exact value of a deterministic expression, by the left side of a constraint about it."""
    evaluator = evaluator_of(cn.find().subject_to(c=statistic <= 1e9), at)
    return evaluator.sides()[0][0].numpy()


# ----------------------------------------------------------------------------------------- exact values
def tail_mean(v, level):
    """The average of the worst 1 - level of the rows, of which one may count in part."""
    worst = np.sort(v, axis=0)[::-1]
    count = len(v) * (1 - level)
    whole = int(np.floor(count + 1e-9))
    rest = (count - whole) * worst[whole] if count - whole > 1e-9 else 0.0
    return (worst[:whole].sum(0) + rest) / count


STATISTICS = {
    "var": (lambda e, h, **k: cn.Var(e, **k), lambda v, h: v.var(0)),
    "deviation": (lambda e, h, **k: cn.sqrt(cn.Var(e, **k)), lambda v, h: v.std(0)),
    "root": (lambda e, h, **k: cn.Var(e, **k) ** 0.5, lambda v, h: v.std(0)),
    "cov": (cn.Cov, lambda v, h: ((v - v.mean(0)) * (h - h.mean(0))).mean(0)),
    "cov, other way": (
        lambda e, h, **k: cn.Cov(h, e, **k),
        lambda v, h: ((v - v.mean(0)) * (h - h.mean(0))).mean(0),
    ),
    "cov of two": (
        lambda e, h, **k: cn.Cov(e, e * h, **k),
        lambda v, h: (v * v * h).mean(0) - v.mean(0) * (v * h).mean(0),
    ),
    "corr": (
        cn.Corr,
        lambda v, h: ((v - v.mean(0)) * (h - h.mean(0))).mean(0) / v.std(0) / h.std(0),
    ),
    "cvar": (lambda e, h, **k: cn.CVaR(e, 0.9, **k), lambda v, h: tail_mean(v, 0.9)),
    "cvar of a share of a row": (lambda e, h, **k: cn.CVaR(e, 0.937, **k), lambda v, h: tail_mean(v, 0.937)),
    "cvar held": (lambda e, h, **k: -cn.CVaR(e, 0.8, **k), lambda v, h: -tail_mean(v, 0.8)),
    "quantile": (
        lambda e, h, **k: cn.Quantile(e, 0.31, **k),
        lambda v, h: np.quantile(v, 0.31, method="inverted_cdf", axis=0),
    ),
    "median": (
        lambda e, h, **k: cn.Quantile(e, 0.5, **k),
        lambda v, h: np.quantile(v, 0.5, method="inverted_cdf", axis=0),
    ),
}  # fmt: skip
CONDITIONS = {
    "all": (lambda D, e: {}, lambda v: [np.full(ROWS, True)]),
    "given": (lambda D, e: {"given": D.y > 0.3}, lambda v: [Y > 0.3]),
    "by": (lambda D, e: {"by": D.g}, lambda v: [level == GROUP for level in "abc"]),
    "by numbers": (lambda D, e: {"by": D.s}, lambda v: [level == SIDE for level in (0, 1)]),
    "given and by": (
        lambda D, e: {"given": (D.y > 0.1) | (D.s == 1), "by": D.g},
        lambda v: [(level == GROUP) & ((Y > 0.1) | (SIDE == 1)) for level in "abc"],
    ),
    "by two": (
        lambda D, e: {"by": (D.g, D.s)},
        lambda v: [(a == GROUP) & (b == SIDE) for a in "abc" for b in (0, 1)],
    ),
    "given decisions": (lambda D, e: {"given": e > 0}, lambda v: [v > 0]),
    "given decisions, by": (
        lambda D, e: {"given": e > 0, "by": D.g},
        lambda v: [(v > 0) & (level == GROUP) for level in "abc"],
    ),
}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", STATISTICS)
def test_value(name, condition):
    make, expected = STATISTICS[name]
    conditions, masks = CONDITIONS[condition]
    D, w = data(), variable()
    e, v = D.x @ w, X @ W
    found = value_of(make(e, D.y, **conditions(D, e)))
    each = [expected(v[mask], Y[mask]) for mask in masks(v)]
    np.testing.assert_allclose(found, each if np.ndim(found) else each[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("condition", ["all", "given and by"])
@pytest.mark.parametrize("name", STATISTICS)
def test_value_of_vectors(name, condition):
    make, expected = STATISTICS[name]
    conditions, masks = CONDITIONS[condition]
    D, w = data(), variable()
    found = value_of(make(D.x * w, D.x + 1.0, **conditions(D, None)))
    each = [expected((X * W)[mask], (X + 1)[mask]) for mask in masks(None)]
    np.testing.assert_allclose(found, each if found.ndim == 2 else each[0], rtol=1e-10, atol=1e-12)


def test_a_statistic_of_the_data_is_a_number():
    D = data()
    for make, expected in STATISTICS.values():
        problem = cn.find().subject_to(c=make(D.x[0], D.y) <= variable()[0])
        np.testing.assert_allclose(evaluator_of(problem).sides()[0][0], expected(X[:, 0], Y), rtol=1e-10)
        assert not lower(problem).auxiliary
        assert classify(lower(problem)).problem_class == "LP"
        assert problem.solve("cvxpy", progress=False)["c"].value == pytest.approx(expected(X[:, 0], Y))


def test_a_variance_far_from_zero_loses_no_digits_in_single_precision():
    shifted = np.float32(1e4) + RNG.normal(size=2000).astype(np.float32)
    D, w = cn.Data("far", x=shifted), cn.Variable((), "w")
    w.value = 3.0
    program = lower(cn.find().subject_to(c=cn.Var(D.x * w) <= 1))
    decisions = Decisions(program, torch.device("cpu"), torch.float32)
    evaluator = Evaluator(program, decisions, dtype=torch.float32)
    assert float(evaluator.sides()[0][0]) == pytest.approx(9 * float(shifted.astype(float).var()), rel=1e-3)
    product = (3 * shifted) ** 2  # the plain difference of squares
    assert abs(float(product.mean() - (3 * shifted).mean() ** 2) / (9 * shifted.var()) - 1) > 0.1


# ---------------------------------------------------------------------------------------------- printing
PRINTED = {
    "CVaR[x @ w, 0.9 | y > 0.5, by g]": (
        lambda D, w: cn.CVaR(D.x @ w, 0.9, given=D.y > 0.5, by=D.g),
        "cn.CVaR(d.x @ w, 0.9, given=d.y > 0.5, by=d.g)",
        r"\operatorname{CVaR}_{0.9}\left[x \, w \mid y > 0.5, g\right]",
    ),
    "Cov[x @ w, y | by g, s]": (
        lambda D, w: cn.Cov(D.x @ w, D.y, by=(D.g, D.s)),
        "cn.Cov(d.x @ w, d.y, by=(d.g, d.s))",
        r"\operatorname{Cov}\left[x \, w, y \mid g, s\right]",
    ),
    "√Var[x @ w]": (
        lambda D, w: cn.sqrt(cn.Var(D.x @ w)),
        "cn.sqrt(cn.Var(d.x @ w))",
        r"\sqrt{\operatorname{Var}\left[x \, w\right]}",
    ),
    "‖Quantile[x @ w, 0.5 | by g]‖₁": (
        lambda D, w: cn.norm(cn.Quantile(D.x @ w, 0.5, by=D.g), 1),
        "cn.norm(cn.Quantile(d.x @ w, 0.5, by=d.g), ord=1.0)",
        r"\left\|\operatorname{Quantile}_{0.5}\left[x \, w \mid g\right]\right\|_1",
    ),
    "logsumexp(Corr[x @ w, y | by g])": (
        lambda D, w: cn.logsumexp(cn.Corr(D.x @ w, D.y, by=D.g)),
        "cn.logsumexp(cn.Corr(d.x @ w, d.y, by=d.g))",
        r"\operatorname{logsumexp}\left(\operatorname{Corr}\left[x \, w, y \mid g\right]\right)",
    ),
    "‖Var[x @ w | by g]‖²": (
        lambda D, w: cn.sum_squares(cn.Var(D.x @ w, by=D.g)),
        "cn.sum_squares(cn.Var(d.x @ w, by=d.g))",
        r"\left\|\operatorname{Var}\left[x \, w \mid g\right]\right\|_2^2",
    ),
}


@pytest.mark.parametrize("text", PRINTED)
def test_printing(text):
    make, source, latex = PRINTED[text]
    D, w = data(), variable()
    e = make(D, w)
    assert str(e) == text
    assert repr(e) == source
    assert e._repr_latex_() == f"${latex}$"
    problem = cn.find().subject_to(c=e <= 1)
    assert eval(repr(problem), problem.symbols()) == problem
    again = cn.from_json(problem.to_json(), {"d": D, "w": w})
    assert again == problem


# ------------------------------------------------------------------------------------- convex programs
def rows_of(level):
    return np.flatnonzero(level == GROUP)


def np_means(w):
    return cp.hstack([cp.sum(X[rows_of(k)] @ w) / len(rows_of(k)) for k in "abc"])


def np_cvar(w, rows=slice(None), level=0.9):
    t = cp.Variable()
    loss = -X[rows] @ w
    return t + cp.sum(cp.pos(loss - t)) / loss.shape[0] / (1 - level)


def np_var(w, rows=slice(None)):
    v = X[rows] @ w
    return cp.sum_squares(v - cp.sum(v) / v.shape[0]) / v.shape[0]


# name: problem of (D, w), the same written for cvxpy (objective to minimize, constraints), class
PROGRAMS = {
    "portfolio with a CVaR limit": (
        lambda D, w: cn.maximize(E(D.x @ w)).subject_to(
            tail=cn.CVaR(-(D.x @ w), 0.9) <= 0.42, budget=cn.sum(w) == 1
        ),
        lambda w: (-cp.sum(X @ w) / ROWS, [np_cvar(w) <= 0.42, cp.sum(w) == 1]),
        "LP",
    ),
    "least CVaR": (
        lambda D, w: cn.minimize(cn.CVaR(-(D.x @ w), 0.9)).subject_to(budget=cn.sum(w) == 1),
        lambda w: (np_cvar(w), [cp.sum(w) == 1]),
        "LP",
    ),
    "CVaR by level": (
        lambda D, w: cn.maximize(E(D.x @ w)).subject_to(
            tail=cn.CVaR(-(D.x @ w), 0.9, by=D.g) <= 0.5, budget=cn.sum(w) == 1
        ),
        lambda w: (
            -cp.sum(X @ w) / ROWS,
            [cp.hstack([np_cvar(w, rows_of(k)) for k in "abc"]) <= 0.5, cp.sum(w) == 1],
        ),
        "LP",
    ),
    "worst level's CVaR": (
        lambda D, w: cn.minimize(cn.max(cn.CVaR(-(D.x @ w), 0.9, by=D.g))).subject_to(budget=cn.sum(w) == 1),
        lambda w: (cp.max(cp.hstack([np_cvar(w, rows_of(k)) for k in "abc"])), [cp.sum(w) == 1]),
        "LP",
    ),
    "CVaR against that of a benchmark": (
        lambda D, w: cn.maximize(E(D.x @ w)).subject_to(
            tail=cn.CVaR(-(D.x @ w), 0.9) <= cn.CVaR(-D.x[1] / 2, 0.9), budget=cn.sum(w) == 1
        ),
        lambda w: (
            -cp.sum(X @ w) / ROWS,
            [np_cvar(w) <= tail_mean(-X[:, 1] / 2, 0.9), cp.sum(w) == 1],
        ),
        "LP",
    ),
    "least variance": (
        lambda D, w: cn.minimize(cn.Var(D.x @ w)).subject_to(mean=E(D.x @ w) >= 0.012, budget=cn.sum(w) == 1),
        lambda w: (np_var(w), [-cp.sum(X @ w) / ROWS <= -0.012, cp.sum(w) == 1]),
        "QP",
    ),
    "variance limit": (
        lambda D, w: cn.maximize(E(D.x @ w)).subject_to(risk=cn.Var(D.x @ w) <= 0.065, budget=cn.sum(w) == 1),
        lambda w: (-cp.sum(X @ w) / ROWS, [np_var(w) <= 0.065, cp.sum(w) == 1]),
        "cone",
    ),
    "deviation limit": (
        lambda D, w: cn.maximize(E(D.x @ w)).subject_to(
            risk=cn.sqrt(cn.Var(D.x @ w)) <= 0.255, budget=cn.sum(w) == 1
        ),
        lambda w: (-cp.sum(X @ w) / ROWS, [np_var(w) <= 0.255**2, cp.sum(w) == 1]),
        "cone",
    ),
    "variances by level": (
        lambda D, w: cn.maximize(E(D.x @ w)).subject_to(
            risk=cn.Var(D.x @ w, by=D.g) <= 0.07, budget=cn.sum(w) == 1
        ),
        lambda w: (
            -cp.sum(X @ w) / ROWS,
            [cp.hstack([np_var(w, rows_of(k)) for k in "abc"]) <= 0.07, cp.sum(w) == 1],
        ),
        "cone",
    ),
    "covariance with data": (
        lambda D, w: cn.minimize(cn.sum_squares(w - BASE)).subject_to(c=abs(cn.Cov(D.x @ w, D.y)) <= 1e-3),
        lambda w: (cp.sum_squares(w - BASE), [cp.abs((Y - Y.mean()) @ (X @ w) / ROWS) <= 1e-3]),
        "QP",
    ),
    "distance of levels": (
        lambda D, w: cn.minimize(cn.sum_squares(w - BASE)).subject_to(
            c=cn.norm(E(D.x @ w, by=D.g) - E(D.x @ w)) <= 0.02
        ),
        lambda w: (
            cp.sum_squares(w - BASE),
            [cp.norm(np_means(w) - cp.sum(X @ w) / ROWS) <= 0.02],
        ),
        "cone",
    ),
    "squares and soft maximum of levels": (
        lambda D, w: cn.minimize(cn.sum_squares(E(D.x @ w, by=D.g) - 0.1) + cn.sum_squares(w)).subject_to(
            c=cn.logsumexp(-E(D.x @ w, by=D.g)) <= 0.9
        ),
        lambda w: (
            cp.sum_squares(np_means(w) - 0.1)
            + cp.sum_squares(w),
            [cp.log_sum_exp(-np_means(w)) <= 0.9],
        ),
        "cone",
    ),
}  # fmt: skip
FREE = ("covariance with data", "distance of levels", "squares and soft maximum of levels")


@pytest.mark.parametrize("name", PROGRAMS)
def test_optimum_of_a_convex_program(name):
    """Certified, and the same optimum and multiplier as the program written for cvxpy by hand."""
    make, by_hand, kind = PROGRAMS[name]
    problem = make(data(), variable(nonneg=name not in FREE))
    assert classify(lower(problem)).problem_class == kind
    solution = problem.solve(progress=False)
    assert solution.status is cn.Status.OPTIMAL
    w = cp.Variable(3, nonneg=name not in FREE)
    objective, constraints = by_hand(w)
    reference = cp.Problem(cp.Minimize(objective), constraints)
    reference.solve(solver="CLARABEL")
    sign = -1 if problem.sense == "maximize" else 1
    assert solution.objective == pytest.approx(sign * reference.value, rel=1e-5, abs=1e-7)
    found = solution[solution.names[0]]
    if name != "deviation limit":
        dual = np.sum(constraints[0].dual_value)
        assert np.sum(found.multiplier) == pytest.approx(dual, rel=2e-3, abs=2e-5)
    else:
        dual = np.sum(constraints[0].dual_value) * 2 * 0.255  # d(sd^2) = 2 sd d(sd)
        assert found.multiplier == pytest.approx(dual, rel=2e-3)


@pytest.mark.parametrize(
    "name", ["variance limit", "least variance", "covariance with data", "variances by level"]
)
def test_optimum_by_the_augmented_lagrangian(name):
    make, _, _ = PROGRAMS[name]
    problem = make(data(), variable(nonneg=name not in FREE))
    exact = problem.solve("cvxpy", progress=False)
    found = problem.solve("augmented", progress=False)
    assert found.objective == pytest.approx(exact.objective, rel=1e-5, abs=1e-7)
    first = exact.names[0]
    np.testing.assert_allclose(found[first].multiplier, exact[first].multiplier, rtol=2e-3, atol=1e-4)


def test_a_linear_program_with_a_tail_by_the_augmented_lagrangian():
    problem = PROGRAMS["portfolio with a CVaR limit"][0](data(), variable(nonneg=True))
    exact = problem.solve("cvxpy", progress=False)
    found = problem.solve("augmented", progress=False)
    assert found.objective == pytest.approx(exact.objective, rel=1e-3)
    assert found["tail"].value == pytest.approx(0.42, abs=1e-4)


# --------------------------------------------------------------------------------------------- curvature
CURVATURE = {
    "variance": (lambda D, w: cn.Var(D.x @ w), "convex", "quadratic"),
    "worst variance": (lambda D, w: cn.max(cn.Var(D.x @ w, by=D.g)), "convex", "general"),
    "deviation": (lambda D, w: cn.sqrt(cn.Var(D.x @ w, given=D.y > 0.5)), "convex", "general"),
    "sum of deviations": (lambda D, w: cn.sum(cn.sqrt(cn.Var(D.x @ w, by=D.g))), "convex", "general"),
    "covariance with data": (lambda D, w: cn.Cov(D.x @ w, D.y), "affine", "affine"),
    "CVaR": (lambda D, w: cn.CVaR(D.x @ w, 0.7), "convex", "piecewise"),
    "CVaR of a convex loss": (lambda D, w: cn.CVaR((D.x @ w - D.y) ** 2, 0.7), "convex", "general"),
    "worst CVaR": (lambda D, w: cn.max(cn.CVaR(abs(D.x @ w), 0.7, by=D.g)), "convex", "piecewise"),
    "norm of levels": (lambda D, w: cn.norm(E(D.x @ w, by=D.g)), "convex", "general"),
    "one norm of levels": (lambda D, w: cn.norm(E(D.x @ w, by=D.g), 1), "convex", "piecewise"),
    "squares of levels": (lambda D, w: cn.sum_squares(E(D.x @ w, by=D.g)), "convex", "quadratic"),
    "soft maximum of levels": (lambda D, w: cn.logsumexp(E(D.x @ w, by=D.g)), "convex", "general"),
}
REFUSED = {
    "variance of a curve": (
        lambda D, w: cn.Var((D.x @ w) ** 2), "the variance is convex only in affine expressions"),
    "variance over decided rows": (lambda D, w: cn.Var(D.y, given=D.x @ w > 0), "depends on decisions"),
    "covariance of two": (lambda D, w: cn.Cov(D.x @ w, (D.x @ w) * D.y), "is a product of two expressions"),
    "CVaR of a concave loss": (lambda D, w: cn.CVaR(-((D.x @ w) ** 2), 0.7), "is concave, not affine"),
    "negative CVaR": (lambda D, w: -cn.CVaR(D.x @ w, 0.7), "concave"),
    "quantile": (
        lambda D, w: cn.Quantile(D.x @ w, 0.7),
        "the quantile of x @ w depends on decisions: like a rate it is not convex"),
    "correlation": (lambda D, w: cn.Corr(D.x @ w, D.y), "quotient"),
}  # fmt: skip


@pytest.mark.parametrize("name", CURVATURE)
def test_certified_curvature_holds_at_midpoints(name):
    make, curvature, form = CURVATURE[name]
    D, w = data(), variable()
    (term,) = classify(lower(cn.minimize(make(D, w)), use_epigraph=False)).terms
    assert (term.fact.curvature, term.fact.form) == (curvature, form)
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.normal(size=(2, 3))
        middle, ends = (
            value_of(make(D, w), (a + b) / 2),
            (value_of(make(D, w), a) + value_of(make(D, w), b)) / 2,
        )
        assert middle <= ends + 1e-9
        assert curvature == "convex" or middle >= ends - 1e-9


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certified_says_why(name):
    make, reason = REFUSED[name]
    D, w = data(), variable()
    facts = classify(lower(cn.minimize(make(D, w))))
    assert facts.problem_class == "nonconvex"
    assert reason in "\n".join(line for r in facts.reasons for line in r.lines())


# ------------------------------------------------------------------------------------------------ prices
# name: relation of (D, w, b), a bound at which it binds
PRICED = {
    "CVaR": (lambda D, w, b: cn.CVaR(D.x @ w, 0.8) <= b, 1.0),
    "CVaR by level": (lambda D, w, b: cn.CVaR(D.x @ w, 0.8, by=D.g) <= b, 1.0),
    "largest CVaR": (lambda D, w, b: b >= cn.max(cn.CVaR(D.x @ w, 0.8, by=D.g)), 1.0),
    "CVaR given": (lambda D, w, b: cn.CVaR(D.x @ w, 0.7, given=D.y > 0.4) <= b, 0.8),
    "Var": (lambda D, w, b: cn.Var(D.x @ w) <= b, 0.3),
    "Var by level": (lambda D, w, b: cn.Var(D.x @ w, by=D.g) <= b, 0.3),
    "deviation": (lambda D, w, b: cn.sqrt(cn.Var(D.x @ w)) <= b, 0.5),
    "Cov": (lambda D, w, b: cn.Cov(D.x @ w, D.x[0]) <= b, 0.2),
    "norm of levels": (lambda D, w, b: cn.norm(E(D.x @ w, by=D.g)) <= b, 0.05),
}


@pytest.mark.parametrize("name", PRICED)
def test_multiplier_is_the_price_of_the_bound_as_written(name):
    relation, b = PRICED[name]

    def solve(b):
        w = variable()
        problem = cn.minimize(cn.sum_squares(w - BASE)).subject_to(c=relation(data(), w, b))
        return problem.solve("cvxpy", progress=False)

    h = 1e-3
    price = (solve(b + h).objective - solve(b - h).objective) / (2 * h)
    assert abs(price) > 1e-2, "the bound does not bind: nothing is tested"
    found = solve(b)["c"]
    assert np.sum(found.shadow_price) == pytest.approx(price, rel=5e-3, abs=1e-4)
    assert np.sum(found.multiplier) == pytest.approx(abs(price), rel=5e-3, abs=1e-4)


# --------------------------------------------------------------------------------------------- positions
POSITIONS = {
    "at most": (lambda D, w, t: {"c": t <= 1}, True),
    "bound on the right": (lambda D, w, t: {"c": w[0] >= t}, True),
    "times a nonnegative number": (lambda D, w, t: {"c": 2 * t + E(D.x @ w) <= 1}, True),
    "over a nonnegative rate": (lambda D, w, t: {"c": t / cn.P(D.y > 0.5) <= 1}, True),
    "less": (lambda D, w, t: {"c": w[0] - t >= -1}, True),
    "in a maximum": (lambda D, w, t: {"c": cn.maximum(t, w[0]) <= 1}, True),
    "softplus": (lambda D, w, t: {"c": cn.softplus(t) <= 1}, True),
    "at least": (lambda D, w, t: {"c": t >= 1}, False),
    "equal": (lambda D, w, t: {"c": t == 1}, False),
    "between": (lambda D, w, t: {"c": cn.between(0, t, 1)}, False),
    "absolute value": (lambda D, w, t: {"c": abs(t) <= 1}, False),
    "bound": (lambda D, w, t: {"c": E(D.x @ w) <= t}, False),
    "times a number of any sign": (lambda D, w, t: {"c": t * w[0] <= 1}, False),
    "both ways": (lambda D, w, t: {"c": t - 0.5 * t <= 1}, False),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_where_the_threshold_is_a_decision(name):
    relations, decided = POSITIONS[name]
    D, w = data(), variable()
    program = lower(cn.find().subject_to(**relations(D, w, cn.CVaR(D.x @ w, 0.9))))
    assert [isinstance(tail.threshold, n.VariableSymbol) for tail in program.tails] == [decided]
    assert len(program.auxiliary) == decided


def test_the_sense_decides_in_objectives():
    D, w = data(), variable()
    t = cn.CVaR(D.x @ w, 0.9)
    assert lower(cn.minimize(t)).auxiliary
    assert lower(cn.maximize(-t)).auxiliary
    assert not lower(cn.maximize(t)).auxiliary
    assert not lower(cn.minimize(-t)).auxiliary


def test_equal_statistics_share_a_threshold():
    D, w = data(), variable()
    t = cn.CVaR(D.x @ w, 0.9)
    other = cn.CVaR(D.x @ w, 0.9)
    program = lower(cn.minimize(t).subject_to(a=other <= 1, b=cn.CVaR(D.x @ w, 0.8) <= 1))
    assert [tail.targets for tail in program.tails] == [("objective", "a"), ("b",)]
    assert len(program.moments) == 2


def test_a_threshold_needs_a_known_shape():
    D, w = cn.Data("d", x=torch.randn(5, 3)), variable()
    f = cn.Model(torch.nn.LazyLinear(1), "f")
    with pytest.raises(cn.ModelingError, match="E151"):
        lower(cn.minimize(cn.CVaR(f(D.x) * w[0], 0.9)))


# ----------------------------------------------------------------- where gradients are those of surrogates
LARGE = 2**13
MIX = np.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.6]])
NORMAL = stats.norm.ppf(qmc.Sobol(3, seed=0).random(LARGE)) @ MIX + [0.3, 0.1, -0.2]
MEAN, COVARIANCE = NORMAL.mean(0), np.cov(NORMAL.T)
SCORE = stats.norm.ppf(0.9)
TAIL = stats.norm.pdf(SCORE) / 0.1


def closed_form(b, factor, sign=1.0):
    """min |w - BASE|^2 with sign * (mean + factor * deviation of x @ w) <= sign * b, for normal x."""

    def margin(w):
        return sign * (b - w @ MEAN - factor * np.sqrt(w @ COVARIANCE @ w))

    constraint = {"type": "ineq", "fun": margin}
    found = optimize.minimize(lambda w: ((w - BASE) ** 2).sum(), BASE, constraints=[constraint])
    assert found.success
    return found.fun


GAUSSIAN = {
    "quantile at most": (lambda e, b: cn.Quantile(e, 0.9) <= b, 0.5, SCORE, 1.0, 1.0),
    "quantile at least": (lambda e, b: cn.Quantile(-e, 0.1) >= -b, 0.5, SCORE, 1.0, -1.0),
    "quantile as a bound": (lambda e, b: b >= cn.Quantile(e, 0.9), 0.5, SCORE, 1.0, 1.0),
    "size of a quantile": (lambda e, b: abs(cn.Quantile(e, 0.9)) <= b, 0.5, SCORE, 1.0, 1.0),
    "quantile equal": (lambda e, b: cn.Quantile(e, 0.9) == b, 0.5, SCORE, 1.0, 1.0),
    "quantile from below": (lambda e, b: cn.Quantile(e, 0.9) >= b, 1.4, SCORE, -1.0, 1.0),
    "CVaR equal": (lambda e, b: cn.CVaR(e, 0.9) == b, 0.8, TAIL, 1.0, 1.0),
    "CVaR at least": (lambda e, b: cn.CVaR(e, 0.9) >= b, 1.9, TAIL, -1.0, 1.0),
}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_tails_of_normal_data_in_any_position(name):
    """Objective and price against the closed form, in which the tail is mean + factor * deviation."""
    relation, b, factor, sign, side = GAUSSIAN[name]
    D, w = cn.Data("large", x=NORMAL), variable()
    w.value = BASE
    solution = (
        cn.minimize(cn.sum_squares(w - BASE))
        .subject_to(c=relation(D.x @ w, b))
        .solve("augmented", progress=False)
    )
    expected = closed_form(b, factor, sign)
    price = (closed_form(b + 1e-3, factor, sign) - closed_form(b - 1e-3, factor, sign)) / 2e-3
    assert solution.objective == pytest.approx(expected, rel=0.03)
    assert solution["c"].value == pytest.approx(side * b, abs=1e-5)
    assert solution["c"].shadow_price == pytest.approx(side * price, rel=0.05)
    if "CVaR" in name:
        at = np.quantile(NORMAL @ solution.variables["w"], 0.9, method="inverted_cdf")
        assert solution["c"].value_at_risk == pytest.approx(at, abs=1e-9)
    low, high = solution["c"].interval
    assert low < solution["c"].value < high


def test_the_interval_of_a_quantile_covers():
    """The delta method through the density: 95 % intervals of medians cover the true one in 88 to 100 %."""
    hits, w = 0, cn.Variable((), "w")
    w.value = 1.0
    for seed in range(60):
        D = cn.Data("d", x=np.random.default_rng(seed).normal(size=400))
        solution = cn.minimize((w - 1) ** 2).subject_to(c=cn.Quantile(D.x * w, 0.5) <= 9)
        kkt = solution.solve("augmented", progress=False)
        low, high = kkt["c"].interval
        hits += low <= 0 <= high
    assert 53 <= hits <= 60


@pytest.mark.parametrize("by", [False, True])
def test_training_with_a_tail(by):
    """Minibatches: the constraint is met exactly in the tail's own value; objective and price agree."""
    D = cn.Data("d", x=NORMAL[:4000], g=np.where(np.arange(4000) % 3 == 0, "a", "b"))
    w = variable()
    e = D.x @ w
    tail = cn.CVaR(e, 0.8, by=D.g) if by else cn.CVaR(e, 0.8)
    problem = cn.minimize(cn.sum_squares(w - BASE)).subject_to(tail=tail <= 0.8)
    exact = problem.solve("cvxpy", progress=False)
    w.value = np.zeros(3)
    found = problem.solve("lagrangian", progress=False, batch=256, epochs=40, lr=1e-2)
    assert found.objective == pytest.approx(exact.objective, rel=0.03)
    assert np.sum(found["tail"].multiplier) == pytest.approx(np.sum(exact["tail"].multiplier), rel=0.05)
    assert np.max(found["tail"].violation) < 2e-3
    np.testing.assert_allclose(found["tail"].value_at_risk, exact["tail"].value_at_risk, atol=0.02)


def test_training_with_a_quantile_and_a_variance():
    D, w = cn.Data("d", x=NORMAL[:6000]), variable()
    e = D.x @ w
    problem = cn.minimize(cn.sum_squares(w - BASE)).subject_to(
        q=cn.Quantile(e, 0.9) <= 0.5, v=cn.Var(e) <= 0.12
    )
    w.value = BASE * 0.5
    exact = problem.solve("augmented", progress=False)
    w.value = np.zeros(3)
    found = problem.solve("lagrangian", progress=False, batch=256, epochs=40, lr=1e-2)
    assert found.objective == pytest.approx(exact.objective, rel=0.03)
    assert found["q"].violation < 5e-3
    assert found["v"].violation < 2e-3
    assert found["v"].multiplier == pytest.approx(exact["v"].multiplier, rel=0.1)


def test_units_change_nothing():
    """A thousandth of the unit: the same run of the training, the multiplier a thousand times as large."""

    def run(unit):
        D, w = cn.Data("d", x=NORMAL[:1000]), variable()
        w.value = BASE
        problem = cn.minimize(cn.sum_squares(w - BASE)).subject_to(
            tail=cn.CVaR(D.x @ w * unit, 0.8) <= 0.6 * unit
        )
        return problem.solve("lagrangian", progress=False, epochs=30, lr=1e-2)["tail"]

    plain, small = run(1.0), run(1e-3)
    assert plain.multiplier > 0.5
    assert small.multiplier * 1e-3 == pytest.approx(plain.multiplier, rel=2e-2)
    assert small.value * 1e3 == pytest.approx(plain.value, rel=1e-2)


# --------------------------------------------------------------------------- ratios and products of rates
def test_a_ratio_of_averages_is_the_optimum_of_scipy():
    def ratio(w):
        score = 1 / (1 + np.exp(-X @ w))
        return (Y * score).mean() / score.mean()

    D, w = data(), variable()
    s = torch.sigmoid(D.x @ w)
    problem = cn.maximize(E(D.y * s) / E(s)).subject_to(size=cn.sum_squares(w) <= 4)
    w.value = np.full(3, 0.1)
    solution = problem.solve("augmented", progress=False)
    bound = {"type": "ineq", "fun": lambda w: 4 - w @ w}
    starts = [optimize.minimize(lambda w: -ratio(w), s, constraints=[bound]) for s in RNG.normal(size=(5, 3))]
    assert solution.objective == pytest.approx(max(-r.fun for r in starts), rel=1e-5)


def test_a_soft_f_score_is_the_optimum_of_scipy():
    label = (X @ [2.0, -1.0, 1.0] + Y > 0.6).astype(float)

    def score(w):
        p = 1 / (1 + np.exp(-(X @ w[:3] + w[3])))
        return 2 * (label * p).mean() / (label.mean() + p.mean())

    D = cn.Data("d", x=X, y=label)
    w, c = variable(), cn.Variable((), "c")
    p = torch.sigmoid(D.x @ w + c)
    f_score = 2 * E(D.y * p) / (E(D.y) + E(p))
    problem = cn.maximize(f_score).subject_to(size=cn.sum_squares(w) + c**2 <= 9)
    w.value, c.value = np.full(3, 0.1), 0.0
    solution = problem.solve("augmented", progress=False)
    bound = {"type": "ineq", "fun": lambda w: 9 - w @ w}
    starts = [optimize.minimize(lambda w: -score(w), s, constraints=[bound]) for s in RNG.normal(size=(6, 4))]
    assert solution.objective == pytest.approx(max(-r.fun for r in starts), rel=1e-4)


def test_a_least_precision_and_odds_are_exact():
    """P, E and arithmetic compose: precision, F-score and odds ratio of a fixed rule, by counting."""
    D, w = data(), variable()
    said, true = D.x @ w > 0, D.y > 0.5
    a, b = X @ W > 0, Y > 0.5
    precision = cn.P(true, given=said)
    recall = cn.P(said, given=true)
    cases = {
        precision: (a & b).sum() / a.sum(),
        2 * precision * recall / (precision + recall): 2 * (a & b).sum() / (a.sum() + b.sum()),
        (cn.P(said, given=true) / cn.P(~said, given=true))
        / (cn.P(said, given=~true) / cn.P(~said, given=~true)): ((a & b).sum() / (~a & b).sum())
        / ((a & ~b).sum() / (~a & ~b).sum()),
    }
    for expression, expected in cases.items():
        assert float(value_of(expression)) == pytest.approx(expected, rel=1e-12)


# -------------------------------------------------------------------------------------------- reporting
def test_the_value_at_risk_is_reported_and_the_threshold_is_not(tmp_path):
    D, w = data(), variable(nonneg=True)
    loss = -(D.x @ w)
    problem = cn.minimize(cn.CVaR(loss, 0.8)).subject_to(
        tail=cn.CVaR(loss, 0.9, by=D.g) <= 0.9, budget=cn.sum(w) == 1
    )
    solution = problem.solve("cvxpy", progress=False)
    at = -X @ solution.variables["w"]
    expected = [np.quantile(at[level == GROUP], 0.9, method="inverted_cdf") for level in "abc"]
    np.testing.assert_allclose(solution["tail"].value_at_risk, expected, rtol=1e-9)
    assert solution.value_at_risk == pytest.approx(np.quantile(at, 0.8, method="inverted_cdf"))
    assert solution["budget"].value_at_risk is None
    assert solution.objective == pytest.approx(tail_mean(at, 0.8))
    assert set(solution.variables) == {"w"}
    assert not any("value-at-risk" in name for name in solution.names)
    assert "value-at-risk" in str(solution)
    solution.save(tmp_path / "run")
    again = cn.load(tmp_path / "run", problem)
    np.testing.assert_allclose(again["tail"].value_at_risk, expected, rtol=1e-9)
    assert again.evaluate(D).objective == pytest.approx(solution.objective)
    assert "hidden" in problem.explain().__str__()


def test_a_hold_out_has_its_own_thresholds():
    """Values on other data are exact there, and the training data's are put back."""
    rng = np.random.default_rng(1)
    D, w = data(), variable()
    other = cn.Data("other", x=rng.normal(size=(70, 3)) + 1, y=rng.random(70), g=["a", "b"] * 35, s=[0] * 70)
    e = D.x @ w
    problem = cn.minimize(cn.sum_squares(w - BASE)).subject_to(
        tail=cn.CVaR(e, 0.9) <= 9,
        held=cn.CVaR(e, 0.9, by=D.g) >= -9,
        median=cn.Quantile(e, 0.5) <= 9,
        spread=cn.Var(e) <= 9,
        cov=cn.Cov(e, D.y) <= 9,
    )
    solution = problem.solve("augmented", holdout=other, progress=False)
    v = np.asarray(other.values("x")) @ solution.variables["w"]
    y, g = np.asarray(other.values("y")), np.asarray(other.values("g"))
    found = {name: solution[name].holdout.value for name in solution.names}
    assert found["tail"] == pytest.approx(tail_mean(v, 0.9))
    np.testing.assert_allclose(found["held"][:2], [tail_mean(v[g == k], 0.9) for k in "ab"])
    assert np.isnan(found["held"][2])
    assert found["median"] == pytest.approx(np.quantile(v, 0.5, method="inverted_cdf"))
    assert found["spread"] == pytest.approx(v.var())
    assert found["cov"] == pytest.approx(np.cov(v, y, bias=True)[0, 1])
    again = solution.evaluate(other)
    assert again["median"].value == pytest.approx(found["median"])
    here = solution.evaluate(D)
    assert here["tail"].value == pytest.approx(tail_mean(X @ solution.variables["w"], 0.9))
    assert solution["tail"].value == pytest.approx(here["tail"].value)


def test_more_levels_than_were_counted_are_refused():
    D, w = data(), variable()
    program = lower(cn.minimize(cn.max(cn.CVaR(D.x @ w, 0.9, by=D.g))))
    more = cn.Data("d", x=X[:8], y=Y[:8], g=list("abcdabcd"), s=SIDE[:8])
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    with pytest.raises(cn.DataError, match="E152"):
        Evaluator(program, decisions, dtype=torch.float64, data={"d": more})
    solution = cn.minimize(cn.max(cn.CVaR(D.x @ w, 0.9, by=D.g)) + cn.sum_squares(w)).solve(
        "augmented", data=more, outer=2, inner=5, progress=False
    )
    assert np.shape(solution.value_at_risk) == (4,)


@pytest.mark.parametrize("kind", ["cvar", "quantile"])
def test_a_loop_of_ones_own(kind):
    """An optimizer that knows only the model: thresholds are set by the Lagrangian, once per pass."""
    torch.manual_seed(0)
    D = cn.Data("d", x=NORMAL[:3000])
    f = cn.Model(torch.nn.Linear(3, 1, bias=False).double(), "f")
    e = f(D.x).squeeze(-1)
    tail = cn.CVaR(e, 0.8) if kind == "cvar" else cn.Quantile(e, 0.8)
    problem = cn.minimize(cn.sum((f(torch.eye(3).double()).squeeze(-1) - BASE) ** 2)).subject_to(
        tail=tail <= 0.5
    )
    lagrangian = problem.compile()
    optimizer = torch.optim.Adam(f.module.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / 60)
    for _ in range(60):
        for index in torch.randperm(len(D)).split(250):
            optimizer.zero_grad()
            lagrangian(D.rows(index)).backward()
            optimizer.step()
            lagrangian.ascend()
        schedule.step()
    v = NORMAL[:3000] @ f.module.weight.detach().numpy().ravel()
    found = tail_mean(v, 0.8) if kind == "cvar" else np.quantile(v, 0.8, method="inverted_cdf")
    assert found == pytest.approx(0.5, abs=0.02)
    score = stats.norm.ppf(0.8)
    factor = stats.norm.pdf(score) / 0.2 if kind == "cvar" else score
    objective = float(((f.module.weight.detach().numpy().ravel() - BASE) ** 2).sum())
    assert objective == pytest.approx(closed_form(0.5, factor), rel=0.1)
    h = 1e-3
    price = (closed_form(0.5 - h, factor) - closed_form(0.5 + h, factor)) / (2 * h)
    assert float(lagrangian.multipliers()["tail"]) == pytest.approx(price, rel=0.1)
