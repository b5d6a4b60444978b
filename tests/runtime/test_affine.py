"""Terms that are affine in the averages come to one matrix, whatever they look like."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, P
from constrain.runtime.affine import DENSE

ROWS, GROUPS = 120, 4


def sample(groups: int = GROUPS, rows: int = ROWS) -> cn.Data:
    generator = torch.Generator().manual_seed(0)
    return cn.Data(
        "sample",
        x=torch.randn(rows, 3, generator=generator, dtype=torch.float64),
        y=torch.randn(rows, generator=generator, dtype=torch.float64),
        g=torch.arange(rows) % groups,
    )


def score(D: cn.Data) -> cn.Expr:
    torch.manual_seed(0)
    return cn.Model(nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0)), "f")(D.x)


def relations(D: cn.Data, s: cn.Expr) -> dict[str, cn.Constraint]:
    """Constraints of many forms; which of them are affine is in their names."""
    v, p = cn.Variable(3, "v"), cn.Parameter("p", value=2.0)
    rate = E(s, by=D.g)
    return {
        "affine_plain": E(s) <= 0.5,
        "affine_by": rate <= 0.5,
        "affine_gap": abs(E(s, given=D.g == 0) - E(s, given=D.g == 1)) <= 0.1,
        "affine_against_all": rate - E(s) <= 0.3,
        "affine_scaled": p * E(s) / 4 - 0.5 * E(D.y) <= 1.0,
        "affine_vector": E(D.x * s[..., None]) - torch.arange(3.0) <= 1.0,
        "affine_entry": E(D.x * s[..., None])[1] >= -1.0,
        "affine_with_decisions": E(s) + cn.sum(v) + cn.sum(v * v) <= 3.0,
        "affine_deterministic": cn.sum(v * v) <= 1.0,
        "affine_rate": P(s > 0.1, given=D.g == 2) <= 0.7,
        "curved_square": E(s) * E(s) <= 2.0,
        "curved_ratio": E(s * s) / E(cn.exp(s)) <= 3.0,
        "curved_coefficient": E(s) * v[0] <= 3.0,
    }


DATA = sample()
NAMES = list(relations(DATA, score(DATA)))


@pytest.mark.parametrize("name", NAMES)
def test_terms_equal_the_outer_functions_of_the_batch_averages(name: str) -> None:
    D = sample()
    s = score(D)
    problem = cn.minimize(E(s**2)).subject_to(**{name: relations(D, s)[name]})
    lagrangian = problem.compile(dtype=torch.float64)
    evaluator = lagrangian.evaluator
    for tensor in evaluator.decisions.variables.values():
        tensor.data.fill_(0.3)
    estimator = lagrangian.estimator
    rows = {"sample": evaluator.populations[D].everything()}
    estimate = estimator(rows)
    exact = evaluator.full()
    affine = name.startswith("affine")
    assert bool(estimator._curved) is not affine
    for found, expected in zip(estimate.exact.residuals, exact.residuals, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = torch.linspace(1.0, 2.0, estimate.terms.numel(), dtype=torch.float64)
    own = torch.autograd.grad(
        (weights * estimate.terms).sum(), evaluator.decisions.tensors, allow_unused=True
    )

    def weighed(outer: object) -> torch.Tensor:
        values = [outer.objective, *(r for r in outer.residuals if r is not None)]  # type: ignore[attr-defined]
        return (weights * torch.cat([v.reshape(-1) for v in values])).sum()

    ((_, gradient),) = evaluator.pull([weighed])
    for g, expected in zip(own, gradient, strict=True):
        torch.testing.assert_close(
            torch.zeros_like(expected) if g is None else g, expected, rtol=1e-9, atol=1e-11
        )


def test_a_parameter_in_a_coefficient_is_followed() -> None:
    D, p = sample(), cn.Parameter("p", value=2.0)
    s = score(D)
    lagrangian = cn.minimize(E(s**2)).subject_to(level=p * E(s) + p <= 1.0).compile(dtype=torch.float64)
    batch = D.rows(slice(0, ROWS))
    mean = (float(lagrangian.estimate(batch).exact.residuals[0]) + 1.0) / 2 - 1
    p.value = 5.0
    lagrangian(batch)
    assert float(lagrangian.estimate(batch).exact.residuals[0]) == pytest.approx(5 * mean + 4, rel=1e-10)


def test_many_constraints_keep_their_nonzero_entries_only() -> None:
    groups = 300
    D = sample(groups, 3000)
    s = score(D)
    one_by_one = {f"group{k}": E(s, given=D.g == k) <= 0.1 for k in range(groups)}
    a = cn.minimize(E(s**2)).subject_to(**one_by_one).compile(dtype=torch.float64)
    b = cn.minimize(E(s**2)).subject_to(rate=E(s, by=D.g) <= 0.1).compile(dtype=torch.float64)
    assert groups * groups > DENSE
    batch = D.rows(torch.arange(500))
    torch.testing.assert_close(a.estimate(batch).exact_terms, b.estimate(batch).exact_terms)


def test_steps_are_the_same_however_constraints_are_written() -> None:
    D = sample()
    s = score(D)
    one_by_one = {f"group{k}": (1.0 + k) * E(s, given=D.g == k) <= 0.2 * (1.0 + k) for k in range(GROUPS)}
    vector = E(s, by=D.g) <= 0.2
    found: list[torch.Tensor] = []
    for relations_ in (one_by_one, {"rate": vector}):
        lagrangian = cn.minimize(E(s**2)).subject_to(**relations_).compile(dtype=torch.float64)
        lagrangian.calibrate(torch.Generator().manual_seed(3))
        found.append(lagrangian.scales)
    units = torch.arange(1.0, GROUPS + 1, dtype=torch.float64)
    torch.testing.assert_close(found[0] * units**2, found[1])


def test_a_norm_of_infinite_order_of_averages() -> None:
    D = sample()
    s = score(D)
    lagrangian = (
        cn.minimize(E(s**2)).subject_to(largest=cn.norm(E(D.x * s[..., None]), float("inf")) <= 1.0).compile()
    )
    assert bool(lagrangian(D.rows(torch.arange(50))).isfinite())
