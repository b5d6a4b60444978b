"""The job shop of Fisher and Thompson with six jobs and six machines.

Every job visits every machine in an order of its own, and a machine works on one job at a time: of two jobs
on a machine, either the first ends before the second starts, or the other way around. That is the larger of
two differences being nonnegative, `cn.maximum(a, b) >= 0`, which is not convex: the compiler gives each pair
two binary variables, and takes from the bounds of the start times how far the other order may be violated.
HiGHS solves the mixed-integer program. The shortest schedule takes 55 units of time (Fisher & Thompson 1963,
instance FT06). Multipliers are those with the order of jobs fixed: the nonzero ones are on a critical path.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np

import constrain as cn

# Per job the machines in the order of visits, and the time on each.
ORDERS = ("201354", "124503", "235014", "102345", "214503", "135042")
MACHINES = np.array([[int(machine) for machine in order] for order in ORDERS])
TIMES = np.array(
    [
        [1.0, 3.0, 6.0, 7.0, 3.0, 6.0],
        [8.0, 5.0, 10.0, 10.0, 10.0, 4.0],
        [5.0, 4.0, 8.0, 9.0, 1.0, 7.0],
        [5.0, 5.0, 5.0, 3.0, 8.0, 9.0],
        [9.0, 3.0, 5.0, 4.0, 3.0, 1.0],
        [3.0, 3.0, 9.0, 10.0, 4.0, 1.0],
    ]
)
HORIZON = 60.0
TOLERANCE = 1e-6


@cache
def problem():
    """Return the problem and its start times, one per job and visit."""
    jobs, visits = TIMES.shape
    start = cn.Variable(jobs * visits, "start", bounds=(0.0, HORIZON))
    end = cn.Variable((), "end", bounds=(0.0, HORIZON))
    time = TIMES.reshape(-1)
    place = np.arange(jobs * visits).reshape(jobs, visits)
    before, after = place[:, :-1].reshape(-1).tolist(), place[:, 1:].reshape(-1).tolist()
    machine = MACHINES.reshape(-1)
    pairs = [pair for m in range(visits) for pair in combinations(np.flatnonzero(machine == m).tolist(), 2)]
    one, other = (list(side) for side in zip(*pairs, strict=True))
    one_first = start[other] - start[one] - time[one]
    other_first = start[one] - start[other] - time[other]
    return cn.minimize(end).subject_to(
        order=start[after] >= start[before] + time[before],
        machines=cn.maximum(one_first, other_first) >= 0,
        makespan=end >= start[place[:, -1].tolist()] + time[place[:, -1]],
    ), start


def overlap(start):
    """Return the longest time that two jobs share a machine."""
    ends, machine, longest = start + TIMES.reshape(-1), MACHINES.reshape(-1), 0.0
    for m in range(MACHINES.shape[1]):
        for a, b in combinations(np.flatnonzero(machine == m), 2):
            longest = max(longest, min(ends[a], ends[b]) - max(start[a], start[b]))
    return longest


def run():
    """Solve the problem."""
    shop, start = problem()
    solution = shop.solve(progress=False)
    measured = {
        "makespan": float(solution.objective),
        "proven bound": float(solution.bound),
        "overlap on a machine": overlap(np.asarray(start.value)),
        "price of the makespan": float(np.sum(solution["makespan"].multiplier)),
    }
    known = {"makespan": 55.0, "proven bound": 55.0, "overlap on a machine": 0.0}
    return measured, {**known, "price of the makespan": 1.0}


if __name__ == "__main__":
    shop, start = problem()
    print(shop)
    print(shop.explain().reason)
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:22} {value:8.3f}   published {reference[name]:.0f}")
    for job, times in enumerate(np.asarray(start.value).reshape(TIMES.shape)):
        print(f"job {job}", "  ".join(f"m{m} at {t:4.1f}" for m, t in zip(MACHINES[job], times, strict=True)))
