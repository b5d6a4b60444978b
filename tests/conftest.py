"""One thread for all tests: their tensors are small, and threads that wait for work cost more than they save."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
