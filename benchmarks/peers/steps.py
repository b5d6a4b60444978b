"""Cost of one constrained step over the same step without constraints: few constraints, groups, rows.

All libraries train the same model from the same weights with the same optimizer, on batches drawn alike. All
ratios are to the same loop without constraints. What the model has reached after these steps stands beside
them: average loss and largest violation on all rows.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import constrain as cn
from benchmarks.__main__ import BATCH, ROWS, network, sample, steps
from benchmarks.peers.loops import Evaluated, cooper_step, human_step
from benchmarks.peers.table import Table, ratio
from benchmarks.timing import Ratio, alternate
from constrain import E, forall

__all__ = ["few", "full_groups", "groups", "loops", "rows", "work"]

LEVEL = 0.45
"""Bound of the mean predicted share in each group; about half are positive, so that it binds."""
FLOOR = -1.0
"""Bound of the score of each row."""
DUAL_LR = 0.1
COLUMNS = ("step", "constraints", "time / plain", "steps", "loss", "violation")
Work = Callable[[], Any]
Batches = Callable[[], tuple[Tensor, ...]]


def linear() -> nn.Module:
    """32 features, one score per row."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 1), nn.Flatten(0))


# ---------------------------------------------------------------------------------------------- ours
def _score(D: cn.Data, net: nn.Module) -> tuple[Any, Any]:
    score = cn.Model(net, "f")(D.x)
    return score, E(nn.functional.binary_cross_entropy_with_logits(score, D.y, reduction="none"))


def one_by_one(D: cn.Data, net: nn.Module, count: int) -> cn.Problem:
    """`count` constraints, each with a name of its own."""
    score, loss = _score(D, net)
    share = torch.sigmoid(score)
    relations = {f"group{k}": E(share, given=D.group == k) <= LEVEL for k in range(count)}
    return cn.minimize(loss).subject_to(**relations)


def block(D: cn.Data, net: nn.Module) -> cn.Problem:
    """The same constraints in one line."""
    score, loss = _score(D, net)
    return cn.minimize(loss).subject_to(share=E(torch.sigmoid(score), by=D.group) <= LEVEL)


# --------------------------------------------------------------------- as users of the peers write it
def batches(D: cn.Data, size: int) -> Batches:
    """The next batch: positions, features, labels and groups; all rows where `size` is their number."""
    columns = tuple(D.values(name) for name in ("x", "y", "group"))
    if size == len(D):
        return lambda: (torch.arange(size), *columns)
    index = torch.randint(len(D), (64, size))
    place = iter(range(10**9))

    def following() -> tuple[Tensor, ...]:
        i = index[next(place) % 64]
        return i, *(column[i] for column in columns)

    return following


