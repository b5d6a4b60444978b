"""What every minibatch method shares: the epochs around its steps, and the judgment of iterates.

A method brings one epoch of steps (`Method`); `train` runs the epochs. After each one the objective and
residuals are evaluated exactly on the full data; the iterate that is kept is the best of those, not the last.
The multipliers returned are the average over the last third of the run.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from constrain.errors import ModelingError
from constrain.runtime.largest import Largest
from constrain.runtime.result import Ending, RawResult
from constrain.runtime.slacks import Slacks
from constrain.solvers.checkpoint import Terminated
from constrain.solvers.finishing import finish
from constrain.solvers.finite import (
    NotFinite,
    batch_culprit,
    decision_culprit,
    judged_culprit,
    multiplier_culprit,
    sound,
)
from constrain.solvers.mixtures import Candidates
from constrain.solvers.progress import Stopped, Watched
from constrain.solvers.state import (
    evaluator_state,
    random_state,
    restore,
    restore_evaluator,
    set_random,
    state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from constrain.runtime.evaluator import Evaluator, Outer
    from constrain.solvers.checkpoint import Checkpoints
    from constrain.solvers.progress import Progress

__all__ = [
    "IterateJudge",
    "Method",
    "Recorded",
    "Stepwise",
    "default_optimizer",
    "epochs_or_default",
    "epochs_together",
    "half_cosine",
    "schedule_of",
    "train",
]

JUDGED_STEPS, LEAST_JUDGED = 8, 32
"""Steps from one judgment to the next in epochs of fewer steps, and judgments that are left at least."""
DEFAULT_EPOCHS = 40
LEAST_STEPS = 3000
"""Epochs when none are asked for, and the steps they come to at least."""
SHOWN_ENTRIES = 16
"""Largest number of multipliers of one part that the history records one by one."""


CHECKED_STEPS = 64
"""Steps after which decisions and multipliers are looked at whether they are finite."""
GOOD_STEPS = 256
"""Steps after which a good state is remembered in the place of the one before."""


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
    def notes(self) -> list[str]:
        """What the run changed on the way, in words."""
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
        """Is told the exact residuals (by part position) and averages on the full data when it is judged."""
        ...

    def terminate(self) -> str:
        """Why the run ends after the epoch that was observed last, or an empty text."""
        ...


@runtime_checkable
class Stepwise(Protocol):
    """A method that can be stored after every step, not only after every epoch.

    It calls `after_step` at the end of each one, and continues an epoch after the steps that it has made.
    """

    after_step: Callable[[], None]


@runtime_checkable
class Recorded(Protocol):
    """A method whose steps may be replayed instead of made in Python."""

    def run_eagerly(self) -> None:
        """Makes the following steps in Python, where every operation can be watched."""
        ...


def epochs_or_default(epochs: int | None, per_epoch: int) -> int:
    """The number asked for; else 40, or as many as make 3000 steps on a small sample."""
    if epochs is not None:
        return epochs
    return max(DEFAULT_EPOCHS, math.ceil(LEAST_STEPS / per_epoch))


def epochs_together(epochs: int, per_epoch: int) -> int:
    """Epochs that are judged together: several where judging one costs more than its few steps."""
    return max(1, min(math.ceil(JUDGED_STEPS / per_epoch), epochs // LEAST_JUDGED))


def default_optimizer(tensors: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam, in one fused kernel where the device has it."""
    fused = all(t.device.type in ("cpu", "cuda") and t.is_floating_point() for t in tensors)
    return torch.optim.Adam(tensors, lr=lr, fused=fused)


def half_cosine(optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rates that decay to zero along half a cosine over `total` steps."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / max(total, 1), 1.0)))
    )


