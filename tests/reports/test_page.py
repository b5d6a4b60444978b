"""The HTML page: complete, well-formed, harmless whatever users call things, and the same after loading."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import constrain as cn
from constrain.diagnostics.report import constraint_rows
from constrain.diagnostics.table import number
from constrain.language.printing import problem_latex
from constrain.reports.card import card_html
from constrain.reports.charts import Bar, Curve, curves, gauge, interval_bar, scale_of, thinned
from constrain.reports.elements import element
from constrain.reports.mathml import mathml
from constrain.solution import Status
from constrain.testing import known_problems

from .conftest import conflicting, with_margins

VOID = {"meta", "br", "input"}
EVIL = '<script>alert("1")</script>'


class Reader(HTMLParser):
    """Elements, attributes and text of a page; a tag without its end is an error."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self):
        return " ".join(text for tag, text in self.texts if tag not in ("style", "script"))


def test_the_page_has_every_section(rich):
    text = Reader(rich.report(format="html")).text
    titles = (
        "Problem",
        "Constraints",
        "Course of the run",
        "Optimality conditions",
        "Warnings",
        "Provenance",
    )
    for title in (*titles, "Next steps"):
        assert title in text
    for warning in rich.warnings:
        assert f"{warning.code} {warning.name}" in text
        assert warning.message in text
    for version in rich.provenance.versions.values():
        assert version in text
    for found in rich.provenance.data.values():
        assert found["sha256"] in text


def test_the_page_has_every_number_of_the_table(rich):
    text = Reader(rich.report(format="html")).text
    for name in rich.names:
        if rich[name].rows is None:
            for row in constraint_rows(rich[name]):
                for key in ("value", "holdout_value", "multiplier", "shadow_price"):
                    assert number(float(row[key])) in text, (name, key)


def test_margins_have_a_card_with_every_number():
    solution = with_margins()
    page = solution.report(format="html")
    text = Reader(page).text
    t = solution.tightening
    assert "Margins" in text
    assert number(t.price) in text
    assert number(t.objective, 6) in text
    for found in (t.margins, t.errors):
        for values in found.values():
            for value in np.ravel(values).tolist():
                assert number(value) in text
    assert "none: an equality" in text
    assert solution.provenance.latex == problem_latex(solution.live.problem)  # as written, not as solved
    assert "group=<b>bold" in text
    assert "script" not in Reader(page).tags
    assert "Margins" not in Reader(replace(solution, tightening=None).report(format="html")).text


