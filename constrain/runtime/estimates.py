"""Minibatch estimates of objective and residuals: which estimator a term gets, and why it is unbiased.

A term is a function phi of averages m. A batch gives an estimate of m, so that the estimator depends on phi:

* affine in the averages: phi of the batch means, unbiased;
* of degree two (products, variances): two interleaved half batches A and B and the jackknife
  2 phi((m_A + m_B) / 2) - (phi(m_A) + phi(m_B)) / 2, which for a square is m_A m_B: unbiased for degree two,
  where the plain square of a batch mean is too large by its variance;
* anything else: linearized at running averages u, phi(u) + phi'(u) (m - u). The gradient is phi'(u) times
  the gradient of the batch means, unbiased up to the lag of u (stochastic compositional gradient: Wang, Fang
  and Liu 2017, Mathematical Programming 161);
* a batch that is the whole sample: phi of the exact averages.

Averages over a condition or group use the share counted on the whole sample, and are centered at the
running average u: mean(w (g - u)) + u with w = 1{row counts} / share. The mean of w is one, so that this is
unbiased for any u; a group that the batch lacks leaves its average where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import suggest
from constrain.lowering.degree import degree
from constrain.runtime.evaluator import Outer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.lowering.program import Program
    from constrain.runtime.binding import Rows
    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator

__all__ = ["ESTIMATORS", "Estimate", "Estimator", "Kind", "describe", "estimator_of", "estimators"]

Kind = Literal["batch", "halves", "running"]
ESTIMATORS: dict[Kind, str] = {
    "batch": "batch means, unbiased",
    "halves": "two half batches, unbiased",
    "running": "linearized at running averages, unbiased up to their lag",
}
"""Kinds of estimators and what they are in words."""

LEARN = 0.1
"""Weight of a new batch in the running averages."""


def estimator_of(root: n.Node) -> Kind:
    """The estimator of an outer expression, by its degree in the averages."""
    found = degree(root)
    if found is None:
        return "running"
    return "halves" if found == 2 else "batch"


def estimators(program: Program) -> list[tuple[str, Kind]]:
    """Estimator of the objective and of every part that is no constraint per row, by key."""
    averaged = ((part.key, part.residual) for part in program.parts if part.rows is None)
    return [(key, estimator_of(root)) for key, root in (("objective", program.objective), *averaged)]


def describe(program: Program) -> list[tuple[str, str]]:
    """Per term, "objective" or the constraint's part, its estimator in words."""
    words = {key: ESTIMATORS[kind] for key, kind in estimators(program)}
    keys = ["objective", *(part.key for part in program.parts)]
    return [(key, words.get(key, "every row of the batch")) for key in keys]


@dataclass
class Estimate:
    """A minibatch estimate: with gradient for the primal, exact and detached for the dual.

    Attributes:
        primal: objective and residuals with gradient (surrogates of rates).
        exact: the same without gradient, from exact events.
        rows: per part that is a constraint per row, its residuals on the batch (primal and exact) and which
            of the batch rows it selects (None: all).
        moments: the batch's averages, (primal, exact), detached; what the running averages learn from.
    """

    primal: Outer
    exact: Outer
    rows: dict[int, tuple[Tensor, Tensor, Tensor | None]]
    moments: tuple[list[Tensor], list[Tensor]]


@dataclass
class _Means:
    """Batch averages of one mode: of all rows, and of the two half batches where they are needed."""

    all: list[Any]
    first: list[Any]
    second: list[Any]


