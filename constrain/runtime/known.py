"""What a full pass over streams came to, for all who ask for it at the same decisions.

Reading a stream costs more than evaluating it. One pass computes the exact averages, those of surrogates and
the residuals of constraints per row; the judgment of an iterate, the running averages of the next steps,
the last candidates of a run and its report then read what is known, as long as nothing has changed that the
values depend on.
"""

from __future__ import annotations

import hashlib
import marshal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from constrain.language import nodes as n
from constrain.runtime.averages import means, totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.rows import Rows

    Look = Callable[[Job, Rows, list[Tensor]], None]

__all__ = ["Known", "known_of"]

POINTS = 16
"""Points whose averages are remembered."""
LARGEST = 100_000
"""Rows of a sample up to which residuals per row are remembered, of ten constraints at most."""
_OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes of every module: its mode, hooks, and the parameters and buffers, which are listed apart."""


@dataclass
class Values:
    """What one pass came to, exactly or with surrogates.

    Attributes:
        moments: all averages, in order; (levels, ...) with groups.
        rows: by position of a part per row its residuals (rows, ...), and the mask (rows,) of the rows that
            it selects, None for all.
    """

    moments: list[Tensor]
    rows: dict[int, tuple[Tensor, Tensor | None]]


class Known:
    """The averages at the last points.

    Args:
        evaluator: a program with data.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._found: dict[bytes, Values] = {}
        program = evaluator.program
        roots = [*(m.integrand for m in program.moments), *(p.residual for p in program.per_row.values())]
        roots += [p.where for p in program.per_row.values() if p.where is not None]
        nodes = set(n.postorder(*roots))
        self._variables = [x.symbol for x in nodes if isinstance(x, n.Decision)]
        self._variables.sort(key=lambda symbol: symbol.name)
        kept = (x for tail in program.tails for x in (tail.threshold, tail.density, tail.width, tail.scale))
        self._numbers = [x for x in kept if isinstance(x, n.ArraySymbol)]
        self._numbers += [x for tail in program.tails for x in tail.shares or ()]

    def forget(self) -> None:
        """Parameters or conditions have changed."""
        self._found.clear()

    def moments(self, mode: str) -> list[Tensor]:
        """Copies of all averages at the decisions as they are."""
        return [m.clone() for m in self._here(mode).moments]

    def row_residuals(self, i: int, mode: str) -> tuple[Tensor, Tensor | None] | None:
        """Residuals and mask of a constraint per row, None where they are too many to be kept."""
        return self._here(mode).rows.get(i)

    def look(self, look: Look) -> None:
        """Makes a pass in which every batch is also shown, with its exact values."""
        self._remember(self._points(), look)

    # --------------------------------------------------------------------------------------- points
    def _here(self, mode: str) -> Values:
        points = self._points()
        if points[mode] not in self._found:
            self._remember(points)
        return self._found[points[mode]]

    def _remember(self, points: Mapping[str, bytes], look: Look | None = None) -> None:
        for mode, values in self._read(look).items():
            self._found.pop(points[mode], None)  # the order is that of the passes
            self._found[points[mode]] = values
        while len(self._found) > 2 * POINTS:
            del self._found[next(iter(self._found))]

    def _points(self) -> dict[str, bytes]:
        """By mode a hash of all numbers that the values depend on: with surrogates also of their widths."""
        found = hashlib.blake2b(digest_size=16)
        for value in self._state():
            _add(found, value)
        exact = found.digest()
        _add(found, self.evaluator.scales)
        return {"exact": exact, "primal": b"primal" + found.digest()}

    def _state(self) -> Iterator[Any]:
        evaluator = self.evaluator
        yield from (evaluator.decisions.variables[symbol] for symbol in self._variables)
        for model in evaluator.program.models:
            yield from model.module.parameters()
            yield from model.module.buffers()
            for module in model.module.modules():  # such as a temperature that goes down
                held = cast("dict[str, Any]", vars(module))
                yield {name: own for name, own in held.items() if name not in _OF_MODULES}
        for symbol in self._numbers:
            tensor = evaluator.held(symbol)
            if tensor is not None:
                yield tensor

    # --------------------------------------------------------------------------------------- reading
    @torch.no_grad()
    def _read(self, look: Look | None = None) -> dict[str, Values]:
        """One pass over every sample, by mode."""
        evaluator = self.evaluator
        modes = ("primal",) if evaluator.functions.alike else ("primal", "exact")
        zero = torch.zeros((), dtype=torch.float64)
        found = {mode: Values([zero] * len(evaluator.program.moments), {}) for mode in modes}
        for job in evaluator.jobs:
            sums = {mode: _Sums(evaluator, job) for mode in modes}
            for rows in evaluator.populations[job.data].chunks(evaluator.chunk):
                values = evaluator.rows(job, rows, "both" if len(modes) > 1 else "primal")
                width = len(job.moments) + len(job.parts)
                for k, mode in enumerate(modes):
                    sums[mode].add(values[k * width : (k + 1) * width], values[len(modes) * width :], rows)
                if look is not None:
                    look(job, rows, values[(len(modes) - 1) * width :])
            for mode in modes:
                sums[mode].close(found[mode])
        return {mode: found[mode if mode in found else "primal"] for mode in ("primal", "exact")}


