"""The step onto the constraints: a projection, by CVXPY; and what it makes of a run of training."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import nnls

import constrain as cn
from constrain import E, P
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator
from constrain.solvers.correction import MOST_ENTRIES, _entries, _residuals, _step, correction, descent


def setting(seed, equal):
    """Averages by group of a linear score, at a random point that violates some of their bounds."""
    rng = np.random.default_rng(seed)
    x, g = rng.normal(size=(300, 7)) + 0.5, rng.integers(0, 5, 300)
    D, w = cn.Data("d", x=x, g=g), cn.Variable(7, "w")
    w.value = rng.normal(size=7)
    score = D.x @ w
    level = E(score, by=D.g) == 0.2 if equal else E(score, by=D.g) <= 0.2
    program = lower(cn.minimize(cn.sum_squares(w)).subject_to(level=level, one=E(score) >= -0.5))
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    means = np.stack([x[g == k].mean(0) for k in range(5)])
    return Evaluator(program, decisions, dtype=torch.float64), decisions, means, x.mean(0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("equal", [False, True])
def test_the_step_is_the_shortest_one_onto_the_constraints(seed, equal):
    evaluator, decisions, means, mean = setting(seed, equal)
    start = decisions.tensors[0].detach().numpy().copy()
    move = correction(evaluator, decisions.tensors, {0: 1e-9, 1: 1e-9})
    point = cp.Variable(7)
    level = means @ point == 0.2 if equal else means @ point <= 0.2
    nearest = cp.Problem(cp.Minimize(cp.sum_squares(point - start)), [level, mean @ point >= -0.5])
    nearest.solve("CLARABEL")
    assert move is not None
    move(1.0)
    assert decisions.tensors[0].detach().numpy() == pytest.approx(point.value, abs=1e-5)
    move(0.5)  # from where it started
    assert decisions.tensors[0].detach().numpy() == pytest.approx((start + point.value) / 2, abs=1e-5)
    move(1.0)
    assert correction(evaluator, decisions.tensors, {0: 1e-6, 1: 1e-6}) is None  # nothing is violated now


def gradients(kind, rng):
    """Gradients, residuals, and which of them are equalities."""
    count, size = {"more than decisions": (9, 4)}.get(kind, (rng.integers(2, 9), 12))
    jacobian, c = rng.normal(size=(count, size)), 0.1 * rng.normal(size=count)
    c[0] = 0.1
    if kind == "both sides":  # of one average, in other units: at most one of them is violated
        jacobian[-1], c[-1] = -2 * jacobian[0], -2 * c[0] - 0.05
    if kind == "alike":
        jacobian[-1], c[-1] = 3 * jacobian[0], 3 * c[0]
    if kind == "contradictory":
        jacobian[-1], c[-1] = -2 * jacobian[0], 0.1
    return jacobian, c, rng.random(count) < (0.4 if kind == "equalities" else 0.0)


@pytest.mark.parametrize(
    "kind", ["independent", "both sides", "alike", "equalities", "contradictory", "more than decisions"]
)
def test_a_step_is_certified_and_does_not_depend_on_rounding(kind):
    """Constraints hold, and the step is a combination of their gradients; else violations are least."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        jacobian, c, equal = gradients(kind, rng)
        step = _step(jacobian, c, equal.tolist())
        length = np.linalg.norm(jacobian, axis=1)
        left = (c + jacobian @ step) / length
        over = np.where(equal, left, left.clip(min=0))
        if np.abs(over).max() < 1e-12:
            held = (jacobian / length[:, None])[equal | (left > -1e-12)]
            signed = np.concatenate([held, -held[equal[equal | (left > -1e-12)]]])
            assert nnls(signed.T, -step)[1] < 1e-12
        else:
            assert kind in ("contradictory", "more than decisions")
            assert np.abs(over @ (jacobian / length[:, None])).max() < 1e-12
        rounding = 1e-16 * rng.choice([-2, 0, 2], jacobian.shape)
        moved = _step(jacobian * (1 + rounding), c * (1 + rounding[:, 0]), equal.tolist())
        np.testing.assert_allclose(moved, step, rtol=0, atol=1e-12 * np.abs(step).max())