class Estimator(nn.Module):
    """Estimates of a program's objective and residuals from batches.

    Args:
        evaluator: the program with data.
        kinds: estimator by term ("objective", constraint name or part key), or one for all terms; "auto"
            chooses by the degree in the averages.

    State: the running averages, of the exact events (`exact`) and, where the problem has rates, of their
    surrogates (`primal`), flat.

    Raises:
        ModelingError: E141 for an unknown estimator or term.
    """

    primal: Tensor
    exact: Tensor

    def __init__(self, evaluator: Evaluator, kinds: Mapping[str, str] | str = "auto") -> None:
        super().__init__()
        self.evaluator = evaluator
        program = evaluator.program
        self.rates = program.has_rates
        chosen = _chosen(program, kinds)
        self.kinds: tuple[Kind | None, ...] = tuple(chosen)
        roots = (program.objective, *(p.residual for p in program.parts))
        self._samples = [{m.data.name for m in _moments(root)} for root in roots]
        self._used = [{evaluator.program.moments.index(m) for m in _moments(root)} for root in roots]
        self._groups: dict[frozenset[str], dict[Kind, tuple[int, ...]]] = {}
        self._views: dict[str, tuple[Tensor, list[Tensor]]] = {}
        exact = evaluator.moments("exact")
        self.shapes: list[torch.Size] = [m.shape for m in exact]
        dtype = torch.promote_types(evaluator.dtype, torch.float32)
        flat = self._flat(exact).to(dtype)
        self.register_buffer("exact", flat)
        primal = self._flat(self._primal(exact)).to(dtype).clone()
        self.register_buffer("primal", primal, persistent=self.rates)

    def _primal(self, exact: list[Tensor]) -> list[Tensor]:
        return self.evaluator.moments("primal") if self.rates else exact

    def _flat(self, moments: Sequence[Tensor]) -> Tensor:
        if not moments:
            return torch.zeros(0, device=self.evaluator.device)
        return torch.cat([m.detach().reshape(-1) for m in moments])

    def running(self, mode: str) -> list[Tensor]:
        """The running averages, one tensor per moment."""
        flat = self.primal if mode == "primal" and self.rates else self.exact
        known = self._views.get(mode)
        if known is None or known[0] is not flat:
            pieces = cast("tuple[Tensor, ...]", flat.split([shape.numel() for shape in self.shapes]))
            views = [x.view(shape) for x, shape in zip(pieces, self.shapes, strict=True)]
            known = self._views[mode] = (flat, views)
        return known[1]

    # -------------------------------------------------------------------------------------- estimates
    def forward(self, batches: Mapping[str, Rows]) -> Estimate:
        """Estimates on batches: rows by sample name."""
        program = self.evaluator.program
        groups = self._plan(frozenset(name for name, rows in batches.items() if rows.whole))
        halves = {i for position in groups.get("halves", ()) for i in self._used[position]}
        size = len(program.moments)
        primal = _Means([None] * size, [None] * size, [None] * size)
        exact = _Means([None] * size, [None] * size, [None] * size) if self.rates else primal
        rows: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        for job in self.evaluator.jobs:
            batch = batches[job.data.name]
            values = self.evaluator.rows(job, batch, "both" if self.rates else "primal")
            count = len(job.moments) + len(job.parts)
            first, second = values[:count], values[count : 2 * count] if self.rates else values[:count]
            self._average(job, batch, first, primal, "primal", halves)
            if self.rates:
                self._average(job, batch, [_detached(v) for v in second], exact, "exact", halves)
            masks = values[-len(job.parts) :] if job.parts else []
            for place, i in enumerate(job.parts):
                at = len(job.moments) + place
                rows[i] = (first[at], second[at].detach(), masks[place])
        value = self._outer(groups, primal, "primal")
        detached = [m.detach() for m in primal.all]
        if not self.rates:
            return Estimate(value, value.detach(), rows, (detached, detached))
        with torch.no_grad():
            return Estimate(value, self._outer(groups, exact, "exact"), rows, (detached, exact.all))

    def _plan(self, whole: frozenset[str]) -> dict[Kind, tuple[int, ...]]:
        """Positions of the terms by estimator, when these samples are given as a whole."""
        if whole not in self._groups:
            groups: dict[Kind, list[int]] = {}
            for position, kind in enumerate(self.kinds):
                if kind is not None:
                    plain = self._samples[position] <= whole
                    groups.setdefault("batch" if plain else kind, []).append(position)
            self._groups[whole] = {kind: tuple(places) for kind, places in groups.items()}
        return self._groups[whole]

    def _average(
        self, job: Job, batch: Rows, values: Sequence[Tensor], means: _Means, mode: str, halves: set[int]
    ) -> None:
        """Batch averages of one sample's moments, centered at the running ones."""
        running = self.running(mode)
        centers = [running[i] for i in job.moments]
        evaluator = self.evaluator
        found = evaluator.reduce_all(job, values, batch, batch.count, centers=centers)
        for i, m in zip(job.moments, found, strict=True):
            means.all[i] = m
        if halves.isdisjoint(job.moments) or batch.whole:
            return
        count = batch.count // 2
        if count == 0:
            raise ModelingError("E182", "two half batches need a batch of at least two rows", fix="batch=2")
        found = evaluator.reduce_all(job, values, batch, count, batch.every_other(), centers)
        for i, m in zip(job.moments, found, strict=True):
            means.first[i] = m
            means.second[i] = (means.all[i] * batch.count - m * count) / (batch.count - count)

    def _outer(self, groups: Mapping[Kind, tuple[int, ...]], means: _Means, mode: str) -> Outer:
        """Objective and residuals, every term by its estimator."""
        evaluator = self.evaluator
        result: list[Any] = [None] * len(self.kinds)
        for kind, places in groups.items():
            if kind == "batch":
                values = evaluator.roots(means.all, mode, places)
            elif kind == "halves":
                values = self._jackknife(means, mode, places)
            else:
                values = self._linearized(means.all, mode, places)
            for place, value in zip(places, values, strict=True):
                result[place] = value
        objective, *residuals = result
        return Outer(objective, residuals)

    def _jackknife(self, means: _Means, mode: str, places: tuple[int, ...]) -> list[Tensor]:
        first = [a if m is None else m for a, m in zip(means.all, means.first, strict=True)]
        second = [a if m is None else m for a, m in zip(means.all, means.second, strict=True)]
        middle = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        at = [self.evaluator.roots(x, mode, places) for x in (middle, first, second)]
        return [2 * m - (a + b) / 2 for m, a, b in zip(*at, strict=True)]  # type: ignore[operator]

    def _linearized(self, means: list[Tensor], mode: str, places: tuple[int, ...]) -> list[Tensor]:
        """phi(u) + phi'(u) (m - u), whose gradient is phi'(u) times that of m."""
        center = [u.to(m.dtype) for u, m in zip(self.running(mode), means, strict=True)]
        shift = [m.detach() - u for u, m in zip(center, means, strict=True)]
        points = [u + (m - m.detach()) for u, m in zip(center, means, strict=True)]
        with torch.enable_grad():
            leaves = [u.clone().requires_grad_(True) for u in center]
            changes = _directional(self.evaluator.roots(leaves, mode, places), leaves, shift)
        values = self.evaluator.roots(points, mode, places)
        return [v + c for v, c in zip(values, changes, strict=True) if v is not None]

    # ---------------------------------------------------------------------------------- running state
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key in (f"{prefix}primal", f"{prefix}exact"):
            if key in destination:
                destination[key] = destination[key].clone()  # a snapshot is a copy

    @torch.no_grad()
    def learn(self, estimate: Estimate) -> None:
        """Moves the running averages towards those of a batch."""
        primal, exact = estimate.moments
        self.exact.lerp_(self._flat(exact).to(self.exact.dtype), LEARN)
        if self.rates:
            self.primal.lerp_(self._flat(primal).to(self.primal.dtype), LEARN)

    @torch.no_grad()
    def observe(self, exact: Sequence[Tensor]) -> None:
        """Replaces the running averages by exact ones of the full data."""
        self.exact.copy_(self._flat(exact))
        if self.rates:
            self.primal.copy_(self._flat(self.evaluator.moments("primal")))


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _directional(
    values: Sequence[Tensor | None], leaves: Sequence[Tensor], shift: Sequence[Tensor]
) -> list[Tensor]:
    """Directional derivatives of functions of some leaves, by differentiating their gradient twice."""
    found = [v for v in values if v is not None]
    weights = [torch.zeros_like(v, requires_grad=True) for v in found]
    some = [(v, w) for v, w in zip(found, weights, strict=True) if v.requires_grad]
    if not some:
        return [torch.zeros_like(v) for v in found]
    back = torch.autograd.grad(
        [v for v, _ in some],
        leaves,
        [w for _, w in some],
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    active = [(b, s) for b, s in zip(back, shift, strict=True) if b.requires_grad]
    if not active:
        return [torch.zeros_like(v) for v in found]
    return list(
        torch.autograd.grad(
            [b for b, _ in active],
            weights,
            [s for _, s in active],
            allow_unused=True,
            materialize_grads=True,
        )
    )


def _moments(root: n.Node) -> list[n.Moment]:
    return [x for x in n.postorder(root) if isinstance(x, n.Moment)]


def _chosen(program: Program, kinds: Mapping[str, str] | str) -> list[Kind | None]:
    """The estimator of the objective and of every part; None for constraints per row."""
    names = ["objective", *(form.name for form in program.forms), *(p.key for p in program.parts)]
    given = dict.fromkeys(names, kinds) if isinstance(kinds, str) else dict(kinds)
    for name, kind in given.items():
        if name not in names:
            raise ModelingError("E141", f"estimator= names {name!r}, which is no term{suggest(name, names)}")
        if kind not in (*ESTIMATORS, "auto"):
            known = ", ".join(map(repr, ("auto", *ESTIMATORS)))
            raise ModelingError("E141", f"no estimator is called {kind!r}", fix=f"one of {known}")

    def own(names: Sequence[str], root: n.Node) -> Kind:
        asked = next((given[name] for name in names if name in given), "auto")
        return estimator_of(root) if asked == "auto" else asked  # type: ignore[return-value]  # checked above

    return [
        own(["objective"], program.objective),
        *(None if p.rows is not None else own([p.key, p.constraint], p.residual) for p in program.parts),
    ]
