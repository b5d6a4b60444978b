"""`torch.linalg`, whose functions have no types that a checker can read."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["linalg"]

linalg: Any = torch.linalg
