"""This package against Cooper, humancompatible-train, fairlearn, CVXPY and SciPy: `docs/benchmarks.md`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))
