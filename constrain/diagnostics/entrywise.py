"""Standard errors of vectors whose entries read one level each of some averages.

The residuals of ten thousand constraints `E(s, given=D.group == k) <= b_k` are one vector, and its Jacobian
has one number per row: all of them come from one derivative along a vector of ones. The influence of a row on
such an entry is that of the averages that all entries share, which needs one quadratic form for all rows, but
for the rows of the entry's own level, whose part is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from constrain.diagnostics.influence import Spread, spread_of
from constrain.diagnostics.point import array_of
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.influence import Gram, Grams
    from constrain.runtime.evaluator import Evaluator

__all__ = ["spread_entrywise"]

WHOLE = 16
"""Most numbers of averages that all entries read: each needs a derivative of its own."""


@dataclass(frozen=True)
class _Slopes:
    """The Jacobian of a vector.

    Attributes:
        places: by moment the level that each entry reads, (entries,); None where all read the same average.
        slopes: by moment (entries, numbers), of the number that is read.
        undefined: (entries,) where a slope is NaN.
    """

    places: dict[int, NDArray[np.int64] | None]
    slopes: dict[int, NDArray[np.float64]]
    undefined: NDArray[np.bool_]


def spread_entrywise(
    evaluator: Evaluator, moments: Sequence[Tensor], vector: Tensor, root: n.Node, grams: Grams
) -> Spread | None:
    """Standard errors of all entries of a vector; None where its entries read more than a level each.

    Args:
        evaluator: the program with the sample.
        moments: leaves that require gradients, exact, float64.
        vector: (entries,) computed from these leaves.
        root: its expression.
        grams: sums of products of the rows' integrands.
    """
    places = _read(evaluator, root)
    if places is None:
        return None
    found = _slopes(moments, vector, places)
    variance, smallest = np.zeros(len(vector)), np.full(len(vector), np.inf)
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        own = [i for i in job.moments if i in places]
        if not own or not population.sampled:
            continue
        gram = grams.of(job)
        if gram is None:
            return None
        for i in own:
            moment = evaluator.program.moments[i]
            counts = array_of(population.stratum(moment.given, moment.by).counts).reshape(-1)
            read = places[i]
            rows = np.broadcast_to(counts if read is None else counts[read], variance.shape)
            smallest = np.where((found.slopes[i] != 0).any(-1), np.minimum(smallest, rows), smallest)
        variance += _squares(gram, job.moments, found) / population.rows**2
    unknown = found.undefined & np.isinf(smallest)
    return spread_of(np.where(unknown, np.nan, variance), np.where(unknown, np.nan, smallest))


def _read(evaluator: Evaluator, root: n.Node) -> dict[int, NDArray[np.int64] | None] | None:
    """Per moment under an expression the level that each entry reads, None for one that all read whole.

    None where an entry may read several levels, or where functions of users take part.
    """
    numbers = {moment: i for i, moment in enumerate(evaluator.program.moments)}
    found: dict[int, NDArray[np.int64] | None] = {}
    stack, seen = [root], set[int]()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        match node:
            case n.Opaque():
                return None
            case n.Apply(atom="pick_levels", args=(n.Moment() as whole,)):
                symbol, i = node.option("place"), numbers[whole]
                if not isinstance(symbol, n.ArraySymbol) or type_of(whole).shape != ():
                    return None
                place = np.asarray(symbol.value)
                known = found.setdefault(i, place)
                if known is None or not np.array_equal(known, place):
                    return None
            case n.Moment(by=by):
                if by or found.setdefault(numbers[node], None) is not None:
                    return None
            case n.Apply(atom=atom) if ATOMS[atom].declared is not None:
                return None
            case _:
                stack += n.children(node)
    return found


def _slopes(
    moments: Sequence[Tensor], vector: Tensor, places: dict[int, NDArray[np.int64] | None]
) -> _Slopes:
    """Derivatives of all entries, each along the one number that is moved: as slopes of those backward."""
    size = len(vector)
    weight = torch.zeros(size, dtype=vector.dtype, device=vector.device, requires_grad=True)
    numbers = list(places)
    back: Sequence[Tensor | None] = [None] * len(numbers)
    if numbers and vector.requires_grad:
        leaves = [moments[i] for i in numbers]
        back = torch.autograd.grad(vector, leaves, weight, create_graph=True, allow_unused=True)
    slopes: dict[int, NDArray[np.float64]] = {}
    undefined = np.zeros(size, dtype=bool)
    for i, pulled in zip(numbers, back, strict=True):
        columns: list[NDArray[np.float64]] = []
        for direction in _directions(moments[i], whole=places[i] is None):
            own: Tensor | None = None
            if pulled is not None and pulled.requires_grad:
                (own,) = torch.autograd.grad(pulled, weight, direction, retain_graph=True, allow_unused=True)
            columns.append(np.zeros(size) if own is None else array_of(own))
        table = np.stack(columns, -1)
        undefined |= np.isnan(table).any(-1)
        slopes[i] = np.where(np.isnan(table), 0.0, table)
    return _Slopes(places, slopes, undefined)


def _directions(moment: Tensor, *, whole: bool) -> list[Tensor]:
    """Where to move a moment: all levels at once, of which every entry reads one; else number by number."""
    if not whole:
        return [torch.ones_like(moment)]
    unit = torch.eye(moment.numel(), dtype=moment.dtype, device=moment.device)
    return [row.reshape(moment.shape) for row in unit]


def _squares(gram: Gram, moments: Sequence[int], found: _Slopes) -> NDArray[np.float64]:
    """Sum over rows of the squared influence, per entry."""
    size, width = len(found.undefined), gram.sums.shape[-1]
    shared = np.zeros((size, width))
    for i, place in found.places.items():
        if place is None and i in moments:
            shared[:, gram.columns[moments.index(i)]] = found.slopes[i]
    sums = array_of(gram.sums)
    total = np.einsum("ni,ij,nj->n", shared, sums.sum(0), shared)
    picked = [(k, i) for k, i in enumerate(moments) if found.places.get(i) is not None]
    entry, cell = _own_cells(gram, [(k, found.places[i]) for k, i in picked])
    own = shared[entry]
    for k, i in picked:
        codes, place = gram.codes[k], found.places[i]
        assert codes is not None  # it has levels
        assert place is not None  # chosen so
        mine = array_of(codes)[cell] == place[entry]
        own[:, gram.columns[k]] = np.where(mine[:, None], found.slopes[i][entry], 0.0)
    inner = sums[cell]
    moved = np.einsum("ni,nij,nj->n", own, inner, own)
    before = np.einsum("ni,nij,nj->n", shared[entry], inner, shared[entry])
    return np.maximum(total + np.bincount(entry, moved - before, minlength=size), 0.0)


def _own_cells(
    gram: Gram, picked: Sequence[tuple[int, NDArray[np.int64] | None]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of an entry and a cell of rows whose level it reads."""
    cells = len(gram.sums)
    pairs: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    for k, place in picked:
        codes = gram.codes[k]
        assert codes is not None  # it has levels
        assert place is not None  # chosen so
        values = codes.cpu().numpy()
        order = np.argsort(values, kind="stable")
        first, last = (np.searchsorted(values[order], place, side) for side in ("left", "right"))
        counts: NDArray[np.int64] = last - first
        entry = np.repeat(np.arange(len(place)), counts)
        steps = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        pairs.append(entry * cells + order[np.repeat(first, counts) + steps])
    known = np.unique(np.concatenate(pairs))
    return known // cells, known % cells
