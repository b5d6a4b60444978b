"""The KKT record over the table of known problems: definitions, golden multipliers, prices.

Definitions, best fits and optimal values of the second opinion are NumPy and SciPy on `definitions.py`.
"""

import numpy as np
import pytest
from scipy.optimize import brentq, lsq_linear, minimize

import constrain as cn
from constrain.lowering.lower import lower
from constrain.testing import adult_convex, known_problem, known_problems

from .definitions import adult, adult_train, definition_of, digits, slopes, values

NEAR = 1e-6
"""A decision this close to its bound, relative to 1 + |bound|, is at it."""
TABLE = [k for k in known_problems() if not k.missing]
SOLVED = [k for k in TABLE if k.outcome == "solved"]
NAMES = [k.name for k in TABLE]


def check_close(a, b, tolerance=1e-8):
    np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=tolerance, rtol=tolerance)


# ------------------------------------------------------------------- definitions, recomputed in NumPy
def flat(point, sides, missing):
    """Bounds of all decisions as one vector."""
    shaped = [np.broadcast_to(sides.get(name, missing), value.shape).ravel() for name, value in point.items()]
    return np.concatenate(shaped).astype(float)


def split(point, vector):
    """A vector as decisions of the shapes of a point."""
    parts = np.split(vector, np.cumsum([v.size for v in point.values()])[:-1])
    return {name: part.reshape(v.shape) for (name, v), part in zip(point.items(), parts, strict=True)}


class Forces:
    """Gradients of a definition at a point, by the rules of docs/how-to/kkt.md.

    Attributes:
        gradient: (decisions,) of the objective; for decisions at a bound a little inside of it.
        rows: per part (entries, decisions).
        residuals: per part its kind and its residual.
        at_lower: (decisions,) coordinates at their lower bound.
        at_upper: (decisions,) coordinates at their upper bound.
    """

    def __init__(self, definition, point):
        self.definition, self.point = definition, point
        self.objective, self.residuals = values(definition, point)
        x = np.concatenate([v.ravel() for v in point.values()])
        low, high = flat(point, definition.low, -np.inf), flat(point, definition.high, np.inf)
        room_low, room_high = (NEAR * (1 + np.abs(np.where(np.isfinite(b), b, 0.0))) for b in (low, high))
        self.at_lower, self.at_upper = x - low <= room_low, high - x <= room_high
        self.gradient, rows = slopes(definition, point)
        bound = self.at_lower ^ self.at_upper
        if bound.any():
            inside = np.where(bound, np.where(self.at_lower, low + room_low, high - room_high), x)
            other, others = slopes(definition, split(point, inside))
            self.gradient = np.where(bound, other, self.gradient)
            rows = [np.where(bound, b, a) for a, b in zip(rows, others, strict=True)]
        self.rows = dict(zip(self.residuals, rows, strict=True))

    def at_kink(self, name):
        """(decisions,) the entries of a decision that are 0."""
        sizes = {k: np.full(v.shape, k == name) for k, v in self.point.items()}
        sizes[name] &= np.abs(self.point[name]) <= 1e-6 * np.abs(self.point[name]).max()
        return np.concatenate([own.ravel() for own in sizes.values()])

    def projected(self, total, multipliers):
        """What bounds and the slopes of |.| at 0 leave of the gradient of the Lagrangian."""
        for part, name in self.definition.kinked.items():
            radius = multipliers[part] * self.at_kink(name)
            total = np.sign(total) * np.maximum(np.abs(total) - radius, 0.0)
        total = np.where(self.at_lower, np.minimum(total, 0.0), total)
        return np.where(self.at_upper, np.maximum(total, 0.0), total)


