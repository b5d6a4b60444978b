"""Refuses options that make no sense before anything runs: E141 and others, in the words of `solve`."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np
import torch

from constrain.errors import ModelingError
from constrain.language.data import suggest
from constrain.runtime.binding import as_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.lowering.program import Program

__all__ = [
    "ALIASES",
    "callbacks_of",
    "check_numbers",
    "check_options",
    "check_parameters",
    "check_start",
    "check_starts",
    "named",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Range(NamedTuple):
    """What a number may be.

    Attributes:
        what: in words.
        whole: whether it is an integer.
        least: the smallest one that is allowed.
        open: whether `least` itself is not.
        example: a good value.
    """

    what: str
    whole: bool = False
    least: float = -math.inf
    open: bool = False
    example: Any = 1


_ROWS = _Range("a number of rows, a whole number >= 1", whole=True, least=1, example=128)
_COUNT = _Range("a whole number >= 1", whole=True, least=1, example=40)
_POSITIVE = _Range("a positive number", least=0.0, open=True, example=1e-3)
_NONNEGATIVE = _Range("a number >= 0", least=0.0, example=0.3)
_RANGES: dict[str, _Range] = {
    "batch": _ROWS,
    "epochs": _COUNT,
    "refresh": _COUNT,
    "starts": _COUNT,
    "outer": _COUNT,
    "inner": _COUNT,
    "iterations": _COUNT,
    "solves": _COUNT,
    "warmup": _Range("a whole number >= 0", whole=True, least=0, example=1),
    "seed": _Range("a whole number", whole=True, example=0),
    "lr": _POSITIVE,
    "multiplier_lr": _POSITIVE,
    "tolerance": _POSITIVE,
    "time_limit": _Range("a positive number of seconds", least=0.0, open=True, example=60),
    "rate": _NONNEGATIVE,
    "gain": _NONNEGATIVE,
    "penalty": _POSITIVE,
    "max_penalty": _POSITIVE,
    "growth": _Range("a number > 1", least=1.0, open=True, example=5.0),
}
ALIASES = {
    "learning_rate": "lr",
    "batch_size": "batch",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "random_state": "seed",
    "tol": "tolerance",
    "timeout": "time_limit",
}
"""Names of these options in other packages."""
_OF_STEPS = {
    "batch": "lagrangian(D.rows(index)) takes the rows of each step",
    "epochs": "for epoch in range(epochs): ...",
    "lr": "torch.optim.Adam(f.module.parameters(), lr=...)",
    "optimizer": "torch.optim.Adam(f.module.parameters(), lr=...)",
}
"""Where a loop of one's own has what is an option of `solve`."""
_CHOICES: dict[str, tuple[str, ...]] = {
    "formulation": ("lagrangian", "augmented", "classical"),
    "sampling": ("auto", "shuffle", "stratified"),
    "graph": ("auto", "off", "recorded", "compiled"),
}
_KINDS: dict[str, tuple[type | tuple[type, ...], str, str]] = {
    "solver": (str, "the name of a solver", 'solver="CLARABEL"'),
    "options": (Mapping, "a mapping of options of the solver", 'options={"max_iter": 100}'),
    "multipliers": (Mapping, "a mapping by constraint", 'multipliers={"fit": lam(D.x)}'),
    "estimator": ((str, Mapping), "a name, or names by term", 'estimator={"share": "running"}'),
    "progress": (bool, "True or False", "progress=False"),
    "polish": (bool, "True or False", "polish=True"),
    "verbose": (bool, "True or False", "verbose=True"),
}
"""What else a value must be: its type, in words, and a good one."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses options of the wrong kind or outside of their range; what is None or unknown passes.

    Raises:
        ModelingError: E141.
    """
    for name, value in options.items():
        if name in ALIASES:
            own = ALIASES[name]
            raise ModelingError(
                "E141", f"there is no option {name!r}; it is called {own!r}", fix=f"{own}=..."
            )
        if value is None:
            continue
        by_sample = name == "batch" and isinstance(value, Mapping)
        values: list[Any] = [*cast("Mapping[str, Any]", value).values()] if by_sample else [value]
        if name in _RANGES and not all(_within(x, _RANGES[name]) for x in values):
            wanted = _RANGES[name]
            raise ModelingError(
                "E141", f"{name}={_shown(value)} is not {wanted.what}", fix=f"{name}={wanted.example}"
            )
        if name in _KINDS and not isinstance(value, _KINDS[name][0]):
            _, what, example = _KINDS[name]
            raise ModelingError("E141", f"{name}={_shown(value)} is not {what}", fix=example)
        if name in _CHOICES and value not in _CHOICES[name]:
            known = _CHOICES[name]
            hint = suggest(value, known) if isinstance(value, str) else ""
            listed = ", ".join(map(repr, known))
            raise ModelingError("E141", f"no {name} is called {_shown(value)}{hint}", fix=f"one of {listed}")
        if name == "optimizer" and not callable(cast("Any", value)):
            raise ModelingError(
                "E141",
                f"optimizer={_shown(value)} is not a function of the parameters",
                fix="optimizer=torch.optim.SGD, or lambda ps: torch.optim.AdamW(ps, lr=1e-3)",
            )


