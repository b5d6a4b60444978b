"""`polish=True`: the last digits after training, and the trained point where they cannot be had."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P
from constrain.driver import polish as polishing
from constrain.runtime.result import RawResult
from constrain.solvers.augmented import AugmentedLagrangian
from constrain.solvers.second_order import Newton
from constrain.testing import known_problem


def test_training_and_polish_meet_the_exact_optimum():
    known = known_problem("synthetic-parity")
    trained = known.build().solve("lagrangian", epochs=5, batch=256, progress=False)
    polished = known.build().solve("lagrangian", epochs=5, batch=256, polish=True, progress=False)
    assert abs(trained.objective - known.value) > 1e-6
    assert polished.objective == pytest.approx(known.value, abs=1e-9)
    assert polished.status == "optimal"
    for name, value in known.multipliers.items():
        assert polished[name].multiplier == pytest.approx(value, abs=1e-5)
    assert "polished by primal-dual interior point" in polished.provenance.solver
    assert len(polished.history) > len(trained.history)


def network(rate, least=0.6):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    y = (x[:, 0] * x[:, 1] + 0.3 * rng.normal(size=200) > 0).astype(float)
    D = cn.Data("d", x=torch.tensor(x, dtype=torch.float32), y=torch.tensor(y, dtype=torch.float32))
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1), torch.nn.Flatten(0)
    )
    f = cn.Model(net, "f")
    bce = torch.nn.functional.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    bound = P(f(D.x) > 0) >= least if rate else E(torch.sigmoid(f(D.x))) >= least
    return cn.minimize(E(bce) + 1e-2 * cn.sum_squares(f)).subject_to(c=bound), net


def test_a_network_in_float32_is_polished_in_float64_and_stays_float32():
    problem, net = network(rate=False)
    solution = problem.solve("lagrangian", epochs=20, batch=50, polish=True, progress=False)
    assert solution.status == "stationary"
    assert solution.kkt().stationarity <= 1e-8
    assert solution["c"].slack == pytest.approx(0, abs=1e-8)
    assert all(p.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize(
    ("ending", "bias", "failure"),
    [
        ("limit", 0.0, "came to its limit before it converged (no steps left)"),
        ("converged", -20.0, "came to a point that violates a constraint by 0.1 more than "),
        ("converged", 20.0, "came to a point of worse objective, "),
    ],
)
def test_a_polish_that_finds_no_better_point_leaves_the_trained_one_and_the_report_says_so(
    monkeypatch, ending, bias, failure
):
    def stuck(self, evaluator, **_options):
        for tensor in evaluator.decisions.tensors:
            tensor.data.zero_()
        evaluator.decisions.tensors[-1].data.fill_(bias)
        return RawResult(ending, {}, "stuck", message="no steps left")

    monkeypatch.setattr(Newton, "solve", stuck)
    finals = []
    for polish in (False, True):
        problem, net = network(rate=False, least=0.1)
        solution = problem.solve("lagrangian", epochs=3, batch=50, polish=polish, progress=False)
        finals.append([p.detach().clone() for p in net.parameters()])
        assert ("W225" in str(solution)) is polish
    for trained, kept in zip(*finals, strict=True):
        assert torch.equal(trained, kept)
    said = f"polish=True kept the trained point: stuck on all rows {failure}"
    assert said in solution.message
    (warning,) = [w for w in solution.warnings if w.code == "W225"]
    assert warning.message.startswith(said)
    assert warning.message.endswith(
        'solve("newton", start=solution) goes on from here, with options of its own'
    )
    assert all(
        "W225" in text for text in (solution.report(format="markdown"), solution.report(format="html"))
    )


def test_rates_are_polished_by_shifted_surrogates(monkeypatch):
    monkeypatch.setattr(polishing, "AugmentedLagrangian", lambda: AugmentedLagrangian(outer=5))
    problem, _ = network(rate=True)
    solution = problem.solve("lagrangian", epochs=10, batch=50, polish=True, progress=False)
    assert solution["c"].slack >= -1e-6
