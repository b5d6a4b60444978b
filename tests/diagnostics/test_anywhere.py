"""`problem.kkt`: any point, anyone's multipliers; hidden decisions stay hidden."""

import numpy as np
import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, P, forall


def close(a, b, tolerance=1e-8):
    np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=tolerance, rtol=tolerance)


@pytest.fixture
def D(rng):
    return cn.Data("d", x=rng.normal(size=(60, 2)), y=rng.normal(size=60), g=["a", "b", "c"] * 20)


def test_a_point_may_be_a_solution_a_state_or_values(D):
    torch.manual_seed(0)
    f = cn.Model(nn.Linear(2, 1, dtype=torch.float64), "f")
    error = f(D.x)[..., 0] - D.y
    problem = cn.minimize(E(error**2)).subject_to(mean=E(error, by=D.g) <= 0.05)
    other = nn.Linear(2, 1, dtype=torch.float64)
    before = {k: v.clone() for k, v in f.module.state_dict().items()}
    by_state = problem.kkt({"f": other.state_dict()})
    by_name = problem.kkt({f"f.{k}": v for k, v in other.state_dict().items()})
    assert by_state.stationarity == by_name.stationarity != problem.kkt().stationarity
    assert all(torch.equal(v, before[k]) for k, v in f.module.state_dict().items())
    solution = problem.solve(progress=False)
    with torch.no_grad():
        f.module.weight.fill_(3.0)
    assert problem.kkt(solution).stationarity <= 1e-6
    with pytest.raises(cn.ModelingError, match="E137"):
        problem.kkt({"f": {"wrong": 1.0}})


def test_multipliers_by_the_names_of_constraints(D):
    w = cn.Variable(2, "w")
    s = D.x @ w
    problem = cn.minimize(E((s - D.y) ** 2)).subject_to(
        parity=abs(E(s, by=D.g) - E(s)) <= 0.02,
        worst=cn.max(E(s**2, by=D.g)) <= 0.01,
        size=cn.sum_squares(w) <= 9.0,
    )
    point = {"w": np.array([0.3, -0.2])}
    given = {"parity": np.array([0.4, 0.0, 0.7]), "worst": 0.5, "size": 0.1}
    record = problem.kkt(point, given)
    upper, lower = record.multipliers["parity:upper"], record.multipliers["parity:lower"]
    close(upper + lower, given["parity"])
    x, g = np.asarray(D.values("x")), np.array(D.values("g"))
    score = x @ point["w"]
    gaps = np.array([score[g == k].mean() for k in "abc"]) - score.mean()
    assert ((upper > 0) <= (gaps > 0)).all()
    assert ((lower > 0) <= (gaps < 0)).all()
    squares = [np.mean(score[g == k] ** 2) for k in "abc"]
    pieces = np.concatenate([np.ravel(v) for k, v in record.multipliers.items() if k.startswith("worst")])
    close(pieces, 0.5 * (np.arange(3) == np.argmax(squares)))
    with pytest.raises(cn.ModelingError, match="E139"):
        problem.kkt(point, {"parety": 1.0})
    with pytest.raises(cn.ModelingError, match="E112"):
        problem.kkt(point, {"parity": np.zeros(2)})


def test_hidden_decisions_follow_the_point_and_are_not_listed(D):
    w = cn.Variable(2, "w")
    loss = (D.x @ w - D.y) ** 2
    problem = cn.minimize(cn.CVaR(loss, 0.9)).subject_to(
        soft=(cn.sum(w) == 0.2).relax(cost=cn.squared(2.0)),
        rows=forall(D, D.x @ w <= 0.5).relax(cost=cn.linear(0.01)),
    )
    point = {"w": np.array([0.3, 0.4])}
    record = problem.kkt(point)
    assert set(record.blocks) == {"w"}
    assert record.violations["soft"] <= 1e-12  # the slack is what is needed
    solution = problem.solve(progress=False)
    assert set(solution.kkt().blocks) == {"w"}
    assert "(" not in " ".join(solution.kkt().blocks)
    assert "x 2 decisions" in str(problem.explain())
    worst = cn.minimize(cn.max(E(loss, by=D.g)))
    assert set(worst.kkt(point).blocks) == {"w"}
    assert worst.kkt(point).feasible


def test_scaled_stationarity_where_nothing_pulls():
    w = cn.Variable(2, "w")
    free = cn.minimize(cn.sum_squares(w - 1)).subject_to(cap=cn.sum(w) <= 5)
    record = free.kkt({"w": np.array([1.0, 1.0 + 1e-9])})
    assert record.stationarity_scaled <= 1e-8
    held = cn.minimize(1e-6 * cn.sum_squares(w - 1)).subject_to(cap=cn.sum(w) <= 1)
    wrong = held.kkt({"w": np.array([0.5, 0.5])}, {"cap": 2e-6})
    close(wrong.stationarity_scaled, 1e-6 / (1e-6 + 2e-6), 1e-6)  # small forces, far from balance


