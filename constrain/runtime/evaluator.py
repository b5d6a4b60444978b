"""Evaluates a program with data: minibatch estimates, exact full-data values, and exact gradients.

Gradients on the full data take two passes and the memory of one chunk of rows: see `derivatives.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrain._lazy import language_printing
from constrain.errors import DataError, ModelingError
from constrain.language import nodes as n
from constrain.runtime.binding import Population, as_array, bind_population, parameter_values
from constrain.runtime.codegen import generate
from constrain.runtime.compiled import Functions, Job
from constrain.runtime.derivatives import RowTerm, hessian, pull

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from constrain.language.data import Data
    from constrain.lowering.program import Program
    from constrain.runtime.decisions import Decisions

__all__ = ["Evaluator", "Outer", "RowTerm", "Rows"]

Rows = Tensor | slice
"""Positions of some rows."""

LEAST_SCALE = 0.25
"""Least scale of a surrogate, as a fraction of the widest one it has had."""
SURROGATE_TEMPERATURE = 0.25
"""Width of a rate's surrogate in robust standard deviations of its margin."""

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


@dataclass
class Estimate:
    """A minibatch estimate: with gradient for the primal, exact and detached for the dual.

    `rows` holds, per part that is a constraint per row, its residuals on the batch (primal and exact) and
    which of the batch rows it selects.
    """

    primal: Outer
    exact: Outer
    rows: dict[int, tuple[Tensor, Tensor, Tensor | None]]


