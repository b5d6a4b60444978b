"""Columns of any library: types of numbers, missing values, levels, and samples that stand in for others."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, P
from constrain.runtime.columns import (
    column_of,
    level_codes,
    missing_rows,
    read_column,
    read_columns,
    reads_as_numbers,
)

BIG = 2**60 + 1
"""Not a floating-point number: a detour over one would change it."""
EMPTY = float("nan")


# -------------------------------------------------------------------------------------- what is read
NUMBERS = {
    "list": ([1, 2], np.int64, [1, 2]),
    "list of both": ([1, 2.5], np.float64, [1.0, 2.5]),
    "list of decimals": ([Decimal("0.5"), Fraction(1, 4), 1], np.float64, [0.5, 0.25, 1.0]),
    "list of tensors": ([torch.tensor([1.0, 2.0]), torch.zeros(2)], np.float32, [[1.0, 2.0], [0.0, 0.0]]),
    "objects": (np.array([1, BIG], dtype=object), np.int64, [1, BIG]),
    "objects in rows": (np.array([[1, 2.5]], dtype=object), np.float64, [[1.0, 2.5]]),
    "half": (np.array([1.5], dtype=np.float16), np.float16, [1.5]),
    "bfloat16": (torch.tensor([1.5], dtype=torch.bfloat16), np.float32, [1.5]),
    "pandas": (pd.Series([1, BIG]), np.int64, [1, BIG]),
    "pandas nullable": (pd.Series([1, BIG], dtype="Int64"), np.int64, [1, BIG]),
    "pandas arrow": (pd.Series([1, BIG], dtype="int64[pyarrow]"), np.int64, [1, BIG]),
    "pandas truth": (pd.Series([True, False], dtype="boolean"), np.bool_, [True, False]),
    "pandas sparse": (pd.Series(pd.arrays.SparseArray([0.0, 1.0])), np.float64, [0.0, 1.0]),
    "pandas decimals": (pd.Series([Decimal("1.5")]), np.float64, [1.5]),
    "pandas levels": (pd.Series(pd.Categorical([3, 1], [3, 2, 1])), np.int64, [3, 1]),
    "pandas frame": (pd.DataFrame({"a": [1, 2], "b": [True, False]}), np.int64, [[1, 1], [2, 0]]),
    "polars": (pl.Series([1, BIG]), np.int64, [1, BIG]),
    "polars single": (pl.Series([1.5], dtype=pl.Float32), np.float32, [1.5]),
    "polars decimals": (pl.Series(["1.5"]).cast(pl.Decimal(10, 2)), np.float64, [1.5]),
    "polars vectors": (pl.Series([[1.0, 2.0]], dtype=pl.Array(pl.Float32, 2)), np.float32, [[1.0, 2.0]]),
    "arrow": (pa.chunked_array([[1], [BIG]]), np.int64, [1, BIG]),
    "arrow vectors": (pa.array([[1.0, 2.0]], type=pa.list_(pa.float32(), 2)), np.float32, [[1.0, 2.0]]),
    "arrow table": (pa.table({"a": [1.5], "b": [2.5]}), np.float64, [[1.5, 2.5]]),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_keep_their_type(kind):
    column, dtype, values = NUMBERS[kind]
    found = read_column(column, "d.c")
    assert found.values.dtype == dtype
    assert found.values.tolist() == values
    assert found.texts is found.missing is None
    np.testing.assert_array_equal(column_of(cn.Data("d", c=column), "c").values, values)


MISSING = {
    "list": ([1.0, None], 1.0),
    "objects": (np.array([1, None], dtype=object), 1),
    "masked": (np.ma.masked_array([1.0, 2.0], mask=[False, True]), 1.0),
    "infinite": (torch.tensor([1.0, torch.inf]), 1.0),
    "vectors": (torch.tensor([[1.0, 1.0], [0.0, torch.nan]]), [1.0, 1.0]),
    "text": (["a", EMPTY], 0),
    "pandas": (pd.Series([1.0, None]), 1.0),
    "pandas nullable": (pd.Series([BIG, None], dtype="Int64"), BIG),
    "pandas arrow": (pd.Series([BIG, None], dtype="int64[pyarrow]"), BIG),
    "pandas truth": (pd.Series([True, None], dtype="boolean"), True),
    "pandas text": (pd.Series(["a", None]), 0),
    "pandas objects": (pd.Series(["a", pd.NA], dtype=object), 0),
    "pandas levels": (pd.Series(["a", None], dtype="category"), 0),
    "pandas number levels": (pd.Series([1, None], dtype="category"), 1.0),
    "pandas frame": (pd.DataFrame({"a": [1.0, None], "b": [2.0, 3.0]}), [1.0, 2.0]),
    "polars": (pl.Series([BIG, None]), BIG),
    "polars NaN": (pl.Series([1.5, EMPTY]), 1.5),
    "polars truth": (pl.Series([True, None]), True),
    "polars text": (pl.Series(["a", None]), 0),
    "polars enum": (pl.Series(["a", None], dtype=pl.Enum(["b", "a"])), 1),
    "polars vectors": (pl.Series([[1.0, 2.0], None], dtype=pl.Array(pl.Float32, 2)), [1.0, 2.0]),
    "arrow": (pa.chunked_array([[BIG, None]]), BIG),
    "arrow truth": (pa.array([True, None]), True),
    "arrow levels": (pa.array(["a", None]).dictionary_encode(), 0),
}


@pytest.mark.parametrize("kind", MISSING)
def test_missing_values_are_found_and_leave_the_others_as_they_are(kind):
    column, value = MISSING[kind]
    D = cn.Data("d", c=column)
    found = read_column(column, "d.c")
    assert found.missing.tolist() == [False, True]
    assert found.values[0].tolist() == value
    assert missing_rows(D, "c").tolist() == [1]
    with pytest.raises(cn.DataError, match=r"^\[E124\] d\.c has 1 missing or infinite value \(rows 1\)"):
        read_columns(D, ["c"])


def test_columns_without_any_value():
    for column in (pl.Series([None, None]), pa.nulls(2), pd.Series([None, None]), [None, None]):
        assert missing_rows(cn.Data("d", c=column), "c").tolist() == [0, 1]


def test_missing_values_are_counted_in_all_columns_that_are_used():
    w = cn.Variable((), "w")
    rows = 20
    x = pl.Series([None if i % 4 == 0 else 1.0 for i in range(rows)])
    D = cn.Data(
        "credit",
        x=x,
        y=[1.0] * rows,
        s=["a", None] * (rows // 2),
        other=pd.Series([None] * rows, dtype=float),
    )
    problem = cn.minimize(E((D.x - w) ** 2) + E(D.y * w, given=D.s == "a"))
    with pytest.raises(cn.DataError) as caught:
        problem.solve(progress=False)
    assert str(caught.value) == (
        "[E124] columns of 'credit' have missing or infinite values: s 10 (rows 1, 3, 5, …), "
        "x 5 (rows 0, 4, 8, …)"
        "\n"
        "  write: drop those rows or impute them before cn.Data"
    )
    kept = D.levels("y")  # a column without missing values
    assert kept == (1.0,)
    with pytest.raises(cn.DataError, match="E124"):
        D.levels("s")


MIXED = {
    "a text among numbers": (
        [1.0, 2.0, "?"],
        "E168",
        r"mixes 2 numbers \(such as 1\.0\) and 1 text \(such as '\?'\)",
    ),
    "truth and text": ([True, "a"], "E168", "mixes 1 truth value .* and 1 text"),
    "pandas objects": (pd.Series(["a", 1, 2, None], dtype=object), "E168", "mixes 2 integers .* and 1 text"),
    "polars objects": (pl.Series([1, "a"], dtype=pl.Object), "E168", "mixes 1 integer .* and 1 text"),
    "levels of both": (pd.Series(pd.Categorical(["a", 1])), "E168", "the levels of d.c mix 1 integer"),
    "a frame with texts": (pd.DataFrame({"a": [1], "b": ["x"]}), "E168", "of which 'b' holds texts"),
    "texts in rows": (np.array([["a", "b"]]), "E168", r"texts in rows of shape \(2,\)"),
    "objects in rows": (np.array([["a", "b"]], dtype=object), "E168", r"texts in rows of shape \(2,\)"),
    "objects": ([datetime.date(2020, 1, 31)], "E167", "holds entries of type date"),
    "dictionaries": (pd.Series([{"a": 1}]), "E167", "holds entries of type dict"),
    "large integers": ([2**70], "E167", "integers of more than 64 bits"),
    "large unsigned": (np.array([2**63], dtype=np.uint64), "E167", "integers of more than 64 bits"),
    "wide integers": (pl.Series([1], dtype=pl.Int128), "E167", "integers of more than 64 bits"),
}


@pytest.mark.parametrize("kind", MIXED)
def test_what_cannot_be_read(kind):
    column, code, message = MIXED[kind]
    with pytest.raises(cn.DataError, match=rf"^\[{code}\] .*{message}"):
        read_column(column, "d.c")


def test_texts_of_numbers_are_levels_and_are_named_as_the_cause_where_numbers_are_needed():
    assert reads_as_numbers(["1", "2.5", "-3e4"])
    assert not reads_as_numbers(["1", "a"])
    assert not reads_as_numbers(["nan"])
    assert not reads_as_numbers([])
    w = cn.Variable((), "w")
    D = cn.Data("d", x=pl.Series(["1.5", "2.5"]), y=[1.0, 2.0])
    assert cn.minimize((w - E(D.y, given=D.x == "2.5")) ** 2).solve(
        progress=False
    ).objective == pytest.approx(0)
    with pytest.raises(
        cn.DataError, match=r"\[E147\] the text column d\.x .*\n  write: a column of numbers: x holds"
    ):
        cn.minimize(E((D.x - w) ** 2)).solve(progress=False)


# ------------------------------------------------------------------------------------------- levels
def test_codes_follow_the_order_of_the_levels():
    declared = pl.Series(["lo", "hi", "lo"], dtype=pl.Enum(["lo", "mid", "hi"]))
    D = cn.Data("d", s=declared, k=[2, 1, 1], t=["b", "a", "b"])
    codes, levels = level_codes(D, ["s"])
    assert (codes.tolist(), levels) == ([0, 2, 0], ["lo", "mid", "hi"])
    codes, levels = level_codes(D, ["s", "k"])
    assert levels == [("lo", 1), ("lo", 2), ("hi", 1)]
    assert codes.tolist() == [1, 2, 0]
    assert level_codes(D, ["t"])[1] == ["a", "b"]


def test_a_declared_level_without_rows_is_an_empty_group():
    w = cn.Variable((), "w")
    s = pd.Categorical(["a", "b", "a"], categories=["a", "b", "c"])
    D = cn.Data("d", x=[1.0, 2.0, 3.0], s=s)
    problem = cn.minimize(w).subject_to(c=E(D.x, by=D.s) <= w)
    with pytest.raises(cn.DataError) as caught:
        problem.solve(progress=False)
    assert str(caught.value).startswith(
        "[E124] the group s='c' of 'd' has no row for mean[x | by s] (a level that its column declares): "
        "its average does not exist\n"
        "  write: a column without the level, such as column.cat.remove_unused_categories() of pandas"
    )
    used = cn.Data("d", x=[1.0, 2.0, 3.0], s=s.remove_unused_categories())
    solution = cn.minimize(w).subject_to(c=E(used.x, by=used.s) <= w).solve(progress=False)
    assert list(solution["c"].levels) == ["a", "b"]
    assert cn.minimize((w - P(D.s == "c")) ** 2).solve(progress=False).objective == pytest.approx(0.0)


def test_the_order_of_declared_levels_is_that_of_the_report():
    w = cn.Variable((), "w")
    D = cn.Data("d", x=[1.0, 2.0, 3.0], s=pl.Series(["lo", "hi", "hi"], dtype=pl.Enum(["lo", "hi"])))
    solution = cn.minimize(w).subject_to(c=E(D.x, by=D.s) <= w).solve(progress=False)
    assert list(solution["c"].levels) == ["lo", "hi"]
    assert solution["c"].value == pytest.approx([1.0, 2.5])


# -------------------------------------------------------------------------------- another sample
def train(**columns):
    """A sample with a column of each kind, or with some of them replaced."""
    own = {
        "x": torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64),
        "k": [0, 1, 2, 1],
        "flag": [True, False, True, True],
        "y": [0.0, 1.0, 2.0, 1.0],
        "s": ["a", "b", "a", "b"],
    }
    return cn.Data("train", **(own | columns))


@pytest.fixture(scope="module")
def solution():
    D = train()
    w, b = cn.Variable(2, "w"), cn.Variable((), "b")
    table = cn.Model(nn.Embedding(3, 1, dtype=torch.float64), "table", frozen=True)
    with torch.no_grad():
        table.module.weight.copy_(torch.tensor([[1.0], [2.0], [4.0]]))
    error = (D.x @ w + b - D.y + 0 * table(D.k).squeeze(-1)) ** 2
    problem = cn.minimize(E(error)).subject_to(
        group=E(D.y, by=D.s) - b <= 5,
        flag=E(D.y, given=D.flag) - b <= 5,
        code=E(table(D.k).squeeze(-1)) - b <= 5,
        level=E(D.y, by=D.k) - b <= 9,
    )
    return problem.solve(method="augmented", progress=False)


def values(solution, data):
    """Values of all constraints, flat, and the objective."""
    found = solution.evaluate(data)
    return [found.objective, *(v for e in found.estimates.values() for v in np.ravel(e.value))]


SAME = {
    "pandas": {
        "s": pd.Series(["a", "b", "a", "b"]),
        "k": pd.Series([0, 1, 2, 1]),
        "flag": pd.Series([True, False, True, True]),
    },
    "categories": {"s": pd.Categorical(["a", "b", "a", "b"], categories=["c", "b", "a"])},
    "nullable": {
        "k": pd.Series([0, 1, 2, 1], dtype="Int64"),
        "flag": pd.Series([True, False, True, True], dtype="boolean"),
    },
    "polars": {"s": pl.Series(["a", "b", "a", "b"], dtype=pl.Enum(["b", "a"])), "k": pl.Series([0, 1, 2, 1])},
    "polars categorical": {"s": pl.Series(["a", "b", "a", "b"], dtype=pl.Categorical)},
    "arrow": {
        "s": pa.array(["a", "b", "a", "b"]).dictionary_encode(),
        "flag": pa.array([True, False, True, True]),
    },
    "whole numbers as floating ones": {"k": np.array([0.0, 1.0, 2.0, 1.0]), "flag": [1.0, 0.0, 1.0, 1.0]},
    "truth values as integers": {"flag": [1, 0, 1, 1]},
    "floating ones as integers": {"y": [0, 1, 2, 1], "x": torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]])},
    "single precision": {"x": np.array([[0, 1], [1, 0], [1, 1], [0, 0]], dtype=np.float32)},
    "more columns": {"z": ["not", "used", "by", "it"]},
    "a frame": {"x": pl.DataFrame({"u": [0, 1, 1, 0], "v": [1.0, 0.0, 1.0, 0.0]})},
}


@pytest.mark.parametrize("kind", SAME)
def test_another_sample_is_bound_by_name_whatever_library_it_comes_from(solution, kind):
    expected = values(solution, train())
    assert values(solution, train(**SAME[kind])) == pytest.approx(expected, rel=1e-12)


ROW = {"x": [[0.0, 1.0]], "k": [0], "y": [1.0], "s": ["a"]}
TRAINING = "that column of the training sample"
REFUSED = {
    "a missing column": (lambda: cn.Data("later", **ROW), "E106", "no column 'flag'"),
    "rows of another shape": (
        lambda: train(x=torch.zeros(4, 3)),
        "E169",
        r"train\.x has rows of shape \(3,\), those of the \S+ sample have \(2,\)",
    ),
    "an unknown level": (
        lambda: train(s=["a", "b", "c", "b"]),
        "E135",
        "has the level 'c', which the training",
    ),
    "an unknown number": (lambda: train(k=[0, 1, 2, 7]), "E135", "has the level 7, which the training"),
    "texts": (
        lambda: train(k=["0", "1", "2", "1"]),
        "E169",
        rf"train\.k holds texts, and {TRAINING} numbers",
    ),
    "numbers": (lambda: train(s=[0, 1, 0, 1]), "E169", rf"train\.s holds numbers, and {TRAINING} texts"),
    "missing values": (lambda: train(y=pl.Series([0.0, None, 2.0, 1.0])), "E124", r"train\.y has 1 missing"),
    "dates": (lambda: train(y=pl.Series([datetime.date(2020, 1, 31)] * 4)), "E167", r"train\.y holds dates"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_stand_in_for_the_training_sample(solution, kind):
    make, code, message = REFUSED[kind]
    with pytest.raises(cn.DataError, match=rf"^\[{code}\] .*{message}"):
        solution.evaluate(make())


def test_levels_of_another_type_are_named_as_the_cause():
    w = cn.Variable((), "w")
    D = cn.Data("d", y=[0.0, 1.0], k=["1", "2"])
    solution = cn.minimize(w**2).subject_to(c=E(D.y, by=D.k) <= 2 + w).solve(progress=False)
    with pytest.raises(cn.DataError, match="E169"):
        solution.evaluate(cn.Data("d", y=[0.0, 1.0], k=[1, 2]))
    with pytest.raises(
        cn.DataError, match=r"\[E135\] d\.k has the level '1', which the training .*it has 1, of another"
    ):
        level_codes(D, ["k"], [1, 2])


def test_a_level_that_the_hold_out_lacks_has_no_interval(solution):
    later = cn.Data("later", x=[[0.0, 1.0]] * 3, k=[0, 1, 2], flag=[True] * 3, y=[1.0, 2.0, 3.0], s=["a"] * 3)
    found = solution.evaluate(later).estimates["group"]
    value, lower = np.ravel(found.value), np.ravel(found.lower)
    assert np.isfinite([value[0], lower[0]]).all()
    assert np.isnan([value[1], lower[1]]).all()
    assert found.verdicts[1] == "not judged"


def test_rows_that_are_read_elsewhere():
    D = train()
    w = cn.Variable(2, "w")
    error = (D.x @ w - D.y) ** 2
    problem = cn.minimize(E(error)).subject_to(
        group=E(D.y + D.x @ w, by=D.s) <= 9,
        flag=E(D.x @ w, given=D.flag) <= 9,
        both=E(D.x @ w, by=(D.s, D.k)) <= 9,
    )
    lagrangian = problem.compile()
    columns = {name: D.values(name) for name in D.columns}
    index = [3, 0, 2]
    picked = {
        name: torch.as_tensor(v)[index] if name != "s" else [v[i] for i in index]
        for name, v in columns.items()
    }
    for rows, raw in (([0, 1, 2, 3], columns), (index, picked)):
        inside = lagrangian.estimate(D.rows(rows))
        outside = lagrangian.estimate(D.rows(raw))
        for a, b in zip(inside.exact.residuals, outside.exact.residuals, strict=True):
            torch.testing.assert_close(a, b)
    weight = torch.tensor([0.5, 1.0, 1.5])
    inside, outside = (lagrangian.estimate(D.rows(r, weight)) for r in (index, picked))
    torch.testing.assert_close(inside.primal.objective, outside.primal.objective)
    for broken, code in (
        ({"x": columns["x"]}, "E106"),
        (picked | {"y": [1.0]}, "E112"),
        (picked | {"y": [1.0, 2.0, None]}, "E124"),
        (picked | {"s": ["a", "b", "z"]}, "E135"),
        (picked | {"x": torch.zeros(3, 5)}, "E169"),
    ):
        with pytest.raises(cn.DataError, match=code):
            lagrangian.estimate(D.rows(broken))
