"""`cn.op`: wrong declarations are refused, right ones behave as functions of the language."""

from __future__ import annotations

import itertools

import cvxpy as cp
import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, forall
from constrain.language.atoms import ATOMS

ELEMENTWISE = {
    "shape": "()->()",
    "curvature": "convex",
    "monotone": "by-sign",
    "sign": "nonneg",
    "smooth": True,
}


def soft_abs(x, width=0.1):
    return torch.sqrt(x * x + width * width) - width


def soft_abs_cone(x, width=0.1):
    flat = cp.reshape(x, (x.size,), order="C")
    pair = cp.vstack([flat, width * np.ones(x.size)])
    return cp.reshape(cp.norm(pair, 2, axis=0), x.shape, order="C") - width


def span(x):
    """max(x) - min(x), of the last axis."""
    return x.amax(-1) - x.amin(-1)


def weighted(x, w):
    """sum_i w_i x_i^2."""
    return (w * x * x).sum(-1)


class Halved(torch.autograd.Function):
    """A square whose backward is wrong by a factor."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


SOFT = cn.op(
    "test_soft_abs",
    torch=soft_abs,
    **ELEMENTWISE,
    cvxpy=soft_abs_cone,
    pyomo=lambda x, width=0.1: (x * x + width * width) ** 0.5 - width,
    latex=r"\mathrm{s}",
)
SPAN = cn.op(
    "test_span",
    torch=span,
    shape="(n)->()",
    curvature="convex",
    monotone="none",
    sign="nonneg",
    smooth=False,
    cvxpy=lambda x: cp.max(x, axis=x.ndim - 1) - cp.min(x, axis=x.ndim - 1),
)
WEIGHTED = cn.op(
    "test_weighted",
    torch=weighted,
    shape="(n),(n)->()",
    curvature="none",
    monotone="none",
    sign="any",
    smooth=True,
    pyomo=lambda x, w: sum(w[i] * x[i] ** 2 for i in range(len(x))),
)
CUBE = cn.op(
    "test_cube",
    torch=lambda x: x**3,
    **{**ELEMENTWISE, "monotone": "increasing"},
    domain=(0, None),
    cvxpy=lambda x: cp.power(x, 3),
)
LINE = cn.op(
    "test_line",
    torch=lambda x: x.cumsum(-1),
    shape="(n)->(n)",
    curvature="affine",
    monotone="increasing",
    sign="any",
    smooth=True,
    cvxpy=lambda x: cp.cumsum(x, axis=x.ndim - 1),
    pyomo=np.cumsum,
)


def data(rows=60):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return cn.Data("d", x=x, y=x @ slope + torch.randn(rows, generator=generator, dtype=torch.float64))


# ------------------------------------------------------------------------------------ right declarations
def test_every_route_finds_the_same_optimum_as_cvxpy():
    D, w = data(), cn.Variable(3, "w")
    problem = cn.minimize(E(SOFT(D.x @ w - D.y, width=0.3))).subject_to(total=cn.sum(w) <= -1)
    x, y, v = D.values("x").numpy(), D.values("y").numpy(), cp.Variable(3)
    total = cp.sum(v) <= -1
    norms = cp.norm(cp.vstack([x @ v - y, 0.3 * np.ones(60)]), 2, axis=0)
    oracle = cp.Problem(cp.Minimize(cp.sum(norms) / 60 - 0.3), [total])
    oracle.solve(solver="CLARABEL", tol_gap_rel=1e-11, tol_gap_abs=1e-11, tol_feas=1e-11)
    for route in ("cvxpy", "newton", "augmented", "pyomo"):
        w.value = np.zeros(3)
        solution = problem.solve(route, progress=False)
        assert solution.status.value == "optimal", route
        assert solution.objective == pytest.approx(oracle.value, rel=1e-7), route
        assert solution["total"].multiplier == pytest.approx(float(total.dual_value), rel=1e-4), route


def test_functions_of_vectors_on_rows_matrices_and_constants():
    D, w = data(), cn.Variable((4, 3), "w")
    assert SPAN(D.x).shape == ()
    assert SPAN(w).shape == (4,)
    assert WEIGHTED(D.x, np.array([1.0, 2.0, 3.0])).shape == ()
    assert WEIGHTED(w, D.x).shape == (4,)
    assert LINE(w).shape == (4, 3)
    w.value = np.arange(12.0).reshape(4, 3)
    total = cn.minimize(E(cn.sum(WEIGHTED(w, D.x)))).evaluate().objective
    assert total == pytest.approx(float((D.values("x").numpy() @ (w.value**2).T).sum(1).mean()), rel=1e-12)


def test_a_convex_function_of_vectors_per_row_and_over_all():
    """min E(span(x - w)) is a linear program; its value is that of CVXPY's own form."""
    D, w, v = data(), cn.Variable(3, "w"), cp.Variable(3)
    problem = cn.minimize(E(SPAN(D.x - w))).subject_to(near=SPAN(w) <= 0.05)
    shifted = D.values("x").numpy() - cp.reshape(v, (1, 3), order="C")
    near = cp.max(v) - cp.min(v) <= 0.05
    spans = cp.max(shifted, axis=1) - cp.min(shifted, axis=1)
    oracle = cp.Problem(cp.Minimize(cp.sum(spans) / 60), [near]).solve(solver="CLARABEL")
    assert problem.explain().method == "cvxpy"
    assert problem.solve(progress=False).objective == pytest.approx(oracle, rel=1e-7)
    closed = next(r for r in problem.explain().routes if r.method == "newton")
    assert not closed.open
    assert "test_span" in closed.reason
    assert "kinks" in closed.reason


