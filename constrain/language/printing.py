"""Printing: unicode text, LaTeX, and Python source that evaluates back (semantics S11).

Every function walks with a stack of its own, so a sum of ten thousand terms prints.
"""

from __future__ import annotations

from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from constrain.language.latex import LatexNotation, latex_name
from constrain.language.layout import Names, emit
from constrain.language.python_source import ATOM, SourceNotation, source_names
from constrain.language.text import TextNotation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from constrain.language import nodes as n
    from constrain.language.layout import Piece
    from constrain.language.problem import Problem

__all__ = [
    "Names",
    "latex",
    "problem_latex",
    "problem_names",
    "problem_source",
    "problem_symbols",
    "problem_text",
    "source",
    "symbols",
    "text",
]


def text(node: n.Node, limit: int | None = None, names: Names | None = None) -> str:
    """Unicode mathematics in the user's order, such as `P[f(x) > 0 | y = 1] ≥ 0.8`.

    Columns are written `x` when one population occurs and no other symbol has that name, else `adult.x`.

    Args:
        node: what to print.
        limit: length at which the text is cut with `…`.
        names: the name table of a whole problem, so that its parts are printed alike.
    """
    return emit([(node, 0)], TextNotation(names or Names([node])), limit)


def latex(node: n.Node, names: Names | None = None) -> str:
    """LaTeX mathematics, without dollar signs."""
    return emit([(node, 0)], LatexNotation(names or Names([node])))


def source(node: n.Node, limit: int | None = None, *, operand: bool = False) -> str:
    """Python source that evaluates to an equal node, with the names of `symbols(node)`.

    Args:
        node: what to print.
        limit: length at which the text is cut with `…`.
        operand: write it so that `[0]` or `.T` can follow.
    """
    return emit([(node, ATOM if operand else 0)], SourceNotation(source_names([node])), limit)


def symbols(node: n.Node) -> dict[str, Any]:
    """The names that `source(node)` uses."""
    notation = SourceNotation(source_names([node]))
    _lay_out([(node, 0)], notation)
    return notation.symbols()


def _lay_out(pieces: Iterable[Piece], notation: SourceNotation) -> None:
    """Lays every distinct sub-node out once: the words of the source without its text, which may be long."""
    stack = list(pieces)
    seen: dict[int, n.Node] = {}
    while stack:
        piece = stack.pop()
        if not isinstance(piece, str) and id(piece[0]) not in seen:
            seen[id(piece[0])] = piece[0]
            stack.extend(notation.layout(piece[0])[1])


# ------------------------------------------------------------------------------------------- problems
def problem_text(problem: Problem) -> str:
    """The objective and the named constraints, aligned."""
    notation = TextNotation(Names(problem.roots))
    head = problem.sense
    if problem.objective is not None:
        head += "   " + emit([(problem.objective, 0)], notation)
    if not problem.constraints:
        return head
    width = max(len(name) for name in problem.constraints) + 1
    lines = [
        f"{f'{name}:':<{width}} {emit([(node, 0)], notation)}" for name, node in problem.constraints.items()
    ]
    return "\n".join([head, f"subject to {lines[0]}", *(f"           {line}" for line in lines[1:])])


def problem_latex(problem: Problem) -> str:
    """An `aligned` block, without dollar signs."""
    notation = LatexNotation(Names(problem.roots))
    objective = "" if problem.objective is None else emit([(problem.objective, 0)], notation)
    lines = [rf"\operatorname*{{{problem.sense}}} \quad & {objective}"]
    for i, (name, node) in enumerate(problem.constraints.items()):
        lead = r"\text{subject to} \quad" if i == 0 else ""
        lines.append(rf"{lead} & {latex_name(name)}:\; {emit([(node, 0)], notation)}")
    body = " \\\\\n".join(lines)
    return f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"


def problem_symbols(problem: Problem) -> dict[str, Any]:
    """The names that `problem_source(problem)` uses, with what they stand for."""
    notation = SourceNotation(source_names(problem.roots))
    notation.word("cn")
    _lay_out([(root, 0) for root in problem.roots], notation)
    return notation.symbols()


def problem_names(problem: Problem) -> Names:
    """The name table of `problem_source(problem)`: what `problem_symbols` has, by object."""
    return source_names(problem.roots)


def problem_source(problem: Problem) -> str:
    """Python source that evaluates to an equal problem, with the names of `problem_symbols(problem)`."""
    notation = SourceNotation(source_names(problem.roots))
    objective = [] if problem.objective is None else notation.lifted(problem.objective)
    written = f"{notation.word('cn', problem.sense)}({emit(objective, notation)})"
    if not problem.constraints:
        return written
    lines: list[str] = []
    for name, node in problem.constraints.items():
        relation = emit([(node, 0)], notation)
        plain = name.isidentifier() and not iskeyword(name)
        lines.append(f"    {name}={relation},\n" if plain else f"    **{{{name!r}: {relation}}},\n")
    return f"{written}.subject_to(\n{''.join(lines)})"
