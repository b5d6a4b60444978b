"""Optima without multipliers: the run ends there in finite steps, and the report says what holds."""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

import constrain as cn
from constrain.solvers.fritz_john import fritz_john


@dataclass(frozen=True)
class Case:
    """A problem whose optimum is known by hand; `gradients` are those of `residual <= 0` (or == 0) there."""

    start: Any
    objective: Any
    constraints: Any
    optimum: Any
    gradients: Any
    bounds: Any = None

    def build(self):
        x = cn.Variable(len(self.start), "x", bounds=self.bounds)
        x.value = self.start
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\[W206\]")  # a square that must be 0
            return cn.minimize(self.objective(x)).subject_to(**self.constraints(x))


def circle(x, center):
    return (x[0] - center) ** 2 + x[1] ** 2


NONE = {
    "hs13": Case([-2, -2], lambda x: (x[0] - 2) ** 2 + x[1] ** 2,
                 lambda x: {"c": (1 - x[0]) ** 3 - x[1] >= 0}, [1, 0], {"c": [0, 1]}, (0, None)),
    "cusp of Kuhn and Tucker": Case([0.3, 0.3], lambda x: -x[0], lambda x: {"c": x[1] <= (1 - x[0]) ** 3},
                                    [1, 0], {"c": [0, 1]}, (0, None)),
    "square": Case([1], lambda x: x[0], lambda x: {"c": x[0] ** 2 <= 0}, [0], {"c": [0]}),
    "fourth power": Case([3, 2], lambda x: -x[1], lambda x: {"c": cn.sum_squares(x) ** 2 == 0}, [0, 0],
                         {"c": [0, 0]}),
    "circles that touch": Case([0.5, 0.7], lambda x: x[0] + x[1],
                               lambda x: {"a": circle(x, 0) == 1, "b": circle(x, 2) == 1}, [1, 0],
                               {"a": [2, 0], "b": [-2, 0]}),
    "discs that touch": Case([0.5, 0.7], lambda x: x[0] + x[1],
                             lambda x: {"a": circle(x, 0) <= 1, "b": circle(x, 2) <= 1}, [1, 0],
                             {"a": [2, 0], "b": [-2, 0]}),
    "parabola on a line": Case([1, 1], lambda x: x[0], lambda x: {"a": x[1] >= x[0] ** 2, "b": x[1] <= 0},
                               [0, 0], {"a": [0, -1], "b": [0, 1]}),
    "complementarity": Case([1, 1, 1], lambda x: x[1] + x[2] - x[0],
                            lambda x: {"a": x[0] <= 4 * x[1], "b": x[0] <= 4 * x[2], "c": x[1] * x[2] <= 0},
                            [0, 0, 0], {"a": [1, -4, 0], "b": [1, 0, -4], "c": [0, 0, 0]},
                            ([-10, 0, 0], 10)),
}  # fmt: skip
"""At these optima no multipliers exist."""

SOME = {
    "on an axis": Case([1, 1], lambda x: cn.sum_squares(x - 1), lambda x: {"c": x[0] * x[1] <= 0}, [0, 1],
                            {}, (0, None)),
    "twice": Case([3, 3], cn.sum_squares, lambda x: {"a": x[0] + x[1] == 1, "b": 2 * x[0] + 2 * x[1] == 2},
                  [0.5, 0.5], {}),
    "no room": Case([3, 3], cn.sum_squares, lambda x: {"a": x[0] >= 1, "b": x[0] <= 1}, [1, 0], {}),
    "a small unit": Case([1, 1], lambda x: x[0], lambda x: {"c": 1e-6 * cn.sum_squares(x) <= 1e-6},
                         [-1, 0], {}),
}  # fmt: skip
"""Here there are some, though in the first three no constraint qualification holds."""


@cache
def solved(name):
    return {**NONE, **SOME}[name].build().solve("newton", progress=False)


@pytest.mark.parametrize("name", NONE)
def test_the_run_ends_at_an_optimum_without_multipliers_and_says_so(name):
    case, solution = NONE[name], solved(name)
    np.testing.assert_allclose(solution.variables["x"], case.optimum, atol=1e-6)
    assert solution.status.value == "feasible"
    assert solution.multipliers is None
    assert len(solution.history) <= 100
    assert "multipliers grow without bound" in str(solution).replace("\n            ", " ")
    assert "W226" in [w.code for w in solution.kkt().warnings]
    with pytest.raises(cn.NoDualsError, match="multipliers grow without bound"):
        _ = solution[next(iter(case.gradients))].multiplier


@pytest.mark.parametrize("name", NONE)
def test_the_weights_are_a_certificate_by_hand(name):
    """The weights of the report, with the gradients of the table: their sum is 0, without the objective."""
    case = NONE[name]
    for record in (case.build().kkt({"x": np.asarray(case.optimum, float)}), solved(name).kkt()):
        weights = record.fritz_john
        assert record.qualified is False
        assert sum(map(abs, weights.values())) == pytest.approx(1, abs=1e-2)
        total = np.zeros(len(case.optimum))
        for label, weight in weights.items():
            if label in case.gradients:
                total += weight * np.asarray(case.gradients[label], float)
            else:
                place = int(label.split("[")[1].split("]")[0])
                assert label.endswith("at its lower bound")
                total[place] -= weight
            assert weight >= 0 or name == "circles that touch"
        np.testing.assert_allclose(total, 0, atol=1e-5)
        assert "gradients balance without the objective" in str(record)


@pytest.mark.parametrize("name", SOME)
def test_multipliers_that_exist_are_found(name):
    case, solution = SOME[name], solved(name)
    np.testing.assert_allclose(solution.variables["x"], case.optimum, atol=1e-6)
    assert solution.status.value in ("optimal", "stationary")
    assert solution.kkt().fritz_john == {}
    assert solution.kkt().stationarity <= 1e-8
    assert solution.multipliers is not None


def test_of_copies_and_of_points_with_room_nothing_is_said():
    """Gradients that depend on each other everywhere leave multipliers to every optimum (Qi and Wei 2000)."""
    x = cn.Variable(2, "x")
    twice = cn.minimize(cn.sum_squares(x)).subject_to(a=x[0] == 1, b=2 * x[0] == 2)
    record = twice.kkt({"x": [1.0, 3.0]})
    assert (record.fritz_john, [w.code for w in record.warnings]) == ({}, ["W203"])
    assert NONE["hs13"].build().kkt({"x": [0.5, 0.0]}).fritz_john == {}
    assert SOME["a small unit"].build().kkt({"x": [0.0, -1.0]}).fritz_john == {}


def test_weights_of_least_length():
    """The point of a hull that is nearest to zero, where none is zero, and what equalities take away."""
    none = np.zeros(2, bool)
    apart = fritz_john(np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([False, False]), none, none)
    np.testing.assert_allclose(apart.rows, [0.5, 0.5], atol=1e-12)
    assert apart.residual == pytest.approx(1.0)
    along = fritz_john(np.array([[1.0, 0.0], [5.0, 0.0]]), np.array([True, False]), none, none)
    np.testing.assert_allclose(along.rows, np.array([-5.0, 1.0]) / 6, atol=1e-12)
    held = fritz_john(np.array([[0.0, 3.0]]), np.array([False]), np.array([False, True]), none)
    np.testing.assert_allclose([held.rows[0], held.lower[1]], [0.25, 0.75], atol=1e-12)
    assert fritz_john(np.zeros((0, 2)), np.zeros(0, bool), none, none) is None
