"""The slider over a parametric path that was computed: what the optimum would be, and what it would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constrain.reports.elements import Markup

if TYPE_CHECKING:
    from constrain.solution import Solution

__all__ = ["path_section"]


def path_section(s: Solution) -> Markup | None:
    """One panel per parameter of `Solution.paths`."""
    return None if not s.paths else Markup("")
