"""What every route needs first: device, floating type, decisions and an evaluator with the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from constrain._lazy import language_printing
from constrain.diagnostics.alive import rebind
from constrain.errors import DataError, ModelingError
from constrain.language import nodes as n
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.families import Family
from constrain.lowering.logits import warn_of_probabilities
from constrain.lowering.lower import EPIGRAPH, lower
from constrain.lowering.reach import refuse_unreachable
from constrain.lowering.relaxation import check_weights
from constrain.lowering.supports import warn_of_steps
from constrain.lowering.tails import check_levels
from constrain.runtime.binding import as_array, parameter_values
from constrain.runtime.checks import check_labels, check_left_out, check_rows
from constrain.runtime.constants import Constants
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator
from constrain.runtime.flat import check_derivatives
from constrain.runtime.largest import bound_of
from constrain.runtime.pinned import pin_entries

if TYPE_CHECKING:
    from constrain.language.data import Data
    from constrain.language.problem import Problem
    from constrain.lowering.program import Program

__all__ = ["Setup", "floating_type", "lowered", "place", "prepare", "refuse_infinite", "taken_apart"]


@dataclass
class Setup:
    """A program with decisions and data on a device."""

    program: Program
    decisions: Decisions
    evaluator: Evaluator

    def holdout(self, data: Data | Mapping[str, Data] | None) -> Evaluator | None:
        """An evaluator of the same program and decisions on other data."""
        if data is None:
            return None
        return Evaluator(
            self.program,
            self.decisions,
            dtype=self.evaluator.dtype,
            data=rebind(self.program, data),
            params=self.evaluator.params,
            reference=self.evaluator,
        )


def lowered(problem: Problem, data: Data | Mapping[str, Data] | None = None) -> Program:
    """The moment form of a problem, of which these samples replace its own.

    That of a problem over `Variable`s alone is kept with it, which is immutable: nothing in it changes by a
    solve, as thresholds of statistics do.

    Raises:
        ModelingError: those of `lower`, and E146.
    """
    kept: Program | None = vars(problem).get("_lowered")
    program = lower(problem) if kept is None else kept
    if not (program.populations or program.models or program.auxiliary or program.tails):
        vars(problem)["_lowered"] = program
    return program if data is None else lower(problem, data=rebind(program, data))


def taken_apart(program: Program, estimator: Mapping[str, str] | str | None) -> Program:
    """The program without families where `estimator=` names one of their constraints."""
    named = set(estimator) if isinstance(estimator, Mapping) else set[str]()
    members = (key for stack in program.stacks for key in (*(stack.names or ()), *stack.keys))
    return program.apart if named and not named.isdisjoint(members) else program


def place(program: Program, device: Any) -> torch.device:
    """The device to run on: the one asked for (models are moved there), else where the models are.

    Raises:
        ModelingError: E123 when the models live on several devices.
    """
    if device is not None:
        chosen = _device(device)
        for model in program.models:
            model.module.to(chosen)
        return chosen
    found = {t.device: m.name for m in program.models for t in m.module.parameters()}
    if len(found) > 1:
        listed = ", ".join(f"{name} on {where}" for where, name in found.items())
        raise ModelingError(
            "E123", f"the models live on several devices: {listed}", fix='solve(device="cuda")'
        )
    return next(iter(found), torch.device("cpu"))


def _device(name: Any) -> torch.device:
    """A device that is there (E123)."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError):
        raise ModelingError(
            "E123",
            f"there is no device {name!r} here",
            fix='solve(device="cpu"), "cuda" or "mps" where there is one, or left out',
        ) from None
    return device


def floating_type(program: Program) -> torch.dtype:
    """The models' floating type; float64 when there are only variables.

    Raises:
        ModelingError: E123 when the models differ.
    """
    found = {t.dtype: m.name for m in program.models for t in m.module.parameters() if t.is_floating_point()}
    if len(found) > 1:
        listed = ", ".join(f"{name} is {kind}" for kind, name in found.items())
        raise ModelingError(
            "E123", f"the models differ in floating type: {listed}", fix="module.to(torch.float32)"
        )
    return next(iter(found), torch.float64)


def prepare(
    program: Program,
    *,
    device: torch.device,
    dtype: torch.dtype,
    data: Data | Mapping[str, Data] | None = None,
    params: Mapping[str, Any] | None = None,
    check: bool = True,
    reach: bool = False,
) -> Setup:
    """Decisions at their start and an evaluator with the training data.

    Args:
        program: the moment form.
        device: where to run.
        dtype: floating type of decisions and data.
        data: replaces the samples of the problem.
        params: values of parameters by name.
        check: refuse what is not finite, or has no derivative, where a solve starts.
        reach: refuse what cannot hold whatever the decisions are, before anything runs.

    Raises:
        DataError: E124 and others about the data.
        ModelingError: E112, E122, E127, E138, E157, E172, E173.
    """
    replaced = None if data is None else rebind(program, data)
    values = parameter_values(program.parameters, params)
    check_weights(program, values)
    check_levels(program, values)
    check_labels(program, replaced)
    if reach:
        refuse_unreachable(program, replaced, params)
    warn_of_steps(program)
    warn_of_probabilities(program)
    _refuse_constants(program, replaced, params)
    decisions = Decisions(program, device, dtype)
    evaluator = Evaluator(program, decisions, dtype=dtype, data=replaced, params=params)
    pin_entries(evaluator)
    check_left_out(evaluator)
    if reach:
        _refuse_missed(evaluator)
    check_rows(evaluator, start=check)
    if check:
        check_derivatives(evaluator)
        _start_epigraph(program, decisions, evaluator)
    return Setup(program, decisions, evaluator)


