"""SIGKILL at any moment: the same command again gives what an unharmed run gives, bit by bit."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support import forked, tiny_run

pytestmark = pytest.mark.slow
OPERATIONS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "link")
POINTS = 20
SEED = 5


def count_operations(die_at: int | None, count: Path | None) -> None:
    """Counts this process's changes to folders and syncs to disk; it kills itself in front of the `die_at`-th."""
    done = 0

    def counted(operation):
        def call(*arguments, **more):
            nonlocal done
            done += 1
            if count is not None:
                count.write_text(str(done))
            if done == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **more)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


def start(recipe, root, die_at=None, count=None):
    return forked.switchkd(
        *("distill", recipe, "--out", root), cwd=root.parent, first=lambda: count_operations(die_at, count)
    )


def folder(root):
    return root / "tiny" / "switch-kd" / "seed0"


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """The recipe, the folder of a run that nothing happened to, and its number of operations on the disk.

    No answer is ever right, so its validation ends the last stage at step 8 of 12; its checkpoints are written meanwhile.
    Of the terms it has the labels', one that reads the student's own answers, and the one that trains an adapter, which a
    checkpoint has to hold too.
    """
    place = tmp_path_factory.mktemp("unharmed")
    parameters = {"file": str(place / "rows.json"), "images": str(place)}
    rows = {"rows": parameters, "others": parameters | {"limit": 3}}
    validation = {"data": "others", "every_steps": 2, "patience": 3, "monitor": "validation/exact_match"}
    terms = [term for term in tiny_run.DISTILL if term["name"] in ("ce", "align", "features")]
    recipe = tiny_run.write(
        place,
        data={name: {"source": "llava_json", "parameters": each} for name, each in rows.items()},
        distill={"steps": 12, "validation": validation, "answers": {"own": 0.5, "max_tokens": 3}, "objective": terms},
        checkpoints={"every_steps": 3, "keep": 2, "best": "validation/loss"},
    )
    process = start(recipe, place / "runs", count=place / "count")
    assert process.end() == 0, process.text
    return recipe, folder(place / "runs"), int((place / "count").read_text())


def points(steps: int, operations: int) -> list[tuple[str, float]]:
    """Ten moments by the steps logged and a share of a step more; ten by the operations on the disk done."""
    chance = random.Random(SEED)
    by_steps = [("steps", round(chance.uniform(0, steps - 1), 2)) for _ in range(POINTS // 2)]
    return by_steps + [("operations", n) for n in sorted(chance.sample(range(1, operations + 1), POINTS // 2))]


def kill(recipe, root: Path, kind: str, at: float) -> bool:
    """Whether SIGKILL met the program at this operation, or after this number of logged steps and a share of 0.1 s."""
    program = start(recipe, root, die_at=int(at) if kind == "operations" else None)
    if kind == "steps":
        program.when(lambda: forked.steps(folder(root)) >= int(at))
        time.sleep(at % 1 / 10)
        program.process.kill()
    return program.end() == -signal.SIGKILL


def state_of(run: Path) -> str:
    """What the killed run left, in words."""
    there = sorted(path.name for path in (run / "checkpoints").glob("*")) if run.exists() else []
    return f"{forked.steps(run)} steps logged; {', '.join(there) or 'no checkpoints'}"


def assert_equal(run: Path, expected: Path) -> None:
    assert tiny_run.trace(run) == tiny_run.trace(expected)
    assert tiny_run.scalars(run) == tiny_run.scalars(expected)
    for model in ("model", "best"):
        weights = f"{model}/model.safetensors"
        assert (run / weights).read_bytes() == (expected / weights).read_bytes()
    assert {path.name for path in run.iterdir()} == {path.name for path in expected.iterdir()}
    assert not [path for path in run.rglob(".*")]


def test_twenty_kills(unharmed, tmp_path, capsys):
    recipe, expected, operations = unharmed
    told = []
    for number, (kind, at) in enumerate(points(forked.steps(expected), operations)):
        root = tmp_path / str(number) / "runs"
        killed = False
        while not killed and at >= 0:  # a machine may be done before its moment comes: then an earlier one
            shutil.rmtree(root, ignore_errors=True)
            killed = kill(recipe, root, kind, at)
            told.append(f"{kind:>10} {at:>6} {'killed' if killed else 'over'}: {state_of(folder(root))}")
            at -= 1
        again = start(recipe, root)
        assert again.end() == 0, (told[-1], again.text)
        assert_equal(folder(root), expected)
        assert not list((root / "stages").glob("*.partial"))
        shutil.rmtree(root)
        with capsys.disabled():
            print(f"{told[-1]}: equal", flush=True)
    assert sum("killed" in line for line in told) == POINTS, told
