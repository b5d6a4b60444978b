"""Several decisions with probabilities: what a run offers where drawing one beats every single one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from constrain.errors import ModelingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from constrain.language.data import Data
    from constrain.solution.answer import Evaluation

__all__ = ["LiveMixture", "Mixture"]


class LiveMixture(Protocol):
    """The problem behind a mixture, when it is at hand; made by `constrain.diagnostics.alive`."""

    def at(self, state: Mapping[str, Any]) -> AbstractContextManager[None]:
        """A block with models and variables at these decisions."""
        ...

    def evaluate_mixture(self, mixture: Mixture, data: Data | Mapping[str, Data]) -> Evaluation:
        """Statistics of the mixture on other data."""
        ...


@dataclass(frozen=True)
class Mixture:
    """Decisions of a run, of which one is drawn at random every time that one is needed.

    Averages over rows are then those over rows and draws, the weighted means of those of the members, and so
    are terms without data. With m entries of constraints there are at most m + 1 members.

    Attributes:
        weights: probabilities of the members, which sum to 1.
        epochs: after which each member was the iterate of the run.
        members: decisions of each member by name: variables, parameters and buffers of models.
        train: statistics of the mixture on the training data.
        holdout: on the hold-out, None without one.
        single: objective of the best single iterate, in the user's sense; NaN when none is feasible.
        live: the problem behind it; None after `load` without one.
    """

    weights: tuple[float, ...]
    epochs: tuple[int, ...]
    members: tuple[dict[str, NDArray[Any]], ...]
    train: Evaluation
    holdout: Evaluation | None
    single: float
    live: LiveMixture | None = field(default=None, repr=False, compare=False)

    @property
    def objective(self) -> float:
        """On the training data, in the user's sense."""
        return self.train.objective

    def __len__(self) -> int:
        return len(self.weights)

    def __str__(self) -> str:
        listed = ", ".join(f"{w:.3g} of epoch {e}" for w, e in zip(self.weights, self.epochs, strict=True))
        return f"mixture of {len(self)} iterates ({listed})\n{self.train}"

    # ---- using it
    def member(self, k: int) -> AbstractContextManager[None]:
        """A block in which models and variables are those of a member.

        Args:
            k: position of the member; `draw` chooses one.

        Raises:
            ModelingError: E129 when the problem is not at hand.
        """
        return self._need("member()").at(self.members[k])

    def draw(self, count: int | None = None, seed: int | None = None) -> Any:
        """Positions of members, drawn with their probabilities.

        Args:
            count: how many; one number when left out.
            seed: of the draw; the same seed gives the same draw.
        """
        return np.random.default_rng(seed).choice(len(self), size=count, p=np.asarray(self.weights))

    def average(self, function: Callable[[], Any]) -> Any:
        """The expected value of an output under the draw: `mixture.average(lambda: f.module(x).sigmoid())`.

        Args:
            function: computes a tensor, an array or a number from the models as they are. Of a decision, such
                as `f.module(x) > 0`, the average is the probability.

        Raises:
            ModelingError: E129 when the problem is not at hand.
        """
        outputs = self._outputs(function)
        return sum(
            w * np.asarray(out, dtype=np.float64) for w, out in zip(self.weights, outputs, strict=True)
        )

    def sample(self, function: Callable[[], Any], seed: int | None = None) -> NDArray[Any]:
        """The output with one member drawn for every row: `mixture.sample(lambda: f.module(x) > 0)`.

        Args:
            function: computes a tensor or array with rows first from the models as they are.
            seed: of the draws.

        Raises:
            ModelingError: E129 when the problem is not at hand.
        """
        outputs = np.stack(self._outputs(function))
        rows = outputs.shape[1]
        return outputs[self.draw(rows, seed), np.arange(rows)]

    def evaluate(self, data: Data | Mapping[str, Data]) -> Evaluation:
        """Objective and constraints of the mixture on other data.

        Intervals are those of the members, averaged: at least as wide as those of the mixture.

        Args:
            data: a sample when the problem has one, else samples by the name of the one they replace.

        Raises:
            DataError: E106, E124, E135 when the data does not fit.
            ModelingError: E129 when the problem is not at hand.
        """
        return self._need("evaluate()").evaluate_mixture(self, data)

    def _outputs(self, function: Callable[[], Any]) -> list[NDArray[Any]]:
        live = self._need("average() and sample()")
        found: list[NDArray[Any]] = []
        for state in self.members:
            with live.at(state):
                output = function()
                detached = output.detach().cpu() if hasattr(output, "detach") else output
                found.append(np.array(detached))
        return found

    def _need(self, what: str) -> LiveMixture:
        if self.live is None:
            raise ModelingError(
                "E129",
                f"{what} of a mixture needs the problem, and this solution was loaded without it",
                fix="cn.load(folder, problem=problem), or symbols={...} with the modules and data",
            )
        return self.live
