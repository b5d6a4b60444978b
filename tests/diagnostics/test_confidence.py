"""Intervals: formulas against NumPy and SciPy, coverage by simulation, verdicts."""

import numpy as np
import pytest
from scipy import stats

import constrain as cn
from constrain import E, P, forall
from constrain.diagnostics.binomial import FEW, clopper_pearson, rate_deviates, rate_interval, wilson
from constrain.diagnostics.confidence import judge_sample, step_down


def test_intervals_of_rates_are_scipys():
    for k, n in [(0, 7), (3, 11), (7, 7), (39, 40), (250, 400), (400, 400)]:
        expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(wilson(k / n, n), (expected.low, expected.high), atol=1e-12)
        exact = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
        np.testing.assert_allclose(clopper_pearson(k / n, n), (exact.low, exact.high), atol=1e-12)
        used = exact if n < 40 else expected
        np.testing.assert_allclose(rate_interval(k / n, n), (used.low, used.high), atol=1e-12)


def coverage(interval, n, rates):
    """The probability of covering, by the sum over all counts."""
    k = np.arange(n + 1)
    low, high = interval(k / n, n)
    covers = (low <= rates[:, None]) & (rates[:, None] <= high)
    return np.sum(stats.binom.pmf(k, n, rates[:, None]) * covers, axis=1)


def test_exact_intervals_cover_for_every_rate():
    rates = np.linspace(0.0005, 0.9995, 1999)
    for n in (1, 5, 20, FEW - 1):
        assert coverage(rate_interval, n, rates).min() >= 0.95 - 1e-12
    assert 0.83 < coverage(wilson, 20, rates).min() < 0.85  # why there is another one for few rows


def test_the_exact_test_of_a_rate_is_the_inverse_of_its_interval():
    for n in (5, 20, FEW - 1):
        k, bound = (m.ravel() for m in np.meshgrid(np.arange(n + 1.0), np.linspace(0.02, 0.98, 25)))
        low, high = clopper_pearson(k / n, n)
        ratio = rate_deviates(k / n - bound, k / n, np.full(k.shape, float(n)), bound)
        assert ((np.abs(ratio) > stats.norm.ppf(0.975)) == ((bound < low) | (bound > high))).all()
        assert (np.sign(ratio) * (k / n - bound) >= 0).all()


def test_a_rate_of_few_rows_is_judged_exactly(place):
    for n, hits in ((20, 1), (60, 3)):
        x = np.arange(float(n))
        D, w = cn.Data("d", x=x), cn.Variable((), "w")
        w.value = 1.0
        problem = cn.minimize(w**2).subject_to(rate=P(D.x * w > n - hits - 0.5) <= 0.2)
        found = judge_sample(place(problem).evaluator).estimates["rate"]
        test = stats.binomtest(hits, n, 0.2, alternative="less")
        method = "exact" if n < FEW else "wilson"
        expected = stats.binomtest(hits, n).proportion_ci(0.95, method=method)
        np.testing.assert_allclose(found.interval, (expected.low, expected.high), atol=1e-12)
        # one of 20 is no evidence for a rate below 0.2, three of 60 are
        assert found.verdict == ("holds" if n >= FEW else "undecided")
        assert (test.pvalue <= 0.025) == (found.verdict == "holds")


def test_step_down_by_hand():
    p = np.array([0.04, 0.001, 0.02, np.nan, 0.03])
    # Holm over four: 0.001 <= 0.05/4; 0.02 > 0.05/3 stops
    assert step_down(p, 0.05).tolist() == [False, True, False, False, False]
    assert step_down(p, 0.05, "bonferroni").tolist() == [False, True, False, False, False]
    assert step_down(p, 0.05, "none").tolist() == [True, True, True, False, True]
    assert step_down(np.array([0.01, 0.02, 0.03]), 0.06).tolist() == [True, True, True]


def _sample(rng, rows, shift=0.0):
    g = np.array(["a", "b"])[(rng.random(rows) < 0.3).astype(int)]
    x = rng.normal(size=rows) + shift * (g == "b")
    y = (rng.random(rows) < 0.4 + 0.2 * (x > 0)).astype(float)
    return cn.Data("d", x=x, y=y, g=g)


