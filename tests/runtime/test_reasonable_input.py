"""One test for each way in which reasonable input once gave a wrong number or a crash."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, P, forall

Y = np.random.default_rng(0)


def scalar():
    return cn.Variable((), "v")


def test_integer_columns_keep_their_weights_on_batches():
    k = Y.integers(0, 5, 100)
    D = cn.Data("d", k=k, g=(np.arange(100) < 60).astype(int))
    v = scalar()
    lagrangian = cn.minimize(cn.sum_squares(v)).subject_to(c=v >= E(D.k, given=D.g == 1)).compile()
    estimate = lagrangian.estimate({"d": torch.arange(100)}).exact.residuals[0]
    start = float(v.value or 0.0)
    assert float(estimate) == pytest.approx(k[:60].mean() - start, abs=1e-12)


def test_models_that_share_parameters_are_refused():
    torch.manual_seed(0)
    net = nn.Linear(2, 1).double()
    D = cn.Data("d", x=torch.ones(4, 2).double())
    f, r = cn.Model(net, "f"), cn.Model(net, "r", frozen=True)
    problem = cn.minimize(E((f(D.x)[..., 0] - 1) ** 2)).subject_to(
        c=E((f(D.x) - r(D.x))[..., 0] ** 2) <= 0.05
    )
    with pytest.raises(cn.ModelingError, match=r"E131.*'f' and 'r' share parameters"):
        problem.solve(progress=False)
    fixed = cn.Model(copy.deepcopy(net), "r", frozen=True)
    near = cn.minimize(E((f(D.x)[..., 0] - 1) ** 2)).subject_to(
        c=E((f(D.x) - fixed(D.x))[..., 0] ** 2) <= 0.05
    )
    solution = near.solve(progress=False)
    assert solution["c"].value == pytest.approx(0.05, rel=1e-4)


def test_entries_that_share_a_piece_share_its_multiplier():
    x, y = cn.Variable(3, "x"), cn.Variable((), "y")
    objective = cn.sum_squares(x) + cn.sum_squares(y - 5)
    solution = cn.minimize(objective).subject_to(c=torch.maximum(x, y) <= 2.0).solve(progress=False)
    assert np.sum(solution["c"].multiplier) == pytest.approx(6.0, rel=1e-5)
    assert np.sum(solution["c"].shadow_price) == pytest.approx(-6.0, rel=1e-5)


@pytest.mark.parametrize("write", [lambda D, v: P(D.a == D.b) <= v, lambda D, v: E(D.a * D.x) <= v])
def test_text_columns_are_no_numbers(write):
    D = cn.Data("d", a=np.array(["x", "y", "x"]), b=np.array(["y", "z", "y"]), x=np.ones(3))
    v = scalar()
    with pytest.raises(cn.DataError, match=r"E147.*the text column d\.a is used as a number"):
        cn.minimize(cn.sum_squares(v)).subject_to(c=write(D, v)).solve(progress=False)


def test_numbers_of_object_type_are_numbers():
    D = cn.Data("d", k=np.array([10, 2, 1, 10], dtype=object))
    v = scalar()
    solution = cn.minimize(cn.sum_squares(v)).subject_to(c=E(D.k) <= v).solve(progress=False)
    assert solution["c"].value == pytest.approx(5.75)


def test_frozen_models_in_an_event_stay_exact():
    D = cn.Data("d", x=torch.randn(50, 1, generator=torch.Generator().manual_seed(0)).double())
    identity, b = nn.Linear(1, 1, bias=False).double(), cn.Variable((), "b")
    nn.init.ones_(identity.weight)
    r = cn.Model(identity, "r", frozen=True)
    values = []
    for condition in (r(D.x)[..., 0] > 0, D.x[..., 0] > 0):
        rate = P(condition & (D.x[..., 0] + b > 0.5))
        compiled = cn.minimize(cn.sum_squares(b)).subject_to(c=rate >= 0.3).compile()
        values.append(float(compiled.evaluator.full("primal").residuals[0]))
    assert values[0] == pytest.approx(values[1], abs=1e-12)


def test_a_parameter_changed_after_compiling_counts():
    D = cn.Data("d", x=np.arange(4.0))
    v, eps = scalar(), cn.Parameter("eps", 1.0)
    problem = cn.minimize(eps * cn.sum_squares(v - 1)).subject_to(c=E(D.x, given=D.x >= eps) + v >= 0)
    lagrangian = problem.compile()
    first = float(lagrangian(D.rows(slice(0, 4))).detach())
    eps.value = 3.0
    assert float(lagrangian(D.rows(slice(0, 4))).detach()) == pytest.approx(3 * first)
    assert float(lagrangian.evaluator.full().residuals[0]) == pytest.approx(-3.0)


def test_a_side_without_rows_is_refused_with_the_way_out():
    D, w = cn.Data("d", x=np.ones(3)), cn.Variable((), "w")
    problem = cn.minimize(w**2).subject_to(c=forall(D, torch.maximum(w * D.x, w) <= 1.0))
    with pytest.raises(cn.ModelingError, match=r"E134.*does not depend on the rows"):
        problem.solve(progress=False)


def test_the_largest_entry_of_each_row():
    rng = np.random.default_rng(1)
    H, W = cn.Data("h", x=rng.normal(size=(5, 2)), t=np.ones(5)), cn.Variable((2, 2), "W")
    problem = cn.minimize(cn.sum_squares(W - 1)).subject_to(c=forall(H, cn.max(H.x @ W) <= H.t))
    exact, other = problem.solve(progress=False), problem.solve("augmented", progress=False)
    assert exact.objective == pytest.approx(other.objective, rel=1e-4, abs=1e-6)


def test_rows_left_out_must_be_finite():
    x = np.array([1.0, 2.0, 3.0, -1.0])
    D, v = cn.Data("d", x=x), scalar()
    bad = cn.minimize(cn.sum_squares(v - 1)).subject_to(c=E(torch.log(D.x) * v, given=D.x > 0) >= 0.1)
    with pytest.raises(cn.DataError, match=r"E138.*not finite on 1 rows"):
        bad.solve(progress=False)
    safe = torch.log(cn.where(D.x > 0, D.x, 1.0))
    good = cn.minimize(cn.sum_squares(v - 1)).subject_to(c=E(safe * v, given=D.x > 0) >= 0.1)
    assert good.solve(progress=False).objective == pytest.approx(0.0, abs=1e-8)


def test_infinite_bounds_are_refused():
    v = scalar()
    with pytest.raises(cn.ModelingError, match=r"E138.*a side of the constraint 'c' is inf"):
        cn.minimize(v**2).subject_to(c=v <= float("inf")).solve(progress=False)


def test_negative_powers_of_integers():
    D, v = cn.Data("d", i=np.array([1, 2, 4])), scalar()
    solution = cn.minimize(cn.sum_squares(v)).subject_to(c=v >= E(D.i**-1)).solve("augmented", progress=False)
    assert solution.objective == pytest.approx(np.mean([1, 0.5, 0.25]) ** 2, rel=1e-5)
