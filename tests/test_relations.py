"""Feasibility problems, units, two-sided constraints, summaries of constraints per row, on every route."""

import json
import tracemalloc

import cvxpy as cp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P, forall
from constrain.diagnostics.confidence import judge_sample
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator
from constrain.solution import summarize
from constrain.solution.summary import QUANTILES, least

RNG = np.random.default_rng(5)
ROWS = 400
X = RNG.normal(size=(ROWS, 3)) + 0.3
G = np.where(np.arange(ROWS) % 4 == 0, "u", "v")
LABEL = (X @ np.array([1.0, -0.5, 0.5]) + 0.5 * (G == "u") + RNG.logistic(size=ROWS) > 0.4).astype(float)


def sample():
    return cn.Data("d", x=torch.tensor(X), y=torch.tensor(LABEL), g=G)


def network(hidden=0):
    torch.manual_seed(0)
    layers = (
        [torch.nn.Linear(3, 1)]
        if not hidden
        else [torch.nn.Linear(3, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1)]
    )
    return cn.Model(torch.nn.Sequential(*layers, torch.nn.Flatten(0)).double(), "f")


# --------------------------------------------------------------------------------------- feasibility
def fair(hidden=0, rates=False, loss=0.62, gap=0.05):
    D, f = sample(), network(hidden)
    s = f(D.x)
    score = P(s > 0, by=D.g) - P(s > 0) if rates else E(s, by=D.g) - E(s)
    bce = E(F.binary_cross_entropy_with_logits(s, D.y, reduction="none"))
    return cn.find().subject_to(loss=bce <= loss, parity=abs(score) <= gap)


ROUTES = [("cvxpy", {}), ("augmented", {}), ("lagrangian", {"batch": 64}), ("cooper", {"batch": 64})]


@pytest.mark.parametrize(("method", "options"), ROUTES, ids=[m for m, _ in ROUTES])
def test_a_feasible_point_is_a_solution(method, options):
    solution = fair().solve(method, progress=False, **options)
    assert solution.status is cn.Status.OPTIMAL
    assert solution["loss"].value <= 0.62 + 1e-6
    assert np.max(solution["parity"].value) <= 0.05 + 1e-6
    assert solution["loss"].multiplier == 0.0
    assert not np.any(solution["parity"].multiplier)
    assert (solution.record.stationarity, solution.record.gap, solution.bound) == (0.0, 0.0, 0.0)
    assert "every constraint holds, and no more is asked for" in str(solution)
    assert "none (feasibility problem)" in str(solution)


@pytest.mark.parametrize(("method", "options"), ROUTES[1:], ids=[m for m, _ in ROUTES[1:]])
def test_rates_of_a_network_are_found_too(method, options):
    solution = fair(hidden=6, rates=True).solve(method, progress=False, **options)
    assert solution.status is cn.Status.OPTIMAL
    assert solution.record.feasible


def test_training_stops_when_every_constraint_holds():
    solution = fair().solve("lagrangian", batch=64, epochs=200, progress=False)
    assert len(solution.history) < 100
    assert "every constraint holds after" in solution.message


def test_no_point_is_not_called_a_solution():
    impossible = {"loss": 0.1, "gap": 0.001}
    certified = fair(**impossible).solve("cvxpy", progress=False)
    assert certified.status is cn.Status.INFEASIBLE
    x = cn.Variable(2, "x")
    empty = cn.find().subject_to(a=x[0] + x[1] <= 1, b=x[0] >= 0.9, c=x[1] >= 0.2)
    assert empty.solve("augmented", progress=False).status is cn.Status.LIKELY_INFEASIBLE
    trained = fair(**impossible).solve("lagrangian", batch=64, epochs=3, progress=False)
    assert trained.status is cn.Status.LIMIT
    assert "no more is asked for" not in str(trained)


# --------------------------------------------------------------------------------------------- units
def budget(size, scale=None):
    x = cn.Variable(2, "x", nonneg=True)
    spent = size * (x[0] + x[1]) <= size
    return cn.maximize(x[0] + 2 * x[1] - cn.sum_squares(x)).subject_to(
        c=spent if scale is None else spent.scale(scale)
    )


