"""What constraints can reach by construction: refused where it leaves the bound out, and only there."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import constrain as cn
from constrain import E, P, forall
from constrain.analysis.models import output_bounds
from constrain.lowering.lower import lower
from constrain.lowering.reach import always_held, refuse_unreachable
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator

Sigmoid, Hinge, Power = cn.surrogate.Sigmoid, cn.surrogate.Hinge, cn.surrogate.Power
D = cn.Data("d", x=torch.randn(40, 3), y=torch.arange(40) % 2, cap=torch.linspace(0.1, 0.9, 40))
f = cn.Model(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), "f")
v = cn.Model(nn.Linear(3, 2), "v")
p = torch.sigmoid(f(D.x))
goal = cn.minimize(E(f(D.x) ** 2))


def code_of(relation, **options):
    try:
        refuse_unreachable(lower(goal.subject_to(c=relation)), **options)
    except cn.ModelingError as error:
        return error.code
    return None


REFUSED = {
    "the sigmoid of a probability": E(torch.sigmoid(8 * (p - 0.5))) >= 0.99,
    "a rate above one": P(p > 0.5) >= 1.2,
    "a rate below zero": P(p > 0.5) <= -0.1,
    "a rate equal to two": P(p > 0.5) == 2,
    "a rate equal to minus one": P(p > 0.5) == -1,
    "the bound on the left": -0.1 + 0 * cn.constant(1.0) >= P(p > 0.5),
    "a conditional rate": P(p > 0.5, given=p > 0.2) >= 1.2,
    "one entry of several": P(v(D.x) > 0) <= torch.tensor([0.5, -0.1]),
    "a gap below zero": abs(P(p > 0.5, by=D.y) - P(p > 0.5)) <= -0.1,
    "an interval above": cn.between(1.1, P(p > 0.5), 1.3),
    "an interval below": cn.between(-0.5, P(p > 0.5), -0.1),
    "every row": forall(D, p >= 1.5),
    "some row": forall(D, p <= D.cap - 0.2),
    "two sides that move": E(p) + 1.5 <= P(p > 0.5),
    "a squared average": E(p) ** 2 >= 1.01,
    "in other units": (P(p > 0.5) >= 1.2).scale(0.1),
    "every row, in other units": forall(D, p >= 1.5).scale(10.0),
    "a worst group": cn.max(E(torch.tanh(f(D.x)), by=D.y)) <= -1.5,
}
REACHED = {
    "the end of the range": P(p > 0.5) >= 1,
    "the other end": P(p > 0.5) <= 0,
    "inside": E(torch.sigmoid(8 * (p - 0.5))) >= 0.98,
    "unbounded": E(f(D.x)) >= 1e6,
    "an interval that overlaps": cn.between(0.9, P(p > 0.5), 1.3),
    "rows that a condition leaves out": forall(D.where(D.cap > 0.5), p <= D.cap - 0.2),
    "every entry can": P(v(D.x) > 0) <= torch.tensor([0.5, 0.0]),
    "a constant": E(D.cap) <= -1,  # says nothing about decisions: `check` reports it
    "at a cost": (P(p > 0.5) >= 1.2).relax(cost=cn.squared(1.0)),
    "rounding": E(0.1 * p + 0.2 * p) >= 0.1 + 0.2,
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_hold_is_refused(case):
    assert code_of(REFUSED[case]) == "E172"


@pytest.mark.parametrize("case", REACHED)
def test_what_can_hold_is_not(case):
    assert code_of(REACHED[case]) is None


def test_it_is_refused_by_every_door_before_anything_runs():
    problem = goal.subject_to(c=P(p > 0.5) >= 1.2)
    before = [w.clone() for w in f.module.parameters()]
    doors = [
        problem.compile,
        problem.to_cooper,
        lambda: problem.solve(progress=False),
        lambda: problem.solve("augmented", progress=False),
        lambda: problem.solve("lagrangian", epochs=1, progress=False),
        lambda: problem.solve("cooper", epochs=1, progress=False),
    ]
    for door in doors:
        with pytest.raises(cn.ModelingError, match=r"\[E172\] the constraint 'c'"):
            door()
    assert all(torch.equal(a, b) for a, b in zip(before, f.module.parameters(), strict=True))


def test_a_convex_program_is_left_to_its_solver():
    w = cn.Variable((), "w", bounds=(0.0, 1.0))
    solution = cn.minimize(w).subject_to(c=w >= 2).solve(progress=False)
    assert solution.status.value == "infeasible"


def test_the_data_and_parameters_of_the_solve_count():
    scale = cn.Parameter("scale", 0.5)
    relation = E(p * scale * D.cap) >= 0.6
    assert code_of(relation) == "E172"
    assert code_of(relation, params={"scale": 2.0}) is None
    larger = cn.Data("d", x=torch.randn(8, 3), y=torch.zeros(8), cap=torch.full((8,), 3.0))
    assert code_of(relation, data={"d": larger}) is None
    problem = goal.subject_to(c=relation)
    with pytest.raises(cn.ModelingError, match="E172"):
        problem.compile()
    problem.compile(params={"scale": 2.0})
    problem.compile(data=larger)


def test_constraints_that_always_hold_are_found():
    problem = goal.subject_to(
        idle=P(p > 0.5) <= 1, wide=cn.between(-1, E(p), 2), real=P(p > 0.5) <= 0.9, equal=P(p > 0.5) == 1,
        half=cn.between(0.1, E(p), 2), rows=forall(D, p <= 1.5), constant=E(D.cap) <= 2,
    )  # fmt: skip
    assert always_held(lower(problem)) == ["idle", "wide", "rows"]


# --------------------------------------------------------------------------------------- surrogates
OUT_OF_REACH = {
    "sigmoid up": P(p > 0.5, surrogate=Sigmoid(scale=0.2)) >= 0.95,
    "sigmoid down": P(p > 0.5, surrogate=Sigmoid(scale=0.2)) <= 0.05,
    "hinge down": P(p > 0.5, surrogate=Hinge(scale=1.0)) <= 0.1,
    "hinge up": P(p > 0.5, surrogate=Hinge(scale=1.0)) >= 0.9,
    "power, equal": P(p > 0.5, surrogate=Power(scale=4.0)) == 0.9,
    "a conjunction": P((p > 0.5) & (D.y == 1), surrogate=Sigmoid(scale=0.2)) >= 0.95,
    "a disjunction": P((p > 0.5) | (D.y == 1), surrogate=Sigmoid(scale=0.2)) <= 0.05,
    "a complement": P(~(p > 0.5), surrogate=Sigmoid(scale=0.2)) >= 0.95,
    "a gap": P(p > 0.5, given=D.y == 1, surrogate=Sigmoid(scale=0.5)) - P(p > 0.5, given=D.y == 0) >= 0.8,
}


@pytest.mark.parametrize("case", OUT_OF_REACH)
def test_a_surrogate_that_cannot_follow_is_refused_and_the_fix_works(case):
    relation = OUT_OF_REACH[case]
    with pytest.raises(cn.ModelingError, match="E173") as caught:
        refuse_unreachable(lower(goal.subject_to(c=relation)))
    sharper = eval(caught.value.fix.removeprefix("surrogate=").split(", or one")[0], {"cn": cn})
    source, scope = repr(relation), {"cn": cn, "P": P, "d": D, "f": f, "torch": torch}
    for form in (Sigmoid(scale=0.2), Sigmoid(scale=0.5), Hinge(scale=1.0), Power(scale=4.0)):
        source = source.replace(f"cn.surrogate.{form!r}", f"cn.surrogate.{sharper!r}")
    assert code_of(eval(source, scope)) is None


def test_a_surrogate_that_reaches_is_left_alone():
    assert code_of(P(p > 0.5, surrogate=Sigmoid(scale=0.2)) >= 0.9) is None
    assert code_of(P(f(D.x) > 0, surrogate=Sigmoid(scale=100.0)) >= 0.99) is None  # the margin has no bound
    assert code_of(P(p > 0.5, surrogate=Sigmoid(temperature=5.0)) >= 0.99) is None  # the width follows it
    assert code_of(P((p > 0.5) | (D.y == 1), surrogate=Sigmoid(scale=0.2)) >= 0.99) is None


# ------------------------------------------------------------------------------------- models' outputs
@pytest.mark.parametrize(
    ("last", "bounds"),
    [
        (nn.Sigmoid(), (0, 1)),
        (nn.Softmax(-1), (0, 1)),
        (nn.Tanh(), (-1, 1)),
        (nn.ReLU(), (0, np.inf)),
        (nn.LogSoftmax(-1), (-np.inf, 0)),
        (nn.Hardtanh(-2.0, 3.0), (-2, 3)),
        (nn.Linear(4, 4), (-np.inf, np.inf)),
        (nn.Dropout(), (-np.inf, np.inf)),
    ],
    ids=str,
)
def test_the_last_layer_bounds_a_model(last, bounds):
    module = nn.Sequential(nn.Linear(3, 4), nn.Sequential(last, nn.Identity()))
    assert output_bounds(module) == bounds
    found = module(100 * torch.randn(200, 3))
    assert bounds[0] <= float(found.detach().min())
    assert float(found.detach().max()) <= bounds[1]


def test_a_model_that_ends_in_a_sigmoid_has_bounded_averages():
    g = cn.Model(nn.Sequential(nn.Linear(3, 1), nn.Sigmoid(), nn.Flatten(0)), "g")
    assert code_of(E(g(D.x)) >= 1.1) == "E172"
    assert code_of(E(g(D.x)) >= 0.9) is None
    g.module.register_forward_hook(lambda module, args, output: 5 * output)
    assert code_of(E(g(D.x)) >= 1.1) is None


# ----------------------------------------------------------------------------------- ranges are ranges
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_value_is_ever_outside_of_the_range_that_refuses(data):
    """Random rates at random weights: a bound that some weights meet is not refused."""
    number = st.floats(-2, 2, allow_nan=False).map(lambda v: round(v, 2))
    a, b = data.draw(number), data.draw(number)
    form = data.draw(st.sampled_from([Sigmoid(scale=0.4), Power(scale=0.7), Hinge(scale=1.5), Sigmoid()]))
    event = (torch.tanh(f(D.x)) > a) | ~(p > b)
    e = data.draw(number) * P(event, surrogate=form) + E(torch.tanh(f(D.x)) * D.cap)
    with torch.no_grad():
        for w in f.module.parameters():
            w.copy_(
                torch.randn(w.shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
            )
    problem = goal.subject_to(c=e <= 0)
    for mode, code in (("exact", "E172"), ("primal", "E173")):
        value = value_of(problem, mode)
        assert code_of(e <= value + 1e-5) != code
        assert code_of(e >= value - 1e-5) != code or (code == "E173" and isinstance(form, Hinge))


def value_of(problem, mode):
    program = lower(problem)
    decisions = Decisions(program, torch.device("cpu"), torch.float32)
    return float(Evaluator(program, decisions, dtype=torch.float32).full(mode).residuals[0])
