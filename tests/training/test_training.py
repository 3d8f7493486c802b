"""The training loop: what is trained and what is not; accumulation, seeds, learning rates."""

import copy
import json
import math

import pytest
import torch

from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.data_loader import count_steps, order
from switchkd_cli.engine.training.loop import train
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Stage
from tests.support import tiny

DISTILL = [
    {"name": "ce", "loss": "cross_entropy"},
    {"name": "align", "loss": "dbild", "of": "student", "to": "teacher"},
    {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"},
]


def stage(**changes):
    settings = {
        "name": "distill",
        "data": "rows",
        "train": ["vision", "projector", "language"],
        "lr": 1e-3,
        "batch": 4,
        "steps": 3,
        "objective": DISTILL,
    }
    return Stage.model_validate(settings | changes)


def trained(folder, turns="chained", teacher=True, **changes):
    """Return the paths after training, the logged steps, and a copy of the paths from before."""
    student = tiny.model(seed=1)
    paths = Paths(student, tiny.model(24, seed=2) if teacher else None, len(student.inputs.processor.tokenizer))
    before = copy.deepcopy(paths)
    lines = []
    data = tiny.conversations(student, folder, turns)
    train(stage(**changes), paths, data, seed=0, precision="fp32", log=lines.append)
    return paths, [line for line in lines if "step" in line], before


def changed(now, before):
    old = dict(before.named_parameters())
    return {name for name, parameter in now.named_parameters() if not torch.equal(parameter, old[name])}


def test_every_reached_student_tensor_is_trained_and_no_teacher_tensor_changes(tmp_path):
    paths, _, before = trained(tmp_path)
    reached = {id(p) for part in paths.student.parts for p in paths.student.used_parameters(part).values()}
    named = dict(paths.named_parameters())
    assert changed(paths, before) == {name for name, p in named.items() if id(p) in reached}
    assert not any(name.startswith("teacher.") for name in changed(paths, before))


@pytest.mark.parametrize("part", ["vision", "projector", "language"])
def test_only_the_named_part_is_trained(tmp_path, part):
    paths, _, before = trained(tmp_path, train=[part])
    mine = {id(p) for p in paths.student.used_parameters(part).values()}
    assert {id(dict(paths.named_parameters())[name]) for name in changed(paths, before)} == mine


def test_vsd_alone_trains_the_vision_tower_only(tmp_path):
    paths, _, before = trained(tmp_path, objective=DISTILL[2:], train=["vision"])
    assert changed(paths, before)
    assert all(".vision_tower." in name for name in changed(paths, before))
    with pytest.raises(UserError) as told:
        trained(tmp_path, objective=DISTILL[2:])
    assert [problem.split(": ")[1] for problem in told.value.problems] == ["projector", "language"]


def test_betas_are_adamws_and_its_own_where_a_stage_has_none(tmp_path):
    torchs, given, other = (
        dict(trained(tmp_path, **betas)[0].named_parameters())
        for betas in ({}, {"betas": [0.9, 0.999]}, {"betas": [0.9, 0.95]})
    )
    assert all(torch.equal(torchs[name], given[name]) for name in torchs)
    assert not all(torch.equal(torchs[name], other[name]) for name in torchs)
    assert "betas" not in stage().model_dump() and stage(betas=[0.9, 0.95]).model_dump()["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("micro", [1, 2])
def test_accumulation_takes_the_same_steps(tmp_path, micro):
    whole, lines, _ = trained(tmp_path)
    split, split_lines, _ = trained(tmp_path, micro_batch=micro)
    for (name, one), other in zip(whole.named_parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5, msg=name)
    for one, other in zip(lines, split_lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_two_runs_with_one_seed_are_bit_equal(tmp_path):
    one, lines, _ = trained(tmp_path)
    two, again, _ = trained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert [line["loss"] for line in lines] == [line["loss"] for line in again]


def test_training_learns_its_rows(tmp_path):
    _, lines, _ = trained(tmp_path, teacher=False, objective=DISTILL[:1], steps=150, lr=1e-2)
    assert lines[-1]["loss/ce"] < 0.5 * lines[0]["loss/ce"]


def test_a_step_logs_its_terms_and_diagnostics(tmp_path):
    _, lines, _ = trained(tmp_path)
    first = lines[0]
    assert first["loss"] == pytest.approx(first["loss/ce"] + first["loss/align"] + first["loss/vsd"])
    expected = {
        "teacher_ce",
        "student_ce",
        "agreement/student",
        "agreement/switch",
        "kl/student",
        "switch_gap",
        "grad_norm",
        "memory_mib",
    }
    assert expected < first.keys()
    for led in ("align/teacher", "align/student", "vsd/teacher", "vsd/switch"):
        assert 3 <= first[f"k/{led}/p5"] <= first[f"k/{led}/mean"] <= first[f"k/{led}/p95"]
        assert 0 < first[f"mass/{led}"] <= 1
    assert first["student_ce"] == pytest.approx(first["loss/ce"])  # one micro-batch: the same tokens
    json.dumps(lines)


def test_switch_gap_is_zero_for_equal_towers(tmp_path):
    teacher = tiny.model(24, seed=2)
    student = tiny.model(seed=1)
    student.model.model.vision_tower.load_state_dict(teacher.model.model.vision_tower.state_dict())
    paths, lines = Paths(student, teacher, len(student.inputs.processor.tokenizer)), []
    data = tiny.conversations(student, tmp_path)
    train(stage(), paths, data, seed=0, precision="fp32", log=lines.append)
    assert next(line for line in lines if "step" in line)["switch_gap"] == pytest.approx(0, abs=1e-6)


def test_warm_up_then_cosine(tmp_path):
    _, lines, _ = trained(tmp_path, teacher=False, objective=DISTILL[:1], steps=10, warmup=0.2)
    rates = [line["lr"] for line in lines]
    assert rates[:3] == pytest.approx([0, 5e-4, 1e-3])
    assert rates[2:] == sorted(rates[2:], reverse=True)


@pytest.mark.parametrize(
    "scale", [{"vision": 0.1}, {"vision": 0.0}, {"vision": 3.0, "projector": 1.0, "language": 2.0}]
)
def test_lr_is_the_stage_s_and_each_scaled_part_has_a_line_of_its_own(tmp_path, scale):
    """Also if the first part trained is scaled: its rate is not the stage's."""
    _, lines, _ = trained(tmp_path, steps=10, warmup=0.2, lr_scale=scale, objective=DISTILL[:2])
    plain = [1e-3 * min(step / 2, (1 + math.cos(math.pi * max(step - 2, 0) / 8)) / 2) for step in range(10)]
    assert [line["lr"] for line in lines] == pytest.approx(plain)
    for part, factor in scale.items():
        assert [line[f"lr/{part}"] for line in lines] == pytest.approx([factor * rate for rate in plain])
    assert {name for name in lines[0] if name.startswith("lr/")} == {f"lr/{part}" for part in scale}


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError) as stopped:
        trained(tmp_path, lr=1e30, steps=5, grad_clip=None)
    assert "step" in str(stopped.value) and "nan" in str(stopped.value)
    assert stopped.value.code == 1


def test_order_visits_every_row_once_an_epoch():
    visited = order(7, 21, seed=3)
    assert [sorted(visited[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert visited[:7] != visited[7:14]
    assert visited == order(7, 21, seed=3) != order(7, 21, seed=4)


def test_epochs_become_steps():
    assert count_steps(stage(steps=None, epochs=1.0, batch=128), 665_298) == 5198
    assert count_steps(stage(steps=None, epochs=1.1, batch=10, micro_batch=10), 100) == 11  # 12 in floats
    assert count_steps(stage(steps=None, epochs=0.07, batch=7, micro_batch=7), 100) == 1
