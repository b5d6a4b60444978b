"""Exact thresholds: quantiles of weighted rows in levels by NumPy, densities by finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

import constrain as cn
from constrain import E
from constrain.errors import ModelingError
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator
from constrain.runtime.tails import Sample, numbers, set_thresholds, smooth_threshold, thresholds

LEVELS = st.sampled_from([0.01, 0.1, 0.25, 1 / 3, 0.5, 0.77, 0.9, 0.95, 0.999])


def quantile(values, weights, level):
    """Least value whose cumulated weight reaches level * total, by the definition."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) >= (level - 1e-12) * weights.sum()
    return values[order][reached][0]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 4), st.booleans(), LEVELS, st.integers(0, 10**6))
def test_quantiles_of_weighted_rows_in_levels(rows, levels, ties, level, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 5, size=(rows, 2)) / 2 if ties else rng.normal(size=(rows, 2))
    weights = rng.integers(0, 4, size=rows) / 4
    codes = rng.integers(0, levels, size=rows)
    sample = Sample(torch.tensor(values), torch.tensor(weights), torch.tensor(codes), levels)
    found = sample.quantiles(level).numpy()
    means = sample.means().numpy()
    for k in range(levels):
        own = (codes == k) & (weights > 0)
        for j in range(2):
            if own.any():
                assert found[k, j] == quantile(values[own, j], weights[own], level)
                assert means[k, j] == pytest.approx(np.average(values[own, j], weights=weights[own]))
            else:
                assert found[k, j] == means[k, j] == 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 60), LEVELS, st.integers(0, 10**6))
def test_quantiles_are_those_of_numpy(rows, level, seed):
    values = np.random.default_rng(seed).normal(size=rows)
    sample = Sample(torch.tensor(values)[:, None], torch.ones(rows, dtype=torch.float64), None, 1)
    fuzz = abs(level * rows - round(level * rows)) < 1e-9  # where NumPy's rounding of level * n decides
    expected = (
        quantile(values, np.ones(rows), level) if fuzz else np.quantile(values, level, method="inverted_cdf")
    )
    assert sample.quantiles(level).item() == expected


def test_the_quantile_has_its_share_and_density():
    """P(g > q) is exact; the density is the slope of the surrogate share, and near that of the normal law."""
    values = torch.tensor(np.random.default_rng(3).normal(size=20_000))
    sample = Sample(values[:, None], torch.ones(20_000, dtype=torch.float64), None, 1)
    found = numbers(sample, "Quantile", 0.9)
    q, width = found.threshold.item(), found.width.item()
    assert found.shares[0].item() == pytest.approx(float((values > q).double().mean()), abs=1e-15)

    def soft(t):
        return float(torch.sigmoid((values - t) / width).mean())

    assert found.shares[1].item() == pytest.approx(soft(q))
    assert found.density.item() == pytest.approx(-(soft(q + 1e-5) - soft(q - 1e-5)) / 2e-5, rel=1e-6)
    assert found.density.item() == pytest.approx(0.1755, rel=0.05)
    assert found.spread.item() == pytest.approx(float(values.std(correction=0)))


@pytest.mark.parametrize("constant", [0.0, 3.0, 1e-9])
def test_equal_values_have_a_quantile_and_a_width(constant):
    sample = Sample(torch.full((10, 1), constant), torch.ones(10, dtype=torch.float64), None, 1)
    found = numbers(sample, "Quantile", 0.5)
    assert found.threshold.item() == pytest.approx(constant)
    assert found.width.item() > 0
    assert torch.isfinite(found.density).all()


def compiled(problem):
    program = lower(problem)
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    return Evaluator(program, decisions, dtype=torch.float64, chunk=3), decisions


