"""What some file systems can't do: the program does it in another way, or ends with a line that says so."""

import errno
import fcntl
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from switchkd_cli.errors import MACHINE, UserError, system_errors
from switchkd_cli.files import atomic
from switchkd_cli.files.atomic import hold, link_files, sync
from switchkd_cli.recipe.load import load
from switchkd_cli.runs import checkpoints, run_folder
from switchkd_cli.runs.claim import claim_folder, taken_over
from tests.support.small_recipe import write


def refusing(number, unless=lambda *arguments: False, instead=None):
    """A system call that says no."""

    def call(*arguments, **more):
        if unless(*arguments):
            return instead(*arguments, **more)
        raise OSError(number, os.strerror(number), str(arguments[0]))

    return call


# --- folders that can't be made, files that can't be locked


@contextmanager
def ends_at_once():
    """With a line, the machine's exit code and a hint."""
    with pytest.raises(UserError) as error:
        yield error
    assert error.value.code == MACHINE and len(error.value.problems) == 1
    assert error.value.hint == "add --out FOLDER to write elsewhere"


def test_a_folder_that_can_not_be_made_ends_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", refusing(errno.ENOENT))  # a dead automount, /proc
    with ends_at_once() as error, hold(tmp_path / "runs" / "a"):
        pass
    assert "No such file or directory" in str(error.value)


def test_a_folder_that_others_remove_meanwhile_is_made_again(tmp_path, monkeypatch):
    made, tries = Path.mkdir, []

    def late(path, *arguments, **more):
        if len(tries) < 5:
            tries.append(path)
            raise FileNotFoundError(errno.ENOENT, "removed", str(path))
        return made(path, *arguments, **more)

    monkeypatch.setattr(Path, "mkdir", late)
    with hold(tmp_path / "runs" / "a"):
        assert (tmp_path / "runs" / ".a.lock").exists()


def test_a_file_that_is_never_the_same_ends_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with ends_at_once(), hold(tmp_path / "a"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_there_the_machine_s_own_temporary_folder_has_them(tmp_path, monkeypatch, capsys, number):
    local = tmp_path / "local"
    local.mkdir()
    monkeypatch.setattr(atomic.tempfile, "gettempdir", lambda: str(local))
    here = refusing(number, unless=lambda stream, _: stream.name.startswith(str(local)), instead=fcntl.flock)
    monkeypatch.setattr(atomic.fcntl, "flock", here)
    path = tmp_path / "runs" / "a"
    with hold(path):
        assert [file.suffix for file in local.iterdir()] == [".lock"]
        with pytest.raises(UserError, match="runs/a: in use"), hold(path, wait=False):
            pass
        with hold(path.with_name("b"), wait=False):
            pass
    assert not list(local.iterdir()) and not path.parent.exists()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "on another machine" in told[0]  # once for each path


def test_whether_a_folder_s_files_can_be_locked(tmp_path, monkeypatch):
    assert atomic.can_lock(tmp_path)
    monkeypatch.setattr(atomic.fcntl, "flock", lambda *_: refusing(errno.ENOLCK)("a"))
    assert not atomic.can_lock(tmp_path) and not list(tmp_path.iterdir())


def test_without_locks_anywhere_it_ends_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.fcntl, "flock", refusing(errno.ENOLCK))
    with ends_at_once(), hold(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


# --- links, renamed folders, synced files


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK])
def test_files_are_copied_where_they_can_not_be_linked(tmp_path, monkeypatch, number):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "answers").mkdir(parents=True)
    for name in ("model", "own", "answers/pope", "answers/own"):
        (source / name).write_text(name)
    target.mkdir()
    link_files(source, target, exclude={"own", "answers"})
    assert [f.stat().st_ino for f in target.iterdir()] == [(source / "model").stat().st_ino]
    (target / "model").unlink()
    monkeypatch.setattr(os, "link", refusing(number))
    link_files(source, target)
    assert (target / "answers" / "pope").read_text() == "answers/pope"
    assert (target / "model").stat().st_ino != (source / "model").stat().st_ino


def test_what_can_not_be_copied_either_says_why(tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model").write_text("x")
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        link_files(tmp_path / "source", tmp_path / "nowhere")


@pytest.fixture
def run(tmp_path):
    return load(write(tmp_path))


def test_a_run_is_taken_over_without_links(tmp_path, run, monkeypatch):
    with claim_folder(tmp_path / "runs", run) as (folder, _):
        folder.log({"stage": "distill", "step": 1})
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    other = run_folder.RunFolder(folder.path.parents[1] / "other" / "seed0")
    with taken_over(run, folder, other) as taken:
        assert taken is not None
    assert other.metrics.read_text() == folder.metrics.read_text()
    assert other.info()["reused"]["from"] == folder.place


def test_a_run_is_moved_aside_where_folders_can_not_be_renamed(tmp_path, run, monkeypatch):
    with claim_folder(tmp_path / "runs", run) as (folder, _):
        folder.log({"stage": "distill", "step": 1})
    new = refusing(errno.EXDEV, unless=lambda path, _: ".partial" in str(path), instead=os.rename)
    monkeypatch.setattr(os, "rename", new)  # an overlay: what lies in an image's layer
    with claim_folder(tmp_path / "runs", run, overwrite=True):
        pass
    assert (folder.path.with_name("old-seed0-1") / "metrics.jsonl").exists()
    assert not folder.metrics.exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_checkpoint_is_written_where_nothing_can_be_synced(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refusing(number))
    folder = run_folder.RunFolder(tmp_path / "r" / "a" / "seed0")
    with checkpoints.writing(folder, "distill", 2) as partial:
        (partial / "state.json").write_text("{}")
    assert [one.step for one in checkpoints.saved(folder, "distill")] == [2]


def test_a_disk_that_fails_is_no_file_system_without_syncing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync(tmp_path)


# --- what the system says


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOSPC])
def test_what_the_system_says_of_a_path_is_a_line(number):
    with pytest.raises(UserError) as told, system_errors():
        error = OSError(number, os.strerror(number), "runs/x")
        error.add_note("the weights are there")
        raise error
    assert (str(told.value), told.value.code) == (f"runs/x: {os.strerror(number)}", MACHINE)
    assert told.value.__notes__ == ["the weights are there"]


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(FileNotFoundError), system_errors():
        open("nowhere")  # noqa: SIM115
