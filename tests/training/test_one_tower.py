"""If V_S is frozen and equal to V_T, images are encoded once."""

from dataclasses import replace

import pytest
import torch

from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.objective import Objective
from switchkd_cli.engine.training.trainer import Trainer
from switchkd_cli.recipe.schema import Term
from tests.support import tiny
from tests.training.test_training import DISTILL, stage

TERMS = [Term.model_validate(term) for term in DISTILL]


def pair(teacher=None, **kept):
    """A student with the teacher's tower, except for the changes given."""
    student, teacher = tiny.model(seed=1, **kept), teacher or tiny.model(24, seed=2)
    tower = teacher.model.model.vision_tower.state_dict()
    student.model.model.vision_tower.load_state_dict(tower, strict=False)
    return Paths(student, teacher, len(student.inputs.processor.tokenizer))


def begun(paths, **changes):
    """The paths as a stage's trainer leaves them before its first step."""
    Trainer(stage(**changes), paths, 3, "fp32").close()
    return paths


def looked(paths, batch):
    """Return outputs, and how often each tower was called."""
    asked = {"student": 0, "teacher": 0}
    hooks = []
    for name in asked:
        tower = getattr(paths, name).model.model.vision_tower.embeddings

        def count(*_, name=name):
            asked[name] += 1

        hooks.append(tower.register_forward_hook(count))
    objective = Objective(TERMS)
    readings = paths(batch, objective.outputs, objective.keep(batch))
    for hook in hooks:
        hook.remove()
    return readings, asked


def test_equal_frozen_towers_look_once_and_say_the_same_to_the_bit(tmp_path):
    paths = begun(pair(), train=["projector", "language"])
    batch = tiny.batch(paths.student, tmp_path)
    once, asked = looked(paths, batch)
    assert asked == {"student": 1, "teacher": 0}
    paths.one_tower = False
    twice, asked = looked(paths, batch)
    assert asked == {"student": 1, "teacher": 1}
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)


def test_a_tower_that_is_trained_is_not_the_teachers():
    assert not begun(pair()).one_tower


def test_other_weights_are_not_the_teachers():
    paths = pair()
    with torch.no_grad():
        next(iter(paths.student.used_parameters("vision").values())).add_(1e-3)
    assert not begun(paths, train=["projector", "language"]).one_tower


@pytest.mark.parametrize("kept", [{"feature_layer": -1}, {"vision": {"hidden_act": "relu"}}])
def test_nor_is_the_same_tower_read_in_another_way(kept):
    assert not begun(pair(**kept), train=["projector", "language"]).one_tower


def test_without_a_teacher_there_is_nothing_to_share():
    paths = Paths(tiny.model(), None, 767)
    assert not begun(paths, train=["projector"], objective=DISTILL[:1]).one_tower


def test_a_later_stage_that_trains_the_tower_looks_twice_again():
    paths = begun(pair(), train=["projector"])
    assert paths.one_tower
    assert not begun(paths, train=["vision", "projector"]).one_tower


def test_a_tower_with_dropout_is_not_shared_it_would_blur_the_teacher():
    paths = pair(vision={"attention_dropout": 0.3})
    assert not begun(paths, train=["projector", "language"]).one_tower


def test_a_teacher_whose_processor_prepares_images_otherwise_sees_its_own(tmp_path):
    """Of unlike tokens, images of each model are in the batch."""
    paths = begun(pair(), train=["projector", "language"])
    batch = tiny.batch(paths.student, tmp_path)
    others = tuple({**image, "pixel_values": image["pixel_values"] / 2} for image in batch.images)
    unlike = replace(batch, others={("teacher", "switch"): replace(batch, images=others)})
    keep = batch.predicting("answer")
    shared, own = torch.cat([keep, torch.zeros_like(keep)], 1), torch.cat([torch.zeros_like(keep), keep], 1)
    found = paths(unlike, ("teacher",), shared | own)["teacher"]
    paths.one_tower = False
    assert torch.equal(found, paths(unlike, ("teacher",), shared | own)["teacher"])
    assert not torch.equal(found, paths(batch, ("teacher",), keep)["teacher"])
