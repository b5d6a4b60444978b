"""Minibatch estimates of objective and residuals: which estimator a term gets, and why it is unbiased.

A term is a function phi of averages m. A batch gives an estimate of m, so that the estimator depends on phi:

* affine in the averages: phi of the batch means, unbiased; all such terms are one matrix (`affine.py`);
* of degree two (products, variances): two interleaved half batches A and B and the jackknife
  2 phi((m_A + m_B) / 2) - (phi(m_A) + phi(m_B)) / 2, which for a square is m_A m_B: unbiased for degree two,
  where the plain square of a batch mean is too large by its variance;
* anything else: linearized at running averages u, phi(u) + phi'(u) (m - u). The gradient is phi'(u) times
  the gradient of the batch means, unbiased up to the lag of u (stochastic compositional gradient: Wang, Fang
  and Liu 2017, Mathematical Programming 161);
* a batch that is the whole sample: phi of the exact averages.

A package may add an estimator of its own (entry point `constrain.estimators`).

Layers that act in training mode (dropout, batch normalization) act in the gradients of steps only: those of
the integrands of each row are of training mode, everything that is a value, with the slopes of phi, is of
evaluation mode (`modes.py`).

Averages over a condition or group use the share counted on the whole sample, and are centered at the
running average u: mean(w (g - u)) + u with w = 1{row counts} / share. The mean of w is one, so that this is
unbiased for any u; a group that the batch lacks leaves its average where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from constrain import plugins
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import suggest
from constrain.lowering.degree import degree
from constrain.lowering.dependence import depends_on_decisions
from constrain.runtime.affine import affine_terms
from constrain.runtime.copies import Selected
from constrain.runtime.layout import Layout
from constrain.runtime.visits import BySizes, sizes, visit_weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from constrain.lowering.program import Program
    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Conditions, Evaluator, Outer
    from constrain.runtime.rows import Rows

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "Kind",
    "RowValues",
    "describe",
    "estimator_of",
    "estimators",
]

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
    found: dict[int, tuple[str, Kind]] = {-1: ("objective", estimator_of(program.objective))}
    for stack in program.stacks:
        if stack.part.rows is None:
            kind = estimator_of(stack.residual)
            found |= {int(i): (key, kind) for i, key in zip(stack.places, stack.keys, strict=True)}
    return [found[i] for i in sorted(found)]


def describe(program: Program) -> list[tuple[str, str]]:
    """Per term, "objective" or the constraint's part, its estimator in words."""
    words = {key: ESTIMATORS[kind] for key, kind in estimators(program)}
    keys = ["objective", *(part.key for part in program.parts)]
    return [(key, words.get(key, "every row of the batch")) for key in keys]


RowValues = tuple[Tensor, Tensor, Tensor | None]
"""Residuals per row with gradient and exact, and which rows the constraint selects (None: all)."""


@dataclass
class Estimate:
    """A minibatch estimate: with gradient for the primal, exact and detached for the dual.

    Attributes:
        terms: (terms,) objective, then the entries of all residuals of averages, with gradient (surrogates of
            rates).
        exact_terms: the same without gradient, from exact events.
        rows: per part that is a constraint per row, its residuals on the batch (primal and exact) and which
            of the batch rows it selects (None: all).
        moments: the batch's averages as vectors, (primal, exact), detached: what the running averages learn
            from.
        layout: where the entries of each part are among the terms.
    """

    terms: Tensor
    exact_terms: Tensor
    rows: dict[int, RowValues]
    moments: tuple[Tensor, Tensor]
    layout: Layout

    @property
    def primal(self) -> Outer:
        """Objective and residuals with gradient."""
        return self.layout.outer(self.terms)

    @property
    def exact(self) -> Outer:
        """Objective and residuals without gradient, from exact events."""
        return self.layout.outer(self.exact_terms)


