"""Evaluates a program with data: minibatch estimates, exact full-data values, and exact gradients.

Gradients on the full data take two passes and the memory of one chunk of rows: see `derivatives.py`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from constrain._lazy import language_printing
from constrain.errors import DataError
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.lowering.families import Numbers
from constrain.runtime.averages import averages, row_residuals
from constrain.runtime.binding import (
    Population,
    Request,
    as_array,
    bind_codes,
    bind_population,
    parameter_values,
)
from constrain.runtime.checks import check_labels_met, check_texts
from constrain.runtime.codegen import generate
from constrain.runtime.compiled import Functions, Job
from constrain.runtime.derivatives import RowTerm, hessian, pull
from constrain.runtime.failures import explain, refuse_training
from constrain.runtime.functional import eager
from constrain.runtime.known import known_of
from constrain.runtime.modes import Modes
from constrain.runtime.pieces import Flattened, entries
from constrain.runtime.rows import Condition, Rows
from constrain.runtime.tails import set_thresholds
from constrain.runtime.widths import Widths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from constrain.language.data import Data
    from constrain.lowering.program import Program
    from constrain.runtime.binding import Stratum
    from constrain.runtime.codegen import Generated
    from constrain.runtime.decisions import Decisions

__all__ = ["Conditions", "Evaluator", "Outer", "RowTerm"]

Conditions = list[Condition]
"""What rows count in averages, per stratum of a job."""

CHUNK = 32_768
"""Rows per chunk of a full pass."""


@dataclass
class Outer:
    """Values of the outer functions: the objective to minimize, and one residual per part (None per row)."""

    objective: Tensor
    residuals: list[Tensor | None]

    def detach(self) -> Outer:
        """The same values without gradient."""
        return Outer(self.objective.detach(), [None if r is None else r.detach() for r in self.residuals])


class Evaluator:
    """A program with data on a device. Models are in evaluation mode, but for gradients of training steps.

    Args:
        program: the moment form.
        decisions: the decision tensors, shared between evaluators of one problem.
        data: replaces samples by name (a hold-out); columns are re-bound by name.
        params: values of parameters by name.
        reference: evaluator of the training data, whose levels a hold-out must reuse.
        chunk: rows per chunk of a full pass.

    Raises:
        DataError: E106, E124, E135 (see `binding.py`).
        ModelingError: E122 (rows depend on each other), E127 (parameter without value).
    """

    def __init__(
        self,
        program: Program,
        decisions: Decisions,
        *,
        dtype: torch.dtype,
        data: Mapping[str, Data] | None = None,
        params: Mapping[str, Any] | None = None,
        reference: Evaluator | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self.program = program
        self.decisions = decisions
        self.modes = Modes(program.models) if reference is None else reference.modes
        self.device = decisions.device
        self.dtype = dtype
        self.chunk = chunk
        self.functions = Functions(program)
        self.tables = self.functions.tables
        self.jobs = self.functions.jobs
        self._numbers: dict[Any, Tensor] = {}
        self._arrays: list[Tensor] = []
        self.params = dict(params or {})
        self._parameters = parameter_values(program.parameters, params)
        replaced = dict(data or {})
        self.populations: dict[Data, Population] = {}
        self.scales = torch.ones(0, dtype=dtype, device=self.device)
        for job in self.jobs:
            self._bind(job, replaced.get(job.data.name, job.data), reference)
        self.functions.prepare()
        self.widths = Widths(self)
        self.scales = torch.ones(self.widths.size, dtype=dtype, device=self.device)
        self.known = known_of(self)
        self.modes.begin(self)
        if reference is not None:
            self.scales = reference.scales
            set_thresholds(self, decisions=False)
        else:
            self.refresh_scales()

    def viewed(self, program: Program) -> Evaluator:
        """The same data, decisions and widths of surrogates under another program.

        Args:
            program: one with the moments of this evaluator's program, such as `program.judged`.
        """
        other = copy.copy(self)
        other.program = program
        other.functions = Functions(program)
        other.tables, other.jobs = other.functions.tables, other.functions.jobs
        other._knob_tensors = None
        other.functions.prepare()
        held = [(symbol, self.held(symbol)) for symbol in other.tables.arrays]
        other._arrays = [other._constant(symbol) if own is None else own for symbol, own in held]
        other.widths = Widths(other)
        other.known = known_of(other)
        other.scales = self.widths.copied(self.scales, other.widths)
        return other

    @property
    def source(self) -> str:
        """The generated code that runs on a batch, for reading."""
        return self.functions.source

    @property
    def operations(self) -> int:
        """Number of torch operations of one training step, forward."""
        return self.functions.operations

    def _bind(self, job: Job, data: Data, reference: Evaluator | None) -> None:
        used = {x.name for x in n.postorder(*self.program.roots)
                if isinstance(x, n.Column) and x.data is job.data}  # fmt: skip
        known = None if reference is None else reference.populations[job.data]
        population = bind_population(data, sorted(used), self.device, self.dtype, known)
        bind_codes(population, self.program.roots, job.data, known)
        self.populations[job.data] = population
        check_texts(self.program, job.data, population)
        check_labels_met(self.program, job.data, population)
        self._add_strata(population, [self.program.moments[i] for i in job.moments], known)

    def _add_strata(
        self, population: Population, moments: Sequence[n.Moment], known: Population | None = None
    ) -> None:
        requests: dict[Any, Request] = {}
        for moment in moments:
            key = (moment.given, tuple(c.name for c in moment.by))
            if key not in requests:
                event = None if moment.given is None else self._event(moment.given, population)
                shown = str(language_printing().text(moment, limit=80))
                requests[key] = Request(moment.given, moment.by, shown, moment.loc, event)
        population.add_strata(list(requests.values()), self.chunk, known)

    def per_row(self, node: n.Node, data: Data) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """An expression per row of a sample of the problem, as a function of columns, with gradient.

        Raises:
            DataError: E184 when it needs a column that the problem does not use and rows do not carry.
        """
        population = self.populations[data]
        wanted = {x.name for x in n.postorder(node) if isinstance(x, n.Column)}
        missing = sorted(wanted - set(population.columns))
        if missing:
            raise DataError(
                "E184",
                f"{language_printing().text(node, limit=80)} needs the column {missing[0]!r} of "
                f"{data.name!r}, which no term of the problem uses",
                at=node.loc,
                fix=f"columns among {', '.join(population.columns)}",
            )
        generated = generate("per_row", self.tables, [(node, "exact")])
        return lambda columns: self._run(generated, columns, [], population)[0]

    @torch.no_grad()
    def free(self, node: n.Node) -> Tensor:
        """The value of an expression without rows and averages, as the decisions are now."""
        (value,) = self._run(generate("free", self.tables, [(node, "exact")]), {}, [], None)
        return value if isinstance(value, Tensor) else self.number(value)

    def _event(self, event: n.Node, population: Population) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Which of some rows satisfy an event of the data alone: columns -> (rows,) bool."""
        generated = generate("event", self.tables, [(event, "exact")])

        def holds(columns: Mapping[str, Tensor]) -> Tensor:
            with torch.no_grad():
                return self._run(generated, columns, [], population)[0]

        return holds

    # ---------------------------------------------------------------------------------------- running
    def number(self, value: Any) -> Tensor:
        """A number as a tensor on the device, made once."""
        key = (type(value).__name__, value)
        if key not in self._numbers:
            self._numbers[key] = torch.as_tensor(value, dtype=self.dtype, device=self.device)
        return self._numbers[key]

    def _constants(self) -> list[Tensor]:
        for symbol in self.tables.arrays[len(self._arrays) :]:
            self._arrays.append(self._constant(symbol))
        return self._arrays

    def _constant(self, symbol: n.ArraySymbol) -> Tensor:
        given = symbol.value
        value = given if isinstance(given, Tensor) else torch.as_tensor(as_array(given).copy())
        exact = isinstance(symbol, Numbers) and self.device.type != "mps"
        kind = self.dtype if value.is_floating_point() and not exact else value.dtype
        return value.detach().to(device=self.device, dtype=kind)

    def _knobs(self) -> list[Tensor]:
        return [
            torch.as_tensor(as_array(self._parameters[s]).copy(), dtype=self.dtype, device=self.device)
            for s in self.tables.parameters
        ]

    def constant(self, node: n.Node) -> float:
        """The value of a number or a scalar parameter."""
        if isinstance(node, n.Knob):
            return float(self._parameters[node.symbol])
        assert isinstance(node, n.Constant)  # what callers have
        return float(node.value)

    @property
    def parameter_version(self) -> object:
        """Another object after every change of parameters."""
        return self._parameters

    def set_parameters(self, params: Mapping[str, Any] | None = None) -> None:
        """Takes the current values of parameters (or these overrides) without recompiling."""
        self.params = dict(params or {})
        self._parameters = parameter_values(self.program.parameters, params)
        self._knob_tensors = None
        for job in self.jobs:
            moments = [self.program.moments[i] for i in job.moments]
            moved = [m for m in moments if m.given is not None and n.mentions(m.given, n.Knob)]
            self._add_strata(self.populations[job.data], moved)
        self.widths.forget()
        if self.known is not None:
            self.known.forget()
        set_thresholds(self, decisions=False)

    def follow_parameters(self) -> None:
        """`set_parameters` when the user has given a `Parameter` a new value since."""
        for symbol, value in self._parameters.items():
            if symbol.name not in self.params and symbol.value is not value:
                self.set_parameters(self.params)
                return

    _knob_tensors: list[Tensor] | None = None
    _size: tuple[int, ...] = ()
    _named: tuple[Any, ...] = ()

    def _run(
        self,
        generated: Generated,
        columns: Mapping[str, Tensor],
        moments: Sequence[Any],
        population: Population | None,
        rows: Rows | None = None,
        *,
        training: bool = False,
    ) -> list[Any]:
        tables = self.tables
        size = (len(tables.variables), len(tables.models), len(tables.arrays), len(tables.parameters))
        if size != self._size or self._knob_tensors is None:
            self._knob_tensors = self._knobs()
            variables = [self.decisions.variables[s] for s in tables.variables]
            modules = [eager(model.module) for model in tables.models]
            flat = Flattened(tables.models)
            self._named = (variables, modules, flat, self._knob_tensors, self._constants())
            self._size = size
        code = None if population is None else population.level_code
        used = generated.margins
        widths = self.widths.read(self.scales, used, population, rows) if used else self.scales
        known = (*self._named, moments, widths, self.dtype, self.number, code)
        try:
            if not self.modes.acting(self):
                return generated.function(columns, *known)
            with self.modes.during(self, training=training):
                return generated.function(columns, *known)
        except Exception as error:  # whatever torch or a module of the user raises
            if training:
                refuse_training(error, generated, columns, self.modes.models)
            explain(error, generated, known, columns, population, None if rows is None else rows.index)
            raise

    def held(self, symbol: n.ArraySymbol) -> Tensor | None:
        """The tensor that generated code reads for a constant, to be written to; None when it reads none."""
        places = [i for i, known in enumerate(self.tables.arrays) if known is symbol]
        return self._constants()[places[0]] if places else None

    def compute(self, generated: Generated, rows: Rows, data: Data, training: bool = False) -> list[Any]:
        """Outputs of a generated function on some rows of a sample."""
        own = self.populations[data]
        return self._run(generated, rows.columns, [], own, rows, training=training)

    def rows(self, job: Job, rows: Rows, mode: str, training: bool = False) -> list[Any]:
        """Outputs of a sample's generated function on some rows, with models as in steps or as in use."""
        generated, own = self.functions.rows(job, mode), self.populations[job.data]
        return self._run(generated, rows.columns, [], own, rows, training=training)

    def outer(self, moments: Sequence[Tensor], mode: str) -> Outer:
        """The outer functions at given moments."""
        objective, *stacks = self.roots(moments, mode)
        assert objective is not None  # every problem has one
        residuals: list[Tensor | None] = [None] * len(self.program.parts)
        for stack, values in zip(self.program.stacks, stacks, strict=True):
            pieces = (values,) if stack.names is None or values is None else entries(values)
            for place, value in zip(stack.places.tolist(), pieces, strict=True):
                residuals[place] = value
        return Outer(objective, residuals)

    def roots(
        self, moments: Sequence[Tensor], mode: str, which: tuple[int, ...] | None = None
    ) -> list[Tensor | None]:
        """Outer functions at given moments, all or those at these positions.

        Position 0 is the objective, i + 1 stack i (`Program.stacks`); a constraint per row has none.
        """
        values = self._run(self.functions.outer(mode, which), {}, moments, None)
        return [self.number(v) if isinstance(v, (int, float)) else v for v in values]

    def reduce(self, i: int, integrand: Tensor, rows: Rows, over: float) -> Tensor:
        """Contribution of some rows to moment `i`: sum of weight * integrand per level, divided by `over`."""
        moment = self.program.moments[i]
        population = self.populations[moment.data]
        stratum = population.stratum(moment.given, moment.by)
        return self._segments(self.real(integrand), population.condition(stratum, rows), stratum, over)

    def reduce_all(
        self,
        job: Job,
        values: Sequence[Tensor],
        rows: Rows,
        over: float,
        half: slice | None = None,
        centers: Sequence[Tensor] | None = None,
        conditions: Conditions | None = None,
    ) -> list[Tensor]:
        """Contributions of some rows to all moments of a sample; one sum for those with one condition.

        Args:
            job: the sample.
            values: the integrands, one per moment of the job.
            rows: the rows that they were computed on.
            over: number that sums are divided by.
            half: only these of the rows.
            centers: per moment a value u; means of conditions become mean(weight * (integrand - u)) + u.
            conditions: of the rows, when they are known.
        """
        population = self.populations[job.data]
        conditions = self.conditions(job, rows) if conditions is None else conditions
        if half is not None:
            conditions = [Condition(_some(w, half), _some(codes, half), a) for w, codes, a in conditions]
        result: list[Any] = [None] * len(job.moments)
        for (key, places), condition in zip(job.strata.items(), conditions, strict=True):
            stratum = population.strata[key]
            plain = condition.weight is None and not condition.alike
            if len(places) == 1:
                (p,) = places
                integrand = self.real(values[p] if half is None else values[p][half])
                u = None if centers is None or plain else centers[p]
                result[p] = self._segments(integrand, condition, stratum, over, u)
                continue
            integrands = [self.real(values[p] if half is None else values[p][half]) for p in places]
            own = None if centers is None or plain else [centers[p] for p in places]
            count = integrands[0].shape[0]
            kind = integrands[0].dtype
            for x in integrands[1:]:
                kind = torch.promote_types(kind, x.dtype)
            flat = torch.cat([x.reshape(count, -1).to(kind) for x in integrands], 1)
            lead = 0 if condition.codes is None else 1
            u = None if own is None else torch.cat([c.reshape((*c.shape[:lead], -1)) for c in own], -1)
            sums = self._segments(flat, condition, stratum, over, u)
            widths = [x[0].numel() if count else 1 for x in integrands]
            pieces = cast("tuple[Tensor, ...]", sums.split(widths, -1))
            for p, x, piece in zip(places, integrands, pieces, strict=True):
                result[p] = piece.reshape((*piece.shape[:-1], *x.shape[1:]))
        return result

    def conditions(self, job: Job, rows: Rows) -> Conditions:
        """What some rows count, per stratum of the job."""
        population = self.populations[job.data]
        return [population.condition(population.strata[key], rows) for key in job.strata]

    def real(self, integrand: Tensor) -> Tensor:
        """An integrand in a precision in which it can be averaged."""
        if not integrand.is_floating_point() or integrand.dtype in (torch.float16, torch.bfloat16):
            return integrand.to(torch.promote_types(self.dtype, torch.float32))
        return integrand

    @staticmethod
    def _segments(
        values: Tensor,
        condition: Condition,
        stratum: Stratum,
        over: float,
        center: Tensor | None = None,
    ) -> Tensor:
        """Sums of weight * values over the rows of each level, or over all rows, divided by `over`."""
        weight, codes, alike = condition
        if center is not None:
            center = center if center.dtype is values.dtype else center.to(values.dtype)
            values = values - (center if codes is None else center.index_select(0, codes))
        if weight is not None:
            weight = weight if weight.dtype is values.dtype else weight.to(values.dtype)
            if codes is None and values.dim() == 1:
                sums = torch.dot(values, weight)
                return sums / over if center is None else torch.add(center, sums, alpha=1 / over)
            if values.dim() > 1:
                weight = weight.reshape((-1, *(1 for _ in range(values.dim() - 1))))
            values = values * weight  # no matrix product: autocast would take fewer bits
        if codes is None:
            if over != values.shape[0]:
                sums = values.sum(0) / over
            else:  # of a vector without an axis: backward has less to do
                sums = values.mean() if values.dim() == 1 else values.mean(0)
            return sums if center is None else sums + center
        zeros = values.new_zeros((len(stratum.levels), *values.shape[1:]))
        sums = zeros.index_add(0, codes, values)
        if alike:
            factors = stratum.factors(over)
            factors = factors if factors.dtype is values.dtype else factors.to(values.dtype)
            if values.dim() > 1:
                factors = factors.reshape((-1, *(1 for _ in range(values.dim() - 1))))
            return sums * factors if center is None else torch.addcmul(center, sums, factors)
        return sums / over if center is None else torch.add(center, sums, alpha=1 / over)

    # -------------------------------------------------------------------------------------- full data
    def accumulator(self, t: Tensor) -> Tensor:
        """In the precision in which moments are summed: float64 where the device has it."""
        return t if self.device.type == "mps" else t.double()

    def moments(self, mode: str = "exact") -> list[Tensor]:
        """All moments on the full data, accumulated in float64 and returned so."""
        return averages(self, mode) if self.known is None else self.known.moments(mode)

    def full(self, mode: str = "exact") -> Outer:
        """Outer values on the full data, without gradient."""
        with torch.no_grad():
            outer = self.outer(self.moments(mode), mode)
        return outer.detach()

    def row_residuals(self, i: int, mode: str = "exact") -> tuple[Tensor, Tensor | None]:
        """Residuals of part `i`, a constraint per row, for all rows; and the mask of the rows it selects."""
        return next((residual, mask) for _, residual, mask in self.all_row_residuals([i], mode))

    def all_row_residuals(
        self, parts: Iterable[int], mode: str = "exact"
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Position, `row_residuals` of several constraints per row, in few passes; sample by sample."""
        left = list[int]()
        for i in parts:
            known = None if self.known is None else self.known.row_residuals(i, mode)
            if known is None:
                left.append(i)
            else:
                yield i, *known
        yield from row_residuals(self, left, mode)

    def sides(self, moments: Sequence[Tensor] | None = None) -> list[tuple[Tensor, ...]]:
        """Exact (lhs, rhs, ...) of every form as written; per-row forms give one value per row.

        Args:
            moments: the exact ones, if they are known.
        """
        with torch.no_grad():
            found = self.sides_at(self.moments("exact") if moments is None else moments)
        per_row = iter(form for form in self.program.shared.singles if form.rows is not None)
        result: list[tuple[Tensor, ...]] = []
        for own in found:
            values: Sequence[Any] = () if own is None else own
            if own is None:
                form = next(per_row)
                assert form.rows is not None  # chosen so
                values = self._row_sides(form.rows, (form.lhs, *form.rhs))
            result.append(tuple(v if isinstance(v, Tensor) else self.number(v) for v in values))
        return result

    def sides_at(self, moments: Sequence[Tensor]) -> list[tuple[Tensor, ...] | None]:
        """(lhs, rhs, ...) of every form at given moments, differentiable; None for per-row forms."""
        alone, vectors = self.side_vectors(moments)
        members = [list(zip(*(entries(side) for side in own), strict=True)) for own in vectors]
        return self.program.shared.each(alone, members)

    def side_vectors(
        self, moments: Sequence[Tensor]
    ) -> tuple[list[tuple[Tensor, ...] | None], list[tuple[Tensor, ...]]]:
        """(lhs, rhs, ...) at given moments: of forms on their own, and of families, an entry per member."""
        values = iter(self._run(self.functions.sides(), {}, moments, None))

        def sides(count: int) -> list[Tensor]:
            found = [v for _, v in zip(range(count), values, strict=False) if v is not None]
            return [v if isinstance(v, Tensor) else self.number(v) for v in found]

        known = self.program.shared
        singles = [tuple(sides(1 + len(form.rhs))) for form in known.singles]
        alone = [own if form.rows is None else None for form, own in zip(known.singles, singles, strict=True)]
        sizes = [(len(own), 1 + len(own.rhs)) for own in known.families]
        return alone, [tuple(side.expand(size) for side in sides(count)) for size, count in sizes]

    def _row_sides(self, data: Data, nodes: tuple[n.Node, ...]) -> list[Any]:
        generated = generate("row_sides", self.tables, [(x, "exact") for x in nodes])
        with torch.no_grad():
            chunks = self.populations[data].chunks(self.chunk)
            pieces = [self.compute(generated, rows, data) for rows in chunks]
        columns = zip(nodes, zip(*pieces, strict=True), strict=True)
        return [torch.cat(list(c)) if type_of(x).rows is not None else c[0] for x, c in columns]

    def pull(
        self, functions: Sequence[Callable[[Outer], Tensor]], row_term: RowTerm | None = None
    ) -> list[tuple[float, list[Tensor]]]:
        """Exact values and gradients of scalar functions of the outer values; see `derivatives.pull`."""
        return pull(self, functions, row_term)

    def hessian(self, function: Callable[[Outer], Tensor], row_term: RowTerm | None = None) -> Tensor:
        """Dense Hessian of a scalar function of the outer values; see `derivatives.hessian`."""
        return hessian(self, function, row_term)

    # ------------------------------------------------------------------------------------- surrogates
    _widest: Tensor | None = None

    def rows_of(self, name: str) -> int:
        """Rows of a sample of the problem."""
        return next(p.rows for data, p in self.populations.items() if data.name == name)

    @property
    def follows(self) -> bool:
        """Whether something follows the decisions that `refresh_scales` measures anew."""
        return bool(self.tables.margins) or bool(self.program.tails)

    def refresh_scales(self, rows: int = CHUNK, *, decisions: bool = True) -> None:
        """What follows the decisions: exact thresholds (`tails`), and the spreads of surrogates' margins.

        Args:
            rows: about as many are measured.
            decisions: set the thresholds that are hidden decisions as well.
        """
        set_thresholds(self, decisions=decisions)
        if not self.tables.margins or self.device.type == "meta":
            return
        if self._widest is None:
            self._widest = torch.zeros_like(self.scales)
        self.widths.measure(self.scales, self._widest, rows)


def _some(values: Tensor | None, chosen: slice) -> Tensor | None:
    return None if values is None else values[chosen]