def plain(net: nn.Module, following: Batches, *, fused: bool = False) -> Work:
    """The loop without constraints; torch's default Adam unless `fused`."""
    optimizer = torch.optim.Adam(net.parameters(), fused=fused or None)

    def step() -> None:
        _, x, y, _ = following()
        loss = nn.functional.binary_cross_entropy_with_logits(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def by_vector(share: Tensor, group: Tensor, levels: int, count: int) -> list[Tensor]:
    """One vector of constraints, by segment sums."""
    sums = torch.zeros(levels).index_add(0, group, share)
    sizes = torch.zeros(levels).index_add(0, group, torch.ones_like(share)).clamp(min=1)
    return [(sums / sizes)[:count] - LEVEL]


def by_mask(share: Tensor, group: Tensor, _levels: int, count: int) -> list[Tensor]:
    """A constraint object for each group, by its mask; `where` keeps one byte per row for the gradient."""
    masks = [group == k for k in range(count)]
    return [torch.where(mask, share, 0.0).sum() / mask.sum().clamp(min=1) - LEVEL for mask in masks]


def _evaluate(net: nn.Module, D: cn.Data, size: int, count: int, means: Any, compiled: bool) -> Work:
    """Loss and means of the first `count` groups on the next batch."""
    following, levels = batches(D, size), int(D.values("group").max()) + 1

    def formulas(x: Tensor, y: Tensor, group: Tensor) -> tuple[Tensor, list[Tensor]]:
        score = net(x)
        loss = nn.functional.binary_cross_entropy_with_logits(score, y)
        return loss, means(torch.sigmoid(score), group, levels, count)

    chosen = torch.compile(formulas) if compiled else formulas

    def evaluate() -> Evaluated:
        return Evaluated(*chosen(*following()[1:]))

    return evaluate


def work(who: str, net: nn.Module, D: cn.Data, count: int, size: int) -> Work:
    """One step of `who`, such as `ours, by=, recorded` or `Cooper, one vector, compiled`."""
    library, form, how = who.split(", ")
    if library == "ours":
        problem = block(D, net) if form == "`by=`" else one_by_one(D, net, count)
        return steps(problem, net, D, graph="off" if how == "in Python" else how, batch=size)
    vector = form == "one vector"
    evaluate = _evaluate(net, D, size, count, by_vector if vector else by_mask, how == "compiled")
    make = cooper_step if library == "Cooper" else human_step
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    return make(evaluate, [count] if vector else [1] * count, optimizer, dual_lr=DUAL_LR)


def reached(D: cn.Data, net: nn.Module, count: int) -> tuple[str, str]:
    """Average loss, and the largest violation of one of the first groups, on all rows."""
    with torch.no_grad():
        score, group = net(D.values("x")), D.values("group")
        loss = nn.functional.binary_cross_entropy_with_logits(score, D.values("y"))
        means = torch.zeros(int(group.max()) + 1).index_add(0, group, torch.sigmoid(score))
        means = (means / torch.bincount(group))[:count]
        worst = float(means.max()) - LEVEL if count else 0.0
    return f"{float(loss):.3f}", f"{max(0.0, worst):.3f}"


class Counted:
    """Work that counts how often it was done; a few times untimed, until what is recorded is recorded."""

    def __init__(self, work: Work, before: int = 10) -> None:
        self.work, self.times = work, 0
        for _ in range(before):
            self()

    def __call__(self) -> None:
        self.times += 1
        self.work()


PACKAGES = {"Cooper": "cooper-optim", "humancompatible-train": "humancompatible-train"}


def _missing(table: Table, who: str) -> bool:
    package = PACKAGES.get(who.split(", ", maxsplit=1)[0])
    return package is not None and table.absent(package, who)


# ----------------------------------------------------------------------------------- few constraints
FEW = (
    "ours, one by one, in Python",
    "ours, one by one, recorded",
    "ours, one by one, compiled",
    "Cooper, one vector, in Python",
    "Cooper, one vector, compiled",
    "Cooper, one by one, in Python",
    "Cooper, one by one, compiled",
    "humancompatible-train, one vector, in Python",
    "humancompatible-train, one vector, compiled",
    "humancompatible-train, one by one, in Python",
)


def few(rounds: int = 7, repeats: int = 100, chosen: tuple[str, ...] = FEW) -> Table:
    """1 and 5 constraints on a small network: what a library adds to a step."""
    table = Table("steps", COLUMNS)
    for count in (0, 1, 5):
        D = sample(max(count, 2))
        base = plain(network(), batches(D, BATCH))
        alone = ("unconstrained, torch's default Adam", "unconstrained, fused Adam")
        for who in chosen if count else alone:
            if _missing(table, who) or (count == 1 and "one by one" in who and not who.startswith("ours")):
                continue
            net = network()
            if count:
                step = Counted(work(who, net, D, count, BATCH))
            else:
                step = Counted(plain(net, batches(D, BATCH), fused="fused" in who))
            found = alternate(step, base, rounds=rounds, repeats=repeats)
            table.add(who, str(count), ratio(found), str(step.times), *reached(D, net, count))
    return table


LOOPS = (
    "ours, one by one, in Python",
    "ours, one by one, recorded",
    "Cooper, one vector, in Python",
    "humancompatible-train, one vector, in Python",
)


def loops(rounds: int = 7, lengths: tuple[int, ...] = (100, 326, 1_000), count: int = 5) -> Table:
    """Whole loops from their first step, with the recording in them: do short ones pay for it?"""
    table = Table("loops", ("loop", "constraints", "time / plain", "steps", "loss", "violation"))
    D = sample(count)
    for length in lengths:
        for who in LOOPS:
            if _missing(table, who):
                continue
            ratios: list[float] = []
            for k in range(rounds + 1):  # the first one imports what torch imports late
                net, other = network(), network()
                step, base = work(who, net, D, count, BATCH), plain(other, batches(D, BATCH))
                found = alternate(step, base, rounds=1, repeats=length, untimed=False)
                ratios += [found.median] if k else []
            spread = Ratio(statistics.median(ratios), min(ratios), max(ratios))
            table.add(who, str(count), ratio(spread), str(length), *reached(D, net, count))
    return table


# -------------------------------------------------------------------------------------------- groups
GROUPS = (
    "ours, one by one, in Python",
    "ours, one by one, recorded",
    "ours, `by=`, recorded",
    "Cooper, one vector, in Python",
    "Cooper, one by one, in Python",
    "humancompatible-train, one vector, in Python",
    "humancompatible-train, one by one, in Python",
)
COUNTS = (10, 1_000, 10_000)


def extra_memory(who: str, count: int) -> str:
    """Megabytes that a process holds more after three steps than before the problem was written: the median.

    Processes differ by what the allocator has left, or gives back.
    """
    command = [sys.executable, "-m", "benchmarks.peers.memory", who, str(count)]
    done = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(5)]
    if any(one.returncode for one in done):
        return "failed"
    return f"{max(0.0, statistics.median(float(one.stdout) for one in done)):.0f} MB"


