"""Continuous populations: quadrature is exact where it should be, draws have the law, training uses them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, P, forall
from constrain.driver.setup import prepare
from constrain.lowering.lower import lower

CPU = torch.device("cpu")


def compiled(problem, dtype=torch.float64, **options):
    return prepare(lower(problem), device=CPU, dtype=dtype, **options).evaluator


def average(e, dtype=torch.float64):
    """The value of a statistic by a full pass."""
    t = cn.Variable((), "t")
    return float(compiled(cn.minimize(e + 0 * t), dtype).full().objective)


def network(features, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)


# ----------------------------------------------------------------------------------------- quadrature
@pytest.mark.parametrize("size", [1, 2, 3, 8, 64])
def test_gauss_legendre_is_exact_to_degree_2n_minus_1(size):
    a, b = -1.0, 2.0
    x = cn.Uniform("x", a, b, size=size)
    for degree in range(min(2 * size, 20)):
        exact = (b ** (degree + 1) - a ** (degree + 1)) / ((degree + 1) * (b - a))
        assert math.isclose(average(E(x**degree)), exact, rel_tol=1e-11, abs_tol=1e-12)


@pytest.mark.parametrize("size", [2, 5, 32])
def test_gauss_hermite_is_exact_to_degree_2n_minus_1(size):
    x = cn.Normal("x", 1.0, 2.0, size=size)
    moments = [1.0, 1.0]
    for k in range(2, min(2 * size, 9)):  # E x^k = mean E x^(k-1) + (k - 1) variance E x^(k-2)
        moments.append(moments[k - 1] + (k - 1) * 4.0 * moments[k - 2])
    for degree, exact in enumerate(moments):
        assert math.isclose(average(E(x**degree)), exact, rel_tol=1e-11)


def test_products_of_rules():
    z = cn.Box("z", [0.0, -1.0], [2.0, 1.0], size=(3, 5))
    assert len(z.region) == 15
    exact = (2**6 / (6 * 2)) * (1 / 9)  # E a^5 and E b^8
    assert math.isclose(average(E(z[..., 0] ** 5 * z[..., 1] ** 8)), exact, rel_tol=1e-12)
    n = cn.Normal("n", [0.0, 1.0], [1.0, 3.0], size=4)
    assert math.isclose(average(E(n[..., 0] ** 2 * n[..., 1] ** 2)), 10.0, rel_tol=1e-12)


def test_the_trapezoid_rule():
    x = cn.Uniform("x", 0.0, 3.0, size=4, rule="trapezoid")
    assert x.region.values("x").tolist() == [0.0, 1.0, 2.0, 3.0]
    assert math.isclose(average(E(2 * x + 1)), 4.0, rel_tol=1e-12)
    assert math.isclose(average(E(x**2)), (0.5 * 0 + 1 + 4 + 0.5 * 9) / 3, rel_tol=1e-12)
    same = cn.Grid("x", axes=[[0.0, 1.0, 2.0, 3.0]], weights="trapezoid")
    assert math.isclose(average(E(same**2)), average(E(x**2)), rel_tol=1e-12)
    uneven = cn.Grid("x", axes=[[0.0, 1.0, 4.0], [0.0, 2.0]], weights="trapezoid")
    assert math.isclose(average(E(uneven[..., 0] * uneven[..., 1])), 2.0, rel_tol=1e-12)


def test_sobol_points_fill_the_region_evenly_and_are_the_same_in_every_run():
    z = cn.Box("z", [0.0] * 4, [1.0, 2.0, 1.0, 1.0], size=1024)
    assert z.region.rule == "sobol"
    assert z.region.weights is None
    again = cn.Box("z", [0.0] * 4, [1.0, 2.0, 1.0, 1.0], size=1024)
    assert np.array_equal(z.region.values("z"), again.region.values("z"))
    assert math.isclose(average(E(z[..., 1])), 1.0, rel_tol=1e-3)
    assert math.isclose(average(P(z[..., 0] + z[..., 2] < 1)), 0.5, abs_tol=5e-3)
    x = cn.Normal("x", 3.0, 2.0, size=4096, rule="sobol")
    assert math.isclose(average(E((x - 3) ** 2)), 4.0, rel_tol=1e-2)


def test_a_step_over_points_for_smooth_functions_is_warned_of():
    z, t = cn.Normal("z", 0.0, 1.0), cn.Variable((), "t")
    with pytest.warns(cn.ModelingWarning, match=r"\[W214\] .*is a step over 'z', whose .* points \(gauss\)"):
        cn.minimize((t - 1) ** 2).subject_to(c=P(z > 0.2) + t <= 10).compile()
    fine = cn.Normal("z", 0.0, 1.0, rule="sobol", size=4096)
    solution = cn.minimize((t - 1) ** 2).subject_to(c=P(fine > 0.2) + t <= 10).solve(progress=False)
    assert float(solution["c"].value) - 1 == pytest.approx(0.4207, abs=2e-3)


def test_grids_weigh_their_points():
    b = cn.Grid("b", [0.0, 1.0, 5.0], weights=[1, 1, 2])
    assert math.isclose(average(E(b)), 11 / 4, rel_tol=1e-12)
    assert math.isclose(average(E(cn.Grid("c", torch.tensor([[0.0, 1.0], [2.0, 3.0]]))[..., 1])), 2.0)
    assert average(P(b > 0.5)) == pytest.approx(0.75)
    with pytest.raises(cn.DataError, match=r"E124.*a point of the grid 'b' is not finite"):
        average(E(cn.Grid("b", [0.0, math.nan])))


@pytest.mark.filterwarnings("ignore::constrain.errors.ModelingWarning")
def test_conditions_are_weighed_as_well():
    x = cn.Uniform("x", 0.0, 1.0, size=200)
    points, weights = x.region.values("x"), x.region.weights
    chosen = points > 0.3
    exact = (weights * points**2)[chosen].sum() / weights[chosen].sum()
    assert math.isclose(average(E(x**2, given=x > 0.3)), exact, rel_tol=1e-12)
    assert exact == pytest.approx((1 - 0.3**3) / 3 / 0.7, rel=1e-2)
    assert average(P(x > 0.3)) == pytest.approx(0.7, abs=1e-2)
    k = cn.Grid("k", [0.0, 1.0, 1.0, 5.0], weights=[1, 2, 3, 2])
    t = cn.Variable(3, "t")
    t.value = [1.0, 10.0, 100.0]
    groups = compiled(cn.minimize(cn.sum(E(k**2, by=k) + 0 * t[0])))
    assert float(groups.full().objective) == pytest.approx(26.0)


def test_supports_take_the_type_of_the_model():
    u = cn.Model(network(1, torch.float32), "u")
    x = cn.Uniform("x", 0.0, 1.0)
    p = cn.minimize(E((u(x) - x) ** 2)).subject_to(left=u(0.0) == 0, points=cn.sum(u([0.0, 0.5])) <= 1)
    evaluator = compiled(p, torch.float32)
    assert evaluator.full().objective.dtype in (torch.float32, torch.float64)
    assert evaluator.populations[x.region].columns["x"].dtype == torch.float32
    assert average(E(x**2), torch.float32) == pytest.approx(1 / 3, rel=1e-6)


# ------------------------------------------------------------------------------ models of scalars, runs
def test_models_of_scalars_have_the_values_of_the_module():
    net, pair = network(1), network(2)
    u, v = cn.Model(net, "u"), cn.Model(pair, "v")
    x = cn.Uniform("x", 0.0, 1.0, size=5)
    t = cn.Variable((), "t")
    at = {
        "none": u(0.25),
        "whole": u(1),
        "points": cn.sum(u([0.25, 0.5]) * torch.tensor([1.0, 10.0])),
        "pair": v(0.25, 0.5),
        "pairs": cn.sum(v([0.25, 0.5], [0.0, 1.0])),
    }
    p = cn.minimize(t).subject_to(**{name: e + 0 * t == 0 for name, e in at.items()})
    found = dict(zip(at, compiled(p).full().residuals, strict=True))

    def exact(module, *rows):
        return module(torch.tensor(rows, dtype=torch.float64)).detach()[:, 0]

    a, b = exact(net, [0.25], [0.5])
    assert float(found["none"]) == pytest.approx(float(a), rel=1e-12)
    assert float(found["whole"]) == pytest.approx(float(exact(net, [1.0])[0]), rel=1e-12)
    assert float(found["points"]) == pytest.approx(float(a + 10 * b), rel=1e-12)
    assert float(found["pair"]) == pytest.approx(float(exact(pair, [0.25, 0.5])[0]), rel=1e-12)
    assert float(found["pairs"]) == pytest.approx(
        float(exact(pair, [0.25, 0.0], [0.5, 1.0]).sum()), rel=1e-12
    )
    edge = compiled(cn.minimize(t).subject_to(c=forall(x, v(x, 0.5) == v(cn.stack(x, 0.5 + 0 * x))[..., 0])))
    assert edge.row_residuals(0)[0].abs().max() < 1e-12


def test_a_model_with_one_row_per_chunk_keeps_its_rows():
    flat = cn.Model(nn.Sequential(nn.Linear(1, 1), nn.Flatten(0)).double(), "flat")
    x = cn.Uniform("x", 0.0, 1.0, size=3)
    evaluator = compiled(cn.minimize(E(flat(x)) + cn.sum(flat([0.5])) + flat(0.5)))
    whole = float(evaluator.full().objective)
    evaluator.chunk = 1
    assert float(evaluator.full().objective) == pytest.approx(whole, rel=1e-12)


def test_derivatives_at_points_are_those_of_a_grid():
    b = cn.Grid("b", [0.5])
    t = cn.Variable((), "t")
    p = cn.minimize(t**2).subject_to(slope=E(cn.diff(t * torch.sin(b), b)) == 1)
    solution = p.solve(progress=False)
    assert float(t.value) == pytest.approx(1 / math.cos(0.5), rel=1e-6)
    assert float(solution["slope"].value) == pytest.approx(1.0, rel=1e-6)


# ---------------------------------------------------------------------------------------------- draws
DRAWN = [
    (cn.Uniform("x", -1.0, 3.0), [1.0], [16 / 12]),
    (cn.Box("z", [0.0, 1.0], [1.0, 5.0]), [0.5, 3.0], [1 / 12, 16 / 12]),
    (cn.Normal("n", 2.0, 3.0), [2.0], [9.0]),
    (cn.Normal("m", [0.0, 1.0], [1.0, 0.5]), [0.0, 1.0], [1.0, 0.25]),
    (cn.Grid("g", [0.0, 1.0, 5.0], weights=[1.0, 1.0, 2.0]), [2.75], [51 / 4 - 2.75**2]),
]


@pytest.mark.parametrize(("coordinate", "means", "variances"), DRAWN, ids=lambda row: str(row)[:12])
def test_draws_have_the_law_of_the_region(coordinate, means, variances):
    count = 100_000
    generator = torch.Generator().manual_seed(3)
    found = coordinate.region.draw(count, generator).reshape(count, -1)
    for column, mean, variance in zip(found.T, means, variances, strict=True):
        assert abs(float(column.mean()) - mean) < 4 * math.sqrt(variance / count)
        fourth = float(((column - mean) ** 4).mean()) - variance**2
        assert abs(float(((column - mean) ** 2).mean()) - variance) < 4 * math.sqrt(fourth / count)
    again = coordinate.region.draw(count, torch.Generator().manual_seed(3)).reshape(count, -1)
    assert torch.equal(found, again)


def test_estimates_on_fresh_points_are_unbiased():
    """Means over fresh batches equal the quadrature within four standard errors, values and gradients."""
    net = network(1)
    u, x = cn.Model(net, "u"), cn.Uniform("x", 0.0, 1.0, rule="sobol", size=4096)
    r = cn.diff(u(x), x, 2) + x
    p = cn.minimize(E(r**2)).subject_to(late=E(r, given=x > 0.75) <= 0.1, square=E(u(x)) ** 2 <= 0.1)
    lagrangian = p.compile()
    evaluator = lagrangian.evaluator
    population = evaluator.populations[x.region]
    generator = torch.Generator().manual_seed(0)
    values: list[list[float]] = [[], [], []]
    slopes: list[torch.Tensor] = []
    for _ in range(400):
        rows = population.fresh(32, generator)
        assert rows is not None
        assert rows.index is None
        estimate = lagrangian.estimator({"x": rows})
        outer = estimate.primal
        values[0].append(float(outer.objective.detach()))
        for k, residual in enumerate(outer.residuals):
            values[k + 1].append(float(residual.detach()))
        slopes.append(torch.autograd.grad(outer.objective, net[0].bias)[0])
    exact = evaluator.full()
    known = [exact.objective, *exact.residuals]
    for found, wanted in zip(values, known, strict=True):
        spread = np.std(found) / math.sqrt(len(found))
        assert abs(np.mean(found) - float(wanted)) < 4 * spread
    stacked = torch.stack(slopes)
    gradient = evaluator.pull([lambda outer: outer.objective])[0][1]
    names = [block.name for block in evaluator.decisions.blocks]
    error = stacked.mean(0) - gradient[names.index("u.0.bias")]
    assert (error.abs() < 4 * stacked.std(0) / math.sqrt(len(slopes))).all()


def test_training_draws_fresh_points_and_ends_at_the_price():
    """The best affine u with mean 1/2 is the best affine fit, shifted: the multiplier is 2 (E sin - 1/2)."""
    torch.manual_seed(0)
    u, x = cn.Model(nn.Linear(1, 1), "u"), cn.Uniform("x", 0.0, 1.0)
    p = cn.minimize(E((u(x) - torch.sin(3 * x)) ** 2)).subject_to(mean=E(u(x)) == 0.5)
    solution = p.solve("lagrangian", epochs=30, batch=128, seed=0, progress=False)
    assert float(solution["mean"].value) == pytest.approx(0.5, abs=5e-3)
    assert float(solution["mean"].multiplier) == pytest.approx(2 * ((1 - math.cos(3)) / 3 - 0.5), abs=2e-2)


def test_a_relation_at_every_point_trains_with_a_multiplier_per_point():
    torch.manual_seed(0)
    u, x = cn.Model(nn.Linear(1, 1), "u"), cn.Uniform("x", 0.0, 1.0, size=10)
    p = cn.minimize(E((u(x) - 1) ** 2)).subject_to(cap=forall(x, u(x) <= x))
    solution = p.solve("lagrangian", epochs=1500, batch=5, seed=0, progress=False)
    assert solution["cap"].multiplier.shape == (10,)
    assert float(solution.objective) == pytest.approx(1 / 3, abs=2e-2)


def test_a_relation_at_every_point_trains_with_a_multiplier_function_on_fresh_points():
    """min E((u - 1/2)^2) with u(x) <= x: u = min(x, 1/2), the multiplier at x is 2 max(0, 1/2 - x)."""
    torch.manual_seed(0)
    lam = cn.Model(network(1, torch.float32), "lam")
    u, x = cn.Model(network(1, torch.float32), "u"), cn.Uniform("x", 0.0, 1.0)
    p = cn.minimize(E((u(x) - 0.5) ** 2)).subject_to(cap=forall(x, u(x) <= x))
    functions = {"cap": lam(x)}
    solution = p.solve("lagrangian", multipliers=functions, epochs=30, batch=128, seed=0, progress=False)
    multiplier, points = solution["cap"].multiplier, x.region.values("x")
    assert multiplier.shape == (64,)
    assert float(solution.objective) == pytest.approx(1 / 24, abs=3e-3)
    assert float(multiplier.sum()) == pytest.approx(1 / 4, rel=0.15)
    assert float(multiplier[points > 0.6].sum()) < 0.05


def test_a_loop_of_ones_own_takes_fresh_points_points_and_positions():
    torch.manual_seed(0)
    u, x = cn.Model(network(1), "u"), cn.Uniform("x", 0.0, 1.0, rule="sobol", size=64)
    p = cn.minimize(E(cn.diff(u(x), x) ** 2)).subject_to(left=u(0.0) == 1, late=E(u(x), given=x > 0.5) <= 1)
    lagrangian = p.compile()
    points = torch.tensor([0.1, 0.7, 0.9])
    region = x.region
    for batch in (
        {"x": 64},
        {"x": points},
        {"x": torch.arange(5)},
        region.rows(torch.arange(5)),
        {"x": slice(9)},
    ):
        loss = lagrangian(batch)
        loss.backward()
        lagrangian.ascend()
        assert loss.shape == ()
    found = lagrangian.batches({"x": points})["x"]
    assert found.index is None
    assert torch.equal(found.columns["x"], points.double())
    assert lagrangian.batches({"x": 64})["x"].columns["x"].shape == (64,)
    with pytest.raises(cn.ModelingError, match=r"E140.*no rows of 'x'") as caught:
        lagrangian({})
    assert "fresh points" in str(caught.value)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_step_needs_no_numbers_of_the_device(fresh):
    """On meta tensors, which have none."""
    u, x = cn.Model(network(1, torch.float32), "u"), cn.Box("x", [0.0], [1.0])
    p = cn.minimize(E(cn.laplacian(u(x)[..., 0], x) ** 2)).subject_to(
        left=u(0.0) == 1, c=E(u(x)[..., 0]) <= 1
    )
    lagrangian = p.compile(device="meta")
    loss = lagrangian({"x": 32 if fresh else torch.arange(5)})
    loss.backward()
    lagrangian.ascend()
    assert loss.device.type == "meta"


# ------------------------------------------------------------------------------------ the other routes
def test_regression_on_a_region_by_every_full_route():
    """min E((a + b x - x^2)^2) is the best line, a = -1/6 and b = 1, by either route."""
    for method in ("cvxpy", "augmented"):
        w, x = cn.Variable(2, "w"), cn.Uniform("x", 0.0, 1.0, size=4)
        p = cn.minimize(E((w[0] + w[1] * x - x**2) ** 2))
        solution = p.solve(method, progress=False)
        assert np.allclose(w.value, [-1 / 6, 1.0], atol=1e-5), method
        assert float(solution.objective) == pytest.approx(1 / 180, rel=1e-4)


def test_quadrature_has_no_sampling_error():
    x = cn.Uniform("x", 0.0, 1.0, size=8)
    w = cn.Variable((), "w")
    solution = cn.minimize(E((w - x) ** 2)).subject_to(c=E(w * x) <= 0.1).solve(progress=False)
    c = solution["c"]
    assert c.verdict == "holds"
    assert np.ravel(c.interval) == pytest.approx([0.1, 0.1], abs=1e-6)
    finer = cn.Uniform("x", 0.0, 1.0, size=20)
    for data in (finer, {"x": finer}, finer.region):
        assert solution.evaluate(data).objective == pytest.approx(float(solution.objective), rel=1e-9)


def test_a_solution_is_judged_on_points_of_ones_own():
    x, w = cn.Uniform("x", 0.0, 1.0), cn.Variable((), "w")
    solution = cn.minimize(E((w - x) ** 2)).solve(progress=False)
    other = solution.evaluate(cn.Data("x", x=np.array([0.5, 0.5, 0.0])))
    assert other.objective == pytest.approx(0.25 / 3, rel=1e-4)


# ------------------------------------------------------------------------------------------- refusals
REFUSED = [
    ("cn.Uniform('x', 1.0, 1.0)", "Uniform 'x' reaches from 1 to 1"),
    ("cn.Uniform('x', 0.0, math.inf)", "upper is inf"),
    ("cn.Uniform('x', [0.0, 1.0], [1.0, 2.0])", "lower is [0.0, 1.0]"),
    ("cn.Uniform('x', 'a', 1.0)", "lower is 'a'"),
    ("cn.Box('z', 0.0, 1.0)", "Box 'z' has 1 lower and 1 upper ends"),
    ("cn.Box('z', [0.0, 0.0], [1.0])", "Box 'z' has 2 lower and 1 upper ends"),
    ("cn.Normal('x', 0.0, 0.0)", "Normal 'x' has the standard deviation 0"),
    ("cn.Normal('x', [0.0, 1.0], [1.0, 1.0, 1.0])", "Normal 'x' has 2 means and 3 deviations"),
    ("cn.Normal('x', rule='trapezoid')", "no rule for the support of a normal coordinate"),
    ("cn.Normal('x', size=400)", "a support of 400 points with rule 'gauss'"),
    ("cn.Uniform('x', 0, 1, rule='simpson')", "is called 'simpson'"),
    ("cn.Uniform('x', 0, 1, size=0)", "a support of 0 points"),
    ("cn.Uniform('x', 0, 1, size=1, rule='trapezoid')", "a support of 1 points with rule 'trapezoid'"),
    ("cn.Uniform('x', 0, 1, size=2.5)", "size is 2.5"),
    ("cn.Box('z', [0, 0], [1, 1], size=[3])", "size is [3]"),
    ("cn.Box('z', [0] * 3, [1] * 3, size=1000, rule='gauss')", "a support of 1000 x 1000 x 1000 points"),
    ("cn.Grid('b')", "Grid 'b' needs either points or axes"),
    ("cn.Grid('b', [0.0], axes=[[0.0]])", "Grid 'b' needs either points or axes"),
    ("cn.Grid('b', [])", "the points of Grid 'b' have shape (0,)"),
    ("cn.Grid('b', 0.0)", "the points of Grid 'b' have shape ()"),
    ("cn.Grid('b', [0.0, 1.0], weights='trapezoid')", "2 points and the weights 'trapezoid'"),
    ("cn.Grid('b', [0.0, 1.0], weights=[1.0])", "2 points and the weights of shape (1,)"),
    ("cn.Grid('b', [0.0, 1.0], weights=[1.0, -1.0])", "weights with minimum -1 and sum 0"),
    ("cn.Grid('b', axes=[[0.0, 0.0]])", "an axis of Grid 'b' does not increase"),
]


@pytest.mark.parametrize(("written", "said"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_no_region(written, said):
    with pytest.raises(cn.ModelingError) as caught:
        eval(written)
    assert caught.value.code == "E163"
    assert said in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    "kind", ["Uniform('a b', 0, 1)", "Box(1, [0], [1])", "Normal('')", "Grid('1', [0.0])"]
)
def test_names_are_identifiers(kind):
    with pytest.raises(cn.ModelingError, match=r"E117.*needs a name that is a Python identifier"):
        eval(f"cn.{kind}")


def test_what_a_region_says_of_itself():
    assert repr(cn.Uniform("x", 0.0, 1.0).region) == "<Region x, uniform (0, 1), with 64 points (gauss)>"
    box = cn.Box("z", [0.0, 0.0], [1.0, 2.0], size=(2, 3)).region
    assert repr(box) == "<Region z, uniform (0, 1) x (0, 2), with 6 points (gauss)>"
    assert repr(cn.Grid("b", [0.0, 1.0]).region) == "<Grid b with 2 points>"


# ---------------------------------------------------------------- derivatives of what is affine, by CVXPY
class Waves(nn.Module):
    """Random waves with a trainable last layer: affine in its weights."""

    def __init__(self, features, count):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.last = nn.Linear(count, 1).double()
        self.register_buffer("slopes", 4 * torch.randn(features, count, generator=generator).double())
        self.register_buffer("phases", 6 * torch.rand(count, generator=generator).double())

    def forward(self, x):
        return self.last(torch.sin(x @ self.slopes + self.phases))


def test_a_boundary_value_problem_with_a_trainable_last_layer_is_a_certified_quadratic_program():
    net = Waves(1, 30)
    u, x = cn.Model(net, "u"), cn.Uniform("x", 0.0, 1.0)
    residual = -cn.diff(u(x), x, 2) - math.pi**2 * torch.sin(math.pi * x)
    p = cn.minimize(E(residual**2)).subject_to(left=u(0.0) == 0, right=u(1.0) == 0)
    solution = p.solve(progress=False)
    assert str(solution.status) == "optimal"
    points = torch.linspace(0, 1, 201, dtype=torch.float64)
    assert (net(points[:, None])[:, 0] - torch.sin(math.pi * points)).abs().max() < 1e-5


def test_the_multiplier_of_a_boundary_value_is_the_flux():
    """min E(u'^2 / 2 - f u) with u(0) = u(1) = 0: the multipliers are u'(0) and -u'(1), here pi."""
    u, x = cn.Model(Waves(1, 30), "u"), cn.Uniform("x", 0.0, 1.0)
    energy = cn.diff(u(x), x) ** 2 / 2 - math.pi**2 * torch.sin(math.pi * x) * u(x)
    solution = cn.minimize(E(energy)).subject_to(left=u(0.0) == 0, right=u(1.0) == 0).solve(progress=False)
    assert float(solution["left"].multiplier) == pytest.approx(math.pi, rel=1e-4)
    assert float(solution["right"].multiplier) == pytest.approx(math.pi, rel=1e-4)
    assert float(solution.objective) == pytest.approx(-(math.pi**2) / 4, rel=1e-5)


AFFINE = {
    "variables": lambda s: cn.diff(
        s.w[0] * torch.sin(s.z[..., 0]) + s.w[1] * s.z[..., 0] ** 2, s.z[..., 0], 2
    ),
    "a knob": lambda s: cn.diff(s.k * s.w[0] * torch.sin(s.z[..., 1]), s.z[..., 1]),
    "a model": lambda s: cn.laplacian(s.v(s.z)[..., 0], s.z),
    "a model of scalars": lambda s: cn.diff(s.v(s.z[..., 0], s.z[..., 1]), s.z[..., 1]) * s.z[..., 0],
    "a vector": lambda s: cn.sum(cn.grad(s.v(s.z)[..., 0], s.z), axis=-1) + s.w[0],
    "all weights": lambda s: cn.diff(s.z[..., 0] ** 2 * cn.sum(s.weights), s.z[..., 0]),
    "constants": lambda s: cn.diff(torch.exp(s.z[..., 0]), s.z[..., 0]) * s.w[1] - s.v(0.2, 0.3),
}


@pytest.mark.parametrize("kind", AFFINE)
def test_affine_derivatives_are_the_same_numbers_for_cvxpy_and_torch(kind):
    class Names:
        z = cn.Box("z", [0.0, 0.0], [1.0, 1.0], size=4)
        w = cn.Variable(2, "w")
        k = cn.Parameter("k", 1.5)
        v = cn.Model(Waves(2, 6), "v")
        weights = cn.Expr(cn.sum_squares(v).node.args[0])

    torch.manual_seed(1)
    residual = AFFINE[kind](Names) - 1
    p = cn.minimize(E(residual**2) + 0.1 * cn.sum_squares(Names.w) + 0.1 * cn.sum_squares(Names.v))
    solution = p.solve("cvxpy", progress=False)
    with torch.no_grad():
        start = [q.clone() for q in Names.v.module.parameters()]
    assert str(solution.status) == "optimal"
    again = p.solve("augmented", progress=False)
    assert float(again.objective) == pytest.approx(float(solution.objective), rel=1e-5)
    for now, before in zip(Names.v.module.parameters(), start, strict=True):
        assert torch.allclose(now, before, atol=1e-4)


def test_a_derivative_that_is_not_affine_is_said_to_be_none():
    u, x = cn.Model(network(1), "u"), cn.Uniform("x", 0.0, 1.0)
    t = cn.Variable((), "t")
    with pytest.raises(cn.RouteError, match=r"E125.*u is not affine in its weights"):
        cn.minimize(E(cn.diff(u(x), x) ** 2)).solve("cvxpy", progress=False)
    with pytest.raises(cn.RouteError, match="is a derivative of what is convex in the decisions"):
        cn.minimize(E(cn.diff(torch.exp(t * x), x) ** 2)).solve("cvxpy", progress=False)
