"""The Lagrangian of a program as a `torch.nn.Module`: a scalar per batch, multipliers as its state.

    loss = lagrangian(batch); loss.backward(); optimizer.step(); lagrangian.ascend()

The primal gradient sees surrogates of rates; the multipliers see exact residuals. Multipliers follow a
proportional-integral rule (Sohrabi et al. 2024, "On PI controllers for updating Lagrange multipliers"): the
primal sees `multiplier + gain * step * running residual`, and `ascend` integrates `step * residual`. The
proportional part uses a running residual, not the batch's own: the product of a batch residual with its own
gradient would be biased.

Relaxed averages need no step of their slacks: the multipliers take a proximal one (`slacks.py`). The
multipliers of a largest value in the objective are weights on the simplex (`largest.py`).

How large the steps are is measured on the data (`steps.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from constrain.errors import ModelingError
from constrain.runtime.ascent import Move
from constrain.runtime.batches import add_rows, masked, rows_by_sample, weighted
from constrain.runtime.estimates import Estimator
from constrain.runtime.graph import TrainingStep
from constrain.runtime.largest import WEIGHT_STEP, Largest, on_simplex
from constrain.runtime.multipliers import function_values, over_distribution
from constrain.runtime.rare import Rare
from constrain.runtime.rows import picked
from constrain.runtime.slacks import Slacks
from constrain.runtime.state import MultiplierState
from constrain.runtime.steps import FASTER, LEAST_PACE, SLOWER, Scales
from constrain.runtime.visits import BySizes, sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.lowering.program import Part
    from constrain.runtime.ascent import Ascent
    from constrain.runtime.batches import Batches
    from constrain.runtime.estimates import Estimate, RowValues
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.multipliers import MultiplierFunction
    from constrain.runtime.rows import Rows

__all__ = ["Lagrangian"]

MOST_PER_VISIT = 1.0
"""Largest step of a row's multiplier at one visit, dimensionless: the next one comes a pass later."""


