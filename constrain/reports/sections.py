"""The sections of the page, from the verdict to where the numbers come from."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.diagnostics.report import (
    NO_SHARE,
    at_risk_text,
    next_steps,
    objective_text,
    row_lines,
    status_text,
    uncertified_lines,
)
from constrain.diagnostics.table import number, plus_minus, short
from constrain.reports.charts import gauge
from constrain.reports.elements import Markup, element, joined
from constrain.reports.histories import history_charts
from constrain.reports.mathml import mathml
from constrain.reports.rows import constraint_table
from constrain.solution.records import Status

if TYPE_CHECKING:
    from constrain.solution import KKT, Solution

__all__ = [
    "charts_section",
    "constraints_section",
    "header",
    "kkt_section",
    "mathematics_section",
    "provenance_section",
    "section",
    "status_mark",
    "steps_section",
    "tone_of",
    "verdict_counts",
    "warnings_section",
]

ROMAN = {"optimal": "M10 17.5l5 5 9-11", "stationary": "M10 17.5l5 5 9-11", "feasible": "M10 17h14"}
CROSS = "M12 12l10 10M22 12L12 22"


def section(title: str, *children: str | None) -> Markup:
    """A section under a heading."""
    return element("section", element("h2", title), *children)


# --------------------------------------------------------------------------------------------- verdict
def tone_of(status: Status) -> str:
    """`good`, `open` or `bad`."""
    if status in (Status.OPTIMAL, Status.STATIONARY):
        return "good"
    return "open" if status is Status.FEASIBLE else "bad"


def status_mark(status: Status) -> Markup:
    """A disk with a tick, a dash or a cross: color is not the only sign."""
    path = ROMAN.get(status.value, CROSS)
    strokes = {"fill": "none", "stroke": "currentColor", "stroke_width": "2.6", "stroke_linecap": "round"}
    return element(
        "svg",
        element("circle", cx=17, cy=17, r=15, fill="none", stroke="currentColor", stroke_width="2.2"),
        element("path", d=path, stroke_linejoin="round", **strokes),
        viewBox="0 0 34 34",
        class_=tone_of(status),
        aria_hidden="true",
    )


def verdict_counts(s: Solution) -> str:
    """`3 of 3 constraints hold; on the hold-out 2 of 3 hold, 1 undecided`."""
    if not s.names:
        return "no constraints"
    broken = sum(float(s.record.violations.get(name, 0.0)) > s.record.tolerance for name in s.names)
    text = f"{len(s.names) - broken} of {len(s.names)} met on the training data"
    if s.holdout is None:
        return text
    words = [s[name].verdict for name in s.names if s[name].holdout is not None]
    listed = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return f"{text}; hold-out: {listed}"


def header(s: Solution) -> Markup:
    """The status in one word, what it means, and the numbers that matter most."""
    p = s.provenance
    eyebrow = " · ".join(
        part for part in ("constrain report", p.problem_class, p.solver, f"{p.seconds:.2f} s") if part
    )
    word, _, meaning = status_text(s).partition(": ")
    return element(
        "header",
        element("p", eyebrow, class_="eyebrow"),
        element(
            "div",
            status_mark(s.status),
            element("h1", word.replace("_", " ").capitalize()),
            class_=f"verdict {tone_of(s.status)}",
        ),
        element("p", meaning[:1].upper() + meaning[1:] + ".", class_="meaning"),
        element("dl", joined(*_facts(s)), class_="facts"),
    )


def fact(term: str, value: str, note: str = "", identity: str | None = None) -> Markup:
    """A number with its name above and a note below."""
    small = element("small", note) if note else None
    return element("div", element("dt", term), element("dd", element("span", value, id=identity), small))


def _facts(s: Solution) -> list[Markup]:
    found: list[Markup] = []
    if s.sense != "find":
        cost = s.relaxation_cost
        note = f"with {number(cost)} for relaxing" if cost else ""
        if s.bound is not None:
            note = f"proven bound {number(s.bound, 6)}"
        value = number(s.objective, 6)
        if not math.isfinite(s.objective):
            value, _, note = objective_text(s).partition(": ")
        found.append(fact(f"objective ({s.sense})", value, note))
    if s.holdout is not None and s.sense != "find":
        half = (s.holdout.upper - s.holdout.lower) / 2
        note = "" if math.isnan(half) else f"± {number(half)} (95 %)"
        found.append(fact("hold-out objective", number(s.holdout.objective), note))
    if s.names:
        met, _, other = verdict_counts(s).partition(" on the training data")
        found.append(fact("constraints", met, other.removeprefix("; ")))
        worst = s.record.worst if s.record.feasibility > 0 else ""
        found.append(fact("largest violation", short(s.record.feasibility), worst))
    if not meaningless(s):
        found.append(fact("stationarity", short(s.record.stationarity_scaled), "relative to the forces"))
    if s.warnings:
        codes = ", ".join(dict.fromkeys(w.code for w in s.warnings))
        found.append(fact("warnings", str(len(s.warnings)), codes))
    return found


# ----------------------------------------------------------------------------------------- mathematics
def mathematics_section(s: Solution) -> Markup | None:
    """The problem as it was written, by name."""
    lines = _relations(s.provenance.latex)
    if not lines and s.live is not None:
        text = str(s.live.problem)
        return section("Problem", element("pre", text))
    if not lines:
        return section("Problem", element("pre", s.provenance.source)) if s.provenance.source else None
    items = [
        element("dt", s.sense, class_="word"),
        element("dd", mathml(lines[0]) if lines[0].strip() else ""),
    ]
    if s.names:
        items += [element("dt", "subject to", class_="word"), element("dd", "")]
    for name, latex in zip(s.names, lines[1:], strict=False):
        items += [element("dt", name), element("dd", mathml(latex))]
    return section("Problem", element("dl", joined(*items), class_="mathematics"))


def _relations(latex: str) -> list[str]:
    """The objective and the constraints of `problem_latex`, without their names."""
    body = latex.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}")
    lines = [line.partition("& ")[2] for line in body.split(" \\\\\n")] if body else []
    return [line if k == 0 else line.partition(r":\; ")[2] for k, line in enumerate(lines)]


# ----------------------------------------------------------------------------------------- constraints
def constraints_section(s: Solution) -> Markup | None:
    """The table, with a picture of each interval against its bound."""
    if not s.names:
        return None
    notes = [*uncertified_lines(s), *row_lines(s)]
    if at_risk := at_risk_text(s):
        notes.append(at_risk)
    listed = [element("li", text) for text in notes]
    return section(
        "Constraints",
        constraint_table(s),
        element("ul", joined(*listed), class_="notes quiet") if listed else None,
    )


def charts_section(s: Solution) -> Markup | None:
    """Objective, violations and multipliers over the steps of a run."""
    drawn = history_charts(s)
    return section("Course of the run", element("div", joined(*drawn), class_="charts")) if drawn else None


# ------------------------------------------------------------------------------------------------ KKT
def kkt_section(s: Solution) -> Markup:
    """The optimality conditions, each residual against the tolerance."""
    k = s.record
    few = meaningless(s)
    rows = [_residual(name, value, k.tolerance) for name, value in _residuals(k) if not few or name in FIRST]
    rows += [
        element("div", element("dt", name), element("dd", text, class_="wide"))
        for name, text in ([] if few else _words(k))
    ]
    return section(
        "Optimality conditions",
        element("dl", joined(*rows), class_="panel"),
        element(
            "p",
            f"The line in a scale from 1e-16 to 1e2 is the tolerance, {k.tolerance:.0e}. Computed on all "
            "rows in float64, with exact rates, whatever the solver reports."
            + ("" if k.noise is None else f" On batches: {k.noise}."),
            class_="caption",
        ),
    )


def meaningless(s: Solution) -> bool:
    """Whether all conditions but feasibility need an optimum, which the problem does not have."""
    return s.status is Status.INFEASIBLE or math.isinf(s.objective)


FIRST = ("Feasibility, scaled",)
"""The conditions that any point has."""


def _residuals(k: KKT) -> list[tuple[str, float]]:
    return [
        ("Stationarity, scaled", k.stationarity_scaled),
        ("Feasibility, scaled", k.feasibility_scaled),
        ("Dual feasibility", max(0.0, -k.dual_feasibility)),
        ("Complementarity, scaled", k.complementarity_scaled),
        (f"Gap, scaled ({k.gap_kind})", k.gap_scaled),
    ]


def _residual(name: str, value: float, tolerance: float) -> Markup:
    said = f"{name} {short(value)}, tolerance {short(tolerance)}"
    return element(
        "div",
        element("dt", name),
        element("dd", short(value), class_="quiet" if value <= tolerance else "open"),
        element("dd", gauge(value, tolerance, said)),
    )


def _words(k: KKT) -> list[tuple[str, str]]:
    """What is said in words or by a single number."""
    found: list[tuple[str, str]] = [("Force balance", number(k.force_balance, 4) or NO_SHARE)]
    if k.active:
        rank = f"rank {k.rank} of {k.active} active"
        found.append(
            ("Active gradients", rank if k.rank == k.active else f"{rank}: multipliers are not unique")
        )
    if k.qualified is not None:
        found.append(("Qualification", "holds" if k.qualified else "fails: multipliers need not be bounded"))
    if k.fritz_john:
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in list(k.fritz_john.items())[:8])
        found.append(("Fritz John", f"balanced without the objective, no multipliers exist: {weights}"))
    if k.noise is not None:
        seen = short(k.noise.norm) if k.noise.distinguishable else "not told from 0"
        found.append(("|∇L| on batches", seen))
    origin = {"given": "the solver's", "best fit": "best fit", "none": "none"}[k.origin]
    apart = "" if math.isnan(k.fit_distance) else f"; best fit differs by {short(k.fit_distance)}"
    found.append(("Multipliers", origin + apart))
    if not math.isnan(k.strict_complementarity):
        found.append(("Strict complementarity", short(k.strict_complementarity)))
    if k.second_order:
        found.append(("Second order", k.second_order))
    if k.kinks:
        found.append(("Kinks", f"{k.kinks}; slopes there balance best"))
    if k.jumps:
        found.append(("Jumps", f"{k.jumps}; a lower piece begins next to the point"))
    if k.nonsmooth:
        found.append(("Nonsmooth point", k.nonsmooth))
    if k.acting and not k.stationary:
        found.append(("Modes", f"gradients are of evaluation mode; training steps had {k.acting}"))
    if k.surrogate:
        found.append(("Gradients of rates", "those of surrogates"))
    if k.vanishing:
        found.append(("Vanishing gradients", ", ".join(k.vanishing)))
    return found


# ---------------------------------------------------------------------------------- warnings and steps
def warnings_section(s: Solution) -> Markup | None:
    """What a reader of the numbers must know, with stable codes."""
    if not s.warnings:
        return None
    items = [element("li", element("b", f"{w.code} {w.name}"), w.message) for w in s.warnings]
    return section("Warnings", element("ul", joined(*items), class_="warnings"))


def steps_section(s: Solution) -> Markup | None:
    """Calls that tell more."""
    items = [element("li", element("code", step)) for step in next_steps(s)]
    return section("Next steps", element("ul", joined(*items), class_="steps")) if items else None


# ----------------------------------------------------------------------------------------- provenance
def provenance_section(s: Solution) -> Markup:
    """Versions, options, seed, and the fingerprints of the data."""
    p = s.provenance
    rows: list[tuple[str, str]] = [
        ("solver", p.solver),
        ("route", p.route),
        ("seed", "" if p.seed is None else str(p.seed)),
        ("time", f"{p.seconds:.3f} s, {p.iterations} iterations" if p.iterations else f"{p.seconds:.3f} s"),
        ("options", ", ".join(f"{key}={value}" for key, value in p.options.items())),
        ("parameters", ", ".join(f"{key} = {_brief(value)}" for key, value in p.parameters.items())),
        *(
            (f"data {name}", f"{found['rows']} rows, sha256 {found['sha256']}…")
            for name, found in p.data.items()
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in p.versions.items())),
    ]
    if s.value_at_risk is not None and s.sense != "find":
        rows.insert(2, ("objective", plus_minus(s.objective, *s.train.interval)))
    listed = [joined(element("dt", term), element("dd", text)) for term, text in rows if text]
    source = element("details", element("summary", "The problem as Python"), element("pre", p.source))
    spec = _spec(s)
    stored = (
        element("details", element("summary", "The problem as JSON"), element("pre", spec)) if spec else None
    )
    return section(
        "Provenance",
        element("dl", joined(*listed), class_="provenance"),
        source if p.source else None,
        stored,
    )


def _spec(s: Solution) -> str:
    """The structure of the problem as JSON, where the problem is at hand and of a size to be read."""
    if s.live is None:
        return ""
    text = json.dumps(s.live.problem.to_dict(), ensure_ascii=False)
    return text if len(text) <= 20_000 else ""


def _brief(value: Any) -> str:
    numbers = np.ravel(np.asarray(value, dtype=np.float64))
    shown = ", ".join(f"{x:.6g}" for x in numbers[:4].tolist())
    return shown if numbers.size == 1 else f"[{shown}{', …' if numbers.size > 4 else ''}]"