def _problem(D):
    w = cn.Variable((), "w", bounds=(0.0, 2.0))
    w.value = 1.0
    return cn.minimize(E((D.x - w) ** 2)).subject_to(
        mean=E(D.x * w, by=D.g) <= 0.5,
        gap=E(D.x * w, by=D.g) - E(D.x * w) <= 0.5,
        rate=P(D.x > w - 1, given=D.y == 1) >= 0.2,
        ratio=E(D.x * D.x * w, given=D.y == 1) / E(D.x * D.x) <= 2,
        var=E(D.x**2 * w) - E(D.x * w) ** 2 == 1,
    )


def test_half_widths_are_the_textbook_ones(place, rng):
    D = _sample(rng, 211)
    found = judge_sample(place(_problem(D)).evaluator).estimates
    x, y, g = (D.values(c) for c in "xyg")
    for k, level in enumerate("ab"):
        own = x[g == level]
        half = stats.t.ppf(0.975, len(own) - 1) * own.std(ddof=1) / np.sqrt(len(own))
        assert found["mean"].half_width[k] == pytest.approx(half, rel=1e-9)
        # difference to the overall mean: influence of a row, centered in its group
        psi = np.where(g == level, len(x) / len(own) * (x - own.mean()), 0) - (x - x.mean())
        se = np.sqrt(np.sum(psi**2)) / len(x) * np.sqrt(len(own) / (len(own) - 1))
        assert found["gap"].half_width[k] == pytest.approx(stats.t.ppf(0.975, len(own) - 1) * se, rel=1e-9)
    positives = y == 1
    low, high = wilson(np.mean(x[positives] > 0), positives.sum())
    assert found["rate"].interval == (pytest.approx(float(low)), pytest.approx(float(high)))
    assert found["rate"].smallest == positives.sum()
    top, bottom = (x**2)[positives].mean(), (x**2).mean()
    psi = positives / positives.mean() * (x**2 - top) / bottom - top / bottom**2 * (x**2 - bottom)
    n, m = len(x), positives.sum()
    half = stats.t.ppf(0.975, m - 1) * np.sqrt(np.sum(psi**2)) / n * np.sqrt(m / (m - 1))
    assert found["ratio"].half_width == pytest.approx(half, rel=1e-9)


def test_intervals_cover_the_truth(place):
    rng = np.random.default_rng(1)
    placed = place(_problem(_sample(rng, 300, 0.4)), chunk=10_000)
    share_b = 0.3
    p1 = 0.4 + 0.2 * np.array([0.5, stats.norm.cdf(0.4)])  # P(y = 1 | g)
    # E x^2 and E x^2 1{x > 0} per group
    second = np.array([1.0, 1.16])
    upper = np.array([0.5, 1.16 * stats.norm.cdf(0.4) + 0.4 * stats.norm.pdf(0.4)])
    weight = np.array([1 - share_b, share_b])
    given = weight @ (0.4 * second + 0.2 * upper) / (weight @ p1)
    rate = weight @ (0.6 * np.array([0.5, stats.norm.cdf(0.4)])) / (weight @ p1)
    overall = 0.4 * share_b
    truth = {
        "mean": np.array([0.0, 0.4]),
        "gap": np.array([0.0, 0.4]) - overall,
        "rate": rate,
        "ratio": given / (weight @ second),
        "var": weight @ second - overall**2,
    }
    replications = 150
    covered = {name: np.zeros(np.shape(value)) for name, value in truth.items()}
    for _ in range(replications):
        found = judge_sample(placed.on(d=_sample(rng, 250, 0.4))).estimates
        for name, value in truth.items():
            low, high = found[name].interval
            covered[name] += (low <= value) & (value <= high)
    for name, count in covered.items():
        # 95 % within four standard deviations of a binomial share
        assert np.all(np.abs(count / replications - 0.95) <= 4 * np.sqrt(0.95 * 0.05 / replications)), (
            name,
            count,
        )