def test_an_affine_function_keeps_a_linear_program_linear():
    u = cn.Variable(3, "u", bounds=(0, 2))
    problem = cn.maximize(cn.sum(u)).subject_to(path=LINE(u) <= np.array([1.0, 1.5, 4.0]))
    for route in ("cvxpy", "pyomo", "newton"):
        assert problem.solve(route, progress=False).objective == pytest.approx(3.5, abs=1e-6), route
    assert problem.explain().facts.problem_class == "LP"


def test_curvature_is_used_on_the_domain_alone():
    u, free = cn.Variable(2, "u", nonneg=True), cn.Variable(2, "free")
    held = cn.minimize(cn.sum(CUBE(u))).subject_to(c=cn.sum(u) >= 2)
    assert held.explain().method == "cvxpy"
    assert held.solve(progress=False).objective == pytest.approx(2.0, rel=1e-6)
    reason = cn.minimize(cn.sum(CUBE(free))).explain().facts.certificate
    assert "test_cube is convex on [0, inf], and free is known to be in [-inf, inf] only" in reason
    composed = cn.minimize(cn.sum(CUBE(cn.square(free)))).subject_to(c=cn.sum(free) >= 2)
    assert composed.explain().facts.convex
    assert composed.solve(progress=False).objective == pytest.approx(2.0, rel=1e-6)


def test_composition_follows_the_declared_monotonicity():
    u = cn.Variable(2, "u")
    assert cn.minimize(cn.sum(SOFT(u - 1))).explain().facts.convex
    assert cn.minimize(cn.sum(SOFT(cn.exp(u)))).explain().facts.convex  # nondecreasing where nonnegative
    assert not cn.minimize(cn.sum(SOFT(cn.square(u) - 1))).explain().facts.convex


def test_constraints_per_row_and_training_on_batches():
    D, w = data(), cn.Variable(3, "w")
    each = cn.find().subject_to(each=forall(D, SOFT(D.x @ w - D.y) <= 3.0))
    assert each.solve(progress=False).status.value in ("optimal", "feasible")
    problem = cn.minimize(E(SOFT(D.x @ w - D.y))).subject_to(total=cn.sum(w) <= -1)
    exact = problem.solve("cvxpy", progress=False).objective
    w.value = np.zeros(3)
    trained = problem.solve("lagrangian", batch=20, epochs=150, lr=0.03, progress=False)
    assert trained.objective == pytest.approx(exact, rel=2e-2)


