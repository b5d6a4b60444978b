"""The atom table: one record per function that the language knows in depth.

A record says everything the rest of the package asks about a function: its shape rule, its sign, its
monotonicity and curvature (the ingredients of disciplined convex programming, Grant, Boyd & Ye 2006), the
torch function that computes it, and for each other backend either nothing (the backend has a lowering under
the same name) or the written reason for refusing. Adding a function is adding a record and a row in the test
table.

Shapes here are shapes of one row: the axis of rows (or of group levels) always comes first and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = [
    "ATOMS",
    "Atom",
    "Curvature",
    "Declared",
    "Shape",
    "ShapeProblem",
    "Sign",
    "alike",
    "broadcast",
    "register",
]

Shape: TypeAlias = tuple[int, ...]
Sign: TypeAlias = Literal["zero", "nonneg", "nonpos", "any"]
Curvature: TypeAlias = Literal["affine", "convex", "concave", "multilinear", "special", "none"]
Monotone: TypeAlias = Literal["up", "down", "by-sign", "none"]
ShapeRule: TypeAlias = Callable[[tuple[Shape, ...], Mapping[str, Any]], Shape]
SignRule: TypeAlias = Callable[[tuple[Sign, ...]], Sign]


class ShapeProblem(ValueError):
    """Shapes that do not fit; `fix` is what to write instead."""

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.fix = fix


@dataclass(frozen=True)
class Declared:
    """What `cn.op` knows about a function of the user.

    Attributes:
        function: the torch function; its arguments come with one loop shape in front of their core axes.
        core: per argument the letters (or sizes) of the axes that one application takes.
        output: those of the result.
        domain: per argument an interval; the curvature and monotonicity are claimed on it alone.
        smooth: whether second derivatives exist everywhere on the domain.
        lowerings: backend name to the function that writes it in that backend.
        latex: how it is typeset, empty for its name.
        origin: file of the declaration.
    """

    function: Callable[..., Any]
    core: tuple[tuple[str, ...], ...]
    output: tuple[str, ...]
    domain: tuple[tuple[float, float], ...]
    smooth: bool
    lowerings: Mapping[str, Callable[..., Any]]
    latex: str
    origin: str


@dataclass(frozen=True)
class Atom:
    """What is known about one function.

    Attributes:
        name: key of the table, and name of the lowering in every backend.
        shape: row shapes and options to the row shape of the result; raises `ShapeProblem`.
        sign: signs of the arguments to the sign of the result.
        curvature: `multilinear` is affine in each argument when the others are constant; `special` has a rule
            of its own in `analysis/curvature.py`; `none` is neither convex nor concave on its domain.
        monotone: per argument; `by-sign` means nondecreasing on nonneg arguments, nonincreasing on nonpos
            ones.
        torch: path of the torch function, or `rowwise.NAME` for one in `runtime/rowwise.py` that is told how
            many leading axes are rows or levels.
        refusals: backend name to the reason why it cannot take this function.
        declared: what a user's own function (`cn.op`) says on top; None for the functions of the language.
    """

    name: str
    shape: ShapeRule
    sign: SignRule
    curvature: Curvature
    monotone: tuple[Monotone, ...]
    torch: str
    refusals: Mapping[str, str] = field(default_factory=dict[str, str])
    declared: Declared | None = None


# ---------------------------------------------------------------------------------------- shape rules
def broadcast(shapes: tuple[Shape, ...], _options: Mapping[str, Any] | None = None) -> Shape:
    """NumPy broadcasting of row shapes."""
    rank = max(map(len, shapes), default=0)
    result: list[int] = []
    for position in range(-rank, 0):
        sizes = {s[position] for s in shapes if len(s) >= -position} - {1}
        if len(sizes) > 1:
            raise ShapeProblem(
                "shapes do not broadcast: " + " and ".join(map(str, shapes)),
                "one shape for all; sizes are compared from the last axis, and an axis of size 1, as in "
                "e[:, None], fits every size",
            )
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def alike(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
    """The one row shape of all arguments, where torch does not broadcast."""
    if len(set(shapes)) > 1:
        raise ShapeProblem("one shape is needed, got " + " and ".join(map(str, shapes)))
    return shapes[0]


def _first(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
    return shapes[0]


def _picked(shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> Shape:
    """Of one place, or of an array of places."""
    return (*getattr(options["place"], "shape", ()), *(shapes[0] or ()))


def _reduce(shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> Shape:
    shape, axes, keep = shapes[0], options.get("axis"), options.get("keepdims", False)
    if axes is None:
        return tuple(1 for _ in shape) if keep else ()
    for axis in axes:
        if not -len(shape) <= axis < 0:
            raise ShapeProblem(f"axis {axis} is outside of an expression with shape {shape}")
    drop = {axis + len(shape) for axis in axes}
    return tuple(1 if i in drop else n for i, n in enumerate(shape) if keep or i not in drop)


def _matmul(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
    a, b = shapes
    if not a or not b:
        raise ShapeProblem(
            f"@ needs vectors or matrices, got shapes {a} and {b}", "use * for a scalar factor"
        )
    inner_a, inner_b = a[-1], b[-2:][0]
    if inner_a != inner_b:
        raise ShapeProblem(f"inner sizes of @ differ: {a} @ {b} ({inner_a} against {inner_b})", _turned(a, b))
    batch = broadcast((a[:-2], b[:-2]))
    return (*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ()))


def _turned(a: Shape, b: Shape) -> str:
    """The product that fits, where transposing a matrix makes one."""
    if len(a) == 2 and a[0] == b[-2:][0]:
        return "the transposed matrix on the left: A.T @ b"
    if len(b) == 2 and a[-1] == b[1]:
        return "the transposed matrix on the right: a @ B.T"
    return "a matrix with as many columns as the right side has entries (rows of a matrix)"


def _linear(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
    x, weight = shapes[0], shapes[1]
    if not x or x[-1] != weight[-1]:
        raise ShapeProblem(f"a linear layer with weight {weight} cannot take a row of shape {x}")
    return (*x[:-1], *weight[:-1])


def _classes(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
    scores, target = shapes[0], shapes[1]
    if len(scores) != 1:
        one = "F.binary_cross_entropy_with_logits for one score and two classes"
        words = "F.nll_loss(torch.log_softmax(scores, -1).transpose(-1, -2), label"
        several = f'{words}, reduction="none") for a label at every position of a row'
        raise ShapeProblem(
            f"cross_entropy needs one score per class and row, got a row of shape {scores}",
            several if len(scores) == 2 else one,
        )
    if target not in ((), scores):
        raise ShapeProblem(f"the target of cross_entropy has row shape {target}; expected () or {scores}")
    return ()


def _inside(positions: tuple[int, ...], size: int) -> None:
    for k in positions:
        if not -size <= k < size:
            raise ShapeProblem(f"index {k} is outside of an axis with {size} entries")


def _index(shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> Shape:
    shape: Shape = shapes[0]
    key: tuple[Any, ...] = options["key"]
    used = sum(1 for k in key if k not in ("...", None))
    if used > len(shape):
        raise ShapeProblem(
            f"{used} indices for an expression with shape {shape}",
            "indices count within one row: e[..., 0] is the first entry of every row",
        )
    result: list[int] = []
    position = 0
    for k in key:
        if k == "...":
            skip = len(shape) - used
            result += shape[position : position + skip]
            position += skip
        elif k is None:
            result.append(1)
        elif isinstance(k, int):
            _inside((k,), shape[position])
            position += 1
        elif k[0] == "list":
            _inside(k[1], shape[position])
            result.append(len(k[1]))
            position += 1
        else:
            result.append(len(range(*slice(*k[1:]).indices(shape[position]))))
            position += 1
    return (*result, *shape[position:])


def _reshape(shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> Shape:
    new, size = options["shape"], math.prod(shapes[0])
    if -1 in new:
        known = -math.prod(new)
        new = tuple(size // known if n == -1 and known else n for n in new)
    if math.prod(new) != size:
        raise ShapeProblem(f"cannot reshape {shapes[0]} ({size} entries) to {tuple(options['shape'])}")
    return tuple(new)


def _take(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
    return shapes[0][1:]


def _categories(shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> Shape:
    shape = alike(shapes, options)
    if not shape:
        raise ShapeProblem("one value per category is needed, got a row of shape ()", "logits of shape (k,)")
    return shape[:-1]


def _transpose(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
    return tuple(reversed(shapes[0]))


def _stack(shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> Shape:
    return (len(shapes), *alike(shapes, options))


def _quad_form(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
    x, p = shapes
    if len(x) != 1 or p != (x[0], x[0]):
        raise ShapeProblem(f"quad_form(x, P) needs x:(n,) and P:(n, n), got {x} and {p}")
    return ()


def _square_matrix(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
    if len(shapes[0]) != 2 or shapes[0][0] != shapes[0][1]:
        raise ShapeProblem(f"a square matrix is needed, got shape {shapes[0]}")
    return shapes[0]


def _trace(shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> Shape:
    _square_matrix(shapes, options)
    return ()


def _matrix(shapes: tuple[Shape, ...], _options: Mapping[str, Any]) -> Shape:
    if len(shapes[0]) != 2:
        raise ShapeProblem(f"a matrix is needed, got shape {shapes[0]}")
    return ()


_ONE_ROW = "one letter per axis of one row; the axis of rows has no letter"


def _einsum(shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> Shape:
    inputs, _, output = options["equation"].replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(shapes) or "." in inputs:
        raise ShapeProblem(
            f"einsum {options['equation']!r} does not name {len(shapes)} operands letter by letter"
        )
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(term) != len(shape):
            raise ShapeProblem(f"einsum term {term!r} has {len(term)} letters for shape {shape}", _ONE_ROW)
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ShapeProblem(f"einsum letter {letter!r} has sizes {sizes[letter]} and {size}")
    if not set(output) <= set(sizes) or len(set(output)) < len(output):
        raise ShapeProblem(f"the output {output!r} of einsum does not name letters of its operands once each")
    return tuple(sizes[letter] for letter in output)


# ----------------------------------------------------------------------------------------- sign rules
def _fixed(sign: Sign) -> SignRule:
    return lambda _signs: sign


def _same(signs: tuple[Sign, ...]) -> Sign:
    return signs[0]


def _flip(sign: Sign) -> Sign:
    flipped: dict[Sign, Sign] = {"nonneg": "nonpos", "nonpos": "nonneg", "zero": "zero", "any": "any"}
    return flipped[sign]


def _sum_sign(signs: tuple[Sign, ...]) -> Sign:
    real = set(signs) - {"zero"}
    if not real:
        return "zero"
    return real.pop() if len(real) == 1 else "any"


def _product_sign(signs: tuple[Sign, ...]) -> Sign:
    if "zero" in signs:
        return "zero"
    if "any" in signs:
        return "any"
    return "nonpos" if sum(s == "nonpos" for s in signs) % 2 else "nonneg"


def _max_sign(signs: tuple[Sign, ...]) -> Sign:
    if "nonneg" in signs:
        return "nonneg"
    if "any" in signs:
        return "any"
    return "zero" if "zero" in signs else "nonpos"


def _min_sign(signs: tuple[Sign, ...]) -> Sign:
    return _flip(_max_sign(tuple(_flip(s) for s in signs)))


# ----------------------------------------------------------------------------------------------- table
_NO_CVXPY = "has no disciplined convex form"
_NO_PYOMO = "is no function of Pyomo"
ATOMS: dict[str, Atom] = {}


def register(atom: Atom) -> Atom:
    """Adds a record to the table.

    A function that a user declared may be declared again from where it was, as a notebook does.

    Raises:
        ValueError: when the name is taken.
    """
    known = ATOMS.get(atom.name)
    before = None if known is None else known.declared
    again = before is not None and atom.declared is not None and before.origin == atom.declared.origin
    if known is not None and not again:
        raise ValueError(f"an atom named {atom.name!r} is already registered")
    ATOMS[atom.name] = atom
    return atom


def _add(
    name: str,
    curvature: Curvature,
    monotone: tuple[Monotone, ...] | Monotone,
    sign: SignRule | Sign,
    torch: str | None = None,
    shape: ShapeRule = broadcast,
    **refusals: str,
) -> None:
    register(
        Atom(
            name=name,
            shape=shape,
            sign=sign if callable(sign) else _fixed(sign),
            curvature=curvature,
            monotone=(monotone,) if isinstance(monotone, str) else monotone,
            torch=torch or f"torch.{name}",
            refusals=refusals,
        )
    )


# arithmetic
_add("add", "affine", ("up", "up"), _sum_sign)
_add("sub", "affine", ("up", "down"), lambda s: _sum_sign((s[0], _flip(s[1]))))
_add("neg", "affine", "down", lambda s: _flip(s[0]))
_add("mul", "multilinear", ("none", "none"), _product_sign)
_add("div", "special", ("none", "none"), _product_sign)
_add("pow", "special", ("none", "none"), "any")
_add("matmul", "multilinear", ("none", "none"), "any", "rowwise.matmul", _matmul)
_add("linear", "multilinear", ("none", "none", "none"), "any", "rowwise.linear", _linear)
_add("einsum", "multilinear", ("none", "none"), "any", "rowwise.einsum", _einsum)
# elementwise, one argument
_add("abs", "convex", "by-sign", "nonneg")
_add("square", "convex", "by-sign", "nonneg")
_add("exp", "convex", "up", "nonneg")
_add("expm1", "convex", "up", "any")
_add("log", "concave", "up", "any")
_add("log1p", "concave", "up", _same)
_add("sqrt", "concave", "up", "nonneg")
_add("reciprocal", "special", "down", _same)
_add("entr", "concave", "none", "any", "rowwise.entr")
_add("relu", "convex", "up", "nonneg", "torch.relu")
_add("softplus", "convex", "up", "nonneg", "torch.nn.functional.softplus")
_add("logsigmoid", "concave", "up", "nonpos", "torch.nn.functional.logsigmoid")
_add("sigmoid", "none", "up", "nonneg", cvxpy=f"sigmoid {_NO_CVXPY}: it is convex below 0 and concave above")
_add("tanh", "none", "up", _same, cvxpy=f"tanh {_NO_CVXPY}")
_add("sin", "none", "none", "any", cvxpy=f"sin {_NO_CVXPY}")
_add("cos", "none", "none", "any", cvxpy=f"cos {_NO_CVXPY}")
_add("erf", "none", "up", _same, "torch.erf", cvxpy=f"erf {_NO_CVXPY}", pyomo=f"erf {_NO_PYOMO}")
_add("gelu", "none", "none", "any", "torch.nn.functional.gelu",
     cvxpy=f"gelu {_NO_CVXPY}", pyomo=f"erf, which gelu is made of, {_NO_PYOMO}")  # fmt: skip
_add("silu", "none", "none", "any", "torch.nn.functional.silu", cvxpy=f"silu {_NO_CVXPY}")
_add("elu", "none", "up", "any", "torch.nn.functional.elu",
     cvxpy=f"elu {_NO_CVXPY} that cvxpy has an atom for",
     pyomo="elu is one formula above 0 and another below")  # fmt: skip
_add("sign", "none", "up", _same, cvxpy=f"sign {_NO_CVXPY}: it jumps at 0",
     pyomo="sign jumps at 0: count events in its place, as in P(e > 0)")  # fmt: skip
_add("floor", "none", "up", "any", cvxpy=f"floor {_NO_CVXPY}: it jumps",
     pyomo="floor jumps: an integer Variable k with k <= e and e <= k + 1 says it")  # fmt: skip
# elementwise, two arguments
_add("maximum", "convex", ("up", "up"), _max_sign)
_add("minimum", "concave", ("up", "up"), _min_sign)
_add("kl_div", "convex", ("none", "none"), "nonneg", "rowwise.kl_div")
_add("rel_entr", "convex", ("none", "down"), "any", "rowwise.rel_entr")
_add("huber", "convex", "by-sign", "nonneg", "rowwise.huber",
     pyomo="huber is one formula up to delta and another beyond")  # fmt: skip
# losses, one value per row
_add(
    "binary_cross_entropy_with_logits",
    "special",
    ("none", "none"),
    "any",
    "rowwise.binary_cross_entropy_with_logits",
    alike,
)
_add("binary_cross_entropy", "special", ("none", "none"), "nonneg", "rowwise.binary_cross_entropy", alike)
_add("cross_entropy", "special", ("none", "none"), "nonneg", "rowwise.cross_entropy", _classes)
_add("mse_loss", "convex", ("none", "none"), "nonneg", "rowwise.mse_loss")
_add("l1_loss", "convex", ("none", "none"), "nonneg", "rowwise.l1_loss")
# reductions; `axis` is a tuple of negative axes of the row shape, None for all of them
_add("sum", "affine", "up", _same, "rowwise.sum", _reduce)
_add("mean", "affine", "up", _same, "rowwise.mean", _reduce)
_add("max", "convex", "up", _same, "rowwise.max", _reduce)
_add("min", "concave", "up", _same, "rowwise.min", _reduce)
_add("logsumexp", "convex", "up", "any", "rowwise.logsumexp", _reduce)
_add("norm", "convex", "by-sign", "nonneg", "rowwise.norm", _reduce)
_add("sum_squares", "convex", "by-sign", "nonneg", "rowwise.sum_squares", _reduce)
_add("count_nonzero", "none", "none", "nonneg", "rowwise.count_nonzero", _reduce,
     cvxpy="count_nonzero is an integer function: it needs the mixed-integer route",
     sympy="count_nonzero, which is a count and has no derivative")  # fmt: skip
_add("softmax", "none", "none", "nonneg", "rowwise.softmax", _first, cvxpy=f"softmax {_NO_CVXPY}")
_add("log_softmax", "concave", "none", "nonpos", "rowwise.log_softmax", _first)
# structure
_add("index", "affine", "up", _same, "rowwise.index", _index)
_add("reshape", "affine", "up", _same, "rowwise.reshape", _reshape)
_add("transpose", "affine", "up", _same, "rowwise.transpose", _transpose)
_add("stack", "affine", "up", _sum_sign, "rowwise.stack", _stack)
_add("where", "special", ("none", "none", "none"), lambda s: _sum_sign(s[1:]), "torch.where")
_add("take", "affine", ("up", "none"), _same, "rowwise.take", _take)
# matrices and quadratic forms
_add("quad_form", "special", ("none", "none"), "any", "rowwise.quad_form", _quad_form)
_add("trace", "affine", "up", "any", "rowwise.trace", _trace)
_add("matrix_exp", "none", "none", "any", "torch.matrix_exp", _square_matrix, cvxpy=f"matrix_exp {_NO_CVXPY}",
     pyomo=f"matrix_exp {_NO_PYOMO}", sympy="matrix_exp of symbols")  # fmt: skip
_add("logdet", "special", "none", "any", "torch.logdet", _trace, pyomo=f"logdet {_NO_PYOMO}")
_add("symmetric_part", "affine", "none", _same, "rowwise.symmetric_part", _square_matrix)
_EIGEN = {"pyomo": "eigenvalues are no closed formula", "sympy": "eigenvalues, which have no closed formula"}
_add("lambda_max", "convex", "none", "any", "rowwise.lambda_max", _trace, **_EIGEN)
_add("lambda_min", "concave", "none", "any", "rowwise.lambda_min", _trace, **_EIGEN)
_add("spectral_norm", "convex", "none", "nonneg", "rowwise.spectral_norm", _matrix, **_EIGEN)
_add("nuclear_norm", "convex", "none", "nonneg", "rowwise.nuclear_norm", _matrix, **_EIGEN)
# reductions over the levels of `by=`
_add("max_levels", "convex", "up", _same, "rowwise.max_levels", _first)
_add("min_levels", "concave", "up", _same, "rowwise.min_levels", _first)
_add("sum_levels", "affine", "up", _same, "rowwise.sum_levels", _first)
_add("mean_levels", "affine", "up", _same, "rowwise.mean_levels", _first)
_add("pick_levels", "affine", "up", _same, "rowwise.pick_levels", _picked)
_add("logsumexp_levels", "convex", "up", "any", "rowwise.logsumexp_levels", _first)
_add("norm_levels", "convex", "by-sign", "nonneg", "rowwise.norm_levels", _first)
_add("sum_squares_levels", "convex", "by-sign", "nonneg", "rowwise.sum_squares_levels", _first)
# made of two averages: that of the square of an expression, and that of the expression
_add("variance", "special", ("up", "none"), "nonneg", "rowwise.variance")
_add("deviation", "special", ("up", "none"), "nonneg", "rowwise.deviation")
# categorical distributions given by logits on the last axis
_add("entropy_logits", "none", "none", "nonneg", "rowwise.entropy_logits", _categories,
     cvxpy="the entropy of logits is neither convex nor concave; of probabilities it is concave")  # fmt: skip
_add("kl_logits", "special", ("none", "none"), "nonneg", "rowwise.kl_logits", _categories)
