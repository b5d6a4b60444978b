"""`python -m benchmarks.accelerator [cuda]`: what constraints cost per step, by wall clock.

One step is forward, backward, Adam and, with constraints, the multipliers; batches are positions that are on
the device already. Rounds of both steps alternate, and each waits for the device at its end.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from benchmarks.__main__ import network, sample
from benchmarks.peers.steps import block, one_by_one
from benchmarks.timing import Ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    import constrain as cn

Graph = Literal["off", "recorded", "compiled"]
GRAPHS: tuple[Graph, ...] = ("off", "recorded", "compiled")
BATCHES, ROUNDS, REPEATS = 64, 7, 200


def _wide() -> nn.Module:
    """A network whose own operations take time: 32 features, four layers of 2048."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(32, 2048), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(2048, 2048), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2048, 1), nn.Flatten(0))


def _positions(rows: int, batch: int, device: str) -> Callable[[], torch.Tensor]:
    index = torch.randint(rows, (BATCHES, batch), device=device)
    place = iter(range(10**9))
    return lambda: index[next(place) % BATCHES]


def plain(net: nn.Module, D: cn.Data, batch: int, device: str) -> Callable[[], None]:
    """The unconstrained step, as torch users write it."""
    net = net.to(device)
    optimizer = torch.optim.Adam(net.parameters())
    x, y = (torch.as_tensor(D.values(name)).to(device) for name in ("x", "y"))
    following = _positions(len(D), batch, device)

    def step() -> None:
        rows = following()
        loss = nn.functional.binary_cross_entropy_with_logits(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def constrained(
    problem: cn.Problem, net: nn.Module, D: cn.Data, batch: int, device: str, graph: Graph
) -> Callable[[], object]:
    """The constrained step; `graph` as in `solve`."""
    lagrangian = problem.compile(device=device)
    made = lagrangian.training_step(torch.optim.Adam(net.parameters(), fused=True), graph)
    following = _positions(len(D), batch, device)
    return lambda: made(D.rows(following()))


def _seconds(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    for _ in range(REPEATS):
        work()
    torch.get_device_module(device).synchronize()
    return time.perf_counter() - start


def ratio(work: Callable[[], object], base: Callable[[], object], device: str) -> tuple[Ratio, float]:
    """Wall time of the work over that of the base, and milliseconds of one step of the base."""
    for untimed in (work, base):
        _seconds(untimed, device)
    pairs = [(_seconds(work, device), _seconds(base, device)) for _ in range(ROUNDS)]
    found = [a / b for a, b in pairs]
    return Ratio(statistics.median(found), min(found), max(found)), min(b for _, b in pairs) / REPEATS * 1e3


def main() -> None:
    """Prints one line per problem and way of making the step."""
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no NVIDIA GPU here; `python -m benchmarks` measures steps on the CPU")
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else device}, torch {torch.__version__}")
    for label, make, batch in (("32-64-1", network, 256), ("32-2048x4-1", _wide, 4096)):
        for count in (1, 5, 1000):
            D, net = sample(max(count, 10)), make()
            problem = one_by_one(D, net, count)
            if count == 1000:
                problem = block(D, net)
            base = plain(make(), D, batch, device)
            for graph in GRAPHS:
                found, each = ratio(constrained(problem, net, D, batch, device, graph), base, device)
                what = f"{label:<12} batch {batch:<5} {count:>5} constraints {graph:<9}"
                print(f"{what} {found}  of {each:.3f} ms")


if __name__ == "__main__":
    main()
