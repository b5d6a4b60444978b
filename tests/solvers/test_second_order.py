"""Newton's method: further digits, units, order and copies of constraints, kinks, and ends that are named."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear, minimize

import constrain as cn
from constrain import E
from constrain.driver.setup import lowered, prepare
from constrain.lowering.lower import lower
from constrain.runtime import derivatives
from constrain.solvers.active import finish, kkt_error
from constrain.solvers.dense import factorized
from constrain.solvers.interior import interior_point
from constrain.solvers.kinks import kinks_left, without_kinks
from constrain.testing import known_problem, known_problems
from constrain.testing.book_data import WITH_DATA
from constrain.testing.hock_schittkowski import STATEMENTS

BY_NUMBER = {statement.number: statement for statement in STATEMENTS}
CONSTRAINED = [s for s in STATEMENTS if s.nonneg(*s.start) or s.zero(*s.start)]
_WIDE = {s.number for s in WITH_DATA} | {93, 95, 96, 97, 98, 101, 102, 103, 104, 111, 112, 114}
BOOK = {int(known.name[2:]) for known in known_problems() if known.name.startswith("hs")}
LAW = [s for s in CONSTRAINED if s.number not in _WIDE and s.qualified]
"""The others take minutes with all variants; they hold, too."""


# ------------------------------------------------------------------------------------ one law on the table
def relations(statement, x):
    """Constraint by name as a function of the factor that it is multiplied with."""
    entries = [x[i] for i in range(len(statement.start))]
    above = {f"g{i}": (g, "<=") for i, g in enumerate(statement.nonneg(*entries))}
    zero = {f"h{i}": (h, "==") for i, h in enumerate(statement.zero(*entries))}
    return {
        name: (lambda k, e=e: k * e >= 0) if kind == "<=" else (lambda k, e=e: k * e == 0)
        for name, (e, kind) in {**above, **zero}.items()
    }


def solved(statement, change):
    low, high = statement.bounds()
    bounded = np.isfinite(low).any() or np.isfinite(high).any()
    x = cn.Variable(len(statement.start), "x", bounds=(low, high) if bounded else None)
    x.value = np.asarray(statement.start, dtype=float)
    objective = statement.f(*(x[i] for i in range(len(statement.start))))
    problem = cn.minimize(objective).subject_to(**change(relations(statement, x)))
    return problem.solve("newton", progress=False)


def scaled(factor):
    return lambda made: {name: r(factor if i == 0 else 1) for i, (name, r) in enumerate(made.items())}


def copied(made):
    return {**{name: r(1) for name, r in made.items()}, **{f"{name}_again": r(2) for name, r in made.items()}}


def prices(solution, variant, names):
    """Multipliers of the constraints as the book writes them, whatever the variant."""
    found = {name: float(value) for name, value in solution.multipliers.items()}
    if variant == "copied":
        return [found[name] + 2 * found[f"{name}_again"] for name in names]
    factor = {"larger": 1e3, "smaller": 1e-3}.get(variant, 1.0)
    return [found[name] * (factor if i == 0 else 1.0) for i, name in enumerate(names)]


VARIANTS = {
    "larger": scaled(1e3),
    "smaller": scaled(1e-3),
    "reversed": lambda made: {name: r(1) for name, r in reversed(made.items())},
    "copied": copied,
}


@pytest.mark.parametrize("statement", LAW, ids=lambda s: f"hs{s.number}")
def test_units_order_and_copies_of_constraints_change_nothing(statement):
    plain = solved(statement, scaled(1))
    names = list(plain.multipliers)
    expected = np.asarray(prices(plain, "plain", names))
    assert plain.status.value in ("optimal", "stationary")
    for variant, change in VARIANTS.items():
        other = solved(statement, change)
        assert other.status.value in ("optimal", "stationary"), variant
        assert other.objective == pytest.approx(plain.objective, rel=1e-6, abs=1e-6), variant
        error = np.abs(np.asarray(prices(other, variant, names)) - expected).max()
        assert error <= 1e-4 * max(np.abs(expected).max(), 1e-2), variant
        assert len(plain.history) / 2 <= len(other.history) <= 2 * len(plain.history), variant


# ----------------------------------------------------------------------------- the statements, by SciPy
def slopes(function, x):
    steps = 1e-6 * np.maximum(1, np.abs(x))
    columns = [
        (np.asarray(function(*(x + e)), float) - np.asarray(function(*(x - e)), float)) / (2 * e.sum())
        for e in np.diag(steps)
    ]
    return np.stack(columns, -1)


# SLSQP does not reach the book's optimum from the book's start: its line search fails, or it ends elsewhere
NO_SLSQP = {16, 20, 25, 33, 54, 55, 59, 61, 84, 88, 90, 92, 98, 99, 101, 102, 103}


@pytest.mark.parametrize("number", sorted(NO_SLSQP))
def test_gradients_balance_by_finite_differences_where_slsqp_fails(number):
    """KKT conditions of the statement at our point, with multipliers by bounded least squares."""
    statement = BY_NUMBER[number]
    solution = statement.build().solve("newton", progress=False)
    x = solution.variables["x"]
    expected = statement.value if statement.near is None else statement.near
    assert float(statement.f(*x)) == pytest.approx(expected, rel=1e-6)
    low, high = statement.bounds()
    above, zero = np.asarray(statement.nonneg(*x), float), np.asarray(statement.zero(*x), float)
    assert (above >= -1e-7).all()
    assert np.abs(zero).max(initial=0) <= 1e-7
    n = len(x)
    rows = [*np.eye(n)[x - low < 1e-7], *-np.eye(n)[high - x < 1e-7]]
    if len(above):
        rows += [*slopes(statement.nonneg, x)[above < 1e-6]]
    count = len(rows)
    if len(zero):
        rows += [*slopes(statement.zero, x)]
    least = np.where(np.arange(len(rows)) < count, 0.0, -np.inf)
    gradient = slopes(statement.f, x)
    fit = lsq_linear(np.asarray(rows).T, gradient, (least, np.inf), tol=1e-14) if rows else None
    unbalanced = gradient if fit is None else fit.fun
    assert np.abs(unbalanced).max() <= 1e-5 * max(1, np.abs(gradient).max())


@pytest.mark.parametrize(
    "statement",
    [s for s in STATEMENTS if s.number not in NO_SLSQP and s.qualified],
    ids=lambda s: f"hs{s.number}",
)
def test_slsqp_finds_the_same_optimum_of_the_same_statement(statement):
    x0 = np.asarray(statement.start, dtype=float)
    found = [
        {"type": kind, "fun": lambda x, c=c: np.asarray(c(*x), float), "jac": lambda x, c=c: slopes(c, x)}
        for kind, c in (("ineq", statement.nonneg), ("eq", statement.zero))
        if c(*x0)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = minimize(
            lambda x: float(statement.f(*x)), x0, jac=lambda x: slopes(statement.f, x), method="SLSQP",
            bounds=list(zip(*statement.bounds(), strict=True)), constraints=found,
            options={"ftol": 1e-13, "maxiter": 500},
        )  # fmt: skip
    assert result.fun == pytest.approx(statement.value, rel=5e-6, abs=5e-6)


def test_every_problem_of_the_book_is_stated_and_has_its_word():
    """The book has no 82, 94 and 115. What it calls the optimum of 87 is the one of its piece, by SLSQP."""
    assert sorted(BY_NUMBER.keys() | BOOK) == [k for k in range(6, 120) if k not in (82, 94, 115)]
    assert [s.number for s in STATEMENTS if not s.qualified] == [13]
    statement, best = BY_NUMBER[87], {}
    low, high = (np.asarray(b, float) for b in statement.bounds())
    rng = np.random.default_rng(0)
    for (a0, a1, price), (b0, b1, rate) in [
        (a, b)
        for a in ((0, 300, 30), (300, 400, 31))
        for b in ((0, 100, 28), (100, 200, 29), (200, 1000, 30))
    ]:
        least, most = np.array([a0, b0, *low[2:]]), np.array([a1, b1, *high[2:]])
        for x0 in (
            np.asarray(statement.start, float),
            *rng.uniform([a0, b0, 340, 340, -50, 0], [*most[:4], 50, 0.5], (5, 6)),
        ):
            found = minimize(
                lambda x, p=price, r=rate: p * x[0] + r * x[1], np.clip(x0, least, most), method="SLSQP",
                bounds=list(zip(least, most, strict=True)), options={"ftol": 1e-13, "maxiter": 300},
                constraints={"type": "eq", "fun": lambda x: np.asarray(statement.zero(*x), float)},
            )  # fmt: skip
            if np.abs(statement.zero(*found.x)).max() <= 1e-7:
                best[a0, b0] = min(found.fun, best.get((a0, b0), np.inf))
    expected = {
        (0, 0): 8853.53989,
        (0, 100): 8927.5977355,
        (0, 200): 9127.63888,
    }  # at x2 = 100, within, at 200
    assert best == pytest.approx(expected, rel=1e-8)
    assert statement.build().solve(progress=False).objective == pytest.approx(best[0, 100], rel=1e-9)


@pytest.mark.parametrize("number", [32, 43, 49, 64, 72])
def test_the_last_digits_of_convex_problems_are_those_of_newton(number):
    """Cone solvers leave 1e-5 of these gradients, and of 72 a complementarity of 3e-5."""
    known = known_problem(f"hs{number}")
    solution = known.build().solve(progress=False)
    assert solution.status.value == "optimal"
    assert solution.record.stationary
    assert solution.objective == pytest.approx(known.value, rel=1e-6, abs=1e-6)


def test_proved_optima_of_large_programs_stay_as_they_are(monkeypatch):
    monkeypatch.setattr("constrain.driver.running.LAST_DIGITS", 2)
    solution = known_problem("hs64").build().solve(progress=False)
    assert solution.status.value == "optimal"
    assert not solution.record.stationary
    assert "Newton" not in solution.provenance.route


@pytest.mark.parametrize("method", ["auto", "newton"])
def test_slopes_without_bound_at_the_end_of_a_domain_end_a_run_with_a_word(method):
    """Once an error of the linear algebra, and the point of the cone solver was lost."""
    x = cn.Variable(2, "x", nonneg=True)
    gain = cn.sqrt(x[0]) - 1e4 * x[0] + cn.sqrt(x[1])
    solution = cn.maximize(gain).subject_to(a=x[1] <= 0).solve(method, progress=False)
    assert solution.status.value in ("feasible", "limit")
    assert solution.objective < 2.6e-5  # the optimum is 2.5e-5


# --------------------------------------------------------------------------------------- exact solutions
def test_tilted_policies_to_many_digits():
    known = known_problem("tilt")
    solution = known.build().solve("newton", progress=False)
    assert solution.kkt().stationarity <= 1e-12
    assert solution.objective == pytest.approx(known.value, abs=1e-8)
    assert solution.kkt().feasibility <= 1e-12


def test_default_route_of_nonconvex_variables_and_its_reason():
    explained = BY_NUMBER[113].build().explain()
    assert explained.method == "newton"
    assert explained.reason.endswith("exact second derivatives, 18 decisions and constraints")


def sample():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = x @ [1, -1, 0.5, 0] + 0.3 * rng.normal(size=300)
    return cn.Data("d", x=torch.tensor(x), y=torch.tensor(y), g=np.where(rng.random(300) < 0.3, "a", "b"))


def kinked():
    """Problems with kinks of decisions and averages that CVXPY solves as well."""
    D, w = sample(), cn.Variable(4, "w")
    loss = (D.x @ w - D.y) ** 2
    gap = E(D.x @ w, given=D.g == "a")
    base = cn.minimize(E(loss))
    return {
        "lasso budget": base.subject_to(c=cn.sum(abs(w)) <= 1),
        "lasso penalty": cn.minimize(E(loss) + 0.5 * cn.norm(w, 1)),
        "worst group and penalty": cn.minimize(cn.max(E(loss, by=D.g)) + 0.1 * cn.sum(abs(w))).subject_to(
            c=abs(gap) <= 0.01, d=cn.max(abs(w)) <= 0.6
        ),
        "positive part": cn.minimize(E(loss) + 2 * torch.relu(gap + 0.5) + cn.maximum(w[0], 0.3)),
        "least of two": cn.maximize(cn.minimum(gap, w[0]) - cn.sum_squares(w)),
    }


@pytest.mark.parametrize("name", kinked())
def test_kinks_are_solved_exactly_by_slack_variables(name):
    problem = kinked()[name]
    expected = problem.solve("cvxpy", progress=False)
    found = kinked()[name].solve("newton", progress=False)
    assert found.objective == pytest.approx(expected.objective, abs=1e-7)
    assert len(found.history) <= 40
    assert set(found.multipliers) == set(expected.multipliers)
    for key, value in expected.multipliers.items():
        np.testing.assert_allclose(found.multipliers[key], value, atol=1e-4)


def test_kinks_in_rows_stay_and_send_models_to_minibatches():
    D = sample()
    f = cn.Model(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)), "f")
    problem = cn.minimize(E(abs(f(D.x).squeeze(-1) - D.y))).subject_to(c=E(f(D.x).squeeze(-1)) <= 1)
    assert kinks_left(lower(problem)) is not None
    explained = problem.explain()
    assert explained.method == "lagrangian"
    assert "full-data gradients jump at the kinks of" in explained.reason
    smooth = cn.minimize(E((f(D.x).squeeze(-1) - D.y) ** 2)).subject_to(c=abs(E(f(D.x).squeeze(-1))) <= 1)
    assert kinks_left(lower(smooth)) is None
    assert without_kinks(lower(smooth))[1] == ()
    assert smooth.explain().method == "lagrangian"  # a network


# ------------------------------------------------------------------------------------------- named ends
@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda w: cn.minimize(cn.sum(w)).subject_to(c=w[0] <= 3), "diverged"),
        (lambda w: cn.minimize(cn.sum(w)).subject_to(c=w[0] == w[1]), "diverged"),
        (
            lambda w: cn.minimize(cn.sum_squares(w)).subject_to(a=w[0] >= 2, b=w[0] <= 1.5),
            "likely_infeasible",
        ),
        (lambda w: cn.minimize(cn.sum_squares(w)).subject_to(a=torch.sin(w[0]) >= 1.5), "likely_infeasible"),
        (
            lambda w: cn.minimize(w[0]).subject_to(a=w[0] ** 2 + w[1] ** 2 == 1, b=w[0] + w[1] >= 3),
            "likely_infeasible",
        ),
    ],
)
def test_unbounded_and_infeasible_problems_are_called_so(make, status):
    w = cn.Variable(3, "w")
    solution = make(w).solve("newton", progress=False)
    assert solution.status.value == status
    assert np.isfinite(w.value).all()


def test_a_time_limit_returns_the_point_so_far():
    solution = BY_NUMBER[118].build().solve("newton", time_limit=1e-6, progress=False)
    assert solution.status.value in ("limit", "feasible")
    assert solution.message == "time limit"


def test_a_hessian_can_be_stopped_between_groups_of_columns(monkeypatch):
    D, w = sample(), cn.Variable(4, "w")
    problem = cn.minimize(E(torch.exp(D.x @ w)) + cn.sum_squares(w))
    evaluator = prepare(lowered(problem), device=torch.device("cpu"), dtype=torch.float64).evaluator
    whole = derivatives.hessian(evaluator, lambda outer: outer.objective)
    calls = []
    monkeypatch.setattr(derivatives, "LEAST_GROUP", 1)
    monkeypatch.setattr(derivatives, "PRODUCTS", 1)
    found = derivatives.hessian(evaluator, lambda outer: outer.objective, check=lambda: calls.append(1))
    torch.testing.assert_close(found, whole)
    assert len(calls) == 4

    def stop():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        derivatives.hessian(evaluator, lambda outer: outer.objective, check=stop)


def test_multipliers_of_a_solution_shorten_the_next_run():
    problem = BY_NUMBER[113].build()
    first = problem.solve("newton", progress=False)
    again = problem.solve("newton", start=first, progress=False)
    assert again.objective == pytest.approx(first.objective, abs=1e-9)
    assert len(again.history) <= 4 < len(first.history)


def test_rows_that_a_constraint_does_not_select_do_not_count():
    D = sample()
    w = cn.Variable(4, "w")
    some = cn.forall(D.where(D.g == "a"), D.x @ w <= 0.5)
    problem = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(some=some)
    found, exact = problem.solve("newton", progress=False), problem.solve("cvxpy", progress=False)
    assert found.objective == pytest.approx(exact.objective, abs=1e-8)


# --------------------------------------------------------------------------------------------- the parts
class Quadratic:
    """1/2 x.Hx - x.1 subject to sum(x) == 1 (twice), x_0 <= 0.1, 0 <= x."""

    low, high = np.zeros(3), np.full(3, np.inf)
    equal = np.asarray([True, True, False])
    H = np.diag([1.0, 2.0, 4.0])
    J = np.asarray([[1.0, 1, 1], [2, 2, 2], [1, 0, 0]])

    def values(self, x):
        return 0.5 * x @ self.H @ x - x.sum(), self.J @ x - [1, 2, 0.1]

    def derivatives(self, x):
        return self.H @ x - 1, self.J

    def hessian(self, _x, _y):
        return self.H


def test_interior_point_and_finish_with_dependent_constraints():
    problem = Quadratic()
    found = interior_point(problem, np.ones(3))
    assert found.ending == "converged"
    expected = np.asarray([0.1, 0.6, 0.3])
    np.testing.assert_allclose(found.x, expected, atol=1e-7)
    x, y, error = finish(problem, found.x, found.y)
    np.testing.assert_allclose(x, expected, atol=1e-14)
    assert error == kkt_error(problem, x, y) <= 1e-13


def test_inertia_of_a_symmetric_matrix():
    rng = np.random.default_rng(0)
    for _ in range(20):
        A = rng.normal(size=(7, 7))
        A = A + A.T
        factor = factorized(A)
        assert factor.negative == (np.linalg.eigvalsh(A) < 0).sum()
        b = rng.normal(size=7)
        np.testing.assert_allclose(A @ factor.solve(b), b, atol=1e-9)
    assert factorized(np.full((2, 2), np.nan)) is None
    assert factorized(np.ones((3, 3))).singular