@dataclass
class Means:
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
        roots = (program.objective, *(stack.residual for stack in program.stacks))
        self._samples = [{m.data.name for m in _moments(root)} for root in roots]
        places = {m: i for i, m in enumerate(program.moments)}
        self._used = [{places[m] for m in _moments(root)} for root in roots]
        self._views: dict[str, tuple[Tensor, list[Tensor]]] = {}
        self._learned = BySizes()
        exact = evaluator.moments("exact")
        self.shapes: list[torch.Size] = [m.shape for m in exact]
        self._sizes = [shape.numel() for shape in self.shapes]
        with torch.no_grad():
            self.layout = Layout(program.stacks, evaluator.roots(exact, "exact"))
        self._roots = {position: roots[position] for position in self.layout.places}
        self._read: object = None
        dtype = torch.promote_types(evaluator.dtype, torch.float32)
        flat = self.flat(exact).to(dtype)
        self.register_buffer("exact", flat)
        primal = self.flat(self._primal(exact)).to(dtype).clone()
        self.register_buffer("primal", primal, persistent=self.rates)

    def _primal(self, exact: list[Tensor]) -> list[Tensor]:
        return self.evaluator.moments("primal") if self.rates else exact

    def flat(self, moments: Sequence[Tensor]) -> Tensor:
        """Averages as one vector."""
        if not moments:
            return torch.zeros(0, device=self.evaluator.device)
        return torch.cat([m if m.dim() == 1 else m.reshape(-1) for m in moments])

    def running(self, mode: str) -> list[Tensor]:
        """The running averages, one tensor per moment."""
        flat = self.primal if mode == "primal" and self.rates else self.exact
        known = self._views.get(mode)
        if known is None or known[0] is not flat:
            known = self._views[mode] = (flat, self.shaped(flat))
        return known[1]

    def forget(self) -> None:
        """Drops the views of the running averages, which are made anew."""
        self._views.clear()

    def shaped(self, flat: Tensor) -> list[Tensor]:
        """One tensor per moment out of a vector of all averages (views)."""
        pieces = cast("tuple[Tensor, ...]", flat.split(self._sizes))
        return [x.view(shape) for x, shape in zip(pieces, self.shapes, strict=True)]

    def _empty(self) -> Means:
        """No averages yet."""
        size = len(self.shapes)
        return Means([None] * size, [None] * size, [None] * size)

    # -------------------------------------------------------------------------------------- estimates
    def forward(self, batches: Mapping[str, Rows], *, step: bool = False) -> Estimate:
        """Estimates on batches: rows by sample name.

        Args:
            batches: of every sample.
            step: gradients, where they are taken, are those of a training step: with the modules in the modes
                that the user chose. Else they are those of evaluation mode, as all values are.
        """
        if self._read is not self.evaluator.parameter_version:
            self._read_affine()
        groups = self._plan(frozenset([name for name, rows in batches.items() if rows.whole]))
        rates, rows, evaluator = self.rates, dict[int, RowValues](), self.evaluator
        acting = evaluator.modes.acting(evaluator) if step and torch.is_grad_enabled() else ()
        primal = self._empty()
        exact = self._empty() if rates else primal
        for job in evaluator.jobs:
            batch = batches[job.data.name]
            mode = "both" if rates else "primal"
            if job.data.name in acting:
                values = self._of_step(job, batch, mode)
            else:
                values = evaluator.rows(job, batch, mode)
            conditions = evaluator.conditions(job, batch)
            size, parts = len(job.moments), len(job.parts)
            second = values[size + parts : 2 * (size + parts)] if rates else values
            self._average(job, batch, values, primal, "primal", groups, conditions)
            if rates:
                with torch.no_grad():
                    self._average(job, batch, second, exact, "exact", groups, conditions)
            for k, i in enumerate(job.parts):
                rows[i] = (values[size + k], second[size + k].detach(), values[k - parts])
        terms, flat = self._terms(primal, groups, "primal")
        judged, primal_flat = terms.detach(), flat.detach()
        exact_flat = primal_flat
        if rates:
            with torch.no_grad():
                judged, exact_flat = self._terms(exact, groups, "exact")
        return Estimate(terms, judged, rows, (primal_flat, exact_flat), self.layout)

    def _of_step(self, job: Job, batch: Rows, mode: str) -> list[Any]:
        """Values of evaluation mode, and where they have gradients those of training mode."""
        with torch.no_grad():
            values = self.evaluator.rows(job, batch, mode)
        sloped = self.evaluator.rows(job, batch, "primal", training=True)
        for k, own in enumerate(sloped[: len(job.moments) + len(job.parts)]):
            if own.requires_grad:
                values[k] = values[k] + (own - own.detach())
        return values

    def _terms(
        self, means: Means, groups: Mapping[Kind, tuple[int, ...]], mode: str
    ) -> tuple[Tensor, Tensor]:
        """All terms, every one by its estimator, and all averages, as vectors."""
        constant = self._constant
        if self._direct:
            values = self.evaluator.roots(self._zeros, mode, self._direct)
            constant = self._put(constant, dict(zip(self._direct, values, strict=True)))
        flat = self.flat(means.all)
        flat = flat if flat.dtype is constant.dtype else flat.to(constant.dtype)
        terms = self._affine.apply(flat, constant)
        for kind, places in groups.items():
            if kind == "batch":
                values = self.evaluator.roots(means.all, mode, places)
            elif kind == "halves":
                values = self._jackknife(means, mode, places)
            elif kind == "running":
                values = self._linearized(means.all, mode, places)
            else:
                values = self._installed(kind, means.all, mode, places)
            terms = self._put(terms, dict(zip(places, values, strict=True)))
        return terms, flat

    @torch.no_grad()
    def terms(self, moments: Sequence[Tensor]) -> Tensor:
        """(terms,) objective and residuals at given averages, from exact events."""
        if self._read is not self.evaluator.parameter_version:
            self._read_affine()
        return self._put(self._constant, dict(enumerate(self.evaluator.roots(moments, "exact"))))

    def _put(self, terms: Tensor, values: Mapping[int, Tensor | None]) -> Tensor:
        """The terms with these values in their places."""
        found = [(self._where[position], v) for position, v in values.items() if v is not None]
        index = torch.cat([where for where, _ in found])
        return terms.index_copy(0, index, torch.cat([v.reshape(-1).to(terms.dtype) for _, v in found]))

    # ----------------------------------------------------------------------------------------- affine
    def _read_affine(self) -> None:
        """Terms that are affine in the averages become one matrix; again after a change of parameters."""
        evaluator = self.evaluator
        self._read = evaluator.parameter_version
        size, known = self.layout.size, self.layout.places
        own = {p: (known[p], root) for p, root in self._roots.items() if self.kinds[p] in ESTIMATORS}
        self._affine, affine = affine_terms(evaluator, own, self.shapes, size)
        self._curved = frozenset(known) - affine
        self._plans = dict[frozenset[str], dict["Kind", tuple[int, ...]]]()
        deciding = {p for p in affine if depends_on_decisions(self._roots[p], outside_averages=True)}
        self._direct = tuple(sorted(deciding))
        fixed = tuple(sorted(affine - deciding))
        self._zeros = [torch.zeros_like(m) for m in self.running("exact")]
        self._where = {p: torch.from_numpy(own).to(evaluator.device) for p, own in known.items()}
        dtype = torch.promote_types(evaluator.dtype, torch.float32)  # of multipliers as well
        self._constant = torch.zeros(size, dtype=dtype, device=evaluator.device)
        if fixed:
            with torch.no_grad():
                values = evaluator.roots(self._zeros, "exact", fixed)
                self._constant = self._put(self._constant, dict(zip(fixed, values, strict=True)))

    def single_averages(self) -> Selected:
        """The terms of constraints that are one entry of one average times a number, plus a constant."""
        if self._read is not self.evaluator.parameter_version:
            self._read_affine()
        affine = self._affine
        rows, columns, values = (t.cpu().numpy() for t in (affine.rows, affine.columns, affine.values))
        counts = np.bincount(rows, minlength=self.layout.size)
        stack = np.full(self.layout.size, -1)
        for position, place in self.layout.places.items():
            alone = len(place) == 1 or self.layout.stacks[position - 1].names is not None
            if position and alone and position not in self._curved and position not in self._direct:
                stack[place] = position - 1
        own = (counts[rows] == 1) & (stack[rows] >= 0)
        order = np.flatnonzero(own)[np.argsort(rows[own], kind="stable")]
        ends = np.cumsum(self._sizes)
        moments = np.searchsorted(ends, columns[order], side="right")
        terms, constants = rows[order], self._constant.cpu().numpy().astype(float)
        return Selected(
            terms, stack[terms], moments, columns[order], values[order].astype(float), constants[terms]
        )

    def rarity(self) -> Tensor:
        """(terms,) the sum of 1 / share of rows over the averages in each affine term, 0 in others.

        Weights are the squares of the averages' factors, in units of the largest.
        """
        affine = self._affine
        zeros = torch.zeros_like(self._constant)
        squares = affine.values.square().to(zeros)
        largest = zeros.scatter_reduce(0, affine.rows, squares, "amax")
        each = squares / self.flat(self._shares()).to(zeros)[affine.columns]
        return zeros.index_add(0, affine.rows, each) / torch.where(largest > 0, largest, 1.0)

    def _shares(self) -> list[Tensor]:
        """Per moment the share of rows in each of its averages, flat."""
        shares = list[Tensor]()
        for moment, shape in zip(self.evaluator.program.moments, self.shapes, strict=True):
            population = self.evaluator.populations[moment.data]
            share = population.stratum(moment.given, moment.by).counts / population.rows
            wide = share.reshape((*share.shape, *(1,) * (len(shape) - share.dim())))
            shares.append(wide.expand(shape).reshape(-1).clamp(min=1 / population.rows))
        return shares

    def samples(self) -> list[str]:
        """The sample of each term; empty where it has several, or none."""
        found = [""] * self.layout.size
        for position, places in self.layout.places.items():
            names = self._samples[position]
            for place in places.tolist() if len(names) == 1 else ():
                found[place] = next(iter(names))
        return found

    def _plan(self, whole: frozenset[str]) -> dict[Kind, tuple[int, ...]]:
        """Positions of the other terms by estimator, when these samples are given as a whole."""
        if whole not in self._plans:
            groups: dict[Kind, list[int]] = {}
            for position in sorted(self._curved):
                kind = self.kinds[position]
                assert kind is not None  # constraints per row have no terms
                plain = self._samples[position] <= whole
                groups.setdefault("batch" if plain else kind, []).append(position)
            self._plans[whole] = {kind: tuple(places) for kind, places in groups.items()}
        return self._plans[whole]

    # --------------------------------------------------------------------------------------- averages
    def _average(
        self,
        job: Job,
        batch: Rows,
        values: Sequence[Tensor],
        means: Means,
        mode: str,
        groups: Mapping[Kind, tuple[int, ...]],
        conditions: Conditions,
    ) -> None:
        """Batch averages of one sample's moments, centered at the running ones, into `means`.

        Args:
            job: the sample.
            batch: its rows.
            values: the integrands on them, one per moment of the job.
            means: gets the averages, and those of half batches for what needs them.
            mode: "primal" or "exact".
            groups: positions of terms by estimator.
            conditions: of the rows.

        Raises:
            ModelingError: E182 for half batches of a batch of one row.
        """
        running = self.running(mode)
        centers = [running[i] for i in job.moments]
        evaluator = self.evaluator
        found = evaluator.reduce_all(job, values, batch, batch.count, centers=centers, conditions=conditions)
        for i, m in zip(job.moments, found, strict=True):
            means.all[i] = m
        if "halves" not in groups or batch.whole:
            return
        halves = {i for position in groups["halves"] for i in self._used[position]}
        if halves.isdisjoint(job.moments):
            return
        count = batch.count // 2
        if count == 0:
            raise ModelingError("E182", "two half batches need a batch of at least two rows", fix="batch=2")
        found = evaluator.reduce_all(job, values, batch, count, batch.every_other(), centers, conditions)
        for i, m in zip(job.moments, found, strict=True):
            means.first[i] = m
            means.second[i] = (means.all[i] * batch.count - m * count) / (batch.count - count)

    def _jackknife(self, means: Means, mode: str, places: tuple[int, ...]) -> list[Tensor]:
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

    def _installed(
        self, kind: str, means: list[Tensor], mode: str, places: tuple[int, ...]
    ) -> Sequence[Tensor | None]:
        """By an estimator of another package: a function of phi, the batch means and the running averages."""
        center = [u.to(m.dtype) for u, m in zip(self.running(mode), means, strict=True)]

        def phi(moments: Sequence[Tensor]) -> Sequence[Tensor | None]:
            return self.evaluator.roots(moments, mode, places)

        return plugins.load("estimators", kind)(phi, means, center)

    # ---------------------------------------------------------------------------------- running state
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key in (f"{prefix}primal", f"{prefix}exact"):
            if key in destination:
                destination[key] = destination[key].clone()  # a snapshot is a copy

    def learn(self, primal: Tensor, exact: Tensor, batches: Mapping[str, Rows]) -> None:
        """Moves the running averages towards those of batches, as vectors."""
        weights, own = self.weights(batches), self.exact
        own.lerp_(exact if exact.dtype is own.dtype else exact.to(own.dtype), weights)
        if self.rates:
            own = self.primal
            own.lerp_(primal.to(own.dtype), weights)

    def weights(self, batches: Mapping[str, Rows]) -> Tensor | float:
        """(averages,) weights of batches in the running averages, or one: less in those of rare groups.

        On a batch of B rows a row of a group with share p counts 1 / (B p) times in the group's average. With
        one weight for all, a visit of a rare group would move its average beyond the row's value.
        """
        key = sizes(batches)
        known = self._learned.made.get(key)
        if known is None:
            found: list[Tensor] = []
            for moment, share in zip(self.evaluator.program.moments, self._shares(), strict=True):
                rows = batches[moment.data.name]
                least = rows.count / self.evaluator.rows_of(moment.data.name)
                own = visit_weight(share * rows.count, least, LEARN)
                found.append(torch.full_like(own, LEARN) if rows.stratified else own)
            flat = self.flat(found).to(self.exact)
            alike = flat.is_meta or bool((flat >= LEARN * (1 - 1e-6)).all())
            known = self._learned.made[key] = LEARN if alike else flat
        return known

    @torch.no_grad()
    def observe(self, exact: Sequence[Tensor]) -> None:
        """Replaces the running averages by exact ones of the full data."""
        self.exact.copy_(self.flat(exact))
        if self.rates:
            self.primal.copy_(self.flat(self.evaluator.moments("primal")))


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
    """The estimator of the objective and of every stack; None for constraints per row."""
    given = _checked(program, kinds)

    def own(names: Iterable[Sequence[str]], root: n.Node) -> Kind:
        asked = {next((given[name] for name in own if name in given), given.get("", "auto")) for own in names}
        (kind,) = asked  # members of a family that are estimated differently have been taken apart
        return estimator_of(root) if kind == "auto" else kind  # type: ignore[return-value]  # checked above

    found: list[Kind | None] = [own([["objective"]], program.objective)]
    for stack in program.stacks:
        both = zip(stack.keys, stack.names or (stack.part.constraint,), strict=True)
        found.append(None if stack.part.rows is not None else own(both, stack.residual))
    return found


def _checked(program: Program, kinds: Mapping[str, str] | str) -> dict[str, str]:
    """The estimators by term; that of all other terms by "".

    Raises:
        ModelingError: E141 for an unknown estimator or term.
    """
    given = {"": kinds} if isinstance(kinds, str) else dict(kinds)
    for name, kind in given.items():
        if name and name not in (known := _terms_of(program)):
            raise ModelingError("E141", f"estimator= names {name!r}, which is no term{suggest(name, known)}")
        if kind not in (*ESTIMATORS, "auto") and plugins.find("estimators", kind) is None:
            added = [p.name for p in plugins.available("estimators")]
            listed = ", ".join(map(repr, ("auto", *ESTIMATORS, *added)))
            raise ModelingError("E141", f"no estimator is called {kind!r}", fix=f"one of {listed}")
    return given


def _terms_of(program: Program) -> list[str]:
    """What an estimator can be given for: the objective, constraints and their parts."""
    return ["objective", *program.shared.names, *(key for stack in program.stacks for key in stack.keys)]
