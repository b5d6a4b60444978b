"""Multipliers in loops of one's own, where batches have few rows of a group, or none."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E


def grouped(rows=6000, groups=300, sizes="equal", unit=1.0, level=0.6):
    """Least squares with the mean score of each group bounded; a few of the bounds are active."""
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(size=(rows, 4)), np.ones(rows)]
    y = x @ rng.normal(size=5) * 0.5 + 0.5 + 0.5 * rng.normal(size=rows)
    share = np.ones(groups) if sizes == "equal" else 1.0 / np.arange(1, groups + 1)
    g = np.r_[np.arange(groups), rng.choice(groups, size=rows - groups, p=share / share.sum())]
    D, w = cn.Data("rows", x=torch.tensor(x), y=torch.tensor(y), g=g), cn.Variable(5, "w")
    w.value = 0.3 * rng.normal(size=5)
    problem = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(rate=unit * E(D.x @ w, by=D.g) <= unit * level)
    means = np.stack([np.bincount(g, c) for c in x.T], 1) / np.bincount(g)[:, None]
    return problem, D, means


def train(problem, D, batch, steps, graph="off", weight=None):
    """A Lagrangian after some steps of Adam on random batches, and the weights."""
    lagrangian = problem.compile(seed=0)
    (w,) = lagrangian.evaluator.decisions.tensors
    step = lagrangian.training_step(torch.optim.Adam([w], lr=0.01), graph)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        step(D.rows(torch.randint(len(D), (batch,), generator=generator), weight=weight))
    return lagrangian, w.detach().clone()


@pytest.mark.parametrize("sizes", ["equal", "zipf"])
def test_short_loops_come_to_the_optimum(sizes):
    """f + sum of the exact multipliers times violations is at least the optimum, and there equal to it."""
    problem, D, means = grouped(sizes=sizes)
    lagrangian, w = train(problem, D, batch=64, steps=600)
    x, y = D.values("x"), D.values("y")
    exact = problem.solve("cvxpy", progress=False)
    prices = np.atleast_1d(exact["rate"].multiplier)
    violation = np.maximum(means @ w.numpy() - 0.6, 0)
    merit = float((x @ w - y).square().mean()) + float(prices @ violation)
    idle = float(y.square().mean())
    assert exact.objective <= merit < exact.objective + 0.1 * (idle - exact.objective)
    # running averages stay where the averages are: a visit does not move them beyond the row
    score = x @ w
    own = lagrangian.estimator.exact[1:]
    assert float(score.min()) - 1 < float(own.min()) <= float(own.max()) < float(score.max()) + 1


def test_units_of_a_constraint_change_nothing():
    (one, w), (many, v) = (
        train(*grouped(unit=unit, level=0.2)[:2], batch=64, steps=150) for unit in (1.0, 1000.0)
    )
    torch.testing.assert_close(v, w, atol=0, rtol=1e-6)
    torch.testing.assert_close(1000 * many.values, one.values, atol=1e-9, rtol=1e-5)
    assert float(one.values.max()) > 1e-3
    torch.testing.assert_close(many.running, 1000 * one.running, atol=1e-9, rtol=1e-6)


def test_steps_know_how_many_take_part_and_how_often_each_is_seen():
    """All together move as fast as their mean, few of them up to their own pace; paces wait for visits."""
    problem, D, _ = grouped()
    lagrangian = problem.compile(seed=0)
    rare = lagrangian.rare_of(lagrangian.batches(D.rows(torch.arange(64))))
    steps, limits = lagrangian.scales, lagrangian.limits
    one = torch.zeros_like(steps)
    one[0] = 1.0
    all_of_them = rare.joined(steps, torch.ones_like(steps), lagrangian.most, limits)
    torch.testing.assert_close(all_of_them, steps / 4)
    alone = rare.joined(steps, one, lagrangian.most, limits)
    assert float(alone[0]) == pytest.approx(min(float(steps[0] * lagrangian.most[0]), float(limits[0])))
    visits = 64 * 20 / 6000
    paces = rare.paced(torch.tensor([0.5, 1.0, 100.0]).repeat(100).to(steps), 0.001)
    torch.testing.assert_close(paces[:3], torch.tensor([0.5, 1.0, visits / 8 / 0.001]).to(steps))
    torch.testing.assert_close(rare.paced(torch.full_like(steps, 3.0), 0.1), torch.ones_like(steps))


def test_recorded_steps_are_those_in_python():
    (one, w), (same, v) = (train(*grouped(level=0.2)[:2], 64, 150, graph) for graph in ("off", "recorded"))
    torch.testing.assert_close(v, w, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(same.values, one.values, atol=1e-12, rtol=1e-9)
    assert 0 < int((one.values > 0).sum()) < 200


def test_weights_of_one_change_nothing():
    """With the weight of frequent groups in running averages, those of rare ones grew without bound."""
    (one, w), (same, v) = (
        train(*grouped(sizes="zipf")[:2], 64, 100, weight=weight) for weight in (None, torch.ones(64))
    )
    torch.testing.assert_close(v, w, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(same.running, one.running, atol=1e-12, rtol=1e-9)
