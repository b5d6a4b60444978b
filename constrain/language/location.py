"""Where in the user's source an expression was written."""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Location", "caller", "here", "name_in_caller"]

_LIBRARIES = ("constrain", "torch", "numpy", "scipy", "pandas")
_SKIPPED = tuple(f"{name}." for name in _LIBRARIES)


@dataclass(frozen=True, slots=True)
class Location:
    """A line of the user's source."""

    filename: str
    line: int

    @property
    def source(self) -> str:
        """The stripped source line, or an empty string when the file cannot be read."""
        return linecache.getline(self.filename, self.line).strip()

    def describe(self) -> str:
        """`file.py:12: the line itself`, cut at 100 characters."""
        source = self.source
        text = source if len(source) <= 100 else source[:99] + "…"
        place = f"{os.path.basename(self.filename)}:{self.line}"
        return f"{place}: {text}" if text else place


def caller() -> FrameType | None:
    """The innermost frame outside this package, torch, and libraries of arrays that call expressions."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not (module in _LIBRARIES or module.startswith(_SKIPPED)) or module.startswith(
            "constrain.testing"
        ):
            return frame
        frame = frame.f_back
    return None


def here() -> Location | None:
    """Location of the line of user code that is running now."""
    frame = caller()
    return None if frame is None else _location(frame.f_code.co_filename, frame.f_lineno)


@lru_cache(maxsize=1024)
def _location(filename: str, line: int) -> Location:
    """The same object for the same line: ten thousand constraints of a comprehension share it."""
    return Location(filename, line)


def name_in_caller(value: object) -> str | None:
    """The name the user's code gave to `value`, so that reports can say `X @ w` and not `array @ w`."""
    frame = caller()
    if frame is None:
        return None
    for scope in (frame.f_locals, frame.f_globals):
        for name, bound in scope.items():
            if bound is value and not name.startswith("_") and name.isidentifier():
                return name
    return None
