"""Compiled lists of operations do what the operations do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from constrain.runtime import machine
from constrain.runtime.captured import capturable
from constrain.runtime.replayed import Replayed
from constrain.runtime.trace import NotRecorded, record

g = torch.Generator().manual_seed(0)


def matrix(rows, columns):
    return torch.randn(rows, columns, generator=g, dtype=torch.float64)


@pytest.fixture(scope="module")
def products():
    """All products of matrices with one row or column, some with a third matrix added, as one function."""
    shapes = [(a, b, c) for a in (1, 3) for b in (1, 4) for c in (1, 5)]
    factors = [(matrix(a, b), matrix(b, c), matrix(a, c)) for a, b, c in shapes]

    def function(x):
        plain = [left @ right * x for left, right, _ in factors]
        added = [torch.addmm(other[0], left, right * x) for left, right, other in factors]
        turned = [right.T @ left.T * x for left, right, _ in factors]
        scaled = [torch.addmm(other, left, right * x, beta=0.5, alpha=2.0) for left, right, other in factors]
        return torch.cat([t.flatten() for t in plain + added + turned + scaled])

    recording = record(function, [torch.ones((), dtype=torch.float64)])
    return recording.graph, function


def test_products_with_one_row_or_column(products):
    graph, function = products
    x = torch.tensor(1.7, dtype=torch.float64)
    found = machine.compiled(graph, [torch.ones((), dtype=torch.float64)], [])([x])
    torch.testing.assert_close(found, function(x), rtol=1e-13, atol=1e-13)


def test_which_products_become_sums(products):
    """Those with one row or column, and no other."""
    graph, _ = products
    called = [str(node.target) for node in machine._joined(graph).graph.nodes if node.op == "call_function"]
    left = [name for name in called if name in ("aten.mm.default", "aten.addmm.default")]
    assert len(left) == 3 + 8  # of 3 by 4 by 5 in three ways; and all with factors of their own


def test_products_of_integers_stay_of_their_type():
    """Sums of entries of small integers would be of larger ones."""
    left, right = torch.ones(1, 4, dtype=torch.int32), torch.ones(4, 3, dtype=torch.int32)
    graph = record(lambda x: left @ right * x, [torch.ones((), dtype=torch.int32)]).graph
    assert machine._joined(graph)(*[torch.ones((), dtype=torch.int32), *graph.reads]).dtype is torch.int32


def test_random_numbers_are_those_of_torch():
    """Dropout, noise and random slopes: compiled steps draw what steps in Python draw."""
    x = matrix(6, 4)

    def step(x):
        noisy = F.rrelu(F.dropout(x, 0.5) + torch.randn_like(x), training=True)
        turned = F.dropout((noisy + torch.rand(4, dtype=x.dtype)).view(2, 3, 4).transpose(0, 1), 0.3)
        return turned.contiguous()  # as between layers of attention

    recording = record(step, [x])
    run = machine.compiled(recording.graph, [x], [])
    recording.confirm(run, step, [x], rounds=True)
    torch.manual_seed(1)
    found = [run([x]).clone() for _ in range(2)]
    torch.manual_seed(1)
    torch.testing.assert_close(found, [step(x) for _ in range(2)])
    assert not torch.equal(*found)


@pytest.mark.parametrize("aliased", [False, True])
def test_what_it_changes_counts_as_changed(aliased):
    """A gradient of what was computed before a step is refused, as torch does after its own steps."""
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    seen = torch.zeros(4, dtype=torch.float64)
    given = torch.arange(4, dtype=torch.float64)

    def step(x):
        with torch.no_grad():
            weight.sub_(0.1 * x * weight)
            seen.add_(weight)
            return (seen, seen[:2], x.sum()) if aliased else (seen.sum(), x.sum())

    recording = record(step, [given])
    assert {id(t) for t in recording.changed} == {id(weight), id(seen)}
    run = machine.compiled(recording.graph, [given], recording.changed)
    before = weight.square().sum()
    found = run([given])
    torch.testing.assert_close(weight.detach(), 1 - 0.1 * given)
    torch.testing.assert_close(seen, 1 - 0.1 * given)
    assert isinstance(found, tuple)
    torch.testing.assert_close(found[0], seen if aliased else seen.sum())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_rounding_is_told_from_another_function(dtype):
    """Biases move by the signs of what is 0 but for rounding, as under Adam; the weights do not."""
    bias = torch.linspace(1, 2, 15, dtype=dtype)
    weights = torch.tensor([1.0, 2.0], dtype=dtype)

    def step(x, factor=1.0, rounding=0.0):
        noise = torch.sin((bias + rounding) / torch.finfo(dtype).eps)
        bias.sub_(0.1 * noise.sign())
        weights.sub_(0.1 * factor * x * weights)

    x = torch.ones(2, dtype=dtype)
    recording = record(step, [x])
    for rounding in (-1e-5, 0.0, 1e-5):
        recording.confirm(lambda given, r=rounding: step(*given, rounding=r), step, [x], rounds=True)
    with pytest.raises(NotRecorded):
        recording.confirm(lambda given: step(*given, factor=1.01), step, [x], rounds=True)
    with pytest.raises(NotRecorded):
        recording.confirm(lambda given: step(*given, rounding=1e-5), step, [x])
    torch.testing.assert_close(bias, torch.linspace(1, 2, 15, dtype=dtype), rtol=0, atol=0)
    assert weights.tolist() == [1.0, 2.0]


def test_numbers_that_disturbed_are_infinite_allow_no_other_function():
    edge = torch.ones(2, dtype=torch.float64)
    edge[0] -= 1e-16  # 1 in float64
    state = torch.zeros(2, dtype=torch.float64)

    def step(x, factor=1.0):
        state.add_(factor * x / (edge == 1))
        edge.mul_(1.0)

    x = torch.ones(2, dtype=torch.float64)
    recording = record(step, [x])
    with pytest.raises(NotRecorded):
        recording.confirm(lambda given: step(*given, factor=2.0), step, [x], rounds=True)


# ------------------------------------------------------------------------------------------- on CUDA
without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


def moving(device):
    """A function that changes two tensors, and returns two, one of them a view of what it changes."""
    weight = torch.linspace(0, 1, 12, dtype=torch.float64, device=device)
    state = torch.zeros(12, dtype=torch.float64, device=device)

    def step(x):
        moved = torch.sin(x) * weight
        state.add_(moved)
        weight.sub_(0.1 * moved)
        return moved.sum(), state[:3]

    return step, weight, state


def at_once(function, _):
    """What a CUDA graph does: the kernels run again, on the memory of the first time."""
    result = function()

    def launch():
        for own, t in zip(result, function(), strict=True):
            own.copy_(t)

    return launch, result


@pytest.mark.parametrize("mode", ["recorded", "compiled"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, without_gpu])])
def test_kernels_are_launched_at_once_on_cuda(device, mode, monkeypatch):
    """Results that later calls leave alone, and changes that are counted."""
    if device == "cpu":
        monkeypatch.setattr("constrain.runtime.captured._capture", at_once)
        monkeypatch.setattr("constrain.runtime.replayed.capturable", lambda *_: True)
    x = torch.arange(12, dtype=torch.float64, device=device)
    found = []
    for replayed in (True, False):
        step, weight, state = moving(device)
        run = step
        if replayed:
            recorded = Replayed(mode)
            for _ in range(2):
                recorded.confirm(step, [x])
            assert recorded._captured is not None
            torch.testing.assert_close(state, torch.zeros_like(state))

            def run(t, own=recorded):
                return own([t])

        versions = weight._version
        results = [run(x + k) for k in range(4)]
        assert weight._version > versions
        found.append([*(pair[0] for pair in results), results[-1][1], weight, state])
    torch.testing.assert_close(*found)


def test_a_capture_that_does_something_else_is_not_used(monkeypatch):
    """Nor is one that cannot be made; both leave what they have changed as it was."""

    def refused(function, device):
        function()
        raise RuntimeError("operation not permitted when stream is capturing")

    def forgetful(function, device):
        return (lambda: None), function()

    monkeypatch.setattr("constrain.runtime.replayed.capturable", lambda *_: True)
    for capture in (refused, forgetful):
        monkeypatch.setattr("constrain.runtime.captured._capture", capture)
        step, weight, _ = moving("cpu")
        recorded = Replayed("recorded")
        for _ in range(2):
            recorded.confirm(step, [torch.ones(12, dtype=torch.float64)])
        assert recorded._captured is None
        torch.testing.assert_close(weight, torch.linspace(0, 1, 12, dtype=torch.float64))


def test_what_needs_the_host_is_launched_one_by_one():
    """Tensors of the host, made or read; and random numbers."""
    x = torch.ones(3)
    for step in (lambda t: t * x, lambda t: t + torch.zeros(3), lambda t: F.dropout(t, 0.5)):
        recording = record(step, [x.clone()])
        assert not capturable(recording.graph, [x], recording.changed)
    made = record(lambda t: t + torch.zeros(3), [x]).graph.operations
    assert [x.on_host for x in made] == [True, False]
    assert not any(
        x.on_host for x in record(lambda t: t.double() + torch.zeros_like(t), [x]).graph.operations
    )
