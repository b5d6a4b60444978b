"""Terms that are affine in the averages, as one sparse matrix: terms = A m + c.

However constraints are written, one by one, in a comprehension, as a vector or by groups, they come to the
same product here, so that a step costs the same. A term is affine when averages enter by sums, differences,
selections of entries, and products with numbers or parameters; `c` may depend on the decisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.runtime import rowwise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.runtime.evaluator import Evaluator

__all__ = ["Affine", "affine_terms"]

DENSE = 65_536
"""Largest number of entries of A that is kept as a matrix; beyond, its nonzero entries only."""

_SELECTIONS = frozenset(("index", "reshape", "transpose", "pick_levels"))


@dataclass(frozen=True)
class Affine:
    """The matrix A of affine terms.

    Attributes:
        matrix: (terms, averages), None where only the nonzero entries are kept.
        rows: (nonzero,) term of each nonzero entry.
        columns: (nonzero,) average of each.
        values: (nonzero,) their values.
    """

    matrix: Tensor | None
    rows: Tensor
    columns: Tensor
    values: Tensor

    def apply(self, averages: Tensor, constant: Tensor) -> Tensor:
        """A m + c: (terms,)."""
        if self.matrix is not None:
            if torch.is_autocast_enabled():  # a matrix product would have fewer bits
                return (self.matrix * averages).sum(1) + constant
            return torch.addmv(constant, self.matrix, averages)
        return constant.index_add(0, self.rows, self.values * averages[self.columns])


@dataclass(frozen=True)
class _Form:
    """A linear form per entry: sum over the last axis of values * averages[columns].

    Attributes:
        shape: of the expression.
        columns: (entries, width) positions among the averages.
        values: (entries, width).
    """

    shape: tuple[int, ...]
    columns: NDArray[np.int64]
    values: NDArray[np.float64]

    def take(self, positions: NDArray[np.int64]) -> _Form:
        """These entries, in the shape of `positions`."""
        flat = positions.reshape(-1)
        return _Form(positions.shape, self.columns[flat], self.values[flat])

    def broadcast(self, shape: tuple[int, ...]) -> _Form:
        """The form in a larger shape."""
        if shape == self.shape:
            return self
        return self.take(np.broadcast_to(_places(self.shape), shape))

    def scale(self, factors: NDArray[np.float64] | float) -> _Form:
        """Times a factor per entry, broadcast."""
        shape = np.broadcast_shapes(self.shape, np.shape(factors))
        wide = self.broadcast(shape)
        flat = np.broadcast_to(np.asarray(factors, dtype=np.float64), shape).reshape(-1, 1)
        return _Form(shape, wide.columns, wide.values * flat)


def _places(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.arange(math.prod(shape), dtype=np.int64).reshape(shape)


class _Reader:
    """Reads linear forms off outer expressions.

    Args:
        evaluator: the program with data.
        shapes: of its moments.
    """

    def __init__(self, evaluator: Evaluator, shapes: Sequence[torch.Size]) -> None:
        self.evaluator = evaluator
        self.shapes = [tuple(shape) for shape in shapes]
        sizes = [math.prod(shape) for shape in self.shapes]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.places = {id(m): i for i, m in enumerate(evaluator.program.moments)}
        self.memo: dict[int, _Form | bool] = {}
        self.free: dict[int, NDArray[np.float64]] = {}

    def read(self, root: n.Node) -> _Form | None:
        """The linear form of a root; None when it is not affine with constant coefficients."""
        found = n.fold(root, self._step, self.memo)
        if found is False:  # no average in it
            shape = self._value(root).shape
            empty = np.zeros((math.prod(shape), 0))
            return _Form(shape, empty.astype(np.int64), empty)
        return found if isinstance(found, _Form) else None

    def _step(self, node: n.Node, parts: tuple[_Form | bool, ...]) -> _Form | bool:
        """A form; False for what has no average in it, True for what is not affine in them."""
        if isinstance(node, n.Moment):
            return self._moment(node)
        if isinstance(node, (n.Pinned, n.Indicator)):
            return True  # moves between steps, or differs between surrogate and event
        if not any(parts):
            return False
        if True in parts or not isinstance(node, n.Apply):
            return True
        return self._apply(node, parts) or True

    def _moment(self, node: n.Moment) -> _Form:
        place = self.places.get(id(node))
        if place is None:
            place = self.places[id(node)] = self.evaluator.program.moments.index(node)
        shape = self.shapes[place]
        columns: NDArray[np.int64] = int(self.starts[place]) + _places(shape).reshape(-1, 1)
        return _Form(shape, columns, np.full(tuple(columns.shape), 1.0))

    def _apply(self, node: n.Apply, parts: tuple[_Form | bool, ...]) -> _Form | None:
        first = parts[0]
        match node.atom:
            case "add" | "sub":
                return self._sum(node, parts)
            case "neg" if isinstance(first, _Form):
                return first.scale(-1.0)
            case "mul" if parts.count(False) == 1:
                k = 1 if isinstance(first, _Form) else 0
                factors = self._coefficient(node.args[k])
                return None if factors is None else cast("_Form", parts[1 - k]).scale(factors)
            case "div" if isinstance(first, _Form) and parts[1] is False:
                divisor = self._coefficient(node.args[1])
                return None if divisor is None else first.scale(1.0 / divisor)
            case atom if atom in _SELECTIONS and isinstance(first, _Form) and len(parts) == 1:
                return first.take(self._selected(node, first.shape))
            case _:
                return None

    def _sum(self, node: n.Apply, parts: tuple[_Form | bool, ...]) -> _Form:
        shapes = [
            part.shape if isinstance(part, _Form) else self._value(x).shape
            for x, part in zip(node.args, parts, strict=True)
        ]
        shape = np.broadcast_shapes(*shapes)
        forms = [part.broadcast(shape) if isinstance(part, _Form) else None for part in parts]
        if forms[1] is not None and node.atom == "sub":
            forms[1] = forms[1].scale(-1.0)
        kept = [form for form in forms if form is not None]
        if len(kept) == 1:
            return kept[0]
        columns = np.concatenate([form.columns for form in kept], 1)
        return _Form(shape, columns, np.concatenate([form.values for form in kept], 1))

    def _selected(self, node: n.Apply, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Which entries a selection takes: the selection itself, of their positions."""
        function: Any = getattr(rowwise, ATOMS[node.atom].torch.removeprefix("rowwise."))
        lead = tuple(type_of(x).lead for x in node.args)
        places = torch.from_numpy(_places(shape))
        return function(places, **dict(node.options), lead=lead).numpy()

    def _coefficient(self, node: n.Node) -> NDArray[np.float64] | None:
        return None if depends_on_decisions(node) else self._value(node)

    def _value(self, node: n.Node) -> NDArray[np.float64]:
        """The value of an expression without averages, as it is now."""
        if isinstance(node, n.Constant):
            return np.asarray(node.value, dtype=np.float64)
        if id(node) not in self.free:
            self.free[id(node)] = self._measured(node)
        return self.free[id(node)]

    def _measured(self, node: n.Node) -> NDArray[np.float64]:
        value = self.evaluator.free(node)
        if value.device.type == "meta":
            return np.ones(tuple(value.shape))
        return value.detach().double().cpu().numpy()


