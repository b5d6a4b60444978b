"""What backends of other libraries share: expressions made bottom-up, and names that are identifiers."""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

__all__ = ["identifier", "made_from"]

N = TypeVar("N", bound="Hashable")
T = TypeVar("T")


def made_from(root: N, made: dict[N, T], needs: Callable[[N], Iterable[N]], make: Callable[[N], T]) -> T:
    """What a node stands for, made after everything that it needs. Iterative: long sums are fine.

    Args:
        root: the node.
        made: results so far, by node; what is made is added.
        needs: the nodes whose results `make` looks up.
        make: the result of a node.
    """
    stack = [root]
    while stack:
        node = stack[-1]
        waiting = () if node in made else [x for x in needs(node) if x not in made]
        if waiting:
            stack.extend(waiting)
            continue
        if node not in made:
            made[node] = make(node)
        stack.pop()
    return made[root]


def identifier(text: str, taken: set[str]) -> str:
    """A Python identifier like a text, with a number where it is taken; it is taken from then on."""
    name = re.sub(r"\W+", "_", text).strip("_") or "x"
    if name[0].isdigit() or keyword.iskeyword(name):
        name = f"_{name}"
    found, number = name, 2
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    taken.add(found)
    return found
