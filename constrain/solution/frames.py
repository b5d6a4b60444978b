"""Tables of records for data analysis."""

from __future__ import annotations

from typing import Any

from constrain._lazy import pandas
from constrain.errors import ModelingError

__all__ = ["frame_of", "frames"]


def frame_of(rows: list[dict[str, Any]]) -> Any:
    """A pandas frame of records.

    Raises:
        ModelingError: E143 without pandas.
    """
    return frames().DataFrame(rows)


def frames() -> Any:
    """pandas.

    Raises:
        ModelingError: E143 without it.
    """
    try:
        return pandas()
    except ModuleNotFoundError:
        raise ModelingError(
            "E143", "a frame needs pandas", fix="pip install pandas, or use the records as they are"
        ) from None
