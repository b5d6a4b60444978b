"""`cn.op`: a torch function of the user with the properties that the functions of the language have.

What is declared is what the analysis believes, so nothing may be left out, contradictions are refused, and
the declaration is compared with the function itself on random points before it is taken
(`runtime/declared.py`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from constrain import plugins
from constrain._lazy import attribute
from constrain.errors import ModelingError
from constrain.language.atoms import ATOMS, Atom, Declared, ShapeProblem, broadcast, register
from constrain.language.expr import Expr, apply
from constrain.language.keywords import keywords
from constrain.language.location import here

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from constrain.language.atoms import Curvature, Monotone, Shape, ShapeRule, Sign

__all__ = ["Op", "known", "op"]

Monotonicity: TypeAlias = Literal["increasing", "decreasing", "by-sign", "none"]
Interval: TypeAlias = "tuple[float | None, float | None]"

_CURVATURES = ("affine", "convex", "concave", "none")
_SIGNS = ("nonneg", "nonpos", "any")
_MONOTONE: dict[str, Monotone] = {
    "increasing": "up",
    "decreasing": "down",
    "by-sign": "by-sign",
    "none": "none",
}
_SIGNATURE = re.compile(r"\((.*?)\)(?:,\((.*?)\))*->\((.*?)\)")
_BACKENDS = ("cvxpy", "pyomo")


@dataclass(frozen=True)
class Op:
    """A declared function: call it with expressions and numbers, and with its options by keyword.

    Attributes:
        name: in printed problems, in JSON and in messages.
    """

    name: str

    @property
    def atom(self) -> Atom:
        """The record of the function table."""
        return ATOMS[self.name]

    def __call__(self, *args: Any, **options: Any) -> Expr:
        """Records the function of some arguments.

        Raises:
            ModelingError: E112 for shapes that do not fit, E117 for a wrong number of arguments or an option
                that is no number or text.
        """
        declared = cast("Declared", self.atom.declared)
        if len(args) != len(declared.core):
            raise ModelingError(
                "E117",
                f"{self.name} takes {len(declared.core)} arguments, got {len(args)}",
                at=here(),
                fix=f"{self.name}({', '.join('xyzuvw'[: len(declared.core)])})",
            )
        for key, value in options.items():
            if not isinstance(value, (bool, int, float, str)):
                raise ModelingError(
                    "E117",
                    f"the option {key}= of {self.name} is a {type(value).__name__}, no number or text",
                    at=here(),
                    fix="an argument, which may be an expression or an array",
                )
        return apply(self.name, *args, **options)


@keywords
def op(  # noqa: PLR0913  # one argument per property
    name: str,
    torch: Callable[..., Any] | None = None,
    *,
    shape: str | None = None,
    curvature: Literal["affine", "convex", "concave", "none"] | None = None,
    monotone: Monotonicity | Sequence[Monotonicity] | None = None,
    sign: Literal["nonneg", "nonpos", "any"] | None = None,
    smooth: bool | None = None,
    domain: Interval | Sequence[Interval] = (None, None),
    cvxpy: Callable[..., Any] | None = None,
    pyomo: Callable[..., Any] | None = None,
    latex: str = "",
) -> Op:
    """Declares a torch function, or with a name alone returns the one that was declared under it.

    The declaration is compared with the function on random points of its domain: shapes for two sizes, rows
    that do not depend on each other, sign, monotonicity, the inequality of convexity on segments, and
    gradients against differences. A lowering is compared with the torch function when it is first used.

    Args:
        name: an identifier that the function table does not have.
        torch: the function of tensors. Its arguments have the same loop axes in front (rows of data among
            them), then the axes of `shape`.
        shape: of one application, as in NumPy's generalized functions: `"()->()"` elementwise,
            `"(),()->()"` of two arguments, `"(n)->()"` a number per vector, `"(n),(n,n)->()"`.
        curvature: jointly in all arguments, on the domain: `affine`, `convex`, `concave`, or `none`.
        monotone: per argument, or one for all: `increasing`, `decreasing`, `by-sign` (nondecreasing where the
            argument is nonnegative, nonincreasing where it is nonpositive), or `none`.
        sign: of the values: `nonneg`, `nonpos` or `any`.
        smooth: whether it has second derivatives everywhere on the domain; opens Newton's method.
        domain: where this holds: one interval for all arguments, or one per argument; None for no bound.
            The curvature is used only where an argument is known to stay inside.
        cvxpy: of cvxpy expressions with the axes of `torch`; certified convex problems then go to CVXPY.
        pyomo: of Pyomo expressions, for one application: numbers, or object arrays of the core shape.
        latex: how the name is typeset.

    Returns:
        A callable that records expressions.

    Raises:
        ModelingError: E203 for a declaration that is incomplete or contradicts itself, E204 for one that the
            function contradicts.
        RouteError: E201 when the name alone was given and nobody declared it, E202 when the package that
            declares it cannot be loaded.
    """
    given = {"shape": shape, "curvature": curvature, "monotone": monotone, "sign": sign, "smooth": smooth}
    if torch is None and all(value is None for value in given.values()):
        return known(name)
    _complete(name, torch, given)
    core, output = _signature(name, cast("str", shape))
    record = Atom(
        name=name,
        shape=_shape_rule(name, core, output),
        sign=lambda _signs: cast("Sign", sign),
        curvature=cast("Curvature", curvature),
        monotone=_monotone(name, monotone, len(core)),
        torch="",
        declared=Declared(
            function=cast("Callable[..., Any]", torch),
            core=core,
            output=output,
            domain=_domain(name, domain, len(core)),
            smooth=bool(smooth),
            lowerings=_lowerings(name, cvxpy, pyomo),
            latex=latex,
            origin=str(getattr(here(), "filename", "")),
        ),
    )
    _consistent(record, cast("str", sign))
    attribute("constrain.runtime.declared:compare")(record, str(sign))
    try:
        register(record)
    except ValueError:
        raise _refused(name, f"the name is taken: {name} is a function already", "another name") from None
    return Op(name)


def known(name: str) -> Op:
    """The function that was declared under a name, by this program or by a package that is installed.

    Raises:
        RouteError: E201 or E202.
    """
    own = ATOMS.get(name)
    if own is None or own.declared is None:
        plugins.load("atoms", name)
    if name not in ATOMS or ATOMS[name].declared is None:
        raise _refused(
            name, f"the plug-in {name!r} of constrain.atoms declares no function of that name",
            f'{name} = cn.op("{name}", ...) in the module of its entry point',
        )  # fmt: skip
    return Op(name)


# -------------------------------------------------------------------------------------- what was given
def _refused(name: str, why: str, fix: str) -> ModelingError:
    return ModelingError("E203", f"cn.op({name!r}): {why}", at=here(), fix=fix)


_CHOICES = {
    "shape": '"()->()" elementwise, "(n)->()" a number per vector',
    "curvature": '"affine", "convex", "concave" or "none"',
    "monotone": '"increasing", "decreasing", "by-sign" or "none", one for all arguments or a list',
    "sign": '"nonneg", "nonpos" or "any"',
    "smooth": "True, or False where it has a kink or a jump",
}


def _complete(name: str, torch: Any, given: Mapping[str, Any]) -> None:
    if not name.isidentifier():
        raise _refused(name, "the name is no identifier", 'a name such as "soft_abs"')
    if not callable(torch):
        kind = type(torch).__name__
        what = "no torch function was given" if torch is None else f"torch= is a {kind}, no function"
        raise _refused(name, what, f'cn.op("{name}", torch=lambda x: ..., ...)')
    missing = [key for key, value in given.items() if value is None]
    if missing:
        listed = "\n".join(f"{key}= {_CHOICES[key]}" for key in missing)
        raise _refused(name, f"it lacks {', '.join(missing)}, and the analysis guesses nothing", listed)
    for key, allowed in (("curvature", _CURVATURES), ("sign", _SIGNS)):
        if given[key] not in allowed:
            raise _refused(name, f"{key}={given[key]!r} is none of its values", f"{key}= {_CHOICES[key]}")


def _signature(name: str, text: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Core axes of the arguments and of the result."""
    plain = text.replace(" ", "")
    if not _SIGNATURE.fullmatch(plain):
        raise _refused(name, f"shape={text!r} is no signature", f"shape= {_CHOICES['shape']}")
    left, _, right = plain.partition("->")
    core = tuple(tuple(x for x in part.split(",") if x) for part in re.findall(r"\((.*?)\)", left))
    output = tuple(x for x in right[1:-1].split(",") if x)
    letters = {x for axes in core for x in axes}
    for x in (*letters, *output):
        if not (x.isidentifier() or x.isdigit()):
            raise _refused(name, f"shape={text!r}: {x!r} is no axis and no size", 'shape="(n)->(2)"')
    unknown = [x for x in output if x not in letters and not x.isdigit()]
    if unknown:
        raise _refused(
            name, f"shape={text!r}: no argument has the axis {unknown[0]!r}", 'a size: shape="(n)->(2)"'
        )
    return core, output