def test_tolerances_are_measured_in_the_unit_of_the_constraint():
    x = cn.Variable(2, "x")

    def at(scale):
        x.value = np.array([1.0, 1.0 + 1e-5])
        relation = x[0] + x[1] <= 2.0
        p = cn.minimize(cn.sum_squares(x)).subject_to(c=relation if scale is None else relation.scale(scale))
        return p.kkt({"x": np.array([1.0, 1.0 + 1e-5])})

    assert at(None).feasibility_scaled == pytest.approx(1e-5 / 3)
    assert at(100.0).feasibility_scaled == pytest.approx(1e-7)
    assert at(1e-3).feasibility_scaled == pytest.approx(1e-2)
    assert at(100.0).feasibility == pytest.approx(1e-5)  # in the user's own units
    assert at(100.0).feasible
    assert not at(1e-3).feasible


@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e6])
def test_what_is_reported_stays_in_the_units_as_written(method, size):
    plain = budget(size).solve(method, progress=False)
    scaled = budget(size, size).solve(method, progress=False)
    assert scaled.status is cn.Status.OPTIMAL
    assert scaled.objective == pytest.approx(plain.objective, rel=1e-6)
    assert scaled["c"].value == pytest.approx(size, rel=1e-5)
    assert scaled["c"].bound == size
    assert scaled["c"].multiplier * size == pytest.approx(0.5, rel=1e-4)
    assert scaled["c"].shadow_price == pytest.approx(scaled["c"].multiplier)
    assert scaled["c"].scale == size
    assert plain["c"].scale is None


def test_a_row_counts_as_violated_in_the_unit_of_the_constraint():
    D, w = sample(), cn.Variable((), "w")
    w.value = 1.0
    violated = {}
    for scale in (None, 1e9):
        relation = forall(D, D.x[0] * w <= -1e-4)
        p = cn.minimize(w**2).subject_to(c=relation if scale is None else relation.scale(scale))
        program = lower(p)
        decisions = Decisions(program, torch.device("cpu"), torch.float64)
        evaluator = Evaluator(program, decisions, dtype=torch.float64)
        violated[scale] = judge_sample(evaluator).estimates["c"].share
    assert violated[None] > 0.5
    assert violated[1e9] == 0.0


# --------------------------------------------------------------------------------------- two-sided
def two_sided(kind, w, D):
    score = D.x @ w
    return {
        "number": cn.between(0.2, E(score), 0.4),
        "block": cn.between(0.3, E(score, by=D.g), 0.35),
        "vector": cn.between(-0.1, w, np.array([0.2, 0.5, 0.9])),
        "decisions": cn.between(w[0], E(score), w[1] + 0.1),
        "rows": forall(D, cn.between(-1.0, score, 1.0)),
        "some rows": forall(D.where(D.g == "u"), cn.between(-0.8, score, D.y + 0.5)),
    }[kind]


def two_sided_reference(kind):
    v = cp.Variable(3)
    score = X @ v
    u = G == "u"
    by_level = cp.hstack([cp.sum(score[rows]) / rows.sum() for rows in (u, ~u)])
    low, e, high = {
        "number": (0.2, cp.sum(score) / ROWS, 0.4),
        "block": (0.3, by_level, 0.35),
        "vector": (-0.1, v, np.array([0.2, 0.5, 0.9])),
        "decisions": (v[0], cp.sum(score) / ROWS, v[1] + 0.1),
        "rows": (-1.0, score, 1.0),
        "some rows": (-0.8, score[u], LABEL[u] + 0.5),
    }[kind]
    lower, upper = low - e <= 0, e - high <= 0
    value = cp.Problem(cp.Minimize(cp.sum_squares(v - 1)), [lower, upper]).solve(solver="CLARABEL")
    return value, np.asarray(upper.dual_value) - np.asarray(lower.dual_value)


@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
@pytest.mark.parametrize("kind", ["number", "block", "vector", "decisions", "rows", "some rows"])
def test_between_on_every_kind_of_expression(kind, method):
    D, w = sample(), cn.Variable(3, "w")
    solution = (
        cn.minimize(cn.sum_squares(w - 1)).subject_to(c=two_sided(kind, w, D)).solve(method, progress=False)
    )
    value, difference = two_sided_reference(kind)
    c = solution["c"]
    assert solution.status is cn.Status.OPTIMAL
    assert solution.objective == pytest.approx(value, rel=1e-5)
    assert np.sum(c.multiplier) == pytest.approx(np.sum(np.abs(difference)), rel=1e-2, abs=1e-4)
    assert np.sum(c.shadow_price) == pytest.approx(-np.sum(difference), rel=1e-2, abs=1e-4)
    assert c.op == "between"
    assert np.shape(c.bound[0]) == np.shape(c.value) or np.ndim(c.bound[0]) == 0
    assert np.all(c.slack >= -1e-6)
    assert c.max_violation <= 1e-6


