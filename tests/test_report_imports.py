"""The report belongs to the light zone."""

import subprocess
import sys

HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "lmms_eval",
    "deepspeed",
    "scipy",
    "statsmodels",
    "matplotlib",
}


def test_the_report_imports_nothing_heavy():
    code = "import sys, switchkd_cli.report.table, switchkd_cli.report.reproduction; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
