"""Calls that Python refuses: the arguments that a function has, and the one that was meant.

`@keywords` costs one call on the way in. Only when Python could not bind the arguments is the signature
looked at, and the error becomes a `ModelingError`, which is a `TypeError` as before.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from constrain._lazy import language
from constrain.errors import ModelingError
from constrain.language.location import here

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["keywords"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

ALIASES = {
    "alpha": ("level",),
    "beta": ("level",),
    "q": ("level",),
    "quantile": ("level",),
    "group": ("by",),
    "groups": ("by",),
    "groupby": ("by",),
    "where": ("given",),
    "condition": ("given",),
    "cond": ("given",),
    "dim": ("axis",),
    "keepdim": ("keepdims",),
    "p": ("ord",),
    "nonnegative": ("nonneg",),
    "positive": ("nonneg",),
    "pos": ("nonneg",),
    "binary": ("boolean",),
    "bool": ("boolean",),
    "lb": ("bounds", "lower"),
    "ub": ("bounds", "upper"),
    "lower": ("bounds",),
    "upper": ("bounds",),
    "low": ("lower", "bounds"),
    "high": ("upper", "bounds"),
    "min": ("lower", "bounds"),
    "max": ("upper", "bounds"),
    "size": ("shape",),
    "dims": ("shape",),
    "freeze": ("frozen",),
    "trainable": ("frozen",),
    "loc": ("mean",),
    "mu": ("mean",),
    "scale": ("std",),
    "sigma": ("std",),
    "batch_size": ("batch",),
    "num_workers": ("workers",),
    "collate_fn": ("collate",),
    "price": ("cost",),
    "penalty": ("cost", "weight"),
    "unit": ("size",),
}
"""What other packages call an argument, and its names here, of which a function has one."""


def keywords(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Refuses arguments that a function does not have: E141 with the names of those that it has.

    Raises:
        ModelingError: E141, from the decorated function.
    """

    @functools.wraps(function)
    def checked(*args: _P.args, **named: _P.kwargs) -> _T:
        try:
            return function(*args, **named)
        except TypeError as error:
            inner = error.__traceback__.tb_next if error.__traceback__ is not None else None
            if inner is not None or isinstance(error, ModelingError):  # raised inside
                raise
            refusal = _refusal(function, named, str(error))
        raise refusal

    return checked


def _refusal(function: Callable[..., Any], named: Mapping[str, Any], words: str) -> ModelingError:
    """What is wrong with a call: an unknown argument, or what Python says."""
    owner, _, last = function.__qualname__.rpartition(".")
    name = {"_Expectation": "E", "_Probability": "P"}.get(owner, owner) if last.startswith("__") else last
    parameters = inspect.signature(function).parameters
    known = {k: p for k, p in parameters.items() if k not in ("self", "cls")}
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in known.values()]
    shown = f"{name}{inspect.Signature(plain)}"
    unknown = next((k for k in named if k not in known), None)
    if unknown is None:
        said = words.partition("() ")[2] or words
        said = "is given more arguments than it takes" if said.startswith("takes ") else f"is {said}"
        return ModelingError("E141", f"{name}() {said}", at=here(), fix=shown)
    alias = next((own for own in ALIASES.get(unknown, ()) if own in known), None)
    hint = str(language("data").suggest(unknown, known)) if alias is None else f"; it is called {alias!r}"
    return ModelingError("E141", f"{name}() has no argument {unknown!r}{hint}", at=here(), fix=shown)