def _monotone(name: str, given: Any, count: int) -> tuple[Monotone, ...]:
    listed = [given] * count if isinstance(given, str) else list(given)
    if len(listed) != count or any(x not in _MONOTONE for x in listed):
        raise _refused(
            name, f"monotone={given!r} does not fit {count} arguments", f"monotone= {_CHOICES['monotone']}"
        )
    return tuple(_MONOTONE[x] for x in listed)


def _domain(name: str, given: Any, count: int) -> tuple[tuple[float, float], ...]:
    intervals = list(given)
    if all(x is None or isinstance(x, (int, float)) for x in intervals):
        intervals = [given] * count
    found: list[tuple[float, float]] = []
    for interval in intervals:
        ends = tuple(interval)
        if len(ends) != 2:
            break
        low, high = (-math.inf if ends[0] is None else ends[0]), (math.inf if ends[1] is None else ends[1])
        if not low < high:
            break
        found.append((float(low), float(high)))
    if len(found) != count:
        raise _refused(name, f"domain={given!r} is no interval for {count} arguments", "domain=(0, None)")
    return tuple(found)


def _lowerings(name: str, cvxpy: Any, pyomo: Any) -> dict[str, Callable[..., Any]]:
    given = {key: value for key, value in zip(_BACKENDS, (cvxpy, pyomo), strict=True) if value is not None}
    for key, value in given.items():
        if not callable(value):
            raise _refused(name, f"{key}={value!r} is no function", f"{key}=lambda x: ...")
    return given


