"""Parametric paths and trade-offs: closed forms, and slopes that explain the differences of the values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E

SPREAD = np.linspace(0.2, 1.8, 9)


def bounded():
    """min (t - 1)^2 with t <= b: the value is (1 - b)^2 below b = 1, and 0 from there on."""
    t, b = cn.Variable((), "t"), cn.Parameter("b", 0.5)
    return cn.minimize((t - 1) ** 2).subject_to(cap=t <= b), lambda v: max(0.0, 1 - v) ** 2


def weighted():
    """max b t - t^2 / 2 with t <= 1: the parameter in the objective."""
    t, b = cn.Variable((), "t"), cn.Parameter("b", 0.5)
    problem = cn.maximize(b * t - t**2 / 2).subject_to(cap=t <= 1)
    return problem, lambda v: v**2 / 2 if v < 1 else v - 0.5


def inside():
    """min w^2 with b w >= 1: the parameter on the left-hand side."""
    w, b = cn.Variable((), "w"), cn.Parameter("b", 1.0)
    return cn.minimize(w**2).subject_to(least=b * w >= 1), lambda v: 1 / v**2


def both():
    """min sum of squares with the sum at b: an equality."""
    y, b = cn.Variable(3, "y"), cn.Parameter("b", 1.0)
    return cn.minimize(cn.sum_squares(y)).subject_to(total=cn.sum(y) == b), lambda v: v**2 / 3


def regression():
    """A linear model with its mean prediction at least b: b is away from the mean of y at any price."""
    D = cn.Data("d", x=np.array([-1.0, 0.0, 1.0]), y=np.array([-1.0, 0.0, 1.0]))
    f = cn.Model(torch.nn.Linear(1, 1, dtype=torch.float64), "f")
    e, b = f(D.x), cn.Parameter("b", 1.0)
    return cn.minimize(E((e - D.y) ** 2)).subject_to(mean=E(e) >= b), lambda v: v**2


PROBLEMS = [bounded, weighted, inside, both, regression]


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("method", ["auto", "augmented"])
def test_values_and_slopes_of_closed_forms(make, method):
    problem, value = make()
    path = problem.path("b", SPREAD, method=method)
    expected = np.array([value(v) for v in SPREAD])
    h = 1e-6
    slopes = np.array([(value(v + h) - value(v - h)) / (2 * h) for v in SPREAD])
    smooth = np.abs(SPREAD - 1) > 0.1  # a bound that is only just reached has two slopes
    np.testing.assert_allclose(path.objectives, expected, atol=2e-5)
    np.testing.assert_allclose(path.slopes[smooth], slopes[smooth], rtol=1e-2, atol=1e-3)
    assert path.agrees
    assert path.violations.max() <= 1e-5


def test_multipliers_are_the_shadow_prices_of_a_linear_program(linear):
    path = linear.paths["hours"]
    assert path.parameter == "hours"
    inside = np.abs(path.values - 12) < 5  # between the kinks at 6 and 18
    np.testing.assert_allclose(path.slopes[inside], 1.5, atol=1e-6)
    np.testing.assert_allclose(path.multipliers["third"][inside], 1.0, atol=1e-6)
    np.testing.assert_allclose(path.entries["second"][inside], path.values[inside])
    np.testing.assert_allclose(path.secants, [2.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(path.mismatch, 0, atol=1e-6)


def test_wrong_multipliers_are_seen(linear):
    path = linear.paths["hours"]
    assert path.agrees is True
    assert replace(path, slopes=-path.slopes).agrees is False
    assert replace(path, slopes=1.1 * path.slopes).agrees is False
    assert replace(path, slopes=np.full(len(path), np.nan)).agrees is None


def test_models_and_variables_are_left_as_they_were():
    problem, _ = regression()
    (model,) = problem.models
    solution = problem.solve(progress=False)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    path = solution.path("b", [0.5, 1.5])
    assert all(torch.equal(before[k], v) for k, v in model.module.state_dict().items())
    assert path.objectives == pytest.approx([0.25, 2.25], abs=1e-5)
    x = cn.Variable((), "x")
    x.value = 0.25
    b = cn.Parameter("b", 1.0)
    cn.minimize(x**2).subject_to(low=x >= b).path(b, [1, 2])
    assert float(x.value) == 0.25
    assert b.value == 1.0


def test_training_that_stops_early_has_no_slopes():
    D = cn.Data("d", x=torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    f = cn.Model(torch.nn.Sequential(net, torch.nn.Flatten(0)), "f")
    b = cn.Parameter("b", 0.1)
    problem = cn.minimize(E((f(D.x) - D.x[..., 0]) ** 2)).subject_to(mean=E(f(D.x)) >= b)
    path = problem.path(b, [0.1, 0.3], method="lagrangian", epochs=2)
    assert set(path.statuses) & {"feasible", "limit"}
    unknown = [s not in ("optimal", "stationary") for s in path.statuses]
    assert np.isnan(path.slopes[unknown]).all()


def test_a_path_is_stored_with_its_solution(linear, tmp_path):
    loaded = cn.load(linear.save(tmp_path))
    assert loaded.paths["hours"].rows() == linear.paths["hours"].rows()
    assert loaded.paths["hours"].agrees
    assert len(loaded.paths["hours"].to_frame()) == 10


def test_other_parameters_keep_their_values():
    t, a, b = cn.Variable((), "t"), cn.Parameter("a", 1.0), cn.Parameter("b", 1.0)
    problem = cn.minimize(a * t**2).subject_to(low=t >= b)
    solution = problem.solve(progress=False, params={"a": 3.0})
    assert solution.path(b, [1, 2]).objectives == pytest.approx([3, 12], rel=1e-5)
    assert problem.path(b, [1, 2]).objectives == pytest.approx([1, 4], rel=1e-5)


def test_the_text_of_a_path(linear):
    text = str(linear.paths["hours"])
    assert text.splitlines()[0].split() == [
        *("hours", "optimal", "value", "slope", "violation", "status", "first", "second", "third"),
    ]
    assert text.endswith("slopes from multipliers agree with differences of the optimal values")


MISTAKES = {
    "c": "no Parameter is named 'c'",
    "v": "a path follows one number, and Parameter 'v' has shape",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_parameters_that_make_no_path(name):
    y, v = cn.Variable(2, "y"), cn.Parameter("v", shape=2)
    v.value = [1.0, 2.0]
    problem = cn.minimize(cn.sum_squares(y)).subject_to(low=y >= v)
    with pytest.raises(cn.ModelingError, match=MISTAKES[name]):
        problem.path(name, [1, 2])


@pytest.mark.parametrize("values", [[1], [1, 1.0], [0, np.nan], "ab", [[1, 2]], 3])
def test_values_that_make_no_path(values):
    problem, _ = bounded()
    with pytest.raises(cn.ModelingError) as caught:
        problem.path("b", values)
    assert caught.value.code == "E141"


# -------------------------------------------------------------------------------------------- fronts
def circles(sense_first, sense_second):
    """Two squared distances on a line: (t - 1)^2 against (t + 1)^2, each as written or as a gain."""
    t = cn.Variable((), "t")
    first, second = (t - 1) ** 2, (t + 1) ** 2
    problem = cn.minimize(first) if sense_first == "minimize" else cn.maximize(-first)
    return problem, second if sense_second == "minimize" else cn.maximize(-second)


@pytest.mark.parametrize("first", ["minimize", "maximize"])
@pytest.mark.parametrize("second", ["minimize", "maximize"])
def test_a_front_in_closed_form(first, second):
    """With s = (t + 1)^2 the first one is (sqrt(s) - 2)^2, whose slope is 1 - 2 / sqrt(s)."""
    problem, other = circles(first, second)
    front = problem.pareto(other, count=6)
    a, b = (1 if sense == "minimize" else -1 for sense in (first, second))
    s = b * front.seconds
    np.testing.assert_allclose(np.sort(s), 4 * np.arange(1, 7) / 6, rtol=1e-4)
    np.testing.assert_allclose(a * front.firsts, (np.sqrt(s) - 2) ** 2, atol=1e-4)
    np.testing.assert_allclose(a * b * front.slopes, 1 - 2 / np.sqrt(s), atol=2e-3)
    assert front.path.agrees
    assert front.ends[0] == pytest.approx((0, 4 * b), abs=1e-5)
    assert front.ends[1] == pytest.approx((4 * a, 0), abs=1e-5)
    assert len(front.to_frame()) == len(front) == 6
    assert "slope" in str(front)


def test_objectives_that_do_not_conflict_have_one_point():
    t = cn.Variable((), "t")
    front = cn.minimize((t - 1) ** 2).pareto(2 * (t - 1) ** 2)
    assert len(front) == 1


def test_what_is_no_second_objective():
    t = cn.Variable((), "t")
    problem = cn.minimize(t**2)
    with pytest.raises(cn.ModelingError, match="no constraints of its own"):
        problem.pareto(cn.minimize(t).subject_to(low=t >= 0))
    with pytest.raises(cn.ModelingError, match="needs two objectives"):
        cn.find().subject_to(low=t >= 0).pareto(t)
    with pytest.raises(cn.ModelingError, match="count=1 is not a whole number"):
        problem.pareto(t, count=1)
