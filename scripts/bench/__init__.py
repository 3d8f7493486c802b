"""What distillation costs on this machine, as ratios: `make bench`, or python -m scripts.bench (docs/performance.md).

A level is one file with `measure_level(quick) -> Level`, run in a process of its own. Its results are data (results.py); judge.py compares them with targets.yaml, and show.py draws them, without new measurements.
"""

LEVELS = ("loss", "step", "data", "startup", "evaluation", "shared")
LONG = ("matrix", "peers", "gpu", "budgets")
"""Levels that are measured only when named: they take long, install other packages, or want a GPU."""
