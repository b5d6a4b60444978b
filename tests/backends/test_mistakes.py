"""Mistakes on the way to other libraries: each is named, with what to write; none is passed over."""

import numpy as np
import pytest
import torch

import constrain as cn

cp = pytest.importorskip("cvxpy")
pyo = pytest.importorskip("pyomo.environ")
ci = pytest.importorskip("constrain.integrations.cvxpy")
pytest.importorskip("constrain.integrations.pyomo")

x, a, b = cn.Variable(3, "x", nonneg=True), cn.Parameter("alpha", 1.0), cn.Parameter("beta")
k = cn.Variable(2, "k", integer=True, bounds=(0, 4))
z = cn.Variable(2, "z")
LP = cn.minimize(cn.sum(x)).subject_to(c=x[0] + 2 * x[1] >= a)
CONE = cn.minimize(cn.norm(x - 1) + cn.exp(x[2])).subject_to(c=x[0] + 2 * x[1] >= a)
NLP = cn.minimize((z[0] * z[1] - 1) ** 2 + torch.sin(z[0]))
MILP = cn.minimize(cn.sum(k)).subject_to(c=k[0] + k[1] >= 1.5)
OPEN = cn.minimize(cn.sum(x)).subject_to(c=x[0] >= b)
v = cp.Variable(2)
THEIRS = cp.Problem(cp.Minimize(cp.sum_squares(v - 1)), [cp.sum(v) <= 1])


def model():
    m = pyo.ConcreteModel()
    m.y = pyo.Var([0, 1], bounds=(0, 3))
    m.c = pyo.Constraint(expr=m.y[0] + m.y[1] >= 1)
    m.o = pyo.Objective(expr=m.y[0] ** 2 + m.y[1])
    return m


def abstract():
    m = pyo.AbstractModel()
    m.y = pyo.Var()
    m.o = pyo.Objective(expr=m.y)
    return m


def by_pyomo(options):
    return pyo.SolverFactory("constrain").solve(model(), options=options)


def solved(problem, method, **options):
    return problem.solve(method, progress=False, **options)


MISTAKES = {
    "parameter of to_cvxpy": (lambda: LP.to_cvxpy(params={"alpa": 2.0}), "E127", "did you mean 'alpha'"),
    "parameter of to_pyomo": (lambda: LP.to_pyomo(params={"alpa": 2.0}), "E127", "did you mean 'alpha'"),
    "no value for to_pyomo": (OPEN.to_pyomo, "E127", "'beta' has no value"),
    "nonconvex to_cvxpy": (NLP.to_cvxpy, "E125", "product of two expressions"),
    "solver of cvxpy": (lambda: solved(LP, "cvxpy", solver="CLARABLE"), "E125", "no installed solver"),
    "solver that cannot": (lambda: solved(CONE, "cvxpy", solver="HIGHS"), "E125", "cannot take the problem"),
    "option of clarabel": (lambda: solved(CONE, "cvxpy", options={"max_itr": 5}), "E141", "max_itr"),
    "option of highs": (lambda: solved(LP, "cvxpy", options={"time_limt": 5}), "E141", "time_limt"),
    "option of scs": (lambda: solved(CONE, "cvxpy", solver="SCS", options={"epss": 5}), "E141", "epss"),
    "solver of pyomo": (lambda: solved(LP, "pyomo", solver="gurobi"), "E125", "one of highs, pounce, ipopt"),
    "close solver": (lambda: solved(LP, "pyomo", solver="higs"), "E125", "did you mean 'highs'"),
    "option of highs in pyomo": (
        lambda: solved(LP, "pyomo", options={"time_limt": 5}),
        "E141",
        "does not take the option 'time_limt'",
    ),
    "value of an option": (
        lambda: solved(LP, "pyomo", options={"mip_rel_gap": "small"}),
        "E141",
        "with the value 'small'",
    ),
    "highs for curves": (lambda: solved(NLP, "pyomo", solver="highs"), "E125", "linear constraints and"),
    "a number": (lambda: cn.from_cvxpy(3), "E117", "takes a cvxpy.Problem, got int"),
    "a variable": (lambda: cn.from_cvxpy(v), "E117", "takes a cvxpy.Problem, got Variable"),
    "our own": (lambda: cn.from_cvxpy(LP), "E117", "a problem of this language already"),
    "of cvxpy to pyomo": (lambda: cn.from_pyomo(THEIRS), "E117", "takes a pyomo.ConcreteModel, got Problem"),
    "a component": (lambda: cn.from_pyomo(model().y), "E117", "got IndexedVar"),
    "an abstract model": (lambda: cn.from_pyomo(abstract()), "E117", "create_instance"),
    "route in cvxpy": (
        lambda: THEIRS.solve(method="constrain", route="newtn"),
        "E125",
        "did you mean 'newton'",
    ),
    "option in cvxpy": (lambda: THEIRS.solve(method="constrain", tolerence=1.0), "E141", "'tolerence'"),
    "method of the object": (lambda: THEIRS.solve(solver=ci.conic("newtn")), "E125", "did you mean 'newton'"),
    "no method at all": (lambda: THEIRS.solve(solver=ci.conic(3)), "E125", "method=3 is no method"),
    "route in pyomo": (lambda: by_pyomo({"route": "newtn"}), "E125", "did you mean 'newton'"),
    "option in pyomo": (lambda: by_pyomo({"tolerence": 1}), "E141", "did you mean 'tolerance'"),
    "solver as a method": (lambda: solved(LP, "SCS"), "E125", "solve('cvxpy', solver='SCS')"),
    "highs as a method": (lambda: solved(LP, "highs"), "E125", "solve('pyomo', solver='highs')"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named(case):
    make, code, words = MISTAKES[case]
    with pytest.raises(cn.ConstrainError) as caught:
        make()
    assert caught.value.code == code
    assert words in str(caught.value)


def test_an_option_that_the_nonlinear_solver_does_not_have():
    pytest.importorskip("pyomo_pounce")
    with pytest.raises(cn.ModelingError, match="not a valid option"):
        solved(NLP, "pyomo", options={"tole": 5})
    with pytest.raises(cn.RouteError, match="pounce cannot take the problem"):
        solved(MILP, "pyomo", solver="pounce")


def test_names_of_solvers_in_any_case():
    assert solved(LP, "pyomo", solver="HIGHS").objective == pytest.approx(0.5)
    assert solved(LP, "cvxpy", solver="highs").objective == pytest.approx(0.5)
    assert np.all(x.value >= 0)
