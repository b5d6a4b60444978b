"""To and from CVXPY, Pyomo and SymPy: values, constraints and multipliers survive the way there and back."""

import math

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, forall

cp = pytest.importorskip("cvxpy")
pe = pytest.importorskip("pyomo.environ")
sympy = pytest.importorskip("sympy")


# -------------------------------------------------------------------------- random convex problems (law)
def random_problem(seed):
    """A strongly convex objective and constraints of every kind that a cone solver takes; x = start holds."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 5))
    start = rng.uniform(0.2, 1.0, size)
    x = cn.Variable(size, "x", bounds=(0.05, 2.0) if seed % 3 == 0 else None, nonneg=seed % 3 != 0)
    A, b = rng.normal(size=(size + 1, size)), rng.normal(size=size + 1)
    terms = [
        lambda: cn.norm(A @ x - b),
        lambda: cn.sum(cn.abs(A @ x - b)),
        lambda: cn.logsumexp(A @ x),
        lambda: -cn.sum(cn.entr(x)),
        lambda: cn.max(A @ x + b),
        lambda: cn.sum(cn.exp(0.3 * x)) - cn.sum(cn.log(x + 0.1)),
        lambda: cn.sum(cn.softplus(A @ x)),
    ]
    objective = 0.5 * cn.sum_squares(x - rng.normal(size=size)) + 0.3 * terms[rng.integers(len(terms))]()
    c = rng.normal(size=size)
    limits = {
        "half": c @ x <= float(c @ start) + 0.05,
        "plane": cn.sum(x) == float(start.sum()),
        "ball": cn.sum_squares(x - start) <= 0.2,
        "cone": cn.norm(x) <= float(np.linalg.norm(start)) + 0.02,
        "spread": cn.exp(x[0]) + x[1] <= math.exp(start[0]) + start[1] + 0.02,
        "rows": A @ x <= A @ start + 0.1,
    }
    chosen = rng.choice(len(limits), size=2, replace=False)
    relations = {name: limits[name] for name in np.array(list(limits))[chosen].tolist()}
    sign = seed % 2
    problem = cn.maximize(-objective) if sign else cn.minimize(objective)
    return problem.subject_to(**relations)


def check_agreement(seed):
    """The optimum of `to_cvxpy().solve()` is that of our route, its dual values our multipliers; and back."""
    problem = random_problem(seed)
    ours = problem.solve("newton" if seed % 2 else "pyomo", progress=False)
    theirs = problem.to_cvxpy()
    value = theirs.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    sign = -1 if problem.sense == "maximize" else 1
    assert ours.status.solved, seed
    assert sign * value == pytest.approx(ours.objective, rel=1e-6, abs=1e-6), seed
    for name in problem.constraints:
        dual = next(c.dual_value for c in theirs.constraints if c.label == name)
        assert np.squeeze(dual) == pytest.approx(ours[name].multiplier, abs=1e-3, rel=1e-3), (seed, name)
    x = theirs.variables()[0].value
    back = cn.from_cvxpy(theirs)
    assert [v.value.tolist() for v in back.variables if v.name == "x"] == [x.tolist()]
    assert list(back.constraints) == [c.label.replace(":", "_") for c in theirs.constraints]
    again = back.to_cvxpy()
    for variable, other in zip(theirs.variables(), again.variables(), strict=True):
        other.value = variable.value
    assert again.objective.value == pytest.approx(theirs.objective.value, rel=1e-12, abs=1e-12), seed
    for one, other in zip(theirs.constraints, again.constraints, strict=True):
        assert np.squeeze(other.residual) == pytest.approx(np.squeeze(one.residual), abs=1e-12), seed


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_convex_problems_by_cvxpy_itself_and_by_our_routes(first):
    for seed in range(first, first + 10):
        check_agreement(seed)


# ------------------------------------------------------------------------------------------- from cvxpy
def atoms():
    """Every form that `from_cvxpy` knows, on a vector, a matrix and a nonnegative vector."""
    x, y, p = cp.Variable(3, name="x"), cp.Variable((2, 3), name="y"), cp.Variable(3, name="p", nonneg=True)
    q = cp.Parameter(3, name="q", value=np.array([1.0, 2.0, -1.0]))
    A = np.arange(9.0).reshape(3, 3) / 7
    return {
        "sums": cp.sum(y, axis=0) - 2 * x + q,
        "products": A @ x + y.T @ np.ones(2),
        "stacks": cp.hstack([x, 2 * p])[1:5] + cp.vstack([x, p])[0, 1],
        "reshapes": cp.reshape(y, (3, 2), order="F") + cp.reshape(y, (3, 2), order="C") + y.T,
        "slices": x[[0, 2]] + y[1, :2] + x[np.array([True, False, True])],
        "diagonals": cp.diag(x)[0] + cp.diag(cp.diag(p) @ A),
        "running": cp.cumsum(x) + cp.convolve(np.array([1.0, -1.0]), x)[:3] + cp.diff(x)[0],
        "kron": cp.kron(np.eye(2), y)[0, :3],
        "broadcast": cp.broadcast_to(x, (2, 3)) + y,
        "concatenate": cp.concatenate([y, y], axis=0),
        "upper": cp.upper_tri(cp.diag(x) + A),
        "squares": cp.square(x)
        + cp.sum_squares(y)
        + cp.quad_form(x, A @ A.T)
        + cp.quad_over_lin(x, p[0] + 1),
        "norms": cp.norm(x) + cp.norm1(y) + cp.norm_inf(x) + cp.norm(y, "fro") + cp.mixed_norm(y, 2, 1),
        "maxima": cp.max(y, axis=1)[0] + cp.min(x) + cp.maximum(x, p, 0.5) + cp.pos(x) + cp.neg(x),
        "exponentials": cp.exp(x) + cp.log(p + 1) + cp.logistic(x) + cp.log_sum_exp(x) + cp.log1p(p),
        "entropies": cp.entr(p) + cp.kl_div(p, p[::-1] + 1) + cp.rel_entr(p + 1, p + 2),
        "powers": cp.sqrt(p) + cp.power(p, 3) + cp.inv_pos(p + 1) + cp.power(p, 1.5) + cp.geo_mean(p + 1),
        "losses": cp.huber(x, 0.5) + cp.abs(x),
        "statistics": cp.mean(x) + cp.std(x) + cp.var(x) + cp.trace(cp.diag(x)),
        "division": x / 3 - y[0] / cp.exp(0.5),
    }


@pytest.mark.parametrize("name", list(atoms()))
def test_from_cvxpy_keeps_values(name):
    """Every entry of `atom == t` holds at t = the value that cvxpy computes, and at no other t."""
    expression = atoms()[name]
    rng = np.random.default_rng(1)
    for variable in expression.variables():
        variable.value = rng.uniform(0.3, 1.5, variable.shape)
    target = cp.Variable(
        expression.shape, name="target", value=np.reshape(expression.value, expression.shape)
    )
    problem = cn.from_cvxpy(cp.Problem(cp.Minimize(cp.sum(target)), [target == expression]))
    assert problem.kkt().feasibility <= 1e-12
    moved = np.reshape(expression.value, expression.shape) + 0.25
    assert problem.kkt({"target": moved}).feasibility == pytest.approx(0.25)


def test_from_cvxpy_keeps_cones_integers_and_the_sum_of_the_largest():
    x = cp.Variable(3, name="x", integer=True, bounds=[0, 4])
    t = cp.Variable(name="t")
    constraints = [
        cp.SOC(t, x - 1.5),
        cp.sum_largest(x, 2) <= 5,
        cp.sum(x) >= 6,
        cp.ExpCone(t - 3, cp.Constant(1.0), t),
    ]
    constraints[2].set_label("enough")
    problem = cn.from_cvxpy(cp.Problem(cp.Minimize(t), constraints))
    assert [*problem.constraints] == ["c0", "c1", "enough", "c3", "c3_domain"]
    solution = problem.solve(progress=False)
    assert solution.status.value == "optimal"
    assert solution.objective == pytest.approx(math.sqrt(0.75), rel=1e-5)
    assert solution.variables["x"].sum() == 6


def test_from_cvxpy_says_what_it_cannot_take():
    X = cp.Variable((2, 2), NSD=True, name="X")
    with pytest.raises(cn.RouteError, match="attribute NSD of X"):
        cn.from_cvxpy(cp.Problem(cp.Minimize(cp.trace(X))))
    y = cp.Variable((2, 2))
    with pytest.raises(cn.RouteError, match="no form of lambda_sum_largest"):
        cn.from_cvxpy(cp.Problem(cp.Minimize(cp.lambda_sum_largest(y, 1))))


# -------------------------------------------------------------------------------------------- to pyomo
def test_to_pyomo_has_the_names_and_the_optimum():
    x, z = cn.Variable(3, "x", nonneg=True), cn.Variable((2, 2), "z", boolean=True)
    D = cn.Data("d", a=np.arange(12.0).reshape(4, 3))
    problem = cn.maximize(E(D.a @ x) - cn.sum(z)).subject_to(
        room=cn.sum(x) <= 2 + z[0, 1], each=forall(D, D.a @ x <= 20.0), band=cn.between(0.1, x[0], 0.5)
    )
    model = problem.to_pyomo()
    assert {"x", "z", "room", "each", "band_upper", "band_lower"} <= set(model.component_map())
    assert len(model.each) == 4
    pe.SolverFactory("appsi_highs").solve(model)
    assert -pe.value(model.objective) == pytest.approx(problem.solve(progress=False).objective)


# ------------------------------------------------------------------------------------------ from pyomo
def blend():
    """A mixed model: scalar and indexed variables, linear blocks, a range, a curve, a block."""
    m = pe.ConcreteModel()
    m.x = pe.Var(["a", "b"], bounds=(0, 3), initialize=1.0)
    m.z = pe.Var(initialize=0.5)
    m.price = pe.Param(["a", "b"], initialize={"a": 2.0, "b": 1.0}, mutable=True)
    m.cap = pe.Constraint(["i", "j"], rule=lambda m, i: m.x["a"] + (2 if i == "i" else 3) * m.x["b"] <= 4)
    m.curve = pe.Constraint(expr=pe.exp(m.z) + m.z**2 <= 3)
    m.range = pe.Constraint(expr=(-1, m.z - m.x["a"], 2))
    m.sub = pe.Block()
    m.sub.y = pe.Var(domain=pe.NonNegativeReals, initialize=0.2)
    m.sub.link = pe.Constraint(expr=m.sub.y == 0.25 * m.x["b"] + 0.1)
    m.gain = pe.Expression(expr=sum(m.price[k] * m.x[k] for k in m.x))
    m.o = pe.Objective(expr=m.gain + m.z - pe.log(1 + m.sub.y) - m.x["a"] * m.x["a"] / 2, sense=pe.maximize)
    return m


def test_from_pyomo_keeps_names_values_and_the_optimum():
    pytest.importorskip("pyomo_pounce")
    m = blend()
    problem = cn.from_pyomo(m)
    assert list(problem.constraints) == ["cap", "curve", "range", "sub_link"]
    assert {v.name: v.shape for v in problem.variables} == {"x": (2,), "z": (), "sub_y": ()}
    assert next(v for v in problem.variables if v.name == "x").value.tolist() == [1.0, 1.0]
    solution = problem.solve("pyomo", progress=False)
    m.dual = pe.Suffix(direction=pe.Suffix.IMPORT)
    pe.SolverFactory("pounce").solve(m)
    assert solution.objective == pytest.approx(pe.value(m.o), rel=1e-6)
    prices = [
        *solution["cap"].shadow_price,
        *(solution[k].shadow_price for k in ("curve", "range", "sub_link")),
    ]
    theirs = [m.dual[c] for c in (m.cap["i"], m.cap["j"], m.curve, m.range, m.sub.link)]
    assert prices == pytest.approx(theirs, abs=1e-5)


def test_from_pyomo_takes_fixed_variables_as_numbers_and_integers_as_integers():
    m = pe.ConcreteModel()
    m.n = pe.Var(range(3), domain=pe.NonNegativeIntegers, bounds=(0, 7))
    m.fixed = pe.Var(initialize=2.0)
    m.fixed.fix()
    m.c = pe.Constraint(expr=3 * m.n[0] + 5 * m.n[1] + 7 * m.n[2] * m.fixed <= 23)
    m.o = pe.Objective(expr=-4 * m.n[0] - 7 * m.n[1] - 15 * m.n[2] - m.fixed)
    assert cn.from_pyomo(m).solve(progress=False).objective == pytest.approx(-32.0 - 2.0)


def test_from_pyomo_says_what_it_cannot_take():
    m = pe.ConcreteModel()
    m.x = pe.Var(bounds=(0, 1))
    m.o = pe.Objective(expr=pe.asin(m.x))
    with pytest.raises(cn.RouteError, match="no form of asin"):
        cn.from_pyomo(m)
    m.p = pe.Objective(expr=m.x)
    with pytest.raises(cn.RouteError, match="one active objective"):
        cn.from_pyomo(m)


# ------------------------------------------------------------------------------------------ from sympy
def test_from_sympy_keeps_values():
    a, b = sympy.symbols("a b")
    w = cn.Variable(2, "w")
    pieces = [
        (a - 1) ** 2 + sympy.exp(b) / 2 + sympy.pi * a - sympy.sqrt(2) * b,
        sympy.Max(a, b, 1) + sympy.Abs(a - 2 * b) - sympy.Min(a, b),
        sympy.sin(a) * sympy.cos(b)
        + sympy.tanh(a)
        - sympy.log(b)
        + sympy.sinh(a) / sympy.cosh(b)
        + sympy.tan(a),
        sympy.sqrt(b) + b ** sympy.Rational(-3, 2) + sympy.erf(a),
    ]
    point = {a: 0.3, b: 0.8}
    for piece in pieces:
        t = cn.Variable((), "t")
        problem = cn.minimize(t).subject_to(same=t == cn.from_sympy(piece, {a: w[0], "b": w[1]}))
        record = problem.kkt({"w": np.array([0.3, 0.8]), "t": np.array(float(piece.subs(point)))})
        assert record.feasibility <= 1e-12, piece
    relation = cn.from_sympy(a + b <= 1, {a: w[0], b: w[1]})
    assert str(relation) == "w[0] + w[1] ≤ 1"


def test_from_sympy_on_data_and_its_refusals():
    a, b = sympy.symbols("a b")
    D = cn.Data("d", x=torch.arange(4.0, dtype=torch.float64))
    w = cn.Variable((), "w")
    loss = cn.from_sympy((a - b) ** 2, {a: D.x, b: w})
    assert cn.minimize(E(loss)).solve(progress=False).objective == pytest.approx(1.25)
    with pytest.raises(cn.RouteError, match="what b stands for"):
        cn.from_sympy(a + b, {a: w})
    with pytest.raises(cn.RouteError, match="no form of gamma"):
        cn.from_sympy(sympy.gamma(a), {a: w})


def test_from_sympy_of_pieces_and_matrices():
    a, b = sympy.symbols("a b")
    x = np.linspace(-2.0, 2.0, 9)
    D = cn.Data("d", a=x)
    hinge = sympy.Piecewise((a**2, a > 1), (-a, sympy.And(a < 0, a >= -1)), (0, sympy.true))
    values = np.where(x > 1, x**2, np.where((x < 0) & (x >= -1), -x, 0.0))
    w = cn.Variable(2, "w")
    w.value = np.array([0.5, 3.0])
    average = cn.E(cn.from_sympy(hinge, {"a": D.a}))
    assert cn.minimize(average + 0 * w[0]).evaluate().objective == pytest.approx(values.mean())
    entries = {"a": w[0], "b": w[1]}
    column = cn.from_sympy(sympy.Matrix([a, a * b, 1]), entries)
    square = cn.from_sympy(sympy.ImmutableMatrix([[a, b], [b, 2 * a]]), entries)
    assert (column.shape, square.shape) == ((3,), (2, 2))
    weights = np.array([[1.0, 2.0], [3.0, 4.0]])
    total = cn.sum(column * np.array([1.0, 10.0, 100.0])) + cn.sum(square * weights)
    assert cn.minimize(total).evaluate().objective == pytest.approx(0.5 + 15 + 100 + 0.5 + 6 + 9 + 4)


def test_from_sympy_refuses_by_name():
    a = sympy.Symbol("a")
    w = cn.Variable((), "w")
    with pytest.raises(cn.RouteError, match="a last piece for everything else"):
        cn.from_sympy(sympy.Piecewise((a, a > 0)), {a: cn.Data("d", a=np.ones(3)).a})
    with pytest.raises(cn.RouteError, match="no form of MatrixSymbol"):
        cn.from_sympy(sympy.MatrixSymbol("X", 2, 2), {a: w})
    with pytest.raises(cn.RouteError, match="no form of Integral"):
        cn.from_sympy(sympy.Integral(sympy.gamma(a), a), {a: w})
