"""Surrogates of rates: laws of their values, of compound events, and who sees which of the two values."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import constrain as cn
from constrain import E, P
from constrain.diagnostics.point import read_point
from constrain.language.surrogates import DEFAULT
from constrain.lowering.lower import lower
from constrain.runtime import surrogates as functions
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator

Sigmoid, Hinge, Power = cn.surrogate.Sigmoid, cn.surrogate.Hinge, cn.surrogate.Power
SYMMETRIC = [Sigmoid(), Sigmoid(temperature=1.5), Sigmoid(scale=0.3), Power(), Power(order=4.0, core=0.02)]
BOUNDS = [Hinge(), Hinge(margin=0.2), Hinge(scale=2.0)]
ALL = [*SYMMETRIC, *BOUNDS]
ROWS = 96


def shape_of(form):
    return repr(form)


# ------------------------------------------------------------------------------------ one comparison
def on_tensor(form, margin, width):
    if isinstance(form, Power):
        return functions.power(margin, width, form.order, form.core)
    return getattr(functions, form.name)(margin, width)


@pytest.mark.parametrize("form", ALL, ids=shape_of)
def test_tensors_and_numbers_agree(form):
    u = torch.linspace(-3, 3, 61, dtype=torch.float64)
    expected = [form.at(float(v)) for v in u]
    torch.testing.assert_close(on_tensor(form, 7 * u, 7.0), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("form", ALL, ids=shape_of)
def test_the_values_of_one_comparison(form):
    u = torch.linspace(-4, 4, 801, dtype=torch.float64)
    value = on_tensor(form, u, 1.0)
    step = (u > 0).double()
    assert (value.diff() >= 0).all()
    assert (value >= 0).all()
    if isinstance(form, Hinge):
        assert (value >= (u >= 0).double()).all()
        assert (value.diff().diff() >= -1e-12).all()  # convex
    else:
        assert (value <= 1).all()
        torch.testing.assert_close(value + on_tensor(form, -u, 1.0), torch.ones_like(u))
        far = u.abs() > 0.05
        torch.testing.assert_close(on_tensor(form, u, 1e-3)[far], step[far])


def test_power_of_order_one_is_the_ramp_and_of_high_order_the_step():
    u = torch.linspace(-2, 2, 401, dtype=torch.float64)
    ramp = (0.5 + u / 2).clamp(0, 1)
    torch.testing.assert_close(functions.power(u, 1.0, 1.0, 0.1), ramp)
    outside = u.abs() > 1e-3
    sharp = functions.power(u, 1.0, 1000.0, 1e-3)
    torch.testing.assert_close(sharp[outside], (u > 0).double()[outside], atol=4e-3, rtol=0)


@pytest.mark.parametrize("form", [Power(), Power(order=5.0), Power(order=1.0)], ids=shape_of)
def test_the_slope_of_power_is_the_rectified_one(form):
    """The gradient of the paper: (1/o) |u|^(1/o - 1) outside of the core, its chord inside, 0 beyond 1."""
    u = torch.tensor([-1.5, -0.7, -0.05, 0.0, 0.02, 0.3, 0.99, 1.2], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(functions.power(u, 1.0, form.order, form.core).sum(), u)
    o, chord = form.order, form.core ** (1 / form.order - 1)
    size = u.detach().abs()
    expected = torch.where(size > form.core, size ** (1 / o - 1) / o, torch.full_like(size, chord))
    torch.testing.assert_close(slope, torch.where(size > 1, torch.zeros_like(size), expected / 2))


@pytest.mark.parametrize("form", ALL, ids=shape_of)
def test_gradients_are_finite_everywhere(form):
    u = torch.tensor([-math.inf, -1e30, -1.0, -form.part, 0.0, 1e-30, 1.0, 1e30], requires_grad=True)
    (slope,) = torch.autograd.grad(on_tensor(form, u, 1.0).sum(), u)
    assert torch.isfinite(slope).all()


# ------------------------------------------------------------------------------------ compound events
class Bench:
    """Events of three margins that depend on a decision, and of two columns of data."""

    def __init__(self, seed=0, spread=1.0):
        rng = np.random.default_rng(seed)
        self.margins = rng.normal(size=(ROWS, 3)) * spread
        self.margins[:, 2] = self.margins[:, 0] + 0.3 * spread  # a nested event
        self.side = rng.integers(2, size=ROWS)
        self.D = cn.Data("d", m=self.margins, y=self.side, z=rng.normal(size=ROWS))
        self.w = cn.Variable((), "w")
        self.w.value = 0.0

    @property
    def leaves(self):
        D, w = self.D, self.w
        moving = [D.m[..., k] + w > 0 for k in range(2)] + [D.m[..., 2] >= -w]
        return [*moving, D.y == 1, D.z < 0.2]

    def values(self, event, form):
        """The surrogate of an event on every row, its exact value, and the gradient of its sum in w."""
        problem = cn.minimize(cn.sum(E(cn.indicator(event, form))) + 0 * self.w)
        program = lower(problem)
        decisions = Decisions(program, torch.device("cpu"), torch.float64)
        evaluator = Evaluator(program, decisions, dtype=torch.float64)
        (job,) = evaluator.jobs
        everything = evaluator.populations[job.data].everything()
        soft = evaluator.rows(job, everything, "primal")[0]
        exact = evaluator.rows(job, everything, "exact")[0].detach()
        slope = torch.zeros(())
        if soft.requires_grad:
            (slope,) = torch.autograd.grad(soft.sum(), decisions.tensors)
        return soft.detach(), exact, slope


bench = Bench()


def formulas(depth=3):
    leaf = st.integers(0, 4).map(lambda k: bench.leaves[k])
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            inner.map(lambda a: ~a),
            st.tuples(inner, inner).map(lambda ab: ab[0] & ab[1]),
            st.tuples(inner, inner).map(lambda ab: ab[0] | ab[1]),
        ),
        max_leaves=2 * depth,
    )


def holds(event):
    """The truth of an event by NumPy, from its own text."""
    m, y, z = bench.margins, bench.side, np.asarray(bench.D.values("z"))
    columns = {"d": type("Row", (), {"m": m, "y": y, "z": z}), "w": 0.0}
    return eval(repr(event), columns)


@settings(max_examples=60, deadline=None)
@given(event=formulas(), form=st.sampled_from(ALL))
def test_laws_of_compound_events(event, form):
    soft, exact, slope = bench.values(event, form)
    np.testing.assert_array_equal(exact.numpy() > 0, holds(event))
    assert torch.isfinite(slope).all()
    if isinstance(form, Hinge):
        assert (soft >= exact - 1e-12).all(), "an upper bound of the event, negations included"
        return
    assert (soft >= 0).all()
    assert (soft <= 1).all()
    against = bench.values(~event, form)[0]
    torch.testing.assert_close(soft + against, torch.ones_like(soft))


@settings(max_examples=30, deadline=None)
@given(event=formulas(2), other=formulas(2), form=st.sampled_from(ALL))
def test_logic_of_compound_events(event, other, form):
    def value(e):
        return bench.values(e, form)[0]

    torch.testing.assert_close(value(event & event), value(event))
    torch.testing.assert_close(value(event | event), value(event))
    torch.testing.assert_close(value(~~event), value(event))
    torch.testing.assert_close(value(~(event & other)), value(~event | ~other))
    torch.testing.assert_close(value(~(event | other)), value(~event & ~other))
    if isinstance(form, Hinge):
        return  # a hinge exceeds 1, the value of an event of the data
    both, some = value(event & other), value(event | other)
    assert (both <= torch.minimum(value(event), value(other)) + 1e-12).all()
    assert (some >= torch.maximum(value(event), value(other)) - 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(event=formulas(), kind=st.sampled_from([Sigmoid, Hinge, Power]))
def test_in_the_limit_of_a_small_width_the_surrogate_is_the_event(event, kind):
    """Of the hinge on the side where it is 0; its other side grows without bound."""
    soft, exact, _ = bench.values(event, kind(scale=1e-9))
    if kind is Hinge:
        soft = soft.clamp(max=1)
    torch.testing.assert_close(soft, exact)


@pytest.mark.parametrize("form", ALL, ids=shape_of)
def test_an_event_of_the_data_is_a_switch(form):
    a, data = bench.leaves[0], bench.leaves[3]
    alone = bench.values(a, form)[0]
    on = torch.as_tensor(bench.side == 1)
    torch.testing.assert_close(bench.values(a & data, form)[0], torch.where(on, alone, 0.0))
    torch.testing.assert_close(bench.values(a | data, form)[0], torch.where(on, 1.0, alone))
    torch.testing.assert_close(bench.values(a & ~data, form)[0], torch.where(on, 0.0, alone))


@pytest.mark.parametrize("form", [Sigmoid(), Power(), Hinge()], ids=shape_of)
def test_a_change_of_units_changes_nothing(form):
    wide = Bench(spread=1000.0)
    for event_of in (lambda b: b.leaves[0], lambda b: (b.leaves[0] | b.leaves[1]) & b.leaves[3]):
        narrow = bench.values(event_of(bench), form)[0]
        torch.testing.assert_close(narrow, wide.values(event_of(wide), form)[0])


@pytest.mark.parametrize("form", [Sigmoid(scale=0.5), Power(scale=0.5), Hinge(scale=0.5)], ids=shape_of)
def test_a_fixed_width_is_in_the_units_of_the_margin(form):
    soft = bench.values(bench.leaves[0], form)[0]
    expected = on_tensor(form, torch.as_tensor(bench.margins[:, 0]), 0.5)
    torch.testing.assert_close(soft, expected)


def test_an_absolute_value_is_a_conjunction():
    """|e| <= t and (e <= t) & (e >= -t), with the same width."""
    form = Sigmoid(scale=0.2)
    e = bench.D.m[..., 0] + bench.w
    torch.testing.assert_close(
        bench.values(abs(e) <= 0.7, form)[0], bench.values((e <= 0.7) & (e >= -0.7), form)[0]
    )


def test_an_event_with_several_entries_per_row():
    soft, exact, _ = bench.values(bench.D.m + bench.w > 0, Sigmoid(scale=0.3))
    assert soft.shape == exact.shape == (ROWS, 3)
    torch.testing.assert_close(soft, torch.sigmoid(torch.as_tensor(bench.margins) / 0.3))


# ------------------------------------------------------------------------- against the true gradient
def normal(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def big(correlation, rows=40_000):
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(rows, 1)), rng.normal(size=(rows, 2))
    margins = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    return cn.Data("normal", m=margins)


def slope_of_rate(D, event_of, form):
    w = cn.Variable((), "w")
    w.value = 0.0
    program = lower(cn.minimize(P(event_of(D, w), surrogate=form) + 0 * w))
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    evaluator = Evaluator(program, decisions, dtype=torch.float64)
    ((value, (slope,)),) = evaluator.pull([lambda outer: outer.objective])
    return value, float(slope)


@pytest.mark.parametrize("shift", [0.0, 0.5, -1.0])
@pytest.mark.parametrize(
    ("form", "most"), [(Sigmoid(), 0.08), (Sigmoid(temperature=0.25), 0.12), (Power(), 0.1)]
)
def test_the_gradient_of_a_rate_is_the_density_at_the_threshold(form, most, shift):
    _, slope = slope_of_rate(big(0.0), lambda D, w: D.m[..., 0] + w > shift, form)
    assert slope == pytest.approx(normal(shift), rel=most)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
def test_the_gradient_of_a_compound_rate_is_the_true_one(correlation):
    """d P(a > -w, b > -w) / dw at 0 is 2 phi(0) Phi(0) = phi(0), whatever the correlation."""
    value, slope = slope_of_rate(
        big(correlation), lambda D, w: (D.m[..., 0] + w > 0) & (D.m[..., 1] + w > 0), DEFAULT
    )
    exact = 0.25 + math.asin(correlation) / (2 * math.pi)
    assert slope == pytest.approx(normal(0), rel=0.12)
    assert value == pytest.approx(exact, abs=0.03)


# -------------------------------------------------------------------------- bounds from the safe side
def residuals(problem):
    program = lower(problem)
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    evaluator = Evaluator(program, decisions, dtype=torch.float64)
    return [
        [float(r.max()) for r in (o.objective, *(x for x in o.residuals if x is not None))]
        for o in (evaluator.full("primal"), evaluator.full("exact"))
    ]


SAFE = {
    "at most": lambda D, rate: rate(0) <= 0.3,
    "at least": lambda D, rate: rate(0) >= 0.3,
    "of a complement": lambda D, rate: 1 - rate(0) <= 0.3,
    "a gap": lambda D, rate: abs(rate(0) - rate(1)) <= 0.05,
    "times a negative number": lambda D, rate: -2.5 * rate(0) <= 0.3,
    "divided by a negative number": lambda D, rate: rate(0) / -2.0 >= 0.3,
    "levels": lambda D, rate: cn.min(rate(0, by=D.y)) >= 0.5,
    "increasing functions": lambda D, rate: torch.exp(rate(0)) - torch.tanh(rate(1)) <= 0.1,
    "a condition": lambda D, rate: rate(0, given=D.y == 1) - rate(1, given=D.y == 0) >= 0.1,
    "a square": lambda D, rate: (rate(0) + 1) ** 2 <= 1.1,
    "between": lambda D, rate: cn.between(0.2, rate(0), 0.4),
}


@pytest.mark.parametrize("case", SAFE)
@pytest.mark.parametrize("form", BOUNDS, ids=shape_of)
def test_a_hinge_bounds_every_residual_from_above(case, form):
    D, events = bench.D, [~(bench.leaves[0] & bench.leaves[3]), bench.leaves[1] | ~bench.leaves[2]]

    def rate(k, **conditions):
        return P(events[k], surrogate=form, **conditions)

    problem = cn.maximize(rate(0) - 2 * rate(1)).subject_to(c=SAFE[case](D, rate))
    if case == "a square":
        problem = cn.minimize(rate(0)).subject_to(c=SAFE[case](D, rate))
    primal, exact = residuals(problem)
    for soft, hard in zip(primal, exact, strict=True):
        assert soft >= hard - 1e-12
        if case != "a square":
            assert soft != pytest.approx(hard)


def test_a_lower_bound_stays_out_of_functions_that_are_not_defined_below_zero():
    rate = P(bench.leaves[0], surrogate=Hinge(margin=4.0))
    problem = cn.minimize(rate - torch.log(rate)).subject_to(c=torch.sqrt(rate) >= 0.3, d=1 / rate <= 4)
    primal, exact = residuals(problem)
    assert np.isfinite(primal).all()
    assert np.isfinite(exact).all()


def test_a_hinge_in_the_objective_with_weights_per_row():
    D, w = bench.D, bench.w
    cost = torch.where(D.z > 0, D.z, -2 * D.z)
    hit = cn.indicator(bench.leaves[0], Hinge())
    primal, exact = residuals(cn.minimize(E(cost * hit) - E(hit / (1 + cost)) + 0 * w))
    assert primal[0] > exact[0]


def test_orientation_is_said_and_symmetric_surrogates_are_left_alone():
    rate = {k: P(bench.leaves[0], surrogate=k) for k in ("sigmoid", "hinge")}
    hinged = lower(cn.minimize(rate["hinge"]).subject_to(c=rate["hinge"] >= 0.2))
    plain = lower(cn.minimize(rate["sigmoid"]).subject_to(c=rate["sigmoid"] >= 0.2))
    assert [s.target for s in hinged.trace if s.rule == "orient"] == ["c"]
    assert not [s for s in plain.trace if s.rule == "orient"]
    assert len(plain.moments) == 1


# ------------------------------------------------------------------------------- who sees which value
def far_apart(form):
    """A rate of 0.5 whose wide surrogate is about 0.35 (sigmoid, power) or 0.85 (hinge)."""
    rng = np.random.default_rng(0)
    rows = 200
    m = np.where(np.arange(rows) % 2 == 0, 0.01, -3.0) + 1e-3 * rng.normal(size=rows)
    D = cn.Data("apart", m=m)
    w = cn.Variable((), "w")
    w.value = 0.0
    return D, w, P(D.m + w > 0, surrogate=form)


@pytest.mark.parametrize(
    ("form", "sense"), [(Sigmoid(scale=2.0), 1), (Power(scale=3.2), 1), (Hinge(scale=10.0), -1)], ids=str
)
@pytest.mark.semantics("S5")
def test_multipliers_status_and_reports_see_the_exact_rate(form, sense):
    D, w, rate = far_apart(form)
    bound = 0.4 if sense > 0 else 0.7
    problem = cn.minimize(w**2).subject_to(c=rate <= bound)
    (_, soft), (_, exact) = residuals(problem)
    assert exact * soft < 0, "the case must tell the two apart"
    lagrangian = problem.compile(gain=0.0)
    lagrangian(D.rows(torch.arange(200))).backward()
    lagrangian.ascend()
    moved = float(lagrangian.multipliers()["c"])
    assert (moved > 0) == (exact > 0)
    record = problem.kkt(multipliers={"c": 0.0})
    assert record.feasibility == pytest.approx(max(exact, 0.0), abs=1e-9)
    solution = problem.solve("lagrangian", epochs=1, batch=200, lr=1e-12, seed=0, progress=False)
    assert float(solution["c"].value) == 0.5
    assert float(solution["c"].violation) == pytest.approx(max(exact, 0.0))
    assert (solution.status.value == "feasible") == (exact <= 0)


def test_an_objective_that_is_a_rate_is_reported_exactly_and_residuals_are():
    _, w, rate = far_apart(Sigmoid(scale=2.0))
    problem = cn.minimize(rate + w**2).subject_to(c=rate <= 0.45, tied=rate - 2 * rate >= -0.6)
    primal, exact = residuals(problem)
    assert primal[0] < 0.45 < exact[0] == 0.5
    setup = problem.compile().evaluator
    point = read_point(setup)
    assert point.objective == exact[0]
    assert [float(r) for r in point.residuals] == pytest.approx(exact[1:])
    assert [float(r) for r in point.surrogates] == pytest.approx(primal[1:])
    solution = problem.solve("lagrangian", epochs=1, batch=200, lr=1e-12, seed=0, progress=False)
    assert solution.objective == pytest.approx(0.5)
    assert solution.history[-1]["objective"] == pytest.approx(0.5)
    assert solution.history[-1]["violation"] == pytest.approx(0.05)
    assert "surrogate-gap" in {warning.name for warning in solution.kkt().warnings}


def test_the_shifted_surrogate_of_the_augmented_lagrangian_meets_the_exact_rate():
    D, w, rate = far_apart(Sigmoid(scale=2.0))
    problem = cn.minimize((w - 1.0) ** 2).subject_to(c=rate <= 0.4)
    solution = problem.solve("augmented", progress=False)
    assert float(solution["c"].value) <= 0.4
    assert float(solution["c"].value) == float(np.mean(np.asarray(D.values("m")) + float(w.value) > 0))


def test_cooper_gets_both_values():
    pytest.importorskip("cooper")
    _, _, rate = far_apart(Sigmoid(scale=2.0))
    cmp = cn.minimize(rate**2).subject_to(c=rate <= 0.4).to_cooper()
    found = cmp.compute_cmp_state({"apart": torch.arange(200)})
    (state,) = found.observed_constraints.values()
    assert float(state.strict_violation) == pytest.approx(0.1)
    assert float(state.violation.detach()) < 0


@pytest.mark.parametrize("form", [*SYMMETRIC, Hinge()], ids=shape_of)
def test_a_rate_given_a_decision_is_exact_for_reports(form):
    event, condition = bench.leaves[0], bench.leaves[1]
    if isinstance(form, Hinge):
        with pytest.raises(cn.ModelingError, match="E175"):
            lower(cn.minimize(P(event, given=condition, surrogate=form)))
        return
    primal, exact = residuals(cn.minimize(P(event, given=condition, surrogate=form) + 0 * bench.w))
    a, b = bench.margins[:, 0] > 0, bench.margins[:, 1] > 0
    assert exact[0] == pytest.approx((a & b).sum() / b.sum())
    assert 0 < primal[0] < 1
    # the surrogate of the precision uses the form that was asked for, for its condition too
    widths = {s.formula for s in lower(cn.minimize(P(event, given=condition, surrogate=form))).trace}
    assert any(form.described in formula for formula in widths)


# ------------------------------------------------------------------------------------------- spreads
def test_the_spread_is_the_robust_standard_deviation():
    values = torch.as_tensor(np.random.default_rng(0).normal(2.0, 3.0, size=20_000))
    assert float(functions.robust_spread(values)) == pytest.approx(3.0, rel=0.03)
    values[:500] = 1e6  # outliers do not matter
    assert float(functions.robust_spread(values[:20_000].clamp(max=50.0))) == pytest.approx(3.0, rel=0.1)
    assert float(functions.robust_spread(torch.full((10,), 5.0))) == pytest.approx(5e-3, rel=1e-3)


def test_a_spread_never_falls_below_a_quarter_of_the_largest():
    spreads, widest = torch.ones(2), torch.zeros(2)
    margin = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    own = (spreads[:1], widest[:1])
    functions.update_spreads(*own, functions.measured(margin)[None])
    first = float(spreads[0])
    functions.update_spreads(*own, functions.measured(margin * 1e-3)[None])
    assert float(spreads[0]) == pytest.approx(first / 4)
    assert float(spreads[1]) == 1.0
    functions.update_spreads(*own, functions.measured(margin * 10)[None])
    assert float(spreads[0]) == pytest.approx(10 * first)


def test_margins_far_on_one_side_keep_a_gradient():
    """All rows raise the alarm, a hundred deviations from the threshold: the surrogate reaches them."""
    far = Bench()
    D = cn.Data("far", m=100.0 + far.margins[:, 0])
    w = cn.Variable((), "w")
    w.value = 0.0
    program = lower(cn.minimize(P(D.m + w > 0) + 0 * w))
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    evaluator = Evaluator(program, decisions, dtype=torch.float64)
    ((value, (slope,)),) = evaluator.pull([lambda outer: outer.objective])
    assert value == pytest.approx(1 / (1 + math.exp(-1 / (4 * DEFAULT.temperature))), abs=0.02)
    assert float(slope) > 1e-4


@pytest.mark.parametrize("quantile", [0.5, 0.84, 0.97])
def test_a_threshold_inside_of_the_margins_has_their_own_spread(quantile):
    margin = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    spreads, widest = torch.ones(1), torch.zeros(1)
    functions.update_spreads(
        spreads, widest, functions.measured(margin - torch.quantile(margin, quantile))[None]
    )
    assert float(spreads[0]) == pytest.approx(1.0, rel=0.03)


def test_the_nearest_rows():
    margin = torch.cat([torch.full((98,), -7.0), torch.tensor([0.5, 3.0])])
    assert float(functions.nearest(margin)) == 3.0
    assert float(functions.nearest(margin, 0.01)) == 0.5
    assert float(functions.nearest(torch.tensor([4.0]))) == 4.0


# ------------------------------------------------------------------------------------------- objects
def test_surrogates_are_values():
    assert Sigmoid() == Sigmoid(temperature=0.1)
    assert hash(Hinge(scale=2.0)) == hash(Hinge(scale=2.0))
    assert len({Sigmoid(), Sigmoid(temperature=0.5), Hinge(), Power(), Power(order=3.0)}) == 5
    event = bench.leaves[0]
    assert P(event, surrogate="hinge").node == P(event, surrogate=Hinge()).node
    assert P(event, surrogate="hinge").node != P(event).node
    with pytest.raises(AttributeError):
        Sigmoid().scale = 1.0


@pytest.mark.parametrize("form", [*ALL, Power(order=3, width=0.2)], ids=shape_of)
def test_printing_evaluates_back(form):
    assert eval(f"cn.surrogate.{form!r}") == form
    for e in (P(bench.leaves[0], surrogate=form), E(cn.indicator(bench.leaves[0], form))):
        scope = {"cn": cn, "P": P, "E": E, "d": bench.D, "w": bench.w}
        assert eval(repr(e), scope).node == e.node


def test_what_explain_says():
    step = next(s for s in lower(cn.minimize(P(bench.leaves[0]))).trace if s.rule == "surrogate")
    assert step.formula == "gradient of 1[A] by sigmoid(margin / (0.1 spread)); values stay exact"
    assert not step.exact
