"""Progress of a run: a line that is rewritten in a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

import rich.console
import rich.progress

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Progress", "Silent", "TerminalProgress"]


_FIELDS = "objective {task.fields[objective]:.5g}  violation {task.fields[violation]:.2g}"


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
    """A `rich` progress bar with objective and worst violation, on standard error."""

    def __init__(self, description: str) -> None:
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            rich.progress.TextColumn(_FIELDS),
            rich.progress.TimeElapsedColumn(),
            console=rich.console.Console(file=sys.stderr),
            transient=False,
        )
        self._task = self._bar.add_task(description, total=1, objective=float("nan"), violation=float("nan"))
        self._bar.start()

    def update(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        """Moves the bar."""
        self._bar.update(
            self._task, completed=done, total=total, objective=row["objective"], violation=row["violation"]
        )

    def close(self) -> None:
        """Leaves the last state on the screen."""
        self._bar.stop()
