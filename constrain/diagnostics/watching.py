"""Calls of functions with kinks, recorded while a program is evaluated: where a point may sit on one.

A function with a kink is the largest or the least of smooth pieces: |a| of a and -a, relu(a) of a and 0,
`amax` of its entries. A norm of order 1 is a sum of |a|, one of order inf the largest of a and -a; they are
recorded in these terms, as torch evaluates them in one call, which shows none of the pieces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.overrides import TorchFunctionMode

from constrain.diagnostics.jumps import Events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Bend", "Largest", "Watch"]


@dataclass
class Bend:
    """A function of each entry with a kink where its argument is 0.

    Attributes:
        output: of the function.
        argument: what is 0 at the kink, one entry per entry of the output.
        before: slope where the argument is negative.
        after: slope where it is positive.
        at_zero: slope that autograd takes where it is 0.
    """

    output: Tensor
    argument: Tensor
    before: float
    after: float
    at_zero: float


@dataclass
class Largest:
    """The largest (or least) entry along some axes.

    Attributes:
        output: (...) without these axes, or with them of length 1.
        argument: whose entries are compared.
        axes: along which.
        least: the least entry is meant.
        index: the entry that autograd takes, when it takes one; None where it spreads over equal ones.
    """

    output: Tensor
    argument: Tensor
    axes: tuple[int, ...]
    least: bool
    index: Tensor | None = None


@dataclass
class Watch(TorchFunctionMode):
    """Records the calls made within it (`with Watch() as watch`).

    Attributes:
        bends: functions of each entry.
        largest: largest and least entries.
        round: norms of other orders than 1 and infinity, and singular values: slopes at 0 are no polyhedron.
        events: comparisons of decisions, and the calls of `torch.where` that they decide.
    """

    bends: list[Bend] = field(default_factory=list["Bend"])
    largest: list[Largest] = field(default_factory=list["Largest"])
    round: list[Tensor] = field(default_factory=list["Tensor"])
    events: Events = field(default_factory=Events)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options: dict[str, Any] = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if not args or not isinstance(args[0], torch.Tensor):
            return func(*args, **options)
        order = _order(name, args, options)
        if order in (1, math.inf) and args[0].requires_grad:
            return self._norm(args, options, order)
        output = self.events.see(name, args, func(*args, **options))
        if (order is not None or name == "linalg_svdvals") and output.requires_grad:
            self.round.append(output)
        self._extreme(name, args, options, output)
        if isinstance(output, torch.Tensor) and output.requires_grad:
            for argument, before, after, at_zero in _bends(name, args, options):
                if argument.shape == output.shape and argument.requires_grad:
                    self.bends.append(Bend(output, argument, before, after, at_zero))
        return output

    def _norm(self, args: tuple[Any, ...], options: dict[str, Any], order: float) -> Tensor:
        """A norm of order 1 or infinity, made of what it is the sum or the largest of."""
        x: Tensor = args[0]
        given = options.get("dim", args[2] if len(args) > 2 else None)
        keep = bool(options.get("keepdim", args[3] if len(args) > 3 else False))
        axes = _axes(x, given)
        if order == 1:
            size = x.abs()
            self.bends.append(Bend(size, x, -1.0, 1.0, 0.0))
            return size.sum(axes, keepdim=keep) if axes else size
        both = torch.stack([x, -x])
        axes = (0, *(axis + 1 for axis in axes))
        output = both.amax(axes, keepdim=keep)
        output = output.squeeze(0) if keep else output
        self.largest.append(Largest(output, both, axes, least=False))
        return output

    def _extreme(self, name: str, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        """Records a largest or least entry."""
        x: Tensor = args[0]
        if not x.requires_grad or not x.numel():
            return
        least = name.endswith("min")
        if name in ("amax", "amin"):
            axes = _axes(x, options.get("dim", args[1] if len(args) > 1 else None))
            self.largest.append(Largest(output, x, axes, least))
        elif name in ("max", "min") and isinstance(output, torch.Tensor) and len(args) == 1:
            self.largest.append(Largest(output, x, _axes(x, None), least))
        elif name in ("max", "min") and isinstance(output, tuple):
            axis = _axes(x, options.get("dim", args[1] if len(args) > 1 else None))
            values, index = cast("tuple[Tensor, Tensor]", output)
            index = index if index.dim() == x.dim() else index.unsqueeze(axis[0])
            self.largest.append(Largest(values, x, axis, least, index))


def _axes(x: Tensor, given: Any) -> tuple[int, ...]:
    """Axes as nonnegative numbers; all of them where none are given."""
    listed: Sequence[int] = (given,) if isinstance(given, int) else (given or range(x.dim()))
    return tuple(axis % x.dim() for axis in listed)


def _order(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> float | None:
    """The order of a call of a norm of vectors; None for everything else, and where it is no number."""
    if name == "linalg_vector_norm":
        order = options.get("ord", args[1] if len(args) > 1 else 2)
    elif name == "norm":
        order = options.get("p", args[1] if len(args) > 1 else 2)
    else:
        return None
    return float(order) if isinstance(order, (int, float)) else None


def _bends(
    name: str, args: tuple[Any, ...], options: dict[str, Any]
) -> list[tuple[Any, float, float, float]]:
    """Of a call: arguments that are 0 at a kink, slopes on both sides, and the one that autograd takes."""
    x: Tensor = args[0]
    if name in ("abs", "__abs__", "absolute"):
        return [(x, -1.0, 1.0, 0.0)]
    if name == "l1_loss":
        return [(x - args[1], -1.0, 1.0, 0.0)]
    if name == "relu":
        return [(x, 0.0, 1.0, 0.0)]
    if name == "leaky_relu":
        slope = float(options.get("negative_slope", args[1] if len(args) > 1 else 0.01))
        return [(x, slope, 1.0, slope)]
    two = (
        name in ("maximum", "minimum", "max", "min") and len(args) == 2 and isinstance(args[1], torch.Tensor)
    )
    if two:
        return [(x - args[1], *((0.0, 1.0) if name.startswith("max") else (1.0, 0.0)), 0.5)]
    low, high = _limits(name, args, options)
    lower = [] if low is None or _guard(low) else [(x - low, 0.0, 1.0, 1.0)]
    upper = [] if high is None or _guard(high) else [(x - high, 1.0, 0.0, 1.0)]
    return [*lower, *upper]


def _guard(limit: Any) -> bool:
    """Whether a limit of `clamp` keeps out of log(0) or infinity, and is no kink of a function."""
    size = abs(float(limit)) if not isinstance(limit, torch.Tensor) or limit.numel() == 1 else 1.0
    return size > 1e30 or 0.0 < size < 1e-30


def _limits(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """The least and the largest value that a call of a function that clamps lets through; None without."""
    given = (*args[1:], None, None)
    match name:
        case "clamp" | "clip":
            return options.get("min", given[0]), options.get("max", given[1])
        case "clamp_min":
            return next(iter(options.values()), given[0]), None
        case "clamp_max":
            return None, next(iter(options.values()), given[0])
        case "hardtanh":
            return options.get("min_val", given[0]), options.get("max_val", given[1])
        case "relu6":
            return 0.0, 6.0
        case _:
            return None, None
