"""What distillation costs on this machine, as ratios: `make bench`, or python -m scripts.bench (docs/performance.md).

A level is one file with `measure_level(quick) -> Level`, run in a process of its own. What it found is data (results.py), which
is judged against the targets (targets.yaml) and drawn (show.py) without being measured again.
"""

LEVELS = ("loss", "step", "data", "startup", "evaluation", "shared")
LONG = ("matrix",)
"""Measured only when they are named."""
