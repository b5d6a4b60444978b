"""Machine code for a list of torch operations, by torch's compiler."""

from __future__ import annotations

import operator
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils import _pytree as pytree

from constrain.runtime.operations import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

    from constrain.runtime.operations import Graph, Operation, Replay

__all__ = ["compiled"]

THIN = 65_536
"""Entries up to which a product with one row or column is compiled as sums, which join what is around it."""
_RANDOM: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}
"""The compiler's option for random numbers of torch."""


def compiled(graph: Graph, arguments: Sequence[Tensor], changed: Sequence[Tensor]) -> Replay:
    """Machine code for a graph. Takes seconds to a minute.

    Args:
        graph: the operations.
        arguments: examples.
        changed: of the tensors that it reads those whose changes are to be counted, for autograd.

    Returns:
        What the graph does and returns, as a function of arguments like these. It draws the random numbers of
        torch.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own modules
        try:
            from torch._inductor import standalone_compile  # noqa: PLC0415  # takes a second to import
        except ImportError:  # torch before 2.8
            made = torch.compile(_joined(graph), fullgraph=True, dynamic=False, options=dict(_RANDOM))
            return graph.of_arguments(made)
        return _alone(graph, arguments, changed, standalone_compile)


def _alone(
    graph: Graph,
    arguments: Sequence[Tensor],
    changed: Sequence[Tensor],
    standalone_compile: Callable[..., Any],
) -> Replay:
    """Code that has no look at every argument at each call, as that of `torch.compile` has.

    Where the code inside of what the compiler returns takes and returns the same, it is called itself: the
    layers around it take a sixth of its time on small models.
    """
    from torch._functorch import config  # noqa: PLC0415
    from torch._inductor.compile_fx import compile_fx_inner  # noqa: PLC0415

    inner: list[tuple[Callable[[list[Tensor]], Sequence[Any]], int, int]] = []

    def kept(module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        returned = len(module.graph.output_node().args[0])  # type: ignore[reportArgumentType]
        code: Any = compile_fx_inner(module, inputs, **options)
        inner.append((code, len(inputs), returned))
        return code

    reads = [t.detach() for t in graph.reads]
    examples = [*arguments, *reads]
    options = {"config_patches": {"size_asserts": False, **_RANDOM}, "inner_compile": kept}
    with config.patch(enable_autograd_cache=False):  # which has the whole, and not what is inside
        whole = standalone_compile(
            _joined(graph), [*examples], dynamic_shapes="from_example_inputs", options=options
        )
    results, form = [graph.result], None
    if not isinstance(graph.result, Value):
        results, form = pytree.tree_flatten(graph.result)
    code, inputs, returned = inner[0] if len(inner) == 1 else (None, 0, 0)
    if code is None or inputs != len(examples) or returned != len(results):  # one is a view of another
        return graph.of_arguments(whole)

    without_gradients = torch.no_grad()

    def run(given: Sequence[Tensor]) -> Any:
        with without_gradients:
            found = code([*given, *reads])
        increment_version(changed)
        return found[0] if form is None else pytree.tree_unflatten(found, form)

    return run


def _joined(graph: Graph) -> fx.GraphModule:
    """A graph in the form that torch's compiler takes."""
    from torch import fx  # noqa: PLC0415  # needed here only

    made = fx.Graph()
    nodes = {v: made.placeholder(f"v{int(v)}") for v in graph.inputs}

    def shown(given: Any) -> Any:
        return pytree.tree_map_only(Value, nodes.__getitem__, given)

    for x in graph.operations:
        node = _thin_product(made, x, shown(x.args)) or _mask(made, x, shown(x.args))
        node = node or made.call_function(x.function, shown(x.args), shown(x.kwargs))
        for k, v in enumerate(x.results):
            if v is not None:
                several = isinstance(x.made, tuple)
                nodes[v] = made.call_function(operator.getitem, (node, k)) if several else node
    made.output(shown(graph.result))
    return fx.GraphModule(torch.nn.Module(), made)


def _thin_product(made: fx.Graph, x: Operation, given: tuple[Any, ...]) -> fx.Node | None:
    """A product of matrices, one of which has one row or column, as products and sums of entries.

    The compiler joins these with the operations around them; a product of matrices it calls from outside.
    None for other operations.
    """
    aten = torch.ops.aten
    if x.function not in (aten.mm.default, aten.addmm.default) or x.kwargs:
        return None
    (*_, a, b), (*added, left, right) = x.args, given
    (rows, inner), (_, columns) = a.shape, b.shape
    if not a.dtype.is_floating_point:  # sums of small integers are of larger ones
        return None
    small = inner * max(rows, columns) <= THIN
    if inner == 1:
        product = made.call_function(aten.mul.Tensor, (left, right))
    elif small and rows == 1:
        product = _sum(made, (made.call_function(aten.t.default, (left,)), right), 0)
    elif small and columns == 1:
        product = _sum(made, (left, made.call_function(aten.t.default, (right,))), 1)
    else:
        return None
    return made.call_function(aten.add.Tensor, (*added, product)) if added else product


def _mask(made: fx.Graph, x: Operation, given: tuple[Any, ...]) -> fx.Node | None:
    """A mask of dropout whose axes are in another order in memory, drawn in that order as torch does.

    None for other operations.
    """
    aten = torch.ops.aten
    if x.function is not aten.bernoulli_.float or x.kwargs:
        return None
    mask, *rest = x.args
    order = sorted(range(len(mask.shape)), key=lambda axis: -mask.strides[axis])
    if order == list(range(len(order))):
        return None
    sizes = [mask.shape[axis] for axis in order]
    drawn = made.call_function(aten.new_empty.default, (given[0], sizes))
    drawn = made.call_function(x.function, (drawn, *rest))
    places = [order.index(axis) for axis in range(len(order))]
    turned = made.call_function(aten.permute.default, (drawn, places))
    return made.call_function(aten.copy_.default, (given[0], turned))


def _sum(made: fx.Graph, factors: tuple[fx.Node, fx.Node], axis: int) -> fx.Node:
    """The sum of products of entries along an axis, which is kept."""
    product = made.call_function(torch.ops.aten.mul.Tensor, factors)
    return made.call_function(torch.ops.aten.sum.dim_IntList, (product, [axis], True))