class Lagrangian(MultiplierState):
    """L = f + sum multiplier * residual on minibatches.

    Args:
        evaluator: the compiled program with its data.
        rate: integral step of the multipliers, dimensionless, per call of `ascend`.
        gain: proportional gain, dimensionless; 0 gives plain gradient ascent.
        memory: decay of the running residual, in [0, 1); 0 takes the batch's own, which is no running one.
        estimator: minibatch estimator by term, or one for all (see `Estimator`).
        functions: by constraint name, the function that gives the multipliers of a constraint per row.

    State (`state_dict`, copies): per `Part.key` the multiplier (`multiplier:KEY`), its running residual, its
    step with the pace that it has found and the exact residuals that the pace compares with; the running
    averages of the estimator. Constraints per row have a table with one multiplier per
    row, of which a step touches the rows of the batch only. Multipliers are never below float32. The models
    themselves are not part of this module's state.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        rate: float = 0.03,
        gain: float = 0.3,
        memory: float = 0.95,
        estimator: Mapping[str, str] | str = "auto",
        functions: Mapping[str, MultiplierFunction] | None = None,
    ) -> None:
        super().__init__(evaluator, Estimator(evaluator, estimator), {} if functions is None else functions)
        self.rate: float | Tensor = rate  # a tensor while a step is recorded
        self.gain = gain
        self.memory = memory
        self.spreads: dict[str, float] = {}
        self.slacks = Slacks(evaluator)
        self.slacks.clear()
        self.largest = Largest(evaluator)
        self.recorded: Tensor | None = None  # in the place of `raised`, while a step is recorded
        self.follows = False
        self.classical = False
        self.rule: Ascent | None = None
        self.past: dict[str, Tensor] = {}  # what the rule remembers
        self._share = 0.0
        self._rare = BySizes()
        self._turn = self.slacks.turn(self._place)
        self._weighted = self.largest.places(self._place)
        self._turns = self._turn is not None or bool(self._weighted)
        tensors = self.moved(evaluator.decisions.tensors)
        self._scales = Scales(self.estimator, tensors)

    def moved(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What an optimizer moves: neither slacks nor the bound variable of a largest value."""
        return self.largest.others(self.slacks.others(tensors))

    def primal_parameters(self) -> list[Tensor]:
        """What the optimizer of a loop moves: tensors of the variables, then trainable weights of the models.

        The tensors of `cn.Variable`s live here; `project` gives their values to the variables.
        """
        return self.moved(self.evaluator.decisions.tensors)

    def project(self) -> None:
        """Moves variables into their bounds, and gives `Variable.value` what the optimizer made of them."""
        self.evaluator.decisions.project()
        self.evaluator.decisions.write_back()

    # -------------------------------------------------------------------------------------- multipliers
    def multiplier(self, part: Part) -> Tensor:
        """The multiplier of a part (a view); of a constraint per row the table, times the number of rows."""
        if part.rows is not None:
            return self._function_values(part) if part.constraint in self.functions else self.table(part)
        place, shape = self._place[part.key]
        return self.values[place].view(shape)

    def _function_values(self, part: Part) -> Tensor:
        """A multiplier function on all rows of a sample."""
        assert part.rows is not None  # constraints per row only
        population = self.evaluator.populations[part.rows]
        with torch.no_grad():
            found = function_values(self.functions[part.constraint], population, self.evaluator.chunk)
            i = self._at(part)
            found = self._with_penalty(i, part, found, self.evaluator.row_residuals(i)[0])
        return found if population.base is None else over_distribution(found, population)

    def _with_penalty(self, i: int, part: Part, values: Tensor, residual: Tensor) -> Tensor:
        """What the primal sees of multipliers per row: multiplier + gain * step * the row's own residual.

        The residual of a row is no estimate, so that its product with its gradient is not biased.
        """
        if not self.gain:
            return values
        values = torch.addcmul(values, residual.to(values.dtype), self.row_scales[i], value=self.gain)
        return values.clamp(min=0) if part.kind == "<=" else values

    def multipliers(self) -> dict[str, Tensor]:
        """Copies of the multipliers by part key; of constraints per row, per row of the sample."""
        values = self.values.detach().clone()
        result: dict[str, Tensor] = {}
        for key, (place, shape) in self._place.items():
            part = self._row_parts.get(key)
            if part is None:
                result[key] = values[place].view(shape)
            else:
                own = self.multiplier(part).detach().clone()
                result[key] = own / len(own)
        return result

    def set_multipliers(self, values: Mapping[str, Any]) -> None:
        """Starts from these multipliers (by part key), in place."""
        with torch.no_grad():
            for key, (place, shape) in self._place.items():
                part = self._row_parts.get(key)
                if key not in values or (part is not None and part.constraint in self.functions):
                    continue
                own = self.values[place].view(shape) if part is None else self.multiplier(part)
                value = torch.as_tensor(values[key]).to(own)
                own.copy_(value if part is None else value * len(own))

    def forget(self) -> None:
        """Drops what was kept of the last batch, and what was made of tensors that may have been replaced."""
        self.seen.estimate = None
        self.seen.batches = {}
        self.estimator.forget()

    @property
    def settled(self) -> bool:
        """Whether the running residuals stand for all data, so that a step depends on tensors alone."""
        return self.seen.weight > 1 - 1e-9

    @property
    def raised(self) -> float:
        """The gain of running residuals that have not seen all data yet: over the weight of what they saw."""
        return self.gain / max(self.seen.weight, 1e-8)

    def count(self) -> None:
        """One more batch is in the running residuals."""
        self.seen.weight = self.seen.weight * self.memory + 1 - self.memory

    # ---------------------------------------------------------------------------------------- forward
    def estimate(self, batch: Batches) -> Estimate:
        """Objective and residuals on a batch, as `forward` estimates them; changes nothing."""
        return self.estimator(self.batches(batch))

    def forward(self, batch: Batches) -> Tensor:
        """The Lagrangian on a batch.

        Args:
            batch: `D.rows(index)`; a tuple of them, or a mapping from sample name to rows or index, when the
                problem has several samples.

        Returns:
            A scalar whose gradient is the primal gradient.
        """
        return self.value(self.evaluate(batch))

    def evaluate(self, batch: Batches, *, learn: bool = True) -> Estimate:
        """Objective and residuals on a batch, which `value` weighs and `ascend` reads.

        Args:
            batch: as of `forward`.
            learn: the running averages move towards those of the batch, and gradients are those of a step:
                with dropout, and batch normalization in training mode.
        """
        self.evaluator.follow_parameters()
        seen, estimator = self.seen, self.estimator
        seen.batches = self.batches(batch)
        estimate = seen.estimate = estimator.forward(seen.batches, step=learn)
        if learn:
            estimator.learn(*estimate.moments, seen.batches)
        return estimate

    def value(self, estimate: Estimate) -> Tensor:
        """The Lagrangian of the last evaluation with the multipliers as they are now, a scalar."""
        total = torch.dot(self._weights(estimate), estimate.terms)
        for i in self._tables:
            total = total + self._row_term(i, self._row_part(i), estimate.rows[i])
        return total

    def _weights(self, estimate: Estimate) -> Tensor:
        """The weights of all terms: 1 for the objective, then the multipliers that the primal sees."""
        own = self.numbers
        moved, low, scales = own["values"], own["low"], own["scales"]
        if self.gain and moved.shape[0]:  # integral plus proportional part
            part, error = self.raised if self.recorded is None else self.recorded, own["running"]
            if not self.memory:
                part, error = self.gain, estimate.exact_terms[1:]
            if self.classical:
                error = torch.maximum(error, low)
            moved = torch.addcmul(moved, scales, error, value=part)  # type: ignore[arg-type]
            torch.maximum(moved, low, out=moved)
            if self._turns:
                moved = self._turned(moved, self.gain * scales)
        return torch.cat([own["one"], moved])

    def warm(self, batch: Batches) -> None:
        """Makes what is made on first use, and changes nothing else."""
        self.value(self.evaluate(batch, learn=False))
        self.estimator.weights(self.seen.batches)
        self._turned(self.values, self.scales)
        self.rare_of(self.seen.batches)
        self.forget()

    def _turned(self, moved: Tensor, steps: Tensor) -> Tensor:
        """What the slacks of relaxed averages and a largest value in the objective make of a step."""
        if self._turn is not None:
            moved = self._turn(moved, steps)
        for places in self._weighted:
            moved = moved.index_copy(0, places, on_simplex(moved.index_select(0, places)))
        return moved

    def _row_term(self, i: int, part: Part, values: RowValues) -> Tensor:
        """Mean over the batch of multiplier[row] * residual[row]: estimates the sum over rows / rows."""
        residual, exact, mask = values
        rows = self._rows(part)
        multipliers = self._row_multipliers(part, rows).detach().to(residual.dtype)
        multipliers = self._with_penalty(i, part, multipliers, exact)
        if mask is None and rows.weight is None and residual.dim() == 1:
            return torch.dot(multipliers, residual) / rows.count
        return masked(weighted(multipliers * residual, rows), mask).sum() / rows.count

    def _rows(self, part: Part) -> Rows:
        assert part.rows is not None  # constraints per row only
        return self.seen.batches[part.rows.name]

    def _row_multipliers(self, part: Part, rows: Rows) -> Tensor:
        if part.constraint in self.functions:
            return self.functions[part.constraint](rows.columns)
        if rows.index is None:
            raise ModelingError(
                "E181",
                f"the rows of this batch have no positions, and {part.constraint!r} has a multiplier per row",
                fix="a multiplier function, multipliers={...}, or rows with positions",
            )
        return picked(self.table(part), rows.index)

    def batches(self, batch: Batches) -> dict[str, Rows]:
        """The rows of a batch by sample name, on the device.

        Raises:
            ModelingError: E140 when the batch has no rows of a sample of the problem.
        """
        return rows_by_sample(self.evaluator, batch)

    # ----------------------------------------------------------------------------------------- ascent
    def ascend(self) -> None:
        """One multiplier step from the exact residuals of the last `forward`. Needs no host synchronization.

        Nothing here has a graph: residuals were evaluated without one.

        Raises:
            ModelingError: E140 when nothing was evaluated since the last call.
        """
        seen = self.seen
        estimate = seen.estimate
        if estimate is None:
            fix = "loss = lagrangian(batch) first"
            raise ModelingError("E140", "ascend() without a forward before it", fix=fix)
        seen.estimate = None
        self.count()
        residual, running = estimate.exact_terms[1:], self.numbers["running"]
        if running.shape[0]:
            rare = self.rare_of(seen.batches)
            if rare and not self.settled:  # from the averages that the estimator starts with
                self._replace(self.estimator.terms(self.estimator.running("exact"))[1:], None)
            if rare:
                self.move(rare.follow(running, residual), rare)
            else:
                running.lerp_(residual, 1 - self.memory)
                self.move(residual)
        for i in self._tables:
            self._ascend_rows(i, self._row_part(i), estimate.rows[i])
        self.follow(seen.batches)

    def move(self, residual: Tensor, rare: Rare | None = None) -> None:
        """One step of the averages' multipliers along residuals.

        Args:
            residual: (entries,), in the order of the parts.
            rare: the rare entries that these are residuals of.
        """
        own = self.numbers
        values, low, pace = own["values"], own["low"], own["pace"]
        steps = own["scales"] * (pace if rare is None else rare.paced(pace, self.rate))
        if rare is not None:
            moved = torch.maximum(values + steps * self.rate * residual, low)
            steps = rare.joined(steps, moved.sign().abs(), self.most, self.limits)
        rate = self.rate
        if self.rule is not None:
            move = Move("averages", values, residual, steps, rate, self.units, None, self._weighted)
            values.copy_(self.rule.moved(self.past, move))
        elif isinstance(rate, Tensor):  # while a step is recorded
            values.addcmul_(steps * rate, residual)
        else:
            values.addcmul_(steps, residual, value=rate)
        torch.maximum(values, low, out=values)
        if self._turns:
            values.copy_(self._turned(values, self.rate * steps))

    def rare_of(self, batches: Mapping[str, Rows]) -> Rare:
        """The entries of which batches like these have few rows."""
        key = (self.memory, *sizes(batches))
        if key not in self._rare.made:
            blocks = [] if self.values.is_meta else self._scales.together(self.largest.parts)
            self._rare.made[key] = Rare(self.estimator, blocks, batches, 1 - self.memory)
        return self._rare.made[key]

    def _ascend_rows(self, i: int, part: Part, values: RowValues) -> None:
        """A step of the multipliers of the rows in the batch; no other row is touched."""
        _, residual, mask = values
        rows, step = self._rows(part), self.numbers["row_scales"][i]
        if part.constraint in self.functions:
            function: Any = self.functions[part.constraint]
            change = (self.gain or self.rate) * step * residual
            if part.kind == "<=":  # a multiplier of 0 rests, however far the row is within its bound
                change = torch.maximum(change, -function(rows.columns).detach().to(change))
            function.ascend(rows.columns, masked(weighted(change, rows), mask) / rows.count)
            return
        value = self.table(part)
        # a row is met once per epoch: its step is as large as an average's together
        scale = _capped(value.shape[0] / rows.count, self.rate)
        if self.rule is not None:
            error = masked(weighted(residual, rows), mask).to(value.dtype)
            index, steps = rows.index, step * scale
            assert index is not None  # checked in forward
            units = steps * self.row_spreads[i]
            move = Move(part.key, value[index], error, steps, self.rate, units, index)
            moved = self.rule.moved(self.past, move)
            value[index] = moved.clamp(min=0) if part.kind == "<=" else moved
            return
        change = masked(weighted(residual * (step * (self.rate * scale)), rows), mask).to(value.dtype)
        assert rows.index is not None  # checked in forward
        add_rows(value, rows.index, change, nonneg=part.kind == "<=")

    @torch.no_grad()
    def observe(self, residuals: Mapping[int, Tensor], moments: list[Tensor] | None = None) -> None:
        """Replaces running residuals (by part position) and averages by exact ones of the full data."""
        averages = [residuals[i].reshape(-1) for i in range(len(self.parts)) if i not in self._tables]
        self._replace(torch.cat(averages) if averages else self.running, moments)

    def _replace(self, residuals: Tensor, moments: list[Tensor] | None) -> None:
        """`observe`, of the residuals of averages as one vector."""
        self.seen.weight = 1.0
        found = residuals.to(self.running)
        self._adapt(found)
        self.running.copy_(found)
        if moments is not None:
            self.estimator.observe(moments)

    @torch.no_grad()
    def adapt(self) -> None:
        """What `observe` does for the steps, where running residuals have no memory: the last ones."""
        if len(self.values):
            self._adapt(self.running.clone())

    @torch.no_grad()
    def refresh(self) -> None:
        """Thresholds, widths of surrogates, running averages and residuals from one exact pass over the data.

        A module that `problem.compile` made does this by itself, once per pass over the largest sample, where
        the problem has rates or thresholds, which follow the decisions.
        """
        self.evaluator.refresh_scales()
        moments = self.evaluator.moments("exact")
        self._replace(self.estimator.terms(moments)[1:], moments)

    def follow(self, batches: Mapping[str, Rows]) -> None:
        """Counts the rows of a step; refreshes, where something follows the decisions, once per pass."""
        if not self.follows:
            return
        self._share += max((r.count / self.evaluator.rows_of(name) for name, r in batches.items()), default=0)
        if self._share >= 1:
            self._share = 0.0
            self.refresh()

    def training_step(
        self,
        optimizer: torch.optim.Optimizer,
        graph: Literal["auto", "off", "recorded", "compiled"] = "auto",
    ) -> TrainingStep:
        """A whole training step as one callable, recorded once: without most of Python's time per step.

        Args:
            optimizer: of the decisions; of `torch.optim`, whose learning rates may change between steps.
            graph: "recorded" replays the operations of a step, and "auto" does where a step can be recorded;
                "compiled" has torch's compiler join them, which takes up to a minute; "off" makes every step
                in Python.

        Raises:
            ModelingError: E141 for another word, or what is no optimizer of torch.
        """
        return TrainingStep(self, optimizer, graph)

    def use(self, rule: Ascent) -> None:
        """Multipliers move by a rule from now on; those of a multiplier function keep their optimizer."""
        self.rule = rule
        rule.start(self.past, "averages", self.values)
        for i in self._tables:
            part = self._row_part(i)
            if part.constraint not in self.functions:
                rule.start(self.past, part.key, self.table(part))

    # ---------------------------------------------------------------------------------------- scaling
    @property
    def units(self) -> Tensor:
        """(entries,) sizes of the averages' multipliers that balance the gradient of the objective."""
        return self.scales * self.spread

    def calibrate(self, generator: torch.Generator | None = None, rows: int = 4096, batches: int = 8) -> None:
        """Measures the scales of the steps on a sample of the data (`steps.Scales.measure`)."""
        if self.evaluator.device.type == "meta":
            return
        for scale in self._scales.measure(generator, rows, batches):
            block = scale.block
            self.spreads.update(zip(block.keys, scale.spread.tolist(), strict=True))
            first = int(block.parts[0])
            if block.first.rows is not None:
                self.row_scales[first] = float(scale.largest)
                self.row_spreads[first] = float(scale.spread[0])
                continue
            places = block.terms - 1
            spread = torch.from_numpy(np.broadcast_to(scale.spread, (len(places),)).copy())
            with torch.no_grad():
                self.spread[places] = spread.to(self.spread)
                self.scales[places] = scale.steps.to(self.scales)
                self.most[places] = scale.most.to(self.most)
                self.limits[places] = scale.largest.to(self.limits)
                if first in self.largest.parts:  # weights have no unit: only differences of values count
                    self.scales[places] = self.limits[places] = WEIGHT_STEP / float(scale.quietest[0])

    def _adapt(self, residual: Tensor) -> None:
        """Steps grow where an exact residual keeps its sign, and shrink where it changes (`steps.py`)."""
        active = (self.values > 0) | (residual > 0) | torch.isneginf(self.low)
        sign = torch.sign(residual * self.before) * active
        self.pace.mul_(torch.where(sign > 0, FASTER, torch.where(sign < 0, SLOWER, 1.0)))
        self.pace.clamp_(min=LEAST_PACE)
        for places in self._weighted:
            self.pace.index_fill_(0, places, 1.0)
        torch.minimum(self.pace, self.limits / self.scales, out=self.pace)
        self.before.copy_(residual)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Of `to`, `double` and others: multipliers stay beside the data, which are not moved (E123)."""
        moved = fn(self.values)
        if moved.dtype is not self.values.dtype or moved.device != self.values.device:
            own = f"on {self.values.device}, with multipliers in {self.values.dtype}"
            raise ModelingError(
                "E123",
                f"a Lagrangian {own}, is not moved to {moved.device} and {moved.dtype}: its data would stay",
                fix="module.to(...) of the models, then problem.compile(device=..., dtype=...)",
            )
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """Settings, for `print`."""
        return f"rate={self.rate}, gain={self.gain}, memory={self.memory}"


def _capped(scale: float, rate: float | Tensor) -> float | Tensor:
    """The scale of a step of a row's multiplier, of which one visit of the row is not to make too much."""
    if isinstance(rate, Tensor):
        return torch.clamp(MOST_PER_VISIT / rate, max=scale)
    return scale if rate * scale <= MOST_PER_VISIT else MOST_PER_VISIT / rate