def test_a_step_down_the_objective_is_the_projection_of_a_gradient_step():
    evaluator, decisions, means, mean = setting(0, False)
    decisions.tensors[0].data.mul_(0.01)
    start = decisions.tensors[0].detach().numpy().copy()
    worth = 4 * float(start @ start)  # the objective is |w|^2: a whole step is minus its gradient
    move = descent(evaluator, decisions.tensors, {0: 1.0, 1: 1.0}, worth)
    point = cp.Variable(7)
    nearest = cp.Minimize(cp.sum_squares(point - start + 2 * start))
    cp.Problem(nearest, [means @ point <= 0.2, mean @ point >= -0.5]).solve("CLARABEL")
    assert move is not None
    move(1.0)
    assert decisions.tensors[0].detach().numpy() == pytest.approx(point.value, abs=1e-6)


def two_bounds_per_row(unit, start):
    """A regression with two bounds per row on more rows than a step takes, the second one in another unit."""
    rng = np.random.default_rng(0)
    D, w = cn.Data("d", x=rng.normal(size=(300, 7))), cn.Variable(7, "w")
    w.value = start * rng.normal(size=7)
    score = D.x @ w
    low = cn.forall(D, unit * (D.x @ (w * w)) >= -0.1 * unit)
    program = lower(cn.minimize(E((score - 3.0) ** 2)).subject_to(high=cn.forall(D, score <= 0.6), low=low))
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    return Evaluator(program, decisions, dtype=torch.float64), decisions


@pytest.mark.parametrize("which", ["correction", "descent"])
def test_a_step_of_rows_is_the_same_in_other_units(which):
    """Also where there are more rows than it takes: those nearest to their bounds are chosen in units."""
    ends = list[np.ndarray]()
    for unit in (1.0, 1e3, 1e-3):
        evaluator, decisions = two_bounds_per_row(unit, 1.0 if which == "correction" else 0.1)
        units = {0: 1.0, 1: unit}
        if which == "correction":
            move = correction(evaluator, decisions.tensors, {0: 1e-3, 1: 1e-3 * unit}, units)
        else:
            move = descent(evaluator, decisions.tensors, units, 1.0)
        assert move is not None
        move(1.0)
        ends.append(decisions.tensors[0].detach().numpy().copy())
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
def test_steps_of_rows_aim_at_the_rows_that_are_violated_most(masked):
    """Of more violated rows than a step takes, and of vectors per row, among the rows that are selected."""
    rng = np.random.default_rng(1)
    x, keep = rng.normal(size=(400, 2)), rng.random(400) < 0.5
    D, w = cn.Data("d", x=x, keep=keep.astype(float)), cn.Variable(2, "w", bounds=(-2.0, 2.0))
    w.value = np.array([3.0, -1.0]) / 2
    values = x * w.value - 0.1
    bound = cn.forall(D.where(D.keep > 0.5) if masked else D, D.x * w <= 0.1)
    program = lower(cn.minimize(cn.sum_squares(w)).subject_to(bound=bound))
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    evaluator = Evaluator(program, decisions, dtype=torch.float64)
    residuals = _residuals(evaluator, [0])
    places, c = residuals[0]
    chosen = np.repeat(keep, 2) if masked else np.ones(800, dtype=bool)
    np.testing.assert_array_equal(places, np.flatnonzero(chosen))
    np.testing.assert_allclose(c, values.ravel()[chosen], atol=1e-12)
    entries = _entries(evaluator, residuals, {0: 1e-3}, {0: 1.0}, {})
    worst = np.sort(c)[::-1][:MOST_ENTRIES]
    np.testing.assert_allclose([own for *_, own in entries], worst)
    assert len(entries) == MOST_ENTRIES


