"""Cooper: what the exported problem hands over, and that its optimizers reach the convex route's solution."""

from __future__ import annotations

import cooper
import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, ModelingError, P, forall
from constrain.backends.cooper import CompiledProblem, CooperSolver, export

ROWS = 240


def sample(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(rows, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64) + 0.4 + noise
    return x, y, ["a" if v > 0 else "b" for v in x[:, 1].tolist()]


def linear(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 1, dtype=dtype), nn.Flatten(0))


def regression() -> cn.Problem:
    """Least squares with a gap between groups and a mean that is not the data's."""
    x, y, group = sample()
    D = cn.Data("d", x=x, y=y, g=group)
    score = cn.Model(linear(), "f")(D.x)
    gap = E(score, given=D.g == "a") - E(score, given=D.g == "b")
    return cn.minimize(E((score - D.y) ** 2)).subject_to(gap=abs(gap) <= 0.2, mean=E(score) == 0.3)


def rates() -> tuple[cn.Problem, cn.Data]:
    x, y, group = sample()
    D = cn.Data("d", x=x, y=(y > 0).double(), g=group)
    score = cn.Model(linear(), "f")(D.x)
    loss = nn.functional.binary_cross_entropy_with_logits(score, D.y, reduction="none")
    problem = cn.minimize(E(loss)).subject_to(
        recall=P(score > 0, given=D.y == 1) >= 0.9, rate=P(score > 0, by=D.g) == 0.5
    )
    return problem, D


def per_row() -> tuple[cn.Problem, cn.Data]:
    x, y, group = sample(12)
    D = cn.Data("d", x=x, y=y, g=group)
    score = cn.Model(linear(), "f")(D.x)
    problem = cn.minimize(E(score**2)).subject_to(
        fit=forall(D.where(D.g == "a"), score >= D.y + 1), all=E(score) <= 5
    )
    return problem, D


def state_of(cmp: CompiledProblem, batch: object) -> dict[str, cooper.ConstraintState]:
    state = cmp.compute_cmp_state(batch)
    return {constraint.name: found for constraint, found in state.observed_constraints.items()}


# -------------------------------------------------------------------------------------- the same optimum
@pytest.mark.parametrize("scheme", ["alternating", "simultaneous", "dual-first"])
def test_agrees_with_the_convex_route(scheme: str) -> None:
    exact = regression().solve(method="cvxpy", progress=False)
    found = regression().solve(
        method="cooper", scheme=scheme, epochs=300, batch=40, lr=0.01, progress=False, tolerance=1e-2
    )
    assert float(found.objective) == pytest.approx(float(exact.objective), rel=1e-3)
    for name in ("gap", "mean"):
        assert float(found[name].multiplier) == pytest.approx(float(exact[name].multiplier), rel=0.05)
    assert found.status.solved


def test_augmented_formulation_agrees_on_whole_batches() -> None:
    exact = regression().solve(method="cvxpy", progress=False)
    found = regression().solve(
        method="cooper",
        formulation="augmented",
        epochs=400,
        batch=ROWS,
        lr=0.05,
        dual_lr=0.05,
        progress=False,
    )
    assert float(found.objective) == pytest.approx(float(exact.objective), rel=1e-3)
    assert float(found["gap"].multiplier) == pytest.approx(float(exact["gap"].multiplier), rel=0.05)


def test_simultaneous_steps_are_those_of_our_lagrangian() -> None:
    """Cooper's simultaneous scheme, SGD for both = forward, backward, step, ascend with `gain=0`."""
    first, second = regression(), regression()
    ours, other = first.compile(gain=0.0, rate=0.05), second.compile(gain=0.0, rate=0.05)
    cmp = export(other)
    sizes = {"d": 40}
    primal = torch.optim.SGD(cmp.primal_parameters(), lr=0.05)
    dual = torch.optim.SGD(cmp.dual_groups(0.05, sizes, rows=False), lr=0.05, maximize=True)
    optimizer = cooper.optim.SimultaneousOptimizer(cmp, primal, dual)
    descent = torch.optim.SGD(ours.evaluator.decisions.tensors, lr=0.05)
    for step in range(30):
        index = torch.arange(40 * (step % 6), 40 * (step % 6) + 40)
        descent.zero_grad()
        ours({"d": index}).backward()
        descent.step()
        ours.ascend()
        optimizer.roll(compute_cmp_state_kwargs={"batch": {"d": index}})
    for mine, theirs in zip(ours.evaluator.decisions.tensors, cmp.primal_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    found = cmp.multiplier_values()
    for key, value in ours.multipliers().items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)
    assert max(float(v.abs().max()) for v in found.values()) > 0