def schedule_of(make: Callable[[torch.optim.Optimizer], Any], optimizer: torch.optim.Optimizer) -> Any:
    """The user's schedule of learning rates, which steps after every batch.

    Raises:
        ModelingError: E141 for one that needs a value at every step, or something that is no schedule.
    """
    fix = "scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 100)"
    if not callable(make):  # pyright: ignore[reportUnnecessaryComparison]
        raise ModelingError("E141", f"scheduler={make!r} is not a function of the optimizer", fix=fix)
    try:
        found = make(optimizer)
    except TypeError as error:  # such as a class that needs more than the optimizer
        text = f"scheduler= cannot be called with the optimizer alone: {error}"
        raise ModelingError("E141", text, fix=fix) from error
    if isinstance(found, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ModelingError(
            "E141",
            "scheduler= makes a ReduceLROnPlateau, which needs a value at every step",
            fix="scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=1000)",
        )
    if not callable(getattr(found, "step", None)):
        text = f"scheduler= makes a {type(found).__name__}, which is no schedule of learning rates"
        raise ModelingError("E141", text, fix=fix)
    return found


@dataclass
class Kept:
    """The best iterate so far: feasible ones rank by objective, then infeasible ones by violation.

    Those that hold bounds on rates exactly come before the others at the end (`finishing.py`).
    """

    rank: tuple[int, float]
    state: dict[str, Tensor]
    words: str


class IterateJudge:
    """Evaluates iterates exactly on the full data, keeps the best one, averages late ones, records.

    The average of the iterates after the epochs of the last third is one more candidate: what steps on
    batches do at random around an optimum, it leaves out (Polyak and Juditsky, 1992, "Acceleration of
    stochastic approximation by averaging").

    Args:
        evaluator: the compiled program with its data.
        epochs: of the whole run; iterates of its first third only stand in until later ones
            come.
        tolerance: violation (relative to the spread of a row's contribution) up to which an iterate is
            feasible.
        every: epochs from one judgment to the next; the last one is judged in any case.
    """

    def __init__(self, evaluator: Evaluator, epochs: int, tolerance: float, every: int = 1) -> None:
        self.evaluator = evaluator
        self.every = every
        self.parts = evaluator.program.parts
        self.slacks = Slacks(evaluator)
        self.largest = Largest(evaluator)
        self.epochs = epochs
        self.tolerance = tolerance
        self.history: list[dict[str, Any]] = []
        self.kept: Kept | None = None
        self.candidates = Candidates(evaluator.program, evaluator.decisions)
        self.found = False
        """A feasibility problem is solved: on the full data every constraint holds exactly."""
        self._tail: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}  # of what steps change
        self.late_epochs = 0

    def due(self, epoch: int) -> bool:
        """Whether an epoch is judged."""
        return (epoch + 1) % self.every == 0 or epoch + 1 == self.epochs

    def judged(self, epochs: int) -> bool:
        """Whether the last of so many epochs was judged."""
        return bool(self.history) and self.history[-1]["epoch"] == epochs

    def judge(self, epoch: int, method: Method) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Judges the current iterate, with the least slacks that it needs.

        Returns:
            Exact residuals by part position (not of constraints per row), and exact averages.
        """
        moments = self.evaluator.moments("exact")
        outer = self.at_largest(moments)
        with self.slacks.settled(outer.residuals):
            self._judge(epoch, method, moments)
        return {i: r for i, r in enumerate(outer.residuals) if r is not None}, moments

    def finish(self, method: Method) -> None:
        """The last candidates at the end of the run: see `finishing.py`."""
        if self.late_epochs > 1 and not self.found and self.kept is not None:
            finish(self, method)

    def late_average(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The decisions averaged over the last third, in the precisions of these."""
        return {name: (total / self.late_epochs).to(like[name].dtype) for name, total in self._sums.items()}

    def violations(self, method: Method) -> tuple[float, list[float]]:
        """Objective, and the largest violation of every part in spreads, at the decisions as they are.

        Slacks and bounds at largest values are set to what the decisions need.
        """
        moments = self.evaluator.moments("exact")
        self.slacks.settle(self.at_largest(moments).residuals)
        outer = self._outer(moments)
        worst, spreads = self._worst(outer), self._spreads(method)
        return float(outer.objective), [w / spread for w, spread in zip(worst, spreads, strict=True)]

    def at_largest(self, moments: list[Tensor]) -> Outer:
        """The exact outer values, with each bound at its largest value."""
        outer = self._outer(moments)
        return self._outer(moments) if self.largest.settle(outer.residuals) else outer

    def _outer(self, moments: list[Tensor]) -> Outer:
        with torch.no_grad():
            return self.evaluator.outer(moments, "exact").detach()

    def _measured(self, method: Method, outer: Outer) -> tuple[float, float, float, dict[int, Tensor]]:
        """Objective, violation, violation in spreads, and exact residuals by part position."""
        worst, spreads = self._worst(outer), self._spreads(method)
        scaled = max((w / spread for w, spread in zip(worst, spreads, strict=True)), default=0.0)
        exact = {i: r for i, r in enumerate(outer.residuals) if r is not None}
        return float(outer.objective), max(worst, default=0.0), scaled, exact

    def _spreads(self, method: Method) -> list[float]:
        return [method.spreads.get(part.key, 1.0) for part in self.parts]

    def _worst(self, outer: Outer) -> list[float]:
        """The largest violation of every part."""
        found = [0.0] * len(self.parts)

        def note(i: int, residual: Tensor) -> None:
            over = residual.abs() if self.parts[i].kind == "==" else residual.clamp(min=0)
            worst = float(over.amax()) if over.numel() else 0.0
            found[i] = math.inf if math.isnan(worst) else worst

        for i, residual in enumerate(outer.residuals):
            if residual is not None:
                note(i, residual)
        for i, residual, mask in self.evaluator.all_row_residuals(self.evaluator.program.per_row):
            note(i, residual if mask is None else residual[mask])
        return found

    def _judge(self, epoch: int, method: Method, moments: list[Tensor]) -> None:
        outer = self._outer(moments)
        objective, violation, scaled, exact = self._measured(method, outer)
        self.found = self.evaluator.program.feasibility and violation == 0.0
        self._keep(epoch, objective, scaled)
        rooms = [self.tolerance * spread for spread in self._spreads(method)]
        self.candidates.add(epoch + 1, objective, outer.residuals, rooms, self.evaluator.decisions)
        multipliers = method.multipliers()
        if 3 * (epoch + 1) > 2 * self.epochs:
            self.late_epochs += 1
            for key, value in multipliers.items():
                self._tail[key] = value + self._tail[key] if key in self._tail else value
            for name, tensor in self.evaluator.modes.trained(self.evaluator).items():
                own = tensor.detach().double()
                self._sums[name] = self._sums[name] + own if name in self._sums else own.clone()
        row = {"step": method.steps, "epoch": epoch + 1, "objective": self.evaluator.program.sign * objective}
        self.history.append({**row, "violation": violation, **self._entries(exact, multipliers)})

    def _keep(self, epoch: int, objective: float, scaled: float) -> None:
        if not (math.isfinite(objective) and math.isfinite(scaled)):
            return
        rank = (0, objective) if scaled <= self.tolerance else (1, scaled)
        if 3 * (epoch + 1) < self.epochs and not self.found:
            rank = (2, -float(epoch))  # early: kept only until a later one comes
        self.keep(rank, f"iterate of epoch {epoch + 1}")

    def keep(self, rank: tuple[int, float], words: str) -> None:
        """Keeps the decisions as they are where this rank is less than that of what is kept."""
        if self.kept is None or rank < self.kept.rank:
            self.kept = Kept(rank, self.evaluator.decisions.snapshot(), words)

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

    def state_dict(self) -> dict[str, Any]:
        """The best iterate, the history, and the sums of the late multipliers."""
        kept = None if self.kept is None else (list(self.kept.rank), self.kept.state, self.kept.words)
        return {
            "kept": kept,
            "history": self.history,
            "found": self.found,
            "tail": self._tail,
            "sums": self._sums,
            "count": self.late_epochs,
            "candidates": self.candidates.state_dict(),
        }

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Puts them back; they are the judge's own from then on."""
        self.kept = None
        device = self.evaluator.device
        if stored["kept"] is not None:
            (first, second), values, words = stored["kept"]
            self.kept = Kept((first, second), {k: v.to(device) for k, v in values.items()}, words)
        self.history = stored["history"]
        self.found = stored["found"]
        self._tail = {key: value.to(device) for key, value in stored["tail"].items()}
        self._sums = {key: value.to(device) for key, value in stored.get("sums", {}).items()}
        self.late_epochs = stored["count"]
        if "candidates" in stored:
            self.candidates.load_state_dict(stored["candidates"], device)

    def averaged(self, method: Method) -> dict[str, Any]:
        """Multipliers averaged over the last third, as arrays; current ones if a run ended before."""
        if not self._tail:
            return {key: value.cpu().numpy() for key, value in method.multipliers().items()}
        return {key: (value / self.late_epochs).cpu().numpy() for key, value in self._tail.items()}


