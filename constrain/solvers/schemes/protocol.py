"""What a scheme is: the rule by which one training step moves decisions and multipliers.

`Training` owns the optimizer, its schedule, the sampler and the Lagrangian, counts steps, and lends a scheme
its pieces: `draw`, `gradient`, `descend`, `ascend`. A scheme is a frozen record of options. What it remembers
between steps is a `State` that goes in and comes out of its functions, so that checkpoints hold it, and a run
that went wrong goes back to an earlier one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from constrain.errors import ModelingError
from constrain.solvers.training import default_optimizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor

    from constrain.solvers.primal_dual import Training

__all__ = ["Scheme", "State", "need_duals", "refuse_functions", "refuse_games"]

State = dict[str, Any]
"""Tensors, numbers, texts, and lists and dictionaries of these, by name."""


class Scheme(ABC):
    """One rule for a training step. Only `step` has to be written.

    Attributes:
        gain: proportional gain of the multipliers when the user asks for none (`PrimalDual.gain`); None
            leaves it to the formulation.
        guarded: gain, memory and rate, where the user leaves them to the library, change when violations
            cycle (`guard.py`).
        rate: integral step of the multipliers when the user asks for none; None takes 1.2 / sqrt(steps).
        recordable: a step draws one batch, and all that it depends on beside the batch are tensors that it
            changes in place and the numbers of `Training`, so that it can be one graph. What depends on the
            number of steps belongs into `after`.
    """

    gain: ClassVar[float | None] = None
    guarded: ClassVar[bool] = False
    rate: ClassVar[float | None] = None
    recordable: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """For the report."""
        return type(self).__name__

    def optimizer(self, tensors: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """The optimizer of the decisions when the user asks for none."""
        return default_optimizer(tensors, lr)

    def init(self, run: Training) -> State:
        """What is remembered before the first step.

        Args:
            run: with everything ready.

        Raises:
            ModelingError: E208 when the scheme cannot take the problem or the options.
        """
        del run
        return {}

    @abstractmethod
    def step(self, run: Training, state: State) -> State:
        """One step: at least one batch, one move of the decisions; multipliers rest while `run.resting`."""

    def after(self, run: Training, state: State) -> State:
        """After every step, in Python also where steps are recorded: what is done now and then."""
        del run
        return state

    def observe(self, run: Training, state: State, residuals: Mapping[int, Tensor]) -> State:
        """After every epoch: exact residuals on all data by part position, not of constraints per row."""
        del run, residuals
        return state

    def terminate(self, run: Training, state: State) -> str:
        """After every epoch: why the run ends here, or an empty text."""
        del run, state
        return ""

    def multipliers(self, run: Training, state: State) -> dict[str, Tensor]:
        """Copies of the multipliers by part key; overridden where they are not those of the Lagrangian."""
        del state
        return run.lagrangian.multipliers()


# ------------------------------------------------------------------------------- what a scheme cannot take
def need_duals(run: Training, scheme: str, *allowed: str) -> None:
    """E208 for a rule of the multipliers that a scheme does not combine with."""
    asked = run.dual_name
    if asked is not None and asked not in allowed:
        own = " or ".join(f'dual="{name}"' for name in allowed)
        raise ModelingError(
            "E208",
            f"the scheme {scheme!r} moves multipliers by a rule of its own, not by dual={asked!r}",
            fix=f"{own}, or no dual=" if own else "no dual=",
        )


def refuse_functions(run: Training, scheme: str) -> None:
    """E208 for multipliers that are values of a model, which a scheme has no step for."""
    if run.functions:
        name = next(iter(run.functions))
        raise ModelingError(
            "E208",
            f"the scheme {scheme!r} has no step for a model that gives the multipliers of {name!r}",
            fix='scheme="simultaneous", or no multipliers=',
        )


def refuse_games(run: Training, scheme: str) -> None:
    """E208 for relaxed averages and a largest value as the objective, whose multipliers are constrained."""
    lagrangian = run.lagrangian
    relaxed = [group.relaxation for group in lagrangian.slacks.groups]
    if lagrangian.largest.parts or relaxed:
        what = "a largest value in the objective" if lagrangian.largest.parts else "relaxed constraints"
        raise ModelingError(
            "E208",
            f"the scheme {scheme!r} has no multipliers that {what} could move",
            fix='scheme="simultaneous"',
        )