def test_printing_source_and_json():
    D, w = data(), cn.Variable(3, "w")
    problem = cn.minimize(E(SOFT(D.x @ w - D.y, width=0.3)))
    assert str(problem) == "minimize   E[test_soft_abs(x @ w - y, width=0.3)]"
    assert r"\mathrm{s}\left(" in problem._repr_latex_()
    assert eval(repr(problem), problem.symbols()) == problem
    assert cn.from_json(problem.to_json(), {"d": D, "w": w}) == problem


def test_a_convex_function_without_a_lowering_closes_the_route_that_needs_one():
    plain = cn.op("test_plain", torch=soft_abs, **ELEMENTWISE)
    u = cn.Variable((), "u")
    routes = {r.method: r for r in cn.minimize(plain(u)).explain().routes}
    assert routes["cvxpy"].reason == "test_plain is convex by its declaration, which has no cvxpy="
    assert routes["pyomo"].reason == "test_plain is declared without pyomo="
    solution = cn.minimize(plain(u - 3.0)).solve(progress=False)
    assert solution.status.value == "optimal"  # the declaration certifies what Newton's method found
    assert u.value == pytest.approx(3.0, abs=1e-6)


# ------------------------------------------------------------------------------------ wrong declarations
COUNTER = itertools.count()


def declare(function, **changes):
    """A declaration under a name of its own."""
    return cn.op(f"test_wrong_{next(COUNTER)}", torch=function, **{**ELEMENTWISE, **changes})


