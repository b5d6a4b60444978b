# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The symbols of a derivation: one per symbol of the problem, under the user's names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp

from constrain._lazy import attribute
from constrain.language import nodes as n
from constrain.language.data import Data

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["INDEX_LETTERS", "Names", "constants_of", "indices"]

INDEX_LETTERS = ("i", "j", "k", "l", "m", "q", "r", "s", "t")


class Names:
    """SymPy symbols by the symbols of a problem (variables, parameters, arrays, columns, models, parts)."""

    def __init__(self) -> None:
        self._found: dict[Any, Any] = {}
        self._taken: set[str] = set()

    def base(self, key: Any, name: str, rank: int) -> Any:
        """The symbol of `key`: a real symbol of rank 0, else an indexed base.

        Args:
            key: what it stands for; the same key has the same symbol.
            name: what to call it; underscores are added where the name is taken.
            rank: number of its indices.
        """
        if key not in self._found:
            chosen = re.sub(r"\W+", "_", name).strip("_") or "t"
            while chosen in self._taken:
                chosen += "_"
            self._taken.add(chosen)
            self._found[key] = sp.IndexedBase(chosen, real=True) if rank else sp.Symbol(chosen, real=True)
        return self._found[key]

    def entry(self, key: Any, name: str, index: tuple[Any, ...]) -> Any:
        """The entry of the symbol of `key` at an index."""
        found = self.base(key, name, len(index))
        return found[index] if index else found

    @property
    def all(self) -> dict[str, Any]:
        """Every symbol by its name."""
        return {str(symbol): symbol for symbol in self._found.values()}

    def text(self, value: str) -> Any:
        """The symbol of a text, such as a group's name."""
        return self.base(("text", value), value, 0)

    @property
    def items(self) -> list[tuple[Any, Any]]:
        """What each symbol stands for, and the symbol."""
        return list(self._found.items())


def constants_of(names: Names) -> dict[Any, Any]:
    """Values of parameters, arrays, columns and texts by symbol; see `Derivation.constants`."""
    texts = [key[1] for key, _ in names.items if isinstance(key, tuple) and key[0] == "text"]
    number = {text: float(i) for i, text in enumerate(texts)}
    found: dict[Any, Any] = {}
    for key, symbol in names.items:
        match key:
            case n.ParameterSymbol(value=value) | n.ArraySymbol(value=value):
                if value is not None:
                    found[symbol] = np.asarray(_host(value), dtype=np.float64)
            case ("text", str(text)):
                found[symbol] = number[text]
            case ("codes", data, columns):
                found[symbol] = np.asarray(
                    _host(attribute("constrain.runtime.columns:level_codes")(data, columns)[0])
                )
            case (Data() as data, str(column)):
                found[symbol] = _column(data.values(column), number)
            case _:
                pass
    return found


def _host(value: Any) -> Any:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _column(values: Any, number: dict[str, float]) -> Any:
    found = np.asarray(_host(values))
    if found.dtype.kind in "OUS":
        return np.asarray([number.get(str(x), -1.0) for x in found])
    return found.astype(np.float64)


def indices(used: Iterable[Any], taken: Iterable[str] = ()) -> Iterator[Any]:
    """Index symbols that are not in use.

    Args:
        used: expressions whose symbols are avoided, and index symbols.
        taken: names that are avoided.
    """
    avoided = {str(s) for e in used for s in getattr(e, "free_symbols", ())} | set(taken)
    for round_ in range(100):
        for letter in INDEX_LETTERS:
            name = letter if not round_ else f"{letter}_{round_}"
            if name not in avoided:
                yield sp.Symbol(name, integer=True, nonnegative=True)
