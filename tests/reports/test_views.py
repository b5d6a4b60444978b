"""JSON and its documented keys, frames, plots, and the assertion for tests."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import constrain as cn
from constrain.solution import Warn

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "report.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------- JSON
def keys_of(value, path=""):
    """Paths of a document; `NAME` stands for what users name, `[]` for the members of a list."""
    if isinstance(value, list):
        for item in value:
            yield from keys_of(item, f"{path}[]")
    if not isinstance(value, dict):
        return
    free = path in FREE
    for key, item in value.items():
        inner = f"{path}.{'NAME' if free else key}".removeprefix(".")
        yield inner
        yield from keys_of(item, inner)


FREE = {
    *("constraints", "train.estimates", "holdout.estimates", "train.texts", "holdout.texts", "multipliers"),
    *("record.blocks", "record.violations", "record.products", "record.multipliers", "record.fit"),
    *("record.standard_errors", "provenance.versions", "provenance.options", "provenance.data"),
    *("provenance.parameters", "paths", "paths.NAME.multipliers", "paths.NAME.entries", "history[]"),
    "constraints.NAME.summary.quantiles",
}


def documented():
    """The keys of the table, with the groups that it names once put where they occur."""
    table = PAGE.split("<!-- keys -->")[1].split("<!-- end of keys -->")[0]
    found = set()
    for line in table.splitlines():
        first = line.split("|")[1] if line.count("|") > 2 else ""
        found |= set(re.findall(r"`([^`]+)`", first))
    return found


def test_the_page_lists_the_keys_of_the_json_report(rich, linear):
    seen = set()
    for solution in (rich, linear):
        text = solution.report(format="json")
        assert "NaN," not in re.sub(r'"[^"]*"', "", text)
        seen |= set(keys_of(json.loads(text)))
    estimate = re.compile(r"^(constraints\.NAME\.(train|holdout)|(train|holdout)\.estimates\.NAME)(?=\.)")
    seen = {estimate.sub("ESTIMATE", key) for key in seen}
    seen = {re.sub(r"^holdout(?=\.)", "train", key) for key in seen}
    assert seen == documented()


def test_numbers_of_the_json_report(linear):
    record = json.loads(linear.report(format="json"))
    assert record["constraints"]["second"]["multiplier"] == pytest.approx(1.5)
    assert record["constraints"]["second"]["shadow_price"] == pytest.approx(1.5)
    assert record["paths"]["hours"]["values"] == linear.paths["hours"].values.tolist()


# ---------------------------------------------------------------------------------------------- plots
def test_the_plot_of_a_run_draws_its_history(rich):
    figure = rich.plot()
    titles = [plot.get_title(loc="left") for plot in figure.axes]
    assert titles == ["objective (minimize)", "violation", "multipliers"]
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [row["objective"] for row in rich.history])
    steps = [row["step"] for row in rich.history]
    np.testing.assert_allclose(line.get_xdata(), steps)
    for curve in figure.axes[1].lines[:-1]:
        worst = [row["violation"] for row in rich.history]
        assert np.all(np.asarray(curve.get_ydata()) <= np.asarray(worst) + 1e-12)


def test_plots_are_written_without_a_display(linear, tmp_path):
    path = linear.paths["hours"]
    t = cn.Variable((), "t")
    front = cn.minimize((t - 1) ** 2).pareto((t + 1) ** 2, count=3)
    for k, figure in enumerate((path.plot(), front.plot())):
        figure.savefig(tmp_path / f"{k}.png")
        assert (tmp_path / f"{k}.png").stat().st_size > 5_000
    (tangent,) = {tuple(np.diff(line.get_ydata())) for line in path.plot().axes[0].lines[5:6]}
    step = 0.35 * 2 * 2  # of the values of the path, on both sides
    assert tangent[0] == pytest.approx(1.5 * step, rel=1e-6)


def test_a_route_without_steps_has_no_course(linear):
    with pytest.raises(cn.ModelingError, match=r"reports no steps\n  write: solve\(method=\"augmented\"\)"):
        linear.plot()


def test_a_plot_without_matplotlib_names_the_extra(rich, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(cn.ModelingError, match=r"a plot needs matplotlib\n.*constrain-lang\[plot\]") as caught:
        rich.plot()
    assert caught.value.code == "E143"


# ----------------------------------------------------------------------------------------- assertions
def test_no_warnings_is_an_assertion(linear):
    linear.assert_no_warnings()
    found = (
        Warn("W203", "redundant-constraints", "first and second are parallel"),
        Warn("C311", "undecided-constraint", "recall: the hold-out interval straddles the bound"),
    )
    warned = replace(linear, warnings=found)
    warned.assert_no_warnings(ignore=["W203", "undecided-constraint"])
    with pytest.raises(AssertionError, match="the solution has 2 warnings:\n  W203 redundant-constraints"):
        warned.assert_no_warnings()
    with pytest.raises(AssertionError, match="the solution has a warning:\n  C311") as caught:
        warned.assert_no_warnings(ignore="W203")
    assert "W203" not in str(caught.value)
    with pytest.raises(cn.ModelingError, match="'w203 ' is no code of a warning"):
        warned.assert_no_warnings(ignore=["w203 "])
