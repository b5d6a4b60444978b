"""Minibatch estimates: unbiased, quiet about absent groups, of a cost that does not grow with the groups."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P
from constrain.runtime.estimates import Estimator


def estimates(kit, evaluator, count, size, rows, seed=0):
    """Residuals of each part over random batches, (count, levels)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        index = torch.randint(rows, (size,), generator=generator)
        with torch.no_grad():
            found.append(kit.estimate(evaluator, {"sample": index}).exact.residuals)
    return [torch.stack([one.reshape(-1) for one in part]) for part in zip(*found, strict=True)]


@pytest.mark.semantics("S12")
def test_batches_are_unbiased(kit):
    D = kit.sample()
    s = cn.Model(kit.network(), "f")(D.x)
    statistics = {
        "mean": E(s),
        "conditional": E(s, given=D.y == 1),
        "groups": E(s, by=D.group),
        "conditional_groups": E(s, given=D.y == 1, by=D.group),
        "rate": P(s > 0, given=D.y == 1),
        "parity": E(s, by=D.group) - E(s),
    }
    problem = cn.minimize(E(s**2)).subject_to(**{name: e <= 0.1 for name, e in statistics.items()})
    evaluator = kit.compiled(problem, chunk=kit.rows).evaluator
    batches = estimates(kit, evaluator, 2000, 16, kit.rows)
    for name, found, exact in zip(statistics, batches, evaluator.full().residuals, strict=True):
        error = found.std(0) / 2000**0.5
        assert torch.isfinite(found).all(), name
        assert ((found.mean(0) - exact.reshape(-1)).abs() <= 4 * error).all(), name


@pytest.mark.semantics("S12")
def test_an_absent_group_contributes_nothing(kit):
    D, module = kit.sample(), kit.network()
    s = cn.Model(module, "f")(D.x)
    problem = cn.minimize(E(s**2)).subject_to(c=E(s, by=D.group) <= 0.1)
    lagrangian = problem.compile()
    lagrangian.set_multipliers({"c": torch.ones(4)})
    present = torch.tensor([i for i, g in enumerate(D.values("group")) if g in ("g0", "g2")][:40])
    loss = lagrangian(D.rows(present))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())
    found = lagrangian.estimate(D.rows(present)).primal.residuals[0]
    before = lagrangian.evaluator.full().residuals[0]
    running = lagrangian.estimator.running("exact")[-1] - 0.1
    assert found[[1, 3]].tolist() == pytest.approx(running[[1, 3]].tolist())
    assert found[[1, 3]].tolist() == pytest.approx(before[[1, 3]].tolist())  # nothing was learned of them
    lone = lagrangian.estimate(D.rows(present)).primal.residuals[0][1]
    assert not lone.requires_grad or all(
        g is None or not g.any()
        for g in torch.autograd.grad(lone, list(module.parameters()), allow_unused=True)
    )


@pytest.mark.parametrize("estimator", ["batch", "halves"])
def test_groups_whose_rows_count_alike_need_no_weights_per_row(kit, estimator):
    """One factor per level, or a weight per row: the same averages and gradients."""
    D, module = kit.sample(), kit.network()
    s = cn.Model(module, "f")(D.x)
    listed = {f"in{k}": E(s * D.y, given=D.group == f"g{k}") <= 0.1 for k in range(4)}
    problem = cn.minimize(E(s**2)).subject_to(**listed, pair=E(cn.stack(s, s**2), by=D.group) <= 0.1)
    evaluator = kit.compiled(problem).evaluator
    strata = [x for p in evaluator.populations.values() for x in p.strata.values() if x.codes is not None]
    assert all(stratum.alike for stratum in strata)
    found = []
    for alike in (True, False):
        for stratum in strata:
            stratum.alike = alike
        terms = kit.estimate(evaluator, {"sample": torch.arange(31)}, estimator).terms
        weights = torch.linspace(1.0, 2.0, len(terms), dtype=terms.dtype)
        found.append([terms, *torch.autograd.grad(weights @ terms, list(module.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("center", [0.0, 0.3, -2.0])
def test_moments_of_a_subset_are_weighted_by_known_shares(kit, center):
    """E(g | A) on a batch divides by the share of A in the data, not in the batch; centered at any number."""
    D = kit.sample()
    s = cn.Model(kit.network(), "f")(D.x)
    evaluator = kit.compiled(cn.minimize(E(s**2)).subject_to(c=E(s, given=D.y == 1) <= 0)).evaluator
    index = torch.arange(10)
    y, share = D.values("y"), float((D.values("y") == 1).double().mean())
    with torch.no_grad():
        values = evaluator.program.models[0].module(D.values("x")[:10])
        estimator = Estimator(evaluator)
        estimator.observe([torch.full_like(m, center) for m in evaluator.moments()])
        found = estimator({"sample": evaluator.populations[D].take(index)}).exact.residuals[0]
    weight = y[:10] / share
    assert float(found) == pytest.approx(float((weight * (values - center)).mean() + center), rel=1e-6)


@pytest.mark.parametrize("form", ["mean", "abs", "rate"])
def test_operations_do_not_grow_with_the_groups(kit, form):
    counts = []
    for groups in (1, 100, 10_000):
        rows = max(2 * groups, 200)
        x = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        D = cn.Data("sample", x=x, y=(x[:, 0] > 0).double(), group=np.arange(rows) % groups)
        s = cn.Model(kit.network(), "f")(D.x)
        block = {
            "mean": lambda D=D, s=s: E(s, by=D.group) <= 0.1,
            "abs": lambda D=D, s=s: abs(E(s, by=D.group) - E(s)) <= 0.1,
            "rate": lambda D=D, s=s: P(s > 0, by=D.group) >= 0.1,
        }[form]()
        compiled = kit.compiled(cn.minimize(E(kit.loss(s, D.y))).subject_to(c=block), chunk=100_000)
        counts.append(compiled.evaluator.operations)
        assert compiled.evaluator.full().residuals[0].shape == (groups,)
    assert counts[0] == counts[1] == counts[2]


def test_several_columns_make_the_combinations_that_occur(kit):
    D = cn.Data("sample", x=torch.arange(6.0), a=list("ppqqqq"), b=[0, 1, 0, 0, 0, 0])
    w = cn.Variable((), "w")
    problem = cn.minimize(w**2).subject_to(c=E(w * D.x, by=(D.a, D.b)) >= 0)
    evaluator = kit.compiled(problem).evaluator
    compiled = evaluator.populations[D]
    assert next(iter(compiled.strata.values())).levels == [("p", 0), ("p", 1), ("q", 0)]
    evaluator.decisions.set(np.ones(1))
    assert (-evaluator.full().residuals[0]).tolist() == pytest.approx([0.0, 1.0, 3.5])


def test_two_samples_have_batches_of_their_own(kit):
    D, Q = kit.sample(), kit.sample(rows=90, seed=4, name="other")
    module = kit.network()
    f = cn.Model(module, "f")
    lagrangian = cn.minimize(E(kit.loss(f(D.x), D.y))).subject_to(c=E(f(Q.x)) <= 0.1).compile()
    loss = lagrangian((D.rows(slice(0, 10)), Q.rows(range(20))))
    with torch.no_grad():
        s = module(D.values("x")[:10])
        assert float(loss) == pytest.approx(float(kit.loss(s, D.values("y")[:10]).mean()), rel=1e-6)
    with pytest.raises(cn.ModelingError, match="no rows of 'other'"):
        lagrangian(D.rows(slice(0, 10)))
