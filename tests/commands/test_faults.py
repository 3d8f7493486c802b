"""Faults of a long run, really caused: what the user sees, and what is left on the disk."""

import errno
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import LlavaProcessor

from switchkd_cli.engine import run_stages
from switchkd_cli.engine.data import conversation
from switchkd_cli.engine.models import model_folder as checkpoint
from switchkd_cli.engine.training import checkpointing
from tests.support import forked, tiny, tiny_run
from tests.support.forked import steps, switchkd

pytestmark = pytest.mark.slow
SECRET = "sentinel-8c1f-of-the-environment"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A recipe without a teacher, and a run of it that nothing happened to."""
    place = tmp_path_factory.mktemp("plain")
    recipe = tiny_run.write(place, teacher=False)
    program = switchkd("distill", recipe, "--out", place / "runs", cwd=place)
    assert program.end() == 0, program.text
    return recipe, folder(place / "runs")


def folder(root: Path) -> Path:
    return root / "tiny" / "switch-kd" / "seed0"


def info(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def saved(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir())


def assert_equal(run: Path, expected: Path) -> None:
    """Finished, with the trace and the weights of the unharmed run."""
    assert info(run)["status"] == "finished"
    assert tiny_run.trace(run) == tiny_run.trace(expected)
    assert tiny_run.scalars(run) == tiny_run.scalars(expected)
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (expected / weights).read_bytes()


def again(recipe, root, expected):
    """The same command comes to its end as if nothing had happened."""
    program = switchkd("distill", recipe, "--out", root, cwd=root.parent)
    assert program.end() == 0, program.text
    assert_equal(folder(root), expected)
    return program


def data(folder: Path, **more) -> dict:
    """A data set of the folder's own."""
    parameters = {"file": str(folder / "rows.json"), "images": str(folder)}
    return {"data": {"rows": {"source": "llava_json", "parameters": parameters, **more}}}


