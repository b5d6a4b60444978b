"""`problem.evaluate()`: exact values at the current decisions, without a solve."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P
from constrain.errors import DataError, ModelingError

RNG = np.random.default_rng(8)
X = RNG.normal(size=(90, 3))
Y = (X.sum(1) > 0).astype(float)
GROUP = np.asarray(list("abc"))[np.arange(90) % 3]
WEIGHTS = np.asarray([0.5, -0.2, 0.1])


def sample(rows=slice(None), name="people"):
    return cn.Data(name, x=torch.tensor(X[rows]), y=torch.tensor(Y[rows]), group=GROUP[rows])


def build():
    """Every kind of constraint, with a model at known weights."""
    D = sample()
    net = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False), torch.nn.Flatten(0)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(WEIGHTS)[None])
    f, t, limit = cn.Model(net, "f"), cn.Variable((), "t"), cn.Parameter("limit", 0.3)
    t.value = 0.25
    s = f(D.x)
    problem = cn.minimize(cn.max(E((s - D.y) ** 2, by=D.group)) + t**2).subject_to(
        levels=E(s, by=D.group) <= limit,
        recall=P(s > 0, given=D.y == 1) >= 0.8,
        tail=cn.CVaR(s, 0.9) <= 0.5,
        soft=(E(s**2) <= 0.1).relax(cost=cn.squared(2.0)),
        rows=cn.forall(D, s - t <= 1.0),
        both=cn.between(-1, t, 1),
    )
    return problem, net, t


def truth(rows=slice(None)):
    s, y, group = X[rows] @ WEIGHTS, Y[rows], GROUP[rows]
    slack = max(0.0, np.mean(s**2) - 0.1)
    tail = np.sort(s)[::-1][: round(0.1 * len(s))]
    levels = np.asarray([s[group == g].mean() for g in sorted(set(group))])
    worst = max(((s - y) ** 2)[group == g].mean() for g in set(group))
    return {
        "objective": worst + 0.25**2 + slack**2,
        "levels": levels,
        "recall": np.mean(s[y == 1] > 0),
        "tail": tail.mean(),
        "soft": np.mean(s**2),
        "both": 0.25,
    }


@pytest.mark.parametrize("rows", [slice(None), slice(0, 60)])
def test_values_are_those_of_the_definitions(rows):
    problem, net, t = build()
    before = net[0].weight.detach().clone()
    found = problem.evaluate() if rows == slice(None) else problem.evaluate(sample(rows))
    wanted = truth(rows)
    assert found.objective == pytest.approx(wanted.pop("objective"), rel=1e-9)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].value, value, atol=1e-9, err_msg=name)
    assert found["levels"].bound == pytest.approx(0.3)
    assert found["rows"].share == pytest.approx(np.mean(X[rows] @ WEIGHTS - 0.25 > 1.0))
    assert found["recall"].violation == pytest.approx(max(0.0, 0.8 - truth(rows)["recall"]))
    assert torch.equal(net[0].weight, before)
    assert float(t.value) == 0.25
    assert "levels" in str(found)
    assert list(found.names) == list(problem.constraints)


def test_parameters_are_replaced_and_the_model_keeps_its_type():
    problem, net, _ = build()
    net.float()
    assert problem.evaluate(params={"limit": -5.0})["levels"].violation == pytest.approx(
        truth()["levels"] + 5.0, abs=1e-6
    )
    assert net[0].weight.dtype is torch.float32


def test_it_agrees_with_a_solution():
    problem, *_ = build()
    solution = problem.solve("augmented", progress=False, time_limit=5)
    found = problem.evaluate()
    assert found.objective == pytest.approx(solution.objective, rel=1e-6)
    for name in solution.names:
        np.testing.assert_allclose(found[name].value, solution[name].train.value, atol=1e-6)


def test_refusals():
    problem, net, _ = build()
    with pytest.raises(DataError, match="E106"):
        problem.evaluate(cn.Data("people", x=torch.tensor(X)))
    with pytest.raises(
        ModelingError, match=r"\[E141\] evaluate\(\) has no option 'parameters'; did you mean 'params'"
    ):
        problem.evaluate(parameters={"limit": 1.0})
    with pytest.raises(ModelingError, match="E127"):
        problem.evaluate(params={"limits": 1.0})
    with torch.no_grad():
        net[0].weight.fill_(float("nan"))
    with pytest.raises(DataError, match="E138"):
        problem.evaluate()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_the_same_without_gradients_around_it(mode):
    problem, _, _ = build()
    here = problem.evaluate()
    with mode():
        there = problem.evaluate(sample(slice(None)))
    assert there.objective == pytest.approx(here.objective)
    assert there["recall"].interval == pytest.approx(here["recall"].interval)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_solve_has_gradients_whatever_is_around_it(mode):
    problem, _, _ = build()
    with mode():
        solution = problem.solve(epochs=1, progress=False)
        assert np.isfinite(solution.evaluate(sample(slice(0, 60))).objective)
    assert solution.status in {"feasible", "limit"}
