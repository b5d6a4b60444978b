"""UCI Adult ("Census Income") as arrays: the official train and test splits, complete rows only.

The features of each split are 5 standardized numbers followed by 90 indicator columns. Means, standard
deviations and category levels are those of the training split, so that both splits have the same 95
columns with the same meaning. The data files and their license are described in `data/NOTICE.md`.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"

FIELDS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education_num",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital_gain",
    "capital_loss",
    "hours_per_week",
    "native_country",
    "income",
)
NUMERIC = ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week")
LOGARITHMIC = ("capital_gain", "capital_loss")
CATEGORICAL = (
    "workclass",
    "education",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "native_country",
)


@dataclass(frozen=True)
class Split:
    """One split of the data, row by row.

    Attributes:
        x: features, float64, shape (rows, 95), without an intercept column.
        y: 1.0 where the income is above 50 000 dollars, else 0.0; float64, shape (rows,).
        columns: the 95 feature names, such as "age" or "education=Masters".
        categories: the original text of each categorical field, shape (rows,) each.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    columns: tuple[str, ...]
    categories: dict[str, NDArray[np.str_]]

    @property
    def sex(self) -> NDArray[np.str_]:
        """Either "Female" or "Male", shape (rows,)."""
        return self.categories["sex"]

    @property
    def race(self) -> NDArray[np.str_]:
        """One of five levels, shape (rows,)."""
        return self.categories["race"]

    @property
    def education(self) -> NDArray[np.str_]:
        """One of sixteen levels, shape (rows,)."""
        return self.categories["education"]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.y)


@dataclass(frozen=True)
class Adult:
    """Both splits: 30 162 training rows and 15 060 test rows."""

    train: Split
    test: Split


def load(folder: Path = DATA) -> Adult:
    """Read both splits from `folder`, with the levels and moments of the training split for both."""
    train, test = _read(folder / "adult.data.gz"), _read(folder / "adult.test.gz")
    raw = _numbers(train)
    mean, deviation = raw.mean(axis=0), raw.std(axis=0)
    levels = {field: np.unique(train[field])[1:] for field in CATEGORICAL}
    columns = (*NUMERIC, *(f"{field}={level}" for field in CATEGORICAL for level in levels[field]))

    def split(rows: dict[str, NDArray[np.str_]]) -> Split:
        indicators = [rows[field][:, None] == levels[field] for field in CATEGORICAL]
        return Split(
            x=np.hstack([(_numbers(rows) - mean) / deviation, *indicators]),
            y=(rows["income"] == ">50K").astype(np.float64),
            columns=columns,
            categories={field: rows[field] for field in CATEGORICAL},
        )

    return Adult(train=split(train), test=split(test))


def _read(path: Path) -> dict[str, NDArray[np.str_]]:
    """Return the complete rows of a file, as one text array per field."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, skipinitialspace=True) if len(row) == len(FIELDS)]
    table = np.array([row for row in rows if "?" not in row])
    table[:, -1] = np.char.rstrip(table[:, -1], ".")  # the test file ends its labels with a period
    return {field: table[:, i].copy() for i, field in enumerate(FIELDS)}


def _numbers(rows: dict[str, NDArray[np.str_]]) -> NDArray[np.float64]:
    """Return the numeric fields, shape (rows, 5), with log(1 + amount) for the two capital fields."""
    columns = {field: rows[field].astype(np.float64) for field in NUMERIC}
    return np.column_stack([np.log1p(v) if field in LOGARITHMIC else v for field, v in columns.items()])
