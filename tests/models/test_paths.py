"""The three paths: what they compute and where their gradient goes."""

import copy

import pytest
import torch

from switchkd_cli.engine.paths import Paths
from tests.support import tiny


@pytest.fixture(params=["chained", "independent"])
def batch(request, tmp_path, student):
    return tiny.batch(student, tmp_path, request.param)


@pytest.fixture
def student():
    return tiny.model(16, seed=1)


@pytest.fixture
def teacher():
    return tiny.model(24, layers=3, seed=2)


def paths_of(student, teacher):
    return Paths(student, teacher, len(student.inputs.processor.tokenizer)).train()


def test_split_student_path_equals_forward(student, tmp_path):
    batch = tiny.batch(student, tmp_path)
    keep = batch.predicting("all")
    logits = Paths(student, None, len(student.inputs.processor.tokenizer))(batch, {"student"}, keep)["student"]
    whole = student.model(
        input_ids=batch.input_ids, pixel_values=tiny.pixels(batch), attention_mask=batch.attention.long()
    ).logits[keep]
    torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-6)


def test_switch_is_the_teacher_reading_the_students_features(student, teacher, tmp_path):
    batch = tiny.batch(student, tmp_path)
    keep = batch.predicting("all")
    switch = paths_of(student, teacher)(batch, {"switch"}, keep)["switch"]
    hybrid = copy.deepcopy(teacher)  # the teacher with the student's eyes, through transformers' own forward
    hybrid.model.model.vision_tower.load_state_dict(student.model.model.vision_tower.state_dict())
    whole = hybrid.model(
        input_ids=batch.input_ids, pixel_values=tiny.pixels(batch), attention_mask=batch.attention.long()
    ).logits[keep]
    torch.testing.assert_close(switch, whole, rtol=1e-5, atol=1e-6)


def test_teacher_as_its_own_student_gives_three_equal_logits(teacher, batch):
    logits = paths_of(copy.deepcopy(teacher), teacher)(batch, tiny.SWITCH_KD, batch.predicting("all"))
    torch.testing.assert_close(logits["student"], logits["teacher"], rtol=0, atol=0)
    torch.testing.assert_close(logits["switch"], logits["teacher"], rtol=0, atol=0)


def test_switch_gradient_reaches_every_trained_vision_tensor_and_nothing_else(student, teacher, batch):
    paths = paths_of(student, teacher)
    logits = paths(batch, {"switch"}, batch.predicting("answer"))["switch"]
    logits.log_softmax(-1)[:, 7].sum().backward()
    reached = student.used_parameters("vision")
    for name, parameter in reached.items():
        # a key's bias shifts every attention score of a query alike, so its gradient is zero but for rounding
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    inside = {id(p) for p in reached.values()}
    outside = [n for n, p in paths.named_parameters() if id(p) not in inside and p.grad is not None]
    assert outside == []


def test_unreached_vision_parameters_are_those_behind_the_feature_layer(student):
    everything = dict(student.model.model.vision_tower.named_parameters())
    left_out = set(everything) - set(student.used_parameters("vision"))
    assert left_out == {n for n in everything if "layers.2." in n or "post_layernorm" in n}


def test_student_gradient_reaches_all_three_parts(student, teacher, batch):
    paths = paths_of(student, teacher)
    paths(batch, {"student"}, batch.predicting("answer"))["student"].logsumexp(-1).sum().backward()
    for part in ("vision", "projector", "language"):
        assert all(p.grad is not None for p in student.used_parameters(part).values()), part
    assert all(p.grad is None for p in teacher.parameters())


def test_teacher_path_keeps_no_graph(student, teacher, batch):
    logits = paths_of(student, teacher)(batch, {"teacher"}, batch.predicting("answer"))["teacher"]
    assert not logits.requires_grad


def test_teacher_stays_in_eval_mode(student, teacher):
    paths = paths_of(student, teacher)
    assert paths.student.training
    assert not any(module.training for module in paths.teacher.modules())


def test_only_the_wanted_paths_are_computed(student, teacher, batch):
    assert set(paths_of(student, teacher)(batch, {"student"}, batch.predicting("answer"))) == {"student"}


def test_logits_are_cut_to_the_shared_vocabulary(student, teacher, batch):
    paths = Paths(student, teacher, 40)
    assert {v.shape[-1] for v in paths(batch, tiny.SWITCH_KD, batch.predicting("answer")).values()} == {40}


def test_text_only_batch_has_equal_teacher_and_switch(student, teacher, tmp_path):
    batch = tiny.batch(student, tmp_path, which=[tiny.row("t", None, ("Say hi.", "hi there"))])
    logits = paths_of(student, teacher)(batch, tiny.SWITCH_KD, batch.predicting("answer"))
    torch.testing.assert_close(logits["switch"], logits["teacher"])
