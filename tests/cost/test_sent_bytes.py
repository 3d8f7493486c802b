"""What processes send one another in a step, counted on two and four gloo processes, against the plan's formula."""

import json
import subprocess
import sys

import pytest

from switchkd_cli.engine.cost.training_time import EXCHANGES, StepWork, bytes_sent
from tests.support import counted

pytestmark = pytest.mark.slow
STAGES = {"ddp": 0, "zero 1": 1, "zero 2": 2, "zero 3": 3, "fsdp2": 3}
HEADERS = 0.04  # of what is sent for these small models: gloo's headers, norms, logs


@pytest.fixture(scope="module", params=[2, 4])
def processes(request, tmp_path_factory):
    """How many processes, and what they counted."""
    folder = tmp_path_factory.mktemp(f"counted{request.param}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    done = subprocess.run(
        [*launch, counted.__file__, str(folder)], check=False, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, json.loads((folder / "counted.json").read_text())


def planned(count, case, stage):
    (number,) = case["number"]
    return bytes_sent(StepWork(0.0, 0.0, case["accumulation"], case["sizes"], number), EXCHANGES[stage], count)


@pytest.mark.parametrize("name", STAGES)
def test_collective_calls_carry_the_planned_bytes(name, processes):
    count, cases = processes
    (number,) = cases[name]["number"]
    assert planned(count, cases[name], STAGES[name]) == cases[name]["passes"] * number * (count - 1) / count
    assert number == (4 if name in ("ddp", "zero 1") else 2)  # these two cases are trained in float32


@pytest.mark.parametrize(
    "name", ["ddp", "zero 1", "zero 2"]
)  # gloo has no reduce-scatter: it all-reduces for the others
def test_connections_send_the_planned_bytes_and_few_others(name, processes):
    count, cases = processes
    ring = planned(count, cases[name], STAGES[name])
    assert ring <= cases[name]["sent"] <= (1 + HEADERS) * ring
