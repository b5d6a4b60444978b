"""What a scheme is: the rule by which one training step moves decisions and multipliers.

`Training` owns the optimizer, its schedule, the sampler and the Lagrangian, counts steps, and lends a scheme
its pieces: `draw`, `gradient`, `descend`, `ascend`. A scheme is a frozen record of options. What it remembers
between steps is a `State` that goes in and comes out of its functions, so that checkpoints hold it, and a run
that went wrong goes back to an earlier one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from constrain.solvers.primal_dual import Training

__all__ = ["Scheme", "State"]

State = dict[str, Any]
"""Tensors, numbers, texts, and lists and dictionaries of these, by name."""


class Scheme(ABC):
    """One rule for a training step. Only `step` has to be written.

    Attributes:
        gain: proportional gain of the multipliers when the user asks for none (`PrimalDual.gain`); None
            leaves it to the formulation.
    """

    gain: float | None = None

    @property
    def name(self) -> str:
        """For the report."""
        return type(self).__name__

    def init(self, run: Training) -> State:
        """What is remembered before the first step.

        Args:
            run: with everything ready but the start of its multipliers.

        Raises:
            ModelingError: E188 when the scheme cannot take the problem or the options.
        """
        del run
        return {}

    @abstractmethod
    def step(self, run: Training, state: State) -> State:
        """One step: at least one batch, one move of the decisions; multipliers rest while `run.resting`."""

    def observe(self, run: Training, state: State, residuals: Mapping[int, Tensor]) -> State:
        """After every epoch: exact residuals on all data by part position, not of constraints per row."""
        del run, residuals
        return state

    def terminate(self, run: Training, state: State) -> str:
        """After every epoch: why the run ends here, or an empty text."""
        del run, state
        return ""

    def multipliers(self, run: Training, state: State) -> dict[str, Tensor]:
        """Copies of the multipliers by part key, where they are not those of the Lagrangian."""
        del state
        return run.lagrangian.multipliers()
