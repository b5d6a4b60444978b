"""Progress of a run: a line that is rewritten in a terminal, and the callbacks of a user."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import rich.console
import rich.progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from constrain.solvers.checkpoint import Checkpoints

__all__ = ["Progress", "Round", "Silent", "Stopped", "TerminalProgress", "Watched", "largest"]


_FIELDS = "objective {task.fields[objective]:.5g}  violation {task.fields[violation]:.2g}"
SHOWN = 3
"""Largest multipliers that the bar shows."""


class Progress(Protocol):
    """What solvers report to."""

    def update(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        """`done` of at most `total` rounds; `row` has at least `objective` and `violation`."""
        ...

    def close(self) -> None:
        """The run ended."""
        ...


class Silent:
    """Reports nothing."""

    def update(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class TerminalProgress:
    """A `rich` progress bar with objective, worst violation and largest multipliers, on standard error."""

    def __init__(self, description: str) -> None:
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            rich.progress.TextColumn(_FIELDS),
            rich.progress.TextColumn("{task.fields[multipliers]}", markup=False),
            rich.progress.TimeElapsedColumn(),
            console=rich.console.Console(file=sys.stderr),
            transient=False,
        )
        unknown = float("nan")
        self._task = self._bar.add_task(
            description, total=1, objective=unknown, violation=unknown, multipliers=""
        )
        self._bar.start()

    def update(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        """Moves the bar."""
        self._bar.update(
            self._task,
            completed=done,
            total=total,
            objective=row["objective"],
            violation=row["violation"],
            multipliers=largest(row),
        )

    def close(self) -> None:
        """Leaves the last state on the screen."""
        self._bar.stop()


def largest(row: Mapping[str, Any]) -> str:
    """The largest multipliers of a record in words: `parity[1] 0.65  rate 0.02`."""
    found = {k.removeprefix("multiplier:"): v for k, v in row.items() if k.startswith("multiplier:") and v}
    chosen = sorted(found, key=lambda key: -abs(found[key]))[:SHOWN]
    return "  ".join(f"{key} {found[key]:.3g}" for key in chosen)


# --------------------------------------------------------------------------------------------- callbacks
class Stopped(KeyboardInterrupt):
    """A callback asked the run to stop."""


@dataclass(frozen=True)
class Round:
    """What a callback is told after a round: an epoch of training, or an outer step of a full-data method.

    Attributes:
        done: rounds so far, of this run and of the runs that it continues.
        total: most rounds.
        step: solver steps so far.
        seconds: since this process began the run.
        objective: exact value on the full data, in the user's sense.
        violation: largest one, in the constraint's units.
        multipliers: by part key (`KEY[i]` for the entries of a vector), for parts of at most 16 entries.
        residuals: likewise; at most 0 where an inequality holds.
        row: the whole record of the history.
    """

    done: int
    total: int
    step: int
    seconds: float
    objective: float
    violation: float
    multipliers: Mapping[str, float]
    residuals: Mapping[str, float]
    row: Mapping[str, Any]

    @classmethod
    def of(cls, done: int, total: int, seconds: float, row: Mapping[str, Any]) -> Round:
        """From a record of the history; nothing in it can be changed."""

        def named(prefix: str) -> Mapping[str, float]:
            return MappingProxyType(
                {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
            )

        return cls(
            done,
            total,
            int(row.get("step", done)),
            seconds,
            float(row["objective"]),
            float(row["violation"]),
            named("multiplier:"),
            named("residual:"),
            MappingProxyType(dict(row)),
        )


@dataclass
class Watched:
    """Progress with callbacks, and with the checkpoints of the run.

    Attributes:
        bar: what is shown.
        callbacks: are called after every round; one that returns True stops the run.
        checkpoints: of the run, None for none.
    """

    bar: Progress
    callbacks: Sequence[Callable[[Round], Any]] = ()
    checkpoints: Checkpoints | None = None
    started: float = field(default_factory=time.perf_counter)

    def update(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        """Shows the round and calls the callbacks.

        Raises:
            Stopped: when one of them returned True.
        """
        self.bar.update(done, total, row)
        if not self.callbacks:
            return
        told = Round.of(done, total, time.perf_counter() - self.started, row)
        if any([callback(told) is True for callback in self.callbacks]):
            raise Stopped

    def close(self) -> None:
        """Closes the bar, and callbacks that can be closed."""
        self.bar.close()
        for callback in self.callbacks:
            close = getattr(callback, "close", None)
            if callable(close):
                close()
