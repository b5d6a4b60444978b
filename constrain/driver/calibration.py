"""Training rows that `margin="auto"` holds back, where a model has enough weights to fit their noise.

Fitted with p weights to n rows, an average is off by about p/n of the spread of a row (the optimism of Akaike
1973 and Mallows 1973), and its standard error is about 1/sqrt(n) of it. With more weights than the square
root of the rows the first is the larger one, and no standard error on the training rows shows it: a fifth of
the rows is kept out of training, and the margin is measured there.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from constrain.diagnostics.alive import rebind
from constrain.driver.setup import lowered
from constrain.language import nodes as n
from constrain.language.regions import Region
from constrain.solution.records import Warn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from constrain.language.data import Data
    from constrain.language.problem import Problem
    from constrain.lowering.program import Program

__all__ = ["SHARE", "HeldBack", "hold_back", "remembered"]

SHARE = 0.2
"""Share of the rows that is held back."""


@dataclass(frozen=True)
class HeldBack:
    """What becomes of the samples of a problem.

    Attributes:
        training: by name of the sample, the rows that are trained on; None where all of them are.
        calibration: by name, the others.
        rows: number of rows held back.
        warning: why none can be held back though some should.
    """

    training: Mapping[str, Data] | None = None
    calibration: Mapping[str, Data] | None = None
    rows: int = 0
    warning: Warn | None = None


def hold_back(problem: Problem, data: Data | Mapping[str, Data] | None, seed: int) -> HeldBack:
    """Splits the samples of a problem whose models have more weights than the square root of the rows.

    Args:
        problem: as written.
        data: as in `solve`.
        seed: of the random choice.
    """
    program = lowered(problem, data)
    given = {} if data is None else rebind(program, data)
    samples = {p.name: given.get(p.name, p) for p in program.populations if not isinstance(p, Region)}
    weights = sum(p.numel() for model in program.models for p in model.module.parameters() if p.requires_grad)
    rows = min((len(sample) for sample in samples.values()), default=0)
    if not samples or weights <= math.sqrt(rows):
        return HeldBack()
    streamed = [name for name, sample in samples.items() if sample.streamed]
    if streamed or rows < 2 / SHARE:
        return HeldBack(warning=_uncalibrated(weights, rows, streamed))
    parts = {name: sample.split(SHARE, seed, _groups(program, name)) for name, sample in samples.items()}
    training = {name: first for name, (first, _) in parts.items()}
    calibration = {name: second for name, (_, second) in parts.items()}
    return HeldBack(training, calibration, sum(len(part) for part in calibration.values()))


def _uncalibrated(weights: int, rows: int, streamed: list[str]) -> Warn:
    why = (
        f"{streamed[0]!r} is a stream, of which no rows can be held back" if streamed else "the rows are few"
    )
    return Warn(
        "C313",
        "uncalibrated-margin",
        f"the models have {weights:,} weights for {rows:,} rows and fit noise of these rows, which standard "
        f"errors do not show; {why}: margin=sample, with rows that are neither trained on nor the hold-out, "
        "measures it",
    )


def _groups(program: Program, name: str) -> tuple[str, ...]:
    """Columns of the groups of a sample, of which each part gets its share."""
    found: dict[str, None] = {}
    for moment in program.moments:
        for column in moment.by:
            if moment.data.name == name and isinstance(column, n.Column):
                found[column.name] = None
    return tuple(found)


def remembered(program: Program) -> Callable[[], None]:
    """The decisions as they are; calling it brings them back.

    Each solve with tighter bounds starts there again: continued, a model fits more of the noise.
    """
    states = [(model.module, copy.deepcopy(model.module.state_dict())) for model in program.models]
    values: list[tuple[Any, Any]] = [(s, copy.deepcopy(s.value)) for s in program.problem.variables]

    def restore() -> None:
        for module, state in states:
            module.load_state_dict(state)
        for symbol, value in values:
            if value is not None:
                symbol.value = value

    return restore
