"""Events that hold for every row, or none, whatever the decisions are; and events without a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, P
from constrain.lowering.lower import lower
from constrain.lowering.reach import always_held

D = cn.Data("D", x=torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(20, 2), cap=torch.arange(20) / 20)


def model(name, *last):
    return cn.Model(nn.Sequential(nn.Linear(2, 1), *last, nn.Flatten(0)).double(), name)(D.x)


score = model("f")
p = torch.sigmoid(score)
ALWAYS = {
    "probability": p > 0,
    "the other end": p < 1,
    "a layer": model("h", nn.Sigmoid()) > 0,
    "beyond": p <= 1.5,
    "at the end": torch.relu(score) >= 0,
    "exp": torch.exp(score) > 0,
    "data": p - D.cap > -1.5,
    "or": (p > 0) | (score > 0),
    "not": ~(p > 1),
    "and": (p > 0) & (p < 2),
}
OPEN = {
    "threshold": p > 0.5,
    "relu": torch.relu(score) > 0,
    "score": score > 0,
    "data": p > D.cap,
    "bin": (p > 0) & (p <= 0.25),
    "data alone": (D.cap >= 0) & (score > 0),
    "norm": abs(score) > 0,
    "equal": torch.relu(score) - 1 >= -0.5,
}


@pytest.mark.parametrize("case", ALWAYS)
def test_events_that_always_hold(case):
    goal = cn.minimize(E(score**2))
    event = ALWAYS[case]
    assert always_held(lower(goal.subject_to(c=P(event) >= 0.5, d=P(~event) <= 0.1))) == ["c", "d"]
    for relation, word in ((P(event) <= 0.5, "holds"), (P(~event) >= 0.1, "fails")):
        with pytest.raises(cn.ModelingError, match=rf"E172.*cannot hold: .* {word} for every row"):
            goal.subject_to(c=relation).compile()


@pytest.mark.parametrize("case", OPEN)
def test_events_that_depend_on_the_decisions(case):
    problem = cn.minimize(E(score**2)).subject_to(c=P(OPEN[case]) <= 0.5, d=P(OPEN[case]) >= 0.5)
    problem.compile()
    assert always_held(lower(problem)) == []


def test_the_report_names_constraints_that_ask_for_nothing():
    problem = cn.minimize(E((score - D.cap) ** 2)).subject_to(percent=P(score > 0) <= 80, real=E(score) <= 9)
    solution = problem.solve(epochs=1, progress=False)
    idle = [w for w in solution.warnings if w.code == "W201"]
    assert [w.message.split(" holds")[0] for w in idle] == ["percent"]


STEPS = {
    "round": torch.round(p) > 0.5,
    "sign": torch.sign(score) > 0,
    "a class": cn.Model(nn.Linear(2, 3).double(), "g")(D.x).argmax(-1) >= 1,
    "further on": 2 * torch.floor(score) + D.cap > 1,
}


@pytest.mark.parametrize("case", STEPS)
def test_events_that_change_in_steps_are_refused(case):
    problem = cn.minimize(E(score**2)).subject_to(c=P(STEPS[case]) >= 0.5)
    with pytest.raises(cn.ModelingError, match=r"E133.*changes in steps"):
        problem.compile()


def test_a_step_beside_a_slope_is_taken():
    lagrangian = cn.minimize(E(score**2)).subject_to(c=P(torch.round(p) + p > 1) >= 0.5).compile()
    assert len(lagrangian.values) == 1
