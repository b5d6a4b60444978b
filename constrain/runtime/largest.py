"""A largest value in the objective, for methods that move multipliers.

min_x max_k c_k(x) is min t subject to c_k <= t. As a Lagrangian it is the game min_x max_w sum_k w_k c_k(x)
over weights w of the simplex: the multipliers are weights that sum to one, and t drops out. So multiplier
steps are projected on the simplex, and t needs no step: it is set to the largest value.

Projection: Duchi, Shalev-Shwartz, Singer and Chandra (2008), "Efficient projections onto the l1-ball", ICML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from constrain.lowering.lower import EPIGRAPH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.lowering.program import Part
    from constrain.runtime.evaluator import Evaluator

__all__ = ["WEIGHT_STEP", "Largest", "on_simplex"]

WEIGHT_STEP = 4.0
"""Step of the weights at a difference of one spread of the quietest value, before the rate of the steps."""


def on_simplex(values: Tensor) -> Tensor:
    """The nearest point whose entries are nonnegative and sum to one: (n,)."""
    ordered = values.sort(descending=True).values
    excess = ordered.cumsum(0) - 1
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    last = (ordered * counts > excess).sum() - 1
    return (values - (excess / counts).index_select(0, last.reshape(1))).clamp(min=0)


class Largest:
    """The largest value in the objective of a program, if there is one.

    Args:
        evaluator: a program with data.

    Attributes:
        parts: positions of the parts c_k <= t.
        bound: the hidden decision t; None without a largest value in the objective.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        program = evaluator.program
        self.parts = [i for i, part in enumerate(program.parts) if part.constraint == EPIGRAPH]
        variables = evaluator.decisions.variables
        self.bound: Tensor | None = None
        if self.parts:
            self.bound = next(t for symbol, t in variables.items() if symbol.name == EPIGRAPH)

    def others(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Those of the tensors that are not t: what an optimizer moves."""
        return [t for t in tensors if t is not self.bound]

    @torch.no_grad()
    def settle(self, residuals: Sequence[Tensor | None]) -> bool:
        """Sets t to the largest value; whether there is one.

        Args:
            residuals: by part position, at t as it is now.
        """
        if self.bound is None:
            return False
        found = [r.reshape(-1) for i in self.parts if (r := residuals[i]) is not None]
        self.bound.add_(torch.cat(found).max().to(self.bound.dtype))
        return True

    def places(
        self, parts: Sequence[Part], place: Mapping[str, tuple[slice, tuple[int, ...]]]
    ) -> Tensor | None:
        """Where the weights are in the vector of multipliers; None without a largest value.

        Args:
            parts: of the program.
            place: by part key its places in the vector, and its shape.
        """
        if self.bound is None:
            return None
        slices = [place[parts[i].key][0] for i in self.parts]
        return torch.cat([torch.arange(s.start, s.stop, device=self.bound.device) for s in slices])
