"""The cvxpy route end to end: published optima, multipliers by finite differences, endings, refusals."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cvxpy.error import SolverError
from torch import nn

import constrain as cn
from constrain import E, P, forall
from constrain.backends.cvxpy import build, solve, support
from constrain.backends.cvxpy.solve import ENTRY_LIMIT, SCS_FROM
from constrain.lowering.classify import classify
from constrain.lowering.lower import lower


def run(problem, **options):
    """Program, facts and raw solution by the convex route."""
    program = lower(problem)
    facts = classify(program)
    answer = support(program, facts)
    assert answer.ok, answer.reason
    raw = solve(build(program), facts, **options)
    assert not raw.warnings
    return program, facts, raw


def value(program, raw):
    """Optimal value in the user's own sense."""
    return program.sign * raw.objective


def multiplier(program, raw, name):
    """The user's multiplier of a constraint: the sum over its parts."""
    return sum(raw.multipliers[part.key] for part in program.parts if part.constraint == name)


def shadow_price(program, raw, name):
    """The derivative of the user's optimal value in the right-hand side as written."""
    parts = [part for part in program.parts if part.constraint == name]
    return program.sign * sum(float(np.sum(raw.multipliers[part.key])) * part.rhs_sign for part in parts)


def check_close(actual, expected, rtol=1e-6, atol=0.0):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------------- published optima
def test_maximum_entropy():
    z = np.linspace(-10, 10, 401)
    p = cn.Variable(401, "p", nonneg=True)
    problem = cn.maximize(cn.sum(cn.entr(p))).subject_to(
        total=cn.sum(p) == 1, mean=z @ p == 0.5, second=(z - 0.5) ** 2 @ p == 1.7
    )
    program, facts, raw = run(problem)
    assert facts.problem_class == "cone"
    check_close(value(program, raw), 4.679984932)
    check_close(multiplier(program, raw, "second"), 0.2941186, rtol=1e-4)
    assert abs(raw.gap) < 1e-6


def test_trust_region_kl():
    old = np.array([0.1, 0.2, 0.3, 0.4])
    gain = np.array([1.0, 0.2, -0.3, -0.5])
    new = cn.Variable(4, "new", nonneg=True)
    problem = cn.maximize((gain - old @ gain) @ new).subject_to(
        total=cn.sum(new) == 1, near=cn.sum(cn.rel_entr(new, old)) <= 0.05
    )
    program, _, raw = run(problem)
    check_close(value(program, raw), 0.15592090)
    check_close(multiplier(program, raw, "near"), 1.65065, rtol=1e-4)


def test_trust_region_reverse_kl():
    old = np.array([0.1, 0.2, 0.3, 0.4])
    gain = np.array([1.0, 0.2, -0.3, -0.5])
    new = cn.Variable(4, "new", nonneg=True)
    problem = cn.maximize((gain - old @ gain) @ new).subject_to(
        total=cn.sum(new) == 1, near=cn.sum(cn.rel_entr(old, new)) <= 0.05
    )
    program, _, raw = run(problem)
    check_close(value(program, raw), 0.1680348236)
    check_close(multiplier(program, raw, "near"), 1.8924629, rtol=1e-4)


def test_tilted_policy():
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(6, 8))
    safety = [rng.normal(size=(6, 8)) - 0.6 * reward for _ in range(2)]
    ref = rng.dirichlet(np.ones(8), size=6)
    pi = cn.Variable((6, 8), "pi", nonneg=True)
    gains = [(cn.sum(g * pi) - float((g * ref).sum())) / 6 for g in safety]
    problem = cn.maximize(cn.sum(reward * pi) / 6 - 0.1 * cn.sum(cn.rel_entr(pi, ref)) / 6).subject_to(
        rows=cn.sum(pi, axis=1) == 1, first=gains[0] >= 0.15, second=gains[1] >= 0.10
    )
    program, _, raw = run(problem)
    check_close(value(program, raw), 0.7426550474)
    check_close(multiplier(program, raw, "first"), 0.24319542, rtol=1e-4)
    check_close(multiplier(program, raw, "second"), 0.27002369, rtol=1e-4)


def test_allocation():
    weight, scale, cost = np.array([0.5, 0.3, 0.2]), np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 5.0])
    n = cn.Variable(3, "n", nonneg=True)
    program, _, raw = run(cn.minimize(cn.sum(weight * scale * n**-0.5)).subject_to(budget=cost @ n <= 1000))
    check_close(value(program, raw), 0.164304778)
    check_close(raw.values[n.symbol], [209.997, 149.387, 98.246], rtol=1e-4)
    check_close(multiplier(program, raw, "budget"), 0.164304778 / 2000, rtol=1e-4)


