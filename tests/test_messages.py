"""The texts of what a solution says: statistical warnings, missing multipliers, missing packages."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, P

generator = torch.Generator().manual_seed(0)
X = torch.randn(2000, 2, generator=generator, dtype=torch.float64)
NOISE = torch.randn(2000, generator=generator, dtype=torch.float64)
Y = X[:, 0] + 0.5 * NOISE


def sample(name, rows, shift=0.0):
    return cn.Data(name, x=X[rows], y=Y[rows] + shift)


def trained(bound, holdout):
    """Least squares whose average prediction is bounded."""
    D, f = sample("train", slice(0, 1000)), cn.Model(nn.Linear(2, 1, dtype=torch.float64), "f")
    e = f(D.x)[..., 0]
    problem = cn.minimize(E((e - D.y) ** 2)).subject_to(error=E((e - D.y) * 4 + 1.5) <= bound)
    return problem.solve(holdout=holdout, progress=False)


def said(solution, code):
    return [w.message for w in solution.warnings if w.code == code]


def test_a_holdout_that_is_too_small():
    (message,) = said(trained(1.5, sample("test", slice(1000, 1020))), "C311")
    assert re.fullmatch(
        r"error: the hold-out interval straddles the bound; about \d+ rows of its smallest .*",
        message,
    )
    assert not said(trained(2.5, sample("test", slice(1000, 2000))), "C311")


def test_a_constraint_that_holds_on_the_training_data_only():
    (message,) = said(trained(1.5, sample("test", slice(1000, 2000), shift=-1.0)), "C312")
    assert re.fullmatch(
        r"error: violated on the hold-out by up to [\d.]+; tighten its bound by about [\d.]+ \(.*\)", message
    )
    assert not said(trained(2.5, sample("test", slice(1000, 2000))), "C312")


def test_multipliers_that_a_solver_does_not_have():
    k = cn.Variable(2, "k", integer=True)
    solution = (
        cn.maximize(cn.sum(k)).subject_to(c=2 * k[0] + k[1] <= 3.5, d=k <= 2).solve("cvxpy", progress=False)
    )
    with pytest.raises(cn.NoDualsError) as caught:
        solution["c"].multiplier  # noqa: B018
    assert str(caught.value) == (
        "[E128] there is no multiplier of 'c': the solver proved optimality; no multipliers: a problem with "
        "integer variables has no multipliers\n"
        "  write: solution.kkt().fit has the best-fit multipliers of the returned point"
    )
    with pytest.raises(cn.NoDualsError, match="E128"):
        solution["c"].shadow_price  # noqa: B018


def test_a_stored_solution_without_its_problem(tmp_path):
    D, w = sample("train", slice(0, 50)), cn.Variable(2, "w")
    cn.minimize(E((D.x @ w - D.y) ** 2)).solve(progress=False).save(tmp_path / "run")
    with pytest.raises(cn.ModelingError) as caught:
        cn.load(tmp_path / "run").evaluate(D)
    assert str(caught.value).startswith("[E129] ")
    assert "cn.load(folder, problem=problem)" in str(caught.value)


def test_a_stored_solution_is_revived_with_its_modules_and_data(tmp_path):
    D, f = sample("train", slice(0, 200)), cn.Model(nn.Linear(2, 1, dtype=torch.float64), "f")
    e = f(D.x)[..., 0]
    problem = cn.minimize(E((e - D.y) ** 2)).subject_to(mean=E(e) <= cn.Parameter("cap", 0.1))
    solution = problem.solve(progress=False)
    solution.save(tmp_path / "run")
    net = nn.Linear(2, 1, dtype=torch.float64)
    again = cn.load(tmp_path / "run", symbols={"train": D, "f": net})
    assert torch.equal(net.weight, f.module.weight)
    other = sample("test", slice(200, 400))
    assert again.evaluate(other).objective == pytest.approx(solution.evaluate(other).objective, rel=1e-12)
    assert again.live.problem.to_json() == problem.to_json()
    with pytest.raises(cn.ModelingError, match="E176"):
        cn.load(tmp_path / "run", symbols={"train": D})
    (tmp_path / "run" / "problem.json").unlink()
    with pytest.raises(cn.DataError, match=r"holds no problem.json"):
        cn.load(tmp_path / "run", symbols={"train": D, "f": net})


def test_frames_need_pandas(monkeypatch):
    w = cn.Variable(2, "w")
    solution = cn.minimize(cn.sum_squares(w)).subject_to(c=cn.sum(w) >= 1).solve(progress=False)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(cn.ModelingError) as caught:
        solution.to_frame()
    assert str(caught.value) == (
        "[E143] a frame needs pandas\n  write: pip install pandas, or use the records as they are"
    )


def test_a_rate_and_its_surrogate_disagree():
    torch.manual_seed(0)
    D, f = sample("train", slice(0, 1000)), cn.Model(nn.Linear(2, 1, dtype=torch.float64), "f")
    wide = cn.surrogate.Sigmoid(scale=50.0)
    rate = P(f(D.x)[..., 0] > 0.7, surrogate=wide)
    problem = cn.minimize(E((f(D.x)[..., 0] - D.y) ** 2)).subject_to(rate=rate <= 0.9)
    solution = problem.solve("lagrangian", epochs=2, progress=False)
    (message,) = said(solution.kkt(), "C301")
    assert message.startswith("rate: its residual is ")
    assert "for the surrogate that gradients see" in message
