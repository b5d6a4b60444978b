"""A training step as one graph: forward, backward, optimizer and multipliers, recorded once.

Between the torch operations of a step on a small model most of the time is Python's: autograd's, the
optimizer's, the language's. A recorded step (`trace.py`) has none of it; compiled, its operations are joined
into few as well. What is recorded is the step that Python makes, so that every way of running it makes the
same step but for rounding.

What a step reads as a number is a constant of its graph, but for the rates of multipliers and decisions.
Other numbers, of the optimizer and of the models' modules, are looked at before every step, and so is where
its tensors are; when something has changed the step is recorded anew.
"""

from __future__ import annotations

import operator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from constrain.errors import ModelingError
from constrain.runtime.limits import check_optimizer
from constrain.runtime.packed import Packed, unpacked
from constrain.runtime.replayed import Mode, Replayed
from constrain.runtime.surroundings import Surroundings
from constrain.runtime.trace import NotRecorded, undone

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from constrain.runtime.lagrangian import Batches, Lagrangian
    from constrain.runtime.rows import Rows
    from constrain.runtime.surroundings import Watched

__all__ = ["Mode", "NotRecorded", "RecordedStep", "TrainingStep", "cannot_be"]

SIZES = 4
"""Sizes of batches whose steps are recorded; those of others are made in Python."""
COST, ALLOWANCE = 20, 100
"""Recordings made unasked may take as many steps' time, `COST` each, as steps were made, and `ALLOWANCE`."""


