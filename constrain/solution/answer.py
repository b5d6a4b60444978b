"""`Solution`: status, objective, constraints by name, diagnostics, history, provenance."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from constrain._lazy import attribute, diagnostics_report, driver, reports
from constrain.errors import ModelingError
from constrain.language.data import suggest
from constrain.solution import storage
from constrain.solution.frames import frame_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from constrain.diagnostics.infeasibility import Infeasibility
    from constrain.language.data import Data
    from constrain.language.problem import Problem
    from constrain.solution.constraint import ConstraintResult
    from constrain.solution.mixture import Mixture
    from constrain.solution.noise import RunError
    from constrain.solution.paths import ParametricPath
    from constrain.solution.records import KKT, Estimate, Number, Provenance, Sensitivity, Status, Warn
    from constrain.solution.tightening import Tightening

__all__ = ["Evaluation", "History", "Live", "Solution"]


class Live(Protocol):
    """The problem behind a solution, when it is at hand; made by `constrain.diagnostics.alive`."""

    @property
    def problem(self) -> Problem:
        """The problem as written."""
        ...

    def kkt(
        self,
        multipliers: Mapping[str, Any] | None,
        tolerance: float,
        order: int = 1,
        batches: int | None = None,
    ) -> KKT:
        """KKT quantities at the solution's point."""
        ...

    def sensitivity(
        self, parameter: str, multipliers: Mapping[str, Any] | None, tolerance: float
    ) -> Sensitivity:
        """Derivatives of the optimum in a parameter."""
        ...

    def slope(self, parameter: str, multipliers: Mapping[str, Any] | None) -> float:
        """Derivative of the optimal value in a parameter; NaN where there is none."""
        ...

    def evaluate(
        self,
        data: Data | Mapping[str, Data],
        within: Mapping[str, float] | None = None,
        bounded: Mapping[str, tuple[float, float]] | None = None,
    ) -> Evaluation:
        """Statistics at the solution's point on other data."""
        ...

    def infeasibility(self, solution: Solution, options: Mapping[str, Any]) -> Infeasibility:
        """Which constraints exclude each other on the solution's data."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """A solution's objective and constraints on some data.

    Attributes:
        data: names of the samples.
        rows: rows per sample.
        objective: value in the user's sense.
        lower: lower end of its 95 % interval (sampling error of these rows).
        upper: upper end.
        estimates: per constraint its statistics.
        texts: per constraint its text as written.
    """

    data: tuple[str, ...]
    rows: tuple[int, ...]
    objective: float
    lower: float
    upper: float
    estimates: dict[str, Estimate]
    texts: dict[str, str]

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided interval of the objective."""
        return self.lower, self.upper

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the constraints."""
        return tuple(self.estimates)

    def __getitem__(self, name: str) -> Estimate:
        return _named(self.estimates, name)

    def __str__(self) -> str:
        return str(diagnostics_report().evaluation_text(self))


class History(list[dict[str, Any]]):
    """One record per recorded step; keys `step`, `objective`, `violation`, `multiplier:KEY`, ..."""

    def to_frame(self) -> Any:
        """A pandas frame with one row per recorded step.

        Raises:
            ModelingError: E143 without pandas.
        """
        return frame_of(self)


def _codes(ignore: Collection[str]) -> set[str]:
    given = {ignore} if isinstance(ignore, str) else set(ignore)
    for code in given:
        if re.fullmatch(r"[A-Z]\d{3}|[a-z]+(-[a-z]+)*", code) is None:
            raise ModelingError("E141", f"{code!r} is no code of a warning", fix='ignore=["C311"]')
    return given


def _named(table: Mapping[str, Any], name: str) -> Any:
    if name not in table:
        hint = suggest(name, table) if isinstance(name, str) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ModelingError(
            "E139",
            f"there is no constraint {name!r}{hint}",
            fix=f"one of {', '.join(table)}" if table else "the problem has no constraints",
        )
    return table[name]


@dataclass
class Solution:
    """What a solve returns.

    Attributes:
        status: how much is known.
        objective: exact value on the training data, in the user's sense.
        sense: `minimize`, `maximize` or `find`.
        constraints: results by name, in the user's order.
        train: statistics on the training data.
        holdout: statistics on the hold-out, None without one.
        record: KKT quantities at the point with the solver's multipliers.
        variables: values of the `Variable`s by name.
        weights: parameters and buffers of the models by `model.parameter`.
        hidden: values of decisions that the compiler introduced, such as the slacks of relaxed constraints.
        multipliers: per part key, in the sign of the program that minimizes; None when there are none.
        history: one record per recorded step.
        warnings: what a reader must know.
        provenance: versions, seed, time, data fingerprints, source.
        bound: proven bound of the optimal value in the user's sense, None without.
        message: the solver's words.
        live: the problem behind it; None after `load` without one.
        value_at_risk: the threshold of a `CVaR` in the objective, exact on the training data; a tuple when it
            has several, None without.
        paths: by parameter what `path` found; pages show them as a slider.
        tightening: the margins of `solve(margin=...)` and their price; None without.
        mixture: iterates of the run of which drawing one beats every single one; None where none do.
        diagnosis: what `infeasibility()` found, for pages; it is not stored.
    """

    status: Status
    objective: float
    sense: str
    constraints: dict[str, ConstraintResult]
    train: Evaluation
    holdout: Evaluation | None
    record: KKT
    variables: dict[str, NDArray[Any]]
    weights: dict[str, NDArray[Any]]
    multipliers: dict[str, NDArray[np.float64]] | None
    history: History
    warnings: tuple[Warn, ...]
    provenance: Provenance
    bound: float | None = None
    message: str = ""
    hidden: dict[str, NDArray[Any]] = field(default_factory=dict[str, "NDArray[Any]"])
    live: Live | None = field(default=None, repr=False, compare=False)
    value_at_risk: Number | tuple[Number, ...] | None = None
    paths: dict[str, ParametricPath] = field(default_factory=dict[str, "ParametricPath"])
    tightening: Tightening | None = None
    mixture: Mixture | None = None
    diagnosis: Infeasibility | None = field(default=None, repr=False, compare=False)

    # ---- constraints
    @property
    def names(self) -> tuple[str, ...]:
        """Names of the constraints, in the user's order."""
        return tuple(self.constraints)

    def __getitem__(self, name: str) -> ConstraintResult:
        result: ConstraintResult = _named(self.constraints, name)
        return result

    @property
    def relaxation_cost(self) -> float:
        """What relaxing constraints costs in all: part of `objective`."""
        return sum(result.cost or 0.0 for result in self.constraints.values())

    # ---- diagnostics
    def kkt(
        self,
        multipliers: Mapping[str, Any] | None = None,
        tolerance: float | None = None,
        order: int = 1,
        batches: int | None = None,
    ) -> KKT:
        """Optimality conditions at this point.

        Args:
            multipliers: per part key (`parity:upper`) others than the solver's; recomputes.
            tolerance: of the judgment; recomputes when it differs from that of the solve.
            order: 2 for curvature and standard errors of multipliers as well; recomputes.
            batches: for an estimate of |grad L| from so many batches (`noise`), with what they cannot tell
                from 0; recomputes. By default where a population is a distribution.

        Raises:
            ModelingError: E129 when it has to be recomputed and the problem is not at hand.
        """
        if multipliers is None and tolerance in (None, self.record.tolerance) and order < 2 and not batches:
            return self.record
        given = self.multipliers if multipliers is None else multipliers
        used = self.record.tolerance if tolerance is None else tolerance
        return self._need("kkt()").kkt(given, used, order, batches)

    def run_errors(self) -> dict[str, RunError]:
        """Errors of the multipliers of a training run, by part key: the noise of its batches.

        They are Monte Carlo errors of the run around the point that it reached, by the means of groups of its
        records (batch means). They are no sampling errors (`kkt(order=2).standard_errors`), and know nothing
        of other starts. Each has a `reason` where there is none. Empty after methods that are not trained on
        batches, and for constraints per row.
        """
        return attribute("constrain.diagnostics.repeats:run_errors")(self.history)  # type: ignore[no-any-return]

    def sensitivity(self, parameter: Any) -> Sensitivity:
        """Derivatives of the optimal value, the decisions and the multipliers in a parameter.

        Args:
            parameter: a `Parameter` of the problem, or its name.

        Raises:
            ModelingError: E127 for another parameter, E129 when the problem is not at hand, E195 with the
                reason where there is no such derivative.
        """
        name = str(getattr(parameter, "name", parameter))
        live = self._need("sensitivity()")
        return live.sensitivity(name, self.multipliers, self.record.tolerance)

    def evaluate(
        self,
        data: Data | Mapping[str, Data],
        within: Mapping[str, float] | None = None,
        bounded: Mapping[str, tuple[float, float]] | None = None,
    ) -> Evaluation:
        """Objective and constraints at this point on other data.

        Columns are bound by name (semantics S12).

        Args:
            data: a sample when the problem has one, else samples by the name of the one they replace.
            within: by equality constraint a distance from its bound; the equality `holds` where its value is
                shown to lie within (two one-sided tests), instead of being `compatible`.
            bounded: by constraint the least and the largest value of a row, such as (0.0, 1.0); its interval
                and verdict then hold for every number of rows (empirical Bernstein), not in the limit of
                many.

        Raises:
            DataError: E106, E124, E135 when the data does not fit.
            ModelingError: E139, E141 for `within` and `bounded`; E129 when the problem is not at hand.
        """
        return self._need("evaluate()").evaluate(data, within, bounded)

    def infeasibility(self, **options: Any) -> Infeasibility:
        """Which constraints exclude each other, what it takes to have a feasible point, and the proof.

        On the data and with the parameters of this solution; its history counts as evidence. What was found
        is kept in `diagnosis` and shown on the solution's page.

        Args:
            options: of `problem.diagnose_infeasible()`, such as `starts=`, `method=` and `time_limit=`.

        Raises:
            ModelingError: E129 when the problem is not at hand, E141 for an option.
        """
        self.diagnosis = self._need("infeasibility()").infeasibility(self, options)
        return self.diagnosis

    def path(self, parameter: Any, values: Any, **options: Any) -> ParametricPath:
        """Optimal value and multipliers along a parameter, by solves that start from this one.

        The path is kept in `paths`, is stored with the solution, and is a slider on its page. Other
        parameters keep the values of this solution; models and variables are left as they are.

        Args:
            parameter: a `Parameter` of the problem, or its name.
            values: at least two different numbers.
            options: those of `constrain.driver.paths.path`, such as `method`.

        Raises:
            ModelingError: E127 for another parameter, E141 for values that make no path, E129 when the
                problem is not at hand.
        """
        problem = self._need("path()").problem
        params = {**self.provenance.parameters, **options.pop("params", {})}
        found: ParametricPath = driver().path(
            problem, parameter, values, params=params, **{"start": self, **options}
        )
        self.paths[found.parameter] = found
        return found

    def _need(self, what: str) -> Live:
        if self.live is None:
            raise ModelingError(
                "E129",
                f"{what} needs the problem, and this solution was loaded without it",
                fix="cn.load(folder, problem=problem), or symbols={...} with the modules and data",
            )
        return self.live

    # ---- views
    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        count = len(self.constraints)
        many = "1 constraint" if count == 1 else f"{count} constraints"
        value = f"{self.objective:.6g}" if math.isfinite(self.objective) else "none"
        return f"<Solution {self.status.value}: objective {value}, {many}>"

    def report(self, path: str | Path | None = None, format: str | None = None) -> str:  # the field's word
        """The report as text, Markdown, JSON, or an HTML page that needs no network.

        Args:
            path: a file to write it to; its suffix chooses the format when `format` is None.
            format: `text`, `markdown`, `json` or `html`.

        Raises:
            ModelingError: E142 for another format.
        """
        return str(reports().report(self, path, format))

    def _repr_html_(self) -> str:
        """A small card for notebooks."""
        return str(reports("card").card_html(self))

    def plot(self) -> Any:
        """Objective, violations and multipliers over the steps of the run, as a matplotlib figure.

        Raises:
            ModelingError: E143 without matplotlib, E141 for a route that has no steps.
        """
        return reports("plots").history_figure(self)

    def assert_no_warnings(self, ignore: Collection[str] = ()) -> None:
        """For tests: fails when the solution has warnings.

        Args:
            ignore: codes (`"C311"`) or names (`"undecided-constraint"`) that are known and accepted.

        Raises:
            AssertionError: with the codes and texts of the others.
            ModelingError: E141 for a code that is not written as one.
        """
        accepted = _codes(ignore)
        found = [w for w in self.warnings if not {w.code, w.name} & accepted]
        if found:
            listed = "\n".join(f"  {w.code} {w.name}: {w.message}" for w in found)
            many = "a warning" if len(found) == 1 else f"{len(found)} warnings"
            raise AssertionError(f"the solution has {many}:\n{listed}")

    def rows(self) -> list[dict[str, Any]]:
        """One record per constraint and level: what `to_frame` shows."""
        return [row for name in self.names for row in diagnostics_report().constraint_rows(self[name])]

    def to_frame(self) -> Any:
        """A pandas frame with one row per constraint and level.

        Raises:
            ModelingError: E143 without pandas.
        """
        return frame_of(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the decisions, as plain Python values (arrays become lists)."""
        return storage.plain_dict(self)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: what `save` keeps, without the problem, which `save` and `cn.load` can bring back."""
        mixture = None if self.mixture is None else replace(self.mixture, live=None)
        return {**vars(self), "live": None, "diagnosis": None, "mixture": mixture}

    def __copy__(self) -> Solution:
        return replace(self)

    def save(self, folder: str | Path) -> Path:
        """Writes `solution.json` and `arrays.npz` (no pickle) into a folder, which is made when needed."""
        return storage.save(self, folder)
