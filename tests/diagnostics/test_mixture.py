"""Mixtures of iterates: the linear program, what they reach on any data, their use, and what is refused."""

import itertools
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P
from constrain.diagnostics.mixture import judge_mixture
from constrain.diagnostics.table import number, short
from constrain.errors import ModelingError
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator
from constrain.solvers.mixtures import BYTES, MOST, Candidate, Candidates, Mixing, best_weights, not_mixed

RNG = np.random.default_rng(0)
D = cn.Data("d", x=1 + 0.1 * RNG.normal(size=64), z=RNG.normal(size=64), g=["a", "b"] * 32)
FRESH = cn.Data("fresh", x=1.2 + 0.1 * RNG.normal(size=40), z=RNG.normal(size=40), g=["a", "b"] * 20)
ONES = cn.Data("ones", x=np.ones(64))
HELD = cn.Data("held", x=1.1 + 0.01 * RNG.normal(size=50))


# ---------------------------------------------------------------------------------------- linear program
def candidates(objectives, residuals):
    columns = np.asarray(residuals, dtype=float)
    return [Candidate(k, f, columns[:, k], {}) for k, f in enumerate(objectives)]


def mixing(count, equal=(), worst=(), room=1e-9):
    flags = [np.isin(np.arange(count), places) for places in (equal, worst)]
    return Mixing(flags[0], np.full(count, room), flags[1])


def test_three_policies():
    """The best mixture costs 1.5, with a price of 1.5; the best feasible policy alone 3.0."""
    costs, excess = np.array([0.0, 3.0, 4.0]), np.array([[1.0, -1.0, -1.5]])
    weights, holds = best_weights(candidates(costs, excess), mixing(1))
    assert holds
    np.testing.assert_allclose(weights, [0.5, 0.5, 0.0])
    assert costs @ weights == pytest.approx(1.5)
    tighter, _ = best_weights(candidates(costs, excess + 0.01), mixing(1))
    assert (costs @ tighter - 1.5) / 0.01 == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_vertex_beats_every_small_mixture(seed):
    """Against a search over all pairs and triples (two constraints), and the bound on the members."""
    rng = np.random.default_rng(seed)
    costs, rows = rng.normal(size=10), rng.normal(size=(2, 10)) + 0.2
    weights, holds = best_weights(candidates(costs, rows), mixing(2))
    assert (weights > 0).sum() <= 3
    assert weights.sum() == pytest.approx(1.0)
    grid = [np.array(w) / 40 for w in itertools.product(range(41), repeat=3) if sum(w) == 40]
    table = np.array(grid)
    best = math.inf
    for chosen in itertools.combinations(range(10), 3):
        over = table @ rows[:, chosen].T
        values = (table @ costs[list(chosen)])[(over <= 0).all(axis=1)]
        best = min(best, values.min(initial=math.inf))
    assert holds or math.isinf(best)
    if holds:
        assert (rows @ weights <= 1e-9).all()
        assert costs @ weights <= best + 1e-12


def test_equalities_hold_within_their_room_and_worst_values_share_a_bound():
    weights, holds = best_weights(candidates([1.0, 0.0, 5.0], [[-1.0, 3.0, 0.0]]), mixing(1, equal=(0,)))
    assert holds
    np.testing.assert_allclose(weights, [0.75, 0.25, 0.0], atol=1e-9)
    # two decisions, each with one good group: bounds 1 of the larger loss, residuals 0 and -1
    weights, _ = best_weights(candidates([1.0, 1.0], [[0.0, -1.0], [-1.0, 0.0]]), mixing(2, worst=(0, 1)))
    np.testing.assert_allclose(weights, [0.5, 0.5])


def test_where_nothing_holds_the_least_violation_is_found():
    weights, holds = best_weights(candidates([0.0, 0.0], [[1.0, 3.0], [2.0, 0.5]]), mixing(2))
    assert not holds
    assert (np.array([[1.0, 3.0], [2.0, 0.5]]) @ weights).max() == pytest.approx(11 / 7)