@pytest.mark.parametrize("together", [10**9, 700, 1])
def test_residuals_of_many_constraints_per_row_take_one_pass_where_memory_allows(together, monkeypatch):
    rng = np.random.default_rng(0)
    D, w = cn.Data("d", x=rng.normal(size=(300, 3)), keep=rng.random(300) < 0.5), cn.Variable(3, "w")
    w.value = rng.normal(size=3)
    some = D.where(D.keep)
    bounds = {f"c{k}": cn.forall(some if k % 2 else D, D.x @ w <= 0.1 * k) for k in range(5)}
    program = lower(cn.minimize(cn.sum_squares(w)).subject_to(**bounds))
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    evaluator = Evaluator(program, decisions, dtype=torch.float64)
    alone = [evaluator.row_residuals(i) for i in range(5)]
    passes, rows = list[int](), evaluator.rows
    monkeypatch.setattr("constrain.runtime.averages.MOST_NUMBERS", together)
    monkeypatch.setattr(evaluator, "rows", lambda *given: (passes.append(1), rows(*given))[1])
    found = {i: (residual, mask) for i, residual, mask in evaluator.all_row_residuals(range(5))}
    assert len(passes) == {10**9: 1, 700: 3, 1: 5}[together]
    for i, (residual, mask) in enumerate(alone):
        torch.testing.assert_close(found[i][0], residual, rtol=0, atol=0)
        assert (mask is None) == (found[i][1] is None) == (i % 2 == 0)


def test_a_run_that_ends_within_its_bounds_on_rates_comes_back_to_them(monkeypatch):
    """Room at a bound with a multiplier costs: steps back lower the objective and violate nothing."""
    options = {"epochs": 12, "batch": 64}
    found = {True: decided(0, linear, options)}
    monkeypatch.setattr("constrain.solvers.finishing._End.go_back", lambda *_: None)
    found[False] = decided(0, linear, options)
    assert "moved back to its bounds on rates" in found[True].message
    assert found[True].objective < found[False].objective
    for name in ("gap", "recall"):
        assert np.max(found[True][name].violation) == pytest.approx(0.0, abs=1e-9)


def test_a_run_that_ends_near_its_constraints_ends_on_them():
    """Rare groups settle slowly: a short run misses their bounds, and the last correction meets them."""
    rng = np.random.default_rng(0)
    share = np.arange(1, 21) ** -1.27
    g = rng.choice(20, size=4000, p=share / share.sum())
    y = rng.normal(size=20)[g] + 0.5 * rng.normal(size=4000)
    columns = {"y": torch.tensor(y), "scale": torch.tensor(1 + rng.random(4000))}
    D = cn.Data("rows", g=g, hot=torch.tensor(np.eye(20)[g]), **columns)
    b = cn.Variable(20, "b", bounds=(-2.0, 2.0))
    score = D.hot @ b
    problem = cn.minimize(E((score - D.y) ** 2)).subject_to(rate=E(score * D.scale, by=D.g) == 0.2)
    found = problem.solve("lagrangian", batch=128, epochs=12, seed=0, progress=False)
    assert found.status == "feasible"
    assert np.max(found["rate"].violation) < 1e-3
    assert "moved onto its constraints" in found.message
    exact = problem.solve("cvxpy", progress=False)
    assert found.objective == pytest.approx(exact.objective, rel=0.1)


def decided(seed, net, options):
    """Decisions with equal rates in groups of very different sizes."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    x, rare = rng.normal(size=(500, 3)), rng.random(500) < 0.1
    y = (x[:, 0] + 0.8 * rare + rng.normal(size=500) > 0).astype(float)
    D = cn.Data("people", x=x, y=y, group=np.where(rare, "b", "a"))
    score = cn.Model(net().double(), "f")(D.x)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(score, D.y, reduction="none")
    rate = P(score > 0, by=D.group)
    problem = cn.minimize(E(loss)).subject_to(
        gap=abs(rate - P(score > 0)) <= 0.06, recall=P(score > 0, given=D.y == 1) >= 0.72
    )
    return problem.solve("lagrangian", seed=seed, progress=False, **options)


def linear():
    return torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))


def network():
    layers = torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Flatten(0)
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("net", [linear, network])
def test_bounds_on_rates_hold_to_the_last_row(seed, net):
    found = decided(seed, net, {"epochs": 12, "batch": 64})
    assert max(float(np.max(found[name].violation)) for name in ("gap", "recall")) < 1e-9
    again = decided(seed, net, {"epochs": 12, "batch": 64})
    assert again.objective == found.objective
