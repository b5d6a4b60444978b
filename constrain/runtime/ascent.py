"""How multipliers move along residuals, where that is not plain projected gradient ascent.

A rule is a frozen record; what it remembers is in a dictionary of tensors that the Lagrangian holds, so that
checkpoints have it. The Lagrangian projects what a rule returns: on nonnegative numbers for inequalities, on
the simplex for a largest value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from constrain.runtime.limits import FRACTION, NONNEGATIVE, POSITIVE, check_limits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ascent", "Mirror", "Move", "NuPI", "Paced", "hypentropy"]

MOST = 1.0
"""Largest exponent of a multiplicative step."""
LEAST_WEIGHT = 1e-12
"""Weight from which an entry on the simplex can come back."""


@dataclass(frozen=True)
class Move:
    """One step of some multipliers.

    Attributes:
        name: of the multipliers: that of the vector of all averages, or of the table of a constraint.
        values: (entries,) the multipliers now; of a table the rows of the batch.
        residual: (entries,) exact, of the batch.
        steps: (entries,) or a number: the measured scale of each step (`steps.py`).
        rate: dimensionless.
        units: (entries,) or a number: size of a multiplier that balances the objective's gradient.
        index: of the rows of the batch in the table; None for all entries.
        weights: entries on one simplex each, (weights,) every one.
    """

    name: str
    values: Tensor
    residual: Tensor
    steps: Tensor | float
    rate: float | Tensor
    units: Tensor | float = 1.0
    index: Tensor | slice | None = None
    weights: tuple[Tensor, ...] = ()


class Ascent(Protocol):
    """A rule by which multipliers move."""

    def start(self, past: dict[str, Tensor], name: str, values: Tensor) -> None:
        """Remembers what the first step needs.

        Args:
            past: what the rule remembers.
            name: of the multipliers.
            values: all of them.
        """
        ...

    def moved(self, past: dict[str, Tensor], move: Move) -> Tensor:
        """The multipliers after a step, before projection; of the shape of `move.values`."""
        ...


@dataclass(frozen=True)
class NuPI:
    """lambda + step (rate e_t + gain (xi_t - xi_{t-1})), xi_t = memory xi_{t-1} + (1 - memory) e_t.

    The recursive form of the proportional-integral controller with a smoothed error, projected as a whole
    (Sohrabi, Ramirez, Zhang, Lacoste-Julien and Gallego-Posada, 2024, "On PI controllers for updating
    Lagrange multipliers in constrained optimization", algorithm 1). Without the
    projection it is lambda_0 + step (rate sum of e + gain xi_t), what `Lagrangian` does itself; with it a
    multiplier at 0 also forgets its proportional part.

    Attributes:
        gain: proportional gain, dimensionless; None takes the rate. With memory 0 that is the optimistic
            gradient, rate (2 e_t - e_{t-1}) (Popov, 1980; theorem 3 of the paper).
        memory: decay of the smoothed error, in [0, 1).
    """

    gain: float | None = 0.3
    memory: float = 0.95

    def __post_init__(self) -> None:
        """Refuses options that make no sense (E141)."""
        check_limits(self, gain=NONNEGATIVE, memory=FRACTION)

    def start(self, past: dict[str, Tensor], name: str, values: Tensor) -> None:
        """No error yet."""
        past[name] = torch.zeros_like(values)

    def moved(self, past: dict[str, Tensor], move: Move) -> Tensor:
        """The multipliers after a step."""
        before = past[move.name] if move.index is None else past[move.name][move.index]
        error = move.residual.to(before.dtype)
        after = torch.lerp(before, error, 1 - self.memory)
        gain = move.rate if self.gain is None else self.gain
        change = move.steps * (move.rate * error + gain * (after - before))
        if move.index is None:
            past[move.name].copy_(after)
        else:
            past[move.name][move.index] = after
        return move.values + change


@dataclass(frozen=True)
class Paced:
    """lambda + pace rate step e, with one pace for all, which a scheme sets in `past["pace"]`."""

    def start(self, past: dict[str, Tensor], name: str, values: Tensor) -> None:
        """Full pace."""
        del name
        past["pace"] = values.new_ones(())

    def moved(self, past: dict[str, Tensor], move: Move) -> Tensor:
        """The multipliers after a step."""
        change = move.residual.to(move.values.dtype) * (move.steps * move.rate)
        return move.values + past["pace"] * change


@dataclass(frozen=True)
class Mirror:
    """beta sinh(arcsinh(lambda / beta) + rate step e / beta); of weights on the simplex w exp(rate step e).

    Mirror ascent with the hypentropy, whose steps are additive below beta and multiplicative above, so that a
    multiplier can start at 0 and have either sign (Ghai, Hazan and Singer, 2020, "Exponentiated gradient
    meets gradient descent"); for beta to 0 it is exponentiated gradient (Kivinen and Warmuth, 1997). Weights
    on the simplex take the entropic step of Hedge.

    Attributes:
        offset: beta in units of a multiplier that balances the objective's gradient, dimensionless.
    """

    offset: float = 1.0

    def __post_init__(self) -> None:
        """Refuses options that make no sense (E141)."""
        check_limits(self, offset=POSITIVE)

    def start(self, past: dict[str, Tensor], name: str, values: Tensor) -> None:
        """Nothing is remembered."""

    def moved(self, past: dict[str, Tensor], move: Move) -> Tensor:
        """The multipliers after a step."""
        del past
        change = move.rate * move.steps * move.residual.to(move.values.dtype)
        moved = hypentropy(move.values, change, self.offset * move.units)
        for places in move.weights:
            own = change.index_select(0, places)
            weights = torch.log(move.values.index_select(0, places).clamp(min=LEAST_WEIGHT)) + own
            moved = moved.index_copy(0, places, torch.softmax(weights, 0))
        return moved


def hypentropy(values: Tensor, change: Tensor, beta: Tensor | float) -> Tensor:
    """A step of mirror ascent with the hypentropy of parameter beta > 0, elementwise."""
    step = (change / beta).clamp(-MOST, MOST)
    return beta * torch.sinh(torch.arcsinh(values / beta) + step)
