"""Switching subgradient method: a step on the objective where nearly feasible, else on the worst violation.

Polyak (1967), "A general method for solving extremum problems"; with noise and in expectation Lan and Zhou
(2020), "Algorithms for stochastic optimization with function or expectation constraints". There are no
multipliers to step. They come out as weights: where the iterates have settled, the steps cancel on average,

    sum over objective steps of lr grad f  +  sum over steps on c_i of lr u_i grad c_i  =  0,

so that lambda_i = u_i * (sum of lr of the steps on c_i) / (sum of lr of the objective steps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from constrain.errors import ModelingError
from constrain.runtime.limits import FRACTION, NONNEGATIVE, check_limits
from constrain.solvers.schemes.protocol import Scheme, State, need_duals, refuse_functions, refuse_games

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.lowering.program import Part
    from constrain.runtime.estimates import Estimate
    from constrain.runtime.rows import Rows
    from constrain.solvers.primal_dual import Training

__all__ = ["Switching"]

WINDOW = 1.5
"""Growth of the number of steps after which the weights of the older half of them are forgotten."""


@dataclass(frozen=True)
class Switching(Scheme):
    """One gradient step per batch, of the objective or of one constraint; no host synchronization.

    Which one is decided by running residuals, in spreads of a row's contribution. A step on a constraint goes
    along u_i grad c_i, with u_i the measured |grad f| / |grad c_i|, so that both kinds have one length.

    Attributes:
        nearly: violation, in spreads, up to which a step is on the objective; for equalities it is at least
            the standard error of the running residuals, which is known since a spread is that of one row.
        memory: decay of the running residuals that decide; 0 for those of the batch.
    """

    nearly: float = 1e-3
    memory: float = 0.95

    def __post_init__(self) -> None:
        """Refuses options that make no sense (E141)."""
        check_limits(self, nearly=NONNEGATIVE, memory=FRACTION)

    gain: ClassVar[float | None] = 0.0
    recordable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """For the report."""
        return "switching subgradient"

    def optimizer(self, tensors: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """Adam without momentum, which would carry a step on one term on into those on another."""
        return torch.optim.Adam(tensors, lr=lr, betas=(0.0, 0.999))

    def init(self, run: Training) -> State:
        """Running residuals, and the weights of the steps: current ones, older ones.

        Raises:
            ModelingError: E208 with a rule for multipliers, a penalty, a model that gives multipliers,
                relaxed averages, or a largest value in the objective.
        """
        need_duals(run, self.name)
        refuse_functions(run, self.name)
        refuse_games(run, self.name)
        if run.lagrangian.gain:
            raise ModelingError(
                "E208",
                f"the scheme {self.name!r} has no multipliers for a penalty or gain to act on",
                fix="no formulation= and no gain=",
            )
        lagrangian = run.lagrangian
        tables = {str(i): torch.zeros_like(lagrangian.table(p)) for i, p in _tables(run)}
        zero = torch.zeros(1 + len(lagrangian.values)).to(lagrangian.values)
        return {
            "residual": torch.zeros_like(lagrangian.values),
            "seen": zero.new_zeros(()),
            "weights": zero,
            "older": zero.clone(),
            "tables": tables,
            "older tables": {key: value.clone() for key, value in tables.items()},
            "forgotten": 1,
        }

    def step(self, run: Training, state: State) -> State:
        """One step on the objective or on one constraint."""
        batch = run.draw()
        estimate = run.lagrangian.evaluate(batch)
        state["seen"].mul_(self.memory).add_(1 - self.memory)
        state["residual"].lerp_(estimate.exact_terms[1:], 1 - self.memory)
        lr: float = run.optimizer.param_groups[0]["lr"]
        run.gradient_of(self._chosen(run, estimate, batch, state, lr))
        run.descend()
        return state

    def after(self, run: Training, state: State) -> State:
        """Forgets the weights of the older half of the steps now and then."""
        if run.steps < WINDOW * state["forgotten"]:
            return state
        pairs = [(state["older"], state["weights"])]
        pairs += [(state["older tables"][key], table) for key, table in state["tables"].items()]
        for older, weights in pairs:
            older.copy_(weights)
            weights.zero_()
        return {**state, "forgotten": run.steps}

    def _chosen(
        self, run: Training, estimate: Estimate, batch: Mapping[str, Rows], state: State, lr: float
    ) -> Tensor:
        """The scalar to descend, whose weight is added to the sums."""
        lagrangian = run.lagrangian
        units = lagrangian.units
        spreads = units / lagrangian.scales
        error = state["residual"] / state["seen"]
        signs = torch.where(torch.isneginf(lagrangian.low) & (error < 0), -1.0, 1.0)
        rows = [_worst_row(run, i, estimate, batch) for i, _ in _tables(run)]
        free = torch.isneginf(lagrangian.low)
        room = torch.where(free, self._room(batch), self.nearly)
        over = torch.cat([signs * error / spreads - room, *(worst.over - self.nearly for worst in rows)])
        violated, chosen = over.new_zeros(()), torch.zeros_like(over)
        if over.numel() and not run.resting:
            violated = (over.amax() > 0).to(over)
            places = torch.arange(over.numel(), device=over.device)
            chosen = (places == over.argmax()).to(over) * violated
        count = len(units)
        weights = torch.cat([(1 - violated).reshape(1).to(units), chosen[:count] * signs * units])
        total = torch.dot(weights, estimate.terms)
        state["weights"].add_(weights, alpha=lr)
        for worst, share in zip(rows, chosen[count:], strict=True):
            total = total + worst.term * (share * worst.unit)
            weight = ((lr * worst.unit * worst.sign) * share).reshape(1)
            table: Tensor = state["tables"][worst.key].view(-1)
            table.index_add_(0, worst.place, weight.to(table.dtype))
        return total

    def _room(self, batch: Mapping[str, Rows]) -> float:
        """Distance from 0 that counts as none: the standard error of a running residual, in spreads."""
        rows = min((r.count for r in batch.values() if not r.whole), default=0)
        noise = math.sqrt((1 - self.memory) / (1 + self.memory) / rows) if rows else 0.0
        return max(self.nearly, noise)

    def multipliers(self, run: Training, state: State) -> dict[str, Tensor]:
        """The weights of the recent steps on each constraint, over that of those on the objective."""
        lagrangian = run.lagrangian
        weights = state["weights"] + state["older"]
        objective = weights[0].clamp(min=torch.finfo(weights.dtype).tiny)
        values = torch.where(weights[0] > 0, weights[1:] / objective, 0.0)
        found: dict[str, Tensor] = {}
        start = 0
        for i, part in enumerate(lagrangian.parts):
            if part.rows is not None:
                table = state["tables"][str(i)] + state["older tables"][str(i)]
                found[part.key] = torch.where(weights[0] > 0, table / objective, 0.0)
                continue
            shape = lagrangian.multiplier(part).shape
            found[part.key] = values[start : start + shape.numel()].reshape(shape).clone()
            start += shape.numel()
        return found


@dataclass(frozen=True)
class _Worst:
    """The most violated entry of a constraint per row on a batch.

    Attributes:
        key: of its weights.
        over: (1,) its violation, in spreads.
        term: its residual, with gradient, times its sign.
        sign: -1 for an equality from below.
        place: (1,) in the flat table.
        unit: size of a multiplier that balances the gradient of the objective.
    """

    key: str
    over: Tensor
    term: Tensor
    sign: Tensor
    place: Tensor
    unit: Tensor


def _tables(run: Training) -> list[tuple[int, Part]]:
    """Constraints per row, with their positions."""
    return [(i, part) for i, part in enumerate(run.lagrangian.parts) if part.rows is not None]


def _worst_row(run: Training, i: int, estimate: Estimate, batch: Mapping[str, Rows]) -> _Worst:
    lagrangian, part = run.lagrangian, run.lagrangian.parts[i]
    assert part.rows is not None  # callers check
    primal, exact, mask = estimate.rows[i]
    rows = batch[part.rows.name]
    over = exact.abs() if part.kind == "==" else exact
    if mask is not None:
        over = torch.where(mask.reshape(-1, *(1,) * (over.dim() - 1)), over, -torch.inf)
    flat = over.reshape(len(over), -1)
    place = flat.reshape(-1).argmax().reshape(1)
    row, entry = place // flat.shape[1], place % flat.shape[1]
    worst, sign = exact.reshape(-1).index_select(0, place).reshape(()), exact.new_ones(())
    sign = torch.where(worst < 0, -1.0, 1.0) if part.kind == "==" else sign
    index = rows.index
    position = index.index_select(0, row) if isinstance(index, Tensor) else row
    spread = lagrangian.row_spreads[i]
    return _Worst(
        str(i),
        flat.reshape(-1).index_select(0, place) / spread,
        primal.reshape(-1).index_select(0, place).reshape(()) * sign,
        sign,
        position * flat.shape[1] + entry,
        lagrangian.step(part) * spread,
    )
