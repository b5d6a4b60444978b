"""Entropies and Kullback-Leibler divergences of distributions whose parameters are expressions.

    cn.entropy(logits=f(D.x))                                        # of the classes, per row, in nats
    cn.kl(pi.logits(Q.x), ref.logits(Q.x))                           # KL(softmax(a) || softmax(b))
    cn.kl(cn.distributions.Normal(mu(D.x), 0.5), torch.distributions.Normal(0.0, 1.0))

Torch's own distributions cannot hold expressions (they ask their parameters for a dtype and for values), so
the ones with closed forms have constructors here. Torch distributions of plain tensors are taken as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from constrain._lazy import loaded
from constrain.errors import ModelingError
from constrain.language import functions as fn
from constrain.language.expr import Expr, apply, as_expr, shown
from constrain.language.keywords import keywords
from constrain.language.location import here

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bernoulli", "Categorical", "Distribution", "Normal", "entropy", "kl"]


def _one_of(word: str, logits: Any, probs: Any) -> None:
    if (logits is None) == (probs is None):
        what = "neither" if logits is None else "both"
        raise ModelingError(
            "E153",
            f"{word} needs logits= or probs=, got {what}",
            at=here(),
            fix=f"{word}(logits=f(D.x)), or {word}(probs=p)",
        )


@dataclass(frozen=True, eq=False)
class Normal:
    """Normal distributions, one per entry.

    Args:
        loc: means: an expression, number, array or tensor.
        scale: standard deviations, positive.

    Raises:
        ModelingError: E153 for a number that is no standard deviation.
    """

    loc: Any
    scale: Any

    def __post_init__(self) -> None:
        if isinstance(self.scale, (int, float)) and not self.scale > 0:
            raise ModelingError(
                "E153", f"a standard deviation is positive, got {self.scale}", at=here(), fix="scale=1.0"
            )


@dataclass(frozen=True, eq=False)
class Bernoulli:
    """Distributions on {0, 1}, one per entry, by their logits or by the probabilities of 1.

    Raises:
        ModelingError: E153 when not exactly one of the two is given.
    """

    probs: Any = None
    logits: Any = None

    def __post_init__(self) -> None:
        _one_of("cn.distributions.Bernoulli", self.logits, self.probs)


@dataclass(frozen=True, eq=False)
class Categorical:
    """Distributions on the entries of the last axis, by their logits or their probabilities.

    Probabilities are taken as they are: they must be nonnegative and sum to one.

    Raises:
        ModelingError: E153 when not exactly one of the two is given.
    """

    probs: Any = None
    logits: Any = None

    def __post_init__(self) -> None:
        _one_of("cn.distributions.Categorical", self.logits, self.probs)


Distribution: TypeAlias = Normal | Bernoulli | Categorical


# ------------------------------------------------------------------------------------------ functions
@keywords
def entropy(distribution: Any = None, *, logits: Any = None, probs: Any = None) -> Expr:
    """The entropy of a distribution, in nats; per row when its parameters are.

    Concave in probabilities; in logits neither convex nor concave, and stable for large ones.

    Args:
        distribution: of this module, or a torch distribution of plain tensors.
        logits: instead of a distribution: logits of a categorical one on the last axis.
        probs: instead of a distribution: its probabilities.

    Returns:
        An expression without the last axis for categorical distributions; else entry by entry.

    Raises:
        ModelingError: E153 (not one of the three), E154 (a distribution without a closed form here).
    """
    if distribution is None:
        _one_of("cn.entropy", logits, probs)
        distribution = Categorical(probs, logits)
    elif logits is not None or probs is not None:
        raise ModelingError(
            "E153",
            "cn.entropy takes a distribution or its parameters, got both",
            at=here(),
            fix="one of them",
        )
    elif not _is_distribution(distribution):
        raise ModelingError(
            "E153",
            f"cn.entropy({shown(distribution)}): are these logits or probabilities?",
            at=here(),
            fix="cn.entropy(logits=...), or cn.entropy(probs=...)",
        )
    match _known(distribution):
        case Normal(scale=scale):
            return as_expr(_log(scale) + 0.5 * math.log(2 * math.pi * math.e))
        case Bernoulli(logits=None, probs=p):
            return fn.entr(p) + fn.entr(1 - p)
        case Bernoulli(logits=a):
            return fn.softplus(a) - a * fn.sigmoid(a)
        case Categorical(logits=None, probs=p):
            return fn.sum(fn.entr(p), axis=-1)
        case Categorical(logits=a):
            return apply("entropy_logits", a)


@keywords
def kl(p: Any, q: Any, *, probs: bool = False) -> Expr:
    """The Kullback-Leibler divergence KL(p || q), in nats; per row when the parameters are.

    Convex in probabilities p and q jointly; in logits q for fixed p.

    Args:
        p: logits of a categorical distribution on the last axis, or a distribution (of this module, or a
            torch distribution of plain tensors).
        q: the same, for the second distribution, of the same kind.
        probs: `p` and `q` are probabilities.

    Returns:
        An expression without the last axis for categorical distributions; else entry by entry, as
        `torch.distributions.kl_divergence`.

    Raises:
        ModelingError: E153 (two distributions of different kinds), E154 (a distribution without a closed form
            here), E112 (shapes).
    """
    first, second = _is_distribution(p), _is_distribution(q)
    if not first and not second:
        return _categorical(*(Categorical(x, None) if probs else Categorical(None, x) for x in (p, q)))
    if first != second:
        plain = q if first else p
        raise ModelingError(
            "E153",
            f"cn.kl of a distribution and {shown(plain)}, which is none",
            at=here(),
            fix="cn.distributions.Categorical(logits=...) for logits",
        )
    match _known(p), _known(q):
        case Normal() as a, Normal() as b:
            return _normal(a, b)
        case Bernoulli() as a, Bernoulli() as b:
            return _bernoulli(a, b)
        case Categorical() as a, Categorical() as b:
            return _categorical(a, b)
        case a, b:
            names = f"a {type(a).__name__} and a {type(b).__name__}"
            raise ModelingError(
                "E153", f"cn.kl of {names} distribution has no closed form", at=here(), fix="two of one kind"
            )


# ---------------------------------------------------------------------------------------- conversion
def _is_distribution(value: Any) -> bool:
    if isinstance(value, (Normal, Bernoulli, Categorical)):
        return True
    torch = loaded("torch")
    return torch is not None and isinstance(value, torch.distributions.Distribution)


def _known(value: Any) -> Distribution:
    """A distribution of this module; torch's own are converted."""
    if isinstance(value, (Normal, Bernoulli, Categorical)):
        return value
    kind = type(value).__name__
    make: dict[str, Callable[[Any], Distribution]] = {
        "Normal": lambda d: Normal(_plain(d.loc), _plain(d.scale)),
        "Bernoulli": lambda d: Bernoulli(**_parameter(d)),
        "Categorical": lambda d: Categorical(**_parameter(d)),
    }
    if kind not in make:
        raise ModelingError(
            "E154",
            f"a torch {kind} distribution has no closed form here",
            at=here(),
            fix="Normal, Bernoulli or Categorical; else the formula, written out",
        )
    return make[kind](value)


