"""`problem.check()`: every finding is provoked once and silent once, and a healthy problem gives none."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E, P, forall
from constrain.driver.batches import absence
from constrain.driver.linear import System
from constrain.language.surrogates import Sigmoid

ROWS = 4000


def sample(rows=ROWS, rare=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator)
    group = torch.arange(rows) < round(rare * rows)
    y = (x[:, 0] + 0.5 * group + torch.randn(rows, generator=generator) > 0).float()
    return cn.Data("people", x=x, y=y, group=["A" if g else "B" for g in group.tolist()])


def model(seed=0):
    torch.manual_seed(seed)
    return cn.Model(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)), "f")


D, f = sample(), model()
loss = E(F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none"))
accept = f(D.x) > 0


def findings(problem, code, **options):
    return [finding for finding in problem.check(**options).findings if finding.code == code]


def only(problem, code, **options):
    (finding,) = findings(problem, code, **options)
    return finding


# ------------------------------------------------------------------------------- nothing to complain
def linear_program():
    x = cn.Variable(2, "x", nonneg=True)
    return cn.maximize(3 * x[0] + 5 * x[1]).subject_to(
        first=x[0] <= 4, second=2 * x[1] <= 12, third=3 * x[0] + 2 * x[1] <= 18
    )


HEALTHY = {
    "parity and recall": lambda: cn.minimize(loss).subject_to(
        parity=abs(E(torch.sigmoid(f(D.x)), by=D.group) - E(torch.sigmoid(f(D.x)))) <= 0.05,
        recall=P(accept, given=D.y == 1) >= 0.8,
    ),
    "a rate per group": lambda: cn.minimize(loss).subject_to(rate=P(accept, by=D.group) <= 0.4),
    "Neyman-Pearson": lambda: cn.minimize(P(~accept, given=D.y == 1)).subject_to(
        alarm=P(accept, given=D.y == 0) <= cn.Parameter("alpha", 0.05)
    ),
    "rows": lambda: cn.minimize(cn.sum_squares(f)).subject_to(fit=forall(D, (2 * D.y - 1) * f(D.x) >= 1)),
    "worst group": lambda: cn.minimize(cn.max(E((f(D.x) - D.y) ** 2, by=D.group))),
    "a linear program": linear_program,
    "a band": lambda: cn.minimize(loss).subject_to(
        high=P(accept) <= 0.6, low=P(accept) >= 0.2, middle=cn.between(0.1, E(f(D.x)), 0.9)
    ),
}


@pytest.mark.parametrize("batch", [None, 128])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_problem_has_neither_errors_nor_warnings(name, batch):
    report = HEALTHY[name]().check(batch=batch)
    assert report.ok, str(report)
    assert {f.code for f in report.findings} <= {"W203", "W205", "W209", "W212"}
    assert report.method is not None


# ----------------------------------------------------------------------------------------- constants
def test_constraints_without_decisions_are_evaluated():
    problem = cn.minimize(loss).subject_to(
        holds=E(D.y) <= 0.9, fails=E(D.y) >= 0.9, rows=forall(D, D.y <= 2), real=E(f(D.x)) <= 1
    )
    by_name = {f.constraint: f for f in findings(problem, "W201")}
    rate = float(D.values("y").mean())
    assert by_name.keys() == {"holds", "fails", "rows"}
    assert by_name["holds"].severity == "warning"
    assert by_name["holds"].message == (
        f"holds: E[y] ≤ 0.9 contains no decision; it always holds, with a slack of {0.9 - rate:.3g}"
    )
    assert by_name["fails"].severity == "error"
    assert f"it is always missed by {0.9 - rate:.3g}" in by_name["fails"].message
    assert by_name["rows"].message.endswith("it always holds, with a slack of 1")


def test_a_constraint_that_cannot_fail_or_cannot_hold():
    finding = only(cn.minimize(loss).subject_to(cap=P(accept) <= 1.5), "W201")
    assert finding.message == "cap: P[f(x) > 0] ≤ 1.5 holds whatever the decisions are"
    assert not findings(cn.minimize(loss).subject_to(cap=P(accept) <= 0.5), "W201")
    impossible = cn.minimize(loss).subject_to(cap=P(accept) >= 1.5)
    finding = only(impossible, "E172")
    assert (finding.severity, finding.constraint) == ("error", "cap")
    assert not findings(impossible, "W202")  # once is enough


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.used, self.spare = nn.Linear(4, 3), nn.Linear(3, 1), nn.Linear(3, 2)

    def forward(self, x):
        return self.used(self.body(x))[..., 0]


def test_parameters_that_no_term_uses_are_named_by_their_module():
    g = cn.Model(TwoHeads(), "g")
    finding = only(cn.minimize(E((g(D.x) - D.y) ** 2)), "W201")
    assert finding.severity == "warning"
    assert finding.message == "g.spare: no term of the problem depends on it"
    for parameter in g.module.spare.parameters():
        parameter.requires_grad_(False)
    assert not findings(cn.minimize(E((g(D.x) - D.y) ** 2)), "W201")


def test_parameters_that_only_a_penalty_or_a_constraint_per_row_uses_are_used():
    g, h = cn.Model(TwoHeads(), "g"), cn.Model(nn.Linear(4, 1), "h")
    problem = cn.minimize(E((g(D.x) - D.y) ** 2) + cn.sum_squares(g)).subject_to(
        rows=forall(D, h(D.x)[..., 0] <= 1)
    )
    assert not findings(problem, "W201")


# ---------------------------------------------------------------------------------------- conflicts
def test_opposite_bounds_on_one_rate():
    problem = cn.minimize(loss).subject_to(
        high=P(accept, given=D.y == 1) >= 0.9,
        other=E(f(D.x)) <= 1,
        low=P(accept, given=D.y == 1) <= 0.1,
    )
    finding = only(problem, "W202")
    assert (finding.severity, finding.constraint) == ("error", "high, low")
    assert finding.message == (
        "high and low exclude each other: whatever the decisions are, they are missed by 0.8 in all"
    )
    assert not problem.check().ok


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: P(accept) >= 0.7, lambda: P(~accept) >= 0.5),  # an event and its opposite
        (lambda: P(accept) >= 0.7, lambda: P(accept, surrogate="hinge") <= 0.5),  # the exact rate is one
        (lambda: 2 * E(f(D.x)) - 1 >= 3, lambda: -E(f(D.x)) / 2 >= -0.5),
        (lambda: E(f(D.x)) == 1, lambda: abs(E(f(D.x))) <= 0.5),
        (lambda: E(f(D.x)) - E(D.y * f(D.x)) >= 1, lambda: E(D.y * f(D.x)) - E(f(D.x)) >= 0),
        (lambda: P(accept, by=D.group) <= 0.2, lambda: P(accept) >= 0.5),  # the whole is the mean of groups
        (lambda: abs(P(accept, by=D.group) - 0.5) <= 0.1, lambda: P(accept) >= 0.7),
        (lambda: E(f(D.x)) >= cn.Parameter("low", 2.0), lambda: E(f(D.x)) <= 1),
    ],
)
def test_conflicts_that_follow_from_linear_algebra(first, second):
    assert only(cn.minimize(loss).subject_to(a=first(), b=second()), "W202").constraint == "a, b"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: P(accept) >= 0.1, lambda: P(accept) <= 0.9),
        (lambda: P(accept) >= 0.7, lambda: P(~accept) >= 0.3),
        (lambda: P(accept, by=D.group) <= 0.2, lambda: P(accept) >= 0.2),
        (lambda: P(accept, given=D.y == 1) >= 0.9, lambda: P(accept) <= 0.1),  # another condition
        (lambda: (P(accept) >= 0.9).relax(cost=cn.squared(1.0)), lambda: P(accept) <= 0.1),
    ],
)
def test_no_conflict_where_there_need_be_none(first, second):
    assert not findings(cn.minimize(loss).subject_to(a=first(), b=second()), "W202")


def test_a_smallest_set_is_named():
    a, b, c = E(f(D.x)), E(D.y * f(D.x)), E(f(D.x) ** 2)
    problem = cn.minimize(loss).subject_to(ab=a - b <= -1, bc=b - c <= -1, ca=c - a <= -1, free=a <= 5)
    assert only(problem, "W202").constraint == "ab, bc, ca"


def test_bounds_of_variables_take_part():
    x = cn.Variable(2, "x", bounds=(0, 1))
    apart = cn.minimize(cn.sum(x)).subject_to(a=x[0] - x[1] >= 0.5, b=x[0] + x[1] >= 1.8)
    assert only(apart, "W202").severity == "error"
    fine = cn.minimize(cn.sum(x)).subject_to(a=x[0] - x[1] >= 0.5, b=x[0] + x[1] >= 1.4)
    assert not findings(fine, "W202")


def test_few_linear_programs_tell_which_of_many_constraints_exclude_each_other(monkeypatch):
    """Every training that misses its constraints asks, so that it may not cost the square of their number."""
    score, asked = torch.sigmoid(f(D.x)), list[int]()
    bounds = {f"c{k}": E(score * torch.sigmoid(D.x[0] - k)) <= 1.0 for k in range(40)}
    clash = {"c25": E(score) >= 0.6, "c7": E(score) <= 0.5}
    least = System.least_violation

    def counted(self, names):
        asked.append(len(names))
        return least(self, names)

    monkeypatch.setattr(System, "least_violation", counted)
    problem = cn.minimize(loss).subject_to(**(bounds | clash))
    assert only(problem, "W202").constraint == "c7, c25"
    assert len(asked) < 20


# ------------------------------------------------------------------------------------- repetitions
def test_the_same_constraint_twice_and_one_that_follows():
    problem = cn.minimize(loss).subject_to(
        first=P(accept) <= 0.4, same=2 * P(accept) - 0.8 <= 0, weak=P(~accept) >= 0.5, own=P(accept) >= 0.1
    )
    same, weak = findings(problem, "W203")
    assert (same.severity, same.constraint) == ("warning", "first, same")
    assert "first and same say the same" in same.message
    assert (weak.severity, weak.constraint) == ("info", "weak, first")
    assert "weak follows from first" in weak.message


def test_the_same_constraint_per_row():
    relation = (2 * D.y - 1) * f(D.x) >= 1
    twice = cn.minimize(loss).subject_to(a=forall(D, relation), b=forall(D, relation))
    assert only(twice, "W203").constraint == "a, b"
    apart = cn.minimize(loss).subject_to(a=forall(D, relation), b=forall(D.where(D.y == 1), relation))
    assert not findings(apart, "W203")


def test_group_rates_that_equal_the_overall_one_depend_on_each_other():
    rate = E(torch.sigmoid(f(D.x)), by=D.group) - E(torch.sigmoid(f(D.x)))
    finding = only(cn.minimize(loss).subject_to(parity=rate == 0), "W203")
    assert finding.severity == "warning"
    assert "parity[group=A] and parity[group=B] are parallel" in finding.message
    tolerant = findings(cn.minimize(loss).subject_to(parity=abs(rate) <= 0.05), "W203")
    assert {f.severity for f in tolerant} <= {"info"}
    gap = E(torch.sigmoid(f(D.x)), given=D.group == "A") - E(torch.sigmoid(f(D.x)), given=D.group == "B")
    assert not findings(cn.minimize(loss).subject_to(parity=gap == 0), "W203")


def test_equalities_with_dependent_gradients():
    a, b = E(f(D.x)), E(f(D.x) * D.y)
    problem = cn.minimize(loss).subject_to(a=a == 0.1, b=b == 0.1, c=a + 2 * b == 0.3, d=E(f(D.x) ** 3) == 0)
    finding = only(problem, "W203")
    assert finding.constraint == "a, b, c"
    assert "the gradients of a, b and c are linearly dependent" in finding.message
    assert not findings(cn.minimize(loss).subject_to(a=a == 0.1, b=b == 0.1), "W203")


def test_squares_that_are_to_vanish():
    with pytest.warns(cn.errors.ModelingWarning, match="W206"):
        problem = cn.minimize(loss).subject_to(zero=E(f(D.x) ** 2) == 0)
    assert only(problem, "W206").constraint == "zero"
    assert not findings(cn.minimize(loss).subject_to(zero=E(f(D.x)) == 0), "W206")


# --------------------------------------------------------------------------------- groups and batches
def test_the_share_of_batches_without_a_group():
    assert absence(50, 1000, 32) == pytest.approx(math.comb(950, 32) / math.comb(1000, 32), rel=1e-9)
    assert absence(5_000, 100_000, 32) == pytest.approx(0.95**32, rel=1e-2)  # 19 %
    assert absence(1, 10, 10) == 0.0
    assert absence(0, 10, 5) == pytest.approx(1.0)


def grouped(rare, rows=ROWS):
    data = sample(rows, rare)
    e = F.binary_cross_entropy_with_logits(f(data.x), data.y, reduction="none")
    return cn.minimize(E(e)).subject_to(rate=P(f(data.x) > 0, by=data.group) <= 0.4)


def test_tiny_groups():
    finding = only(grouped(7 / ROWS), "W207")
    assert (finding.severity, finding.constraint) == ("warning", "rate")
    assert finding.message == (
        "rate: few rows in group=A (7 rows); over the smallest, a rate is known to ±0.37 and an average to "
        "±0.74 standard deviations (95 %)"
    )
    assert not findings(grouped(30 / ROWS), "W207")


def test_an_empty_condition_is_an_error():
    problem = cn.minimize(loss).subject_to(never=E(f(D.x), given=D.y > 2) <= 1)
    finding = only(problem, "E124")
    assert finding.severity == "error"
    assert "no row of 'people' satisfies the condition" in finding.message
    assert finding.fix == "a condition that some rows satisfy"


def test_groups_that_batches_lack():
    stratified = only(grouped(0.05), "W208", batch=32)
    assert stratified.severity == "info"
    assert "of plain batches of 32, missing is group=A from 19%" in stratified.message
    assert "batches are stratified" in stratified.message
    assert not findings(grouped(0.05), "W208", batch=256)
    assert not findings(grouped(0.05), "W208", method="augmented")
    many = sample()
    levels = cn.Data("people", x=many.values("x"), y=many.values("y"), group=torch.arange(ROWS) % 40)
    plain = cn.minimize(E((f(levels.x) - levels.y) ** 2)).subject_to(
        rate=P(f(levels.x) > 0, by=levels.group) <= 0.4
    )
    finding = only(plain, "W208", batch=32)  # more cells than a batch can hold
    assert finding.severity == "warning"
    assert finding.fix.startswith("batch=119")
    assert not findings(plain, "W208", batch=128)


def test_rates_that_cannot_equal_their_bound():
    small = cn.Data("small", x=torch.randn(70, 4, generator=torch.Generator().manual_seed(0)), g=[0, 1] * 35)
    rate = P(f(small.x) > 0, by=small.g)
    finding = only(cn.minimize(E(f(small.x) ** 2)).subject_to(rate=rate == 0.5), "W211")
    assert finding.constraint == "rate"
    assert finding.message.startswith(
        "rate[g=0] over 35 rows can only be a multiple of 1/35: the nearest to 0.5"
    )
    assert finding.fix == "a tolerance: abs(rate - 0.5) <= 0.014"
    assert not findings(cn.minimize(E(f(small.x) ** 2)).subject_to(rate=rate == 0.2), "W211")
    assert not findings(cn.minimize(loss).subject_to(rate=P(accept) == 0.5), "W211")


# ---------------------------------------------------------------------------------------------- noise
def test_standard_errors_are_those_of_the_mean():
    g = cn.Model(nn.Linear(4, 1), "g")
    value = g.module(D.values("x"))[:, 0].detach().double().numpy()
    report = (
        cn.minimize(E((g(D.x)[..., 0] - D.y) ** 2)).subject_to(cap=E(g(D.x)[..., 0]) <= 5).check(batch=100)
    )
    (line,) = report.constraints
    assert line.sample == pytest.approx(value.std(ddof=1) / math.sqrt(ROWS), rel=1e-6)
    assert line.batch == pytest.approx(value.std(ddof=1) / math.sqrt(100), rel=1e-6)
    assert line.slack == pytest.approx(5 - value.mean(), rel=1e-5)
    assert line.multipliers == 1
    assert line.estimate == "batch means, unbiased"


def test_the_noise_of_batches_by_simulation():
    data = sample(rare=0.3)
    problem = cn.minimize(E(f(data.x) ** 2)).subject_to(
        gap=E(f(data.x), given=data.group == "A") - E(f(data.x), given=data.group == "B") <= 0.1
    )
    (line,) = problem.check(batch=200).constraints
    value = f.module(data.values("x")).detach().double().numpy()
    first = np.asarray(data.values("group")) == "A"
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(4000):
        rows = rng.choice(ROWS, 200, replace=True)
        gaps.append(value[rows][first[rows]].mean() - value[rows][~first[rows]].mean())
    assert line.batch == pytest.approx(np.std(gaps), rel=0.06)


def test_batches_that_cannot_see_a_bound_and_samples_that_cannot_see_a_tolerance():
    gap = E(f(D.x), given=D.group == "A") - E(f(D.x), given=D.group == "B")
    noisy = cn.minimize(loss).subject_to(parity=abs(gap) <= 0.05)
    finding = only(noisy, "W209", batch=32)
    assert finding.severity == "info"
    assert "its tolerance is 0.05" in finding.message
    assert not findings(noisy, "W209", batch=2000)
    assert not findings(noisy, "W210")
    tight = only(cn.minimize(loss).subject_to(parity=abs(gap) <= 1e-4), "W210")
    assert (tight.severity, tight.constraint) == ("warning", "parity")
    assert "its tolerance is ±0.0001" in tight.message


def test_terms_that_are_not_affine_in_their_averages():
    ratio = E(torch.sigmoid(f(D.x)) * D.y) / E(torch.sigmoid(f(D.x)))
    problem = cn.minimize(loss).subject_to(ratio=ratio >= 0.5, product=E(f(D.x)) * E(D.y * f(D.x)) <= 1)
    halves, running = findings(problem, "W205", batch=64)
    assert halves.message == "product is not affine in averages; of a batch: two half batches, unbiased"
    assert running.constraint == "ratio"
    assert "linearized at running averages" in running.message
    assert not findings(problem, "W205", method="augmented")
    assert not findings(problem, "W205", batch=ROWS)
    assert not findings(cn.minimize(loss).subject_to(mean=2 * E(f(D.x)) - 1 <= 0), "W205", batch=64)


# ------------------------------------------------------------------------------------- the rest of it
def test_unused_columns():
    finding = only(cn.minimize(loss), "W212")
    assert (finding.severity, finding.message) == ("info", "no term uses the column group of people")
    assert not findings(HEALTHY["a rate per group"](), "W212")


def test_what_solve_would_refuse_is_a_finding():
    rows = nn.BatchNorm1d(1, track_running_stats=False)
    coupled = cn.Model(nn.Sequential(nn.Linear(4, 1), rows, nn.Flatten(0)), "h")
    finding = only(cn.minimize(E(coupled(D.x) ** 2)), "E122")
    assert finding.severity == "error"
    two = cn.minimize(cn.Variable((), "v") + cn.Variable((), "v"))
    assert only(two, "E131").severity == "error"
    assert only(cn.minimize(loss).subject_to(a=E(f(D.x)) <= cn.Parameter("alpha")), "E127")
    whole = cn.Variable(2, "k", integer=True)
    no_route = cn.minimize(cn.sum(torch.sin(whole))).subject_to(a=cn.sum(whole) >= 1)
    assert only(no_route, "E125").severity == "error"


def test_nothing_of_the_problem_is_changed():
    before = {name: value.clone() for name, value in f.module.state_dict().items()}
    x = cn.Variable(2, "x")
    cn.minimize(loss + cn.sum_squares(x)).subject_to(a=E(f(D.x)) == 0.1, b=cn.sum(x) == 1).check(batch=32)
    after = f.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.dtype == torch.float32 for p in f.module.parameters())
    assert x.value is None


def test_the_rates_that_gradients_see():
    report = HEALTHY["parity and recall"]().check()
    (line,) = report.rates
    assert line.name == "recall"
    assert line.surrogates == (Sigmoid().described,)
    value = f.module(D.values("x"))[D.values("y") == 1]
    assert line.exact == pytest.approx(0.8 - float((value > 0).double().mean()), abs=1e-6)
    assert abs(line.exact - line.surrogate) < 0.3
    assert not HEALTHY["rows"]().check().rates


def test_multipliers_are_counted():
    report = HEALTHY["parity and recall"]().check()
    assert [(c.name, c.multipliers) for c in report.constraints] == [("parity", 2), ("recall", 1)]
    rows = cn.minimize(loss).subject_to(
        every=forall(D, f(D.x) <= 5),
        some=forall(D.where(D.y == 1), f(D.x) >= -5),
        vector=E(D.x * f(D.x)[..., None]) <= 1,
    )
    counted = {c.name: c.multipliers for c in rows.check().constraints}
    assert counted == {"every": ROWS, "some": int(D.values("y").sum()), "vector": 4}


def test_the_report_as_text_and_as_plain_values():
    problem = HEALTHY["a rate per group"]().subject_to(never=E(D.y) >= 0.9)
    report = problem.check(batch=128)
    text = str(report)
    assert text.startswith(str(problem))
    assert "data       people: 4,000 rows, batches of 128" in text
    assert "groups     group=A 1,200, group=B 2,800" in text
    assert "decisions  f (49 parameters)" in text
    assert "findings   1 error, 0 warnings, " in text
    assert "  error    W201  never: E[y] ≥ 0.9 contains no decision" in text
    assert "  -> lagrangian open" in text
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["ok"] is False
    assert plain["findings"][0]["code"] == "W201"
    assert plain["populations"] == [{"name": "people", "rows": 4000, "batch": 128, "unused": []}]
    assert {r["method"] for r in plain["routes"]} >= {"cvxpy", "augmented", "lagrangian", "cooper"}


def test_other_data_and_parameters():
    alpha = cn.Parameter("alpha")
    problem = cn.minimize(loss).subject_to(a=P(accept, by=D.group) <= alpha)
    small = sample(100, 0.05)
    report = problem.check(data=small, params={"alpha": 0.3})
    assert [f.code for f in report.findings if f.severity != "info"] == ["W207"]
    assert report.populations[0].rows == 100


def test_ranges_are_those_of_the_data_and_parameters_that_are_given():
    t, cap = cn.Variable((), "t", bounds=(0, 1)), cn.Parameter("cap", 0.5)
    narrow, wide = (cn.Data("d", y=[0.0, size], z=[0.0, 1.0]) for size in (1.0, 10.0))
    problem = cn.minimize(t).subject_to(
        sum=E(narrow.y * t) + E(narrow.z * t) >= 2.5, cap=E(torch.relu(narrow.z * t - cap)) <= 1.0
    )
    assert only(problem, "E172").constraint == "sum"
    assert not findings(problem, "E172", data=wide)
    assert not findings(problem, "W202", data=wide)
    split = cn.minimize(t).subject_to(
        a=E(narrow.y * t) - E(narrow.z * t) >= 0.6, b=E(narrow.z * t) >= cap, c=E(narrow.y * t) >= 0
    )
    assert only(split, "W202").constraint == "a, b"
    assert not findings(split, "W202", data=wide)
    assert not findings(split, "W202", params={"cap": 0.1})


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"batch": 0}, cn.ModelingError, "[E179] batch=0 is no number of rows\n  write: batch=128"),
        ({"batch": 0.5}, cn.ModelingError, "[E179] batch=0.5 is no number of rows\n  write: batch=128"),
        ({"method": "lagrangean"}, cn.RouteError, "did you mean 'lagrangian'?"),
    ],
)
def test_wrong_options(options, kind, message):
    with pytest.raises(kind) as caught:
        cn.minimize(loss).check(**options)
    assert message in str(caught.value)


def test_constraints_that_no_gradient_moves():
    T = cn.Variable((3, 2), "T", nonneg=True)
    sparse = cn.minimize(cn.sum(T)).subject_to(
        rows=cn.sum(T, axis=1) == 1, sparse=cn.count_nonzero(T, axis=0) <= 2
    )
    finding = only(sparse, "W213")
    assert (finding.severity, finding.constraint) == ("warning", "sparse")
    assert finding.message == (
        "sparse is missed at the start, and its gradient is zero there and nearby: no step improves it"
    )
    met = cn.minimize(cn.sum(T)).subject_to(sparse=cn.count_nonzero(T, axis=0) <= 3)
    assert not findings(met, "W213")
    steps = cn.minimize(E(torch.round(f(D.x)) * 2))
    assert only(steps, "W213").constraint == "objective"
    assert not findings(cn.minimize(P(accept)), "W213")
    assert not findings(cn.minimize(E(f(D.x))).subject_to(gap=E(torch.relu(f(D.x) - 9)) <= 0.1), "W213")
