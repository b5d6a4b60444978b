"""The formats of `Solution.report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from constrain import plugins
from constrain.diagnostics.report import json_report, markdown_report, text_report
from constrain.errors import ModelingError
from constrain.language.data import suggest
from constrain.reports.page import html_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from constrain.solution import Solution

__all__ = ["report"]

VIEWS: dict[str, Callable[[Solution], str]] = {
    "text": text_report,
    "markdown": markdown_report,
    "md": markdown_report,
    "json": json_report,
    "html": html_report,
}
SUFFIXES = {".md": "markdown", ".json": "json", ".html": "html", ".htm": "html"}
OTHERS = ("pdf", "tex", "png", "svg", "csv", "docx", "xlsx")
"""Suffixes of files that are no text reports, which only a plug-in can write."""


def report(solution: Solution, path: str | Path | None = None, format: str | None = None) -> str:
    """The report of a solution; written to `path` when one is given.

    Args:
        solution: of a solve, or loaded.
        path: a file; its suffix chooses the format when `format` is None.
        format: `text`, `markdown`, `json` or `html`.

    Raises:
        ModelingError: E142 for a format that does not exist, or a folder in the place of a file.
        RouteError: E202 when the package that adds it cannot be loaded.
    """
    suffix = "" if path is None else Path(path).suffix.lower()
    chosen = format or SUFFIXES.get(suffix) or (suffix[1:] if suffix[1:] in OTHERS else "text")
    view = VIEWS.get(chosen) or plugins.find("reporters", chosen)
    if view is None:
        known = [*VIEWS, *(plugin.name for plugin in plugins.available("reporters"))]
        raise ModelingError(
            "E142",
            f"reports come as text, markdown, json or html; there is no {chosen!r}{suggest(chosen, known)}",
            fix='format="html"',
        )
    if path is not None and Path(path).is_dir():
        raise ModelingError("E142", f"{path} is a folder, and a report is a file", fix='"report.html" in it')
    result = str(view(solution))
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(result if result.endswith("\n") else result + "\n", encoding="utf-8")
    return result