def _refuse_constants(
    program: Program, data: Mapping[str, Data] | None, params: Mapping[str, Any] | None
) -> None:
    """E138 for a correlation with something of the data alone that has one value: it is 0 / 0."""
    roots = [
        factor
        for node in program.nodes
        if isinstance(node, n.Apply) and node.atom == "div"
        for factor in n.children(node.args[1])
        if isinstance(factor, n.Apply) and factor.atom == "deviation" and not depends_on_decisions(factor)
    ]
    samples = {p: (data or {}).get(p.name, p) for p in program.populations}
    if not roots or any(sample.streamed for sample in samples.values()):
        return
    constants = Constants(samples, parameter_values(program.parameters, params), tails=program.tails)
    for node in roots:
        values = constants.array(node)
        rounding = 1e-7 * np.sqrt(np.abs(constants.array(node.args[0])).max(initial=1e-12))
        if values.min() <= rounding:
            squares = node.args[0]
            inside = n.children(n.children(squares)[0]) if isinstance(squares, n.Moment) else (squares,)
            what = language_printing().text(n.children(inside[0])[0], limit=80)  # of mean[(g - center)^2]
            raise DataError(
                "E138",
                f"cn.Corr with {what}, which has one value on all rows (of some group): its standard "
                "deviation is 0, and the correlation divides by it",
                at=node.loc,
                fix="a column that varies (in every group); or cn.Cov, which is 0 here",
            )


def _refuse_missed(evaluator: Evaluator) -> None:
    """E172 for a constraint without decisions that does not hold: no training changes that."""
    program = evaluator.program
    fixed: list[str] = []
    for own in (*program.shared.singles, *program.shared.families):
        form = own.form if isinstance(own, Family) else own
        moving = any(depends_on_decisions(side) for side in (form.lhs, *form.rhs))
        if form.rows is None and form.relaxation is None and not moving:
            fixed += own.names if isinstance(own, Family) else (form.name,)
    if not fixed or evaluator.device.type == "meta":
        return
    residuals = evaluator.full("exact").residuals
    room = 1e3 * torch.finfo(evaluator.dtype).eps
    for part, residual in zip(program.parts, residuals, strict=True):
        if part.constraint not in fixed or residual is None:
            continue
        worst = float((residual.abs() if part.kind == "==" else residual).max())
        if worst > room * (1 + worst):
            relation = next(form.relation for form in program.forms if form.name == part.constraint)
            raise ModelingError(
                "E172",
                f"the constraint {part.constraint!r}, {language_printing().text(relation, limit=80)}, cannot "
                f"hold: no decision is in it, and it is missed by {worst:.3g}",
                at=relation.loc,
                fix="an expression of a model or variable on one side, or a bound that the data meets",
            )


def refuse_infinite(evaluator: Evaluator) -> NoReturn:
    """E138 for a term that is not finite on some row, whatever the decisions are; it names the term."""
    program = evaluator.program
    for job in evaluator.jobs:
        nodes = [program.moments[i].integrand for i in job.moments]
        nodes += [program.per_row[i].residual for i in job.parts]
        bad = [0] * len(nodes)
        with torch.no_grad():
            for rows in evaluator.populations[job.data].chunks(evaluator.chunk):
                for k, value in enumerate(evaluator.rows(job, rows, "exact")[: len(nodes)]):
                    bad[k] += int((~torch.isfinite(value.reshape(rows.count, -1))).any(1).sum())
        for node, count in zip(nodes, bad, strict=True):
            if count:
                raise DataError(
                    "E138",
                    f"{language_printing().text(node, limit=80)} is not finite on {count} rows",
                    at=node.loc,
                    fix="a function that is defined on all rows: torch.log(cn.where(D.x > 0, D.x, 1.0))",
                )
    for node in program.nodes:
        if isinstance(node, n.Array) and not isinstance(node.symbol.value, str):
            bad = ~np.isfinite(as_array(node.symbol.value).astype(float))
            if bad.any():
                count, shown = int(bad.sum()), language_printing().text(node, limit=40)
                text = f"the array {shown} has {count} infinite or NaN value{'' if count == 1 else 's'}"
                raise DataError("E138", text, at=node.loc, fix="finite numbers")
    for node in program.nodes:
        if isinstance(node, n.Apply) and all(isinstance(child, n.Constant) for child in n.children(node)):
            shown = language_printing().text(node, limit=40)
            raise DataError("E138", f"{shown} is infinite or NaN", at=node.loc, fix="a finite number")
    raise DataError("E138", "a constant of the problem is infinite or NaN", fix="finite numbers")


def _start_epigraph(program: Program, decisions: Decisions, evaluator: Evaluator) -> None:
    """The bound variable of a min-max objective starts at the largest of its terms."""
    if all(form.name != EPIGRAPH for form in program.shared.singles):
        return
    for form, sides in zip(program.forms, evaluator.sides(), strict=True):
        if form.name == EPIGRAPH:
            with torch.no_grad():
                bound_of(form, decisions).copy_(sides[0].reshape(()))
