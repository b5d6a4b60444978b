"""What every minibatch method shares: the epochs around its steps, and the judgment of iterates.

A method brings one epoch of steps (`Method`); `train` runs the epochs. After each one the objective and
residuals are evaluated exactly on the full data; the iterate that is kept is the best of those, not the last.
The multipliers returned are the average over the last third of the run.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from constrain.runtime.result import Ending, RawResult
from constrain.runtime.slacks import Slacks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.runtime.evaluator import Evaluator
    from constrain.solvers.progress import Progress

__all__ = ["IterateJudge", "Method", "default_optimizer", "epochs_or_default", "half_cosine", "train"]

DEFAULT_EPOCHS = 40
LEAST_STEPS = 3000
"""Epochs when none are asked for, and the steps they come to at least."""
SHOWN_ENTRIES = 16
"""Largest number of multipliers of one part that the history records one by one."""


class Method(Protocol):
    """A way to make the steps of one epoch."""

    @property
    def solver(self) -> str:
        """Name and version, for the report."""
        ...

    @property
    def steps(self) -> int:
        """Steps so far."""
        ...

    @property
    def spreads(self) -> Mapping[str, float]:
        """Per part key the standard deviation of one row's contribution: the unit of its violation."""
        ...

    def epoch(self, epoch: int) -> None:
        """One pass over the largest sample."""
        ...

    def multipliers(self) -> dict[str, Tensor]:
        """Copies of the multipliers by part key, in the program's signs; per row for constraints per row."""
        ...

    def observe(self, residuals: Mapping[int, Tensor], moments: list[Tensor]) -> None:
        """Is told the exact residuals (by part position) and averages on the full data after every epoch."""
        ...


def epochs_or_default(epochs: int | None, per_epoch: int) -> int:
    """The number asked for; else 40, or as many as make 3000 steps on a small sample."""
    if epochs is not None:
        return epochs
    return max(DEFAULT_EPOCHS, math.ceil(LEAST_STEPS / per_epoch))


