"""Runs that are killed at random moments, and continued until they end: is the end the same, bit by bit?

`python -m benchmarks.kills` starts a training run in a process of its own, kills it with SIGKILL, starts it
again with `resume=True`, and so on; after the last kill it lets it end. `python -m benchmarks.kills run DIR`
is one such process.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

KILLS = 50
INTERVAL = 7
"""Steps between checkpoints."""


def run(folder: Path) -> None:
    """One process: trains, or continues, and stores the result."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    import constrain as cn
    from constrain import E, P, forall
    from constrain.solvers.checkpoint import Checkpoint

    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 5, generator=g)
    y = (x[:, 0] + torch.randn(2000, generator=g) > 0).float()
    D = cn.Data("people", x=x, y=y, group=(torch.rand(2000, generator=g) < 0.1).long())
    torch.manual_seed(1)
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1), torch.nn.Flatten(0)
    )
    score = cn.Model(net, "f")(D.x)
    loss = cross_entropy(score, D.y, reduction="none")
    problem = cn.minimize(E(loss)).subject_to(
        rate=P(score > 0, by=D.group) >= 0.4, tail=cn.CVaR(loss, 0.9) <= 1.8, row=forall(D, loss <= 4.0)
    )
    log = os.open(folder / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    solution = problem.solve(
        "lagrangian",
        epochs=60,
        batch=64,
        progress=False,
        checkpoint=Checkpoint(folder / "run.ckpt", steps=INTERVAL),
        resume=True,
        callback=lambda told: os.write(log, f"{told.step}\n".encode()) and None,
    )
    solution.save(folder / "solution")


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A process that trains in a folder."""
    return subprocess.Popen([sys.executable, "-m", "benchmarks.kills", "run", str(folder)])


def stored_steps(folder: Path) -> int:
    """Steps in the checkpoint; 0 without one."""
    from constrain.solvers.checkpoint import read

    path = folder / "run.ckpt"
    return read(path)["run"]["objects"]["0.steps"] if path.exists() else 0


def logged_steps(folder: Path) -> int:
    """Steps that a process is known to have made."""
    path = folder / "steps"
    return int(path.read_text().split()[-1]) if path.exists() and path.read_text() else 0


@dataclass(frozen=True)
class Outcome:
    """What came of a run with kills.

    Attributes:
        kills: processes that were killed before their end.
        lost: most steps that a kill has cost, as far as the log tells.
        partial: kills in the middle of a write, which left a part of a file behind.
        same: whether the solution is that of the run without kills, in every bit.
    """

    kills: int
    lost: int
    partial: int
    same: bool


def changed(path: Path) -> int:
    """When a file was written last, 0 without one."""
    return path.stat().st_mtime_ns if path.exists() else 0


def killed(folder: Path, kills: int, longest: float, seed: int = 0) -> tuple[int, int, int]:
    """Kills runs in a folder at random moments: one in five while it starts, the others while it trains.

    Args:
        folder: of the run.
        kills: wanted.
        longest: seconds that a process lives at most after its first checkpoint.
        seed: of the moments.

    Returns:
        Kills, most lost steps, and kills in the middle of a write.
    """
    chance, done, lost, partial = random.Random(seed), 0, 0, 0
    while done < kills:
        before, process = changed(folder / "run.ckpt"), start(folder)
        if chance.random() < 0.2:
            time.sleep(chance.uniform(0, 2))
        else:
            while process.poll() is None and changed(folder / "run.ckpt") == before:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, longest))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += 1
        lost = max(lost, logged_steps(folder) - stored_steps(folder))
        partial += (folder / "run.ckpt.part").exists()
    return done, lost, partial


def equal(a: Path, b: Path) -> bool:
    """Whether two stored solutions have the same numbers, bit by bit."""
    import json

    import numpy as np

    one, two = (np.load(folder / "solution" / "arrays.npz") for folder in (a, b))
    arrays = set(one) == set(two) and all(one[k].tobytes() == two[k].tobytes() for k in one)
    texts = [json.loads((f / "solution" / "solution.json").read_text())["solution"] for f in (a, b)]
    return arrays and all(
        texts[0][k] == texts[1][k] for k in ("objective", "history", "status", "constraints")
    )


def measure(kills: int = KILLS, longest: float = 0.2) -> Outcome:
    """A run with kills against one without."""
    with TemporaryDirectory() as name:
        whole, cut = Path(name) / "whole", Path(name) / "cut"
        whole.mkdir()
        cut.mkdir()
        assert start(whole).wait() == 0
        done, lost, partial = killed(cut, kills, longest)
        assert start(cut).wait() == 0
        return Outcome(done, lost, partial, equal(whole, cut))


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(Path(sys.argv[2]))
    else:
        print(measure())