# ---------------------------------------------------------------------------------------------- the state
def test_surrogates_reach_the_primal_and_exact_rates_the_multipliers() -> None:
    problem, D = rates()
    cmp = problem.to_cooper()
    state = state_of(cmp, D.rows(torch.arange(ROWS)))
    exact = cmp.evaluator.full("exact")
    surrogate = cmp.evaluator.full("primal")
    for i, part in enumerate(cmp.parts):
        found = state[part.key]
        assert found.violation.requires_grad
        assert not found.strict_violation.requires_grad
        torch.testing.assert_close(found.strict_violation, exact.residuals[i].reshape(-1))
        torch.testing.assert_close(found.violation, surrogate.residuals[i].reshape(-1))
        assert not torch.allclose(found.violation, found.strict_violation)


def test_kinds_and_names_are_those_of_the_parts() -> None:
    cmp = regression().to_cooper()
    kinds = {name: c.constraint_type for name, c in cmp.named_constraints()}
    assert kinds == {
        "gap:upper": cooper.ConstraintType.INEQUALITY,
        "gap:lower": cooper.ConstraintType.INEQUALITY,
        "mean": cooper.ConstraintType.EQUALITY,
    }


def test_multipliers_have_the_data_s_type_and_start_at_the_lagrangian_s() -> None:
    problem = regression()
    lagrangian = problem.compile()
    lagrangian.set_multipliers({"gap:upper": 0.5, "mean": -0.25})
    cmp = export(lagrangian)
    assert {p.dtype for p in cmp.dual_parameters()} == {torch.float64}
    assert {k: float(v) for k, v in cmp.multiplier_values().items()} == {
        "gap:upper": 0.5,
        "gap:lower": 0.0,
        "mean": -0.25,
    }


def test_multipliers_are_never_below_float32() -> None:
    D = cn.Data("d", x=torch.randn(8, 3))
    score = cn.Model(linear(torch.bfloat16), "f")(D.x)
    cmp = cn.minimize(E(score**2)).subject_to(mean=E(score) >= 1).to_cooper()
    state = state_of(cmp, D.rows(slice(0, 8)))["mean"]
    assert state.violation.dtype == next(cmp.dual_parameters()).dtype == torch.float32


def test_dual_parameters_are_sorted_by_key() -> None:
    D = cn.Data("d", x=sample()[0])
    score = cn.Model(linear(), "f")(D.x)
    names = [f"c{i}" for i in (7, 3, 9, 1, 5, 2, 8)]
    problem = cn.minimize(E(score**2)).subject_to(**{name: E(score) <= 1 for name in names})
    cmp = problem.to_cooper()
    own = dict(cmp.named_multipliers())
    for parameter, name in zip(cmp.dual_parameters(), sorted(names), strict=True):
        assert parameter is own[name].weight
    groups = cmp.dual_groups(0.1, {"d": 10}, rows=False)
    assert [group["key"] for group in groups] == sorted(names)


def test_a_constraint_may_have_the_name_of_a_method() -> None:
    D = cn.Data("d", x=sample()[0])
    score = cn.Model(linear(), "f")(D.x)
    cmp = cn.minimize(E(score**2)).subject_to(multipliers=E(score) >= 1, to=E(score) <= 2).to_cooper()
    assert len(list(cmp.multipliers())) == 2
    assert set(state_of(cmp, D.rows(slice(0, 9)))) == {"multipliers", "to"}


