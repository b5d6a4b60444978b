"""Surrogates of rates: the differentiable stand-ins of an event that the primal gradient sees.

An event such as `e > 0` has a margin, `e`. Its indicator 1[margin > 0] is a step, so its gradient is zero or
does not exist; a surrogate is a function of margin / width that has one. Values, multipliers and reports use
the exact rate whatever the surrogate (semantics S5).

The width is a part of the margin's robust spread over the data, measured again as a model trains, so that a
change of units changes nothing; `scale=` fixes it in the margin's own units instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, TypeAlias

from constrain.errors import ModelingError
from constrain.language.keywords import keywords
from constrain.language.location import here

__all__ = ["DEFAULT", "Hinge", "Power", "Sigmoid", "Surrogate", "surrogate_of"]


# ------------------------------------------------------------------------------- what they share
def _check(surrogate: Surrogate, width: str) -> None:
    """E174 for an option that is no positive number, and for two widths."""
    kind = type(surrogate).__name__
    for f in fields(surrogate):
        value = getattr(surrogate, f.name)
        if f.name == "scale" and value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ModelingError(
                "E174",
                f"{f.name}={value!r} of the surrogate {kind} is no positive number",
                at=here(),
                fix=f"cn.surrogate.{kind}({f.name}={f.default or 0.5!r})",
            )
    own, default = getattr(surrogate, width), next(f.default for f in fields(surrogate) if f.name == width)
    if surrogate.scale is not None and own != default:
        raise ModelingError(
            "E174",
            f"the surrogate {kind} has two widths: {width}={own!r} follows the spread of the margin and "
            f"scale={surrogate.scale!r} is fixed",
            at=here(),
            fix=f"cn.surrogate.{kind}({width}={own!r}), or cn.surrogate.{kind}(scale={surrogate.scale!r})",
        )


def _source(surrogate: Surrogate) -> str:
    """The class with the options that differ from their defaults."""
    values = {f.name: getattr(surrogate, f.name) for f in fields(surrogate)}
    given = [f"{f.name}={values[f.name]!r}" for f in fields(surrogate) if values[f.name] != f.default]
    return f"{type(surrogate).__name__}({', '.join(given)})"


def _described(surrogate: Surrogate) -> str:
    """The form and its width, as `explain()` says it."""
    width = f"{surrogate.part:g} spread" if surrogate.scale is None else f"{surrogate.scale:g}"
    return f"{surrogate.name}(margin / ({width}))"


# ---------------------------------------------------------------------------------------- the forms
@dataclass(frozen=True, repr=False)
class Sigmoid:
    """1 / (1 + exp(-margin / width)).

    Within [0, 1]; every row has a gradient, largest at the margin 0. The gradient of the surrogate's average
    is the kernel estimate of the rate's own gradient with the logistic kernel.

    Args:
        temperature: width in robust standard deviations of the margin.
        scale: width in the units of the margin, instead of `temperature`.

    Raises:
        ModelingError: E174 for an option that is not positive, or both given.
    """

    temperature: float = 0.1
    scale: float | None = None
    name: ClassVar[str] = "sigmoid"

    def __post_init__(self) -> None:
        _check(self, "temperature")

    @property
    def part(self) -> float:
        """Width as a part of the margin's spread."""
        return self.temperature

    @property
    def described(self) -> str:
        """The form and its width, for `explain()`."""
        return _described(self)

    def at(self, u: float) -> float:
        """Value at a margin in units of the width."""
        return 1 / (1 + math.exp(-u)) if u > -700 else 0.0

    def __repr__(self) -> str:
        return _source(self)


