"""Views of a solution's records: aligned text, Markdown, JSON. Nothing is computed here."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from constrain.diagnostics.listing import others_line, telling
from constrain.diagnostics.samples import (
    SHOWN,
    WIDTH,
    evaluation_text,
    margin_lines,
    mixture_markdown,
    mixture_text,
    run_error_line,
)
from constrain.diagnostics.table import (
    aligned,
    cut,
    fitted,
    limit_text,
    markdown,
    number,
    plus_minus,
    short,
    wrapped,
)
from constrain.solution.records import Status
from constrain.solution.storage import indent_of, plain_dict, plain_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.solution import KKT, ConstraintResult, Estimate, Solution

__all__ = [
    "NO_SHARE",
    "at_risk_text",
    "constraint_rows",
    "evaluation_text",
    "finite",
    "json_of",
    "json_report",
    "kkt_text",
    "listed",
    "markdown_report",
    "next_steps",
    "objective_text",
    "provenance_lines",
    "report_table",
    "row_lines",
    "share_text",
    "status_text",
    "text_report",
    "uncertified_lines",
]

NO_SHARE = "not defined: the pulls do not balance"
"""In place of the share of the objective's pull that constraints balance, where it is outside of [0, 1]."""

JSON_NUMBERS = 10_000
"""Largest array that a JSON report holds; `Solution.to_dict` and `Solution.save` hold all."""


# ------------------------------------------------------------------------------------------ records
def constraint_rows(c: ConstraintResult) -> list[dict[str, Any]]:
    """One plain record per entry: value, bound, slack, violation, hold-out, verdict, multiplier, price."""
    shape = np.shape(c.value)

    def spread(value: Any) -> list[Any]:
        return np.broadcast_to(np.asarray(value), shape).ravel().tolist()

    size = max(1, int(np.prod(shape))) if shape else 1
    double = c.op == "between"
    lower, upper = (c.bound[0], c.bound[1]) if isinstance(c.bound, tuple) else (c.bound, c.bound)
    columns: dict[str, list[Any]] = {
        "constraint": c.labels,
        "value": spread(c.value),
        **(
            {"lower_bound": spread(lower), "upper_bound": spread(upper)}
            if double
            else {"bound": spread(lower)}
        ),
        "slack": spread(c.slack),
        "violation": spread(c.violation),
        "verdict": list(c.train.verdicts) or [c.train.verdict] * size,
    }
    if c.relaxation is not None:
        columns |= {"relaxation": spread(c.relaxation)}
    if c.train.share is None:
        columns |= {"interval_lower": spread(c.train.lower), "interval_upper": spread(c.train.upper)}
    if c.holdout is not None and c.holdout.share is None:
        columns |= {
            "holdout_value": spread(c.holdout.value),
            "holdout_lower": spread(c.holdout.lower),
            "holdout_upper": spread(c.holdout.upper),
            "holdout_verdict": list(c.holdout.verdicts),
        }
    if c.has_duals:
        columns |= {"multiplier": spread(c.multiplier), "shadow_price": spread(c.shadow_price)}
        columns |= {"certified": [not c.uncertified] * size}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


HEADER = (
    *("constraint", "as written", "value", "bound", "relaxed by"),
    *("hold-out", "verdict", "multiplier", "shadow price"),
)


def report_table(s: Solution) -> list[tuple[str, ...]]:
    """The table of constraints as cells, `HEADER` first."""
    rows: list[tuple[str, ...]] = [HEADER]
    for name in telling(s):
        rows += _block(s, s[name])
    return rows


def listed(s: Solution, records: Sequence[dict[str, Any]]) -> list[int]:
    """Places of the entries of a constraint, those of large blocks with the worst first."""
    order = list(range(len(records)))
    if len(records) > SHOWN:
        multipliers = [abs(r.get("multiplier", 0.0)) for r in records]
        broken = [v if v > s.record.tolerance else 0.0 for v in (r["violation"] for r in records)]
        order.sort(key=lambda k: (-broken[k], -multipliers[k], records[k]["slack"]))
    return order