def test_projection():
    mu, sigma = np.array([1.0, 2.0, 0.5, 0.3]), np.diag([0.5, 0.2, 1.0, 0.1])
    u = cn.Variable(4, "u")
    problem = cn.minimize(cn.quad_form(u - mu, np.linalg.inv(sigma))).subject_to(
        total=0.25 * cn.sum(u) == 1.2
    )
    _, facts, raw = run(problem)
    assert facts.problem_class == "QP"
    check_close(raw.values[u.symbol], [1.2777778, 2.1111111, 1.0555556, 0.3555556])


def test_worst_of_three():
    rows = np.array([[1.0, 0.2, 0.6], [0.1, 0.9, 0.7], [0.8, -0.5, 0.4]])
    mixture = cn.Variable(3, "mixture", nonneg=True)
    program, facts, raw = run(cn.maximize(cn.min(rows @ mixture)).subject_to(total=cn.sum(mixture) == 1))
    assert facts.problem_class == "LP"
    check_close(value(program, raw), 0.52)
    check_close(raw.values[mixture.symbol], [0.3, 0.0, 0.7], atol=1e-9)
    check_close(raw.multipliers["(objective)"], [0.0, 0.4, 0.6], atol=1e-9)


def _frozenlake(**options):
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("FrozenLake-v1", map_name="4x4", is_slippery=True).unwrapped
    states, actions, gamma = 16, 4, 0.99
    move, reward, holes = (
        np.zeros((states, actions, states)),
        np.zeros((states, actions)),
        np.zeros((states, actions)),
    )
    ends = {s for s in range(states) if env.desc.reshape(-1)[s] in (b"H", b"G")}
    for s in set(range(states)) - ends:
        for a in range(actions):
            for probability, after, gain, _ in env.P[s][a]:
                move[s, a, after] += probability
                reward[s, a] += probability * gain
                holes[s, a] += probability * (env.desc.reshape(-1)[after] == b"H")
    start = np.eye(states)[0]
    mu = cn.Variable((states, actions), "mu", nonneg=True)
    flow = cn.sum(mu, axis=1) - gamma * torch.einsum("sap,sa->p", torch.as_tensor(move), mu)
    problem = cn.maximize(cn.sum(reward * mu)).subject_to(flow=flow == start)
    return problem, cn.sum(holes * mu)


def test_frozenlake():
    program, facts, raw = run(_frozenlake()[0])
    assert facts.problem_class == "LP"
    check_close(value(program, raw), 0.5420259320)


def test_frozenlake_with_a_budget_of_holes():
    problem, holes = _frozenlake()
    program, _, raw = run(problem.subject_to(cost=holes <= 0.10))
    check_close(value(program, raw), 0.4591470588)
    check_close(multiplier(program, raw, "cost"), 4.5914705882, rtol=1e-4)
    check_close(shadow_price(program, raw, "cost"), 4.5914705882, rtol=1e-4)


def _digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    return digits.data[:50] / 16.0, np.eye(10)[digits.target[:50]]


def test_interpolation_with_a_matrix():
    x, y = _digits()
    weight = cn.Variable((64, 10), "W")
    program, _, raw = run(cn.minimize(cn.sum_squares(weight)).subject_to(fit=x @ weight == y))
    check_close(value(program, raw), 2925.81972)
    gradient = 2 * raw.values[weight.symbol] + x.T @ raw.multipliers["fit"]
    check_close(gradient, np.zeros((64, 10)), atol=1e-4)


def test_interpolation_with_a_model_and_one_constraint_per_row():
    x, y = _digits()
    data = cn.Data("digits", x=x, y=y)
    f = cn.Model(nn.Linear(64, 10, bias=False), "f")
    program, _, raw = run(cn.minimize(cn.sum_squares(f)).subject_to(fit=forall(data, f(data.x) == data.y)))
    check_close(value(program, raw), 2925.81972)
    assert raw.multipliers["fit"].shape == (50, 10)
    before = f.module.weight
    raw.write_back()
    assert f.module.weight is before
    assert before.dtype == torch.float32
    check_close(float(before.detach().double().square().sum()), 2925.81972, rtol=1e-5)
    check_close(f.module(torch.as_tensor(x, dtype=torch.float32)).detach().numpy(), y, atol=1e-4)


def test_optimal_control():
    size, h = 3, 0.5
    place = np.arange(1, size + 1) - 2
    step = 0.1 / math.sqrt(15)
    target = np.sin(4 + step * place)[:, None] + np.cos(3 + step * place)[None, :]
    line = np.eye(size, k=1) + np.eye(size, k=-1) - 2 * np.eye(size)
    laplacian = (np.kron(line, np.eye(size)) + np.kron(np.eye(size), line)) / h**2
    w, z = cn.Variable(size * size, "w"), cn.Variable(size * size, "z")
    objective = 0.5 * cn.sum_squares(w - target.reshape(-1)) + 0.05 * cn.sum_squares(z)
    program, facts, raw = run(cn.minimize(objective).subject_to(state=laplacian @ w + z == 0))
    assert facts.problem_class == "QP"
    check_close(raw.multipliers["state"], -0.1 * raw.values[z.symbol], atol=1e-6)
    check_close(value(program, raw), 9.6444420518)
    check_close(raw.multipliers["state"][0], 0.21247954, rtol=1e-4)


