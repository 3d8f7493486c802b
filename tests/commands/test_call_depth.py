"""Few calls lie between a command and a path's forward pass, counted from the real stack of a tiny run."""

import sys
import traceback
from pathlib import Path

import pytest

import switchkd_cli
from switchkd_cli import cli
from switchkd_cli.engine.paths import Paths
from tests.support import tiny_run

MOST = 9
OURS = str(Path(switchkd_cli.__file__).parent)


@pytest.mark.slow
def test_at_most_nine_calls_from_the_command_to_a_forward_pass(tmp_path, monkeypatch):
    """Frames of torch, typer and click are not ours, and are not counted."""
    stacks = []
    forward = Paths.forward

    def recorded(self, *arguments, **more):
        stacks.append(traceback.extract_stack())
        return forward(self, *arguments, **more)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Paths, "forward", recorded)
    distill = {"steps": 1, "objective": [tiny_run.CE]}
    recipe = tiny_run.write(tmp_path, teacher=False, distill=distill)
    monkeypatch.setattr(sys, "argv", ["switchkd", "distill", str(recipe)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and stacks
    for stack in stacks:
        ours = [frame for frame in stack if frame.filename.startswith(OURS)]
        start = max(i for i, frame in enumerate(ours) if frame.name == "distill" and frame.filename == cli.__file__)
        calls = [f"{frame.filename[len(OURS) + 1 :]}: {frame.name}" for frame in ours[start + 1 :]] + ["forward"]
        assert len(calls) <= MOST, "\n".join(calls)
