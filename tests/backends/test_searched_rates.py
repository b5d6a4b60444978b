"""Rates on few rows: `auto` searches over integers, and trains from its best point when the time is over."""

import itertools

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P
from constrain.backends.pyomo import build, events
from constrain.backends.pyomo.starts import start_of
from constrain.driver import searched
from constrain.lowering.lower import lower

torch.set_num_threads(1)


def points(rows, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    y = (x.sum(axis=1) + noise * rng.normal(size=rows) > 0).astype(float)
    return cn.Data("points", x=x, y=y, g=list(np.where(rng.random(rows) < 0.5, "a", "b")))


def neyman_pearson(D, alpha=0.1, width=3.0):
    w, c = cn.Variable(2, "w", bounds=(-1, 1)), cn.Variable((), "c", bounds=(-width, width))
    alarm = D.x @ w - c > 0
    missed = P(~alarm, given=D.y == 1)
    return cn.minimize(missed).subject_to(false_alarms=P(alarm, given=D.y == 0) <= alpha), w, c


def fewest_misses(x, y, alpha):
    """Over all linear rules in the plane: lines through pairs of rows, moved and turned a little."""
    best = 1.0
    allowed = int(np.floor(alpha * np.sum(y == 0) + 1e-9))
    for i, j in itertools.combinations(range(len(x)), 2):
        edge = x[j] - x[i]
        normal = np.array([-edge[1], edge[0]])
        for turn in (-1e-7, 1e-7):
            score = x @ (normal + turn * edge)
            for own in (score, -score):
                barred = np.sort(own[y == 0])[::-1]
                best = min(best, float(np.mean(own[y == 1] <= barred[allowed])))
    return best


@pytest.mark.parametrize("seed", [0, 1])
def test_auto_finds_the_best_linear_rule_on_few_rows(seed):
    """The best of all linear rules, by enumeration; decisions are bounded, so the search is exact."""
    D = points(40, seed)
    problem, w, c = neyman_pearson(D)
    assert problem.explain().method == "pyomo"
    assert "exact rates of 40 events for at most 30 s" in problem.explain().reason
    solution = problem.solve(progress=False)
    x, y = np.asarray(D.values("x")), np.asarray(D.values("y"))
    assert solution.objective == pytest.approx(fewest_misses(x, y, 0.1), abs=1e-12)
    alarm = x @ w.value - c.value > 0
    assert np.mean(~alarm[y == 1]) == pytest.approx(solution.objective)
    assert np.mean(alarm[y == 0]) <= 0.1
    assert "no point is better whose events hold, or not, with some room" in solution.message


@pytest.mark.parametrize("seed", [0, 1])
def test_a_rule_whose_scale_is_fixed_is_proved_to_be_the_best(seed):
    """With one weight of 1 no point holds every event at once, so the bound with closed sides is met."""
    D = points(40, seed)
    v, c = cn.Variable((), "v", bounds=(-2, 2)), cn.Variable((), "c", bounds=(-3, 3))
    alarm = D.x @ np.array([1.0, 0.0]) + v * (D.x @ np.array([0.0, 1.0])) - c > 0
    missed = P(~alarm, given=D.y == 1)
    problem = cn.minimize(missed).subject_to(false_alarms=P(alarm, given=D.y == 0) <= 0.1)
    solution = problem.solve(progress=False)
    x, y = np.asarray(D.values("x")), np.asarray(D.values("y"))
    assert solution.objective == pytest.approx(fewest_misses(x, y, 0.1), abs=1e-12)
    assert solution.status.value == "optimal"
    assert solution.bound == pytest.approx(solution.objective, abs=1e-7)
    assert "no point is better, whether its events have room or not" in solution.message
    free, _, _ = neyman_pearson(D)
    unproved = free.solve(progress=False)  # all weights at 0 hold every closed event
    assert unproved.objective == solution.objective
    assert unproved.status.value == "feasible"
    assert unproved.bound == pytest.approx(0.0, abs=1e-9)


def test_a_search_begins_at_the_decisions_as_they_are():
    """With one node and without heuristics it ends no worse than the point that it was given."""
    D = points(60, noise=2.0)
    problem, w, c = neyman_pearson(D)
    trained = problem.solve("lagrangian", epochs=20, progress=False)
    given = w.value.copy(), float(c.value)
    little = {"mip_max_nodes": 1, "mip_heuristic_effort": 0.0}
    warm = problem.solve("pyomo", progress=False, options=little)
    assert trained.record.feasibility == 0
    assert warm.objective <= trained.objective
    w.value, c.value = given
    start = start_of(build(lower(problem)))
    alarm = np.asarray(D.values("x")) @ given[0] - given[1] > 0
    assert sorted(value for _, value in start) == sorted(alarm.astype(float))


def test_only_rows_that_are_asked_get_a_switch():
    """Each rate of a condition needs switches on its own rows, whatever the number of conditions."""
    D = points(30)
    problem, _, _ = neyman_pearson(D)
    assert events(lower(problem)) == 30
    assert build(lower(problem)).switches == 30
    w = cn.Variable(2, "w", bounds=(-1, 1))
    few = cn.maximize(P(D.x @ w > 0.1, given=(D.y == 1) & (D.g == "a")))
    rows = int(np.sum((np.asarray(D.values("y")) == 1) & (np.asarray(D.values("g")) == "a")))
    assert events(lower(few)) == build(lower(few)).switches == rows < 30


@pytest.mark.parametrize(
    "options", [{"epochs": 3}, {"batch": 10}, {"checkpoint": "run.ckpt"}, {"polish": True}, {"lr": 0.1}]
)
def test_who_asks_for_training_gets_it(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem, _, _ = neyman_pearson(points(20))
    solution = problem.solve(progress=False, time_limit=1.0, **options)
    assert solution.provenance.route.startswith("lagrangian: ")


def test_many_events_and_models_without_bounds_are_trained():
    problem, _, _ = neyman_pearson(points(230))
    assert problem.explain().method == "lagrangian"
    D = points(30)
    f = cn.Model(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0)).double(), "f")
    unbounded = cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(rate=P(f(D.x) > 0, given=D.y == 0) <= 0.2)
    explanation = unbounded.explain()
    assert explanation.method == "lagrangian"
    pyomo = next(r for r in explanation.routes if r.method == "pyomo")
    assert "these need bounds, which the weights of f lack" in pyomo.reason


