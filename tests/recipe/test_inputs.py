"""A key stands for every byte that a result depends on: what has changed is never answered with an old result."""

import json
import os
import sys

import pytest
from PIL import Image

from switchkd_cli import cli
from switchkd_cli.engine.data import row_files
from switchkd_cli.engine.data.sources import llava_json
from switchkd_cli.files import hashes
from switchkd_cli.playground.benchmark_sets import write_sets
from switchkd_cli.playground.training_rows import write_rows
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.run import Fingerprints, fingerprint
from switchkd_cli.runs import run_folder
from tests.support import tiny, tiny_run


def edited_in_the_middle(file):
    """Another byte in the middle; size, head, tail and time of change stay."""
    about, held = file.stat(), bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def aged(*files):
    """Files of an hour ago, so that their hashes are kept."""
    for file in files:
        os.utime(file, (file.stat().st_mtime - 3600,) * 2)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny_run.write(tmp_path)


def distil(monkeypatch, capsys, *words):
    """(exit code, everything printed) of `switchkd distill tiny.yaml ...`."""
    monkeypatch.setattr(sys, "argv", ["switchkd", "distill", "tiny.yaml", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0, "".join(capsys.readouterr())


def weights(folder):
    return (folder / "runs/tiny/switch-kd/seed0/model/model.safetensors").read_bytes()


# ------------------------------------------------------------------ what changes a key


def change_weights(folder):
    edited_in_the_middle(folder / "teacher/model.safetensors")


def change_rows(folder):
    edited_in_the_middle(folder / "rows.json")


def change_image(folder):
    image = min(folder.glob("*.png"))
    edited_in_the_middle(image)


def remove_image(folder):
    min(folder.glob("*.png")).unlink()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (change_weights, "teacher.checkpoint"),
        (change_rows, "data.rows.file"),
        (change_image, "data.rows.images"),
        (remove_image, "data.rows.images"),
    ],
)
def test_a_changed_input_is_another_run_and_is_named(tmp_path, recipe, change, field):
    before = load(recipe)
    kept = (before.key, before.inputs)
    assert load(recipe).key == kept[0]
    change(tmp_path)
    assert load(recipe).key != kept[0]
    assert field in before.changed()
    assert (load(recipe).teacher_key != before.teacher_key) is (field == "teacher.checkpoint")
    assert (load(recipe).stage_key(1) != before.stage_key(1)) is True


def test_the_text_of_a_message_that_names_what_changed(tmp_path, recipe, monkeypatch, capsys):
    assert distil(monkeypatch, capsys)[0] == 0
    change_weights(tmp_path)
    change_image(tmp_path)
    code, told = distil(monkeypatch, capsys)
    assert code == 2
    assert "holds another run (changed since: teacher.checkpoint, data.rows.images)" in told
    assert "--overwrite" in told


def test_images_that_come_back_are_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_run.write(tmp_path, teacher=False)
    recipe.write_text(recipe.read_text().replace("llava_json\n", "llava_json\n    max_faults: 0.5\n"))
    (tmp_path / "d.png").rename(tmp_path / "away")
    assert distil(monkeypatch, capsys)[0] == 0
    without = weights(tmp_path)
    (tmp_path / "away").rename(tmp_path / "d.png")
    assert distil(monkeypatch, capsys)[0] == 2
    assert distil(monkeypatch, capsys, "--overwrite")[0] == 0
    assert weights(tmp_path) != without


def test_overwrite_trains_although_nothing_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_run.write(tmp_path, teacher=False)
    assert distil(monkeypatch, capsys)[0] == 0
    first = weights(tmp_path)
    code, told = distil(monkeypatch, capsys)
    assert code == 0 and "finished before, reused: same recipe, models and data, byte by byte" in told
    code, told = distil(monkeypatch, capsys, "--overwrite")
    assert code == 0 and "reused" not in told and "stage distill" in told
    assert weights(tmp_path) == first
    assert len(list((tmp_path / "runs/stages").glob("old-*"))) == 2  # what was trained before is kept


def during(monkeypatch, stage, act):
    """Has `act` happen when the stage is trained and not saved yet."""
    from switchkd_cli.engine import run_stages

    train = run_stages.train

    def trained(this, *rest, **more):
        train(this, *rest, **more)
        if this.name == stage:
            act()

    monkeypatch.setattr(run_stages, "train", trained)


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_inputs_that_change_while_a_run_trains(tmp_path, monkeypatch, capsys, stage):
    monkeypatch.chdir(tmp_path)
    tiny_run.write(tmp_path, teacher=False)
    during(monkeypatch, stage, lambda: Image.new("RGB", (24, 24)).save(tmp_path / "a.png"))
    code, told = distil(monkeypatch, capsys)
    assert code == 2 and "changed while it ran: data.rows.images" in told
    assert weights(tmp_path)  # kept
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, told = distil(monkeypatch, capsys)
    assert code == 2 and "holds another run" in told  # neither the run nor a stage is handed out again
    before = weights(tmp_path)
    assert distil(monkeypatch, capsys, "--overwrite")[0] == 0
    assert weights(tmp_path) != before


