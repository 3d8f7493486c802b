"""A stage with a part without gradient, or a term with nothing to compare: an error, as early as possible."""

import json

import pytest
import torch

from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.loop import Loop, train
from switchkd_cli.engine.training.training_warnings import check_images, check_pairs
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Stage
from tests.support import forked, tiny, tiny_run

CE = {"name": "ce", "loss": "cross_entropy"}
VSD = {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"}
VISUAL = {"name": "visual", "loss": "forward_kl", "to": "teacher", "on": "image"}
TOKENS = {"name": "tokens", "loss": "token_mse", "to": "teacher"}
TEXT = [tiny.row(str(i), None, ("Say hi.", answer)) for i, answer in enumerate(["hi", "no", "a dog", "two"])]


def stage(**changes):
    settings = {"name": "distill", "data": "rows", "train": ["vision", "projector", "language"], "lr": 1e-3}
    settings |= {"batch": 4, "steps": 3, "objective": [CE]}
    return Stage.model_validate(settings | changes)


def loop_of(folder, *, rows=None, **changes):
    student = tiny.model(seed=1)
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))
    data, lines = tiny.conversations(student, folder, which=rows), []
    return Loop(stage(**changes), paths, data, seed=0, precision="fp32", log=lines.append), lines


def trained(folder, *, rows=None, spoil=None, **changes):
    """Return a stage's log."""
    student, lines = tiny.model(seed=1), []
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))
    if spoil:
        for module in student.parts[spoil]:
            for parameter in module.parameters():
                parameter.register_hook(torch.zeros_like)
    data = tiny.conversations(student, folder, which=rows)
    train(stage(**changes), paths, data, seed=0, precision="fp32", log=lines.append)
    return lines


def problems(call, *arguments, **more):
    with pytest.raises(UserError) as refused:
        call(*arguments, **more)
    return list(refused.value.problems), refused.value.hint


@pytest.mark.parametrize(
    ("changes", "expected", "hint"),
    [
        ({"train": ["projector"]}, ["train: projector"], "give it examples that train them (stages.distill.data)"),
        (
            {},
            ["train: vision", "train: projector"],
            "stages.distill.train='[language]' or give it examples that train them (stages.distill.data)",
        ),
        (
            {"train": ["language"], "objective": [CE, VISUAL, TOKENS]},
            ["objective: visual", "objective: tokens"],
            "take visual, tokens out of stages.distill.objective or give it examples that train them (stages.distill.data)",
        ),
        (
            {"train": ["vision"], "objective": [VSD]},
            ["train: vision", "objective: vsd"],
            "take vsd out of stages.distill.objective or give it examples that train them (stages.distill.data)",
        ),
    ],
)
def test_what_needs_pictures_is_refused_where_the_data_have_none(changes, expected, hint):
    told, why = problems(check_images, [stage(**changes)], {"rows": False})
    assert told == [f"stages.distill.{what} needs images, and no usable example of rows has one" for what in expected]
    assert why == hint
    check_images([stage(**changes)], {"rows": True})


def test_text_trains_a_language_model():
    check_images([stage(train=["language"])], {"rows": False})


@pytest.mark.parametrize("on", ["pair", "chosen", "rejected"])
def test_a_term_on_preferences_is_refused_where_no_row_has_one(on):
    made = stage(objective=[CE, {"name": "better", "loss": "preference", "to": "teacher", "on": on}])
    told, _ = problems(check_pairs, [made], {"rows": False})
    expected = f"objective.better is on: {on}, and no row of rows has a preferred answer and a rejected one"
    assert told == [f"stages.distill.{expected}"]
    check_pairs([made], {"rows": True})
    check_pairs([stage()], {"rows": False})


def test_a_row_whose_picture_is_lost_has_none(tmp_path):
    model, lost = tiny.model(), tiny.row("z", "lost.png", ("What?", "a dog"))
    for rows, seen in (([lost, *TEXT], False), (tiny.rows(tmp_path), True), (TEXT, False)):
        data = tiny.conversations(model, tmp_path, which=rows)
        data.bad_rows.allowed = 0.5
        data.inspect()
        assert data.has_images is seen


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--dry-run", "--overwrite"])
def test_a_whole_run_ends_before_its_first_step(tmp_path, option):
    recipe = tiny_run.write(tmp_path, teacher=False, rows=TEXT)
    program = forked.switchkd("distill", recipe, "--out", "out", option, cwd=tmp_path)
    assert program.end() == 2
    assert "stages.pretrain.train: projector needs images" in program.err
    assert "stages.distill.train: vision needs images" in program.err
    assert not list(tmp_path.glob("out/**/model*")) and not list(tmp_path.glob("out/**/stages/*"))


@pytest.mark.parametrize("part", ["vision", "projector", "language"])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_part_that_no_gradient_reached_is_named_once_every_row_was_seen(tmp_path, part, steps):
    told, hint = problems(trained, tmp_path, spoil=part, steps=steps)
    assert told == [f"stage distill: {part}: no gradient reached it in 1 steps: it did not change"]
    assert hint.startswith("stages.distill.train='[") and part not in hint.partition("]")[0]
    assert hint.endswith("; no model was saved")


def test_a_part_that_no_gradient_reached_is_named_at_the_end_of_less_than_an_epoch(tmp_path):
    told, _ = problems(trained, tmp_path, spoil="projector", batch=1, steps=2)
    assert told == ["stage distill: projector: no gradient reached it in 2 steps: it did not change"]


def test_a_term_that_never_compared_anything_is_named(tmp_path):
    told, hint = problems(trained, tmp_path, rows=TEXT, train=["language"], objective=[CE, VISUAL])
    assert told == ["stage distill: visual: no example had what it compares in 1 steps"]
    assert "take visual out of stages.distill.objective" in hint


def test_steps_of_text_among_pictures_are_as_usual(tmp_path):
    """A tower without a gradient in some steps is not an error."""
    lines = trained(tmp_path, batch=1, steps=8)
    assert [line for line in lines if line.get("event") == "warning" and line["about"] == "empty steps"] == []


def test_steps_without_anything_to_compare_are_counted_and_reported(tmp_path):
    """One of the four examples has no image."""
    lines = trained(tmp_path, batch=1, steps=8, train=["vision", "projector"], objective=[TOKENS])
    (warning,) = [line for line in lines if line.get("about") == "empty steps"]
    assert warning["text"] == ("in 2 of 8 steps no term had anything to compare: they trained nothing")
    assert sum(line["grad_norm"] == 0 for line in lines if "step" in line) == 2


def test_what_was_compared_is_remembered_across_an_interruption(tmp_path):
    """None of the remaining steps has an image; an older checkpoint doesn't record what was compared."""
    how = {"batch": 1, "steps": 8, "train": ["vision", "projector"], "objective": [TOKENS]}
    first, _ = loop_of(tmp_path, **how)
    first.steps = 3
    first.run()
    state = first.state_dict()
    kept = json.loads(json.dumps(state["watch"]))
    for watch in (kept, {name: kept[name] for name in ("seen", "said")}):
        again, _ = loop_of(tmp_path, **how)
        again.load_state_dict({**state, "watch": watch})
        again.check_idle()
    again, _ = loop_of(tmp_path, **how)
    assert again.warnings.idle == ["tokens"]
    with pytest.raises(UserError, match="vision: no gradient"):
        again.check_idle()
