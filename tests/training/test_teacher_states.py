"""The teacher's hidden states, computed example by example and cached: bit-equal in every case."""

import multiprocessing
import os
import signal
import sqlite3
import time
from dataclasses import replace

import pytest
import torch

from switchkd_cli.engine import teacher_states as module
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.teacher_states import TeacherStates
from switchkd_cli.engine.training.loop import train
from switchkd_cli.errors import MACHINE, UserError
from tests.support import tiny
from tests.training.test_training import stage


def pair():
    student = tiny.model(seed=1)
    return Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))


@pytest.fixture(scope="module")
def paths():
    return pair()


def losses(folder, how, *, file=None, seed=0, turns="chained", **changes):
    """Return the logged steps of a training of new paths, and the events."""
    paths, lines = pair(), []
    data = tiny.conversations(paths.student, folder, turns)
    settings = {"steps": 6, "batch": 2} | changes  # three epochs
    train(
        stage(teacher_states=how, **settings), paths, data, seed=seed, precision="fp32", log=lines.append, states=file
    )
    return [line for line in lines if "step" in line], [line for line in lines if "event" in line]


def figures(steps):
    """Return the training's figures without times."""
    clocked = {"seconds", "tokens_per_second", "data_wait", "memory_mib"}
    return [{name: value for name, value in step.items() if name not in clocked} for step in steps]


@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_losses_are_bit_equal_with_and_without_kept_states(tmp_path, turns):
    file = tmp_path / "states.sqlite"
    without, _ = losses(tmp_path, "by_row", turns=turns)
    first, told = losses(tmp_path, "cached", file=file, turns=turns)
    again, told_again = losses(tmp_path, "cached", file=file, turns=turns)
    assert figures(without) == figures(first) == figures(again)
    (told,), (told_again,) = ([e for e in each if e["event"] == "teacher states"] for each in (told, told_again))
    assert (told["found"], told["computed"]) == (8, 4)  # three epochs of four rows
    assert (told_again["found"], told_again["computed"]) == (12, 0)
    assert told["mib"] > 0


def test_another_seeds_order_and_batches_find_the_same_rows(tmp_path):
    file = tmp_path / "states.sqlite"
    losses(tmp_path, "cached", file=file)
    kept, told = losses(tmp_path, "cached", file=file, seed=7, batch=4, micro_batch=1, steps=2)
    plain, _ = losses(tmp_path, "by_row", seed=7, batch=4, micro_batch=1, steps=2)
    assert figures(kept) == figures(plain)
    assert told[-1]["computed"] == 0


def test_row_by_row_is_the_batched_objective_but_for_rounding(tmp_path):
    batched, told = losses(tmp_path, "batched")
    by_row, _ = losses(tmp_path, "by_row")
    assert [line["loss"] for line in by_row] == pytest.approx([line["loss"] for line in batched], rel=1e-4)
    assert not [event for event in told if event["event"] == "teacher states"]


@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_a_row_alone_is_the_row_without_its_padding(paths, tmp_path, turns):
    data = tiny.conversations(paths.student, tmp_path, turns)
    examples = [data[i] for i in range(4)]
    batch = tiny.together(paths.student, examples)
    keep = batch.predicting("answer")
    for example, (row, kept) in zip(examples, batch.rows(keep), strict=True):
        alone = tiny.together(paths.student, [example])
        for name, value in vars(alone).items():
            mine = getattr(row, name)
            if name == "pictures" and not len(value):
                assert not len(mine)
            else:
                assert torch.equal(mine, value) if isinstance(value, torch.Tensor) else mine == value, name
        assert torch.equal(kept, alone.predicting("answer"))


def asked(states, paths, batch, on="answer"):
    """Return the states, and how many examples were computed."""
    before = states.computed
    with torch.no_grad():
        found = states(batch, batch.predicting(on), paths.teacher_hidden_states)
    return found, states.computed - before


def test_whatever_the_teacher_reads_makes_another_row(paths, tmp_path):
    states, batch = TeacherStates(tmp_path / "s.sqlite"), tiny.batch(paths.student, tmp_path)
    asked(states, paths, batch)
    changed = batch.images[1]["pixel_values"].clone()
    changed[0, 0, 0] += 1e-3
    images = (batch.images[0], {"pixel_values": changed}, *batch.images[2:])
    tokens = batch.input_ids.clone()
    tokens[1, 1] += 1
    assert asked(states, paths, batch)[1] == 0
    assert asked(states, paths, replace(batch, images=images))[1] == 1
    assert asked(states, paths, replace(batch, input_ids=tokens))[1] == 1
    assert asked(states, paths, batch, "text")[1] == 4  # other positions
    assert asked(states, paths, replace(batch, ids=("w", "x", "y", "z")))[1] == 0  # a name is not read


