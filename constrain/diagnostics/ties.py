"""Kinks that a point sits on, and the choice of slope there that balances best.

At a kink (|a| or max(a, 0) at a = 0, the threshold of a CVaR at a row) autograd returns one slope of an
interval. A point is stationary when *some* choice of slopes balances (0 in Clarke's subdifferential), so the
choice that leaves the least gradient is the one to judge by. An argument a that is zero within `NEAR` of the
largest one counts as zero: solvers return 1e-9 where 0 is meant.

Source: Clarke, Optimization and Nonsmooth Analysis (1983), chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from constrain.diagnostics.point import array_of
from constrain.runtime.derivatives import whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.jacobian import Entry
    from constrain.runtime.evaluator import Evaluator

__all__ = ["WORK", "Ties", "find_ties", "fits_at_once", "no_ties"]

NEAR = 1e-6
"""Arguments of kinks this small, relative to the largest of their tensor, count as zero."""

MOST = 400
"""Kinks whose slopes are chosen."""

WORK = 20_000_000
"""Rows times decisions up to which all rows are put into one graph."""


@dataclass(frozen=True)
class Ties:
    """Kinks that the point sits on.

    Attributes:
        gradients: (ties, decisions) of the kinks' arguments.
        slopes: (1 + entries, ties) derivative of the objective, and of each entry, in the kinks' outputs.
        lower: (ties,) least number that can be added to the slope that autograd chose.
        upper: (ties,) largest one.
        note: why kinks were not resolved; empty when they were.
    """

    gradients: NDArray[np.float64]
    slopes: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    note: str = ""

    def rows(self, multipliers: NDArray[np.float64]) -> NDArray[np.float64]:
        """(ties, decisions) how the gradient of the Lagrangian changes with each slope."""
        return (self.slopes[0] + multipliers @ self.slopes[1:])[:, None] * self.gradients

    def moved(self, choice: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a choice of slopes adds to the gradients of the objective and of the entries."""
        change = (self.slopes * choice) @ self.gradients
        return change[0], change[1:]


def no_ties(evaluator: Evaluator, entries: Sequence[Entry], note: str = "") -> Ties:
    """A point without kinks, or one whose kinks are not resolved for a reason."""
    size = evaluator.decisions.size
    return Ties(np.zeros((0, size)), np.zeros((1 + len(entries), 0)), np.zeros(0), np.zeros(0), note)


# ------------------------------------------------------------------------------------------ watching
@dataclass
class _Kink:
    """One call of a function with a kink: output, argument that is 0 there, slopes on both sides.

    `chosen` has the slope that autograd takes, per entry.
    """

    output: Tensor
    argument: Tensor
    before: float
    after: float
    chosen: Tensor


def _argument(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, float, float] | None:
    """The argument that is 0 at the kink, and the slopes of the output in it on both sides."""
    x: Any = args[0] if args else None
    if name in ("abs", "__abs__", "absolute"):
        return x, -1.0, 1.0
    if name == "relu":
        return x, 0.0, 1.0
    if name in ("maximum", "minimum", "max", "min") and len(args) == 2 and isinstance(args[1], torch.Tensor):
        return args[0] - args[1], *((0.0, 1.0) if name.startswith("max") else (1.0, 0.0))
    if name in ("clamp", "clip"):
        low, high = _limits(args, options)
        if (low is None) != (high is None) and not _guard(low if high is None else high):
            return (x - low, 0.0, 1.0) if high is None else (x - high, 1.0, 0.0)
    if name in ("clamp_min", "clamp_max"):
        given = next(iter(options.values()), *args[1:2])
        return x - given, *((0.0, 1.0) if name == "clamp_min" else (1.0, 0.0))
    return None


def _guard(limit: Any) -> bool:
    """Whether a limit of `clamp` keeps out of log(0) or infinity, and is no kink of a function."""
    size = abs(float(limit)) if not isinstance(limit, torch.Tensor) or limit.numel() == 1 else 1.0
    return size > 1e30 or 0.0 < size < 1e-30


