"""Reads what `storage.py` wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from constrain._lazy import attribute, diagnostics_alive
from constrain.errors import DataError
from constrain.language.keywords import keywords
from constrain.language.problem import from_json
from constrain.solution.answer import Evaluation, History, Solution
from constrain.solution.constraint import ConstraintResult, PartResult
from constrain.solution.mixture import Mixture
from constrain.solution.noise import GradientNoise
from constrain.solution.paths import ParametricPath
from constrain.solution.records import KKT, Estimate, Provenance, Status, Warn
from constrain.solution.storage import SCHEMA
from constrain.solution.tightening import Tightening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constrain.language.problem import Problem

__all__ = ["load"]

_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(KKT, Estimate, Provenance, Warn, ConstraintResult, PartResult, Evaluation, ParametricPath),
        *(Tightening, GradientNoise, Mixture),
    )
}


def _decode(value: Any, arrays: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    stored = cast("dict[str, Any]", value)
    if "$type" in stored:
        fields = {key: _decode(item, arrays) for key, item in stored.items() if key != "$type"}
        return _TYPES[stored["$type"]](**fields)
    if "$dict" in stored:
        return {key: _decode(item, arrays) for key, item in stored["$dict"]}
    if "$tuple" in stored:
        return tuple(_decode(item, arrays) for item in stored["$tuple"])
    if "$array" in stored:
        listed = [_decode(item, arrays) for item in stored["$array"]]
        return np.asarray(listed, dtype=np.dtype(stored["dtype"])).reshape(stored["shape"])
    if "$npz" in stored:
        return arrays[stored["$npz"]]
    if "$status" in stored:
        return Status(stored["$status"])
    return float(stored["$float"])


@keywords
def load(
    folder: str | Path, problem: Problem | None = None, symbols: Mapping[str, Any] | None = None
) -> Solution:
    """Reads a solution that `Solution.save` wrote.

    Args:
        folder: the folder.
        problem: the same problem, built again. Its variables and models receive the stored values (checked by
            name and shape), and `kkt()` and `evaluate()` can compute. Without it everything recorded can be
            read.
        symbols: instead of the problem, what the stored structure of it names: modules, data, functions and
            large arrays, as in `cn.from_json`.

    Raises:
        DataError: E144 when the folder holds no solution, or one of a newer version.
        ModelingError: E137, E145 when the problem's decisions or constraints differ; E176, E178 for symbols
            that are missing or do not fit.
    """
    source = Path(folder)
    file = source / "solution.json"
    if not file.is_file():
        raise DataError(
            "E144", f"{source} holds no solution.json", fix="the folder given to solution.save(...)"
        )
    document = json.loads(file.read_text(encoding="utf-8"))
    if document.get("schema") != SCHEMA:
        raise DataError("E144", f"{file} has schema {document.get('schema')!r}; this version reads {SCHEMA}")
    with np.load(source / "arrays.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    body = {key: _decode(item, arrays) for key, item in document["solution"].items()}

    def group(kind: str) -> dict[str, Any]:
        return {k.removeprefix(f"{kind}:"): v for k, v in arrays.items() if k.startswith(f"{kind}:")}

    body["history"] = History(body["history"])
    body["multipliers"] = group("multiplier") if document["multipliers"] else None
    solution = Solution(**body, variables=group("variable"), weights=group("weight"), hidden=group("hidden"))
    if problem is None and symbols is not None:
        problem = _stored_problem(source, symbols)
    if problem is not None:
        solution.live = diagnostics_alive().revive(problem, solution)
        if solution.mixture is not None:
            members = attribute("constrain.diagnostics.mixture:Members")
            solution.mixture = replace(solution.mixture, live=members(solution.live))
    return solution


def _stored_problem(folder: Path, symbols: Mapping[str, Any]) -> Problem:
    file = folder / "problem.json"
    if not file.is_file():
        raise DataError(
            "E144", f"{folder} holds no problem.json", fix="cn.load(folder, problem=problem), built again"
        )
    return from_json(file.read_text(encoding="utf-8"), symbols)