def default_optimizer(tensors: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam, in one fused kernel where the device has it."""
    fused = all(t.device.type in ("cpu", "cuda") and t.is_floating_point() for t in tensors)
    return torch.optim.Adam(tensors, lr=lr, fused=fused)


def half_cosine(optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rates that decay to zero along half a cosine over `total` steps."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / max(total, 1), 1.0)))
    )


@dataclass
class _Kept:
    """The best iterate so far: feasible ones rank by objective, then infeasible ones by violation."""

    rank: tuple[int, float]
    state: dict[str, Tensor]
    epoch: int


class IterateJudge:
    """Evaluates iterates exactly on the full data, keeps the best one, averages late multipliers, records.

    Args:
        evaluator: the compiled program with its data.
        epochs: of the whole run; iterates of its first third only stand in until later ones
            come.
        tolerance: violation (relative to the spread of a row's contribution) up to which an iterate is
            feasible.
    """

    def __init__(self, evaluator: Evaluator, epochs: int, tolerance: float) -> None:
        self.evaluator = evaluator
        self.parts = evaluator.program.parts
        self.slacks = Slacks(evaluator)
        self.epochs = epochs
        self.tolerance = tolerance
        self.history: list[dict[str, Any]] = []
        self.kept: _Kept | None = None
        self.found = False
        """A feasibility problem is solved: on the full data every constraint holds exactly."""
        self._tail: dict[str, Tensor] = {}
        self._tail_count = 0

    def judge(self, epoch: int, method: Method) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Judges the current iterate, with the least slacks that it needs.

        Returns:
            Exact residuals by part position (not of constraints per row), and exact averages.
        """
        moments = self.evaluator.moments("exact")
        with torch.no_grad():
            outer = self.evaluator.outer(moments, "exact").detach()
        with self.slacks.settled(outer.residuals):
            self._judge(epoch, method, moments)
        return {i: r for i, r in enumerate(outer.residuals) if r is not None}, moments

    def _judge(self, epoch: int, method: Method, moments: list[Tensor]) -> None:
        with torch.no_grad():
            outer = self.evaluator.outer(moments, "exact").detach()
        objective = float(outer.objective)
        violation = scaled = 0.0
        exact: dict[int, Tensor] = {}
        for i, part in enumerate(self.parts):
            residual = outer.residuals[i]
            if residual is None:
                residual, mask = self.evaluator.row_residuals(i)
                residual = residual if mask is None else residual[mask]
            else:
                exact[i] = residual
            over = residual.abs() if part.kind == "==" else residual.clamp(min=0)
            worst = float(over.amax()) if over.numel() else 0.0
            violation = max(violation, worst)
            self.found = self.evaluator.program.feasibility and violation == 0.0
            scaled = max(scaled, worst / method.spreads.get(part.key, 1.0))
        self._keep(epoch, objective, scaled)
        multipliers = method.multipliers()
        if 3 * (epoch + 1) > 2 * self.epochs:
            self._tail_count += 1
            for key, value in multipliers.items():
                self._tail[key] = value + self._tail[key] if key in self._tail else value
        row = {"step": method.steps, "epoch": epoch + 1, "objective": self.evaluator.program.sign * objective}
        self.history.append({**row, "violation": violation, **self._entries(exact, multipliers)})

    def _keep(self, epoch: int, objective: float, scaled: float) -> None:
        if not math.isfinite(objective):
            return
        rank = (0, objective) if scaled <= self.tolerance else (1, scaled)
        if 3 * (epoch + 1) < self.epochs and not self.found:
            rank = (2, -float(epoch))  # early: kept only until a later one comes
        if self.kept is None or rank < self.kept.rank:
            self.kept = _Kept(rank, self.evaluator.decisions.snapshot(), epoch + 1)

    def _entries(self, exact: Mapping[int, Tensor], multipliers: Mapping[str, Tensor]) -> dict[str, float]:
        row: dict[str, float] = {}
        for i, part in enumerate(self.parts):
            value = multipliers[part.key]
            if i in exact and value.numel() <= SHOWN_ENTRIES:
                suffixes = [""] if value.numel() == 1 else [f"[{j}]" for j in range(value.numel())]
                for j, suffix in enumerate(suffixes):
                    row[f"residual:{part.key}{suffix}"] = float(exact[i].reshape(-1)[j])
                    row[f"multiplier:{part.key}{suffix}"] = float(value.reshape(-1)[j])
        return row

    def averaged(self, method: Method) -> dict[str, Any]:
        """Multipliers averaged over the last third, as arrays; current ones if a run ended before."""
        if not self._tail:
            return {key: value.cpu().numpy() for key, value in method.multipliers().items()}
        return {key: (value / self._tail_count).cpu().numpy() for key, value in self._tail.items()}


def train(
    method: Method,
    judge: IterateJudge,
    *,
    progress: Progress,
    started: float,
    time_limit: float | None = None,
) -> RawResult:
    """Runs the epochs, restores the best iterate and reports.

    Args:
        method: makes the steps.
        judge: of iterates; its `epochs` are run.
        progress: is told every record of the history.
        started: `time.perf_counter()` at the start of the run.
        time_limit: in seconds, checked after every epoch.
    """
    ending: Ending = "limit"
    message = f"{judge.epochs} epochs"
    try:
        for epoch in range(judge.epochs):
            method.epoch(epoch)
            method.observe(*judge.judge(epoch, method))
            progress.update(epoch + 1, judge.epochs, judge.history[-1])
            if not math.isfinite(judge.history[-1]["objective"]):
                ending, message = "diverged", f"the objective is not finite in epoch {epoch + 1}"
                break
            if judge.found:
                ending, message = "converged", f"every constraint holds after {epoch + 1} epochs"
                break
            if time_limit is not None and time.perf_counter() - started > time_limit:
                message = f"time limit after {epoch + 1} epochs"
                break
    except KeyboardInterrupt:
        ending, message = "interrupted", "stopped by the user; the best iterate is returned"
    if judge.kept is not None:
        judge.evaluator.decisions.restore(judge.kept.state)
        message += f"; iterate of epoch {judge.kept.epoch} kept"
    seconds = time.perf_counter() - started
    return RawResult(
        ending, judge.averaged(method), method.solver, seconds, method.steps, judge.history, message=message
    )
