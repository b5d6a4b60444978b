"""Whole numbers in expressions: computed as such where they stay whole, else in the problem's floating type.

torch makes float32 of whole numbers that meet a Python number or a division, whatever the type of the
problem: of a time in seconds, `D.t - 1.7e9`, the last two digits are gone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from constrain.language import nodes as n
from constrain.runtime.probe import has_whole_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WholeNumbers"]

_ARITHMETIC = ("abs", "add", "maximum", "minimum", "mul", "neg", "relu", "sign", "sub")
_OF_ENTRIES = ("count_nonzero", "max", "min", "sum", "trace", "where")
_ARRANGED = ("index", "reshape", "stack", "transpose")
_STAY = frozenset((*_ARITHMETIC, *_OF_ENTRIES, *_ARRANGED))
"""Functions whose value is whole where all arguments are."""
_FACTOR = 10**6
"""Largest number by which products stay whole: those of columns, and squares, may need more than 64 bits."""
_POSITIONS = frozenset(("cross_entropy", "take"))
"""Functions whose last argument are labels or positions, which stay what they are."""
_MOST = 2.0**53
"""Floating numbers below are whole numbers without rounding."""
_NEAREST = {">": math.floor, "<=": math.floor, ">=": math.ceil, "<": math.ceil}
"""The whole number with which a comparison of whole numbers says the same as with a number between two."""


class WholeNumbers:
    """Which expressions have whole numbers, and how code of an expression takes them."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def __call__(self, node: n.Node) -> bool:
        """Whether every value of an expression is a whole number, kept as such."""
        return n.fold(node, _is_whole, self._known)

    def arguments(self, node: n.Apply, refs: Sequence[str]) -> list[str]:
        """The arguments of a function; whole numbers as floating ones where its value is not whole."""
        values = node.args[1:] if node.atom == "where" else node.args
        whole = [self(x) for x in values]
        if node.atom in _POSITIONS or not any(whole) or self(node):
            return list(refs)
        moved = {id(x) for x, w in zip(values, whole, strict=True) if w and not isinstance(x, n.Constant)}
        return [
            f"real({ref}, dtype)" if id(x) in moved else ref for ref, x in zip(refs, node.args, strict=True)
        ]

    def shifted(self, node: n.Apply, refs: Sequence[str], infix: str) -> str | None:
        """Whole numbers plus or minus a floating number that is whole: exact in any floating type."""
        if node.atom not in ("add", "sub"):
            return None
        listed = list(refs)
        for i, own in enumerate(node.args):
            if isinstance(own, n.Constant) and _is_round(own.value) and self(node.args[1 - i]):
                listed[i] = f"({int(own.value)})"
                return f"real({listed[0]} {infix} {listed[1]}, dtype)"
        return None

    def compared(self, node: n.Comparison, refs: Sequence[str]) -> list[str]:
        """The sides of a comparison, so that whole numbers are compared with whole numbers."""
        listed = list(refs)
        for i, (own, other) in enumerate(((node.lhs, node.rhs), (node.rhs, node.lhs))):
            if not isinstance(own, n.Constant) or not self(other) or self(own):
                continue
            op = node.op if i else {">": "<", "<": ">", ">=": "<=", "<=": ">="}.get(node.op, node.op)
            value = own.value
            if abs(value) < _MOST and (op in _NEAREST or _is_round(value)):
                listed[i] = f"({_NEAREST.get(op, int)(value)})"
        return listed


def _is_round(value: float) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < _MOST


def _is_whole(node: n.Node, parts: tuple[bool, ...]) -> bool:
    match node:
        case n.Constant(value=value):
            return isinstance(value, int)
        case n.Column() | n.Array():
            return has_whole_numbers(node)
        case n.Apply(atom="where"):
            return all(parts[1:])
        case n.Apply(atom=atom):
            fits = atom != "mul" or any(
                isinstance(x, n.Constant) and abs(x.value) <= _FACTOR for x in node.args
            )
            return atom in _STAY and all(parts) and fits
        case _:
            return False