def _parameter(distribution: Any) -> dict[str, Any]:
    """The parameter that a torch distribution was made with."""
    name = "probs" if "probs" in vars(distribution) else "logits"
    return {name: getattr(distribution, name)}


# -------------------------------------------------------------------------------------- closed forms
def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _plain(value: Any) -> Any:
    """A tensor with a single value as a number."""
    return value.item() if not tuple(value.shape) and not value.requires_grad else value


def _log(value: Any) -> Any:
    return math.log(value) if _number(value) else fn.log(value)


def _square(value: Any) -> Any:
    return value * value if _number(value) else fn.square(value)


def _normal(p: Normal, q: Normal) -> Expr:
    """log(s_q / s_p) + ((s_p / s_q)^2 + ((m_p - m_q) / s_q)^2 - 1) / 2."""
    spread, shift = _square(p.scale / q.scale), _square((p.loc - q.loc) / q.scale)
    return as_expr(0.5 * (shift + spread - 1.0) - _log(p.scale) + _log(q.scale))


def _bernoulli(p: Bernoulli, q: Bernoulli) -> Expr:
    if p.logits is not None and q.logits is not None:
        a, b = p.logits, q.logits
        return fn.sigmoid(a) * (a - b) + fn.softplus(b) - fn.softplus(a)
    if p.logits is None and q.logits is None:
        return fn.rel_entr(p.probs, q.probs) + fn.rel_entr(1 - p.probs, 1 - q.probs)
    if q.logits is not None:  # cross entropy less entropy
        return fn.softplus(q.logits) - p.probs * q.logits - (fn.entr(p.probs) + fn.entr(1 - p.probs))
    share = fn.sigmoid(p.logits)
    cross = share * fn.log(q.probs) + (1 - share) * fn.log(1 - q.probs)
    return -cross - (fn.softplus(p.logits) - p.logits * share)


def _categorical(p: Categorical, q: Categorical) -> Expr:
    if p.logits is not None and q.logits is not None:
        return apply("kl_logits", p.logits, q.logits)
    if p.logits is None and q.logits is None:
        return fn.sum(fn.rel_entr(p.probs, q.probs), axis=-1)
    if q.logits is not None:
        cross = fn.sum(as_expr(p.probs) * apply("log_softmax", q.logits, axis=(-1,)), axis=-1)
        return -cross - fn.sum(fn.entr(p.probs), axis=-1)
    cross = fn.sum(apply("softmax", p.logits, axis=(-1,)) * fn.log(q.probs), axis=-1)
    return -cross - apply("entropy_logits", p.logits)
