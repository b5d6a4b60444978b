"""`python -m benchmarks.peers.memory WHO GROUPS`: memory that a constrained run holds, in megabytes.

Resident pages of this process (`/proc/self/statm`, the second number) after three steps on all rows, minus
those after three steps without constraints on the same data, before the problem is written. All packages are
imported before, so that only problem, compiled form, multipliers and what the steps keep are counted.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path

import torch

from benchmarks.__main__ import ROWS, sample
from benchmarks.peers.steps import batches, linear, plain, work


def resident() -> float:
    """Megabytes of physical memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Prints one number."""
    who, count = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    for package in ("cooper", "humancompatible.train.dual_optim"):
        if importlib.util.find_spec(package.split(".")[0]) is not None:
            importlib.import_module(package)
    D = sample(count)
    small = sample(2)
    warm = work("ours, one by one, recorded", linear(), small, 2, ROWS)
    base = plain(linear(), batches(D, ROWS))
    for _ in range(3):
        warm()
        base()
    del warm, small
    before = resident()
    step = work(who, linear(), D, count, ROWS)
    for _ in range(3):
        step()
    print(resident() - before)


if __name__ == "__main__":
    main()
