"""The HTML page of a solution: one file, no network, readable on a phone and on paper, in light and in dark.

Everything a user named (constraints, columns, levels, data) passes through `elements.element`, which escapes
it. The page's content security policy admits its own style and script by their hashes and nothing else, so
that even markup which got in could load and run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from constrain.reports.elements import Markup, element, joined
from constrain.reports.sections import (
    charts_section,
    constraints_section,
    header,
    kkt_section,
    mathematics_section,
    provenance_section,
    steps_section,
    warnings_section,
)
from constrain.reports.whatif import path_section

if TYPE_CHECKING:
    from constrain.solution import Solution

__all__ = ["html_report"]


def html_report(solution: Solution) -> str:
    """The page as a document."""
    slider = path_section(solution)
    body = element(
        "main",
        header(solution),
        mathematics_section(solution),
        constraints_section(solution),
        slider,
        charts_section(solution),
        kkt_section(solution),
        warnings_section(solution),
        steps_section(solution),
        provenance_section(solution),
    )
    style, script = _resource("page.css"), _resource("page.js") if slider else ""
    policy = f"default-src 'none'; style-src '{_digest(style)}'"
    policy += f"; script-src '{_digest(script)}'" if script else ""
    title = f"{solution.status.value.replace('_', ' ')} · constrain report"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style)),
    )
    end = element("script", Markup(script)) if script else None
    return f"<!doctype html>\n{element('html', head, element('body', joined(body, end)), lang='en')}\n"


@cache
def _resource(name: str) -> str:
    text = (files("constrain.reports") / name).read_text(encoding="utf-8")
    return re.sub(r"\n\s*", "\n", text) if name.endswith(".css") else text


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
