"""Stochastic primal-dual training: minibatches, any `torch.optim` optimizer for the primal.

Each step: gradient of the Lagrangian on a batch (surrogates for rates), optimizer step, projection on bounds,
multiplier step from exact batch residuals (`Lagrangian.ascend`). After each epoch the objective and residuals are
evaluated exactly on the full data; the iterate that is kept is the best of those, not the last. The multipliers
returned are the average over the last third of the run.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrain.runtime.lagrangian import Lagrangian
from constrain.runtime.result import Ending, RawResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from constrain.runtime.evaluator import Evaluator
    from constrain.solvers.progress import Progress

__all__ = ["PrimalDual"]


@dataclass(frozen=True)
class PrimalDual:
    """Options of stochastic primal-dual training.

    Attributes:
        epochs: passes over the largest sample.
        batch: rows per batch and sample; None takes 512, or 1/8 of a small sample.
        optimizer: `optimizer(parameters)` makes the primal optimizer; None is Adam with `lr`.
        lr: learning rate of the default optimizer; decays to zero along a half cosine with every optimizer.
        rate: integral step of the multipliers, dimensionless, per step.
        gain: proportional gain, dimensionless.
        warmup: epochs in which multipliers rest, so that their steps are measured on a model that has left its
            random start; not used when multipliers are given.
        seed: of batches and calibration.
        tolerance: violation (relative to a row's spread of the constraint) up to which an iterate counts as
            feasible.
    """

    epochs: int = 40
    batch: int | None = None
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None
    lr: float = 3e-3
    rate: float = 0.02
    gain: float = 1.0
    warmup: int = 1
    seed: int = 0
    tolerance: float = 1e-4

    name = "lagrangian"

    def solve(
        self,
        evaluator: Evaluator,
        *,
        progress: Progress,
        multipliers: Mapping[str, Any] | None = None,
        time_limit: float | None = None,
    ) -> RawResult:
        """Trains from the current decisions (and multipliers, by part key)."""
        return _Training(self, evaluator, progress, time_limit).run(multipliers)


@dataclass
class _Kept:
    """The best iterate so far: infeasible ones rank by violation, feasible ones by objective."""

    rank: tuple[int, float]
    state: dict[str, Tensor]
    epoch: int


@dataclass
class _Training:
    options: PrimalDual
    evaluator: Evaluator
    progress: Progress
    time_limit: float | None
    start: float = field(default_factory=time.perf_counter)
    steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    kept: _Kept | None = None

    def __post_init__(self) -> None:
        options = self.options
        self.generator = torch.Generator().manual_seed(options.seed)
        self.lagrangian = Lagrangian(self.evaluator, rate=options.rate, gain=options.gain)
        tensors = self.evaluator.decisions.tensors
        make = options.optimizer
        self.optimizer = torch.optim.Adam(tensors, lr=options.lr) if make is None else make(tensors)
        self.sizes = {data.name: self._batch_size(p.rows) for data, p in self.evaluator.populations.items()}
        rows = {data.name: p.rows for data, p in self.evaluator.populations.items()}
        self.rows = rows
        self.per_epoch = max((math.ceil(rows[k] / self.sizes[k]) for k in rows), default=100)
        total = max(options.epochs * self.per_epoch, 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
        )
        self.order: dict[str, Tensor] = {}
        self.tail: dict[str, Tensor] = {}
        self.tail_count = 0

    def _batch_size(self, rows: int) -> int:
        if self.options.batch is not None:
            return min(self.options.batch, rows)
        return min(512, max(rows // 8, min(rows, 32)))

    # ----------------------------------------------------------------------------------------- batches
    def batches(self, step: int) -> dict[str, Tensor]:
        """Rows of this step: every sample is reshuffled when it is used up; the last partial batch is dropped."""
        chosen: dict[str, Tensor] = {}
        for name, rows in self.rows.items():
            size = self.sizes[name]
            count = rows // size
            place = step % count
            if place == 0 or name not in self.order:
                self.order[name] = torch.randperm(rows, generator=self.generator).to(self.evaluator.device)
            chosen[name] = self.order[name][place * size : (place + 1) * size]
        return chosen

    # -------------------------------------------------------------------------------------------- loop
    def run(self, multipliers: Mapping[str, Any] | None) -> RawResult:
        """The epochs."""
        self.evaluator.refresh_scales()
        self.lagrangian.calibrate(self.generator)
        self.warmup = 0 if multipliers else self.options.warmup
        if multipliers:
            self.lagrangian.set_multipliers(multipliers)
        ending: Ending = "limit"
        message = f"{self.options.epochs} epochs"
        try:
            for epoch in range(self.options.epochs):
                self._epoch(epoch)
                if not math.isfinite(self.history[-1]["objective"]):
                    ending, message = "diverged", f"the objective is not finite in epoch {epoch + 1}"
                    break
                if self._late():
                    message = f"time limit after {epoch + 1} epochs"
                    break
        except KeyboardInterrupt:
            ending, message = "interrupted", "stopped by the user; the best iterate is returned"
        if self.kept is not None:
            self.evaluator.decisions.restore(self.kept.state)
            message += f"; iterate of epoch {self.kept.epoch} kept"
        found = {k: (v / max(self.tail_count, 1)).cpu().numpy() for k, v in self.tail.items()}
        if not found:
            found = {k: v.cpu().numpy() for k, v in self.lagrangian.multipliers().items()}
        solver = f"primal-dual ({type(self.optimizer).__name__}, torch {torch.__version__.split('+')[0]})"
        seconds = time.perf_counter() - self.start
        return RawResult(ending, found, solver, seconds, self.steps, self.history, message=message)

    def _late(self) -> bool:
        return self.time_limit is not None and time.perf_counter() - self.start > self.time_limit

    def _epoch(self, epoch: int) -> None:
        for _ in range(self.per_epoch):
            loss = self.lagrangian(self.batches(self.steps))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.evaluator.decisions.project()
            if epoch >= self.warmup:
                self.lagrangian.ascend()
            self.schedule.step()
            self.steps += 1
        self.evaluator.refresh_scales()
        if epoch < 4 or epoch % 4 == 0:
            self.lagrangian.calibrate(self.generator)
        self._judge(epoch)

    def _judge(self, epoch: int) -> None:
        """Exact evaluation: keeps the best iterate, corrects the running residuals, averages late multipliers."""
        outer = self.evaluator.full("exact")
        objective = float(outer.objective)
        violation = scaled = 0.0
        exact: dict[int, Tensor] = {}
        for i, part in enumerate(self.lagrangian.parts):
            residual = outer.residuals[i]
            if residual is None:
                residual, mask = self.evaluator.row_residuals(i)
                residual = residual if mask is None else residual[mask]
            else:
                exact[i] = residual
            over = residual.abs() if part.kind == "==" else residual.clamp(min=0)
            worst = float(over.amax()) if over.numel() else 0.0
            violation = max(violation, worst)
            scaled = max(scaled, worst / self.lagrangian.spreads.get(part.key, 1.0))
        self.lagrangian.observe(exact)
        if math.isfinite(objective) and 3 * (epoch + 1) >= self.options.epochs:
            feasible = scaled <= self.options.tolerance
            rank = (0, objective) if feasible else (1, scaled)
            if self.kept is None or rank < self.kept.rank:
                self.kept = _Kept(rank, self.evaluator.decisions.snapshot(), epoch + 1)
        if 3 * (epoch + 1) > 2 * self.options.epochs:
            self.tail_count += 1
            for key, value in self.lagrangian.multipliers().items():
                self.tail[key] = value + self.tail[key] if key in self.tail else value
        self._record(epoch, objective, violation, exact)

    def _record(self, epoch: int, objective: float, violation: float, exact: Mapping[int, Tensor]) -> None:
        row: dict[str, Any] = {
            "step": self.steps,
            "epoch": epoch + 1,
            "objective": self.evaluator.program.sign * objective,
            "violation": violation,
        }
        multipliers = self.lagrangian.multipliers()
        for i, part in enumerate(self.lagrangian.parts):
            value = multipliers[part.key]
            if i in exact and value.numel() <= 16:
                suffixes = [""] if value.numel() == 1 else [f"[{j}]" for j in range(value.numel())]
                for j, suffix in enumerate(suffixes):
                    row[f"residual:{part.key}{suffix}"] = float(exact[i].reshape(-1)[j])
                    row[f"multiplier:{part.key}{suffix}"] = float(value.reshape(-1)[j])
        self.history.append(row)
        self.progress.update(epoch + 1, self.options.epochs, row)