def _block(s: Solution, c: ConstraintResult) -> list[tuple[str, ...]]:
    if c.rows is not None:
        return [_summary(s, c)]
    records = constraint_rows(c)
    order = listed(s, records)
    rows: list[tuple[str, ...]] = []
    multiplicity = set(s.record.dependent)
    for position, k in enumerate(order[:SHOWN]):
        record = records[k]
        bound = (
            limit_text(record["bound"])
            if "bound" in record
            else (f"{limit_text(record['lower_bound'])} … {limit_text(record['upper_bound'])}")
        )
        held = "holdout_value" in record
        shown = (
            plus_minus(record["holdout_value"], record["holdout_lower"], record["holdout_upper"])
            if held
            else ""
        )
        mark = " (?)" if c.uncertified else " (!)" if record["constraint"] in multiplicity else ""
        rows.append(
            (
                cut(record["constraint"], 26),
                c.text if position == 0 else "",
                number(record["value"]),
                bound,
                _relaxed_by(record.get("relaxation", 0.0), s.record.tolerance),
                shown,
                record["holdout_verdict"] if held else record["verdict"],
                number(record["multiplier"]) + mark if "multiplier" in record else "-",
                number(record["shadow_price"]) + mark if "shadow_price" in record else "-",
            )
        )
    if len(records) > SHOWN:
        rows.append((f"  ... and {len(records) - SHOWN} more", *("" for _ in HEADER[1:])))
    return rows


def _relaxed_by(size: float, tolerance: float) -> str:
    return number(size) if size > tolerance else ""


def share_text(estimate: Estimate) -> str:
    """`3.1% off`, or for a relaxed constraint `3.1% relaxed`."""
    share = estimate.share or 0.0
    if share == 0.0 and estimate.relaxed is not None:
        return f"{100 * estimate.relaxed:.3g}% relaxed"
    return f"{100 * share:.3g}% off"


def _summary(s: Solution, c: ConstraintResult) -> tuple[str, ...]:
    """One line for a constraint per row: shares of violated or relaxed rows, largest multiplier."""
    mark = " (?)" if c.uncertified else ""
    held = "" if c.holdout is None else share_text(c.holdout)
    most = float(np.max(np.asarray(c.relaxation), initial=0.0)) if c.relaxation is not None else 0.0
    bounds = np.zeros(0) if isinstance(c.bound, tuple) else np.ravel(c.bound)
    bound = limit_text(float(bounds[0])) if bounds.size and np.ptp(bounds) == 0 else ""
    return (
        cut(f"{c.name} ({np.shape(c.value)[0]} rows)", 26),
        c.text,
        share_text(c.train),
        bound,
        f"max {number(most)}" if most > s.record.tolerance else "",
        held,
        (c.holdout or c.train).verdict,
        f"max {number(float(np.max(np.abs(c.multiplier), initial=0.0)))}{mark}" if c.has_duals else "-",
        f"sum {number(float(np.sum(c.shadow_price)))}{mark}" if c.has_duals else "-",
    )


# ------------------------------------------------------------------------------------------ lines
def _kkt_lines(s: Solution) -> list[str]:
    k = s.record
    if s.status is Status.INFEASIBLE:
        where = f" ({k.worst})" if k.worst and k.feasibility > 0 else ""
        return [f"feasibility {short(k.feasibility)}{where}; other conditions need a feasible point"]
    if math.isinf(s.objective):
        return [f"feasibility {short(k.feasibility)}; other conditions need an optimum"]
    first = (
        f"stationarity {short(k.stationarity)} (scaled {short(k.stationarity_scaled)})  "
        f"feasibility {short(k.feasibility)}  complementarity {short(k.complementarity)}"
    )
    dual = "ok" if k.dual_feasibility >= -k.tolerance else short(k.dual_feasibility)
    second = f"gap {short(k.gap)} ({k.gap_kind})  rank {k.rank} of {k.active}"
    second += f"  dual feasibility {dual}  force balance {number(k.force_balance, 3) or NO_SHARE}"
    if k.fritz_john:
        second += "  multipliers: none"
    elif k.origin == "best fit":
        second += "  multipliers: best fit"
    if k.nonsmooth:
        second += "  nonsmooth point"
    if k.jumps:
        second += "  at a jump"
    if k.surrogate:
        second += "  gradients of rates: surrogates"
    if k.acting and not k.stationary:
        second += f"  training steps had {k.acting}"
    return [first, second, *([] if k.noise is None else [f"on batches: {k.noise}"])]