def test_when_the_time_is_over_the_better_point_is_kept(monkeypatch):
    """Of the search and the training from its end; the variables hold it."""
    D = points(190, noise=2.0)
    problem, w, c = neyman_pearson(D)
    found, rank = [], searched._rank
    monkeypatch.setattr(searched, "_rank", lambda *args: found.append(rank(*args)) or found[-1])
    solution = problem.solve(time_limit=3.0, progress=False)
    assert solution.provenance.route.startswith("pyomo: ")
    assert "limit of time" in solution.message
    assert "training" in solution.message or "before it, a search" in solution.message
    assert len(found) == 2
    assert min(found) == (0.0, pytest.approx(solution.objective))
    x, y = np.asarray(D.values("x")), np.asarray(D.values("y"))
    assert np.mean(x[y == 1] @ w.value <= c.value) == pytest.approx(solution.objective)
    assert np.mean(x[y == 0] @ w.value > c.value) <= 0.1 + 1e-9


def test_a_point_without_room_is_found():
    """w = 0 is the only feasible point: no row has to exceed 0, and that not needs no room."""
    ends = cn.Data("ends", x=np.array([[1.0], [-1.0]] * 5))
    w = cn.Variable(1, "w", bounds=(-3, 3))
    w.value = np.array([0.0])
    problem = cn.find().subject_to(few=P(ends.x @ w > 0) <= 0.1)
    solution = problem.solve(progress=False)
    assert solution.status.value == "optimal"
    assert w.value == pytest.approx(0.0, abs=1e-12)
    assert "training" not in solution.message


@pytest.mark.parametrize(
    ("name", "best"), [("all", 0.0), ("closed", 0.6), ("open", 0.4), ("half", 0.4), ("first", -1.0)]
)
def test_events_hold_at_their_closed_side_without_room(name, best):
    """Optima by hand where several rows lie on the boundary of the event at once."""
    D = cn.Data("line", x=np.array([-2.0, -1.0, 0.0, 1.0, 2.0]))
    w = cn.Variable((), "w", bounds=(-1, 1))
    w.value = -1.0
    problems = {
        "all": cn.minimize(abs(w)).subject_to(c=P(D.x * w >= 0) >= 1),
        "closed": cn.maximize(P(D.x - w >= 0)).subject_to(c=w >= 0),
        "open": cn.maximize(P(D.x - w > 0)).subject_to(c=w >= 0),
        "half": cn.maximize(P(D.x - w >= 0)).subject_to(c=w >= 0.5),
        "first": cn.minimize(w).subject_to(c=P(D.x * w > 0) >= 0.4),
    }
    solution = problems[name].solve(progress=False)
    assert solution.status.value in ("feasible", "optimal")
    assert solution.objective == pytest.approx(best, abs=1e-12)
    assert solution.record.feasibility_scaled <= 1e-9


def test_no_room_is_no_proof():
    """At w = 0 no row exceeds 0, but within any tolerance all of them do."""
    D = cn.Data("line", x=np.array([-2.0, -1.0, 1.0, 2.0]))
    w = cn.Variable((), "w", bounds=(-1, 1))
    problem = cn.minimize(w).subject_to(c=P(D.x * w > 0) >= 0.5, e=w == 0)
    solution = problem.solve(progress=False, time_limit=2.0, tolerance=1e-6)  # training comes within 1e-4
    assert solution.status.value == "limit"
    assert "C305" not in [w.code for w in solution.warnings]
    assert "no proof: a strict event has to hold" in solution.message
    assert problem.solve("pyomo", progress=False).status.value == "limit"


