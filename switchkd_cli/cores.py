"""The processor cores that this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Their number: what the process is bound to where the system tells it, else all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
