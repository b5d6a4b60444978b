"""Loops: reproducible, blind to units, stopped at any time, restarted with other parameters."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P
from constrain.runtime.evaluator import Evaluator
from constrain.solvers.augmented import AugmentedLagrangian
from constrain.solvers.primal_dual import PrimalDual


def problem(kit, unit=1.0, objective=1.0, bound=0.5):
    """A regularized network with a gap and a level to keep, in units of choice."""
    x = kit.sample().values("x")
    D, module = cn.Data("sample", x=x, y=(x[:, 0] + 0.5 * x[:, 1] > 0).double()), kit.network()
    f = cn.Model(module, "f")
    s = f(D.x)
    gap = E(s, given=D.y == 1) - E(s, given=D.y == 0)
    cost = E(kit.loss(s, D.y)) + 0.01 * cn.sum_squares(f)
    return cn.minimize(objective * cost).subject_to(gap=unit * gap <= unit * bound, level=E(s) >= 0.3), module


def weights(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def trained(kit, method, seed=0, **options):
    p, module = problem(kit, **options)
    return p.solve(method, progress=False, seed=seed, epochs=4), module


# ----------------------------------------------------------------------------------- reproducibility
def test_the_same_seed_gives_the_same_run(kit):
    first, a = trained(kit, "lagrangian")
    second, b = trained(kit, "lagrangian")
    _third, c = trained(kit, "lagrangian", seed=1)
    assert torch.equal(weights(a), weights(b))
    assert first.history == second.history
    assert all(np.array_equal(first.multipliers[k], second.multipliers[k]) for k in first.multipliers)
    assert not torch.equal(weights(a), weights(c))


def test_a_run_leaves_the_global_random_state_alone(kit):
    p, _ = problem(kit)
    state = torch.get_rng_state()
    p.solve("lagrangian", progress=False, epochs=1)
    assert torch.equal(state, torch.get_rng_state())


# --------------------------------------------------------------------------------------------- units
@pytest.mark.parametrize(("unit", "objective"), [(1000.0, 100.0)])
def test_units_change_nothing_but_the_multiplier(kit, unit, objective):
    def run(**scales):
        p, module = problem(kit, **scales)
        solution = p.solve("augmented", progress=False)
        return solution, weights(module)

    (plain, a), (scaled, b) = run(), run(unit=unit, objective=objective)
    assert plain.status.solved
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert plain["gap"].multiplier > 1e-3
    assert scaled["gap"].multiplier == pytest.approx(plain["gap"].multiplier * objective / unit, rel=1e-4)
    assert scaled["level"].multiplier == pytest.approx(plain["level"].multiplier * objective, rel=1e-4)
    assert [r["penalty"] for r in plain.history[:3]] == pytest.approx(
        [r["penalty"] for r in scaled.history[:3]]
    )


@pytest.mark.parametrize(("unit", "objective"), [(1000.0, 100.0)])
def test_units_change_nothing_in_training(kit, unit, objective):
    """With a primal optimizer that is itself blind to the scale of the objective (Adam)."""

    def history(**scales):
        p, _ = problem(kit, **scales)
        solver = PrimalDual(epochs=6, optimizer=lambda t: torch.optim.Adam(t, lr=3e-3, eps=1e-30))
        return p.solve(solver, progress=False).history

    for a, b in zip(history(), history(unit=unit, objective=objective), strict=True):
        assert b["objective"] == pytest.approx(objective * a["objective"], rel=1e-4)
        assert b["residual:gap"] == pytest.approx(unit * a["residual:gap"], rel=1e-4, abs=1e-4 * unit)
        assert b["multiplier:gap"] * unit == pytest.approx(
            objective * a["multiplier:gap"], rel=1e-4, abs=1e-6
        )
        assert b["multiplier:level"] == pytest.approx(objective * a["multiplier:level"], rel=1e-4, abs=1e-6)


# --------------------------------------------------------------------------------------- interruption
class Stopping(torch.optim.Adam):
    """Ctrl-C in the middle of a run."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        if self.steps == 25:
            raise KeyboardInterrupt
        return super().step(closure)


