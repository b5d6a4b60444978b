"""Parameters that are weights: their sign makes an inner problem convex; kinks are said where they are."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import constrain as cn

F64 = torch.float64
rng = np.random.default_rng(0)
X = rng.normal(size=(40, 4))
Y = X[:, 0] + rng.normal(size=40)


def lasso(weight):
    w = cn.Variable(4, "w", bounds=(-3, 3))
    return cn.minimize(cn.sum_squares(Y - X @ w) / 40 + weight * cn.norm(w, 1)), w


@pytest.mark.parametrize("weight", [lambda p: p, abs, lambda p: cn.exp(cn.log(p))])
def test_a_weight_with_a_sign_solves_the_lasso(weight):
    penalty = cn.Parameter("penalty", 1.0)
    problem, w = lasso(weight(penalty))
    found = cn.layer(problem, inputs=penalty, outputs=w)(torch.tensor([0.1, 0.2], dtype=F64))
    for row, size in zip(found, (0.1, 0.2), strict=True):
        slope = -2 * X.T @ (Y - X @ row.numpy()) / 40  # is the weight times a subgradient of the norm
        kept = row.abs().numpy() > 1e-9
        assert slope[kept] == pytest.approx(-size * np.sign(row.numpy()[kept]))
        assert np.abs(slope[~kept]).max(initial=0.0) <= size + 1e-9


def test_a_row_with_the_other_sign_is_refused():
    """The interior-point method would return a stationary point of a problem that is not convex."""
    penalty, x = cn.Parameter("penalty", 1.0), cn.Variable(2, "x", bounds=(-3, 3))
    problem = cn.minimize(penalty * cn.sum_squares(x) - cn.sum(x) + 0.1 * (x[0] - x[1]) ** 2)
    layer = cn.layer(problem.subject_to(c=cn.sum(x) <= 5), inputs=penalty, outputs=x)
    assert layer(torch.tensor([1.0], dtype=F64))[0].tolist() == pytest.approx([0.5, 0.5])
    with pytest.raises(
        cn.RouteError, match=r"row 1 .*it is convex for penalty >= 0, the sign of its value"
    ) as caught:
        layer(torch.tensor([1.0, -1.0], dtype=F64))
    assert caught.value.code == "E193"


def test_signs_that_do_not_matter_are_free():
    target, x = cn.Parameter("target", np.ones(2)), cn.Variable(2, "x", nonneg=True)
    layer = cn.layer(cn.minimize(cn.sum_squares(x - target)), inputs=target, outputs=x)
    assert layer(torch.tensor([[-1.0, 2.0]], dtype=F64)).tolist() == [[0.0, 2.0]]


def test_a_weight_without_a_sign_says_how_to_give_it_one():
    penalty, w = cn.Parameter("penalty"), cn.Variable(2, "w")
    layer = cn.layer(cn.minimize(penalty * cn.norm(w, 1) - cn.sum(w)), inputs=penalty, outputs=w)
    with pytest.raises(cn.RouteError) as caught:  # unbounded for weights below 1
        layer(torch.tensor([0.5], dtype=F64))
    assert 'write: cn.Parameter("penalty", 1.0), or abs(penalty) in the problem' in str(caught.value)


def choice():
    x, cost = cn.Variable(4, "x", bounds=(0, 1)), cn.Parameter("cost", shape=4)
    problem = cn.minimize(cost @ x + 0.1 * cn.sum_squares(x)).subject_to(pick=cn.sum(x) == 2)
    return cn.layer(problem, inputs=cost, outputs=(x, "pick"))


def test_a_clear_choice_has_no_kink():
    """Two of four at their upper bound: small changes of the costs change nothing, and the price has room."""
    cost = torch.tensor([[1.0, 5.0, 2.0, 7.0], [1.0, 5.0, 6.0, 7.0]], dtype=F64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, price = choice()(cost)
    assert x.tolist() == [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    assert price.reshape(-1).tolist() == pytest.approx([-(2.2 + 5.0) / 2, -(5.2 + 6.0) / 2])
    assert not torch.autograd.grad(x.sum(), cost)[0].any()


def test_a_tie_has_a_kink():
    """Costs of 1 and 1.2: the second entry is just about to be chosen in part."""
    x, cost = cn.Variable(2, "x", bounds=(0, 1)), cn.Parameter("cost", shape=2)
    problem = cn.minimize(cost @ x + 0.1 * cn.sum_squares(x)).subject_to(pick=cn.sum(x) == 1)
    layer = cn.layer(problem, inputs=cost, outputs=x)
    with pytest.warns(cn.ModelingWarning, match="W222"):
        found = layer(torch.tensor([[1.0, 1.2]], dtype=F64, requires_grad=True))
    assert found[0].tolist() == pytest.approx([1.0, 0.0])


def test_training_says_a_kink_a_few_times():
    x, target = cn.Variable(3, "x", nonneg=True), cn.Parameter("target", shape=3)
    layer = cn.layer(cn.minimize(cn.sum_squares(x - target)), inputs=target, outputs=x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in range(40):
            layer(torch.tensor([[0.0, k, 1.0]], dtype=F64, requires_grad=True))
    assert len(caught) == 6  # batches 1, 2, 4, 8, 16 and 32
    assert "(batch 32 with such rows)" in str(caught[-1].message)
