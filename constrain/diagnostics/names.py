"""The user's names for levels, entries and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from constrain.language.types import type_of
from constrain.lowering.lower import EPIGRAPH

if TYPE_CHECKING:
    from constrain.language import nodes as n
    from constrain.runtime.evaluator import Evaluator

__all__ = ["level_axis", "part_label"]


def level_axis(evaluator: Evaluator, *nodes: n.Node) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Columns and level names of the first of these expressions that has a level axis; empty without one."""
    for node in nodes:
        level = type_of(node).levels
        if level is None:
            continue
        for (_, columns), stratum in evaluator.populations[level.data].strata.items():
            if columns == level.columns:
                return columns, tuple(stratum.levels)
    return (), ()


def part_label(evaluator: Evaluator, i: int, k: int, shape: tuple[int, ...]) -> str:
    """Name of entry `k` of the flattened residual of part `i`: `parity[sex=Female]`, `fit[row 7]`."""
    part = evaluator.program.parts[i]
    name = "objective" if part.constraint == EPIGRAPH else part.constraint
    if not shape:
        return name
    place = [str(index) for index in np.unravel_index(k, shape)]
    if part.rows is not None:
        place[0] = f"row {place[0]}"
    else:
        columns, levels = level_axis(evaluator, part.residual)
        if levels:
            level = levels[int(place[0])]
            values = cast("tuple[Any, ...]", level) if isinstance(level, tuple) else (level,)
            place[0] = ", ".join(f"{c}={v}" for c, v in zip(columns, values, strict=True))
    return f"{name}[{', '.join(place)}]"
