"""Problems that fall apart into blocks without a common decision, each by its own route."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E
from constrain.driver.blocks import components
from constrain.solvers import training

torch.set_num_threads(1)
rng = np.random.default_rng(0)
X = rng.normal(size=(80, 2))
Y = (X[:, 0] - X[:, 1] > 0).astype(float)
UNIT, SETUP = np.array([2.0, 1.0, 3.0]), np.array([5.0, 20.0, 1.0])


def network(hidden=3):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(2, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1), torch.nn.Flatten(0)]
    return torch.nn.Sequential(*layers).double()


def learning(D, f):
    score = f(D.x)
    return E(F.binary_cross_entropy_with_logits(score, D.y, reduction="none")), {"mean": abs(E(score)) <= 0.2}


def lots():
    made, opened = cn.Variable(3, "made", nonneg=True), cn.Variable(3, "opened", boolean=True)
    return UNIT @ made + SETUP @ opened, {"demand": cn.sum(made) >= 14, "link": made <= 10 * opened}


# ------------------------------------------------------------------------------------------- connection
def test_components_are_those_of_the_graph_of_decisions():
    x = [cn.Variable((), f"x{k}") for k in range(6)]
    objective = x[0] ** 2 + 3.0 - (x[1] * x[2] - x[3]) + 2.0 * x[4]
    problem = cn.minimize(objective).subject_to(
        a=x[0] + x[4] >= 1, b=x[3] <= 2, c=x[5] == 1, d=x[1] - x[0] <= 5, e=cn.Parameter("p", 1.0) <= 2
    )
    found = [(set(names), set(part.constraints)) for part, names in components(problem)]
    assert found == [({"x0", "x1", "x2", "x4"}, {"a", "d", "e"}), ({"x3"}, {"b"}), ({"x5"}, {"c"})]
    parts = [part for part, _ in components(problem)]
    assert [part.sense for part in parts] == ["minimize", "minimize", "find"]
    values = {f"x{k}": float(k) for k in range(6)}
    for k in range(6):
        x[k].value = values[f"x{k}"]
    whole = problem.evaluate().objective
    assert sum(part.evaluate().objective for part in parts[:2]) == pytest.approx(whole)
    assert len(components(cn.minimize(x[0] * x[1]))) == 1


# --------------------------------------------------------------------------------------------- solving
def test_integers_beside_a_network(monkeypatch):
    """No method takes the whole; each block ends as it does alone, and one report has both."""
    D = cn.Data("sample", x=X, y=Y)
    f = cn.Model(network(), "f")
    loss, rules = learning(D, f)
    cost, limits = lots()
    problem = cn.minimize(loss + cost).subject_to(**rules, **limits)
    explanation = problem.explain()
    assert explanation.method == "blocks"
    assert "f by lagrangian" in explanation.reason
    assert "made, opened by pyomo" in explanation.reason
    monkeypatch.setattr(training, "LEAST_STEPS", 1500)
    solution = problem.solve(progress=False)
    trained = cn.minimize(loss).subject_to(**rules).evaluate()
    planned = cn.minimize(cost).subject_to(**limits).solve(progress=False)
    assert solution.objective == pytest.approx(trained.objective + planned.objective, rel=1e-6)
    assert solution["demand"].multiplier == pytest.approx(planned["demand"].multiplier)
    assert solution.objective - 38.0 < 0.2
    assert solution["mean"].multiplier >= 0.0
    assert solution.provenance.route.startswith("2 blocks without a common decision: ")
    assert set(solution.names) == {"mean", "demand", "link"}
    assert solution.variables["opened"] == pytest.approx([1, 0, 1])


@pytest.mark.parametrize("sense", ["minimize", "maximize"])
def test_exact_blocks_have_one_bound_and_one_status(sense):
    """A convex and an integer block: the bounds add up, and the whole is proven optimal."""
    cost, limits = lots()
    u = cn.Variable(2, "u")
    spread = cn.logsumexp(u) + 0.5 * cn.sum_squares(u - 1.0)
    whole = cost + spread
    start = cn.minimize(whole) if sense == "minimize" else cn.maximize(-whole)
    problem = start.subject_to(**limits, half=u[0] + u[1] <= 1)
    solution = problem.solve(progress=False)
    second = cn.minimize(spread).subject_to(half=u[0] + u[1] <= 1).solve(progress=False)
    sign = 1.0 if sense == "minimize" else -1.0
    assert problem.explain().method == "blocks"
    assert solution.objective == pytest.approx(sign * (38.0 + second.objective), abs=1e-6)
    assert solution.bound == pytest.approx(solution.objective, abs=1e-5)
    assert solution.status.value == "optimal"
    assert solution["half"].multiplier == pytest.approx(second["half"].multiplier, abs=1e-6)
    assert solution["half"].shadow_price == pytest.approx(-sign * second["half"].multiplier, abs=1e-6)


def test_one_infeasible_block_makes_all_infeasible():
    cost, limits = lots()
    u = cn.Variable((), "u", nonneg=True)
    problem = cn.minimize(cost + cn.exp(u)).subject_to(**limits, never=u <= -1)
    assert problem.explain().method == "blocks"
    assert problem.solve(progress=False).status.value in ("infeasible", "likely_infeasible")


def test_parameters_data_and_starts_go_to_their_block():
    D = cn.Data("sample", x=X, y=Y)
    other = cn.Data("sample", x=X[:50], y=Y[:50])
    cost, limits = lots()
    w, shift = cn.Variable(2, "w"), cn.Parameter("shift", 0.0)
    loss = E(F.binary_cross_entropy_with_logits(D.x @ w - shift, D.y, reduction="none"))
    problem = cn.minimize(loss + 0.1 * cn.sum_squares(w) + cost).subject_to(**limits)
    solution = problem.solve(progress=False, data=other, params={"shift": 0.5}, start={"demand": 3.0})
    part = cn.minimize(loss + 0.1 * cn.sum_squares(w)).solve(
        progress=False, data=other, params={"shift": 0.5}
    )
    assert solution.objective == pytest.approx(38.0 + part.objective, abs=1e-6)
    assert solution.provenance.route.startswith("2 blocks")


@pytest.mark.parametrize("options", [{"method": "augmented"}, {"epochs": 2}])
def test_who_asks_for_a_method_gets_it_for_all(options):
    D = cn.Data("sample", x=X, y=Y)
    f, u = cn.Model(network(), "f"), cn.Variable((), "u", bounds=(0, 1))
    loss, rules = learning(D, f)
    problem = cn.minimize(loss + (u - 2) ** 2).subject_to(**rules)
    assert problem.explain().method == "blocks"
    method = options.pop("method", "auto")
    solution = problem.solve(method, progress=False, time_limit=5.0, **options)
    assert "blocks" not in solution.provenance.route


def test_blocks_of_one_method_stay_together():
    x, y = cn.Variable(2, "x"), cn.Variable(2, "y")
    problem = cn.minimize(cn.sum_squares(x - 1) + cn.norm(y - 2, 1)).subject_to(a=x[0] >= 2, b=y[0] <= 0)
    explanation = problem.explain()
    assert explanation.method != "blocks" or len({"x", "y"}) == 2
    assert problem.solve(progress=False).objective == pytest.approx(3.0, abs=1e-6)
