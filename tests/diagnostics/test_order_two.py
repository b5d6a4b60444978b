"""Curvature on the tangent space, qualification, and standard errors of multipliers."""

import numpy as np
import pytest
import torch

import constrain as cn
from benchmarks.coverage import fitted, multipliers, statistics
from constrain import E, P, forall


def check_close(a, b, tolerance=1e-8):
    np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=tolerance, rtol=tolerance)


# ------------------------------------------------------------------------------------------- curvature
def test_minimum_saddle_and_maximum_on_a_circle():
    w = cn.Variable(2, "w")
    problem = cn.minimize(w[0] ** 2 - w[1] ** 2 / 2).subject_to(circle=cn.sum_squares(w) == 1)
    low = problem.kkt({"w": np.array([0.0, 1.0])}, order=2)
    assert low.second_order == "second order sufficient"
    check_close(
        low.curvature, 2 + 2 * 0.5
    )  # d^2 L = diag(2, -1) + lambda 2 I with lambda = 1/2, along (1, 0)
    high = problem.kkt({"w": np.array([1.0, 0.0])}, order=2)
    assert high.second_order == "saddle direction"
    check_close(high.curvature, -1 - 2)


def test_a_curved_constraint_makes_a_linear_objective_strict():
    w = cn.Variable(2, "w")
    problem = cn.minimize(cn.sum(w)).subject_to(ball=cn.sum_squares(w) <= 2, idle=w[0] <= 5)
    record = problem.kkt({"w": np.array([-1.0, -1.0])}, order=2)
    assert record.second_order == "second order sufficient"
    check_close(record.curvature, 1.0)
    corner = cn.minimize(-cn.sum(w)).subject_to(a=w[0] <= 1, b=w[1] <= 1)
    assert corner.kkt({"w": np.ones(2)}, order=2).second_order == "second order sufficient"
    face = cn.minimize(-w[0]).subject_to(a=w[0] <= 1)
    assert face.kkt({"w": np.array([1.0, 0.3])}, order=2).second_order.startswith("not decided (a direction")


def test_what_is_not_checked_says_why(rng):
    D, w = cn.Data("d", x=rng.normal(size=50)), cn.Variable((), "w")
    square = cn.minimize(E((D.x - w) ** 2))
    assert "not a KKT point" in square.kkt({"w": 3.0}, order=2).second_order
    median = cn.minimize(E(abs(D.x - w)))
    record = median.kkt({"w": float(np.sort(D.values("x"))[24])}, order=2)
    assert record.second_order == "not checked (the point sits at a kink)"
    rate = cn.minimize(w**2).subject_to(rate=P(D.x > w) <= 0.9)
    assert "surrogates" in rate.kkt({"w": 0.0}, order=2).second_order


def test_lanczos_equals_the_dense_curvature(rng, monkeypatch):
    size = 40
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    matrix = basis @ np.diag(np.linspace(-1.0, 4.0, size)) @ basis.T
    rows = rng.normal(size=(5, size))
    w = cn.Variable(size, "w")
    problem = cn.minimize(w @ (matrix @ w) / 2).subject_to(flat=rows @ w == 0)
    dense = problem.kkt({"w": np.zeros(size)}, order=2)
    null = np.linalg.qr(rows.T, mode="complete")[0][:, 5:]
    check_close(dense.curvature, np.linalg.eigvalsh(null.T @ matrix @ null)[0])
    monkeypatch.setattr("constrain.diagnostics.second_order.DENSE", 10)
    check_close(problem.kkt({"w": np.zeros(size)}, order=2).curvature, dense.curvature, 1e-5)


# --------------------------------------------------------------------------------------- qualification
def test_mangasarian_fromovitz_without_independence():
    w = cn.Variable(2, "w")
    base = cn.minimize(w[0] + w[1])
    twice = base.subject_to(one=w[0] >= 0, two=3 * w[0] >= 0, three=w[1] >= 0)
    record = twice.kkt({"w": np.zeros(2)})
    assert (record.rank, record.active, record.qualified) == (2, 3, True)
    cusp = base.subject_to(up=w[1] <= w[0] ** 3, down=w[1] >= 0)
    assert cusp.kkt({"w": np.zeros(2)}).qualified is False
    same = base.subject_to(one=w[0] == 0, two=2 * w[0] == 0)
    assert same.kkt({"w": np.zeros(2)}).qualified is False
    held = cn.Variable(2, "h", nonneg=True)
    pinched = cn.minimize(cn.sum(held)).subject_to(total=cn.sum(held) <= 0, twin=2 * cn.sum(held) <= 0)
    assert pinched.kkt({"h": np.zeros(2)}).qualified is False


