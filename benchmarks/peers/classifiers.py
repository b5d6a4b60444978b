"""Adult, decisions of a small network: rates of both sexes within 0.1, over all and over the positives."""

from __future__ import annotations

import copy
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import adult_data
import constrain as cn
from benchmarks.peers.loops import Evaluated, Step, cooper_step, human_step
from benchmarks.peers.table import Table, milliseconds
from constrain import E, P

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["Judged", "judged", "table"]

BOUND = 0.1
EPOCHS = 10
BATCH = 512
SHARPNESS = 3.0
"""Of the sigmoid that the peers differentiate in the place of a decision."""


class Judged:
    """Error and largest violation on the training and on the test split."""

    def __init__(self, train: tuple[float, float], test: tuple[float, float], seconds: float) -> None:
        self.train, self.test, self.seconds = train, test, seconds


def judged(split: adult_data.Split, decided: NDArray[Any]) -> tuple[float, float]:
    """Error and largest violation of one rule; decisions are 0, 1 or chances."""
    male, high = split.sex == "Male", split.y == 1
    error = float(np.mean(decided * (1 - split.y) + (1 - decided) * split.y))
    gaps = [
        abs(decided[rows & male].mean() - decided[rows & ~male].mean()) for rows in (np.ones_like(male), high)
    ]
    return error, max(0.0, max(gaps) - BOUND)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(95, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))


def _decided(net: nn.Module, split: adult_data.Split) -> NDArray[Any]:
    with torch.no_grad():
        return (net(torch.tensor(split.x).float()) > 0).numpy().astype(float)


def _both(net: nn.Module, seconds: float) -> Judged:
    data = adult_data.load()
    return Judged(
        judged(data.train, _decided(net, data.train)), judged(data.test, _decided(net, data.test)), seconds
    )


def by_ours(seed: int, **options: Any) -> Judged:
    """Problem written, trained by the defaults, and judged."""
    split = adult_data.load().train
    net = network(seed)
    start = time.process_time()
    D = cn.Data("adult", x=torch.tensor(split.x).float(), y=torch.tensor(split.y).float(), sex=split.sex)
    score = cn.Model(net, "f")(D.x)
    loss = E(nn.functional.binary_cross_entropy_with_logits(score, D.y, reduction="none"))

    def gap(*also: Any) -> Any:
        rates = []
        for sex in ("Male", "Female"):
            given = D.sex == sex
            for event in also:
                given = given & event
            rates.append(P(score > 0, given=given))
        return rates[0] - rates[1]

    problem = cn.minimize(loss).subject_to(parity=abs(gap()) <= BOUND, odds=abs(gap(D.y == 1)) <= BOUND)
    problem.solve(seed=seed, progress=False, **options)
    return _both(net, time.process_time() - start)


def _gaps(decided: Tensor, male: Tensor, high: Tensor) -> Tensor:
    """Both gaps and their negatives, minus the bound."""

    def mean(mask: Tensor) -> Tensor:
        return (decided * mask).sum() / mask.sum().clamp(min=1)

    gaps = torch.stack([mean(male) - mean(~male), mean(male & high) - mean(~male & high)])
    return torch.cat([gaps, -gaps]) - BOUND


def by_peer(make: Callable[..., Step] | None, seed: int, **options: Any) -> Judged:
    """Ten epochs; the one that violates least on the training rows, then errs least, is kept, at its cost."""
    split = adult_data.load().train
    x, y = torch.tensor(split.x).float(), torch.tensor(split.y).float()
    male, high = torch.tensor(split.sex == "Male"), y == 1
    net = network(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    start = time.process_time()
    rows = iter(())
    exact = make is cooper_step

    def evaluate() -> Evaluated:
        i = next(rows)
        score = net(x[i])
        loss = nn.functional.binary_cross_entropy_with_logits(score, y[i])
        soft = _gaps(torch.sigmoid(SHARPNESS * score), male[i], high[i])
        hard = [_gaps((score.detach() > 0).float(), male[i], high[i])] if exact else None
        return Evaluated(loss, [soft], exact=hard)

    def unconstrained() -> None:
        found = evaluate()
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()

    step = unconstrained if make is None else make(evaluate, [4], optimizer, **options)
    best, kept = (np.inf, np.inf), net.state_dict()
    for _ in range(EPOCHS):
        order = torch.randperm(len(x)).split(BATCH)
        rows = iter(order)
        for _ in order:
            step()
        error, violation = judged(split, _decided(net, split))
        if (violation, error) < best:
            best, kept = (violation, error), copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)
    return _both(net, time.process_time() - start)


def by_fairlearn() -> Judged:
    """A randomized mixture of logistic regressions under demographic parity: one moment is all it bounds."""
    from fairlearn.reductions import DemographicParity, ExponentiatedGradient
    from sklearn.linear_model import LogisticRegression

    data = adult_data.load()
    start = time.process_time()
    fitted = ExponentiatedGradient(
        LogisticRegression(max_iter=1000), DemographicParity(difference_bound=BOUND / 2)
    )
    fitted.fit(data.train.x, data.train.y.astype(int), sensitive_features=data.train.sex)
    chances = [fitted._pmf_predict(split.x)[:, 1] for split in (data.train, data.test)]
    spent = time.process_time() - start
    return Judged(judged(data.train, chances[0]), judged(data.test, chances[1]), spent)


def table(seeds: int = 2) -> Table:
    """Medians over the seeds; violations are the largest of them."""
    result = Table(
        "adult-rates",
        ("method", "CPU time", "train error", "train violation", "test error", "test violation", "seeds"),
    )
    methods: tuple[tuple[str, str, Callable[[int], Judged], int], ...] = (
        (f"no constraints, Adam 0.002, {EPOCHS} epochs", "torch", lambda k: by_peer(None, k), seeds),
        ("ours: `solve()`", "torch", by_ours, seeds),
        (f"ours: `solve(epochs={EPOCHS})`", "torch", lambda k: by_ours(k, epochs=EPOCHS), seeds),
        ("Cooper, Lagrangian, sharpness 3, dual lr 0.1", "cooper-optim",
         lambda k: by_peer(cooper_step, k, dual_lr=0.1), seeds),
        ("Cooper, augmented, sharpness 3, dual lr 0.1, penalty 2", "cooper-optim",
         lambda k: by_peer(cooper_step, k, dual_lr=0.1, penalty=2.0), seeds),
        ("humancompatible-train, ALM, sharpness 3, dual lr 0.1, penalty 2", "humancompatible-train",
         lambda k: by_peer(human_step, k, dual_lr=0.1, penalty=2.0), seeds),
        ("fairlearn, ExponentiatedGradient, logistic regression, parity only", "fairlearn",
         lambda _: by_fairlearn(), 1),
    )  # fmt: skip
    for who, package, run, count in methods:
        if result.absent(package, who):
            continue
        found = [run(seed) for seed in range(count)]
        result.add(
            who, milliseconds(statistics.median(f.seconds for f in found)),
            f"{statistics.median(f.train[0] for f in found):.4f}", f"{max(f.train[1] for f in found):.4f}",
            f"{statistics.median(f.test[0] for f in found):.4f}", f"{max(f.test[1] for f in found):.4f}",
            str(count),
        )  # fmt: skip
    return result