def affine_terms(
    evaluator: Evaluator,
    roots: Mapping[int, tuple[NDArray[np.int64], n.Node]],
    shapes: Sequence[torch.Size],
    size: int,
) -> tuple[Affine, set[int]]:
    """The matrix of those outer expressions that are affine.

    Args:
        evaluator: the program with data.
        roots: outer expressions with the places of their entries among all terms, by their positions.
        shapes: of the program's moments.
        size: number of all terms; those of other expressions have rows of zeros.

    Returns:
        The matrix, and the positions of the expressions that it has.
    """
    reader = _Reader(evaluator, shapes)
    found = {p: form for p, (_, root) in roots.items() if (form := reader.read(root)) is not None}
    rows = [np.repeat(roots[p][0], form.columns.shape[1]) for p, form in found.items()]
    empty = np.zeros(0)
    return _matrix(
        evaluator,
        np.concatenate([empty, *rows]).astype(np.int64),
        np.concatenate([empty, *(form.columns.reshape(-1) for form in found.values())]).astype(np.int64),
        np.concatenate([empty, *(form.values.reshape(-1) for form in found.values())]),
        (size, int(reader.starts[-1])),
    ), set(found)


def _matrix(
    evaluator: Evaluator,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.float64],
    shape: tuple[int, int],
) -> Affine:
    device = evaluator.device
    dtype = torch.promote_types(evaluator.dtype, torch.float32)
    at, of = torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)
    entries = torch.from_numpy(values).to(device=device, dtype=dtype)
    matrix = None
    if math.prod(shape) <= DENSE:
        matrix = torch.zeros(shape, dtype=dtype, device=device).index_put_((at, of), entries, accumulate=True)
    return Affine(matrix, at, of, entries)