def check_record(record, definition, point):
    """All quantities of a record at a point, for the multipliers that it judged."""
    forces, lam = Forces(definition, point), record.multipliers
    total = forces.gradient + sum(np.ravel(lam[key]) @ rows for key, rows in forces.rows.items())
    left = forces.projected(total, lam)
    against = sum(np.abs(np.ravel(lam[k])) @ np.abs(r).max(axis=1) for k, r in forces.rows.items())
    scale = np.abs(forces.gradient).max(initial=0.0) + against
    absolute = np.abs(left).max()
    scaled = absolute / scale if scale else absolute
    check_close(record.stationarity, absolute)
    alone = against <= absolute or scale <= 1e-9
    check_close(record.stationarity_scaled, min(absolute, scaled) if alone else scaled)
    for name, block in split(point, left).items():
        if name in record.blocks:
            check_close(record.blocks[name][0], np.abs(block).max())
    pull = forces.projected(forces.gradient, dict.fromkeys(definition.kinked, 0.0))
    share = 1 - left @ left / (pull @ pull) if pull.any() else 1.0 if not left.any() else np.nan
    if pull @ pull > 1e-16:  # else nothing pulls, and the share is one of rounding
        check_close(record.force_balance, share if share >= 0 else np.nan)
    compare_values(record, definition, forces, lam)


def compare_values(record, definition, forces, lam):
    violations, products, scaled, signed = {}, {}, [0.0], 0.0
    inequalities = [np.zeros(1)]
    for key, (kind, r) in forces.residuals.items():
        name = "objective" if key == "(objective)" else key.split(":")[0]
        violation = np.abs(r) if kind == "==" else np.maximum(r, 0.0)
        violations[name] = max(violations.get(name, 0.0), violation.max())
        product = np.abs(lam[key] * r).max()
        products[name] = max(products.get(name, 0.0), product)
        scaled.append(np.max(violation / (1 + np.abs(definition.bounds.get(key, 0.0)))))
        signed += np.sum(lam[key] * r)
        if kind == "<=":
            check_close(record.complementarity, max(record.complementarity, product))
            inequalities.append(np.ravel(lam[key]))
    assert set(record.violations) == set(violations)
    for name, size in violations.items():
        check_close(record.violations[name], size)
        check_close(record.products[name], products[name])
    kinds = {key.split(":")[0].strip("()"): kind for key, (kind, _) in forces.residuals.items()}
    check_close(record.complementarity, max([products[k] for k in products if kinds[k] == "<="], default=0.0))
    check_close(record.feasibility_scaled, max(scaled))
    check_close(record.feasibility, violations.get(record.worst, 0.0))
    check_close(record.dual_feasibility, np.concatenate(inequalities).min())
    check_close(record.complementarity_scaled, record.complementarity / (1 + abs(forces.objective)))
    if record.gap_kind != "certified":
        check_close(record.gap, abs(signed))
        check_close(record.gap_scaled, abs(signed) / (1 + abs(forces.objective)))


def anywhere(problem, definition):
    """A point inside of the bounds, near the start where there are none."""
    rng = np.random.default_rng(len(problem.constraints))
    point = {s.name: np.full(s.shape, 0.5) if s.value is None else np.asarray(s.value, float)
             for s in problem.variables}  # fmt: skip
    for model in lower(problem).models:
        for name, parameter in model.module.named_parameters():
            point[f"{model.name}.{name}"] = parameter.detach().numpy().copy()
    for name, value in point.items():
        u = rng.uniform(0.2, 0.8, value.shape)
        low = np.broadcast_to(definition.low.get(name, -np.inf), value.shape)
        high = np.broadcast_to(definition.high.get(name, np.inf), value.shape)
        near = value * (0.9 + 0.2 * u) + 0.1 * u
        near = np.where(np.isfinite(low), np.maximum(near, low + u), near)
        inside = np.isfinite(low) & np.isfinite(high)
        point[name] = np.where(
            inside, low + u * np.where(inside, high - low, 0.0), np.minimum(near, high - u)
        )
    return point


def as_given(problem, point):
    """A point by the names of variables, and of models with their parameters."""
    given = {}
    for name, value in point.items():
        if name in {s.name for s in problem.variables}:
            given[name] = value
        else:
            model, parameter = name.split(".")
            given.setdefault(model, {})[parameter] = value
    return given