# ----------------------------------------------------------------------------------- constraints per row
def test_rows_repeat_and_unselected_rows_are_left_out() -> None:
    problem, D = per_row()
    cmp = problem.to_cooper()
    index = torch.tensor([4, 1, 4, 0])
    found = state_of(cmp, D.rows(index))["fit"]
    part = next(i for i, p in enumerate(cmp.parts) if p.key == "fit")
    residual, mask = cmp.evaluator.row_residuals(part)
    expected = torch.where(mask, residual, torch.zeros(()))[index]
    assert 0 < int(mask[index].sum()) < 4
    torch.testing.assert_close(found.constraint_features, index)
    torch.testing.assert_close(found.strict_violation, expected)
    torch.testing.assert_close(found.violation.detach(), expected * 12 / 4)


def test_a_repeated_row_moves_its_multiplier_twice() -> None:
    problem, D = per_row()
    cmp = problem.to_cooper()
    part = next(p for p in cmp.parts if p.key == "fit")
    residual, mask = cmp.evaluator.row_residuals(cmp.parts.index(part))
    violated = torch.nonzero(mask & (residual > 0)).flatten()
    assert len(violated) > 1
    first, second = (int(i) for i in violated[:2])
    primal = torch.optim.SGD(cmp.primal_parameters(), lr=0.0)
    sizes = {"d": 3}
    duals = [
        torch.optim.SGD(cmp.dual_groups(1.0, sizes, rows=rows), lr=1.0, maximize=True)
        for rows in (False, True)
    ]
    optimizer = cooper.optim.SimultaneousOptimizer(cmp, primal, duals)
    optimizer.roll(compute_cmp_state_kwargs={"batch": D.rows(torch.tensor([first, second, first]))})
    step = cmp.step(part, 1.0, sizes)
    value = cmp.multiplier_values()["fit"]
    expected = torch.zeros_like(value)
    expected[first], expected[second] = 2 * step * residual[first], step * residual[second]
    torch.testing.assert_close(value, expected)


def test_a_row_s_multiplier_is_that_of_the_sum_over_all_rows() -> None:
    """Batches average to f + sum over the selected rows of multiplier * residual, whatever their size."""
    problem, _ = per_row()
    cmp = problem.to_cooper()
    values = torch.linspace(0, 1, 12, dtype=torch.float64)
    cmp.set_multipliers({"fit": values})
    part = next(i for i, p in enumerate(cmp.parts) if p.key == "fit")
    residual, mask = cmp.evaluator.row_residuals(part)
    expected = cmp.evaluator.full("exact").objective + (values * residual)[mask].sum()
    for size in (3, 4, 12):
        batches = torch.arange(12).split(size)
        found = [
            cmp.compute_cmp_state({"d": index}).compute_primal_lagrangian().lagrangian for index in batches
        ]
        torch.testing.assert_close(torch.stack(found).mean().detach(), expected)


# ------------------------------------------------------------------------------------------ the solver
def test_the_same_seed_gives_the_same_run() -> None:
    runs = [regression().solve(method="cooper", epochs=3, seed=5, progress=False) for _ in range(2)]
    assert runs[0].history == runs[1].history
    assert {"objective", "violation", "residual:gap:upper", "multiplier:mean"} <= set(runs[0].history[-1])


def test_bounds_hold_at_every_evaluation() -> None:
    D = cn.Data("d", y=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    m = cn.Variable((), "m", bounds=(0.0, 1.5))
    problem = cn.minimize(E((m - D.y) ** 2)).subject_to(low=m >= 1)
    found = problem.solve(method="cooper", epochs=60, lr=0.1, progress=False)
    assert found.variables["m"] == pytest.approx(1.5)


def test_a_problem_without_constraints() -> None:
    D = cn.Data("d", y=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    m = cn.Variable((), "m")
    found = cn.minimize(E((m - D.y) ** 2)).solve(method="cooper", epochs=100, lr=0.3, progress=False)
    assert found.variables["m"] == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("options", [{"scheme": "sideways"}, {"formulation": "barrier"}, {"rate": 1}])
def test_unknown_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ModelingError, match="E141"):
        regression().solve(method="cooper", progress=False, **options)


def test_option_names() -> None:
    assert {"epochs", "batch", "lr", "dual_lr", "optimizer", "formulation", "scheme", "seed"} <= set(
        CooperSolver.option_names()
    )
