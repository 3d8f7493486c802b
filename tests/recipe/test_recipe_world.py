"""A recipe in another world: what is replaced, what stays in proportion, and what it is called."""

import pytest

from switchkd_cli.errors import UserError
from switchkd_cli.recipe import named_files
from switchkd_cli.recipe.load import load, load_rows
from switchkd_cli.runs.run_folder import folder
from tests.support.small_recipe import write

WORLD = """\
models: {org/tower: toy:tower, org/reader: toy:reader, org/large: toy:reader, org/teacher: toy:teacher}
data:
  captions: {source: llava_json, parameters: {file: toy.json, limit: 3}, pace: {lr: 2.0, batch: 0.5, epoch: 5}}
  questions: {source: llava_json, parameters: {file: toys.json}, pace: {lr: 0.1, batch: 0.01, epoch: 40}}
fields:
  parts: {feature_layer: -1, tokenizer: toy:words}
  stage: {micro_batch: null, epochs: null}
  evaluation: {items: 2, batch: 3}
  recipe: {precision: fp32}
"""
REAL = [
    ("title: small", "title: small\nprecision: bf16"),
    ("vision: MODEL, language: MODEL", "vision: org/tower, language: org/reader"),
    ("checkpoint: MODEL", "checkpoint: org/teacher"),
    ("steps: 10", "epochs: 1.0\n    micro_batch: 2"),
    ("{stages.distill.steps: 20", "{student.language: org/large, stages.distill.epochs: 2.5"),
]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe of models that are not here, beside a world that has stand-ins for them."""
    (tmp_path / "worlds").mkdir()
    (tmp_path / "worlds" / "toy.yaml").write_text(WORLD)
    monkeypatch.setattr(named_files, "FOLDERS", (tmp_path,))
    text_of = [(old.replace("MODEL", str(tmp_path / "model")), new) for old, new in REAL]
    return write(tmp_path, *text_of)


def problems(file, world="toy"):
    with pytest.raises(UserError) as caught:
        load(file, world=world)
    return list(caught.value.problems)


def test_models_data_and_evaluation_are_replaced(recipe):
    config = load(recipe, world="toy").config
    assert (config.student.vision, config.student.language) == ("toy:tower", "toy:reader")
    assert (config.student.feature_layer, config.student.tokenizer) == (-1, "toy:words")
    assert (config.teacher.checkpoint, config.teacher.family) == ("toy:teacher", "llava")
    assert config.data["captions"].parameters == {"file": "toy.json", "limit": 3}
    assert config.data["questions"].parameters == {"file": "toys.json"}
    assert (config.evaluation.items, config.evaluation.batch) == (2, 3)
    assert config.evaluation.benchmarks == ("mme", "pope")
    assert config.precision == "fp32"


def test_rates_batches_and_epochs_keep_the_row_s_proportions(recipe):
    runs = {run.row: run.config.stages for run in load_rows(recipe, world="toy")}
    pretrain, distill = runs["switch-kd"]
    assert (pretrain.lr, pretrain.batch, pretrain.steps) == (2e-3, 4, 4)  # its own steps are not epochs
    assert (distill.lr, distill.batch, distill.steps, distill.micro_batch) == (1e-4, 1, 40, None)
    assert distill.lr_scale == {"vision": 0.3}  # as the recipe has it
    assert runs["long"][1].steps == 100  # 2.5 epochs


def test_the_objective_is_the_row_s_own(recipe):
    for ours, theirs in zip(load_rows(recipe), load_rows(recipe, world="toy"), strict=True):
        for before, after in zip(ours.config.stages, theirs.config.stages, strict=True):
            assert (before.objective, before.train, before.name) == (after.objective, after.train, after.name)


def test_overrides_come_after_the_world(recipe):
    changed = load(recipe, overrides=["stages.distill.steps=7", "student.vision=org/own"], world="toy").config
    assert (changed.stages[1].steps, changed.student.vision) == (7, "org/own")


def test_the_world_is_in_the_run_s_name_and_in_its_resolved_text(recipe, tmp_path):
    run, plain = load(recipe, world="toy"), load(recipe)
    assert (plain.recipe, run.recipe) == ("small", "small@toy")
    assert folder(tmp_path, run).path.parts[-3:] == ("small@toy", "switch-kd", "seed0")
    assert plain.config.world is None
    resolved = tmp_path / "small.yaml"
    resolved.write_text(run.text)
    again = load(resolved)
    assert (again.config.world, again.recipe, again.key) == ("toy", "small@toy", run.key)
    assert again.config.stand_ins == {
        "org/tower": "toy:tower",
        "org/reader": "toy:reader",
        "org/teacher": "toy:teacher",
        "captions": "llava_json: file toy.json, limit 3",
        "questions": "llava_json: file toys.json",
    }


def test_each_row_says_what_stood_in_for_its_own_models(recipe):
    long = load(recipe, "long", world="toy").config
    assert long.student.language == "toy:reader"
    assert "org/large" in long.stand_ins and "org/reader" not in long.stand_ins


def test_a_recipe_of_the_world_s_own_models_and_data_is_left_as_it_is(tmp_path):
    file = "recipes/quickstart.yaml"
    assert load(file, world="playground") == load(file)


def test_what_has_no_stand_in_is_reported_where_it_is_named(recipe, tmp_path):
    world = tmp_path / "worlds" / "toy.yaml"
    file = recipe
    text = file.read_text()
    file.write_text(text.replace("org/tower", "org/towr").replace("captions", "captoins"))
    assert problems(file) == [
        f"{file}:3: student.vision: nothing stands in for it in {world}, got 'org/towr' (did you mean 'org/tower'?)",
        f"{file}:6: data.captoins: nothing stands in for it in {world}, got 'captoins' (did you mean 'captions'?)",
    ]


def test_a_broken_recipe_is_reported_the_same_in_any_world(recipe):
    text = recipe.read_text()
    recipe.write_text(text.replace("lr_scale: {vision: 0.3}", "lr_scale: 3").replace("family: llava", "family: lava"))
    assert problems(recipe) == problems(recipe, world=None)


def test_an_unknown_world_is_an_error_that_names_the_known_ones(recipe):
    assert problems(recipe, world="toi") == ["--world: unknown world, got 'toi' (did you mean 'toy'?)"]


def test_a_faulty_world_is_reported_by_line(recipe, tmp_path):
    file = tmp_path / "worlds" / "toy.yaml"
    file.write_text(WORLD.replace("batch: 0.5", "bacth: 0.5").replace("parts:", "prats:"))
    assert problems(recipe) == [
        f"{file}:3: data.captions.pace.batch: missing",
        f"{file}:3: data.captions.pace.bacth: unknown key, got 'bacth' (did you mean 'batch'?)",
        f"{file}:6: fields.parts: missing",
        f"{file}:6: fields.prats: unknown key, got 'prats' (did you mean 'parts'?)",
    ]


def test_a_row_may_take_other_values_in_a_world(recipe):
    """As many epochs are equal operations for other models: only there, and in its epochs."""
    at_its_own_size = load(recipe, "long").config.stages[1].epochs
    text = recipe.read_text().replace("  long: {", "  long: {worlds: {toy: {stages.distill.epochs: 1.5}}, ")
    recipe.write_text(text)
    assert load(recipe, "long").config.stages[1].epochs == at_its_own_size == 2.5
    assert load(recipe, "long", world="toy").config.stages[1].steps == 60


@pytest.mark.parametrize("world", [None, "toy"])
def test_what_a_row_sets_in_a_world_is_checked_in_every_world(recipe, world):
    text = recipe.read_text().replace(
        "  long: {", "  long: {worlds: {toy: {stages.distil.epochs: 1.5}, tow: {stages.distill.epochs: 1.5}}, "
    )
    recipe.write_text(text)
    found = "\n".join(problems(recipe, world))
    assert (
        "rows.long.worlds.toy.stages.distil.epochs: no such field in stages, got 'distil' (did you mean 'distill'?)"
        in found
    )
    assert "rows.long.worlds.tow: unknown world, got 'tow' (did you mean 'toy'?)" in found


def test_steps_that_a_row_sets_in_a_world_win_over_the_epochs_it_inherits(recipe):
    text = recipe.read_text().replace("sft: {", "sft: {worlds: {toy: {stages.distill.steps: 7}}, ")
    recipe.write_text(text)
    stage = load(recipe, "sft", world="toy").config.stages[-1]
    assert (stage.steps, stage.epochs) == (7, None)


def test_examples_are_ranked_among_as_many_in_every_world(recipe):
    ranked = "{stages.distill.objective.align.focus: {by: teacher_entropy, of: examples}}"
    recipe.write_text(recipe.read_text().replace("sft: {title: SFT, drop: [align, vsd]}", f"ranked: {{set: {ranked}}}"))
    recipe.write_text(recipe.read_text().replace("controls: [sft]", "controls: []").replace("batch: 8", "batch: 200"))
    assert load(recipe, "ranked", world="toy").config.stages[-1].micro_batch == 2
    assert load(recipe, world="toy").config.stages[-1].micro_batch is None


def test_a_world_that_is_no_text_is_a_user_s_error(recipe, tmp_path):
    (tmp_path / "worlds" / "toy.yaml").write_bytes(b"# caf\xe9\n")
    (problem,) = problems(recipe)
    assert "toy.yaml: not readable: 'utf-8' codec" in problem
