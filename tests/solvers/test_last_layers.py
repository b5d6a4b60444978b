"""The convex block of a trained problem: last layers and variables, exactly, with the weights below held."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P
from constrain.driver.last_layers import held_below, with_exact_block
from constrain.driver.setup import lowered, prepare
from constrain.runtime.decisions import precision
from constrain.runtime.result import RawResult

cp = pytest.importorskip("cvxpy")
torch.set_num_threads(1)
rng = np.random.default_rng(0)
X = rng.normal(size=(120, 3))
Y = (X[:, 0] * X[:, 1] + 0.3 * rng.normal(size=120) > 0).astype(float)
D = cn.Data("d", x=X, y=Y, g=list(np.where(rng.random(120) < 0.4, "a", "b")))


def network(seed=0, bend=torch.nn.ReLU):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(3, 6), bend(), torch.nn.Linear(6, 1), torch.nn.Flatten(0)]
    return torch.nn.Sequential(*layers).double()


def problem(net, bound=0.2):
    f, level = cn.Model(net, "f"), cn.Variable((), "level", nonneg=True)
    score = f(D.x)
    loss = F.binary_cross_entropy_with_logits(score - level, D.y, reduction="none")
    cost = E(loss) + 0.01 * cn.sum_squares(f) + 0.1 * (level - 1) ** 2
    rules = {"floor": E(score) >= bound, "parity": abs(E(score, by=D.g) - E(score)) <= 0.05}
    return cn.minimize(cost).subject_to(**rules)


def blocked(asked, tolerance=1e-6):
    """Where `with_exact_block` ends from the current weights, with what it says."""
    program = lowered(asked)
    with precision(program, torch.float64):
        setup = prepare(program, device=torch.device("cpu"), dtype=torch.float64)
        start = RawResult("limit", None, "start", message="start")
        return with_exact_block(
            program, setup, start, data=None, replaced=None, params=None, time_limit=None, tolerance=tolerance
        )


def test_the_block_is_the_optimum_of_the_problem_with_fixed_features():
    net = network()
    features = torch.relu(net[0](torch.as_tensor(X))).detach().numpy()
    lower = net[0].weight.detach().clone()
    asked = problem(net)
    raw = blocked(asked)
    w, b, level = cp.Variable(6), cp.Variable(), cp.Variable(nonneg=True)
    score = features @ w + b
    a = np.asarray(D.values("g")) == "a"
    gaps = [cp.sum(score[rows]) / rows.sum() - cp.sum(score) / 120 for rows in (a, ~a)]
    loss = cp.sum(cp.logistic(score - level) - cp.multiply(Y, score - level)) / 120
    first = float(sum((p.detach() ** 2).sum() for p in net[0].parameters()))
    cost = loss + 0.01 * (cp.sum_squares(w) + cp.square(b) + first) + 0.1 * cp.square(level - 1)
    floor = cp.sum(score) / 120 >= 0.2
    theirs = cp.Problem(cp.Minimize(cost), [floor, *(cp.abs(gap) <= 0.05 for gap in gaps)])
    theirs.solve(solver="CLARABEL")
    assert asked.evaluate().objective == pytest.approx(theirs.value, abs=1e-7)
    assert raw.multipliers["floor"] == pytest.approx(float(floor.dual_value), abs=1e-5)
    assert "last layer exactly, by clarabel" in raw.message
    assert torch.equal(net[0].weight, lower)
    assert all(p.requires_grad for p in net.parameters())


def test_a_point_that_is_better_already_is_kept():
    """From its own solution the block finds nothing better, and says nothing."""
    net = network()
    asked = problem(net)
    blocked(asked)
    weights = [p.detach().clone() for p in net.parameters()]
    again = blocked(asked, tolerance=1e-4)
    assert again.ending == "limit"
    for now, then in zip(net.parameters(), weights, strict=True):
        assert torch.allclose(now, then, atol=1e-5)


def test_feasibility_comes_before_the_objective():
    net = network()
    asked = problem(net, bound=3.0)
    before = asked.evaluate()
    blocked(asked)
    after = asked.evaluate()
    assert before["floor"].violation > 1
    assert after["floor"].violation <= 1e-6
    assert after.objective > before.objective


@pytest.mark.parametrize("case", ["rate", "bent output"])
def test_what_is_not_convex_in_the_last_layer_is_left_alone(case):
    net = network()
    f = cn.Model(net, "f")
    if case == "rate":
        asked = cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(share=P(f(D.x) > 0) >= 0.3)
    else:
        asked = cn.minimize(E((torch.sigmoid(f(D.x)) - D.y) ** 2))
    weights = [p.detach().clone() for p in net.parameters()]
    assert blocked(asked).message == "start"
    assert all(torch.equal(now, then) for now, then in zip(net.parameters(), weights, strict=True))


def test_only_networks_that_end_in_a_linear_layer_have_one():
    linear = cn.Model(torch.nn.Linear(3, 1), "g")
    with held_below([cn.Model(network(), "f"), linear]) as possible:
        assert possible
        assert all(p.requires_grad for p in linear.module.parameters())
    bent = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Sigmoid())
    with held_below([cn.Model(bent, "h")]) as possible:
        assert not possible
    with held_below([linear]) as possible:
        assert not possible
    assert all(p.requires_grad for p in bent.parameters())


def test_polish_takes_the_block():
    net = network(bend=torch.nn.Tanh)
    solution = problem(net).solve("lagrangian", epochs=4, batch=40, polish=True, progress=False)
    assert "clarabel" in solution.provenance.solver
    assert solution.status == "stationary"
    assert solution["floor"].violation <= 1e-6
    assert solution["parity"].max_violation <= 1e-6
