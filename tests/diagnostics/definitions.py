"""The known problems once more, in NumPy: written from their statements, differentiated by complex steps.

Nothing here is of the package but the statements of `hock_schittkowski.py`, which are plain functions of
numbers. Every function takes decisions by name (arrays, real or complex) and returns the minimized objective
and, per part of the program, its kind and its residual (`<= 0` or `== 0`).
"""

from dataclasses import dataclass, field

import numpy as np

import adult_data
from constrain._lazy import attribute
from constrain.testing.hock_schittkowski import STATEMENTS
from constrain.testing.learning import synthetic_arrays

STEP = 1e-30


@dataclass(frozen=True)
class Definition:
    """A problem as functions of arrays.

    Attributes:
        define: of decisions by name: minimized objective, {part: (kind, residual)}.
        low: lower bounds by decision, where there are any.
        high: upper bounds.
        bounds: right-hand sides by part, where they are not 0.
        kinked: decisions with |.| in a constraint, by part: {part: decision}.
    """

    define: object
    low: dict = field(default_factory=dict)
    high: dict = field(default_factory=dict)
    bounds: dict = field(default_factory=dict)
    kinked: dict = field(default_factory=dict)


def values(definition, point):
    """Objective and residuals at a point, as real numbers."""
    objective, parts = definition.define(point)
    return float(np.real(objective)), {k: (kind, np.real(np.asarray(r))) for k, (kind, r) in parts.items()}


def slopes(definition, point):
    """Gradient of the objective (decisions,) and of each residual (entries, decisions): exact to rounding."""
    columns = []
    for name, value in point.items():
        for place in np.ndindex(value.shape):
            moved = value.astype(complex)
            moved[place] += 1j * STEP
            objective, parts = definition.define({**point, name: moved})
            column = [np.ravel(objective), *(np.ravel(r) for _, r in parts.values())]
            columns.append(np.concatenate(column).imag / STEP)
    table = np.ascontiguousarray(np.array(columns).T)  # SLSQP of SciPy 1.17 reads rows as if contiguous
    sizes = [np.size(r) for _, r in definition.define(point)[1].values()]
    return table[0], np.split(table[1:], np.cumsum(sizes)[:-1]) if sizes else []


def magnitude(x):
    """|x| of numbers that may carry a complex step; at 0, up to a millionth of the largest, with slope 0."""
    size = np.abs(np.real(x))
    return np.where(size <= 1e-6 * size.max(initial=0.0), 0.0, np.sign(np.real(x))) * x


def dot(matrix, x):
    """matrix @ x without making the matrix complex."""
    return matrix @ np.real(x) + 1j * (matrix @ np.imag(x))


def softplus(s):
    """log(1 + exp(s))."""
    return np.where(np.real(s) > 0, s, 0) + np.log(1 + np.exp(np.where(np.real(s) > 0, -s, s)))


# ------------------------------------------------------------------------------------- Hock & Schittkowski
def of_x(function, **more):
    """A problem whose one decision is x."""
    return Definition(lambda z: function(z["x"]), **more)


def stated(statement):
    low, high = statement.bounds()

    def define(x):
        nonneg = {f"g{i}": ("<=", -g) for i, g in enumerate(statement.nonneg(*x), 1)}
        zero = {f"h{i}": ("==", h) for i, h in enumerate(statement.zero(*x), 1)}
        return statement.f(*x), {**nonneg, **zero}

    return of_x(define, low={"x": low}, high={"x": high})


def equal(**residuals):
    return {key: ("==", r) for key, r in residuals.items()}


def below(**residuals):
    return {key: ("<=", r) for key, r in residuals.items()}