def check_anywhere(problem, definition):
    point = anywhere(problem, definition)
    rng = np.random.default_rng(1)
    shown = {**point, "(objective)": np.zeros(())}
    shapes = {key: np.shape(r) for key, (_, r) in values(definition, shown)[1].items()}
    lam = {key: rng.uniform(-0.2, 1.0, shape) for key, shape in shapes.items() if key != "(objective)"}
    record = problem.kkt(as_given(problem, point), lam)
    if "(objective)" in shapes:
        largest = values(definition, shown)[1]["(objective)"][1]
        point["(objective)"] = np.array(largest.max())
        check_close(record.multipliers["(objective)"], largest == largest.max())
    for key, value in lam.items():
        check_close(record.multipliers[key], value)
    check_record(record, definition, point)


@pytest.mark.parametrize("name", NAMES)
def test_quantities_equal_their_definitions_at_any_point(name):
    check_anywhere(known_problem(name).build(), definition_of(name))


def test_quantities_equal_their_definitions_on_adult():
    train = adult_train()
    check_anywhere(adult_convex(train.x, train.y, train.sex).build(), adult(train))


# -------------------------------------------------------------------------- golden multipliers, prices
def solved(known):
    problem = known.build()
    solution = problem.solve(next(iter(known.routes)), progress=False)
    return problem, solution, solution.kkt()


@pytest.fixture(scope="module")
def solutions():
    return {known.name: solved(known) for known in SOLVED}


def point_of(solution):
    return {**solution.variables, **solution.weights, **solution.hidden}


def test_quantities_equal_their_definitions_at_the_optimum(solutions):
    for name, (_, solution, record) in solutions.items():
        try:
            check_record(record, definition_of(name), point_of(solution))
        except AssertionError as error:
            raise AssertionError(name) from error


def test_best_fit_multipliers_are_the_golden_ones(solutions):
    for known in SOLVED:
        problem, solution, _ = solutions[known.name]
        exact = set(known.primal) == {s.name for s in problem.variables}
        record = problem.kkt({k: np.asarray(v) for k, v in known.primal.items()} if exact else solution)
        for name, value in known.multipliers.items():
            parts = [record.fit[part.key] for part in solution[name].parts]
            found = parts[0] if len(parts) == 1 else sum(np.sum(part) for part in parts)
            found = np.sum(found) if np.ndim(value) == 0 else found
            size = max(1.0, float(np.max(np.abs(value))))
            assert np.abs(found - value).max() <= 1e-5 * size, (known.name, name)


@pytest.mark.parametrize("name", ["trust-region-kl", "trust-region-trpo"])
def test_multipliers_of_trust_regions_are_roots_of_one_equation(name):
    """Of the divergence as a function of the multiplier: the Lagrangian has its minimizer in closed form."""
    old, gain = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 0.2, -0.3, -0.5])
    gain = gain - old @ gain

    def policy(multiplier):
        if name == "trust-region-kl":
            weight = old * np.exp(gain / multiplier)
            return weight / weight.sum()
        level = brentq(
            lambda u: np.sum(multiplier * old / (u - gain)) - 1, gain.max() + 1e-9, 100, xtol=1e-15
        )
        return multiplier * old / (level - gain)

    def excess(multiplier):
        p = policy(multiplier)
        first, second = (p, old) if name == "trust-region-kl" else (old, p)
        return np.sum(first * np.log(first / second)) - 0.05

    root = brentq(excess, 0.1, 50, xtol=1e-14)
    known = known_problem(name)
    check_close(known.multipliers["near"], root, 1e-7)
    check_close(known.value, gain @ policy(root), 1e-9)
    check_close(known.build().kkt({"p": policy(root)}).fit["near"], root, 1e-10)