def callbacks_of(callback: Any) -> tuple[Callable[[Any], Any], ...]:
    """`callback=` as functions.

    Raises:
        ModelingError: E141 for what is none.
    """
    if callback is None or callable(callback):
        return () if callback is None else (callback,)
    listed: list[Any] = [*callback] if isinstance(callback, (list, tuple)) else [callback]  # type: ignore[reportUnknownVariableType]
    for item in listed:
        if not callable(item):
            fix = "callback=lambda round: print(round)"
            raise ModelingError("E141", f"callback={_shown(item)} is not a function of a round", fix=fix)
    return tuple(listed)


def named(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Refuses arguments that a function does not have: E141 in the place of Python's own error.

    The function has gradients whatever its caller set: `torch.no_grad()` around an evaluation is usual.
    """
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: _P.args, **options: _P.kwargs) -> _T:
        for name in options:
            if name not in known:
                own = [word for word in known if word != "problem"]
                alias = ALIASES.get(name)
                hint = f"; it is called {alias!r}" if alias in known else suggest(name, own)
                fix = f"one of {', '.join(own)}"
                if name in _OF_STEPS and function.__name__ == "compile":
                    hint, fix = "", f"{_OF_STEPS[name]}, or p.solve({name}=...)"
                raise ModelingError("E141", f"{function.__name__}() has no option {name!r}{hint}", fix=fix)
        with torch.inference_mode(mode=False), torch.enable_grad():
            return function(*args, **options)

    return checked


def _within(value: Any, wanted: _Range) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if wanted.whole else (int, float)):
        return False
    return value > wanted.least if wanted.open else value >= wanted.least


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def check_parameters(program: Program, params: Mapping[str, Any] | None) -> None:
    """Refuses values that a parameter cannot have.

    Raises:
        ModelingError: E141 (no mapping by name), E127 (an unknown name), E117 (no number), E112 (another
            shape).
    """
    if params is None:
        return
    if not hasattr(params, "keys"):
        raise ModelingError(
            "E141", f"params={_shown(params)} is no mapping by name", fix='params={"alpha": 0.05}'
        )
    symbols = {symbol.name: symbol for symbol in program.parameters}
    for name, value in params.items():
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            own = getattr(getattr(name, "symbol", None), "name", "alpha")
            raise ModelingError(
                "E127", "params= has the names of parameters as its keys", fix=f'params={{"{own}": 0.05}}'
            )
        if name not in symbols:
            raise ModelingError("E127", f"no Parameter is named {name!r}{suggest(name, symbols)}")
        array = as_array(value)
        if array.dtype.kind not in "biuf":
            raise ModelingError("E117", f"the value of Parameter {name!r} is no number: {_shown(value)}")
        if not np.isfinite(array).all():
            raise ModelingError("E117", f"the value of Parameter {name!r} is not finite: {_shown(value)}")
        if array.shape != symbols[name].shape:
            raise ModelingError(
                "E112",
                f"Parameter {name!r} has shape {symbols[name].shape}, the value given has {array.shape}",
            )


def check_start(program: Program, multipliers: Mapping[str, Any] | None) -> None:
    """E139 for starting multipliers of a constraint that the problem has not, or that are no numbers."""
    keys = [part.key for part in program.judged.parts]
    for key in dict(multipliers or {}):
        if key not in keys:
            raise _no_part(key, keys)
    check_numbers(multipliers)


def check_numbers(multipliers: Mapping[str, Any] | None) -> None:
    """E139 for multipliers that are no numbers."""
    for key, value in dict(multipliers or {}).items():
        if as_array(value).dtype.kind not in "biuf":
            raise ModelingError("E139", f"the multiplier of {key!r} is no number: {_shown(value)}")


def _no_part(key: Any, keys: Sequence[str]) -> ModelingError:
    listed = ", ".join(keys) or "none"
    return ModelingError(
        "E139",
        f"there is no constraint part {key!r}{suggest(str(key), keys)}",
        fix=f"one of {listed}" if keys else "the problem has no constraints",
    )


def check_starts(program: Program) -> None:
    """E138 for a variable whose start is not finite."""
    for symbol in program.variables:
        if symbol.value is not None and not np.isfinite(np.asarray(as_array(symbol.value), float)).all():
            raise ModelingError(
                "E138",
                f"the start of Variable {symbol.name!r} is not finite",
                fix=f"{symbol.name}.value = a finite start, or None",
            )
