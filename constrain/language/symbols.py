"""Decisions, parameters and models as users declare them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, cast

from constrain._lazy import probe
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import static_shape
from constrain.language.expr import Constraint, Expr, as_number, shown
from constrain.language.keywords import keywords
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
        symmetric: a square matrix that equals its transpose.
        psd: a symmetric matrix without negative eigenvalues: a constraint `lambda_min(X) >= 0` whose name is
            that of the variable and ` psd`, with a multiplier of its own.

    `value` is the start when set before a solve, and the result after one.
    """

    __slots__ = ("symbol",)

    symbol: n.VariableSymbol

    @keywords
    def __init__(
        self,
        shape: int | Sequence[int] = (),
        name: str = "x",
        *,
        nonneg: bool = False,
        boolean: bool = False,
        integer: bool = False,
        bounds: tuple[Any, Any] | None = None,
        symmetric: bool = False,
        psd: bool = False,
    ) -> None:
        checked = checked_name(name, "Variable", 'cn.Variable(3, "w")')
        sizes = _shape_of(shape)
        if (symmetric or psd) and (len(sizes) != 2 or sizes[0] != sizes[1]):
            raise ModelingError(
                "E112",
                f"a symmetric Variable is a square matrix, {name!r} has shape {sizes}",
                at=here(),
                fix=f'cn.Variable((3, 3), "{name}", symmetric=True)',
            )
        if psd and (integer or boolean):
            kind = "boolean" if boolean else "integer"
            raise ModelingError(
                "E112",
                f"no method takes a semidefinite Variable of whole numbers, {name!r} is psd and {kind}",
                at=here(),
                fix=f'cn.Variable({sizes}, "{name}", psd=True)',
            )
        symbol = n.VariableSymbol(
            checked, sizes, nonneg, boolean, integer, _bounds_of(bounds, sizes, checked)
        )
        symbol.symmetric, symbol.psd = bool(symmetric or psd), bool(psd)
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

    @keywords
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


def _bounds_of(bounds: Any, shape: tuple[int, ...], name: str) -> tuple[Any, Any] | None:
    """A pair of bounds, each None, a number or an array that fits the shape (E112, E117, E136)."""
    if bounds is None:
        return None
    pair = cast("Sequence[Any]", bounds) if isinstance(bounds, (tuple, list)) else ()
    if len(pair) != 2:
        raise ModelingError(
            "E117",
            f"the bounds of Variable {name!r} are a pair (lower, upper), got {shown(bounds)}",
            at=here(),
            fix="bounds=(0, 1); None for an open side: bounds=(0, None)",
        )
    for bound in pair:
        if bound is not None:
            _check_number(bound, f"a bound of Variable {name!r}")
            given = static_shape(bound) or ()
            if given not in ((), (1,), shape):
                raise ModelingError(
                    "E112", f"Variable {name!r} has shape {shape}, a bound of it {given}", at=here()
                )
    low, high = pair
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
        raise ModelingError(
            "E136",
            f"Variable {name!r} has a lower bound above its upper bound: {low} > {high}",
            at=here(),
            fix=f"bounds=({high}, {low})",
        )
    return low, high


def _check_number(value: Any, what: str) -> None:
    """E117 for a value that is no number or array of numbers."""
    text = isinstance(value, str) or (
        isinstance(value, (list, tuple)) and any(isinstance(v, str) for v in cast("Sequence[Any]", value))
    )
    if text or isinstance(value, (Expr, Constraint)) or (static_shape(value) is None and not _real(value)):
        raise ModelingError(
            "E117", f"{what} is a number or an array of numbers, got {shown(value)}", at=here()
        )


def _real(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _check_shape(value: Any, shape: tuple[int, ...], what: str) -> None:
    if value is not None:
        _check_number(value, f"the value of {what}")
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

    @keywords
    def __init__(self, module: Any, name: str = "f", *, frozen: bool = False) -> None:
        if not callable(module) or not hasattr(module, "named_parameters") or isinstance(module, type):
            raise _no_module(module)
        self.module: Any = module
        self.name = checked_name(name, "Model", 'cn.Model(net, "f")')
        self.frozen = frozen

    def __call__(self, *args: Any, **named: Any) -> Expr:
        """The model applied to expressions, row by row where they are per row.

        Numbers per row (and plain numbers, and lists of them as points) are the features of a model that
        takes a feature axis: `u(x)` and `u(x, t)` stack them, and an output of length one is a number per
        row. A model that takes its arguments as they are gets them so.
        """
        if not args or named:
            what = (
                f"takes its arguments by position, got {next(iter(named))}=" if named else "needs an argument"
            )
            raise ModelingError("E117", f"{self.name}() {what}", at=here(), fix=f"{self.name}(D.x)")
        nodes = tuple(as_number(a) for a in args)
        leads, shapes = (tuple(getattr(type_of(x), name) for x in nodes) for name in ("lead", "shape"))
        numbers = all(s == () or (not any(leads) and s is not None and len(s) == 1) for s in shapes)
        features = numbers and bool(probe().takes_features(self, nodes))
        return Expr(n.Call(self, nodes, features, loc=here()))

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__.get("module")
        hint = f"; its module has: {self.__dict__.get('name')}.module.{name}" if name in dir(module) else ""
        raise AttributeError(f"a cn.Model has no attribute {name!r}{hint}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        found = next((a for a in args if isinstance(a, cls)), None)
        name = "f" if found is None else found.name
        raise ModelingError(
            "E117",
            f"torch.{func.__name__} takes numbers, and {name} is a model",
            at=here(),
            fix=f"torch.{func.__name__}({name}(D.x)), of its values on a column",
        )

    def __repr__(self) -> str:
        return f"<Model {self.name}: {type(self.module).__name__}{', frozen' if self.frozen else ''}>"


def _no_module(value: Any) -> ModelingError:
    """E122 for what is no module, with what was likely meant."""
    fix = 'cn.Model(torch.nn.Linear(3, 1), "f")'
    if isinstance(value, type):
        return ModelingError(
            "E122",
            f"cn.Model wraps a module, got the class {value.__name__}",
            at=here(),
            fix=f'cn.Model({value.__name__}(...), "f"), an instance of it',
        )
    if isinstance(value, Model):
        fix = f"{value.name} itself, which is a model already"
    return ModelingError(
        "E122", f"cn.Model wraps a torch.nn.Module, got a {type(value).__name__}", at=here(), fix=fix
    )
