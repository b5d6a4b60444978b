"""|grad L|^2 from batches against the exact one: no bias, honest errors, few false alarms, a true floor."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E
from constrain.diagnostics.noise import gradient_noise, squared_mean
from constrain.solution.noise import CRITICAL


@pytest.fixture
def regression(rng):
    """Least squares under a bound for a group; rows, matrix and target for the second opinion."""
    x = rng.normal(size=(3000, 4))
    group = rng.integers(0, 2, 3000)
    y = x @ [1.0, -0.5, 0.2, 0.0] + np.where(group == 1, x[:, 1], 0.0) + rng.normal(size=3000)
    D, w = cn.Data("d", x=x, y=y, g=group), cn.Variable(4, "w")
    loss = (D.x @ w - D.y) ** 2
    problem = cn.minimize(E(loss)).subject_to(group=E(loss, given=D.g == 1) <= 1.5, cap=w[3] <= 0.1)
    return problem, w, (x, y, group)


def exact(rows, w, lam):
    """Gradient of the Lagrangian by hand, and the covariance of one row's part in it."""
    x, y, group = rows
    each = 2 * (x @ w - y)[:, None] * x
    parts = each + lam[0] * (group == 1)[:, None] / (group == 1).mean() * each
    gradient = parts.mean(0) + lam[1] * np.eye(4)[3]
    return gradient, np.cov(parts.T, bias=True)


@pytest.mark.parametrize("moved", [0.0, 0.6])
def test_the_estimate_has_no_bias_its_error_is_its_spread_and_the_floor_is_the_trace(
    regression, place, moved
):
    problem, w, rows = regression
    solution = problem.solve("newton", progress=False)
    lam = [float(solution[name].multiplier) for name in ("group", "cap")]
    w.value = solution.variables["w"] + moved * np.array([0.2, -0.3, 0.1, -0.4])
    placed = place(problem)
    given = [np.asarray(m) for m in lam]
    free = np.ones(4, dtype=bool)
    found = [
        gradient_noise(placed.evaluator, given, free, batches=16, rows=64, seed=seed) for seed in range(150)
    ]
    gradient, covariance = exact(rows, placed.decisions.get(), lam)
    square = float(gradient @ gradient)
    assert np.sqrt(square) == pytest.approx(np.linalg.norm(gradient))
    estimates, errors = np.array([n.squared for n in found]), np.array([n.error for n in found])
    spread = float(np.std(estimates))
    assert np.mean(estimates) == pytest.approx(square, abs=4 * spread / np.sqrt(len(found)))
    assert 0.85 * spread <= np.sqrt(np.mean(errors**2)) <= 1.4 * spread  # never below a degenerate one's
    assert np.mean([n.floor for n in found]) == pytest.approx(np.trace(covariance) / 64, rel=0.1)
    seen = float(np.mean([n.distinguishable for n in found]))
    assert seen <= 0.13 if moved == 0 else seen > 0.9
    assert (found[0].batches, found[0].rows) == (16, 64)


def test_the_level_holds_for_every_shape_of_the_noise():
    """Null distributions from one coordinate to many; the standard error is estimated."""
    rng = np.random.default_rng(0)
    for scales in ([1.0], [1.0, 1.0], [1.0, 0.3, 0.1], np.ones(50)):
        table = rng.normal(size=(1000, 32, len(scales))) * np.sqrt(scales)
        found = [squared_mean(own) for own in table]
        assert np.mean([u > CRITICAL * still for u, _, still in found]) <= 0.075


def test_a_naive_square_is_blind_where_pairs_see(regression, place):
    problem = regression[0]
    solution = problem.solve("newton", progress=False)
    at = problem.kkt(solution, {n: solution[n].multiplier for n in solution.names}, batches=64)
    assert at.stationarity < 1e-8
    assert not at.noise.distinguishable
    assert at.noise.norm < at.noise.detectable < np.sqrt(at.noise.floor)
    assert "not distinguishable from 0 at this sample size" in str(at)
    off = solution.variables["w"] + np.array([0.05, 0.0, 0.0, -0.05])
    away = problem.kkt({"w": off}, {n: solution[n].multiplier for n in solution.names}, batches=2000)
    assert away.noise.distinguishable
    assert away.noise.norm == pytest.approx(
        np.linalg.norm(exact_gradient(regression, off, solution)), rel=0.2
    )
    assert solution.kkt().noise is None
    assert solution.kkt(batches=8).noise.batches == 8
    with pytest.raises(cn.ModelingError, match=r"E141.*batches=4"):
        solution.kkt(batches=4)


def exact_gradient(regression, w, solution):
    lam = [float(solution[name].multiplier) for name in ("group", "cap")]
    return exact(regression[2], w, lam)[0]


def test_constraints_per_row_enter_with_the_rows_of_the_batch(rng, place):
    x = rng.normal(size=(200, 2))
    D, w = cn.Data("d", x=x), cn.Variable(2, "w")
    w.value = np.array([0.3, -0.2])
    problem = cn.minimize(cn.sum_squares(w - 1)).subject_to(rows=cn.forall(D, D.x @ w <= 0.5))
    lam = rng.uniform(0, 0.02, 200)
    gradient = 2 * (w.value - 1) + lam @ x
    placed = place(problem)
    free = np.ones(2, dtype=bool)
    found = [
        gradient_noise(placed.evaluator, [lam], free, batches=8, rows=50, seed=s).squared for s in range(200)
    ]
    room = 4 * np.std(found) / np.sqrt(200)
    assert np.mean(found) == pytest.approx(gradient @ gradient, abs=room)


def test_distributions_are_judged_by_fresh_draws():
    """min E (u(x) - sin x)^2, whose quadrature is exact: draws agree with it, and see a wrong point."""
    t = cn.Uniform("t", 0.0, 1.0)
    a = cn.Variable(2, "a")
    problem = cn.minimize(E((a[0] + a[1] * t - torch.sin(t)) ** 2))
    solution = problem.solve("newton", progress=False)
    noise = solution.kkt().noise
    assert noise is not None
    assert not noise.distinguishable
    assert "on batches" in solution.report(format="text")
    assert "not distinguishable from 0 at this sample size" in solution.report(format="html")
    wrong = problem.kkt({"a": solution.variables["a"] + 0.1})
    assert wrong.noise.distinguishable
    assert wrong.noise.norm == pytest.approx(np.linalg.norm(2 * 0.1 * np.array([1.5, 5 / 6])), rel=0.2)


def test_a_solution_with_noise_is_stored(tmp_path):
    t, a = cn.Uniform("t", 0.0, 1.0), cn.Variable((), "a")
    solution = cn.minimize(E((a - t) ** 2)).solve("newton", progress=False)
    solution.save(tmp_path)
    assert cn.load(tmp_path).kkt().noise == solution.kkt().noise


def test_a_stream_is_judged_by_rows_that_were_kept(rng):
    x = torch.as_tensor(rng.normal(size=(512, 2)))
    rows = torch.utils.data.TensorDataset(x, x.sum(1), (x[:, 0] > 0).long())
    D = cn.Data.from_dataset("d", rows, columns=["x", "y", "g"])
    w = cn.Variable(2, "w")
    w.value = np.array([0.5, 0.5])
    problem = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(one=E(D.x @ w, given=D.g == 1) <= 1.0)
    record = problem.kkt(None, {"one": 0.0}, batches=64)
    gradient = 2 * (np.asarray(x) @ w.value - np.asarray(x.sum(1))) @ np.asarray(x) / 512
    assert record.noise.distinguishable
    assert record.noise.norm == pytest.approx(np.linalg.norm(gradient), rel=0.15)
