"""The one exception tree of the package.

Every message says what is wrong, where in the user's own problem, and what to write instead. Codes are
stable: `E1xx` modeling, `W2xx` numerics, `C3xx` statistics. The page `docs/errors.md` lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from constrain.language.location import Location

__all__ = ["ConstrainError", "DataError", "ModelingError", "ModelingWarning", "NoDualsError", "RouteError"]


def _message(code: str, message: str, at: Location | None, fix: str | None) -> str:
    lines = [f"[{code}] {message}"]
    if fix:
        lines.append("  write: " + fix.replace("\n", "\n         "))
    if at is not None:
        lines.append(f"  at:    {at.describe()}")
    return "\n".join(lines)


class ConstrainError(Exception):
    """Base of all errors raised on purpose by this package.

    Attributes:
        code: stable identifier such as `"E101"`.
        at: where in the user's source the offending expression was written, if known.
        fix: what to write instead; alternatives on lines of their own.
    """

    def __init__(
        self, code: str, message: str, *, at: Location | None = None, fix: str | None = None
    ) -> None:
        self.code = code
        self.at = at
        self.fix = fix
        super().__init__(_message(code, message, at, fix))


class ModelingError(ConstrainError, TypeError):
    """The problem as written has no meaning (axes, events, shapes, comparisons, names)."""


class DataError(ConstrainError, ValueError):
    """The data bound to a problem cannot be used (missing values, empty groups, lengths)."""


class RouteError(ConstrainError, RuntimeError):
    """No solver or backend can take the problem; the message lists each one's reason."""


class NoDualsError(ConstrainError, RuntimeError):
    """Multipliers were asked of a solution that has none; the message says why."""


class ModelingWarning(UserWarning):
    """The problem has a meaning, and a property that makes it hard to solve.

    Attributes:
        code: stable identifier such as `"W206"`.
        at: where in the user's source it was written, if known.
        fix: what to write instead.
    """

    def __init__(
        self, code: str, message: str, *, at: Location | None = None, fix: str | None = None
    ) -> None:
        self.code = code
        self.at = at
        self.fix = fix
        super().__init__(_message(code, message, at, fix))
