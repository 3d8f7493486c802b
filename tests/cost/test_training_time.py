"""The plan's hours by term: rings, what is hidden, images, checkpoints; failures against a simulation."""

import heapq
import math
import random
from types import SimpleNamespace

import pytest

from switchkd_cli.engine.cost.training_time import StepWork, best_interval, time_terms
from switchkd_cli.planning.estimate import Machine
from switchkd_cli.recipe.schema import Saving

HOUR = 3600
NEVER = Saving(every_minutes=None)
READS = {"decode_images_per_s": 1e9, "image_kb": 1e-9}
"""A machine that reads images in no time."""
QUIET = READS | {"mtbf_hours": 1e12}
"""One that also never fails."""


def terms(machine, steps=1000, *, gpus=None, saving=NEVER, state=0.0, **more):
    settings = {"flops": 1e15, "images": 64.0, "accumulation": 1, "sizes": {"trained": 10**9, "student": 10**9}}
    work = StepWork(**settings | {"number": 2} | more)
    return time_terms(work, steps, machine, gpus or machine.gpus, saving, state, 0.0)


def test_one_gpu_has_operations_alone():
    found = terms(Machine(gpus=1, **QUIET), images=0.0)
    assert {name for name, term in found.items() if term.takes > 1e-6} == {"operations"}
    assert found["operations"].adds == pytest.approx(1000 * 1e15 / (989e12 * 0.35) / HOUR)


@pytest.mark.parametrize(("zero", "passes"), [(0, 2), (1, 3), (2, 3), (3, 3)])
@pytest.mark.parametrize("gpus", [2, 8, 64])
def test_a_ring_sends_its_passes_over_the_slowest_link(zero, passes, gpus):
    machine = Machine(gpus=gpus, zero=zero, overlap=0, intra_gbps=800, inter_gbps=400, **QUIET)
    link = 400 if gpus > 8 else 800
    seconds = passes * 2e9 * (gpus - 1) / gpus / (link * 1e9 / 8)
    sent = terms(machine)["communication"]
    assert [sent.takes, sent.adds] == pytest.approx([1000 * seconds / HOUR] * 2)


def test_zero_2_sends_gradients_once_a_micro_batch():
    machine = Machine(gpus=8, zero=2, **QUIET)
    once, thrice = (terms(machine, accumulation=count)["communication"].takes for count in (1, 3))
    assert thrice / once == pytest.approx((2 * 3 + 1) / (2 + 1))


def test_ddp_hides_gradients_behind_the_last_micro_batch_alone():
    machine = Machine(gpus=8, zero=0, overlap=0.5, intra_gbps=8, **QUIET)  # slow: what fits behind it is hidden
    for accumulation in (1, 4):
        found = terms(machine, accumulation=accumulation)
        hidden = found["communication"].takes - found["communication"].adds
        assert hidden == pytest.approx(0.5 * found["operations"].takes / accumulation)
    fast = terms(machine.model_copy(update={"intra_gbps": 1e6}))["communication"]
    assert fast.takes > 0 and fast.adds == pytest.approx(0)


def test_images_add_what_operations_do_not_cover():
    quick, slow = ({"decode_images_per_s": rate, "mtbf_hours": 1e12} for rate in (1e6, 10.0))
    machine = Machine(gpus=8, disk_gbps=1e6)
    covered = terms(machine.model_copy(update=quick))
    assert covered["images"].adds == 0 < covered["images"].takes
    waited = terms(machine.model_copy(update=slow))
    assert waited["images"].takes == pytest.approx(1000 * 64 / 8 / 10 / HOUR)
    total = sum(waited[name].adds for name in ("operations", "communication", "images"))
    assert total == pytest.approx(waited["images"].takes)  # they bound


def test_all_machines_share_the_disk():
    machine = Machine(gpus=512, disk_gbps=8, image_kb=1000, decode_images_per_s=1e9)
    assert terms(machine, images=512.0)["images"].takes == pytest.approx(1000 * 512e6 / 1e9 / HOUR)


def test_checkpoints_are_written_by_one_process_from_time_to_time():
    machine = Machine(gpus=1, disk_gbps=8, **QUIET)
    found = terms(machine, saving=Saving(every_steps=100, every_minutes=None), state=5e9)
    assert found["checkpoints"].adds == pytest.approx(10 * 5 / HOUR)
    assert "checkpoints" not in terms(
        machine, saving=Saving(every_steps=2000, every_minutes=None), state=5e9
    )  # more than there are


def simulated(work: float, every: float, writing: float, restart: float, mtbf: float, gpus: int, draw: random.Random):
    """Seconds until `work` seconds are done: each GPU fails at its own random times, and all resume from a checkpoint."""
    failures = [draw.expovariate(1 / mtbf) for _ in range(gpus)]
    heapq.heapify(failures)
    clock = done = 0.0
    while done < work:
        goal = min(every, work - done)
        if failures[0] >= clock + goal + writing:
            clock, done = clock + goal + writing, done + goal
            continue
        ready = 0.0
        while not ready or failures[0] < ready:  # a failure during a restart starts it again
            clock = failures[0]
            heapq.heapreplace(failures, clock + draw.expovariate(1 / mtbf))
            ready = clock + restart
        clock = ready
    return clock


@pytest.mark.parametrize("mtbf_hours", [50_000, 2_000])
@pytest.mark.parametrize("gpus", [8, 64, 512, 4096])
def test_failures_cost_what_a_simulation_of_every_gpu_costs(gpus, mtbf_hours):
    machine = Machine(gpus=gpus, mtbf_hours=mtbf_hours, disk_gbps=1, **READS)
    steps, writing = 200_000, 40.0  # seconds for a checkpoint
    found = terms(
        machine, steps, saving=Saving(every_minutes=20), state=writing * 1e9 / 8, flops=gpus * 1e15, images=0.0
    )
    work = sum(found[name].adds for name in ("operations", "communication")) * HOUR
    draw = random.Random(gpus)
    runs = [simulated(work, 1200, writing, 600, mtbf_hours * HOUR, gpus, draw) for _ in range(20)]
    lost = sum(runs) / len(runs) - work * (1 + writing / 1200)
    assert sum(term.adds for term in found.values()) * HOUR == pytest.approx(sum(runs) / len(runs), rel=0.05)
    if work / (mtbf_hours * HOUR / gpus) > 50:  # with enough failures the term itself can be compared
        assert found["failures"].adds * HOUR == pytest.approx(lost, rel=0.05)


@pytest.mark.parametrize("gpus", [64, 4096])
def test_the_best_interval_loses_least(gpus):
    machine, state = Machine(gpus=gpus, disk_gbps=1, **READS), 5e9
    best = best_interval(state, machine, gpus)

    def hours(seconds):
        saving = SimpleNamespace(every_steps=None, every_minutes=seconds / 60)
        return sum(term.adds for term in terms(machine, 10**6, saving=saving, state=state).values())

    others = [hours(best * factor) for factor in (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)]
    assert hours(best) <= 1.0002 * min(others) and max(others) > hours(best)
    writing, mean = state / (1e9 / 8), machine.mtbf_hours * HOUR / gpus
    assert best == pytest.approx(math.sqrt(2 * writing * mean) - writing)


def test_a_machine_that_always_fails_gives_a_number_and_no_error():
    assert terms(Machine(gpus=4096, mtbf_hours=1e-6))["failures"].adds > 1e100
