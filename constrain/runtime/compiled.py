"""The generated functions of a program: what runs on the rows of each sample, and what runs on the moments.

Everything here depends on the program alone. `Evaluator` adds decisions, data and a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from constrain.language.types import type_of
from constrain.runtime.codegen import Generated, Tables, generate

if TYPE_CHECKING:
    from constrain.language import nodes as n
    from constrain.language.data import Data
    from constrain.lowering.program import Program

__all__ = ["Functions", "Job"]


@dataclass
class Job:
    """What one sample contributes: positions of its moments and of its row parts."""

    data: Data
    moments: list[int]
    parts: list[int]


class Functions:
    """Generates every function of a program when it is first asked for, and keeps it.

    Args:
        program: the moment form.

    Attributes:
        tables: what the generated code refers to by position; complete after `prepare`.
        jobs: one per sample.
        margins: per sample, the margins of the indicators that have a surrogate (after `prepare`).
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.tables = Tables()
        self.tables.moments.extend(program.moments)
        self.jobs = _plan(program)
        self.margins: dict[Data, Generated] = {}
        self._made: dict[tuple[str, str], Generated] = {}

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

    def rows(self, job: Job, mode: str) -> Generated:
        """Integrands, residuals per row and row masks of a sample; `mode` is "primal", "exact" or "both"."""
        key = (job.data.name, mode)
        if key not in self._made:
            moments = [self.program.moments[i].integrand for i in job.moments]
            parts = [self.program.parts[i] for i in job.parts]
            modes = ("primal", "exact") if mode == "both" else (mode,)
            outputs: list[tuple[n.Node | None, str]] = []
            for each in modes:
                outputs += [(x, each) for x in moments]
                outputs += [(p.residual, each) for p in parts]
            outputs += [(p.where, "exact") for p in parts]
            name = f"rows_{job.data.name}"[:40].replace(" ", "_")
            self._made[key] = generate(name, self.tables, outputs)
        return self._made[key]

    def outer(self, mode: str) -> Generated:
        """The objective and the residual of every part, out of the moments."""
        key = ("", mode)
        if key not in self._made:
            outputs: list[tuple[n.Node | None, str]] = [(self.program.objective, mode)]
            outputs += [(None if p.rows is not None else p.residual, mode) for p in self.program.parts]
            self._made[key] = generate("outer", self.tables, outputs)
        return self._made[key]

    def sides(self) -> Generated:
        """Both sides of every constraint as written, out of the moments."""
        key = ("", "sides")
        if key not in self._made:
            outputs: list[tuple[n.Node | None, str]] = []
            for form in self.program.forms:
                outputs += [(None if form.rows is not None else x, "exact") for x in (form.lhs, *form.rhs)]
            self._made[key] = generate("sides", self.tables, outputs)
        return self._made[key]

    @property
    def source(self) -> str:
        """The generated code that runs on a batch, for reading."""
        return "\n".join(g.source for (_, mode), g in self._made.items() if mode in ("both", "primal"))

    @property
    def operations(self) -> int:
        """Number of torch operations of one training step, forward."""
        rows = sum(self.rows(job, "both").operations for job in self.jobs)
        return rows + self.outer("primal").operations + 2 * len(self.program.moments)


def _plan(program: Program) -> list[Job]:
    jobs = {data: Job(data, [], []) for data in program.populations}
    for i, moment in enumerate(program.moments):
        jobs[moment.data].moments.append(i)
    for i, part in enumerate(program.parts):
        if part.rows is not None:
            jobs[part.rows].parts.append(i)
    return list(jobs.values())
