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

from constrain.reports.diagnosis import VERDICTS, infeasibility_section, margin_section
from constrain.reports.elements import Markup, element, joined
from constrain.reports.mixture import mixture_section
from constrain.reports.sections import (
    charts_section,
    constraints_section,
    header,
    kkt_section,
    mathematics_section,
    provenance_section,
    status_mark,
    steps_section,
    warnings_section,
)
from constrain.reports.whatif import path_section
from constrain.solution.records import Status

if TYPE_CHECKING:
    from constrain.diagnostics.infeasibility import Infeasibility
    from constrain.solution import Solution

__all__ = ["html_report", "infeasibility_page"]


def html_report(solution: Solution) -> str:
    """The page as a document."""
    slider = path_section(solution)
    body = element(
        "main",
        header(solution),
        mathematics_section(solution),
        constraints_section(solution),
        margin_section(solution),
        mixture_section(solution),
        None if solution.diagnosis is None else infeasibility_section(solution.diagnosis),
        slider,
        charts_section(solution),
        kkt_section(solution),
        warnings_section(solution),
        steps_section(solution),
        provenance_section(solution),
    )
    title = f"{solution.status.value.replace('_', ' ')} · constrain report"
    return _document(title, body, scripted=slider is not None)


def infeasibility_page(found: Infeasibility) -> str:
    """The page of a diagnosis by itself."""
    word = found.verdict.replace("_", " ")
    tone = Status.FEASIBLE if found.feasible else Status.INFEASIBLE
    top = element(
        "header",
        element("p", "constrain diagnosis", class_="eyebrow"),
        element(
            "div",
            status_mark(tone),
            element("h1", word.capitalize()),
            class_=f"verdict {'good' if found.feasible else 'bad'}",
        ),
        element("p", f"{VERDICTS[found.verdict].capitalize()}.", class_="meaning"),
    )
    body = element("main", top, infeasibility_section(found, "Why"))
    return _document(f"{word} · constrain diagnosis", body, scripted=False)


def _document(title: str, body: Markup, *, scripted: bool) -> str:
    """A page that admits its own style and script and nothing else."""
    style, script = _resource("page.css"), _resource("page.js") if scripted else ""
    policy = f"default-src 'none'; style-src '{_digest(style)}'"
    policy += f"; script-src '{_digest(script)}'" if script else ""
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
