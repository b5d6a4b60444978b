"""The algorithms that Cooper has as well make the same iterates there, to rounding."""

from __future__ import annotations

import cooper
import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E
from constrain.backends.cooper import export
from constrain.driver.setup import lowered, prepare
from constrain.runtime.lagrangian import Lagrangian
from constrain.solvers.primal_dual import PrimalDual, Training
from constrain.solvers.schemes import NuPI

ROWS, BATCH, STEPS = 240, 40, 60
RATE = 0.0625


def regression() -> cn.Problem:
    """Least squares with an active inequality, an inactive one, and an equality."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, 3, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(ROWS, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64) + 0.4 + noise
    D = cn.Data("d", x=x, y=y, z=torch.sign(x[:, 1]))
    torch.manual_seed(0)
    score = cn.Model(nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0)), "f")(D.x)
    return cn.minimize(E((score - D.y) ** 2)).subject_to(gap=abs(E(score * D.z)) <= 0.2, mean=E(score) == 0.3)


def evaluator(problem: cn.Problem):
    program = lowered(problem, None)
    return prepare(program, device=torch.device("cpu"), dtype=torch.float64).evaluator


def batches():
    for step in range(STEPS):
        start = BATCH * (step % (ROWS // BATCH))
        yield {"d": torch.arange(start, start + BATCH)}


def ours(options: dict) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], list[list[float]]]:
    """Decisions, multipliers, and the course of the multipliers."""
    settings = {"gain": 0.0, "rate": RATE, "batch": BATCH, "warmup": 0, **options}
    solver = PrimalDual(
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
        scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0),
        **settings,
    )
    run = Training(solver, evaluator(regression()))
    run.prepare(None)
    course: list[list[float]] = []
    for batch in batches():
        run.draw = lambda batch=batch: run.lagrangian.batches(batch)
        run._pace()
        run.state = run.scheme.step(run, run.state)
        course.append([float(v) for v in run.multipliers().values()])
    return run.tensors, run.multipliers(), course


SGD, EXTRA = torch.optim.SGD, cooper.optim.ExtraSGD


def theirs(scheme, formulation, primal=SGD, dual=SGD, penalty=1.0, **of_dual):
    compiled = evaluator(regression())
    compiled.refresh_scales()
    lagrangian = Lagrangian(compiled, gain=0.0)
    lagrangian.calibrate(torch.Generator().manual_seed(0))
    cmp = export(lagrangian, formulation=formulation, penalty=penalty)
    groups = cmp.dual_groups(RATE, {"d": BATCH}, rows=False)
    optimizer = scheme(
        cmp, primal(cmp.primal_parameters(), lr=0.05), dual(groups, lr=RATE, maximize=True, **of_dual)
    )
    for batch in batches():
        optimizer.roll(compute_cmp_state_kwargs={"batch": batch})
    return cmp.primal_parameters(), cmp.multiplier_values()


COOPER = cooper.optim
ZEROS = cooper.optim.torch_optimizers.nupi_optimizer.nuPIInitType.ZEROS
NU = {"Kp": torch.tensor([6.0]), "Ki": torch.ones(1), "init_type": ZEROS}
CASES = {
    "simultaneous": ({}, (COOPER.SimultaneousOptimizer, "lagrangian"), {}),
    "alternating": ({"scheme": "alternating"}, (COOPER.AlternatingPrimalDualOptimizer, "lagrangian"), {}),
    "dual-first": ({"scheme": "dual-first"}, (COOPER.AlternatingDualPrimalOptimizer, "lagrangian"), {}),
    "extragradient": (
        {"scheme": "extragradient"},
        (COOPER.ExtrapolationConstrainedOptimizer, "lagrangian", EXTRA, EXTRA),
        {},
    ),
    "augmented": (
        {"formulation": "augmented", "gain": 0.7, "memory": 0.0},
        (COOPER.SimultaneousOptimizer, "augmented"),
        {"penalty": 0.7},
    ),
    "alternating augmented": (
        {"formulation": "augmented", "gain": 0.7, "memory": 0.0, "scheme": "alternating"},
        (COOPER.AlternatingPrimalDualOptimizer, "augmented"),
        {"penalty": 0.7},
    ),
    "nuPI": (
        {"dual": NuPI(6 * RATE, 0.875), "gain": None},
        (COOPER.SimultaneousOptimizer, "lagrangian", SGD, COOPER.nuPI),
        {**NU, "ema_nu": 0.875},
    ),
    "optimistic": (
        {"dual": "optimistic", "gain": None},
        (COOPER.SimultaneousOptimizer, "lagrangian", SGD, COOPER.nuPI),
        {**NU, "Kp": torch.ones(1)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_iterates(name: str) -> None:
    options, arguments, others = CASES[name]
    decisions, multipliers, course = ours(options)
    expected, prices = theirs(*arguments, **others)
    for mine, other in zip(decisions, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    for key, value in multipliers.items():
        torch.testing.assert_close(prices[key], value, rtol=1e-10, atol=1e-10)
    upper, lower, _ = zip(*course, strict=True)
    clipped = any(v == 0 for v in (*upper[5:], *lower[5:]))
    assert clipped, "no multiplier is ever projected: the test would not see the order of projection"
    assert max(map(abs, course[-1])) > 0.1
