"""`problem.explain()`: what each term is and why, which routes are open, and why the others are not."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from constrain._lazy import attribute, language_printing
from constrain.diagnostics.alive import rebind
from constrain.driver.blocks import Block, blocks_of, text_of
from constrain.driver.formulas import formula_of
from constrain.driver.installed import installed_routes
from constrain.driver.options import ALIASES, check_options, check_parameters
from constrain.driver.routes import BUILT_IN, EXACT, Route, asks_otherwise, choose, routes
from constrain.driver.setup import lowered
from constrain.errors import ModelingError, RouteError
from constrain.language.data import suggest
from constrain.lowering.classify import classify
from constrain.runtime.estimates import ESTIMATORS, estimators
from constrain.runtime.modes import acting_words, noted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constrain.language.problem import Problem
    from constrain.lowering.classify import Facts
    from constrain.lowering.program import Program

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True)
class Explanation:
    """What `explain()` returns; prints as text.

    Attributes:
        problem: the problem in mathematics.
        facts: what the analysis certifies, per term, with reasons.
        routes: every method's answer.
        method: what `method="auto"` runs, None when nothing can.
        reason: why.
        program: the moment form.
    """

    problem: str
    facts: Facts
    routes: tuple[Route, ...]
    method: str | None
    reason: str
    program: Program

    def __str__(self) -> str:
        blocks = [
            self.problem,
            self._sizes(),
            self._terms(),
            self._rewrites(),
            self._estimates(),
            self._routes(),
        ]
        return "\n\n".join(block for block in blocks if block)

    def _sizes(self) -> str:
        program = self.program
        rows = ", ".join(f"{d.name} {len(d):,} rows" for d in program.populations) or "no data"
        decisions = [
            f"{s.name}{list(s.shape) if s.shape else ''}"
            for s in program.variables
            if s not in program.auxiliary
        ]
        for model in program.models:
            count = sum(int(p.numel()) for p in model.module.parameters() if p.requires_grad)
            decisions.append(
                f"{model.name} (frozen)" if model.frozen else f"{model.name} ({count:,} parameters)"
            )
        return (
            f"data       {rows}\n"
            f"decisions  {', '.join(decisions)}\n"
            f"moments    {len(program.moments)} averages feed {len(program.parts)} one-sided constraint parts"
        )

    def _terms(self) -> str:
        lines = [f"class      {self.facts.certificate}"]
        seen: set[tuple[str, ...]] = set()
        for term in self.facts.terms:
            first, *reasons = term.lines()
            known = tuple(reasons) in seen and bool(reasons)
            lines.append(f"  {first}{': the same reason' if known else ''}")
            if not known:
                lines += [f"  {line}" for line in reasons]
            seen.add(tuple(reasons))
        return "\n".join(lines)

    def _rewrites(self) -> str:
        steps = dict.fromkeys(
            f"  {s.target}: {s.formula}{'' if s.exact else '  (approximate)'}" for s in self.program.trace
        )
        return "\n".join(["rewritten", *steps]) if steps else ""

    def _estimates(self) -> str:
        """How minibatches estimate the terms, where the method of `auto` takes minibatches."""
        if self.method != "lagrangian":
            return ""
        groups: dict[str, list[str]] = {}
        for key, kind in estimators(self.program):
            groups.setdefault(ESTIMATORS[kind], []).append(key)
        rows = [part.key for part in self.program.parts if part.rows is not None]
        if rows:
            groups["the rows of the batch, each with its own multiplier"] = rows
        lines = [f"  {', '.join(keys)}: {words}" for words, keys in groups.items()]
        conditions = sum(m.given is not None or bool(m.by) for m in self.program.moments)
        if conditions:
            lines.append(
                f"  {conditions} of {len(self.program.moments)} averages have a condition or groups: "
                "weighted by their shares of the whole sample"
            )
        streams = [data for data in self.program.populations if data.streamed]
        for data in streams:
            order = "along a random permutation" if data.positions else "in the order of its loader"
            lines.append(f"  batches of {data.name} are read {order}: they are not stratified by its groups")
        acting = noted(acting_words(self.program.models))
        lines += [f"  {acting}"] if acting else []
        return "\n".join(["estimates", *lines])

    def _routes(self) -> str:
        lines = ["routes"]
        for route in self.routes:
            mark = "->" if route.method == self.method else "  "
            state = "open  " if route.open else "closed"
            lines.append(f"  {mark} {route.method:<10} {state} {route.reason}")
        if self.method is None:
            lines.append(f"  no route: {self.reason}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "problem": self.problem,
            "class": self.facts.problem_class,
            "convex": self.facts.convex,
            "certificate": self.facts.certificate,
            "terms": [
                {"key": t.key, "needs": t.required, "found": t.fact.curvature, "ok": t.ok, "lines": t.lines()}
                for t in self.facts.terms
            ],
            "rewrites": [
                {"rule": s.rule, "target": s.target, "formula": s.formula, "exact": s.exact}
                for s in self.program.trace
            ],
            "estimators": dict(estimators(self.program)),
            "routes": [{"method": r.method, "open": r.open, "reason": r.reason} for r in self.routes],
            "method": self.method,
            "reason": self.reason,
        }


def explain(problem: Problem, **options: Any) -> Explanation:
    """Analyzes a problem without solving it.

    Args:
        problem: what to explain.
        options: as in `solve`. Some change the choice of `method="auto"`, such as `epochs=`, and `data=`
            replaces the samples; the others are checked and have no effect here.

    Raises:
        ModelingError: E141 for an option that `solve` does not have or a value that it refuses, E127 for an
            unknown parameter, and others about the problem.
    """
    _check_named(options)
    check_options(options)
    program = lowered(problem, options.get("data"))
    check_parameters(program, options.get("params"))
    facts = classify(program)
    answers = routes(program, facts)
    form = formula_of(program, options.get("data"), options.get("params"))
    if not isinstance(form, str):
        answers = (Route("closed", True, form.reason), *answers)
    try:
        if isinstance(form, str) or asks_otherwise(options):
            method, reason = choose(program, facts, options, answers)
        else:
            method, reason = "closed", form.reason
    except RouteError as error:
        method, reason = None, str(error).splitlines()[0]
    apart = [] if method == "closed" else _blocks(problem, program, method, options)
    if apart:
        method, reason = "blocks", text_of(apart)
        answers = (Route("blocks", True, reason), *answers)
    text = str(language_printing().problem_text(problem))
    answers += installed_routes(program, facts)
    return Explanation(text, facts, answers, method, reason, program)


def _blocks(
    problem: Problem, program: Program, method: str | None, options: Mapping[str, Any]
) -> list[Block]:
    """The blocks that would be solved apart."""
    general = ("data", "params", "holdout", "start", "seed", "time_limit", "tolerance", "device", "progress")
    asked = {key: value for key, value in options.items() if key not in (*general, "margin")}
    data = options.get("data")
    named = None if data is None else rebind(program, data)
    return blocks_of(problem, method, asked, named, options.get("params"))


def _check_named(options: Mapping[str, Any]) -> None:
    """E141 for an option that neither `solve` nor a method of this package has."""
    general = [x for x in inspect.signature(attribute("constrain.driver.run:solve")).parameters]
    own = [x for x in general if x not in ("problem", "method", "options")]
    known = dict.fromkeys([*own, *EXACT, *(f.name for kind in BUILT_IN.values() for f in fields(kind))])
    for name in options:
        if name == "method":
            fix = 'p.explain(), or solve(method="...")'
            raise ModelingError("E141", "explain() answers for every method and takes none", fix=fix)
        if name not in known and name not in ALIASES:
            hint = suggest(name, known)
            raise ModelingError(
                "E141",
                f"explain() has no option {name!r}{hint}",
                fix=f"one of {', '.join(own)}, or an option of a method",
            )
