"""The problem behind a solution: what `Solution.kkt` and `Solution.evaluate` compute with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from constrain._lazy import driver
from constrain.diagnostics.anywhere import by_part
from constrain.diagnostics.confidence import Judgment, judge_sample
from constrain.diagnostics.equivalence import tested_for_equivalence
from constrain.diagnostics.kkt import kkt, system_at
from constrain.diagnostics.sensitivity import sensitivity, value_slope
from constrain.errors import DataError, ModelingError
from constrain.language import nodes as n
from constrain.language.data import Data, suggest
from constrain.language.regions import Coordinate
from constrain.lowering.lower import lower
from constrain.runtime.binding import as_array
from constrain.runtime.decisions import Decisions, precision
from constrain.runtime.evaluator import Evaluator
from constrain.runtime.tails import thresholds
from constrain.solution.answer import Evaluation

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from constrain.diagnostics.infeasibility import Infeasibility
    from constrain.language.problem import Problem
    from constrain.lowering.program import Program
    from constrain.solution import KKT, Sensitivity, Solution

__all__ = ["Attached", "evaluation_of", "judge_other", "rebind", "revive"]


def judge_other(evaluator: Evaluator, **options: Any) -> Judgment:
    """`judge_sample` of other data than the training sample, with the exact thresholds of these data."""
    with thresholds(evaluator):
        return judge_sample(evaluator, **options)


def evaluation_of(evaluator: Evaluator, judged: Judgment, texts: Mapping[str, str]) -> Evaluation:
    """The record of a judgment."""
    populations = list(evaluator.populations.values())
    return Evaluation(
        data=tuple(p.data.name for p in populations),
        rows=tuple(p.rows for p in populations),
        objective=judged.objective,
        lower=judged.lower,
        upper=judged.upper,
        estimates=judged.estimates,
        texts=dict(texts),
    )


def rebind(program: Program, data: Data | Mapping[str, Data]) -> dict[str, Data]:
    """Which sample of the problem each given sample replaces: what `Evaluator(data=...)` takes.

    Args:
        program: the moment form.
        data: one sample, when the problem has one (or one of its name); else samples by the name of the
            replaced one. A coordinate stands for its region.

    Raises:
        ModelingError: E146 when it is not clear, a name is unknown, or something else than samples is given.
        DataError: E169 for a column whose rows have another shape.
    """
    names = [population.name for population in program.populations]
    if isinstance(data, Coordinate):
        data = data.region
    if isinstance(data, Data):
        if data.name in names or len(names) == 1:
            return _fitting(program, {data.name if data.name in names else names[0]: data})
        listed = ", ".join(names) or "none"
        raise ModelingError(
            "E146",
            f"it is not clear which sample {data.name!r} replaces; the problem has: {listed}",
            fix=f'{{"{names[0]}": data}}' if names else None,
        )
    given: Any = data
    named = isinstance(given, Mapping)
    samples: dict[str, Any] = dict(cast("Mapping[str, Any]", given)) if named else {"": given}
    samples = {k: v.region if isinstance(v, Coordinate) else v for k, v in samples.items()}
    for name, sample in samples.items():
        if not isinstance(sample, Data):
            own = f"; the samples of the problem: {', '.join(names)}" if names else ""
            word = name if name in names else (names or ["test"])[0]
            made = f'cn.Data("{word}", ...)'
            if named:
                made = f'data={{"{word}": {made}}}'
            raise ModelingError(
                "E146",
                "data is given as a cn.Data, or as a dict from names of samples to cn.Data, "
                f"got a {type(sample).__name__}{f' for {name!r}' if named else ''}{own}",
                fix=f"{made}, with columns of the same names",
            )
        if name not in names:
            raise ModelingError(
                "E146",
                f"the problem has no sample {name!r}{suggest(name, names)}",
                fix=f"a dict with names of its samples: {', '.join(names)}" if names else None,
            )
    return _fitting(program, samples)


def _fitting(program: Program, samples: dict[str, Data]) -> dict[str, Data]:
    """Samples whose used columns have rows of the shapes that the problem was written for."""
    columns = {x for x in n.postorder(*program.problem.roots) if isinstance(x, n.Column)}
    for population in program.populations:
        other = samples.get(population.name, population)
        used = {x.name for x in columns if x.data is population}
        for column in sorted(used & set(other.columns)):
            shapes = other.row_shape(column), population.row_shape(column)
            if shapes[0] != shapes[1]:
                raise DataError(
                    "E169",
                    f"{other.name}.{column} has rows of shape {shapes[0]}, those of the problem's sample "
                    f"have {shapes[1]}",
                    fix="the same features, in the same order",
                )
    return samples


def host(t: torch.Tensor) -> NDArray[Any]:
    """A tensor as an array; bfloat16, which NumPy lacks, as float32."""
    return (t.float() if t.dtype == torch.bfloat16 else t).detach().cpu().numpy()


class Attached:
    """A program, its data, and the point of one solution.

    The point and the parameters are kept as copies, so that the solution stays what it is when the models are
    trained further and parameters change.
    """

    def __init__(
        self,
        program: Program,
        evaluator: Evaluator,
        decisions: Decisions,
        *,
        convex: bool,
        bound: float | None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.program = program
        self.evaluator = evaluator
        self.decisions = decisions
        self.convex = convex
        self.bound = bound
        self.texts = dict(texts or {})
        self.point = decisions.snapshot()
        named = {symbol.name: symbol.value for symbol in program.parameters} | evaluator.params
        self.params = {name: np.array(as_array(value), dtype=np.float64) for name, value in named.items()}

    @property
    def problem(self) -> Problem:
        """The problem as written."""
        return self.program.problem

    @property
    def variables(self) -> dict[str, NDArray[Any]]:
        """Values of the `Variable`s."""
        hidden = self.program.auxiliary
        names = {symbol.name for symbol in self.decisions.variables if symbol not in hidden}
        return {name: host(t) for name, t in self.point.items() if name in names}

    @property
    def hidden(self) -> dict[str, NDArray[Any]]:
        """Values of the decisions that lowering introduced: thresholds, slacks, the bound of a maximum."""
        names = {symbol.name for symbol in self.program.auxiliary}
        return {name: host(t) for name, t in self.point.items() if name in names}

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """Parameters and buffers of the models."""
        names = {symbol.name for symbol in self.decisions.variables}
        return {name: host(t) for name, t in self.point.items() if name not in names}

    @contextmanager
    def at_point(self) -> Generator[None]:
        """Runs a block with the decisions at the solution, with gradients whatever the caller set."""
        with torch.inference_mode(mode=False), torch.enable_grad(), self.at(self.point):
            yield

    @contextmanager
    def at(self, state: Mapping[str, Any]) -> Generator[None]:
        """Runs a block with these decisions by name, tensors or arrays, also in the user's `Variable`s."""
        now = self.decisions.snapshot()
        values = {symbol: symbol.value for symbol in self.decisions.variables}
        try:
            with self.decisions.precision(self.evaluator.dtype):
                self.decisions.restore({name: torch.as_tensor(value) for name, value in state.items()})
                self.decisions.write_back()
                yield
        finally:
            self.decisions.restore(now)
            for symbol, value in values.items():
                symbol.value = value

    def kkt(
        self,
        multipliers: Mapping[str, Any] | None,
        tolerance: float,
        order: int = 1,
        batches: int | None = None,
    ) -> KKT:
        """KKT quantities at the solution."""
        with self.at_point():
            given = by_part(self.evaluator, multipliers)
            how: dict[str, Any] = {"convex": self.convex, "bound": self.bound, "batches": batches}
            return kkt(self.evaluator, given, tolerance, order=order, **how)

    def sensitivity(
        self, parameter: str, multipliers: Mapping[str, Any] | None, tolerance: float
    ) -> Sensitivity:
        """Derivatives of the optimum in a parameter."""
        with self.at_point():
            system = system_at(self.evaluator, multipliers, tolerance)
            return sensitivity(system, self.params, parameter)

    def slope(self, parameter: str, multipliers: Mapping[str, Any] | None) -> float:
        """Derivative of the optimal value in a parameter by the envelope theorem; NaN where there is none."""
        with self.at_point():
            return value_slope(self.evaluator, multipliers, self.params, parameter)

    def on(self, data: Data | Mapping[str, Data]) -> Evaluator:
        """The program on other data, with the same decisions and parameters."""
        return Evaluator(
            self.program,
            self.decisions,
            dtype=self.evaluator.dtype,
            data=rebind(self.program, data),
            params=self.params,
            reference=self.evaluator,
            chunk=self.evaluator.chunk,
        )

    def evaluate(
        self,
        data: Data | Mapping[str, Data],
        within: Mapping[str, float] | None = None,
        bounded: Mapping[str, tuple[float, float]] | None = None,
    ) -> Evaluation:
        """Objective and constraints at the solution on other data."""
        with self.at_point():
            other = self.on(data)
            judged = judge_other(other, bounded=bounded)
            if within:
                judged = replace(judged, estimates=tested_for_equivalence(judged.estimates, within))
            return evaluation_of(other, judged, self.texts)

    def infeasibility(self, solution: Solution, options: Mapping[str, Any]) -> Infeasibility:
        """Which constraints exclude each other on the solution's data."""
        samples = {d.name: p.data for d, p in self.evaluator.populations.items() if p.data is not d}
        given = {"data": samples or None, "params": self.params or None, "solution": solution}
        with self.at_point():
            return driver().diagnose_infeasible(self.problem, **{**given, **options})  # type: ignore[no-any-return]


def revive(problem: Problem, solution: Solution) -> Attached:
    """Writes a stored solution into a problem's variables and models, and attaches the problem.

    Raises:
        ModelingError: E137 for decisions that differ in name or shape, E145 for other constraints.
    """
    names = list(problem.constraints)
    if names != list(solution.names):
        raise ModelingError(
            "E145", f"the problem has the constraints {names}, the stored solution {list(solution.names)}"
        )
    program = lower(problem)
    state = {
        name: torch.as_tensor(value)
        for name, value in (*solution.variables.items(), *solution.hidden.items(), *solution.weights.items())
    }
    device = next((p.device for m in program.models for p in m.module.parameters()), torch.device("cpu"))
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    bound = None if solution.bound is None else program.sign * solution.bound
    texts = {name: solution[name].text for name in solution.names}
    source = solution.provenance
    with precision(program, dtype):
        decisions = Decisions(program, device, dtype)
        decisions.restore(state)
        decisions.write_back()
        evaluator = Evaluator(program, decisions, dtype=dtype, params=source.parameters)
        return Attached(program, evaluator, decisions, convex=source.convex, bound=bound, texts=texts)
