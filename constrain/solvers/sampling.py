"""Which rows a training step sees: shuffled passes, stratified batches, or fresh rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from constrain.errors import ModelingError
from constrain.language.data import suggest
from constrain.runtime.streams import StreamPopulation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.runtime.binding import Population
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.rows import Rows

__all__ = ["BatchSampler", "Sampling", "Strata", "asked_size", "batch_size", "strata"]

Sampling = Literal["auto", "shuffle", "stratified"]

LARGE = 512
"""Rows per batch of large samples and of continuous populations, unless another number is asked for."""
RARE = 4.0
"""Expected rows per batch below which a group counts as rare."""
LEAST = 8
"""Rows that a stratified batch has of each cell, or an equal share of the batch where that is less."""


def asked_size(batch: Mapping[str, int] | int | None, name: str) -> int | None:
    """The batch size that was asked for a sample, None where none was."""
    return batch if isinstance(batch, int) or batch is None else batch.get(name)


def batch_size(batch: int | None, rows: int) -> int:
    """Rows per batch: as asked for, else 512, or 1/8 of a small sample."""
    if batch is not None:
        return min(batch, rows)
    return min(LARGE, max(rows // 8, min(rows, 32)))


@dataclass(frozen=True)
class Strata:
    """Cells of a sample that every batch draws from.

    Attributes:
        codes: (rows,) cell of each row.
        counts: rows of the sample per cell.
        sizes: rows of a batch per cell, all even, so that both interleaved halves have every cell.
        weights: importance weight of a row of each cell: share in the sample over share in the batch.
    """

    codes: Tensor
    counts: list[int]
    sizes: list[int]
    weights: list[float]


def strata(population: Population, size: int, wanted: Sampling = "auto") -> Strata | None:
    """The cells that batches of this size should be drawn from, None for plain shuffling.

    Cells are the combinations of those conditions and groups of the problem of which a plain batch would
    have fewer than `RARE` rows of some group (of all conditions and groups with "stratified"). There are none
    where a batch has less than two rows for each combination. They are counted in the order in which rows of
    them come first, whatever the order of the conditions.
    """
    if wanted == "shuffle" or size >= population.rows or population.device.type == "meta":
        return None
    codes = torch.zeros(population.rows, dtype=torch.int64)
    for stratum in population.strata.values():
        if stratum.codes is None and stratum.mask is None:
            continue
        expected = float(stratum.counts.min()) * size / population.rows
        if wanted == "auto" and expected >= RARE:
            continue
        own = torch.zeros(population.rows, dtype=torch.int64)
        if stratum.codes is not None:
            own = stratum.codes.cpu()
        if stratum.mask is not None:
            own = 2 * own + stratum.mask.cpu().to(torch.int64)
        codes = codes * (int(own.max()) + 1) + own
        codes = _compact(codes)
    cells = int(codes.max()) + 1
    if cells == 1 or 2 * cells > size:
        return None
    counts = cast("list[int]", torch.bincount(codes, minlength=cells).tolist())
    sizes = _allocation(counts, size)
    drawn = sum(sizes)
    weights = [c / population.rows * drawn / s for c, s in zip(counts, sizes, strict=True)]
    return Strata(codes, counts, sizes, weights)


def _compact(codes: Tensor) -> Tensor:
    """The codes without gaps, counted in the order in which they come."""
    _, first, found = np.unique(codes.numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(np.argsort(np.argsort(first))[found.reshape(-1)])


def _allocation(counts: Sequence[int], size: int) -> list[int]:
    """Even numbers of rows per cell: at least `LEAST` (or an equal share), the rest in proportion."""
    floor = max(2, min(LEAST, size // len(counts)))
    total = sum(counts)
    left = max(size - floor * len(counts), 0)
    return [2 * max(1, round((floor + left * c / total) / 2)) for c in counts]


class _Cycle:
    """Positions of some rows, shuffled again whenever they are used up."""

    def __init__(self, positions: Tensor, generator: torch.Generator) -> None:
        self.positions = positions.clone()
        self.generator = generator
        self.place = len(positions)

    def take(self, count: int) -> Tensor:
        """The next positions; a cell with fewer rows repeats them."""
        found: list[Tensor] = []
        while count > 0:
            if self.place >= len(self.positions):
                order = torch.randperm(len(self.positions), generator=self.generator)
                self.positions = self.positions[order]
                self.place = 0
            piece = self.positions[self.place : self.place + count]
            self.place += len(piece)
            count -= len(piece)
            found.append(piece)
        return torch.cat(found)


def _interleaved(first: Tensor, second: Tensor) -> Tensor:
    """Both halves of a batch in turn; a longer second one ends it."""
    count = len(first)
    return torch.cat([torch.stack([first, second[:count]], 1).reshape(-1), second[count:]])


class _Halved:
    """Batches whose two interleaved halves follow independent permutations of the sample.

    Halves of one permutation have no row in common and so are dependent, by 1 / rows: enough to bias a
    product of averages over a small group.
    """

    def __init__(self, population: Population, size: int, generator: torch.Generator) -> None:
        self.population = population
        self.size = size
        positions = torch.arange(population.rows)
        self.cycles = (_Cycle(positions, generator), _Cycle(positions, generator))

    def draw(self) -> Rows:
        """The next batch."""
        if self.size >= self.population.rows:
            return self.population.everything()
        half = self.size // 2
        index = _interleaved(self.cycles[0].take(half), self.cycles[1].take(self.size - half))
        return self.population.take(index.to(self.population.device))


class _Shuffled:
    """Batches of one sample along random permutations; the last partial batch of each is dropped."""

    def __init__(self, population: Population, size: int, generator: torch.Generator) -> None:
        self.population = population
        self.size = size
        self.generator = generator
        self.order = torch.zeros(0, dtype=torch.int64, device=population.device)  # restored there
        self.place = 0

    def draw(self) -> Rows:
        """The next batch."""
        if self.size >= self.population.rows:
            return self.population.everything()
        if self.place + self.size > len(self.order):
            self.order = torch.randperm(self.population.rows, generator=self.generator)
            self.order = self.order.to(self.population.device)
            self.place = 0
        index = self.order[self.place : self.place + self.size]
        self.place += self.size
        return self.population.take(index)


class _Stratified:
    """Batches with rows of every cell, and the weights that keep estimates unbiased.

    The two interleaved halves follow independent permutations of each cell.
    """

    def __init__(self, population: Population, cells: Strata, generator: torch.Generator) -> None:
        self.population = population
        self.sizes = cells.sizes
        order = torch.argsort(cells.codes, stable=True)
        pieces = cast("tuple[Tensor, ...]", order.split(cells.counts))
        self.cycles = [(_Cycle(p, generator), _Cycle(p, generator)) for p in pieces]
        weights = torch.tensor(cells.weights, dtype=population.dtype)
        self.weight = weights.repeat_interleave(torch.tensor(cells.sizes)).to(population.device)

    def draw(self) -> Rows:
        """The next batch, cell after cell."""
        cells = zip(self.cycles, self.sizes, strict=True)
        index = torch.cat([_interleaved(a.take(s // 2), b.take(s // 2)) for (a, b), s in cells])
        rows = self.population.take(index.to(self.population.device), self.weight)
        return replace(rows, stratified=True)


class _Fresh:
    """New rows for every step: of a stream, or of a continuous population."""

    def __init__(self, population: Population, size: int, generator: torch.Generator) -> None:
        self.population = population
        self.size = size
        self.generator = generator

    def draw(self) -> Rows:
        """The next batch."""
        found = self.population.fresh(self.size, self.generator)
        assert found is not None  # checked by the sampler
        return found

    def state_dict(self) -> dict[str, Any]:
        """Where a stream is read; fresh points depend on the generator alone."""
        if isinstance(self.population, StreamPopulation):
            return {"feed": self.population.feed_state()}
        return {"feed": None}

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Goes on from there."""
        if isinstance(self.population, StreamPopulation):
            self.population.restore_feed(self.size, self.generator, stored["feed"])