@pytest.mark.parametrize(("bound", "verdict"), [(1.0, "holds"), (-1.0, "violated"), (0.02, "undecided")])
def test_verdicts_of_inequalities(place, rng, bound, verdict):
    D = cn.Data("d", x=rng.normal(size=400) - 0.0)
    w = cn.Variable((), "w")
    w.value = 1.0
    problem = cn.minimize(w**2).subject_to(mean=E(D.x * w) <= bound, flipped=E(-D.x * w) >= -bound)
    found = judge_sample(place(problem).evaluator).estimates
    assert found["mean"].verdict == found["flipped"].verdict == verdict
    assert (found["mean"].rows_needed > 400) == (verdict == "undecided")


def test_equalities_are_compatible_never_proven(place, rng):
    D = cn.Data("d", x=rng.normal(size=400))
    w = cn.Variable((), "w")
    w.value = 1.0
    problem = cn.minimize(w**2).subject_to(near=E(D.x * w) == 0, far=E(D.x * w) == 1, exact=2 * w == 2)
    found = judge_sample(place(problem).evaluator).estimates
    assert (found["near"].verdict, found["far"].verdict, found["exact"].verdict) == (
        "compatible",
        "violated",
        "holds",
    )
    assert found["exact"].smallest == 0


def test_false_alarms_are_bounded_over_all_constraints(place):
    # twenty constraints exactly at their bounds: uncorrected, 64 % of the samples raise an alarm
    rng = np.random.default_rng(2)
    w = cn.Variable((), "w")
    w.value = 1.0
    D = cn.Data("d", x=rng.normal(size=(150, 20)))
    problem = cn.minimize(w**2).subject_to(**{f"c{i}": E(D.x[i] * w) <= 0 for i in range(20)})
    placed = place(problem, chunk=1000)
    alarms = {"holm": 0, "none": 0}
    for _ in range(40):
        sample = placed.on(d=cn.Data("d", x=rng.normal(size=(150, 20))))
        for correction in alarms:
            found = judge_sample(sample, correction=correction).estimates
            alarms[correction] += any(e.verdict != "undecided" for e in found.values())
    assert alarms["holm"] <= 7
    assert alarms["none"] >= 14


def test_absolute_values_worst_cases_and_between(place, rng):
    D = cn.Data("d", x=rng.normal(size=500), g=[("a", "b")[i % 2] for i in range(500)])
    w = cn.Variable((), "w")
    w.value = 1.0
    problem = cn.minimize(w**2).subject_to(
        small=abs(E(D.x * w)) <= 0.5,
        worst=cn.max(E(D.x * w, by=D.g)) <= 0.5,
        both=cn.between(-0.5, E(D.x * w), 0.5),
        out=cn.between(0.5, E(D.x * w), 0.8),
    )
    found = judge_sample(place(problem).evaluator).estimates
    assert found["small"].interval[0] >= 0
    assert [found[k].verdict for k in ("small", "worst", "both", "out")] == [
        "holds",
        "holds",
        "holds",
        "violated",
    ]
    assert found["worst"].smallest == 250


def test_a_rate_of_zero_is_not_certain(place, rng):
    D = cn.Data("d", x=-rng.random(30) - 1)
    w = cn.Variable((), "w")
    w.value = 0.0
    tight = place(cn.minimize(w**2).subject_to(rate=P(D.x > w) <= 0.01)).evaluator
    loose = place(cn.minimize(w**2).subject_to(rate=P(D.x > w) <= 0.3)).evaluator
    assert judge_sample(tight).estimates["rate"].verdict == "undecided"
    assert judge_sample(loose).estimates["rate"].verdict == "holds"