def _hydro(targets):
    inflow, demand, cost = (
        [3.0, 1.0, 2.0, 0.5],
        np.array([4.0, 4.0, 5.0, 4.0]),
        np.array([10.0, 12.0, 15.0, 11.0]),
    )
    level = cn.Variable(4, "level", bounds=(0.0, 6.0))
    turbine = cn.Variable(4, "turbine", bounds=(0.0, 4.0))
    thermal = cn.Variable(4, "thermal", bounds=(0.0, 3.0))
    spill, deficit = cn.Variable(4, "spill", nonneg=True), cn.Variable(4, "deficit", nonneg=True)
    miss = cn.Variable(4, "miss")
    before = cn.stack(3.0, level[0], level[1], level[2])
    objective = cost @ thermal + 200 * cn.sum(deficit) + 100 * cn.norm(miss, 1)
    return cn.minimize(objective).subject_to(
        water=level - before + turbine + spill == np.array(inflow),
        load=turbine + thermal + deficit == demand,
        track=level + miss == targets,
    ), level


def test_hydro_schedule():
    target = cn.Parameter("target", np.array([3.1, 1.3, 0.9, 0.2]))
    problem, _ = _hydro(target)
    program, facts, raw = run(problem)
    assert facts.problem_class == "LP"
    check_close(value(program, raw), 95.2)
    check_close(-raw.multipliers["track"], [-2.0, -3.0, 4.0, 11.0], atol=1e-6)  # the gradient in the targets


def test_sphere_logistic():
    data = pytest.importorskip("sklearn.datasets").load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(10, 30))
    b = 0.1 * rng.normal(size=10)
    sample = cn.Data("cancer", x=x, y=2.0 * data.target - 1.0)
    w = cn.Variable(30, "w")
    problem = cn.minimize(E(cn.softplus(-sample.y * (sample.x @ w)))).subject_to(
        equal=a @ w == b, ball=cn.sum_squares(w) <= 1
    )
    program, _, raw = run(problem)
    check_close(value(program, raw), 0.175091150183)
    check_close(multiplier(program, raw, "ball"), 0.07911018, rtol=1e-4)


def test_ridge_sensitivity():
    data = pytest.importorskip("sklearn.datasets").load_diabetes()
    sample = cn.Data("diabetes", x=data.data, y=data.target - data.target.mean())
    alpha = cn.Parameter("alpha", 0.5)
    w = cn.Variable(10, "w")
    program = lower(cn.minimize(442 * E((sample.x @ w - sample.y) ** 2) + alpha * cn.sum_squares(w)))
    facts = classify(program)
    step, ends = 1e-3, []
    for at in (0.5 + step, 0.5 - step):
        raw = solve(build(program, parameters={"alpha": at}), facts, solver="CLARABEL", tolerance=1e-12)
        ends.append(raw.values[w.symbol])
    slope = (ends[0] - ends[1]) / (2 * step)
    check_close(slope[:4], [29.59336462, 133.90215389, -200.33516383, -109.70819058], rtol=1e-4)


