"""The pyomo route: optima and multipliers against other routes and closed forms, integers, refusals."""

import importlib
import importlib.util
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, P, forall

pytest.importorskip("pyomo")
pytest.importorskip("highspy")

rng = np.random.default_rng(0)
X = rng.normal(size=(120, 6))
Y = X @ np.array([0.0, 2.0, 0.0, 0.0, -1.0, 0.0]) + 0.1 * rng.normal(size=120)
DATA = cn.Data("d", x=X, y=Y, label=(Y > 0).astype(float), group=["a", "b", "c"] * 40)

LINEAR_ONLY = importlib.util.find_spec("pyomo_pounce") is None
nonlinear = pytest.mark.skipif(LINEAR_ONLY, reason="the extra nlp is not installed")


def solved(problem, **options):
    return problem.solve("pyomo", progress=False, **options)


# ------------------------------------------------------------------------------------ the same as cvxpy
def linear_program():
    x = cn.Variable(2, "x", nonneg=True)
    return cn.maximize(np.array([3.0, 5.0]) @ x).subject_to(
        first=x[0] <= 4, second=2 * x[1] <= 12, third=np.array([3.0, 2.0]) @ x <= 18
    )


def transport():
    plan = cn.Variable((3, 4), "plan", nonneg=True)
    cost = np.array([[4.0, 2.0, 5.0, 1.5], [1.0, 7.0, 3.0, 6.0], [8.0, 3.5, 2.5, 4.0]])
    return cn.minimize(cn.sum(cost * plan)).subject_to(
        supply=cn.sum(plan, axis=1) <= np.array([5.0, 6.0, 4.0]),
        demand=cn.sum(plan, axis=0) >= np.array([3.0, 4.0, 2.0, 5.0]),
    )


def projection():
    u = cn.Variable(4, "u", bounds=(0, 1.5))
    return cn.minimize(
        cn.quad_form(u - np.array([1.0, 2.0, 0.5, 0.3]), np.diag([2.0, 5.0, 1.0, 10.0]))
    ).subject_to(total=cn.sum(u) == 4.0)


def least_squares():
    f = cn.Model(nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)).double(), "f")
    return cn.minimize(E((f(DATA.x) - DATA.y) ** 2)).subject_to(
        level=E(f(DATA.x), given=DATA.group == "a") >= 0.5
    )


def least_deviations():
    w = cn.Variable(6, "w")
    return cn.minimize(E(cn.abs(DATA.x @ w - DATA.y))).subject_to(
        groups=E(DATA.x @ w, by=DATA.group) <= 0.05, size=cn.norm(w, 1) <= 2.5
    )


def support_vectors():
    w, b = cn.Variable(6, "w"), cn.Variable((), "b")
    margin = (2 * DATA.label - 1) * (DATA.x @ w + b)
    return cn.minimize(cn.sum_squares(w) / 2).subject_to(
        fit=forall(DATA, margin >= 1).relax(cost=cn.linear(0.5))
    )


def worst_group():
    w = cn.Variable(6, "w", bounds=(-3, 3))
    return cn.minimize(cn.max(E(cn.relu(DATA.x @ w - DATA.y), by=DATA.group)) + 0.1 * cn.sum(cn.abs(w)))


def rotated():
    m = cn.Variable((2, 3), "m", bounds=(-1, 1))
    a = np.arange(6.0).reshape(2, 3) - 2.0
    moved = torch.einsum("ij,kj->ik", m, torch.as_tensor(a))
    return cn.minimize(cn.sum(moved) + cn.sum_squares(m)).subject_to(
        trace=cn.trace(m @ a.T) >= 0.5, corner=m.T[2, 0] + m.reshape(6)[1] <= 0.1
    )


SAME = [linear_program, transport, projection, least_squares]
SAME += [least_deviations, support_vectors, worst_group, rotated]


@pytest.mark.parametrize("make", SAME, ids=lambda make: make.__name__)
def test_the_same_optimum_and_multipliers_as_cvxpy(make):
    """Two modeling layers and two solvers agree; the status is proven by both."""
    torch.manual_seed(0)
    problem = make()
    ours, theirs = solved(problem), problem.solve("cvxpy", progress=False)
    assert ours.status.value == "optimal"
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-6, abs=1e-7)
    for name, result in theirs.constraints.items():
        assert ours[name].multiplier == pytest.approx(np.asarray(result.multiplier), rel=2e-4, abs=2e-5)


