"""Which spread of a margin the surrogate of a row has: that of the smallest condition that the row is in.

A surrogate is a kernel estimate of the density of a margin at its threshold, and its width has to fit the
margins there. Where groups have scores on other scales, one width for all rows is too wide for one group and
too narrow for another. So the spread of a margin is measured over all rows, and over the rows of every
condition and group of the rates in which it occurs. A row takes that of the smallest of these that it is in
(estimates whose width varies with the data: Silverman, 1986, "Density Estimation for Statistics and Data
Analysis", section 5.3). It is the same in all rates: the surrogate of a rate over all rows is the average of
those over the groups, and a step evaluates each event once, however many conditions there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrain.runtime.surrogates import measured, measured_by_level, shrunk, update_spreads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.runtime.binding import Population
    from constrain.runtime.compiled import StratumKey
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.rows import Rows

__all__ = ["Widths"]


@dataclass(frozen=True)
class Cells:
    """Places of the spreads of one margin.

    Attributes:
        start: that over all rows; those of the levels of the conditions follow.
        levels: by condition and groups the number of levels, 1 without groups.
    """

    start: int
    levels: Mapping[StratumKey, int]

    @property
    def stop(self) -> int:
        """The place after the last one."""
        return self.start + 1 + sum(self.levels.values())

    def starts(self) -> dict[StratumKey | None, int]:
        """The first place of each condition; None stands for all rows."""
        found: dict[StratumKey | None, int] = {None: self.start}
        place = self.start + 1
        for key, count in self.levels.items():
            found[key] = place
            place += count
        return found


class Widths:
    """The spreads of the margins of a program with data, which generated code reads as `s`.

    Args:
        evaluator: with its samples bound and all functions generated.

    Attributes:
        size: number of spreads.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.cells: list[Cells] = []
        self.size = 0
        for own in evaluator.functions.conditions:
            levels = {key: max(len(evaluator.populations[data].strata[key].levels), 1) for data, key in own}
            self.cells.append(Cells(self.size, levels))
            self.size = self.cells[-1].stop
        self._plain = all(not cells.levels for cells in self.cells)
        self._tables: dict[tuple[int, int], Tensor] = {}

    def forget(self) -> None:
        """Conditions have other rows from now on."""
        self._tables.clear()

    # --------------------------------------------------------------------------------------- of rows
    def read(
        self, spreads: Tensor, used: Sequence[int], population: Population | None, rows: Rows | None
    ) -> Tensor | dict[int, Tensor]:
        """What generated code reads: by place of a margin its spread, or (rows,) one of each row.

        Args:
            spreads: (size,) all of them.
            used: places of the margins that the code reads.
            population: the sample that it runs on; None for an outer function, which has no rows.
            rows: of the sample, in the same case None.
        """
        if self._plain:
            return spreads
        return {k: self._of_margin(spreads, k, population, rows) for k in used}

    def _of_margin(self, spreads: Tensor, k: int, population: Population | None, rows: Rows | None) -> Tensor:
        cells = self.cells[k]
        if not cells.levels or population is None or rows is None:
            return spreads[cells.start]
        if rows.index is None or population.data.streamed:
            return spreads.index_select(0, _smallest(cells, population, rows))
        key = (id(population), k)
        if key not in self._tables:
            self._tables[key] = _smallest(cells, population, population.everything())
        table, index = self._tables[key], rows.index
        return spreads.index_select(
            0, table[index] if isinstance(index, slice) else table.index_select(0, index)
        )

    # -------------------------------------------------------------------------------------- measuring
    @torch.no_grad()
    def measure(self, spreads: Tensor, widest: Tensor, count: int) -> None:
        """Measures all spreads anew, in place.

        Args:
            spreads: (size,) what surrogates use.
            widest: (size,) largest spreads so far.
            count: about as many rows of each sample are measured.
        """
        for data, generated in self.evaluator.functions.margins.items():
            population = self.evaluator.populations[data]
            rows = population.spread(count)
            margins: list[Tensor | None] = self.evaluator.compute(generated, rows, data)
            for cells, margin in zip(self.cells, margins, strict=True):
                if margin is not None:  # of another sample
                    place = slice(cells.start, cells.stop)
                    found = _measured(cells, margin, population, rows)
                    update_spreads(spreads[place], widest[place], found)

    def copied(self, spreads: Tensor, other: Widths) -> Tensor:
        """Spreads for another program, whose margins and conditions are among those of this one."""
        places: list[int] = []
        margins: list[Any] = self.evaluator.tables.margins
        for margin, cells in zip(other.evaluator.tables.margins, other.cells, strict=True):
            starts = self.cells[margins.index(margin)].starts()
            places.append(starts[None])
            for key, levels in cells.levels.items():
                places += range(starts[key], starts[key] + levels)
        return spreads[places]


def _measured(cells: Cells, margin: Tensor, population: Population, rows: Rows) -> Tensor:
    """(spreads, 2) what a margin comes to over some rows, and over those of them in each condition."""
    whole = measured(margin)
    found = [whole[None]]
    for key, levels in cells.levels.items():
        members, codes = population.members(population.strata[key], rows)
        if codes is None:
            codes = torch.zeros(rows.count, dtype=torch.int64, device=margin.device)
        chosen = slice(None) if members is None else members != 0
        codes = codes[chosen]
        own = measured_by_level(margin[chosen], codes, levels)
        found.append(shrunk(own, torch.bincount(codes, minlength=levels), whole))
    return torch.cat(found)


def _smallest(cells: Cells, population: Population, rows: Rows) -> Tensor:
    """(rows,) the place of each row's spread: that of the smallest condition or group that it is in."""
    starts = cells.starts()
    found = torch.full((rows.count,), cells.start, dtype=torch.int64, device=population.device)
    fewest = torch.full((rows.count,), torch.inf, dtype=population.wide, device=population.device)
    for key in cells.levels:
        stratum = population.strata[key]
        members, codes = population.members(stratum, rows)
        count = stratum.counts if codes is None else stratum.counts[codes]
        smaller = count < fewest
        if members is not None:
            smaller = smaller & (members != 0)
        place = torch.full_like(found, starts[key]) if codes is None else codes + starts[key]
        found = torch.where(smaller, place, found)
        fewest = torch.where(smaller, count, fewest)
    return found
