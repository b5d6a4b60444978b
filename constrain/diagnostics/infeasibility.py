"""Which constraints exclude each other, how far each would have to give way, and the proof of it.

Everything rests on one question, answered by an `Oracle`: what is the least total violation of some
constraints, while some others hold and the rest is left out? From its answers come

- a smallest conflicting set (irreducible: without any one of its members the others can hold together), by
  the deletion filter, sped up by the sensitivity filter: entries without a multiplier are not needed;
- the fewest constraints whose relaxation leaves a point: a minimum hitting set of conflicting sets, to which
  sets are added until what is left can hold;
- what relaxing one constraint alone would have to come to.

Sources: Chinneck and Dravnieks (1991), ORSA J. Computing 3 (deletion and sensitivity filters); Parker and
Ryan (1996), Annals of Mathematics and AI 17 (hitting sets of conflicting sets).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from scipy import optimize

from constrain._lazy import reports
from constrain.diagnostics.table import number, short, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "Certificate",
    "Entry",
    "Evidence",
    "Infeasibility",
    "Least",
    "Oracle",
    "Search",
    "amounts_by_name",
    "certificate_value",
]

WEAK = 1e-7
"""Multipliers below this share of the largest one are none."""
ALONE = 8
"""Most members of a conflict that are tried as the only one to give way."""
ROUNDING = 1e-8
"""Slopes below this times the largest multiplier are rounding."""
FAR = 1e3
"""A certificate is verified when it excludes points this many times as far away as the nearest one is."""


# ------------------------------------------------------------------------------------------- the oracle
@dataclass(frozen=True)
class Entry:
    """What can give way: one number of a constraint's residual, or a constraint as a whole.

    Attributes:
        name: of the constraint.
        label: `flow[3]`, `parity[sex=Female] (upper side)`.
        unit: in which its violation is measured: that of `.scale(s)`, else 1 + |bound|.
    """

    name: str
    label: str
    unit: float = 1.0


@dataclass(frozen=True)
class Least:
    """The point of least violation.

    Attributes:
        amounts: per entry that could give way, in its own units; infinite where the hard ones exclude it.
        total: sum of amounts / unit, where an amount stands for several numbers the sum over all.
        multipliers: per entry, of a program that proves it; None without.
        point: values of the decisions, for whoever checks the multipliers.
    """

    amounts: NDArray[np.float64]
    total: float
    multipliers: NDArray[np.float64] | None = None
    point: Any = None


class Oracle(Protocol):
    """Answers how far constraints are from holding together."""

    @property
    def entries(self) -> Sequence[Entry]:
        """What can give way."""
        ...

    @property
    def tolerance(self) -> float:
        """Totals up to it count as none."""
        ...

    def least(self, soft: Sequence[int], hard: Sequence[int] = ()) -> Least | None:
        """The least total violation of `soft` while `hard` holds; None when no method came to an end."""
        ...


# ------------------------------------------------------------------------------------------- records
@dataclass(frozen=True)
class Certificate:
    """Multipliers of which sum_i multiplier_i * residual_i(x) > 0 for every x: no x makes all residuals <= 0.

    Checked in float64 from the definition: a convex function lies above its tangent at the nearest point, and
    the tangent is bounded over the bounds of the variables.

    Attributes:
        multipliers: by the label of the entry, those that are not 0; >= 0 for inequalities.
        bounds: slope of the sum at the bounds of variables that it needs, by `w[3] >= 0`.
        value: least value of the sum over the bounds.
        residual: sum over coordinates without a bound of what is left of the sum's gradient; 0 but for
            rounding.
        radius: the check excludes every point up to this far from the nearest one, value / residual.
        verified: whether that is farther than any point could matter.
    """

    multipliers: dict[str, float]
    bounds: dict[str, float]
    value: float
    residual: float
    radius: float
    verified: bool

    def __str__(self) -> str:
        terms = " + ".join(f"{number(m)}·{label}" for label, m in self.multipliers.items())
        reach = "every point" if math.isinf(self.radius) else f"every point up to {short(self.radius)} away"
        within = f" within {', '.join(self.bounds)}" if self.bounds else ""
        return f"{terms} ≥ {number(self.value)} > 0 at {reach}{within}"


@dataclass(frozen=True)
class Evidence:
    """What speaks for infeasibility where nothing can be proved.

    Attributes:
        totals: least total violation that each start came to.
        violations: largest violation per constraint at the best of these points, in its own units.
        growing: constraints whose multipliers grew while their violation stayed, in the solution's history.
    """

    totals: tuple[float, ...]
    violations: dict[str, float]
    growing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Infeasibility:
    """Why a problem has no feasible point, and what would give it one.

    Attributes:
        verdict: `infeasible` (proved), `likely_infeasible` (evidence only) or `feasible`.
        reason: how it is known, in a sentence.
        conflict: labels of a smallest conflicting set, bounds of variables last; empty where feasible.
        names: the constraints of the conflict.
        bounds: bounds of variables in the conflict.
        integers: integer variables without whose integrality the conflict is gone.
        parameters: values of the parameters that the conflict's constraints contain.
        columns: columns of data that they contain.
        minimal: whether every member of the conflict was shown to be needed.
        total: least total violation, in the constraints' units.
        amounts: by constraint the largest amount in its own units, at the point of least total violation.
        entries: the same by entry.
        fewest: a smallest set of constraints whose relaxation leaves a point, with the amounts; None where
            it was not found.
        alone: of the conflict's constraints the amount by which relaxing it alone leaves a feasible point;
            infinite where it does not.
        certificate: the proof; None without one.
        evidence: what was tried where there is no proof.
        point: values of the variables at the point of least total violation.
        solves: how many programs were solved.
    """

    verdict: Literal["infeasible", "likely_infeasible", "feasible"]
    reason: str
    conflict: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    bounds: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    columns: tuple[str, ...] = ()
    minimal: bool = True
    total: float = 0.0
    amounts: dict[str, float] = field(default_factory=dict[str, float])
    entries: dict[str, float] = field(default_factory=dict[str, float])
    fewest: dict[str, float] | None = None
    alone: dict[str, float] = field(default_factory=dict[str, float])
    certificate: Certificate | None = None
    evidence: Evidence | None = None
    point: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    solves: int = 0

    @property
    def feasible(self) -> bool:
        """Whether all constraints can hold together."""
        return self.verdict == "feasible"

    @property
    def advice(self) -> str:
        """`relax budget by 3.2 and it becomes feasible`, or what is known instead."""
        single = [f"{name} by {number(by)}" for name, by in self.alone.items() if math.isfinite(by)]
        what = " or ".join(single) or _listed(self.fewest or self.amounts)
        if not what:
            return ""
        found = "it becomes feasible" if self.verdict == "infeasible" else "there is a point that was found"
        return f"relax {what} and {found}"

    def report(self, path: str | Path | None = None) -> str:
        """The diagnosis as a page that needs no network, written to `path` when one is given."""
        page = str(reports("page").infeasibility_page(self))
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(page, encoding="utf-8")
        return page

    def _repr_html_(self) -> str:
        """A fragment for notebooks."""
        return str(reports("diagnosis").infeasibility_section(self))

    def __str__(self) -> str:
        lines = wrapped("verdict", f"{self.verdict}: {self.reason}")
        if self.feasible:
            return "\n".join(lines)
        word = "" if self.minimal else " (the search stopped early: a smaller one may exist)"
        lines += wrapped("conflict", f"{', '.join(self.conflict)}{word}")
        if self.integers:
            lines += wrapped("integers", f"{', '.join(self.integers)}: not of whole numbers, it could hold")
        if self.parameters:
            shown = ", ".join(f"{name} = {_value(value)}" for name, value in self.parameters.items())
            lines += wrapped("parameters", shown)
        if self.columns:
            lines += wrapped("columns", ", ".join(self.columns))
        if self.advice:
            lines += wrapped("advice", self.advice)
        if self.amounts:
            least = f"{_listed(self.amounts)} (total {number(self.total)} in the constraints' units)"
            lines += wrapped("least", least)
        if self.fewest is not None:
            lines += wrapped("fewest", f"{len(self.fewest)}: {_listed(self.fewest)}")
        if self.certificate is not None:
            lines += wrapped("proof", str(self.certificate))
        if self.evidence is not None:
            totals = ", ".join(number(t) for t in self.evidence.totals)
            lines += wrapped(
                "evidence", f"least total violation of {len(self.evidence.totals)} starts: {totals}"
            )
            if self.evidence.growing:
                lines += wrapped("", f"multipliers kept growing: {', '.join(self.evidence.growing)}")
        return "\n".join(lines)


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} by {number(by)}" for name, by in amounts.items())


def _value(value: Any) -> str:
    array = np.asarray(value)
    return number(float(array)) if array.ndim == 0 else f"{array.size} numbers"


def amounts_by_name(entries: Iterable[Entry], amounts: Iterable[float], tolerance: float) -> dict[str, float]:
    """The largest amount per constraint, of those above the tolerance (in units)."""
    found: dict[str, float] = {}
    for entry, by in zip(entries, amounts, strict=True):
        if by > tolerance * entry.unit:
            found[entry.name] = max(found.get(entry.name, 0.0), float(by))
    return found


# ------------------------------------------------------------------------------------------- the search
class Search:
    """Looks for conflicts by asking an oracle.

    Args:
        oracle: what is asked.
        limit: most questions; when they are used up, what is known by then is returned.
    """

    def __init__(self, oracle: Oracle, limit: int = 400) -> None:
        self.oracle = oracle
        self.limit = limit
        self.solves = 0

    @property
    def spent(self) -> bool:
        """Whether no question is left."""
        return self.solves >= self.limit

    def least(self, soft: Sequence[int], hard: Sequence[int] = ()) -> Least | None:
        """Asks the oracle."""
        self.solves += 1
        return self.oracle.least(soft, hard)

    def violated(self, found: Least | None) -> bool:
        """Whether an answer says that constraints cannot hold together."""
        return found is not None and found.total > self.oracle.tolerance

    # ---- a smallest conflicting set
    def conflict(
        self, entries: Sequence[int], found: Least, given: Iterable[int] = ()
    ) -> tuple[list[int], bool]:
        """A smallest conflicting set within entries that conflict, and whether it was shown to be one.

        Args:
            entries: that cannot hold together.
            found: the oracle's answer about them.
            given: entries that stay in the set, without being tested.
        """
        needed = set(given)
        kept = self._supported(list(entries), found, needed)
        size = max(1, len(kept) // 4)
        while open_ := [e for e in kept if e not in needed]:
            if self.spent:
                return kept, False
            chunk = set(open_[:size])
            rest = [e for e in kept if e not in chunk]
            answer = self.least(rest) if rest else None
            if answer is not None and self.violated(answer):
                kept = self._supported(rest, answer, needed)
            elif len(chunk) == 1:
                needed |= chunk
            else:
                size = max(1, size // 4)
        return kept, True

    def _supported(self, entries: list[int], found: Least, needed: set[int]) -> list[int]:
        """Those with a multiplier, when they still conflict without the others (the sensitivity filter)."""
        if found.multipliers is None or self.spent:
            return entries
        units = np.array([self.oracle.entries[e].unit for e in entries])
        size = np.abs(found.multipliers) * units
        least = WEAK * float(size.max(initial=0.0))
        kept = [e for e, s in zip(entries, size.tolist(), strict=True) if s > least or e in needed]
        if not kept or len(kept) == len(entries):
            return entries
        return kept if self.violated(self.least(kept)) else entries

    # ---- the fewest to relax
    def fewest(self, first: Sequence[int], preferred: Mapping[str, float]) -> dict[str, float] | None:
        """A smallest set of constraints without which the others can hold, with the amounts that suffice.

        Args:
            first: a conflicting set.
            preferred: constraints to choose among equally small sets.

        Returns:
            None when the questions were used up.
        """
        entries = self.oracle.entries
        names = list(dict.fromkeys(e.name for e in entries))
        conflicts = [{entries[e].name for e in first}]
        while not self.spent:
            chosen = _hitting(names, conflicts, preferred)
            rest = [k for k, e in enumerate(entries) if e.name not in chosen]
            found = self.least(rest) if rest else None
            if found is None or not self.violated(found):
                soft = [k for k, e in enumerate(entries) if e.name in chosen]
                amounts = self.least(soft, rest)
                if amounts is None or not math.isfinite(amounts.total):
                    return None
                return amounts_by_name([entries[k] for k in soft], amounts.amounts, self.oracle.tolerance)
            kept, _ = self.conflict(rest, found)
            conflicts.append({entries[e].name for e in kept})
        return None

    # ---- one alone
    def alone(self, names: Sequence[str]) -> dict[str, float]:
        """By how much each of these constraints has to give way when no other one does; infinite: never."""
        entries = self.oracle.entries
        result: dict[str, float] = {}
        for name in names[:ALONE]:
            if self.spent:
                break
            soft = [k for k, e in enumerate(entries) if e.name == name]
            found = self.least(soft, [k for k in range(len(entries)) if entries[k].name != name])
            if found is None:
                continue
            result[name] = float(np.max(found.amounts, initial=0.0))
        return result


def _hitting(names: Sequence[str], conflicts: Sequence[set[str]], preferred: Mapping[str, float]) -> set[str]:
    """A smallest set of names with one of every conflict (a set covering program, by HiGHS)."""
    costs = np.array([1.0 if name in preferred else 1.0 + 0.5 / len(names) for name in names])
    rows = np.array([[float(name in conflict) for name in names] for conflict in conflicts])
    found = optimize.milp(
        costs,
        constraints=optimize.LinearConstraint(rows, 1.0, np.inf),  # type: ignore[arg-type]
        integrality=np.ones(len(names)),
        bounds=optimize.Bounds(0.0, 1.0),
    )
    chosen: NDArray[np.float64] = np.asarray(found.x, dtype=np.float64)
    return {name for name, x in zip(names, chosen, strict=True) if x > 0.5}


# ------------------------------------------------------------------------------------------- the proof
def certificate_value(
    value: float,
    gradient: NDArray[np.float64],
    point: NDArray[np.float64],
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]],
    labels: Callable[[int, bool], str],
    multipliers: dict[str, float],
) -> Certificate:
    """The certificate of multipliers, from the sum of multiplier * residual and its gradient at a point.

    The sum is convex, so for every x within the bounds it is at least value + min gradient . (x - point).

    Args:
        value: of the sum at the point.
        gradient: (decisions,) there.
        point: (decisions,).
        bounds: lower and upper, infinite where there are none.
        labels: name of a coordinate's lower (False) or upper (True) bound.
        multipliers: by label, for the record.
    """
    least, left = value, 0.0
    used: dict[str, float] = {}
    rounding = ROUNDING * max(map(abs, multipliers.values()), default=0.0)
    for j in np.flatnonzero(gradient):
        slope = float(gradient[j])
        upper = slope < 0
        end = float(bounds[int(upper)][j])
        if math.isfinite(end) and abs(slope) > rounding:
            least += slope * (end - float(point[j]))
            used[labels(int(j), upper)] = abs(slope)
        else:
            left += abs(slope)
    radius = math.inf if left == 0.0 else least / left
    verified = least > 0 and radius > FAR * (1.0 + float(np.max(np.abs(point), initial=0.0)))
    return Certificate(multipliers, used, least, left, radius, verified)
