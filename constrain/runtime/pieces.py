"""The entries of a vector as tensors of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["entries"]


def entries(vector: Tensor) -> Sequence[Tensor]:
    """The entries of a vector (views).

    With a graph each is selected on its own: the derivative of one of ten thousand pieces of `unbind` fills
    in the other ones, one by one.
    """
    if not vector.requires_grad:
        return vector.unbind()
    return [vector[k] for k in range(len(vector))]
