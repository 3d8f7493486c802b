"""The real thing, small: every command of the README on the shipped models, through the installed program."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import forked

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.captions.parameters.pictures=24",
    "data.instructions.parameters.pictures=24",
    "stages.pretrain.steps=2",
    "stages.distill.steps=3",
    "stages.distill.batch=4",
    "stages.distill.micro_batch=2",
    "evaluation.items=8",
]

pytestmark = pytest.mark.slow


def switchkd(*words: str) -> str:
    """What the program prints; it must end well."""
    program = forked.switchkd(*words, cwd=ROOT, first=forked.workers)
    assert program.end() == 0, program.text[-3000:]
    return program.text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A root with a finished quickstart (Switch-KD and its control), by the program in a Python of its own."""
    root = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "switchkd_cli", "distill", "recipes/quickstart.yaml", *SMALL, "--out", str(root)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return root, ended.stderr + ended.stdout  # progress, then what was asked for


def test_distill_ends_with_the_table(runs):
    _, printed = runs
    table = printed[printed.index("playground") :]
    for word in ("teacher", "SFT", "Switch-KD", "gain", "majority", "blind", "MMB-CN", "POPE", "Avg", "files"):
        assert word in table, word


def test_a_run_folder_holds_what_the_readme_says(runs):
    root, _ = runs
    folder = root / "quickstart" / "switch-kd" / "seed1"
    names = {"recipe.yaml", "run.json", "metrics.jsonl", "tensorboard", "model", "results.json", "answers"}
    assert names <= {path.name for path in folder.iterdir()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "step" in line][-1]
    assert {
        "loss/ce",
        "loss/align",
        "loss/vsd",
        "teacher_ce",
        "agreement/student",
        "k/align/student/mean",
    } <= last.keys()
    assert list((folder / "tensorboard").rglob("events*"))
    scores = json.loads((folder / "results.json").read_text())["scores"]
    assert len(scores) == 10
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "Measured in switchkd's playground, not on the benchmarks." in card
    for task, score in scores.items():  # every number in the card is the run's own
        assert f"| {score['score']:.1f} | {task}, {score['metric']} | 8 |" in card


def test_the_model_loads_in_transformers_without_this_package(runs):
    root, _ = runs
    code = (
        "import sys; from transformers import AutoModelForImageTextToText as M, AutoProcessor as P\n"
        "m, p = M.from_pretrained(sys.argv[1]), P.from_pretrained(sys.argv[1])\n"
        "from PIL import Image\n"
        "chat = [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'What is at the top left?'}]}]\n"
        "text = p.apply_chat_template(chat, add_generation_prompt=True)\n"
        "x = p(images=Image.new('RGB', (72, 72)), text=text, return_tensors='pt')\n"
        "y = m.generate(**x, max_new_tokens=4, do_sample=False)\n"
        "assert y.shape[1] > x['input_ids'].shape[1] and 'switchkd_cli' not in sys.modules\n"
    )
    folder = root / "quickstart" / "switch-kd" / "seed1" / "model"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=False, capture_output=True, text=True, cwd=root, timeout=120
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_a_second_call_reuses_the_first(runs):
    root, _ = runs
    again = switchkd("distill", "recipes/quickstart.yaml", *SMALL, "--out", str(root))
    assert "reused" in again
    assert "gain" in again


def test_eval_scores_the_newest_run_and_any_model_folder(runs):
    root, _ = runs
    printed = switchkd("eval", "--benchmarks", "mme,pope,gqa", "--items", "4", "--out", str(root))
    assert "playground" in printed
    model = root / "quickstart" / "sft" / "seed1" / "model"
    switchkd("eval", "--model", str(model), "--benchmarks", "gqa", "--items", "4", "--out", str(root))


def test_compare_shows_runs_beside_the_paper(runs):
    root, _ = runs
    printed = switchkd("compare", "recipes/quickstart.yaml", "--out", str(root))
    assert "Switch-KD" in printed and "paper" in printed


def test_compare_draws_its_pictures(runs, tmp_path):
    root, _ = runs
    switchkd("compare", "recipes/quickstart.yaml", "--out", str(root), "--pictures", str(tmp_path))
    names = ("radar", "cost", "lengths", "curves", "knees", "attention")
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("png", "svg")}


def test_compare_writes_a_report_with_every_picture(runs, tmp_path):
    root, _ = runs
    switchkd("compare", "recipes/quickstart.yaml", "--out", str(root), "--report", str(tmp_path))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('role="img"') == 5 and page.count("data:image/webp;base64,") == 1
    assert "Not run: " in page and "3 of 3 runs finished and scored (seed 1)" in page
    assert (tmp_path / "report.md").read_text(encoding="utf-8").count("](<pictures/quickstart/") == 6


def test_export_writes_the_student_for_vllm(runs, tmp_path):
    run = runs[0] / "quickstart" / "switch-kd" / "seed1"
    assert f"files: {tmp_path / 'served'}" in switchkd(
        "export", str(run), "--to", "vllm", "--out", str(tmp_path / "served")
    )
    (tensors,) = (tmp_path / "served").glob("*.safetensors")
    assert tensors.read_bytes() == (run / "model" / tensors.name).read_bytes()


def test_every_row_is_measured_against_the_teacher_on_the_same_positions(runs):
    root, printed = runs
    found = [
        json.loads((root / "quickstart" / row / "seed1" / "results.json").read_text())["fidelity"]
        for row in ("switch-kd", "sft")
    ]
    assert found[0]["positions"] == found[1]["positions"] > 100
    assert found[0]["data"] == found[1]["data"] == "held_out"
    assert all(0 < each["agreement"] <= 1 and each["kl"] > 0 for each in found)
    assert f"{100 * found[1]['agreement']:.1f} %" in printed


def test_ablate_gives_intervals_and_paired_differences(tmp_path):
    printed = switchkd(
        *("ablate", "recipes/quickstart.yaml", *SMALL, "--seeds", "2", "--rows", "switch-kd,sft"),
        *("--out", str(tmp_path), "--jobs", "2"),
    )
    assert "±" in printed and "Switch-KD" in printed


def test_pretrain_stops_before_distillation(tmp_path):
    switchkd("pretrain", "recipes/quickstart.yaml", *SMALL, "--out", str(tmp_path))
    stages = {json.loads(p.read_text().splitlines()[-1])["stage"] for p in tmp_path.rglob("metrics.jsonl")}
    assert stages == {"pretrain"}


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.split("#")[0].strip() for language, block in blocks if not language for line in block.splitlines()]
    return [line for line in lines if line.startswith("switchkd ")]


@pytest.mark.parametrize("command", [c for c in readme_commands() if c.split()[1] in ("distill", "pretrain", "ablate")])
def test_readme_training_commands_plan(command, tmp_path):
    words = shlex.split(command)[1:]
    words = [str(tmp_path) if word == "elsewhere" else word for word in words]
    switchkd(*words, *([] if "--dry-run" in words else ["--dry-run"]))


def test_readme_shows_all_commands():
    shown = {command.split()[1] for command in readme_commands()}
    assert shown == {"pretrain", "distill", "ablate", "eval", "compare", "export"}
