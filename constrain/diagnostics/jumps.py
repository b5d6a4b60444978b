"""Pieces of `cn.where` that end at a point, where the piece beyond has another value.

On its piece a function that an event of decisions chooses is as smooth as its formula. Where an argument of
the event counts as zero (as for kinks), the other branch is what holds a small step away. When it is lower,
gradients say nothing: a better point is next to this one however they balance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain.diagnostics.point import array_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Events", "Jump", "lower_beyond"]

CLEAR = 1e-4
"""Difference of two branches, relative to 1 + |value|, that is a jump and not a kink seen from near it."""
_COMPARED = frozenset(("ge", "le", "gt", "lt", "eq", "ne"))
_JOINED = frozenset((
    "and", "or", "xor", "invert", "bitwise_and", "bitwise_or", "bitwise_not", "logical_and", "logical_or",
    "logical_not",
))  # fmt: skip


@dataclass
class Jump:
    """A call of `torch.where` whose condition depends on decisions.

    Attributes:
        output: of the call.
        other: the branch that was not taken, in the shape of the output.
        switches: differences of what the condition compares.
    """

    output: Tensor
    other: Tensor
    switches: tuple[Tensor, ...]


@dataclass
class Events:
    """Comparisons of decisions and the calls of `torch.where` that they decide, recorded in order.

    Attributes:
        jumps: the calls.
    """

    jumps: list[Jump] = field(default_factory=list["Jump"])
    _known: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = field(
        default_factory=dict[int, "tuple[Tensor, tuple[Tensor, ...]]"]
    )

    def see(self, name: str, args: tuple[Any, ...], output: Any) -> Any:
        """Records a call; what it returns is the output, which asks for gradients where it can jump."""
        name = name.strip("_")
        if name in _COMPARED and any(isinstance(x, torch.Tensor) and x.requires_grad for x in args[:2]):
            self._known[id(output)] = (output, (args[0] - args[1],))
        elif name in _JOINED:
            switches = tuple(s for x in args if id(x) in self._known for s in self._known[id(x)][1])
            if switches:
                self._known[id(output)] = (output, switches)
        elif name == "where" and id(args[0]) in self._known and output.is_floating_point():
            output = output if output.requires_grad else output.detach().requires_grad_()
            other = torch.where(~args[0], args[1], args[2])
            self.jumps.append(Jump(output, other, self._known[id(args[0])][1]))
        return output


def lower_beyond(
    jumps: Sequence[Jump],
    scalars: Sequence[Tensor],
    near: Callable[[Tensor], NDArray[np.bool_]],
) -> int:
    """Entries of `cn.where` at whose end the point sits, with a value beyond that lowers a scalar.

    Args:
        jumps: what was recorded.
        scalars: the objective, and residuals of active constraints.
        near: which entries of a switch count as zero.
    """
    found = 0
    for jump in jumps:
        own, other = array_of(jump.output), array_of(jump.other)
        both = np.isfinite(own) & np.isfinite(other)
        step = np.where(both, other, 0.0) - np.where(both, own, 0.0)
        at = np.abs(step) > CLEAR * (1 + np.abs(np.where(both, own, 0.0)))
        if at.any():
            at &= np.any([np.broadcast_to(near(s), own.shape) for s in jump.switches], axis=0)
        if at.any():
            slopes = [_slope(scalar, jump.output) for scalar in scalars]
            found += int(np.any([step[at] * slope[at] < 0 for slope in slopes], axis=0).sum())
    return found


def _slope(scalar: Tensor, output: Tensor) -> NDArray[np.float64]:
    if not scalar.requires_grad:
        return np.zeros(output.shape)
    (slope,) = torch.autograd.grad(
        scalar, [output], retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return array_of(slope)
