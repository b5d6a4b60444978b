"""Routing with its reasons, options and their messages, and the target programs on small samples."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P, forall
from constrain.solvers.augmented import AugmentedLagrangian


def sample(rows=240, seed=0, name="adult", dtype=torch.float32):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(rows, 4)), dtype=dtype)
    y = (x[:, 0] + 0.5 * x[:, 1] + torch.tensor(rng.normal(size=rows)) > 0).to(dtype)
    return cn.Data(
        name,
        x=x,
        y=y,
        sex=np.where(rng.random(rows) < 0.4, "Female", "Male"),
        race=rng.choice(["a", "b", "c"], rows),
    )


def network(outputs=1, dtype=torch.float32, hidden=True):
    torch.manual_seed(0)
    middle = [torch.nn.Linear(4, 6), torch.nn.ReLU()] if hidden else []
    return torch.nn.Sequential(*middle, torch.nn.Linear(6 if hidden else 4, outputs), torch.nn.Flatten(0)).to(
        dtype
    )


def bce(s, y):
    return F.binary_cross_entropy_with_logits(s, y, reduction="none")


def fair(D, f):
    return cn.minimize(E(bce(f(D.x), D.y))).subject_to(
        parity=abs(E(torch.sigmoid(f(D.x)), by=D.sex) - E(torch.sigmoid(f(D.x)))) <= 0.02,
        recall=P(f(D.x) > 0, given=D.y == 1) >= 0.80,
    )


def gap(D, f):
    s = f(D.x)
    return cn.minimize(E(bce(s, D.y))).subject_to(
        gap=abs(E(s, given=D.sex == "Male") - E(s, given=D.sex == "Female")) <= 0.1
    )


# ------------------------------------------------------------------------------------------- routing
def lp():
    x = cn.Variable(3, "x", nonneg=True)
    return cn.minimize(cn.sum(x)).subject_to(c=x[0] + 2 * x[1] >= 1)


def rosenbrock():
    x = cn.Variable(2, "x")
    return cn.minimize(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2).subject_to(c=x[0] * x[1] >= 0.1)


def counting():
    x = cn.Variable(3, "x", boolean=True)
    return cn.maximize(cn.sum(x)).subject_to(c=x[0] + x[1] <= 1)


ROUTES = {
    "linear program": (lp, {}, "cvxpy", "linear program"),
    "linear model": (lambda: gap(sample(), cn.Model(network(hidden=False), "f")), {}, "cvxpy", "convex"),
    "integers": (counting, {}, "pyomo", "HiGHS"),
    "nonconvex variables": (rosenbrock, {}, "newton", "not certified convex"),
    "network": (lambda: gap(sample(), cn.Model(network(), "f")), {}, "lagrangian", "a network on samples"),
    "rates": (
        lambda: fair(sample(), cn.Model(network(), "f")),
        {},
        "lagrangian",
        "rates have no exact gradient",
    ),
    "batches asked for": (
        lambda: gap(sample(), cn.Model(network(hidden=False), "f")),
        {"batch": 64},
        "lagrangian",
        "batch= asks",
    ),
    "epochs asked for": (
        lambda: gap(sample(), cn.Model(network(), "f")),
        {"epochs": 2},
        "lagrangian",
        "epochs= asks",
    ),
}


@pytest.mark.parametrize("case", ROUTES)
def test_route_and_reason(case):
    make, options, method, words = ROUTES[case]
    explanation = make().explain(**options)
    assert explanation.method == method
    assert words in explanation.reason
    assert f"-> {method}" in str(explanation)
    listed = [r.method for r in explanation.routes]
    assert listed[:2] == ["cvxpy", "pyomo"]
    assert {"augmented", "lagrangian", "cooper"} <= set(listed)


@pytest.mark.parametrize("case", ["linear program", "nonconvex variables", "epochs asked for"])
def test_auto_runs_the_route_that_was_explained(case):
    make, options, method, _ = ROUTES[case]
    solution = make().solve(progress=False, **options)
    assert solution.provenance.route.startswith(f"{method}: ")


def test_no_route_lists_every_reason():
    w = cn.Variable(2, "w", integer=True)
    problem = cn.minimize(torch.sin(w[0]) * w[1])
    explanation = problem.explain()
    assert explanation.method is None
    with pytest.raises(
        cn.RouteError, match=r"\[E125\] no method takes the problem: cvxpy: .*; augmented: w is integer"
    ):
        problem.solve(progress=False)


def test_explain_of_the_first_target_program():
    text = str(fair(sample(), cn.Model(network(), "f")).explain())
    assert text.startswith("minimize   𝔼") or text.startswith("minimize   E")
    for words in (
        "parity:",
        "recall:",
        "data       adult 240 rows",
        "decisions  f (37 parameters)",
        "class      not certified convex",
        "parity: |e| <= b and max_i e_i <= b become one-sided parts",
        "recall: lhs >= b  <=>  b - lhs <= 0",
        "(approximate)",
        "cvxpy      closed",
        "-> lagrangian open",
    ):
        assert words in text, words


def test_explain_as_plain_values():
    record = lp().explain().to_dict()
    assert (record["class"], record["convex"], record["method"]) == ("LP", True, "cvxpy")
    assert {"key", "needs", "found", "ok", "lines"} == set(record["terms"][0])


# ------------------------------------------------------------------------------------------- messages
@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lagrangain", {}, "[E125] there is no method 'lagrangain'; did you mean 'lagrangian'?"),
        (
            "augmented",
            {"memry": 3},
            "[E141] method 'augmented' has no option 'memry'; did you mean 'memory'?",
        ),
        ("cvxpy", {"solvr": "SCS"}, "[E141] method 'cvxpy' has no option 'solvr'"),
        ("lagrangian", {"learning": 1}, "[E141] method 'lagrangian' has no option 'learning'"),
    ],
)
def test_unknown_words(method, options, message):
    D = sample()
    problem = gap(D, cn.Model(network(hidden=False), "f"))
    with pytest.raises(cn.ConstrainError, match=re.escape(message)):
        problem.solve(method, progress=False, **options)


def test_a_method_that_cannot_take_the_problem_says_why():
    with pytest.raises(
        cn.RouteError, match=r"\[E125\] cvxpy cannot take the problem: not certified convex: objective: "
    ):
        rosenbrock().solve("cvxpy", progress=False)
    with pytest.raises(cn.RouteError, match="not certified convex"):
        rosenbrock().to_cvxpy()


def test_models_on_several_devices_or_of_several_types():
    D = sample()
    f = cn.Model(network(), "f")
    g = cn.Model(network().double(), "g")
    problem = cn.minimize(E(bce(f(D.x), D.y))).subject_to(c=E(g(D.x)) <= 0.1)
    with pytest.raises(cn.ModelingError, match=r"\[E123\] the models differ in floating type: f is .*, g is"):
        problem.compile()
    far = cn.Model(network().to("meta"), "far")
    problem = cn.minimize(E(bce(f(D.x), D.y))).subject_to(c=E(far(D.x)) <= 0.1)
    with pytest.raises(
        cn.ModelingError, match=r"\[E123\] the models live on several devices: f on cpu, far on meta"
    ):
        problem.solve(progress=False)


def test_kkt_names_the_unknown():
    problem = lp()
    with pytest.raises(cn.ModelingError, match=r"\[E137\] the problem has no decision 'X'"):
        problem.kkt({"X": [0, 0, 0]})
    with pytest.raises(cn.ModelingError, match=r"\[E139\].*'cc'"):
        problem.kkt({"x": [1, 0, 0]}, {"cc": 1.0})
    record = problem.kkt({"x": [0, 0.5, 0]}, {"c": 0.5})
    assert record.stationarity <= 1e-12
    assert problem.variables[0].value is None


# -------------------------------------------------------------------------------------------- options
def test_params_override_for_one_solve():
    w, floor = cn.Variable((), "w"), cn.Parameter("floor", 1.0)
    problem = cn.minimize(w**2).subject_to(c=w >= floor)
    for method in ("cvxpy", "augmented"):
        assert problem.solve(method, progress=False, params={"floor": 2.0}).objective == pytest.approx(
            4.0, abs=1e-5
        )
        assert problem.solve(method, progress=False).objective == pytest.approx(1.0, abs=1e-5)
    assert floor.value == 1.0


@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
def test_data_replaces_a_sample_by_column_names(method):
    w = cn.Variable((), "w")
    D = cn.Data("adult", x=torch.tensor([1.0, 3.0], dtype=torch.float64))
    problem = cn.minimize(E((w - D.x) ** 2))
    other = cn.Data("other", x=torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64), unused=[0, 0, 0])
    problem.solve(method, progress=False)
    assert float(w.value) == pytest.approx(2.0, abs=1e-6)
    problem.solve(method, progress=False, data=other)
    assert float(w.value) == pytest.approx(20.0, abs=1e-5)


def test_holdout_is_judged_and_not_trained_on():
    D, T = sample(), sample(seed=9, name="test")
    plain = gap(D, cn.Model(network(hidden=False), "f")).solve("cvxpy", progress=False)
    judged = gap(D, cn.Model(network(hidden=False), "f")).solve("cvxpy", progress=False, holdout=T)
    assert judged.objective == plain.objective
    estimate = judged["gap"].holdout
    assert estimate.lower <= estimate.value <= estimate.upper
    assert judged.holdout.rows == (240,)
    assert plain.holdout is None


def test_start_takes_the_multipliers_of_a_solution():
    problem = rosenbrock()
    first = problem.solve("augmented", progress=False)
    again = problem.solve("augmented", progress=False, start=first)
    assert again.provenance.iterations < first.provenance.iterations
    with pytest.raises(cn.ModelingError, match=re.escape("[E141]")):
        problem.solve("augmented", progress=False, start=3)


def test_a_solver_object_keeps_its_own_options():
    solution = lp().solve(AugmentedLagrangian(tolerance=1e-6), progress=False)
    assert solution.objective == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(cn.ModelingError, match="belong to the solver object"):
        lp().solve(AugmentedLagrangian(), progress=False, memory=3)


# ------------------------------------------------------------------------------------ target programs
def test_program_1_fair_classification():
    D = sample()
    solution = fair(D, cn.Model(network(), "f")).solve(
        progress=False, holdout=sample(seed=5, name="test"), epochs=40
    )
    assert solution["recall"].value >= 0.75
    assert solution["parity"].max_violation <= 0.03
    assert solution["parity"].levels == ("Female", "Male")
    assert "recall" in str(solution)
    assert "stationar" in str(solution.kkt())


def test_program_2_neyman_pearson():
    D = sample()
    f, alpha = cn.Model(network(), "f"), cn.Parameter("alpha", 0.2)
    alarm = f(D.x) > 0
    problem = cn.minimize(P(~alarm, given=D.y == 1)).subject_to(false_alarm=P(alarm, given=D.y == 0) <= alpha)
    solution = problem.solve(progress=False, epochs=40)
    assert solution["false_alarm"].value <= 0.25
    assert solution.objective <= 0.6


def test_program_3_statistical_equality():
    D = sample()
    f = cn.Model(network(), "f")
    solution = (
        cn.minimize(E(bce(f(D.x), D.y)))
        .subject_to(rate=P(f(D.x) > 0, by=D.race) == 0.5)
        .solve(progress=False, epochs=40)
    )
    assert np.abs(np.asarray(solution["rate"].value) - 0.5).max() <= 0.1


def test_program_4_without_relaxation_separates():
    D = sample(rows=20)
    module = torch.nn.Linear(4, 1, dtype=torch.float64)
    f = cn.Model(module, "f")
    side = cn.Data("train", x=D.values("x").double(), y=torch.sign(D.values("x")[:, 0]).double())
    problem = cn.minimize(cn.sum_squares(f)).subject_to(fit=forall(side, side.y * f(side.x).reshape(()) >= 1))
    solutions = [problem.solve(method, progress=False) for method in ("cvxpy", "augmented")]
    assert solutions[0].objective == pytest.approx(solutions[1].objective, rel=1e-4)
    assert solutions[0]["fit"].multiplier == pytest.approx(solutions[1]["fit"].multiplier, abs=1e-3)
    assert solutions[0]["fit"].max_violation <= 1e-5


def test_program_7_decision_process():
    rng = np.random.default_rng(0)
    S, A, gamma = 4, 2, 0.9
    T = torch.tensor(rng.dirichlet(np.ones(S), size=(S, A)))
    R, C, rho0 = (
        torch.tensor(rng.random((S, A))),
        torch.tensor(rng.random((S, A))),
        torch.full((S,), 0.25).double(),
    )
    mu = cn.Variable((S, A), "mu", nonneg=True)
    problem = cn.maximize(cn.sum(R * mu)).subject_to(
        flow=cn.sum(mu, axis=1) - gamma * torch.einsum("sap,sa->p", T, mu) == (1 - gamma) * rho0,
        budget=cn.sum(C * mu) <= 0.35,
    )
    first, second = (problem.solve(m, progress=False) for m in ("cvxpy", "augmented"))
    assert first.objective == pytest.approx(second.objective, rel=1e-5)
    assert np.asarray(mu.value).sum() == pytest.approx(1.0, abs=1e-5)
    assert first["budget"].shadow_price == pytest.approx(second["budget"].shadow_price, abs=1e-4)


def test_program_8_trust_region_step():
    g, fisher = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    d, delta = cn.Variable(2, "step"), cn.Parameter("delta", 0.01)
    problem = cn.maximize(g @ d).subject_to(kl=0.5 * cn.quad_form(d, fisher) <= delta)
    natural = torch.linalg.solve(fisher, g)
    expected = float((2 * 0.01 * (g @ natural)) ** 0.5)
    for method in ("cvxpy", "augmented"):
        solution = problem.solve(method, progress=False)
        assert solution.objective == pytest.approx(expected, rel=1e-5)
        assert solution["kl"].shadow_price == pytest.approx(expected / (2 * 0.01), rel=1e-3)


def test_program_9_maximum_entropy():
    z = torch.linspace(-4, 4, 161, dtype=torch.float64)
    p = cn.Variable(161, "p", nonneg=True)
    problem = cn.maximize(cn.sum(cn.entr(p))).subject_to(
        total=cn.sum(p) == 1, mean=z @ p == 0.2, second=(z**2) @ p == 0.54
    )
    solution = problem.solve(progress=False)
    assert solution["second"].multiplier == pytest.approx(1.0, rel=1e-3)
    value = np.asarray(p.value)
    assert np.log(value[100] / value[80]) == pytest.approx(0.4 * float(z[100]) - float(z[100]) ** 2, abs=1e-3)


def test_program_13_a_loop_of_your_own():
    D = sample()
    module = network()
    lagrangian = fair(D, cn.Model(module, "f")).compile()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        batch = D.rows(torch.arange(64) + 44 * (step % 4))
        loss = lagrangian(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lagrangian.ascend()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert set(lagrangian.multipliers()) == {"parity:upper", "parity:lower", "recall"}
    assert any(float(v.max()) > 0 for v in lagrangian.multipliers().values())


def test_the_problem_of_cvxpy_has_the_same_optimum():
    exported = lp().to_cvxpy()
    exported.solve()
    assert exported.value == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("hidden", "method"), [(0, "newton"), (4, "lagrangian")])
def test_networks_are_not_left_to_second_derivatives(hidden, method):
    D = sample()
    x = D.values("x").double()
    layers = [torch.nn.Linear(x.shape[1], hidden), torch.nn.Tanh()] if hidden else []
    last = torch.nn.Linear(hidden or x.shape[1], 1)
    f = cn.Model(torch.nn.Sequential(*layers, last, torch.nn.Flatten(0)).double(), "f")
    problem = cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(level=E(f(D.x)) ** 2 == 0.25)
    assert problem.explain().method == method


def test_a_problem_that_diverged_leaves_its_decisions_at_their_start():
    v, f = cn.Variable(2, "v"), cn.Model(torch.nn.Linear(2, 1).double(), "f")
    v.value = np.array([0.5, -0.25])
    before = {name: t.clone() for name, t in f.module.state_dict().items()}
    D = cn.Data("d", x=np.eye(2))
    falls = cn.minimize(cn.sum(v) ** 3 + E(f(D.x)[..., 0]))
    found = falls.solve("augmented", progress=False)
    assert found.status == "diverged"
    assert not np.allclose(found.variables["v"], v.value)
    assert v.value == pytest.approx([0.5, -0.25])
    assert all(torch.equal(t, before[name]) for name, t in f.module.state_dict().items())
    bowl = cn.minimize(cn.sum_squares(v - 1)).solve(progress=False)
    assert bowl.status == "optimal"


def test_training_needs_no_constraint():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    y = x @ [1.0, -2.0] + 0.1 * rng.normal(size=200)
    w = cn.Variable(2, "w")
    D = cn.Data("d", x=x, y=y)
    found = cn.minimize(E((D.x @ w - D.y) ** 2)).solve("lagrangian", epochs=30, lr=0.05, progress=False)
    least = np.linalg.lstsq(x, y, rcond=None)[0]
    assert found.status in ("feasible", "stationary", "optimal")
    assert found.variables["w"] == pytest.approx(least, abs=0.02)
    assert found.names == ()


@pytest.mark.parametrize("method", ["auto", "newton", "augmented"])
def test_a_misspelled_option_of_solve_has_a_hint(method):
    x = cn.Variable((), "x")
    for typo, meant in [("progressbar", "progress"), ("hold_out", "holdout")]:
        with pytest.raises(cn.ModelingError, match=rf"\[E141\].*{typo!r}; did you mean {meant!r}"):
            cn.minimize(torch.sin(x) ** 2 + x**2).solve(method, **{typo: 1})


def test_a_constant_that_is_no_number_is_named_with_its_place():
    w, weights = cn.Variable(2, "w"), np.array([1.0, np.nan])
    with pytest.raises(
        cn.DataError, match=r"\[E138\] the array weights has 1 infinite or NaN value"
    ) as caught:
        cn.minimize(cn.sum(w**2)).subject_to(c=weights * w >= 1).solve(progress=False)
    assert caught.value.at.filename == __file__
