"""Several processes (gloo) take the steps that one takes, however the batch and the model are shared out.

All trainings of one number of processes run in one set of them; each test looks at what they left.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from switchkd_cli.engine.state import read_state
from tests import together
from tests.together import CE, VSD

pytestmark = pytest.mark.slow
VSD_ALONE = {"objective": [VSD], "train": ["vision"]}
CASES = {
    2: {
        "torch, micro 1": {"micro": 1},
        "torch, micro 2": {"micro": 2},
        "torch, micro 4": {"micro": 4},
        "zero 1": {"zero": 1, "micro": 2},
        "zero 2": {"zero": 2, "micro": 2},
        "zero 3": {"zero": 3, "micro": 2},
        "zero 3, offload": {"zero": 3, "micro": 2, "offload": "parameters"},
        "vsd alone, torch": VSD_ALONE | {"micro": 1},
        "vsd alone, zero 3": VSD_ALONE | {"micro": 1, "zero": 3},
        "interrupted, zero 3": {"zero": 3, "micro": 4, "until": 2},
        "interrupted, zero 1": {"zero": 1, "micro": 4, "until": 2},
        "bf16, zero 1": {"zero": 1, "micro": 2, "precision": "bf16"},
        "bf16, zero 2": {"zero": 2, "micro": 2, "precision": "bf16"},
        "bf16, zero 3": {"zero": 3, "micro": 2, "precision": "bf16"},
        "spoilt, torch": {"spoil": True},
        "spoilt, zero 2": {"spoil": True, "zero": 2},
        "spoilt, zero 3": {"spoil": True, "zero": 3},
    },
    4: {
        "torch, micro 1": {"micro": 1},
        "torch, micro 2": {"micro": 2},
        "zero 2": {"zero": 2, "micro": 1},
        "zero 3": {"zero": 3, "micro": 2},
        "resumed, zero 2": {"zero": 2, "after": "INTERRUPTED"},
        "resumed, zero 3": {"zero": 3, "after": "INTERRUPTED"},
    },
}
TRACED = [
    (count, name) for count, cases in CASES.items() for name in cases if name.startswith(("torch", "zero"))
]


def run(count: int, folder: Path, cases: dict) -> dict[str, tuple[list[dict], dict]]:
    """What each case came to in `count` processes: its lines and its state."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    asked = [json.dumps(case) for case in cases.values()]
    done = subprocess.run(
        [sys.executable, *command, together.__file__, str(folder), *asked],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: left(folder / f"case{number}") for number, name in enumerate(cases)}


def left(place: Path) -> tuple[list[dict], dict]:
    return json.loads((place / "lines.json").read_text()), read_state(place / "state")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, no micro-batches: the lines of three steps, and the state after them and after the first."""
    folder = tmp_path_factory.mktemp("alone")
    lines, state, _ = together.trained(folder)
    return lines, state, together.trained(folder, until=1)[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(2, tmp_path_factory.mktemp("two"), CASES[2])


@pytest.fixture(scope="module")
def four(tmp_path_factory, two):
    folder = tmp_path_factory.mktemp("four")
    after = tmp_path_factory.getbasetemp() / "two0" / f"case{list(CASES[2]).index('interrupted, zero 3')}"
    cases = {
        name: {k: str(after / "state") if v == "INTERRUPTED" else v for k, v in case.items()}
        for name, case in CASES[4].items()
    }
    return run(4, folder, cases)


@pytest.fixture(scope="module")
def results(two, four):
    return {2: two, 4: four}
