"""`python -m benchmarks.peers [CASE ...] [--write] [--seeds N]`: all cases, or some; `--write` into the page.

Everything on one thread and by the CPU clock. A peer that is not installed gets a row that says so.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks.peers import classifiers, convex, policies, prices, programs, steps
from benchmarks.peers.table import PAGE, machine, replaced

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers.table import Table


def cases(seeds: int) -> dict[str, Callable[[], Table]]:
    """What can be measured, by name."""
    return {
        "steps": steps.few,
        "loops": steps.loops,
        "rows": steps.rows,
        "groups": steps.groups,
        "groups-all-rows": steps.full_groups,
        "adult-convex": convex.table,
        "adult-rates": partial(classifiers.table, seeds),
        "rare-groups": partial(prices.table, seeds),
        "hock-schittkowski": programs.table,
        "alignment": policies.table,
    }


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(cases(1))}; all by default")
    parser.add_argument("--write", action="store_true", help=f"replace the tables of {PAGE.name}")
    parser.add_argument("--seeds", type=int, default=2, help="of the cases that train")
    arguments = parser.parse_args()
    known = cases(arguments.seeds)
    unknown = set(arguments.cases) - set(known)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(machine())
    for name in arguments.cases or known:
        start = time.process_time()
        print(f"\n{name}")
        found = str(known[name]())
        print(f"\n{found}\n\n{time.process_time() - start:.0f} s of CPU time", flush=True)
        if arguments.write:
            page = replaced(PAGE.read_text(encoding="utf-8"), name, found)
            PAGE.write_text(replaced(page, "machine", machine()), encoding="utf-8")


if __name__ == "__main__":
    main()