HOCK_SCHITTKOWSKI = {
    "hs10": (
        lambda x: x[0] - x[1],
        2,
        {"c": lambda x: cn.quad_form(x, np.array([[3.0, -1.0], [-1.0, 1.0]])) <= 1},
        -1.0,
        {},
    ),
    "hs28": (
        lambda x: (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2,
        3,
        {"c": lambda x: x[0] + 2 * x[1] + 3 * x[2] == 1},
        0.0,
        {},
    ),
    "hs48": (
        lambda x: (x[0] - 1) ** 2 + (x[1] - x[2]) ** 2 + (x[3] - x[4]) ** 2,
        5,
        {"a": lambda x: cn.sum(x) == 5, "b": lambda x: x[2] - 2 * (x[3] + x[4]) == -3},
        0.0,
        {},
    ),
    "hs51": (
        lambda x: (x[0] - x[1]) ** 2 + (x[1] + x[2] - 2) ** 2 + (x[3] - 1) ** 2 + (x[4] - 1) ** 2,
        5,
        {
            "a": lambda x: x[0] + 3 * x[1] == 4,
            "b": lambda x: x[2] + x[3] - 2 * x[4] == 0,
            "c": lambda x: x[1] - x[4] == 0,
        },
        0.0,
        {},
    ),
    "hs52": (
        lambda x: (4 * x[0] - x[1]) ** 2 + (x[1] + x[2] - 2) ** 2 + (x[3] - 1) ** 2 + (x[4] - 1) ** 2,
        5,
        {
            "a": lambda x: x[0] + 3 * x[1] == 0,
            "b": lambda x: x[2] + x[3] - 2 * x[4] == 0,
            "c": lambda x: x[1] - x[4] == 0,
        },
        5.326647564,
        {"a": 3.277937, "b": 2.905444, "c": -7.747851},
    ),
    "hs12": (
        lambda x: cn.quad_form(x, np.array([[0.5, -0.5], [-0.5, 1.0]])) - 7 * x[0] - 7 * x[1],
        2,
        {"c": lambda x: 4 * x[0] ** 2 + x[1] ** 2 <= 25},
        -30.0,
        {"c": 0.5},
    ),
    "hs22": (
        lambda x: (x[0] - 2) ** 2 + (x[1] - 1) ** 2,
        2,
        {"a": lambda x: x[0] + x[1] <= 2, "b": lambda x: x[0] ** 2 <= x[1]},
        1.0,
        {"a": 2 / 3, "b": 2 / 3},
    ),
    "hs43": (
        lambda x: (
            x[0] ** 2 + x[1] ** 2 + 2 * x[2] ** 2 + x[3] ** 2 - 5 * x[0] - 5 * x[1] - 21 * x[2] + 7 * x[3]
        ),
        4,
        {
            "a": lambda x: cn.sum_squares(x) + x[0] - x[1] + x[2] - x[3] <= 8,
            "b": lambda x: x[0] ** 2 + 2 * x[1] ** 2 + x[2] ** 2 + 2 * x[3] ** 2 - x[0] - x[3] <= 10,
            "c": lambda x: 2 * x[0] ** 2 + x[1] ** 2 + x[2] ** 2 + 2 * x[0] - x[1] - x[3] <= 5,
        },
        -44.0,
        {"a": 1.0, "b": 0.0, "c": 2.0},
    ),
}


@pytest.mark.parametrize("name", HOCK_SCHITTKOWSKI)
def test_hock_schittkowski(name):
    objective, size, constraints, best, multipliers = HOCK_SCHITTKOWSKI[name]
    x = cn.Variable(size, "x")
    program, _, raw = run(cn.minimize(objective(x)).subject_to(**{k: c(x) for k, c in constraints.items()}))
    check_close(value(program, raw), best, atol=1e-6)
    for key, expected in multipliers.items():
        check_close(multiplier(program, raw, key), expected, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------- signs
CENTER, SLOPE = np.array([2.0, 1.0]), np.array([1.0, 3.0])
RELATIONS = {"<=": lambda e, b: e <= b, ">=": lambda e, b: e >= b, "==": lambda e, b: e == b}
REVERSED = {"<=": lambda e, b: b >= e, ">=": lambda e, b: b <= e, "==": lambda e, b: b == e}


def _signed(sense, relation, bound, kind, written=RELATIONS):
    """A program whose constraint binds, in minimization or maximization."""
    x = cn.Variable(2, "x", bounds=(-4.0, 4.0))
    cost = {
        "LP": lambda: (1.0 if relation == ">=" else -1.0) * cn.sum(x),
        "QP": lambda: cn.sum_squares(x - CENTER),
        "cone": lambda: cn.norm(x - CENTER) + cn.sum(cn.exp(0.1 * (x - CENTER))),
    }[kind]()
    objective = cn.minimize(cost) if sense == "minimize" else cn.maximize(-cost)
    return objective.subject_to(c=written[relation](SLOPE @ x, bound))


SOLVERS = [
    *(("LP", name) for name in ("HIGHS", "CLARABEL", "SCS")),
    *(("QP", name) for name in ("HIGHS", "CLARABEL", "OSQP")),
    *(("cone", name) for name in ("CLARABEL", "SCS")),
]


@pytest.mark.parametrize("written", [RELATIONS, REVERSED], ids=["lhs first", "rhs first"])
@pytest.mark.parametrize(("relation", "bound"), [("<=", 2.0), (">=", 7.0), ("==", 2.0), ("==", 7.0)])
@pytest.mark.parametrize("sense", ["minimize", "maximize"])
@pytest.mark.parametrize(("kind", "solver"), SOLVERS)
def test_multipliers_and_shadow_prices_equal_finite_differences(
    kind, solver, sense, relation, bound, written
):
    def solved(at, name=solver):
        program = lower(_signed(sense, relation, at, kind, written))
        tolerance = 1e-9 if name in ("SCS", "OSQP") else None
        raw = solve(build(program), classify(program), solver=name, tolerance=tolerance)
        assert raw.status == "optimal", raw.message
        return program, raw

    step = 1e-3
    exact = "HIGHS" if kind == "LP" else "CLARABEL"
    up, down = (solved(bound + d, exact) for d in (step, -step))
    slope = (value(*up) - value(*down)) / (2 * step)
    program, raw = solved(bound)
    check_close(shadow_price(program, raw, "c"), slope, rtol=1e-3, atol=1e-4)
    if relation != "==":
        assert (raw.multipliers["c"] >= -1e-9).all()
    assert abs(slope) > 1e-2


def _bounded(name, b):
    x = cn.Variable(3, "x")
    score = np.array([1.0, -2.0, 0.5]) * x
    far = cn.minimize(cn.sum_squares(x - np.array([3.0, 2.0, -1.0])))
    relation = {
        "abs": lambda: abs(cn.sum(score)) <= b,
        "norm": lambda: cn.norm(x) <= b,
        "largest": lambda: cn.max(score) <= b,
        "smallest": lambda: cn.min(-score) >= -b,
        "between": lambda: cn.between(-9.0, cn.sum(x), b),
        "vector": lambda: x <= b,
        "maximum": lambda: cn.maximum(x[0], 2 * x[1]) <= b,
        "bound first": lambda: b >= abs(x[0]),
    }[name]()
    return far.subject_to(c=relation)


@pytest.mark.parametrize(
    "name", ["abs", "norm", "largest", "smallest", "between", "vector", "maximum", "bound first"]
)
def test_shadow_prices_of_split_constraints(name):
    b, step = 0.7, 1e-3
    program, _, raw = run(_bounded(name, b), solver="CLARABEL")
    ends = [value(*run(_bounded(name, b + d), solver="CLARABEL")[::2]) for d in (step, -step)]
    slope = (ends[0] - ends[1]) / (2 * step)
    if name == "smallest":
        slope = -slope  # the right-hand side as written is -b
    if name == "between":
        upper = [float(raw.multipliers[p.key]) * p.rhs_sign for p in program.parts if p.side == "upper"]
        assert abs(sum(upper) - slope) < 1e-4
        return
    check_close(shadow_price(program, raw, "c"), slope, rtol=1e-4)


# ---------------------------------------------------------------------------------------- constraints on data
def _classifier(levels=3, rows=60):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(rows, 4))
    y = (x[:, 0] + 0.3 * rng.normal(size=rows) > 0).astype(float)
    group = np.array([f"g{i % levels:03d}" for i in range(rows)])
    data = cn.Data("d", x=x, y=y, z=2 * y - 1, g=group)
    f = cn.Model(nn.Linear(4, 1), "f")
    return data, f, f(data.x)[..., 0]


@pytest.mark.parametrize("levels", [3, 200])
def test_groups_stay_one_constraint(levels):
    data, f, score = _classifier(levels, rows=3 * levels)
    problem = cn.minimize(E((score - data.z) ** 2) + 0.1 * cn.sum_squares(f)).subject_to(
        parity=abs(E(score, by=data.g) - E(score)) <= 0.05
    )
    program = lower(problem)
    built = build(program)
    assert len(built.problem.constraints) == 2
    assert built.levels["parity:upper"] == tuple(f"g{i:03d}" for i in range(levels))
    raw = solve(built, classify(program))
    assert raw.status == "optimal"
    assert raw.multipliers["parity:upper"].shape == (levels,)
    assert (multiplier(program, raw, "parity") >= -1e-9).all()


def test_one_constraint_per_row_and_its_stationarity():
    data, f, score = _classifier()
    _program, facts, raw = run(
        cn.minimize(cn.sum_squares(f)).subject_to(fit=forall(data.where(data.y == 1), data.z * score >= 1))
    )
    assert facts.problem_class == "QP"
    own = np.asarray(data.values("y")) == 1
    multipliers = raw.multipliers["fit"]
    assert multipliers.shape == (60,)
    assert (multipliers[~own] == 0).all()
    assert (multipliers[own] >= -1e-9).all()
    weight = raw.weights[f]["weight"][0]
    pull = (multipliers * np.asarray(data.values("z"))) @ np.asarray(data.values("x"))
    check_close(2 * weight, pull, atol=1e-6)


def test_text_levels_and_conditions():
    data, f, score = _classifier()
    odd = (data.g == "g001") & (data.y == 1)
    program, _, raw = run(cn.minimize(cn.sum_squares(f)).subject_to(lift=E(score, given=odd) >= 1))
    raw.write_back()
    scores = f.module(torch.as_tensor(data.values("x"), dtype=torch.float32)).detach().numpy()[:, 0]
    chosen = (np.asarray(data.values("g")) == "g001") & (np.asarray(data.values("y")) == 1)
    check_close(scores[chosen].mean(), 1.0, rtol=1e-5)
    assert value(program, raw) > 0


def test_frozen_model_and_data_only_parts_are_data():
    data, f, score = _classifier()
    frozen = cn.Model(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), "frozen", frozen=True)
    weight = torch.sigmoid(frozen(data.x)[..., 0]) * torch.special.expit(data.y)
    loss = weight * F.binary_cross_entropy_with_logits(score, data.y, reduction="none")
    problem = cn.minimize(E(loss) + 0.1 * cn.sum_squares(f)).subject_to(rate=E(score) <= P(data.y == 1) - 0.4)
    program, facts, raw = run(problem)
    assert facts.models == {"f": None}
    assert raw.status == "optimal"
    assert [m.name for m in raw.weights] == ["f"]
    assert program.models != (f,)