def test_thresholds_follow_the_decisions_and_the_sample():
    rng = np.random.default_rng(0)
    D = cn.Data("d", x=rng.normal(size=40), g=["a", "b"] * 20)
    w = cn.Variable((), "w")
    w.value = 1.0
    problem = cn.minimize(cn.CVaR(D.x * w, 0.8)).subject_to(
        q=cn.Quantile(D.x * w, 0.5, by=D.g) <= 1, v=cn.Var(D.x * w) <= 1
    )
    evaluator, decisions = compiled(problem)
    x, g = np.asarray(D.values("x")), np.asarray(D.values("g"))

    def exact(evaluator, x, g):
        scale = float(decisions.variables[next(s for s in decisions.variables if s.name == "w")].detach())
        sides = evaluator.sides()
        for k, level in enumerate("ab"):
            expected = np.quantile(scale * x[g == level], 0.5, method="inverted_cdf")
            assert float(sides[0][0][k]) == pytest.approx(expected)
        assert float(sides[1][0]) == pytest.approx((scale * x).var())
        worst = np.sort(scale * x)[::-1][: len(x) // 5].mean()
        assert float(evaluator.full().objective) == pytest.approx(worst)

    exact(evaluator, x, g)
    flat = decisions.get()
    decisions.set(np.where(flat == 1.0, -2.0, flat))
    set_thresholds(evaluator)
    exact(evaluator, x, g)
    before = decisions.get()
    other = cn.Data("d", x=rng.normal(size=20) + 3, g=["b", "a"] * 10)
    second = Evaluator(
        evaluator.program, decisions, dtype=torch.float64, data={"d": other}, reference=evaluator
    )
    with thresholds(second):
        exact(second, np.asarray(other.values("x")), np.asarray(other.values("g")))
        assert (decisions.get() != before).any()
    assert (decisions.get() == before).all()
    exact(evaluator, x, g)


def test_thresholds_follow_parameters():
    D, a = cn.Data("d", x=[1.0, 2.0, 3.0, 4.0]), cn.Parameter("a", 1.0)
    w = cn.Variable((), "w")
    w.value = 1.0
    evaluator, _ = compiled(cn.minimize(w).subject_to(q=cn.Quantile(D.x * a * w, 0.5, given=D.x > a) <= 9))
    assert float(evaluator.sides()[0][0]) == 3.0
    a.value = -2.0
    evaluator.follow_parameters()
    assert float(evaluator.sides()[0][0]) == -6.0


@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
@pytest.mark.parametrize("by", [False, True])
def test_a_level_that_is_a_parameter_is_the_level_it_has(method, by):
    """The same program solves every level, as a problem written with the number does."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2))
    D = cn.Data("d", x=x, y=x @ [1.0, -1.0] + rng.exponential(size=80), g=["a", "b"] * 40)
    w, level = cn.Variable(2, "w"), cn.Parameter("level")
    loss = (D.x @ w - D.y) ** 2

    def problem(a):
        tail = cn.CVaR(loss, a, by=D.g) if by else cn.CVaR(loss, a)
        return cn.minimize((cn.max(tail) if by else tail) + 0.1 * cn.sum_squares(w))

    written = problem(level)
    for a in (0.5, 0.9)[: 2 if method == "cvxpy" else 1]:
        expected = problem(a).solve("cvxpy", progress=False)
        found = written.solve(method, params={"level": a}, progress=False)
        assert found.objective == pytest.approx(expected.objective, rel=1e-6 if method == "cvxpy" else 1e-3)
        assert found.value_at_risk == pytest.approx(expected.value_at_risk, rel=0.02)
    level.value = 0.7
    lagrangian = written.compile()
    batch = D.rows(range(80))
    worst, level.value = lagrangian(batch).item(), 0.5
    assert lagrangian(batch).item() < worst  # the worst half is milder on average than the worst 30 %
    level.value = 1.0
    with pytest.raises(ModelingError, match="E150"):
        lagrangian(batch)


def test_the_value_moves_with_the_level_of_its_tail():
    """dV / d level by the envelope theorem, against two solves; a quantile moves in steps and has none."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    D = cn.Data("d", x=x, y=x @ [1.0, -1.0, 0.5] + rng.normal(size=200))
    w, level = cn.Variable(3, "w"), cn.Parameter("level", 0.603)
    loss = (D.x @ w - D.y) ** 2
    problem = cn.minimize(cn.sum_squares(w)).subject_to(tail=cn.CVaR(loss, level) <= 3.0)
    solution = problem.solve("cvxpy", progress=False)
    up, down = (problem.solve("cvxpy", params={"level": 0.603 + h}, progress=False) for h in (1e-3, -1e-3))
    slope = solution.live.slope("level", solution.multipliers)
    assert slope == pytest.approx((up.objective - down.objective) / 2e-3, rel=5e-3)
    steps = cn.minimize(cn.sum_squares(w)).subject_to(q=cn.Quantile(loss, level) <= 3.0)
    with pytest.raises(ModelingError, match=r"E195.*level of a quantile"):
        steps.solve("augmented", progress=False).sensitivity("level")


def test_a_quantile_follows_its_level():
    x = np.random.default_rng(1).normal(size=50)
    D, a, w = cn.Data("d", x=x), cn.Parameter("a", 0.5), cn.Variable((), "w")
    w.value = 1.0
    evaluator, _ = compiled(cn.minimize(w).subject_to(q=cn.Quantile(D.x * w, a) <= 9))
    for level in (0.5, 0.1, 0.93):
        a.value = level
        evaluator.follow_parameters()
        assert float(evaluator.sides()[0][0]) == pytest.approx(np.quantile(x, level, method="inverted_cdf"))


def test_continuous_populations_have_quantiles_by_their_weights():
    """The quadrature weights count: the 0.3 quantile of x^2 for uniform x is 0.09, its variance 4 / 45."""
    x, t = cn.Uniform("x", 0.0, 1.0), cn.Variable((), "t")
    t.value = 1.0
    q, v = cn.Quantile(x**2 * t, 0.3), cn.Var(x**2 * t)
    tail = cn.CVaR(x * t, 0.5)
    evaluator, _ = compiled(cn.minimize(tail).subject_to(q=q <= 1, v=v <= 1, m=E(x * t) <= 1))
    sides = evaluator.sides()
    assert float(sides[0][0]) == pytest.approx(0.09, abs=0.02)
    assert float(sides[1][0]) == pytest.approx(4 / 45, rel=1e-9)
    assert float(evaluator.full().objective) == pytest.approx(0.75, abs=1e-3)


def test_a_smooth_threshold_is_the_root_of_its_surrogate_share():
    """Per level and entry against SciPy's root finder, from starts far off; the density by differences."""
    rng = np.random.default_rng(3)
    values, weights, codes = rng.normal(size=(60, 2)), rng.uniform(0, 2, 60), rng.integers(0, 3, 60)
    sample = Sample(torch.tensor(values), torch.tensor(weights), torch.tensor(codes), 3)
    share = torch.tensor(rng.uniform(0.05, 0.95, (3, 2)))
    width = torch.tensor(rng.uniform(1e-4, 0.5, (3, 2)))
    found, density = smooth_threshold(sample, share, width, torch.full((3, 2), 40.0, dtype=torch.float64))
    for k in range(3):
        for j in range(2):
            own, h = codes == k, float(width[k, j])

            def above(t, own=own, h=h, j=j):
                return np.average(special.expit((values[own, j] - t) / h), weights=weights[own])

            root = optimize.brentq(lambda t, k=k, j=j: above(t) - float(share[k, j]), -30, 30, xtol=1e-14)
            assert float(found[k, j]) == pytest.approx(root, abs=1e-12)
            slope = (above(root - 1e-6 * h) - above(root + 1e-6 * h)) / (2e-6 * h)
            assert float(density[k, j]) == pytest.approx(slope, rel=1e-4, abs=1e-8)