def test_an_image_that_was_away_for_a_while(tmp_path, monkeypatch, capsys):
    """It is there when the key is computed and when the run ends: only the row that was left out tells of it."""
    from switchkd_cli.engine.data import image as images

    monkeypatch.chdir(tmp_path)
    recipe = tiny_run.write(tmp_path, teacher=False)
    recipe.write_text(recipe.read_text().replace("llava_json\n", "llava_json\n    max_faults: 0.5\n"))
    open_image = images.open_image

    def away(image, *rest, **more):
        if image == "d.png":
            raise images.Fault("no such image: d.png")
        return open_image(image, *rest, **more)

    monkeypatch.setattr(images, "open_image", away)
    during(monkeypatch, "pretrain", lambda: monkeypatch.setattr(images, "open_image", open_image))
    code, told = distil(monkeypatch, capsys)
    assert code == 2 and "1 of 1 rows that could not be used can be now" in told


# ------------------------------------------------------------------ hashes that are kept


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, in order."""
    read, done = hashes._read, []
    monkeypatch.setattr(hashes, "_read", lambda path: done.append(os.path.basename(path)) or read(path))
    return done


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path, reads):
    files = [tmp_path / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    for file in files:
        file.write_bytes(b"x" * 100)
    fingerprint(str(tmp_path))
    fingerprint(str(tmp_path))
    assert len(reads) == 6  # they are seconds old and could change again within a tick of the clock
    reads.clear()
    aged(*files)
    # the time of the last change of anything can't be set back: the next look is one from the future
    hashes_young, hashes.YOUNG = hashes.YOUNG, 0
    try:
        before = fingerprint(str(tmp_path))
        reads.clear()
        assert fingerprint(str(tmp_path)) == before and reads == []
        edited_in_the_middle(files[1])
        assert fingerprint(str(tmp_path)) != before and reads == ["model.safetensors"]
        reads.clear()
        replaced = tmp_path.parent / "other"
        replaced.write_bytes(b"y" * 100)
        os.utime(replaced, ns=(0, files[0].stat().st_mtime_ns))
        before = fingerprint(str(tmp_path))
        replaced.rename(files[0])
        assert fingerprint(str(tmp_path)) != before and reads == ["config.json"]
    finally:
        hashes.YOUNG = hashes_young


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.setattr(hashes, "YOUNG", 0)
    monkeypatch.setattr(hashes, "_read", lambda path: hashes.NOTHING)
    absent = hashes.digest_of(tmp_path, ["a"])
    monkeypatch.undo()
    assert hashes.digest_of(tmp_path, ["a"]) != absent == hashes.digest_of(tmp_path / "none", ["a"])


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000, "pipe", ".", "missing"])
def test_what_is_no_file_counts_as_absent(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    assert hashes.digest_of(tmp_path, [name]) == hashes.digest_of(tmp_path / "none", [name])


def test_a_file_that_vanishes_soon_after_it_was_written_counts_as_absent(tmp_path):
    (tmp_path / "a").write_text("young")
    there = hashes.digest_of(tmp_path, ["a"])
    (tmp_path / "a").unlink()
    assert hashes.digest_of(tmp_path, ["a"]) == hashes.digest_of(tmp_path / "none", ["a"]) != there


def test_hashes_that_cannot_be_kept(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv(hashes.CACHE, str(tmp_path / "file"))
    assert hashes.digest_of(tmp_path, ["file"]) == hashes.digest_of(tmp_path, ["file"])
    assert f"export {hashes.CACHE}=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("by", "touched", "edited", "read"),
    [("content", False, True, 3), ("size_and_time", True, False, 0), ("names", False, False, 0)],
)
def test_how_images_are_compared(tmp_path, recipe, reads, by, touched, edited, read):
    """By their bytes, by sizes and times, or not at all; only the first reads them."""

    def digest():
        spec = load(recipe, overrides=[f"data.rows.images_by={by}"]).config.data["rows"]
        reads.clear()
        return Fingerprints().images(spec)

    before = digest()
    assert sum(name.endswith(".png") for name in reads) == read
    about = (tmp_path / "a.png").stat()
    os.utime(tmp_path / "a.png", ns=(0, about.st_mtime_ns + 10**10))
    assert (digest() != before) is touched
    os.utime(tmp_path / "a.png", ns=(0, about.st_mtime_ns))
    edited_in_the_middle(tmp_path / "a.png")
    assert (digest() != before) is edited


def test_a_looser_comparison_is_reported_when_a_run_is_reused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_run.write(tmp_path, teacher=False)
    assert distil(monkeypatch, capsys, "data.rows.images_by=size_and_time")[0] == 0
    _, told = distil(monkeypatch, capsys, "data.rows.images_by=size_and_time")
    assert "reused: same recipe, models and data, byte by byte, images of rows by size_and_time" in told


def test_a_hub_id_is_the_commit_in_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert fingerprint("somebody/model") is None
    model = tmp_path / "models--somebody--model"
    for commit in ("a" * 40, "b" * 40):
        (model / "snapshots" / commit).mkdir(parents=True)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / "main").write_text(commit)
        assert fingerprint("somebody/model") == commit


# ------------------------------------------------------------------ other things that are kept


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
def test_a_data_file_edited_in_place_is_read_again(tmp_path, monkeypatch, ending):
    from switchkd_cli.engine.data import sources
    from tests.data.test_data_files import saved

    monkeypatch.setattr(sources, "CACHED_ROWS", 0)
    monkeypatch.setattr(row_files, "IN_MEMORY", 0)

    def said(answer):
        file = saved(tmp_path / f"rows{ending}", [tiny.row("a", None, ("Say hi.", answer))])
        os.utime(file, ns=(0, 10**18))
        return llava_json(tmp_path / "cache", file=str(file))[0].exchanges[0][1]

    assert (said("hello"), said("howdy")) == ("hello", "howdy")


def test_drawn_rows_that_were_changed_are_drawn_again(tmp_path):
    asked = {"kind": "questions", "split": "train", "pictures": 3, "turns": 2, "seed": 0}
    file = write_rows(tmp_path / "drawn", **asked)
    held, inode = file.read_bytes(), file.stat().st_ino
    assert write_rows(tmp_path / "drawn", **asked).stat().st_ino == inode  # left as it is
    edited_in_the_middle(file)
    assert write_rows(tmp_path / "drawn", **asked).read_bytes() == held
    image = next((tmp_path / "drawn" / "images").iterdir())
    image.unlink()
    write_rows(tmp_path / "drawn", **asked)
    assert image.exists()


def test_drawn_benchmarks_that_were_changed_are_drawn_again(tmp_path):
    asked = {"benchmarks": ["pope"], "split": "test", "items": 4, "seed": 0}
    folder = write_sets(tmp_path / "sets", **asked)
    (file,) = folder.rglob("*.parquet")
    held, inode = file.read_bytes(), file.stat().st_ino
    (folder / "submissions").mkdir()  # lmms-eval writes there
    assert write_sets(folder, **asked) and file.stat().st_ino == inode
    edited_in_the_middle(file)
    write_sets(folder, **asked)
    assert file.read_bytes() == held


def test_a_run_without_changes_keeps_its_inputs_in_its_record(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_run.write(tmp_path, teacher=False)
    assert distil(monkeypatch, capsys)[0] == 0
    info = json.loads((tmp_path / "runs/tiny/switch-kd/seed0/run.json").read_text())
    assert info["inputs"] == load(recipe).inputs and info["key"] == load(recipe).key
    assert run_folder.by_key(tmp_path / "runs").keys() == {info["key"]}


def test_a_hub_id_is_fetched_before_keys_are_made_and_stays_at_its_commit(tmp_path, recipe, monkeypatch):
    """What the hub has meanwhile is not taken: a finished run would be handed out for another model."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    from switchkd_cli.engine import hub
    from switchkd_cli.scheduler import launch

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model, asked = tmp_path / "hub/models--somebody--model", []

    def download(hub_id, *, revision=None, local_files_only=False, allow_patterns=None):
        main = model / "refs/main"
        if local_files_only and not main.exists():
            raise LocalEntryNotFoundError("not here")
        if not local_files_only:
            asked.append(revision)
            commit = revision or "c" * 40  # the newest on the hub
            (model / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
            main.parent.mkdir(exist_ok=True)
            main.write_text(commit)
        return str(model / "snapshots" / main.read_text())

    monkeypatch.setattr(hub, "snapshot_download", download)
    hub._snapshot.cache_clear()
    run = load(recipe, overrides=["teacher.checkpoint=somebody/model"])
    launch.check([run])
    assert asked == [None] and run.inputs["teacher.checkpoint"] == "c" * 40
    hub._snapshot.cache_clear()
    hub.fetch("somebody/model", "teacher")
    assert asked == [None, "c" * 40]
