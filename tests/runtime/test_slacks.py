"""Slacks of relaxed averages: the proximal step of multipliers, and the least slack of an iterate."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import constrain as cn
from constrain import E
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator
from constrain.runtime.lagrangian import Lagrangian
from constrain.runtime.slacks import Slacks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3))
GROUP = ["a", "b", "c"] * 10


def relations(D, w):
    score = E(D.x @ w, by=D.group)
    return {
        "one": E(D.x @ w) >= 0.2,
        "levels": score <= -0.1,
        "sides": abs(score) <= 0.05,
        "cases": cn.max(score) <= -0.1,
        "equal": score == 0.3,
    }


def evaluator_of(cost, name):
    D, w = cn.Data("d", x=X, group=GROUP), cn.Variable(3, "w")
    w.value = np.array([0.3, -0.4, 0.5])
    program = lower(cn.minimize(cn.sum_squares(w)).subject_to(c=relations(D, w)[name].relax(cost=cost)))
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    return Evaluator(program, decisions, dtype=torch.float64)


COSTS = [cn.squared(2.0), cn.linear(0.4), cn.linear(0.3) + cn.squared(5.0)]


@pytest.mark.parametrize("cost", COSTS, ids=repr)
@pytest.mark.parametrize("name", relations(cn.Data("d", x=X, group=GROUP), cn.Variable(3, "w")))
def test_the_step_is_the_proximal_one(name, cost):
    """It minimizes h(z) + sum max(0, t - s z)^2 / (2 s) over the slack, which another solver does here."""
    evaluator = evaluator_of(cost, name)
    lagrangian = Lagrangian(evaluator)
    turn = lagrangian._turn
    weights = dict.fromkeys(("linear", "squared"), 0.0) | {k: w.value for k, w in cost.terms}
    size = lagrangian.values.numel()
    for _ in range(4):
        now = torch.as_tensor(RNG.normal(size=size) if name == "equal" else RNG.random(size))
        c = torch.as_tensor(RNG.normal(size=size))
        steps = torch.as_tensor(RNG.uniform(0.05, 3.0, size=size))
        found = turn(torch.maximum(now + steps * c, lagrangian.low), steps).numpy()

        sizes = np.abs(found) if name == "equal" else found
        moved, step, owner = (now + steps * c).numpy(), steps.numpy(), turn.owner.numpy()
        reached = np.abs(moved) if name == "equal" else np.maximum(moved, 0)

        def merit(z, mine, reached=reached, step=step):
            rest = np.maximum(reached[mine] - step[mine] * z[0], 0)
            return (
                weights["linear"] * z[0]
                + weights["squared"] / 2 * z[0] ** 2
                + np.sum(rest**2 / (2 * step[mine]))
            )

        best = [
            minimize(merit, [0.0], args=(owner == g,), bounds=[(0, None)], tol=1e-14).x[0]
            for g in range(owner.max() + 1)
        ]
        expected = np.maximum(reached - step * np.asarray(best)[owner], 0)
        assert sizes == pytest.approx(expected, abs=1e-4)


def test_nothing_is_relaxed_nothing_turns():
    w = cn.Variable(3, "w")
    D = cn.Data("d", x=X)
    program = lower(cn.minimize(cn.sum_squares(w)).subject_to(c=E(D.x @ w) >= 1))
    evaluator = Evaluator(
        program, Decisions(program, torch.device("cpu"), torch.float64), dtype=torch.float64
    )
    assert Lagrangian(evaluator)._turn is None
    assert Slacks(evaluator).tensors == []


@pytest.mark.parametrize("start", [0.0, 0.7])
@pytest.mark.parametrize("name", ["one", "levels", "sides", "cases", "equal"])
def test_iterates_are_judged_with_the_least_slack(name, start):
    evaluator = evaluator_of(cn.squared(1.0), name)
    slacks = Slacks(evaluator)
    with torch.no_grad():
        for t in slacks.tensors:
            t.fill_(start)
    w = evaluator.decisions.variables[next(s for s in evaluator.decisions.variables if s.name == "w")]
    score = X @ w.detach().numpy()
    by_group = np.array([score[np.asarray(GROUP) == g].mean() for g in "abc"])
    need = {
        "one": 0.2 - score.mean(), "levels": by_group + 0.1, "sides": np.abs(by_group) - 0.05,
        "cases": by_group.max() + 0.1, "equal": np.abs(by_group - 0.3),
    }[name]  # fmt: skip
    outer = evaluator.full("exact")
    before = [t.detach().clone() for t in slacks.tensors]
    with slacks.settled(outer.residuals):
        total = sum(t.detach().numpy() for t in slacks.tensors)
        assert total == pytest.approx(np.maximum(need, 0), abs=1e-12)
        worst = [
            (r.abs() if part.kind == "==" else r).max()
            for part, r in zip(evaluator.program.parts, evaluator.full("exact").residuals, strict=True)
        ]
        assert float(max(worst)) <= 1e-12
    assert all(torch.equal(a, b) for a, b in zip(before, slacks.tensors, strict=True))
    slacks.clear()
    assert all(not t.any() for t in slacks.tensors)
    assert [t for t in slacks.others(evaluator.decisions.tensors)] == [w]


def test_weights_that_change_are_followed():
    price = cn.Parameter("price", 2.0)
    evaluator = evaluator_of(cn.squared(price), "one")
    turn = Lagrangian(evaluator)._turn
    moved, steps = torch.tensor([1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    assert float(turn(moved, steps)) == pytest.approx(2.0 / 3.0)
    evaluator.set_parameters({"price": 4.0})
    assert float(turn(moved, steps)) == pytest.approx(4.0 / 5.0)
