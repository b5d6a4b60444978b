"""Errors of the multipliers of a run, against series whose error is known, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

import constrain as cn
from constrain import E
from constrain.diagnostics.repeats import GROUPS, WORTH, run_error, run_errors


def autoregression(rng, count, correlation, replications=1):
    """Series with this correlation of neighbors, the mean 10 and the variance 1."""
    noise = rng.normal(size=(replications, count)) * np.sqrt(1 - correlation**2)
    noise[:, 0] /= np.sqrt(1 - correlation**2)
    series = np.empty(noise.shape)
    before = np.zeros(replications)
    for k in range(count):
        before = correlation * before + noise[:, k]
        series[:, k] = before
    return 10 + series


def test_the_error_is_that_of_the_means_of_groups(rng):
    series = rng.normal(size=83)
    found = run_error(series)
    means = [np.mean(group) for group in np.split(series[3:], GROUPS)]
    assert found.value == pytest.approx(series.mean())
    assert found.error == pytest.approx(np.std(means, ddof=1) / np.sqrt(GROUPS))
    low, high = found.interval()
    assert (low + high) / 2 == pytest.approx(found.value)
    assert (high - low) / 2 == pytest.approx(2.364624 * found.error, rel=1e-6)  # Student's t, 7 degrees


@pytest.mark.parametrize(
    ("correlation", "count"), [(0.0, 80), (0.0, 400), (0.5, 160), (0.5, 400), (0.8, 400), (0.9, 1500)]
)
def test_intervals_cover_the_mean_of_stationary_series(correlation, count):
    rng = np.random.default_rng(0)
    found = [run_error(s) for s in autoregression(rng, count, correlation, 500)]
    given = [e for e in found if not e.reason]
    assert len(given) >= 450
    covered = np.mean([e.interval()[0] <= 10.0 <= e.interval()[1] for e in given])
    assert 0.91 <= covered <= 0.985
    # the error that the theory of these series gives
    theory = np.sqrt((1 + correlation) / (1 - correlation) / count)
    assert np.sqrt(np.mean([e.error**2 for e in given])) == pytest.approx(theory, rel=0.15)


def test_series_that_still_move_are_refused(rng):
    noise = rng.normal(size=400)
    cases = {
        "worth": np.linspace(0.0, 10.0, 400) + 3 + noise,  # a trend
        "are worth": autoregression(rng, 400, 0.99)[0],
        "did not move": np.full(400, 2.0),
        "cut off at 0": np.maximum(noise, 0.0),
        "by a schedule": 5 + noise * np.linspace(1.0, 0.05, 400),
        f"{WORTH} are needed: epochs={3 * WORTH}": 5 + noise[:20],
        "not finite": np.r_[noise, np.nan],
    }
    for words, series in cases.items():
        found = run_error(series)
        assert words in found.reason, words
        assert np.isnan(found.error)
        assert f"no error of the run: {found.reason}" in str(found)


def test_the_tail_is_the_last_third_by_entry():
    rng = np.random.default_rng(1)
    rows = [
        {
            "epoch": k + 1,
            "multiplier:low": float(v),
            "multiplier:gap:upper[1]": 2 * float(v),
            "violation": 0.0,
        }
        for k, v in enumerate(rng.normal(size=150) + 3)
    ]
    found = run_errors([{"step": 3, "multiplier:low": 99.0}, *rows])
    assert set(found) == {"low", "gap:upper[1]"}
    tail = [row["multiplier:low"] for row in rows[100:]]
    assert found["low"].value == pytest.approx(np.mean(tail))
    assert found["low"].records == 50
    assert found["gap:upper[1]"].error == pytest.approx(2 * found["low"].error)


def test_runs_say_which_errors_they_have(rng):
    x = rng.normal(size=(60, 2))
    D, w = cn.Data("d", x=x, y=x[:, 0] + 0.1 * rng.normal(size=60)), cn.Variable(2, "w")
    problem = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(sum=cn.sum(w) <= 0.5)
    solution = problem.solve("lagrangian", epochs=30, lr=0.1, batch=20, seed=0, progress=False)
    (error,) = solution.run_errors().values()
    assert error.value == pytest.approx(float(solution["sum"].multiplier))
    assert "epochs=90" in error.reason
    assert "run errors" not in str(solution)
    assert problem.solve("augmented", progress=False).run_errors() == {}
    steady = [
        {**solution.history[-1], "epoch": k + 1, "multiplier:sum": v}
        for k, v in enumerate((0.7 + 0.01 * rng.normal(size=240)).tolist())
    ]
    shown = replace(solution, history=type(solution.history)(steady))
    (error,) = shown.run_errors().values()
    line = f"sum {error.value:.4f} ± {error.error:.1e} (noise of batches, not of starts or samples)"
    assert f"run errors  {line}" in str(shown)
    assert f"- run errors: {line}" in shown.report(format="md")
