"""Generates one Python function per sample (and one for the outer expressions) out of a program's nodes.

Every shared sub-expression and every model call appears once. The source is kept (`Generated.source`), so
that what runs can be read. Indicators that depend on decisions come in two versions: exact, and the
differentiable surrogate of the primal gradient.

Names inside generated code: `c` columns, `v` variables, `f` models, `k` parameters, `a` constants, `m`
moments, `s` spreads of margins, `w` flattened model parameters.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.rules import is_share
from constrain.runtime import declared, probe, rowwise, surrogates
from constrain.runtime.whole_numbers import WholeNumbers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import CodeType

    from constrain.language.surrogates import Surrogate

__all__ = ["Generated", "Tables", "generate"]

Mode = str  # "exact" or "primal"


def real(x: Any, dtype: torch.dtype) -> Any:
    """Integer and boolean tensors in the floating type of the problem: integers have no negative powers."""
    return x.to(dtype) if isinstance(x, Tensor) and not x.is_floating_point() else x


class Table(list[Any]):
    """Symbols or nodes that generated code refers to by position; equal nodes have one position."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[Any, int] = {}
        self._placed = 0

    def place(self, item: Any) -> int:
        """Position of an item, appended when new."""
        for i in range(self._placed, len(self)):  # what was added in other ways
            self._places.setdefault(self[i], i)
        self._placed = len(self)
        found = self._places.get(item)
        if found is None:
            found = self._places[item] = len(self)
            self.append(item)
            self._placed += 1
        return found


@dataclass
class Tables:
    """What generated code refers to by position; shared by all functions of one program.

    Attributes:
        variables: `VariableSymbol`s.
        models: `Model`s.
        parameters: `ParameterSymbol`s.
        arrays: `ArraySymbol`s.
        moments: `Moment` nodes.
        margins: nodes, the margins of events.
        events: by event with a surrogate the places of its margins.
    """

    variables: Table = field(default_factory=Table)
    models: Table = field(default_factory=Table)
    parameters: Table = field(default_factory=Table)
    arrays: Table = field(default_factory=Table)
    moments: Table = field(default_factory=Table)
    margins: Table = field(default_factory=Table)
    events: dict[n.Node, set[int]] = field(default_factory=dict[n.Node, set[int]])


@dataclass(frozen=True)
class Generated:
    """A generated function and its source.

    Attributes:
        function: takes what `generate` says.
        source: of the function.
        operations: number of its lines that compute something.
        nodes: the expression of every name in it.
        margins: places of the margins whose spreads it reads.
    """

    function: Callable[..., list[Any]]
    source: str
    operations: int
    nodes: Mapping[str, n.Node]
    margins: Sequence[int] = ()

    def node_at(self, line: int) -> n.Node | None:
        """The expression that a line of the source, counted from 1, is part of."""
        name = self.source.splitlines()[line - 1].partition(" = ")[0].strip()
        return self.nodes.get(name)