def _consistent(atom: Atom, sign: str) -> None:
    """Refuses properties that no function has together, on a domain that contradicts them."""
    declared = cast("Declared", atom.declared)
    lines = all(interval == (-math.inf, math.inf) for interval in declared.domain)
    impossible = {"convex": "nonpos", "concave": "nonneg"}
    if lines and (impossible.get(atom.curvature) == sign or (atom.curvature == "affine" and sign != "any")):
        raise _refused(
            atom.name,
            f"a function that is {atom.curvature} and {sign} on all numbers is constant",
            'sign="any", or domain=(0, None), the numbers on which both hold',
        )
    crossing = any(
        kind == "by-sign" and low < 0 < high
        for kind, (low, high) in zip(atom.monotone, declared.domain, strict=True)
    )
    if atom.curvature in ("affine", "concave") and crossing:
        raise _refused(
            atom.name,
            f"a function that falls up to 0 and rises from there is not {atom.curvature}",
            'curvature="convex" or "none", or another monotone=',
        )
    if "cvxpy" in declared.lowerings and atom.curvature == "none":
        raise _refused(
            atom.name,
            "a lowering to cvxpy is never used, since curvature='none' is never certified convex",
            "the curvature, or no cvxpy=",
        )
    if declared.smooth is False and atom.curvature == "affine":
        raise _refused(atom.name, "an affine function has no kinks", "smooth=True")


# ----------------------------------------------------------------------------------------------- shapes
def _shape_rule(name: str, core: tuple[tuple[str, ...], ...], output: tuple[str, ...]) -> ShapeRule:
    """Row shapes to the row shape of the result: core axes last, loop axes in front of them broadcast."""

    def rule(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
        sizes: dict[str, int] = {}
        loops: list[Shape] = []
        for axes, row in zip(core, shapes, strict=True):
            if len(row) < len(axes):
                raise ShapeProblem(f"{name} takes arguments with axes ({', '.join(axes)}), got {row}")
            loops.append(row[: len(row) - len(axes)])
            for axis, size in zip(axes, row[len(row) - len(axes) :], strict=True):
                expected = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
                if expected != size:
                    raise ShapeProblem(f"{name} needs {axis} = {expected}, got an argument of shape {row}")
        made = tuple(int(axis) if axis.isdigit() else sizes[axis] for axis in output)
        return (*broadcast(tuple(loops)), *made)

    return rule