def status_text(s: Solution) -> str:
    """The status, what it means, and what the hold-out and relaxed constraints add."""
    found = s.sense == "find" and s.status is Status.OPTIMAL and all(s[n].relaxation is None for n in s.names)
    meaning = "every constraint holds, and no more is asked for" if found else s.status.meaning
    if math.isinf(s.objective):
        meaning = "the problem is unbounded; values are those of the point at which the method ended"
    if s.status is Status.FEASIBLE and s.record.surrogate:
        meaning = "the constraints hold; gradients of rates are those of surrogates and certify nothing"
    words: list[str] = [f"{s.status.value}: {meaning}"]
    held = [s[name] for name in s.names if s[name].holdout is not None]
    open_ones = [c for c in held if c.verdict in ("violated", "undecided", "not judged")]
    if open_ones:
        words.append(f"on the hold-out {len(open_ones)} of {len(held)} constraints not confirmed")
    told = math.isinf(s.objective) or s.message in s.status.meaning or "proved that no point" in s.message
    if s.message and not told and (not s.status.solved or s.record.fritz_john):
        words.append(s.message)
    relaxed = _relaxed_words(s)
    if relaxed:
        words.append(f"relaxed: {', '.join(relaxed)}")
    return "; ".join(words)


def _relaxed_words(s: Solution) -> list[str]:
    """`parity by 0.013`, `fit in 12% of its rows by up to 1.3`, for constraints that gave way."""
    words: list[str] = []
    for name in s.names:
        c = s[name]
        sizes = np.zeros(0) if c.relaxation is None else np.ravel(np.asarray(c.relaxation))
        most = float(np.max(sizes, initial=0.0))
        if most <= s.record.tolerance:
            continue
        if c.rows is not None:
            words.append(
                f"{name} in {100 * (c.train.relaxed or 0.0):.3g}% of its rows by up to {number(most)}"
            )
        else:
            words.append(f"{name} by {'up to ' if sizes.size > 1 else ''}{number(most)}")
    return words


def row_lines(s: Solution) -> list[str]:
    """Per constraint per row its quantiles, worst rows, and how many rows have a multiplier."""
    lines: list[str] = []
    for name in s.names:
        summary = s[name].summary
        if summary is None or not summary.rows:
            continue
        room = ", ".join(f"{100 * share:g}% {number(value, 3)}" for share, value in summary.quantiles.items())
        pairs = zip(summary.worst_rows.tolist(), summary.worst_room.tolist(), strict=True)
        worst = ", ".join(f"{row} ({number(value, 3)})" for row, value in pairs)
        text = f"{name}: least room in rows {worst}; quantiles of the room {room}"
        if summary.support is not None:
            text += f"; {summary.support} rows with a multiplier"
        lines.append(text)
    return lines


def objective_text(s: Solution) -> str:
    """The objective with its hold-out interval and its bound."""
    cost = s.relaxation_cost
    if s.sense == "find":
        return "none (feasibility problem)" + (f", cost of relaxing {number(cost, 6)}" if cost else "")
    if s.status is Status.INFEASIBLE and math.isnan(s.objective):
        return "none: no point satisfies all constraints; values are those of the last point"
    if math.isinf(s.objective):
        return f"none: it {'rises' if s.objective > 0 else 'falls'} without bound on the feasible set"
    shown = f"{s.sense} {number(s.objective, 6)}"
    if cost:
        shown += f" ({'after' if s.sense == 'maximize' else 'with'} {number(cost, 6)} for relaxing)"
    if s.holdout is not None:
        shown += f"   hold-out {plus_minus(s.holdout.objective, *s.holdout.interval)}"
    if s.bound is not None:
        shown += f"   proven bound {number(s.bound, 6)}"
    return shown