def test_other_data_of_the_same_columns():
    data, f, score = _classifier()
    other = cn.Data("e", x=np.ones((4, 4)), z=np.ones(4), g=np.array(["a"] * 4), y=np.ones(4))
    program = lower(cn.minimize(E((score - data.z) ** 2) + 0.1 * cn.sum_squares(f)))
    facts = classify(program)
    own, rebound = solve(build(program), facts), solve(build(program, data={data: other}), facts)
    assert rebound.objective < 0.1 < own.objective


# --------------------------------------------------------------------------------------------- integers
def _knapsack():
    take = cn.Variable(6, "take", boolean=True)
    gain, size = np.array([10.0, 13, 7, 8, 2, 4]), np.array([5.0, 6, 3, 4, 1, 2])
    return cn.maximize(gain @ take).subject_to(room=size @ take <= 10), take


def test_integer_program():
    problem, take = _knapsack()
    program, facts, raw = run(problem)
    assert facts.problem_class == "MILP"
    assert facts.integer == ("take",)
    assert value(program, raw) == pytest.approx(22.0)
    assert set(raw.values[take.symbol].tolist()) <= {0.0, 1.0}
    assert raw.multipliers is None
    assert "integer variables has no multipliers" in raw.message


def test_integer_variable_with_bounds():
    k = cn.Variable(2, "k", integer=True, bounds=(np.array([-3.0, 0.0]), 7))
    program, _, raw = run(cn.minimize(cn.sum(k)).subject_to(c=2 * k[0] + k[1] >= 4.5))
    assert value(program, raw) == pytest.approx(3.0)