@pytest.mark.parametrize("kind", ["number", "block", "rows"])
def test_between_in_training(kind):
    D, w = sample(), cn.Variable(3, "w")
    p = cn.minimize(E((D.x @ w - 1.0) ** 2)).subject_to(c=two_sided(kind, w, D))
    exact = p.solve("cvxpy", progress=False)
    w.value = np.zeros(3)
    trained = p.solve("lagrangian", batch=100, epochs=400, lr=1e-2, progress=False)
    assert trained.objective == pytest.approx(exact.objective, rel=2e-2)
    assert trained["c"].max_violation <= (0.15 if kind == "rows" else 0.02)


# ----------------------------------------------------------------------------------------- summaries
def margins(where=None, relaxed=False):
    D, w = sample(), cn.Variable(3, "w")
    rows = D if where is None else D.where(where(D))
    fit = forall(rows, (2 * D.y - 1) * (D.x @ w) >= 1)
    if relaxed:
        fit = fit.relax(cost=cn.linear(0.05))
    return cn.minimize(cn.sum_squares(w)).subject_to(fit=fit), w


def test_the_summary_of_a_constraint_per_row():
    p, w = margins(relaxed=True)
    holdout = cn.Data("h", x=X[:50] + 0.1, y=LABEL[:50], g=G[:50])
    solution = p.solve(progress=False, holdout=holdout)
    fit, found = solution["fit"], solution["fit"].summary
    margin = (2 * LABEL - 1) * (X @ w.value)
    assert fit.value == pytest.approx(margin)
    assert found.rows == ROWS
    assert found.share_violated == 0.0
    assert found.share_relaxed == pytest.approx(np.mean(margin < 1 - 2e-6))
    assert found.max_relaxation == pytest.approx(1 - margin.min())
    assert list(found.quantiles) == list(QUANTILES)
    assert list(found.quantiles.values()) == pytest.approx(np.quantile(margin - 1, QUANTILES))
    order = np.argsort(margin)
    assert found.worst_rows.tolist() == order[:5].tolist()
    assert found.worst_room == pytest.approx(margin[order[:5]] - 1)
    assert found.worst_multipliers == pytest.approx(0.05)
    assert found.support == (np.abs(fit.multiplier) > 1e-6).sum()
    assert summarize(fit, worst=30).worst_rows.tolist() == order[:30].tolist()
    assert fit.worst(2) == [(f"fit[row {r}]", pytest.approx(margin[r] - 1)) for r in order[:2]]
    assert fit.holdout.relaxed == pytest.approx(
        np.mean((2 * LABEL[:50] - 1) * ((X[:50] + 0.1) @ w.value) < 1)
    )
    assert fit.verdict == "relaxed"
    assert fit.rows.tolist() == list(range(ROWS))
    assert "rows with a multiplier" in str(found)


def test_summaries_are_of_the_selected_rows_only():
    p, w = margins(where=lambda D: (D.g == "u") & (D.y == 1), relaxed=True)
    fit = p.solve(progress=False)["fit"]
    chosen = np.flatnonzero((G == "u") & (LABEL == 1))
    margin = (X @ w.value)[chosen]
    assert fit.summary.rows == len(chosen) == len(fit.multiplier) == len(fit.relaxation)
    assert fit.rows.tolist() == chosen.tolist()
    assert fit.summary.worst_rows.tolist() == chosen[np.argsort(margin)[:5]].tolist()
    assert fit.train.share == 0.0


def test_rows_without_relaxation_have_a_summary_too():
    D, w = sample(), cn.Variable(3, "w")
    p = cn.minimize(cn.sum_squares(w - 1)).subject_to(cap=forall(D, D.x @ w <= 0.5), same=cn.sum(w) >= -5)
    solution = p.solve(progress=False)
    found = solution["cap"].summary
    assert (found.share_relaxed, found.max_relaxation) == (None, None)
    assert found.quantiles[0.0] == pytest.approx(0.0, abs=1e-6)
    assert found.support == np.sum(
        solution["cap"].multiplier > 1e-6 * max(1, solution["cap"].multiplier.max())
    )
    assert solution["same"].summary is None
    assert solution["same"].worst() == [("same", pytest.approx(float(np.sum(w.value)) + 5))]


def test_a_constraint_that_no_row_meets_is_summarized():
    D, w = sample(), cn.Variable(3, "w")
    p = cn.minimize(cn.sum_squares(w)).subject_to(c=forall(D.where(D.x[0] > 100.0), D.x @ w <= -1))
    fit = p.solve("augmented", progress=False)["c"]
    assert fit.summary.rows == 0
    assert fit.summary.quantiles == {}
    assert fit.worst() == []


