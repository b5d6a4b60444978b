"""Every error of the language and of solving: what a user writes, and the exact message with its place."""

from __future__ import annotations

import linecache
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E, P, forall

PAGE = Path(__file__).parent / "errors.txt"
SOLVING = Path(__file__).parent / "errors_of_solving.txt"
LANGUAGE_CODES = {f"E{number}" for number in (*range(101, 123), 130)}


@dataclass(frozen=True)
class Case:
    """What is written, and what is raised."""

    source: str
    kind: str
    message: str

    @property
    def code(self) -> str:
        return self.message[1:5]


def cases() -> list[Case]:
    found: list[Case] = []
    pages = (PAGE.read_text(encoding="utf-8"), SOLVING.read_text(encoding="utf-8"))
    for block in (block for page in pages for block in page.split("\n\n")[1:]):
        lines = block.strip("\n").splitlines()
        written = [line for line in lines if line.startswith((">>> ", "... "))]
        kind, _, head = lines[len(written)].partition(": ")
        message = "\n".join([head, *lines[len(written) + 1 :]])
        found.append(Case("\n".join(line[4:] for line in written), kind, message))
    return found


def matches(expected: str, message: str) -> bool:
    parts = [re.escape(part) for part in expected.split("<anything>")]
    return re.fullmatch(".*".join(parts), message) is not None


@pytest.fixture
def names():
    x, y = torch.zeros(6, 3), torch.zeros(6)
    D = cn.Data("adult", x=x, y=y, sex=["F", "M"] * 3, race=[0, 1, 2] * 2)
    f = cn.Model(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), "f")
    return {
        "__name__": "user",
        **{
            "cn": cn,
            "E": E,
            "P": P,
            "forall": forall,
            "torch": torch,
            "F": F,
            "nn": nn,
            "np": np,
            "pd": pd,
            "math": math,
        },
        **{"D": D, "O": cn.Data("other", x=x, y=y), "f": f, "g": cn.Model(nn.Linear(3, 1), "g")},
        **{"w": cn.Variable(3, "w"), "t": cn.Variable((), "t"), "alpha": cn.Parameter("alpha", 0.05)},
        **{"A": torch.ones(3, 3), "v": torch.ones(3), "p": cn.minimize(E(f(D.x) ** 2))},
        "frame": pd.DataFrame({"age": [1.0, 2.0], "income": [3.0, 4.0]}),
    }


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.code}: {case.source.splitlines()[0]}")
def test_the_exact_message(case, names, tmp_path):
    path = tmp_path / "user.py"
    path.write_text(case.source + "\n", encoding="utf-8")
    linecache.checkcache(str(path))
    with pytest.raises(cn.ConstrainError) as caught:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    assert type(caught.value).__name__ == case.kind
    assert caught.value.code == case.code
    assert matches(case.message, str(caught.value)), str(caught.value)


def test_every_code_of_the_language_has_a_case():
    assert {case.code for case in cases()} >= LANGUAGE_CODES


def test_no_message_is_long_or_dumps_numbers():
    for case in cases():
        assert len(case.message.splitlines()) <= 8
        said = case.message.split("  at:    ")[0]
        assert "tensor([" not in said
        assert "array([" not in said


def test_every_error_is_of_the_one_tree_and_of_the_kind_python_users_expect(names):
    with pytest.raises(TypeError):
        names["E"](names["t"])
    with pytest.raises(ValueError, match="E112"):
        cn.Data("credit", x=[1.0], y=[1.0, 2.0])
    with pytest.raises(AttributeError):
        names["D"].groop  # noqa: B018
    assert not hasattr(names["D"], "groop")
    with pytest.raises(AttributeError, match=r"torch\.foo\(e\)"):
        names["w"].foo  # noqa: B018


def test_a_message_about_a_long_expression_is_cut(names):
    D = names["D"]
    total = sum([D.y * i for i in range(10_000)])
    with pytest.raises(cn.ModelingError, match="E101") as caught:
        names["p"].subject_to(c=total <= 1)
    assert len(str(caught.value)) < 1000
    assert "…" in str(caught.value)


def test_the_fix_of_a_per_row_constraint_can_be_pasted(names):
    """The three readings of E101, evaluated with the names of the message."""
    D, p, f = names["D"], names["p"], names["f"]
    with pytest.raises(cn.ModelingError) as caught:
        p.subject_to(fair=f(D.x) <= 0.1)
    readings = [line.split(", for ")[0] for line in caught.value.fix.splitlines()]
    scope = {"adult": D, "f": f, "cn": cn, "E": E, "P": P, "forall": forall, "share": 0.9}
    for reading in readings:
        assert isinstance(eval(reading, scope), cn.Constraint)


def test_without_a_source_file_a_truth_value_is_still_refused(names):
    with pytest.raises(cn.ModelingError, match="something asks for one"):
        exec(compile("if f(D.x) > 0: pass", "<nowhere>", "exec"), names)
