"""Two passes over chunks equal one pass over everything; each model call runs once."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E
from constrain.runtime.estimates import Estimator


class Counter:
    """Counts calls of a module and the rows of the largest one."""

    def __init__(self, module):
        self.calls = self.largest = 0
        module.register_forward_hook(self.seen)

    def seen(self, _module, inputs, _output):
        self.calls += 1
        self.largest = max(self.largest, inputs[0].shape[0])


def whole(kit, evaluator, function, row_term=None):
    """Value and gradient by autograd on all rows at once: a batch of everything."""
    rows = {data.name: population.rows for data, population in evaluator.populations.items()}
    found = kit.estimate(evaluator, {name: slice(0, count) for name, count in rows.items()})
    scalar = function(found.primal)
    if row_term is not None:
        for i, (residual, _, mask) in found.rows.items():
            scalar = scalar + row_term(
                i, residual if mask is None else torch.where(mask, residual, 0.0), slice(None)
            )
    grads = torch.autograd.grad(
        scalar, evaluator.decisions.tensors, allow_unused=True, materialize_grads=True
    )
    return float(scalar.detach()), grads


def combination(outer):
    """A smooth function of everything."""
    total = outer.objective**2 + outer.objective
    for residual in outer.residuals:
        if residual is not None:
            total = total + (residual**2).sum() + residual.sum()
    return total


def row_term(i, residual, index):
    return (residual**2).sum() + residual.sum()


def test_two_passes_equal_autograd_on_all_rows(kit, name):
    compiled = kit.compiled(kit.spec(name))
    evaluator = compiled.evaluator
    assert evaluator.chunk == kit.rows // 50
    term = row_term if "per row" in name else None
    ((value, gradient),) = evaluator.pull([combination], term)
    expected, reference = whole(kit, evaluator, combination, term)
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-10)
    scale = max(float(g.abs().max()) for g in reference)
    assert scale > 1e-3
    for a, b in zip(gradient, reference, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10 * scale)


def test_two_passes_equal_plain_autograd_written_by_hand(kit):
    D, module = kit.sample(), kit.network()
    compiled = kit.compiled(kit.spec("ratio", module, D))
    ((value, gradient),) = compiled.evaluator.pull([lambda outer: outer.objective * outer.residuals[0]])
    s = module(D.values("x"))
    objective = (s**2).mean() / (1 + s.exp().mean())
    expected = objective * (s.mean() / (2 + (s**2).mean()) - 0.1)
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    for a, b in zip(gradient, torch.autograd.grad(expected, list(module.parameters())), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_no_forward_sees_more_than_a_chunk(kit, name):
    module = kit.network()
    compiled = kit.compiled(kit.spec(name, module))
    counter = Counter(module)
    compiled.evaluator.pull([combination], row_term if "per row" in name else None)
    assert counter.largest == kit.rows // 50
    assert counter.calls == 2 * 50


def test_several_functions_share_the_passes(kit):
    module = kit.network()
    evaluator = kit.compiled(kit.spec("by group", module)).evaluator
    counter = Counter(module)
    functions = [lambda o: o.objective, lambda o: o.residuals[0].sum(), lambda o: o.residuals[2].sum()]
    found = evaluator.pull(functions)
    assert counter.calls == 2 * 50
    for function, (value, gradient) in zip(functions, found, strict=True):
        expected, reference = whole(kit, evaluator, function)
        assert value == pytest.approx(expected, abs=1e-12)
        for a, b in zip(gradient, reference, strict=True):
            assert torch.allclose(a, b, atol=1e-12)


def test_one_forward_per_batch_however_often_the_model_is_named(kit):
    D, module = kit.sample(), kit.network()
    f, g = cn.Model(module, "f"), kit.network(seed=5)
    s = f(D.x)
    problem = cn.minimize(E(kit.loss(f(D.x), D.y)) + E(s**2)).subject_to(
        a=E(f(D.x), by=D.group) <= 1,
        b=cn.P(f(D.x) > 0) <= 0.5,
        c=E(torch.sigmoid(f(D.x)), given=D.y == 1) >= 0.1,
    )
    evaluator = kit.compiled(problem).evaluator
    estimator = Estimator(evaluator)
    counter, other = Counter(module), Counter(g)
    estimator({"sample": evaluator.populations[D].take(torch.arange(64))})
    assert (counter.calls, other.calls) == (1, 0)
    assert evaluator.source.count("f[0](") == 2  # once in each of the two functions, of batches and of passes


def test_hessian_is_the_derivative_of_the_gradient(kit, name):
    compiled = kit.compiled(kit.spec(name), chunk=200)
    evaluator, decisions = compiled.evaluator, compiled.decisions
    term = row_term if "per row" in name else None
    hessian = evaluator.hessian(combination, term)
    start, step = decisions.get(), 1e-5
    direction = np.random.default_rng(0).normal(size=decisions.size)
    sides = []
    for sign in (1, -1):
        decisions.set(start + sign * step * direction)
        sides.append(torch.cat([g.reshape(-1) for g in evaluator.pull([combination], term)[0][1]]))
    decisions.set(start)
    difference = (sides[0] - sides[1]) / (2 * step)
    assert torch.allclose(hessian @ torch.tensor(direction), difference, rtol=1e-5, atol=1e-6)