def test_equalities_per_row_rank_by_the_size_of_the_residual():
    D, w = sample(), cn.Variable(3, "w")
    p = cn.minimize(cn.sum_squares(w)).subject_to(c=forall(D, D.x @ w == D.y).relax(cost=cn.squared(0.1)))
    fit = p.solve(progress=False)["c"]
    residual = X @ w.value - LABEL
    assert fit.relaxation == pytest.approx(np.abs(residual))
    assert fit.multiplier == pytest.approx(0.1 * residual, rel=1e-4, abs=1e-7)
    assert fit.summary.worst_rows.tolist() == np.argsort(-np.abs(residual))[:5].tolist()
    assert fit.summary.quantiles[0.0] == pytest.approx(-np.abs(residual).max())


def test_the_report_shows_relaxations_and_rows(tmp_path):
    D, w = sample(), cn.Variable(3, "w")
    p = cn.minimize(cn.sum_squares(w - 1)).subject_to(
        fit=forall(D, D.x @ w <= 0.5).relax(cost=cn.squared(0.01)),
        parity=(abs(E(D.x @ w, by=D.g) - E(D.x @ w)) <= 0.0).relax(cost=cn.squared(3.0)),
        strict=E(D.x @ w) <= 5,
    )
    solution = p.solve(progress=False)
    text, markdown = str(solution), solution.report(format="markdown")
    for shown in (text, markdown):
        assert "relaxed by" in shown
        assert "for relaxing)" in shown
        assert "least room in rows" in shown.replace("\n            ", " ")
        assert "relaxed: fit in" in shown.replace("\n            ", " ")
        assert "strict" in shown
    assert "## Rows" in markdown
    document = json.loads(solution.report(tmp_path / "r.json"))
    assert (
        document["constraints"]["fit"]["summary"]["worst_rows"] == solution["fit"].summary.worst_rows.tolist()
    )
    assert document["constraints"]["parity"]["relaxation"] == solution["parity"].relaxation.tolist()
    assert document["constraints"]["strict"]["relaxation"] is None
    frame = [row for row in solution.rows() if row["constraint"].startswith("parity")]
    assert [row["relaxation"] for row in frame] == solution["parity"].relaxation.tolist()
    solution.save(tmp_path / "s")
    loaded = cn.load(tmp_path / "s", problem=p)
    assert loaded["fit"].relaxation == pytest.approx(solution["fit"].relaxation)
    assert loaded["fit"].summary.quantiles == solution["fit"].summary.quantiles
    assert loaded.hidden.keys() == solution.hidden.keys() == {"(relaxation of parity)"}
    assert loaded.relaxation_cost == solution.relaxation_cost
    assert loaded.kkt(tolerance=1e-5).stationarity <= 1e-5
    assert str(loaded) == text


def test_a_million_rows_are_summarized_in_little_memory():
    rows = 1_000_000
    rng = np.random.default_rng(0)
    D, w = cn.Data("d", x=rng.normal(size=rows)), cn.Variable((), "w")
    p = cn.minimize(w**2).subject_to(fit=forall(D, D.x * w <= 1).relax(cost=cn.squared(1e-6)))
    solution = p.solve("augmented", progress=False)
    fit = solution["fit"]
    tracemalloc.start()
    found = fit.summary
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.rows == rows
    assert peak < 20 * 8 * rows
    document = json.loads(solution.report(format="json"))
    assert document["constraints"]["fit"]["value"] == {"left_out": rows}
    assert len(str(solution)) < 5000


def test_the_least_entries():
    values = np.array([3.0, 1.0, 2.0, 1.0, np.inf, -1.0])
    assert least(values, 3).tolist() == [5, 1, 3]
    assert least(values, 99).tolist() == [5, 1, 3, 2, 0, 4]
    assert least(values, 0).tolist() == []


def test_a_bound_with_an_entry_per_column_is_judged_in_chunks():
    D, w = sample(), cn.Variable((), "w")
    w.value = 1.0
    program = lower(cn.minimize(w**2).subject_to(c=forall(D, D.x * w <= np.array([1.0, 2.0, 3.0]))))
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    judged = judge_sample(Evaluator(program, decisions, dtype=torch.float64, chunk=37)).estimates["c"]
    assert judged.share == pytest.approx(np.mean((X > [1.0, 2.0, 3.0]).any(axis=1)))
    assert judged.bound.shape == judged.value.shape == (ROWS, 3)