CASES = list(itertools.product(("minimize", "maximize"), ("<=", ">=", "==")))


@pytest.mark.parametrize(("sense", "op"), CASES)
def test_signs_of_multipliers_and_prices(sense, op):
    """S10: x pushed against b = 1 by a cost of slope 2; prices are finite differences."""
    x, b = cn.Variable((), "x", bounds=(-10, 10)), cn.Parameter("b", 1.0)
    push = {"<=": -2.0, ">=": 2.0, "==": 3.0}[op] * (1 if sense == "minimize" else -1)
    relation = {"<=": x <= b, ">=": x >= b, "==": x == b}[op]
    problem = (cn.minimize if sense == "minimize" else cn.maximize)(push * x).subject_to(limit=relation)
    limit = solved(problem)["limit"]
    up, down = (solved(problem, params={"b": v}).objective for v in (1.01, 0.99))
    assert limit.shadow_price == pytest.approx((up - down) / 0.02, abs=1e-6)
    if op != "==":
        assert limit.multiplier == pytest.approx(2.0, abs=1e-8)


# -------------------------------------------------------------------------------------------- integers
def knapsack(weights, values, room):
    z = cn.Variable(len(weights), "z", boolean=True)
    return cn.maximize(values @ z).subject_to(room=weights @ z <= room)


def test_knapsack_by_enumeration():
    weights, values = rng.integers(3, 20, 12).astype(float), rng.integers(1, 30, 12).astype(float)
    picks = np.array(list(itertools.product((0, 1), repeat=12)))
    best = max(picks[picks @ weights <= 60] @ values)
    problem = knapsack(weights, values, 60.0)
    assert problem.explain().method == "pyomo"
    solution = problem.solve(progress=False)
    assert (solution.status.value, solution.objective) == ("optimal", pytest.approx(best))
    assert solution.bound == pytest.approx(best)


def test_multipliers_of_integer_programs_are_those_of_the_restricted_program():
    """Lot sizing: with the setups fixed, one more unit costs what the last open source charges."""
    made, opened = cn.Variable(3, "made", bounds=(0, 20)), cn.Variable(3, "opened", boolean=True)
    unit, setup = np.array([2.0, 1.0, 3.0]), np.array([5.0, 20.0, 1.0])
    problem = cn.minimize(unit @ made + setup @ opened).subject_to(
        demand=cn.sum(made) >= 14, link=made <= 10 * opened
    )
    solution = problem.solve(progress=False)
    assert solution.status.value == "optimal"
    assert solution.variables["opened"] == pytest.approx([1, 0, 1])
    assert solution["demand"].multiplier == pytest.approx(3.0)
    assert solution["link"].multiplier == pytest.approx([1.0, 2.0, 0.0], abs=1e-9)
    assert "integers fixed" in solution.message


def test_best_subset_by_enumeration():
    v = cn.Variable(6, "v", bounds=(-5, 5))
    problem = cn.minimize(E((DATA.y - DATA.x @ v) ** 2)).subject_to(few=cn.count_nonzero(v) <= 2)

    def loss(columns):
        beta = np.linalg.lstsq(X[:, columns], Y, rcond=None)[0]
        return np.mean((Y - X[:, columns] @ beta) ** 2)

    best = min(loss(list(pair)) for pair in itertools.combinations(range(6), 2))
    solution = problem.solve(progress=False)
    assert solution.provenance.route.startswith("pyomo")
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(best, rel=1e-6)
    assert solution["few"].value == 2


def test_integer_least_squares_by_enumeration():
    y = cn.Variable(3, "y", integer=True, bounds=(-2, 2))
    A, b = rng.normal(size=(5, 3)), rng.normal(size=5) * 2
    grid = np.array(list(itertools.product(range(-2, 3), repeat=3)))
    grid = grid[grid.sum(1) <= 1]
    best = ((grid @ A.T - b) ** 2).sum(1).min()
    solution = cn.minimize(cn.sum_squares(A @ y - b)).subject_to(total=cn.sum(y) <= 1).solve(progress=False)
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(best, rel=1e-7)