def _limits(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """The least and the largest value that a call of `clamp` lets through."""
    given = (*args[1:], None, None)
    return options.get("min", given[0]), options.get("max", given[1])


@dataclass
class _Watch(TorchFunctionMode):
    """Records every call of a function with a kink, and whether a largest value is reached several times."""

    kinks: list[_Kink] = field(default_factory=list["_Kink"])
    largest: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options: dict[str, Any] = dict(kwargs or {})
        output = func(*args, **options)
        name = getattr(func, "__name__", "")
        found = _argument(name, args, options)
        if name in ("amax", "amin") and isinstance(args[0], torch.Tensor) and args[0].requires_grad:
            axes = options.get("dim", args[1] if len(args) > 1 else tuple(range(args[0].dim())))
            self.largest = self.largest or _several(args[0], axes, least=name == "amin")
        if found is not None and isinstance(output, torch.Tensor) and output.requires_grad:
            argument, before, after = found
            if argument.shape == output.shape and argument.requires_grad:
                at_zero = before if name == "relu" else 1.0 if name.startswith("cl") else (before + after) / 2
                chosen = torch.full_like(output.detach(), at_zero)
                chosen = chosen.masked_fill(argument > 0, after).masked_fill(argument < 0, before)
                self.kinks.append(_Kink(output, argument, before, after, chosen))
        return output


def _several(values: Tensor, axes: Any, *, least: bool) -> bool:
    """Whether the largest (least) value along some axes is reached by several entries."""
    values = -values.detach() if least else values.detach()
    top = values.amax(axes, keepdim=True)
    near = top - values <= NEAR * float(values.abs().max())
    return bool((near.sum(axes) > 1).any())


# ------------------------------------------------------------------------------------------- finding
def fits_at_once(evaluator: Evaluator) -> bool:
    """Whether all rows may be put into one graph."""
    rows = max([p.rows for p in evaluator.populations.values()], default=1)
    streamed = any(p.data.streamed for p in evaluator.populations.values())
    return not streamed and rows * evaluator.decisions.size <= WORK


def find_ties(evaluator: Evaluator, entries: Sequence[Entry]) -> Ties:
    """The kinks that the current decisions sit on, in the objective and in entries that are not per row.

    Args:
        evaluator: the (judged) program with data.
        entries: whose gradients were formed.
    """
    if not fits_at_once(evaluator):
        tails = [t for t in evaluator.program.tails if t.kind == "CVaR"]
        what = "the threshold of a CVaR sits at a row, and there are too many rows to choose its slope"
        return no_ties(evaluator, entries, what if tails else "")
    watch = _Watch()
    with watch:
        outer = whole(evaluator, None).outer
    scalars = [outer.objective]
    for e in entries:
        residual = outer.residuals[e.part]
        scalars.append(outer.objective * 0 if residual is None else residual.reshape(-1)[e.index])
    tied = [(kink, _tied(kink)) for kink in watch.kinks]
    tied = [(kink, place) for kink, place in tied if len(place)]
    note = "a largest value is reached by several entries" if watch.largest else ""
    if not tied or note:
        return no_ties(evaluator, entries, note)
    outputs = [kink.output for kink, _ in tied]
    slopes = np.array([_picked(s, outputs, [place for _, place in tied]) for s in scalars])
    used = np.flatnonzero(np.abs(slopes).max(axis=0) > 0)
    if len(used) > MOST:
        return no_ties(evaluator, entries, f"{len(used)} kinks meet there, more than are resolved ({MOST})")
    pairs = [(kink, k) for kink, place in tied for k in place]
    gradients = [_gradient(evaluator, *pairs[i]) for i in used]
    kinks = [pairs[i] for i in used]
    chosen = np.array([float(kink.chosen.reshape(-1)[k]) for kink, k in kinks])
    ends = np.array([sorted((kink.before, kink.after)) for kink, _ in kinks]).reshape(-1, 2)
    size = evaluator.decisions.size
    return Ties(
        np.array(gradients).reshape(-1, size), slopes[:, used], ends[:, 0] - chosen, ends[:, 1] - chosen
    )


def _tied(kink: _Kink) -> list[int]:
    """Places of the entries whose argument counts as zero."""
    size = array_of(kink.argument).reshape(-1)
    largest = float(np.max(np.abs(size), initial=0.0, where=np.isfinite(size)))
    found: list[int] = np.flatnonzero(np.abs(size) <= NEAR * largest).tolist()
    return found


def _picked(scalar: Tensor, outputs: Sequence[Tensor], places: Sequence[Sequence[int]]) -> list[float]:
    """d scalar / d output at these places, one after the other."""
    if not scalar.requires_grad:
        return [0.0 for place in places for _ in place]
    grads = torch.autograd.grad(
        scalar, list(outputs), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    found: list[float] = []
    for g, place in zip(grads, places, strict=True):
        found += array_of(g).reshape(-1)[list(place)].tolist()
    return found


def _gradient(evaluator: Evaluator, kink: _Kink, k: int) -> NDArray[np.float64]:
    """(decisions,) gradient of one entry of the argument of a kink."""
    grads = torch.autograd.grad(
        kink.argument.reshape(-1)[k],
        evaluator.decisions.tensors,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return np.concatenate([array_of(g).reshape(-1) for g in grads])
