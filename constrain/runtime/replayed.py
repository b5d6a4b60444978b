"""Functions that are replayed or compiled once this has been seen to do what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from constrain.runtime.captured import capturable, captured
from constrain.runtime.machine import compiled
from constrain.runtime.trace import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from constrain.runtime.operations import Replay
    from constrain.runtime.trace import Recording

__all__ = ["Mode", "Replayed"]

Mode = Literal["recorded", "compiled"]

CHECKS = 2
"""Calls in which a replay is compared with the function in Python."""


class Replayed:
    """A function of tensors: recorded at its first call, compared with Python at the first two.

    Args:
        mode: "recorded" replays the operations, "compiled" joins them into few (which takes a while).
        strict: what cannot be compiled is not to be replayed instead.
        own: tensors that no graph of autograd holds, so that changes of them need not be counted.

    Attributes:
        reads: the tensors that it reads beside its arguments.
    """

    def __init__(self, mode: Mode = "recorded", *, strict: bool = True, own: Iterable[Tensor] = ()) -> None:
        self.mode: Mode = mode
        self.strict = strict
        self._own = {id(t) for t in own}
        self._recording: Recording | None = None
        self._replay: Replay | None = None
        self._compiled: Replay | None = None
        self._captured: Replay | None = None
        self._capturable = True
        self.reads: list[Tensor] = []
        self._places: list[int] = []
        self._confirmations = 0

    @property
    def used(self) -> bool:
        """Whether it is recorded."""
        return self._replay is not None

    @property
    def ready(self) -> bool:
        """Whether it is recorded, and confirmed."""
        return self._replay is not None and self._recording is None

    @property
    def moved(self) -> bool:
        """Whether a tensor that it reads has other memory than it had: a state was loaded."""
        return list(map(Tensor.data_ptr, self.reads)) != self._places

    def __call__(self, arguments: Sequence[Tensor]) -> Any:
        """What the function does, and returns."""
        run = self._captured or self._compiled or self._replay
        assert run is not None  # after `confirm`
        return run(arguments)

    def drop(self) -> None:
        """Forgets the function, which is recorded anew."""
        self._recording = self._replay = self._compiled = self._captured = None
        self.reads, self._places, self._capturable = [], [], True

    def confirm(self, function: Callable[..., Any], arguments: Sequence[Tensor]) -> None:
        """Records the function if it is not recorded yet, and sees that a replay does the same.

        Nothing is changed: what it does is undone.

        Raises:
            NotRecorded: it cannot be.
            Exception: whatever the function or torch's compiler raises.
        """
        try:
            recording, replay = self._recording, self._replay
            if recording is None or replay is None:
                recording = record(function, arguments)
                replay = recording.graph.replay()
                self._recording, self._replay, self._confirmations = recording, replay, 0
                self.reads = recording.graph.reads
                self._places = [t.data_ptr() for t in self.reads]
            recording.confirm(replay, function, arguments)
            if self.mode == "compiled":
                self._confirm_compiled(recording, function, arguments)
            self._confirm_captured(recording, function, arguments)
        except BaseException:
            self.drop()
            raise
        self._confirmations += 1
        if self._confirmations == CHECKS:
            self._recording = None  # what it has copied is needed no more

    def _confirm_compiled(
        self, recording: Recording, function: Callable[..., Any], arguments: Sequence[Tensor]
    ) -> None:
        """Machine code for it that does the same; the replay where there is none and it was not asked for."""
        try:
            if self._compiled is None:
                self._compiled = compiled(recording.graph, arguments, self._shared(recording))
            recording.confirm(self._compiled, function, arguments, rounds=True)
        except Exception:
            if self.strict:
                raise
            self.mode, self._compiled = "recorded", None

    def _confirm_captured(
        self, recording: Recording, function: Callable[..., Any], arguments: Sequence[Tensor]
    ) -> None:
        """One launch for all of its kernels, where that does the same; else they are launched one by one."""
        run, graph = self._compiled or self._replay, recording.graph
        self._capturable = self._capturable and capturable(graph, arguments, recording.changed)
        if run is None or not self._capturable:
            return
        try:
            if self._captured is None:
                with recording.undone():
                    self._captured = captured(run, arguments, self._shared(recording))
            recording.confirm(self._captured, function, arguments, rounds=self._compiled is not None)
        except Exception:  # of CUDA, in many classes
            self._captured, self._capturable = None, False

    def _shared(self, recording: Recording) -> list[Tensor]:
        """What it changes that a graph of autograd may hold."""
        return [t for t in recording.changed if id(t) not in self._own]
