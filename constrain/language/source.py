"""Reads the user's source where Python asked an expression for a truth value."""

from __future__ import annotations

import ast
import dis
import linecache
from typing import TYPE_CHECKING

from constrain.language.location import caller

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["truth_context"]

_Span = tuple[int, int, int, int]


def truth_context() -> str:
    """What asked for the truth value in the line of user code that is running now.

    Returns:
        `"chain"` for a chained comparison, `"and"`, `"or"`, `"not"`, `"if"`, `"while"`, `"assert"`, the
        source of a called function such as `"max"`, or `""` when the source does not tell (or is not there).
    """
    frame = caller()
    span = None if frame is None else _running_span(frame)
    if frame is None or span is None:
        return ""
    try:
        tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename, frame.f_globals)))
    except SyntaxError:
        return ""
    around = [x for x in ast.walk(tree) if _contains(x, span)]
    if not around:
        return ""
    running, parent = around[-1], around[-2] if len(around) > 1 else None
    if isinstance(running, ast.Call) and _opcode(frame).startswith("CALL"):
        return ast.unparse(running.func)
    return _asker(running) or _asker(parent, running)


def _asker(node: ast.AST | None, operand: ast.AST | None = None) -> str:
    """The construct `node` when it asks a truth value of its operand."""
    match node:
        case ast.Compare(ops=ops) if operand is None and len(ops) > 1:
            return "chain"
        case ast.BoolOp(op=op):
            return "and" if isinstance(op, ast.And) else "or"
        case ast.UnaryOp(op=ast.Not()):
            return "not"
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) | ast.Assert(test=test):
            name = (
                "while" if isinstance(node, ast.While) else "assert" if isinstance(node, ast.Assert) else "if"
            )
            # a jump carries the position of its whole statement unless the test is a comparison
            return name if test is operand else _asker(test) or name if operand is None else ""
        case _:
            return ""


def _running_span(frame: FrameType) -> _Span | None:
    """Line, end line, column and end column (in bytes) of the instruction the frame is at (PEP 657)."""
    line, end_line, column, end_column = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    if line is None or end_line is None or column is None or end_column is None:
        return None
    return line, end_line, column, end_column


def _opcode(frame: FrameType) -> str:
    return dis.opname[frame.f_code.co_code[frame.f_lasti]]


def _contains(node: ast.AST, span: _Span) -> bool:
    if not isinstance(node, (ast.expr, ast.stmt)) or node.end_lineno is None or node.end_col_offset is None:
        return False
    line, end_line, column, end_column = span
    starts = (node.lineno, node.col_offset) <= (line, column)
    return starts and (node.end_lineno, node.end_col_offset) >= (end_line, end_column)
