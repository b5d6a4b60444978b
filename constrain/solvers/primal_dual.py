"""Stochastic primal-dual training: minibatches, any `torch.optim` optimizer for the primal.

`Training` owns what a step needs: optimizer, schedule, sampler, Lagrangian. A scheme (`schemes/`) makes the
step of these pieces: gradient of the Lagrangian on a batch (surrogates for rates), optimizer step, projection
on bounds, multiplier step from exact batch residuals (`Lagrangian.ascend`). Epochs, batches and the judgment
of iterates are in `training.py`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from constrain.analysis.models import affine_model
from constrain.language import nodes as n
from constrain.lowering.lower import EPIGRAPH
from constrain.runtime.graph import NotRecorded, RecordedStep, cannot_be
from constrain.runtime.lagrangian import Lagrangian
from constrain.runtime.limits import check_optimizer
from constrain.runtime.multipliers import multiplier_functions
from constrain.solvers.guard import Guard
from constrain.solvers.sampling import BatchSampler, Sampling
from constrain.solvers.schemes import Scheme, dual_of, scheme_of
from constrain.solvers.training import (
    IterateJudge,
    epochs_or_default,
    epochs_together,
    half_cosine,
    schedule_of,
    train,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from constrain.runtime.ascent import Ascent
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.result import RawResult
    from constrain.runtime.rows import Rows
    from constrain.solvers.progress import Progress
    from constrain.solvers.schemes import State

__all__ = ["PrimalDual", "Training"]

RATE = 1.2
"""Step of the multipliers times the square root of the number of steps, when none is asked for."""
MEMORY = 0.95
"""Decay of the running residual, when none is asked for."""
LEAST_RATE = 0.05
"""Least step of the multipliers, as a fraction of `rate`: they slow down with the weights."""

LR = 3e-3
"""Usual learning rate."""
TRAVEL, LARGEST_LR = 60.0, 0.2
"""Learning rate times steps, and the largest rate, where gradients have no noise and models are affine."""
RECORDED_STEPS = 100
"""Steps of a run from which on its steps are recorded, which takes as long as some 15 to 30 of them."""
RECORDED_SIZE = 50_000_000
"""Numbers in the decisions up to which `auto` records: it copies them, and large models keep torch busy."""
COMPILED_STEPS = 50_000
"""Steps from which on they are compiled, which takes as long as about 20 000 of a small model."""
SMALL = 1_000_000
"""Decisions up to which a model is small: beyond, its own operations take the time."""


@dataclass(frozen=True)
class PrimalDual:
    """Options of stochastic primal-dual training.

    Attributes:
        epochs: passes over the largest sample; None makes 40, or as many as come to 3000 steps.
        batch: rows per batch, for every sample or by the sample's name; None takes 512, or 1/8 of a small
            sample.
        optimizer: `optimizer(parameters)` makes the primal optimizer; None is Adam with `lr`.
        lr: learning rate of the default optimizer; decays to zero along a half cosine with every optimizer.
            None takes 0.003; where models are affine in their weights and every batch is the whole sample, so
            that gradients have no noise, 60 / steps, at most 0.2.
        formulation: `"lagrangian"`, `"augmented"` or `"classical"`. The augmented ones add a penalty: their
            gradient is that of max(0, multiplier + penalty * residual) (`"augmented"`: Hestenes, Powell and
            Rockafellar), or of multiplier + penalty * max(0, residual) for inequalities (`"classical"`), with
            the running residual in the place of the batch's own, whose product with its own gradient would be
            biased.
        rate: integral step of the multipliers, dimensionless, per step; None takes 1.2 / sqrt(steps of the
            run). It decays with the learning rate to a twentieth: at rest, noise in the multipliers moves
            rare groups most.
        gain: the penalty in units of the multiplier steps' scale, dimensionless (the proportional gain of the
            multiplier rule); None takes 0.3 for the Lagrangian and 4 for the augmented Lagrangian.
        warmup: epochs in which multipliers rest, so that their steps are measured on a model that has left
            its random start; not used when multipliers are given. None makes one, and none where the
            objective holds rates: without multipliers it drives all margins to one side.
        estimator: "auto", or "batch", "halves" or "running" for all terms, or by term ("objective", names of
            constraints); see `constrain.runtime.estimates`.
        sampling: "shuffle", "stratified", or "auto": stratified where a group would be rare in a batch.
        multipliers: by name of a constraint per row, an expression such as `lam(D.x)` with a model of its own
            that gives its multipliers instead of a table; serves fresh samples and streams as well.
        multiplier_lr: learning rate of these models.
        refresh: steps between exact passes over the full data that reset the running averages and residuals;
            None makes one after every epoch.
        seed: of batches and calibration.
        tolerance: violation (relative to a row's spread of the constraint) up to which an iterate counts as
            feasible.
        scheme: the rule of a step: `"simultaneous"`, `"alternating"`, `"dual-first"`, `"extragradient"`,
            `"optimistic"`, `"penalty"`, `"dual-descent"`, `"switching"`, `"tiada"`, or one of
            `constrain.solvers.schemes` with options of its own.
        dual: the rule of the multipliers: `"pi"` (with `gain` and `memory`; what None means for most
            schemes), `"plain"`, `"nupi"` (the recursive form, projected as a whole), `"optimistic"`,
            `"mirror"`, or `NuPI(...)`, `Mirror(...)` of `constrain.solvers.schemes`.
        memory: decay of the running residual of the proportional part, in [0, 1); None takes 0.95. 0 takes
            the batch's own residual, which is exact on whole samples and biased on batches.
        scheduler: `scheduler(optimizer)` makes a `torch.optim.lr_scheduler` that steps after every batch, in
            the place of the half cosine; the steps of the multipliers follow the learning rate.
        graph: "off" makes every step in Python; "recorded" replays one that was recorded, "compiled" compiles
            it, with the same results but for rounding (`constrain.runtime.graph`). "auto" records where a run
            has 100 steps, and compiles where it has 50 000, the model is small, and time has no limit.
    """

    epochs: int | None = None
    batch: Mapping[str, int] | int | None = None
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None
    lr: float | None = None
    formulation: Literal["lagrangian", "augmented", "classical"] = "lagrangian"
    rate: float | None = None
    gain: float | None = None
    warmup: int | None = None
    estimator: Mapping[str, str] | str = "auto"
    sampling: Sampling = "auto"
    multipliers: Mapping[str, Any] | None = None
    multiplier_lr: float = 1e-2
    refresh: int | None = None
    seed: int = 0
    tolerance: float = 1e-4
    scheme: Scheme | str = "simultaneous"
    dual: Ascent | str | None = None
    memory: float | None = None
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    graph: Literal["auto", "off", "recorded", "compiled"] = "auto"

    minibatch = True

    @property
    def name(self) -> str:
        """The formulation."""
        return self.formulation

    def solve(
        self,
        evaluator: Evaluator,
        *,
        progress: Progress,
        multipliers: Mapping[str, Any] | None = None,
        time_limit: float | None = None,
    ) -> RawResult:
        """Trains from the current decisions (and multipliers, by part key)."""
        started = time.perf_counter()
        method = Training(self, evaluator, timed=time_limit is not None)
        method.prepare(multipliers)
        judge = IterateJudge(evaluator, method.epochs, self.tolerance, method.together)
        return train(method, judge, progress=progress, started=started, time_limit=time_limit, finish=True)


class Training:
    """One run: what its steps need, and the scheme that makes them.

    Attributes:
        options: as asked for.
        evaluator: the compiled program with its data.
        timed: a limit of time is to be kept, so that nothing is compiled unasked.
        lagrangian: with the multipliers.
        tensors: the decisions that move.
        optimizer: of the decisions.
        schedule: of its learning rates.
        sampler: of batches.
        generator: of everything random.
        scheme: makes the steps.
        dual: rule of the multipliers, None for the Lagrangian's own.
        dual_name: as asked for, None where nothing was.
        state: what the scheme remembers.
        steps: so far.
        total: of the whole run.
        rate: first integral step of the multipliers, dimensionless.
        resting: multipliers rest, as in the epochs of the warm-up.
        graph: makes the steps where they are recorded, else None.
        guard: damps the multipliers where violations cycle.
    """

    def __init__(self, options: PrimalDual, evaluator: Evaluator, *, timed: bool = False) -> None:
        self.options = options
        self.evaluator = evaluator
        self.timed = timed
        self.steps = 0
        objective = n.postorder(evaluator.program.objective)
        rates = any(isinstance(x, n.Indicator) and x.surrogate for x in objective)
        self.warmup = int(not rates) if options.warmup is None else options.warmup
        self.generator = torch.Generator().manual_seed(options.seed)
        self.scheme: Scheme = scheme_of(options.scheme)
        self.dual, self.dual_name = dual_of(options.dual, options.gain, options.memory)
        self.state: State = {}
        self.resting = False
        self._lent: Mapping[str, Rows] | None = None
        self.functions = functions = multiplier_functions(
            evaluator, options.multipliers or {}, options.multiplier_lr
        )
        self.lagrangian = Lagrangian(
            evaluator,
            gain=self._gain(),
            memory=MEMORY if options.memory is None else options.memory,
            estimator=options.estimator,
            functions=functions,
        )
        self.lagrangian.classical = options.formulation == "classical"
        self.tensors = self.lagrangian.moved(evaluator.decisions.tensors)
        tables = [p for p in evaluator.program.parts if p.rows is not None and p.constraint not in functions]
        rows = [p.rows.name for p in tables if p.rows is not None]
        halves = "halves" in self.lagrangian.estimator.kinds
        self.sampler = BatchSampler(
            evaluator, options.batch, self.generator, options.sampling, rows, halves=halves
        )
        self.epochs = epochs_or_default(options.epochs, self.sampler.per_epoch)
        self.together = self._together()
        if self.together > 1:
            self.lagrangian.memory = 0.0  # every step sees all rows
        self.total = max(self.epochs * self.sampler.per_epoch, 1)
        make = options.optimizer
        self.optimizer = (
            self.scheme.optimizer(self.tensors, self._usual_lr()) if make is None else make(self.tensors)
        )
        check_optimizer(self.optimizer, "what optimizer= makes", self.tensors)
        own = options.scheduler
        self.schedule: Any = (
            half_cosine(self.optimizer, self.total) if own is None else schedule_of(own, self.optimizer)
        )
        self._first_lr = self._lr()
        asked = options.rate, self.scheme.rate, RATE / math.sqrt(self.total)
        self.rate = next(rate for rate in asked if rate is not None)
        self.after_step: Callable[[], None] = lambda: None
        self.graph = self._graph()
        asked = (options.gain, options.rate, options.memory, options.dual)
        self.guard = Guard(acts=self.scheme.guarded and all(value is None for value in asked))

    @property
    def solver(self) -> str:
        """Name and version, for the report."""
        kind = "primal-dual" if self.options.formulation == "lagrangian" else "minibatch augmented Lagrangian"
        if self.options.scheme != "simultaneous":
            kind = self.scheme.name
        graph = f", {self.graph.mode} step" if self.graph is not None and self.graph.used else ""
        if self.dual_name is not None:
            kind += f" with {self.dual_name} multipliers"
        return f"{kind} ({type(self.optimizer).__name__}, torch {torch.__version__.split('+')[0]}{graph})"

    @property
    def notes(self) -> list[str]:
        """What the run changed because of cycles, in words."""
        return self.guard.notes

    @property
    def spreads(self) -> Mapping[str, float]:
        """Spread of a row's contribution, by part key."""
        return self.lagrangian.spreads

    def prepare(self, multipliers: Mapping[str, Any] | None) -> None:
        """Scales of surrogates and steps, and the start of the multipliers.

        Raises:
            ModelingError: E122 for a model that takes no such batch in training mode.
        """
        self.evaluator.modes.check(self.evaluator, self.sampler.sizes)
        self.evaluator.refresh_scales()
        self.lagrangian.calibrate(self.generator)
        self.lagrangian.set_multipliers(self._weights())
        if multipliers:
            self.warmup = 0
            self.lagrangian.set_multipliers(multipliers)
        if self.dual is not None:
            self.lagrangian.use(self.dual)
        self.state = self.scheme.init(self)

    def _together(self) -> int:
        """Epochs that are judged together: several where these are single steps on all rows."""
        asked = (self.options.memory, self.options.rate, self.options.gain, self.options.dual)
        own = type(self.scheme).observe is not Scheme.observe or any(value is not None for value in asked)
        if own or self.functions or self.evaluator.program.feasibility or not self.sampler.whole:
            return 1
        return epochs_together(self.epochs, self.sampler.per_epoch)

    def _gain(self) -> float:
        """The proportional gain that was asked for, or else that of the scheme or the formulation."""
        if self.dual is not None:
            return 0.0
        if self.options.gain is not None:
            return self.options.gain
        if self.options.formulation != "lagrangian":
            return 4.0
        if self.dual_name == "plain":
            return 0.0
        return 0.3 if self.scheme.gain is None else self.scheme.gain

    def _weights(self) -> dict[str, Tensor]:
        """Multipliers of largest values in the objective: those of each sum to one, so they start equal.

        From 0, nothing holds the bound variable, which would fall until the multipliers come.
        """
        found: dict[str, Tensor] = {}
        for form in self.evaluator.program.forms:
            if form.name == EPIGRAPH:
                values = {part.key: self.lagrangian.multiplier(part) for part in form.parts}
                total = sum(own.numel() for own in values.values())
                found |= {key: torch.full_like(own, 1 / total) for key, own in values.items()}
        return found

    def epoch(self, epoch: int) -> None:
        """One pass over the largest sample, or what is left of it."""
        for _ in range(self.steps - epoch * self.sampler.per_epoch, self.sampler.per_epoch):
            self.resting = epoch < self.warmup
            self._pace()
            self._step()
            self.schedule.step()
            self.steps += 1
            if self.options.refresh is not None and self.steps % self.options.refresh == 0:
                self.lagrangian.refresh()
            self.after_step()
        self.evaluator.refresh_scales()
        if (epoch + 1) % self.together:  # not judged: its residuals are those that the step has seen
            self.lagrangian.adapt()
        if epoch < 4 or epoch % (4 * self.together) == 0:
            self.lagrangian.calibrate(self.generator)

    def _usual_lr(self) -> float:
        """The learning rate that was asked for, or else one that fits the models and batches."""
        if self.options.lr is not None:
            return self.options.lr
        trained = (model.module for model in self.evaluator.program.models if not model.frozen)
        if not self.sampler.whole or any(affine_model(module) is None for module in trained):
            return LR
        return min(max(LR, TRAVEL / self.total), LARGEST_LR)

    def _graph(self) -> RecordedStep | None:
        """What makes the steps of this run, if they are not made in Python."""
        mode = self.options.graph
        strict = mode != "auto"
        if mode == "auto":
            size, device = self.evaluator.decisions.size, self.evaluator.device.type
            long = self.total >= RECORDED_STEPS and size <= RECORDED_SIZE
            long = long and self.scheme.recordable and device in ("cpu", "cuda")
            compiled = self.total >= COMPILED_STEPS and size <= SMALL and not self.timed
            mode = ("compiled" if compiled else "recorded") if long else "off"
        if mode == "off":
            return None
        return RecordedStep(
            self.lagrangian, self.optimizer, self._step_on, mode, strict=strict, state=lambda: self.state
        )

    def _step(self) -> None:
        """One step, by the graph where there is one and it holds already.

        Raises:
            ModelingError: E207 when a graph was asked for and cannot be had.
        """
        if self.graph is None or self.resting or not self.lagrangian.settled:
            self.state = self.scheme.step(self, self.state)
        else:
            self._recorded_step(self.graph, self.draw())
        self.state = self.scheme.after(self, self.state)

    def _recorded_step(self, graph: RecordedStep, batch: Mapping[str, Rows]) -> None:
        """One step by the graph, or in Python from now on where there can be none."""
        state = self.state if graph.used else tree_map(_itself, self.state)
        try:
            if not self.scheme.recordable:
                raise NotRecorded(f"the scheme {self.scheme.name} remembers more than tensors in place")
            graph(batch)
        except NotRecorded as reason:
            if graph.strict:
                raise cannot_be(graph.mode, reason) from reason
            self.graph, self.state = None, state
            self._step_on(batch)

    def _step_on(self, batch: Mapping[str, Rows]) -> None:
        """One step in Python on a batch."""
        self._lent = batch
        self.state = self.scheme.step(self, self.state)

    def damp(self, gain: float, memory: float, rate: float) -> None:
        """Another rule of the multipliers from the next step on, which a recorded step would not see."""
        self.lagrangian.gain, self.lagrangian.memory, self.rate = gain, memory, rate
        if self.graph is not None:
            self.graph = self._graph()

    def run_eagerly(self) -> None:
        """Makes the following steps in Python, where every operation can be watched."""
        self.graph = None

    def _pace(self) -> None:
        """Steps of the multipliers decay with the learning rates."""
        factor = max(LEAST_RATE, self._factor())
        self.lagrangian.rate = self.rate * factor
        for function in self.functions.values():
            function.pace(factor)

    # ------------------------------------------------------------------------- the pieces of a step
    def draw(self) -> Mapping[str, Rows]:
        """The next batch of every sample."""
        lent, self._lent = self._lent, None
        return self.sampler.draw() if lent is None else lent

    def gradient(self, batch: Mapping[str, Rows]) -> None:
        """Puts the gradient of the Lagrangian on a batch into the decisions' `grad`."""
        self.gradient_of(self.lagrangian(batch))

    def gradient_of(self, scalar: Tensor) -> None:
        """Puts the gradient of a scalar into the decisions' `grad`."""
        self.optimizer.zero_grad(set_to_none=True)
        scalar.backward()

    def descend(self) -> None:
        """Moves the decisions along their `grad` by the optimizer, and back into their bounds."""
        self.optimizer.step()
        self.evaluator.decisions.project()

    @torch.no_grad()
    def look(self, batch: Mapping[str, Rows]) -> None:
        """Evaluates a batch at the decisions as they are now, for the multipliers only."""
        self.lagrangian.evaluate(batch, learn=False)

    def ascend(self, *, moving: bool = True) -> None:
        """Moves the multipliers along the residuals of the last evaluation, unless they rest.

        Args:
            moving: without it only the running residuals move.
        """
        if self.resting:
            return
        rate = self.lagrangian.rate
        self.lagrangian.rate = rate if moving else 0.0
        self.lagrangian.ascend()
        self.lagrangian.rate = rate

    # ----------------------------------------------------------------------------------------------------
    def _factor(self) -> float:
        """How far the learning rates have decayed."""
        if self.options.scheduler is not None:
            return self._lr() / self._first_lr if self._first_lr > 0 else 1.0
        return 0.5 * (1 + math.cos(math.pi * self.steps / self.total))

    def _lr(self) -> float:
        """The largest learning rate now."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def multipliers(self) -> dict[str, Tensor]:
        """Multipliers by part key."""
        return self.scheme.multipliers(self, self.state)

    def observe(self, residuals: Mapping[int, Tensor], moments: list[Tensor]) -> None:
        """Running residuals and averages become exact."""
        self.lagrangian.observe(residuals, moments)
        self.guard.observe(self, residuals)
        self.state = self.scheme.observe(self, self.state, residuals)

    def terminate(self) -> str:
        """Why the run ends after this epoch, or an empty text."""
        return self.scheme.terminate(self, self.state)


def _itself(leaf: Any) -> Any:
    """For copies of containers."""
    return leaf