def test_rates_that_no_point_reaches_are_proved_infeasible():
    """With both sides of all events closed there is no point either."""
    D = points(20)
    w = cn.Variable(2, "w", bounds=(-1, 1))
    score = D.x @ w
    problem = cn.find().subject_to(all_up=P(score > 0.01) >= 0.99, all_down=P(score < 0) >= 0.5)
    solution = problem.solve(progress=False)
    assert solution.status.value == "infeasible"
    assert "training" not in solution.message


def test_a_quantile_of_decisions_is_not_searched_by_its_local_model():
    """Written with its present threshold it is exact at one point only; of the data it is a number."""
    D = cn.Data("z", z=torch.arange(1.0, 11, dtype=torch.float64))
    w = cn.Variable((), "w", bounds=(-3, 12))
    held = (
        cn.minimize(cn.Quantile(abs(D.z - w), 0.5)),
        cn.minimize(w).subject_to(q=cn.Quantile(D.z - w, 0.8) <= 0),
        cn.maximize(w).subject_to(q=cn.Quantile(D.z + w, 0.8) <= 5),
        cn.maximize(cn.CVaR(abs(D.z - w), 0.8)),
    )
    for problem in held:
        explanation = problem.explain()
        assert explanation.method != "pyomo"
        pyomo = next(r for r in explanation.routes if r.method == "pyomo")
        assert not pyomo.open
        assert "is held at its present value, and moves with the decisions" in pyomo.reason


TEN = cn.Data(
    "z",
    z=torch.arange(1.0, 11, dtype=torch.float64),
    x=torch.linspace(0, 1, 10, dtype=torch.float64)[:, None],
)
MOVING = {
    "median of distances": (lambda w: cn.minimize(cn.Quantile(abs(TEN.z - w), 0.5)), 5.5, 2.0),
    "at most": (lambda w: cn.minimize(w).subject_to(q=cn.Quantile(TEN.z - w, 0.8) <= 0), 8.0, 8.0),
    "a bound is best": (lambda w: cn.maximize(w).subject_to(q=cn.Quantile(TEN.z + w, 0.8) <= 5), -3.0, -3.0),
    "all rows tie at the start": (
        lambda w: cn.minimize((w - 1) ** 2).subject_to(q=cn.Quantile(TEN.z * w, 0.8) <= 4),
        0.5,
        0.25,
    ),
}


@pytest.mark.parametrize("name", MOVING)
def test_quantiles_that_move_are_followed_on_all_rows(name):
    write, at, objective = MOVING[name]
    w = cn.Variable((), "w", bounds=(-3, 12))
    solution = write(w).solve(progress=False)
    assert "quantiles are followed smoothly" in solution.provenance.route
    assert solution.status.value == "feasible"
    assert solution.objective == pytest.approx(objective, abs=1e-6)
    unique = name != "median of distances"  # of which any point between 5 and 6 is best
    assert w.value == pytest.approx(at, abs=1e-6 if unique else 0.5 + 1e-6)


def test_quantiles_beside_rates_and_under_networks_are_trained():
    w = cn.Variable((), "w", bounds=(-3, 12))
    beside = cn.minimize(cn.Quantile(abs(TEN.z - w), 0.5)).subject_to(r=P(TEN.z > w) >= 0.5)
    assert beside.explain().method == "lagrangian"
    torch.manual_seed(0)
    layers = [torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1), torch.nn.Flatten(0)]
    f = cn.Model(torch.nn.Sequential(*layers).double(), "f")
    deep = cn.minimize(E((f(TEN.x) - TEN.z) ** 2)).subject_to(q=cn.Quantile(f(TEN.x), 0.8) <= 4)
    assert deep.explain().method == "lagrangian"


@pytest.mark.parametrize("method", ["cvxpy", "pyomo"])
def test_a_quantile_of_the_data_is_its_number(method):
    D = cn.Data("z", z=torch.arange(1.0, 11, dtype=torch.float64), g=["a", "b"] * 5)
    w, v = cn.Variable((), "w", bounds=(-3, 12)), cn.Variable((), "v", bounds=(-3, 12))
    problem = cn.minimize(w + v).subject_to(
        q=w >= cn.Quantile(D.z, 0.8), each=v >= cn.Quantile(D.z, 0.5, given=D.z > 2, by=D.g)
    )
    problem.solve(method, progress=False)
    assert w.value == pytest.approx(8.0)
    assert v.value == pytest.approx(6.0)