def best_fit(forces):
    """min |gradient + J' multipliers - z_low + z_up|, all but those of equalities nonnegative.

    Returns the multipliers by part, what remains, and whether the multipliers are unique.
    """
    columns, lower, owners = [], [], []
    for key, (kind, residual) in forces.residuals.items():
        scale = 1 + np.abs(np.broadcast_to(forces.definition.bounds.get(key, 0.0), np.shape(residual)))
        for k in np.flatnonzero((kind == "==") | (np.ravel(residual) >= -1e-5 * np.ravel(scale))):
            columns.append(forces.rows[key][k])
            lower.append(-np.inf if kind == "==" else 0.0)
            owners.append((key, k))
    count, size = len(columns), forces.gradient.size
    for where, sign in ((forces.at_lower, -1.0), (forces.at_upper, 1.0)):
        columns += [sign * row for row in np.eye(size)[where]]
    matrix = np.array(columns).reshape(len(columns), size).T
    lengths = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    unit = matrix / lengths
    lows = np.array(lower + [0.0] * (len(columns) - count))
    found = lsq_linear(unit, -forces.gradient, (lows, np.inf), method="bvls", tol=1e-15).x / lengths
    singular = np.linalg.svd(unit, compute_uv=False)
    unique = len(columns) <= size and singular.min(initial=1.0) > 1e-6
    fit = {key: np.zeros(np.shape(r)) for key, (_, r) in forces.residuals.items()}
    for (key, k), value in zip(owners, found, strict=False):
        fit[key].reshape(-1)[k] = value
    return fit, forces.gradient + matrix @ found, unique


def test_best_fit_multipliers_are_those_of_nonnegative_least_squares(solutions):
    compared = 0
    for name, (_, solution, record) in solutions.items():
        definition = definition_of(name)
        if definition.kinked or not record.fit:
            continue  # at kinks slopes are fitted as well
        fit, rest, unique = best_fit(Forces(definition, point_of(solution)))
        assert record.fit_stationarity == pytest.approx(np.abs(rest).max(), abs=1e-7), name
        if not unique:
            continue
        for key, value in fit.items():
            room = 1e-5 * max(1.0, np.abs(value).max())
            np.testing.assert_allclose(record.fit[key], value, atol=room, rtol=0, err_msg=f"{name} {key}")
            compared += 1
    assert compared >= 200


# ------------------------------------------------------------------------------------- shadow prices
class Moved:
    """The optimum of a definition as residuals are moved, by Newton's method on its KKT system.

    What holds at the optimum, constraints with a multiplier and bounds, is kept: where multipliers are
    unique that is the optimum of every problem close by.
    """

    def __init__(self, definition, point, lam):
        self.definition, self.point = definition, point
        self.forces = forces = Forces(definition, point)
        self.free = ~(forces.at_lower | forces.at_upper)
        for name in definition.kinked.values():
            self.free &= ~forces.at_kink(name)
        self.x = np.concatenate([v.ravel() for v in point.values()])
        largest = max((np.abs(v).max(initial=0.0) for v in lam.values()), default=0.0)
        flags = [
            np.full(np.size(r), True) if kind == "==" else np.ravel(lam[key]) > 1e-7 * largest
            for key, (kind, r) in forces.residuals.items()
        ]
        self.kept = np.concatenate(flags) if flags else np.zeros(0, bool)
        self.lam = np.concatenate([np.ravel(lam[k]) for k in forces.residuals])[self.kept]
        count, size = int(self.free.sum()), int(self.kept.sum())
        self.matrix = np.zeros((count + size, count + size))
        rows = self.system(self.x, self.lam, {})[1]
        low, high = flat(point, definition.low, -np.inf), flat(point, definition.high, np.inf)
        room = np.minimum(self.x - low, high - self.x)
        self.matrix[:count, count:], self.matrix[count:, :count] = rows.T, rows
        for k, place in enumerate(np.flatnonzero(self.free)):
            h = min(1e-5 * (1 + abs(self.x[place])), 1e-2 * room[place])
            up, down = (self.system(self.x + s * h * np.eye(self.x.size)[place], self.lam, {})[0]
                        for s in (1, -1))  # fmt: skip
            self.matrix[:count, k] = (up[:count] - down[:count]) / (2 * h)

    def system(self, x, lam, moved):
        """Free slopes of the Lagrangian and kept residuals; and the slopes of these."""
        z = split(self.point, x)
        gradient, rows = slopes(self.definition, z)
        table = np.concatenate([*rows, np.zeros((0, x.size))])[self.kept]
        _, parts = values(self.definition, z)
        own = [np.ravel(r - moved.get(key, 0.0)) for key, (_, r) in parts.items()]
        left = np.concatenate([*own, np.zeros(0)])
        return np.concatenate([(gradient + lam @ table)[self.free], left[self.kept]]), table[:, self.free]

    def value(self, moved):
        """The optimal value."""
        x, lam, count = self.x.copy(), self.lam.copy(), int(self.free.sum())
        for _ in range(8):
            step = np.linalg.lstsq(self.matrix, self.system(x, lam, moved)[0], rcond=1e-12)[0]
            x[self.free] -= step[:count]
            lam -= step[count:]
        left = np.abs(self.system(x, lam, moved)[0]).max(initial=0.0)
        assert left <= 1e-7 * (1 + np.abs(self.forces.gradient).max()), left
        return values(self.definition, split(self.point, x))[0]