class Evaluator:
    """A program with data on a device.

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
        self.scales = torch.ones(len(self.tables.margins), dtype=dtype, device=self.device)
        if reference is not None:
            self.scales = reference.scales
        else:
            self.refresh_scales()

    @property
    def source(self) -> str:
        """The generated code that runs on a batch, for reading."""
        return self.functions.source

    @property
    def operations(self) -> int:
        """Number of torch operations of one training step, forward."""
        return self.functions.operations

    def _bind(self, job: Job, data: Data, reference: Evaluator | None) -> None:
        used = {x.name for root in self.program.roots for x in n.postorder(root)
                if isinstance(x, n.Column) and x.data is job.data}  # fmt: skip
        known = None if reference is None else reference.populations[job.data]
        population = bind_population(data, sorted(used), self.device, self.dtype, known)
        self.populations[job.data] = population
        self._check_texts(job, population)
        for i in job.moments:
            moment = self.program.moments[i]
            key = (moment.given, tuple(c.name for c in moment.by))
            if key not in population.strata:
                mask = None if moment.given is None else self._data_event(moment.given, population)
                shown = str(language_printing().text(moment, limit=80))
                population.add_stratum(moment.given, moment.by, mask, shown, at=moment.loc, reference=known)

    def _check_texts(self, job: Job, population: Population) -> None:
        """Text columns are groups or compared with a text: E106 for an unknown level, E147 for other uses."""
        for node in n.postorder(*self.program.roots):
            match node:
                case n.Comparison(op="==" | "!=", lhs=n.Column() as column, rhs=n.Array(symbol=symbol)) if (
                    isinstance(symbol.value, str)
                ):
                    if column.data is job.data:
                        population.level_code(column.name, symbol.value, node.loc)
                    used: tuple[n.Node, ...] = ()
                case n.Moment(integrand=integrand, given=given):
                    used = (integrand,) if given is None else (integrand, given)
                case _:
                    used = n.children(node)
            for x in used:
                if isinstance(x, n.Column) and x.data is job.data and x.name in population.levels:
                    raise DataError(
                        "E147",
                        f"the text column {job.data.name}.{x.name} is used as a number in "
                        f"{language_printing().text(node, limit=80)}",
                        at=node.loc,
                        fix=f'a comparison with one of its texts, {job.data.name}.{x.name} == "...", or by=',
                    )

    def _data_event(self, event: n.Node, population: Population) -> Tensor:
        """Rows where an event of the data alone holds: (rows,) bool."""
        function = generate("event", self.tables, [(event, "exact")]).function
        masks: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, population.rows, self.chunk):
                rows = slice(start, start + self.chunk)
                columns = {name: c[rows] for name, c in population.columns.items()}
                masks.append(self._run(function, columns, [], population)[0])
        return torch.cat(masks)

    # ---------------------------------------------------------------------------------------- running
    def number(self, value: Any) -> Tensor:
        """A number as a tensor on the device, made once."""
        key = (type(value).__name__, value)
        if key not in self._numbers:
            self._numbers[key] = torch.as_tensor(value, dtype=self.dtype, device=self.device)
        return self._numbers[key]

    def _constants(self) -> list[Tensor]:
        for symbol in self.tables.arrays[len(self._arrays) :]:
            value = (
                symbol.value
                if isinstance(symbol.value, Tensor)
                else torch.as_tensor(as_array(symbol.value).copy())
            )
            kind = self.dtype if value.is_floating_point() else value.dtype
            self._arrays.append(value.detach().to(device=self.device, dtype=kind))
        return self._arrays

    def _knobs(self) -> list[Tensor]:
        return [
            torch.as_tensor(as_array(self._parameters[s]).copy(), dtype=self.dtype, device=self.device)
            for s in self.tables.parameters
        ]

    def set_parameters(self, params: Mapping[str, Any] | None = None) -> None:
        """Takes the current values of parameters (or these overrides) without recompiling."""
        self.params = dict(params or {})
        self._parameters = parameter_values(self.program.parameters, params)
        self._knob_tensors = None
        for job in self.jobs:
            population = self.populations[job.data]
            for i in job.moments:
                moment = self.program.moments[i]
                if moment.given is not None and n.mentions(moment.given, n.Knob):
                    mask = self._data_event(moment.given, population)
                    shown = str(language_printing().text(moment, limit=80))
                    population.add_stratum(moment.given, moment.by, mask, shown, at=moment.loc)

    def follow_parameters(self) -> None:
        """`set_parameters` when the user has given a `Parameter` a new value since."""
        for symbol, value in self._parameters.items():
            if symbol.name not in self.params and symbol.value is not value:
                self.set_parameters(self.params)
                return

    _knob_tensors: list[Tensor] | None = None

    def _run(
        self,
        function: Callable[..., list[Any]],
        columns: Mapping[str, Tensor],
        moments: Sequence[Any],
        population: Any,
    ) -> list[Any]:
        if self._knob_tensors is None or len(self._knob_tensors) != len(self.tables.parameters):
            self._knob_tensors = self._knobs()
        variables = [self.decisions.variables[s] for s in self.tables.variables]
        modules = [model.module for model in self.tables.models]
        flat = _Flattened(self.tables.models)
        code = None if population is None else population.level_code
        scales = self.scales
        return function(
            columns, variables, modules, flat, self._knob_tensors, self._constants(), moments, scales,
            self.dtype, self.number, code,
        )  # fmt: skip

    def rows(self, job: Job, index: Rows, mode: str) -> list[Any]:
        """Outputs of a sample's generated function on some rows."""
        population = self.populations[job.data]
        columns = {name: c[index] for name, c in population.columns.items()}
        return self._run(self.functions.rows(job, mode).function, columns, [], population)

    def outer(self, moments: Sequence[Tensor], mode: str) -> Outer:
        """The outer functions at given moments."""
        values = self._run(self.functions.outer(mode).function, {}, moments, None)
        objective, *residuals = values
        if not isinstance(objective, Tensor):
            objective = self.number(objective)
        return Outer(objective, [self.number(r) if isinstance(r, (int, float)) else r for r in residuals])

    def reduce(self, i: int, integrand: Tensor, index: Rows, population: Population, over: float) -> Tensor:
        """Contribution of some rows to moment `i`: sum of weight * integrand per level, divided by `over`."""
        moment = self.program.moments[i]
        stratum = population.stratum(moment.given, moment.by)
        if not integrand.is_floating_point() or integrand.dtype in (torch.float16, torch.bfloat16):
            integrand = integrand.to(torch.promote_types(self.dtype, torch.float32))
        if stratum.weight is not None:
            weight = stratum.weight[index].to(integrand.dtype)
            weight = weight.reshape(-1, *(1 for _ in range(integrand.dim() - 1)))
            weighted = integrand * weight
            integrand = (
                weighted
                if stratum.mask is None
                else torch.where(weight > 0, weighted, weighted.new_zeros(()))
            )
        if stratum.codes is None:
            return integrand.sum(0) / over
        zeros = integrand.new_zeros((len(stratum.levels), *integrand.shape[1:]))
        return zeros.index_add(0, stratum.codes[index], integrand) / over

    # -------------------------------------------------------------------------------------- minibatch
    def estimate(self, batches: Mapping[str, Tensor]) -> Estimate:
        """Estimates on batches: one index tensor per sample name.

        Returns:
            Primal values with gradient (surrogates), exact values without, residuals of constraints per row.
        """
        primal: list[Any] = [None] * len(self.program.moments)
        exact: list[Any] = [None] * len(self.program.moments)
        per_row: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        rates = self.program.has_rates
        for job in self.jobs:
            index = batches[job.data.name]
            population = self.populations[job.data]
            values = self.rows(job, index, "both" if rates else "primal")
            size = len(job.moments) + len(job.parts)
            first, second = values[:size], values[size : 2 * size] if rates else values[:size]
            masks = values[-len(job.parts) :] if job.parts else []
            for place, i in enumerate(job.moments):
                primal[i] = self.reduce(i, first[place], index, population, float(index.shape[0]))
                if rates:
                    own = second[place].detach()
                    exact[i] = self.reduce(i, own, index, population, float(index.shape[0]))
            for place, i in enumerate(job.parts):
                at = len(job.moments) + place
                per_row[i] = (first[at], second[at].detach(), masks[place])
        value = self.outer(primal, "primal")
        if not rates:
            return Estimate(value, value.detach(), per_row)
        with torch.no_grad():
            return Estimate(value, self.outer(exact, "exact"), per_row)

    # -------------------------------------------------------------------------------------- full data
    def chunks(self, population: Population) -> list[slice]:
        """The rows of a sample in chunks of bounded size."""
        return [slice(a, min(a + self.chunk, population.rows)) for a in range(0, population.rows, self.chunk)]

    def accumulator(self, t: Tensor) -> Tensor:
        """In the precision in which moments are summed: float64 where the device has it."""
        return t if self.device.type == "mps" else t.double()

    def moments(self, mode: str = "exact") -> list[Tensor]:
        """All moments on the full data, accumulated in float64 and returned so."""
        total: list[Any] = [None] * len(self.program.moments)
        with torch.no_grad():
            for job in self.jobs:
                population = self.populations[job.data]
                for index in self.chunks(population):
                    values = self.rows(job, index, mode)
                    for place, i in enumerate(job.moments):
                        part = self.reduce(
                            i, self.accumulator(values[place]), index, population, population.rows
                        )
                        total[i] = part if total[i] is None else total[i] + part
        return total

    def full(self, mode: str = "exact") -> Outer:
        """Outer values on the full data, without gradient."""
        with torch.no_grad():
            outer = self.outer(self.moments(mode), mode)
        return outer.detach()

    def row_residuals(self, i: int, mode: str = "exact") -> tuple[Tensor, Tensor | None]:
        """Residuals of part `i`, a constraint per row, for all rows; and the mask of the rows it selects."""
        part = self.program.parts[i]
        job = next(j for j in self.jobs if j.data is part.rows)
        place = len(job.moments) + job.parts.index(i)
        found: list[Tensor] = []
        masks: list[Tensor] = []
        with torch.no_grad():
            for index in self.chunks(self.populations[job.data]):
                values = self.rows(job, index, mode)
                found.append(values[place])
                mask = values[len(values) - len(job.parts) + job.parts.index(i)]
                if mask is not None:
                    masks.append(mask)
        return torch.cat(found), torch.cat(masks) if masks else None

    def sides(self) -> list[tuple[Tensor, ...]]:
        """Exact (lhs, rhs, ...) of every form as written; per-row forms give one value per row."""
        with torch.no_grad():
            found = self.sides_at(self.moments("exact"))
        result: list[tuple[Tensor, ...]] = []
        for form, own in zip(self.program.forms, found, strict=True):
            values = (
                self._row_sides(form.rows, (form.lhs, *form.rhs))
                if form.rows is not None
                else list(own or ())
            )
            result.append(tuple(v if isinstance(v, Tensor) else self.number(v) for v in values))
        return result

    def sides_at(self, moments: Sequence[Tensor]) -> list[tuple[Tensor, ...] | None]:
        """(lhs, rhs, ...) of every form at given moments, differentiable; None for per-row forms."""
        values = self._run(self.functions.sides().function, {}, moments, None)
        result: list[tuple[Tensor, ...] | None] = []
        for form in self.program.forms:
            count = 1 + len(form.rhs)
            own, values = values[:count], values[count:]
            numbers = tuple(v if isinstance(v, Tensor) else self.number(v) for v in own if v is not None)
            result.append(None if form.rows is not None else numbers)
        return result

    def _row_sides(self, data: Data, nodes: tuple[n.Node, ...]) -> list[Any]:
        function = generate("row_sides", self.tables, [(x, "exact") for x in nodes]).function
        population = self.populations[data]
        pieces: list[list[Any]] = []
        with torch.no_grad():
            for index in self.chunks(population):
                columns = {name: c[index] for name, c in population.columns.items()}
                pieces.append(self._run(function, columns, [], population))
        return [
            torch.cat(list(column)) if isinstance(column[0], Tensor) and column[0].dim() else column[0]
            for column in zip(*pieces, strict=True)
        ]

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

    def refresh_scales(self, rows: int = CHUNK) -> None:
        """Sets the surrogates' scales from the robust spread (1.4826 MAD) of their margins over the data.

        A scale never falls below a quarter of the widest one seen: margins that shrink together with their
        surrogate's scale would go on shrinking.
        """
        if not self.tables.margins:
            return
        if self._widest is None:
            self._widest = torch.zeros_like(self.scales)
        with torch.no_grad():
            for data, generated in self.functions.margins.items():
                population = self.populations[data]
                step = max(1, population.rows // rows)
                index = slice(0, population.rows, step)
                columns = {name: c[index] for name, c in population.columns.items()}
                margins = self._run(generated.function, columns, [], population)
                for i, margin in enumerate(margins):
                    if margin is not None:
                        scale = SURROGATE_TEMPERATURE * robust_spread(margin).to(self.dtype)
                        self._widest[i] = torch.maximum(self._widest[i], scale)
                        self.scales[i] = torch.maximum(scale, LEAST_SCALE * self._widest[i])

    # --------------------------------------------------------------------------------------- checking
    def check_left_out(self) -> None:
        """Refuses integrands that are not finite on rows that their condition leaves out (E138).

        Such a row adds nothing to the average, but back-propagation through it gives NaN.
        """
        for job in self.jobs:
            population = self.populations[job.data]
            strata = [
                population.stratum(m.given, m.by) for m in (self.program.moments[i] for i in job.moments)
            ]
            if self.device.type == "meta" or not any(s.mask is not None for s in strata):
                continue
            with torch.no_grad():
                for index in self.chunks(population):
                    values = self.rows(job, index, "exact")
                    for i, stratum, value in zip(job.moments, strata, values, strict=False):
                        if stratum.mask is not None:
                            self._refuse_left_out(i, value, ~stratum.mask[index])

    def _refuse_left_out(self, i: int, value: Tensor, left_out: Tensor) -> None:
        bad = ~torch.isfinite(value.reshape(value.shape[0], -1)).all(1) & left_out
        if bool(bad.any()):
            moment = self.program.moments[i]
            shown = language_printing().text(moment.integrand, limit=80)
            raise DataError(
                "E138",
                f"{shown} is not finite on {int(bad.sum())} rows "
                "that its condition leaves out; they add nothing to the average, but their gradient is NaN",
                at=moment.loc,
                fix="cn.where(condition, x, 1.0) inside of the function, or those rows as a cn.Data",
            )

    def check_rows(self) -> None:
        """Refuses integrands whose value for a row depends on other rows, or changes between calls (E122)."""
        for job in self.jobs:
            population = self.populations[job.data]
            if population.rows < 2 or self.device.type == "meta":
                continue
            size = min(population.rows, 6)
            with torch.no_grad():
                whole = self.rows(job, slice(0, size), "primal")
                part = self.rows(job, slice(0, size // 2), "primal")
            nodes = [self.program.moments[i].integrand for i in job.moments]
            nodes += [self.program.parts[i].residual for i in job.parts]
            for node, a, b in zip(nodes, whole, part, strict=False):
                self._compare_rows(node, a, b, size)

    def _compare_rows(self, node: n.Node, whole: Tensor, part: Tensor, size: int) -> None:
        shown = language_printing().text(node, limit=100)
        if whole.dim() == 0 or whole.shape[0] != size:
            raise ModelingError(
                "E112",
                f"{shown} has shape {tuple(whole.shape)} on {size} rows: the first axis is not the rows",
                at=node.loc,
            )
        if not torch.isfinite(whole).all():
            raise DataError(
                "E138", f"{shown} is not finite at the starting point", at=node.loc, fix="another start"
            )
        a, b = whole[: size // 2].double(), part.double()
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()) + 1e-8):
            raise ModelingError(
                "E122",
                f"{shown} of one row changes with the other rows of its batch (batch normalization, dropout, "
                "or a function along the row axis)",
                at=node.loc,
                fix="put the module into eval() mode, use GroupNorm or LayerNorm, or reduce along dim=-1",
            )


class _Flattened:
    """`w[i]`: all trainable parameters of model i as one vector, made when asked for."""

    def __init__(self, models: Sequence[Any]) -> None:
        self.models = models

    def __getitem__(self, i: int) -> Tensor:
        parameters = [p.reshape(-1) for p in self.models[i].module.parameters() if p.requires_grad]
        return torch.cat(parameters)


def robust_spread(margin: Tensor) -> Tensor:
    """1.4826 times the median absolute deviation, at least a small part of the largest margin."""
    flat = margin.detach().reshape(-1).float()
    center = flat.median()
    spread = 1.4826 * (flat - center).abs().median()
    return torch.maximum(spread, 1e-3 * flat.abs().amax() + 1e-6)