def next_steps(s: Solution) -> list[str]:
    """Calls that tell more about this solution."""
    steps: list[str] = []
    if s.status in (Status.INFEASIBLE, Status.LIKELY_INFEASIBLE):
        steps.append("solution.infeasibility()")
    if math.isinf(s.objective):
        steps.append("problem.check()")
    if s.record.dependent:
        steps.append("solution.kkt().dependent")
    worst = s.record.worst if s.record.worst in s.names else ""
    if not s.status.solved and worst and np.size(s[worst].value) > 1:
        steps.append(f'solution["{worst}"].worst()')
    if s.status.solved and s.names and not any(s[name].has_duals for name in s.names):
        steps.append("solution.kkt().fit")
    if s.tightening is None and any(w.code in ("C311", "C312") for w in s.warnings):
        steps.append('problem.solve(margin="auto")')
    if s.mixture is not None:
        steps.append("print(solution.mixture)")
    if s.holdout is None and s.train.rows:
        steps.append("solution.evaluate(D_test)")
    steps.append("solution.kkt()")
    if len(s.history) > 1:
        steps.append("solution.history.to_frame()")
    return steps


def provenance_lines(s: Solution) -> list[str]:
    """Solver, problem class, sizes, seed and time."""
    p = s.provenance
    sizes = [f"{name} n={rows}" for name, rows in zip(s.train.data, s.train.rows, strict=True)]
    if s.holdout is not None:
        sizes += [
            f"hold-out {name} n={rows}" for name, rows in zip(s.holdout.data, s.holdout.rows, strict=True)
        ]
    parts = [
        p.solver,
        p.problem_class,
        *sizes,
        "" if p.seed is None else f"seed {p.seed}",
        f"{p.seconds:.2f} s",
    ]
    return [" | ".join(part for part in parts if part)]


def at_risk_text(s: Solution) -> str:
    """The thresholds of CVaRs: the values that only the worst rows exceed."""
    found: list[tuple[str, Any, tuple[Any, ...]]] = []
    if s.value_at_risk is not None:
        found.append(("objective", s.value_at_risk, ()))
    found += [
        (c.name, c.value_at_risk, c.levels)
        for c in map(s.__getitem__, s.names)
        if c.value_at_risk is not None
    ]
    texts: list[str] = []
    for name, value, levels in found:
        several = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
        for own in several:
            entries = np.ravel(np.asarray(own, dtype=np.float64))
            parts = [cast("tuple[Any, ...]", k) if isinstance(k, tuple) else (k,) for k in levels]
            names = [f"{'/'.join(map(str, part))} " for part in parts]
            marks = names if len(names) == len(entries) else [""] * len(entries)
            shown = [
                f"{mark}{number(x)}" for mark, x in zip(marks[:SHOWN], entries[:SHOWN].tolist(), strict=True)
            ]
            rest = f", and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
            texts.append(f"value-at-risk of {name}: {', '.join(shown)}{rest}")
    return "; ".join(texts)


def uncertified_lines(s: Solution) -> list[str]:
    """Why multipliers marked (?) are no prices, and what (!) means."""
    reasons = dict.fromkeys(s[name].uncertified for name in s.names)
    lines = [f"not certified (?): {why}" for why in reasons if why]
    certified = [label for name in s.names if not s[name].uncertified for label in s[name].labels]
    if not set(s.record.dependent).isdisjoint(certified):
        lines.append("not unique (!): gradients of active constraints depend on each other")
    return lines