class RecordedStep:
    """A training step that is replayed, or compiled.

    Args:
        lagrangian: whose multipliers it moves.
        optimizer: of the decisions; one that has made a step, so that it has its state.
        step: makes a step on a batch, in Python.
        mode: "recorded" replays the operations, "compiled" joins them into few (which takes a while).
        strict: a step that cannot be compiled is not to be replayed instead.
        state: what `step` remembers beside the multipliers: tensors, numbers and containers of them.
    """

    def __init__(
        self,
        lagrangian: Lagrangian,
        optimizer: torch.optim.Optimizer,
        step: Callable[[Mapping[str, Rows]], Any],
        mode: Mode,
        *,
        strict: bool = True,
        state: Callable[[], Any] = lambda: None,
    ) -> None:
        self.lagrangian = lagrangian
        self.optimizer = optimizer
        self.step = step
        self.state = state
        self.strict = strict
        self._mode: Mode = mode
        self._replays: dict[tuple[Any, ...], Replayed] = {}
        self._watched: dict[tuple[Any, ...], Watched] = {}
        self._objects: list[object] = []
        self._others: list[Tensor] = []
        self._calls = self._recordings = 0
        self._last: tuple[list[Any], Tensor] = [], torch.zeros(0)  # rates, and the tensor of them

    @property
    def mode(self) -> Mode:
        """Whether steps are replayed or compiled."""
        first = next(iter(self._replays.values()), None)
        return self._mode if first is None else first.mode

    @property
    def used(self) -> bool:
        """Whether a step is recorded."""
        return bool(self._replays)

    def __call__(self, batch: Mapping[str, Rows]) -> Any:
        """One step: what `step` returns.

        Raises:
            NotRecorded: when the step cannot be recorded; nothing has been changed then.
        """
        packed = Packed.of(batch)
        self._calls += 1
        if self._replays and not self._same_objects():
            self._clear()
            return self.step(batch)  # the optimizer may have to make state of other decisions
        if packed.key in self._replays and not self._holds(packed.key):
            self._clear()
        replayed = self._replays.get(packed.key)
        if replayed is None and (len(self._replays) >= SIZES or self._refreshes(batch)):
            return self.step(batch)
        arguments = [self._rates(), *packed.tensors]
        if replayed is None or not replayed.ready:
            replayed = self._confirmed(batch, packed, arguments)
        try:
            found = replayed(arguments)
        except Exception:  # of torch, in the words of single operations
            self.lagrangian.evaluate(batch, learn=False)  # says which expression fails on which rows
            raise
        self.lagrangian.count()
        self.lagrangian.follow(batch)
        if not self._others:
            return found
        found, *gradients = found
        for t, own in zip(self._others, gradients, strict=True):
            t.grad = own if t.grad is None or own is None else t.grad + own
        return found

    def _refreshes(self, batch: Mapping[str, Rows]) -> bool:
        """Whether the step has to measure running residuals on all data first."""
        return not self.lagrangian.settled and bool(self.lagrangian.rare_of(batch))

    def _rates(self) -> Tensor:
        """What changes from step to step: the multipliers' rate and gain, and the learning rates."""
        own = self.lagrangian.rate, self.lagrangian.raised
        rates = [*own, *(float(group["lr"]) for group in self.optimizer.param_groups if "lr" in group)]
        if rates != self._last[0]:
            values = self.lagrangian.values
            self._last = rates, torch.tensor(rates, dtype=values.dtype, device=values.device)
        return self._last[1]

    def _holds(self, key: tuple[Any, ...]) -> bool:
        """Whether the tensors and numbers that a graph takes for granted are as they were."""
        return not self._replays[key].moved and self._watched[key].same

    def _same_objects(self) -> bool:
        now = self._objects_now()
        return len(now) == len(self._objects) and all(map(operator.is_, now, self._objects))

    def _clear(self) -> None:
        """Forgets the graphs, so that steps are recorded anew."""
        self._replays.clear()
        self._watched.clear()

    def _objects_now(self) -> list[object]:
        """What an optimizer moves, which gradients are taken, and what the rule of the multipliers reads."""
        evaluator, groups = self.lagrangian.evaluator, self.optimizer.param_groups
        return [
            evaluator.parameter_version, self.lagrangian.gain, self.lagrangian.memory, self.optimizer.state,
            *groups, *(p for group in groups for p in group["params"]),
            *(t.requires_grad for t in evaluator.decisions.tensors),
        ]  # fmt: skip

    # -------------------------------------------------------------------------------------- recording
    def _confirmed(self, batch: Mapping[str, Rows], packed: Packed, arguments: list[Tensor]) -> Replayed:
        """The step on batches of this size, recorded if it is not yet, and seen to do what Python does.

        The first size is compiled, if any is: the last batch of a stream may be a smaller one.
        """
        mode: Mode = "recorded" if self._replays else self._mode
        replayed = self._replays.get(packed.key)
        if replayed is None:
            own = [t for t in tree_leaves(list(self.optimizer.state.values())) if isinstance(t, Tensor)]
            replayed = Replayed(mode, strict=self.strict, own=own)
        if not replayed.used:
            self._prepare()
        try:
            self._check()
            self.lagrangian.evaluator.decisions.project()
            with self._untouched() as around:
                undone(lambda: self.lagrangian.warm(batch))  # what is made on first use is no part of a step
                replayed.confirm(self._in_python(batch, replayed.mode), arguments)
                watched = around.watched(replayed.reads)
                if not watched.same:
                    raise NotRecorded(_REPLACED)
        except Exception as problem:  # torch's compiler and models have no common class of errors
            raise NotRecorded(_first_line(problem)) from problem
        self._replays[packed.key], self._watched[packed.key] = replayed, watched
        return replayed

    def _prepare(self) -> None:
        """Notes what a step that is now recorded takes for granted.

        Raises:
            NotRecorded: nobody has asked for it, and it was recorded too often.
        """
        if not self.strict and self._recordings * COST > self._calls + ALLOWANCE:
            raise NotRecorded("numbers that it takes for constants change too often")
        self._recordings += 1
        self._objects = self._objects_now()
        moved = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        decisions = self.lagrangian.moved(self.lagrangian.evaluator.decisions.tensors)
        self._others = [t for t in decisions if id(t) not in moved and t.requires_grad]

    def _in_python(self, batch: Mapping[str, Rows], mode: Mode) -> Callable[..., Any]:
        """The step in Python as a function of rates, and of tensors in the place of those of a batch."""
        # a compiler joins the operations of an optimizer better than its own kernels do
        plain = ("foreach", "fused") if mode == "compiled" else ("foreach",)

        def step(rates: Tensor, *tensors: Tensor) -> Any:
            remembered = self._remembered()
            self.lagrangian.forget()
            self.lagrangian.rate, self.lagrangian.recorded = rates[0], rates[1]
            rated = [group for group in self.optimizer.param_groups if "lr" in group]
            for group, lr in zip(rated, rates[2:], strict=True):
                group.update({k: False for k in plain if k in group})
                # kernels of CUDA for all decisions at once take a rate of single precision only
                group["lr"] = lr.float() if group.get("fused") and lr.is_cuda else lr
            found = self.step(unpacked(self.lagrangian.evaluator, batch, tensors))
            gradients = [t.grad for t in self._others]  # which somebody else moves
            for t in self.lagrangian.evaluator.decisions.tensors:
                t.grad = None
            self._in_place(remembered)
            return (found, *gradients) if self._others else found

        return step

    def _check(self) -> None:
        if self.lagrangian.functions:
            raise NotRecorded("multipliers that are functions of the row have optimizers of their own")

    def _remembered(self) -> list[Any]:
        """Tensors and numbers that the rule of the multipliers and the scheme remember."""
        return tree_leaves([self.lagrangian.past, self.state()])

    def _in_place(self, before: list[Any]) -> None:
        """Refuses a step that puts new tensors or numbers in the place of those that it remembers."""
        after = self._remembered()
        pairs = zip(before, after, strict=False)
        replaced = any(a is not b and (isinstance(a, Tensor) or a != b) for a, b in pairs)
        if replaced or len(before) != len(after):
            raise NotRecorded(_REPLACED)

    @contextmanager
    def _untouched(self) -> Generator[Surroundings]:
        """Runs a block that goes through the motions of a step, and puts back what it leaves behind."""
        optimizer, lagrangian = self.optimizer, self.lagrangian
        rate, follows = lagrangian.rate, lagrangian.follows
        past, tensors = dict(lagrangian.past), lagrangian.evaluator.decisions.tensors
        models = [model.module for model in lagrangian.evaluator.program.models]
        around = Surroundings([m for model in models for m in model.modules()], optimizer)
        gradients = [t.grad for t in tensors]
        for t in tensors:
            t.grad = None
        lagrangian.follows, seen = False, lagrangian.seen.weight
        try:
            yield around
        finally:
            around.restore()
            for t, own in zip(tensors, gradients, strict=True):
                t.grad = own
            lagrangian.forget()
            lagrangian.past.clear()
            lagrangian.past.update(past)
            lagrangian.rate, lagrangian.follows = rate, follows
            lagrangian.recorded, lagrangian.seen.weight = None, seen


