"""Averages of per-row expressions: the data are averaged first wherever the expression is affine.

cvxpy then sees vectors of the size of the model instead of the sample.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.analysis.special import variance_of
from constrain.backends.cvxpy.atoms import contract
from constrain.backends.cvxpy.package import cp
from constrain.errors import RouteError
from constrain.language import nodes as n
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.backends.cvxpy.expressions import Lowerer
    from constrain.runtime.constants import Averaging

__all__ = ["SUMS", "VARIANCES", "Averager", "added"]

SUMS = {"add", "sub", "neg"}
"""Atoms that sums are made of."""
VARIANCES = {"variance", "deviation"}
"""Atoms that are made of the averages of a square and of what is squared."""
_ENTRYWISE_LINEAR = {"sum", "mean", "index", "reshape", "transpose", "trace"}


def added(terms: Sequence[Any]) -> Any:
    """The sum of many expressions, as a balanced tree."""
    level: list[Any] = list(terms)
    while len(level) > 1:
        level = [level[i] + level[i + 1] if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]


class Averager:
    """Averages of per-row expressions, data first.

    `average(w, g)` is linear in g: sums are opened, constant factors go into the weights, linear maps of one
    row are applied after averaging, an affine model is evaluated on averaged features. What is curved is
    averaged as it is.
    """

    def __init__(self, builder: Lowerer) -> None:
        self.builder = builder

    def moment(self, node: n.Moment) -> Any:
        """The moment in its declared shape."""
        averaging = self.builder.constants.averaging(node)
        result = self.average(averaging, node.integrand)
        shape = (
            *((averaging.matrix.shape[0],) if averaging.leveled else ()),
            *result.shape[int(averaging.leveled) :],
        )
        return result if result.shape == shape else cp.reshape(result, shape, order="C")

    def variance(self, node: n.Apply) -> Any:
        """A variance (or its root) as the squares (or norm) of the rows, less their mean, times root weights.

        cvxpy has no form of a difference of squares, and nothing large cancels here.
        """
        first = variance_of(node)
        if first is None:
            raise RouteError(
                "E125", "cvxpy has no form of a variance over rows that are not fixed", at=node.loc
            )
        averaging = self.builder.constants.averaging(first)
        value = self.builder.expression(first.integrand)
        parts: list[Any] = []
        for level in range(averaging.matrix.shape[0]):
            weights = averaging.matrix.getrow(level)
            rows, share = weights.indices, weights.data
            flat = cp.reshape(value, (value.shape[0], math.prod(value.shape[1:])), order="C")[rows.tolist()]
            centered = flat - cp.reshape(share @ flat, (1, flat.shape[1]), order="C")
            scaled = cp.multiply(np.sqrt(share)[:, None], centered)
            parts.append(self.builder.apply(node, [scaled], [1]))
        shape = (*((len(parts),) if averaging.leveled else ()), *value.shape[1:])
        return cp.reshape(cp.hstack(parts), shape, order="C")

    def average(self, weights: Averaging, root: n.Node) -> Any:
        """Sum over rows of weights times the expression; levels first when the weights have them."""
        stack: list[tuple[Averaging, n.Node]] = [(weights, root)]
        terms: list[Any] = []
        while stack:
            w, node = stack.pop()
            opened = self._open(w, node)
            if opened is None:
                terms.append(self._term(w, node))
            else:
                stack.extend(reversed(opened))
        return added(terms)

    def _open(self, w: Averaging, node: n.Node) -> list[tuple[Averaging, n.Node]] | None:
        """The same average as a sum of simpler ones, or None."""
        build = self.builder
        if build.fixed(node) or not isinstance(node, n.Apply):
            return None
        args = node.args
        if node.atom in SUMS:
            signs = {"add": (1.0, 1.0), "sub": (1.0, -1.0), "neg": (-1.0,)}[node.atom]
            return [(w if s > 0 else w.times(-1.0), x) for s, x in zip(signs, args, strict=True)]
        if node.atom == "mul":
            for factor, other in (args, args[::-1]):
                number = self._row_number(factor)
                if number is not None and not build.fixed(other):
                    return [(w.times(number), other)]
        if node.atom == "div":
            number = self._row_number(args[1])
            return None if number is None else [(w.times(1.0 / number), args[0])]
        if node.atom == "binary_cross_entropy_with_logits" and type_of(node).shape == ():
            logits, target = args
            cross = n.Apply("mul", (target, logits), loc=node.loc)
            return [(w, n.Apply("softplus", (logits,), loc=node.loc)), (w.times(-1.0), cross)]
        if node.atom == "where" and type_of(args[0]).shape == () and build.fixed(args[0]):
            mask = build.constants.array(args[0])
            return [(w.times(mask), args[1]), (w.times(1.0 - mask), args[2])]
        return None

    def _row_number(self, node: n.Node) -> NDArray[Any] | float | None:
        """A known factor with one number per row, or one number for all."""
        if not self.builder.fixed(node):
            return None
        value = self.builder.constants.array(node)
        if not type_of(node).lead:
            return float(value) if value.ndim == 0 else None
        return value.reshape(-1) if value.size == len(value) and value.ndim == 1 else None

    def _term(self, w: Averaging, node: n.Node) -> Any:
        build = self.builder
        kind = type_of(node)
        if not kind.lead:
            rank = len(kind.shape or ())
            value = build.expression(node)
            return cp.multiply(
                w.total(rank), value if not w.leveled else cp.reshape(value, (1, *value.shape), order="C")
            )
        if build.fixed(node):
            return cp.Constant(w.of(build.constants.array(node)))
        if isinstance(node, n.Call):
            certified, features = build.features(node)
            rank = features.values.ndim - 1
            ones = w.total(rank)
            return build.layer(node, certified, features, w.of(features.values), int(w.leveled), ones)
        if isinstance(node, n.Apply):
            linear = self._linear(w, node)
            if linear is not None:
                return linear
        return self._plain(w, node)

    def _linear(self, w: Averaging, node: n.Apply) -> Any | None:
        """A linear map of one row, applied after averaging."""
        build, args, lead = self.builder, node.args, int(w.leveled)
        if node.atom in _ENTRYWISE_LINEAR:
            return build.apply(node, [self.average(w, args[0])], [lead])
        if node.atom not in ("mul", "matmul"):
            return None
        left, right = (type_of(x).lead for x in args)
        if left == right == 1:
            return None
        still = args[0] if not left else args[1]
        value, averaged = build.expression(still), self.average(w, args[1] if not left else args[0])
        if node.atom == "matmul":
            return contract(value, averaged, 0, lead) if not left else contract(averaged, value, lead, 0)
        return cp.multiply(value, averaged)

    def _plain(self, w: Averaging, node: n.Node) -> Any:
        value = self.builder.expression(node)
        row = value.shape[1:]
        flat = value if value.ndim == 1 else cp.reshape(value, (value.shape[0], math.prod(row)), order="C")
        result = w.matrix @ flat
        return cp.reshape(result, (*((w.matrix.shape[0],) if w.leveled else ()), *row), order="C")