def test_a_diagnosis_has_a_page_and_a_card_on_the_page_of_its_solution(tmp_path):
    solution = conflicting()
    assert "smallest conflict" not in Reader(solution.report(format="html")).text
    found = solution.infeasibility()
    for text in (
        Reader(found.report(tmp_path / "why.html")).text,
        Reader(solution.report(format="html")).text,
    ):
        for name in found.names:
            assert name in text
        for by in (*found.amounts.values(), *found.alone.values(), found.total):
            assert number(by) in text
        assert "least = 5" in text
        assert found.advice[1:] in text
        assert str(found.certificate) in text
    assert (tmp_path / "why.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "script" not in Reader(found.report()).tags
    assert EVIL in Reader(found._repr_html_()).text
    assert solution.diagnosis is found
    solution.save(tmp_path / "run")
    assert cn.load(tmp_path / "run").diagnosis is None


def test_a_diagnosis_without_proof_shows_its_evidence():
    x = cn.Variable((), "x", bounds=(-2.0, 2.0))
    problem = cn.minimize(x).subject_to(low=cn.sum_squares(x) >= 3, high=x**2 + x <= -0.5)
    found = problem.diagnose_infeasible()
    text = Reader(found.report()).text
    assert "evidence" in text
    assert "likely infeasible" in text.lower()
    y = cn.Variable((), "y")
    fine = cn.minimize(y**2).subject_to(c=y >= 1).diagnose_infeasible()
    assert "All constraints can hold together" in Reader(fine.report()).text


def test_names_are_never_markup(rich):
    card, page = card_html(rich), rich.report(format="html")  # the card cuts long names
    assert EVIL in Reader(page).text
    assert "group=<b>bold" in Reader(page).text
    for reader in map(Reader, (card, page)):
        assert EVIL[:20] in reader.text
        assert "script" not in reader.tags  # there is no path, so no script either
        assert not {"b"} & {tag for tag, text in reader.texts if "bold" in text}
        assert not [a for a in reader.attributes if a[1].startswith("on") or a[1] in ("src", "href")]


def test_nothing_comes_from_a_network_and_nothing_else_can_run(linear):
    page = linear.report(format="html")
    assert not re.search(r"(?:src|href)=|url\(|@import", page)
    addresses = set(re.findall(r"https?://[^\"'\s<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, which no browser fetches
    policy = re.search(r'content="(default-src[^"]*)"', page)
    assert policy is not None
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src &#x27;sha256-{digest}&#x27;" in policy[1]
    assert "unsafe" not in policy[1]


def test_the_slider_has_the_numbers_of_the_solves(linear):
    page = linear.report(format="html")
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.S)
    found = json.loads(data)
    path = linear.paths["hours"]
    assert found["places"] == path.values.tolist()
    assert found["texts"]["objective"] == [number(v, 5) for v in path.objectives.tolist()]
    assert len(found["texts"]["multiplier-0"]) == len(path)
    assert 'value="4"' in page  # the solve nearest to the value of the solution, 12


@pytest.mark.parametrize("status", list(Status))
def test_every_status_has_its_page(linear, status):
    text = Reader(replace(linear, status=status).report(format="html")).text
    assert status.value.replace("_", " ").capitalize() in text


def test_a_stored_solution_has_the_same_page(linear, rich, tmp_path):
    for k, solution in enumerate((linear, rich)):
        page = solution.report(format="html")
        loaded = cn.load(solution.save(tmp_path / str(k))).report(format="html")
        assert loaded == re.sub(r"<details><summary>The problem as JSON.*?</details>", "", page, flags=re.S)


def test_a_solution_with_nothing_in_it():
    x = cn.Variable((), "x")
    for problem in (cn.minimize((x - 1) ** 2), cn.find().subject_to(low=x >= 1)):
        solution = problem.solve(progress=False)
        for page in (solution.report(format="html"), card_html(solution)):
            assert solution.status.value.replace("_", " ") in Reader(page).text.lower()


def test_the_card_is_small_and_says_the_essential(rich):
    card = card_html(rich)
    assert rich._repr_html_() == card
    text = Reader(card).text
    assert "feasible" in text or "limit" in text
    assert all(w.code in text for w in rich.warnings)
    assert len(card) < 8_000
    assert "<style" not in card


# -------------------------------------------------------------------------------------- mathematics
def lines_of(problem):
    body = problem_latex(problem).split("\n")[1:-1]
    return [line.removesuffix(r" \\").partition("& ")[2] for line in body]


@pytest.mark.parametrize("known", known_problems(), ids=lambda known: known.name)
def test_mathematics_of_known_problems(known):
    """Well-formed MathML of every known problem, with no LaTeX left in it and no command unknown."""
    if known.missing:
        pytest.skip(reason=known.missing)
    problem = known.build()
    for line in lines_of(problem):
        found = mathml(line)
        root = ElementTree.fromstring(f"<r>{found}</r>")
        if root.find("math") is None:
            continue  # a very long relation is shown as it is
        assert "\\" not in "".join(root.itertext())
        words = {t.text for t in root.iter("mtext")}
        texts = {t.replace(" ", "\N{NO-BREAK SPACE}") for t in re.findall(r"\\text\{([^}]*)\}", line)}
        assert {w for w in words if w not in texts} == set(), line


@given(st.text(alphabet=r"\{}_^&<>abfrcleftight()[]|. 12", max_size=60))
def test_mathematics_of_any_text(text):
    assert ElementTree.fromstring(f"<r>{mathml(text)}</r>").tag == "r"


CASES = {
    r"\frac{a}{b_{1}^{2}}": "<mfrac><mrow><mi>a</mi></mrow><mrow><msubsup><mi>b</mi><mrow><mn>1</mn></mrow>"
    "<mrow><mn>2</mn></mrow></msubsup></mrow></mfrac>",
    r"\sqrt{\theta}": "<msqrt><mrow><mi>θ</mi></mrow></msqrt>",
    r"\mathrm{a\_b}": '<mi mathvariant="normal">a_b</mi>',
}


@pytest.mark.parametrize("latex", CASES)
def test_mathematics(latex):
    assert mathml(latex) == f"<math><mrow>{CASES[latex]}</mrow></math>"


def test_lines_break_before_relations_only_outside_of_brackets():
    assert mathml(r"\left(a + b\right) - c \le 1").count("<math>") == 3


def test_deep_and_long_expressions_are_shown_as_text():
    assert mathml(r"\left(" * 200 + "x" + r"\right)" * 200).startswith("<code>")
    assert mathml("x + " * 5000).startswith("<code>")


# ------------------------------------------------------------------------------------------- drawings
numbers = st.floats(allow_nan=True, allow_infinity=True)


@example([1e308, -1e308, 1.7e308, -1.7e308], "holds")
@given(st.lists(numbers, min_size=4, max_size=4), st.sampled_from(["holds", "violated", "not judged"]))
def test_bars_of_any_numbers(given_numbers, verdict):
    value, lower, upper, bound = given_numbers
    bar = Bar(value, lower, upper, value, (None, bound), verdict)
    root = ElementTree.fromstring(interval_bar(bar, scale_of([bar]), 'a "label" <'))
    places = [float(e.get(k)) for e in root.iter() for k in ("x1", "x2", "cx", "x") if e.get(k)]
    assert all(0 <= p <= 180 for p in places)
    ElementTree.fromstring(gauge(value, 1e-6, "x"))


def test_a_bar_keeps_the_order_of_its_numbers():
    bar = Bar(0.02, 0.03, 0.09, 0.06, (None, 0.05), "undecided")
    root = ElementTree.fromstring(interval_bar(bar, scale_of([bar]), "x"))
    whisker = next(e for e in root if "whisker" in e.get("class"))
    bound = next(e for e in root if e.get("class") == "bound")
    room = next(e for e in root if e.get("class") == "room")
    train, center = (next(e for e in root if e.get("class").startswith(c)) for c in ("train", "mark"))
    low, high, at = float(whisker.get("x1")), float(whisker.get("x2")), float(bound.get("x1"))
    assert float(train.get("cx")) < low < at < float(center.get("cx")) < high
    assert float(room.get("x")) + float(room.get("width")) == pytest.approx(at, abs=0.01)


@given(st.lists(numbers, min_size=2, max_size=700))
def test_thinning_keeps_the_extremes_and_the_ends(values):
    kept = thinned(values)
    assert kept == sorted(set(kept))
    assert {0, len(values) - 1} <= set(kept)
    finite = [v for v in values if math.isfinite(v)]
    if finite:
        shown = [values[i] for i in kept if math.isfinite(values[i])]
        assert min(shown) == min(finite)
        assert max(shown) == max(finite)
    assert len(kept) <= 500


def test_charts_of_any_series():
    steps = list(range(5))
    series = ([0.0] * 5, [1e-9, 1e9, math.nan, math.inf, -1.0], [math.nan] * 5, np.arange(5.0).tolist())
    for values in series:
        for logarithmic in (False, True):
            figure = curves("t", steps, [Curve("<l>", values)] * 8, logarithmic=logarithmic, rule=1e-6)
            drawn = ElementTree.fromstring(figure)
            assert "<l>" in "".join(drawn.itertext())


def test_elements_escape_text_and_attributes():
    assert element("p", "a<b", title='"x"&', class_="c") == (
        '<p title="&quot;x&quot;&amp;" class="c">a&lt;b</p>'
    )
