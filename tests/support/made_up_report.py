"""A recipe called `components` and finished runs of it, with made-up answers, as the commands leave them."""

import json
from pathlib import Path

import numpy as np

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.report.stats.baselines import yes_no
from switchkd_cli.report.stats.stored_answers import units
from switchkd_cli.runs import run_folder

TASKS = ("gqa", "mmmu_val", "pope")  # one of each kind of answer
ITEMS = 12
TEXT = """\
title: Components
student: {family: llava, vision: MODEL, language: MODEL}
teacher: {family: llava, checkpoint: MODEL}
data: {questions: {source: llava_json, parameters: {file: questions.json, images: pictures}}}
stages:
  - name: distill
    data: questions
    train: [vision, projector, language]
    lr: 1e-3
    batch: 8
    steps: 10
    objective:
      - {name: ce, loss: cross_entropy}
      - {name: align, loss: dbild, to: teacher}
      - {name: vsd, loss: dbild, of: switch, to: teacher}
evaluation: {benchmarks: [gqa, mmmu_val, pope], items: 12}
controls: [sft]
rows:
  switch-kd: {title: Switch-KD, paper: {gqa: 61.6, mmmu_val: 29.8, average: 60.1}}
  align: {title: Align, drop: [vsd], paper: {gqa: 59.7, average: 58.8}}
  sft: {title: SFT, drop: [align, vsd]}
  sft-frozen:
    title: Frozen SFT
    drop: [align, vsd]
    set: {stages.distill.train: [projector, language]}
    paper: {gqa: 58.3, mmmu_val: 33.6, average: 56.5}
  sft-compute: {title: Long SFT, drop: [align, vsd], set: {stages.distill.steps: 50}}
"""
RIGHT = {"switch-kd": 10, "align": 7, "sft": 7, "sft-frozen": 3, "sft-compute": 8}
"""Questions of 12 that a row answers right, give or take what the seed does."""
LUCK = {"switch-kd": 0, "align": 2, "sft": 0, "sft-frozen": 1, "sft-compute": 2}


def recipe(folder: Path, *changes: tuple[str, str]) -> Path:
    """The recipe as `components.yaml`, each (old, new) replaced once."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    text = TEXT.replace("MODEL", str(model))
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    file = folder / "components.yaml"
    file.write_text(text)
    return file


def finished(root: Path, file: Path, seeds=(0, 1, 2), right=RIGHT, rows=None) -> None:
    """A finished run of every row and seed."""
    for seed in seeds:
        for run in load_rows(file, rows, seed=seed):
            moved = [(seed * (place + 1) + LUCK[run.row]) % 3 - 1 for place in range(len(TASKS))]
            write(root, run, [right[run.row] + luck for luck in moved])


def write(root: Path, run, right) -> run_folder.RunFolder:
    """One finished run with `right` right answers to each benchmark."""
    folder = run_folder.folder(root, run)
    folder.answers.mkdir(parents=True)
    folder.recipe.write_text(run.text)
    record = {"status": "finished", "recipe": run.recipe, "row": run.row, "title": run.title, "seed": run.seed}
    record |= {"paper": dict(run.paper), "key": run.key, "command": ["switchkd", "ablate", "x"], "seconds": 30.0}
    record |= {"machine": "a machine", "ended": "2026-01-01T00:00:00", "versions": {"torch": "2"}, "commit": "c0ffee"}
    folder.record.write_text(json.dumps(record))
    for step in range(1, 4):
        folder.log({"stage": "distill", "step": step, "steps": 3, "seconds": 7.0 * step, "loss/ce": 1 / step})
    scores = {task: _answered(folder, task, count) for task, count in zip(TASKS, right, strict=True)}
    results = {"world": "playground", "split": "test", "sets_key": "k", "versions": {"lmms-eval": "0.7.3"}}
    fidelity = {"data": "questions", "agreement": 0.5 + 0.01 * right[0], "kl": 1.25, "positions": 99}
    fidelity |= {"held_out": True}
    compared = {"fidelity": fidelity, "eyes_or_reader": eyes_or_reader(right[0] / ITEMS)}
    folder.results.write_text(json.dumps(results | {"scores": scores} | compared))
    return folder


def eyes_or_reader(student: float) -> dict:
    """What a run with this accuracy lacks; the parts add up."""
    accuracy = {"student": student, "reverse": student + 0.1, "switch": student - 0.2, "teacher": student + 0.3}
    accuracy |= {"student_grey": 0.25, "teacher_grey": 0.125}
    parts = {"gap": 0.3, "eyes": 0.1, "reader": -0.2, "interaction": 0.4}
    grounding = {"agreement_given": 0.75, "cka": 0.625, "student_share": 0.375, "teacher_share": None}
    parts |= {"grounding": grounding}
    return {"data": "questions", "held_out": True, "positions": 88, "accuracy": accuracy, **parts}


def _answered(folder: run_folder.RunFolder, task: str, right: int) -> dict:
    """Writes the answers, those with low numbers right, and gives the entry of the results."""
    lines = []
    for i in range(ITEMS):
        target, other = ("yes", "no") if i % 2 else ("no", "yes")
        answer = {"answer": target if i < right else other, "target": target, "score": float(i < right)}
        lines.append({"doc_id": i, "key": f"{task}{i}", "kind": "", "prompt": f"question {i}?", **answer})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder.answers / f"{task}.jsonl").write_text(text)
    entry = {"score": units(task, lines).score, "metric": "m", "items": ITEMS, "seconds": 1.0}
    return entry | yes_no(BENCHMARKS[task], lines)


def stored(root: Path, row: str) -> np.ndarray:
    """The scores in the results files of a row, [seeds, benchmarks]."""
    files = sorted((root / "components" / row).glob("seed*/results.json"))
    every = [json.loads(file.read_text())["scores"] for file in files]
    return np.array([[scores[task]["score"] for task in TASKS] for scores in every])


def accuracies(root: Path, row: str) -> np.ndarray:
    """POPE's accuracy by the answers files of a row, [seeds]."""
    files = sorted((root / "components" / row).glob("seed*/answers/pope.jsonl"))
    return np.array(
        [100 * np.mean([json.loads(line)["score"] for line in file.read_text().splitlines()]) for file in files]
    )