def test_ctrl_c_returns_the_best_iterate(kit):
    p, module = problem(kit)
    solver = PrimalDual(epochs=6, batch=50, optimizer=lambda t: Stopping(t, lr=3e-3))
    solution = p.solve(solver, progress=False)
    assert "stopped by the user" in solution.message
    assert len(solution.history) == 3
    assert solution.multipliers is not None
    assert torch.isfinite(weights(module)).all()


def test_ctrl_c_in_the_full_data_method(kit, monkeypatch):
    p, module = problem(kit)
    calls = []

    def interrupted(evaluator, *args, original=None):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(evaluator, *args)

    original = Evaluator.pull
    monkeypatch.setattr(Evaluator, "pull", lambda self, *args: interrupted(self, *args, original=original))
    solution = p.solve("augmented", progress=False)
    assert "stopped by the user" in solution.message
    assert torch.isfinite(weights(module)).all()


@pytest.mark.parametrize(
    "solver", [PrimalDual(epochs=100_000), AugmentedLagrangian(tolerance=1e-300, outer=100_000)]
)
def test_the_time_limit_holds(kit, solver):
    p, _ = problem(kit)
    solution = p.solve(solver, progress=False, time_limit=0.5)
    assert "time limit" in solution.message or solution.status.solved


# ----------------------------------------------------------------------------------------- parameters
def test_parameters_change_without_recompiling(kit, monkeypatch):
    D, module = kit.sample(), kit.network()
    s, limit = cn.Model(module, "f")(D.x), cn.Parameter("limit", 0.1)
    lagrangian = cn.minimize(E(s**2)).subject_to(c=E(s) <= limit).compile()
    evaluator = lagrangian.evaluator
    before = float(evaluator.full().residuals[0])

    def compiled(*args, **options):
        raise AssertionError("compiled again")

    monkeypatch.setattr("constrain.runtime.codegen.generate", compiled)
    limit.value = 0.4
    evaluator.set_parameters()
    assert float(evaluator.full().residuals[0]) == pytest.approx(before - 0.3)
    evaluator.set_parameters({"limit": 0.2})
    assert float(evaluator.full().residuals[0]) == pytest.approx(before - 0.1)
    assert limit.value == 0.4


# ----------------------------------------------------------------------------------- exact and surrogate
def test_multipliers_move_by_exact_rates_and_weights_by_surrogates(kit):
    D, module = kit.sample(), kit.network()
    s = cn.Model(module, "f")(D.x)
    lagrangian = cn.minimize(E(kit.loss(s, D.y))).subject_to(c=P(s > 0) <= 0.1).compile(gain=0.0)
    index = torch.arange(64)
    loss = lagrangian(D.rows(index))
    loss.backward()
    step = float(lagrangian.step(lagrangian.parts[0]))
    lagrangian.ascend()
    with torch.no_grad():
        rate = float((module(D.values("x")[:64]) > 0).double().mean())
    expected = max(0.0, lagrangian.rate * step * (rate - 0.1))
    assert float(lagrangian.multipliers()["c"]) == pytest.approx(expected, rel=1e-5)


def test_ascend_needs_a_forward(kit):
    lagrangian = kit.spec("affine").compile()
    with pytest.raises(cn.ModelingError, match=r"\[E140\] ascend\(\) without a forward"):
        lagrangian.ascend()


def test_state_dict_is_keyed_by_constraint_and_restores(kit):
    D = kit.sample()
    first, second = (kit.spec("by group", data=D).compile() for _ in range(2))
    for _ in range(3):
        first(D.rows(slice(0, 100)))
        first.ascend()
    state = first.state_dict()
    assert any("c:upper" in key for key in state)
    second.load_state_dict(state)
    for key, value in second.multipliers().items():
        assert torch.equal(value, first.multipliers()[key])


def test_rows_of_the_sample_that_was_split_are_refused():
    whole = cn.Data("split", x=torch.linspace(0, 1, 40, dtype=torch.float64))
    part, _ = whole.split(0.25, seed=0)
    w = cn.Variable((), "w")
    problem = cn.minimize(E((w - part.x) ** 2))
    problem.compile()(part.rows(range(5)))
    with pytest.raises(
        cn.ModelingError, match=r"E140.*another sample that is called 'split': it has 40 rows, that"
    ):
        problem.compile()(whole.rows(range(5)))
    problem.compile(data=whole)(whole.rows([39]))
