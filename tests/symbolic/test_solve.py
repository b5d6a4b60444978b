"""Closed forms against golden optima and formulas by hand; what has none says so."""

import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
import torch

import constrain as cn
from constrain import E
from constrain.errors import RouteError
from constrain.symbolic import solving
from constrain.symbolic.elimination import candidates, solutions
from constrain.symbolic.numbers import exact
from constrain.testing import known_problem


@pytest.fixture
def in_process(monkeypatch):
    """Solves here and not in a process of its own, whose start takes longer than these problems."""
    monkeypatch.setattr(solving, "_asked", lambda question, _limit: candidates(question))


quick = pytest.mark.usefixtures("in_process")
SMALL = ["hs6", "hs7", "hs12", "hs14", "hs22", "hs28", "hs29", "hs40", "hs42", "hs48", "hs52", "projection"]


@quick
@pytest.mark.parametrize("name", SMALL)
def test_small_known_problems_have_the_golden_closed_form(name):
    known = known_problem(name)
    found = known.build().derive().solve()
    best = found.best
    assert best is not None
    assert float(best.value) == pytest.approx(known.value, rel=1e-7, abs=1e-9)
    for constraint, multiplier in known.multipliers.items():
        assert float(best.multipliers[constraint]) == pytest.approx(multiplier, abs=1e-5), constraint
    for variable, value in known.primal.items():
        ours = [float(best.decisions[f"{variable}[{i}]"]) for i in range(len(value))]
        assert ours == pytest.approx(list(value), abs=1e-6)


def test_a_parameter_stays_a_symbol_and_the_shadow_price_is_the_derivative_of_the_value():
    b = cn.Parameter("b", 1.0)
    x = cn.Variable(2, "x")
    found = cn.minimize(x[0] ** 2 + 3 * x[1] ** 2).subject_to(total=x[0] + x[1] >= b).derive().solve()
    symbol = sp.Symbol("b", real=True)
    assert found.best.decisions == {"x[0]": 3 * symbol / 4, "x[1]": symbol / 4}
    assert found.best.multipliers["total"] == sp.diff(found.best.value, symbol)
    assert len(found.candidates) == 2
    assert [p.feasible for p in found.candidates] == [False, True]


@quick
@pytest.mark.parametrize("sense", ["minimize", "maximize"])
@pytest.mark.parametrize("op", ["<=", ">=", "=="])
def test_signs_are_those_of_a_solve(sense, op):
    x = cn.Variable((), "x")
    target = -1.0 if op == ">=" else 3.0
    cost = (x - target) ** 2 if sense == "minimize" else -((x - target) ** 2)
    relation = {"<=": x <= 1, ">=": x >= 1, "==": x == 1}[op]
    problem = (cn.minimize(cost) if sense == "minimize" else cn.maximize(cost)).subject_to(c=relation)
    best = problem.derive().solve().best
    solution = problem.solve(progress=False)
    assert float(best.multipliers["c"]) == pytest.approx(solution["c"].multiplier, abs=1e-6)
    assert float(best.value) == pytest.approx(solution.objective, abs=1e-6)


@quick
def test_ridge_on_data_is_the_normal_equations_exactly():
    x, y = [[1, 2], [0, 1], [2, -1], [1, 1]], [1, 0.5, 2, -1]
    D = cn.Data("sample", x=torch.tensor(x, dtype=torch.float64), y=torch.tensor(y, dtype=torch.float64))
    w = cn.Variable(2, "w")
    found = cn.minimize(E((D.x @ w - D.y) ** 2) + 0.1 * cn.sum_squares(w)).derive().solve()
    X, Y = sp.Matrix(x), sp.Matrix(y).applyfunc(exact)
    expected = (X.T * X / 4 + sp.eye(2) / 10).solve(X.T * Y / 4)
    assert list(found.best.decisions.values()) == list(expected)


