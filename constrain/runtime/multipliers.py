"""Multipliers of constraints per row as a function of the row: a network instead of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MultiplierFunction"]


class MultiplierFunction(nn.Module):
    """The multiplier of a row as the value of a model on its columns.

    One multiplier per row needs rows that come back; a function of the row also serves fresh samples of a
    continuous population, streams, and samples whose table would not fit.

    Args:
        value: columns of some rows -> (rows, ...) values, differentiable in `module`; projected to >= 0 for
            inequalities by the Lagrangian.
        module: the model, whose parameters ascend.
        lr: step of the ascent, by Adam.
    """

    def __init__(
        self, value: Callable[[Mapping[str, Tensor]], Tensor], module: nn.Module, lr: float = 1e-2
    ) -> None:
        super().__init__()
        self.module = module
        self._value = value
        self.optimizer = torch.optim.Adam(module.parameters(), lr=lr, maximize=True)

    def forward(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Values on some rows."""
        return self._value(columns)

    def ascend(self, columns: Mapping[str, Tensor], gradient: Tensor) -> None:
        """One step along the gradient of sum(gradient * value)."""
        with torch.enable_grad():
            value: Any = self._value(columns)
            self.optimizer.zero_grad(set_to_none=True)
            (value * gradient.to(value.dtype)).sum().backward()
        self.optimizer.step()
