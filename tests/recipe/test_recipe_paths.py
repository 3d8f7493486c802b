"""Named paths in a recipe: what is refused, what a path trains, and what keys and plans see of it."""

from types import SimpleNamespace

import pytest

from switchkd_cli.engine.build import Pair
from switchkd_cli.engine.compatibility import Vocabulary, check_paths
from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.workload import Computation, MicroBatch, Models
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.errors import UserError
from switchkd_cli.planning.preflight import check_batches
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.schema import BUILT_IN, PathSpec
from tests.recipe.test_recipe_problems import problems
from tests.support import tiny, tiny_run
from tests.support.small_recipe import write
from tests.training.test_training import stage

VSD = "{name: vsd, loss: dbild, of: switch, to: teacher, weight: 0.5}"
BEFORE = "data:\n  captions"


def recipe(folder, paths="", term="{name: vsd, loss: dbild, to: teacher}", *more):
    added = f"paths: {{{paths}}}\n" if paths else ""
    return write(folder, (BEFORE, f"{added}{BEFORE}"), (VSD, term), *more)


@pytest.mark.parametrize(
    ("paths", "term", "expected"),
    [
        ("", "of: swich, to: teacher", "vsd.of: unknown path, got 'swich' (did you mean 'switch'?)"),
        ("", "to: teachers", "vsd.to: unknown path, got 'teachers' (did you mean 'teacher'?)"),
        ("", "of: blind, to: teacher", "vsd.of: the blind is frozen, so this term trains nothing, got 'blind'"),
        ("mine: {model: studnt}", "to: mine", "paths.mine.model: unknown model, got 'studnt' (did you mean 'student'?)"),
        ("mine: {models: student}", "to: mine", "paths.mine.models: unknown key, got 'models'"),
        ("blind: {model: student}", "to: blind", "paths.blind: paths need different names, got 'blind' twice"),
        ("all: {mean: [teacher, al]}", "to: all", "paths.all.mean.1: unknown path through models, got 'al'"),
        ("all: {mean: [all]}", "to: all", "paths.all.mean.0: unknown path through models, got 'all'"),
        ("all: {mean: [teacher]}", "of: all, to: teacher", "vsd.of: the all is frozen, so this term trains nothing"),
        ("same: {model: student}", "to: same", "vsd.to: a term compares two different things, got 'same' twice"),
        ("both: {mean: [teacher], model: before}", "to: both", "paths.both: is either the mean of paths or goes through"),
        ("told: {model: teacher, prompt: 'Say {answer}'}", "to: told, on: text", "vsd.on: paths with other prompts"),
        ("us: {model: student, prompt: 'So {question}'}, them: {model: teacher, prompt: 'So {question}'}",
         "of: us, to: them, on: text, focus: {by: teacher_entropy}", "vsd.on: paths with other prompts"),
        ("both: {mean: [teacher, blind], by: loss}", "to: both, on: image", "vsd.on: both weighs paths by their loss"),
        ("asked: {prompt: 'Hm, {qestion}'}", "to: asked", "asked.prompt: unknown placeholder, got 'qestion' (did you"),
        ("all: {mean: [teacher], head: teacher}", "to: all", "paths.all: is either the mean of paths or goes through"),
        ("mine: {model: teacher, by: loss}", "to: mine", "paths.mine: `by` is for a mean of paths, `temperature` for"),
        ("all: {mean: [teacher], temperature: 2.0}", "to: all", "paths.all: `by` is for a mean of paths"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_path_is_said(tmp_path, paths, term, expected):
    found = problems(recipe(tmp_path, paths, f"{{name: vsd, loss: dbild, {term}}}"))
    assert any(expected in problem for problem in found), found


def test_mixed_images_have_no_labels_and_means_no_features(tmp_path):
    paths = "mixed: {model: student, images: mixed}, both: {mean: [teacher, blind]}"
    found = problems(recipe(tmp_path, paths, "{name: vsd, loss: cross_entropy, of: mixed}"))
    assert any("vsd.of: mixed images have no right answers" in problem for problem in found)
    found = problems(recipe(tmp_path, paths, "{name: vsd, loss: feature_mse, to: both}"))
    assert any("vsd.to: a mean of paths has logits alone, feature_mse reads features" in problem for problem in found)


def test_a_part_that_no_path_of_the_stage_trains_is_named(tmp_path):
    paths, term = "modular: {model: teacher, projector: student}", "{name: vsd, loss: dbild, of: modular, to: teacher}"
    alone = ("train: [vision, projector, language]", "train: [vision]"), ("lr_scale: {vision: 0.3}", "lr_scale: {}")
    found = problems(recipe(tmp_path, paths, term, *alone))
    assert any("the modular trains only projector, the stage only vision, got 'modular'" in one for one in found)


def test_further_teachers_need_a_teacher(tmp_path):
    file = write(tmp_path, ("teacher: {family: llava", "teachers: {second: {family: lava"))
    file.write_text(file.read_text().replace("model}\ndata:", "model}}\ndata:"))
    found = problems(file)
    assert any("teachers: the recipe has no teacher: name the first one `teacher`" in problem for problem in found)
    assert any("teachers.second.family: unknown family, got 'lava'" in problem for problem in found)


def test_only_a_path_that_a_stage_uses_is_in_its_key(tmp_path):
    plain = load(write(tmp_path))
    unused = load(recipe(tmp_path, "mine: {model: before}", VSD))
    term = "{name: vsd, loss: dbild, to: mine, weight: 0.5}"
    used = load(recipe(tmp_path, "mine: {model: before}", term))
    other = load(recipe(tmp_path, "mine: {model: before, images: blank}", term))
    assert unused.stage_key(1) == plain.stage_key(1) and unused.key != plain.key
    assert used.stage_key(0) == other.stage_key(0) == plain.stage_key(0)
    assert used.stage_key(1) != other.stage_key(1)
    assert used.config.stages[1].readings["mine"].models == {"before"}


def test_mixed_images_need_another_one(tmp_path):
    alone = ("    steps: 10", "    micro_batch: 1\n    steps: 10")
    found = problems(
        recipe(tmp_path, "mixed: {model: teacher, images: mixed}", "{name: vsd, loss: dbild, to: mixed}", alone)
    )
    assert any(
        "micro_batch: images are mixed by two examples of a micro-batch: an even number, got 1" in one for one in found
    )


@pytest.mark.parametrize(
    ("term", "fit", "told"),
    [
        ({"to": "teacher", "focus": {"by": "teacher_entropy", "of": "examples"}}, 2, "a process holds only 2 at once"),
        ({"of": "other", "to": "mixed"}, 4, "a process holds only 1 at once"),
    ],
)  # fmt: skip
def test_processes_can_t_part_examples_that_belong_together(term, fit, told):
    made = stage(objective=[{"loss": "forward_kl", **term}], batch=8, micro_batch=4)
    mixed = {name: PathSpec(images="mixed", language=of) for name, of in (("mixed", "teacher"), ("other", "student"))}
    made._known = {**made._known, **mixed}
    run = SimpleNamespace(config=SimpleNamespace(stages=[made]))
    check_batches([run], fit)
    with pytest.raises(UserError, match=f"micro_batch: examples that are .*{told}"):
        check_batches([run], 2 * fit)


def test_a_path_of_frozen_modules_trains_no_adapter():
    assert PathSpec(vision="before", projector="teacher", language="teacher").trains == set()
    assert PathSpec(vision="before", projector="teacher").trains == {"language", "adapter"}


def test_one_map_can_t_reach_teachers_of_several_widths():
    student, *teachers = (blueprint(tiny.model(width)) for width in (16, 24, 20))
    models = dict(zip(("student", "teacher", "second"), (student, *teachers), strict=True))
    terms = [{"name": name, "loss": "token_mse", "to": name} for name in ("teacher", "second")]
    made = stage(objective=terms)
    made._known = {**made._known, "second": PathSpec.model_validate({"model": "second"})}
    with pytest.raises(
        UserError, match="tokens can't be mapped to more than one width, got 20 of second and 24 of teac"
    ):
        check_paths([made], models)
    check_paths([made], models | {"second": models["teacher"]})


def test_a_teacher_that_only_a_mixer_reads_is_in_the_key_and_reads_its_own_visual_tokens(tmp_path):
    student, teacher = (tiny.model(seed=1, vision={"patch_size": size}) for size in (12, 8))
    mixer = {"by": "divergence", "rounds": 2, "candidates": 2}
    file = tiny_run.write(tmp_path, distill={"objective": [tiny_run.CE], "mixer": mixer})
    run, other = load(file), load(file, overrides=[f"teacher.checkpoint={tmp_path}"])
    assert run.stage_key(0) == other.stage_key(0) and run.stage_key(1) != other.stage_key(1)
    tokens = len(student.inputs.tokenizer)
    pair = Pair(blueprint(student), blueprint(teacher), Vocabulary(tokens, tokens, tokens), (), run.config)
    example = pair.open_data("rows", student, tmp_path)[0]
    assert [int(of.image.sum()) for of in (example, *example.others.values())] == [4, 9]


def test_a_path_reads_both_towers_at_one_layer():
    student, teacher = (blueprint(tiny.model(feature_layer=layer)) for layer in (-2, -1))
    made = stage(objective=[{"loss": "forward_kl", "of": "reverse", "to": "teacher"}])
    with pytest.raises(UserError) as caught:
        check_paths([made], {"student": student, "teacher": teacher})
    assert "paths.reverse: the student's projector can't read the teacher's features: feature layer" in str(
        caught.value
    )


def test_the_adapter_stands_in_front_of_the_teacher_s_projector_alone():
    assert PathSpec(projector="teacher", language="teacher").is_switch
    assert not PathSpec(projector="second", language="second").is_switch


def test_modules_that_do_not_fit_are_refused_with_both_values():
    student, wide = (blueprint(tiny.model(width)) for width in (16, 24))
    made = stage(objective=[{"loss": "forward_kl", "of": "modular", "to": "teacher"}])
    made._known = {**made._known, "modular": made._known["teacher"].model_copy(update={"projector": "student"})}
    with pytest.raises(UserError) as caught:
        check_paths([made], {"student": student, "teacher": wide})
    assert "paths.modular: the teacher's language model reads a token width of 24" in caught.value.problems[0]
    check_paths([made], {"student": student, "teacher": student})


def blueprint(model):
    return Blueprint(model.model.config, model.inputs, lambda dtype: model.model)


def test_a_plan_counts_what_paths_share_once():
    student, teacher = (ModelShape(tiny.model(width)) for width in (16, 24))
    models = Models({"student": student, "teacher": teacher, "before": student}, 1)
    batch = MicroBatch(2, 2, 30, 6)

    def count(*paths, known=BUILT_IN):
        return flops.step(batch, Computation(models, frozenset(map(known.get, paths)), frozenset({"language"})))

    assert count("student", "blind_student") > count("student", "before")
    known = {**stage()._known, "alias": stage()._known["teacher"]}
    assert count("teacher", "alias", known=known) == count("teacher")
    of_tower = count("teacher", "switch") - count("teacher")
    assert count("student", "teacher", "reverse") - count("student", "teacher") < count("student") + of_tower