def text_report(s: Solution) -> str:
    """The report in aligned plain text."""
    lines = wrapped("constrain", provenance_lines(s)[0])
    if s.provenance.route:
        lines += wrapped("route", s.provenance.route)
    lines += wrapped("status", status_text(s))
    lines += wrapped("objective", objective_text(s))
    if s.names:
        lines += aligned(fitted(report_table(s), 1, WIDTH), left=2)
    if others := others_line(s):
        lines += wrapped("others", others)
    for text in row_lines(s):
        lines += wrapped("rows", text)
    if at_risk := at_risk_text(s):
        lines += wrapped("tails", at_risk)
    for text in margin_lines(s):
        lines += wrapped("margin", text)
    lines += mixture_text(s)
    for k, text in enumerate(_kkt_lines(s)):
        lines += wrapped("" if k else "KKT", text)
    for text in uncertified_lines(s):
        lines += wrapped("multipliers", text)
    if errors := run_error_line(s):
        lines += wrapped("run errors", errors)
    for warning in s.warnings:
        lines += wrapped("warning", str(warning))
    lines += wrapped("next steps", "   ".join(next_steps(s)))
    return "\n".join(lines)


def markdown_report(s: Solution) -> str:
    """The report in Markdown."""
    lines = [f"# {s.status.value}", "", f"{status_text(s)}.", ""]
    lines += [f"- objective: {objective_text(s)}", f"- {provenance_lines(s)[0]}"]
    lines += [f"- route: {s.provenance.route}"] if s.provenance.route else []
    if s.names:
        lines += ["", *markdown(report_table(s), left=2)]
    if others := others_line(s):
        lines += ["", f"- {others}"]
    if rows := row_lines(s):
        lines += ["", "## Rows", "", *(f"- {line}" for line in rows)]
    if at_risk := at_risk_text(s):
        lines += ["", f"- {at_risk}"]
    lines += [f"- margin: {text}" for text in margin_lines(s)]
    lines += mixture_markdown(s)
    lines += ["", "## KKT", "", *(f"- {line}" for line in _kkt_lines(s))]
    lines += [f"- multipliers {text}" for text in uncertified_lines(s)]
    lines += [f"- run errors: {errors}"] if (errors := run_error_line(s)) else []
    if s.warnings:
        lines += ["", "## Warnings", "", *(f"- {warning}" for warning in s.warnings)]
    return "\n".join(lines) + "\n"