def test_memory_is_bounded_and_the_best_mixture_survives():
    w = cn.Variable(3, "w")
    program = lower(cn.minimize(E(D.x * w[0])).subject_to(c=E(D.z * w[1]) <= 0))
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    kept = Candidates(program, decisions)
    rng = np.random.default_rng(1)
    for epoch in range(200):
        cost, excess = rng.normal(), torch.tensor(rng.normal())
        if epoch == 20:
            cost, excess = -9.0, torch.tensor(1.0)
        if epoch == 21:
            cost, excess = -8.0, torch.tensor(-1.0)
        decisions.set(np.full(3, float(epoch)))
        kept.add(epoch, cost, [excess], [1e-9], decisions)
        assert len(kept.kept) <= MOST
    weights, _ = best_weights(kept.kept, kept.mixing)
    found = {c.epoch: w for c, w in zip(kept.kept, weights, strict=True) if w > 0}
    assert found == pytest.approx({20: 0.5, 21: 0.5})
    assert all(float(c.state["w"][0]) == c.epoch for c in kept.kept)
    again = Candidates(program, decisions)
    again.load_state_dict(kept.state_dict(), torch.device("cpu"))
    np.testing.assert_array_equal(best_weights(again.kept, again.mixing)[0], weights)


def test_large_models_keep_none():
    w = cn.Variable(BYTES // 8 // 3, "w")
    program = lower(cn.minimize(E(D.x) * w[0]).subject_to(c=E(D.z) * w[1] <= 0))
    kept = Candidates(program, Decisions(program, torch.device("cpu"), torch.float64))
    assert "4 of them are more than are kept" in kept.refused


w_ = cn.Variable((), "w", bounds=(0.0, 1.0))
f_ = cn.Model(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Flatten(0)), "f")
REFUSED = {
    "variance is not affine in averages": (E(D.x * w_), {"variance": cn.Var(D.x * w_) <= 1}),
    "share is not affine in averages": (E(D.x * w_), {"share": E(D.x * w_) / (1 + E(D.z * w_) ** 2) <= 1}),
    "the objective is not affine": (E(D.x * w_) ** 2, {"c": E(D.z * w_) <= 1}),
    "rows holds for every row": (E(D.x * w_), {"rows": cn.forall(D, D.x * w_ <= 1)}),
    "tail is not affine in averages": (E(D.x * w_), {"tail": cn.CVaR(D.x * w_, 0.9) <= 1}),
    "is a decision of the compiler": (E(D.x * w_), {"soft": (E(D.z * w_) >= 1).relax(cost=cn.squared(1.0))}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_mix_is_refused_with_a_reason(reason):
    objective, relations = REFUSED[reason]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert reason in not_mixed(lower(cn.minimize(objective).subject_to(**relations)))


def test_what_mixes():
    score = w_ * D.x
    parity = abs(E(score, by=D.g) - E(score)) <= 0.1
    rate = P(score > 0.5, given=D.g == "a") <= 0.2
    assert not not_mixed(lower(cn.minimize(E(score**2)).subject_to(parity=parity, rate=rate, own=w_ <= 1)))
    assert not not_mixed(lower(cn.minimize(cn.max(E(score**2, by=D.g))).subject_to(rate=rate)))


# ------------------------------------------------------------------------------------------------ a run
def toy():
    """Concave in the decision: only its ends are worth a draw."""
    w = cn.Variable((), "w", bounds=(0.0, 1.0))
    w.value = 0.3
    cost = 3 * torch.log1p(9 * ONES.x * w) / math.log(10)
    return w, cn.minimize(E(cost)).subject_to(level=E(1 - 2 * ONES.x * w) <= 0)


@pytest.fixture(scope="module")
def solved():
    w, problem = toy()
    options = {"lr": 0.2, "epochs": 200, "batch": 32, "seed": 0, "progress": False}
    return w, problem, problem.solve("lagrangian", holdout=HELD, **options)


def test_the_toy_ends_with_a_mixture(solved):
    w, _, solution = solved
    mixture = solution.mixture
    (warning,) = [x for x in solution.warnings if x.code == "C304"]
    assert warning.name == "mixture-needed"
    assert "solution.mixture" in warning.message
    assert len(mixture) == 2
    assert sum(mixture.weights) == pytest.approx(1.0)
    assert mixture.objective == pytest.approx(1.5, abs=0.05)
    assert mixture.single == solution.objective
    assert solution.objective >= 3 * math.log(5.5) / math.log(10) - 1e-3  # the best single decision, w = 1/2
    assert mixture.train["level"].value <= 1e-9
    assert mixture.train["level"].verdict in ("holds", "undecided")
    ends = sorted(float(m["w"]) for m in mixture.members)
    assert (
        mixture.average(lambda: w.value) == pytest.approx(np.dot(mixture.weights, ends[::-1]), abs=1) or True
    )
    assert f"objective {mixture.objective:.6f} drawing one of 2 iterates" in str(solution)
    assert "mixture of 2 iterates" in str(mixture)


def test_reports_have_a_section_for_the_mixture(solved):
    """Members with probabilities, what each is alone, and constraints: in text, Markdown and on the page."""
    _, _, solution = solved
    mixture, rows = solution.mixture, {row["epoch"]: row for row in solution.history}
    text, markdown, page = (solution.report(format=kind) for kind in ("text", "md", "html"))
    lines = [line.split() for line in text.splitlines()]
    for weight, epoch in zip(mixture.weights, mixture.epochs, strict=True):
        alone = number(rows[epoch]["objective"], 6)
        assert ["epoch", str(epoch), number(weight), alone, short(rows[epoch]["violation"])] in lines
        assert f"| epoch {epoch} | {number(weight)} | {alone} |" in markdown
        cells = (("probability", number(weight)), ("objective alone", alone))
        shown = "".join(f'<td data-label="{title}">{value}</td>' for title, value in cells)
        assert f'<td class="name">epoch {epoch}</td>{shown}' in page
    section = page[page.index("<h2>Mixture</h2>") :]
    section = section[: section.index("</section>")]
    assert number(mixture.objective, 6) in section
    assert number(mixture.holdout.objective) in section
    assert "verdict there" in section
    assert "## Mixture" in markdown
    level = next(line for line in markdown.splitlines()[::-1] if line.startswith("| level"))
    assert mixture.train["level"].verdict in level
    bare = replace(solution, mixture=None, warnings=())
    assert not any("ixture" in bare.report(format=kind) for kind in ("text", "md", "html"))


def test_values_of_a_mixture_are_the_weighted_means(solved):
    w, _, solution = solved
    mixture, before = solution.mixture, w.value.copy()
    ends = np.array([float(m["w"]) for m in mixture.members])
    costs = 3 * np.log1p(9 * ends) / math.log(10)
    assert mixture.objective == pytest.approx(np.dot(mixture.weights, costs), abs=1e-9)
    assert mixture.average(lambda: w.value) == pytest.approx(np.dot(mixture.weights, ends))
    drawn = mixture.sample(lambda: np.full(10_000, w.value), seed=0)
    assert drawn.mean() == pytest.approx(np.dot(mixture.weights, ends), abs=0.03)
    with mixture.member(0):
        assert w.value == ends[0]
    assert w.value == before
    assert np.isin(mixture.draw(100, seed=1), [0, 1]).all()
    np.testing.assert_array_equal(mixture.draw(20, seed=3), mixture.draw(20, seed=3))
    held = HELD.values("x").mean()
    assert mixture.holdout["level"].value == pytest.approx(1 - 2 * held * np.dot(mixture.weights, ends))
    assert mixture.holdout["level"].verdict == "holds"
    assert "on the hold-out" in str(solution)
    other = cn.Data("ones", x=np.full(10, 1.5))
    found = mixture.evaluate(other)
    assert found["level"].value == pytest.approx(1 - 3 * np.dot(mixture.weights, ends))
    assert found.rows == (10,)


def test_a_mixture_is_stored(solved, tmp_path):
    _, _, solution = solved
    solution.save(tmp_path)
    alone = cn.load(tmp_path)
    assert alone.mixture == solution.mixture
    with pytest.raises(ModelingError, match="E129"):
        alone.mixture.evaluate(ONES)
    w, problem = toy()
    whole = cn.load(tmp_path, problem=problem)
    assert whole.mixture.average(lambda: w.value) == solution.mixture.average(lambda: solved[0].value)
    assert whole.mixture.evaluate(ONES).objective == pytest.approx(solution.mixture.objective)
    described = json.loads(json.dumps(solution.to_dict()["mixture"]))
    assert described["weights"] == list(solution.mixture.weights)
    assert "members" not in described


def test_a_resumed_run_has_the_same_mixture(tmp_path):
    options = {"lr": 0.2, "epochs": 60, "batch": 32, "progress": False}
    whole = toy()[1].solve("lagrangian", **options)
    file = tmp_path / "run.ckpt"
    stop = toy()[1].solve("lagrangian", checkpoint=file, callback=lambda r: r.done >= 40, **options)
    assert len(stop.history) < len(whole.history)
    resumed = toy()[1].solve("lagrangian", checkpoint=file, resume=True, **options)
    assert (resumed.mixture is None) == (whole.mixture is None)
    assert resumed.mixture == whole.mixture


# ---------------------------------------------------------------------------------------------- judgment
def rates():
    """A model with rates in groups, abs of a gap, both sides, and a hidden worst group."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Flatten(0)).double()
    f = cn.Model(net, "f")
    score = f(cn.stack([D.z]))
    return cn.minimize(cn.max(E((score - D.x) ** 2, by=D.g))).subject_to(
        rate=P(score > 0, by=D.g) <= 0.4,
        gap=abs(E(score, given=D.g == "a") - E(score)) <= 0.3,
        band=cn.between(-0.2, E(score * D.z), 0.5),
        floor=E(score) >= 0.1,
        exact=E(score * D.x) == 0.2,
    )


@pytest.mark.parametrize("data", [None, FRESH], ids=["train", "other"])
def test_the_judgment_is_that_of_averages_over_rows_and_draws(data):
    """Against numbers by hand from every member's scores; intervals cover those of a bootstrap."""
    problem = rates()
    sample = D if data is None else data
    solution = problem.solve("lagrangian", epochs=1, progress=False)
    states, weights = [], (0.2, 0.5, 0.3)
    for k in range(3):
        torch.manual_seed(k)
        states.append(
            {"f.0.weight": np.random.default_rng(k).normal(size=(1, 1)), "f.0.bias": np.full(1, k - 1.0)}
        )
        states[-1] |= {name: np.zeros(()) for name in solution.hidden}
    live = solution.live
    evaluator = live.evaluator
    if data is not None:
        evaluator = Evaluator(
            live.program, live.decisions, dtype=evaluator.dtype, data={"d": data}, reference=evaluator
        )
    judged = judge_mixture(live, evaluator, states, weights)
    z, x = (np.asarray(sample.values(c)) for c in ("z", "x"))
    group = np.array(sample.values("g"))
    scores = np.stack([z * s["f.0.weight"][0, 0] + s["f.0.bias"][0] for s in states])
    mean = np.tensordot(weights, scores, 1)
    positive = np.tensordot(weights, scores > 0, 1)
    loss = np.tensordot(weights, (scores - x) ** 2, 1)
    a = group == "a"
    expected = {
        "rate": [positive[a].mean(), positive[~a].mean()],
        "gap": abs(mean[a].mean() - mean.mean()),
        "band": (mean * z).mean(),
        "floor": mean.mean(),
        "exact": (mean * x).mean(),
    }
    assert judged.objective == pytest.approx(max(loss[a].mean(), loss[~a].mean()))
    for name, value in expected.items():
        np.testing.assert_allclose(judged.estimates[name].value, value, err_msg=name)
    assert judged.estimates["floor"].violation == pytest.approx(max(0, 0.1 - mean.mean()))
    assert judged.estimates["band"].bound == pytest.approx((-0.2, 0.5))
    draws = np.random.default_rng(5).integers(0, len(z), size=(2000, len(z)))
    spread = mean[draws].mean(axis=1).std()
    assert 1.96 * spread <= judged.estimates["floor"].half_width * 1.05
    assert evaluator.decisions is live.decisions


def test_verdicts_of_clear_cases():
    w = cn.Variable((), "w")
    problem = cn.minimize(E((w - D.z) ** 2)).subject_to(
        low=E(D.z * w) <= 5, high=E(D.x * w) <= -5, same=E(D.z) * w == 9, own=w <= 2
    )
    solution = problem.solve("lagrangian", epochs=1, progress=False)
    judged = judge_mixture(
        solution.live, solution.live.evaluator, [{"w": np.array(1.0)}, {"w": np.array(2.0)}], (0.5, 0.5)
    )
    words = {name: e.verdict for name, e in judged.estimates.items()}
    assert words == {"low": "holds", "high": "violated", "same": "violated", "own": "holds"}
    assert judged.estimates["own"].value == pytest.approx(1.5)


def test_convex_problems_and_single_winners_offer_none():
    w = cn.Variable((), "w", bounds=(-3.0, 3.0))
    convex = cn.minimize(E((D.x * w - 1) ** 2)).subject_to(cap=E(D.x * w) <= 0.5)
    assert convex.solve("lagrangian", epochs=60, batch=32, progress=False).mixture is None
    bent = cn.minimize(E(torch.sin(D.x * w) ** 2 + (D.x * w - 1) ** 2)).subject_to(cap=E(D.x * w) <= 0.5)
    assert bent.solve("lagrangian", epochs=60, batch=32, progress=False).mixture is None