@dataclass(frozen=True, repr=False)
class Hinge:
    """max(0, 1 + margin / width): a convex upper bound of the indicator.

    Where a constraint holds a rate down, the surrogate is this bound; where it holds a rate up, it is the
    lower bound 1 - hinge(-margin). What the surrogate meets, the rate meets.

    Args:
        margin: width in robust standard deviations of the margin: how far on its right side of the threshold
            a row must be to have no part in the bound.
        scale: width in the units of the margin, instead of `margin`.

    Raises:
        ModelingError: E174 for an option that is not positive, or both given.
    """

    margin: float = 1.0
    scale: float | None = None
    name: ClassVar[str] = "hinge"

    def __post_init__(self) -> None:
        _check(self, "margin")

    @property
    def part(self) -> float:
        """Width as a part of the margin's spread."""
        return self.margin

    @property
    def described(self) -> str:
        """The form and its width, for `explain()`."""
        return _described(self)

    def at(self, u: float) -> float:
        """Value at a margin in units of the width."""
        return max(0.0, 1 + u)

    def __repr__(self) -> str:
        return _source(self)


@dataclass(frozen=True, repr=False)
class Power:
    """(1 + r(u)) / 2 with u = margin / width and r(u) = sign(u) min(|u|, 1)^(1 / order).

    The rectified straight-through estimator of Wu et al. 2023 ("Estimator Meets Equilibrium Perspective: A
    Rectified Straight Through Estimator for Binary Neural Networks Training"), of the step where theirs is of
    the sign. Order 1 is a ramp, whose gradient is the plain straight-through estimator; the larger the
    order, the closer to the step and the less even the gradient. As in the paper, the slope near 0, where
    that of the power has no bound, is that of the chord over `core`, and rows with |u| > 1 have no gradient.

    Args:
        order: at least 1.
        width: in robust standard deviations of the margin.
        core: the part of the width with constant slope, below 1.
        scale: width in the units of the margin, instead of `width`.

    Raises:
        ModelingError: E174 for an option out of its range, or both widths given.
    """

    order: float = 2.0
    width: float = 0.5
    core: float = 0.1
    scale: float | None = None
    name: ClassVar[str] = "power"

    def __post_init__(self) -> None:
        _check(self, "width")
        if self.order < 1 or self.core >= 1:
            raise ModelingError(
                "E174",
                f"the surrogate Power needs order >= 1 and core < 1, got order={self.order!r} and "
                f"core={self.core!r}",
                at=here(),
                fix="cn.surrogate.Power(order=2.0, core=0.1)",
            )

    @property
    def part(self) -> float:
        """Width as a part of the margin's spread."""
        return self.width

    @property
    def described(self) -> str:
        """The form and its width, for `explain()`."""
        return _described(self)

    def at(self, u: float) -> float:
        """Value at a margin in units of the width."""
        if abs(u) <= self.core:
            return (1 + u * self.core ** (1 / self.order - 1)) / 2
        return (1 + math.copysign(min(abs(u), 1.0) ** (1 / self.order), u)) / 2

    def __repr__(self) -> str:
        return _source(self)


# of wrong arguments the message says which there are
Sigmoid.__init__ = keywords(Sigmoid.__init__)
Hinge.__init__ = keywords(Hinge.__init__)
Power.__init__ = keywords(Power.__init__)

Surrogate: TypeAlias = Sigmoid | Hinge | Power
"""The forms there are."""

DEFAULT = Sigmoid()
"""What a rate uses when `surrogate=` is left out; `docs/decisions/0005-rates.md` says why."""

_FORMS: dict[str, type[Surrogate]] = {"sigmoid": Sigmoid, "hinge": Hinge, "power": Power}


def surrogate_of(value: object) -> Surrogate | None:
    """The surrogate that `surrogate=` names; None stays None.

    Raises:
        ModelingError: E119 for anything else.
    """
    if value is None or isinstance(value, (Sigmoid, Hinge, Power)):
        return value
    form = _FORMS.get(value) if isinstance(value, str) else None
    if form is None:
        names = ", ".join(f'"{name}"' for name in _FORMS)
        raise ModelingError(
            "E119",
            f"no surrogate is called {value!r}",
            at=here(),
            fix=f"{names}, or with options cn.surrogate.Sigmoid(scale=0.1)",
        )
    return form()