@nonlinear
def test_sparse_logistic_regression_by_enumeration():
    """A convex mixed-integer nonlinear program by outer approximation."""
    v = cn.Variable(4, "v", bounds=(-4, 4))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(DATA.x[:4] @ v, DATA.label, reduction="none")
    problem = cn.minimize(E(loss) + 0.01 * cn.sum_squares(v)).subject_to(few=cn.count_nonzero(v) <= 1)
    singles = []
    for k in range(4):
        w = cn.Variable((), "w", bounds=(-4, 4))
        own = torch.nn.functional.binary_cross_entropy_with_logits(
            DATA.x[k] * w, DATA.label, reduction="none"
        )
        singles.append(cn.minimize(E(own) + 0.01 * w**2).solve("cvxpy", progress=False).objective)
    solution = problem.solve(progress=False)
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(min(singles), rel=1e-5)


# ------------------------------------------------------------------------------------- kinks and events
def test_kinks_in_both_directions_by_a_grid():
    """|.|, max, min and relu where they are not convex, against the best point of a grid of half integers."""
    u = cn.Variable(2, "u", bounds=(-2, 2))
    objective = cn.sum(u) + 0.5 * cn.abs(u[0] - 1.0) - 0.75 * cn.relu(u[1] + 0.5) + cn.min(u)
    problem = cn.minimize(objective).subject_to(
        far=cn.abs(u[0]) + cn.abs(u[1]) >= 1.5, cap=cn.maximum(u[0], -u[1]) == 0.5
    )
    axis = np.linspace(-2, 2, 81)
    a, b = (g.ravel() for g in np.meshgrid(axis, axis))
    held = (np.abs(a) + np.abs(b) >= 1.5 - 1e-9) & (np.abs(np.maximum(a, -b) - 0.5) < 1e-9)
    values = a + b + 0.5 * np.abs(a - 1) - 0.75 * np.maximum(b + 0.5, 0) + np.minimum(a, b)
    solution = solved(problem)
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(values[held].min(), abs=1e-7)


@pytest.mark.parametrize("op", ["<=", "<"])
def test_rates_are_exact(op):
    """The least c that at least 90 % of the rows do not exceed is a quantile."""
    c = cn.Variable((), "c", bounds=(-10, 10))
    event = DATA.y <= c if op == "<=" else DATA.y < c
    solution = solved(cn.minimize(c).subject_to(share=P(event) >= 0.9))
    assert solution["share"].value == pytest.approx(0.9)
    assert solution.objective == pytest.approx(np.sort(Y)[107], abs=2e-6)
    assert solution.status.value == "optimal"  # the bound is met without any margin


def test_logic_of_events():
    """Within [c - 1, c + 1] lies as much of the sample as an interval of that length can hold."""
    c = cn.Variable((), "c", bounds=(-6, 6))
    inside = (DATA.y >= c - 1) & ~(DATA.y > c + 1)
    solution = solved(cn.maximize(P(inside)))
    ordered = np.sort(Y)
    most = max(np.searchsorted(ordered, y + 2, side="right") - k for k, y in enumerate(ordered))
    assert solution.objective == pytest.approx(most / 120)


# --------------------------------------------------------------------------------- nonlinear programs
@nonlinear
def test_hock_schittkowski_71():
    z = cn.Variable(4, "z", bounds=(1, 5))
    z.value = np.array([1.0, 5.0, 5.0, 1.0])
    problem = cn.minimize(z[0] * z[3] * (z[0] + z[1] + z[2]) + z[2]).subject_to(
        product=z[0] * z[1] * z[2] * z[3] >= 25, ball=cn.sum_squares(z) == 40
    )
    solution = solved(problem)
    assert solution.status.value == "stationary"
    assert solution.objective == pytest.approx(17.0140173, rel=1e-7)
    assert solution["product"].multiplier == pytest.approx(0.5522937, rel=1e-5)
    assert solution["ball"].multiplier == pytest.approx(0.1614686, rel=1e-5)


