"""How much of a running average one batch is: less where it has few rows of a group, or none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from constrain.runtime.rows import Rows

__all__ = ["BySizes", "sizes", "visit_weight"]

VISITS = 8.0
"""Rows of a rare group that its running average remembers, at least, or all that it has."""


@dataclass(frozen=True)
class BySizes:
    """What was made for batches of some sizes; no part of the state of a run, since it is made anew."""

    made: dict[object, Any] = field(default_factory=dict[object, Any])


def sizes(batches: Mapping[str, Rows]) -> tuple[tuple[str, int, bool, bool], ...]:
    """What the weights of batches depend on."""
    return tuple([(name, r.count, r.whole, r.stratified) for name, r in batches.items()])


def visit_weight(visits: Tensor, least: float, most: float) -> Tensor:
    """Weights of a batch in running averages, so that one row does not count more than the last few.

    Args:
        visits: expected rows of each in the batch.
        least: the share of all rows that are in the batch: a group's own rows count alike over a pass.
        most: the weight where there are many rows.
    """
    return (visits / VISITS).clamp(min=least).clamp(max=most)
