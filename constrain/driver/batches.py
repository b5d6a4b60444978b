"""Findings about data and batches: small groups, groups that batches lack, noise against bounds, bias."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from constrain._lazy import language_printing
from constrain.diagnostics.names import part_label
from constrain.diagnostics.point import array_of
from constrain.diagnostics.units import residual_spreads
from constrain.driver.findings import Finding, listed
from constrain.driver.linear import linear_form
from constrain.language import nodes as n
from constrain.language.picked import place_of
from constrain.language.types import type_of
from constrain.lowering.lower import EPIGRAPH
from constrain.runtime.estimates import ESTIMATORS, estimator_of
from constrain.solvers.sampling import strata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.point import Point
    from constrain.lowering.program import Program
    from constrain.runtime.binding import Population, Stratum
    from constrain.runtime.evaluator import Evaluator

__all__ = ["Group", "Noise", "absence", "bent", "groups", "noise", "noisy", "rare", "steps", "tiny"]

TINY = 30
"""Rows below which a group is called tiny."""
OFTEN = 0.05
"""Share of batches without a group from which on it is said."""
COARSE = 1e-3
"""Distance of a rate from its bound that training takes for zero."""
CONFIDENT = 1.96


@dataclass(frozen=True)
class Group:
    """A condition, or a level of a group column, and how many rows it has.

    Attributes:
        data: the sample.
        name: `sex=Female`, `y = 1`, or both.
        rows: of the sample.
        expected: of a plain batch, None without batches.
        missing: share of plain batches without any, None without batches.
        terms: the objective and the constraints that average over it.
    """

    data: str
    name: str
    rows: int
    expected: float | None
    missing: float | None
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Noise:
    """Standard errors of a constraint's residual, at the entry that is closest to being violated.

    Attributes:
        constraint: the user's name.
        label: the entry, such as `parity[sex=Female]`.
        residual: its value at the start; positive means violated.
        sample: its standard error on the whole sample; NaN where no sample enters.
        batch: that of a batch; None without batches.
        room: half the width between its lower and upper bound, None when it has one bound only.
    """

    constraint: str
    label: str
    residual: float
    sample: float
    batch: float | None
    room: float | None


# ------------------------------------------------------------------------------------------- groups
def groups(evaluator: Evaluator, batches: Mapping[str, int] | None) -> list[Group]:
    """Every condition and group of the problem with its number of rows, smallest first."""
    found: list[Group] = []
    terms = _terms(evaluator.program)
    for data, population in evaluator.populations.items():
        size = None if batches is None else batches[data.name]
        for (given, by), stratum in population.strata.items():
            if (given is not None or by) and population.sampled:
                found += _groups_of(population, stratum, (given, by), size, terms)
    return sorted(found, key=lambda g: g.rows)


def _groups_of(
    population: Population,
    stratum: Stratum,
    key: tuple[n.Node | None, tuple[str, ...]],
    size: int | None,
    terms: Mapping[_Averaged, list[str]],
) -> list[Group]:
    given, by = key
    condition = "" if given is None else str(language_printing().text(given, limit=60))
    counts = cast("list[float]", stratum.counts.reshape(-1).tolist())
    some = stratum.places is not None
    names = [_level_name(by, level) for level in stratum.levels] if by else [""]
    if some:
        names = [f"{by[0].partition(' in ')[0]} = {level!r}" for level in stratum.levels]
    found: list[Group] = []
    for place, (name, count) in enumerate(zip(names, counts, strict=True)):
        both = " and ".join(filter(None, (name, condition)))
        own = terms.get((population.data.name, given, by, place if some else None), ())
        expected = None if size is None else count * size / population.rows
        missing = None if size is None else absence(int(count), population.rows, size)
        found.append(Group(population.data.name, both, int(count), expected, missing, tuple(own)))
    return found


def _level_name(by: tuple[str, ...], level: Any) -> str:
    values = cast("tuple[Any, ...]", level) if isinstance(level, tuple) else (level,)
    return ", ".join(f"{column}={value}" for column, value in zip(by, values, strict=True))


_Averaged: TypeAlias = tuple[str, n.Node | None, tuple[str, ...], int | None]
"""A sample, a condition, groups, and of listed levels the place of one."""


def _terms(program: Program) -> dict[_Averaged, list[str]]:
    """By what is averaged over, the objective and the constraints in which such an average occurs."""
    found: dict[_Averaged, list[str]] = {}
    known: dict[int, tuple[str, n.Node | None, tuple[str, ...]]] = {}  # by average, which terms share
    roots = [("objective", program.objective), *((p.constraint, p.residual) for p in program.parts)]

    def add(average: n.Moment, place: int | None, term: str) -> None:
        if id(average) not in known:
            known[id(average)] = (average.data.name, average.given, tuple(c.name for c in average.by))
        terms = found.setdefault((*known[id(average)], place), [])
        if not terms or terms[-1] != term:  # terms come one after the other
            terms.append(term)

    for term, root in roots:
        for x in n.postorder(root):
            pick = place_of(x)
            if isinstance(x, n.Moment):
                add(x, None, term)
            elif pick is not None:
                add(*pick, term)
    return {key: list(dict.fromkeys(terms)) for key, terms in found.items()}


def absence(count: int, rows: int, size: int) -> float:
    """Share of batches of `size` out of `rows` rows, without repetition, that have none of `count` rows."""
    if size > rows - count:
        return 0.0
    pairs = ((rows - count, 1), (rows - size, 1), (rows - count - size, -1), (rows, -1))
    return math.exp(sum(sign * math.lgamma(k + 1) for k, sign in pairs))


def tiny(found: Sequence[Group]) -> list[Finding]:
    """W207: groups with so few rows that averages over them say little."""
    result: list[Finding] = []
    by_terms: dict[tuple[str, ...], list[Group]] = {}
    for g in found:
        if 0 < g.rows < TINY:
            by_terms.setdefault(g.terms, []).append(g)
    for terms, small in by_terms.items():
        names = listed((f"{g.name} ({g.rows} rows)" for g in small), 4)
        half = CONFIDENT * 0.5 / math.sqrt(small[0].rows)
        spread_ = CONFIDENT / math.sqrt(small[0].rows)
        message = (
            f"{listed(terms)}: few rows in {names}; over the smallest, a rate is known to ±{half:.2f} and an "
            f"average to ±{spread_:.2f} standard deviations (95 %)"
        )
        fix = "merge small groups, more data, or .relax(cost=...)"
        result.append(Finding("W207", "warning", ", ".join(terms), message, fix))
    return result


def rare(evaluator: Evaluator, found: Sequence[Group], batches: Mapping[str, int] | None) -> list[Finding]:
    """W208: groups that many batches lack; a note where batches are stratified by them."""
    if batches is None:
        return []
    result: list[Finding] = []
    for data, population in evaluator.populations.items():
        size = batches[data.name]
        cells = None if population.endless else strata(population, size)
        absent = [g for g in found if g.data == data.name and (g.missing or 0.0) > OFTEN]
        for terms in dict.fromkeys(g.terms for g in absent):
            own = [g for g in absent if g.terms == terms]
            names = listed((f"{g.name} from {g.missing:.0%}" for g in own), 4)
            message = f"{listed(terms)}: of plain batches of {size}, missing is {names}"
            if cells is not None:
                message += f"; batches are stratified: every one has at least {min(cells.sizes)} of each cell"
                result.append(Finding("W208", "info", ", ".join(terms), message))
                continue
            rows = own[0].rows
            enough = math.ceil(math.log(OFTEN) / math.log1p(-rows / population.rows))
            message += "; a batch without a group leaves its average and its multiplier where they are"
            fix = f"batch={min(enough, population.rows)}, which lacks the smallest in {OFTEN:.0%} of batches"
            result.append(Finding("W208", "warning", ", ".join(terms), message, fix))
    return result


# -------------------------------------------------------------------------------------------- noise
def noise(evaluator: Evaluator, point: Point, batches: Mapping[str, int] | None) -> list[Noise]:
    """Standard errors of every constraint that is not per row, by the delta method."""
    program = evaluator.program
    chosen = [i for i, part in enumerate(program.parts) if part.rows is None and part.constraint != EPIGRAPH]
    if not chosen:
        return []
    moments = [m.double().requires_grad_(True) for m in evaluator.moments("exact")]
    sample, batch = _variances(evaluator, moments, chosen, point, batches)
    found: list[Noise] = []
    for name, own in program.places.items():
        if not set(own) <= sample.keys():
            continue
        residuals = {i: np.atleast_1d(_signed(program.parts[i].kind, point.residuals[i])) for i in own}
        i = max(own, key=lambda i: float(np.max(residuals[i], initial=-np.inf)))
        if not residuals[i].size:
            continue
        k = int(np.argmax(residuals[i]))
        label = part_label(evaluator, i, k, point.residuals[i].shape)
        each = None if batches is None else math.sqrt(batch[i].flat[k])
        room = _room(program, own, point, k)
        value = float(point.residuals[i].flat[k])
        found.append(Noise(name, label, value, math.sqrt(sample[i].flat[k]), each, room))
    return found


def _signed(kind: str, residual: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.abs(residual) if kind == "==" else residual


def _variances(
    evaluator: Evaluator,
    moments: Sequence[Tensor],
    chosen: Sequence[int],
    point: Point,
    batches: Mapping[str, int] | None,
) -> tuple[dict[int, NDArray[np.float64]], dict[int, NDArray[np.float64]]]:
    """Squared standard errors of these parts' residuals, on the samples and in a batch, by part.

    The variance is a sum over samples; that of a batch has each sample's in proportion to rows per batch row.
    """
    sample = {i: np.zeros(point.residuals[i].shape) for i in chosen}
    batch = {i: np.zeros(point.residuals[i].shape) for i in chosen}
    for data, population in evaluator.populations.items():
        spreads = residual_spreads(evaluator, point, moments, data)
        for i in chosen:
            own = spreads[i]
            error = np.zeros(()) if own is None else np.nan_to_num(own.error)
            sample[i] += error**2
            if batches is not None:
                batch[i] += error**2 * population.rows / batches[data.name]
    return sample, batch


def _room(program: Program, own: Sequence[int], point: Point, k: int) -> float | None:
    """Half the distance between the two bounds of a two-sided constraint."""
    sides = {program.parts[i].side: i for i in own}
    if set(sides) != {"upper", "lower"}:
        return None
    upper, lower = (np.atleast_1d(point.residuals[sides[word]]).ravel() for word in ("upper", "lower"))
    return float(-(upper[k] + lower[k]) / 2) if upper.size == lower.size else None


def noisy(found: Sequence[Noise], batches: Mapping[str, int] | None) -> list[Finding]:
    """W209: bounds that a batch cannot see. W210: tolerances that the sample cannot see."""
    result: list[Finding] = []
    for each in found:
        if each.room is not None and 0 < each.room < CONFIDENT * each.sample:
            message = (
                f"all rows tell {each.label} to ±{CONFIDENT * each.sample:.2g} (95 %), and its tolerance is "
                f"±{each.room:.2g}: whether it holds beyond this sample cannot be told"
            )
            fix = "a wider tolerance, larger groups, or more data"
            result.append(Finding("W210", "warning", each.constraint, message, fix))
        slack = each.room if each.room is not None else abs(each.residual)
        if batches is None or each.batch is None or not each.batch > max(slack, 1e-12):
            continue
        size = min(batches.values())
        what = "its tolerance" if each.room is not None else "its distance to the bound now"
        message = (
            f"one batch of {size} tells {each.label} to ±{each.batch:.2g} (standard error), {what} is "
            f"{slack:.2g}: multipliers average over many batches"
        )
        result.append(Finding("W209", "info", each.constraint, message, "a larger batch, if it oscillates"))
    return result


# ---------------------------------------------------------------------------------- bias and steps
def bent(program: Program, batches: Mapping[str, int] | None, rows: Mapping[str, int]) -> list[Finding]:
    """W205: terms that are not affine in their averages, and how batches estimate them."""
    if batches is None or all(batches[name] >= rows[name] for name in rows):
        return []
    terms = {"objective": program.objective} | {p.key: p.residual for p in program.parts if p.rows is None}
    found: list[Finding] = []
    for kind in ("halves", "running"):
        keys = [key for key, root in terms.items() if estimator_of(root) == kind]
        names = list(dict.fromkeys("objective" if k.startswith(EPIGRAPH) else k.split(":")[0] for k in keys))
        if not names:
            continue
        word = "is" if len(names) == 1 else "are"
        message = f"{listed(names)} {word} not affine in averages; of a batch: {ESTIMATORS[kind]}"
        fix = "" if kind == "halves" else "a / b <= c as a - c * b <= 0 where b > 0, which is affine"
        found.append(Finding("W205", "info", ", ".join(names), message, fix))
    return found


def steps(evaluator: Evaluator) -> list[Finding]:
    """W211: a rate that has to equal a number which no number of rows gives."""
    found: list[Finding] = []
    for part in evaluator.program.parts:
        if part.kind != "==" or part.rows is not None:
            continue
        terms, constant = linear_form(part.residual, evaluator)
        keys = [key for key, weight in terms.items() if np.any(weight != 0)]
        key = keys[0] if len(keys) == 1 else n.Constant(0.0)
        moment, place = place_of(key) or (key, slice(None))
        if not isinstance(moment, n.Moment) or not isinstance(moment.integrand, n.Indicator):
            continue
        population = evaluator.populations[moment.data]
        counts = array_of(population.stratum(moment.given, moment.by).counts).reshape(-1)[place].reshape(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            target = np.broadcast_to(-constant / terms[key], counts.shape)
        off = np.abs(target * counts - np.round(target * counts)) / counts
        off = np.where((target >= 0) & (target <= 1), off, 0.0)
        k = int(np.argmax(off))
        if population.sampled and off[k] > COARSE * (1 + abs(target[k])):
            name = part_label(
                evaluator, evaluator.program.parts.index(part), k, counts.shape if type_of(key).levels else ()
            )
            nearest = round(float(target[k] * counts[k])) / counts[k]
            message = (
                f"{name} over {int(counts[k])} rows can only be a multiple of 1/{int(counts[k])}: "
                f"the nearest to {target[k]:.6g} is {nearest:.6g}"
            )
            fix = f"a tolerance: abs(rate - {target[k]:.6g}) <= {max(0.5 / counts[k], 0.01):.2g}"
            found.append(Finding("W211", "warning", part.constraint, message, fix))
    return found