@quick
def test_water_filling_against_bisection():
    noise = np.array([0.5, 1.0, 2.5])
    x = cn.Variable(3, "x", nonneg=True)
    problem = cn.maximize(cn.sum(cn.log(noise + x))).subject_to(power=cn.sum(x) == 1)
    best = problem.derive().solve().best
    low, high = 0.0, 10.0
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.maximum(0, level - noise).sum() < 1 else (low, level)
    assert [float(v) for v in best.decisions.values()] == pytest.approx(list(np.maximum(0, level - noise)))
    assert float(best.multipliers["power"]) == pytest.approx(1 / level)
    assert best.decisions["x[2]"] == 0
    assert best.multipliers["x[2] >= 0"] == Fraction(4, 5) - Fraction(2, 5)


@quick
def test_maximum_entropy_of_a_die():
    p = cn.Variable(4, "p", nonneg=True)
    best = cn.maximize(cn.sum(cn.entr(p))).subject_to(total=cn.sum(p) == 1).derive().solve().best
    assert set(best.decisions.values()) == {sp.Rational(1, 4)}
    assert sp.simplify(best.value - sp.log(4)) == 0


def test_exact_numbers():
    assert exact(0.05) == sp.Rational(1, 20)
    assert exact(math.pi / 12) == sp.pi / 12
    assert exact(-2 * math.sqrt(2)) == -2 * sp.sqrt(2)
    assert exact(1 / 3) == sp.Rational(1, 3)
    assert exact(-math.inf) == -sp.oo
    assert exact(np.float32(0.1)) == sp.Rational(1, 10)
    rng = np.random.default_rng(0)
    values = [*rng.normal(size=300), *rng.normal(size=300) * 1e-9, *rng.normal(size=300) * 1e12]
    assert all(float(exact(v)) == pytest.approx(v, rel=4e-16) for v in values)


def test_elimination_finds_every_solution():
    a, b, c = sp.symbols("a b c", real=True)
    assert len(solutions([a**2 + b**2 - 25, a * b - 12], [a, b])) == 4
    assert solutions([a - 1, a - 2], [a]) == []
    assert solutions([a + b - 2], [a, b]) in ([{a: 2 - b, b: b}], [{a: a, b: 2 - a}])
    assert solutions([sp.log(a) + b, a + c - 1, b - c], [a, b, c])


# -------------------------------------------------------------------------------------------- refusals
def check_refused(code, words, build, **options):
    with pytest.raises(RouteError) as caught:
        build()
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)


def test_rates_integers_and_models_are_refused_with_the_way_out():
    x = torch.randn(20, 2, dtype=torch.float64)
    D = cn.Data("people", x=x)
    w = cn.Variable(2, "w")
    f = cn.Model(torch.nn.Linear(2, 1).double(), "f")
    rate = cn.minimize(cn.sum_squares(w)).subject_to(rate=cn.P(D.x @ w > 0) >= 0.5)
    check_refused("E196", ["step in the decisions", "torch.sigmoid"], rate.derive)
    count = cn.minimize(cn.Variable((), "k", integer=True))
    check_refused("E196", ["k is an integer"], count.derive)
    exponential = cn.minimize(cn.trace(torch.matrix_exp(cn.Variable((3, 3), "W"))))
    check_refused("E196", ["matrix_exp"], exponential.derive)
    linear = cn.minimize(E(f(D.x)[..., 0] ** 2)).derive()
    check_refused("E196", ["f is a model"], linear.solve)


def test_no_closed_form_is_an_error_that_says_why():
    x = cn.Variable(2, "x")
    hard = cn.minimize(cn.exp(x[0]) + x[0] * x[1] ** 2).subject_to(c=cn.log(x[1]) + x[0] * x[1] == 2)
    check_refused("E197", ["closed form"], hard.derive().solve)
    large = cn.minimize(cn.sum_squares(cn.Variable(30, "x", nonneg=True)))
    check_refused("E197", ["2^30 active sets"], large.derive().solve)
    slow = known_problem("hs78").build().derive()
    check_refused("E197", ["within 1.5 seconds"], lambda: slow.solve(time_limit=1.5))


@quick
def test_an_infeasible_problem_has_no_kkt_point():
    found = known_problem("impossible").build().derive().solve()
    assert found.points == ()
    assert found.best is None
    assert "no KKT point" in str(found)