class _Sums:
    """What a pass over one sample has come to so far."""

    def __init__(self, evaluator: Evaluator, job: Job) -> None:
        self.evaluator, self.job = evaluator, job
        self.totals: list[Tensor] = []
        self.residuals: list[list[Tensor]] = [[] for _ in job.parts]
        self.masks: list[list[Tensor]] = [[] for _ in job.parts]

    def add(self, values: Sequence[Tensor], masks: Sequence[Tensor | None], rows: Rows) -> None:
        """Takes integrands and residuals of some rows, and the masks of the rows that parts select."""
        found = totals(self.evaluator, self.job, values, rows)
        self.totals = [a + b for a, b in zip(self.totals, found, strict=True)] if self.totals else found
        most = min(LARGEST, 10 * LARGEST // max(len(self.job.parts), 1))
        if self.evaluator.populations[self.job.data].rows > most:
            return
        for place, mask in enumerate(masks):
            self.residuals[place].append(values[len(self.job.moments) + place])
            if mask is not None:
                self.masks[place].append(mask)

    def close(self, into: Values) -> None:
        """Ends the pass."""
        for i, mean in zip(self.job.moments, means(self.evaluator, self.job, self.totals), strict=True):
            into.moments[i] = mean
        for i, residuals, masks in zip(self.job.parts, self.residuals, self.masks, strict=True):
            if residuals:
                into.rows[i] = torch.cat(residuals), torch.cat(masks) if masks else None


def _add(found: Any, value: Any) -> None:
    """Adds to a hash numbers and texts, and those in tensors, arrays, lists and dictionaries."""
    seen, todo = dict[int, Any](), list[Any]([value])
    while todo:
        own = todo.pop()
        if isinstance(own, Tensor):
            flat = own.detach().reshape(-1).cpu().contiguous()
            found.update(f"{flat.dtype} {flat.numel()}".encode())
            found.update(flat.view(torch.uint8).numpy())
            continue
        try:
            found.update(marshal.dumps(own, 2))  # of this version equal values have equal bytes
        except ValueError:  # something in it is a tensor, or another object
            held, place = own, id(own)
            if isinstance(own, (list, tuple, dict)) and place not in seen:
                seen[place] = held  # so that no other object gets its id
                todo += held.items() if isinstance(own, dict) else held


def known_of(evaluator: Evaluator) -> Known | None:
    """What is known of the passes over an evaluator's samples; None where all are in memory."""
    streamed = any(population.data.streamed for population in evaluator.populations.values())
    return Known(evaluator) if streamed and evaluator.device.type != "meta" else None
