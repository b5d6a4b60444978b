"""Records functions of tensors as lists of torch operations (`operations.py`).

A function that reads and changes tensors wherever they are held (buffers, columns, an optimizer's state) is
run once while torch tells of every operation, and everything that it changed is put back. Tensors that no
operation made are the inputs, beside the arguments. Gradients that it takes are recorded as well, so that a
whole training step is one graph. Python runs only while it is recorded: numbers that it reads become
constants of the graph, and everything that changes between calls has to be a tensor.

What cannot be told from the operations, such as a kernel that torch does not see or a number that is another
one in every call, shows when a replay is compared with the function: `Recording.confirm`.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from constrain.runtime.operations import Graph, Operation, Value, values

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from constrain.runtime.operations import Replay

__all__ = ["NotRecorded", "Recording", "record", "undone"]


DIGITS, SHAKEN = 4, 10
"""Changes in units of rounding that show how far rounding carries; times as far results may differ."""


class NotRecorded(Exception):
    """A function is no graph of operations; the message says why."""


# --------------------------------------------------------------------------------------------- recordings
class _Before:
    """What was in memory that a function changes, and the state of random numbers.

    Attributes:
        tensors: by memory, the whole of it as a tensor, and a copy of what was in it.
    """

    def __init__(self) -> None:
        self.tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._generators: dict[torch.Generator, Tensor] = {}
        self._seed = torch.get_rng_state()
        self._seeds = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # of others

    @property
    def drawn(self) -> bool:
        """Whether Python or NumPy have drawn random numbers since."""
        now: Any = np.random.get_state()  # noqa: NPY002
        then: Any = self._numpy
        same = now[2:] == then[2:] and np.array_equal(now[1], then[1])
        return not same or random.getstate() != self._python

    def now(self) -> _Before:
        """The same memory and generators as they are now."""
        found = _Before()
        found.tensors = {at: (whole, whole.clone()) for at, (whole, _) in self.tensors.items()}
        found._generators = {generator: generator.get_state() for generator in self._generators}
        return found

    def keep(self, t: Tensor) -> None:
        """Keeps what is in the memory of a tensor, unless this has been done."""
        at = _memory(t)
        if at not in self.tensors:
            memory = t.untyped_storage()
            whole: Any = torch.empty(0, dtype=t.dtype, device=t.device)
            whole.set_(memory, 0, (memory.nbytes() // t.itemsize,))
            self.tensors[at] = whole, whole.clone()

    def keep_state(self, generator: torch.Generator) -> None:
        """Keeps the state of a generator, unless this has been done."""
        if generator not in self._generators:
            self._generators[generator] = generator.get_state()

    def disturb(self) -> None:
        """Changes the last digits of numbers in memory."""
        for whole, _ in self.tensors.values():
            if whole.is_floating_point():
                digits = DIGITS * torch.finfo(whole.dtype).eps
                signs = torch.arange(whole.numel(), device=whole.device).remainder(2).mul(2).sub(1)
                whole.mul_(1 + digits * signs.to(whole.dtype))

    def outcome(self, result: Any) -> list[Tensor]:
        """Copies of the tensors that were returned, then of what is in the memory now."""
        returned = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        return [t.detach().clone() for t in returned + [whole for whole, _ in self.tensors.values()]]

    def restore(self) -> None:
        """Puts all of it back."""
        for whole, copy in self.tensors.values():
            whole.copy_(copy)
        for generator, state in self._generators.items():
            generator.set_state(state)
        torch.set_rng_state(self._seed)
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        if self._seeds is not None:
            torch.cuda.set_rng_state_all(self._seeds)


@dataclass(frozen=True)
class Recording:
    """What a run of a function did, which has been undone.

    Attributes:
        graph: its operations.
        before: what it changed, as it was.
    """

    graph: Graph
    before: _Before

    @property
    def changed(self) -> list[Tensor]:
        """Of the tensors that it reads those that it changes."""
        return [t for t in self.graph.reads if _memory(t) in self.before.tensors]

    @contextmanager
    def undone(self) -> Generator[None]:
        """Puts back what calls of the function or of a replay inside of the block have done."""
        before = self.before.now()
        try:
            yield
        finally:
            before.restore()

    def confirm(
        self,
        replay: Replay,
        function: Callable[..., Any],
        arguments: Sequence[Tensor],
        *,
        rounds: bool = False,
    ) -> None:
        """Sees that a replay and the function do the same, and puts back what they have done.

        The replay comes first, so that it finds what torch does not see as the last call has left it.

        Args:
            replay: what the function is to be compared with.
            function: what was recorded.
            arguments: of both.
            rounds: the replay rounds in its own way. So results may differ as much as those of the function
                do when it starts from numbers with other last digits: where a gradient is 0 but for rounding
                (that of a bias in front of a batch normalization), Adam makes steps of the rounding.

        Raises:
            NotRecorded: the function does something else.
        """
        before = self.before.now()
        try:
            found = before.outcome(replay(arguments))
            before.restore()
            expected = before.outcome(function(*arguments))
            other = expected
            if rounds:
                before.restore()
                before.disturb()
                other = before.outcome(function(*arguments))
        finally:
            before.restore()
        starts = [copy for _, copy in before.tensors.values()]
        starts = [None] * (len(found) - len(starts)) + starts  # nothing was returned before
        if len(expected) != len(found) or not all(map(_close, expected, found, starts, other)):
            raise NotRecorded(
                "replayed, it does something else: it does more than operations of torch, or changes from "
                "call to call"
            )


def _close(a: Tensor, b: Tensor, before: Tensor | None, other: Tensor | None = None) -> bool:
    """Whether two results are the same to a thousandth of how far they moved, and to rounding.

    Entries that are not finite have to be the same.

    Args:
        a: one of them.
        b: the other.
        before: what was there, if anything was.
        other: the first one, made of numbers that are the same to rounding.
    """
    if torch.equal(a, b):
        return True
    if a.dtype != b.dtype or not (a.dtype.is_floating_point or a.dtype.is_complex):
        return False
    finite = torch.isfinite(a) & torch.isfinite(b)
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return False
    error, size = _norm(a[finite] - b[finite]), max(_norm(a[finite]), _norm(b[finite]))
    moved = 0.0 if before is None else _norm((a - before)[finite & torch.isfinite(before)])
    shaken = 0.0 if other is None else _norm((a - other)[finite & torch.isfinite(other)])
    return error <= 1e-3 * moved + 16 * torch.finfo(a.dtype).eps * size + SHAKEN * shaken


def _norm(t: Tensor) -> float:
    wide = t.to(torch.complex128 if t.is_complex() else torch.float64)
    return float(wide.norm())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


# ---------------------------------------------------------------------------------------------- recording
def record(function: Callable[..., Any], arguments: Sequence[Tensor]) -> Recording:
    """Records a function, and puts back every tensor that it changed and the state of random numbers.

    Args:
        function: takes the arguments; it may read, differentiate and change in place any other tensor.
        arguments: examples; a graph holds for arguments of these shapes only.

    Raises:
        NotRecorded: the function reads the value of a tensor, or the sizes of its results depend on it.
        Exception: whatever the function raises.
    """
    recorder = _Recorder(arguments)
    try:
        with recorder, _Numbers(recorder):
            result = function(*arguments)
        if recorder.before.drawn:
            recorder.refuse("it draws random numbers from Python or NumPy")
    finally:
        recorder.put_back()
    return Recording(recorder.graph(result), recorder.before)


def undone(function: Callable[[], Any]) -> None:
    """Runs a function, and puts back every tensor that it changed and the state of random numbers."""
    recorder = _Recorder(())
    try:
        with recorder:
            function()
    finally:
        recorder.put_back()


_SUMS: tuple[Any, ...] = (
    Tensor.add, Tensor.add_, torch.add, Tensor.sub, Tensor.sub_, torch.sub, *(
        getattr(torch, name) for name in ("_foreach_add", "_foreach_add_", "_foreach_sub", "_foreach_sub_")
    ),
)  # fmt: skip
_PRODUCTS = (Tensor.addcmul_, Tensor.addcmul, torch.addcmul, Tensor.addcdiv_, Tensor.addcdiv, torch.addcdiv)
_FACTORS: dict[Any, str] = dict.fromkeys(_SUMS, "alpha") | dict.fromkeys(_PRODUCTS, "value")
"""Functions of two or three tensors, and their option which is the factor of the second one."""
_MEMORY = cast(
    "tuple[Any, ...]",
    (Tensor.numpy, Tensor.tolist, Tensor.data_ptr, Tensor.__array__, Tensor.__dlpack__),
)
"""What hands the numbers of a tensor to something that is not torch."""
_BY_VALUE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_STATISTICS = ("running_mean", "running_var")
"""Arguments that batch norms change without a word of it in their schema."""


class _Numbers(TorchFunctionMode):
    """Keeps the numbers that a function makes of tensors tensors, and tells of those that leave torch."""

    def __init__(self, recorder: _Recorder | None = None) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.item:  # what optimizers compute with, such as the number of steps
            return args[0].detach().to(torch.complex128 if args[0].is_complex() else torch.float64)
        if func in _MEMORY and self._recorder is not None:
            self._recorder.refuse(f"it reads the memory of a tensor ({func.__name__})")
        given, options = list(args), dict(kwargs or {})
        factor = _FACTORS.get(func)
        if factor and len(given) > 1 and isinstance(options.get(factor), Tensor):
            times, second = options.pop(factor), given[1]
            given[1] = pytree.tree_map_only(Tensor, times.__mul__, second)  # of `_foreach_add_` a list
        return func(*given, **options)


class _Recorder(TorchDispatchMode):
    """Writes down every operation of torch, and keeps what was in the tensors that they change.

    Tensors are told apart by identity, and held no longer than the function holds them: autograd copies a
    gradient that somebody else holds too.
    """

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()
        self.before = _Before()
        self._operations: list[Operation] = []
        self._inputs: list[Value] = []
        self._reads: list[Tensor] = []
        self._places: list[tuple[Tensor, Tensor]] = []  # tensors that no operation made, as they were
        self._known: Any = WeakTensorKeyDictionary()
        self._count = 0
        self._outside: set[int] = set()  # memory that was there before
        self._reason: str | None = None
        for t in arguments:
            self._input(t)

    def refuse(self, reason: str) -> None:
        """The function runs to its end, and is no graph."""
        self._reason = self._reason or reason

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        if func is torch.ops.aten.native_batch_norm.default and args[5] and args[3] is not None:
            func = torch.ops.aten._native_batch_norm_legit.default  # the same, and says what it changes
        given: tuple[Any, ...] = tuple(map(self._shown, args))
        options = {k: self._shown(v) for k, v in kwargs.items()}
        if any(tag in func.tags for tag in _BY_VALUE) and not _by_places(func, args):
            self.refuse(f"it depends on the values of a tensor ({func})")
        self._keep(func, args, kwargs)
        result = func(*args, **kwargs)
        if func is torch.ops.aten.detach.default:  # for autograd only
            self._known[result] = given[0]
        elif torch.Tag.inplace_view in func.tags:
            self._seen_anew(func, args[0], given, options)
        else:
            self._operations.append(Operation(func, given, options, self._named(result)))
        return result

    def _seen_anew(self, func: Any, t: Tensor, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A tensor that is given another shape in place (`squeeze_`) is a view of what it was."""
        packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
        view = getattr(packet, func._overloadname, None)
        if view is None or view._schema.returns[0].alias_info is None:
            self.refuse(f"it gives a tensor other memory ({func})")
        else:
            self._operations.append(Operation(view, given, options, self._new(t)))

    def put_back(self) -> None:
        """Puts back what was changed, and the memory and shapes of tensors that were given others."""
        for t, was in self._places:
            if _memory(t) != _memory(was) or t.size() != was.size() or t.stride() != was.stride():
                self.refuse("it puts another tensor in the place of one that it was given (t.data = ...)")
                t.data = was
        self.before.restore()

    def _keep(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps what an operation is about to change, if it was there before."""
        for i, argument in enumerate(func._schema.arguments):
            given: Any = args[i] if i < len(args) else kwargs.get(argument.name)
            alias = argument.alias_info
            if (alias is not None and alias.is_write) or argument.name in _STATISTICS:
                for t in pytree.tree_leaves(given):
                    if isinstance(t, Tensor) and _memory(t) in self._outside:
                        self.before.keep(t)
            elif isinstance(given, torch.Generator):
                self.before.keep_state(given)

    def _shown(self, given: Any) -> Any:
        """An argument with values in the place of tensors."""
        match given:
            case Tensor():
                found = self._known.get(given)
                if found is None:
                    self._reads.append(given)
                    found = self._input(given)
                return found
            case list() | tuple():
                shown = [self._shown(x) for x in cast("Sequence[Any]", given)]
                return shown if isinstance(given, list) else tuple(shown)
            case _:
                return given

    def _input(self, t: Tensor) -> Value:
        """A tensor that no operation made."""
        self._outside.add(_memory(t))
        self._places.append((t, t.detach()))
        self._inputs.append(self._new(t))
        return self._inputs[-1]

    def _new(self, t: Tensor) -> Value:
        self._count += 1
        self._known[t] = value = Value.of(self._count, t)
        return value

    def _named(self, result: Any) -> Value | tuple[Value | None, ...] | None:
        """Remembers which tensors an operation made; those that it was given and changed have a name."""
        if isinstance(result, (list, tuple)):
            made = [self._named(each) for each in cast("Sequence[Any]", result)]
            return tuple(each for each in made if not isinstance(each, tuple))
        return self._new(result) if isinstance(result, Tensor) and result not in self._known else None

    def graph(self, result: Any) -> Graph:
        """What was written down and is needed.

        Raises:
            NotRecorded: something was refused.
        """
        if self._reason is not None:
            raise NotRecorded(self._reason)
        shown = pytree.tree_map_only(Tensor, self._shown, result)
        needed, kept = set(values(pytree.tree_leaves(shown))), list[Operation]()
        for x in reversed(self._operations):
            if x.acts or not needed.isdisjoint(x.results):
                kept.append(x)
                needed.update(values([x.args, x.kwargs]))
        return Graph(kept[::-1], self._inputs, shown, self._reads)


def _memory(t: Tensor) -> int:
    """Tells the memory of one tensor from that of others, as long as it lives."""
    memory: Any = t.untyped_storage()
    return memory._cdata


def _by_places(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether it takes entries by their places, so that the values say nothing of the sizes."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return not any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
