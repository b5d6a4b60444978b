"""Where the entries of the objective and of all parts are among the terms of an estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from constrain.runtime.evaluator import Outer
from constrain.runtime.pieces import entries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.lowering.families import Stack

__all__ = ["Layout"]


class Layout:
    """The order of the terms: the objective, then the entries of the parts in the order of the parts.

    Args:
        stacks: of the program.
        values: the objective, then the values of each stack; None for constraints per row.

    Attributes:
        stacks: of the program.
        places: per position (0 the objective, i + 1 stack i) the places of its entries among the terms.
        size: number of all terms.
        shapes: per position that of its values.
    """

    def __init__(self, stacks: Sequence[Stack], values: Sequence[Tensor | None]) -> None:
        self.stacks = tuple(stacks)
        self.shapes = [torch.Size(()) if value is None else value.shape for value in values]
        sizes = np.zeros(sum(len(stack.places) for stack in stacks), dtype=np.int64)
        for stack, value in zip(stacks, values[1:], strict=True):
            if value is not None:
                sizes[stack.places] = value.numel() if stack.names is None else 1
        starts = 1 + np.cumsum(sizes) - sizes
        self.size = 1 + int(sizes.sum())
        self.places: dict[int, NDArray[np.int64]] = {0: np.zeros(1, dtype=np.int64)}
        for i, (stack, value) in enumerate(zip(stacks, values[1:], strict=True), start=1):
            if value is not None:
                own = starts[stack.places]
                self.places[i] = own if stack.names is not None else own[0] + np.arange(value.numel())

    def outer(self, terms: Tensor) -> Outer:
        """Objective and residuals out of the terms (views)."""
        residuals: list[Tensor | None] = [None] * sum(len(stack.places) for stack in self.stacks)
        pieces = entries(terms) if any(stack.names is not None for stack in self.stacks) else ()
        for i, stack in enumerate(self.stacks, start=1):
            own = self.places.get(i)
            if own is None:
                continue
            if stack.names is None:
                start = int(own[0]) if len(own) else 0
                residuals[int(stack.places[0])] = terms[start : start + len(own)].reshape(self.shapes[i])
                continue
            for part, place in zip(stack.places.tolist(), own.tolist(), strict=True):
                residuals[part] = pieces[place]
        return Outer(terms[:1].reshape(self.shapes[0]), residuals)