INCOMPLETE = {
    "no sign": ({"sign": None}, "it lacks sign, and the analysis guesses nothing"),
    "no smoothness or shape": ({"smooth": None, "shape": None}, "it lacks shape, smooth"),
    "a curvature that is none": ({"curvature": "konvex"}, "curvature='konvex' is none of its values"),
    "a signature": ({"shape": "n->1"}, "shape='n->1' is no signature"),
    "an axis from nowhere": ({"shape": "(n)->(m)"}, "no argument has the axis 'm'"),
    "monotonicity of two arguments": ({"monotone": ["increasing", "none"]}, "does not fit 1 arguments"),
    "an empty domain": ({"domain": (2, 1)}, "is no interval"),
    "convex and nonpositive": ({"sign": "nonpos"}, "convex and nonpos on all numbers is constant"),
    "concave and by-sign": (
        {"curvature": "concave", "sign": "any"},
        "a function that falls up to 0 and rises from there is not concave",
    ),
    "a lowering without curvature": (
        {"curvature": "none", "cvxpy": soft_abs_cone},
        "a lowering to cvxpy is never used",
    ),
    "an affine kink": (
        {"curvature": "affine", "monotone": "none", "sign": "any", "smooth": False},
        "an affine function has no kinks",
    ),
    "a lowering that is a name": ({"cvxpy": "huber"}, "cvxpy='huber' is no function"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_incomplete_or_contradictory_declarations(case):
    changes, words = INCOMPLETE[case]
    with pytest.raises(cn.ModelingError, match=r"^\[E203\]") as caught:
        declare(soft_abs, **changes)
    assert words in str(caught.value)
    assert "write: " in str(caught.value)


UP = {"monotone": "increasing"}
CONTRADICTED = {
    "curvature": (lambda x: torch.log1p(x * x), {}, "curvature='convex', but between"),
    "concave": (torch.sigmoid, {"curvature": "concave", "sign": "any", **UP}, "curvature='concave', but"),
    "monotonicity": (soft_abs, UP, "monotone='increasing', but it goes from"),
    "by-sign": (lambda x: (x - 1) ** 2, {}, "monotone='by-sign', but it goes from"),
    "sign": (lambda x: x * x - 1, {}, "sign='nonneg', but it is"),
    "domain": (lambda x: x * torch.log(x), {"sign": "any"}, "it is not finite at"),
    "kink": (torch.relu, UP, "smooth=True, but its gradient jumps at"),
    "shape": (span, {"shape": "(n)->(n)", "monotone": "none"}, "declared is (7, 2)"),
    "size": (
        lambda x: (x @ torch.ones(2, dtype=x.dtype)) ** 2,
        {"shape": "(n)->()", "monotone": "none"},
        "the torch function raises RuntimeError on arguments of shape (7, 5)",
    ),
    "rows": (lambda x: (x - x.mean()) ** 2, {"monotone": "none"}, "depends on the other rows"),
    "gradient": (lambda x: soft_abs(x).detach(), {}, "torch records no gradient of it"),
    "backward": (Halved.apply, {}, "its gradient is not its slope"),
    "tensor": (lambda x: x.detach().numpy() ** 2, {}, "the torch function returns a ndarray"),
}


@pytest.mark.parametrize("case", CONTRADICTED)
def test_declarations_that_the_function_contradicts(case):
    function, changes, words = CONTRADICTED[case]
    with pytest.raises(cn.ModelingError, match=r"^\[E204\]") as caught:
        declare(function, **changes)
    assert words in str(caught.value)


SMOOTH = {
    "exp": (torch.exp, UP),
    "softplus": (torch.nn.functional.softplus, UP),
    "square": (torch.square, {}),
    "entropy": (lambda x: -torch.log(x), {"domain": (0, None), "sign": "any", "monotone": "decreasing"}),
    "logsumexp": (lambda x: x.logsumexp(-1), {"shape": "(n)->()", "sign": "any", **UP}),
    "quad over lin": (
        lambda x, y: x * x / y,
        {"shape": "(),()->()", "domain": [(None, None), (0, None)], "monotone": ["by-sign", "decreasing"]},
    ),
    "norm of a pair": (lambda x: torch.sqrt(1 + (x * x).sum(-1)), {"shape": "(2)->()"}),
}


@pytest.mark.parametrize("case", SMOOTH)
def test_right_declarations_are_taken(case):
    """No false alarm: on domains without ends, near poles, for sums and for two arguments."""
    function, changes = SMOOTH[case]
    assert declare(function, **changes).name in ATOMS


def test_a_lowering_that_is_another_function():
    """The huber function of CVXPY is twice that of torch."""
    u = cn.Variable((), "u")
    twice = declare(
        lambda x: torch.nn.functional.huber_loss(x, torch.zeros_like(x), reduction="none"),
        smooth=False,
        cvxpy=lambda x: cp.huber(x, 1.0),
        pyomo=lambda x: x,
    )
    with pytest.raises(cn.ModelingError, match=r"\[E204\] .*: the cvxpy lowering is .*, and torch gives"):
        cn.minimize(twice(u)).solve("cvxpy", progress=False)
    wrong = declare(torch.square, pyomo=lambda x: x**4)
    with pytest.raises(cn.ModelingError, match=r"\[E204\] .*: the pyomo lowering is"):
        cn.minimize(wrong(u)).solve("pyomo", progress=False)


def test_a_lowering_that_breaks_the_disciplined_rules():
    u = cn.Variable((), "u")
    rough = declare(soft_abs, cvxpy=lambda x: cp.power(cp.square(x) + 0.01, 0.5) - 0.1)
    with pytest.raises(cn.ModelingError, match="to cvxpy its lowering is unknown"):
        cn.minimize(rough(u)).solve("cvxpy", progress=False)


def test_calls_and_names():
    with pytest.raises(cn.ModelingError, match=r"\[E117\] test_weighted takes 2 arguments, got 1"):
        WEIGHTED(cn.Variable(3, "u"))
    with pytest.raises(
        cn.ModelingError, match=r"\[E112\] test_weighted needs n = 3, got an argument of shape"
    ):
        WEIGHTED(cn.Variable(3, "u"), np.ones(4))
    with pytest.raises(
        cn.ModelingError, match=r"\[E112\] test_span takes arguments with axes \(n\), got \(\)"
    ):
        SPAN(cn.Variable((), "u"))
    with pytest.raises(cn.ModelingError, match="the option width= of test_soft_abs is a ndarray"):
        SOFT(cn.Variable(3, "u"), width=np.ones(3))
    with pytest.raises(cn.ModelingError, match=r"\[E203\] .*the name is taken: exp is a function already"):
        cn.op("exp", torch=torch.exp, **{**ELEMENTWISE, **UP})
    assert cn.op("test_soft_abs") == SOFT
    again = cn.op("test_cube", torch=lambda x: x**3, **{**ELEMENTWISE, **UP}, domain=(0, None))
    assert again == CUBE  # as when a cell of a notebook runs twice