@nonlinear
def test_smooth_atoms_against_cvxpy():
    p = cn.Variable(5, "p", bounds=(1e-3, 5))
    q = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
    terms = cn.sum(cn.rel_entr(p, q)) + cn.logsumexp(p) - cn.sum(cn.log(p)) / 7 + cn.sum(cn.softplus(-p))
    problem = cn.minimize(terms + cn.sum(cn.exp(p)) / 9 - cn.sum(cn.sqrt(p)) / 8 + cn.norm(p - q)).subject_to(
        total=cn.sum(p) == 2, ball=cn.sum_squares(p) <= 1.0
    )
    ours, theirs = solved(problem), problem.solve("cvxpy", progress=False)
    assert ours.status.value == "optimal"
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-7)
    for name in ("total", "ball"):
        assert ours[name].multiplier == pytest.approx(theirs[name].multiplier, rel=1e-4, abs=1e-6)


def test_no_component_of_the_model_is_replaced(caplog):
    """The bound of an epigraph is called objective; users may take any name that the model has already."""
    w = cn.Variable(2, "w", bounds=(-2, 2))
    solved(cn.minimize(cn.max(cn.stack(w[0] + w[1], w[0] - 2 * w[1], -w[0]))))
    names = ("objective", "auxiliary", "switches", "rules", "outer")
    x = [cn.Variable((), name, integer=True, bounds=(-3, 3)) for name in names]
    relations = {name: x[k] + cn.abs(x[k - 1]) >= 1.5 for k, name in enumerate(names)}
    problem = cn.minimize(cn.sum_squares(cn.stack(x) - 0.4)).subject_to(**relations)
    grid = np.array(list(itertools.product(range(-3, 4), repeat=5)), dtype=float)
    held = np.all(grid + abs(np.roll(grid, 1, axis=1)) >= 1.5, axis=1)
    best = ((grid - 0.4) ** 2).sum(1)[held].min()
    assert solved(problem).objective == pytest.approx(best, rel=1e-9)
    assert not caplog.records


# -------------------------------------------------------------- levels that several conditions have in common
def two_groups(w, scores):
    gap = abs(E(scores, given=DATA.group == "a") - E(scores, given=DATA.group == "b"))
    return cn.minimize(E((scores - DATA.y) ** 2)).subject_to(gap=gap <= 0.2, size=cn.norm(w, 1) <= 2.5)


def test_conditions_on_levels_of_a_column_by_enumeration():
    """E(s | g = a) - E(s | g = b) is lowered to one sum by levels, of which single ones are picked."""
    w = cn.Variable(3, "w", integer=True, bounds=(-3, 3))
    problem = two_groups(w, DATA.x[..., [1, 4, 0]] @ w)
    grid = np.array(list(itertools.product(range(-3, 4), repeat=3)), dtype=float)
    scores = grid @ X[:, [1, 4, 0]].T
    group = np.array(["a", "b", "c"] * 40)
    gaps = abs(scores[:, group == "a"].mean(1) - scores[:, group == "b"].mean(1))
    held = (gaps <= 0.2) & (abs(grid).sum(1) <= 2.5)
    best = ((scores - Y) ** 2).mean(1)[held].min()
    assert "0 errors" in str(problem.check())
    solution = problem.solve(progress=False)
    assert solution.provenance.route.startswith("pyomo")
    assert (solution.status.value, solution.objective) == ("optimal", pytest.approx(best, rel=1e-7))


def test_conditions_on_levels_as_pyomo_and_cvxpy_problems():
    pyo = importlib.import_module("pyomo.environ")
    factory = importlib.import_module("pyomo.contrib.solver.common.factory").SolverFactory
    w = cn.Variable(6, "w", bounds=(-3, 3))
    problem = two_groups(w, DATA.x @ w)
    ours, theirs = solved(problem), problem.solve("cvxpy", progress=False)
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-7)
    assert ours["gap"].multiplier == pytest.approx(theirs["gap"].multiplier, rel=1e-4, abs=1e-6)
    exported = problem.to_pyomo()
    factory("highs").solve(exported)
    assert pyo.value(exported.objective) == pytest.approx(ours.objective, rel=1e-6)
    other = problem.to_cvxpy()
    other.solve()
    assert other.value == pytest.approx(ours.objective, rel=1e-6)
    again = cn.from_pyomo(exported).solve("pyomo", progress=False)
    assert again.objective == pytest.approx(ours.objective, rel=1e-6)


