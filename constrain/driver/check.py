"""`problem.check()`: what can be said about a problem before it is solved. Nothing is trained.

One pass over the data at the starting point, and gradients on some thousand rows. The rules are in
`structure.py` (what the constraints say), `slopes.py` (how they change) and `batches.py` (what the data can
say about them).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from constrain._lazy import language_printing
from constrain.analysis.once import asked_once
from constrain.diagnostics.point import read_point
from constrain.driver import batches as of_batches
from constrain.driver import structure
from constrain.driver.findings import Finding, finding_of
from constrain.driver.formulas import formula_of
from constrain.driver.linear import System
from constrain.driver.options import named
from constrain.driver.routes import Route, choose, make_solver, routes
from constrain.driver.setup import lowered, place, prepare
from constrain.driver.slopes import Slopes, unused_blocks
from constrain.errors import ConstrainError, ModelingError, RouteError
from constrain.language import nodes as n
from constrain.lowering.classify import classify
from constrain.lowering.lower import EPIGRAPH
from constrain.lowering.reach import refuse_unreachable
from constrain.runtime.decisions import precision
from constrain.runtime.estimates import describe
from constrain.runtime.modes import noted
from constrain.solvers.sampling import batch_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.diagnostics.point import Point
    from constrain.driver.batches import Group, Noise
    from constrain.driver.setup import Setup
    from constrain.language.data import Data
    from constrain.language.problem import Problem
    from constrain.lowering.program import Form, Program
    from constrain.runtime.evaluator import Evaluator

__all__ = ["Check", "ConstraintLine", "PopulationLine", "RateLine", "check"]

ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class PopulationLine:
    """A sample.

    Attributes:
        name: of the sample.
        rows: of the sample; support points of a continuous population.
        batch: rows of the planned batch, None without batches.
        unused: columns that no term uses.
    """

    name: str
    rows: int
    batch: int | None
    unused: tuple[str, ...]


@dataclass(frozen=True)
class ConstraintLine:
    """A constraint.

    Attributes:
        name: the user's name.
        text: the constraint in mathematics.
        multipliers: how many it has.
        slack: at the start; negative where it is violated. Of several entries, the smallest.
        sample: standard error of the residual from all rows; None for a constraint per row.
        batch: the same from one batch; None without batches.
        estimate: how a batch estimates it; empty without batches.
    """

    name: str
    text: str
    multipliers: int
    slack: float | None
    sample: float | None
    batch: float | None
    estimate: str


@dataclass(frozen=True)
class RateLine:
    """A term with rates: what is reported, and what the gradient sees.

    Attributes:
        name: `objective`, or the key of a constraint's part.
        surrogates: the stand-ins of its events.
        exact: its value (of a constraint, the residual) at the start, with exact rates.
        surrogate: the same with the surrogates, at the entry where they differ most.
    """

    name: str
    surrogates: tuple[str, ...]
    exact: float
    surrogate: float


@dataclass(frozen=True)
class Check:
    """What `problem.check()` returns; prints as text.

    Attributes:
        problem: the problem in mathematics.
        findings: errors first, then warnings, then notes.
        populations: the samples.
        decisions: variables and models with their sizes.
        constraints: one line each.
        groups: conditions and groups with their rows, smallest first.
        noise: standard errors of the constraints.
        rates: what the gradient sees in the place of rates.
        routes: every method's answer.
        method: what `method="auto"` would run, None when nothing can.
    """

    problem: str
    findings: tuple[Finding, ...] = ()
    populations: tuple[PopulationLine, ...] = ()
    decisions: tuple[str, ...] = ()
    constraints: tuple[ConstraintLine, ...] = ()
    groups: tuple[Group, ...] = ()
    noise: tuple[Noise, ...] = field(default=(), repr=False)
    rates: tuple[RateLine, ...] = ()
    routes: tuple[Route, ...] = ()
    method: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(finding.severity == "info" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain: dict[str, Any] = asdict(self)
        return {"ok": self.ok, **plain}

    def __str__(self) -> str:
        blocks = [self.problem, self._sizes(), self._table(), self._rate_table(), self._findings()]
        return "\n\n".join(block for block in [*blocks, self._routes()] if block)

    # ---- text
    def _sizes(self) -> str:
        lines: list[str] = []
        for population in self.populations:
            batch = "" if population.batch is None else f", batches of {population.batch}"
            lines.append(f"data       {population.name}: {population.rows:,} rows{batch}")
        if self.groups:
            shown = [f"{g.name} {g.rows:,}" for g in self.groups[:3]]
            more = f", {len(self.groups) - 3} more" if len(self.groups) > 3 else ""
            lines.append(f"groups     {', '.join(shown)}{more}")
        if self.decisions:
            lines.append(f"decisions  {', '.join(self.decisions)}")
        return "\n".join(lines)

    def _table(self) -> str:
        batched = any(line.batch is not None for line in self.constraints)
        head = ["constraint", "multipliers", "slack now", "std. error"]
        rows = [[*head, "in a batch", "estimated by"] if batched else head]
        for line in self.constraints:
            own = [line.name, f"{line.multipliers:,}", _number(line.slack), _number(line.sample)]
            rows.append([*own, _number(line.batch), line.estimate] if batched else own)
        return _aligned(rows) if self.constraints else ""

    def _rate_table(self) -> str:
        rows = [["residuals with rates", "exact", "surrogate", "that the gradient sees"]]
        for line in self.rates:
            name = f"{line.name} (value)" if line.name == "objective" else line.name
            own = [name, _number(line.exact), _number(line.surrogate)]
            rows.append([*own, ", ".join(line.surrogates)])
        return _aligned(rows) if self.rates else ""

    def _findings(self) -> str:
        words = {"error": "error", "warning": "warning", "info": "note"}
        counts = {key: sum(f.severity == key for f in self.findings) for key in words}
        listed = [f"{count} {words[key]}{'s'[: count != 1]}" for key, count in counts.items()]
        lines = [f"findings   {', '.join(listed)}"]
        lines += [f"  {line}" for finding in self.findings for line in finding.lines()]
        return "\n".join(lines)

    def _routes(self) -> str:
        lines = ["routes"] if self.routes else []
        for route in self.routes:
            mark = "->" if route.method == self.method else "  "
            lines.append(f"  {mark} {route.method:<10} {'open  ' if route.open else 'closed'} {route.reason}")
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else "0" if abs(value) < 1e-12 else f"{value:.3g}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table: numbers to the right, the first and last column to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    right = [k > 0 and _numeric(rows, k) for k in range(len(rows[0]))]
    lines: list[str] = []
    for row in rows:
        cells = [
            cell.rjust(width) if last else cell.ljust(width)
            for cell, width, last in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _numeric(rows: Sequence[Sequence[str]], k: int) -> bool:
    return all(not row[k] or row[k][:1] in "-0123456789∞in" for row in rows[1:])


# ---------------------------------------------------------------------------------------- the report
@named
def check(
    problem: Problem,
    *,
    batch: int | None = None,
    data: Data | Mapping[str, Data] | None = None,
    params: Mapping[str, Any] | None = None,
    method: str = "auto",
    device: Any = None,
    seed: int = 0,
) -> Check:
    """The structural report of a problem, before it is solved.

    Args:
        problem: what to check. Nothing of it is changed.
        batch: rows of the planned batch; left out, the solver's own choice where the method takes batches.
        data: replaces the samples of the problem.
        params: values of parameters by name.
        method: the planned method.
        device: where to run; models are moved there.
        seed: of the point nearby at which dependences are looked for a second time.

    Returns:
        A record; it prints as text, and `findings` lists what was found. What `solve` would refuse is a
        finding of severity `error` and is not raised.

    Raises:
        ModelingError: E179 for a batch without rows.
        RouteError: E125 for an unknown method.
    """
    _refuse_options(batch, method)
    text = str(language_printing().problem_text(problem))
    found = structure.squares(problem)
    try:
        program = lowered(problem, data)
        facts = classify(program)
    except ConstrainError as error:
        return _sorted(Check(text), [*found, finding_of(error, "error", _culprit(problem, error))])
    answers = routes(program, facts)
    chosen: str | None = method
    try:
        form = formula_of(program, data, params)
    except ConstrainError:  # of data or parameters, which is found below
        form = ""
    if not isinstance(form, str):
        answers = (Route("closed", True, form.reason), *answers)
        chosen = "closed" if method == "auto" and batch is None else chosen
    if chosen == "auto":
        try:
            chosen = choose(program, facts, {} if batch is None else {"batch": batch})[0]
        except RouteError as error:
            chosen = None
            found.append(finding_of(error, "error"))
    report = Check(text, decisions=tuple(_decisions(program)), routes=answers, method=chosen)
    try:
        with asked_once(), precision(program, torch.float64):
            where = place(program, device)
            setup = prepare(program, device=where, dtype=torch.float64, data=data, params=params)
            return _filled(report, found, setup, batch, seed)
    except ConstrainError as error:
        return _sorted(report, [*found, finding_of(error, "error", _culprit(problem, error))])


def _refuse_options(batch: Any, method: str) -> None:
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ModelingError("E179", f"batch={batch!r} is no number of rows", fix="batch=128")
    if method not in ("auto", "closed", "cvxpy", "cooper"):
        make_solver(method, {})  # refuses unknown names


def _culprit(problem: Problem, error: ConstrainError) -> str | None:
    """The constraint whose name a message quotes."""
    return next((name for name in problem.constraints if repr(name) in str(error)), None)


def _sorted(report: Check, findings: Sequence[Finding]) -> Check:
    ordered = sorted(findings, key=lambda f: ORDER[f.severity])
    return replace(report, findings=tuple(ordered))


def _decisions(program: Program) -> list[str]:
    hidden = set(program.auxiliary)
    found = [f"{s.name}{list(s.shape) if s.shape else ''}" for s in program.variables if s not in hidden]
    for model in program.models:
        count = sum(int(p.numel()) for p in model.module.parameters() if p.requires_grad)
        found.append(f"{model.name} ({'frozen' if model.frozen else f'{count:,} parameters'})")
    return found


def _filled(report: Check, found: list[Finding], setup: Setup, batch: int | None, seed: int) -> Check:
    """The report with everything that needs data."""
    evaluator, program = setup.evaluator, setup.program
    before = setup.decisions.snapshot()
    minibatch = batch is not None or report.method in ("lagrangian", "cooper")
    rows = {data.name: p.rows for data, p in evaluator.populations.items()}
    sizes = None
    if minibatch and rows:
        samples = evaluator.populations.items()
        sizes = {data.name: batch_size(batch or p.batch, p.rows) for data, p in samples}
    point = read_point(evaluator).within(program)
    groups = of_batches.groups(evaluator, sizes)
    noise = of_batches.noise(evaluator, point, sizes)
    found = [
        *found,
        *_structural(evaluator, point, seed),
        *of_batches.steps(evaluator),
        *of_batches.tiny(groups),
        *of_batches.rare(evaluator, groups, sizes),
        *of_batches.noisy(noise, sizes),
        *of_batches.bent(program, sizes, rows),
        *_unused_columns(evaluator),
        *_acting(evaluator),
    ]
    setup.decisions.restore(before)
    filled = replace(
        report,
        populations=tuple(_populations(evaluator, sizes)),
        constraints=tuple(_constraints(program, point, noise, batched=sizes is not None)),
        groups=tuple(groups),
        noise=tuple(noise),
        rates=tuple(_rates(evaluator, point)),
    )
    return _sorted(filled, found)


def _structural(evaluator: Evaluator, point: Point, seed: int) -> list[Finding]:
    program = evaluator.program
    found = structure.constants(evaluator, point)
    bound = {data.name: population.data for data, population in evaluator.populations.items()}
    try:
        refuse_unreachable(program, bound, evaluator.params)
    except ModelingError as error:
        found.append(finding_of(error, "error", _culprit(program.problem, error)))
    system = System(evaluator, [residual.shape for residual in point.residuals])
    impossible = [f.constraint for f in found if f.severity == "error" and f.constraint is not None]
    found += structure.conflicts(system, impossible)
    repeated = structure.repetitions(evaluator, system)
    found += repeated
    found += unused_blocks(evaluator)
    spare = [(f.constraint or "").split(", ")[f.severity == "warning"] for f in repeated]
    slopes = Slopes(evaluator, torch.Generator().manual_seed(seed))
    return [*found, *slopes.dependences(spare), *slopes.flat()]


# --------------------------------------------------------------------------------------------- lines
def _populations(evaluator: Evaluator, sizes: Mapping[str, int] | None) -> list[PopulationLine]:
    return [
        PopulationLine(
            data.name, p.rows, None if sizes is None else sizes[data.name], _unused(evaluator, data)
        )
        for data, p in evaluator.populations.items()
    ]


def _unused(evaluator: Evaluator, data: Data) -> tuple[str, ...]:
    nodes = n.postorder(*evaluator.program.problem.roots)
    used = {x.name for x in nodes if isinstance(x, n.Column) and x.data is data}
    return tuple(column for column in data.columns if column not in used)


def _unused_columns(evaluator: Evaluator) -> list[Finding]:
    """W212: columns that no term uses."""
    found: list[Finding] = []
    for data in evaluator.populations:
        columns = _unused(evaluator, data)
        if columns:
            named = ", ".join(columns)
            message = f"no term uses the column{'s'[: len(columns) > 1]} {named} of {data.name}"
            found.append(Finding("W212", "info", None, message))
    return found


def _acting(evaluator: Evaluator) -> list[Finding]:
    """W227: layers that act in training steps only."""
    message = noted(evaluator.modes.words(evaluator))
    return [Finding("W227", "info", None, message)] if message else []


def _constraints(
    program: Program, point: Point, noise: Sequence[Noise], *, batched: bool
) -> list[ConstraintLine]:
    known = {each.constraint: each for each in noise}
    words = dict(describe(program))
    found: list[ConstraintLine] = []
    for k, form in enumerate(program.forms):
        if form.name == EPIGRAPH:
            continue
        own = list(program.places.get(form.name, ()))
        text = str(language_printing().text(form.relation, limit=120))
        sizes = [_largest(program.parts[i].kind, point, i) for i in own]
        each = known.get(form.name)
        how = words.get(program.parts[own[0]].key, "") if own and batched else ""
        if form.rows is None and not any(n.mentions(program.parts[i].residual, n.Moment) for i in own):
            each, how = None, ""  # no averages: known exactly
        found.append(
            ConstraintLine(
                form.name,
                text,
                _multipliers(form, point, k, own),
                -max(sizes) if sizes else None,
                None if each is None else each.sample,
                None if each is None else each.batch,
                how,
            )
        )
    return found


def _largest(kind: str, point: Point, i: int) -> float:
    residual = point.selected(i)
    return float((abs(residual) if kind == "==" else residual).max(initial=-float("inf")))


def _multipliers(form: Form, point: Point, k: int, own: Sequence[int]) -> int:
    """How many multipliers a constraint has as written: rows that it selects times entries."""
    sides = point.sides[k]
    if form.rows is not None and own:
        rows = point.rows_of(k, own[0])[0][0]
        return int(rows.size)
    return max((int(side.size) for side in sides), default=1)


def _rates(evaluator: Evaluator, point: Point) -> list[RateLine]:
    program = evaluator.program
    if not program.has_rates:
        return []
    found: list[RateLine] = []
    soft = float(evaluator.full("primal").objective)
    terms = [("objective", program.objective, point.objective, soft)]
    for i, part in enumerate(program.parts):
        gap = abs(point.selected(i) - point.surrogates[i])
        if part.constraint != EPIGRAPH and gap.size:
            k = int(gap.argmax())
            pair = float(point.residuals[i].flat[k]), float(point.surrogates[i].flat[k])
            terms.append((part.key, part.residual, *pair))
    for name, root, exact, surrogate in terms:
        events = [x for x in n.postorder(root) if isinstance(x, n.Indicator) and x.surrogate is not None]
        words = tuple(dict.fromkeys(x.surrogate.described for x in events if x.surrogate is not None))
        if words:
            sign = program.sign if name == "objective" else 1.0
            found.append(RateLine(name, words, sign * exact, sign * surrogate))
    return found