def by_the_pseudoinverse(moved):
    """The least |W|^2 with x W' = target + step."""
    x, target = digits()
    return float(np.sum((np.linalg.pinv(x) @ (target + moved.get("fit", 0.0))) ** 2))


def by_the_dual(moved):
    """Least negative entropy of mass t with given moments: t times that of a distribution, plus t log t."""
    t = 1 + moved.get("total", 0.0)
    means = np.array([0.5 + moved.get("mean", 0.0), 1.95 + moved.get("second", 0.0)]) / t
    grid = np.linspace(-10, 10, 401)
    table = np.stack([grid, grid**2], 1) - means
    return (
        t * np.log(t) - t * minimize(lambda u: np.log(np.sum(np.exp(table @ u))), [0.0, -0.3], tol=1e-12).fun
    )


CLOSED = {"interpolation": by_the_pseudoinverse, "maxent": by_the_dual}
STEPS = {"hs88": 1e-6}
"""Steps of right-hand sides where 1e-4 is not small: its constraint is one of 1e-4."""
NOT_UNIQUE = {f"hs{number}" for number in range(89, 93)}
"""Problems whose optima are a curve, along which the KKT system of `Moved` is singular."""


def test_shadow_prices_are_finite_differences(solutions):
    """Every known problem with unique multipliers; blocks of constraints are moved in a random direction."""
    rng = np.random.default_rng(0)
    checked = 0
    for known in SOLVED:
        problem, solution, record = solutions[known.name]
        definition, point = definition_of(known.name), point_of(solution)
        if known.name in NOT_UNIQUE:
            continue
        if not solution.names or not (definition.kinked or best_fit(Forces(definition, point))[2]):
            continue  # the multipliers are not unique
        value = CLOSED.get(known.name) or Moved(definition, point, record.multipliers).value
        sign = -1.0 if problem.sense == "maximize" else 1.0
        for name in solution.names:
            price = np.asarray(solution[name].shadow_price)
            direction = rng.uniform(0.5, 1.5, price.shape)
            step = STEPS.get(known.name, 1e-4) * (1 + np.abs(np.asarray(solution[name].bound)).max())
            turn = -1.0 if solution[name].op == ">=" else 1.0
            keys = [key for key in record.multipliers if key.split(":")[0] == name]
            up, down = (value({key: s * turn * step * direction for key in keys}) for s in (1, -1))
            found, expected = sign * (up - down) / (2 * step), float(np.sum(price * direction))
            room = 1e-2 * abs(expected) + 1e-8 * (1 + abs(solution.objective)) / step
            assert abs(found - expected) <= room, (known.name, name, found, expected)
            checked += 1
    assert checked >= 280


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
            check_close(np.ravel(found.value)[k], (up.objective - down.objective) / 2e-4, 1e-5)
            slope_w = (up.variables["w"] - down.variables["w"]) / 2e-4
            check_close(found.decisions["w"].reshape(3, -1)[:, k], slope_w, 1e-4)
            change = (up["budget"].multiplier - down["budget"].multiplier) / 2e-4
            check_close(np.ravel(found.multipliers["budget"])[k], change, 1e-4)
    assert found.decisions["w"].shape == (3, 2)
    check_close(solution.sensitivity(a).value, solution.sensitivity("a").value)


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
