"""The state of a run as plain data: copies that can be stored, and put back to continue bit by bit.

The state is all data that the objects of a run hold. It is found by walking them, so that a method needs no
code of its own to be stored, and no field of it can be forgotten:

* numbers, texts, tensors, and lists, tuples and dictionaries of these, are taken as they are;
* random generators by their state; what has a `state_dict` (optimizers, schedules, models, samplers) by that;
* other objects of this package's `runtime`, `solvers` and `backends` by their fields, one level further down.

What a problem and its data determine is left out: programs, samples, generated functions, frozen records.
Tensors are put back in place, so that views and optimizers keep theirs. An object that the run makes only
after its first step, like a cache, is left as it is.
"""

from __future__ import annotations

import random
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from constrain.language import nodes as n
from constrain.runtime.binding import Population
from constrain.runtime.estimates import Estimate
from constrain.runtime.evaluator import Evaluator
from constrain.runtime.graph import RecordedStep
from constrain.runtime.slacks import Slacks, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "evaluator_state",
    "random_state",
    "restore",
    "restore_evaluator",
    "set_random",
    "state",
]

_WALKED = ("constrain.runtime.", "constrain.solvers.", "constrain.backends.")
_FIXED = (Evaluator, Population, Estimate, Slacks, Turn, RecordedStep)
"""What the problem and its data determine, or a step makes anew."""
_SCALARS = (bool, int, float, str, type(None))


# -------------------------------------------------------------------------------------------- plain data
def _plain(value: object) -> bool:
    """Whether a value is data through and through.

    Tensors with a gradient are not: they are decisions or parameters of modules, which have names.
    """
    if isinstance(value, Tensor):
        return not value.requires_grad
    if type(value) in _SCALARS:
        return True
    if type(value) is dict:
        items = cast("dict[object, object]", value).items()
        return all(type(k) in _SCALARS and _plain(v) for k, v in items)
    return type(value) in (list, tuple) and all(map(_plain, cast("list[object]", value)))