@pytest.mark.parametrize("groups", [3, 5])
def test_multipliers_of_redundant_parity_are_those_of_minimum_norm(rng, groups):
    rows = 60 * groups
    g = np.arange(rows) % groups
    D = cn.Data("d", x=rng.normal(size=(rows, 6)) + 0.3 * (g == 0)[:, None], g=g, y=rng.normal(size=rows))
    w = cn.Variable(6, "w")
    s = D.x @ w
    problem = cn.minimize(E((s - D.y - D.x[..., 0]) ** 2)).subject_to(parity=E(s, by=D.g) - E(s) == 0)
    solution = problem.solve(progress=False)
    record = solution.kkt()
    assert (record.rank, record.active) == (groups - 1, groups)
    assert record.dependent == tuple(f"parity[g={k}]" for k in range(groups))
    assert "W203" in [warning.code for warning in solution.warnings]
    null = np.bincount(g) / rows  # sum_g share_g (mean_g - mean) = 0
    check_close(null @ record.fit["parity"], 0.0, 1e-7)
    given = solution["parity"].multiplier
    check_close(record.fit["parity"], given - null * (null @ given) / (null @ null), 1e-5)


def test_minimum_norm_respects_signs():
    w = cn.Variable((), "w")
    record = (
        cn.minimize(-2 * w)
        .subject_to(one=w <= 1, two=3 * w <= 3, three=-w >= -1, floor=w >= 1)
        .kkt({"w": np.array(1.0)})
    )
    # shortest (a, b, c, d) >= 0 with a + 3 b + c - d = 2
    check_close(
        [float(record.fit[k]) for k in ("one", "two", "three", "floor")], np.array([1, 3, 1, 0]) * 2 / 11
    )


# ------------------------------------------------------------------------------------- standard errors
def test_the_standard_error_of_a_multiplier_by_hand(rng):
    # min E[(w - y)^2] s.t. w <= E[z]: w = mean z, lambda = 2 (mean y - mean z), influence 2 (y - z) centered
    y, z = rng.normal(size=300) + 2.0, rng.normal(size=300)
    D, w = cn.Data("d", y=y, z=z), cn.Variable((), "w")
    problem = cn.minimize(E((w - D.y) ** 2)).subject_to(cap=w <= E(D.z))
    record = problem.kkt({"w": z.mean()}, order=2)
    check_close(record.multipliers["cap"], 2 * (y.mean() - z.mean()))
    check_close(record.standard_errors["cap"], np.std(2 * (y - z), ddof=1) / np.sqrt(300), 1e-6)
    low, high = record.interval("cap")
    check_close(high - low, 2 * 1.959964 * record.standard_errors["cap"])
    assert "cap 4" in str(record) or "cap 3" in str(record)


def test_standard_errors_are_refused_where_they_would_mislead(rng):
    x, y = rng.normal(size=200), rng.normal(size=200)
    D, w = cn.Data("d", x=x, y=y), cn.Variable((), "w")
    loss = E((w * D.x - D.y) ** 2)
    best = float(x @ y / (x @ x))

    def reason(problem, value):
        record = problem.kkt({"w": np.array(value)}, order=2)
        assert not any(np.isfinite(v).any() for v in record.standard_errors.values())
        return record.no_errors

    assert "no constraint is active" in reason(cn.minimize(loss).subject_to(a=w <= best + 1), best)
    assert "within two standard errors of 0" in reason(
        cn.minimize(loss).subject_to(a=w <= best - 1e-3), best - 1e-3
    )
    assert "per row" in reason(cn.minimize(loss).subject_to(a=forall(D, w <= best - 1 + 0 * D.x)), best - 1)
    assert "KKT point" in reason(cn.minimize(loss).subject_to(a=w <= best + 1), best - 1)
    assert "no data" in reason(cn.minimize((w - 1) ** 2).subject_to(a=w <= 0), 0.0)
    twice = cn.minimize(loss).subject_to(a=w <= best - 1, b=2 * w <= 2 * best - 2)
    assert "singular" in reason(twice, best - 1) or "without a force" in reason(twice, best - 1)


@pytest.mark.parametrize("bound", [0.5])
def test_intervals_of_multipliers_cover(bound):
    found, _, spread, error = multipliers(bound, rows=1500, replications=80)
    assert found.covered >= 0.88
    assert error == pytest.approx(spread, rel=0.25)


def test_intervals_of_statistics_cover():
    for name, found in statistics(rows=300, replications=120).items():
        assert found.covered >= 0.88, name
    held, train = fitted(replications=120)
    assert held.covered >= 0.88
    assert train.covered < held.covered


def test_order_two_of_a_solution_needs_the_problem(tmp_path, rng):
    D, w = cn.Data("d", x=rng.normal(size=50)), cn.Variable((), "w")
    problem = cn.minimize(E((D.x - w) ** 2)).subject_to(cap=w <= -1)
    solution = problem.solve(progress=False)
    assert solution.kkt(order=2).standard_errors["cap"] > 0
    solution.save(tmp_path / "run")
    loaded = cn.load(tmp_path / "run")
    with pytest.raises(cn.ModelingError, match="E129"):
        loaded.kkt(order=2)
    again = cn.load(tmp_path / "run", problem=problem)
    check_close(again.kkt(order=2).standard_errors["cap"], solution.kkt(order=2).standard_errors["cap"])
    assert torch.is_tensor(torch.as_tensor(float(w.value)))