def test_a_batch_of_no_positions_is_no_trouble(paths, tmp_path):
    states, batch = TeacherStates(tmp_path / "s.sqlite"), tiny.batch(paths.student, tmp_path)
    nothing = replace(batch, labels=torch.full_like(batch.labels, -100))
    for _ in range(2):
        assert asked(states, paths, nothing)[0].shape == (0, 24)


def _write_for_ever(file, begun):
    states = TeacherStates(file)
    number = 0
    while True:
        states._write({number.to_bytes(8, "big"): os.urandom(1 << 16) for number in range(number, number + 4)})
        number += 4
        begun.set()


@pytest.mark.parametrize("moment", [0.0, 0.013, 0.04])
def test_a_process_killed_while_it_writes_leaves_whole_batches(tmp_path, moment):
    file = tmp_path / "s.sqlite"
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    writer = context.Process(target=_write_for_ever, args=(file, begun))
    writer.start()
    assert begun.wait(120)
    time.sleep(moment)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    states = TeacherStates(file)
    rows = states._database.execute("select row, length(states) from rows").fetchall()
    assert len(rows) % 4 == 0 and {length for _, length in rows} == {1 << 16}
    assert states._database.execute("pragma integrity_check").fetchall() == [("ok",)]
    states._write({b"new": b"whole"})
    read = states._database.execute("select row, states from rows where row in (?, ?)", [b"new", b"other"])
    assert dict(read) == {b"new": b"whole"}


def test_two_processes_keep_their_rows_in_one_file(paths, tmp_path):
    one, other = (TeacherStates(tmp_path / "s.sqlite") for _ in range(2))
    batch = tiny.batch(paths.student, tmp_path)
    mine, computed = asked(one, paths, batch)
    theirs, again = asked(other, paths, batch)
    assert (computed, again) == (4, 0) and torch.equal(mine, theirs)
    one.close(), other.close()


def test_a_file_that_is_none_is_named_with_the_way_out(tmp_path):
    file = tmp_path / "s.sqlite"
    file.write_bytes(b"no database " * 1000)
    with pytest.raises(UserError, match="s.sqlite: the teacher's states can't be cached") as refused:
        TeacherStates(file)
    assert refused.value.code == MACHINE and "teacher_states: by_row" in refused.value.hint
    assert file.read_bytes() == b"no database " * 1000


def test_a_full_disk_is_said_and_nothing_kept_is_lost(paths, tmp_path):
    states, batch = TeacherStates(tmp_path / "s.sqlite"), tiny.batch(paths.student, tmp_path)
    asked(states, paths, batch)
    pages = states._database.execute("pragma page_count").fetchone()[0]
    states._database.execute(f"pragma max_page_count = {pages}")
    with pytest.raises(UserError, match="full") as refused:
        states._write({b"large": b"x" * (1 << 20)})
    assert refused.value.code == MACHINE
    assert asked(states, paths, batch)[1] == 0


def test_a_key_is_the_teachers_and_what_it_is_computed_in(tmp_path):
    from switchkd_cli.recipe.load import load
    from tests.support import small_recipe

    recipe = small_recipe.write(tmp_path)
    base = load(recipe).teacher_digest
    assert load(recipe, overrides=["stages.distill.steps=3", "seed=9"]).teacher_digest == base
    assert load(recipe, overrides=["precision=bf16"]).teacher_digest != base
    (tmp_path / "model" / "config.json").write_text('{"a": 1}')
    assert load(recipe).teacher_digest != base


def test_the_file_is_hardly_larger_than_the_numbers_in_it(paths, tmp_path):
    """The plan's estimate of the disk: positions x width x bytes of a number."""
    states, batch = TeacherStates(tmp_path / "s.sqlite"), tiny.batch(paths.student, tmp_path)
    keep = batch.predicting("text")
    states(batch, keep, lambda row, kept: torch.randn(int(kept.sum()), 2048))
    assert 1 <= states.file.stat().st_size / (int(keep.sum()) * 2048 * 4) < 1.1


def test_kept_states_are_plain_tensors(paths, tmp_path):
    """It holds safetensors: nothing is executed when it is read."""
    states, batch = TeacherStates(tmp_path / "s.sqlite"), tiny.batch(paths.student, tmp_path)
    found, _ = asked(states, paths, batch)
    kept = [
        module.load(value)["states"] for (value,) in sqlite3.connect(states.file).execute("select states from rows")
    ]
    assert sum(len(each) for each in kept) == len(found)