def test_constraints_per_row_report_a_share(place):
    x = np.arange(10.0)
    D = cn.Data("d", x=x, s=[("a", "b")[i % 2] for i in range(10)])
    w = cn.Variable((), "w")
    w.value = 1.0
    problem = cn.minimize(w**2).subject_to(rows=forall(D.where(D.s == "a"), D.x * w <= 5.0))
    found = judge_sample(place(problem).evaluator).estimates["rows"]
    assert found.share == pytest.approx(0.4)  # 6 and 8 of 0, 2, 4, 6, 8
    assert found.value.tolist() == [0, 2, 4, 6, 8]
    assert found.violation.tolist() == [0, 0, 0, 1, 3]
    assert found.verdict == "violated"
    exact = stats.binomtest(2, 5).proportion_ci(0.95, method="exact")
    assert found.interval == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_thousands_of_groups_judge_the_tightest(place, rng):
    rows, groups = 6000, 2000
    D = cn.Data("d", x=rng.normal(size=rows), g=np.arange(rows) % groups)
    w = cn.Variable((), "w")
    w.value = 1.0
    problem = cn.minimize(w**2).subject_to(mean=E(D.x * w, by=D.g) <= 50.0)
    found = judge_sample(place(problem, chunk=5000).evaluator).estimates["mean"]
    known = np.isfinite(found.lower)
    assert known.sum() == 400
    assert found.verdict == "holds"
    assert [found.verdicts.count(word) for word in ("holds", "not judged")] == [400, 1600]
    assert found.value[known].min() >= found.value[~known].max()


def test_a_group_that_the_holdout_lacks_has_no_value(place, rng):
    x = rng.normal(size=60)
    D = cn.Data("d", x=x, g=[("a", "b", "c")[i % 3] for i in range(60)])
    w = cn.Variable((), "w")
    w.value = 1.0
    problem = cn.minimize(w**2).subject_to(
        mean=E(D.x * w, by=D.g) <= 5.0, rate=P(D.x > w, by=D.g) <= 0.9, one=E(D.x * w) <= 5.0
    )
    placed = place(problem)
    other = placed.on(d=cn.Data("later", x=x[:40], g=["a", "c"] * 20))
    found = judge_sample(other).estimates
    for name in ("mean", "rate"):
        assert np.isnan(found[name].value).tolist() == [False, True, False]
        assert np.isnan(found[name].upper).tolist() == [False, True, False]
        assert found[name].verdicts == ("holds", "not judged", "holds")
    assert found["one"].verdict == "holds"


def test_an_objective_or_bound_over_a_group_without_rows_does_not_exist(place, rng):
    x, g = rng.normal(size=90), np.arange(90) % 3
    D = cn.Data("d", x=x, g=g)
    later = cn.Data("later", x=x[g < 2], g=g[g < 2])
    v = cn.Variable((), "v")
    v.value = 0.25
    for objective in (E((D.x + v) ** 2, given=D.g == 2), E(D.x + v, given=D.g == 2) ** 2):
        placed = place(cn.minimize(objective).subject_to(cap=E(D.x * v) <= 3 + E(D.x, given=D.g == 2) ** 2))
        assert np.isfinite([judge_sample(placed.evaluator).objective]).all()
        other = judge_sample(placed.on(d=later))
        assert np.isnan([other.objective, other.lower, other.upper]).all()
        cap = other.estimates["cap"]
        assert np.isnan(cap.bound)
        assert np.isnan(cap.violation)
        assert not np.isnan(cap.value)
        assert cap.verdict == "not judged"


def test_a_block_with_a_level_without_rows_does_not_hold(place, rng):
    x, g = rng.normal(size=150), np.arange(150) % 3
    D = cn.Data("d", x=x, g=g)
    v = cn.Variable((), "v")
    v.value = 1.0
    s = D.x * v
    problem = cn.minimize(v**2).subject_to(
        mean=E(s, by=D.g) <= 5.0,
        ratio=E(s, by=D.g) / E(s**2, by=D.g) <= 5.0,
        worst=cn.max(E(s, by=D.g)) <= 5.0,
        broken=cn.max(E(s, by=D.g)) <= -5.0,
        square=E(s, given=D.g == 2) ** 2 <= 5.0,
        one=E(s) <= 5.0,
    )
    placed = place(problem)
    assert judge_sample(placed.evaluator).estimates["ratio"].verdict == "holds"
    found = judge_sample(placed.on(d=cn.Data("later", x=x[g < 2], g=g[g < 2]))).estimates
    assert found["ratio"].verdicts == ("holds", "holds", "not judged")
    assert np.isfinite(found["ratio"].half_width[:2]).all()
    words = {name: found[name].verdict for name in found}
    assert words == {
        **dict.fromkeys(("mean", "ratio", "worst", "square"), "not judged"),
        "broken": "violated",
        "one": "holds",
    }


