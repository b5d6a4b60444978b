"""From a `cvxpy.Problem` to a problem of the language.

Arithmetic and functions become those of the language. Any other affine atom (slices, stacks, diagonals,
convolutions ...) is a constant matrix times the entries of its arguments, which is read off its own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from constrain.backends.cvxpy.package import cp
from constrain.errors import ModelingError, RouteError
from constrain.language import functions as f
from constrain.language.expr import as_expr
from constrain.language.problem import Problem, maximize, minimize
from constrain.language.symbols import Parameter, Variable
from constrain.runtime.lowering import identifier

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Imported", "from_cvxpy", "imported"]

MATRIX_LIMIT = 4_000_000
"""Most entries of the matrix of one affine atom."""
_UNKNOWN = ("NSD", "hermitian", "complex", "imag", "diag", "sparsity")

Rule: TypeAlias = Callable[[Any, "list[Any]"], Any]


@dataclass(frozen=True)
class Imported:
    """A problem, and what its names stand for.

    Attributes:
        problem: of the language.
        variables: by id of the cvxpy variable.
        constraints: by id of the cvxpy constraint, its name.
    """

    problem: Problem
    variables: dict[int, Variable]
    constraints: dict[int, str]


# ------------------------------------------------------------------------------------------- functions
def _entries(e: Any) -> Any:
    """All entries as one vector, last axis fastest."""
    return e if len(e.shape) == 1 else e.reshape(-1) if e.shape else e.reshape(1)


def _shaped(vector: Any, shape: tuple[int, ...]) -> Any:
    """A vector in another shape."""
    return vector if shape == vector.shape else vector.reshape(shape) if shape else vector[0]


def _power(atom: Any, args: list[Any]) -> Any:
    p = float(atom.p.value if hasattr(atom.p, "value") else atom.p)
    (x,) = args
    known: dict[float, Callable[[Any], Any]] = {2.0: f.square, 0.5: f.sqrt, 1.0: lambda e: e}
    return known[p](x) if p in known else x ** (int(p) if p.is_integer() else p)


def _axes(atom: Any) -> tuple[Any, bool]:
    axis = atom.axis
    if isinstance(axis, (list, tuple)):
        axis = tuple(int(a) for a in axis)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return axis, bool(atom.keepdims)


def _reduced(function: Callable[..., Any]) -> Rule:
    def rule(atom: Any, args: list[Any]) -> Any:
        axis, keepdims = _axes(atom)
        return function(args[0], axis=axis, keepdims=keepdims) if args[0].shape != () else args[0]

    return rule


def _pnorm(atom: Any, args: list[Any]) -> Any:
    axis, keepdims = _axes(atom)
    p = float(atom.p)
    if p in (1.0, 2.0):
        return f.norm(args[0], p, axis=axis, keepdims=keepdims)
    if p == math.inf:
        return f.max(f.abs(args[0]), axis=axis, keepdims=keepdims)
    raise RouteError("E125", f"from_cvxpy knows norms of order 1, 2 and inf, not {p:g}")


def _norm_one(atom: Any, args: list[Any]) -> Any:
    axis, keepdims = _axes(atom)
    return f.sum(f.abs(args[0]), axis=axis, keepdims=keepdims)


def _norm_inf(atom: Any, args: list[Any]) -> Any:
    axis, keepdims = _axes(atom)
    return f.max(f.abs(args[0]), axis=axis, keepdims=keepdims)


def _quad_over_lin(atom: Any, args: list[Any]) -> Any:
    axis, keepdims = _axes(atom)
    top = f.sum(f.square(args[0]), axis=axis, keepdims=keepdims) if args[0].shape != () else f.square(args[0])
    return top if atom.args[1].is_constant() and np.all(atom.args[1].value == 1) else top / args[1]


def _quad_form(atom: Any, args: list[Any]) -> Any:
    if not atom.args[1].is_constant():
        raise RouteError("E125", "from_cvxpy takes quadratic forms with a constant matrix")
    matrix = np.asarray(_dense(atom.args[1].value))
    return f.quad_form(_entries(args[0]), (matrix + matrix.T) / 2)


def _geo_mean(atom: Any, args: list[Any]) -> Any:
    weights = np.asarray([float(w) for w in atom.w])
    return f.exp(weights @ f.log(_entries(args[0])))


def _huber(atom: Any, args: list[Any]) -> Any:
    """The huber of cvxpy is twice that of torch."""
    return 2.0 * torch.nn.functional.huber_loss(
        args[0], torch.zeros(args[0].shape or ()).double(), reduction="none", delta=float(atom.M.value)
    )


def _folded(function: Callable[[Any, Any], Any]) -> Rule:
    def rule(_atom: Any, args: list[Any]) -> Any:
        result = args[0]
        for other in args[1:]:
            result = function(result, other)
        return result

    return rule


def _torch(name: str) -> Rule:
    return lambda _atom, args: getattr(torch, name)(args[0])


def _one(function: Callable[[Any], Any]) -> Rule:
    return lambda _atom, args: function(args[0])


def _mul(_atom: Any, args: list[Any]) -> Any:
    return args[0] @ args[1] if args[0].shape != () and args[1].shape != () else args[0] * args[1]


RULES: dict[str, Rule] = {
    "AddExpression": _folded(lambda a, b: a + b),
    "NegExpression": _one(lambda x: -x),
    "multiply": _folded(lambda a, b: a * b),
    "MulExpression": _mul,
    "DivExpression": _folded(lambda a, b: a / b),
    "Sum": _reduced(f.sum),
    "max": _reduced(f.max),
    "min": _reduced(f.min),
    "log_sum_exp": _reduced(f.logsumexp),
    "Trace": _one(f.trace),
    "abs": _one(f.abs),
    "exp": _one(f.exp),
    "log": _one(f.log),
    "log1p": _one(torch.log1p),
    "entr": _one(f.entr),
    "logistic": _one(f.softplus),
    "xexp": _one(lambda x: x * f.exp(x)),
    "kl_div": lambda _atom, args: f.kl_div(args[0], args[1]),
    "rel_entr": lambda _atom, args: f.rel_entr(args[0], args[1]),
    "maximum": _folded(f.maximum),
    "minimum": _folded(f.minimum),
    **dict.fromkeys(("Power", "PowerApprox", "power"), _power),
    **dict.fromkeys(("Pnorm", "PnormApprox"), _pnorm),
    "norm1": _norm_one,
    "norm_inf": _norm_inf,
    "quad_over_lin": _quad_over_lin,
    "QuadForm": _quad_form,
    **dict.fromkeys(("GeoMean", "GeoMeanApprox"), _geo_mean),
    "huber": _huber,
    "log_det": _one(torch.logdet),
    "lambda_max": _one(f.lambda_max),
    "sigma_max": _one(f.spectral_norm),
    "normNuc": _one(f.nuclear_norm),
    **dict.fromkeys(("psd_wrap", "nonneg_wrap", "nonpos_wrap", "symmetric_wrap"), _one(lambda x: x)),
    **{name: _torch(name) for name in ("sin", "cos", "tanh")},
}


# ------------------------------------------------------------------------------------- affine in general
def _dense(value: Any) -> NDArray[np.float64]:
    return np.asarray(value.toarray() if hasattr(value, "toarray") else value, dtype=np.float64)


def _affine(atom: Any, args: list[Any]) -> Any:
    """Any affine atom: its constant matrix times the entries of each argument."""
    moving = [k for k, a in enumerate(atom.args) if not a.is_constant()]
    fixed = [_dense(a.value) if k not in moving else np.zeros(a.shape) for k, a in enumerate(atom.args)]
    base = _dense(atom.numeric(fixed)).reshape(atom.shape)
    if len(atom.args) == 1 and len(moving) == 1:
        places = _moved(atom)
        if places is not None:
            if atom.shape == ():
                return _entries(args[0])[int(places)]
            picked = _entries(args[0])[places.reshape(-1).tolist()]
            return _shaped(picked, atom.shape)
    total: Any = base.reshape(-1) if np.any(base) else None
    for k in moving:
        term = _columns(atom, fixed, k, base) @ _entries(args[k])
        total = term if total is None else total + term
    return _shaped(total, atom.shape)


def _moved(atom: Any) -> Any | None:
    """Where each entry comes from, of an atom that only moves entries."""
    size = atom.args[0].size
    numbers = [np.arange(1.0, size + 1) * factor for factor in (1.0, math.pi)]
    found = [_dense(atom.numeric([x.reshape(atom.args[0].shape)])) for x in numbers]
    places = np.rint(found[0]).astype(np.int64)
    if np.any(places < 1) or np.any(places > size):
        return None
    same = np.allclose(found[0], places) and np.allclose(found[1], numbers[1][places - 1])
    return (places - 1).reshape(tuple(atom.shape)) if same else None


def _columns(atom: Any, fixed: list[NDArray[Any]], k: int, base: NDArray[Any]) -> NDArray[np.float64]:
    size = atom.args[k].size
    if size * atom.size > MATRIX_LIMIT:
        raise RouteError("E125", f"from_cvxpy would need a matrix of {size * atom.size:,} entries")
    matrix = np.zeros((atom.size, size))
    for j in range(size):
        unit = np.zeros(size)
        unit[j] = 1.0
        shaped: Any = np.reshape(unit, tuple(atom.args[k].shape))
        values: list[Any] = [shaped if i == k else x for i, x in enumerate(fixed)]
        matrix[:, j] = (_dense(atom.numeric(values)).reshape(atom.shape) - base).reshape(-1)
    return matrix


# ------------------------------------------------------------------------------------------ the problem
class _Importer:
    """Converts expressions, each once.

    Args:
        convex: the problem obeys the disciplined rules: what is convex is pushed down wherever it stands.
    """

    def __init__(self, *, convex: bool) -> None:
        self._convex = convex
        self.taken: set[str] = set()
        self.variables: dict[int, Variable] = {}
        self.parameters: dict[int, Parameter] = {}
        self._memo: dict[int, Any] = {}

    def expression(self, root: Any) -> Any:
        """The expression of a cvxpy expression. Iterative: long sums are fine."""
        stack = [root]
        while stack:
            node = stack[-1]
            waiting = [] if self._leaf(node) else [a for a in node.args if id(a) not in self._memo]
            if waiting:
                stack.extend(waiting)
                continue
            if id(node) not in self._memo:
                self._memo[id(node)] = self._converted(node)
            stack.pop()
        return self._memo[id(root)]

    @staticmethod
    def _leaf(node: Any) -> bool:
        return not node.args or (node.is_constant() and not node.parameters())

    def _converted(self, node: Any) -> Any:
        if isinstance(node, cp.Variable):
            return self.variable(node)
        if isinstance(node, cp.Parameter):
            return self._parameter(node)
        if self._leaf(node):
            value = _dense(node.value)
            return as_expr(float(value) if value.shape == () else value)
        args = [self._memo[id(a)] for a in node.args]
        name = type(node).__name__
        if name in RULES:
            return RULES[name](node, args)
        if node.is_atom_affine():
            return _affine(node, args)
        if name == "sum_largest" and self._convex and node.axis is None:
            return self._sum_largest(node, args[0])
        raise RouteError("E125", f"from_cvxpy has no form of {name}")

    def _sum_largest(self, node: Any, x: Any) -> Any:
        """The sum of the k largest entries = min over t of k t + sum max(x - t, 0).

        Source: Rockafellar & Uryasev (2000).
        """
        level = Variable((), identifier("level", self.taken))
        return float(node.k) * level + f.sum(f.relu(_entries(x) - level))

    def variable(self, node: Any) -> Variable:
        """A variable with its attributes; its value is the start."""
        if node.id in self.variables:
            return self.variables[node.id]
        own = node.attributes
        refused = [name for name in _UNKNOWN if own.get(name)]
        if refused or any(isinstance(own[k], (list, tuple)) for k in ("boolean", "integer")):
            what = refused[0] if refused else "integrality of some entries"
            raise RouteError("E125", f"from_cvxpy does not take the attribute {what} of {node.name()}")
        low, high = own["bounds"] if own["bounds"] is not None else (None, None)
        low = None if low is None or np.all(np.isneginf(_dense(low))) else _dense(low)
        high = None if high is None or np.all(np.isposinf(_dense(high))) else _dense(high)
        if own["nonpos"] or own["neg"]:
            high = np.zeros(node.shape) if high is None else np.minimum(high, 0.0)
        bounds = None if low is None and high is None else (low, high)
        made: Any = Variable(
            node.shape,
            identifier(node.name(), self.taken),
            nonneg=bool(own["nonneg"] or own["pos"]),
            boolean=bool(own["boolean"]),
            integer=bool(own["integer"]),
            bounds=bounds,
            symmetric=bool(own["symmetric"]),
            psd=bool(own["PSD"]),
        )
        if node.value is not None:
            made.value = _dense(node.value).reshape(node.shape)
        self.variables[node.id] = made
        return made

    def _parameter(self, node: Any) -> Parameter:
        if node.id not in self.parameters:
            made: Any = Parameter(identifier(node.name(), self.taken), shape=node.shape)
            if node.value is not None:
                made.value = _dense(node.value).reshape(node.shape)
            self.parameters[node.id] = made
        return self.parameters[node.id]

    def relation(self, constraint: Any) -> Any:
        """The relation of a cvxpy constraint, its sides as they were written."""
        kind = type(constraint).__name__
        args = [self.expression(a) for a in constraint.args]
        match kind:
            case "Inequality":
                return args[0] <= args[1]
            case "Equality":
                return args[0] == args[1]
            case "Zero":
                return args[0] == 0.0
            case "NonNeg":
                return args[0] >= 0.0
            case "NonPos":
                return args[0] <= 0.0
            case "SOC":
                axis = None if constraint.args[1].ndim <= 1 else int(constraint.axis)
                level = args[0] if axis is not None or args[0].shape == () else args[0].reshape(())
                return f.norm(args[1], 2, axis=axis) <= level
            case "PSD":
                return args[0] >> 0
            case "ExpCone":
                x, y, z = args
                return x + f.rel_entr(y, z) <= 0.0  # y exp(x / y) <= z, in a form that is known to be convex
            case _:
                raise RouteError("E125", f"from_cvxpy has no form of a {kind} constraint")


def imported(problem: Any) -> Imported:
    """A cvxpy problem as one of the language, with the way back to its variables and constraints.

    Raises:
        ModelingError: E117 for what is no `cvxpy.Problem`.
        RouteError: E125 for an atom, attribute or constraint without a form in the language.
    """
    if not isinstance(problem, cp.Problem):
        own = isinstance(problem, Problem)
        hint = "a problem of this language already" if own else f"got {type(problem).__name__}"
        raise ModelingError(
            "E117", f"from_cvxpy takes a cvxpy.Problem, {hint}", fix="cp.Problem(objective, constraints)"
        )
    importer = _Importer(convex=problem.is_dcp())
    for variable in problem.variables():
        importer.variable(variable)
    objective = importer.expression(problem.objective.args[0])
    objective = objective if objective.shape == () else objective.reshape(())
    start = maximize if isinstance(problem.objective, cp.Maximize) else minimize
    names: dict[int, str] = {}
    relations: dict[str, Any] = {}
    for number, constraint in enumerate(problem.constraints):
        label = getattr(constraint, "label", None) or f"c{number}"
        name = identifier(label, importer.taken)
        names[constraint.id] = name
        relations[name] = importer.relation(constraint)
        if type(constraint).__name__ == "ExpCone":  # where the logarithm is defined
            for side in constraint.args[1:]:
                if not side.is_nonneg():
                    domain = identifier(f"{name}_domain", importer.taken)
                    relations[domain] = importer.expression(side) >= 0.0
    return Imported(start(objective).subject_to(**relations), importer.variables, names)


def from_cvxpy(problem: Any) -> Problem:
    """A `cvxpy.Problem` as a problem of the language.

    Names are those of the variables and the labels of the constraints (`c0`, `c1`, ... without one), made
    identifiers; values of variables become starts.

    Raises:
        RouteError: E125 for an atom, attribute or constraint without a form in the language.
    """
    return imported(problem).problem