def test_prices_of_a_run_that_was_cut_short_are_marked(D):
    w = cn.Variable(2, "w")
    problem = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(sum=cn.sum(w) == 1.0)
    early = problem.solve("lagrangian", batch=10, epochs=1, progress=False)
    assert early["sum"].uncertified
    assert early.status not in ("optimal", "stationary")
    assert "(?)" in str(early)
    assert "not certified" in str(early)
    assert "not certified" in str(early["sum"])
    assert early.rows()[0]["certified"] is False
    assert '"uncertified": "' in early.report(format="json")
    done = problem.solve(progress=False)
    assert done["sum"].uncertified == ""
    assert "(?)" not in str(done)
    assert done.rows()[0]["certified"] is True
    rate = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(rate=P(D.x @ w > 0.5) <= 0.1)
    assert "surrogates" in rate.solve("augmented", progress=False)["rate"].uncertified


def test_an_infeasible_search_certifies_no_gap():
    w = cn.Variable((), "w")
    solution = cn.find().subject_to(low=w <= 0, high=w >= 1).solve(progress=False)
    assert solution.status == "infeasible"
    assert "certified)" not in str(solution)
    assert solution.kkt().gap_kind == "estimate, not a bound"


def test_relaxed_constraints_have_one_word_and_the_holdout_counts_its_own_rows(rng):
    x = rng.normal(size=200)
    D, later = cn.Data("d", x=x[:150]), cn.Data("d", x=x[150:])
    w = cn.Variable((), "w")
    problem = cn.minimize((w - 3) ** 2).subject_to(
        mean=(E(D.x**2 * w) <= 0.5).relax(cost=cn.squared(1.0)),
        rows=forall(D, D.x * w <= 1.0).relax(cost=cn.linear(0.01)),
    )
    solution = problem.solve(holdout=later, progress=False)
    assert solution["mean"].train.verdict == "relaxed"
    assert solution["rows"].train.verdict == "relaxed"
    assert solution["mean"].holdout.verdict in ("relaxed", "violated")
    value = float(solution.variables["w"])
    slack = float(solution["mean"].relaxation)
    base = (value - 3) ** 2 + 0.5 * slack**2
    for found, own in ((solution.train, x[:150]), (solution.holdout, x[150:])):
        close(found.objective, base + 0.01 * np.maximum(own * value - 1, 0).sum(), 1e-6)


def test_a_surrogate_gap_names_its_entry(place):
    D = cn.Data("d", x=np.r_[np.full(50, 0.001), np.linspace(-2, 2, 50)], g=["a"] * 50 + ["b"] * 50)
    w = cn.Variable((), "w", bounds=(-1.0, 1.0))
    w.value = 0.0
    record = place(cn.minimize(w**2).subject_to(rate=P(D.x > w, by=D.g) <= 0.55)).kkt({"rate": np.ones(2)})
    (message,) = [warning.message for warning in record.warnings if warning.code == "C301"]
    assert message.startswith("rate[g=a]: ")


def test_equalities_are_compatible_or_shown_to_be_equivalent(rng):
    w = cn.Variable((), "w")
    x = rng.normal(size=400)
    D = cn.Data("d", x=x)
    solution = (
        cn.minimize((w - 1) ** 2).subject_to(mean=E(D.x - x.mean() + 0 * w) == 0.0).solve(progress=False)
    )
    assert solution.evaluate(D)["mean"].verdict == "compatible"
    half = float(solution.evaluate(D)["mean"].half_width)  # 1.97 standard errors; the test needs 1.65
    assert solution.evaluate(D, within={"mean": 0.86 * half})["mean"].verdict == "holds"
    assert solution.evaluate(D, within={"mean": 0.80 * half})["mean"].verdict == "compatible"
    with pytest.raises(cn.ModelingError, match="E139"):
        solution.evaluate(D, within={"men": 0.1})
    with pytest.raises(cn.ModelingError, match="E141"):
        solution.evaluate(D, within={"mean": 0.0})


def test_multipliers_of_a_solution_by_name():
    w = cn.Variable((), "w")
    solution = cn.minimize((w - 3) ** 2).subject_to(c=abs(w) <= 1).solve(progress=False)
    assert solution.kkt({"c": 4.0}).stationarity <= 1e-6
    assert solution.kkt({"c": 3.0}).stationarity == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(cn.ModelingError, match="E139"):
        solution.kkt({"d": 4.0})
