"""`docs/errors.md` has a section for every code, and its examples raise what they are said to raise."""

from __future__ import annotations

import linecache
import re
import warnings
from pathlib import Path

import pytest

import constrain as cn

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
SECTIONS = {
    code: body for code, body in re.findall(r"^### ([EWC]\d{3})\n(.*?)(?=^### |\Z)", PAGE, flags=re.M | re.S)
}
EXAMPLES = [
    (code, line, said)
    for code, body in SECTIONS.items()
    for block in re.findall(r"^```py\n(.*?)^```$", body, flags=re.M | re.S)
    for line, said in re.findall(r"^(.*?)  # (wrong|right)$", block, flags=re.M)
]


def test_every_code_that_is_raised_has_a_section():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "constrain").rglob("*.py"))
    raised = set(re.findall(r'"([EWC]\d{3})"', sources))
    assert set(SECTIONS) == raised


def test_every_line_of_an_example_is_marked():
    blocks = re.findall(r"^```py\n(.*?)^```$", PAGE, flags=re.M | re.S)
    assert sum(len(block.splitlines()) for block in blocks) == len(EXAMPLES) > 70
    assert {code for code, _, said in EXAMPLES if said == "wrong"} >= {f"E{k}" for k in range(101, 123)}


@pytest.fixture(scope="module")
def names():
    scope: dict[str, object] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S):
        exec(block, scope)
    return scope


@pytest.mark.parametrize(("code", "line", "said"), EXAMPLES, ids=[f"{c} {s}: {x}" for c, x, s in EXAMPLES])
def test_an_example(code, line, said, names):
    linecache.cache["page.py"] = (len(line), None, [line + "\n"], "page.py")
    program = compile(line, "page.py", "exec")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if said == "right":
            exec(program, dict(names))
            return
        with pytest.raises(cn.ConstrainError) as caught:
            exec(program, dict(names))
    assert caught.value.code == code
