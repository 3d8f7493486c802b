"""The teacher's top ids are selected once for all losses against it, and never reused for other logits."""

import gc

import pytest
import torch

from switchkd_cli.engine.losses.dbild import bild, dbild, knee_kl
from switchkd_cli.engine.losses.ops import knee, leaders
from tests.support.reference_losses import language_logits

TERMS = {"dbild": dbild, "knee_kl": knee_kl, "bild": bild}


@pytest.fixture
def trio():
    teacher, student = language_logits(5, 700, 0, torch.float32)
    return teacher, student, language_logits(5, 700, 1, torch.float32)[1]


@pytest.fixture
def sought(monkeypatch):
    """Record the tensors whose highest logits are searched, in order."""
    found = []
    for name in ("sort_to_knee", "sort_top_k"):
        real = getattr(knee, name)

        def seen(logits, *rest, real=real):
            found.append(logits.data_ptr())
            return real(logits, *rest)

        monkeypatch.setattr(knee, name, seen)
    return found


@pytest.mark.parametrize("loss", TERMS.values(), ids=TERMS)
def test_two_losses_beside_one_teacher_seek_its_lead_once(loss, trio, sought):
    teacher, student, switch = trio
    alone = [loss(teacher.clone(), other) for other in (student, switch)]
    sought.clear()
    together = [loss(teacher, other) for other in (student, switch)]
    assert sought == [teacher.data_ptr(), student.data_ptr(), switch.data_ptr()]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_losses_with_other_bounds_seek_anew(trio, sought):
    teacher, student, _ = trio
    for bounds in ({}, {"window": 64}, {"window": 64, "min_k": 5}, {"window": 64, "max_k": 9}):
        expected = dbild(teacher.clone(), student, **bounds)
        sought.clear()
        assert torch.equal(dbild(teacher, student, **bounds), expected)
        assert sought[0] == teacher.data_ptr(), bounds


def test_a_teacher_that_was_changed_in_place_is_read_again(trio):
    teacher, student, _ = trio
    before = dbild(teacher, student)
    teacher.neg_()
    after = dbild(teacher, student)
    assert not torch.equal(before, after)
    assert torch.equal(after, dbild(teacher.clone(), student))


def test_columns_that_one_student_lacks_are_no_part_of_its_lead_alone(trio):
    teacher, student, switch = trio
    lacking = switch.index_fill(1, teacher[0].topk(3).indices, -torch.inf)
    pairs = [(teacher, student), (teacher, lacking), (teacher, student)]
    found = [dbild(*pair) for pair in pairs]
    for value, (_, other) in zip(found, pairs, strict=True):
        assert torch.equal(value, dbild(teacher.clone(), other))


def test_blocks_have_leads_of_their_own(trio, monkeypatch):
    teacher, student, switch = trio
    expected = [dbild(teacher.clone(), other) for other in (student, switch)]
    monkeypatch.setattr(leaders, "BLOCK", 2 * 700)  # rows 0 and 1, 2 and 3, 4
    for value, other in zip(expected, (student, switch), strict=True):
        torch.testing.assert_close(dbild(teacher, other), value, rtol=1e-6, atol=0)


def test_it_is_forgotten_with_the_teachers_logits(trio):
    teacher, student, _ = trio
    gc.collect()
    before = len(leaders._SELECTED)
    logits = teacher.clone()
    dbild(logits, student)
    assert len(leaders._SELECTED) == before + 1
    del logits
    gc.collect()
    assert len(leaders._SELECTED) == before


def test_logits_of_inference_mode_can_be_compared(trio):
    teacher, student, _ = trio
    with torch.inference_mode():
        found = dbild(teacher.clone(), student.clone())
    assert torch.equal(found, dbild(teacher, student))