class _Writer:
    """Writes lines; remembers the name of every node already written in each mode."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.lines: list[str] = []
        self.names: dict[tuple[int, Mode], str] = {}
        self.nodes: dict[str, n.Node] = {}
        self.scope: dict[str, Any] = {
            "torch": torch,
            "rowwise": rowwise,
            "declared": declared,
            "real": real,
            "surrogates": surrogates,
        }
        self.kept: list[n.Node] = []
        self.sensitive: dict[int, bool] = {}
        self.leaves: dict[str, str] = {}
        self.inner: set[n.Node] = set()
        self.whole = WholeNumbers()

    # ---- helpers
    def emit(self, code: str) -> str:
        name = f"t{len(self.lines)}"
        self.lines.append(f"    {name} = {code}")
        return name

    def constant(self, value: Any, hint: str) -> str:
        name = f"{hint}_{len(self.scope)}"
        self.scope[name] = value
        return name

    def mark(self, root: n.Node) -> None:
        """Finds the nodes whose value differs between the two modes; only new ones are visited."""

        def differs(node: n.Node, parts: tuple[bool, ...]) -> bool:
            match node:
                case n.Moment():
                    return False
                case n.Indicator(surrogate=own) | n.Pinned(primal=own) if own is not None:
                    return True
                case _:
                    return any(parts)

        n.fold(root, differs, self.sensitive)

    def differentiate(self, roots: Sequence[n.Node]) -> None:
        """Makes the columns that derivatives are taken by local leaves; all uses then refer to these."""
        for root in roots:
            for node in self._needed(root):
                if isinstance(node, n.Gradient):
                    name = node.wrt.name
                    if name not in self.leaves:
                        self.leaves[name] = self.emit(f"rowwise.leaf(c[{name!r}])")
                    self.inner.update(x for x in n.postorder(node.arg) if isinstance(x, n.Gradient))

    def write(self, root: n.Node, mode: Mode) -> str:
        """Name of the value of `root` in this mode."""
        self.kept.append(root)
        self.mark(root)
        for node in self._needed(root, mode):
            written = len(self.lines)
            self.names[self._key(node, mode)] = self._line(node, mode)
            self.nodes.update((f"t{i}", node) for i in range(written, len(self.lines)))
        return self.names[self._key(root, mode)]

    def _needed(self, root: n.Node, mode: Mode | None = None) -> list[n.Node]:
        """Nodes under `root`, children first; what is inside a moment belongs to another function.

        With a mode without those that are written in it already, and what is under them.
        """
        order: list[n.Node] = []
        seen: set[int] = set()
        stack: list[tuple[n.Node, bool]] = [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif id(node) not in seen and (mode is None or self._key(node, mode) not in self.names):
                seen.add(id(node))
                stack.append((node, True))
                if not isinstance(node, n.Moment):
                    stack.extend((c, False) for c in reversed(n.children(node)))
        return order

    def _key(self, node: n.Node, mode: Mode) -> tuple[int, Mode]:
        return id(node), mode if self.sensitive[id(node)] else "exact"

    def ref(self, node: n.Node, mode: Mode) -> str:
        return self.names[self._key(node, mode)]

    # ---- one line per node
    def _line(self, node: n.Node, mode: Mode) -> str:  # noqa: PLR0911, PLR0912  # one case per node class
        match node:
            case n.Constant(value=value):
                return f"({value!r})" if math.isfinite(value) else self.constant(float(value), "number")
            case n.Array(symbol=symbol):
                if isinstance(symbol.value, str):
                    return repr(symbol.value)
                return f"a[{self.tables.arrays.place(symbol)}]"
            case n.Column(name=name):
                return self.leaves.get(name, f"c[{name!r}]")
            case n.Codes(columns=columns):
                return f"c[{'#' + ','.join(columns)!r}]"
            case n.Pinned(symbol=symbol, primal=primal):
                own = symbol if primal is None or mode == "exact" else primal
                return f"a[{self.tables.arrays.place(own)}]"
            case n.Decision(symbol=symbol):
                return f"v[{self.tables.variables.place(symbol)}]"
            case n.Knob(symbol=symbol):
                return f"k[{self.tables.parameters.place(symbol)}]"
            case n.Weights(model=model):
                return f"w[{self.tables.models.place(model)}]"
            case n.Moment():
                return f"m[{self.tables.moments.place(node)}]"
            case n.Call(model=model, args=args, features=features):
                given = [self._tensor(self.ref(x, mode), x) for x in args]
                cast = probe.floating_arguments(node)
                listed = ", ".join(f"real({x}, dtype)" if c else x for x, c in zip(given, cast, strict=True))
                module = f"f[{self.tables.models.place(model)}]"
                stacked = f"rowwise.on_features({module}, {listed}, dtype=dtype)"
                return self.emit(stacked if features else f"{module}({listed})")
            case n.Gradient(arg=arg, wrt=wrt):
                graph = "True" if node in self.inner else "recorded"
                leaf = self.leaves[wrt.name]
                return self.emit(f"rowwise.gradient({self.ref(arg, mode)}, {leaf}, graph={graph})")
            case n.Apply():
                return self._apply(node, mode)
            case n.Opaque():
                return self._opaque(node, mode)
            case n.Comparison():
                return self._comparison(node, mode)
            case n.Logic(op=op, args=args):
                parts = [self.ref(x, mode) for x in args]
                return self.emit(
                    f"~{parts[0]}" if op == "not" else (" & " if op == "and" else " | ").join(parts)
                )
            case n.Indicator(event=event, surrogate=surrogate):
                if surrogate is not None and mode == "primal":
                    return self._surrogate(event, surrogate, mode)
                return self.emit(f"{self.ref(event, mode)}.to(dtype)")
            case _:
                raise AssertionError(type(node))

    def _apply(self, node: n.Apply, mode: Mode) -> str:
        atom = ATOMS[node.atom]
        refs = [self.ref(x, mode) for x in node.args]
        infix = {"add": "+", "sub": "-", "mul": "*", "div": "/"}.get(node.atom)
        if node.atom == "pow":
            return self.emit(f"real({refs[0]}, dtype) ** {refs[1]}")
        if node.atom == "div" and isinstance(node.args[0], n.Moment) and is_share(node.args[1]):
            return self.emit(f"rowwise.conditional({refs[0]}, {refs[1]})")
        if infix is not None:
            exact = self.whole.shifted(node, refs, infix)
            first, second = self.whole.arguments(node, refs)
            return self.emit(f"{first} {infix} {second}" if exact is None else exact)
        refs = self.whole.arguments(node, refs)
        if atom.declared is None and not atom.torch.startswith("rowwise."):
            refs = [self._tensor(r, x) for r, x in zip(refs, node.args, strict=True)]
            return self.emit(f"{atom.torch}({', '.join(refs)})")
        refs = [self._tensor(r, x) for r, x in zip(refs, node.args, strict=True)]
        lead = tuple(type_of(x).lead for x in node.args)
        options = "".join(f", {key}={self._option(key, value)}" for key, value in node.options)
        if atom.declared is not None:
            # data may be whole numbers; a function of the user has seen floating ones only
            listed = ", ".join(f"real({ref}, dtype)" for ref in refs)
            return self.emit(f"declared.call({node.atom!r}, {listed}{options}, lead={lead!r})")
        if node.atom in ("rel_entr", "kl_div") and not depends_on_decisions(node.args[1]):
            options += ", fixed=True"
        return self.emit(f"{atom.torch}({', '.join(refs)}{options}, lead={lead!r})")

    def _option(self, key: str, value: Any) -> str:
        return self.constant(value, key) if isinstance(value, n.ArraySymbol) else _literal(value)

    def _tensor(self, ref: str, node: n.Node) -> str:
        """Functions want tensors where operators take numbers."""
        return f"number({ref})" if isinstance(node, n.Constant) else ref

    def _opaque(self, node: n.Opaque, mode: Mode) -> str:
        def item(value: Any) -> str:
            return self.ref(value, mode) if isinstance(value, n.Node) else self.constant(value, "value")

        function = self.constant(node.function, "function")
        parts = [item(x) for x in node.arguments] + [f"{key}={item(x)}" for key, x in node.keywords]
        return self.emit(f"{function}({', '.join(parts)})")

    def _comparison(self, node: n.Comparison, mode: Mode) -> str:
        rhs = node.rhs
        if isinstance(rhs, n.Array) and isinstance(rhs.symbol.value, str) and isinstance(node.lhs, n.Column):
            code = f"code({node.lhs.name!r}, {rhs.symbol.value!r})"
            return self.emit(f"c[{node.lhs.name!r}] {node.op} {code}")
        first, second = self.whole.compared(node, [self.ref(node.lhs, mode), self.ref(rhs, mode)])
        return self.emit(f"{first} {node.op} {second}")

    # ---- surrogates
    def _surrogate(self, event: n.Node, surrogate: Surrogate, mode: Mode) -> str:
        """What the primal gradient sees in place of the indicator of an event."""
        places = self.tables.events.setdefault(event, set())

        def spread(margin: n.Node, name: str) -> str:
            place = self.tables.margins.place(margin)
            places.add(place)
            kind = type_of(margin)  # spreads of rows need the axes of one row
            numbers = kind.rows is None or kind.shape == ()
            return f"s[{place}]" if numbers else f"surrogates.along(s[{place}], {name})"

        writer = surrogates.EventWriter(
            surrogate, emit=self.emit, value=lambda node: self.ref(node, mode), spread=spread
        )
        return writer.write(event)


def _literal(value: Any) -> str:
    """An option in generated code."""
    finite = not isinstance(value, float) or math.isfinite(value)
    return repr(value) if finite else f"float({str(value)!r})"


def _live(lines: list[str], results: list[str]) -> list[str]:
    """The lines whose value is used: an event is not computed where only its surrogate is."""
    used = set(re.findall(r"\bt\d+\b", " ".join(results)))
    kept: list[str] = []
    for line in reversed(lines):
        target, _, code = line.strip().partition(" = ")
        if target in used:
            used.update(re.findall(r"\bt\d+\b", code))
            kept.append(line)
    return kept[::-1]


@lru_cache(maxsize=256)
def _compiled(source: str, name: str) -> CodeType:
    """Code of a text, kept: a problem that is solved again has the same."""
    return compile(source, name, "exec")


def generate(name: str, tables: Tables, outputs: Sequence[tuple[n.Node | None, Mode]]) -> Generated:
    """A function that computes the outputs, each in its mode; None stays None.

    The generated function takes `(c, v, f, w, k, a, m, s, dtype, number, code)` and returns a list. With
    derivatives in it, it records gradients of its own accord and detaches the outputs when they were off.
    """
    writer = _Writer(tables)
    writer.differentiate([node for node, _ in outputs if node is not None])
    results = ["None" if node is None else writer.write(node, mode) for node, mode in outputs]
    header = f"def {name}(c, v, f, w, k, a, m, s, dtype, number, code):"
    lines = _live(writer.lines, results)
    returned = f"[{', '.join(results)}]"
    body = [*lines, f"    return {returned}"]
    if writer.leaves:
        recording = ["    recorded = torch.is_grad_enabled()", "    with torch.enable_grad():"]
        indented = [f"    {line}" for line in lines]
        body = [*recording, *indented, f"        return rowwise.released({returned}, graph=recorded)"]
    source = "\n".join([header, *body]) + "\n"
    namespace: dict[str, Any] = writer.scope
    exec(_compiled(source, f"<constrain:{name}>"), namespace)  # our own generated source
    # read from the source, from which lines that nobody uses are gone
    margins = sorted({int(place) for place in re.findall(r"\bs\[(\d+)\]", source)})
    return Generated(namespace[name], source, len(lines), writer.nodes, margins)
