"""CONTRIBUTING.md's table "Where a new thing goes": each thing is made in a temporary folder, registered, and run.

One file and, at most, one line of a registry are all that a test may write. To register is to add an entry to the registry's
dict, as its line in registry.yaml does; a recipe, printed numbers and a world are registered by the folder that they are in.
"""

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from switchkd_cli import registry
from switchkd_cli.engine.build import check_model
from switchkd_cli.engine.cost.run_estimate import estimate_run
from switchkd_cli.errors import UserError
from switchkd_cli.planning.estimate import planned_machine
from switchkd_cli.recipe import named_files
from switchkd_cli.recipe.load import load, load_rows
from switchkd_cli.recipe.schema import Checkpoint
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.run_options import RunOptions
from tests.support import small_recipe, tiny, tiny_run, toy_family

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder as the current one, in which modules and recipes/ are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def trained(recipe, root, *overrides):
    """The first run of a recipe after its stages were trained, and its metrics."""
    run = load(recipe, None, overrides)
    folder = launch.run_one(run, RunOptions(out=root))
    return run, [json.loads(line) for line in folder.metrics.read_text().splitlines()]


LOSS = '''
def half_squares(teacher_logits, student_logits, *, factor: float = 0.5):
    """factor · mean over the vocabulary of (z_T - z_S)² at each position."""
    return factor * (teacher_logits.detach() - student_logits).float().square().mean(-1)
'''


@pytest.fixture
def loss(here, monkeypatch):
    (here / "added_loss.py").write_text(LOSS)
    monkeypatch.setitem(registry.LOSSES, "half_squares", "added_loss:half_squares")
    return {"name": "half", "loss": "half_squares", "to": "teacher", "parameters": {"factor": 0.25}}


def test_a_loss(here, loss):
    term = {"name": "align", "loss": "half_squares", "of": "switch", "to": "teacher"}
    recipe = tiny_run.write(here, distill={"steps": 2, "objective": [tiny_run.CE, loss, term]})
    run, metrics = trained(recipe, here / "runs")
    assert run.config.stages[1].needs_teacher
    steps = [line for line in metrics if line.get("stage") == "distill" and "loss/half" in line]
    assert len(steps) == 2
    for line in steps:
        assert line["loss/half"] > 0
        terms = line["loss/ce"] + line["loss/half"] + line["loss/align"]
        assert line["loss"] == pytest.approx(terms, rel=1e-5)


SCORE = '''
def surprise(teacher_logits, student_logits, targets, *, power: float = 1.0):
    """How much less likely the next token is to the student than to the teacher."""
    of_teacher, of_student = (z.log_softmax(-1).gather(1, targets[:, None])[:, 0] for z in (teacher_logits, student_logits))
    return (of_teacher - of_student).clamp(min=0) ** power
'''


def test_a_score_of_positions(here, monkeypatch):
    (here / "added_score.py").write_text(SCORE)
    monkeypatch.setitem(registry.REGISTRIES["focus"], "surprise", "added_score:surprise")
    focus = {"by": "surprise", "share": 0.3, "parameters": {"power": 2.0}}
    term = {"name": "vsd", "loss": "forward_kl", "of": "switch", "to": "teacher", "focus": focus}
    run, metrics = trained(tiny_run.write(here, distill={"steps": 2, "objective": [tiny_run.CE, term]}), here / "runs")
    assert run.config.stages[1].paths == {"student", "teacher", "switch"}
    steps = [line for line in metrics if "loss/vsd" in line]
    assert len(steps) == 2
    assert all(line["focus/vsd/even"] != line["loss/vsd"] > 0 for line in steps)


def test_a_loss_is_planned(here, loss):
    run = load(tiny_run.write(here, distill={"objective": [tiny_run.CE, loss]}))
    plan = estimate_run(run, planned_machine(None, "fp32"), here / "runs", {})
    assert plan.stages[1].flops > plan.stages[0].flops > 0


def test_a_loss_has_its_parameters_checked(here, loss):
    wrong = {**loss, "to": "labels", "parameters": {"factr": 0.25}}
    with pytest.raises(UserError) as caught:
        load(tiny_run.write(here, distill={"objective": [tiny_run.CE, wrong]}))
    problems = "\n".join(caught.value.problems)
    assert "half_squares takes no such parameter, got 'factr' (did you mean 'factor'?)" in problems
    assert "half_squares compares two models' logits, got 'labels'" in problems


