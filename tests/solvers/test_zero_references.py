"""Divergences from distributions with zeros, entropies of temperature 0, and matrices that are symmetric."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from scipy import special

import constrain as cn
from constrain import E
from constrain.runtime import rowwise

WEIGHT = 1 / (1 + np.e)
Q = np.array([0.5, 0.5, 0.0])


def _problem(reference, start=None):
    p = cn.Variable(3, "p", nonneg=True)
    p.value = start
    divergence = cn.sum(cn.rel_entr(p, reference))
    return p, cn.minimize(divergence + p[0]).subject_to(r=cn.sum(p) == 1)


@pytest.mark.parametrize("method", ["auto", "closed", "cvxpy", "newton", "augmented"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("start", [None, np.full(3, 1 / 3)])
def test_outcomes_without_reference_have_no_probability(method, known, start):
    p, problem = _problem(Q if known else cn.Parameter("q", Q), start)
    found = problem.solve(method, progress=False)
    assert found.status == "optimal"
    assert found.objective == pytest.approx(np.log(2) - np.log(1 + np.exp(-1.0)), abs=1e-8)
    assert p.value == pytest.approx(np.array([WEIGHT, 1 - WEIGHT, 0.0]), abs=1e-5)
    assert found["r"].multiplier == pytest.approx(-1.3798854930, abs=1e-5)


def test_formula_refuses_what_has_no_finite_cost():
    p, problem = _problem(np.zeros(3))
    with pytest.raises(cn.RouteError, match="no outcome of finite cost"):
        problem.solve("closed", progress=False)
    negated = cn.minimize(cn.sum(cn.rel_entr(p, [0.5, 0.5, 1.0])) * 2 - cn.sum(cn.rel_entr(p, Q)))
    with pytest.raises(cn.RouteError, match="no finite value"):
        negated.subject_to(r=cn.sum(p) == 1).solve("closed", progress=False)


@pytest.mark.parametrize("start", [None, np.full(3, 1 / 3)])
def test_negative_reference_is_infeasible(start):
    _, problem = _problem(np.array([0.5, 0.5, -0.1]), start)
    assert problem.solve(progress=False).status == "infeasible"


def test_values_are_those_of_scipy():
    x = torch.tensor([0.3, 0.0, 0.0, 0.2, 0.0, 0.4, -0.1], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.0, 0.0, -1.0, -1.0, 0.5, 0.2, 0.0], dtype=torch.float64)
    for ours, theirs in ((rowwise.rel_entr, special.rel_entr), (rowwise.kl_div, special.kl_div)):
        found = ours(x, y, lead=(0, 0), fixed=True)
        assert found.detach().numpy() == pytest.approx(theirs(x.detach().numpy(), y.numpy()))
        (slope,) = torch.autograd.grad(found.sum(), x)
        assert slope.isfinite().all()


def test_entropy_of_temperature_zero():
    p, tau = cn.Variable(3, "p", nonneg=True), cn.Parameter("tau", 0.1)
    cost = np.array([1.0, 2.0, 3.0])
    problem = cn.minimize(-tau * cn.sum(cn.entr(p)) + cost @ p).subject_to(r=cn.sum(p) == 1)
    assert problem.solve(progress=False).status == "optimal"
    found = problem.solve(progress=False, params={"tau": 0.0})
    assert found.status == "optimal"
    assert p.value == pytest.approx(np.array([1.0, 0.0, 0.0]), abs=1e-6)
    assert found["r"].multiplier == pytest.approx(-1.0, abs=1e-6)


def test_point_without_finite_value_is_not_used(monkeypatch):
    backend = importlib.import_module("constrain.backends.cvxpy.solve")
    monkeypatch.setattr(backend, "_finite_objective", lambda _built: None)
    x = cn.Variable(2, "x", nonneg=True)
    problem = cn.minimize(cn.sum_squares(x - 1) + cn.exp(x[0])).subject_to(r=cn.sum(x) == 1)
    asked = problem.solve("cvxpy", progress=False)
    assert asked.status != "optimal"
    assert "cannot be used" in asked.message
    found = problem.solve(progress=False)
    assert found.status == "optimal"
    assert "newton in its place" in found.provenance.route
    assert found.objective == pytest.approx(1.901359, abs=1e-5)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *(("augmented", kind) for kind in ("psd", "symmetric")),
        *(("cvxpy", kind) for kind in ("psd", "symmetric")),
        ("newton", "symmetric"),  # the least eigenvalue of a psd variable has kinks
    ],
)
def test_matrices_are_symmetric_on_every_route(method, kind):
    x = np.random.default_rng(7).normal(size=(25, 2))
    rows = cn.Data("r", x=x)
    s = cn.Variable((2, 2), "S", **{kind: True})
    s.value = np.array([[1.0, 0.3], [-0.2, 1.0]])
    trace = E(cn.sum(rows.x * (rows.x @ s), axis=-1))
    found = cn.maximize(cn.log_det(s)).subject_to(c=trace <= 1).solve(method, progress=False)
    assert found.status == "optimal"
    assert s.value == pytest.approx(s.value.T, abs=0)
    assert s.value == pytest.approx(np.linalg.inv(x.T @ x / 25) / 2, abs=2e-5)


@pytest.mark.parametrize("kind", ["integer", "boolean"])
def test_no_semidefinite_matrix_of_whole_numbers(kind):
    with pytest.raises(cn.ModelingError, match=rf"\[E112\] no method .* 'Z' is psd and {kind}"):
        cn.Variable((2, 2), "Z", psd=True, **{kind: True})
