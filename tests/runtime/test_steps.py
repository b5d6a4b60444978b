"""Steps of multipliers where there are many entries and few rows of each."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, forall
from constrain.runtime.lagrangian import MOST_PER_VISIT, _capped


def crowded(rows=6000, groups=300):
    """Mean score of each small group at most 0.6: a few of the bounds are active."""
    rng = np.random.default_rng(0)
    x, g = np.c_[rng.normal(size=(rows, 4)), np.ones(rows)], np.arange(rows) % groups
    y = x @ rng.normal(size=5) * 0.5 + 0.5 + 0.5 * rng.normal(size=rows)
    D, w = cn.Data("rows", x=torch.tensor(x), y=torch.tensor(y), g=g), cn.Variable(5, "w")
    return cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(rate=E(D.x @ w, by=D.g) <= 0.6)


def test_noise_of_many_small_groups_makes_no_multipliers():
    """Short runs end feasible between the optimum and the point where nothing is learned (w = 0)."""
    problem = crowded()
    exact = problem.solve("cvxpy", progress=False)
    (population,) = problem.compile().evaluator.populations.values()
    idle = float(population.columns["y"].square().mean())
    for epochs in (2, 6):
        for variable in problem.variables:
            variable.value = None
        found = problem.solve(
            "lagrangian", batch=64, epochs=epochs, lr=0.03, warmup=0, seed=0, progress=False
        )
        assert found.status == "feasible"
        assert exact.objective < found.objective < exact.objective + 0.25 * (idle - exact.objective)


def test_steps_of_rare_levels_are_in_proportion_to_their_shares():
    """Levels of 2 and of 200 rows among 20600: of most of the former the measured rows have none."""
    rng = np.random.default_rng(1)
    g = np.concatenate([np.repeat(np.arange(300), 2), 300 + np.repeat(np.arange(100), 200)])
    x = rng.normal(size=len(g))
    D, w = cn.Data("rows", x=torch.tensor(x), g=g), cn.Variable((), "w")
    problem = cn.minimize(E((w * D.x - 1.0) ** 2)).subject_to(rate=E((w + 1.0) * D.x, by=D.g) <= 1.0)
    scales = problem.compile(seed=0).scales
    assert 50 < float(scales[300:].median() / scales[:300].median()) < 200


def test_a_visit_of_a_row_moves_its_multiplier_by_one_unit_at_most():
    for scale, rate in ((4.0, 0.1), (4000.0, 0.03), (4000.0, 0.0)):
        capped = _capped(scale, rate)
        assert capped * rate == pytest.approx(min(scale * rate, MOST_PER_VISIT))
        same = _capped(scale, torch.tensor(rate, dtype=torch.float64))
        assert float(same) == pytest.approx(float(capped))
    x = torch.linspace(-1.0, 1.0, 4000, dtype=torch.float64)
    D, w = cn.Data("rows", x=x), cn.Variable((), "w")
    lagrangian = cn.minimize(cn.square(w)).subject_to(each=forall(D, w + D.x >= 2.0)).compile(seed=0)
    lagrangian(D.rows([0, 1, 2, 3])).backward()
    lagrangian.ascend()
    (part,) = lagrangian.parts
    moved = lagrangian.table(part)[:4] / (lagrangian.step(part) * lagrangian.row_spreads[0])
    assert float(moved.max()) <= MOST_PER_VISIT * float(3.0 / lagrangian.row_spreads[0]) * (1 + 1e-9)
    assert float(moved.min()) > 0
