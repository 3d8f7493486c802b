"""The report belongs to the light zone."""

import subprocess
import sys

from tests.commands import test_compare as made

HEAVY = {"torch", "transformers", "accelerate", "lmms_eval", "deepspeed", "scipy", "matplotlib"}


def test_the_report_imports_nothing_heavy():
    code = "import sys, switchkd_cli.report.show, switchkd_cli.report.reproduction.write; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_comparing_and_drawing_runs_whose_models_are_gone_imports_no_engine(tmp_path):
    folders = [str(made.finished(tmp_path, row).path) for row in ("switch-kd", "sft")]
    code = (
        "import sys; from pathlib import Path; from switchkd_cli.commands.compare import compare; from switchkd_cli.commands.options import CompareOptions\nfrom switchkd_cli.runs import run_folder as runs\n"
        "runs.RunFolder.run = lambda folder: type('Run', (), {'teacher_key': 'none', 'config': type('Config', (), {'teacher': None})})\n"
        "root = Path(sys.argv[1])\n"
        "compare(CompareOptions(sys.argv[2:], form='json', out=root, figures=root / 'pictures'))\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "pictures" / "radar.svg").exists()
    known = set(done.stderr.split())
    assert "switchkd_cli.report.tables.comparison" in known
    assert not {name for name in known if name.startswith(("torch", "transformers", "switchkd_cli.engine"))}
