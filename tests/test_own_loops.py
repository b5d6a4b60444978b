"""Loops of one's own: variables are decisions there too, and what goes wrong is named, not passed over."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E

torch.manual_seed(0)
X = torch.randn(120, 3, dtype=torch.float64) + 0.5
Y = X @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64) + 0.1 * torch.randn(120, dtype=torch.float64)
D = cn.Data("d", x=X, y=Y, g=["a", "b", "c"] * 40)


def fit(bounds=None):
    """A linear model with an intercept of its own, a variable; and the module."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False), torch.nn.Flatten(0)).double()
    shift = cn.Variable((), "shift", bounds=bounds)
    score = cn.Model(module, "f")(D.x) + shift
    return cn.minimize(E((score - D.y) ** 2)).subject_to(level=E(score) >= 0.5), module, shift


def descend(lagrangian, optimizer, recorded):
    if recorded:
        step = lagrangian.training_step(optimizer)
        for _ in range(300):
            step(D.rows(range(120)))
    else:
        for _ in range(300):
            optimizer.zero_grad()
            lagrangian(D.rows(range(120))).backward()
            optimizer.step()
            lagrangian.project()
            lagrangian.ascend()
    lagrangian.project()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("bounds", [None, (-1.0, 0.1)])
def test_variables_are_moved_and_told(bounds, recorded):
    problem, module, shift = fit(bounds)
    exact = problem.solve(progress=False)
    best, price = exact.objective, exact["level"].multiplier
    with torch.no_grad():
        module[0].weight.zero_()
    shift.value = -0.5
    lagrangian = problem.compile()
    assert len(lagrangian.primal_parameters()) == 2
    descend(lagrangian, torch.optim.Adam(lagrangian.primal_parameters(), lr=0.05), recorded)
    found = problem.evaluate()  # at the value of the variable, and the weights
    np.testing.assert_allclose(found.objective, best, rtol=1e-2)
    np.testing.assert_allclose(found["level"].value, 0.5, atol=1e-2)
    np.testing.assert_allclose(float(lagrangian.multipliers()["level"]), price, rtol=5e-2)


problem, module, _ = fit()
SOLVE = partial(problem.solve, "lagrangian", epochs=2, progress=False)
STEP_LR = torch.optim.lr_scheduler.StepLR
MISTAKES = {
    "an optimizer of another network": (
        lambda: problem.compile().training_step(torch.optim.Adam(fit()[1].parameters())),
        r"E141.*holds no decision .*\n.*primal_parameters\(\)",
    ),
    "optimizer= of another network": (
        lambda: SOLVE(optimizer=lambda _: torch.optim.Adam(fit()[1].parameters())),
        r"E141\] what optimizer= makes holds no decision",
    ),
    "a Lagrangian in another type": (
        lambda: problem.compile().float(),
        "E123.*is not moved",
    ),
    "a Lagrangian elsewhere": (lambda: problem.compile().to("meta"), "E123.*to meta"),
    "a schedule that needs more": (lambda: SOLVE(scheduler=STEP_LR), r"E141.*step_size"),
    "a negative position": (lambda: D.rows([3, -1]), r"E140\] 'd' has 120 rows and no row -1"),
    "a negative position in a tensor": (lambda: D.rows(torch.tensor([-1])), "E140.*no row -1"),
    "a column to split by": (lambda: D.split(0.5, by="gg"), "E106.*'gg'; did you mean 'g'"),
    "one of several": (lambda: D.split(0.5, by=["g", "h"]), "E106.*'h'"),
    "a number to split by": (lambda: D.split(0.5, by=0), "E106"),
    "an expression to split by": (lambda: D.split(0.5, by=D.y * 2), "E106"),
    "a column that is not there": (lambda: D.values("gg"), "E106"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name):
    attempt, message = MISTAKES[name]
    with pytest.raises(cn.ConstrainError, match=message) as caught:
        attempt()
    assert caught.value.fix


def test_a_checkpoint_without_a_folder_is_refused_before_training(tmp_path):
    rounds = []
    with pytest.raises(cn.ModelingError, match=r"E141\] checkpoint=.*there is no folder"):
        SOLVE(checkpoint=tmp_path / "no" / "run.ckpt", callback=rounds.append)
    assert not rounds


def test_a_solution_is_saved_into_a_folder(tmp_path):
    Path(tmp_path / "run").write_text("")
    with pytest.raises(cn.DataError, match=r"E144\].*is a file"):
        problem.solve(progress=False).save(tmp_path / "run")


def test_a_lagrangian_stays_where_it_is():
    lagrangian = problem.compile()
    assert lagrangian.to("cpu") is lagrangian
    assert lagrangian.double().eval().train() is lagrangian


def test_a_sample_is_split_by_a_column():
    first = D.split(0.5, seed=1, by="g")
    for again in (D.split(0.5, seed=1, by=D.g), D.split(0.5, seed=1, by=[D.g])):
        for part, same in zip(first, again, strict=True):
            assert part.values("g") == same.values("g")
            assert torch.equal(part.values("x"), same.values("x"))
