"""Problems with a formula: recognized however they are written, and solved as Clarabel solves them."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import constrain as cn
from constrain import E
from constrain.errors import ModelingError, RouteError
from constrain.solvers.tilted import Tilted, maximize_dual
from constrain.testing import known_problem

N = 7
RNG = np.random.default_rng(3)
Y, PRICE = RNG.normal(size=N), RNG.normal(size=N)
METRIC = 0.5 + RNG.random(N)
TWO_ROWS = RNG.normal(size=(2, N))


def tensor(values):
    return torch.tensor(np.asarray(values, dtype=np.float64))


# ------------------------------------------------------------------------------------- nearest points
def near(x):
    return cn.minimize(cn.sum_squares(x - Y))


def in_a_metric(x):
    return cn.minimize(cn.sum(tensor(METRIC) * cn.square(x - Y)) + 3.0)


def written_out(x):
    """As products, with a matrix, and as a maximization."""
    return cn.maximize(-0.5 * ((x - Y) @ (x - Y)) - 0.5 * cn.quad_form(x - Y, tensor(np.diag(METRIC))))


SAMPLE = cn.Data("sample", gain=RNG.normal(size=(40, N)), group=["a", "b"] * 20)
SIGN, UNIT, WIDE = {"nonneg": True}, {"bounds": (0, 1)}, {"bounds": (-1, 1)}
NEAREST = {
    "box": (in_a_metric, {"bounds": (-0.3, 0.4)}, lambda x: {}),
    "box by constraints": (near, {}, lambda x: {"up": x <= 0.4, "down": 2 * x >= -0.6, "one": x[2] >= -0.1}),
    "between": (near, {}, lambda x: {"c": cn.between(-0.1, x, 0.3)}),
    "fixed entries": (near, {}, lambda x: {"first": x[:3] == 0.2, "rest": cn.sum(x) <= -1}),
    "simplex": (near, SIGN, lambda x: {"total": cn.sum(x) == 1}),
    "simplex by constraints": (written_out, {}, lambda x: {"total": 2 * cn.sum(x) - 2 == 0, "sign": x >= 0}),
    "capped simplex": (near, UNIT, lambda x: {"c": cn.sum(x) == 2}),
    "capped by a constraint": (near, SIGN, lambda x: {"cap": x <= 0.4, "total": cn.mean(x) == 1.7 / N}),
    "budget": (in_a_metric, WIDE, lambda x: {"c": PRICE @ x >= 2}),
    "idle budget": (near, WIDE, lambda x: {"c": PRICE @ x <= 50}),
    "half-space": (in_a_metric, {}, lambda x: {"c": PRICE @ x <= -3}),
    "hyperplane": (written_out, {}, lambda x: {"c": PRICE @ x == 1.3}),
    "two budgets": (near, {}, lambda x: {"a": cn.sum(x[:3]) <= -1, "b": 2 * x[3] - x[5] == 2}),
    "affine set": (in_a_metric, {}, lambda x: {"c": tensor(TWO_ROWS) @ x == [1.0, -2.0]}),
    "dependent equations": (
        near,
        {},
        lambda x: {"c": tensor(TWO_ROWS) @ x == [1.0, -2.0], "twice": 2 * (TWO_ROWS[0] @ x) == 2.0},
    ),
    "ball": (near, {}, lambda x: {"c": cn.norm(2 * x - 0.1) <= 1.5}),
    "squared ball": (near, {}, lambda x: {"c": 3 * cn.sum_squares(x + 0.2) <= 2}),
    "ball as a product": (near, {}, lambda x: {"c": x @ x + torch.dot(x, x) <= 2}),
    "idle ball": (near, {}, lambda x: {"c": cn.norm(x) <= 100}),
    "cross-polytope": (near, {}, lambda x: {"c": cn.norm(x - 0.1, 1) <= 1}),
    "averages of data": (
        near,
        UNIT,
        lambda x: {"c": E(SAMPLE.gain @ x, given=SAMPLE.group == "a") <= 0.05},
    ),
}


def nearest(name):
    objective, kind, relations = NEAREST[name]
    x = cn.Variable(N, "x", **kind)
    return objective(x).subject_to(**relations(x))


def rows_of_simplices():
    x = cn.Variable((3, 4), "x", nonneg=True)
    cost = cn.sum((x - np.arange(12).reshape(3, 4) / 5) ** 2)
    return cn.minimize(cost).subject_to(total=cn.sum(x, axis=1) == [1, 2, 3])


def half_line():
    x = cn.Variable((), "x")
    return cn.minimize(x**2).subject_to(up=x >= 1)


def several_variables():
    x, y = cn.Variable(3, "x"), cn.Variable((2, 2), "y", nonneg=True)
    cost = cn.sum_squares(cn.stack([x[0] - 1, 2 * x[2], y[0, 1] + 1, -y[1, 0]])) + x[1] ** 2
    cost = cost + torch.square(y[0, 0]) + cn.square(y[1, 1] - 3) * 2
    return cn.minimize(cost).subject_to(
        a=x[0] - x[1] + 0 * cn.trace(y) <= 1, b=torch.einsum("ij,j->i", y, tensor([0.0, 1.0])) <= 1
    )


def compare(problem):
    """Value, decisions and multipliers of Clarabel; the conditions at the point hold to rounding."""
    expected = problem.solve("cvxpy", progress=False)
    found = problem.solve(progress=False)
    assert found.provenance.route.startswith("closed: ")
    assert problem.explain().method == "closed"
    assert found.status.value == "optimal"
    record = found.kkt()
    assert max(record.feasibility_scaled, record.gap_scaled) <= 1e-12
    assert record.stationarity_scaled <= 1e-12 or "‖₁" in str(problem)  # which has kinks
    assert found.objective == pytest.approx(expected.objective, abs=1e-7, rel=1e-7)
    for name, value in expected.variables.items():
        np.testing.assert_allclose(found.variables[name], value, atol=5e-5)
    return expected, found


@pytest.mark.parametrize("name", NEAREST)
def test_nearest_points(name):
    problem = nearest(name)
    expected, found = compare(problem)
    if name != "dependent equations":  # whose multipliers are not unique
        for key in problem.constraints:
            np.testing.assert_allclose(found[key].multiplier, expected[key].multiplier, atol=3e-5)


@pytest.mark.parametrize("make", [rows_of_simplices, half_line, several_variables], ids=lambda f: f.__name__)
def test_nearest_points_of_other_shapes(make):
    problem = make()
    expected, found = compare(problem)
    for key in problem.constraints:
        np.testing.assert_allclose(found[key].multiplier, expected[key].multiplier, atol=3e-5)


# -------------------------------------------------------------------------------------- tilted policies
SHAPE = (4, 5)
R, G1, G2 = (RNG.normal(size=SHAPE) for _ in range(3))
REF = RNG.dirichlet(np.ones(SHAPE[1]), size=SHAPE[0])
RHO = np.array([0.1, 0.2, 0.3, 0.4])


def divergence(pi, way):
    ref = tensor(REF)
    if way == "written out":
        return cn.sum(pi * torch.log(pi / ref))
    if way == "two logarithms":
        return cn.sum(pi * (torch.log(pi) - torch.log(ref)))
    if way == "entropy":
        return -cn.sum(cn.entr(pi)) - cn.sum(pi * np.log(REF))
    if way == "kl_div":
        return cn.sum(cn.kl_div(pi, ref))
    return cn.sum(cn.rel_entr(pi, ref))


def rows_of(pi, way):
    """The sums of the rows: by an axis, by a product with ones, one by one."""
    if way == "entropy":
        return {"rows": pi @ np.ones(SHAPE[1]) == 1}
    if way == "two logarithms":
        return {f"row{k}": 3 * cn.sum(pi[k]) == 3 for k in range(SHAPE[0])}
    return {"rows": cn.sum(pi, axis=1) == 1}


@pytest.mark.parametrize("way", ["rel_entr", "kl_div", "entropy", "written out", "two logarithms"])
def test_a_tilted_policy_in_whatever_way_it_is_written(way):
    nonneg = way in ("rel_entr", "entropy")
    pi = cn.Variable(SHAPE, "pi", nonneg=nonneg)
    problem = cn.maximize(E_(R, pi) - 0.1 * divergence(pi, way) / 4).subject_to(
        **rows_of(pi, way), first=E_(G1, pi) >= 0.4, second=E_(G2, pi) <= 0.3, loose=E_(G2, pi) >= -9,
    )  # fmt: skip
    if not nonneg:
        problem = problem.subject_to(sign=pi >= 0)
    found = problem.solve(progress=False)
    assert "tilted softmax" in found.provenance.route
    assert found.status.value == "optimal"
    assert found.kkt().stationarity <= 1e-12
    assert found.kkt().feasibility <= 1e-12
    assert found.kkt().gap == pytest.approx(0, abs=1e-13)
    assert found.kkt().gap_kind == "certified"
    expected = reference_policy()
    assert found.objective == pytest.approx(expected.objective, abs=1e-8)
    for key in ("first", "second", "loose"):
        assert found[key].multiplier == pytest.approx(expected[key].multiplier, abs=1e-6)
        assert found[key].shadow_price == pytest.approx(expected[key].shadow_price, abs=1e-6)


def E_(gain, pi):
    """The expectation of a gain, averaged over prompts."""
    return cn.sum(tensor(gain) * pi) / len(gain)


def reference_policy():
    pi = cn.Variable(SHAPE, "pi", nonneg=True)
    problem = cn.maximize(E_(R, pi) - 0.1 * divergence(pi, "rel_entr") / 4).subject_to(
        rows=cn.sum(pi, axis=1) == 1,
        first=E_(G1, pi) >= 0.4,
        second=E_(G2, pi) <= 0.3,
        loose=E_(G2, pi) >= -9,
    )
    return problem.solve("cvxpy", progress=False)


def weighted():
    """A weight and a temperature per prompt, masses that differ, an equality, a cap on single outcomes."""
    mu = cn.Variable(SHAPE, "mu")
    cost = cn.sum(tensor(R) * mu) + cn.sum(tensor(RHO) * cn.sum(cn.rel_entr(mu, tensor(REF)), axis=1))
    return cn.minimize(cost).subject_to(
        mass=cn.sum(mu, axis=1) == RHO, level=cn.sum(tensor(G1) * mu) == 0.1, cap=mu[3] <= 0.15
    )


def occupation():
    """Averages over a sample; every column of the variable is a distribution."""
    mu = cn.Variable(SHAPE, "mu")
    D = cn.Data("draws", g=RNG.normal(size=(30, 4)), h=["u", "v", "w"] * 10)
    return cn.minimize(E((D.g @ mu) @ np.arange(5.0)) - cn.sum(cn.entr(mu))).subject_to(
        total=cn.sum(mu, axis=0) == 1, level=E(D.g @ mu[:, 0], by=D.h) <= 0.3
    )


def maximum_entropy():
    return known_problem("maxent").build()


def free_tilt():
    """Nothing but the sums: the softmax itself."""
    p = cn.Variable(5, "p", nonneg=True)
    return cn.minimize(R[0] @ p - 0.3 * cn.sum(cn.entr(p))).subject_to(total=cn.sum(p) == 1)


def repeated():
    """The same constraint twice, in other units, and the sum of all rows."""
    pi = cn.Variable(SHAPE, "pi")
    return cn.minimize(E_(R, pi) + 0.1 * divergence(pi, "rel_entr")).subject_to(
        all=cn.sum(pi) == 4, rows=cn.sum(pi, axis=1) == 1, a=E_(G1, pi) <= -0.5, b=1000 * E_(G1, pi) <= -500
    )


TILTED = [weighted, occupation, maximum_entropy, free_tilt, repeated]


@pytest.mark.parametrize("make", TILTED, ids=lambda f: f.__name__)
def test_tilted_distributions(make):
    problem = make()
    expected, found = compare(problem)
    if make is repeated:
        total = found["a"].multiplier + 1000 * found["b"].multiplier
        assert total == pytest.approx(expected["a"].multiplier + 1000 * expected["b"].multiplier, rel=1e-4)
        return
    for key in problem.constraints:
        np.testing.assert_allclose(found[key].multiplier, expected[key].multiplier, atol=1e-4)


def test_the_golden_policy_to_many_digits_in_few_steps():
    found = known_problem("tilt").build().solve(progress=False)
    assert found.objective == pytest.approx(0.7426550474, abs=1e-9)
    assert found["helpful"].multiplier == pytest.approx(0.24319542, abs=1e-8)
    assert found["harmless"].multiplier == pytest.approx(0.27002369, abs=1e-8)
    assert len(found.history) <= 8


def test_parameters_and_starts():
    level = cn.Parameter("level")
    pi = cn.Variable(SHAPE, "pi")
    problem = cn.maximize(E_(R, pi) - 0.1 * divergence(pi, "rel_entr")).subject_to(
        rows=cn.sum(pi, axis=1) == 1, first=E_(G1, pi) >= level
    )
    assert problem.explain().method != "closed"  # the parameter has no value
    first = problem.solve(params={"level": 0.3}, progress=False)
    again = problem.solve(params={"level": 0.3}, start=first, progress=False)
    assert len(again.history) <= 2
    assert again.objective == pytest.approx(first.objective, abs=1e-12)
    up, down = (problem.solve(params={"level": 0.3 + h}, progress=False).objective for h in (1e-5, -1e-5))
    assert first["first"].shadow_price == pytest.approx((up - down) / 2e-5, abs=1e-6)


# --------------------------------------------------------------------------------------- the limits
def policy(level):
    pi = cn.Variable(SHAPE, "pi")
    return cn.maximize(E_(R, pi) - 0.1 * divergence(pi, "rel_entr")).subject_to(
        rows=cn.sum(pi, axis=1) == 1, first=E_(G1, pi) >= level
    )


def test_an_impossible_expectation_is_proven_to_be_one():
    most = float(G1.max(axis=1).mean())
    found = policy(most + 1e-3).solve(progress=False)
    assert found.status.value == "infeasible"
    assert policy(most - 1e-3).solve(progress=False).status.value == "optimal"


@pytest.mark.parametrize("name", ["boxes", "simplex", "equations"])
def test_infeasible_sets(name):
    x = cn.Variable(N, "x", nonneg=name == "simplex")
    relations = {
        "boxes": {"a": x >= 2, "b": x <= 1.5},
        "simplex": {"total": cn.sum(x) == -1},
        "equations": {"a": TWO_ROWS[0] @ x == 1, "b": 2 * (TWO_ROWS[0] @ x) == 3, "c": TWO_ROWS[1] @ x == 0},
    }[name]
    assert near(x).subject_to(**relations).solve(progress=False).status.value == "infeasible"


x_, p_, b_ = cn.Variable(N, "x"), cn.Variable(N, "p", nonneg=True), cn.Variable(N, "b", bounds=(0, 0.5))
EVEN = np.full(N, 1 / N)
SUM = {"total": cn.sum(p_) == 1}
FAR = {"near": cn.sum(cn.rel_entr(p_, EVEN)) <= 0.1}
OTHERS = {
    "not diagonal": cn.minimize(cn.sum_squares(TWO_ROWS @ x_ - 1.0)).subject_to(c=cn.sum(x_) == 1),
    "shared entries with bounds": near(p_).subject_to(**SUM, b=PRICE @ p_ <= 0.1),
    "free entries": cn.minimize(cn.sum_squares(x_[:3])).subject_to(c=cn.sum(x_) == 1),
    "products of decisions": cn.minimize(cn.sum_squares(x_) + x_[0] * x_[1]),
    "integers": near(cn.Variable(N, "k", integer=True)),
    "ellipsoid": near(x_).subject_to(c=cn.norm(tensor(METRIC) * x_) <= 1),
    "ball in another metric": in_a_metric(x_).subject_to(c=cn.norm(x_) <= 1),
    "ball and bounds": near(p_).subject_to(c=cn.norm(p_) <= 1),
    "outside of a ball": near(x_).subject_to(c=cn.sum_squares(x_) >= 1),
    "norm of order infinity": near(x_).subject_to(c=cn.norm(x_, float("inf")) <= 0.1),
    "no distribution": cn.maximize(cn.sum(cn.entr(p_))).subject_to(c=cn.sum(p_[:3]) == 1),
    "entropy of sums": cn.maximize(cn.sum(cn.entr(np.abs(TWO_ROWS) @ p_))).subject_to(**SUM),
    "reverse divergence": cn.minimize(cn.sum(cn.rel_entr(EVEN, p_)) + PRICE @ p_).subject_to(**SUM),
    "divergence as a constraint": cn.minimize(PRICE @ p_).subject_to(**SUM, **FAR),
    "temperatures differ": cn.maximize(cn.sum(tensor(METRIC) * cn.entr(p_)) + PRICE @ p_).subject_to(**SUM),
    "entropy and squares": cn.minimize(cn.sum_squares(p_) - cn.sum(cn.entr(p_))).subject_to(**SUM),
    "least entropy": cn.minimize(cn.sum(cn.entr(p_))).subject_to(**SUM),
    "shifted logarithm": cn.minimize(cn.sum(p_ * torch.log(p_ + 0.1))).subject_to(**SUM),
    "another order": cn.minimize(cn.sum(p_ * torch.log(p_[[1, 0, 2, 3, 4, 5, 6]]))).subject_to(**SUM),
    "bounds within a distribution": cn.maximize(cn.sum(cn.entr(b_))).subject_to(c=cn.sum(b_) == 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_alike_is_refused_with_a_reason(name):
    problem = OTHERS[name]
    assert problem.explain().method != "closed"
    with pytest.raises(RouteError, match="closed cannot take the problem: "):
        problem.solve("closed", progress=False)


def test_options_of_other_methods_go_to_them():
    problem = nearest("simplex")
    assert problem.solve(solver="CLARABEL", progress=False).provenance.route.startswith("cvxpy")
    with pytest.raises(ModelingError, match="method 'closed' has no option 'solver'"):
        problem.solve("closed", solver="CLARABEL", progress=False)


def test_a_constraint_that_holds_on_the_boundary_only_goes_to_another_method():
    """No multiplier is large enough for the expectation to reach its largest value."""
    level = float(G1.max(axis=1).mean())
    found = policy(level).solve(progress=False)
    assert found.status.value in ("optimal", "stationary", "feasible")
    assert found["first"].value == pytest.approx(level, abs=1e-6)


# ------------------------------------------------------------------------------------- the dual method
def tilted(seed, *, feasible):
    """Blocks, masses, units and temperatures of any size; costs up to a million times the temperature."""
    rng = np.random.default_rng(seed)
    blocks, count = int(rng.integers(1, 6)), int(rng.integers(1, 16))
    sizes = rng.integers(1, 20, size=blocks)
    starts, n = np.concatenate([[0], np.cumsum(sizes)[:-1]]), int(sizes.sum())
    temperature = 10.0 ** rng.uniform(-3, 1, size=blocks)
    mass = 10.0 ** rng.uniform(-2, 2, size=blocks)
    cost = rng.normal(size=n) * 10.0 ** rng.uniform(-2, 3)
    rows = rng.normal(size=(count, n)) * 10.0 ** rng.uniform(-3, 3, size=(count, 1))
    inner = np.concatenate([m * rng.dirichlet(np.ones(s)) for m, s in zip(mass, sizes, strict=True)])
    equal = rng.random(count) < 0.2
    room = np.where(equal | (rng.random(count) < 0.5), 0.0, np.abs(rows).max(axis=1) * mass.sum() * 0.1)
    bound = rows @ inner + (room if feasible else -np.abs(rows).max(axis=1) * mass.sum() * 0.2)
    return Tilted(cost, starts, mass, temperature, rows, bound, equal)


@pytest.mark.parametrize("seed", range(40))
def test_every_feasible_problem_is_solved_to_its_bound(seed):
    given = tilted(seed, feasible=True)
    found = maximize_dual(given)
    assert found.ending == "converged"
    unit = np.abs(given.rows).max(axis=1) * given.mass.sum()
    over = (given.rows @ found.p - given.bound) / unit
    assert np.where(given.equal, np.abs(over), np.maximum(over, 0)).max() <= 1e-9
    assert (found.prices[~given.equal] >= 0).all()
    entropy = np.repeat(given.temperature, given.sizes) @ (found.p * np.log(found.p))
    value = given.cost @ found.p + entropy
    assert found.value == pytest.approx(value, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("seed", range(40))
def test_infeasible_problems_are_the_ones_of_a_linear_program(seed):
    given = tilted(seed, feasible=False)
    unit = np.abs(given.rows).max(axis=1)
    rows, bound = given.rows / unit[:, None], given.bound / unit
    sums = np.repeat(np.eye(len(given.mass)), given.sizes, axis=1)
    sides = np.concatenate([rows, -rows[given.equal]])
    least = linprog(
        np.append(np.zeros(rows.shape[1]), 1.0),
        A_ub=np.column_stack([sides, -np.ones(len(sides))]),
        b_ub=np.concatenate([bound, -bound[given.equal]]),
        A_eq=np.column_stack([sums, np.zeros(len(sums))]),
        b_eq=given.mass,
        bounds=[(0, None)] * rows.shape[1] + [(None, None)],
    ).fun
    assert maximize_dual(given).ending == ("infeasible" if least > 1e-7 else "converged")
