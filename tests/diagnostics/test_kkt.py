"""KKT quantities: against their definitions in NumPy, golden multipliers, and known pathologies."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog, minimize

import constrain as cn
from constrain import E, P, forall
from constrain.diagnostics.kkt import _distance


def check_close(a, b, tolerance=1e-8):
    np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=tolerance, rtol=tolerance)


# ------------------------------------------------------------------- definitions, recomputed in NumPy
def _least_squares(rng, rows=101):
    x, y = rng.normal(size=(rows, 3)), rng.normal(size=rows)
    group = np.array(["a", "b", "c"])[rng.integers(0, 3, rows)]
    w = cn.Variable(3, "w", bounds=(-1.0, 1.0))
    w.value = np.array([0.3, -1.0, 1.0])
    D = cn.Data("d", x=x, y=y, g=group)
    s = D.x @ w
    problem = cn.minimize(E((s - D.y) ** 2)).subject_to(
        parity=abs(E(s, by=D.g) - E(s)) <= 0.2,
        ratio=E(s**2) / E(D.y**2) >= 0.5,
        sphere=cn.sum_squares(w) == 2.0,
    )
    return problem, x, y, group, w.value


def test_quantities_equal_their_definitions(place, rng):
    problem, x, y, group, w = _least_squares(rng)
    lam = {
        "parity:upper": rng.uniform(0, 1, 3),
        "parity:lower": rng.uniform(0, 1, 3),
        "ratio": 0.7,
        "sphere": -0.4,
    }
    record = place(problem).kkt(lam)

    n = len(y)
    s = x @ w
    means = np.stack([x[group == g].mean(0) for g in "abc"]) - x.mean(0)
    gap = means @ w
    gradients = {
        "upper": means,
        "lower": -means,
        "ratio": -(2 * x.T @ s / n) / (y @ y / n),
        "sphere": 2 * w,
    }
    residuals = {
        "parity:upper": gap - 0.2,
        "parity:lower": -gap - 0.2,
        "ratio": 0.5 - (s @ s) / (y @ y),
        "sphere": w @ w - 2,
    }
    objective = 2 * x.T @ (s - y) / n
    lagrangian = (
        objective
        + lam["parity:upper"] @ gradients["upper"]
        + lam["parity:lower"] @ gradients["lower"]
        + lam["ratio"] * gradients["ratio"]
        + lam["sphere"] * gradients["sphere"]
    )
    # w[1] is at its lower bound, where a positive entry is explained; w[2] at its upper one
    projected = lagrangian.copy()
    projected[1] = min(projected[1], 0)
    projected[2] = max(projected[2], 0)
    check_close(
        record.stationarity, np.abs(projected).max(), 1e-5
    )  # active bounds: gradients are taken 1e-6 inside
    check_close(record.violations["sphere"], abs(residuals["sphere"]))
    check_close(record.violations["ratio"], max(0, residuals["ratio"]))
    check_close(
        record.violations["parity"],
        max(0, residuals["parity:upper"].max(), residuals["parity:lower"].max()),
    )
    products = {k: np.abs(lam[k] * residuals[k]).max() for k in lam}
    check_close(record.products["parity"], max(products["parity:upper"], products["parity:lower"]))
    check_close(record.complementarity, max(v for k, v in products.items() if k != "sphere"))
    check_close(record.gap, abs(sum(np.sum(lam[k] * residuals[k]) for k in lam)))
    assert record.gap_kind == "estimate, not a bound"
    assert record.dual_feasibility == 0
    scale = np.abs(objective).max() + sum(
        np.sum(np.abs(lam[k]) * np.abs(np.atleast_2d(gradients[k.split(":")[-1]])).max(axis=1)) for k in lam
    )
    check_close(record.stationarity_scaled, np.abs(projected).max() / scale, 1e-5)


def test_free_decisions_match_to_1e_8(place, rng):
    rows = 60
    x, y = rng.normal(size=(rows, 2)), rng.normal(size=rows)
    D = cn.Data("d", x=x, y=y)
    w = cn.Variable(2, "w")
    w.value = np.array([0.2, -0.5])
    problem = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(
        ball=cn.sum_squares(w) <= 0.1, rows=forall(D.where(D.y > 0), D.x @ w <= 1.5)
    )
    mask = y > 0
    rows_lam = rng.uniform(0, 1, rows) * mask
    full = place(problem).kkt({"ball": 0.5, "rows": rows_lam})
    selected = place(problem).kkt({"ball": 0.5, "rows": rows_lam[mask]})
    grad = 2 * x.T @ (x @ w.value - y) / rows + 0.5 * 2 * w.value + rows_lam @ x
    check_close(full.stationarity, np.abs(grad).max())
    share = 1 - grad @ grad / np.sum((2 * x.T @ (x @ w.value - y) / rows) ** 2)
    check_close(full.force_balance, share if share >= 0 else math.nan)
    assert selected.stationarity == full.stationarity
    check_close(full.violations["rows"], max(0, (x @ w.value - 1.5)[mask].max()))
    check_close(full.products["rows"], np.abs(rows_lam * (x @ w.value - 1.5)).max())


def test_many_rows_enter_as_a_sum(place, rng):
    rows = 700
    x = rng.normal(size=(rows, 2))
    D = cn.Data("d", x=x)
    w = cn.Variable(2, "w")
    w.value = np.array([0.2, -0.5])
    problem = cn.minimize(cn.sum_squares(w)).subject_to(rows=forall(D, D.x @ w >= 1))
    lam = rng.uniform(0.1, 1, rows)
    record = place(problem).kkt({"rows": lam})
    check_close(record.stationarity, np.abs(2 * w.value - lam @ x).max())


def test_negative_multipliers_are_reported(place):
    w = cn.Variable((), "w")
    w.value = 1.0
    record = place(cn.minimize(w**2).subject_to(cap=w <= 1)).kkt({"cap": -2.0})
    assert record.dual_feasibility == -2.0
    check_close(record.stationarity, 0)


# ----------------------------------------------------------------------------------- golden optima
def _two_variables():
    w = cn.Variable(2, "w")
    w.value = np.array([1.5, 0.5])
    problem = cn.minimize(cn.sum_squares(w - np.array([2.0, 1.0]))).subject_to(
        budget=cn.sum(w) <= 2, cap=w[0] <= 5
    )
    return problem, {"budget": 1.0, "cap": 0.0}


def _maximum_entropy():
    z = np.linspace(-10, 10, 401)
    dual = lambda t: np.log(np.sum(np.exp(t[0] * z + t[1] * z**2))) - 0.5 * t[0] - 1.95 * t[1]  # noqa: E731
    t = minimize(dual, [0, -0.2], method="BFGS", options={"gtol": 1e-10}).x
    p = cn.Variable(401, "p", nonneg=True)
    weights = np.exp(t[0] * z + t[1] * z**2)
    p.value = weights / weights.sum()
    squares = z**2
    problem = cn.maximize(cn.sum(cn.entr(p))).subject_to(
        total=cn.sum(p) == 1, mean=z @ p == 0.5, second=squares @ p == 1.95
    )
    return problem, {"second": 0.2941186}


def _trust_region():
    old = np.array([0.1, 0.2, 0.3, 0.4])
    advantage = np.array([1, 0.2, -0.3, -0.5])
    advantage = advantage - old @ advantage

    def new(lam):
        p = old * np.exp(advantage / lam)
        return p / p.sum()

    lam = brentq(lambda m: np.sum(new(m) * np.log(new(m) / old)) - 0.05, 0.1, 50, xtol=1e-14)
    p = cn.Variable(4, "p", nonneg=True)
    p.value = new(lam)
    problem = cn.maximize(advantage @ p).subject_to(
        total=cn.sum(p) == 1, kl=cn.sum(cn.rel_entr(p, old)) <= 0.05
    )
    return problem, {"kl": 1.65065}


def _allocation():
    weights, cost = np.array([0.5, 0.6, 0.8]), np.array([1.0, 2.0, 5.0])
    share = (weights / cost) ** (2 / 3)
    n = cn.Variable(3, "n", nonneg=True)
    n.value = 1000 * share / (cost @ share)
    lam = 0.5 * weights[0] * n.value[0] ** -1.5 / cost[0]
    return cn.minimize(weights @ n**-0.5).subject_to(budget=cost @ n <= 1000), {"budget": lam}


def _projection():
    mean, spread, a = np.array([1, 2, 0.5, 0.3]), np.diag([0.5, 0.2, 1, 0.1]), np.full(4, 0.25)
    nu = (a @ mean - 1.2) / (a @ spread @ a)
    u = cn.Variable(4, "u")
    u.value = mean - nu * spread @ a
    precision = np.linalg.inv(spread)
    problem = cn.minimize(0.5 * cn.quad_form(u - mean, precision)).subject_to(total=0.25 * cn.sum(u) == 1.2)
    return problem, {"total": nu}


def _frozen_lake():
    gym = pytest.importorskip("gymnasium")
    lake = gym.make("FrozenLake-v1", is_slippery=True).unwrapped
    transition, reward, cost = np.zeros((16, 4, 16)), np.zeros((16, 4)), np.zeros((16, 4))
    cells = lake.desc.ravel()
    for s in range(16):
        if cells[s] in (b"H", b"G"):
            continue
        for a in range(4):
            for p, to, r, _ in lake.P[s][a]:
                transition[s, a, to] += p
                reward[s, a] += p * r
                cost[s, a] += p * (cells[to] == b"H")
    start = np.eye(16)[0]
    balance = np.repeat(np.eye(16), 4, axis=1) - 0.99 * transition.reshape(64, 16).T
    found = linprog(-reward.ravel(), cost.reshape(1, -1), [0.1], balance, start, method="highs")
    mu = cn.Variable((16, 4), "mu", nonneg=True)
    mu.value = found.x.reshape(16, 4)
    inflow = 0.99 * torch.einsum("sap,sa->p", torch.as_tensor(transition), mu)
    problem = cn.maximize(cn.sum(reward * mu)).subject_to(
        flow=cn.sum(mu, axis=1) - inflow == start, budget=cn.sum(cost * mu) <= 0.1
    )
    return problem, {"budget": 4.5914705882}


@pytest.mark.parametrize(
    "make", [_two_variables, _maximum_entropy, _trust_region, _allocation, _projection, _frozen_lake]
)
def test_best_fit_multipliers_are_golden(place, make):
    problem, golden = make()
    record = place(problem).kkt()
    assert record.origin == "best fit"
    assert record.stationarity_scaled <= 1e-6
    assert record.feasible
    for name, value in golden.items():
        check_close(record.fit[name], value, 1e-5)


def test_given_multipliers_are_compared_with_the_best_fit(place):
    problem, golden = _two_variables()
    record = place(problem).kkt({"budget": 1.25, "cap": 0.0})
    check_close(record.fit["budget"], golden["budget"])
    check_close(record.fit_distance, 0.25)
    check_close(record.stationarity, 0.25)
    check_close(record.fit_stationarity, 0)


def test_active_bounds_carry_their_own_multipliers(place):
    w = cn.Variable(2, "w", nonneg=True)
    w.value = np.array([0.0, 2.0])
    record = place(cn.minimize(cn.sum_squares(w - np.array([-1.0, 2.0])))).kkt()
    check_close(record.stationarity, 0)
    w.value = np.array([0.0, 2.0])
    record = place(cn.minimize(cn.sum_squares(w - np.array([1.0, 2.0])))).kkt()
    check_close(record.stationarity, 2, 1e-5)  # the bound does not explain a pull away from it


def test_entropy_at_a_bound_is_no_error(place):
    p = cn.Variable(3, "p", nonneg=True)
    p.value = np.array([0.5, 0.5, 0.0])
    scores = np.array([0.0, 0.0, -40.0])
    problem = cn.maximize(scores @ p + cn.sum(cn.entr(p))).subject_to(total=cn.sum(p) == 1)
    assert place(problem).kkt().stationarity <= 1e-9


# ------------------------------------------------------------------------------------- pathologies
def test_parity_of_all_groups_has_one_dependent_gradient(place, rng):
    rows = 120
    D = cn.Data("d", x=rng.normal(size=(rows, 3)), g=[("a", "b", "c")[i % 3] for i in range(rows)])
    w = cn.Variable(3, "w")
    w.value = np.zeros(3)
    s = D.x @ w
    problem = cn.minimize(cn.sum_squares(w - np.ones(3))).subject_to(parity=E(s, by=D.g) - E(s) == 0)
    record = place(problem).kkt()
    assert (record.rank, record.active) == (2, 3)
    assert record.dependent == ("parity[g=a]", "parity[g=b]", "parity[g=c]")
    assert [w.code for w in record.warnings] == ["W203"]
    assert "not unique" in record.warnings[0].message
    # any of them, minimum norm or not, balances the same force
    shifted = {"parity": record.fit["parity"] + 5 / 3}
    check_close(place(problem).kkt(shifted).stationarity, record.stationarity, 1e-7)


def test_two_parallel_constraints_are_named(place):
    w = cn.Variable((), "w")
    w.value = 1.0
    record = place(cn.minimize((w - 3) ** 2).subject_to(one=w <= 1, two=3 * w <= 3, three=w >= 0)).kkt()
    assert record.dependent == ("one", "two")
    assert "parallel" in record.warnings[0].message


@pytest.mark.filterwarnings("ignore::constrain.ModelingWarning")
def test_a_square_that_must_vanish_has_no_gradient(place, rng):
    D = cn.Data("d", x=rng.normal(size=50))
    w = cn.Variable((), "w")
    w.value = 1e-6
    record = place(cn.minimize((w - 1) ** 2).subject_to(zero=E((D.x * w) ** 2) == 0)).kkt()
    assert record.vanishing == ("zero",)
    assert "W204" in [warning.code for warning in record.warnings]


def test_a_surrogate_that_disagrees_is_named(place, rng):
    D = cn.Data("d", x=rng.normal(size=200) + 0.3)
    w = cn.Variable((), "w", bounds=(-1.0, 1.0))
    w.value = 0.0
    problem = cn.minimize(w**2).subject_to(rate=P(D.x > w) <= 0.3)
    record = place(problem).kkt({"rate": 1.0})
    assert record.surrogate
    exact = np.mean(D.values("x") > 0) - 0.3
    check_close(record.violations["rate"], exact)
    codes = [warning.code for warning in record.warnings]
    assert ("C301" in codes) == (
        abs(float(place(problem).evaluator.full("primal").residuals[0]) - exact) > 0.05
    )


def test_strict_complementarity(place):
    w = cn.Variable((), "w")
    w.value = 1.0
    strict = place(cn.minimize((w - 2) ** 2).subject_to(cap=w <= 1)).kkt()
    weak = place(cn.minimize((w - 1) ** 2).subject_to(cap=w <= 1)).kkt()
    assert strict.strict_complementarity == pytest.approx(1.0)
    assert weak.strict_complementarity == pytest.approx(0.0, abs=1e-9)


def test_the_gap_is_called_certified_only_for_stationary_points_of_convex_problems(place):
    problem, golden = _two_variables()
    assert place(problem).kkt(golden, convex=True).gap_kind == "certified"
    assert place(problem).kkt(golden, convex=False).gap_kind == "estimate, not a bound"
    assert place(problem).kkt({"budget": 3.0, "cap": 0.0}, convex=True).gap_kind == "estimate, not a bound"
    proven = place(problem).kkt(golden, bound=0.4)
    check_close(proven.gap, 0.1)
    assert proven.gap_kind == "certified"


def test_epigraph_multipliers_are_weights(place):
    # golden worst-of-three: 0.52 at (0.3, 0, 0.7), weights (0, 0.4, 0.6)
    returns = np.array([[1, 0.2, 0.6], [0.1, 0.9, 0.7], [0.8, -0.5, 0.4]])
    q = cn.Variable(3, "q", nonneg=True)
    q.value = np.array([0.3, 0.0, 0.7])
    problem = cn.maximize(cn.min(returns @ q)).subject_to(total=cn.sum(q) == 1)
    placed = place(problem)
    bound = next(t for s, t in placed.decisions.variables.items() if s.name == "(objective)")
    with torch.no_grad():
        bound.fill_(-0.52)
    record = placed.kkt()
    assert record.feasible
    assert record.stationarity <= 1e-6
    weights = next(v for k, v in record.fit.items() if k.startswith("(objective)"))
    check_close(weights, [0, 0.4, 0.6], 1e-6)
    solution = placed.solution()
    check_close(solution.objective, 0.52, 1e-9)
    assert solution.names == ("total",)
    assert math.isfinite(solution["total"].shadow_price)


def _interpolation(samples):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = digits.data[:samples] / 16.0, np.eye(10)[digits.target[:samples]]
    w = cn.Variable((64, 10), "w")
    w.value = np.linalg.pinv(x) @ y
    D = cn.Data("digits", x=x, y=y)
    problem = cn.minimize(cn.sum_squares(w)).subject_to(fit=forall(D, D.x @ w == D.y))
    return problem, -2 * np.linalg.solve(x @ x.T, y)


def test_constraints_per_row_have_their_multipliers(place):
    problem, multipliers = _interpolation(20)
    placed = place(problem)
    given = placed.kkt({"fit": multipliers})
    assert given.stationarity <= 1e-7 * np.abs(multipliers).max()
    assert given.feasibility <= 1e-10
    fitted = placed.kkt()
    check_close(fitted.fit["fit"], multipliers, 1e-5)
    assert (given.truncated, given.rank) == (0, 200)


def test_rows_beyond_the_limit_are_counted(place, monkeypatch):
    monkeypatch.setattr("constrain.diagnostics.jacobian.LIMIT", 10)
    problem, multipliers = _interpolation(6)
    record = place(problem).kkt({"fit": multipliers})
    assert record.truncated == 30
    assert np.isnan(record.fit["fit"]).sum() == 30
    assert record.stationarity <= 1e-7 * np.abs(multipliers).max()


def test_a_feasibility_problem_is_stationary_without_multipliers(place):
    w = cn.Variable(2, "w")
    w.value = np.array([1.0, 2.0])
    record = place(cn.find().subject_to(sum=cn.sum(w) == 3, cap=w[0] <= 5)).kkt()
    assert record.stationarity == 0
    assert record.feasible


def test_a_share_of_the_pull_below_zero_is_not_defined(place):
    """The objective hardly pulls, the constraint does: 1 - |grad L|^2 / |grad f|^2 would be -9.9e9."""
    w = cn.Variable((), "w")
    w.value = 0.0
    problem = cn.minimize(1e-5 * w).subject_to(wall=w >= 0)
    record = place(problem).kkt({"wall": 1.0})
    assert math.isnan(record.force_balance)
    assert "not defined: the pulls do not balance" in str(record)


@pytest.mark.parametrize(("fit", "distance"), [([[np.nan], [1.5]], 0.5), ([[np.nan], [np.nan]], np.nan)])
def test_multipliers_without_a_fit_have_no_distance(fit, distance):
    given = [np.array([1.0]), np.array([2.0])]  # entries beyond the largest number are not fitted
    forces = SimpleNamespace(origin="given", multipliers=given, fit=[np.array(own) for own in fit])
    np.testing.assert_equal(_distance(forces), distance)
