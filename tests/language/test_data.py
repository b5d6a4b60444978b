"""Finite samples: what may be a column, its shapes, selections, and frames."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import constrain as cn
from constrain import E
from constrain.language.data import Batch, Subset, static_shape

COLUMNS = {
    "list": ([1.0, 2.0, 3.0], ()),
    "tuple": ((1, 2, 3), ()),
    "nested list": ([[1, 2], [3, 4], [5, 6]], (2,)),
    "text": (["a", "b", "a"], ()),
    "numpy": (np.zeros((3, 2, 4)), (2, 4)),
    "numpy text": (np.array(["a", "b", "a"]), ()),
    "torch": (torch.zeros(3, 5), (5,)),
    "list of tensors": ([torch.zeros(2)] * 3, (2,)),
    "pandas series": (pd.Series([1.0, 2.0, 3.0]), ()),
    "pandas categorical": (pd.Series(["a", "b", "a"], dtype="category"), ()),
    "pandas frame": (pd.DataFrame({"a": [1, 2, 3], "b": [4, 5, 6]}), (2,)),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_what_may_be_a_column(kind):
    values, shape = COLUMNS[kind]
    D = cn.Data("sample", c=values)
    assert len(D) == 3
    assert D.columns == ("c",)
    assert D.row_shape("c") == D.c.shape == shape
    assert D.values("c") is values
    assert D["c"].node == D.c.node
    assert E(D.c).shape == shape


def test_a_sample_says_what_it_holds():
    D = cn.Data("sample", x=torch.zeros(3, 2), y=[1, 2, 3])
    assert repr(D) == "<Data sample with 3 rows: x:(3, 2), y:(3,)>"
    assert {"x", "y", "where", "rows"} <= set(dir(D))
    assert not hasattr(D, "z")
    assert getattr(D, "z", None) is None
    with pytest.raises(AttributeError):
        D._private  # noqa: B018


@pytest.mark.parametrize(
    ("typo", "hint"),
    [("groop", "; did you mean 'group'?"), ("incme", "; did you mean 'income'?"), ("zzz", "")],
)
def test_a_typo_gets_a_suggestion(typo, hint):
    D = cn.Data("credit", group=[1.0], income=[2.0])
    for reach in (lambda: getattr(D, typo), lambda: D[typo]):
        with pytest.raises(cn.ModelingError) as caught:
            reach()
        first = str(caught.value).splitlines()[0]
        assert first == f"[E106] data 'credit' has no column {typo!r}{hint}"


def test_columns_of_a_frame():
    frame = pd.DataFrame({"age": [1.0, 2.0], "pay": [3.0, 4.0], "sex": ["F", "M"]})
    whole = cn.Data.from_frame("people", frame)
    assert whole.columns == ("age", "pay", "sex")
    D = cn.Data.from_frame("people", frame, x=["age", "pay"], s="sex")
    assert D.columns == ("x", "s")
    assert D.row_shape("x") == (2,)
    np.testing.assert_array_equal(D.values("x"), [[1.0, 3.0], [2.0, 4.0]])
    assert list(D.values("s")) == ["F", "M"]
    with pytest.raises(cn.DataError, match=r"no column 'agge'; did you mean 'age'\?"):
        cn.Data.from_frame("people", frame, x=["agge"])


def test_selections_of_rows():
    D = cn.Data("sample", y=[1.0, 2.0, 3.0])
    chosen = D.where(D.y > 1)
    assert isinstance(chosen, Subset)
    assert chosen.data is D
    assert chosen.event == (D.y > 1).node
    batch = D.rows([0, 2])
    assert isinstance(batch, Batch)
    assert batch.index == [0, 2]
    assert "sample" in repr(batch)


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({}, "E112"),
        ({"x": [1.0], "y": [1.0, 2.0]}, "E112"),
        ({"x": 3.0}, "E112"),
        ({"x": "text"}, "E112"),
        ({"x": None}, "E112"),
        ({"x": [[1], [2, 3]]}, "E112"),
        ({"x": torch.tensor(1.0)}, "E112"),
        ({"x": []}, "E124"),
        ({"x": torch.zeros(0, 3)}, "E124"),
    ],
)
def test_what_is_no_sample(columns, code):
    with pytest.raises(cn.DataError, match=code):
        cn.Data("sample", **columns)


@pytest.mark.parametrize(
    ("value", "shape"),
    [(1.0, None), ("text", None), ([], (0,)), ([[]], (1, 0)), (torch.tensor(1.0), ()), ([(1, 2)], (1, 2))],
)
def test_static_shapes(value, shape):
    assert static_shape(value) == shape


def test_two_samples_are_never_the_same():
    first, second = cn.Data("sample", y=[1.0]), cn.Data("sample", y=[1.0])
    assert first.y.node != second.y.node
    assert str(E(first.y) - E(second.y)) == "E[sample.y] - E[sample_1.y]"


def test_symbols_describe_themselves():
    model = cn.Model(torch.nn.Linear(2, 1), "f", frozen=True)
    assert repr(model) == "<Model f: Linear, frozen>"
    assert cn.Variable((2, 3), "w").shape == (2, 3)
    assert cn.Variable(np.int64(3), "w").shape == (3,)
    assert cn.Variable(name="t").shape == ()
    assert cn.Parameter("p", [1.0, 2.0]).shape == (2,)
    assert cn.Parameter("p", shape=2).value is None
    assert cn.Parameter("p", 1.0).name == "p"


@pytest.mark.parametrize("kind", ["numpy", "torch", "list", "pandas"])
def test_a_column_of_truth_values_is_an_event(kind):
    flags = [True, False, True, True]
    make = {"numpy": np.array, "torch": torch.tensor, "list": list, "pandas": pd.Series}[kind]
    D = cn.Data("d", fl=make(flags), x=np.array([1.0, 2.0, 3.0, 4.0]), k=[1, 0, 1, 1])
    written = {
        "P(D.fl)": "P(D.fl == 1)",
        "P(~D.fl, by=D.k)": "P(~(D.fl == 1), by=D.k)",
        "P(D.fl & (D.x > 1))": "P((D.fl == 1) & (D.x > 1))",
        "P((D.x > 1) | D.fl)": "P((D.x > 1) | (D.fl == 1))",
        "E(D.x, given=D.fl)": "E(D.x, given=D.fl == 1)",
        "E(cn.where(D.fl, D.x, 0.0))": "E(cn.where(D.fl == 1, D.x, 0.0))",
        "E(cn.indicator(D.fl) * D.x)": "E(cn.indicator(D.fl == 1) * D.x)",
    }
    for flag, compared in written.items():
        a, b = (eval(s, {"cn": cn, "E": cn.E, "P": cn.P, "D": D}) for s in (flag, compared))
        assert str(a) == str(b)
        assert repr(a) == repr(b)
    assert "fl = 1" not in str(cn.E(D.fl))  # a number where numbers are averaged
    v = cn.Variable((), "v")
    problem = cn.minimize(v**2).subject_to(
        mean=cn.E(D.x, given=D.fl) <= v, rate=cn.P(~D.fl) <= v, rows=cn.forall(D.where(D.fl), D.x <= 2 * v)
    )
    solution = problem.solve(progress=False)
    assert solution["rate"].bound == pytest.approx(8 / 3, rel=1e-6)
    assert solution["rate"].value == pytest.approx(0.25)
    for refused in ("D.k & (D.x > 1)", "cn.P(D.k)", "~D.k", "cn.E(D.x, given=D.k)"):
        with pytest.raises(cn.ModelingError, match=r"E10[45]"):
            eval(refused, {"cn": cn, "D": D})
