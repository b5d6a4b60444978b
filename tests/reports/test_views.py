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
from constrain import solution as solution_records
from constrain.solution import ConstraintResult, Estimate, ParametricPath, PartResult, Summary, Warn

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "report.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------- JSON
def documented():
    """The keys of the table of the page, and the class that each refers to."""
    table = PAGE.split("<!-- keys -->")[1].split("<!-- end of keys -->")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*?\| (?:\[`(\w+)`\][^|]*)?\|$", table, flags=re.M)
    return {
        key: getattr(cn, kind, None) or getattr(solution_records, kind) if kind else None
        for key, kind in rows
    }


def told(record, kind):
    """Every key of a stored record is explained in the docstring of its class, or is a property of it."""
    words = re.findall(r"^ {8}(\w+): ", kind.__doc__ or "", flags=re.M)
    properties = {name for name, value in vars(kind).items() if isinstance(value, property) and value.__doc__}
    unknown = set(record) - set(words) - properties
    assert not unknown, (kind, unknown)


def test_the_page_lists_the_keys_of_the_json_report(rich, linear):
    page = documented()
    for solution in (rich, linear):
        text = solution.report(format="json")
        record = json.loads(text)
        assert set(record) == set(page)
        for key, kind in page.items():
            found = record[key]
            if kind is None or not found:
                continue
            several = kind in (ConstraintResult, ParametricPath)
            members = list(found.values()) if several else found if isinstance(found, list) else [found]
            for member in members:
                told(member, kind)
        for constraint in record["constraints"].values():
            told(constraint["train"], Estimate)
            for part in constraint["parts"]:
                told(part, PartResult)
            if "summary" in constraint:
                told(constraint["summary"], Summary)


def test_json_has_no_numbers_that_json_lacks(rich):
    lacking = []
    json.loads(rich.report(format="json"), parse_constant=lacking.append)
    assert not lacking


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
    with pytest.raises(
        cn.ModelingError, match=r"a plot needs matplotlib\n.*constrain-lang\[plot\]"
    ) as caught:
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


def test_the_marks_of_multipliers_are_explained():
    v = cn.Variable(2, "v")
    twice = cn.minimize(cn.sum_squares(v - 1)).subject_to(one=cn.sum(v) == 1, two=2 * cn.sum(v) == 2)
    counted = cn.minimize(cn.sum_squares(v - [3.0, 1.0])).subject_to(
        few=cn.count_nonzero(v) <= 1, most=v <= 2
    )
    for problem, mark, words in [
        (twice, "(!)", "multipliers not unique (!): gradients of active constraints depend on each other"),
        (
            counted,
            "(?)",
            "multipliers not certified (?): with a count of entries that are not zero there are no",
        ),
    ]:
        solution = problem.solve(progress=False)
        assert words in str(solution)
        assert str(solution) == solution.report()
        (line,) = [line for line in str(solution).splitlines() if line.startswith(solution.names[0])]
        assert mark in line
        assert mark in solution.report(format="html")


def test_a_bound_of_minus_zero_is_zero():
    v = cn.Variable(2, "v")
    solution = cn.minimize(cn.sum(v)).subject_to(low=-np.zeros(2) <= v).solve(progress=False)
    assert "-0" not in str(solution).split("constraint")[1].split("KKT")[0]


def test_a_suffix_of_no_format_is_refused(linear, tmp_path):
    with pytest.raises(cn.ModelingError, match=r"\[E142\].*there is no 'pdf'"):
        linear.report(tmp_path / "report.pdf")
    assert not list(tmp_path.iterdir())
    with pytest.raises(cn.ModelingError, match=r"\[E142\].*is a folder"):
        linear.report(tmp_path)
    for name in ("report", "report.txt", "new/folder/report.txt"):
        linear.report(tmp_path / name)
        assert (tmp_path / name).read_text() == str(linear) + "\n"


# ------------------------------------------------------------------------------------ very many of them
def test_a_report_of_many_constraints_lists_those_that_tell():
    """Violations and prices, in the user's order; the others are counted, and rows leave nothing out."""
    x = cn.Variable(100, "x")
    rules = {f"c{i}": x[i] >= (1.0 if i in (7, 70) else -i - 1.0) for i in range(100)}
    solution = cn.minimize(cn.sum_squares(x)).subject_to(**rules).solve(progress=False)
    assert solution.status == "optimal"
    page = solution.report(format="html")
    shown = [str(solution), solution.report(format="markdown"), page[page.index(">Constraints<") :]]
    for text in (*shown, str(solution.train)):
        named = [i for i in range(100) if re.search(rf"\bc{i}\b", text.split("<details")[0])]
        assert {7, 70} <= set(named)
        assert len(named) <= 30
        assert "70 more constraints" in text
    assert all("70 hold; solution.to_frame() has all" in text for text in shown)
    assert [row["constraint"] for row in solution.rows()] == list(rules)
