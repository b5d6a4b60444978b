"""Every known problem by every route that can take it; refusals are strict and reasoned."""

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize

import adult_data
from constrain.testing import (
    CONVEX,
    FULL_DATA,
    KnownProblem,
    adult_convex,
    check,
    compare,
    known_problem,
    known_problems,
    refusal,
)
from constrain.testing.learning import synthetic_arrays

TABLE = known_problems()
ACCEPTED = [(known, route) for known in TABLE for route in known.routes]
REFUSED = [(known, route) for known in TABLE for route in known.refusals]


def ids(pairs):
    return [f"{known.name}-{route}" for known, route in pairs]


def need(known):
    if known.missing:
        pytest.skip(reason=known.missing)


@pytest.mark.parametrize(("known", "route"), ACCEPTED, ids=ids(ACCEPTED))
def test_known_optimum(known, route):
    need(known)
    findings = check(known, route)
    assert not findings, "\n".join(map(str, findings))


@pytest.mark.parametrize(("known", "route"), REFUSED, ids=ids(REFUSED))
def test_refusal(known, route):
    need(known)
    findings = refusal(known, route)
    assert not findings, "\n".join(map(str, findings))


def test_adult_by_the_convex_route_and_on_the_full_data():
    train = adult_data.load().train
    known = adult_convex(train.x, train.y, train.sex)
    assert known.build().explain().facts.problem_class == "cone"
    for route in known.routes:
        findings = check(known, route)
        assert not findings, "\n".join(map(str, findings))


@pytest.mark.parametrize("route", ["cvxpy", "augmented"])
def test_a_small_multiplier_is_met_in_its_own_scale(route):
    solution = known_problem("allocation").build().solve(route, progress=False)
    assert solution["budget"].multiplier == pytest.approx(0.164304778 / 2000, rel=1e-4)


def test_names_are_unique_and_every_method_is_spoken_of():
    names = [known.name for known in TABLE]
    assert len(names) == len(set(names))
    for known in TABLE:
        assert not set(known.routes) & set(known.refusals)
        assert "cvxpy" in {*known.routes, *known.refusals}, known.name


def test_a_build_shares_nothing_with_the_next():
    known = known_problem("allocation")
    first, second = known.build(), known.build()
    first.solve("cvxpy", progress=False)
    assert second.variables[0].value.tolist() == [100.0, 100.0, 100.0]


# ---------------------------------------------------------------------------- the table's own numbers
def test_synthetic_parity_by_slsqp():
    x, y, group = synthetic_arrays()
    z = np.c_[x, np.ones(2000)]
    gap, level = z[group == "b"].mean(0) - z[group == "a"].mean(0), z.mean(0)

    def value(w):
        s = z @ w
        return np.mean(np.logaddexp(0, s) - y * s)

    def slope(w):
        return z.T @ (1 / (1 + np.exp(-(z @ w))) - y) / 2000

    rows = np.stack([gap, -gap, level])
    limits = np.asarray([0.2, 0.2, 0.0])
    inequality = {"type": "ineq", "fun": lambda w: limits - rows @ w, "jac": lambda w: -rows}
    found = minimize(
        value, np.zeros(6), jac=slope, method="SLSQP", constraints=[inequality], options={"ftol": 1e-15}
    )
    known = known_problem("synthetic-parity")
    assert found.fun == pytest.approx(known.value, abs=1e-9)
    multipliers = np.linalg.lstsq(rows[[0, 2]].T, -slope(found.x), rcond=None)[0]
    assert multipliers == pytest.approx(list(known.multipliers.values()), abs=1e-6)


# ------------------------------------------------------------------------------ the suite sees defects
class Off:
    """A solution that is wrong in a known way."""

    def __init__(self, solution, **changes):
        self.solution = solution
        self.changes = changes

    def __getattr__(self, name):
        return self.changes.get(name, getattr(self.solution, name))

    def __getitem__(self, name):
        return self.changes["constraint"] if "constraint" in self.changes else self.solution[name]


class Flipped:
    has_duals = True
    multiplier = 4.4


class NoDuals:
    has_duals = False


def test_conformance_reports_a_wrong_value_sign_and_decision():
    known = known_problem("projection")
    solution = known.build().solve("cvxpy", progress=False)
    assert compare(known, solution, CONVEX) == []
    (value,) = compare(known, Off(solution, objective=0.6), CONVEX)
    assert value.quantity == "objective"
    assert "projection: objective is 0.6, expected 0.5555" in str(value)
    (dual,) = compare(known, Off(solution, constraint=Flipped()), CONVEX)
    assert dual.quantity == "multiplier of mean"
    (primal,) = compare(known, Off(solution, variables={"u": np.zeros(4)}), CONVEX)
    assert primal.quantity == "u"
    (shape,) = compare(known, Off(solution, variables={"u": np.zeros(3)}), CONVEX)
    assert shape.error == float("inf")


def test_conformance_reports_an_infeasible_point_that_calls_itself_solved():
    known = known_problem("impossible")
    solved = known_problem("projection").build().solve("cvxpy", progress=False)
    (finding,) = compare(known, solved, CONVEX)
    assert finding.quantity == "status"
    infeasible = known.build().solve("cvxpy", progress=False)
    quantities = {
        f.quantity for f in compare(known_problem("hs22"), Off(infeasible, constraint=NoDuals()), FULL_DATA)
    }
    assert quantities == {"status", "objective", "multiplier of line", "multiplier of parabola"}


def test_conformance_reports_a_missing_refusal():
    base = known_problem("projection")
    wrong = KnownProblem("open", base.build, base.value, base.source, refusals={"cvxpy": "not convex"})
    assert len(refusal(wrong, "cvxpy")) == 2


def test_a_missing_package_is_named():
    known = KnownProblem("x", known_problem("projection").build, 0.0, "nobody", needs=("no_such_package",))
    assert known.missing == "x needs no_such_package, which is not installed"


def test_listing_the_table_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(known_problems()) == len(TABLE)
