"""Reads the user's source where Python asked an expression for a truth value."""

from __future__ import annotations

import ast
import linecache
from typing import TYPE_CHECKING, Literal

from constrain.language.location import caller

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["truth_context"]


def _running_text(frame: FrameType) -> str | None:
    """The source of the instruction the frame is at, from its recorded positions (PEP 657)."""
    positions = list(frame.f_code.co_positions())
    line, end_line, column, end_column = positions[frame.f_lasti // 2]
    if None in (line, end_line, column, end_column):
        return None
    assert line is not None and end_line is not None  # noqa: S101, PT018  # narrows the types
    lines = [linecache.getline(frame.f_code.co_filename, i) for i in range(line, end_line + 1)]
    if not lines[0]:
        return None
    # columns count bytes
    lines[-1] = lines[-1].encode()[:end_column].decode(errors="ignore")
    lines[0] = lines[0].encode()[column:].decode(errors="ignore")
    return "".join(lines).strip()


def truth_context() -> Literal["chain", "other"]:
    """Whether the truth value was asked by a chained comparison (`0 <= e <= 1`) or by something else."""
    frame = caller()
    text = None if frame is None else _running_text(frame)
    if text is None:
        return "other"
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return "other"
    return "chain" if isinstance(tree, ast.Compare) and len(tree.ops) > 1 else "other"
