"""Checkpoints of a run: one file, replaced as a whole, from which another process continues bit by bit.

A file is written beside the old one, flushed to the disk and then renamed over it, so that at any moment
there is one complete checkpoint. It holds tensors, numbers and texts only and is read without unpickling
objects (`torch.load(weights_only=True)`): a checkpoint from somewhere else cannot run code.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from constrain.errors import ModelingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

__all__ = ["Checkpoint", "Checkpoints", "Terminated", "differences", "read", "write"]

SCHEMA = 1
"""Version of the layout of a checkpoint."""
SECONDS = 30.0
"""Seconds between checkpoints when no interval is given."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run is stored, and how often.

    Attributes:
        path: of the file; its folder must exist.
        steps: most steps between two checkpoints; None for no such limit.
        seconds: most seconds between two checkpoints; None for no such limit. Without both: 30.

    Raises:
        ModelingError: E141 for an interval that is not positive.
    """

    path: str | Path
    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ModelingError(
                    "E141", f"Checkpoint({name}={value!r}): an interval is positive", fix=f"{name}=100"
                )
        if self.steps is None and self.seconds is None:
            object.__setattr__(self, "seconds", SECONDS)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; the state was stored at the end of the step."""


# -------------------------------------------------------------------------------------------------- file
def write(path: str | Path, content: Mapping[str, Any]) -> None:
    """Replaces a file by a new one, at once: a process that is killed leaves the old one or the new one."""
    target = Path(path)
    fresh = target.with_name(target.name + ".part")
    with fresh.open("wb") as file:
        torch.save({"schema": SCHEMA, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(target)
    if os.name == "posix":  # the new name is on the disk as well
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU.

    Raises:
        ModelingError: E185 when there is no such file, or it is no checkpoint, or of another version.
    """
    target = Path(path)
    if not target.is_file():
        raise ModelingError(
            "E185",
            f"there is no checkpoint {str(path)!r}",
            fix=f'solve(checkpoint="{path}"), without resume=',
        )
    try:
        found: Any = torch.load(target, map_location="cpu", weights_only=True)
    except Exception as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelingError("E185", f"{str(path)!r} is no checkpoint of a run: {text[:120]}") from None
    if not isinstance(found, dict) or "schema" not in found:
        raise ModelingError("E185", f"{str(path)!r} is no checkpoint of a run")
    content = cast("dict[str, Any]", found)
    if content["schema"] != SCHEMA:
        text = f"{str(path)!r} has layout {content['schema']}, and this version of constrain reads {SCHEMA}"
        raise ModelingError("E185", text, fix="the version of constrain that wrote it")
    return content


def differences(stored: Mapping[str, Any], own: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two descriptions (nested dictionaries of plain values), in words."""
    found: list[str] = []
    names = list(dict.fromkeys([*stored, *own]))
    for name in names:
        place = f"{path} {name!r}".strip() if path else name
        if name not in own:
            found.append(f"{place} is in the checkpoint only")
        elif name not in stored:
            found.append(f"{place} is not in the checkpoint")
        elif isinstance(stored[name], dict) and isinstance(own[name], dict):
            found += differences(stored[name], own[name], place)
        elif stored[name] != own[name]:
            found.append(f"{place} was {stored[name]} and is {own[name]}")
    if not found and list(stored) != list(own):
        found.append(f"{path} are in another order: {', '.join(stored)} and now {', '.join(own)}")
    return found


# ------------------------------------------------------------------------------------------------- a run
@dataclass
class Checkpoints:
    """The checkpoints of one run.

    Args:
        to: where they go and how often; None for a run that only resumes.
        description: of the problem, compared when a run resumes.
        resumed: what was read from the checkpoint to continue from, None at a start.

    Attributes:
        count: files written.
    """

    to: Checkpoint | None
    description: Mapping[str, Any]
    resumed: Mapping[str, Any] | None = None
    count: int = 0
    _step: int = 0
    _time: float = field(default_factory=time.perf_counter)
    _terminated: bool = False
    _before: Any = None

    def due(self, steps: int) -> bool:
        """Whether the interval has passed, or the process is asked to end."""
        if self.to is None:
            return False
        if self._terminated or (self.to.steps is not None and steps - self._step >= self.to.steps):
            return True
        return self.to.seconds is not None and time.perf_counter() - self._time >= self.to.seconds

    def save(self, steps: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """Writes a checkpoint.

        Raises:
            Terminated: when SIGTERM has arrived.
        """
        if self.to is None:
            return
        write(self.to.path, {"problem": dict(self.description), "run": dict(state())})
        self.count += 1
        self._step, self._time = steps, time.perf_counter()
        if self._terminated:
            raise Terminated

    def listen(self) -> None:
        """SIGTERM ends the run at the next step from now on, where signals can be handled."""
        if self.to is not None and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._terminated = True

    def close(self) -> None:
        """SIGTERM means again what it meant."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
