"""`solve(checkpoint=, resume=)`: what a checkpoint belongs to, and refusal of one that belongs elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from constrain.diagnostics.provenance import fingerprint
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.surrogates import Hinge, Power, Sigmoid
from constrain.runtime.columns import as_array
from constrain.solution.records import plain
from constrain.solvers.checkpoint import Checkpoint, Checkpoints, differences, read

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from constrain.runtime.evaluator import Evaluator

__all__ = ["checkpoints_of", "places", "refuse_without_steps"]

SHOWN = 4
"""Differences that a message lists."""


def places(checkpoint: Any, resume: Any) -> tuple[Checkpoint | None, Path | None]:
    """Where checkpoints go, and the file to resume from, None for a start.

    `resume=True` means the file of `checkpoint=`, if it exists; a run that resumes from a file that was named
    stores its own checkpoints there too, unless it was given another place.

    Raises:
        ModelingError: E141 for something else.
    """
    to = Checkpoint(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
    if to is not None and not isinstance(to, Checkpoint):
        raise ModelingError(
            "E141",
            f"checkpoint={checkpoint!r} is no path",
            fix='checkpoint="run.ckpt", or Checkpoint("run.ckpt", steps=100) of constrain.solvers.checkpoint',
        )
    if resume is None or resume is False:
        return to, None
    if resume is True:
        if to is None:
            raise ModelingError(
                "E141", "resume=True without a checkpoint", fix='checkpoint="run.ckpt", or resume="run.ckpt"'
            )
        return to, Path(to.path) if Path(to.path).exists() else None
    if not isinstance(resume, (str, Path)):
        raise ModelingError("E141", f"resume={resume!r} is no path", fix='resume="run.ckpt"')
    return Checkpoint(resume) if to is None else to, Path(resume)


def refuse_without_steps(name: str, to: Checkpoint | None, source: Path | None) -> None:
    """E187 for a method that has no state between steps to store."""
    if to is None and source is None:
        return
    if name not in ("lagrangian", "augmented", "cooper"):
        raise ModelingError(
            "E187",
            f"method {name!r} has nothing to store on the way: it solves the problem in one call",
            fix='method="lagrangian", or no checkpoint=',
        )


def checkpoints_of(
    evaluator: Evaluator, solver: Any, to: Checkpoint | None, source: Path | None
) -> Checkpoints | None:
    """The checkpoints of a run, None when none were asked for.

    Raises:
        ModelingError: E141 for a folder that does not exist, E185 for a file that is no checkpoint,
            E186 for one of another problem.
    """
    if to is None and source is None:
        return None
    if to is not None and not Path(to.path).absolute().parent.is_dir():
        folder = str(Path(to.path).parent)
        text = f"checkpoint={str(to.path)!r}: there is no folder {folder!r}"
        raise ModelingError("E141", text, fix=f"Path({folder!r}).mkdir(parents=True), or another path")
    own = _description(evaluator, solver)
    if source is None:
        return Checkpoints(to, own)
    stored = read(source)
    found = differences(stored["problem"], own)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ModelingError(
            "E186",
            f"the checkpoint {str(source)!r} belongs to another problem: {'; '.join(found[:SHOWN])}{more}",
            fix="the problem, data and options of that run, or a new file",
        )
    return Checkpoints(to, own, stored["run"])


def _description(evaluator: Evaluator, solver: Any) -> dict[str, Any]:
    """What a run depends on besides its state: plain values, by name."""
    program = evaluator.program
    terms = {
        form.name: [program.parts[i] for i in program.places.get(form.name, ())] for form in program.forms
    }
    tails = program.tails
    numbers = [x for t in tails for x in (t.threshold, t.scale, t.density, t.width, *(t.shares or ()))]
    moving = [x for x in numbers if isinstance(x, n.ArraySymbol)]
    return {
        "method": type(solver).__name__,
        "option": _options(solver),
        "objective": _digest([program.objective], moving),
        "constraint": {name: _digest([p.residual for p in parts], moving) for name, parts in terms.items()},
        "part": {p.key: f"{p.kind} 0" for p in program.parts},
        "decision": {b.name: f"{tuple(b.tensor.shape)} {b.tensor.dtype}" for b in evaluator.decisions.blocks},
        "model": {model.name: _hash(repr(model.module).encode()) for model in program.models},
        "parameter": {name: repr(plain(value)) for name, value in _parameters(evaluator).items()},
        "data": {
            data.name: f"{p.rows} rows, sha256 {fingerprint(p)}" for data, p in evaluator.populations.items()
        },
        "device": evaluator.device.type,
    }


def _options(solver: Any) -> dict[str, Any]:
    """Options as texts; of functions the name, since what they do cannot be compared."""
    names = [f.name for f in fields(solver)] if is_dataclass(solver) else []
    found: dict[str, Any] = {}
    for name in names:
        found[name] = _shown(getattr(solver, name))
    return found


def _shown(value: Any) -> str:
    """An option as text."""
    function = getattr(value, "__qualname__", None)
    if function is not None:
        return f"the function {function}"
    known = (bool, int, float, str, dict, type(None))
    text, kind = repr(value), type(value).__name__
    return text if isinstance(value, known) or is_dataclass(value) else kind


def _parameters(evaluator: Evaluator) -> dict[str, Any]:
    symbols = evaluator.program.parameters
    return {s.name: evaluator.params.get(s.name, s.value) for s in symbols}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _digest(roots: Sequence[n.Node], moving: Collection[n.ArraySymbol]) -> str:
    """A hash of expressions: their structure, names, numbers and arrays, but of those that a run moves."""
    digest = hashlib.sha256()
    for node in n.postorder(*roots):
        digest.update(f"{type(node).__name__}({len(n.children(node))})".encode())
        for f in fields(node):
            value = getattr(node, f.name)
            if f.name == "loc" or any(value is x for x in moving):
                continue
            if isinstance(value, n.ArraySymbol) and not isinstance(value.value, str):
                array = np.ascontiguousarray(as_array(value.value))
                digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
            else:
                digest.update(f"{f.name}={_text(value)};".encode())
    return digest.hexdigest()[:16]


def _text(value: Any) -> str:
    """A field of a node in words that are the same in every process."""
    if isinstance(value, (bool, int, float, str, type(None), Sigmoid, Hinge, Power)):
        return repr(value)
    if isinstance(value, tuple):
        return ",".join(map(_text, cast("tuple[Any, ...]", value)))
    return str(getattr(value, "name", type(value).__name__))
