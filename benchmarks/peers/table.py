"""Tables of measurements, and the page of the documentation that shows them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.timing import Ratio

__all__ = ["PAGE", "Table", "accurate", "machine", "milliseconds", "ratio", "replaced", "version"]

PAGE = Path(__file__).parent.parent.parent / "docs" / "benchmarks.md"
PACKAGES = (
    "torch", "numpy", "cooper-optim", "humancompatible-train", "fairlearn", "cvxpy", "clarabel", "scipy",
)  # fmt: skip
ABSENT = "not installed"


@dataclass
class Table:
    """One case: a name, columns, and a row of text per library and setting."""

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])

    def add(self, *cells: str) -> None:
        """Adds a row and prints it, so that a long run can be watched."""
        self.rows.append(cells)
        print("  " + "  |  ".join(cells), flush=True)

    def absent(self, package: str, who: str) -> bool:
        """Whether a package is missing; then there is a row that says so."""
        if version(package) is not None:
            return False
        self.add(who, ABSENT, *[""] * (len(self.columns) - 2))
        return True

    def __str__(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def version(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> str:
    """Processor, cores, load and versions, in words; no name of the host."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        found = re.search(r"^model name\s*: (.+)$", described, re.M)
        processor = found[1] if found else platform.processor()
    except OSError:
        processor = platform.processor()
    versions = [f"{name} {version(name) or ABSENT}" for name in PACKAGES]
    return (
        f"{platform.machine()} ({processor or 'unknown'}), {os.cpu_count()} cores, one thread, "
        f"{platform.system()}; Python {platform.python_version()}, {', '.join(versions)}."
    )


def ratio(found: Ratio) -> str:
    """A ratio with its spread."""
    digits = 2 if found.median < 10 else 0
    return f"{found.median:.{digits}f} ({found.least:.{digits}f} to {found.most:.{digits}f})"


def milliseconds(seconds: float) -> str:
    """A duration with two or three digits."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def accurate(error: float) -> str:
    """An error in one digit; what is smaller than rounding is 0."""
    return "0" if abs(error) < 1e-14 else f"{error:.0e}"


def replaced(page: str, name: str, text: str) -> str:
    """The page with the text between `<!-- measured: name -->` and `<!-- end -->` replaced.

    Raises:
        ValueError: the page has no such place.
    """
    start, end = f"<!-- measured: {name} -->", "<!-- end -->"
    before, found, after = page.partition(start)
    if not found or end not in after:
        message = f"the page has no place {start} ... {end}"
        raise ValueError(message)
    return f"{before}{start}\n\n{text}\n\n{end}{after.partition(end)[2]}"
