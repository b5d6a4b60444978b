"""Vectors taken apart into entries, and put together from the parameters of models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Flattened", "entries"]


def entries(vector: Tensor) -> Sequence[Tensor]:
    """The entries of a vector (views).

    With a graph each is selected on its own: the derivative of one of ten thousand pieces of `unbind` fills
    in the other ones, one by one.
    """
    if not vector.requires_grad:
        return vector.unbind()
    return [vector[k] for k in range(len(vector))]


class Flattened:
    """`w[i]`: all trainable parameters of model i as one vector, made when asked for."""

    def __init__(self, models: Sequence[Any]) -> None:
        self.models = models

    def __getitem__(self, i: int) -> Tensor:
        parameters = [p.reshape(-1) for p in self.models[i].module.parameters() if p.requires_grad]
        return torch.cat(parameters)
