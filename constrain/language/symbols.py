"""Decisions, parameters and models as users declare them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

from constrain._lazy import probe
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import static_shape
from constrain.language.expr import Expr, as_number
from constrain.language.location import here
from constrain.language.types import type_of

__all__ = ["Model", "Parameter", "Variable", "checked_name"]


def _shape_of(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(index(s) for s in (shape if isinstance(shape, Iterable) else (shape,)))
    except TypeError:
        raise ModelingError(
            "E117",
            f"a shape is an integer or a tuple of integers, got {shape!r}",
            at=here(),
            fix="(3, 2), or 3",
        ) from None
    if any(s < 1 for s in sizes):
        raise ModelingError("E112", f"shape {sizes} has an axis without entries", at=here(), fix="sizes >= 1")
    return sizes


def checked_name(name: Any, kind: str, example: str) -> str:
    """A name that is a Python identifier (E117)."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ModelingError(
            "E117", f"a {kind} needs a name that is a Python identifier, got {name!r}", at=here(), fix=example
        )
    return name


class Variable(Expr):
    """A decision tensor.

    Args:
        shape: an integer or a sequence of sizes; `()` for a scalar.
        name: how reports call it.
        nonneg: entries are >= 0.
        boolean: entries are 0 or 1.
        integer: entries are integers.
        bounds: `(lower, upper)`, numbers or arrays of the shape, None for an open side.

    `value` is the start when set before a solve, and the result after one.
    """

    __slots__ = ("symbol",)

    symbol: n.VariableSymbol

    def __init__(
        self,
        shape: int | Sequence[int] = (),
        name: str = "x",
        *,
        nonneg: bool = False,
        boolean: bool = False,
        integer: bool = False,
        bounds: tuple[Any, Any] | None = None,
    ) -> None:
        checked = checked_name(name, "Variable", 'cn.Variable(3, "w")')
        symbol = n.VariableSymbol(checked, _shape_of(shape), nonneg, boolean, integer, bounds)
        object.__setattr__(self, "symbol", symbol)
        super().__init__(n.Decision(self.symbol, loc=here()))

    @property
    def name(self) -> str:
        """The name."""
        return self.symbol.name

    @property
    def value(self) -> Any:
        """The value after a solve (an array of `shape`), or the start that was set; None before."""
        return self.symbol.value

    @value.setter
    def value(self, value: Any) -> None:
        _check_shape(value, self.symbol.shape, f"Variable {self.symbol.name!r}")
        self.symbol.value = value


class Parameter(Expr):
    """A constant that may change between solves without recompiling.

    Args:
        name: how reports call it; sensitivities are taken with respect to it.
        value: a number or an array; may be set later.
        shape: shape when it is no scalar.
    """

    __slots__ = ("symbol",)

    symbol: n.ParameterSymbol

    def __init__(self, name: str, value: Any = None, shape: int | Sequence[int] | None = None) -> None:
        checked = checked_name(name, "Parameter", 'cn.Parameter("alpha", 0.05)')
        inferred = () if value is None else (static_shape(value) or ())
        symbol = n.ParameterSymbol(checked, inferred if shape is None else _shape_of(shape))
        object.__setattr__(self, "symbol", symbol)
        super().__init__(n.Knob(self.symbol, loc=here()))
        if value is not None:
            self.value = value

    @property
    def name(self) -> str:
        """The name."""
        return self.symbol.name

    @property
    def value(self) -> Any:
        """The current value, None when it has none yet."""
        return self.symbol.value

    @value.setter
    def value(self, value: Any) -> None:
        _check_shape(value, self.symbol.shape, f"Parameter {self.symbol.name!r}")
        self.symbol.value = value


def _check_shape(value: Any, shape: tuple[int, ...], what: str) -> None:
    given = static_shape(value)
    if value is not None and (given or ()) != shape:
        raise ModelingError("E112", f"{what} has shape {shape}, the value given has {given or ()}", at=here())


class Model:
    """A `torch.nn.Module` as a function symbol: `f(D.x)` is per row, its trainable parameters are decisions.

    Args:
        module: the module; it is trained in place.
        name: how reports call it.
        frozen: its parameters are constants.
    """

    def __init__(self, module: Any, name: str = "f", *, frozen: bool = False) -> None:
        if not callable(module) or not hasattr(module, "named_parameters"):
            raise ModelingError(
                "E122",
                f"cn.Model wraps a torch.nn.Module, got a {type(module).__name__}",
                at=here(),
                fix='cn.Model(torch.nn.Linear(3, 1), "f")',
            )
        self.module: Any = module
        self.name = checked_name(name, "Model", 'cn.Model(net, "f")')
        self.frozen = frozen

    def __call__(self, *args: Any) -> Expr:
        """The model applied to expressions, row by row where they are per row.

        Numbers per row (and plain numbers, and lists of them as points) are the features of a model that
        takes a feature axis: `u(x)` and `u(x, t)` stack them, and an output of length one is a number per
        row. A model that takes its arguments as they are gets them so.
        """
        if not args:
            raise ModelingError(
                "E117", f"{self.name}() needs an argument", at=here(), fix=f"{self.name}(D.x)"
            )
        nodes = tuple(as_number(a) for a in args)
        leads, shapes = (tuple(getattr(type_of(x), name) for x in nodes) for name in ("lead", "shape"))
        numbers = all(s == () or (not any(leads) and s is not None and len(s) == 1) for s in shapes)
        features = numbers and bool(probe().takes_features(self, nodes))
        return Expr(n.Call(self, nodes, features, loc=here()))

    def __repr__(self) -> str:
        return f"<Model {self.name}: {type(self.module).__name__}{', frozen' if self.frozen else ''}>"
