"""The convex block of a trained problem, solved exactly: last layers and variables, with the rest held.

A network is affine in the weights of its last linear layer. With the weights below held where training left
them, a problem that is convex in the outputs of its networks is a convex program, whose solution is no worse
than the trained point and comes with exact multipliers.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from constrain._lazy import backend
from constrain.analysis.models import affine_model, refusal_of, trainable
from constrain.diagnostics.anywhere import settle
from constrain.driver.polish import merit
from constrain.driver.setup import lowered
from constrain.lowering.classify import classify

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from constrain.driver.setup import Setup
    from constrain.language.data import Data
    from constrain.language.symbols import Model
    from constrain.lowering.program import Program
    from constrain.runtime.result import RawResult

__all__ = ["held_below", "with_exact_block"]

LARGEST = 1_000_000
"""Most entries of the convex program: more are left to the methods that follow gradients."""


@contextmanager
def held_below(models: Sequence[Model]) -> Generator[bool]:
    """Holds all weights but those of each network's last linear layer; tells whether that is possible.

    Models that are affine in their weights already keep all of them.
    """
    held: list[nn.Parameter] = []
    possible = False
    try:
        for model in models:
            if model.frozen or affine_model(model.module) is not None:
                continue
            names = trainable(model.module)
            last = names[-1][0].rpartition(".")[0]
            for name, parameter in names:
                if name.rpartition(".")[0] != last:
                    parameter.requires_grad_(False)
                    held.append(parameter)
            possible = refusal_of(model.module) is None
            if not possible:
                break
        yield possible
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def with_exact_block(
    program: Program,
    setup: Setup,
    trained: RawResult,
    *,
    data: Data | Mapping[str, Data] | None,
    replaced: Mapping[Data, Data] | None,
    params: Mapping[str, Any] | None,
    time_limit: float | None,
    tolerance: float,
) -> RawResult:
    """The trained point with its convex block solved exactly; the trained point where there is no such block.

    Args:
        program: the moment form.
        setup: in float64, at the trained point; its decisions are moved.
        trained: how the training ended.
        data: replaces the samples of the problem.
        replaced: the same by sample.
        params: values of parameters by name.
        time_limit: in seconds.
        tolerance: of the violation that counts as none, in the units of the constraints.
    """
    with held_below(program.models) as possible:
        if not possible:
            return trained
        block = lowered(program.problem, data)
        facts = classify(block)
        try:
            package = backend("cvxpy")
        except ModuleNotFoundError:
            return trained
        answer = package.support(block, facts)
        if not answer.ok or answer.cost > LARGEST:
            return trained
        found = package.solve(package.build(block, replaced, params), facts, time_limit=time_limit)
    if found.status not in ("optimal", "inaccurate") or found.multipliers is None:  # measured below
        return trained
    kept, before = setup.decisions.snapshot(), merit(setup.evaluator, tolerance)
    found.write_back()
    with torch.no_grad():
        for symbol, tensor in setup.decisions.variables.items():
            if symbol in found.values:
                tensor.copy_(torch.as_tensor(found.values[symbol]).to(tensor).reshape(tensor.shape))
    settle(setup.evaluator)
    after = merit(setup.evaluator, tolerance)
    if after >= before:
        setup.decisions.restore(kept)
        setup.decisions.write_back()
        return trained
    words = f"last layer exactly, by {found.solver}: {before[1]:.6g} became {after[1]:.6g}"
    return replace(
        trained,
        multipliers=found.multipliers,
        solver=f"{trained.solver} + {found.solver}",
        seconds=trained.seconds + found.seconds,
        message=f"{trained.message}; {words}".lstrip("; "),
    )