def logged(run: Path) -> str:
    """The stages of which a step is logged."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return " ".join(json.loads(line)["stage"] for line in lines if '"grad_norm"' in line)


# --- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_last_line_resumes(plain, tmp_path, number, code):
    recipe, expected = plain
    root = tmp_path / "runs"
    program = switchkd("distill", recipe, "checkpoints.every_steps=null", "--out", root, cwd=tmp_path)
    program.when(lambda: steps(folder(root)) >= 5)
    os.kill(program.process.pid, number)
    assert program.end() == code
    taken = steps(folder(root)) - 3
    assert saved(folder(root)) == [f"distill-{taken}"]
    assert info(folder(root))["status"] == "interrupted"
    *_, told, last = program.lines
    name = signal.Signals(number).name
    assert told == f"stopped: {name}: stage distill, after step {taken} of 8: saved"
    assert last == f"resume: switchkd distill {recipe} checkpoints.every_steps=null --out {root} --resume"
    words = shlex.split(last.removeprefix("resume: switchkd "))
    assert switchkd(*words, cwd=tmp_path).end() == 0
    assert_equal(folder(root), expected)


def test_a_run_is_resumed_by_its_folder_or_as_the_newest(plain, tmp_path):
    recipe, expected = plain
    root = tmp_path / "runs"
    for words in ((folder(root), "--resume"), ("--resume", "--out", root)):
        program = switchkd("distill", recipe, "--out", root, cwd=tmp_path)
        program.when(lambda: steps(folder(root)) >= 5).process.terminate()
        assert program.end() == 143
        program = switchkd("distill", *words, cwd=tmp_path)
        assert program.end() == 0, program.text
        assert "resumes from stage distill" in program.text
        assert_equal(folder(root), expected)
        shutil.rmtree(root)
    program = switchkd("distill", "--resume", "--out", root, cwd=tmp_path)
    assert program.end() == 2 and "no interrupted run" in program.text


def test_an_interrupted_matrix_is_resumed(plain, tmp_path):
    recipe, _ = plain
    text = recipe.read_text() + "  slow: {set: {stages.distill.lr: 5.0e-4}}\n"
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(text)
    root, other = tmp_path / "runs", tmp_path / "other"
    longer = "stages.distill.steps=40"  # so that both are at it at the same time, however late one begins
    words = ("ablate", recipe, longer, "--jobs", 2, "--out")
    unharmed = switchkd(*words, other, cwd=tmp_path, first=forked.workers)
    assert unharmed.end() == 0, unharmed.text
    program = switchkd(*words, root, cwd=tmp_path, first=forked.workers)
    both = [Path("tiny") / row / "seed0" for row in ("switch-kd", "slow")]
    program.when(lambda: all("distill" in logged(root / run) for run in both)).process.terminate()
    assert program.end() == 143, program.text
    assert program.lines[-1] == f"resume: switchkd ablate {recipe} {longer} --jobs 2 --out {root} --resume"
    ends = [line for line in program.lines if "stage distill, after step" in line and "saved" in line]
    assert len(ends) == 2, program.text
    assert [info(root / run)["status"] for run in both] == ["interrupted"] * 2
    program = switchkd(
        *shlex.split(program.lines[-1].removeprefix("resume: switchkd ")), cwd=tmp_path, first=forked.workers
    )
    assert program.end() == 0, program.text
    for run in both:
        expected = tiny_run.trace(other / run)
        assert [step for step in tiny_run.trace(root / run) if "step" in step and step["stage"] == "distill"] == [
            step for step in expected if "step" in step and step["stage"] == "distill"
        ]  # which of the two trains the stage that they share is the race's
        assert info(root / run)["status"] == "finished"


# --- the machine


def test_memory_that_does_not_suffice(tmp_path):
    """A row of 20,000 words, and an address space that does not hold its attention."""
    rows = [*tiny.rows(tmp_path), tiny.row("long", None, ("Say it.", "one two " * 10_000))]
    recipe = tiny_run.write(tmp_path, teacher=False, rows=rows, distill={"batch": 10, "micro_batch": 5})

    def limit():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))

    made_for = "student.language.fresh.max_position_embeddings=65536"
    words = ("distill", recipe, "stages.pretrain.batch=4", made_for, "--out", tmp_path / "runs")
    program = switchkd(*words, cwd=tmp_path, first=limit)
    assert program.end() == 3
    first, alive, rest, hint = program.lines[-4:]
    assert "out of memory" in first and "alive: trained weights" in alive and "examples padded to" in rest
    assert hint.startswith("hint: stages.") and ".micro_batch=" in hint
    assert "stages.pretrain.activation_checkpointing=true" in hint


def test_a_full_disk_leaves_the_last_checkpoint(plain, tmp_path):
    recipe, expected = plain
    root = tmp_path / "runs"
    program = switchkd("distill", recipe, "--out", root, cwd=tmp_path)
    first = folder(root) / "checkpoints" / "distill-2"
    program.when(first.is_dir)
    size = (first / "state.safetensors").stat().st_size
    resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (size // 2, size // 2))
    assert program.end() == 3, program.text
    problem, hint = program.lines[-2:]
    assert "could not be written" in problem and "File too large" in problem
    assert hint.startswith("hint: the newest intact checkpoint is checkpoints/distill-")
    assert [name for name in saved(folder(root)) if name in hint]
    assert not list((folder(root) / "checkpoints").glob(".*"))
    assert info(folder(root))["status"] == "failed"
    again(recipe, root, expected)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one and a half MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_really_full(plain, tmp_path, small_disk):
    recipe, expected = plain
    root = small_disk / "runs"
    program = switchkd("distill", recipe, "--out", root, cwd=tmp_path)
    program.when((folder(root) / "checkpoints" / "distill-2").is_dir)
    filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        while os.write(filler, b"0" * 4096):
            pass
    os.close(filler)
    assert program.end() == 3, program.text
    assert "No space left on device" in program.text and "Traceback" not in program.text
    assert "distill-2" in saved(folder(root)) or "distill-4" in saved(folder(root))
    shutil.move(small_disk / "runs", tmp_path / "runs")
    again(recipe, tmp_path / "runs", expected)


# --- the last step


def test_a_student_that_can_not_be_saved_is_refused_before_the_first_step(plain, tmp_path):
    recipe, _ = plain

    def refuse():
        def save(*arguments, **more):
            raise ValueError("this processor is not to be saved")

        LlavaProcessor.save_pretrained = save

    program = switchkd("distill", recipe, "--out", tmp_path / "runs", cwd=tmp_path, first=refuse)
    assert program.end() == 2, program.text
    assert program.lines == ["student: it could not be saved after training: this processor is not to be saved"]
    assert not folder(tmp_path / "runs").exists()


def test_a_disk_that_is_too_small_for_the_student_is_reported_before_the_first_step(plain, tmp_path):
    recipe, _ = plain

    def little():
        run_stages.shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000)

    program = switchkd("distill", recipe, "--out", tmp_path / "runs", cwd=tmp_path, first=little)
    assert program.end() == 3, program.text
    assert "0 MiB are free, the student alone takes" in program.lines[0]
    assert not folder(tmp_path / "runs").exists()


def test_weights_that_can_not_be_saved_stay_and_the_same_command_saves_them(plain, tmp_path):
    recipe, expected = plain
    root = tmp_path / "runs"

    def fails():
        saved = checkpoint._save_model

        def save(model, target, *, weights):
            if weights and (folder(root) / "checkpoints" / "distill-8").exists():
                raise OSError(errno.EIO, "Input/output error", str(target))
            saved(model, target, weights=weights)

        checkpoint._save_model = save

    words = ("distill", recipe, "checkpoints.every_steps=null", "--out", root)
    program = switchkd(*words, cwd=tmp_path, first=fails)
    assert program.end() == 3, program.text
    problem, note = program.lines[-2:]
    assert problem.endswith(": Input/output error") and "Traceback" not in program.text
    newest = "the newest intact checkpoint is checkpoints/distill-8"
    assert note == f"{newest}: the same command resumes from there"
    assert saved(folder(root)) == ["distill-8"]
    program = switchkd(*words, cwd=tmp_path)
    assert program.end() == 0, program.text
    assert "resumes from stage distill, step 8" in program.text
    assert_equal(folder(root), expected)


def test_a_student_is_saved_where_its_last_checkpoint_has_no_room(plain, tmp_path):
    recipe, expected = plain

    def full():
        def fails(state, target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

        checkpointing.write_state = fails

    words = ("checkpoints.every_steps=null", "--out", tmp_path / "runs")
    program = switchkd("distill", recipe, *words, cwd=tmp_path, first=full)
    assert program.end() == 0, program.text
    assert "warning distill: checkpoints/distill-8: could not be written" in program.text
    weights = "model/model.safetensors"
    assert (folder(tmp_path / "runs") / weights).read_bytes() == (expected / weights).read_bytes()


def test_weights_that_the_last_step_made_infinite_are_no_model(plain, tmp_path):
    recipe, _ = plain
    root = tmp_path / "runs"
    words = ("stages.distill.lr=1.0e39", "stages.distill.steps=1", "stages.distill.warmup=0", "--out", root)
    program = switchkd("distill", recipe, *words, cwd=tmp_path)
    assert program.end() == 1, program.text
    assert "distill-1: not written, the weights are lost: not finite" in program.text
    assert not (folder(root) / "model").exists()


def test_a_run_ends_well_where_there_are_no_links(plain, tmp_path):
    recipe, expected = plain

    def no_links():
        def link(source, target, **more):
            raise PermissionError(errno.EPERM, "Operation not permitted", str(source))

        os.link = link

    root = tmp_path / "runs"
    program = switchkd("distill", recipe, "--out", root, cwd=tmp_path, first=no_links)
    assert program.end() == 0, program.text
    assert_equal(folder(root), expected)


def test_nobody_who_reads_what_is_printed_ends_no_run(plain, tmp_path):
    recipe, expected = plain

    def hang_up():
        broken, nobody = os.pipe()
        os.close(broken)
        os.dup2(nobody, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115

    root = tmp_path / "runs"
    program = switchkd("distill", recipe, "--out", root, cwd=tmp_path, first=hang_up)
    assert program.end() == 0, program.text
    assert_equal(folder(root), expected)


# --- others


def test_of_two_runs_on_one_folder_the_second_is_refused(plain, tmp_path):
    recipe, expected = plain
    root = tmp_path / "runs"
    first = switchkd("distill", recipe, "--out", root, cwd=tmp_path).when(lambda: steps(folder(root)) >= 1)
    second = switchkd("distill", recipe, "--out", root, cwd=tmp_path)
    assert second.end() == 2
    assert "in use by a running process" in second.text and "--out FOLDER" in second.lines[-1]
    assert first.end() == 0
    assert_equal(folder(root), expected)


# --- the data


def test_a_data_folder_that_may_not_be_written_to_is_not(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    recipe = tiny_run.write(place, teacher=False)
    recipe = recipe.rename(tmp_path / "tiny.yaml")
    for path in (*place.iterdir(), place):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in (place, *place.rglob("*"))}
    program = switchkd("distill", recipe, "--out", tmp_path / "runs", cwd=tmp_path)
    assert program.end() == 0, program.text
    assert {path: path.stat().st_mtime_ns for path in (place, *place.rglob("*"))} == before
    place.chmod(0o755)


def nothing_kept():
    """Every image is read again each time, as in a set that is too large for the memory."""
    conversation.CACHE_BYTES = 0


def test_a_data_folder_that_vanishes(tmp_path):
    place, away = tmp_path / "data", tmp_path / "away"
    place.mkdir()
    pictured = [row for row in tiny.rows(place) if "image" in row]
    recipe = tiny_run.write(place, teacher=False, rows=pictured, **data(place, max_faults=0.9))
    recipe = recipe.rename(tmp_path / "tiny.yaml")
    expected = switchkd("distill", recipe, "--out", tmp_path / "expected", cwd=tmp_path, first=nothing_kept)
    assert expected.end() == 0, expected.text
    root = tmp_path / "runs"
    program = switchkd("distill", recipe, "--out", root, cwd=tmp_path, first=nothing_kept)
    program.when(lambda: steps(folder(root)) >= 5)
    place.rename(away)
    assert program.end() == 2, program.text
    assert program.lines[-1] == "hint: check that the images are still there"
    assert saved(folder(root))[-1] == f"distill-{steps(folder(root)) - 3}"
    away.rename(place)
    again(recipe, root, folder(tmp_path / "expected"))


@pytest.mark.parametrize(("allowed", "code"), [(0.5, 0), (0.0, 2)])
def test_a_picture_that_breaks_while_it_runs(tmp_path, allowed, code):
    recipe = tiny_run.write(tmp_path, teacher=False, **data(tmp_path, max_faults=allowed))
    root = tmp_path / "runs"
    program = switchkd("distill", recipe, "--out", root, cwd=tmp_path, first=nothing_kept)
    program.when(lambda: steps(folder(root)) >= 4)
    picture = tmp_path / "c.png"
    picture.write_bytes(picture.read_bytes()[:100])
    assert program.end() == code, program.text
    assert "unreadable image" in program.text if code else "skipped" in program.text
    (line,) = (folder(root) / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "c"
    if not code:
        assert "inputs changed" in program.text and info(folder(root))["key"] == ""  # never reused


# --- checkpoints


def interrupted(recipe, root):
    """A run with two checkpoints of its last stage."""
    program = switchkd("distill", recipe, "--out", root, cwd=root.parent)
    program.when(lambda: (folder(root) / "checkpoints" / "distill-4").is_dir()).process.kill()
    program.end()
    return folder(root) / "checkpoints"


def truncate(checkpoint):
    file = checkpoint / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    return "bytes of"


def flip(checkpoint):
    file = checkpoint / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    return "state.safetensors is not what was written (sha256)"


def lose_manifest(checkpoint):
    (checkpoint / "manifest.json").unlink()
    return "manifest.json is missing or broken"


@pytest.mark.parametrize("damage", [truncate, flip, lose_manifest])
def test_a_damaged_checkpoint_is_not_used_and_the_one_before_is(plain, tmp_path, damage):
    recipe, expected = plain
    root = tmp_path / "runs"
    checkpoints = interrupted(recipe, root)
    newest = max(checkpoints.glob("distill-*"), key=lambda path: int(path.name.partition("-")[2]))
    told = damage(newest)
    program = again(recipe, root, expected)
    (line,) = [line for line in program.lines if line.endswith(": not used")]
    assert f"checkpoints/{newest.name}: " in line and told in line


def test_where_no_checkpoint_is_whole_the_run_is_refused(plain, tmp_path):
    recipe, _ = plain
    root = tmp_path / "runs"
    checkpoints = interrupted(recipe, root)
    names = saved(folder(root))
    for name in names:
        truncate(checkpoints / name)
    program = switchkd("distill", recipe, "--out", root, cwd=tmp_path)
    assert program.end() == 1
    assert "no checkpoint of stage distill is intact" in program.text and "--overwrite" in program.lines[-1]
    assert saved(folder(root)) == names


def test_a_program_that_changed_since_asks(plain, tmp_path):
    recipe, expected = plain
    root = tmp_path / "runs"
    interrupted(recipe, root)
    record = folder(root) / "run.json"
    record.write_text(record.read_text().replace('"torch": "2', '"torch": "1'))
    program = switchkd("distill", recipe, "--out", root, cwd=tmp_path)
    assert program.end() == 2
    assert "begun with torch 1" in program.text and "--resume" in program.lines[-1]
    assert switchkd("distill", recipe, "--out", root, "--resume", cwd=tmp_path).end() == 0
    assert_equal(folder(root), expected)


# --- scores


def test_an_evaluation_that_fails_half_way_is_a_failure_and_only_it_is_done_again(plain, tmp_path):
    recipe, _ = plain
    scored = {"world": "playground", "benchmarks": ["gqa", "pope"], "items": 4, "split": "validation"}
    words = [f"evaluation={json.dumps(scored)}", "--out", tmp_path / "runs"]

    def half_way():
        from lmms_eval.api.task import ConfigurableTask

        scores = ConfigurableTask.process_results

        def fails(self, *arguments, **more):
            if self.config.task == "pope":
                raise RuntimeError("the second benchmark failed")
            return scores(self, *arguments, **more)

        fails.retry = scores.retry
        ConfigurableTask.process_results = fails

    program = switchkd("distill", recipe, *words, cwd=tmp_path, first=half_way)
    assert program.end() == 1, program.text
    run = folder(tmp_path / "runs")
    assert "the second benchmark failed" in program.text
    assert f"the trained student is {run.relative_to(tmp_path)}/model: the same command" in program.lines[-1]
    assert info(run)["status"] == "failed" and not (run / "results.json").exists()
    logged = steps(run)
    program = switchkd("distill", recipe, *words, cwd=tmp_path)
    assert program.end() == 0, program.text
    assert "resumes from its scores" in program.text
    assert set(json.loads((run / "results.json").read_text())["scores"]) == {"gqa", "pope"}
    assert steps(run) == logged and info(run)["status"] == "finished"


# --- determinism and secrets


def test_two_runs_with_one_seed_are_bit_equal_and_hold_no_secret(plain, tmp_path):
    recipe, expected = plain

    def secret():
        os.environ |= {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET, "SOME_PASSWORD": SECRET}

    root = tmp_path / "runs"
    program = switchkd("distill", recipe, "--out", root, cwd=tmp_path, first=secret)
    assert program.end() == 0, program.text
    assert_equal(folder(root), expected)
    held = [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not held and SECRET not in program.text
    assert forked.steps(folder(root)) == 11
