"""What is found out about the user's data and modules, once within a solve.

Several passes ask the same: which values a column has, whether a model is affine. Within `asked_once()` the
first answer to a function marked by `@once` is kept. Outside of it nothing is, since columns and modules can
change between solves.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["asked_once", "once"]

About = TypeVar("About")
More = ParamSpec("More")
Answer = TypeVar("Answer")

_ANSWERS: ContextVar[dict[Any, tuple[Any, Any]] | None] = ContextVar("answers", default=None)


@contextmanager
def asked_once() -> Generator[None]:
    """Keeps answers within the block; one inside of another shares those of the outer one."""
    if _ANSWERS.get() is not None:
        yield
        return
    token = _ANSWERS.set({})
    try:
        yield
    finally:
        _ANSWERS.reset(token)


def once(function: Callable[Concatenate[About, More], Answer]) -> Callable[Concatenate[About, More], Answer]:
    """The function, which answers from memory when asked again about the same object, within `asked_once`.

    Args:
        function: of an object, known by its identity, and of further arguments that hash.
    """

    @wraps(function)
    def asked(about: About, *more: More.args, **named: More.kwargs) -> Answer:
        known = _ANSWERS.get()
        if known is None:
            return function(about, *more, **named)
        key = (function, id(about), *more, *named.items())
        if key not in known:
            known[key] = about, function(about, *more, **named)  # held, so that no other object gets its id
        return known[key][1]

    return asked