def best_difference_of_rates(x, positive):
    """Over all directions and thresholds of a linear rule in the plane: a grid of angles, all thresholds."""
    angles = np.linspace(0, 2 * np.pi, 3600, endpoint=False)
    best = 0.0
    for score in np.stack([np.cos(angles), np.sin(angles)], 1) @ x.T:
        order = np.argsort(-score)
        best = max(best, np.max(np.cumsum(positive[order]) / positive.sum()
                                - np.cumsum(~positive[order]) / (~positive).sum()))  # fmt: skip
    return best


def test_a_difference_of_rates_by_enumeration():
    """Binary variables within 1e-6 of integers, times the M of a row, would let a rate of 1 appear."""
    x = rng.normal(size=(60, 2))
    positive = x @ np.array([1.0, -1.0]) + 1.5 * rng.normal(size=60) > 0
    people = cn.Data("people", x=x, y=positive.astype(float))
    w, b = cn.Variable(2, "w", bounds=(-3, 3)), cn.Variable((), "b", bounds=(-3, 3))
    score = people.x @ w + b
    problem = cn.maximize(P(score > 0, given=people.y == 1) - P(score > 0, given=people.y == 0))
    solution = solved(problem)
    assert solution.objective == pytest.approx(best_difference_of_rates(x, positive), abs=1e-9)


def test_rates_of_two_groups_with_a_quadratic_objective():
    """HiGHS fails in the relaxation of this program: its tangents start at another point or solver."""
    own = np.random.default_rng(0)
    x = own.normal(size=(60, 2))
    y = x @ np.array([1.0, -1.0]) + 0.3 * own.normal(size=60)
    group = np.where(own.random(60) < 0.4, "a", "b")
    people = cn.Data("people", x=x, y=y, g=list(group))
    w = cn.Variable(2, "w", bounds=(-3, 3))
    score = people.x @ w
    gap = P(score > 0, given=people.g == "a") - P(score > 0, given=people.g == "b")
    solution = solved(cn.minimize(E((score - people.y) ** 2)).subject_to(gap=gap <= -0.15))
    grid = np.stack(np.meshgrid(*[np.linspace(-3, 3, 601)] * 2), -1).reshape(-1, 2)
    on = grid @ x.T > 0
    held = on[:, group == "a"].mean(1) - on[:, group == "b"].mean(1) <= -0.15
    best = ((grid @ x.T - y) ** 2).mean(1)[held].min()
    assert solution["gap"].value <= -0.15
    assert best - 0.02 <= solution.objective <= best + 1e-6


def test_a_point_on_the_closed_side_of_events_is_found():
    """w = 0 meets no w x > 0 and is the only feasible point, without any room."""
    points = cn.Data("points", x=np.array([[1.0], [-1.0]]))
    w = cn.Variable(1, "w", bounds=(-3, 3))
    problem = cn.minimize(w[0]).subject_to(few=P(points.x @ w > 0) <= 0.1)
    solution = solved(problem)
    assert solution.status.value == "optimal"
    assert solution.objective == 0.0
    assert solution.record.gap == 0.0


# ------------------------------------------------------------------------------------- endings, refusals
def test_endings():
    x = cn.Variable((), "x", nonneg=True)
    assert solved(cn.minimize(x).subject_to(never=x <= -1)).status.value == "infeasible"
    unbounded = solved(cn.maximize(x))
    assert unbounded.status.value == "diverged"
    assert "no bound" in unbounded.message


@nonlinear
def test_a_local_solver_proves_no_infeasibility():
    x = cn.Variable(2, "x", bounds=(-3, 3))
    problem = cn.minimize(cn.sum(x)).subject_to(circle=cn.sum_squares(x) == 1, far=x[0] * x[1] >= 2)
    assert solved(problem).status.value == "likely_infeasible"


def network():
    f = cn.Model(nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 1), nn.Flatten(0)).double(), "f")
    return cn.minimize(E((f(DATA.x) - DATA.y) ** 2))


