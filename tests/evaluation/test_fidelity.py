"""How close a student came to its teacher: the figures by an explicit formula, and in the notes of a table."""

import json
from types import SimpleNamespace

import pytest
import torch

from switchkd_cli.engine import run_stages
from switchkd_cli.engine.build import open_data
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.evaluation.against_teacher import ROWS, error_consistency, fidelity
from switchkd_cli.engine.paths import Paths
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import read_json, write_json
from switchkd_cli.recipe.schema import DataSet
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.report.tables import footnotes
from tests.support import made_up_runs as made
from tests.support import tiny


def test_figures_are_those_of_all_answer_tokens_of_all_rows(tmp_path):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2)
    paths = Paths(student, teacher, len(student.inputs.processor.tokenizer)).eval()
    rows = tiny.rows(tmp_path) * 2  # more than one forward pass
    data = tiny.conversations(student, tmp_path, which=rows)
    agreed, divergence = [], []
    for index in range(len(data)):
        batch = tiny.together(student, [data[index]])
        with torch.no_grad():
            logits = paths(batch, ("student", "teacher"), batch.predicting("answer"))
        p, q = (logits[path].double().softmax(-1) for path in ("teacher", "student"))
        agreed += (p.argmax(-1) == q.argmax(-1)).tolist()
        divergence += (p * (p.log() - q.log())).sum(-1).tolist()
    measured = fidelity(paths, data, precision="fp32")
    assert measured["positions"] == len(agreed) > 8
    assert measured["agreement"] == pytest.approx(sum(agreed) / len(agreed))
    assert measured["kl"] == pytest.approx(sum(divergence) / len(divergence), rel=1e-4)


@pytest.mark.parametrize(
    ("both", "ours", "theirs", "neither", "kappa"),
    [
        (4, 0, 0, 4, 1.0),
        (2, 2, 2, 2, 0.0),  # independent
        (0, 4, 4, 0, -1.0),
        (6, 1, 1, 2, (0.8 - 0.58) / 0.42),  # both have 70 % right
        (5, 0, 0, 0, 0.0),
    ],
)
def test_error_consistency_of_a_table(both, ours, theirs, neither, kappa):
    counts = both, ours, theirs, neither
    tables = ((True, True, False, False), (True, False, True, False))
    right = [torch.tensor([value for value, n in zip(of, counts, strict=True) for _ in range(n)]) for of in tables]
    assert error_consistency(*right) == pytest.approx(kappa)


def test_a_teacher_is_faithful_to_itself(tmp_path):
    model = tiny.model(seed=1)
    paths = Paths(model, model, len(model.inputs.processor.tokenizer))
    measured = fidelity(paths, tiny.conversations(model, tmp_path), precision="fp32")
    assert (measured["agreement"], measured["kl"]) == (1.0, pytest.approx(0.0, abs=1e-6))


def test_a_teacher_with_other_visual_tokens_is_compared_at_the_same_answers(tmp_path):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision={"patch_size": 8})
    paths = Paths(student, teacher, len(student.inputs.processor.tokenizer))
    data = tiny.conversations(student, tmp_path)
    measured = fidelity(paths, data.with_teacher(teacher.inputs), precision="fp32")
    assert measured["positions"] == int(tiny.batch(student, tmp_path).predicting("answer").sum())


