"""What `problem.check()` reports, one record per finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from constrain.errors import ConstrainError, ModelingWarning

__all__ = ["Finding", "Severity", "finding_of", "listed"]

Severity: TypeAlias = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        code: stable, as in the page of errors, such as `"W202"`.
        severity: `error` (solving makes no sense), `warning` (it will go wrong, or the answer will mislead)
            or `info` (worth knowing).
        constraint: the constraint's name, or several joined by a comma; None for the whole problem.
        message: what was found, in the user's names.
        fix: what to write instead, or what can be done.
    """

    code: str
    severity: Severity
    constraint: str | None
    message: str
    fix: str = ""

    def lines(self) -> list[str]:
        """The finding as text."""
        word = "note" if self.severity == "info" else self.severity
        own = [f"{word:<8} {self.code}  {self.message}"]
        return own + [f"{'':<14} {line}" for line in self.fix.splitlines()]


def finding_of(
    raised: ConstrainError | ModelingWarning, severity: Severity, constraint: str | None = None
) -> Finding:
    """The finding that an error or warning of the language is."""
    message = str(raised).splitlines()[0].removeprefix(f"[{raised.code}] ")
    return Finding(raised.code, severity, constraint, message, raised.fix or "")


def listed(names: Iterable[str], limit: int = 6) -> str:
    """`a, b and c`, cut after `limit` names."""
    found = list(names)
    if len(found) > limit:
        return ", ".join(found[:limit]) + f" and {len(found) - limit} more"
    return " and ".join(filter(None, [", ".join(found[:-1]), found[-1]])) if found else ""