class TrainingStep:
    """One training step of a loop of one's own: gradient, optimizer, multipliers.

        step = lagrangian.training_step(optimizer)
        for index in batches:
            loss = step(D.rows(index))

    It does what `loss = lagrangian(batch); optimizer.zero_grad(); loss.backward(); optimizer.step();
    lagrangian.ascend()` does. The first step is made in Python, so that the optimizer has its state.

    Attributes:
        graph: what makes the recorded steps; None where they are made in Python.
    """

    def __init__(
        self,
        lagrangian: Lagrangian,
        optimizer: torch.optim.Optimizer,
        graph: Mode | Literal["auto", "off"] = "auto",
    ) -> None:
        if graph not in ("auto", "off", "recorded", "compiled"):  # pyright: ignore[reportUnnecessaryContains]
            fix = 'one of "auto", "off", "recorded", "compiled"'
            raise ModelingError("E141", f"no graph is called {graph!r}", fix=fix)
        check_optimizer(optimizer, "the optimizer of a training step", lagrangian.primal_parameters())
        self.lagrangian = lagrangian
        self.optimizer = optimizer
        mode: Mode = "compiled" if graph == "compiled" else "recorded"
        own = RecordedStep(lagrangian, optimizer, self._step, mode, strict=graph != "auto")
        self.graph = None if graph == "off" else own
        self._first = True

    def __call__(self, batch: Batches) -> Tensor:
        """Makes a step.

        Args:
            batch: as for the Lagrangian.

        Returns:
            The Lagrangian on the batch before the step, detached.

        Raises:
            ModelingError: E207 when the step was to be recorded and cannot be; E140 as for the Lagrangian.
        """
        lagrangian = self.lagrangian
        lagrangian.evaluator.follow_parameters()
        rows = lagrangian.batches(batch)
        first, self._first = self._first, False
        if self.graph is None or first:
            return self._step(rows)
        try:
            loss = self.graph(rows)
        except NotRecorded as reason:
            if self.graph.strict:
                raise cannot_be(self.graph.mode, reason) from reason
            self.graph = None
            return self._step(rows)
        return loss

    def _step(self, batch: Mapping[str, Rows]) -> Tensor:
        loss = self.lagrangian(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.lagrangian.evaluator.decisions.project()
        self.lagrangian.ascend()
        return loss.detach()


_REPLACED = "it remembers more than tensors that it changes in place"


def cannot_be(mode: Mode, reason: NotRecorded) -> ModelingError:
    """E207 for a step that was to be recorded."""
    return ModelingError("E207", f"the training step cannot be {mode}: {reason}", fix='graph="off"')


def _first_line(problem: Exception) -> str:
    if isinstance(problem, NotRecorded):
        return str(problem)
    text = str(problem).strip()
    return f"{type(problem).__name__}: {text.splitlines()[0]}" if text else type(problem).__name__
