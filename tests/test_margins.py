"""Margins: what `solve(margin=...)` moves, by how much, at what price, and how often it holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import constrain as cn
from constrain import E, P, forall
from constrain.driver.calibration import HeldBack, hold_back
from constrain.lowering.lower import lower

RNG = np.random.default_rng(3)
X = RNG.normal(1.0, 2.0, size=400)
SEX = np.where(np.arange(400) % 4 == 0, "f", "m")
D = cn.Data("d", x=X, sex=SEX)


def spending(rows=D, bound=1.0):
    """Maximize w subject to E[x w] <= bound: w = bound / mean(x), a price of 1 / mean(x) per unit."""
    w = cn.Variable((), "w", bounds=(-10.0, 10.0))
    return cn.maximize(w).subject_to(budget=E(rows.x * w) <= bound)


def test_the_margin_is_the_quantile_times_the_standard_error():
    solution = spending().solve(margin="auto", progress=False)
    t = solution.tightening
    w = 1.0 / X.mean()
    error = w * X.std(ddof=1) / math.sqrt(len(X))
    assert float(t.errors["budget"]) == pytest.approx(error, rel=1e-6)
    margin = stats.t.ppf(0.95, len(X) - 1) * error
    assert t.largest("budget") == pytest.approx(margin, rel=1e-6)
    assert (t.level, t.counted, t.confidence) == (pytest.approx(0.05), 1, 0.95)
    # solved again with the smaller bound, and judged against the one that was written
    assert float(solution["budget"].value) == pytest.approx(1.0 - margin, abs=1e-6)
    assert float(solution["budget"].bound) == 1.0
    assert float(solution["budget"].slack) == pytest.approx(margin, abs=1e-6)
    assert solution["budget"].text == "E[x · w] ≤ 1.0"
    assert t.objective == pytest.approx(w)
    assert t.price == pytest.approx(margin / X.mean(), rel=1e-5)
    assert t.expected == pytest.approx(t.price, rel=1e-5)
    assert solution.status.value == "optimal"
    assert "bounds tightened by up to budget" in str(solution)
    assert "margin: bounds tightened" in solution.report(format="markdown")


def test_a_given_margin_moves_every_kind_of_bound_inwards():
    w = cn.Variable(3, "w", bounds=(-10.0, 10.0))
    problem = cn.maximize(w[0] - w[1] + w[2]).subject_to(
        above=w[0] <= 2, below=w[1] >= 1, both=cn.between(-1, w[2], 1.5), size=abs(w[2]) <= 1.2
    )
    margins = {"above": 0.5, "below": 0.25, "both": 0.1, "size": 0.3}
    solution = problem.solve(margin=margins, progress=False)
    assert solution.variables["w"] == pytest.approx([1.5, 1.25, 0.9], abs=1e-6)
    assert [float(solution[name].slack) for name in ("above", "below", "size")] == pytest.approx(
        [0.5, 0.25, 0.3], abs=1e-6
    )
    assert solution["both"].bound == (-1.0, 1.5)
    assert solution.tightening.price == pytest.approx(0.5 + 0.25 + 0.3, abs=1e-6)
    assert solution.tightening.errors == {}


def test_levels_have_margins_of_their_own():
    w = cn.Variable((), "w", bounds=(-10.0, 10.0))
    problem = cn.maximize(w).subject_to(each=E(D.x * w, by=D.sex) <= 3.0)
    solution = problem.solve(margin="auto", progress=False)
    margins = np.asarray(solution.tightening.margins["each"])
    levels = [str(level) for level in solution["each"].levels]
    for k, level in enumerate(levels):
        own = X[level == SEX]
        first = 3.0 / max(X[s == SEX].mean() for s in ("f", "m"))
        error = first * own.std(ddof=1) / math.sqrt(len(own))
        quantile = stats.t.ppf(1 - solution.tightening.level, len(own) - 1)
        assert margins[k] == pytest.approx(quantile * error, rel=1e-6)
    best = min((3.0 - margins[k]) / X[level == SEX].mean() for k, level in enumerate(levels))
    assert float(solution.variables["w"]) == pytest.approx(best, rel=1e-6)
    assert np.asarray(solution["each"].bound).tolist() == [3.0, 3.0]


def test_numbers_with_room_do_not_share_the_level():
    w = cn.Variable((), "w", bounds=(0.0, 10.0))
    tight = {"a": E(D.x * w) <= 1.0, "b": E(D.x * w) <= 1.001}
    problem = cn.maximize(w).subject_to(**tight, roomy=E(D.x * w) <= 50.0)
    t = problem.solve(margin="auto", progress=False).tightening
    assert t.counted == 2
    assert t.level == pytest.approx(0.025)


def test_a_calibration_sample_adds_the_gap_to_it():
    other = cn.Data("cal", x=X[:200] + 0.5, sex=SEX[:200])
    solution = spending().solve(margin=other, progress=False)
    w, t = 1.0 / X.mean(), solution.tightening
    gap = w * (X[:200] + 0.5).mean() - 1.0
    error = w * X[:200].std(ddof=1) / math.sqrt(200)
    assert float(t.gaps["budget"]) == pytest.approx(gap, rel=1e-6)
    assert t.largest("budget") == pytest.approx(gap + stats.t.ppf(0.95, 199) * error, rel=1e-6)
    assert "gap to the calibration sample" in " ".join(str(solution).split())


def test_it_holds_beyond_the_sample_as_often_as_it_says():
    """Draw samples, solve, and look at the true constraint: mean 1 of x, so w <= 1."""
    rng = np.random.default_rng(0)
    plain, held = 0, 0
    for _ in range(40):
        rows = cn.Data("d", x=rng.normal(1.0, 2.0, size=400))
        solution = spending(rows).solve(margin="auto", progress=False)
        plain += solution.tightening.objective <= 1.0
        held += float(solution.variables["w"]) <= 1.0
    assert 10 <= plain <= 30  # about half
    assert held >= 34  # 95 % of 40 is 38; three standard deviations below it


def test_the_verdict_on_the_holdout_is_about_the_bound_as_written():
    more = np.random.default_rng(9).normal(1.0, 2.0, size=4000)
    held_out = cn.Data("test", x=more, sex=np.full(4000, "f"))
    plain = spending().solve(holdout=held_out, progress=False)
    assert 'problem.solve(margin="auto")' in str(plain) or plain["budget"].verdict == "holds"
    solution = spending().solve(holdout=held_out, margin="auto", progress=False)
    held = solution["budget"].holdout
    assert float(held.bound) == 1.0
    w = float(solution.variables["w"])
    assert float(held.value) == pytest.approx(w * more.mean(), rel=1e-9)
    later = solution.evaluate(held_out)["budget"]
    assert (later.value, later.bound, later.verdict) == (held.value, held.bound, held.verdict)
    assert solution.kkt(tolerance=1e-5).stationary
    error = w * more.std(ddof=1) / math.sqrt(4000)
    ratio = (1.0 - w * more.mean()) / error
    assert held.verdict == ("holds" if ratio > 1.96 else "violated" if ratio < -1.96 else "undecided")


def test_rates_and_the_stored_record(tmp_path):
    def problem():
        w = cn.Variable((), "w", bounds=(0.0, 10.0))
        return cn.minimize(w).subject_to(share=P(D.x - w <= 0) >= 0.8)

    plain = problem().solve("lagrangian", epochs=10, progress=False)
    solution = problem().solve("lagrangian", epochs=10, margin="auto", progress=False)
    t, rate = solution.tightening, float(plain["share"].value)
    assert t.largest("share") == pytest.approx(stats.t.ppf(0.95, 399) * float(t.errors["share"]), rel=1e-6)
    assert float(t.errors["share"]) == pytest.approx(math.sqrt(rate * (1 - rate) / 399), rel=1e-6)
    assert cn.load(solution.save(tmp_path / "run")).tightening.margins == t.margins


# --------------------------------------------------------------------------------- models that fit noise
def recognition(rng, rows, *, width=0):
    """Labels with noise in 40 columns, and a recall; a network of `width` units, or a linear score."""
    x = rng.normal(size=(rows, 40))
    y = (x[:, 0] + x[:, 1] + rng.normal(size=rows) > 0).astype(float)
    D = cn.Data("d", x=x, y=y, g=np.where(np.arange(rows) % 3 == 0, "a", "b"))
    torch.manual_seed(0)
    layers = [torch.nn.Linear(40, width), torch.nn.ReLU()] if width else []
    layers += [torch.nn.Linear(width or 40, 1), torch.nn.Flatten(0)]
    f = cn.Model(torch.nn.Sequential(*layers).double(), "f")
    loss = torch.nn.functional.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    return D, cn.minimize(E(loss)).subject_to(
        loss=E(loss, given=D.y == 1) <= 0.25, level=abs(E(f(D.x), by=D.g) - E(f(D.x))) <= 1.0
    )


def test_a_model_with_many_weights_is_measured_on_rows_that_it_is_not_trained_on():
    rng = np.random.default_rng(0)
    problem = recognition(rng, 600, width=16)[1]
    held, _ = recognition(rng, 4000)
    first = [p.detach().clone() for p in problem_model(problem).parameters()]
    plain = problem.solve("lagrangian", epochs=25, holdout=held, progress=False)
    assert plain["loss"].verdict == "violated"
    with torch.no_grad():
        for p, start in zip(problem_model(problem).parameters(), first, strict=True):
            p.copy_(start)
    solution = problem.solve("lagrangian", epochs=25, holdout=held, margin="auto", progress=False)
    t = solution.tightening
    assert t.held_back == 120
    assert solution.train.rows == (480,)
    assert t.largest("loss") > float(t.gaps["loss"]) > 2 * float(plain["loss"].train.half_width)
    assert solution["loss"].verdict == "holds"
    assert "and the gap to 120 rows held back" in " ".join(str(solution).split())
    assert "120 rows that were held back" in solution.report(format="html")
    assert "C313" not in {w.code for w in solution.warnings}


def problem_model(problem):
    (model,) = lower(problem).models
    return model.module


def test_few_weights_take_all_rows():
    _, problem = recognition(np.random.default_rng(1), 4000)
    assert hold_back(problem, None, 0) == HeldBack()


def test_the_held_back_rows_have_their_share_of_every_group():
    D, problem = recognition(np.random.default_rng(1), 600, width=16)
    apart = hold_back(problem, None, 3)
    for part, share in ((apart.training, 0.8), (apart.calibration, 0.2)):
        groups = np.asarray(part["d"].values("g"))
        assert len(groups) == share * 600
        assert (groups == "a").sum() == share * 200
    rows = np.concatenate([np.asarray(part["d"].values("x")) for part in (apart.training, apart.calibration)])
    assert sorted(rows[:, 0].tolist()) == sorted(np.asarray(D.values("x"))[:, 0].tolist())
    again = hold_back(problem, None, 3)
    assert np.array_equal(again.training["d"].values("y"), apart.training["d"].values("y"))


def test_a_stream_says_what_to_do():
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(64, 3)))
    rows = torch.utils.data.TensorDataset(x, x.sum(1))
    D = cn.Data.from_dataset("d", rows, columns=["x", "y"])
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1), torch.nn.Flatten(0)
    )
    f = cn.Model(net.double(), "f")
    problem = cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(level=E(f(D.x)) <= 0.1)
    solution = problem.solve(epochs=2, margin="auto", progress=False)
    (warning,) = [w for w in solution.warnings if w.code == "C313"]
    assert "41 weights for 64 rows" in warning.message
    assert "'d' is a stream" in warning.message
    assert "margin=sample" in warning.message


# ------------------------------------------------------------------------------------- what it refuses
W = cn.Variable((), "w", bounds=(0.0, 10.0))
REFUSED = {
    "an equality": (W == 1.0, "is an equality", r"abs\(w - 1.0\) <= 0.02"),
    "rows": (forall(D, D.x * W <= 3), "one constraint per row", "P\\(...\\) >= 0.99"),
    "relaxed": ((W <= 3).relax(cost=cn.linear(1.0)), "may give way", "without .relax"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_constraints_that_take_no_margin(kind):
    relation, why, fix = REFUSED[kind]
    problem = cn.minimize(W).subject_to(c=relation)
    for margin in ({"c": 0.1}, "auto"):
        with pytest.raises(cn.ModelingError, match=f"(?s)E198.*{why}.*write: .*{fix}"):
            problem.solve(margin=margin, progress=False)
    # beside one that takes a margin it is left as it is, and that is said
    both = problem.subject_to(mean=E(D.x * W) <= 1.0)
    if kind != "an equality":
        assert list(both.solve(margin="auto", progress=False).tightening.skipped) == ["c"]


def test_margins_that_leave_nothing():
    w = cn.Variable((), "w")
    problem = cn.minimize(w**2).subject_to(near=abs(E(D.x * 100 - w)) <= 0.01)
    with pytest.raises(
        cn.ModelingError, match=r"(?s)E198.*leaves nothing of the range 0.01 of 'near'.*times as many rows"
    ):
        problem.solve(margin="auto", progress=False)
    with pytest.raises(cn.ModelingError, match=r"(?s)E198.*a smaller one"):
        problem.solve(margin={"near": 0.02}, progress=False)


@pytest.mark.parametrize(
    ("margin", "code"),
    [
        ({"budgt": 0.1}, "E139.*did you mean"),
        ({"budget": -1.0}, "E141"),
        (0.1, "E141.*auto"),
        ("car", "E141"),
    ],
)
def test_margins_that_make_no_sense(margin, code):
    with pytest.raises(cn.ModelingError, match=f"(?s){code}"):
        spending().solve(margin=margin, progress=False)


def test_no_constraints_and_no_sample():
    w = cn.Variable((), "w", bounds=(0.0, 10.0))
    with pytest.raises(cn.ModelingError, match="E198"):
        cn.minimize(w).solve(margin="auto", progress=False)
    solution = cn.maximize(w).subject_to(cap=w <= 3).solve(margin="auto", progress=False)
    assert solution.tightening.skipped == {"cap": "no sample enters"}


def test_a_checkpoint_holds_one_run(tmp_path):
    w = cn.Variable((), "w", bounds=(0.0, 2.0))
    D = cn.Data("d", x=np.ones(5))
    problem = cn.minimize((w - 1) ** 2).subject_to(c=E(D.x * w) <= 0.5)
    with pytest.raises(cn.ModelingError, match=r"\[E141\] margin= solves several times"):
        problem.solve("lagrangian", margin="auto", checkpoint=str(tmp_path / "run.ckpt"))
