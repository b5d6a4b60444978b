"""The generated functions of a program: what runs on the rows of each sample, and what runs on the moments.

Everything here depends on the program alone. `Evaluator` adds decisions, data and a device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.runtime.codegen import Generated, Tables, generate

if TYPE_CHECKING:
    from constrain.language.data import Data
    from constrain.lowering.program import Program

__all__ = ["Functions", "Job", "StratumKey"]

StratumKey: TypeAlias = "tuple[n.Node | None, tuple[str, ...]]"
"""A condition, and the names of group columns."""


@dataclass
class Job:
    """What one sample contributes.

    Attributes:
        data: the sample.
        moments: positions of its moments.
        parts: positions of its parts per row.
        strata: per (condition, group columns) the places among `moments` that share it.
    """

    data: Data
    moments: list[int]
    parts: list[int]
    strata: dict[StratumKey, list[int]] = field(default_factory=dict["StratumKey", list[int]])


class Functions:
    """Generates every function of a program when it is first asked for, and keeps it.

    Args:
        program: the moment form.

    Attributes:
        tables: what the generated code refers to by position; complete after `prepare`.
        jobs: one per sample.
        margins: per sample, the margins of the indicators that have a surrogate (after `prepare`).
        conditions: of every margin the samples, conditions and groups that rates of it are over.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.tables = Tables()
        self.tables.moments.extend(program.moments)
        self.jobs = _plan(program)
        self.margins: dict[Data, Generated] = {}
        self.conditions: list[list[tuple[Data, StratumKey]]] = []
        self._made: dict[tuple[str, str], Generated] = {}
        self._outer: dict[tuple[str, tuple[int, ...] | None], Generated] = {}

    def prepare(self) -> None:
        """Generates every function once, so that all tables are complete and errors come before solving."""
        for job in self.jobs:
            for mode in ("primal", "exact", "both"):
                self.rows(job, mode)
        self.outer("primal")
        self.outer("exact")
        self.sides()
        for job in self.jobs:
            mine: list[tuple[n.Node | None, str]] = [
                (x if type_of(x).rows is job.data else None, "exact") for x in self.tables.margins
            ]
            self.margins[job.data] = generate("margins", self.tables, mine)
        self.conditions = self._conditions()

    def _conditions(self) -> list[list[tuple[Data, StratumKey]]]:
        """Of every margin the conditions and groups of the averages in which it occurs, by sample."""
        found: list[dict[tuple[Data, StratumKey], None]] = [{} for _ in self.tables.margins]
        margins: dict[int, list[int]] = {}  # of integrands, which many averages share
        for job in self.jobs:
            for key, places in job.strata.items():
                for integrand in (self.program.moments[job.moments[p]].integrand for p in places):
                    if key == (None, ()):
                        continue
                    if id(integrand) not in margins:
                        margins[id(integrand)] = self._margins_of(integrand, job.data)
                    for k in margins[id(integrand)]:
                        found[k][job.data, key] = None
        return [list(own) for own in found]

    def _margins_of(self, integrand: n.Node, data: Data) -> list[int]:
        """Places of the margins of an integrand that have a value per row."""
        events = (x.event for x in n.postorder(integrand) if isinstance(x, n.Indicator) and x.surrogate)
        places = {k for event in events for k in self.tables.events.get(event, ())}
        return [k for k in sorted(places) if type_of(self.tables.margins[k]).rows is data]

    @cached_property
    def alike(self) -> bool:
        """Whether values and what stands for them in gradients are the same: nothing has a surrogate."""
        return not any(
            (isinstance(x, n.Indicator) and x.surrogate) or (isinstance(x, n.Pinned) and x.primal is not None)
            for x in self.program.nodes
        )

    def _mode(self, mode: str) -> str:
        return "primal" if mode == "exact" and self.alike else mode

    def rows(self, job: Job, mode: str) -> Generated:
        """Integrands, residuals per row and row masks of a sample; `mode` is "primal", "exact" or "both"."""
        mode = self._mode(mode)
        key = (job.data.name, mode)
        if key not in self._made:
            moments = [self.program.moments[i].integrand for i in job.moments]
            parts = [self.program.per_row[i] for i in job.parts]
            modes = ("primal", "exact") if mode == "both" else (mode,)
            outputs: list[tuple[n.Node | None, str]] = []
            for each in modes:
                outputs += [(x, each) for x in moments]
                outputs += [(p.residual, each) for p in parts]
            outputs += [(p.where, "exact") for p in parts]
            name = f"rows_{job.data.name}"[:40].replace(" ", "_")
            self._made[key] = generate(name, self.tables, outputs)
        return self._made[key]

    def outer(self, mode: str, which: tuple[int, ...] | None = None) -> Generated:
        """Outer functions out of the moments: all, or those at these positions.

        Position 0 is the objective, i + 1 the residual of stack i (None where it is per row).
        """
        mode = self._mode(mode)
        key = (mode, which)
        if key not in self._outer:
            stacks = self.program.stacks
            own = (None if stack.part.rows is not None else stack.residual for stack in stacks)
            roots = [self.program.objective, *own]
            chosen = range(len(roots)) if which is None else which
            self._outer[key] = generate("outer", self.tables, [(roots[i], mode) for i in chosen])
        return self._outer[key]

    def tails(self, data: Data) -> Generated:
        """Integrand and condition of every tail of a sample, exact."""
        key = (data.name, "tails")
        if key not in self._made:
            tails = [tail for tail in self.program.tails if tail.data is data]
            outputs: list[tuple[n.Node | None, str]] = []
            for tail in tails:
                outputs += [(tail.integrand, "exact"), (tail.given, "exact")]
            self._made[key] = generate("tails", self.tables, outputs)
        return self._made[key]

    def sides(self) -> Generated:
        """Both sides of every constraint as written, out of the moments; those of families together, last."""
        key = ("", "sides")
        if key not in self._made:
            outputs: list[tuple[n.Node | None, str]] = []
            for form in self.program.shared.singles:
                outputs += [(None if form.rows is not None else x, "exact") for x in (form.lhs, *form.rhs)]
            for own in self.program.shared.families:
                outputs += [(x, "exact") for x in (own.lhs, *own.rhs)]
            self._made[key] = generate("sides", self.tables, outputs)
        return self._made[key]

    @property
    def source(self) -> str:
        """The generated code that runs on a batch, for reading."""
        made = [*self._made.items(), *self._outer.items()]
        return "\n".join(g.source for key, g in made if "both" in key or "primal" in key)

    @property
    def operations(self) -> int:
        """Number of torch operations of one training step, forward."""
        rows = sum(self.rows(job, "both").operations for job in self.jobs)
        sums = sum(4 * len(job.strata) for job in self.jobs)
        return rows + sums + self.outer("primal").operations


def _plan(program: Program) -> list[Job]:
    jobs = {data: Job(data, [], []) for data in program.populations}
    for i, moment in enumerate(program.moments):
        job = jobs[moment.data]
        stratum = (moment.given, tuple(c.name for c in moment.by))
        job.strata.setdefault(stratum, []).append(len(job.moments))
        job.moments.append(i)
    for stack in program.stacks:
        if stack.part.rows is not None:
            jobs[stack.part.rows].parts.append(int(stack.places[0]))
    return list(jobs.values())
