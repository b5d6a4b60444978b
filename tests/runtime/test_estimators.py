"""The average of every estimator over many batches is the exact value and gradient; naive forms are not."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P, forall
from constrain.runtime.estimates import Estimator, estimators
from constrain.runtime.rows import Rows
from constrain.solvers.sampling import BatchSampler, strata

BATCHES = 1500

STATISTICS = {
    "mean": (lambda D, s: E(s), "batch"),
    "conditional": (lambda D, s: E(s, given=D.y == 1), "batch"),
    "rare condition": (lambda D, s: E(s, given=D.group == "g3"), "batch"),
    "groups": (lambda D, s: E(s, by=D.group) - E(s), "batch"),
    "conditional groups": (lambda D, s: E(s**2, given=D.y == 1, by=D.group), "batch"),
    "weighted by a decision": (lambda D, s: E(s) * cn.Variable((), "v", bounds=(0.5, 0.6)), "batch"),
    "square": (lambda D, s: E(s) ** 2, "halves"),
    "product": (lambda D, s: E(s) * E(s * D.y) - E(s**2), "halves"),
    "variance": (lambda D, s: cn.Var(s), "halves"),
    "variance in groups": (lambda D, s: cn.Var(s, by=D.group), "halves"),
    "covariance": (lambda D, s: cn.Cov(s, s**2, given=D.x[..., 0] > 0), "halves"),
    "covariance with data": (lambda D, s: cn.Cov(s, D.y, given=D.x[..., 0] > 0), "batch"),
    "tail": (lambda D, s: cn.CVaR(s, 0.8), "batch"),
    "tails in groups": (lambda D, s: cn.CVaR(s, 0.7, given=D.x[..., 0] > -1, by=D.group), "batch"),
    "held tail": (lambda D, s: -cn.CVaR(s, 0.8), "batch"),
    "quantile": (lambda D, s: cn.Quantile(s, 0.7), "batch"),
    "quantiles in groups": (lambda D, s: cn.Quantile(s, 0.5, by=D.group), "batch"),
    "squared quantile": (lambda D, s: cn.Quantile(s, 0.7) ** 2, "halves"),
    "squared gap": (lambda D, s: (E(s, given=D.y == 1) - E(s, given=D.y == 0)) ** 2, "halves"),
    "sum of squares": (lambda D, s: cn.sum_squares(E(s, by=D.group)), "halves"),
    "ratio": (lambda D, s: E(s) / (2 + E(s**2)), "running"),
    "exponential": (lambda D, s: torch.exp(4 * E(s)), "running"),
    "correlation": (lambda D, s: cn.Corr(s, D.y), "running"),
    "distance": (lambda D, s: abs(E(s) - 3.0) * E(s**2), "running"),
    "fourth power": (lambda D, s: E(s) ** 4, "running"),
    "rate": (lambda D, s: P(s > 0, by=D.group), "batch"),
    "precision": (lambda D, s: P(D.y == 1, given=s > 0), "running"),
    "product of rates": (lambda D, s: P(s > 0) * P(s > 1), "halves"),
}


def problem(kit, name):
    D = kit.sample(rows=200, seed=3)
    s = cn.Model(kit.network(), "f")(D.x)
    return cn.minimize(E(s**2)).subject_to(c=STATISTICS[name][0](D, s) <= 0.1)


def uniform(evaluator, size, generator):
    return {
        data.name: p.take(torch.randint(p.rows, (size,), generator=generator))
        for data, p in evaluator.populations.items()
    }


def flat_gradient(evaluator, residual):
    """Gradient of a fixed combination of the entries, one random direction per tensor: a few numbers."""
    scalar = (residual * torch.linspace(0.5, 1.5, residual.numel()).reshape(residual.shape)).sum()
    found = torch.autograd.grad(
        scalar, evaluator.decisions.tensors, allow_unused=True, materialize_grads=True
    )
    generator = torch.Generator().manual_seed(7)
    return torch.stack(
        [(g.double() * torch.randn(g.shape, generator=generator, dtype=torch.float64)).sum() for g in found]
    )


def samples(evaluator, estimator, draw, count=BATCHES):
    """(count, numbers) exact values and gradient projections of the first part over many batches."""
    found = []
    for _ in range(count):
        estimate = estimator(draw())
        gradient = flat_gradient(evaluator, estimate.primal.residuals[0])
        found.append(torch.cat([estimate.exact.residuals[0].detach().double().reshape(-1), gradient]))
    return torch.stack(found)


def truth(evaluator):
    """The same numbers on the full data."""
    combination = lambda outer: (  # noqa: E731
        outer.residuals[0]
        * torch.linspace(0.5, 1.5, outer.residuals[0].numel()).reshape(outer.residuals[0].shape)
    ).sum()
    ((_, gradients),) = evaluator.pull([combination])
    generator = torch.Generator().manual_seed(7)
    projected = torch.stack(
        [
            (g.double() * torch.randn(g.shape, generator=generator, dtype=torch.float64)).sum()
            for g in gradients
        ]
    )
    return torch.cat([evaluator.full("exact").residuals[0].double().reshape(-1), projected])


def agree(found, exact):
    error = found.std(0) / len(found) ** 0.5
    return ((found.mean(0) - exact).abs() <= 4 * error + 1e-9).all()


@pytest.mark.parametrize("name", list(STATISTICS))
def test_values_and_gradients_are_unbiased(kit, name):
    evaluator = kit.compiled(problem(kit, name), chunk=1000).evaluator
    assert dict(estimators(evaluator.program))["c"] == STATISTICS[name][1]
    generator = torch.Generator().manual_seed(0)
    found = samples(evaluator, Estimator(evaluator), lambda: uniform(evaluator, 16, generator))
    assert torch.isfinite(found).all()
    assert agree(found, truth(evaluator))


@pytest.mark.parametrize("name", ["square", "variance", "squared gap", "exponential", "fourth power"])
def test_the_plug_in_of_batch_means_is_biased(kit, name):
    evaluator = kit.compiled(problem(kit, name), chunk=1000).evaluator
    generator = torch.Generator().manual_seed(0)
    found = samples(evaluator, Estimator(evaluator, "batch"), lambda: uniform(evaluator, 16, generator))
    assert not agree(found, truth(evaluator))


@pytest.mark.parametrize("name", ["mean", "groups", "conditional groups", "ratio", "rate"])
def test_stratified_batches_are_unbiased(kit, name):
    evaluator = kit.compiled(problem(kit, name), chunk=1000).evaluator
    sampler = BatchSampler(evaluator, 48, torch.Generator().manual_seed(0), "stratified")
    found = samples(evaluator, Estimator(evaluator), sampler.draw)
    assert agree(found, truth(evaluator))


def test_a_batch_of_the_whole_sample_is_exact(kit, name):
    evaluator = kit.compiled(kit.spec(name), chunk=1000).evaluator
    estimator = Estimator(evaluator)
    estimate = estimator({data.name: p.everything() for data, p in evaluator.populations.items()})
    full = evaluator.full("exact")
    for found, exact in zip(estimate.exact.residuals, full.residuals, strict=True):
        if exact is not None:
            torch.testing.assert_close(found, exact.to(found.dtype), rtol=1e-10, atol=1e-12)
    assert float(estimate.exact.objective) == pytest.approx(float(full.objective), rel=1e-10)


def test_running_averages_learn_from_batches_and_from_exact_passes(kit):
    evaluator = kit.compiled(problem(kit, "ratio"), chunk=1000).evaluator
    estimator = Estimator(evaluator)
    exact = [m.clone() for m in estimator.running("exact")]
    with torch.no_grad():
        for tensor in evaluator.decisions.tensors:
            tensor.mul_(1.7)
    moved = evaluator.moments("exact")
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        batches = uniform(evaluator, 64, generator)
        estimator.learn(*estimator(batches).moments, batches)
    for before, after, target in zip(exact, estimator.running("exact"), moved, strict=True):
        assert (after - target).abs().max() < 0.3 * (before - target).abs().max() + 0.02
    estimator.observe(moved)
    for found, target in zip(estimator.running("exact"), moved, strict=True):
        torch.testing.assert_close(found, target)


def test_importance_weights_of_a_batch_count(kit):
    D = kit.sample(rows=50)
    f = cn.Model(kit.network(), "f")
    lagrangian = cn.minimize(E(f(D.x) ** 2)).subject_to(c=E(f(D.x)) <= 0.1).compile()
    weight = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)
    estimate = lagrangian.estimate(D.rows(range(10), weight))
    with torch.no_grad():
        s = f.module(D.values("x")[:10])
    expected = float((weight * s).mean()) + float(lagrangian.estimator.running("exact")[1]) * (
        1 - float(weight.mean())
    )
    assert float(estimate.exact.residuals[0]) + 0.1 == pytest.approx(expected, rel=1e-9)


def test_strata_follow_the_rare_conditions_only(kit):
    rng = np.random.default_rng(0)
    rare = (rng.random(4000) < 0.005).astype(int)
    D = cn.Data(
        "d", x=torch.randn(4000, 3, dtype=torch.float64), rare=rare, common=rng.integers(2, size=4000)
    )
    s = cn.Model(kit.network(), "f")(D.x)
    base = cn.minimize(E(s**2))
    common = kit.compiled(base.subject_to(c=E(s, given=D.common == 1) <= 0.1)).evaluator.populations[D]
    assert strata(common, 128) is None
    both = base.subject_to(c=E(s, given=D.common == 1) <= 0.1, d=E(s, given=D.rare == 1) <= 0.1)
    cells = strata(kit.compiled(both).evaluator.populations[D], 128)
    assert sorted(cells.counts) == sorted([int(rare.sum()), 4000 - int(rare.sum())])
    assert all(size % 2 == 0 and size >= 8 for size in cells.sizes)
    assert sum(c / 4000 for c in cells.counts) == pytest.approx(1)
    drawn = sum(cells.sizes)
    assert sum(w * s for w, s in zip(cells.weights, cells.sizes, strict=True)) == pytest.approx(drawn)


def test_two_half_batches_need_two_rows(kit):
    evaluator = kit.compiled(problem(kit, "square")).evaluator
    with pytest.raises(cn.ModelingError, match=r"\[E182\] two half batches need"):
        kit.estimate(evaluator, {"sample": torch.tensor([3])})


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ("mean", "no estimator is called 'mean'"),
        ({"d": "batch"}, "names 'd', which is no term"),
        ({"c": "half"}, "no estimator is called 'half'"),
    ],
)
def test_unknown_estimators_and_terms_are_refused(kit, kinds, message):
    with pytest.raises(cn.ModelingError, match=rf"\[E141\].*{message}"):
        kit.compiled(problem(kit, "mean")).problem.compile(estimator=kinds)


# ------------------------------------------------------------------------------------ constraints per row
def test_a_table_is_touched_at_the_rows_of_the_batch_only(kit):
    D = kit.sample(rows=1000)
    s = cn.Model(kit.network(), "f")(D.x)
    lagrangian = cn.minimize(E(s**2)).subject_to(c=forall(D, s >= 3.0)).compile(gain=0.0)
    table = lagrangian.table(lagrangian.parts[0])
    table.fill_(-1.0)  # what no step writes for an inequality
    lagrangian(D.rows([3, 5, 5])).backward()
    lagrangian.ascend()
    assert sorted((table != -1.0).nonzero().reshape(-1).tolist()) == [3, 5]


def test_repeated_rows_add_their_steps(kit):
    D = kit.sample(rows=1000)
    s = cn.Model(kit.network(), "f")(D.x)
    lagrangian = cn.minimize(E(s**2)).subject_to(c=forall(D, s >= 3.0)).compile(gain=0.0)
    lagrangian(D.rows([3, 5, 5, 5])).backward()
    lagrangian.ascend()
    table = lagrangian.table(lagrangian.parts[0])
    with torch.no_grad():
        residual = 3.0 - s.node.model.module(D.values("x")[[3, 5]])
    assert float(table[5] / table[3]) == pytest.approx(float(3 * residual[1] / residual[0]), rel=1e-9)


def test_rows_without_positions_have_no_table(kit):
    D = kit.sample(rows=100)
    s = cn.Model(kit.network(), "f")(D.x)
    lagrangian = cn.minimize(E(s**2)).subject_to(c=forall(D, s >= 3.0)).compile()
    rows = lagrangian.evaluator.populations[D].take(slice(0, 10))
    with pytest.raises(cn.ModelingError, match=r"\[E181\] the rows of this batch have no positions"):
        lagrangian({"sample": Rows(rows.columns, 10)})


def test_state_is_kept_by_name_and_copied(kit):
    D = kit.sample()
    s = cn.Model(kit.network(), "f")(D.x)
    made = cn.minimize(E(s**2)).subject_to(
        a=abs(E(s, by=D.group)) <= 0.1, b=forall(D, s >= 0.0), c=E(s) / (1 + E(s**2)) == 0.2
    )
    one, two = made.compile(), made.compile()
    for _ in range(3):
        one(D.rows(range(40))).backward()
        one.ascend()
    state = one.state_dict()
    assert {"multiplier:a:upper", "running:a:lower", "multiplier:b", "step:c", "estimator.exact"} <= set(
        state
    )
    two.load_state_dict(state)
    before = {k: v.clone() for k, v in state.items()}
    for lagrangian in (one, two):
        lagrangian(D.rows(range(40, 90))).backward()
        lagrangian.ascend()
    assert all(torch.equal(state[k], before[k]) for k in state)  # a snapshot is a copy
    for key, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[key], value)


@pytest.mark.parametrize("seed", range(3))
def test_a_multiplier_function_approaches_the_table(seed):
    rng = np.random.default_rng(0)
    t = torch.tensor(np.sort(rng.uniform(size=64)))
    D = cn.Data("d", t=t[:, None], y=torch.sin(3 * t))
    w = cn.Variable(3, "w")
    value = w[0] + w[1] * D.t[..., 0] + w[2] * D.t[..., 0] ** 2
    made = cn.minimize(cn.sum_squares(w)).subject_to(fit=forall(D, value >= D.y))
    exact = made.solve("cvxpy", progress=False)
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1), torch.nn.Flatten(0)
    )
    functions = {"fit": cn.Model(net.double(), "lam")(D.t)}
    w.value = None
    found = made.solve(
        "lagrangian", multipliers=functions, batch=64, epochs=1000, lr=1e-2, seed=seed, progress=False
    )
    assert float(found.objective) == pytest.approx(float(exact.objective), rel=0.05)
    assert float(np.max(found["fit"].violation)) < 0.05
    assert float(np.min(found["fit"].multiplier)) >= 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda D, f, lam: {"mean": lam(D.x)}, "'mean' is no constraint per row"),
        (lambda D, f, lam: {"fit": E(lam(D.x))}, "is no expression per row of 'sample'"),
        (lambda D, f, lam: {"fit": f(D.x)}, "has no model of its own"),
        (lambda D, f, lam: {"fit": D.y}, "has no model of its own"),
        (lambda D, f, lam: {"fit": torch.ones(3)}, "is no expression per row"),
    ],
)
def test_what_gives_no_multipliers_is_refused(kit, make, message):
    D = kit.sample()
    f, lam = cn.Model(kit.network(), "f"), cn.Model(kit.network(seed=9), "lam")
    made = cn.minimize(E(f(D.x) ** 2)).subject_to(fit=forall(D, f(D.x) <= 3), mean=E(f(D.x)) <= 1)
    with pytest.raises(cn.ModelingError, match=rf"\[E183\].*{message}"):
        made.solve("lagrangian", multipliers=make(D, f, lam), epochs=1, progress=False)


# --------------------------------------------------------------------------------------- several samples
def test_every_sample_has_batches_of_its_own_size(kit):
    D, Q = kit.sample(rows=300), kit.sample(rows=90, seed=4, name="other")
    f = cn.Model(kit.network(), "f")
    made = cn.minimize(E(kit.loss(f(D.x), D.y))).subject_to(c=E(f(Q.x)) <= 0.1)
    evaluator = kit.compiled(made).evaluator
    sampler = BatchSampler(evaluator, {"sample": 20, "other": 45}, torch.Generator().manual_seed(0))
    assert {name: rows.count for name, rows in sampler.draw().items()} == {"sample": 20, "other": 45}
    assert sampler.per_epoch == 15
    with pytest.raises(cn.ModelingError, match=r"\[E141\].*'otherr'.*did you mean 'other'"):
        BatchSampler(evaluator, {"otherr": 3}, torch.Generator())


def test_a_multiplier_function_takes_fresh_points(kit):
    """min E[(u - g)^2] with u >= 0 everywhere: u = max(g, 0), whose multiplier is 2 max(-g, 0)."""
    x = cn.Uniform("x", 0.0, 1.0)
    u, lam = cn.Model(kit.network_of(1), "u"), cn.Model(kit.network_of(1, seed=3), "lam")
    made = cn.minimize(E((u(x) - 2 * x + 1) ** 2)).subject_to(positive=forall(x, u(x) >= 0))
    found = made.solve(
        "lagrangian", multipliers={"positive": lam(x)}, batch=64, epochs=30, lr=1e-2, progress=False
    )
    assert float(found.objective) == pytest.approx(1 / 6, rel=0.15)
    assert float(np.max(found["positive"].violation)) < 0.05
    points = np.asarray(x.node.data.values("x")).reshape(-1)
    expected = 2 * np.maximum(1 - 2 * points, 0)
    assert np.corrcoef(found["positive"].multiplier, expected)[0, 1] > 0.6


# ------------------------------------------------------------------------------------- found in review
def test_rows_that_do_not_differ_leave_steps_finite(kit):
    """The spread of such a constraint is rounding: steps are measured by its gradient instead."""
    g = np.random.default_rng(0).integers(0, 3, 600)
    D, w = cn.Data("d", s=np.array([1.0, 0.9, 0.7])[g], g=g), cn.Variable((), "w")
    lagrangian = cn.minimize(0.5 * w**2).subject_to(m=E(D.s - w * D.s, by=D.g) <= 0.3).compile()
    assert float(lagrangian.scales.max()) < 100


def test_products_over_a_small_group_are_unbiased():
    """Halves of one permutation are dependent by 1 / rows, which in a group of four rows is a sixth."""
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=400), np.zeros(400, dtype=int)
    g[:4], x[:4] = 1, [-1, 0, 1, 4]
    D, v = cn.Data("d", x=x, g=g), cn.Variable((), "v")
    v.value = 1.0
    lagrangian = cn.minimize(v**2).subject_to(c=cn.Var(v * D.x, by=D.g) <= 1).compile()
    sampler = BatchSampler(lagrangian.evaluator, 32, torch.Generator().manual_seed(0), halves=True)
    found = torch.stack(
        [lagrangian.estimate(sampler.draw()).exact.residuals[0].detach() for _ in range(2000)]
    )
    assert agree(found, lagrangian.evaluator.full().residuals[0].double())


def test_a_loop_of_your_own_follows_the_thresholds():
    x = np.random.default_rng(0).normal(size=500)[:, None] + 1
    D = cn.Data("d", x=x)
    module = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False, dtype=torch.float64), torch.nn.Flatten(0))
    module[0].weight.data.fill_(0.5)
    f = cn.Model(module, "f")
    lagrangian = cn.maximize(E(f(D.x))).subject_to(q=cn.Quantile(f(D.x), 0.9) <= 2).compile()
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(800):
        optimizer.zero_grad()
        lagrangian(D.rows(torch.randint(500, (100,), generator=generator))).backward()
        optimizer.step()
        lagrangian.ascend()
    assert abs(float(module[0].weight.detach())) * np.quantile(x, 0.9) < 4  # without following it runs away