def test_a_slope_that_does_not_exist_settles_nothing(place):
    D = cn.Data("d", x=np.array([[1.0, -1.0], [-1.0, 1.0]]))
    v = cn.Variable((), "v")
    v.value = 1.0
    problem = cn.minimize(v**2).subject_to(norm=cn.norm(E(D.x * v)) <= 1.0)
    assert judge_sample(place(problem).evaluator).estimates["norm"].verdict != "violated"


# ------------------------------------------------------------------------------- differences of two rates
def two_rates(rows, first, second, op="<=", bound=0.1, absolute=False):
    """P(x > 0 | g = 1) - P(x > 0 | g = 0) with so many successes of so many rows in each group."""
    x = np.concatenate(
        [np.where(np.arange(n) < k, 1.0, -1.0) for n, k in zip(rows, (first, second), strict=True)]
    )
    D = cn.Data("d", x=x, g=np.repeat([1, 0], rows))
    w = cn.Variable((), "w")
    w.value = 1.0
    left = P(w * D.x > 0, given=D.g == 1) - P(w * D.x > 0, given=D.g == 0)
    left = abs(left) if absolute else left
    relation = {"<=": left <= bound, ">=": left >= bound, "==": left == bound}[op]
    return cn.minimize(w**2).subject_to(c=relation).evaluate()["c"]


@pytest.mark.parametrize(
    ("counts", "limits"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
        ((0, 10, 0, 10), (-0.2775, 0.2775)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
    ],
)
def test_differences_of_rates_have_the_intervals_that_newcombe_printed(counts, limits):
    """Table II of Newcombe (1998), method 10."""
    first, m, second, k = counts
    found = two_rates((m, k), first, second)
    np.testing.assert_allclose(found.interval, limits, atol=5.1e-5)
    low, high = limits
    sized = two_rates((m, k), first, second, absolute=True)
    expected = (low, high) if low > 0 else (0.0, max(high, -low))
    np.testing.assert_allclose(sized.interval, expected, atol=5.1e-5)


def test_the_verdict_on_a_difference_agrees_with_its_interval():
    low, high = two_rates((70, 80), 56, 48).interval
    words = [
        two_rates((70, 80), 56, 48, op, bound).verdict
        for op, bound in (
            ("<=", high + 1e-6),
            ("<=", high - 1e-6),
            ("<=", low - 1e-6),
            (">=", low - 1e-6),
            (">=", high + 1e-6),
            ("==", low + 1e-6),
            ("==", low - 1e-6),
        )
    ]
    assert words == ["holds", "undecided", "violated", "holds", "violated", "compatible", "violated"]


def test_overlapping_rows_keep_the_delta_method(place):
    """P(A | g = 1) - P(A) counts rows twice, so that the rates are not independent."""
    rng = np.random.default_rng(0)
    D = cn.Data("d", x=rng.normal(size=300), g=np.arange(300) % 3)
    w = cn.Variable((), "w")
    w.value = 1.0
    hit, one = D.values("x") > 0, np.arange(300) % 3 == 1
    found = (
        cn.minimize(w**2)
        .subject_to(
            c=P(w * D.x > 0, given=D.g == 1) - P(w * D.x > 0) <= 0.1,
            d=P(w * D.x > 0, given=D.g >= 1) - P(w * D.x > 0, given=D.g <= 1) <= 0.1,
        )
        .evaluate()
    )
    influence = np.where(one, 3.0, 0.0) * (hit - hit[one].mean()) - (hit - hit.mean())
    half = stats.t.ppf(0.975, 99) * np.sqrt(np.mean(influence**2) / 300 * 100 / 99)
    assert found["c"].half_width == pytest.approx(half)
    assert found["d"].half_width > 0