class _Run:
    """One run: where it is, its last good state, and its checkpoints."""

    def __init__(self, method: Method, judge: IterateJudge, checkpoints: Checkpoints | None) -> None:
        self.method = method
        self.judge = judge
        self.evaluator = judge.evaluator
        self.checkpoints = checkpoints
        self.epoch = 0
        self.started = time.perf_counter()
        self._replaying = False
        if isinstance(method, Stepwise):
            method.after_step = self._after_step

    # ------------------------------------------------------------------------------------------ state
    def state(self) -> dict[str, Any]:
        """Copies of everything that the next step depends on."""
        return {
            "epoch": self.epoch,
            "seconds": time.perf_counter() - self.started,
            "objects": state(self.method, self.judge),
            "random": random_state(),
            **evaluator_state(self.evaluator),
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Continues from a state."""
        self.epoch = stored["epoch"]
        restore_evaluator(stored, self.evaluator)
        restore(stored["objects"], self.method, self.judge)
        set_random(stored["random"])

    def begin(self, started: float) -> None:
        """The start of the run, or what a checkpoint continues."""
        self.started = started
        if self.checkpoints is not None and self.checkpoints.resumed is not None:
            stored = self.checkpoints.resumed
            self.restore(stored)
            self.started = time.perf_counter() - stored["seconds"]
        self._good, self._good_step, self._checked = self.state(), self.method.steps, self.method.steps

    # ------------------------------------------------------------------------------------------ steps
    def advance(self) -> None:
        """One epoch, and its judgment.

        Raises:
            NotFinite: when something is NaN or infinite.
        """
        self.method.epoch(self.epoch)
        if self.judge.due(self.epoch):
            self._judge(self.epoch)
        self.epoch += 1
        self._check()
        self._store()

    def judge_last(self) -> None:
        """Judges the iterate of the last epoch, if it was not.

        Raises:
            NotFinite: when something is NaN or infinite.
        """
        if not self.judge.judged(self.epoch):
            self._judge(self.epoch - 1)

    def _judge(self, epoch: int) -> None:
        residuals, moments = self.judge.judge(epoch, self.method)
        row = self.judge.history[-1]
        if not (math.isfinite(row["objective"]) and math.isfinite(row["violation"])):
            raise NotFinite(f"{judged_culprit(self.evaluator)} on the full data", self._after)
        self.method.observe(residuals, moments)

    def _after_step(self) -> None:
        if self._replaying or self.method.steps - self._checked >= CHECKED_STEPS:
            self._check()
        self._store()

    def _store(self) -> None:
        if self.checkpoints is not None and not self._replaying and self.checkpoints.due(self.method.steps):
            self.checkpoints.save(self.method.steps, self.state)

    def _check(self) -> None:
        """Looks at decisions and multipliers, and remembers a good state now and then."""
        multipliers = self.method.multipliers()
        if not sound(self.evaluator, multipliers):
            decisions = decision_culprit(self.evaluator, gradients=False)
            what = decisions or f"the multiplier of {multiplier_culprit(multipliers)}"
            raise NotFinite(what, self._after)
        self._checked = self.method.steps
        if not self._replaying and self._checked - self._good_step >= GOOD_STEPS:
            self._good, self._good_step = self.state(), self._checked

    # ------------------------------------------------------------------------------- what is not finite
    def explain(self, found: NotFinite) -> str:
        """Repeats the steps since the last good state one by one until the culprit shows; goes back there."""
        history, epoch = self.judge.history, self.epoch
        optimizers = [x for x in vars(self.method).values() if isinstance(x, torch.optim.Optimizer)]
        hooks = [optimizer.register_step_pre_hook(self._before_step) for optimizer in optimizers]
        self._replaying = True
        if isinstance(self.method, Recorded):
            self.method.run_eagerly()
        try:
            self.restore(self._good)
            while self.epoch <= epoch:
                self.advance()
        except NotFinite as repeated:
            found = repeated
        finally:
            self._replaying = False
            for hook in hooks:
                hook.remove()
            self.restore(self._good)
            self.judge.history = history
        return f"not finite {found.where}: {found}"

    @property
    def _after(self) -> str:
        """Where the run is, in words."""
        return f"after step {self.method.steps} (epoch {self.epoch + 1})"

    def _before_step(self, *_: Any) -> None:
        """Refuses gradients that are not finite, before they reach the decisions."""
        decisions = decision_culprit(self.evaluator, gradients=True)
        if not decisions:
            return
        batch = getattr(getattr(self.method, "sampler", None), "last", None)
        lagrangian = getattr(self.method, "lagrangian", None)
        term = ""
        if batch and lagrangian is not None:
            with torch.enable_grad():
                term = batch_culprit(lagrangian, batch)
        what = f"{term}; it reaches {decisions}" if term else f"the gradient in {decisions}"
        raise NotFinite(what, f"in step {self.method.steps + 1} (epoch {self.epoch + 1})")


def train(
    method: Method,
    judge: IterateJudge,
    *,
    progress: Progress,
    started: float,
    time_limit: float | None = None,
    finish: bool = False,
) -> RawResult:
    """Runs the epochs, restores the best iterate and reports.

    Args:
        method: makes the steps.
        judge: of iterates; its `epochs` are run.
        progress: is told every record of the history; a `Watched` one brings checkpoints.
        started: `time.perf_counter()` at the start of the run.
        time_limit: in seconds of all processes of the run, checked after every epoch.
        finish: also judge the average of the late iterates, and the best one moved onto its constraints.
    """
    checkpoints = progress.checkpoints if isinstance(progress, Watched) else None
    run = _Run(method, judge, checkpoints)
    ending, message = _ending(run, progress, started, time_limit)
    if finish and ending == "limit":
        judge.finish(method)
    if judge.kept is not None:
        judge.evaluator.decisions.restore(judge.kept.state)
        message += f"; {judge.kept.words} kept"
    message = "; ".join([message, *method.notes])
    seconds = time.perf_counter() - run.started
    return RawResult(
        ending, judge.averaged(method), method.solver, seconds, method.steps, judge.history, message=message,
        candidates=judge.candidates,
    )  # fmt: skip


def _ending(run: _Run, progress: Progress, started: float, time_limit: float | None) -> tuple[Ending, str]:
    """Runs the epochs and says why they ended."""
    try:
        if run.checkpoints is not None:
            run.checkpoints.listen()
        run.begin(started)
        try:
            found = _epochs(run, progress, time_limit)
        except NotFinite as broken:
            return "diverged", run.explain(broken)
        if run.checkpoints is not None:
            run.checkpoints.save(run.method.steps, run.state)
        return found
    except Terminated:
        return "interrupted", "stopped by SIGTERM, with a checkpoint; the best iterate is returned"
    except Stopped:
        if run.checkpoints is not None:
            run.checkpoints.save(run.method.steps, run.state)
        return "interrupted", "stopped by a callback; the best iterate is returned"
    except KeyboardInterrupt:
        return "interrupted", "stopped by the user; the best iterate is returned"
    finally:
        if run.checkpoints is not None:
            run.checkpoints.close()


def _epochs(run: _Run, progress: Progress, time_limit: float | None) -> tuple[Ending, str]:
    judge = run.judge
    while True:
        if judge.found:
            return "converged", f"every constraint holds after {run.epoch} epochs"
        if run.epoch == judge.epochs:
            return "limit", f"{judge.epochs} epochs"
        if run.epoch and (found := run.method.terminate()):
            return "limit", f"{found} after {run.epoch} epochs"
        if run.epoch and time_limit is not None and time.perf_counter() - run.started > time_limit:
            run.judge_last()
            return "limit", f"time limit after {run.epoch} epochs"
        run.advance()
        if judge.judged(run.epoch):
            progress.update(run.epoch, judge.epochs, judge.history[-1])
