"""The twelve rules of `docs/semantics.md`, each pinned by a test of its own; and every rule is cited.

A test cites a rule with `@pytest.mark.semantics("S4")`, here or anywhere else in the suite.
"""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E, P, forall

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "semantics.md"
RULES = re.findall(r"^## (S\d+)\. ", PAGE.read_text(encoding="utf-8"), flags=re.M)


def cited(path: Path) -> list[tuple[str, str]]:
    """(rule, test) of every marker in a file."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            call = ast.unparse(decorator)
            if call.startswith("pytest.mark.semantics("):
                found += [(rule, node.name) for rule in re.findall(r"'(\w+)'", call)]
    return found


def test_every_rule_is_cited_by_a_test_and_every_citation_is_of_a_rule():
    citations = [pair for path in sorted(TESTS.rglob("test_*.py")) for pair in cited(path)]
    assert len(RULES) == 12
    assert {rule for rule, _ in citations} == set(RULES)
    assert all(test.startswith("test_") for _, test in citations)


# ------------------------------------------------------------------------------------------ the rules
generator = torch.Generator().manual_seed(0)
X = torch.randn(400, 3, generator=generator, dtype=torch.float64)
Y = (X[:, 0] + torch.randn(400, generator=generator, dtype=torch.float64) > 0).double()
G = ["a" if row % 3 else "b" for row in range(400)]


def sample(name="train", rows=slice(None)):
    return cn.Data(name, x=X[rows], y=Y[rows], g=G[rows])


def linear(seed=0):
    torch.manual_seed(seed)
    return cn.Model(nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0)), "f")


def solved(problem, **options):
    return problem.solve(progress=False, **options)


@pytest.mark.semantics("S1")
def test_an_open_axis_has_three_readings_and_populations_do_not_align():
    D, other, w = sample(), sample("other"), cn.Variable(3, "w")
    with pytest.raises(cn.ModelingError, match="E101") as caught:
        cn.minimize(cn.sum_squares(w)).subject_to(c=D.x @ w <= 1)
    assert [line.split("(")[0] for line in caught.value.fix.splitlines()] == ["E", "P", "forall"]
    assert E(D.x @ w).type.rows is None
    assert (D.x @ w).type.rows is D
    assert forall(D, D.x @ w <= 1).node.data is D
    with pytest.raises(cn.ModelingError, match="E107"):
        D.y * other.y
    closed = cn.minimize(cn.sum_squares(w)).subject_to(
        c=E(D.y) - E(other.x @ w) <= 0
    )  # each closed by itself
    assert closed.populations == (D, other)


@pytest.mark.semantics("S1")
def test_a_coordinate_of_a_region_is_a_random_variable():
    x, t = cn.Uniform("x", 0.0, 2.0), cn.Variable((), "t")
    with pytest.raises(cn.ModelingError, match="E101"):
        cn.minimize(t).subject_to(c=x * t <= 1)
    integral = cn.minimize((t - E(x**2)) ** 2)
    assert float(solved(integral).objective) == pytest.approx(0.0, abs=1e-8)
    assert float(t.value) == pytest.approx(4 / 3, rel=1e-4)  # the mean of x^2 on (0, 2)


@pytest.mark.semantics("S2")
def test_a_comparison_is_an_event_when_a_side_is_random_and_a_constraint_otherwise():
    D, w = sample(), cn.Variable(3, "w")
    event, constraint = D.x @ w > 0, E(D.x @ w) >= 0
    assert isinstance(event, cn.Expr)
    assert event.type.event
    assert isinstance(constraint, cn.Constraint)
    assert P(event & (D.y == 1)).type.rows is None
    with pytest.raises(cn.ModelingError, match="E109"):
        E(D.x @ w) > 0  # noqa: B015  # refused
    with pytest.raises(cn.ModelingError, match="E108"):
        P(constraint)


@pytest.mark.semantics("S3")
@pytest.mark.parametrize(
    ("written", "code"),
    [
        (lambda e, _: 0 <= e <= 1, "E102"),
        (lambda _, event: bool(event), "E103"),
        (lambda _, event: event and event, "E103"),
        (lambda e, _: max(e, 0), "E103"),
        (lambda e, _: 1 if e <= 0 else 2, "E103"),
        (lambda e, _: e in [1, 2], "E103"),
    ],
)
def test_nothing_has_a_truth_value(written, code):
    D, t = sample(), cn.Variable((), "t")
    with pytest.raises(cn.ModelingError, match=code):
        written(E(D.y * t), D.y * t > 0)


@pytest.mark.semantics("S4")
def test_conditions_are_ratios_and_groups_are_one_block():
    D, t = sample(), cn.Variable((), "t")
    condition = cn.minimize((t - E(D.x[..., 0], given=D.y == 1)) ** 2)
    solved(condition)
    assert float(t.value) == pytest.approx(float(X[Y == 1, 0].mean()), abs=1e-5)
    levels = cn.minimize(t).subject_to(above=E(D.y, by=D.g) <= t)
    solution = solved(levels)
    assert solution["above"].levels == ("a", "b")
    own = np.array([float(Y[[g == level for g in G]].mean()) for level in ("a", "b")])
    np.testing.assert_allclose(np.asarray(solution["above"].value) + 0.0, own, atol=1e-6)
    np.testing.assert_allclose(solution["above"].multiplier, (own == own.max()) * 1.0, atol=1e-5)
    assert "above[g=" in str(solution)
    both = E(D.y * t, by=(D.g, D.y))
    assert both.type.levels.columns == ("g", "y")


@pytest.mark.semantics("S4")
def test_a_condition_that_depends_on_decisions_is_a_ratio_too():
    D, f = sample(), linear()
    problem = cn.find().subject_to(precision=P(D.y == 1, given=f(D.x) > 0) >= 0.0)
    value = problem.check().constraints[0].slack
    chosen = f.module(X).detach() > 0
    assert value == pytest.approx(float(Y[chosen].mean()), abs=1e-9)


@pytest.mark.semantics("S5")
def test_a_rate_has_an_exact_value_and_a_surrogate():
    D, f = sample(), linear()
    problem = cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(rate=P(f(D.x) > 0.5) <= 0.4)
    (line,) = problem.check().rates
    score = f.module(X).detach()
    assert line.exact == pytest.approx(float((score > 0.5).double().mean()) - 0.4)
    assert line.surrogate != line.exact
    point = {k: v.clone() for k, v in f.module.state_dict().items()}
    lagrangian = problem.compile()
    loss = lagrangian(D.rows(range(400)))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in f.module.parameters())
    f.module.load_state_dict(point)
    solution = solved(problem, method="lagrangian", epochs=5, batch=100)
    value = float((f.module(X).detach() > 0.5).double().mean())
    assert float(solution["rate"].value) == pytest.approx(value, abs=1e-6)  # reports are exact


@pytest.mark.semantics("S6")
def test_ratios_and_products_of_statistics_compose_and_are_estimated_without_bias():
    D, f = sample(), linear()
    s = torch.sigmoid(f(D.x))
    ratio, square = E(s * D.y) / E(s), E(f(D.x)) ** 2
    problem = cn.minimize(cn.sum_squares(f)).subject_to(ratio=ratio >= 0.6, square=square <= 0.1)
    kinds = {c.name: c.estimate for c in problem.check(batch=40).constraints}
    assert kinds["square"].startswith("two half batches")
    assert kinds["ratio"].startswith("linearized")
    score = torch.sigmoid(f.module(X).detach())
    slack = {c.name: c.slack for c in problem.check().constraints}
    assert slack["ratio"] == pytest.approx(float((score * Y).mean() / score.mean()) - 0.6)
    assert slack["square"] == pytest.approx(0.1 - float(f.module(X).detach().mean()) ** 2)


@pytest.mark.semantics("S7")
def test_two_sided_relations_are_one_constraint_with_one_multiplier():
    t = cn.Variable((), "t")
    below = solved(cn.minimize((t - 2) ** 2).subject_to(near=abs(t) <= 1))
    above = solved(cn.minimize((t + 2) ** 2).subject_to(near=cn.between(-1, t, 1)))
    worst = solved(cn.minimize(t).subject_to(worst=cn.max(cn.stack(2 - t, 1 - t)) <= 0))
    assert below.names == above.names == ("near",)
    assert float(below["near"].multiplier) == pytest.approx(2.0, abs=1e-4)
    assert abs(float(above["near"].multiplier)) == pytest.approx(2.0, abs=1e-4)
    assert float(worst["worst"].multiplier) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.semantics("S7")
def test_a_relaxed_constraint_is_one_constraint_with_its_slack():
    t = cn.Variable((), "t")
    solution = solved(cn.minimize(t**2).subject_to(soft=(t >= 2).relax(cost=cn.squared(2.0))))
    # min t^2 + z^2 subject to t >= 2 - z: t = z = 1, and the multiplier is the marginal cost 2 z
    assert float(t.value) == pytest.approx(1.0, abs=1e-4)
    assert float(solution["soft"].multiplier) == pytest.approx(2.0, abs=1e-3)
    unit = solved(cn.minimize(t**2).subject_to(low=(t >= 2).scale(100.0)))
    assert float(unit["low"].multiplier) == pytest.approx(4.0, abs=1e-3)


@pytest.mark.semantics("S8")
def test_decisions_are_found_and_what_is_meaningless_is_said():
    D, f, w = sample(), linear(), cn.Variable(3, "w")
    frozen = cn.Model(copy.deepcopy(f.module), "old", frozen=True)
    problem = cn.minimize(E((f(D.x) - frozen(D.x) + D.x @ w) ** 2)).subject_to(data=E(frozen(D.x)) <= 100)
    assert problem.variables == (w.symbol,)
    assert problem.check().decisions == ("w[3]", "f (4 parameters)", "old (frozen)")
    assert {(x.code, x.constraint) for x in problem.check().findings} >= {("W201", "data")}
    with pytest.raises(cn.ModelingError, match="E126"):
        solved(cn.minimize(E(frozen(D.x))))
    missing = cn.Data("d", x=[1.0, float("nan")])
    with pytest.raises(cn.DataError, match="E124"):
        solved(cn.minimize(E((missing.x - w[0]) ** 2)))
    with pytest.raises(cn.DataError, match="E124"):
        solved(cn.minimize(E((D.y - w[0]) ** 2, given=D.y > 7)))


@pytest.mark.semantics("S8")
def test_a_hidden_decision_is_solved_for_and_is_not_the_users():
    D, f = sample(), linear()
    risk = cn.CVaR((f(D.x) - D.y) ** 2, 0.9)
    problem = cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(tail=risk <= 5.0)
    assert problem.variables == ()
    assert problem.check().decisions == ("f (4 parameters)",)
    worst = ((f.module(X).detach() - Y) ** 2).sort(descending=True).values[:40]  # 10 % of the rows
    assert problem.check().constraints[0].slack == pytest.approx(5.0 - float(worst.mean()), rel=1e-6)


@pytest.mark.semantics("S9")
def test_convexity_is_derived_and_refusals_have_reasons():
    D, f = sample(), linear()
    squares = E((f(D.x) - D.y) ** 2)
    certified = cn.minimize(squares).explain()
    assert certified.facts.convex
    assert certified.method == "cvxpy"
    deep = cn.Model(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)).double(), "f")
    for problem in (cn.minimize(E((deep(D.x) - D.y) ** 2)), cn.maximize(squares)):
        refused = problem.explain()
        assert not refused.facts.convex
        assert all(route.reason for route in refused.routes)
    assert "ReLU" in str(cn.minimize(E((deep(D.x) - D.y) ** 2)).explain())


SIGNS = {
    "minimize <=": (lambda t, b: cn.minimize((t - 3) ** 2).subject_to(c=t <= b), -4.0),
    "minimize >=": (lambda t, b: cn.minimize((t + 3) ** 2).subject_to(c=t >= -b), -4.0),
    "minimize ==": (lambda t, b: cn.minimize((t - 3) ** 2).subject_to(c=t == b), -4.0),
    "maximize <=": (lambda t, b: cn.maximize(-((t - 3) ** 2)).subject_to(c=t <= b), 4.0),
    "maximize >=": (lambda t, b: cn.maximize(-((t + 3) ** 2)).subject_to(c=t >= -b), 4.0),
    "maximize ==": (lambda t, b: cn.maximize(-((t - 3) ** 2)).subject_to(c=t == b), 4.0),
}


@pytest.mark.semantics("S10")
@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
@pytest.mark.parametrize("name", SIGNS)
def test_multipliers_and_prices_have_one_convention(name, method):
    make, change = SIGNS[name]
    t = cn.Variable((), "t")
    solution = solved(make(t, 1.0), method=method)
    up, down = (solved(make(t, 1.0 + h)).objective for h in (1e-3, -1e-3))
    slope = (float(up) - float(down)) / 2e-3  # of the optimal value in b; the right-hand side is b or -b
    price = float(solution["c"].shadow_price)
    assert slope == pytest.approx(change, abs=1e-3)
    assert price == pytest.approx(-change if ">=" in name else change, abs=1e-3)
    if "==" not in name:
        assert float(solution["c"].multiplier) == pytest.approx(4.0, abs=1e-3)


@pytest.mark.semantics("S11")
def test_a_problem_is_printed_evaluates_back_and_serializes():
    D, f, alpha = sample(), linear(), cn.Parameter("alpha", 0.05)
    problem = cn.minimize(E(F.mse_loss(f(D.x), D.y, reduction="none"))).subject_to(
        parity=abs(P(f(D.x) > 0, by=D.g) - P(f(D.x) > 0)) <= alpha
    )
    assert str(problem) == (
        "minimize   E[mse_loss(f(x), y)]\nsubject to parity: |P[f(x) > 0 | by g] - P[f(x) > 0]| ≤ alpha"
    )
    assert "\\mathbb{P}" in problem._repr_latex_()
    assert eval(repr(problem), problem.symbols()) == problem
    assert cn.from_json(problem.to_json(), problem.symbols()) == problem


@pytest.mark.semantics("S12")
def test_sampling_is_an_option_and_other_samples_are_bound_by_name():
    D, w = sample(), cn.Variable(3, "w")
    problem = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(mean=E(D.x @ w, by=D.g) <= 0.6)
    before = problem.to_json()
    exact = solved(problem)
    trained = solved(problem, method="lagrangian", batch=100, epochs=150, seed=1)
    assert problem.to_json() == before
    assert float(trained.objective) == pytest.approx(float(exact.objective), rel=0.02)
    other = cn.Data("test", y=Y[:50], g=G[:50], x=X[:50], more=Y[:50])
    again = exact.evaluate(other)
    value = ((X[:50].numpy() @ np.asarray(exact.variables["w"]) - Y[:50].numpy()) ** 2).mean()
    assert again.objective == pytest.approx(value, rel=1e-6)
