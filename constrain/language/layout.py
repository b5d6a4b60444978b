"""What the three notations (text, LaTeX, Python source) share: the name table and the printing loop.

A notation says how one node is laid out: how tightly it binds, and its pieces, which are strings and
sub-nodes with the least binding strength that needs no parentheses. `emit` does the rest with a stack of its
own, so depth is no limit, and a text that is cut at `limit` characters costs no more than those characters.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from constrain.language import nodes as n
from constrain.language.regions import Region

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from constrain.language.data import Data

__all__ = [
    "Layout",
    "Names",
    "Notation",
    "Partial",
    "Piece",
    "divergence",
    "emit",
    "joined",
    "key_text",
    "laplacian",
    "literal",
    "partial",
]

Piece: TypeAlias = str | tuple[n.Node, int]
Layout: TypeAlias = tuple[int, "Sequence[Piece]"]


class Notation(Protocol):
    """How nodes look."""

    brackets: tuple[str, str]

    def layout(self, node: n.Node) -> Layout:
        """Binding strength and pieces of a node."""
        ...


def emit(pieces: Iterable[Piece], notation: Notation, limit: int | None = None) -> str:
    """Writes pieces out, with parentheses where a sub-node binds less tightly than its place asks for.

    Args:
        pieces: strings, and sub-nodes with the required binding strength.
        notation: how nodes look.
        limit: length at which the text is cut; the last character is then `…`.
    """
    opening, closing = notation.brackets
    stack: list[Piece] = list(pieces)[::-1]
    written: list[str] = []
    size = 0
    while stack and (limit is None or size <= limit):
        piece = stack.pop()
        if isinstance(piece, str):
            written.append(piece)
            size += len(piece)
            continue
        node, required = piece
        strength, inner = notation.layout(node)
        if strength < required:
            stack.append(closing)
        stack.extend(reversed(inner))
        if strength < required:
            stack.append(opening)
    result = "".join(written)
    return result if limit is None or len(result) <= limit else result[: limit - 1] + "…"


def joined(items: Iterable[Piece | Sequence[Piece]], separator: str = ", ") -> list[Piece]:
    """Pieces with a separator between the items."""
    pieces: list[Piece] = []
    for item in items:
        if pieces:
            pieces.append(separator)
        if isinstance(item, list):
            pieces.extend(item)
        else:
            pieces.append(item)  # type: ignore[arg-type]  # a single piece
    return pieces


def literal(value: Any) -> str:
    """Python source of a number, text, None or a tuple of such."""
    if isinstance(value, float) and value - value != 0:
        return f'float("{value}")'
    if isinstance(value, tuple):
        items: list[str] = [literal(v) for v in value]  # type: ignore[reportUnknownVariableType]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    return repr(value)


def key_text(key: tuple[Any, ...]) -> str:
    """What stands between the brackets of an index."""

    def part(k: Any) -> str:
        if isinstance(k, tuple) and k[0] == "slice":
            start, stop, step = ("" if v is None else str(v) for v in k[1:])  # type: ignore[reportUnknownVariableType]
            return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
        if isinstance(k, tuple):
            return str(list(k[1]))  # type: ignore[reportUnknownArgumentType]
        return str(k)

    return ", ".join(part(k) for k in key)


# ----------------------------------------------------------------------------------------- derivatives
@dataclass(frozen=True)
class Partial:
    """A derivative of some order with respect to one number: a scalar column, or a component of a vector."""

    arg: n.Node
    wrt: n.Column
    component: int | None
    order: int


def partial(node: n.Node) -> Partial | None:
    """The partial derivative that a node is, those of higher order gathered; None for any other node."""
    found = _partial(node)
    while found is not None:
        inner = _partial(found.arg)
        if inner is None or (inner.wrt, inner.component) != (found.wrt, found.component):
            break
        found = Partial(inner.arg, inner.wrt, inner.component, found.order + 1)
    return found


def _partial(node: n.Node) -> Partial | None:
    match node:
        case n.Gradient(arg=arg, wrt=wrt) if not wrt.data.row_shape(wrt.name):
            return Partial(arg, wrt, None, 1)
        case n.Apply(atom="index", args=(n.Gradient(arg=arg, wrt=wrt),)) if (
            len(wrt.data.row_shape(wrt.name)) == 1
        ):
            key = node.option("key")
            own = len(key) == 2 and key[0] == "..." and isinstance(key[1], int) and key[1] >= 0
            return Partial(arg, wrt, key[1], 1) if own else None
        case _:
            return None


def divergence(node: n.Apply) -> n.Gradient | None:
    """The Jacobian whose trace a node is: `div(v, z)` is that of `grad(v, z)`."""
    inner = node.args[0] if node.atom == "trace" else None
    return inner if isinstance(inner, n.Gradient) else None


def laplacian(node: n.Apply) -> n.Gradient | None:
    """The gradient of whose Jacobian a node is the trace: `laplacian(e, z)` is that of `grad(e, z)`."""
    outer = divergence(node)
    inner = None if outer is None else outer.arg
    return inner if isinstance(inner, n.Gradient) and outer is not None and inner.wrt == outer.wrt else None


# ----------------------------------------------------------------------------------------------- names
class Names:
    """A name for every symbol under some roots: the user's own where possible, one name for one symbol.

    Args:
        roots: the expressions to be printed together.
        reserved: names that no symbol may take.
    """

    def __init__(self, roots: Sequence[n.Node], reserved: Iterable[str] = ()) -> None:
        self._reserved = frozenset(reserved)
        self._of: dict[int, str] = {}
        self.objects: dict[str, Any] = {}
        populations: dict[Data, None] = {}
        columns: set[str] = set()
        for node in n.postorder(*roots):
            if isinstance(node, (n.Column, n.ForAll, n.Moment)) and not isinstance(node.data, Region):
                populations[node.data] = None
            if isinstance(node, n.Column) and not isinstance(node.data, Region):
                columns.add(node.name)
            for symbol, wanted in _symbols(node):
                self.add(symbol, wanted)
        others = {name for name, symbol in self.objects.items() if symbol not in populations}
        self.bare_columns = len(populations) == 1 and not columns & others

    def add(self, symbol: Any, wanted: str) -> str:
        """The name of a symbol, given now if it has none; one that ends in `_` is numbered from 1."""
        known = self._of.get(id(symbol))
        if known is not None:
            return known
        name = re.sub(r"\W", "_", wanted)
        if not name.isidentifier():
            name = f"_{name}"
        if name.endswith("_") or not self._free(name):
            stem, count = name.removesuffix("_"), 1
            while not self._free(f"{stem}_{count}"):
                count += 1
            name = f"{stem}_{count}"
        self._of[id(symbol)] = name
        self.objects[name] = symbol
        return name

    def _free(self, name: str) -> bool:
        return name not in self.objects and name not in self._reserved and not keyword.iskeyword(name)

    def of(self, symbol: Any) -> str:
        """The name of a symbol."""
        return self._of[id(symbol)]


def _symbols(node: n.Node) -> Iterator[tuple[Any, str]]:
    match node:
        case n.Column(data=data) | n.ForAll(data=data) | n.Moment(data=data) | n.Codes(data=data):
            yield data, data.name
        case n.Decision(symbol=symbol) | n.Knob(symbol=symbol) | n.Pinned(symbol=symbol):
            yield symbol, (symbol.name or "pinned_").strip("()")  # hidden ones have names in parentheses
        case n.Array(symbol=symbol) if not isinstance(symbol.value, str):
            yield symbol, symbol.name or "array_"
        case n.Call(model=model) | n.Weights(model=model):
            yield model, model.name
        case _:
            return
