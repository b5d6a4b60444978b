"""Surrogates of events on tensors: what the primal gradient sees in place of 1[event].

The forms themselves are in `language/surrogates.py`. Here are their torch functions, the measure of a
margin's spread, and how the surrogate of a compound event is written: with the margins m_a > 0 of `a` and
m_b > 0 of `b`, each in units of its own width,

    ~a: -m_a        a & b: min(m_a, m_b)        a | b: max(m_a, m_b)

so that negations end at the comparisons, the laws of De Morgan, double negation and idempotence hold, and
the surrogate of a compound event is the surrogate of one scalar margin. An event of the data alone counts as
it is. `docs/decisions/0005-rates.md` compares this with products of the parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import torch
from torch import Tensor

from constrain._lazy import language_printing
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.surrogates import Hinge, Power, Sigmoid
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.language.surrogates import Surrogate

__all__ = [
    "LEAST_SPREAD",
    "EventWriter",
    "along",
    "chosen_class",
    "class_margin",
    "hinge",
    "measured",
    "measured_by_level",
    "nearest",
    "power",
    "robust_spread",
    "shrunk",
    "sigmoid",
    "update_spreads",
]

LEAST_SPREAD = 0.25
"""Least spread of a margin that its surrogate follows, as a fraction of the largest one it has had."""
NEAREST = 0.02
"""The share of rows that lies within a quarter of a spread of the threshold."""
SEEN = 32.0
"""Rows of a condition among those that are measured from which on its own spread is taken."""
FEW = 16
"""Groups up to which the rows of one after the other are measured."""

Width = float | Tensor


def sigmoid(margin: Tensor, width: Width) -> Tensor:
    """1 / (1 + exp(-margin / width)): within [0, 1], symmetric about margin 0. Any shape."""
    return torch.sigmoid(margin / width)


def hinge(margin: Tensor, width: Width) -> Tensor:
    """max(0, 1 + margin / width): a convex upper bound of 1[margin >= 0]. Any shape."""
    return torch.relu(1 + margin / width)


def power(margin: Tensor, width: Width, order: float, core: float) -> Tensor:
    """(1 + r(u)) / 2 with u = margin / width and r(u) = sign(u) min(|u|, 1)^(1 / order). Any shape.

    Within |u| <= core, where the slope of r is not bounded, r is its chord. Saturates at |u| = 1.
    """
    u = (margin / width).clamp(-1, 1)
    outside = u.abs().clamp(min=core) ** (1 / order) * torch.sign(u.detach())
    return (1 + torch.where(u.abs() > core, outside, u * core ** (1 / order - 1))) / 2


def along(width: Width, margin: Tensor) -> Width:
    """Widths, a number or one per row, that broadcast to a margin (rows, ...)."""
    if not isinstance(width, Tensor) or not width.dim():
        return width
    return width.reshape(-1, *(1 for _ in range(margin.dim() - 1)))


def class_margin(scores: Tensor, label: Tensor | float) -> Tensor:
    """The score of the label's class less the largest one of the others: its sign is that of the event.

    Args:
        scores: (..., classes), two classes at least.
        label: positions of classes, a number or a tensor that broadcasts to (...).
    """
    if not isinstance(label, Tensor):
        label = scores.new_full((), label)
    place = label.long().expand(scores.shape[:-1])[..., None]
    rest = scores.scatter(-1, place, -math.inf).amax(-1)
    return scores.gather(-1, place)[..., 0] - rest


def chosen_class(event: n.Node) -> tuple[n.Node, n.Node] | None:
    """Scores and label of `scores.argmax(-1) == label`; None of any other expression."""
    if not isinstance(event, n.Comparison) or event.op not in ("==", "!="):
        return None
    for side, label in ((event.lhs, event.rhs), (event.rhs, event.lhs)):
        if isinstance(side, n.Opaque) and side.function in (torch.argmax, torch.Tensor.argmax):
            scores, *place = side.arguments
            options = dict(side.keywords)
            classes = type_of(scores).shape
            along = place[0] if place else options.get("dim")
            if classes and classes[-1] > 1 and along in (-1, len(classes)) and not options.get("keepdim"):
                return scores, label
    return None


_STEPS = frozenset(
    (
        "round",
        "floor",
        "ceil",
        "trunc",
        "sign",
        "sgn",
        "argmax",
        "argmin",
        "argsort",
        "heaviside",
        "bucketize",
    )
)
"""Functions whose derivative is 0 wherever they have one."""


def _refuse_steps(event: n.Comparison) -> None:
    """E133 for a margin that changes with the decisions in steps only: its surrogate has no gradient."""
    found: dict[int, n.Node | None] = {}
    for node in n.postorder(event):
        moving = [found[id(x)] for x in n.children(node) if depends_on_decisions(x)]
        name = (
            node.atom
            if isinstance(node, n.Apply)
            else getattr(getattr(node, "function", None), "__name__", "")
        )
        if moving and name in _STEPS:
            found[id(node)] = node
        else:  # None: the decisions reach it past a step, or it is a decision
            found[id(node)] = moving[0] if moving and all(x is not None for x in moving) else None
    step = found[id(event)]
    if step is not None:
        text = language_printing().text
        inside = text(n.children(step)[0], limit=40)
        raise ModelingError(
            "E133",
            f"{text(event, limit=80)}: {text(step, limit=60)} changes in steps, so that no surrogate of the "
            "event has a gradient",
            at=event.loc,
            fix=f"an event of {inside} itself, such as a threshold; of a class scores.argmax(-1) == label",
        )


def robust_spread(margin: Tensor) -> Tensor:
    """1.4826 times the median absolute deviation, at least a small part of the largest margin."""
    flat = margin.detach().reshape(-1).float()
    center = flat.median()
    spread = 1.4826 * (flat - center).abs().median()
    return torch.maximum(spread, 1e-3 * flat.abs().amax() + 1e-6)


def nearest(margin: Tensor, share: float = NEAREST) -> Tensor:
    """How far from 0 the nearest `share` of the margins reach (at least one of them does)."""
    flat = margin.detach().reshape(-1).abs().float()
    return flat.kthvalue(max(1, math.ceil(share * flat.numel()))).values


def measured(margin: Tensor) -> Tensor:
    """(2,) the robust spread of margins, and how far from 0 the nearest ones reach."""
    return torch.stack([robust_spread(margin), nearest(margin)])


def measured_by_level(margin: Tensor, codes: Tensor, levels: int) -> Tensor:
    """(levels, 2) the same of every group of rows; not defined for those without rows.

    Args:
        margin: (rows, ...).
        codes: (rows,) the group of each row.
        levels: number of groups.
    """
    if levels <= FEW:
        pieces = (margin[codes == level] for level in range(levels))
        none = margin.new_zeros(2, dtype=torch.float32)
        return torch.stack([measured(piece) if piece.numel() else none for piece in pieces])
    values = margin.detach().reshape(len(codes), -1).float()
    codes = codes.repeat_interleave(values.shape[1])
    values = values.reshape(-1)
    counts = torch.bincount(codes, minlength=levels)
    starts = counts.cumsum(0) - counts

    def at(values: Tensor, place: Tensor) -> Tensor:
        """The value at this place among the sorted ones of each group."""
        order = values.argsort()
        order = order[codes[order].argsort(stable=True)]
        return values[order[(starts + place.clamp(min=0)).clamp(max=len(values) - 1)]]

    middle = (counts - 1) // 2
    spread = 1.4826 * at((values - at(values, middle)[codes]).abs(), middle)
    sizes = values.abs()
    largest = values.new_zeros(levels).scatter_reduce(0, codes, sizes, "amax")
    near = at(sizes, (NEAREST * counts).ceil().long().clamp(min=1) - 1)
    return torch.stack([torch.maximum(spread, 1e-3 * largest + 1e-6), near], 1)


def shrunk(found: Tensor, counts: Tensor, whole: Tensor) -> Tensor:
    """What was measured of groups, which of a group with few rows is mostly that of all rows.

    Args:
        found: (levels, 2) of `measured_by_level`.
        counts: (levels,) rows of each group among those that were measured.
        whole: (2,) of all rows.
    """
    own = (counts / SEEN).clamp(max=1.0)[:, None]
    return torch.lerp(whole.square().expand_as(found), found.square(), own.to(found)).sqrt()


def update_spreads(spreads: Tensor, widest: Tensor, found: Tensor) -> None:
    """Sets what the widths of surrogates are parts of from what was measured, in place.

    It is the robust standard deviation with two floors. A quarter of the largest one seen: margins that
    shrink together with the width of their surrogate would go on shrinking. And four times the distance to
    the nearest 2 % of the rows: when all margins lie on one side, far from the threshold in units of their
    own deviation, a surrogate that is no wider than a part of that deviation has no gradient anywhere.

    Args:
        spreads: (n,) what surrogates use.
        widest: (n,) largest spreads so far.
        found: (n, 2) robust spread and distance of each.
    """
    with torch.no_grad():
        robust, near = found.to(spreads.dtype).unbind(1)
        widest.copy_(torch.maximum(widest, robust))
        least = torch.maximum(LEAST_SPREAD * widest, 4 * near)
        spreads.copy_(torch.maximum(robust, least))


# ------------------------------------------------------------------------------------ generated code
@dataclass(frozen=True)
class EventWriter:
    """Writes the surrogate of an event as lines of generated code.

    Args:
        surrogate: the form.
        emit: writes a line `NAME = code` and returns NAME; lines nobody uses are dropped later.
        value: name of the value of a node that is written already.
        spread: code of the spread of a margin, whose value has this name.
    """

    surrogate: Surrogate
    emit: Callable[[str], str]
    value: Callable[[n.Node], str]
    spread: Callable[[n.Node, str], str]

    def write(self, event: n.Node) -> str:
        """Name of the surrogate of an event that depends on decisions.

        Raises:
            ModelingError: E133 for the equality of a quantity that depends on decisions, and for a margin
                that follows them in steps.
        """
        soft: dict[int, tuple[str, str]] = {}
        for node in n.postorder(event):
            if not isinstance(node, (n.Comparison, n.Logic)) or not depends_on_decisions(node):
                continue
            match node:
                case n.Comparison():
                    soft[id(node)] = self._sides(node)
                case n.Logic(op="not", args=args):
                    holds, fails = soft[id(args[0])]
                    soft[id(node)] = fails, holds
                case n.Logic(op="and", args=args):
                    soft[id(node)] = self._all(args, soft, 0), self._any(args, soft, 1)
                case n.Logic(args=args):
                    soft[id(node)] = self._any(args, soft, 0), self._all(args, soft, 1)
        return soft[id(event)][0]

    def _sides(self, node: n.Comparison) -> tuple[str, str]:
        """Surrogates of a comparison and of its complement."""
        chosen = chosen_class(node)
        if chosen is not None:
            margin = self.emit(f"surrogates.class_margin({', '.join(self.value(x) for x in chosen)})")
            measured: n.Node = n.Opaque("constrain.class_margin", class_margin, chosen, loc=node.loc)
        elif node.op in ("==", "!="):
            raise ModelingError(
                "E133",
                f"{language_printing().text(node, limit=80)}: the event of a continuous quantity being equal "
                "to a number has no usable surrogate",
                at=node.loc,
                fix="abs(e - b) <= tolerance as the event; of a class scores.argmax(-1) == label",
            )
        else:
            _refuse_steps(node)
            a, b = (node.lhs, node.rhs) if node.op in (">", ">=") else (node.rhs, node.lhs)
            margin = self.emit(f"{self.value(a)} - {self.value(b)}")
            measured = n.Apply("sub", (a, b), loc=node.loc)
        if self.surrogate.scale is not None:
            width = repr(float(self.surrogate.scale))
        else:
            width = f"{float(self.surrogate.part)!r} * {self.spread(measured, margin)}"
        holds, fails = self._form(margin, width), self._form(f"-{margin}", width)
        return (fails, holds) if node.op == "!=" else (holds, fails)

    def _form(self, margin: str, width: str) -> str:
        match self.surrogate:
            case Sigmoid():
                return self.emit(f"surrogates.sigmoid({margin}, {width})")
            case Hinge():
                return self.emit(f"surrogates.hinge({margin}, {width})")
            case Power(order=order, core=core):
                return self.emit(f"surrogates.power({margin}, {width}, {float(order)!r}, {float(core)!r})")
            case _:
                assert_never(self.surrogate)

    def _split(
        self, args: Sequence[n.Node], soft: dict[int, tuple[str, str]], side: int
    ) -> tuple[list[str], list[str]]:
        """Surrogates of the parts that depend on decisions, and the truth values of the others."""
        moving = [soft[id(x)][side] for x in args if id(x) in soft]
        fixed = [("~" if side else "") + self.value(x) for x in args if id(x) not in soft]
        return moving, fixed

    def _all(self, args: Sequence[n.Node], soft: dict[int, tuple[str, str]], side: int) -> str:
        """Every part holds (side 0) or fails (side 1)."""
        moving, fixed = self._split(args, soft, side)
        least = self._chain("torch.minimum", moving)
        return self.emit(f"torch.where({' & '.join(fixed)}, {least}, 0.0)") if fixed else least

    def _any(self, args: Sequence[n.Node], soft: dict[int, tuple[str, str]], side: int) -> str:
        """Some part holds (side 0) or fails (side 1)."""
        moving, fixed = self._split(args, soft, side)
        most = self._chain("torch.maximum", moving)
        return self.emit(f"torch.where({' | '.join(fixed)}, 1.0, {most})") if fixed else most

    def _chain(self, function: str, names: list[str]) -> str:
        """Minimum or maximum of several values, two by two."""
        found = names[0]
        for name in names[1:]:
            found = self.emit(f"{function}({found}, {name})")
        return found
