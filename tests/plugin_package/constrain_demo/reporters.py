"""A report with one line per constraint and level, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from typing import Any


def csv_report(solution: Any) -> str:
    """`solution.report(format="csv")`."""
    rows = solution.rows()
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