ROOT = np.sqrt(2)
BOOK = {
    "hs6": of_x(lambda x: ((1 - x[0]) ** 2, equal(c=10 * (x[1] - x[0] ** 2)))),
    "hs7": of_x(
        lambda x: (np.log(1 + x[0] ** 2) - x[1], equal(c=(1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4)),
        bounds={"c": 4},
    ),
    "hs10": of_x(lambda x: (x[0] - x[1], below(c=3 * x[0] ** 2 - 2 * x[0] * x[1] + x[1] ** 2 - 1))),
    "hs12": of_x(
        lambda x: (
            0.5 * x[0] ** 2 + x[1] ** 2 - x[0] * x[1] - 7 * x[0] - 7 * x[1],
            below(c=4 * x[0] ** 2 + x[1] ** 2 - 25),
        )
    ),
    "hs22": of_x(
        lambda x: (
            (x[0] - 2) ** 2 + (x[1] - 1) ** 2,
            below(line=x[0] + x[1] - 2, parabola=x[0] ** 2 - x[1]),
        ),
        bounds={"line": 2},
    ),
    "hs28": of_x(
        lambda x: ((x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2, equal(c=x[0] + 2 * x[1] + 3 * x[2] - 1)),
        bounds={"c": 1},
    ),
    "hs29": of_x(
        lambda x: (-x[0] * x[1] * x[2], below(c=x[0] ** 2 + 2 * x[1] ** 2 + 4 * x[2] ** 2 - 48)),
        bounds={"c": 48},
    ),
    "hs40": of_x(
        lambda x: (
            -x[0] * x[1] * x[2] * x[3],
            equal(c1=x[0] ** 3 + x[1] ** 2 - 1, c2=x[0] ** 2 * x[3] - x[2], c3=x[3] ** 2 - x[1]),
        ),
        bounds={"c1": 1},
    ),
    "hs42": of_x(
        lambda x: (
            np.sum((x - [1, 2, 3, 4]) ** 2),
            equal(c1=x[0] - 2, c2=x[2] ** 2 + x[3] ** 2 - 2),
        ),
        bounds={"c1": 2, "c2": 2},
    ),
    "hs43": of_x(
        lambda x: (
            x[0] ** 2 + x[1] ** 2 + 2 * x[2] ** 2 + x[3] ** 2 - 5 * x[0] - 5 * x[1] - 21 * x[2] + 7 * x[3],
            below(
                c1=np.sum(x**2) + x[0] - x[1] + x[2] - x[3] - 8,
                c2=x[0] ** 2 + 2 * x[1] ** 2 + x[2] ** 2 + 2 * x[3] ** 2 - x[0] - x[3] - 10,
                c3=2 * x[0] ** 2 + x[1] ** 2 + x[2] ** 2 + 2 * x[0] - x[1] - x[3] - 5,
            ),
        ),
        bounds={"c1": 8, "c2": 10, "c3": 5},
    ),
    "hs48": of_x(
        lambda x: (
            (x[0] - 1) ** 2 + (x[1] - x[2]) ** 2 + (x[3] - x[4]) ** 2,
            equal(c1=np.sum(x) - 5, c2=x[2] - 2 * (x[3] + x[4]) + 3),
        ),
        bounds={"c1": 5, "c2": 3},
    ),
    "hs50": of_x(
        lambda x: (
            (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 2 + (x[2] - x[3]) ** 4 + (x[3] - x[4]) ** 2,
            equal(**{f"c{i + 1}": x[i] + 2 * x[i + 1] + 3 * x[i + 2] - 6 for i in range(3)}),
        ),
        bounds={"c1": 6, "c2": 6, "c3": 6},
    ),
    "hs51": of_x(
        lambda x: (
            (x[0] - x[1]) ** 2 + (x[1] + x[2] - 2) ** 2 + (x[3] - 1) ** 2 + (x[4] - 1) ** 2,
            equal(c1=x[0] + 3 * x[1] - 4, c2=x[2] + x[3] - 2 * x[4], c3=x[1] - x[4]),
        ),
        bounds={"c1": 4},
    ),
    "hs52": of_x(
        lambda x: (
            (4 * x[0] - x[1]) ** 2 + (x[1] + x[2] - 2) ** 2 + (x[3] - 1) ** 2 + (x[4] - 1) ** 2,
            equal(c1=x[0] + 3 * x[1], c2=x[2] + x[3] - 2 * x[4], c3=x[1] - x[4]),
        )
    ),
    "hs77": of_x(
        lambda x: (
            (x[0] - 1) ** 2 + (x[0] - x[1]) ** 2 + (x[2] - 1) ** 2 + (x[3] - 1) ** 4 + (x[4] - 1) ** 6,
            equal(
                c1=x[0] ** 2 * x[3] + np.sin(x[3] - x[4]) - 2 * ROOT,
                c2=x[1] + x[2] ** 4 * x[3] ** 2 - 8 - ROOT,
            ),
        ),
        bounds={"c1": 2 * ROOT, "c2": 8 + ROOT},
    ),
    "hs78": of_x(
        lambda x: (
            np.prod(x),
            equal(c1=np.sum(x**2) - 10, c2=x[1] * x[2] - 5 * x[3] * x[4], c3=x[0] ** 3 + x[1] ** 3 + 1),
        ),
        bounds={"c1": 10, "c3": 1},
    ),
    "hs79": of_x(
        lambda x: (
            (x[0] - 1) ** 2 + np.sum((x[:2] - x[1:3]) ** 2) + np.sum((x[2:4] - x[3:]) ** 4),
            equal(
                c1=x[0] + x[1] ** 2 + x[2] ** 3 - 2 - 3 * ROOT,
                c2=x[1] - x[2] ** 2 + x[3] - 2 * ROOT + 2,
                c3=x[0] * x[4] - 2,
            ),
        ),
        bounds={"c1": 2 + 3 * ROOT, "c2": 2 * ROOT - 2, "c3": 2},
    ),
}  # fmt: skip


# --------------------------------------------------------------------------------- distributions, policies
def maxent():
    grid = np.linspace(-10, 10, 401)
    second = 1.7 + 0.25
    return Definition(
        lambda z: (
            np.sum(z["p"] * np.log(z["p"])),
            equal(total=np.sum(z["p"]) - 1, mean=grid @ z["p"] - 0.5, second=grid**2 @ z["p"] - second),
        ),
        low={"p": 0.0},
        bounds={"total": 1, "mean": 0.5, "second": second},
    )


def trust_region(*, new_first):
    old = np.array([0.1, 0.2, 0.3, 0.4])
    advantage = np.array([1.0, 0.2, -0.3, -0.5])
    advantage = advantage - old @ advantage

    def define(z):
        p = z["p"]
        near = np.sum(p * np.log(p / old)) if new_first else np.sum(old * np.log(old / p))
        return -(advantage @ p), {**equal(total=np.sum(p) - 1), **below(near=near - 0.05)}

    return Definition(define, low={"p": 0.0}, bounds={"total": 1, "near": 0.05})


def tilt():
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(6, 8))
    helpful = rng.normal(size=(6, 8)) - 0.6 * reward
    harmless = rng.normal(size=(6, 8)) - 0.6 * reward
    ref = np.stack([rng.dirichlet(np.ones(8)) for _ in range(6)])
    least = 0.15 + np.sum(helpful * ref) / 6, 0.10 + np.sum(harmless * ref) / 6

    def define(z):
        pi = z["pi"]
        gain = np.sum(reward * pi) / 6 - 0.1 * np.sum(pi * np.log(pi / ref)) / 6
        first, second = np.sum(helpful * pi) / 6, np.sum(harmless * pi) / 6
        rows = below(helpful=least[0] - first, harmless=least[1] - second)
        return -gain, {**equal(total=np.sum(pi, axis=1) - 1), **rows}

    return Definition(define, low={"pi": 0.0}, bounds={"total": 1, "helpful": least[0], "harmless": least[1]})


def frozen_lake(budget):
    lake = attribute("gymnasium:make")("FrozenLake-v1", map_name="4x4", is_slippery=True).unwrapped
    hole = lake.desc.ravel() == b"H"
    moves = [
        (s, a, chance, after, gain)
        for s, actions in lake.P.items()
        for a, outcomes in actions.items()
        for chance, after, gain, _ in outcomes
    ]

    def define(z):
        mu = z["mu"]
        flow, value, falls = np.sum(mu, axis=1) - np.eye(16)[0], 0.0, 0.0
        for s, a, chance, after, gain in moves:
            flow[after] -= 0.99 * chance * mu[s, a]
            value = value + chance * gain * mu[s, a]
            falls = falls + chance * mu[s, a] * (hole[after] and not hole[s])
        return -value, {**equal(flow=flow), **({} if budget is None else below(budget=falls - budget))}

    start = np.eye(16)[0]
    return Definition(
        define, low={"mu": 0.0}, bounds={"flow": start, **({"budget": budget} if budget else {})}
    )


REWARDS = np.array([[1, 0.2, 0.6], [0.1, 0.9, 0.7], [0.8, -0.5, 0.4]])


def worst_of_three():
    return Definition(
        lambda z: (
            -z["t"],
            {**equal(total=np.sum(z["p"]) - 1), **below(rows=z["t"] - REWARDS @ z["p"])},
        ),
        low={"p": 0.0},
        bounds={"total": 1},
    )


def worst_of_three_max_min():
    """The least loss that no row exceeds: the form with a bound for the largest."""
    bound = "(objective)"
    return Definition(
        lambda z: (
            z[bound],
            {**equal(total=np.sum(z["p"]) - 1), **below(**{bound: -(REWARDS @ z["p"]) - z[bound]})},
        ),
        low={"p": 0.0},
        bounds={"total": 1},
    )


# ----------------------------------------------------------------------------------- allocation and control
def allocation():
    scale, cost = np.array([0.5, 0.6, 0.8]), np.array([1.0, 2.0, 5.0])
    return Definition(
        lambda z: (scale @ z["n"] ** -0.5, below(budget=cost @ z["n"] - 1000)),
        low={"n": 0.0},
        bounds={"budget": 1000},
    )


def projection():
    spread, center = np.array([0.5, 0.2, 1, 0.1]), np.array([1, 2, 0.5, 0.3])
    return Definition(
        lambda z: (np.sum((z["u"] - center) ** 2 / spread), equal(mean=np.mean(z["u"]) - 1.2)),
        bounds={"mean": 1.2},
    )


def pde_control():
    shift = 0.1 / np.sqrt(15) * (np.arange(3) - 1)
    target = (np.sin(4 + shift)[:, None] + np.cos(3 + shift)[None, :]).ravel()

    def define(z):
        grid = np.zeros((5, 5), dtype=np.result_type(z["w"], float))
        grid[1:4, 1:4] = z["w"].reshape(3, 3)
        inner = grid[1:4, 1:4]
        around = grid[:3, 1:4] + grid[2:, 1:4] + grid[1:4, :3] + grid[1:4, 2:]
        cost = 0.5 * np.sum((z["w"] - target) ** 2) + 0.05 * np.sum(z["z"] ** 2)
        return cost, equal(state=((around - 4 * inner) / 0.25).ravel() + z["z"])

    return Definition(define)


def hydro():
    inflow, demand = np.array([3, 1, 2, 0.5]), np.array([4.0, 4, 5, 4])
    target, start = np.array([3.1, 1.3, 0.9, 0.2]), np.array([3.0, 0, 0, 0])

    def define(z):
        before = np.concatenate([[0.0], z["volume"][:-1]])
        cost = np.array([10, 12, 15, 11]) @ z["thermal"] + 200 * np.sum(z["deficit"])
        return cost + 100 * np.sum(z["miss"] + z["over"]), equal(
            balance=z["volume"] - before + z["release"] + z["spill"] - inflow - start,
            serve=z["release"] + z["thermal"] + z["deficit"] - demand,
            track=z["volume"] + z["miss"] - z["over"] - target,
        )

    return Definition(
        define,
        low=dict.fromkeys(("volume", "release", "thermal", "deficit", "miss", "spill", "over"), 0.0),
        high={"volume": 6.0, "release": 4.0, "thermal": 3.0},
        bounds={"balance": inflow + start, "serve": demand, "track": target},
    )


IMPOSSIBLE = Definition(
    lambda z: (z["w"] ** 2, below(above=2 - z["w"], below=z["w"] - 1.5)), bounds={"above": 2, "below": 1.5}
)
IMPOSSIBLE_FIND = Definition(
    lambda z: (
        0 * z["p"][0],
        {**equal(total=np.sum(z["p"]) - 1), **below(heavy=1.5 - z["p"][0] - z["p"][1])},
    ),
    low={"p": 0.0},
    bounds={"total": 1, "heavy": 1.5},
)


# --------------------------------------------------------------------------------------- over data
def digits():
    x, y = attribute("sklearn.datasets:load_digits")(return_X_y=True)
    return x[:50] / 16, np.eye(10)[y[:50]]


def interpolation():
    x, target = digits()
    return Definition(
        lambda z: (
            np.sum(z["f.weight"] ** 2),
            equal(fit=dot(x, z["f.weight"].T) - target),
        ),
        bounds={"fit": target},
    )


def ridge():
    x, y = attribute("sklearn.datasets:load_diabetes")(return_X_y=True)
    return Definition(
        lambda z: (np.sum((dot(x, z["w"]) - (y - y.mean())) ** 2) + 0.5 * np.sum(z["w"] ** 2), {})
    )


def sphere():
    x, y = attribute("sklearn.datasets:load_breast_cancer")(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    rng = np.random.default_rng(0)
    rows, sides = rng.normal(size=(10, 30)), 0.1 * rng.normal(size=10)

    def define(z):
        s = dot(x, z["w"])
        return np.mean(softplus(s) - y * s), equal(lines=rows @ z["w"] - sides, ball=np.sum(z["w"] ** 2) - 1)

    return Definition(define, bounds={"lines": sides, "ball": 1})


def parity():
    x, y, group = synthetic_arrays()

    def define(z):
        s = dot(x, z["f.weight"][0]) + z["f.bias"][0]
        gap = np.mean(s[group == "b"]) - np.mean(s[group == "a"])
        return np.mean(softplus(s) - y * s), below(
            **{"parity:upper": gap - 0.2, "parity:lower": -gap - 0.2, "level": np.mean(s)}
        )

    return Definition(define, bounds={"parity:upper": 0.2, "parity:lower": 0.2})


def lasso():
    x, y, _ = synthetic_arrays()
    return Definition(
        lambda z: (
            np.mean((dot(x, z["w"]) - y) ** 2),
            below(budget=np.sum(magnitude(z["w"])) - 0.2),
        ),
        bounds={"budget": 0.2},
        kinked={"budget": "w"},
    )


def adult(train):
    x, y, male = train.x, train.y, train.sex == "Male"

    def define(z):
        s = dot(x, z["f.weight"][0]) + z["intercept"]
        loss = np.mean(softplus(s) - y * s) + 0.5e-3 * np.sum(z["f.weight"] ** 2)
        every = np.mean(s[male]) - np.mean(s[~male])
        positives = np.mean(s[male & (y == 1)]) - np.mean(s[~male & (y == 1)])
        return loss, below(
            **{
                "all:upper": every - 0.1,
                "all:lower": -every - 0.1,
                "positives:upper": positives - 0.1,
                "positives:lower": -positives - 0.1,
            }
        )

    sides = ("all:upper", "all:lower", "positives:upper", "positives:lower")
    return Definition(define, bounds=dict.fromkeys(sides, 0.1))


def adult_train():
    """The complete training rows."""
    return adult_data.load().train


def definition_of(name):
    """The definition of a problem of the table, by its name."""
    numbered = {f"hs{s.number}": s for s in STATEMENTS}
    if name in numbered:
        return stated(numbered[name])
    if name in BOOK:
        return BOOK[name]
    return OTHERS[name]()


OTHERS = {
    "maxent": maxent,
    "trust-region-kl": lambda: trust_region(new_first=True),
    "trust-region-trpo": lambda: trust_region(new_first=False),
    "tilt": tilt,
    "frozenlake": lambda: frozen_lake(None),
    "frozenlake-cost": lambda: frozen_lake(0.10),
    "worst-of-three": worst_of_three,
    "worst-of-three-max-min": worst_of_three_max_min,
    "allocation": allocation,
    "projection": projection,
    "pde-control-3": pde_control,
    "hydro": hydro,
    "impossible": lambda: IMPOSSIBLE,
    "impossible-find": lambda: IMPOSSIBLE_FIND,
    "interpolation": interpolation,
    "ridge": ridge,
    "sphere-logistic": sphere,
    "synthetic-parity": parity,
    "lasso-budget": lasso,
}