def test_integer_quadratic_is_refused_without_a_solver():
    take = cn.Variable(3, "take", boolean=True)
    program = lower(cn.minimize(cn.sum_squares(take - 0.4)))
    answer = support(program, classify(program))
    assert not answer.ok
    assert "no installed solver takes a MIQP problem" in answer.reason


# --------------------------------------------------------------------------------------------- endings
def test_infeasible():
    x = cn.Variable((), "x")
    for solver in ("HIGHS", "CLARABEL"):
        _, _, raw = run(cn.minimize(x).subject_to(low=x >= 2, high=x <= 1.5), solver=solver)
        assert raw.status == "infeasible"
        assert raw.objective is None
        assert raw.multipliers is None
        assert raw.result().ending == "infeasible"


def test_unbounded():
    x = cn.Variable(2, "x")
    for solver in ("HIGHS", "CLARABEL"):
        _, _, raw = run(cn.minimize(cn.sum(x)).subject_to(c=x <= 1), solver=solver)
        assert raw.status == "unbounded"


def test_iteration_limit():
    _data, f, score = _classifier()
    problem = cn.minimize(E(cn.softplus(score)) + cn.sum_squares(f)).subject_to(c=E(score) >= 0.2)
    program = lower(problem)
    raw = solve(build(program), classify(program), options={"max_iter": 2})
    assert raw.status in ("limit", "inaccurate")
    assert raw.result().ending == "limit"


def test_a_solver_without_a_form_of_the_problem_is_named():
    x = cn.Variable(2, "x")
    program = lower(cn.minimize(cn.sum(cn.exp(x))))
    with pytest.raises(cn.RouteError, match="highs cannot take the problem"):
        solve(build(program), classify(program), solver="HIGHS")


def test_a_solver_that_breaks_down_is_reported(monkeypatch):
    def breaks(*_args, **_options):
        raise SolverError("numerical trouble")

    x = cn.Variable(2, "x")
    program = lower(cn.minimize(cn.sum(cn.exp(x)) + cn.sum_squares(x)))
    built = build(program)
    monkeypatch.setattr(built.problem, "unpack_results", breaks)
    raw = solve(built, classify(program), solver="CLARABEL")
    assert raw.status == "error"
    assert "CLARABEL: numerical trouble" in raw.message


def test_unknown_solver():
    x = cn.Variable(2, "x")
    program = lower(cn.minimize(cn.sum_squares(x)))
    with pytest.raises(cn.RouteError, match="no installed solver 'nosuch'"):
        solve(build(program), classify(program), solver="nosuch")


def test_feasibility_problem():
    x = cn.Variable(2, "x")
    program, facts, raw = run(cn.find().subject_to(total=cn.sum(x) == 1, low=x >= 0.2))
    assert facts.problem_class == "LP"
    assert raw.status == "optimal"
    assert raw.values[x.symbol].sum() == pytest.approx(1.0)
    assert program.sign == 1.0


