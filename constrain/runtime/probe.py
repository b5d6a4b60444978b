"""Output shapes of modules and torch functions, found by running them once on empty meta tensors.

A meta tensor has a shape and no entries, so this costs no memory and next to no time. Parameters and buffers
are replaced by meta copies, the random state is put back and so are the attributes that `forward` sets: the
user's module is as it was. A module that needs numbers (a constant that `forward` makes, a branch on values)
is run on rows of zeros instead. What fails there, too, has an unknown shape, and is then run for the first
time on data.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
import warnings
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.frames import as_frame, as_series
from constrain.language.types import type_of
from constrain.runtime import rowwise
from constrain.runtime.functional import call_with
from constrain.runtime.modes import in_evaluation

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from constrain.language.symbols import Model

__all__ = ["call_shape", "floating_arguments", "has_whole_numbers", "opaque_shape", "takes_features"]

MOST_TRIED = 4
"""Arguments with whole numbers up to which it is tried which of them have to be floating."""
MOST_WEIGHTS = 10_000_000
"""Weights up to which a module that does not run on meta tensors is run on zeros."""
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)
_REARRANGING = frozenset(("index", "stack", "reshape", "transpose", "squeeze", "unsqueeze", "pick_levels"))

Shape: TypeAlias = tuple[int, ...]
_Row: TypeAlias = "Shape | None"
_SHAPE_WORDS = re.compile(r"(?i)shape|size|dimension|channel|\b\dD\b|\bdim\b|index|numel|elements|broadcast")
_OTHER_WORDS = re.compile(
    r"(?i)meta|device|dtype|scalar type|item\(\)|data-dependent|same type|expected type"
)
_SEEN: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], _Row]] = weakref.WeakKeyDictionary()
"""Shapes of what a module returned, by the shapes and types of its arguments, its layers and its state."""
_KINDS = {"i": torch.int64, "u": torch.int64, "b": torch.bool}


def call_shape(node: n.Call, shapes: Sequence[Shape | None], leads: Sequence[int], shown: str) -> _Row:
    """Shape of one row of a model's output.

    Args:
        node: the model applied to arguments.
        shapes: row shape of each argument.
        leads: 1 for an argument with an axis of rows (or levels) in front, else 0.
        shown: the call in the user's words.

    Returns:
        The row shape, None when it cannot be known without numbers.

    Raises:
        ModelingError: E112 (the shapes do not fit, or the module returns no tensor), E120 (the rows are
            gone).
    """
    module = getattr(node.model.module, "_orig_mod", node.model.module)
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        return None
    state = _state(module)
    if any(is_lazy(t) for t in state.values()):
        return None
    _check_signature(node, module, shown)
    floating = _floating(state)
    dtypes = [_dtype(a, floating) for a in node.args]
    layers = tuple((id(m), m.training) for m in module.modules())
    key = (node.features, *shapes, *leads, *dtypes, layers, *(tuple(t.shape) for t in state.values()))
    seen = _SEEN.setdefault(module, {})
    if key in seen:
        return seen[key]
    rows, attempt = _trial(node, module, shapes, leads)
    result = _first_success(attempt, dtypes, floating, rows, node, shown)
    found = seen[key] = _row_shape(result, rows if any(leads) else None, node, shown)
    return found


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _floating(state: Mapping[str, Tensor]) -> torch.dtype:
    return next((t.dtype for t in state.values() if t.is_floating_point()), torch.get_default_dtype())


def _trial(
    node: n.Call, module: nn.Module, shapes: Sequence[Shape | None], leads: Sequence[int]
) -> tuple[int, Callable[[list[torch.dtype]], Any]]:
    """A number of rows, and a function that runs the module on so many empty rows of these types."""
    state = _state(module)
    rows = _unusual_size([*(s or () for s in shapes), *(tuple(t.shape) for t in state.values())])
    small = sum(t.numel() for t in state.values()) <= MOST_WEIGHTS

    def attempt(dtypes: list[torch.dtype]) -> Any:
        inputs = _inputs(shapes, leads, dtypes, rows)
        try:
            return _applied(node, module, {name: _meta_copy(t) for name, t in state.items()}, inputs)
        except _FAILURES as error:
            if not small or _is_about_shape(error):
                raise
        copies = {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in state.items()}
        return _applied(node, module, copies, inputs)

    return rows, attempt


def _applied(node: n.Call, module: nn.Module, state: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Any:
    """The module on inputs, with other tensors in the place of its own; of inputs without numbers zeros.

    Raises:
        NotImplementedError: `forward` fails on zeros in a way of its own; nothing is known of the shape then.
    """
    device = next((t.device for t in state.values()), torch.device("cpu"))
    given = [torch.zeros(x.shape, dtype=x.dtype, device=device) for x in inputs]

    def run(*args: Tensor) -> Any:
        return call_with(module, state, args)

    with _untouched(module), in_evaluation(module.modules()):
        floating = _floating(state)
        try:
            return rowwise.on_features(run, *given, dtype=floating) if node.features else run(*given)
        except Exception as error:  # forward may raise anything, such as a division by zero here
            if isinstance(error, (ModelingError, *_FAILURES)):
                raise
            raise NotImplementedError(f"{type(error).__name__}: {error}") from error


def floating_arguments(node: n.Call) -> tuple[bool, ...]:
    """Which arguments with whole numbers a model takes as floating numbers: they are converted there.

    A linear layer does not take whole numbers (ages, one-hot codes), an embedding takes nothing else. What
    cannot be run without numbers gets its arguments as they are.
    """
    module = getattr(node.model.module, "_orig_mod", node.model.module)
    whole = [i for i, arg in enumerate(node.args) if _is_whole(arg)]
    as_they_are = (False,) * len(node.args)
    runs = isinstance(module, nn.Module) and not isinstance(module, torch.jit.ScriptModule)
    if not whole or not runs or len(whole) > MOST_TRIED or any(is_lazy(t) for t in _state(module).values()):
        return as_they_are
    kinds = [type_of(arg) for arg in node.args]
    _, attempt = _trial(node, module, [k.shape for k in kinds], [k.lead for k in kinds])
    floating = _floating(_state(module))
    known = [torch.int64 if i in whole else _dtype(arg, floating) for i, arg in enumerate(node.args)]
    for count in reversed(range(1, len(whole) + 1)):  # a linear layer without numbers takes any type
        for chosen in itertools.combinations(whole, count):
            dtypes = [floating if i in chosen else given for i, given in enumerate(known)]
            try:
                attempt(dtypes)
            except (*_FAILURES, ModelingError):
                continue
            return tuple(i in chosen for i in range(len(kinds)))
    return as_they_are


def has_whole_numbers(node: n.Column | n.Array) -> bool:
    """Whether a column or an array has whole numbers, or truth values."""
    return not _dtype(node, torch.float32).is_floating_point


def _columns(node: n.Node) -> list[n.Column]:
    return [x for x in n.postorder(node) if isinstance(x, n.Column)]


def _is_whole(node: n.Node) -> bool:
    """Whether an expression may have whole numbers: columns of these, perhaps rearranged."""
    columns = _columns(node)
    moved = all(
        isinstance(x, (n.Column, n.Opaque)) or (isinstance(x, n.Apply) and x.atom in _REARRANGING)
        for x in n.postorder(node)
    )
    return bool(columns) and moved and not any(_dtype(x, torch.float32).is_floating_point for x in columns)


def takes_features(model: Model, args: tuple[n.Node, ...]) -> bool:
    """Whether a model takes numbers per row as one feature axis, and not as they are.

    Args:
        model: the model.
        args: its arguments, each one number per row, or all without rows: numbers, or points of one length.
    """
    module = getattr(model.module, "_orig_mod", model.module)
    if isinstance(module, nn.Module) and any(is_lazy(t) for t in module.parameters()):
        return True
    return not _runs(n.Call(model, args)) and _runs(n.Call(model, args, features=True))


def _runs(node: n.Call) -> bool:
    """Whether a model can be applied in this way, as far as it can be told without numbers."""
    kinds = [type_of(x) for x in node.args]
    try:
        call_shape(node, [k.shape for k in kinds], [k.lead for k in kinds], node.model.name)
    except ModelingError:
        return False
    return True


def opaque_shape(node: n.Opaque, shapes: Sequence[Shape | None], leads: Sequence[int], shown: str) -> _Row:
    """Shape of one row of what a torch function returns; like `call_shape`.

    Args:
        node: the recorded call; `shapes` and `leads` belong to `children(node)`.
        shapes: row shape of each argument that is an expression.
        leads: 1 for an argument with an axis of rows (or levels) in front, else 0.
        shown: the call in the user's words.

    Raises:
        ModelingError: E112 (the shapes do not fit, or it returns no tensor), E120 (the rows are gone).
    """
    floating = torch.get_default_dtype()
    rows = _unusual_size([s or () for s in shapes])

    def attempt(dtypes: list[torch.dtype]) -> Any:
        inputs = iter(_inputs(shapes, leads, dtypes, rows))
        arguments = [next(inputs) if isinstance(v, n.Node) else v for v in node.arguments]
        keywords = {k: next(inputs) if isinstance(v, n.Node) else v for k, v in node.keywords}
        with _untouched():
            return node.function(*arguments, **keywords)

    result = _first_success(
        attempt, [_dtype(a, floating) for a in n.children(node)], floating, rows, node, shown
    )
    return _row_shape(result, rows if any(leads) else None, node, shown)


# ---------------------------------------------------------------------------------------------- inputs
def _unusual_size(shapes: Sequence[Shape]) -> int:
    """A number of rows that is no size of an argument or parameter: it marks the axis of rows."""
    taken = {size for shape in shapes for size in shape} | {math.prod(shape) for shape in shapes}
    return next(size for size in itertools.count(89) if size not in taken)


def _inputs(
    shapes: Sequence[Shape | None], leads: Sequence[int], dtypes: Sequence[torch.dtype], rows: int
) -> list[Tensor]:
    batched = [(rows, *(s or ())) if lead else (s or ()) for s, lead in zip(shapes, leads, strict=True)]
    return [torch.empty(s, dtype=d, device="meta") for s, d in zip(batched, dtypes, strict=True)]


def _meta_copy(t: Tensor) -> Tensor:
    copy = torch.empty_like(t, device="meta")
    return copy.requires_grad_(t.requires_grad)


def _dtype(arg: n.Node, floating: torch.dtype) -> torch.dtype:
    """Dtype of an argument as far as it can be told: that of a column or array, else floating."""
    value: Any
    match arg:
        case n.Column(data=data, name=name):
            value = data.example(name)
        case n.Array(symbol=symbol):
            value = symbol.value
        case _:  # columns that were rearranged, as the labels of a `gather`, keep their type
            return _dtype(_columns(arg)[0], floating) if _is_whole(arg) else floating
    series = as_series(value)
    frame = as_frame(value) if series is None else None
    if series is not None or frame is not None:
        kinds = [series.dtype] if series is not None else frame.collect_schema().dtypes()  # type: ignore[union-attr]
        whole = all(kind.is_integer() or type(kind).__name__ == "Boolean" for kind in kinds)
        return torch.int64 if whole else floating
    while type(value) in (list, tuple) and len(value) > 0:
        value = value[0]
    if isinstance(value, Tensor):
        return floating if value.is_floating_point() else value.dtype
    if isinstance(value, (int, str)):
        return torch.int64
    return _KINDS.get(getattr(getattr(value, "dtype", None), "kind", "f"), floating)


@contextmanager
def _untouched(module: nn.Module | None = None) -> Generator[None]:
    """Puts back random state and attributes of a module; hides warnings, which the real run repeats."""
    before = [] if module is None else [(m, dict(vars(m))) for m in module.modules()]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for m, attributes in before:
                vars(m).clear()
                vars(m).update(attributes)


# --------------------------------------------------------------------------------------------- results
class _Unknown:
    """The result of what cannot be run without numbers."""


def _first_success(
    attempt: Callable[[list[torch.dtype]], Any],
    dtypes: list[torch.dtype],
    floating: torch.dtype,
    rows: int,
    node: n.Node,
    shown: str,
) -> Any:
    """Runs with the dtypes of the data, then (integers given to a layer of floats) with floating ones."""
    complaint: Exception | None = None
    for tried in dict.fromkeys((tuple(dtypes), (floating,) * len(dtypes))):
        try:
            return attempt(list(tried))
        except ModelingError:
            raise
        except _FAILURES as error:
            if complaint is None or _is_about_shape(error):
                complaint = error
    if complaint is not None and _is_about_shape(complaint):
        words = str(complaint).strip().split("\n", 1)[0]
        given = ", ".join(str(type_of(a).shape) for a in n.children(node))
        raise ModelingError(
            "E112",
            f"{shown} does not take rows of shape {given}; with {rows} rows torch says: {words}",
            at=node.loc,
            fix="arguments of other shapes; a model sees a batch of rows, (rows, ...)",
        ) from complaint
    return _Unknown()


def _is_about_shape(error: Exception) -> bool:
    text = str(error)
    if isinstance(error, (TypeError, NotImplementedError)) or _OTHER_WORDS.search(text):
        return False
    return bool(_SHAPE_WORDS.search(text))


def _check_signature(node: n.Call, module: nn.Module, shown: str) -> None:
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*(node.args[:1] if node.features else node.args))
    except TypeError as error:
        raise ModelingError(
            "E112",
            f"{shown}: forward{signature} cannot be called with {len(node.args)} arguments ({error})",
            at=node.loc,
            fix=f"{node.model.name}({', '.join(p for p in signature.parameters)})",
        ) from None


def _row_shape(result: Any, rows: int | None, node: n.Node, shown: str) -> Shape | None:
    if isinstance(result, _Unknown):
        return None
    if not isinstance(result, Tensor):
        raise ModelingError(
            "E112",
            f"{shown} returns a {type(result).__name__}, not one tensor",
            at=node.loc,
            fix="a function or module that returns one tensor with the rows first",
        )
    shape = tuple(result.shape)
    if rows is None:
        return shape
    if shape[:1] != (rows,):
        raise ModelingError(
            "E120",
            f"{shown} has no axis of rows left: for {rows} rows it returns shape {shape}, "
            "and E() needs one value per row",
            at=node.loc,
            fix='reduction="none" for a loss, dim=-1 for a sum or mean; the average over rows is E(...)',
        )
    if rows in shape[1:]:
        raise ModelingError(
            "E112",
            f"{shown} pairs every row with every row: for {rows} rows it returns shape {shape}",
            at=node.loc,
            fix="a function that works row by row",
        )
    return shape[1:]
