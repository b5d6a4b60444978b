"""Finite samples: what may be a column, its shapes, selections, and frames."""

from __future__ import annotations

import datetime
import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
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
    "pandas index": (pd.Index([1, 2, 3]), ()),
    "pandas array": (pd.array([1, 2, 3]), ()),
    "pandas vectors": (pd.Series([np.zeros(2), np.ones(2), np.zeros(2)]), (2,)),
    "polars series": (pl.Series([1.0, 2.0, 3.0]), ()),
    "polars enum": (pl.Series(["a", "b", "a"], dtype=pl.Enum(["b", "a"])), ()),
    "polars vectors": (pl.Series([[1.0, 2.0]] * 3, dtype=pl.Array(pl.Float32, 2)), (2,)),
    "polars lists": (pl.Series([[1.0, 2.0]] * 3), (2,)),
    "polars frame": (pl.DataFrame({"a": [1, 2, 3], "b": [4, 5, 6]}), (2,)),
    "arrow array": (pa.array([1, 2, 3]), ()),
    "arrow chunks": (pa.chunked_array([[1, 2], [3]]), ()),
    "arrow vectors": (pa.chunked_array([pa.array([[1.0, 2.0]] * 3, type=pa.list_(pa.float32(), 2))]), (2,)),
    "arrow table": (pa.table({"a": [1, 2, 3], "b": [4, 5, 6]}), (2,)),
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


FRAMES = {
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "lazy": pl.LazyFrame,
    "arrow": pa.table,
}
PEOPLE = {"age": [1.0, 2.0], "pay": [3.0, 4.0], "sex": ["F", "M"]}


@pytest.mark.parametrize("kind", FRAMES)
def test_columns_of_a_frame(kind):
    frame = FRAMES[kind](PEOPLE)
    whole = cn.Data.from_frame("people", frame)
    assert whole.columns == ("age", "pay", "sex")
    D = cn.Data.from_frame("people", frame, x=["age", "pay"], s="sex", name="age", frame="pay")
    assert D.columns == ("x", "s", "name", "frame")
    assert D.row_shape("x") == (2,)
    np.testing.assert_array_equal(np.asarray(D.values("x")), [[1.0, 3.0], [2.0, 4.0]])
    assert [str(v) for v in D.values("s")] == ["F", "M"]
    assert D.levels("s") == ("F", "M")
    assert repr(D) == "<Data people with 2 rows: x:(2, 2), s:(2,) in 'F', 'M', name:(2,), frame:(2,)>"
    with pytest.raises(cn.DataError, match=r"no column 'agge'; did you mean 'age'\?"):
        cn.Data.from_frame("people", frame, x=["agge"])


def test_only_the_columns_that_are_asked_for_are_read_of_a_lazy_frame():
    def broken(_):
        raise AssertionError("this column is not asked for")

    frame = pl.LazyFrame(PEOPLE).with_columns(pl.col("pay").map_batches(broken, return_dtype=pl.Float64))
    assert cn.Data.from_frame("people", frame, a="age").levels("a") == (1.0, 2.0)


def test_what_is_no_frame():
    for frame in ([1.0, 2.0], np.zeros((2, 2)), {"age": [1.0]}, pd.Series([1.0])):
        with pytest.raises(cn.DataError, match=rf"\[E168\] a {type(frame).__name__} is no data frame"):
            cn.Data.from_frame("people", frame)
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(cn.DataError, match=r"\[E168\] columns that cannot be told apart: .*'a' 2 times"):
        cn.Data.from_frame("people", twice)
    with pytest.raises(cn.DataError, match=r"\[E168\] .*a column made of \['age', 'age'\]"):
        cn.Data.from_frame("people", pl.DataFrame(PEOPLE), x=["age", "age"])