def _copied(value: Any) -> Any:
    """A copy of data; what is no data (a function in a parameter group) is left out of dictionaries."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {k: _copied(v) for k, v in items if _plain(v) or isinstance(v, (dict, list))}
    if isinstance(value, (list, tuple)):
        items = [_copied(v) for v in cast("list[Any]", value)]
        return tuple(items) if isinstance(value, tuple) else items
    return value if type(value) in _SCALARS else None


@torch.no_grad()
def _put(live: Any, stored: Any) -> Any:
    """Stored data, written into the tensors and containers that are there where they fit."""
    if isinstance(stored, Tensor):
        if isinstance(live, Tensor) and live.shape == stored.shape and live.dtype == stored.dtype:
            live.copy_(stored)
            return live
        return stored.to(live.device, copy=True) if isinstance(live, Tensor) else stored.clone()
    if isinstance(stored, dict):
        own = cast("dict[Any, Any]", live) if isinstance(live, dict) else dict[Any, Any]()
        found = {k: _put(own.get(k), v) for k, v in cast("dict[Any, Any]", stored).items()}
        own.clear()
        own.update(found)
        return own
    if isinstance(stored, (list, tuple)):
        pieces = cast("list[Any]", stored)
        before: list[Any] = list(cast("list[Any]", live)) if isinstance(live, (list, tuple)) else []
        before += [None] * (len(pieces) - len(before))
        items = [_put(a, b) for a, b in zip(before, pieces, strict=False)]
        if isinstance(live, list) and isinstance(stored, list):
            live[:] = items
            return cast("list[Any]", live)
        return tuple(items) if isinstance(stored, tuple) else items
    return stored


# --------------------------------------------------------------------------------------------- the walk
class _Leaf:
    """Something in the objects of a run that is stored as one."""

    def __init__(self, value: Any, assign: Callable[[Any], None]) -> None:
        self.value = value
        self.assign = assign

    def take(self) -> Any:
        """A copy."""
        if isinstance(self.value, torch.Generator):
            return self.value.get_state()
        return _copied(self.value if _plain(self.value) else self.value.state_dict())

    def put(self, stored: Any) -> None:
        """Puts a copy back."""
        if isinstance(self.value, torch.Generator):
            self.value.set_state(stored)
        elif _plain(self.value):
            self.assign(_put(self.value, stored))
        else:
            self.value.load_state_dict(_whole(dict(self.value.state_dict()), _copied(stored)))


def _whole(live: Any, stored: Any) -> Any:
    """A stored state with what could not be stored (functions, enumerations) as it is in the object."""
    if isinstance(live, dict) and isinstance(stored, dict):
        own, new = cast("dict[Any, Any]", live), cast("dict[Any, Any]", stored)
        kept = {k: v for k, v in own.items() if not (_plain(v) or isinstance(v, (dict, list)))}
        return kept | {k: _whole(own.get(k), v) for k, v in new.items()}
    if isinstance(live, list) and isinstance(stored, list):
        pairs = list(zip(cast("list[Any]", live), cast("list[Any]", stored), strict=False))
        same = len(pairs) == len(cast("list[Any]", stored))
        return [_whole(a, b) for a, b in pairs] if same else cast("list[Any]", stored)
    return cast("Any", live) if stored is None and not _plain(cast("Any", live)) else stored


_MODULE = frozenset(vars(nn.Module())) - {"_buffers", "_parameters", "_modules"}


def _fields(owner: Any) -> dict[str, Any]:
    """The fields of an object of a run, or of a container of such; empty for what is not walked."""
    kind = cast("Any", type(owner))
    if kind is dict:
        return {str(k): v for k, v in owner.items()}
    if kind in (list, tuple):
        return {str(i): v for i, v in enumerate(owner)}
    frozen = is_dataclass(owner) and kind.__dataclass_params__.frozen
    if isinstance(owner, _FIXED) or frozen or not kind.__module__.startswith(_WALKED):
        return {}
    skipped = _MODULE if isinstance(owner, nn.Module) else ()
    return {k: v for k, v in getattr(owner, "__dict__", {}).items() if k not in skipped}


def _stateful(value: Any) -> bool:
    """Whether an object stores itself; the modules of this package have fields that are no part of that."""
    if isinstance(value, torch.Generator):
        return True
    ours = isinstance(value, nn.Module) and type(value).__module__.startswith(_WALKED)
    if isinstance(value, type) or ours:
        return False
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _leaves(owner: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, _Leaf]]:
    """All leaves below an object, with their paths; every object and container once."""
    seen = set() if seen is None else seen
    for name, value in _fields(owner).items():
        if not (type(value) in _SCALARS or isinstance(value, (tuple, Tensor))):
            if id(value) in seen:
                continue
            seen.add(id(value))
        place = f"{path}.{name}" if path else name
        if _plain(cast("Any", value)) or _stateful(value):
            yield place, _Leaf(value, _assignment(owner, name))
        else:
            yield from _leaves(value, place, seen)


def _assignment(owner: Any, name: str) -> Callable[[Any], None]:
    """How a field is given a value; tensors in tuples and modules are written in place instead."""

    def assign(value: Any) -> None:
        if isinstance(owner, dict):
            key = next(k for k in cast("dict[Any, Any]", owner) if str(k) == name)
            owner[key] = value
        elif isinstance(owner, list):
            owner[int(name)] = value
        elif not isinstance(owner, tuple):
            vars(owner)[name] = value

    return assign


def state(*owners: Any) -> dict[str, Any]:
    """Copies of all data that some objects hold, by path such as `0.lagrangian.values`."""
    return {path: leaf.take() for path, leaf in _leaves(list(owners))}


def restore(stored: Mapping[str, Any], *owners: Any) -> None:
    """Puts copies back into objects that were made in the same way."""
    for path, leaf in _leaves(list(owners)):
        if path in stored:
            leaf.put(stored[path])


# -------------------------------------------------------------------------------- what follows decisions
def _following(evaluator: Evaluator) -> dict[str, Any]:
    """What of an evaluator changes in a run: spreads of margins, and the numbers of tails."""
    fields = vars(evaluator)
    found: dict[str, Any] = {"scales": fields["scales"], "widest": fields.get("_widest")}
    for i, tail in enumerate(evaluator.program.tails):
        for j, symbol in enumerate(
            (tail.threshold, tail.density, tail.width, tail.scale, *(tail.shares or ()))
        ):
            if isinstance(symbol, n.ArraySymbol):
                found[f"tail {i}.{j}"] = evaluator.held(symbol)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def evaluator_state(evaluator: Evaluator) -> dict[str, Any]:
    """Copies of decisions, of the models' buffers, and of what follows them."""
    return {"decisions": evaluator.decisions.snapshot(), "following": _copied(_following(evaluator))}


def restore_evaluator(stored: Mapping[str, Any], evaluator: Evaluator) -> None:
    """Puts them back, in place."""
    evaluator.decisions.restore(stored["decisions"])
    _put(_following(evaluator), stored["following"])


def random_state() -> dict[str, Any]:
    """The state of the global random generators, which modules with dropout draw from."""
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())  # noqa: NPY002  # the global one
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (kind, keys.tolist(), *rest),
        "python": random.getstate(),
    }


def set_random(stored: Mapping[str, Any]) -> None:
    """Puts the global random generators into a stored state."""
    torch.set_rng_state(stored["torch"].cpu())
    if stored["cuda"]:
        torch.cuda.set_rng_state_all([value.cpu() for value in stored["cuda"]])
    kind, keys, *rest = stored["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002  # the global one
    random.setstate(stored["python"])
