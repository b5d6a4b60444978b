"""The KKT record over the table of known problems: definitions, golden multipliers, prices."""

import numpy as np
import pytest

import constrain as cn
from constrain.language import nodes as n
from constrain.language.expr import Expr
from constrain.language.problem import Problem
from constrain.testing import known_problem, known_problems

STEP = 1e-30
SLOW = ("interpolation", "maxent", "synthetic-parity", "sphere-logistic")
LOOSE = {"trust-region-trpo": 1e-4}
"""Its multiplier amplifies the distance of an interior-point solution from the optimum."""
TABLE = [k for k in known_problems() if k.outcome == "solved" and k.routes and not k.missing]
PRICED = [k for k in TABLE if k.multipliers and k.name not in SLOW]


def close(a, b, tolerance=1e-8):
    np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=tolerance, rtol=tolerance)


# ------------------------------------------------------------------- definitions, recomputed in NumPy
# Per problem: minimized objective, and residuals (<= 0, or == 0) of the constraints by name and kind.
DEFINED = {
    "hs6": lambda x: ((1 - x[0]) ** 2, {"c": ("==", 10 * (x[1] - x[0] ** 2))}),
    "hs7": lambda x: (np.log(1 + x[0] ** 2) - x[1], {"c": ("==", (1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4)}),
    "hs10": lambda x: (x[0] - x[1], {"c": ("<=", 3 * x[0] ** 2 - 2 * x[0] * x[1] + x[1] ** 2 - 1)}),
    "hs12": lambda x: (
        0.5 * x[0] ** 2 + x[1] ** 2 - x[0] * x[1] - 7 * x[0] - 7 * x[1],
        {"c": ("<=", 4 * x[0] ** 2 + x[1] ** 2 - 25)},
    ),
    "hs22": lambda x: (
        (x[0] - 2) ** 2 + (x[1] - 1) ** 2,
        {"line": ("<=", x[0] + x[1] - 2), "parabola": ("<=", x[0] ** 2 - x[1])},
    ),
    "hs28": lambda x: (
        (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2,
        {"c": ("==", x[0] + 2 * x[1] + 3 * x[2] - 1)},
    ),
    "hs29": lambda x: (-x[0] * x[1] * x[2], {"c": ("<=", x[0] ** 2 + 2 * x[1] ** 2 + 4 * x[2] ** 2 - 48)}),
    "hs40": lambda x: (
        -x[0] * x[1] * x[2] * x[3],
        {
            "c1": ("==", x[0] ** 3 + x[1] ** 2 - 1),
            "c2": ("==", x[0] ** 2 * x[3] - x[2]),
            "c3": ("==", x[3] ** 2 - x[1]),
        },
    ),
    "hs43": lambda x: (
        x[0] ** 2 + x[1] ** 2 + 2 * x[2] ** 2 + x[3] ** 2 - 5 * x[0] - 5 * x[1] - 21 * x[2] + 7 * x[3],
        {
            "c1": ("<=", np.sum(x**2) + x[0] - x[1] + x[2] - x[3] - 8),
            "c2": ("<=", x[0] ** 2 + 2 * x[1] ** 2 + x[2] ** 2 + 2 * x[3] ** 2 - x[0] - x[3] - 10),
            "c3": ("<=", 2 * x[0] ** 2 + x[1] ** 2 + x[2] ** 2 + 2 * x[0] - x[1] - x[3] - 5),
        },
    ),
    "hs51": lambda x: (
        (x[0] - x[1]) ** 2 + (x[1] + x[2] - 2) ** 2 + (x[3] - 1) ** 2 + (x[4] - 1) ** 2,
        {
            "c1": ("==", x[0] + 3 * x[1] - 4),
            "c2": ("==", x[2] + x[3] - 2 * x[4]),
            "c3": ("==", x[1] - x[4]),
        },
    ),
    "allocation": lambda x: (
        np.array([0.5, 0.6, 0.8]) @ x**-0.5,
        {"budget": ("<=", np.array([1.0, 2.0, 5.0]) @ x - 1000)},
    ),
}  # fmt: skip


def slope(function, x):
    """Gradient by complex steps: exact to rounding."""
    eye = np.eye(x.size) * 1j * STEP
    return np.array([np.imag(function(x + row)) / STEP for row in eye])


@pytest.mark.parametrize("name", DEFINED)
def test_quantities_equal_their_definitions_at_any_point(name):
    rng = np.random.default_rng(len(name))
    problem, define = known_problem(name).build(), DEFINED[name]
    (variable,) = problem.variables
    x = np.asarray(variable.value, float) * (1 + 0.1 * rng.uniform(size=variable.shape)) + 0.05
    objective, parts = define(x)
    lam = {key: float(rng.uniform(-0.2, 1.0)) for key in parts}
    record = problem.kkt({variable.name: x}, lam)

    force = slope(lambda z: define(z)[0], x)
    rows = {key: slope(lambda z, key=key: define(z)[1][key][1], x) for key in parts}
    total = force + sum(lam[key] * rows[key] for key in parts)
    scale = np.abs(force).max() + sum(abs(lam[key]) * np.abs(rows[key]).max() for key in parts)
    close(record.stationarity, np.abs(total).max())
    assert record.stationarity_scaled in (
        pytest.approx(np.abs(total).max() / scale, rel=1e-8),
        pytest.approx(min(np.abs(total).max(), np.abs(total).max() / scale), rel=1e-8),
    )
    share = 1 - total @ total / (force @ force)
    close(record.force_balance, share if share >= 0 else np.nan)
    for key, (kind, residual) in parts.items():
        close(record.violations[key], abs(residual) if kind == "==" else max(0.0, residual))
        close(record.products[key], abs(lam[key] * residual))
    unequal = [key for key, (kind, _) in parts.items() if kind == "<="]
    close(record.complementarity, max([abs(lam[k] * parts[k][1]) for k in unequal], default=0.0))
    close(record.dual_feasibility, min([lam[k] for k in unequal] + [0.0]))
    close(record.gap, abs(sum(lam[k] * parts[k][1] for k in parts)))
    assert np.isfinite(objective)


# -------------------------------------------------------------------------- golden multipliers, prices
def solved(known):
    problem = known.build()
    return problem, problem.solve(next(iter(known.routes)), progress=False)


@pytest.fixture(scope="module")
def solutions():
    return {known.name: solved(known) for known in PRICED}


def test_best_fit_multipliers_are_the_golden_ones(solutions):
    for known in PRICED:
        problem, solution = solutions[known.name]
        exact = set(known.primal) == {s.name for s in problem.variables}
        record = problem.kkt({k: np.asarray(v) for k, v in known.primal.items()} if exact else solution)
        for name, value in known.multipliers.items():
            parts = [record.fit[part.key] for part in solution[name].parts]
            found = parts[0] if len(parts) == 1 else sum(np.sum(part) for part in parts)
            found = np.sum(found) if np.ndim(value) == 0 else found
            size = max(1.0, float(np.max(np.abs(value))))
            room = LOOSE.get(known.name, 1e-5)
            assert np.abs(found - value).max() <= room * size, (known.name, name)


def shifted(problem, name, step):
    """The problem with every bound of one constraint moved."""
    relation = problem.constraints[name]
    if not isinstance(relation, n.Comparison):
        return None
    moved = n.Comparison(relation.op, relation.lhs, (Expr(relation.rhs) + step).node)
    return Problem(problem.sense, problem.objective, {**problem.constraints, name: moved})


def test_shadow_prices_are_finite_differences(solutions):
    checked = 0
    for known in PRICED:
        problem, solution = solutions[known.name]
        record = solution.kkt()
        if record.rank < record.active or record.strict_complementarity < 1e-3:
            continue  # prices are not unique, or hold in one direction only
        for name in known.multipliers:
            price = float(np.sum(solution[name].shadow_price))
            step = 1e-3 * (1 + float(np.max(np.abs(np.asarray(solution[name].bound)))))
            both = [shifted(problem, name, sign * step) for sign in (1.0, -1.0)]
            if None in both or abs(price) < 1e-3:
                continue
            route = next(iter(known.routes))
            for symbol, value in zip(problem.variables, solution.variables.values(), strict=True):
                symbol.value = value  # warm start
            up, down = (p.solve(route, progress=False).objective for p in both)
            found = (up - down) / (2 * step)
            assert found == pytest.approx(price, rel=1e-2), (known.name, name)
            checked += 1
    assert checked >= 15


# --------------------------------------------------------------------------------------- sensitivities
def test_sensitivities_are_finite_differences():
    a, b = cn.Parameter("a", 2.0), cn.Parameter("b", np.array([1.0, 0.5]))
    w = cn.Variable(3, "w")
    problem = cn.maximize(
        -cn.sum_squares(w - np.array([2.0, 1.0, 0.0])) - a * w[2] ** 4 + b[0] * w[2]
    ).subject_to(budget=cn.sum(w) <= a, tilt=w[0] - b[1] * w[1] == b[0])
    solution = problem.solve("newton", progress=False, tolerance=1e-8)
    for name, value in (("a", 2.0), ("b", np.array([1.0, 0.5]))):
        found = solution.sensitivity(name)
        for k in range(np.size(value)):
            sides = []
            for sign in (1, -1):
                moved = np.array(value, float)
                moved.reshape(-1)[k] += sign * 1e-4
                params = {name: moved if moved.ndim else float(moved)}
                sides.append(problem.solve("newton", progress=False, tolerance=1e-8, params=params))
            up, down = sides
            close(np.ravel(found.value)[k], (up.objective - down.objective) / 2e-4, 1e-5)
            slope_w = (up.variables["w"] - down.variables["w"]) / 2e-4
            close(found.decisions["w"].reshape(3, -1)[:, k], slope_w, 1e-4)
            change = (up["budget"].multiplier - down["budget"].multiplier) / 2e-4
            close(np.ravel(found.multipliers["budget"])[k], change, 1e-4)
    assert found.decisions["w"].shape == (3, 2)
    close(solution.sensitivity(a).value, solution.sensitivity("a").value)


def test_a_sensitivity_that_does_not_exist_is_refused_with_the_reason():
    a, w = cn.Parameter("a", 1.0), cn.Variable(2, "w")
    flat = cn.minimize((w[0] + w[1] - a) ** 2).solve(progress=False)
    with pytest.raises(cn.ModelingError, match=r"E195.*'a'.*singular"):
        flat.sensitivity("a")
    weak = cn.minimize(cn.sum_squares(w - 1)).subject_to(cap=w[0] <= a).solve(progress=False)
    with pytest.raises(cn.ModelingError, match="E195"):
        weak.sensitivity("a")
    with pytest.raises(cn.ModelingError, match="E127"):
        weak.sensitivity("b")