def test_long_sums():
    x = cn.Variable(3, "x")
    total = cn.sum_squares(x)
    for i in range(2000):
        total = total + 0.001 * (i % 5) * x[i % 3]
    _, _, raw = run(cn.minimize(total))
    assert raw.status == "optimal"


def test_arrays_of_three_axes():
    x = cn.Variable((2, 3, 4), "x")
    program, _, raw = run(cn.minimize(cn.sum_squares(x - 1)).subject_to(c=cn.sum(x, axis=(0, 2)) <= 2))
    assert raw.values[x.symbol].shape == (2, 3, 4)
    check_close(value(program, raw), 3 * 8 * 0.75**2, rtol=1e-6)


# --------------------------------------------------------------------------------------------- parameters
def test_symbolic_parameters_stay_symbolic():
    eps = cn.Parameter("eps", 1.0)
    x = cn.Variable(2, "x")
    program = lower(cn.minimize(cn.sum_squares(x - 3)).subject_to(c=cn.sum(x) <= eps))
    built = build(program, symbolic_parameters=True)
    assert list(built.parameters) == [eps.symbol]
    first = solve(built, classify(program)).objective
    built.parameters[eps.symbol].value = 2.0
    second = solve(built, classify(program)).objective
    check_close([first, second], [12.5, 8.0])


def test_parameters_that_break_the_rules_become_numbers():
    eps = cn.Parameter("eps", 2.0)
    x = cn.Variable(2, "x")
    program = lower(cn.minimize(eps * cn.sum_squares(x - 3)).subject_to(c=cn.sum(x) <= eps))
    built = build(program, symbolic_parameters=True)
    assert not built.parameters
    check_close(solve(built, classify(program)).objective, 16.0)


def test_parameter_without_value():
    eps = cn.Parameter("eps")
    x = cn.Variable(2, "x")
    program = lower(cn.minimize(cn.sum_squares(x)).subject_to(c=cn.sum(x) >= eps))
    with pytest.raises(cn.ModelingError, match="Parameter 'eps' has no value"):
        build(program)


# ----------------------------------------------------------------------------------------------- refusals
def test_support_says_why_not():
    data, _, score = _classifier()
    deep = cn.Model(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), "deep")
    cases = {
        "objective: sigmoid(f(x)[..., 0]) is neither": cn.minimize(E(torch.sigmoid(score))),
        "recall: the event f(x)[..., 0] > 0 depends": cn.minimize(E(score**2)).subject_to(
            recall=P(score > 0) >= 0.8
        ),
        "deep is not affine in its weights: ReLU '1'": cn.minimize(E(deep(data.x)[..., 0] ** 2)),
        "fit: ": cn.minimize(E(score)).subject_to(fit=E(score**2) == 1),
        "an equality is convex only when": cn.minimize(E(score)).subject_to(fit=E(score**2) == 1),
        "low: ": cn.minimize(E(score)).subject_to(low=E(score**2) >= 1),
    }
    for words, problem in cases.items():
        program = lower(problem)
        answer = support(program, classify(program))
        assert not answer.ok
        assert words in answer.reason
        assert classify(program).reasons


def test_rows_that_a_model_mixes_are_refused():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x).reshape(2, -1).t()

    data, _, _ = _classifier()
    g = cn.Model(Mixing(), "g")
    program = lower(cn.minimize(E(g(data.x)[..., 0] ** 2)))
    with pytest.raises(cn.RouteError, match="mixes rows"):
        build(program)


def test_empty_group_is_refused():
    data, _, score = _classifier()
    problem = cn.minimize(E(score**2)).subject_to(c=E(score, given=data.z > 5) <= 1)
    with pytest.raises(cn.DataError, match="E124"):
        build(lower(problem))