def test_only_the_rows_it_looks_at_are_prepared_and_each_once(tmp_path, monkeypatch):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2)
    rows = [tiny.row(str(i), None, ("What?", f"the {i}th")) for i in range(ROWS + 30)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    built, build = [], Conversations._build
    monkeypatch.setattr(Conversations, "_build", lambda self, i: built.append(i) or build(self, i))
    paths = Paths(student, teacher, len(student.inputs.processor.tokenizer))
    data = DataSet(source="llava_json", parameters={"file": str(tmp_path / "rows.json")})
    opened = lambda _, student, root: open_data(data, student.inputs, root)
    pair = SimpleNamespace(build=lambda trained: paths, open_data=opened, student=student, teacher=teacher)
    monkeypatch.setattr(run_stages, "shown_to", lambda rows, *_: rows)  # both read the same tokens
    monkeypatch.setattr(run_stages, "check_pair", lambda *_, **__: pair)
    stage = SimpleNamespace(data="mine", trained_on=("mine",), data_sets=("mine",), validation=None)
    no_adapter = SimpleNamespace(adapter=None)
    config = SimpleNamespace(stages=[stage], data={"mine": data}, precision="fp32", switch=no_adapter)
    folder = SimpleNamespace(model=tmp_path, root=tmp_path)
    (about, measured), *others = run_stages._compare_with_teacher(SimpleNamespace(config=config), folder, {})
    assert about == "fidelity" and not others  # no row has an image
    assert (measured["data"], measured["held_out"]) == ("mine", False) and measured["positions"] > ROWS
    assert len(built) == len(set(built)) == ROWS


def scored(root, row, title, seed, agreement, warnings=()):
    folder = made.run(root, row, title, {"gqa": 40.0}, seed=seed)
    close = {"data": "instructions", "agreement": agreement, "kl": 0.25, "positions": 3210}
    write_json(folder.results, read_json(folder.results) | {"fidelity": close})
    for about, text in warnings:
        folder.log({"event": "warning", "stage": "distill", "about": about, "text": text})
    return read(folder)


def test_tables_note_fidelity_as_a_mean_over_seeds(tmp_path):
    runs = [scored(tmp_path, "a", "A", seed, 0.9 + seed / 100) for seed in (0, 2)]
    (note,) = footnotes.compared_with_teacher([*runs, scored(tmp_path, "b", "B", 0, 0.5)])
    assert "3,210 answer tokens of instructions: A 91.0 % and 0.25 nats; B 50.0 % and 0.25 nats" in note


def test_tables_note_eyes_and_reader_as_means_over_seeds(tmp_path):
    runs = []
    for seed, gap in enumerate((0.1, 0.3)):
        folder = made.run(tmp_path, "a", "A", {"gqa": 40.0}, seed=seed)
        parts = {"accuracy": {}, "gap": gap, "eyes": 0.05, "reader": -0.05, "interaction": gap, "positions": 1234}
        found = {"data": "mine", "held_out": True, **parts}
        write_json(folder.results, read_json(folder.results) | {"eyes_or_reader": found})
        runs.append(read(folder))
    (note,) = footnotes.compared_with_teacher(runs)
    assert "(1,234 answer tokens of mine, held out)" in note
    assert note.endswith(": A gap +20.0 eyes +5.0 reader -5.0 interaction +20.0")


def test_tables_note_each_warning_once_a_row_with_its_seeds(tmp_path):
    runs = [scored(tmp_path, "a", "A", seed, 1.0, [("teacher", f"worse by {seed}")]) for seed in (1, 2)]
    other = scored(tmp_path, "b", "B", 1, 1.0, [("k cut", "k sits at max_k")])
    assert list(footnotes.warnings([*runs, other])) == [
        "warning, A (seeds 1, 2): worse by 1",
        "warning, B (seed 1): k sits at max_k",
    ]


def test_a_teacher_that_is_only_scored_need_not_fit_and_costs_no_score(tmp_path, monkeypatch):
    """What the student was scored before is kept; the run says what is missing, and why."""
    folder = made.run(tmp_path, "sft", "SFT", {"gqa": 40.0})
    folder.results.unlink()
    stated = {"scores": {"gqa": {"score": 40.0, "items": 8}}}

    def unlike(*_, **__):
        raise UserError(["teacher: vision width is 32, the student's is 16"])

    monkeypatch.setattr(run_stages, "check_pair", unlike)
    monkeypatch.setattr(run_stages.evaluation, "evaluate", lambda *_, **__: dict(stated))
    monkeypatch.setattr(run_stages, "_evaluation_arguments", lambda *_: {"benchmarks": ["gqa"]})
    monkeypatch.setattr(run_stages.model_card, "write", lambda *_: None)
    config = SimpleNamespace(evaluation=SimpleNamespace(benchmarks=["gqa"]), teacher=object())
    run_stages.evaluate(SimpleNamespace(config=config), folder)
    assert read_json(folder.results) == stated
    (line,) = [line for line in map(json.loads, folder.metrics.open()) if line.get("event") == "warning"]
    assert line["text"] == "not measured: teacher: vision width is 32, the student's is 16"
