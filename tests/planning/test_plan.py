"""The plan: figures of the paper's recipes without their models or data, and of models and data on this machine."""

import json
import re

import pytest

from switchkd_cli import registry
from switchkd_cli.commands.dry_run import WORDS, show_pair, show_plans
from switchkd_cli.engine.cost.data_sample import sample_data
from switchkd_cli.engine.cost.model_facts import HERE, PUBLISHED, KnownModel, describe_model
from switchkd_cli.engine.cost.run_estimate import estimate_run
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.errors import UserError
from switchkd_cli.planning.estimate import GIB, Machine, planned_machine
from switchkd_cli.recipe.load import load, load_rows
from switchkd_cli.recipe.schema import Checkpoint, DataSet, Parts
from switchkd_cli.runs import run_folder
from switchkd_cli.scheduler.run_options import RunOptions
from tests.support import tiny
from tests.support.shipped_recipes import FILES, PACKAGED, RECIPES, made_by_others, write_few_rows
from tests.support.tiny_llava import save_tiny_llava

LANGUAGE = {"0.5B": 494_032_768, "1.5B": 1_543_714_304, "3B": 3_085_938_688, "7B": 7_615_616_512}
"""Parameters of Qwen2.5 as their model cards count them, a tied head once."""


@pytest.fixture
def away(tmp_path, monkeypatch):
    """A folder without data, and a hub cache without models."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def estimate(recipe, root, *overrides, row=None, on=None):
    run = load(RECIPES / recipe, row, overrides)
    return estimate_run(run, on or planned_machine(None, run.config.precision), root, {})


def test_the_paper_s_run_is_planned_without_its_models(away):
    plan = estimate("table1_0.5b.yaml", away)
    student, teacher = plan.models
    assert student.parameters["language"] == LANGUAGE["0.5B"] and teacher.parameters["language"] == LANGUAGE["3B"]
    assert student.parameters["projector"] == 1152 * 896 + 896 + 896 * 896 + 896
    assert (student.source, teacher.source) == (PUBLISHED, PUBLISHED)
    assert student.image_tokens == teacher.image_tokens == 728
    assert "first 151,666 of the student's 151,936 and the teacher's 151,936" in plan.vocabulary
    pretrain, distill = plan.stages
    assert (pretrain.steps, distill.steps) == (2181, 5198)
    assert (pretrain.trained, pretrain.batch, distill.batch) == (student.parameters["projector"], 256, 128)
    assert not away.exists()


@pytest.mark.parametrize("size", LANGUAGE)
def test_published_shapes_have_the_published_parameters(size):
    parts = Parts(family="llava", vision="google/siglip-so400m-patch14-384", language=f"Qwen/Qwen2.5-{size}")
    model = describe_model(parts, "student", {})

    assert model.shape.total["language"] == LANGUAGE[size]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(RECIPES)))
def test_every_row_of_every_recipe_has_a_complete_plan(file, away):
    made_here = any((RECIPES / "playground" / f"{name}.yaml").exists() for name in made_by_others(file))
    rows = load_rows(file, world="playground" if made_here or file in PACKAGED else None)
    write_few_rows(file)
    planned, sampled = {run_folder.folder(away, run).model: run for run in rows}, {}
    for run in rows:
        machine = planned_machine(None, run.config.precision)
        plan = estimate_run(run, machine, away, planned, look=run is rows[0], sampled=sampled)
        assert all(model.parameters for model in plan.models)
        for stage in plan.stages:
            assert stage.steps and stage.hours and sum(stage.memory.values())
            assert stage.batch == stage.micro_batch * stage.accumulation * stage.gpus


def test_the_largest_micro_batch_is_the_last_that_fits(away):
    usual = estimate("table1_0.5b.yaml", away, "stages.distill.micro_batch=null").stages[1]
    assert usual.micro_batch == usual.largest_micro_batch
    assert sum(usual.memory.values()) <= 0.9 * 80 * GIB
    twice = estimate("table1_0.5b.yaml", away, f"stages.distill.micro_batch={2 * usual.largest_micro_batch}")
    assert sum(twice.stages[1].memory.values()) > 0.9 * 80 * GIB
    assert any("does not fit" in note for note in twice.notes)
    tight = estimate("table1_0.5b.yaml", away, on=Machine(memory=8.0))
    assert tight.stages[1].largest_micro_batch is None and any("not even one row" in note for note in tight.notes)


def test_hours_follow_from_operations_and_machine(away):
    stage = estimate("table1_0.5b.yaml", away, on=Machine(gpus=8, tflops=1000.0, utilisation=0.5)).stages[1]
    assert stage.time["operations"].adds == pytest.approx(stage.steps * stage.flops / (8 * 1000e12 * 0.5) / 3600)
    assert stage.hours == pytest.approx(sum(term.adds for term in stage.time.values()))


def test_the_table_has_every_term_of_the_time_and_which_one_bounds(away, capsys):
    run = load(RECIPES / "table1_0.5b.yaml")
    options = RunOptions(out=away, machine="gpus=512,price=2.5,decode_images_per_s=100")
    show_plans([run], [RECIPES / "table1_0.5b.yaml"], options)
    out = capsys.readouterr().out
    lines = {line.strip()[:24].split("  ")[0]: line for line in out.splitlines()}
    for term in ("operations", "communication", "images", "checkpoints", "failures"):
        assert re.search(r"\d (s|min|h)", lines[term]), term
    assert lines["bound by"].split()[-2:] == ["images", "operations"]
    assert re.search(r"scores   [\d.]+ h of one process, while the others wait", out)
    assert re.search(r"cost     \$[\d,.]+ for both on all GPUs, idle ones too, at \$2.5 an hour", out)


def test_on_one_gpu_nothing_is_sent_and_terms_that_are_0_are_left_out(away, capsys):
    run = load(RECIPES / "quickstart.yaml")
    show_plans([run], [RECIPES / "quickstart.yaml"], RunOptions(out=away))
    out = capsys.readouterr().out
    assert "operations" in out
    assert not [word for word in ("communication", "failures", "checkpoints  ", "sent by one GPU") if word in out]


def test_scoring_takes_the_questions_of_all_benchmarks(away):
    run = load(RECIPES / "table1_0.5b.yaml")
    once = (2374 + 2 * 4329 + 214354 + 12578 + 2017 + 900 + 5000 + 4319 + 9000) / 100 / 3600
    scoring = estimate("table1_0.5b.yaml", away, on=Machine(answers_per_s=100.0)).scoring
    assert scoring == pytest.approx({run.key: once, run.teacher_key: 2 * once})  # the teacher's without images, too
    unknown = estimate("table1_0.5b.yaml", away, "evaluation.benchmarks=[mme, docvqa_val]").scoring
    assert set(unknown.values()) == {None}
    assert estimate("table1_0.5b.yaml", away, "evaluation=null").scoring == {}


def test_a_batch_that_no_number_of_gpus_divides_takes_fewer(away):
    planned = estimate("table1_0.5b.yaml", away, "stages.distill.batch=12", on=Machine(gpus=8))
    assert planned.stages[1].gpus == 6
    (note,) = (note for note in planned.notes if "idle" in note)
    assert "distill: 2 of 8 GPUs idle: 6 share a batch of 12 evenly; stages.distill.batch=16 uses all" in note


def test_gpus_that_a_batch_leaves_idle_are_counted(away):
    run = load(RECIPES / "table1_0.5b.yaml")
    assert run.config.deepspeed.zero == 2
    plan = estimate_run(run, planned_machine("gpus=512", "bf16", zero=2), away, {})
    (note,) = (note for note in plan.notes if "distill: " in note and "idle" in note)
    assert "384 of 512 GPUs idle: 128 share a batch of 128 evenly, a row each, so no accumulation uses more" in note
    assert "stages.distill.batch=512 uses all (and is another training), or plan with gpus=128" in note
    used = estimate("table1_0.5b.yaml", away, "stages.distill.batch=512", on=Machine(gpus=512))
    assert used.stages[1].gpus == 512
    for plan in (used, estimate("table1_0.5b.yaml", away, on=Machine(gpus=128))):
        assert not [note for note in plan.notes if "distill: " in note and "idle" in note]


def test_failures_that_are_likely_are_noted_with_the_best_interval(away):
    plan = estimate("table1_0.5b.yaml", away, on=Machine(gpus=64, mtbf_hours=20.0))
    (note,) = (note for note in plan.notes if "a failure every" in note)
    state = 12 * plan.stages[1].trained / 2e9  # seconds at 16 Gbit/s
    minutes = ((2 * state * 20 * 3600 / 64) ** 0.5 - state) / 60
    assert f"distill: a failure every {20 / 64:.2g} hours; checkpoints.every_minutes={minutes:.2g} loses least" in note
    assert not [note for note in estimate("table1_0.5b.yaml", away).notes if "a failure every" in note]


def test_what_is_missing_is_listed_with_the_place_where_it_goes(away):
    fetched = {d.name: d for d in estimate("table1_0.5b.yaml", away).downloads}
    assert fetched["Zhang199/TinyLLaVA-Qwen2.5-3B-SigLIP"].size == pytest.approx(7.0e9, rel=0.02)
    assert fetched["blip_laion_cc_sbu_558k.json"].where.startswith("data/LLaVA-Pretrain/")
    assert not [d for d in estimate("quickstart.yaml", away).downloads]


def test_a_model_that_nobody_knows_is_a_line_and_not_a_failure(away):
    plan = estimate("table1_0.5b.yaml", away, "student.language=someone/else")
    student, teacher = plan.models
    assert student.source == "unknown, download it first" and not student.parameters
    assert teacher.parameters and "unknown" in plan.vocabulary
    assert all(stage.hours is None and stage.micro_batch is None for stage in plan.stages)


def test_data_that_nobody_knows_leaves_its_stage_open(away):
    plan = estimate("table1_0.5b.yaml", away, "data.llava_665k.parameters.file=mine.json")
    assert plan.stages[0].hours and plan.stages[1].steps is None and plan.stages[1].hours is None


def test_a_loss_that_can_t_be_measured_is_a_note_and_not_a_failure(away, tmp_path, monkeypatch):
    (tmp_path / "broken_loss.py").write_text(
        "def broken(teacher_logits, student_logits):\n    raise KeyError('of a batch as no small example is')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.LOSSES, "broken", "broken_loss:broken")
    plan = estimate("table1_0.5b.yaml", away, "stages.distill.objective=[{loss: broken, to: teacher}]")
    assert plan.stages[1].memory["logits"] > 0 and plan.stages[1].hours
    (note,) = [note for note in plan.notes if "losses" in note]
    assert note.startswith("switch-kd: distill: losses: not counted in memory")


def test_a_teacher_that_another_row_makes_is_planned_for(away):
    rows = {run.row: run for run in load_rows(RECIPES / "align_kd.yaml")}
    planned = {run_folder.folder(away, run).model: run for run in rows.values()}
    plan = estimate_run(rows["switch-kd"], Machine(), away, planned)
    assert plan.models[1].parameters["language"] == LANGUAGE["3B"]
    assert plan.models[1].source == "not there yet: row teacher of this recipe makes it"
    assert not any(d.name.startswith("runs/") for d in plan.downloads)


def test_models_that_are_here_are_read_without_their_weights(tmp_path):
    folder = save_tiny_llava(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    model = describe_model(Checkpoint(family="llava", checkpoint=str(folder)), "teacher", {})
    assert isinstance(model, KnownModel) and model.source == HERE


def test_a_pair_that_does_not_fit_ends_the_plan(away, tmp_path):
    other = save_tiny_llava(tmp_path / "other")
    with pytest.raises(UserError, match="teacher: vision width is 48"):
        estimate("quickstart.yaml", away, f"teacher.checkpoint={other}")


def test_a_pair_that_fits_is_a_compact_table(away, capsys):
    pair = estimate("quickstart.yaml", away).pair
    assert {fact.verdict for fact in pair} == {"yes"}
    values = {fact.name: (fact.student, fact.teacher) for fact in pair}
    assert values["patch grid"] == ("6 x 6", "6 x 6") and values["image token count"] == ("36", "36")
    assert {"vision width", "image mean, std", "image preparation", "vocabulary", "chat template"} <= set(values)
    show_pair(pair)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 2 * len(pair) and max(map(len, lines)) <= 80
    assert not any(line.startswith(tuple(WORDS["needs"])) for line in lines)


@pytest.mark.parametrize("missing", [False, True], ids=["pictures", "no pictures"])
def test_rows_are_counted_as_training_reads_them(missing, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(tiny.rows(pictures)))
    teacher = describe_model(Checkpoint(family="llava", checkpoint="playground:teacher"), "teacher", {})
    spec = DataSet(source="llava_json", parameters={"file": str(file), "images": str(pictures)})
    if missing:
        spec = DataSet(source="llava_json", parameters={"file": str(file), "images": str(tmp_path / "none")})
    sample = sample_data(spec, teacher, tmp_path / "runs", tmp_path)
    rows = tiny.Rows(tiny.rows(pictures), tiny.llava_row, images=pictures)
    read = Conversations(rows, teacher.blueprint.inputs)
    assert sorted(row.length for row in sample.lengths) == sorted(len(read[i].input_ids) for i in range(4))
    supervised = [int((read[i].labels != -100).sum()) for i in range(4)]
    assert sorted(row.answer for row in sample.lengths) == sorted(supervised)
    assert sorted(row.image for row in sample.lengths) == [0, 36, 36, 36]


def test_disk_is_what_a_saved_student_takes(away, tmp_path):
    folder = save_tiny_llava(tmp_path / "model")
    file = tmp_path / "tiny.yaml"
    text = (RECIPES / "quickstart.yaml").read_text()
    file.write_text(text)
    student = f"student={{family: llava, checkpoint: {folder}}}"
    run = load(file, "sft", [student, "teacher=null"])
    plan = estimate_run(run, planned_machine(None, "fp32"), away, {})
    saved = (folder / "model.safetensors").stat().st_size
    assert plan.stages[-1].saved_bytes == pytest.approx(saved, rel=0.05)


def test_cached_states_of_the_teacher_are_noted_with_their_size_on_disk(away):
    assert not [note for note in estimate("table1_0.5b.yaml", away).notes if "teacher's hidden states" in note]
    plan = estimate("table1_0.5b.yaml", away, "stages.distill.teacher_states=cached")
    (note,) = [note for note in plan.notes if "teacher's hidden states" in note]
    rows, answers = plan.stages[1].steps * plan.stages[1].batch, plan.stages[1].lengths["answer"]
    rows = min(rows, plan.stages[1].rows)
    gigabytes = rows * answers * 2048 * 2 / 1e9
    assert f"writes up to {gigabytes:,.2g} GB of the teacher's hidden states of {rows:,} rows to states/" in note


def test_a_machine_is_read_from_words():
    assert planned_machine("gpus=4, memory=40", "bf16") == Machine(gpus=4, memory=40.0)
    assert planned_machine(None, "fp32").gpus == 1
    with pytest.raises(UserError) as caught:
        planned_machine("gpu=4,memory=lots,zero=4,utilisation=0", "bf16")
    assert caught.value.problems == (
        "--machine: memory: must be a number, got 'lots'",
        "--machine: zero: must be less than or equal to 3, got '4'",
        "--machine: utilisation: must be greater than 0, got '0'",
        "--machine: gpu: unknown key, got 'gpu' (did you mean 'gpus'?)",
    )
    with pytest.raises(UserError, match=r"offload: a recipe sets it \(deepspeed.offload\)"):
        planned_machine("offload=optimizer", "bf16")