# ------------------------------------------------------------------------------------------ choice of solver
def test_solver_follows_the_class_and_the_size():
    x, k = cn.Variable(2, "x"), cn.Variable(2, "k", integer=True, bounds=(0, 3))
    large = cn.Data("large", x=np.broadcast_to(np.float32(1), (SCS_FROM // 100 + 1, 100)))
    w = cn.Variable(100, "w")
    cases = {
        "HIGHS": [cn.minimize(cn.sum(abs(x))), cn.minimize(cn.sum(k))],
        "CLARABEL": [cn.minimize(cn.sum_squares(x)), cn.minimize(cn.norm(x) + cn.sum(x))],
        "SCS": [cn.minimize(E(cn.softplus(large.x @ w)))],
    }
    for solver, problems in cases.items():
        for problem in problems:
            program = lower(problem)
            answer = support(program, classify(program))
            assert answer.ok
            assert answer.solver == solver
            assert solver in answer.reason


def test_too_large_is_refused():
    large = cn.Data("large", x=np.broadcast_to(np.float32(1), (ENTRY_LIMIT // 100 + 1, 100)))
    w = cn.Variable(100, "w")
    program = lower(cn.minimize(E(cn.softplus(large.x @ w))))
    answer = support(program, classify(program))
    assert not answer.ok
    assert "entries, more than" in answer.reason


def test_empty_entries_do_not_count():
    sparse = cn.Data("sparse", x=np.eye(500))
    w = cn.Variable(500, "w")
    program = lower(cn.minimize(E(cn.softplus(sparse.x @ w))))
    assert support(program, classify(program)).cost == 1000


def test_hinge_loss_reaches_the_optimum():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 20))
    y = np.sign(x[:, 0] + 0.1 * rng.normal(size=300))
    data = cn.Data("d", x=x, y=y)
    w, b = cn.Variable(20, "w"), cn.Variable((), "b")
    hinge = torch.relu(1 - data.y * (data.x @ w + b))
    program, facts, raw = run(cn.minimize(0.5 * cn.sum_squares(w) + 10 * E(hinge)).subject_to(c=w[0] <= 3))
    assert facts.problem_class == "QP"
    check_close(value(program, raw), 3.3075713, rtol=1e-6)


# ---------------------------------------------------------------------------------------- proven bounds
def test_linear_programs_come_with_the_dual_value():
    rng = np.random.default_rng(0)
    data = cn.Data("d", x=rng.normal(size=(60, 3)), t=rng.normal(size=60))
    w = cn.Variable(3, "w", bounds=(-0.1, 0.2))
    loss = E(F.l1_loss(data.x @ w, data.t, reduction="none"))
    for problem in (
        cn.minimize(loss),
        cn.minimize(loss).subject_to(total=cn.sum(w) == 0.05, first=w[0] >= 0.02),
        cn.maximize(-loss + 3).subject_to(total=cn.sum(w) <= -0.1),
    ):
        program, _, raw = run(problem)
        assert raw.solver.startswith("highs")
        assert raw.gap is not None
        assert raw.gap < 1e-9
        solution = problem.solve(progress=False)
        assert solution.status == "optimal"
        check_close(solution.bound, value(program, raw))


def test_the_gap_of_a_quadratic_program_by_highs_is_that_of_its_dual():
    rng = np.random.default_rng(1)
    A = rng.normal(size=(5, 3))
    x = cn.Variable(3, "x", bounds=(-0.2, 0.3))
    _, _, raw = run(
        cn.minimize(cn.sum_squares(A @ x - 1) + cn.sum(x)).subject_to(total=cn.sum(x) <= 0.2), solver="highs"
    )
    assert 0 <= raw.gap < 1e-6


def test_a_knapsack_solved_to_its_bound_is_optimal():
    z = cn.Variable(6, "z", boolean=True)
    worth, weight = np.array([5.0, 4, 3, 7, 2, 6]), np.array([2.0, 3, 1, 4, 1, 3])
    problem = cn.maximize(worth @ z).subject_to(room=weight @ z <= 7)
    solution = problem.solve(progress=False)
    assert solution.status == "optimal"
    check_close(solution.bound, 16)
    check_close(solution.objective, 16)


def test_the_bound_of_a_search_cut_short_is_not_the_optimum():
    rng = np.random.default_rng(0)
    z = cn.Variable(60, "z", boolean=True)
    A, b = rng.integers(1, 60, (5, 60)).astype(float), np.full(5, 400.0)
    problem = cn.maximize((A.mean(0) + rng.integers(0, 9, 60)) @ z).subject_to(room=A @ z <= b)
    solution = problem.solve(method="cvxpy", progress=False, options={"mip_rel_gap": 0.05})
    assert solution.bound > solution.objective * (1 + 1e-4)
    assert solution.status != "optimal"


@pytest.mark.parametrize(
    "loss",
    [
        lambda r: cn.maximum(0.9 * r, -0.1 * r),
        lambda r: abs(0.5 * r) + cn.maximum(2.0 * r - 1.0, 0.0),
        lambda r: cn.maximum(3.0 * r - 2.0, -0.2 * r) + abs(r + 1.0),
    ],
    ids=["pinball", "absolute", "shifted"],
)
def test_linear_programs_do_not_depend_on_bounds_that_cvxpy_infers(loss):
    """cvxpy 1.9.3 bounds `maximum(0.9 r, ...)` by 0 for HiGHS: the program was said to be infeasible."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    D = cn.Data("d", x=x, y=x @ [1.0, -2.0, 0.5] + rng.normal(size=80))
    w = cn.Variable(3, "w")
    problem = cn.minimize(E(loss(D.y - D.x @ w)))
    found = {
        solver: problem.solve("cvxpy", solver=solver, progress=False) for solver in ("HIGHS", "CLARABEL")
    }
    assert all(solution.status == "optimal" for solution in found.values())
    check_close(found["HIGHS"].objective, found["CLARABEL"].objective)
