"""One step of Cooper and of humancompatible-train, written as their documentation tells a user to.

Both get the same function, which evaluates loss and constraints, and an optimizer for the decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["COOPER", "HUMAN", "Evaluate", "Evaluated", "Step", "cooper_step", "human_step"]


class Evaluated(NamedTuple):
    """Loss and constraints at the current decisions.

    Attributes:
        loss: scalar.
        constraints: one tensor per constraint object, feasible where <= 0 (or == 0).
        exact: values for the multipliers where they differ from those for the gradient (rates).
        rows: the multipliers that the entries of each constraint belong to, where a batch holds some of them.
    """

    loss: Tensor
    constraints: Sequence[Tensor]
    exact: Sequence[Tensor] | None = None
    rows: Sequence[Tensor] | None = None


Evaluate = Callable[[], Evaluated]


@dataclass(frozen=True)
class Step:
    """One step of a library; calling it makes the step."""

    run: Callable[[], Evaluated]
    multipliers: Callable[[], Tensor]

    def __call__(self) -> Evaluated:
        """Makes the step; returns loss and constraints before it."""
        return self.run()


def cooper_step(
    evaluate: Evaluate,
    sizes: Sequence[int],
    primal: torch.optim.Optimizer,
    *,
    dual_lr: float,
    penalty: float | None = None,
    equal: Sequence[bool] | None = None,
    indexed: bool = False,
) -> Step:
    """A step of Cooper: `ConstrainedMinimizationProblem` and `SimultaneousOptimizer`.

    Args:
        evaluate: loss and constraints of the next batch.
        sizes: number of multipliers of each constraint object.
        primal: optimizer of the decisions.
        dual_lr: step size of the multipliers (gradient ascent).
        penalty: coefficient of an augmented Lagrangian; left out, the plain Lagrangian.
        equal: which constraints are equations.
        indexed: multipliers are looked up by `Evaluated.rows`.
    """
    import cooper

    dtype = primal.param_groups[0]["params"][0].dtype
    kind = cooper.multipliers.IndexedMultiplier if indexed else cooper.multipliers.DenseMultiplier
    formulation = (
        cooper.formulations.Lagrangian if penalty is None else cooper.formulations.AugmentedLagrangian
    )
    types = {
        True: cooper.ConstraintType.EQUALITY,
        False: cooper.ConstraintType.INEQUALITY,
    }

    class Problem(cooper.ConstrainedMinimizationProblem):
        def __init__(self) -> None:
            super().__init__()
            self.all = []
            for i, size in enumerate(sizes):
                coefficient = cooper.penalty_coefficients.DensePenaltyCoefficient(
                    torch.tensor(penalty or 0.0, dtype=dtype)
                )
                constraint = cooper.Constraint(
                    multiplier=kind(num_constraints=size, dtype=dtype),
                    constraint_type=types[equal is not None and equal[i]],
                    formulation_type=formulation,
                    penalty_coefficient=None if penalty is None else coefficient,
                )
                setattr(self, f"constraint{i}", constraint)
                self.all.append(constraint)

        def compute_cmp_state(self) -> cooper.CMPState:
            found = evaluate()
            states = {
                constraint: cooper.ConstraintState(
                    violation=found.constraints[i],
                    strict_violation=None if found.exact is None else found.exact[i],
                    constraint_features=None if found.rows is None else found.rows[i],
                )
                for i, constraint in enumerate(self.all)
            }
            return cooper.CMPState(loss=found.loss, observed_constraints=states, misc={"found": found})

    problem = Problem()
    dual = torch.optim.SGD(problem.dual_parameters(), lr=dual_lr, maximize=True)
    optimizer = cooper.optim.SimultaneousOptimizer(
        cmp=problem, primal_optimizers=primal, dual_optimizers=dual
    )

    def step() -> Evaluated:
        return optimizer.roll().cmp_state.misc["found"]

    return Step(step, lambda: torch.cat([c.multiplier.weight.detach().flatten() for c in problem.all]))


def human_step(
    evaluate: Evaluate,
    sizes: Sequence[int],
    primal: torch.optim.Optimizer,
    *,
    dual_lr: float,
    penalty: float = 0.0,
    equal: Sequence[bool] | None = None,
) -> Step:
    """A step of humancompatible-train: `ALM`, `forward_update`, and the optimizer's step.

    Args:
        evaluate: loss and constraints of the next batch.
        sizes: number of multipliers of each group of constraints.
        primal: optimizer of the decisions.
        dual_lr: step size of the multipliers.
        penalty: coefficient of the augmented Lagrangian; 0 is the plain one.
        equal: which constraints are equations.
    """
    from humancompatible.train.dual_optim import ALM

    inequality = [not (equal is not None and equal[i]) for i in range(len(sizes))]
    starts = [torch.zeros(size, dtype=primal.param_groups[0]["params"][0].dtype) for size in sizes]
    dual = ALM(m=sizes[0], lr=dual_lr, penalty=penalty, init_duals=starts[0], is_ineq=inequality[0])
    for start, below in zip(starts[1:], inequality[1:], strict=True):
        dual.add_constraint_group(m=len(start), init_duals=start, is_ineq=below)

    def step() -> Evaluated:
        found = evaluate()
        dual.forward_update(found.loss, found.constraints).backward()
        primal.step()
        primal.zero_grad()
        return found

    return Step(step, lambda: dual.duals.detach().clone())


COOPER = ("cooper-optim", cooper_step)
HUMAN = ("humancompatible-train", human_step)
"""Distribution and step of both libraries."""
