"""One law for every rewrite rule: the same feasible set, and multipliers that are prices."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.lowering.lower import EPIGRAPH, lower
from constrain.lowering.program import Program
from constrain.lowering.verify import verify
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator

RNG = np.random.default_rng(3)
ROWS = 40
GROUP = np.where(np.arange(ROWS) % 4 == 0, "b", "a")
X = RNG.normal(size=(ROWS, 3)) + 0.5 * (GROUP == "b")[:, None]
BASE = np.asarray([0.8, -0.6, 0.4])
"""Unconstrained minimizer of the objective |w - BASE|^2."""


def data():
    return cn.Data("sample", x=torch.tensor(X), group=GROUP)


def means(w):
    s = X @ w
    return np.asarray([s[level == GROUP].mean() for level in ("a", "b")])


def violated(op, lhs, rhs):
    """Whether `lhs op rhs` fails anywhere, by plain NumPy."""
    return bool(np.any(lhs > rhs) if op == "<=" else np.any(lhs < rhs))


# name: (relation of D, w, b as written; its truth by NumPy; a bound at which it binds)
RULES = {
    "at most": (lambda D, w, b: w[0] <= b, lambda w, b: w[0] <= b, 0.3),
    "flip": (lambda D, w, b: w[1] >= b, lambda w, b: w[1] >= b, -0.2),
    "flip, bound on the left": (lambda D, w, b: b <= w[1], lambda w, b: w[1] >= b, -0.2),
    "abs": (lambda D, w, b: abs(w[0]) <= b, lambda w, b: abs(w[0]) <= b, 0.5),
    "abs, lower side": (lambda D, w, b: abs(w[1]) <= b, lambda w, b: abs(w[1]) <= b, 0.25),
    "abs on the right": (lambda D, w, b: b >= abs(w[0]), lambda w, b: abs(w[0]) <= b, 0.5),
    "abs of an average": (lambda D, w, b: abs(E(D.x @ w)) <= b, lambda w, b: abs((X @ w).mean()) <= b, 0.02),
    "abs of levels": (
        lambda D, w, b: abs(E(D.x @ w, by=D.group) - E(D.x @ w)) <= b,
        lambda w, b: bool(np.all(np.abs(means(w) - (X @ w).mean()) <= b)),
        0.05,
    ),
    "maximum": (lambda D, w, b: cn.maximum(w[0], -w[1]) <= b, lambda w, b: max(w[0], -w[1]) <= b, 0.4),
    "maximum of three": (
        lambda D, w, b: cn.maximum(w[0], w[1], w[2]) <= b, lambda w, b: max(w) <= b, 0.3),
    "max": (lambda D, w, b: cn.max(w) <= b, lambda w, b: max(w) <= b, 0.3),
    "max of abs": (lambda D, w, b: cn.max(abs(w)) <= b, lambda w, b: max(abs(w)) <= b, 0.5),
    "max on the right": (lambda D, w, b: b >= cn.max(w), lambda w, b: max(w) <= b, 0.3),
    "minimum": (lambda D, w, b: cn.minimum(w[1], w[2]) >= b, lambda w, b: min(w[1], w[2]) >= b, -0.1),
    "min": (lambda D, w, b: cn.min(w) >= b, lambda w, b: min(w) >= b, -0.1),
    "max of levels": (
        lambda D, w, b: cn.max(E(D.x @ w, by=D.group)) <= b, lambda w, b: max(means(w)) <= b, 0.05),
    "min of levels": (
        lambda D, w, b: cn.min(E(-(D.x @ w), by=D.group)) >= -b, lambda w, b: max(means(w)) <= b, 0.05),
    "levels": (
        lambda D, w, b: E(D.x @ w, by=D.group) <= b, lambda w, b: max(means(w)) <= b, 0.05),
    "levels, at least": (
        lambda D, w, b: E(-(D.x @ w), by=D.group) >= -b, lambda w, b: max(means(w)) <= b, 0.05),
    "per row": (
        lambda D, w, b: cn.forall(D, D.x @ w <= b), lambda w, b: max(X @ w) <= b, 1.0),
    "per row, abs": (
        lambda D, w, b: cn.forall(D.where(D.group == "a"), abs(D.x @ w) <= b),
        lambda w, b: max(abs(X[GROUP == "a"] @ w)) <= b, 1.0),
}  # fmt: skip
SIGNS = {"min of levels": -1.0, "levels, at least": -1.0}
"""The bound as written is this times b."""


def build(name, b):
    relation, _, _ = RULES[name]
    w = cn.Variable(3, "w")
    p = cn.minimize(cn.sum_squares(w - torch.tensor(BASE))).subject_to(c=relation(data(), w, b))
    return p, w


def evaluator_of(problem):
    program = lower(problem)
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    return Evaluator(program, decisions, dtype=torch.float64, chunk=7), decisions


def worst(evaluator):
    """Largest residual of an inequality, largest |residual| of an equality."""
    outer = evaluator.full("exact")
    found = []
    for i, part in enumerate(evaluator.program.parts):
        r = outer.residuals[i]
        if r is None:
            r, mask = evaluator.row_residuals(i)
            r = r if mask is None else r[mask]
        found.append(float((r.abs() if part.kind == "==" else r).max()))
    return max(found)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.semantics("S7")
def test_same_feasible_set(name):
    _, truth, b = RULES[name]
    problem, _ = build(name, b)
    evaluator, decisions = evaluator_of(problem)
    rng = np.random.default_rng(11)
    seen = set()
    for scale in (0.05, 0.2, 0.5, 1.0):
        for _ in range(15):
            point = scale * rng.normal(size=3)
            decisions.set(point)
            feasible = worst(evaluator) <= 0
            assert feasible == truth(point, b), point
            seen.add(feasible)
    assert seen == {True, False}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
def test_multiplier_is_the_price_of_the_bound_as_written(name, method):
    b, h = RULES[name][2], 1e-3
    values = [build(name, b + step)[0].solve("cvxpy", progress=False).objective for step in (-h, h)]
    price = (values[1] - values[0]) / (2 * h) * SIGNS.get(name, 1.0)
    assert abs(price) > 1e-2, "the bound does not bind: nothing is tested"
    solution = build(name, b)[0].solve(method, progress=False)
    found = solution["c"]
    assert np.sum(found.shadow_price) == pytest.approx(price, rel=2e-3, abs=1e-5)
    assert np.sum(found.multiplier) == pytest.approx(abs(price), rel=2e-3, abs=1e-5)
    assert np.all(np.asarray(found.multiplier) >= -1e-7)


def test_levels_of_one_block_have_their_own_prices():
    limits = np.asarray([0.05, 0.02])

    def solve(limits):
        D, w = data(), cn.Variable(3, "w")
        objective = cn.sum_squares(w - torch.tensor(BASE))
        a = E(D.x @ w, given=D.group == "a") <= float(limits[0])
        b = E(D.x @ w, given=D.group == "b") <= float(limits[1])
        return cn.minimize(objective).subject_to(a=a, b=b).solve("cvxpy", progress=False)

    solution, h = solve(limits), 1e-4
    for i, name in enumerate("ab"):
        step = h * np.eye(2)[i]
        price = (solve(limits + step).objective - solve(limits - step).objective) / (2 * h)
        assert solution[name].shadow_price == pytest.approx(price, abs=1e-4)


# ----------------------------------------------------------------------------------- between, equality
@pytest.mark.parametrize(("lower_bound", "upper_bound"), [(-0.5, 0.3), (0.9, 1.5)])
@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
def test_between(lower_bound, upper_bound, method):
    def problem(lo, hi):
        w = cn.Variable(3, "w")
        return cn.minimize(cn.sum_squares(w - torch.tensor(BASE))).subject_to(c=cn.between(lo, w[0], hi))

    evaluator, decisions = evaluator_of(problem(lower_bound, upper_bound))
    for x in np.linspace(-1, 2, 31):
        decisions.set(np.asarray([x, 0, 0]))
        assert (worst(evaluator) <= 0) == (lower_bound <= x <= upper_bound)
    h = 1e-4
    values = [
        problem(lower_bound + s, upper_bound + s).solve("cvxpy", progress=False).objective for s in (-h, h)
    ]
    solution = problem(lower_bound, upper_bound).solve(method, progress=False)
    assert solution["c"].shadow_price == pytest.approx((values[1] - values[0]) / (2 * h), abs=1e-4)
    assert len(solution["c"].parts) == 2


@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
def test_equality(method):
    def problem(b):
        w = cn.Variable(3, "w")
        return cn.minimize(cn.sum_squares(w - torch.tensor(BASE))).subject_to(c=cn.sum(w) == b)

    h = 1e-4
    price = (
        problem(0.2 + h).solve("cvxpy", progress=False).objective
        - problem(0.2 - h).solve("cvxpy", progress=False).objective
    ) / (2 * h)
    found = problem(0.2).solve(method, progress=False)["c"]
    assert found.shadow_price == pytest.approx(price, abs=1e-4)
    assert found.multiplier == pytest.approx(-price, abs=1e-4)


# --------------------------------------------------------------------------------------- objectives
@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        (lambda D, w: cn.max(w + torch.tensor(BASE)), 3),
        (lambda D, w: cn.maximum(w[0] + 0.5, w[1], w[2] - 0.5), 3),
        (lambda D, w: abs(cn.sum(w) - 2), 2),
        (lambda D, w: cn.max(E(D.x @ w, by=D.group)), 2),
        (lambda D, w: 0.1 * cn.sum_squares(w) + cn.max(E(D.x @ w, by=D.group)), 2),
        (lambda D, w: (cn.max(E(D.x @ w, by=D.group)) + 0.1 * cn.sum_squares(w)) / 2 - w[1], 2),
        (lambda D, w: 0.1 * cn.sum_squares(w) - 3 * cn.min(E(-(D.x @ w), by=D.group)), 2),
        (lambda D, w: abs(E(D.x @ w) + 0.02) * 2 + cn.sum_squares(w + 0.1), 2),
    ],
    ids=["max", "maximum", "abs", "levels", "in a sum", "in a part", "least", "abs in a sum"],
)
def test_epigraph(objective, weights, method):
    """The value is that of the objective as written, and the multipliers of its terms sum to one."""

    def problem():
        w = cn.Variable(3, "w")
        return cn.minimize(objective(data(), w)).subject_to(ball=cn.sum_squares(w) <= 0.25, c=w[0] >= -0.3)

    solution = problem().solve(method, progress=False)
    total = sum(np.sum(v) for k, v in solution.multipliers.items() if k.startswith(EPIGRAPH))
    assert total == pytest.approx(1.0, abs=1e-5)
    plain = lower(problem(), use_epigraph=False)
    decisions = Decisions(plain, torch.device("cpu"), torch.float64)
    evaluator = Evaluator(plain, decisions, dtype=torch.float64)
    decisions.set(np.asarray(solution.variables["w"]).ravel())
    assert solution.objective == pytest.approx(float(evaluator.full().objective), abs=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(200):
        direction = rng.normal(size=3)
        point = 0.5 * rng.random() * direction / np.linalg.norm(direction)
        if point[0] >= -0.3:
            decisions.set(point)
            assert float(evaluator.full().objective) >= solution.objective - 1e-5
    assert EPIGRAPH not in solution.names
    assert len([p for p in lower(problem()).parts if p.constraint == EPIGRAPH]) >= 1
    assert weights >= 2


@pytest.mark.parametrize(
    "objective",
    [
        lambda D, w: cn.sum_squares(w) - cn.max(E(D.x @ w, by=D.group)),
        lambda D, w: cn.sum_squares(w) + cn.max(w),
        lambda D, w: cn.max(E(D.x @ w, by=D.group)) + (9 - cn.max(E(D.x @ w, by=D.group))) ** 2,
        lambda D, w: cn.max(E(D.x @ w, by=D.group)) ** 2 + cn.sum(w),
        lambda D, w: w[0] * cn.max(E(D.x @ w, by=D.group)),
    ],
    ids=["subtracted", "no averages", "also elsewhere", "inside of a function", "times a decision"],
)
def test_where_a_largest_value_is_left_alone(objective):
    w = cn.Variable(3, "w")
    assert not lower(cn.minimize(objective(data(), w)).subject_to(c=cn.sum_squares(w) <= 1)).auxiliary


def test_a_maximum_of_a_maximized_objective_is_left_alone():
    w = cn.Variable(3, "w")
    program = lower(cn.maximize(cn.max(w)).subject_to(c=cn.sum_squares(w) <= 1))
    assert not program.auxiliary


# ------------------------------------------------------------------------------------- the sign table
@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
@pytest.mark.parametrize("op", ["<=", ">=", "=="])
@pytest.mark.parametrize("sense", ["minimize", "maximize"])
@pytest.mark.semantics("S10")
def test_sign_matrix(sense, op, method):
    """min/max x <=, >=, ==: the shadow price is d(value in the user's sense) / d(bound as written)."""

    def problem(b):
        x = cn.Variable(2, "x", bounds=(-5.0, 5.0))
        curved = cn.sum_squares(x - torch.tensor([1.0, -1.0], dtype=torch.float64))
        lhs = x[0] + 2 * x[1]
        relation = {"<=": lhs <= b, ">=": lhs >= b, "==": lhs == b}[op]
        return (cn.minimize(curved) if sense == "minimize" else cn.maximize(-curved)).subject_to(c=relation)

    bound, h = {"<=": -2.0, ">=": 1.0, "==": 0.5}[op], 1e-3
    solution = problem(bound).solve(method, progress=False)
    values = [problem(bound + step).solve("cvxpy", progress=False).objective for step in (-h, h)]
    price = (values[1] - values[0]) / (2 * h)
    assert abs(price) > 0.1
    found = solution["c"]
    assert found.shadow_price == pytest.approx(price, abs=1e-4)
    if op == "==":
        sign = 1.0 if sense == "maximize" else -1.0
        assert found.multiplier == pytest.approx(sign * price, abs=1e-4)
    else:
        assert found.multiplier == pytest.approx(abs(price), abs=1e-4)
    assert (found.multiplier >= 0) or op == "=="


# ------------------------------------------------------------------------------------------ structure
def test_a_wrong_program_is_refused_between_passes():
    D, w = data(), cn.Variable(3, "w")
    problem = cn.minimize(cn.sum_squares(w)).subject_to(c=E(D.x @ w) <= 1)
    good = lower(problem)
    raw = problem.constraints["c"]
    assert isinstance(raw, n.Comparison)
    bad = Program(problem, raw.lhs, good.forms, good.moments)
    with pytest.raises(ModelingError, match=r"\[E132\].*a Mean is left"):
        verify(bad, ATOMS)


def test_equal_averages_are_one_moment():
    D, w = data(), cn.Variable(3, "w")
    problem = cn.minimize(E((D.x @ w) ** 2)).subject_to(
        a=E(D.x @ w) <= 1, b=E(D.x @ w) >= -1, c=abs(E(D.x @ w)) <= 2
    )
    assert len(lower(problem).moments) == 2


def test_the_trace_says_what_was_rewritten():
    D, w = data(), cn.Variable(3, "w")
    problem = cn.minimize(cn.max(w)).subject_to(
        a=abs(w[0]) <= 1, b=w[1] >= 0, c=cn.between(0, w[2], 1), d=cn.P(D.x @ w > 0) <= 0.5
    )
    rules = {(step.rule, step.target) for step in lower(problem).trace}
    assert {
        ("epigraph", "objective"),
        ("split", "a"),
        ("flip", "b"),
        ("between", "c"),
        ("surrogate", "d"),
    } <= rules
    assert [step.exact for step in lower(problem).trace if step.rule == "surrogate"] == [False]
