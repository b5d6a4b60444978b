"""Problems as JSON and back (semantics S11).

The document holds the structure: one entry per distinct node, children first, with references by position.
What is no structure stays outside and is bound by name on the way in: modules, data, functions, and arrays
that are too large to be written out. Variables and parameters are rebuilt from their declarations unless an
object of their name is given. The law is

    from_json(to_json(p), p.symbols()) == p

The document (version 1):

    {"schema": "constrain.problem", "version": 1, "sense": "minimize",
     "objective": 7, "constraints": [["recall", 12], ...],
     "symbols": {"w": {"kind": "variable", "shape": [3], ...}, "f": {"kind": "model", ...}, ...},
     "nodes": [{"node": "Column", "data": {"$symbol": "adult"}, "name": "x"}, ...]}

A node is written field by field, so that a new class of nodes needs no code here. Numbers, texts, truth
values and null stand for themselves, and a list for a tuple; everything else is an object with one key that
starts with `$`: `$node`, `$symbol`, `$text` (a text of the user's program), `$list`, `$dict`, `$float` (not
finite), `$torch` (a constant such as `torch.float32`), `$array` and `$object` (a record of this package).
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

from constrain import plugins
from constrain._lazy import attribute, language_printing, loaded
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.data import Data, static_shape
from constrain.language.expr import Constraint, Expr, shown
from constrain.language.regions import Law, Region
from constrain.language.symbols import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from constrain.language.layout import Names
    from constrain.language.problem import Problem

__all__ = ["EMBEDDED", "SCHEMA", "VERSION", "problem_from_dict", "problem_to_dict"]

SCHEMA = "constrain.problem"
VERSION = 1
EMBEDDED = 4096
"""Arrays up to this many entries are written out; larger ones are bound by name."""

NODES: dict[str, type[n.Node]] = {kind.__name__: kind for kind in get_args(n.AnyNode)}
"""The closed union of nodes by class name."""

_DECLARED = ("variable", "parameter", "region")
_CONTAINERS = {"torch": "torch", "numpy": "numpy", "builtins": "list"}

_KINDS = ("nonneg", "boolean", "integer", "symmetric", "psd")


# ---------------------------------------------------------------------------------------------- writing
def problem_to_dict(problem: Problem) -> dict[str, Any]:
    """The document of a problem, as plain values."""
    writer = _Writer(language_printing().problem_names(problem))
    objective = None if problem.objective is None else writer.node(problem.objective)
    constraints = [[name, writer.node(node)] for name, node in problem.constraints.items()]
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "sense": problem.sense,
        "objective": objective,
        "constraints": constraints,
        "symbols": writer.symbols,
        "nodes": writer.nodes,
    }


class _Writer:
    """Nodes and symbols as they are met.

    Args:
        names: the name table of the printed source, so that `problem.symbols()` binds the document.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.nodes: list[dict[str, Any]] = []
        self.symbols: dict[str, dict[str, Any]] = {}
        self._places: dict[n.Node, int] = {}

    def node(self, root: n.Node) -> int:
        """Position of a node; it and what is below is written when new."""
        for node in () if root in self._places else n.postorder(root):
            if node not in self._places:
                written = {
                    f.name: self.value(getattr(node, f.name))
                    for f in fields(node)
                    if f.name != "loc" and not _derived(node, f.name)
                }
                self._places[node] = len(self.nodes)
                self.nodes.append({"node": type(node).__name__, **written})
        return self._places[root]

    def value(self, value: Any) -> Any:
        """A field of a node."""
        if value is None or isinstance(value, (bool, str)) or type(value) is int:
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        if isinstance(value, n.Node):
            return {"$node": self.node(value)}
        if isinstance(value, n.ArraySymbol) and isinstance(value.value, str):
            return {"$text": value.value}
        if isinstance(value, (n.VariableSymbol, n.ParameterSymbol, n.ArraySymbol, Data, Model)):
            return {"$symbol": self.symbol(value)}
        return self._container(value)

    def _container(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            items = [self.value(item) for item in cast("Sequence[Any]", value)]
            return items if isinstance(value, tuple) else {"$list": items}
        if isinstance(value, dict):
            pairs = cast("dict[Any, Any]", value).items()
            return {"$dict": [[self.value(key), self.value(item)] for key, item in pairs]}
        kind = cast("type[Any]", type(value))
        if is_dataclass(value) and not callable(value) and kind.__module__.startswith("constrain."):
            stored = {f.name: self.value(getattr(value, f.name)) for f in fields(value) if f.init}
            return {"$object": f"{kind.__module__}:{kind.__qualname__}", "fields": stored}
        constant = repr(value)
        if constant.startswith("torch.") and _torch_object(constant) is value:
            return {"$torch": constant.removeprefix("torch.")}
        return {"$symbol": self._foreign(value)}

    # ---- symbols
    def symbol(self, symbol: Any) -> str:
        """The name of a symbol; its declaration is written when new."""
        name = self.names.add(symbol, getattr(symbol, "name", None) or "array_")
        if name not in self.symbols:
            self.symbols[name] = {}  # holds the place
            self.symbols[name] = self._declaration(symbol)
        return name

    def _declaration(self, symbol: Any) -> dict[str, Any]:
        match symbol:
            case n.VariableSymbol():
                own = {"kind": "variable", "name": symbol.name, "shape": list(symbol.shape)}
                own |= {k: True for k in _KINDS if getattr(symbol, k)}
                if symbol.bounds is not None:
                    own["bounds"] = [self._number(b) for b in symbol.bounds]
                return own
            case n.ParameterSymbol():
                value = self._number(symbol.value)
                return {"kind": "parameter", "name": symbol.name, "shape": list(symbol.shape), "value": value}
            case n.ArraySymbol():
                own = {"kind": "array", "name": symbol.name, "shape": list(symbol.shape)}
                return own | _written_out(symbol.value, symbol.shape)
            case Model():
                module = type(symbol.module).__name__
                return {"kind": "model", "name": symbol.name, "module": module, "frozen": symbol.frozen}
            case _:
                return self._population(symbol)

    def _population(self, data: Data) -> dict[str, Any]:
        if isinstance(data, Region):
            law = {f.name: getattr(data.law, f.name) for f in fields(data.law)}
            law |= {key: self._number(law[key]) for key in ("points", "weights")}
            law |= {key: list(law[key]) for key in ("first", "second")}
            shape = list(data.row_shape(data.name))
            own = {"kind": "region", "name": data.name, "row_shape": shape, "law": law}
            return own | {"rule": data.rule, "size": list(data.size)}
        columns = {column: list(data.row_shape(column)) for column in data.columns}
        return {"kind": "data", "name": data.name, "columns": columns}

    def _number(self, value: Any) -> Any:
        """A bound or a parameter's value: a number, or an array with its kind."""
        if value is None or isinstance(value, (bool, int, float)):
            return self.value(value)
        array = _written_out(value, static_shape(value) or ())
        return {"$array": array} if array else {"$symbol": self._foreign(value)}

    def _foreign(self, value: Any) -> str:
        """A function, or a value that only Python can hold."""
        function = callable(value) and not isinstance(value, type)
        name = self.names.add(value, "function_" if function else "value_")
        self.symbols[name] = {"kind": "function" if function else "value"}
        return name


def _derived(node: n.Node, field: str) -> bool:
    """Whether a field follows from the others: the function of a torch path."""
    return isinstance(node, n.Opaque) and field == "function" and _torch_function(node.path) is node.function


def _written_out(value: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """`container`, `dtype` and `values` of a small numeric array; empty for others."""
    container = _CONTAINERS.get(type(value).__module__.partition(".")[0], "numpy")
    if container == "list":
        dtype, entries = None, value
    else:
        dtype, host = str(getattr(value, "dtype", "")), value
        for word in ("detach", "cpu"):
            host = getattr(host, word)() if container == "torch" else host
        entries = host.tolist() if hasattr(host, "tolist") and not _device_only(value) else None
    if math.prod(shape) > EMBEDDED or entries is None or not _numeric(entries):
        return {}
    own = {"container": container, "values": _plain(entries)}
    return own if dtype is None else own | {"dtype": dtype.removeprefix("torch.")}


def _device_only(value: Any) -> bool:
    return bool(getattr(value, "is_meta", False))


def _numeric(entries: Any) -> bool:
    if isinstance(entries, (list, tuple)):
        return all(map(_numeric, cast("Sequence[Any]", entries)))
    return isinstance(entries, (bool, int, float))


def _plain(entries: Any) -> Any:
    """Nested lists of numbers; what is not finite as an object."""
    if isinstance(entries, (list, tuple)):
        return [_plain(entry) for entry in cast("Sequence[Any]", entries)]
    if isinstance(entries, float) and not math.isfinite(entries):
        return {"$float": repr(float(entries))}
    return entries


# ---------------------------------------------------------------------------------------------- reading
def problem_from_dict(document: Any, symbols: Mapping[str, Any] | None = None) -> Problem:
    """The problem of a document.

    Args:
        document: JSON text, or what `Problem.to_dict()` returned.
        symbols: the objects that the document names: modules or models, data, functions, arrays; also
            variables and parameters, which are otherwise rebuilt. `problem.symbols()` of the problem that
            was written has them all; names that the document does not use are ignored.

    Raises:
        ModelingError: E176 (objects that were not given), E177 (no document of a problem, or of a newer
            version), E178 (an object that does not fit its declaration), and what the language says about
            the structure (E1xx).
    """
    found = _document(document)
    try:
        reader = _Reader(found["symbols"], dict(symbols or {}))
        reader.check_given()
        built = [reader.node(entry) for entry in found["nodes"]]
        place: int | None = found["objective"]
        objective = None if place is None else built[place]
        pairs: list[tuple[str, int]] = found["constraints"]
        constraints = {name: built[at] for name, at in pairs}
        sense = found["sense"]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
        if isinstance(problem, ModelingError):
            raise
        raise _damaged(f"{type(problem).__name__}: {problem}") from None
    if sense not in ("minimize", "maximize", "find") or (objective is None) != (sense == "find"):
        raise _damaged(f"the sense {sense!r} and the objective do not go together")
    if objective is not None:
        Expr(objective)
    for node in constraints.values():
        Constraint(node)
    kind: Callable[..., Problem] = attribute("constrain.language.problem:Problem")
    return kind(sense, objective, constraints)


def _document(document: Any) -> dict[str, Any]:
    if isinstance(document, (str, bytes)):
        try:
            document = json.loads(document)
        except ValueError as problem:
            raise _damaged(str(problem)) from None
    wanted = ("schema", "version", "sense", "objective", "constraints", "symbols", "nodes")
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:  # type: ignore[reportUnknownMemberType]
        raise _damaged(f"it does not say that it is one: its schema is not {SCHEMA!r}")
    found = cast("dict[str, Any]", document)
    if found.get("version") != VERSION:
        raise ModelingError(
            "E177",
            f"the document of a problem has version {found.get('version')!r}; this package reads {VERSION}",
            fix="the version of constrain that wrote it",
        )
    missing = [key for key in wanted if key not in found]
    if missing:
        raise _damaged(f"it has no {missing[0]!r}")
    return found


def _damaged(why: str) -> ModelingError:
    return ModelingError(
        "E177", f"this is no document of a problem: {why}", fix="the text that problem.to_json() returned"
    )


class _Reader:
    """Builds nodes, bottom up.

    Args:
        declared: the document's symbols.
        given: objects by name.
    """

    def __init__(self, declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self.declared = declared
        self.given = given
        self.built: list[n.Node] = []
        self._symbols: dict[str, Any] = {}

    def check_given(self) -> None:
        """E176 for every object that only the user has and that was not given, in one message."""
        missing = [
            name
            for name, own in self.declared.items()
            if name not in self.given and own["kind"] not in _DECLARED and "values" not in own
        ]
        if missing:
            listed = ", ".join(f"{name} ({_described(self.declared[name])})" for name in missing)
            bound = ", ".join(f'"{name}": ...' for name in missing)
            raise ModelingError(
                "E176",
                f"the document names objects that were not given: {listed}",
                fix=f"cn.from_json(text, {{{bound}}})",
            )

    def node(self, entry: Mapping[str, Any]) -> n.Node:
        """The node of an entry, checked as the language checks it."""
        kind = NODES.get(entry["node"])
        if kind is None:
            raise ModelingError(
                "E177",
                f"the document has a node of the unknown kind {entry['node']!r}",
                fix="the version of constrain that wrote it",
            )
        values = {key: self.value(value) for key, value in entry.items() if key != "node"}
        if kind is n.Opaque and "function" not in values:
            values["function"] = _torch_function(values["path"])
            if values["function"] is None:
                raise _damaged(f"torch has no function {values['path']!r} that expressions take")
        if kind is n.Apply and values["atom"] not in ATOMS:
            _declared_elsewhere(values["atom"])
        if kind is n.Column and values["name"] not in values["data"].columns:
            raise _unfit(values["data"].name, f"has no column {values['name']!r}")
        self.built.append(kind(**values))
        return self.built[-1]

    def value(self, value: Any) -> Any:  # noqa: PLR0911  # one case per key
        """A field of a node."""
        if isinstance(value, list):
            return tuple(self.value(item) for item in cast("list[Any]", value))
        if not isinstance(value, dict):
            return value
        stored = cast("dict[str, Any]", value)
        match next(iter(stored)), next(iter(stored.values())):
            case "$node", int(place):
                return self.built[place]
            case "$symbol", name:
                return self.symbol(name)
            case "$text", text:
                return n.ArraySymbol.of_text(text)
            case "$list", items:
                return [self.value(item) for item in items]
            case "$dict", pairs:
                return {self.value(key): self.value(item) for key, item in pairs}
            case "$object", path:
                return self._record(path, stored["fields"])
            case "$array", own:
                return _read_array(own)
            case "$torch", name:
                return _torch_constant(name)
            case "$float", number:
                return float(number)
            case key, _:
                raise _damaged(f"the key {key!r} is unknown")

    def _record(self, path: str, stored: Mapping[str, Any]) -> Any:
        """A record of this package; nothing else is imported for a document."""
        kind = attribute(path) if path.startswith("constrain.") else None
        if not isinstance(kind, type) or not is_dataclass(kind):
            raise _damaged(f"{path!r} is no record of this package")
        return kind(**{key: self.value(item) for key, item in stored.items()})

    # ---- symbols
    def symbol(self, name: str) -> Any:
        """What a name stands for: the object that was given, else one rebuilt from its declaration."""
        if name not in self._symbols:
            own = self.declared[name]
            make = self._bound if name in self.given else self._rebuilt
            self._symbols[name] = make(name, own)
        return self._symbols[name]

    def _bound(self, name: str, own: Mapping[str, Any]) -> Any:
        value = self.given[name]
        match own["kind"]:
            case "variable":
                return _decision(name, own, value)
            case "parameter":
                return self._knob(name, own, value)
            case "model":
                return _model(name, own, value)
            case "data":
                return _sample(name, own, value)
            case "region":
                return _region(name, value)
            case "array":
                _same_shape(name, own, static_shape(value))
                return n.ArraySymbol.of(value, tuple(own["shape"]), own["name"])
            case "function" if not callable(value):
                raise _unfit(name, f"is a {type(value).__name__}, and a function is needed")
            case _:
                return value

    def _rebuilt(self, name: str, own: Mapping[str, Any]) -> Any:
        match own["kind"]:
            case "variable":
                kinds = {kind: own.get(kind, False) for kind in _KINDS}
                low, high = own.get("bounds", (None, None))
                bounds = (self.value(low), self.value(high)) if "bounds" in own else None
                return n.VariableSymbol(own["name"], tuple(own["shape"]), **kinds, bounds=bounds)
            case "parameter":
                return n.ParameterSymbol(own["name"], tuple(own["shape"]), self.value(own["value"]))
            case "array":
                return n.ArraySymbol.of(_read_array(own), tuple(own["shape"]), own["name"] or name)
            case "region":
                law: dict[str, Any] = {key: self.value(item) for key, item in own["law"].items()}
                shape, size = tuple(own["row_shape"]), tuple(own["size"])
                return Region(own["name"], Law(**law), shape, own["rule"], size)
            case kind:
                raise _damaged(f"the symbol {name!r} has the unknown kind {kind!r}")

    def _knob(self, name: str, own: Mapping[str, Any], value: Any) -> n.ParameterSymbol:
        """A `Parameter`, or a value for one."""
        if isinstance(value, Expr):
            if not isinstance(value.node, n.Knob):
                raise _unfit(name, f"is {shown(value)}, and a Parameter is needed")
            _same_shape(name, own, value.node.symbol.shape)
            return value.node.symbol
        _same_shape(name, own, static_shape(value) or ())
        return n.ParameterSymbol(own["name"], tuple(own["shape"]), value)


def _declared_elsewhere(name: str) -> None:
    """Loads a function that an installed package declares (E177 when there is none)."""
    if plugins.find("atoms", name) is None or name not in ATOMS:
        raise ModelingError(
            "E177",
            f"the language has no function {name!r}, and nobody has declared it here",
            fix=f'cn.op("{name}", ...), or the package that declares it, before cn.from_json',
        )


# ------------------------------------------------------------------------------------- objects by name
def _described(own: Mapping[str, Any]) -> str:
    """What an object must be, in a few words."""
    match own["kind"]:
        case "model":
            return f"a model, was a {own['module']}"
        case "data":
            return "data with " + ", ".join(f"{column}:{tuple(s)}" for column, s in own["columns"].items())
        case "array":
            return f"an array of shape {tuple(own['shape'])}"
        case kind:
            return f"a {kind}"


def _unfit(name: str, why: str) -> ModelingError:
    return ModelingError("E178", f"the object given as {name!r} {why}", fix="the object of the first problem")


def _same_shape(name: str, own: Mapping[str, Any], shape: tuple[int, ...] | None) -> None:
    if shape != tuple(own["shape"]):
        raise _unfit(name, f"has shape {shape}, declared is {tuple(own['shape'])}")


def _decision(name: str, own: Mapping[str, Any], value: Any) -> n.VariableSymbol:
    node = value.node if isinstance(value, Expr) else None
    if not isinstance(node, n.Decision):
        raise _unfit(name, f"is {shown(value)}, and a Variable is needed")
    _same_shape(name, own, node.symbol.shape)
    return node.symbol


def _model(name: str, own: Mapping[str, Any], value: Any) -> Model:
    if isinstance(value, Model):
        if value.frozen != own["frozen"]:
            raise _unfit(name, f"has frozen={value.frozen}, declared is frozen={own['frozen']}")
        return value
    return Model(value, own["name"], frozen=own["frozen"])


def _sample(name: str, own: Mapping[str, Any], value: Any) -> Data:
    if not isinstance(value, Data):
        raise _unfit(name, f"is a {type(value).__name__}, and a cn.Data is needed")
    for column, shape in own["columns"].items():
        if column in value.columns and value.row_shape(column) != tuple(shape):
            found = value.row_shape(column)
            raise _unfit(name, f"has {column!r} of shape {found} per row, declared is {tuple(shape)}")
    return value


def _region(name: str, value: Any) -> Region:
    data = value.node.data if isinstance(value, Expr) and isinstance(value.node, n.Column) else value
    if not isinstance(data, Region):
        raise _unfit(name, f"is {shown(value)}, and a continuous population is needed")
    return data


def _read_array(own: Mapping[str, Any]) -> Any:
    """An array that was written out, in the container that it came from."""

    def entries(value: Any) -> Any:
        if isinstance(value, list):
            return [entries(item) for item in cast("list[Any]", value)]
        return float(value["$float"]) if isinstance(value, dict) else value  # type: ignore[reportUnknownArgumentType]

    values = entries(own["values"])
    if own["container"] == "torch":
        return attribute("torch").tensor(values, dtype=_torch_constant(own["dtype"]))
    if own["container"] == "numpy":
        return attribute("numpy").array(values, dtype=own["dtype"])
    return values


# ---------------------------------------------------------------------------------------------- torch
def _torch_object(path: str) -> Any:
    """The object at a dotted path below torch when the program has loaded it, or None."""
    found: Any = loaded("torch")
    for part in path.split(".")[1:]:
        found = getattr(found, part, None)
    return found


def _torch_constant(name: str) -> Any:
    """`torch.NAME`: a dtype, a layout or a memory format."""
    torch = attribute("torch")
    found = getattr(torch, name, None)
    if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
        raise _damaged(f"torch has no constant {name!r}")
    return found


def _torch_function(path: Any) -> Any:
    """The torch function of a path when it is one that takes expressions, else None.

    A document decides which function runs, so nothing but what torch offers to other classes is accepted.
    """
    if not isinstance(path, str) or not path.startswith("torch."):
        return None
    attribute("torch")
    found = _torch_object(path)
    offered = attribute("torch.overrides").get_testing_overrides()
    return found if callable(found) and found in offered else None
