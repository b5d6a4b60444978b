"""Relaxed constraints: the penalty problem in CVXPY, prices by finite differences, every form and route."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, forall
from constrain.language import nodes as n
from constrain.lowering.classify import classify
from constrain.lowering.lower import lower
from constrain.lowering.relaxation import check_weights

RNG = np.random.default_rng(3)
ROWS = 40
X = RNG.normal(size=(ROWS, 3))
Y = np.sign(RNG.normal(size=ROWS))
GROUP = np.asarray(["u", "v"] * (ROWS // 2))
U = GROUP == "u"
TARGET = np.ones(3)
COSTS = {
    "squared": (cn.squared(3.0), 0.0, 3.0),
    "linear": (cn.linear(0.7), 0.7, 0.0),
    "both": (cn.linear(0.3) + cn.squared(2.0), 0.3, 2.0),
}


def data(rows=slice(None)):
    return cn.Data("sample", x=X[rows], y=Y[rows], group=GROUP[rows])


def mean(v, rows=slice(None)):
    return cp.sum(X[rows] @ v) / len(X[rows])


def levels(v):
    return cp.hstack([mean(v, U), mean(v, ~U)])


# name: (relation of D, w, b as written; the excess of every entry as cvxpy expression, or a list for the
# cases that share a slack; whether it is an equality; the bound)
FORMS = {
    "at least": (lambda D, w, b: E(D.x @ w) >= b, lambda v, b: b - mean(v), 1.0),
    "at most": (lambda D, w, b: E(-(D.x @ w)) <= b, lambda v, b: -mean(v) - b, -1.0),
    "bound on the left": (lambda D, w, b: b <= E(D.x @ w), lambda v, b: b - mean(v), 1.0),
    "levels": (lambda D, w, b: E(D.x @ w, by=D.group) >= b, lambda v, b: b - levels(v), 1.0),
    "abs of levels": (
        lambda D, w, b: abs(E(D.x @ w, by=D.group) - 1) <= b, lambda v, b: cp.abs(levels(v) - 1) - b, 0.1),
    "max of levels": (
        lambda D, w, b: cn.max(E(D.x @ w, by=D.group)) <= b, lambda v, b: cp.max(levels(v)) - b, -0.5),
    "min of levels": (
        lambda D, w, b: cn.min(E(D.x @ w, by=D.group)) >= b, lambda v, b: b - cp.min(levels(v)), 0.5),
    "maximum": (
        lambda D, w, b: cn.maximum(w, -w[0]) <= b, lambda v, b: cp.maximum(v, -v[0] * np.ones(3)) - b, 0.2),
    "equality": (lambda D, w, b: E(D.x @ w) == b, lambda v, b: cp.abs(mean(v) - b), 1.0),
    "equality of levels": (
        lambda D, w, b: E(D.x @ w, by=D.group) == b, lambda v, b: cp.abs(levels(v) - b), 1.0),
    "between": (
        lambda D, w, b: cn.between(b, E(D.x @ w), b + 1),
        lambda v, b: cp.maximum(b - mean(v), mean(v) - b - 1), 1.0),
    "vector": (
        lambda D, w, b: w >= b + np.arange(3.0), lambda v, b: b + np.arange(3.0) - v, 1.0),
    "per row": (lambda D, w, b: forall(D, D.y * (D.x @ w) >= b), lambda v, b: b - cp.multiply(Y, X @ v), 1.0),
    "some rows": (
        lambda D, w, b: forall(D.where(D.group == "u"), abs(D.x @ w - 1) <= b),
        lambda v, b: cp.abs(X[U] @ v - 1) - b, 0.1),
    "rows equal": (lambda D, w, b: forall(D, D.x @ w == b), lambda v, b: cp.abs(X @ v - b), 1.0),
    "rows between": (
        lambda D, w, b: forall(D, cn.between(b, D.x @ w, b + 0.5)),
        lambda v, b: cp.maximum(b - X @ v, X @ v - b - 0.5), 0.5),
    "entries of rows": (
        lambda D, w, b: forall(D, D.x * w <= b), lambda v, b: X @ cp.diag(v) - b, 0.3),
}  # fmt: skip
SHARES_BOUND = {"vector", "between", "rows between"}


def problem(name, cost, b, sense="minimize"):
    relation, _, _ = FORMS[name]
    w = cn.Variable(3, "w")
    f = cn.sum_squares(w - TARGET)
    start = cn.minimize(f) if sense == "minimize" else cn.maximize(-f)
    return start.subject_to(c=relation(data(), w, b).relax(cost=cost))


def reference(name, linear, squared, b):
    """Optimal value and excesses of the penalty problem, written in CVXPY."""
    v = cp.Variable(3)
    excess = cp.pos(FORMS[name][1](v, b))
    total = linear * cp.sum(excess) + squared / 2 * cp.sum_squares(excess)
    value = cp.Problem(cp.Minimize(cp.sum_squares(v - TARGET) + total)).solve(
        solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11
    )
    return value, np.asarray(excess.value), v.value


# -------------------------------------------------------------------------------------------- optima
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
def test_value_slack_and_multiplier_of_the_penalty_problem(name, cost, method):
    terms, linear, squared = COSTS[cost]
    b = FORMS[name][2]
    p = problem(name, terms, b)
    s = p.solve(method, progress=False)
    value, excess, _ = reference(name, linear, squared, b)
    c = s["c"]
    assert s.status is cn.Status.OPTIMAL
    assert s.objective == pytest.approx(value, rel=1e-6)
    assert np.asarray(c.relaxation) == pytest.approx(excess, abs=2e-5)
    assert c.max_violation <= 1e-7
    slack, size = np.ravel(c.relaxation), np.abs(np.ravel(c.multiplier))
    loose = slack > 1e-4
    assert size[loose] == pytest.approx((linear + squared * slack)[loose], rel=1e-4)
    assert (size <= linear + squared * slack + 1e-4).all()
    assert c.cost == pytest.approx(float(np.sum(linear * slack + squared / 2 * slack**2)))
    assert s.relaxation_cost == c.cost
    assert s.record.stationarity <= 1e-5
    assert s.record.complementarity <= 1e-6
    assert list(s.variables) == ["w"]


@pytest.mark.parametrize("sense", ["minimize", "maximize"])
@pytest.mark.parametrize("cost", ["squared", "both"])
@pytest.mark.parametrize("name", FORMS)
def test_shadow_prices_are_differences_of_the_optimal_value(name, cost, sense):
    terms, _, _ = COSTS[cost]
    b, h = FORMS[name][2], 1e-4
    price = problem(name, terms, b, sense).solve("cvxpy", progress=False)["c"].shadow_price
    up, down = (problem(name, terms, b + s, sense).solve("cvxpy", progress=False).objective for s in (h, -h))
    assert float(np.sum(price)) == pytest.approx((up - down) / (2 * h), rel=1e-4, abs=1e-5)


def test_a_price_below_the_weight_of_a_linear_cost_is_not_relaxed():
    hard = problem("at least", cn.linear(100.0), 0.4).solve(progress=False)
    w = cn.Variable(3, "w")
    p = cn.minimize(cn.sum_squares(w - TARGET)).subject_to(c=E(data().x @ w) >= 0.4)
    written = p.solve(progress=False)
    assert hard["c"].relaxation == pytest.approx(0.0, abs=1e-8)
    assert hard["c"].multiplier == pytest.approx(written["c"].multiplier, rel=1e-6)
    assert hard.objective == pytest.approx(written.objective, rel=1e-8)


def test_the_multiplier_at_a_kink_is_found_by_the_balance_of_gradients():
    """Rows on the margin of a hinge loss: any price up to the weight fits the cost, one sum the forces."""
    D = cn.Data("two", x=np.array([1.0, -1.0]), y=np.array([1.0, -1.0]))
    w = cn.Variable((), "w")
    p = cn.minimize(w**2 / 2).subject_to(fit=forall(D, D.y * D.x * w >= 1).relax(cost=cn.linear(10.0)))
    for method in ("cvxpy", "augmented"):
        s = p.solve(method, progress=False)
        assert float(w.value) == pytest.approx(1.0, abs=1e-7)
        assert s["fit"].multiplier.sum() == pytest.approx(1.0, abs=1e-6)
        assert s.status is cn.Status.OPTIMAL
    w.value = 1.0
    found = p.kkt({"w": 1.0})
    assert found.stationarity <= 1e-9
    assert found.multipliers["fit"].sum() == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------ training
def logistic(relation_of, cost, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, 3))
    g = np.where(rng.random(600) < 0.4, "u", "v")
    y = (x @ np.array([1.0, -0.5, 0.5]) + 0.8 * (g == "u") + rng.logistic(size=600) > 0.3).astype(float)
    D = cn.Data("d", x=torch.tensor(x), y=torch.tensor(y), g=g)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 1, dtype=torch.float64), torch.nn.Flatten(0))
    f = cn.Model(net, "f")
    loss = E(F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")) + 0.1 * cn.sum_squares(f)
    return cn.minimize(loss).subject_to(c=relation_of(D, f(D.x)).relax(cost=cost))


TRAINED = {
    "abs of levels": (lambda D, s: abs(E(s, by=D.g) - E(s)) <= 0.02, cn.squared(1.0)),
    "capped": (lambda D, s: abs(E(s, by=D.g) - E(s)) <= 0.02, cn.linear(0.05)),
    "equality": (lambda D, s: E(s, by=D.g) == 0.0, cn.squared(2.0)),
    "rows": (lambda D, s: forall(D, (2 * D.y - 1) * s >= 0.5), cn.squared(0.01)),
}


@pytest.mark.parametrize(
    ("method", "options", "room"),
    [("lagrangian", {"epochs": 250}, 0.08), ("cooper", {"epochs": 160, "lr": 3e-3}, 0.4)],
    ids=["lagrangian", "cooper"],
)
@pytest.mark.parametrize("name", TRAINED)
def test_minibatch_training_finds_the_same_relaxation(name, method, options, room):
    relation, cost = TRAINED[name]
    exact = logistic(relation, cost).solve("augmented", progress=False)
    trained = logistic(relation, cost).solve(method, batch=64, progress=False, **options)
    assert trained.objective == pytest.approx(exact.objective, rel=2e-3)
    assert trained["c"].max_violation <= 1e-6
    largest = np.max(np.abs(exact["c"].multiplier))
    assert np.abs(trained["c"].multiplier - exact["c"].multiplier).max() <= room * largest
    assert np.abs(trained["c"].relaxation - exact["c"].relaxation).max() <= 0.03 * (1 + largest)


def test_a_loop_of_your_own_needs_no_step_of_the_slack():
    p = logistic(*TRAINED["abs of levels"])
    exact = logistic(*TRAINED["abs of levels"]).solve("augmented", progress=False)
    lagrangian = p.compile(seed=0, rate=0.1)
    (model,) = p.models
    (D,) = p.populations
    optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-2)
    for _ in range(600):
        loss = lagrangian(D.rows(slice(None)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lagrangian.ascend()
    found = lagrangian.multipliers()
    total = (found["c:upper"] + found["c:lower"]).numpy()
    assert total == pytest.approx(exact["c"].multiplier, rel=0.03)


# ------------------------------------------------------------------------------------- what is solved
def test_the_program_of_the_solvers_and_of_the_judge():
    p = problem("rows between", cn.linear(1.0), 0.5)
    program = lower(p)
    assert tuple(program.parts) == ()
    assert [part.key for part in program.judged.parts] == ["c:upper", "c:lower"]
    assert program.judged.judged is program.judged
    assert program.auxiliary == ()
    assert classify(program).problem_class == "QP"
    assert program.moments == program.judged.moments
    by_level = lower(problem("levels", cn.linear(1.0), 0.5))
    assert [symbol.shape for symbol in by_level.auxiliary] == [(2,)]
    assert by_level.judged is by_level
    assert any(step.rule == "relax" for step in by_level.trace)


def test_slacks_follow_the_levels_and_rows_of_the_data_that_is_solved():
    D = data()
    w = cn.Variable(3, "w")
    other = cn.Data("sample", x=X[:30], y=Y[:30], group=np.asarray(["u", "v", "z"] * 10))
    p = cn.minimize(cn.sum_squares(w - TARGET)).subject_to(
        parity=(E(D.x @ w, by=D.group) >= 1).relax(cost=cn.squared(3.0)),
        fit=forall(D, D.y * (D.x @ w) >= 1).relax(cost=cn.squared(0.5)),
    )
    replaced = p.solve(data=other, progress=False)
    assert replaced["parity"].relaxation.shape == (3,)
    q = cn.minimize(cn.sum_squares(w - TARGET)).subject_to(
        parity=(E(other.x @ w, by=other.group) >= 1).relax(cost=cn.squared(3.0)),
        fit=forall(other, other.y * (other.x @ w) >= 1).relax(cost=cn.squared(0.5)),
    )
    assert replaced.objective == pytest.approx(q.solve(progress=False).objective, rel=1e-9)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
def test_over_a_continuous_population_costs_are_averaged(cost, method):
    terms, linear, squared = COSTS[cost]
    x, w = cn.Uniform("x", 0.0, 1.0), cn.Variable(3, "w")
    curve = w[0] + w[1] * x + w[2] * x**2
    p = cn.minimize(E((curve - 1 - x) ** 2)).subject_to(cap=forall(x, curve <= 1.2).relax(cost=terms))
    (region,) = p.populations
    points, weights = np.asarray(region.values("x")), np.asarray(region.weights)
    v = cp.Variable(3)
    found = np.stack([points**0, points, points**2], 1) @ v
    excess = cp.pos(found - 1.2)
    total = weights @ cp.square(found - 1 - points)
    total += linear * weights @ excess + squared / 2 * weights @ cp.square(excess)
    value = cp.Problem(cp.Minimize(total)).solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_feas=1e-10)
    s = p.solve(method, progress=False)
    c = s["cap"]
    assert s.status is cn.Status.OPTIMAL
    assert s.objective == pytest.approx(value, rel=1e-5)
    assert c.cost == pytest.approx(
        float(weights @ (linear * c.relaxation + squared / 2 * c.relaxation**2)), abs=1e-9
    )
    assert s.record.stationarity <= 1e-6


def test_weights_may_be_parameters():
    price = cn.Parameter("price")
    p = problem("per row", cn.squared(price), 1.0)
    values = {}
    for weight in (0.5, 5.0):
        values[weight] = p.solve(params={"price": weight}, progress=False)
        assert values[weight].status is cn.Status.OPTIMAL
        assert values[weight].objective == pytest.approx(reference("per row", 0.0, weight, 1.0)[0], rel=1e-7)
        rows = values[weight]["c"]
        assert rows.multiplier == pytest.approx(weight * rows.relaxation, rel=1e-5)
    with pytest.raises(cn.ModelingError, match=r"E157.*the cost of 'c' \(price\) is -1"):
        p.solve(params={"price": -1.0}, progress=False)
    with pytest.raises(cn.ModelingError, match="E157"):
        check_weights(lower(p), {price.symbol: math.nan})
    with pytest.raises(cn.ModelingError, match="E127"):
        p.solve(progress=False)


@pytest.mark.parametrize("name", ["per row", "levels", "equality"])
@pytest.mark.parametrize("method", ["augmented", "lagrangian"])
def test_multipliers_of_one_solve_start_another(name, method):
    options = {} if method == "augmented" else {"epochs": 2, "batch": 10}
    p = problem(name, cn.linear(0.3) + cn.squared(2.0), FORMS[name][2])
    first = p.solve("augmented", progress=False)
    again = p.solve(method, start=first, progress=False, **options)
    assert again["c"].multiplier == pytest.approx(first["c"].multiplier, rel=0.5, abs=0.05)
    assert p.kkt(multipliers=first.multipliers).origin == "given"
    report = p.check()
    assert not [finding for finding in report.findings if finding.severity == "error"]
    assert cn.from_json(p.to_json(), p.symbols()) == p
    assert "rewritten" in str(p.explain())


def test_min_max_objectives_and_relaxations_meet():
    D, w = data(), cn.Variable(3, "w")
    p = cn.minimize(cn.max(abs(w - TARGET))).subject_to(c=(E(D.x @ w) >= 1).relax(cost=cn.squared(1.0)))
    v = cp.Variable(3)
    value = cp.Problem(cp.Minimize(cp.norm_inf(v - TARGET) + 0.5 * cp.square(cp.pos(1 - mean(v))))).solve()
    s = p.solve(progress=False)
    assert s.objective == pytest.approx(value, rel=1e-6)
    assert s.train.interval[1] >= s.objective


def test_elastic_feasibility():
    x = cn.Variable(2, "x")
    s = (
        cn.find()
        .subject_to(budget=(x[0] + x[1] <= 1).relax(cost=cn.linear(1.0)), a=x[0] >= 0.9, b=x[1] >= 0.2)
        .solve(progress=False)
    )
    assert s.status is cn.Status.OPTIMAL
    assert s["budget"].relaxation == pytest.approx(0.1)
    assert s.objective == pytest.approx(0.1)
    assert "cost of relaxing 0.1" in str(s)


def test_a_shape_that_is_not_known_is_refused():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return x * self.w / (1 // int(x.any()))  # takes no rows of zeros

    f = cn.Model(Odd(), "f")
    p = cn.minimize(cn.sum_squares(f)).subject_to(c=(E(f(data().x)) >= 1).relax(cost=cn.linear(1.0)))
    with pytest.raises(cn.ModelingError, match="E158"):
        lower(p)
    q = cn.minimize(cn.sum_squares(f)).subject_to(c=(cn.max(E(f(data().x))) <= 1).relax(cost=cn.linear(1.0)))
    assert lower(q).auxiliary[0].shape == ()


# ------------------------------------------------------------------------------------------ structure
def test_a_constraint_keeps_what_was_said_about_it():
    D, w = data(), cn.Variable(3, "w")
    c = (E(D.x @ w) >= 1).relax(cost=cn.squared(10.0)).scale(2)
    assert isinstance(c, cn.Constraint)
    assert c.node == (E(D.x @ w) >= 1).relax(cost=cn.squared(10.0)).scale(2.0).node
    assert c.node != (E(D.x @ w) >= 1).scale(2).relax(cost=cn.squared(10.0)).node
    assert isinstance(c.node, n.Scaled)
    form = lower(cn.minimize(cn.sum_squares(w)).subject_to(c=c)).forms[0]
    assert (form.scale, form.relaxation.cost) == (2.0, ("squared",))
    with pytest.raises(cn.ModelingError, match="E113"):
        c.node = None
    with pytest.raises(cn.ModelingError, match="E102"):
        c <= 3  # noqa: B015
    assert repr(cn.squared(10.0) + cn.linear(2)) == "cn.squared(10.0) + cn.linear(2)"