def test_names_of_a_pandas_frame_may_be_numbers():
    D = cn.Data.from_frame("d", pd.DataFrame(np.eye(2)), x=["0", "1"])
    assert D.row_shape("x") == (2,)
    assert cn.Data.from_frame("d", pd.DataFrame(np.eye(2))).columns == ("0", "1")


DAY = datetime.date(2020, 1, 31)
UNUSABLE = {
    "dates": [
        pd.to_datetime(pd.Series(["2020-01-31"])),
        pl.Series([DAY]),
        pl.Series([datetime.datetime(2020, 1, 31)]),
        pa.array([DAY]),
        np.array(["2020-01-31"], dtype="datetime64[D]"),
    ],
    "durations": [pd.to_timedelta(pd.Series(["1D"])), pl.Series([datetime.timedelta(1)])],
    "times of day": [pl.Series([datetime.time(1)]), pa.array([datetime.time(1)])],
    "structs": [pl.Series([{"a": 1}]), pa.array([{"a": 1}]), np.zeros(1, dtype=[("a", "f4")])],
    "bytes": [pl.Series([b"a"]), pa.array([b"a"])],
    "complex numbers": [np.array([1j]), torch.tensor([1j]), pd.Series([1j])],
    "integers of more than 64 bits": [pl.Series([1], dtype=pl.Int128)],
    "sparse rows": [torch.eye(2).to_sparse()],
    "entries of type period[D]": [pd.Series(pd.period_range("2020", periods=1, freq="D"))],
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_is_neither_numbers_nor_texts_is_refused_where_it_is_used(what):
    for column in UNUSABLE[what]:
        D = cn.Data("d", c=column, x=[1.0] * len(column))  # it may be there
        assert len(D) == len(column)
        with pytest.raises(
            cn.DataError, match=rf"^\[E167\] d\.c holds {re.escape(what)}\n  write: .+\n  at: "
        ):
            D.c  # noqa: B018


def test_vectors_of_several_lengths_are_refused():
    for column in (pd.Series([[1, 2], [3]]), pl.Series([[1, 2], [3]]), pa.array([[1, 2], [3]])):
        with pytest.raises(
            cn.DataError, match=r"\[E112\] a column of vectors of several lengths: entry 0 has"
        ):
            cn.Data("d", c=column)


def test_a_column_may_have_the_name_of_a_method():
    D = cn.Data("d", rows=[1.0, 3.0], where=[1.0, 0.0], levels=["a", "b"], name=["u", "v"])
    assert str(E(D["rows"], by=D["levels"])) == "E[rows | by levels]"
    e = E(D["rows"], given=D["name"] == "u")
    assert repr(e) == "E(d['rows'], given=d['name'] == 'u')"
    assert D.name == "d"
    with pytest.raises(cn.ModelingError, match=r'\[E117\] a method cannot .*\n  write: d\["rows"\]'):
        E(D.rows)
    with pytest.raises(cn.ModelingError, match=r'\[E118\] [^$]*\n  write: d\["levels"\]'):
        E(D["rows"], by=D.levels)
    with pytest.raises(cn.ModelingError, match=r'\[E105\] .*got False\n.*like a method is D\["name"\]'):
        E(D["rows"], given=D.name == "u")
    odd = cn.Data.from_frame("d", pd.DataFrame({"capital-gain": [1.0], "class": [2.0], "_x": [3.0]}))
    assert repr(E(odd["capital-gain"] * odd["class"] * odd["_x"])).count("d[") == 3


LEVELS = {
    "text": (["b", "a", "b"], ("a", "b")),
    "numbers": ([3, 1, 3], (1, 3)),
    "truth values": ([True, False, True], (False, True)),
    "pandas categorical": (pd.Categorical(["b", "a", "b"], categories=["z", "b", "a"]), ("z", "b", "a")),
    "pandas ordered numbers": (pd.Categorical([3, 1, 3], categories=[3, 2, 1], ordered=True), (3, 2, 1)),
    "pandas intervals": (pd.cut(pd.Series([1, 9, 1]), [0, 5, 10]), ("(0, 5]", "(5, 10]")),
    "polars enum": (pl.Series(["b", "a", "b"], dtype=pl.Enum(["z", "b", "a"])), ("z", "b", "a")),
    "polars categorical": (pl.Series(["b", "a", "b"], dtype=pl.Categorical), ("a", "b")),
    "arrow dictionary": (pa.array(["b", "a", "b"]).dictionary_encode(), ("b", "a")),
    "arrow dictionaries": (
        pa.chunked_array([pa.array(["b"]).dictionary_encode(), pa.array(["a", "b"]).dictionary_encode()]),
        ("b", "a"),
    ),
}


@pytest.mark.parametrize("kind", LEVELS)
def test_levels_in_their_order(kind):
    column, levels = LEVELS[kind]
    D = cn.Data("d", c=column, k=[1, 1, 2])
    assert D.levels("c") == levels
    first = column[0] if isinstance(column, list) else D.levels("c")[-2 if "z" in levels else 0]
    combined = D.levels("c", "k")
    assert {k for _, k in combined} == {1, 2}
    assert set(combined) <= {(level, k) for level in levels for k in (1, 2)}
    assert first in levels
    assert [c for c, _ in combined] == sorted((c for c, _ in combined), key=levels.index)


def test_a_sample_shows_its_levels():
    D = cn.Data(
        "d",
        s=["F", "M"],
        e=pl.Series(["b", "a"], dtype=pl.Enum(["b", "a"])),
        n=np.array(["u", "v"]),
        y=[1, 2],
    )
    assert (
        repr(D) == "<Data d with 2 rows: s:(2,) in 'F', 'M', e:(2,) in 'b', 'a', n:(2,) in 'u', 'v', y:(2,)>"
    )
    assert repr(cn.Data("d", s=list("abcdefgh"))) == "<Data d with 8 rows: s:(8,) in 8 levels>"
    assert "in" not in repr(cn.Data("d", s=["a", None], t=[1, "a"]))


def test_a_split_has_every_row_once_and_shares_the_levels():
    rows = 200
    sex = pl.Series(["F" if i % 5 else "M" for i in range(rows)], dtype=pl.Enum(["M", "F"]))
    D = cn.Data("d", x=torch.arange(rows), s=sex, p=pd.Series(range(rows)), t=[str(i) for i in range(rows)])
    train, test = D.split(0.3, seed=1, by="s")
    assert (train.name, test.name) == ("d", "d_holdout")
    assert (len(train), len(test)) == (140, 60)
    found = torch.cat([train.values("x"), test.values("x")])
    assert sorted(found.tolist()) == list(range(rows))
    assert train.values("x").tolist() == sorted(train.values("x").tolist()) == train.values("p").tolist()
    assert [int(t) for t in test.values("t")] == test.values("x").tolist()
    assert test.values("s").to_list().count("M") == 12
    assert train.levels("s") == ("M", "F")
    again, other = D.split(0.3, seed=1, by="s"), D.split(0.3, seed=2, by=("s",))
    assert again[1].values("x").tolist() == test.values("x").tolist() != other[1].values("x").tolist()
    assert len(D.split(0.5)[1]) == 100
    for fraction in (0.0, 1.0, 0.001, -1.0):
        with pytest.raises(cn.DataError, match=r"\[E112\] a fraction of .* leaves one part without rows"):
            D.split(fraction)


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


@pytest.mark.parametrize("kind", ["numpy", "torch", "list", "pandas", "nullable", "polars", "arrow"])
def test_a_column_of_truth_values_is_an_event(kind):
    flags = [True, False, True, True]
    make = {
        **{"numpy": np.array, "torch": torch.tensor, "list": list, "pandas": pd.Series, "polars": pl.Series},
        **{"nullable": lambda v: pd.Series(v, dtype="boolean"), "arrow": pa.array},
    }[kind]
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
