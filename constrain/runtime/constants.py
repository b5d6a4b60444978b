"""Numbers behind the decision-free parts of a program, and the averaging matrices of its moments.

Everything is evaluated in float64 by the torch function of each atom: what depends on no decision enters the
sample-average program as data.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from constrain._lazy import language_printing
from constrain.analysis.models import on_host, trainable
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.runtime import declared, rowwise
from constrain.runtime.binding import Population, bind_population, level_codes
from constrain.runtime.coordinates import derivative
from constrain.runtime.probe import floating_arguments
from constrain.runtime.tails import Sample, numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.language.data import Data
    from constrain.language.symbols import Model
    from constrain.lowering.program import Tail

__all__ = ["Averaging", "Constants"]

_CPU = torch.device("cpu")
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}
_INFIX: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
}


@dataclass(frozen=True)
class Averaging:
    """The averaging matrix of a moment.

    Attributes:
        matrix: (levels, rows) weights, a sparse matrix; one row without `by`.
        leveled: whether the moment has a level axis.
        levels: names of the levels.
    """

    matrix: Any
    leveled: bool
    levels: tuple[Any, ...] = ()

    def times(self, factor: NDArray[Any] | float) -> Averaging:
        """Weights multiplied row by row, or by a number."""
        scaled: Any = self.matrix.multiply(factor if np.ndim(factor) == 0 else np.reshape(factor, (1, -1)))
        return Averaging(sparse.csr_matrix(scaled), self.leveled, self.levels)

    def total(self, rank: int) -> NDArray[Any]:
        """Sum of the weights, shaped to multiply an array with `rank` row axes."""
        sums = np.asarray(self.matrix.sum(axis=1), dtype=np.float64).reshape(-1)
        return sums.reshape(-1, *([1] * rank)) if self.leveled else sums.reshape(())

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """Averages of an array with rows first: (levels, ...), or (...) without levels."""
        mean = np.asarray(self.matrix @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
        return mean if self.leveled else mean[0]


def _float(value: Any) -> Tensor:
    tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.array(value))
    return tensor.to(torch.float64) if tensor.dtype is not torch.bool else tensor


def _parameters(model: Model) -> list[tuple[str, Tensor]]:
    return list(model.module.named_parameters()) if model.frozen else list(trainable(model.module))


def _pinned(tail: Tail) -> tuple[Any, ...]:
    """The symbols of a tail, in the order of `TailNumbers`; None where its kind has none."""
    return (tail.threshold, tail.scale, *(tail.shares or ()), tail.density, tail.width)


class Constants:
    """Evaluates decision-free nodes on bound data.

    Args:
        bind: the sample to use in the place of each sample of the problem; itself when missing.
        parameters: values of parameters.
        decisions: values of variables, to evaluate an expression at a point; models as they are now.
        tails: of the program; thresholds of expressions without decisions are numbers of the sample.
    """

    def __init__(
        self,
        bind: Mapping[Data, Data],
        parameters: Mapping[n.ParameterSymbol, Any],
        decisions: Mapping[n.VariableSymbol, Any] | None = None,
        tails: Sequence[Tail] = (),
    ) -> None:
        self._bind = bind
        self._parameters = parameters
        self._decisions = decisions or {}
        self._tails = {symbol: tail for tail in tails for symbol in _pinned(tail)}
        self._populations: dict[Data, Population] = {}
        self._memo: dict[int, Tensor] = {}
        self._kept: list[n.Node] = []
        self._averaging: dict[n.Moment, Averaging] = {}

    def tensor(self, root: n.Node) -> Tensor:
        """The value of a decision-free node: rows (or levels) first; float64, bool for events."""
        self._kept.append(root)  # ids in the memo stay valid
        return n.fold(root, self._step, self._memo)

    def inputs(self, node: n.Call) -> list[Tensor]:
        """The arguments of a model, of the types that it takes."""
        return list(_inputs(node, tuple(self.tensor(x) for x in node.args)))

    def array(self, root: n.Node) -> NDArray[Any]:
        """The same as a NumPy array; events become 0 and 1."""
        value = self.tensor(root)
        return value.to(torch.float64).numpy() if not value.is_floating_point() else value.numpy()

    def rows(self, data: Data) -> int:
        """Number of rows of the sample bound to `data`."""
        return len(self._bind.get(data, data))

    def column(self, node: n.Column) -> Tensor:
        """A column as the user typed it: float64, or integers; codes for text."""
        population = self._population(node.data, node.name)
        return population.columns[node.name]

    def averaging(self, moment: n.Moment) -> Averaging:
        """The averaging matrix of a moment.

        Raises:
            DataError: E124 for a group or condition without rows.
        """
        if moment not in self._averaging:
            self._averaging[moment] = self._average(moment)
        return self._averaging[moment]

    # ---- data
    def _population(self, data: Data, *columns: str) -> Population:
        population = self._populations.get(data)
        if population is None:
            population = bind_population(self._bind.get(data, data), columns, _CPU, torch.float64)
            self._populations[data] = population
        missing = [c for c in columns if c not in population.columns]
        if missing:
            more = bind_population(population.data, missing, _CPU, torch.float64)
            population.columns.update(more.columns)
            population.levels.update(more.levels)
        return population

    def _average(self, moment: n.Moment) -> Averaging:
        mask = None if moment.given is None else self.tensor(moment.given).to(torch.bool)
        population = self._population(moment.data, *(c.name for c in moment.columns))
        shown = str(language_printing().text(moment, limit=80))
        population.add_stratum(moment.given, moment.by, mask, shown)
        stratum = population.stratum(moment.given, moment.by)
        rows = population.rows
        weight = np.ones(rows) if stratum.weight is None else stratum.weight.to(torch.float64).numpy()
        codes = np.zeros(rows, dtype=np.int64) if stratum.codes is None else stratum.codes.numpy()
        kept = np.flatnonzero(weight)
        shape = (max(len(stratum.levels), 1), rows)
        matrix = sparse.csr_matrix((weight[kept] / rows, (codes[kept], kept)), shape=shape)
        return Averaging(matrix, bool(moment.by), tuple(stratum.levels))

    def _pinned(self, symbol: n.ArraySymbol) -> Tensor:
        """A threshold or mean of an expression without decisions; of others any number does: 0.

        Variances are the same for every center; thresholds of expressions that move are decisions.
        """
        tail = self._tails.get(symbol)
        moving = tail is not None and any(
            x is not None and depends_on_decisions(x) for x in (tail.integrand, tail.given)
        )
        if tail is None or moving:
            return _float(symbol.value)
        averaging = self.averaging(n.Moment(tail.data, tail.integrand, tail.given, tail.by))
        weight = torch.as_tensor(np.asarray(averaging.matrix.sum(axis=0)).reshape(-1))
        names = tuple(column.name for column in tail.by)
        codes = self.tensor(n.Codes(tail.data, names)) if names else None
        sample = Sample(self.tensor(tail.integrand), weight, codes, averaging.matrix.shape[0])
        level = float(self._parameters[tail.level.symbol]) if isinstance(tail.level, n.Knob) else tail.level
        found = numbers(sample, tail.kind, level)
        each = (found.threshold, found.spread, *(found.shares or ()), found.density, found.width)
        value = each[[*_pinned(tail)].index(symbol)]
        assert value is not None  # a symbol is made for the numbers of its kind
        return value.reshape(symbol.shape)

    # ---- nodes
    def _step(self, node: n.Node, parts: tuple[Tensor, ...]) -> Tensor:  # noqa: PLR0911, PLR0912  # one per kind
        match node:
            case n.Constant(value=value):
                return torch.tensor(value, dtype=torch.bool if isinstance(value, bool) else torch.float64)
            case n.Array(symbol=symbol):
                return torch.zeros(()) if isinstance(symbol.value, str) else _float(symbol.value)
            case n.Knob(symbol=symbol):
                return _float(self._parameters[symbol])
            case n.Decision(symbol=symbol):
                return _float(self._decisions[symbol])
            case n.Column():
                return self.column(node)
            case n.Codes(data=data, columns=columns):
                return torch.as_tensor(level_codes(self._population(data).data, columns)[0])
            case n.Pinned(symbol=symbol):
                return self._pinned(symbol)
            case n.Call(model=model, features=features):
                module = on_host(model.module)
                parts = _inputs(node, parts)
                with torch.no_grad():
                    if features:
                        return rowwise.on_features(module, *parts, dtype=torch.float64)
                    return module(*parts).to(torch.float64)
            case n.Gradient():
                return derivative(node, self, self._parameters, self._decisions)
            case n.Weights(model=model):
                return torch.cat([_float(p).reshape(-1) for _, p in _parameters(model)])
            case n.Apply():
                return self._apply(node, parts)
            case n.Opaque():
                return self._opaque(node, parts)
            case n.Comparison():
                return self._comparison(node, parts)
            case n.Logic(op="not"):
                return ~parts[0]
            case n.Logic(op=op):
                return parts[0] & parts[1] if op == "and" else parts[0] | parts[1]
            case n.Indicator():
                return parts[0].to(torch.float64)
            case n.Moment():
                averaged = self.averaging(node).of(parts[0].to(torch.float64).numpy())
                return torch.as_tensor(np.asarray(averaged))
            case _:
                raise AssertionError(type(node))

    def _apply(self, node: n.Apply, parts: tuple[Tensor, ...]) -> Tensor:
        args = [p if p.dtype is torch.bool and node.atom == "where" else p.to(torch.float64) for p in parts]
        if node.atom == "take":
            args[1] = parts[1].long()
        if node.atom in _INFIX:
            return _INFIX[node.atom](*args)
        if ATOMS[node.atom].declared is not None:
            leads = tuple(type_of(x).lead for x in node.args)
            return declared.call(node.atom, *args, lead=leads, **dict(node.options))
        path = ATOMS[node.atom].torch
        if path.startswith("rowwise."):
            lead = tuple(type_of(x).lead for x in node.args)
            return getattr(rowwise, path.removeprefix("rowwise."))(*args, **dict(node.options), lead=lead)
        function: Any = operator.attrgetter(path.removeprefix("torch."))(torch)
        return function(*args)

    @staticmethod
    def _opaque(node: n.Opaque, parts: tuple[Tensor, ...]) -> Tensor:
        values = iter(parts)

        def item(value: Any) -> Any:
            return next(values) if isinstance(value, n.Node) else value

        arguments = [item(value) for value in node.arguments]
        keywords = {key: item(value) for key, value in node.keywords}
        with torch.no_grad():
            result = node.function(*arguments, **keywords)
        if not isinstance(result, Tensor):
            raise ModelingError(
                "E117", f"{node.path} returns a {type(result).__name__}, not a tensor", at=node.loc
            )
        return result.to(torch.float64) if result.dtype is not torch.bool else result

    def _comparison(self, node: n.Comparison, parts: tuple[Tensor, ...]) -> Tensor:
        compare = _COMPARE[node.op]
        if (
            isinstance(node.rhs, n.Array)
            and isinstance(node.rhs.symbol.value, str)
            and isinstance(node.lhs, n.Column)
        ):
            population = self._population(node.lhs.data, node.lhs.name)
            return compare(parts[0], population.level_code(node.lhs.name, node.rhs.symbol.value))
        return compare(parts[0], parts[1])


def _inputs(node: n.Call, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    cast = floating_arguments(node)
    return tuple(v.double() if c else v for v, c in zip(values, cast, strict=True))