def _check_names(batch: Mapping[str, int] | int | None, names: Sequence[str]) -> None:
    """Refuses batch sizes of samples that the problem has not (E141)."""
    for name in batch if isinstance(batch, Mapping) else ():
        if name not in names:
            raise ModelingError(
                "E141",
                f"batch= names the sample {name!r}, which the problem has not{suggest(name, names)}",
                fix=f"names among {', '.join(names)}",
            )


class BatchSampler:
    """Rows of every sample for every step.

    Args:
        evaluator: the compiled program with its data.
        batch: rows per batch, for every sample or by the sample's name; None takes 512, or 1/8 of a small
            sample.
        generator: of the shuffles and draws.
        sampling: "shuffle", "stratified", or "auto": stratified where a group would be rare in a batch.
        positions: samples whose rows need positions, since every one of them has a multiplier of its own.
        halves: the two interleaved halves of a batch are independent.

    Raises:
        ModelingError: E141 for the batch size of an unknown sample.

    Attributes:
        per_epoch: steps per pass over the sample with the most batches; 100 without data, and for continuous
            populations.
        sizes: rows per batch, by sample name.
        last: the batch that was drawn last, by sample name.
        whole: every batch is all rows of every sample.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        batch: Mapping[str, int] | int | None,
        generator: torch.Generator,
        sampling: Sampling = "auto",
        positions: Sequence[str] = (),
        *,
        halves: bool = False,
    ) -> None:
        populations = {data.name: p for data, p in evaluator.populations.items()}
        drawn = {name for name, p in populations.items() if p.boundless and name not in positions}
        _check_names(batch, list(populations))
        asked = {name: asked_size(batch, name) for name in populations}
        self.sizes = {
            name: (asked[name] or LARGE) if name in drawn else batch_size(asked[name] or p.batch, p.rows)
            for name, p in populations.items()
        }
        passes = [
            math.ceil(p.rows / self.sizes[name]) for name, p in populations.items() if name not in drawn
        ]
        self.per_epoch = max(passes, default=100)
        self.last: dict[str, Rows] = {}
        self.whole = not drawn and all(self.sizes[name] >= p.rows for name, p in populations.items())
        self._sources: dict[str, _Shuffled | _Halved | _Stratified | _Fresh] = {}
        for name, population in sorted(populations.items()):  # they share the generator
            size = self.sizes[name]
            if population.endless and (name not in positions or population.positioned):
                self._sources[name] = _Fresh(population, size, generator)
                continue
            cells = strata(population, size, sampling)
            if cells is not None:
                self._sources[name] = _Stratified(population, cells, generator)
            else:
                self._sources[name] = (_Halved if halves else _Shuffled)(population, size, generator)

    def draw(self) -> dict[str, Rows]:
        """The next batch of every sample."""
        self.last = {name: source.draw() for name, source in self._sources.items()}
        return self.last