def _scaling(
    name: str,
    model: Callable[[], nn.Module],
    size: int,
    repeats: int,
    counts: tuple[int, ...],
) -> Table:
    full = size == ROWS
    columns = (*COLUMNS[:3], "extra memory", *COLUMNS[3:]) if full else COLUMNS
    table = Table(name, columns)
    for who in GROUPS:
        if _missing(table, who):
            continue
        for count in counts:
            slow = "one by one" in who and not who.startswith("ours") and count >= 1_000
            if slow and count > 1_000:
                table.add(who, f"{count:,}", "not run", *[""] * (len(columns) - 3))
                continue
            D, net = sample(count), model()
            step = Counted(work(who, net, D, count, size), 0 if slow else 10)
            found = alternate(
                step, plain(model(), batches(D, size)),
                rounds=3 if slow else 5, repeats=1 if slow else repeats,
            )  # fmt: skip
            held = (extra_memory(who, count),) if full else ()
            table.add(who, f"{count:,}", ratio(found), *held, str(step.times), *reached(D, net, count))
    return table


def full_groups(repeats: int = 20, counts: tuple[int, ...] = COUNTS) -> Table:
    """Means of K groups, all 100 000 rows in each step, linear model: the least work per row there is."""
    return _scaling("groups-all-rows", linear, ROWS, repeats, counts)


def groups(repeats: int = 60, counts: tuple[int, ...] = COUNTS) -> Table:
    """Means of K groups on batches of 1024 rows, small network."""
    return _scaling("groups", network, 1_024, repeats, counts)


# ---------------------------------------------------------------------------------------------- rows
def _row_work(who: str, net: nn.Module, D: cn.Data) -> Work:
    """A step with one multiplier for each row of the sample."""
    if who.startswith("ours"):
        score, loss = _score(D, net)
        problem = cn.minimize(loss).subject_to(floor=forall(D, score >= FLOOR))
        return steps(problem, net, D, graph="off" if who.endswith("Python") else who.split(", ")[1])
    following, indexed = batches(D, BATCH), who.startswith("Cooper")

    def evaluate() -> Evaluated:
        i, x, y, _ = following()
        score = net(x)
        loss = nn.functional.binary_cross_entropy_with_logits(score, y)
        missing = (FLOOR - score) / BATCH
        if indexed:
            return Evaluated(loss, [missing], rows=[i])
        return Evaluated(loss, [torch.zeros(len(D)).index_put((i,), missing)])

    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    if indexed:
        return cooper_step(evaluate, [len(D)], optimizer, dual_lr=DUAL_LR, indexed=True)
    return human_step(evaluate, [len(D)], optimizer, dual_lr=DUAL_LR)


ROW_STEPS = (
    "ours, in Python",
    "ours, recorded",
    "ours, compiled",
    "Cooper, `IndexedMultiplier`",
    "humancompatible-train, dense vector",
)


def rows(
    rounds: int = 5,
    repeats: int = 60,
    counts: tuple[int, ...] = (1_000, 1_000_000),
    chosen: tuple[str, ...] = ROW_STEPS,
) -> Table:
    """A multiplier for each row, batches of 256: does the cost of a step grow with the sample?"""
    table = Table("rows", COLUMNS)
    for who in chosen:
        if _missing(table, who):
            continue
        for count in counts:
            D, net = sample(10, count), network()
            step = Counted(_row_work(who, net, D))
            base = plain(network(), batches(D, BATCH))
            found = alternate(step, base, rounds=rounds, repeats=repeats)
            with torch.no_grad():
                score = net(D.values("x"))
                loss = nn.functional.binary_cross_entropy_with_logits(score, D.values("y"))
                mean = (FLOOR - score).clamp(min=0).mean()
            reached = (f"{float(loss):.3f}", f"{float(mean):.3f} (mean)")
            table.add(who, f"{count:,}", ratio(found), str(step.times), *reached)
    return table
