"""Statistics beside the average, written with averages: CVaR, quantiles, variances, covariances.

What they need of the sample besides averages is a `Tail`: a threshold or a center that `runtime/tails.py`
sets exactly. The first line of each rule is its formula.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from constrain._lazy import language_printing
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.summaries import check_level
from constrain.language.surrogates import Sigmoid
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.orientation import direction
from constrain.lowering.program import Tail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constrain.analysis.fact import Fact
    from constrain.language.data import Data
    from constrain.lowering.program import Program, Trace

__all__ = ["Tails", "check_levels", "sides_of"]


# ------------------------------------------------------------------------------------------ positions
def sides_of(root: n.Node, side: int) -> dict[int, int]:
    """By `id` of every statistic under `root`: how an expression that moves with the root in `side` moves.

    Args:
        root: an expression as the user wrote it.
        side: +1 when the residual (or minimized objective) increases in the root, -1, or 0.

    Returns:
        +1, -1, or 0 where neither is known, or where the same object stands in both places.
    """
    order = n.postorder(root)
    if not any(isinstance(x, n.Statistic) for x in order):
        return {}
    facts: dict[int, Fact] = {}
    found: dict[int, int] = {id(root): side}
    for node in reversed(order):
        own = found[id(node)]
        for place, child in enumerate(n.children(node)):
            moved = own and own * direction(node, place, facts)
            found[id(child)] = moved if found.get(id(child), moved) == moved else 0
    return {id(x): found[id(x)] for x in order if isinstance(x, n.Statistic)}


# --------------------------------------------------------------------------------------------- shapes
def _shape(node: n.Node, word: str) -> tuple[int, ...]:
    shape = type_of(node).shape
    if shape is None:
        raise ModelingError(
            "E151",
            f"the shape of {language_printing().text(node, limit=80)} is not known before it runs, and "
            f"{word} has a number of the sample for every entry",
            at=node.loc,
            fix="e.squeeze(-1) or e.reshape(()) for one number per row",
        )
    return shape


# ---------------------------------------------------------------------------------------------- rules
def _apply(atom: str, *args: n.Node, at: n.Node, **options: Any) -> n.Apply:
    return n.Apply(atom, args, tuple(sorted(options.items())), loc=at.loc)


def _above(node: n.Statistic) -> tuple[n.Node, str]:
    """1 - level, the share of the rows above the threshold, and how the trace writes it."""
    level = node.level or 0.0
    if not isinstance(level, n.Knob):
        return n.Constant(float(f"{1 - level:.12g}")), f"{1 - level:.6g}"
    share = _apply("sub", n.Constant(1.0), level, at=node)
    if level.symbol.value is None:  # its value is checked before a solve; the analysis needs the sign
        share = _apply("relu", share, at=node)
    return share, f"(1 - {level.symbol.name})"


def check_levels(program: Program, values: Mapping[n.ParameterSymbol, Any]) -> None:
    """Refuses parameters that are levels of tails and lie outside of (0, 1) (E150), before a solve.

    Args:
        program: the moment form.
        values: of its parameters.
    """
    for tail in program.tails:
        if isinstance(tail.level, n.Knob) and tail.level.symbol in values:
            symbol = tail.level.symbol
            check_level(values[symbol], f"cn.{tail.kind}", symbol.name, tail.level.loc)


class Tails:
    """The rules of one lowering, and the tails that they have made.

    Args:
        trace: what was rewritten is recorded there.
        bound: samples that replace those of the problem, by name: they have the levels.
    """

    def __init__(self, trace: Trace, bound: Mapping[str, Data]) -> None:
        self.trace = trace
        self.bound = bound
        self.hidden: list[n.VariableSymbol] = []
        self._made: dict[Any, Tail] = {}
        self._targets: dict[Any, list[str]] = {}
        self._count: dict[tuple[str, str], int] = {}

    @property
    def all(self) -> tuple[Tail, ...]:
        """Every tail, with the terms that it belongs to."""
        return tuple(tail.of(tuple(self._targets[key])) for key, tail in self._made.items())

    def written(self, node: n.Statistic, side: int, target: str) -> n.Node:
        """The statistic written with averages (`Mean`) of per-row expressions.

        Args:
            node: with lowered arguments.
            side: whether the term increases (+1) in it, decreases (-1), or neither is known (0).
            target: the term it stands in, for names and the trace.
        """
        match node.kind:
            case "Var":
                return self._variance(node, node.args[0], target)
            case "Cov":
                return self._covariance(node, target)
            case "Corr":
                return self._correlation(node, target)
            case "CVaR":
                return self._cvar(node, target, decided=side > 0)
            case "Quantile":
                return self._quantile(node, target)

    # ---- tails of one statistic
    def _cvar(self, node: n.Statistic, target: str, *, decided: bool) -> n.Node:
        """CVaR_a(g) = min_t t + E[(g - t)+] / (1 - a).

        Exact. With `decided` the threshold t is a decision: minimizing over it as well gives the same optima
        because the term increases in the CVaR. It is decided in units of the spread of g, so that its
        gradient has the size of the others whatever the units of g. Else t is held at the quantile, where the
        gradient in g is that of the CVaR (Danskin's theorem).
        """
        (g,), (share, written) = node.args, _above(node)
        decided = decided and depends_on_decisions(g)
        tail = self._tail(node, "CVaR", g, target, "value-at-risk", decided=decided)
        held = "a hidden decision" if decided else "held at the exact quantile"
        self.trace.add("cvar", target, f"CVaR(g) = min_t t + E[(g - t)+] / {written}, t {held}")
        threshold = self._per_row(tail, tail.threshold)
        if tail.scale is not None:
            threshold = _apply("mul", self._per_row(tail, tail.scale), threshold, at=node)
        excess = _apply("relu", _apply("sub", g, threshold, at=node), at=node)
        scaled = _apply("div", excess, share, at=node)
        return n.Mean(_apply("add", threshold, scaled, at=node), node.given, node.by, loc=node.loc)

    def _quantile(self, node: n.Statistic, target: str) -> n.Node:
        """Q_a(g) = t + (P(g > t) - p) / f near the quantile t, p its share P(g > t), f the density there.

        The value is exact where t is (p makes the quotient vanish); to first order in between (Bahadur 1966).
        The gradient is that of a surrogate of the rate: the average gradient of the rows near t.
        """
        (g,) = node.args
        tail = self._tail(node, "Quantile", g, target, "quantile", decided=False)
        if not depends_on_decisions(g) and (node.given is None or not depends_on_decisions(node.given)):
            self.trace.add("quantile", target, "a quantile of the data is a number")
        else:
            formula = "Q(g) = t + (P(g > t) - p) / f near t; its value stays exact"
            self.trace.add("quantile", target, formula, exact=False)
        shares, density, width = tail.shares, tail.density, tail.width
        assert shares is not None  # made so for quantiles
        assert density is not None
        assert width is not None
        threshold = self._per_row(tail, tail.threshold)
        margin = _apply("sub", g, threshold, at=node)
        scaled = _apply("div", margin, self._per_row(tail, width), at=node)
        above = n.Comparison(">", scaled, n.Constant(0.0), loc=node.loc)
        moving = depends_on_decisions(above)
        indicator = n.Indicator(above, Sigmoid(scale=1.0) if moving else None, loc=node.loc)
        share = self._per_row(tail, *(shares if moving else shares[:1]))
        excess = _apply("sub", indicator, share, at=node)
        step = _apply("div", excess, self._per_row(tail, density), at=node)
        return n.Mean(_apply("add", threshold, step, at=node), node.given, node.by, loc=node.loc)

    # ---- second moments
    def _variance(self, node: n.Statistic, g: n.Node, target: str) -> n.Node:
        """Var(g) = E[(g - c)^2] - E[g - c]^2 for any c; c is near the mean, so that nothing large cancels.

        Exact; of degree two in the averages.
        """
        centered = self._centered(node, g, target)
        self.trace.add("variance", target, "Var(g) = E[(g - c)^2] - E[g - c]^2, c near the mean")
        second = self._mean(node, _apply("square", centered, at=node))
        return _apply("variance", second, self._mean(node, centered), at=node)

    def _covariance(self, node: n.Statistic, target: str) -> n.Node:
        """Cov(g, h) = E[(g - c)(h - d)] - E[g - c] E[h - d]; with d = E[h], of data, E[(g - c)(h - d)].

        Exact; of degree two in the averages, or affine when one argument depends on no decision.
        """
        given_moves = node.given is not None and depends_on_decisions(node.given)
        fixed = [x for x in reversed(node.args) if not given_moves and not depends_on_decisions(x)]
        parts = [self._centered(node, x, target, exact=x in fixed[:1]) for x in node.args]
        product = self._mean(node, _apply("mul", *parts, at=node))
        if fixed:
            self.trace.add("covariance", target, "Cov(g, h) = E[(g - c)(h - E[h])], h of the data alone")
            return product
        self.trace.add("covariance", target, "Cov(g, h) = E[(g - c)(h - d)] - E[g - c] E[h - d]")
        return _apply("sub", product, _apply("mul", *(self._mean(node, p) for p in parts), at=node), at=node)

    def _correlation(self, node: n.Statistic, target: str) -> n.Node:
        """Corr(g, h) = Cov(g, h) / (sqrt(Var g) sqrt(Var h)).

        Exact.
        """
        top = self._covariance(node, target)
        roots = [_apply("sqrt", self._variance(node, x, target), at=node) for x in node.args]
        return _apply("div", top, _apply("mul", *roots, at=node), at=node)

    def _mean(self, node: n.Statistic, g: n.Node) -> n.Mean:
        return n.Mean(g, node.given, node.by, loc=node.loc)

    def _centered(self, node: n.Statistic, g: n.Node, target: str, *, exact: bool = False) -> n.Node:
        """`g - c`: c its exact mean per level, or one number near the mean of all rows."""
        own = node if exact else replace(node, by=())
        tail = self._tail(own, "mean", g, target, "center", decided=False)
        return _apply("sub", g, self._per_row(tail, tail.threshold), at=node)

    # ---- symbols
    def _tail(
        self,
        node: n.Statistic,
        kind: Literal["CVaR", "Quantile", "mean"],
        g: n.Node,
        target: str,
        word: str,
        *,
        decided: bool,
    ) -> Tail:
        """The tail of an integrand, the same one for equal statistics."""
        data = type_of(g).rows
        assert data is not None  # checked when the statistic was written
        key = (kind, g, node.given, node.by, node.level, decided)
        if key not in self._made:
            count = self._count[word, target] = self._count.get((word, target), 0) + 1
            name = f"({word} of {target})" if count == 1 else f"({word} {count} of {target})"
            shape = _shape(g, f"cn.{node.kind}")
            if node.by:
                sample = self.bound.get(data.name, data)
                shape = (len(sample.levels(*(c.name for c in node.by))), *shape)
            self._made[key] = self._new(node, kind, data, g, name, shape, decided=decided)
            self._targets[key] = []
        targets = self._targets[key]
        if target not in targets:
            targets.append(target)
        return self._made[key]

    def _new(
        self,
        node: n.Statistic,
        kind: Literal["CVaR", "Quantile", "mean"],
        data: Data,
        g: n.Node,
        name: str,
        shape: tuple[int, ...],
        *,
        decided: bool,
    ) -> Tail:
        def pinned(suffix: str, fill: float) -> n.ArraySymbol:
            return n.ArraySymbol(f"{name[:-1]}{suffix})", shape, np.full(shape, fill))

        threshold: n.VariableSymbol | n.ArraySymbol = pinned("", 0.0)
        scale = None
        if decided:
            threshold = n.VariableSymbol(f"{name[:-1]}, in spreads)", shape)
            self.hidden.append(threshold)
            scale = pinned(", spread", 1.0)
        shares = density = width = None
        if kind == "Quantile":
            shares = (pinned(", share", 0.5), pinned(", surrogate share", 0.5))
            density, width = pinned(", density", 1.0), pinned(", width", 1.0)
        given, by, level = node.given, node.by, node.level
        return Tail(name, kind, data, g, given, by, level, threshold, scale, shares, density, width)

    def _per_row(
        self, tail: Tail, symbol: n.VariableSymbol | n.ArraySymbol, primal: n.ArraySymbol | None = None
    ) -> n.Node:
        """A number of the tail as each row sees it: that of its level."""
        whole: n.Node = (
            n.Decision(symbol) if isinstance(symbol, n.VariableSymbol) else n.Pinned(symbol, primal)
        )
        if not tail.by:
            return whole
        return n.Apply("take", (whole, n.Codes(tail.data, tuple(c.name for c in tail.by))))
