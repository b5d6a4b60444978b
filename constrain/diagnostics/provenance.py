"""Where a solution comes from: versions, options, and a stable hash of the data it was computed from."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

import constrain
from constrain._lazy import language_printing
from constrain.runtime.columns import read_columns
from constrain.runtime.streams import StreamPopulation
from constrain.solution.records import Provenance, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constrain.diagnostics.alive import Attached
    from constrain.runtime.binding import Population
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.result import RawResult

__all__ = ["Facts", "fingerprint", "provenance_of"]

_PACKAGES = ("torch", "numpy", "scipy")

LONGEST = 50_000
"""Characters of mathematics that are kept."""
SHORTEST = 12
"""Fewest characters that a constraint takes in these."""


@dataclass(frozen=True)
class Facts:
    """What the analysis and the router know.

    Attributes:
        certified_convex: convex in all decisions, by proof.
        problem_class: such as `"LP"`, `"convex"`, `"nonlinear"`.
        route: which route was taken and why, in words.
    """

    certified_convex: bool = False
    problem_class: str = ""
    route: str = ""


def fingerprint(population: Population) -> str:
    """16 digits of the SHA-256 over names, types, shapes and values of the used columns, as given."""
    if isinstance(population, StreamPopulation):
        return population.digest
    digest = hashlib.sha256()
    for name in sorted(population.columns):
        if name.startswith("#"):  # level codes, derived from columns
            continue
        column = read_columns(population.data, [name])[name]
        kind = column.values.dtype.kind if column.texts is None else "O"
        digest.update(f"{name}|{kind}|{column.values.shape}|".encode())
        if column.texts is None:
            digest.update(np.ascontiguousarray(column.values).data)
        else:
            codes: list[int] = column.values.tolist()
            digest.update("\x1f".join([column.texts[code] for code in codes]).encode())
    return digest.hexdigest()[:16]


@cache
def _version(package: str) -> str:
    """Of an installed package: read once, since small problems are solved faster than its files are read."""
    return metadata.version(package)


def provenance_of(
    attached: Attached,
    holdout: Evaluator | None,
    raw: RawResult,
    facts: Facts,
    seed: int | None,
    options: Mapping[str, Any] | None,
) -> Provenance:
    """The record of a solve."""
    versions = {"constrain": constrain.__version__, "python": platform.python_version()}
    versions.update((name, _version(name)) for name in _PACKAGES)
    data: dict[str, dict[str, Any]] = {}
    for split, source in (("train", attached.evaluator), ("holdout", holdout)):
        for population in source.populations.values() if source is not None else ():
            described = {"rows": population.rows, "sha256": fingerprint(population)}
            data[f"{split}:{population.data.name}"] = described
    problem = attached.program.problem
    long = len(problem.constraints) > LONGEST // SHORTEST
    mathematics = "" if long else str(language_printing().problem_latex(problem))
    return Provenance(
        versions=versions,
        solver=raw.solver,
        route=facts.route,
        problem_class=facts.problem_class,
        convex=facts.certified_convex,
        source=repr(problem),
        seed=seed,
        seconds=raw.seconds,
        iterations=raw.iterations,
        options={key: str(value) for key, value in dict(options or {}).items()},
        data=data,
        parameters={name: plain(value) for name, value in attached.params.items()},
        latex=mathematics if len(mathematics) <= LONGEST else "",
    )
