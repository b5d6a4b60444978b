"""Largest values in the objective, for methods that move multipliers.

min_x max_k c_k(x) is min t subject to c_k <= t. As a Lagrangian it is the game min_x max_w sum_k w_k c_k(x)
over weights w of the simplex: the multipliers are weights that sum to one, and t drops out. So multiplier
steps are projected on the simplex, and t needs no step: it is set to the largest value. A sum of several
largest values has a t and a simplex for each.

Projection: Duchi, Shalev-Shwartz, Singer and Chandra (2008), "Efficient projections onto the l1-ball", ICML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from constrain.language import nodes as n
from constrain.lowering.lower import EPIGRAPH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.lowering.program import Form
    from constrain.runtime.decisions import Decisions
    from constrain.runtime.evaluator import Evaluator

__all__ = ["WEIGHT_STEP", "Largest", "bound_of", "on_simplex"]

WEIGHT_STEP = 4.0
"""Step of the weights at a difference of one spread of the quietest value, before the rate of the steps."""


def on_simplex(values: Tensor) -> Tensor:
    """The nearest point whose entries are nonnegative and sum to one: (n,)."""
    ordered = values.sort(descending=True).values
    excess = ordered.cumsum(0) - 1
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    last = (ordered * counts > excess).sum() - 1
    return (values - (excess / counts).index_select(0, last.reshape(1))).clamp(min=0)


def bound_of(form: Form, decisions: Decisions) -> Tensor:
    """The hidden decision t of a constraint that the epigraph rule made."""
    (side,) = form.rhs
    assert isinstance(side, n.Decision)  # made so
    return decisions.variables[side.symbol]


class Largest:
    """The largest values in the objective of a program, if there are any.

    Args:
        evaluator: a program with data.

    Attributes:
        keys: for each of them the keys of the parts c_k <= t.
        groups: for each of them the positions of these parts.
        bounds: for each of them the hidden decision t.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        program = evaluator.program
        forms = [form for form in program.shared.singles if form.name == EPIGRAPH]
        position = {stack.part.key: int(stack.places[0]) for stack in program.stacks if forms}
        self.keys = [[part.key for part in form.parts] for form in forms]
        self.groups = [[position[key] for key in own] for own in self.keys]
        self.bounds = [bound_of(form, evaluator.decisions) for form in forms]

    @property
    def parts(self) -> list[int]:
        """Positions of the parts of all groups."""
        return [i for group in self.groups for i in group]

    def others(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Those of the tensors that are no t: what an optimizer moves."""
        return [t for t in tensors if not any(t is bound for bound in self.bounds)]

    @torch.no_grad()
    def settle(self, residuals: Sequence[Tensor | None]) -> bool:
        """Sets each t to its largest value; whether there is one.

        Args:
            residuals: by part position, at t as it is now.
        """
        for group, bound in zip(self.groups, self.bounds, strict=True):
            found = [r.reshape(-1) for i in group if (r := residuals[i]) is not None]
            bound.add_(torch.cat(found).max().to(bound.dtype))
        return bool(self.bounds)

    def places(self, place: Mapping[str, tuple[slice, tuple[int, ...]]]) -> tuple[Tensor, ...]:
        """Where the weights of each group are in the vector of multipliers.

        Args:
            place: by part key its places in the vector, and its shape.
        """
        found: list[Tensor] = []
        for keys, bound in zip(self.keys, self.bounds, strict=True):
            slices = [place[key][0] for key in keys]
            found.append(torch.cat([torch.arange(s.start, s.stop, device=bound.device) for s in slices]))
        return tuple(found)
