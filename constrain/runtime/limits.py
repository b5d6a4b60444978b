"""Options that make no sense are refused when a record of them is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from constrain.errors import ModelingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["FRACTION", "NONNEGATIVE", "POSITIVE", "WHOLE", "Limit", "check_limits", "check_optimizer"]

Limit = tuple["Callable[[float], bool]", str]
"""Whether a number is allowed, and what is allowed in words."""

POSITIVE: Limit = (lambda value: value > 0, "a positive number")
NONNEGATIVE: Limit = (lambda value: value >= 0, "a number >= 0")
FRACTION: Limit = (lambda value: 0 <= value < 1, "a number in [0, 1)")
WHOLE: Limit = (lambda value: value >= 1 and value == int(value), "a whole number >= 1")


def check_limits(record: object, **limits: Limit) -> None:
    """Refuses fields of a record that are no numbers, or outside of their limits; None passes.

    Raises:
        ModelingError: E141.
    """
    for name, (allowed, words) in limits.items():
        value: Any = getattr(record, name)
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and allowed(value)):
            kind = type(record)
            default = kind.__dataclass_fields__[name].default  # type: ignore[attr-defined]
            raise ModelingError(
                "E141",
                f"{kind.__name__}({name}={value!r}) is not {words}",
                fix=f"{kind.__name__}({name}={default})",
            )


def check_optimizer(optimizer: object, made_by: str, decisions: Sequence[Tensor] = ()) -> None:
    """Refuses what is no optimizer of torch, or one that needs the loss as a function or sparse gradients.

    Args:
        optimizer: what is to move the decisions.
        made_by: where it comes from, in words.
        decisions: tensors of which it has to have one at least; of an optimizer that was made for others it
            would go unnoticed that nothing learns.

    Raises:
        ModelingError: E141.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        text = f"{made_by} is an LBFGS, which needs the loss as a function: batches differ from step to step"
        raise ModelingError("E141", text, fix='torch.optim.Adam, or method="augmented" on all rows')
    if isinstance(optimizer, torch.optim.SparseAdam):
        text = f"{made_by} is a SparseAdam, which takes sparse gradients only: here they are dense"
        raise ModelingError("E141", text, fix="torch.optim.Adam(f.module.parameters(), lr=1e-3)")
    if not isinstance(optimizer, torch.optim.Optimizer):
        text = f"{made_by} is a {type(optimizer).__name__}, which is no optimizer of torch"
        raise ModelingError("E141", text, fix="torch.optim.Adam(f.module.parameters(), lr=1e-3)")
    held = {id(t) for group in optimizer.param_groups for t in group["params"]}
    if decisions and held.isdisjoint(map(id, decisions)):
        text = f"{made_by} holds no decision of the problem: nothing would be learned"
        raise ModelingError("E141", text, fix="torch.optim.Adam(lagrangian.primal_parameters(), lr=1e-3)")