def finite(value: Any) -> Any:
    """Numbers that JSON lacks as text: `"NaN"`, `"Infinity"`, `"-Infinity"`."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: finite(item) for key, item in cast("dict[str, Any]", value).items()}
    return [finite(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value


def json_of(records: dict[str, Any]) -> str:
    """Records by name as JSON; the arrays of reports, NaN and infinity as text."""
    plain = {name: plain_value(record, JSON_NUMBERS) for name, record in records.items()}
    return json.dumps(finite(plain), indent=1, ensure_ascii=False, allow_nan=False)


def json_report(s: Solution) -> str:
    """The report as JSON; its keys are listed in docs/how-to/report.md."""
    found = finite(plain_dict(s, JSON_NUMBERS))
    return json.dumps(found, indent=indent_of(s), ensure_ascii=False, allow_nan=False)


# ------------------------------------------------------------------------------------ other records
def kkt_text(k: KKT) -> str:
    """The KKT record, one quantity a line."""
    rows: list[tuple[str, str]] = [
        ("stationarity", f"{short(k.stationarity)}, scaled {short(k.stationarity_scaled)}"),
        ("force balance", number(k.force_balance, 4) or NO_SHARE),
        ("feasibility", f"{short(k.feasibility)}" + (f" ({k.worst})" if k.worst else "")),
        ("dual feasibility", short(k.dual_feasibility)),
        ("complementarity", f"{short(k.complementarity)}, scaled {short(k.complementarity_scaled)}"),
        ("gap", f"{short(k.gap)}, scaled {short(k.gap_scaled)} ({k.gap_kind})"),
        ("rank", f"{k.rank} of {k.active} active" + (f", {k.truncated} left out" if k.truncated else "")),
    ]
    if k.singular_values.size:
        rows.append(
            (
                "singular values",
                f"{short(float(k.singular_values[0]))} … {short(float(k.singular_values[-1]))}",
            )
        )
    if k.qualified is False:
        rows.append(("qualification", "fails (Mangasarian-Fromovitz): multipliers need not be bounded"))
    if k.fritz_john:
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in _heaviest(k.fritz_john))
        rows.append(("Fritz John", f"gradients balance without the objective: {weights}"))
    rows.append(("multipliers", _origin(k)))
    if k.noise is not None:
        rows.append(("on batches", str(k.noise)))
    if k.standard_errors:
        rows += [("± standard error", text) for text in _errors(k)]
    if k.no_errors:
        rows.append(("standard errors", f"none: {k.no_errors}"))
    if k.second_order:
        least = "" if math.isnan(k.curvature) else f", least curvature {short(k.curvature)}"
        rows.append(("curvature", f"{k.second_order}{least}"))
    if not math.isnan(k.strict_complementarity):
        rows.append(("strictness", short(k.strict_complementarity)))
    rows += _of_slopes(k)
    lines = [f"{label:<17} {text}" for label, text in rows]
    if len(k.blocks) > 1:
        lines.append("stationarity by decision")
        lines += [
            f"  {cut(name, 40):<40} {short(a)}, scaled {short(b)}" for name, (a, b) in _largest(k.blocks)
        ]
    for warning in k.warnings:
        lines += wrapped("warning", str(warning), indent=18)
    return "\n".join(lines)


def _of_slopes(k: KKT) -> list[tuple[str, str]]:
    """What slopes are where there are several, or where they are not those of the values."""
    rows: list[tuple[str, str]] = []
    if k.kinks:
        rows.append(("kinks", f"{k.kinks}; slopes there are the ones that balance best"))
    if k.jumps:
        rows.append(("jumps", f"{k.jumps}: a piece of cn.where ends here, and the one beyond is lower"))
    if k.nonsmooth:
        rows.append(("nonsmooth point", k.nonsmooth))
    if k.acting and not k.stationary:
        rows.append(("modes", f"gradients are of evaluation mode; training steps had {k.acting}"))
    if k.surrogate:
        rows.append(("surrogates", "gradients are those of the surrogates of rates; values are exact"))
    return rows


def _heaviest(weights: dict[str, float]) -> Sequence[tuple[str, float]]:
    return sorted(weights.items(), key=lambda item: -abs(item[1]))[:SHOWN]


def _largest(blocks: dict[str, tuple[float, float]]) -> Sequence[tuple[str, tuple[float, float]]]:
    return sorted(blocks.items(), key=lambda item: -item[1][0])[:8]


def _errors(k: KKT) -> list[str]:
    """`parity:upper 0.6518 ± 0.0712` for the multipliers that have a standard error; the largest ones."""
    found: list[tuple[float, str]] = []
    for key, errors in k.standard_errors.items():
        values = np.broadcast_to(k.multipliers[key], errors.shape)
        for place in np.argwhere(np.isfinite(errors)):
            at = tuple(place.tolist())
            label = f"{key}[{', '.join(map(str, at))}]" if at else key
            value, error = float(values[at]), float(errors[at])
            found.append((-abs(value), f"{label} {number(value)} ± {number(error)}"))
    return [text for _, text in sorted(found)[:SHOWN]]


def _origin(k: KKT) -> str:
    if k.fritz_john:
        return f"none exist; those that pull no more than the objective leave {short(k.fit_stationarity)}"
    if k.origin != "given":
        return f"{k.origin}; stationarity {short(k.fit_stationarity)}"
    return (
        f"given; best fit differs by {short(k.fit_distance)} (its stationarity {short(k.fit_stationarity)})"
    )
