"""The kernels of a recorded step in one launch, on CUDA.

On small models most of a step's time there is that of handing some hundred kernels to the device, one by one.
A CUDA graph (`torch.cuda.CUDAGraph`) hands them over at once. It reads its arguments from memory of its own,
into which those of a call are copied, and writes its results to memory of its own, which is copied.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.runtime.operations import Graph, Replay

__all__ = ["capturable", "captured"]

LARGEST = 5_000_000
"""Numbers that a step changes up to which it is captured: beyond, kernels take longer than their launches."""
WARM = 2
"""Calls before a capture, in which libraries make what they need."""


def capturable(graph: Graph, arguments: Sequence[Tensor], changed: Sequence[Tensor]) -> bool:
    """Whether all of a graph happens on CUDA, and changes little enough that launches take the time.

    Neither steps that draw random numbers are captured, which advance generators that others read, nor
    deterministic algorithms, some of which wait for the host.
    """
    if not all(t.is_cuda for t in (*arguments, *graph.reads)) or torch.are_deterministic_algorithms_enabled():
        return False
    if any(x.on_host or x.random for x in graph.operations):
        return False
    return bool(arguments) and sum(t.numel() for t in changed) <= LARGEST


def captured(run: Replay, arguments: Sequence[Tensor], changed: Sequence[Tensor]) -> Replay:
    """The kernels of a function as one launch.

    Args:
        run: changes tensors in place, which stay where they are, and waits for no kernel. It is called a few
            times here: the caller undoes what it does.
        arguments: examples, on one device.
        changed: tensors whose changes are to be counted, for autograd.

    Returns:
        The same, for arguments of these shapes and types.

    Raises:
        RuntimeError: it cannot be captured.
    """
    held = [t.clone() for t in arguments]
    launch, result = _capture(lambda: run(held), held[0].device)
    leaves, form = pytree.tree_flatten(result)

    def replay(given: Sequence[Tensor]) -> Any:
        with torch.no_grad():
            for own, t in zip(held, given, strict=True):
                own.copy_(t)
            launch()
            found = [t.clone() if isinstance(t, Tensor) else t for t in leaves]
        increment_version(changed)
        return pytree.tree_unflatten(found, form)

    return replay


def _capture(function: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """One launch for the kernels of a function, and its result, whose memory every launch writes to."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        now, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                function()
        now.wait_stream(stream)
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = function()
        except BaseException:
            # a capture that is broken off leaves the random generator in one: another one ends it
            with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
                torch.zeros(1, device=device)
            raise
    return graph.replay, result