def no_bounds():
    v = cn.Variable(3, "v")
    return cn.minimize(cn.sum_squares(v - 1.0)).subject_to(few=cn.count_nonzero(v) <= 1)


def many_wanted():
    v = cn.Variable(3, "v", bounds=(-1, 1))
    return cn.minimize(cn.sum_squares(v)).subject_to(many=cn.count_nonzero(v) >= 1)


def expression_counted():
    v = cn.Variable(3, "v", bounds=(-1, 1))
    return cn.minimize(cn.sum_squares(v - 1.0)).subject_to(few=cn.count_nonzero(2 * v) <= 1)


def nonconvex_integers():
    z, x = cn.Variable((), "z", integer=True, bounds=(1, 9)), cn.Variable(2, "x", bounds=(1, 9))
    return cn.minimize(z + cn.sum(x)).subject_to(area=x[0] * x[1] + z >= 12)


REFUSED = {
    "network": (network, "the model f"),
    "count without bounds": (no_bounds, "bounds of v"),
    "count from below": (many_wanted, "bounded above or minimized only"),
    "count of an expression": (expression_counted, "of variables only"),
    "nonconvex with integers": (nonconvex_integers, "not certified convex"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why(case):
    make, words = REFUSED[case]
    problem = make()
    route = next(r for r in problem.explain().routes if r.method == "pyomo")
    assert not route.open
    assert words in route.reason
    with pytest.raises(cn.RouteError, match="E125"):
        solved(problem)


def test_a_missing_package_is_named(monkeypatch):
    module = sys.modules["constrain.backends.pyomo.solve"]
    monkeypatch.setattr(module, "nonlinear_engine", lambda: None)
    x = cn.Variable((), "x", bounds=(0, 3))
    problem = cn.minimize(torch.sin(x))
    route = next(r for r in problem.explain().routes if r.method == "pyomo")
    assert "pip install 'constrain-lang[nlp]'" in route.reason
    assert problem.explain().method != "pyomo"


def test_routes_without_integers_refuse_them():
    problem = knapsack(np.ones(3), np.ones(3), 2.0)
    for method in ("augmented", "lagrangian"):
        with pytest.raises(cn.RouteError, match="E125"):
            problem.solve(method, progress=False)


WITHOUT = """
import sys
sys.modules["pyomo"] = None
import constrain as cn
x = cn.Variable(2, "x", bounds=(0, 3))
problem = cn.maximize(cn.sum(x)).subject_to(room=x[0] + 2 * x[1] <= 4)
print(next(r for r in problem.explain().routes if r.method == "pyomo").reason)
print(problem.solve(progress=False).status.value)
try:
    problem.solve("pyomo", progress=False)
except cn.RouteError as error:
    print(error)
"""


def test_without_pyomo_everything_else_works():
    found = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    lines = found.stdout.splitlines()
    assert lines[0] == "pyomo is not installed: pip install pyomo"
    assert lines[1] == "optimal"
    assert lines[2] == "[E125] pyomo cannot take the problem: pyomo is not installed"


@pytest.mark.parametrize("start", [None, [0.75, 0.75]])
@pytest.mark.parametrize("method", ["pyomo", "cvxpy"])
def test_an_infeasible_integer_program_has_no_point(method, start):
    """2 x0 + 2 x1 = 3 holds at fractions only, which are no solution whatever the start."""
    x = cn.Variable(2, "x", integer=True, bounds=(0, 5))
    if start is not None:
        x.value = np.array(start)
    problem = cn.minimize(cn.sum(x)).subject_to(odd=2 * x[0] + 2 * x[1] == 3)
    solution = problem.solve(method, progress=False)
    assert solution.status.value == "infeasible"
    assert np.isnan(solution.objective)
    assert "objective   none: no point satisfies all constraints" in str(solution)
    if start is None:
        assert np.array_equal(solution.variables["x"], np.round(solution.variables["x"]))
    z = cn.Variable(2, "z", boolean=True)
    again = (
        cn.minimize(cn.sum(z))
        .subject_to(half=z[0] + z[1] == 1, odd=z[0] - z[1] == 0)
        .solve(method, progress=False)
    )
    assert again.status.value == "infeasible"