MIXER = '''
def doubt(student_logits, targets):
    """How likely another token than the target is to a path."""
    return 1 - student_logits.softmax(-1).gather(1, targets[:, None])[:, 0]


def by_loss(student_loss, student_doubt, *, sign: float = 1.0):
    """Rows that the student finds hardest come first."""
    assert (0 < student_doubt).all() and (student_doubt < 1).all()
    return sign * student_loss
'''


def test_a_mixer_and_a_figure_that_it_reads(here, monkeypatch):
    (here / "added_mixer.py").write_text(MIXER)
    monkeypatch.setitem(registry.REGISTRIES["mixer"], "by_loss", "added_mixer:by_loss")
    monkeypatch.setitem(registry.REGISTRIES["figure"], "doubt", "added_mixer:doubt")
    mixer = {"by": "by_loss", "rounds": 2, "candidates": 2, "parameters": {"sign": -1.0}}
    rows = tiny.rows(here) + [tiny.row(f"t{i}", None, ("Say hi.", "hi" + " a dog" * i)) for i in range(4)]
    run, metrics = trained(tiny_run.write(here, rows=rows, distill={"steps": 2, "mixer": mixer}), here / "runs")
    rounds = [line for line in metrics if line.get("event") == "round"]
    assert [line["scored"] for line in rounds] == [8, 8]
    assert all(line["score"] > line["score/all"] for line in rounds)  # of the negative losses, the highest
    plans = [estimate_run(each, planned_machine(None, "fp32"), here / "elsewhere", {}) for each in (run, plain(run))]
    with_mixer, without = (plan.stages[1].flops for plan in plans)
    assert with_mixer > 1.3 * without and any(
        "its mixer reads up to 8 rows a step" in note for note in plans[0].stages[1].notes
    )


def plain(run):
    stages = [stage.model_copy(update={"mixer": None}) for stage in run.config.stages]
    return replace(run, config=run.config.model_copy(update={"stages": tuple(stages)}))


SOURCE = '''
from switchkd_cli.engine.data.turns import llava_row
from switchkd_cli.engine.data.rows import Rows


def sums(cache, *, most: int):
    """All sums of two numbers up to `most`, as text."""
    numbers = range(1, most + 1)
    return Rows([conversation(a, b) for a in numbers for b in numbers], llava_row)


def conversation(a, b):
    turns = [{"from": "human", "value": f"{a} + {b}?"}, {"from": "gpt", "value": str(a + b)}]
    return {"id": f"{a}+{b}", "conversations": turns}
'''


def test_a_data_source(here, monkeypatch):
    (here / "added_source.py").write_text(SOURCE)
    monkeypatch.setitem(registry.REGISTRIES["source"], "sums", "added_source:sums")
    stage = {"train": ["language"], "steps": 2}
    data = {"rows": {"source": "sums", "parameters": {"most": 3}}}
    recipe = tiny_run.write(here, teacher=False, data=data, distill=stage)
    run, metrics = trained(recipe, here / "runs", "stages.pretrain.train=[language]")  # there are no images
    assert run.inputs["data.rows.images"] is None
    assert [line["stage"] for line in metrics if "loss/ce" in line] == ["pretrain"] * 3 + ["distill"] * 2
    with pytest.raises(UserError, match="data.rows.parameters.most: missing: sums needs it"):
        load(tiny_run.write(here, teacher=False, data={"rows": {"source": "sums"}}))


def test_a_model_family(here, monkeypatch):
    """A family whose images take different numbers of tokens is trained, saved, and read again."""
    shutil.copy(toy_family.__file__, here / "added_family.py")
    monkeypatch.setitem(registry.FAMILIES, "toy", "added_family:TOY")
    added = importlib.import_module("added_family")
    for name, seed in (("student", 1), ("teacher", 2)):
        added.model(16 if name == "student" else 24, seed).save(here / name)
    student = {"family": "toy", "checkpoint": str(here / "student")}
    stage = {"steps": 2, "objective": tiny_run.DISTILL}
    recipe = tiny_run.write(here, teacher=False, student=student, distill=stage)
    recipe.write_text(recipe.read_text() + f"teacher: {{family: toy, checkpoint: {here / 'teacher'}}}\n")
    run, metrics = trained(recipe, here / "runs")
    assert [line["stage"] for line in metrics if "loss/ce" in line] == ["pretrain"] * 3 + ["distill"] * 2
    card = (here / "runs" / "tiny" / "switch-kd" / "seed0" / "model" / "README.md").read_text()
    assert "of the `toy` family" in card
    plan = estimate_run(run, planned_machine(None, "fp32"), here / "elsewhere", {})
    assert plan.stages[1].flops > plan.stages[0].flops > 0
    with pytest.raises(UserError, match="is no toy"):
        tiny.model().save(here / "llava")
        check_model(Checkpoint(family="toy", checkpoint=str(here / "llava")), "student")


TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- for part in message.content if part.type == 'image' -%}<image>{%- endfor -%}"
    "{{- '<|' + message.role + '|>' -}}"
    "{%- for part in message.content if part.type == 'text' -%}{{- part.text|upper -}}{%- endfor -%}"
    "{%- if message.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


RUNTIME = """
from switchkd_cli.engine.export.runtimes import Runtime

def write(model, folder, bits):
    (folder / "weights.bin").write_bytes(bytes([bits or 0]))

ADDED = Runtime(lambda model: (), write, "run .", low={2: "two"})
"""


def test_a_runtime(here, monkeypatch):
    (here / "added_runtime.py").write_text(RUNTIME)
    monkeypatch.setitem(registry.RUNTIMES, "added", "added_runtime:ADDED")
    assert (
        launch.engine("export.runtimes").export(
            "playground:teacher-small", "added", here / "out", 2, square_images=False
        )
        == []
    )
    assert (here / "out" / "weights.bin").read_bytes() == b"\2"
    assert "run ." in (here / "out" / "README.md").read_text()


def test_a_conversation_template(here, monkeypatch):
    (here / "shouted.jinja").write_text(TEMPLATE)
    monkeypatch.setitem(registry.TEMPLATES, "shouted", {"file": str(here / "shouted"), "end": "<|end|>"})
    rows = [tiny.row("a", tiny.picture(here, "a.png", 1), ("What is it?", "a dog"))] * 4
    recipe = tiny_run.write(here, teacher=False, rows=rows, distill={"steps": 2})
    recipe.write_text(recipe.read_text().replace("source: llava_json", "source: llava_json\n    template: shouted"))
    trained(recipe, here / "runs")
    model = here / "runs/tiny/switch-kd/seed0/model"
    assert "part.text|upper" in (model / "chat_template.jinja").read_text()  # the model carries what it was taught with


def test_a_paper_s_table_with_its_rows_and_printed_numbers(here):
    (here / "recipes/printed").mkdir(parents=True)
    (here / "recipes/printed/other_paper.yaml").write_text("theirs-7b: {gqa: 63.0, average: 63.0}\n")
    text = small_recipe.write(here).read_text()
    (here / "recipes/other_table.yaml").write_text(text.replace("{gqa: 61.6, average: 60.1}", "theirs-7b"))
    assert "other-table" in named_files.recipes()
    rows = load_rows(named_files.find("other-table"))
    assert [run.row for run in rows] == ["switch-kd", "sft", "long"]
    assert rows[0].paper == {"gqa": 63.0, "average": 63.0}


def test_a_training_scheme_is_a_row(here):
    """A row may rewrite stages and objectives: another order of training is no code."""
    scheme = (
        "  one-stage:\n    set:\n      stages:\n"
        "        - {name: all, data: questions, train: [projector, language], lr: 1e-4, batch: 2, steps: 6,\n"
        "           objective: [{loss: cross_entropy}, {loss: forward_kl, to: teacher, weight: 0.5}]}\n"
    )
    recipe = small_recipe.write(here)
    recipe.write_text(recipe.read_text() + scheme)
    (stage,) = load(recipe, "one-stage").config.stages
    assert (stage.name, stage.paths) == ("all", {"student", "teacher"})


def test_a_stand_in(here):
    (here / "recipes/worlds").mkdir(parents=True)
    world = here / "recipes/worlds/playground.yaml"
    shutil.copy(ROOT / "recipes/worlds/playground.yaml", world)
    recipe = here / "recipes/mine.yaml"
    text = (ROOT / "recipes/table1_0.5b.yaml").read_text()
    recipe.write_text(text.replace("language: Qwen/Qwen2.5-0.5B ", "language: org/new-reader "))
    with pytest.raises(UserError, match="nothing stands in for it"):
        load(recipe, world="playground")
    world.write_text(world.read_text().replace("models:\n", "models:\n  org/new-reader: playground:language\n", 1))
    run = load(recipe, world="playground")
    assert run.config.student.language == "playground:language"
    assert run.config.stand_ins["org/new-reader"] == "playground:language"
