"""Every Python block of the README and of the documentation runs, and prints what the page says it prints.

The blocks of one page share a namespace, in order. A fence ``python`` is run. A fence ``text`` that
follows a Python block after the marker ``<!-- output -->`` is compared with what that block printed:
words exactly (spaces and line breaks aside), whole numbers exactly, other numbers to a relative 2e-3;
``...`` stands for any text. A fence ``python no-run`` must be followed by ``<!-- reason: why it cannot
run -->``.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import re
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

RELATIVE_TOLERANCE = 2e-3
ABSOLUTE_TOLERANCE = 1e-6  # below this a printed number is rounding noise

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+|~~~+)(?P<info>[^`]*)$")
NUMBER = re.compile(r"[+\-−]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")
PIECE = re.compile(rf"(?P<number>{NUMBER.pattern})|(?P<any>\.\.\.)|(?P<space>\s+)|(?P<word>.)")


@dataclass(frozen=True)
class Block:
    """A Python block of a page, with the text it must print, if the page says so."""

    line: int
    """1-based line of the first line of code."""
    code: str
    expected: str | None


class BadPageError(Exception):
    """A page breaks the rules of the module docstring."""


def fences(text: str) -> Iterator[tuple[int, str, str, int]]:
    """Yield (first line of content, info string, content, line after the fence), lines counted from 1."""
    lines = text.splitlines()
    i = 0
    while i < len(lines):
        opening = FENCE.match(lines[i])
        i += 1
        if opening is None:
            continue
        start = i
        closing = re.compile(rf"^ *{re.escape(opening['ticks'])}[`~]* *$")
        while i < len(lines) and not closing.match(lines[i]):
            i += 1
        if i == len(lines):
            message = f"line {start}: the fence is never closed"
            raise BadPageError(message)
        content = textwrap.dedent("\n".join(lines[start:i])) + "\n"
        yield start + 1, opening["info"].strip(), content, i + 2
        i += 1


def blocks(text: str) -> list[Block]:
    """Return the Python blocks of a page that are to be run, in order."""
    lines = text.splitlines()
    found: list[Block] = []
    end_of_python = None
    for start, info, content, after in fences(text):
        between = (
            []
            if end_of_python is None
            else [s.strip() for s in lines[end_of_python - 1 : start - 2] if s.strip()]
        )
        if info == "python":
            found.append(Block(start, content, None))
            end_of_python = after
        elif info.startswith("python"):
            following = next((s.strip() for s in lines[after - 1 :] if s.strip()), "")
            if info != "python no-run" or not re.fullmatch(r"<!-- reason: .+ -->", following):
                message = f"line {start}: a block fenced {info!r} needs '<!-- reason: ... -->' after it"
                raise BadPageError(message)
            end_of_python = None
        elif info == "text" and end_of_python is not None and between == ["<!-- output -->"]:
            last = found.pop()
            found.append(Block(last.line, last.code, content))
            end_of_python = None
        else:
            end_of_python = None
    if len(re.findall(r"<!-- output -->", text)) != sum(block.expected is not None for block in found):
        message = "an '<!-- output -->' marker does not stand between a Python block and a text block"
        raise BadPageError(message)
    return found


def difference(expected: str, printed: str) -> str | None:
    """Say how a printed text differs from the expected one (rules in the module docstring), or None."""
    pieces = {"number": f"({NUMBER.pattern})", "any": "(?:.*?)", "space": r"\s*"}
    pattern = "".join(pieces.get(str(p.lastgroup), re.escape(p[0])) for p in PIECE.finditer(expected.strip()))
    found = re.fullmatch(pattern, printed.strip(), flags=re.DOTALL)
    if found is None:
        return "the words differ"
    wanted = [p[0] for p in PIECE.finditer(expected.strip()) if p.lastgroup == "number"]
    for want, got in zip(wanted, found.groups(), strict=True):
        if not agree(want, got):
            return f"{got} is not {want}"
    return None


def agree(expected: str, printed: str) -> bool:
    """Whether two printed numbers are close; two whole numbers must be equal."""
    if expected.isdigit() and printed.isdigit():
        return expected == printed
    wanted, got = (float(number.replace("−", "-")) for number in (expected, printed))
    return got == pytest.approx(wanted, rel=RELATIVE_TOLERANCE, abs=ABSOLUTE_TOLERANCE)


def run_page(page: Path, text: str) -> None:
    """Run the blocks of a page in one namespace and compare what they print."""
    torch = pytest.importorskip("torch", reason="the documentation's programs need torch")
    namespace: dict[str, object] = {"__name__": "__main__"}
    found_blocks = blocks(text)
    # Messages show the source line: the page is a Python file whose lines outside of blocks are empty.
    source = ["\n"] * len(text.splitlines())
    for block in found_blocks:
        lines = block.code.splitlines(keepends=True)
        source[block.line - 1 : block.line - 1 + len(lines)] = lines
    linecache.cache[str(page)] = (len(text), None, source, str(page))
    torch.manual_seed(0)
    for block in found_blocks:
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        printed = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("error")
            exec(code, namespace)
        if block.expected is not None:
            found = difference(block.expected, printed.getvalue())
            assert found is None, (
                f"{page.name}, line {block.line}: {found}\n"
                f"--- the page says\n{block.expected}--- the program printed\n{printed.getvalue()}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page, page.read_text(encoding="utf-8"))


def test_the_page_of_errors_lists_exactly_the_codes_that_are_raised():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "constrain").rglob("*.py"))
    raised = set(re.findall(r'"([EWC]\d{3})"', sources))
    listed = re.findall(
        r"^\| ([EWC]\d{3}) \|", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.M
    )
    assert listed == sorted(raised)


# --- the rules above, tested on small pages ---------------------------------------------------------------


def test_blocks_of_a_page_share_a_namespace_and_outputs_are_attached():
    page = "```python\na = 1\n```\ntext\n\n    ```python\n    print(a)\n    ```\n"
    page += "\n<!-- output -->\n\n```text\n1\n```\n"
    first, second = blocks(page)
    assert (first.line, first.code, first.expected) == (2, "a = 1\n", None)
    assert (second.line, second.code, second.expected) == (7, "print(a)\n", "1\n")


@pytest.mark.parametrize(
    "page",
    [
        "```python no-run\nx\n```\n",
        "```python notest\nx\n```\n<!-- reason: no -->\n",
        "<!-- output -->\n```text\n1\n```\n",
        "```python\nx\n```\nwords\n<!-- output -->\n```text\n1\n```\n",
        "```python\nx\n",
    ],
)
def test_a_page_that_hides_a_block_is_refused(page):
    with pytest.raises(BadPageError):
        blocks(page)


def test_a_block_may_stay_unrun_for_a_reason():
    assert blocks("```python no-run\nx\n```\n<!-- reason: it needs eight GPUs -->\n") == []


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("value 1.000", "value   1.0015\n", True),
        ("value 1.000", "value 1.0025", False),
        ("λ=0.5000, −0.2", "λ=0.5001, -0.2", True),
        ("residual 3.1e-09", "residual 8.9e-11", True),
        ("status optimal", "status feasible", False),
        ("a", "a b", False),
        ("a b", "a", False),
        ("a ... d", "a b c d", True),
        ("a ... d", "a b c", False),
        ("a\n...", "a b c", True),
        ("rate[x=A]", "rate[x=B]", False),
        ("≤ 0.1", "≤0.1", True),
        ("1000 rows", "1001 rows", False),
        ("(a|b)* 1.5", "(a|b)* 1.5", True),
    ],
)
def test_comparison_of_outputs(expected, printed, same):
    assert (difference(expected, printed) is None) == same


def test_a_wrong_output_fails(tmp_path):
    text = "```python\nprint(2.0)\n```\n<!-- output -->\n```text\n3.0\n```\n"
    with pytest.raises(AssertionError, match="the page says"):
        run_page(tmp_path / "page.md", text)
