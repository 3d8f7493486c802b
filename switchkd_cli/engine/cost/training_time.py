"""Hours of a stage by what they are spent on, and the bytes that processes send one another.

With n GPUs a ring sends (n - 1) / n of the data from each GPU to the next in one pass; reduce-scatter and all-gather are
one pass, all-reduce is two. The ring goes through all GPUs, so its slowest link sets its speed: `intra_gbps` of a GPU, or
`inter_gbps` of a machine. In a step of seconds

    step = max(images, operations + communication that is not hidden)

a restart after every failure repeats what was done since the last checkpoint. With failures at random, one in M seconds,
checkpoints of d seconds every t seconds of work, and restarts of R seconds, W seconds of work take (Daly 2006, eq. 20)

    M exp(R / M) (exp((t + d) / M) - 1) W / t      least near t = sqrt(2 d M) - d (Young 1974, Daly)
"""

from collections.abc import Mapping
from math import exp, expm1, sqrt
from typing import NamedTuple

from switchkd_cli.planning.estimate import Machine, TimeTerm
from switchkd_cli.recipe.schema import Saving

GIGABIT = 1e9 / 8  # bytes
HOUR = 3600
LARGEST_EXPONENT = 700.0  # without checkpoints, a run among many failures never ends


EXCHANGES: Mapping[int, Mapping[tuple[str, str], int]] = {
    0: {("trained", "step"): 2},
    1: {("trained", "step"): 3},
    2: {("trained", "micro-batch"): 2, ("trained", "step"): 1},
    3: {("student", "micro-batch"): 2, ("trained", "micro-batch"): 1},
}
"""What processes send one another, by ZeRO stage: of which numbers and how often, and in how many passes of a ring. It is as
DDP (0) and DeepSpeed 0.19 do it with our settings; tests/cost/test_sent_bytes.py counts it. ZeRO 1 and 2
all-reduce gradients, then all-gather updated weights; 3 all-gathers weights twice and reduce-scatters gradients, as FSDP2."""


class StepWork(NamedTuple):
    """One optimiser step: its operations over all GPUs, its images, and what is sent, by `each` (parameters).

    `number`: bytes of a weight or gradient as it is sent.
    """

    flops: float
    images: float
    accumulation: int
    sizes: Mapping[str, int]
    number: int


def bytes_sent(work: StepWork, exchanges: Mapping[tuple[str, str], int], gpus: int) -> float:
    """Return the bytes that one GPU sends to the next in a step."""
    times = {"step": 1, "micro-batch": work.accumulation}
    numbers = sum(passes * work.sizes[of] * times[each] for (of, each), passes in exchanges.items())
    return work.number * numbers * (gpus - 1) / gpus


def time_terms(
    work: StepWork, steps: int, machine: Machine, gpus: int, saving: Saving, state: float, saved: float
) -> dict[str, TimeTerm]:
    """Return the hours of `steps` steps on `gpus` of the machine's GPUs, without terms that are 0.

    `state`, `saved`: bytes of a checkpoint, which one process writes while the others wait, and of the saved student.
    """
    operations = work.flops / (gpus * machine.tflops * 1e12 * machine.utilisation)
    link = min(machine.intra_gbps, machine.inter_gbps) if gpus > machine.gpus_per_node else machine.intra_gbps
    sending = bytes_sent(work, EXCHANGES[machine.sharding], gpus) / (link * GIGABIT)
    # DDP sends during a step's last micro-batch, ZeRO 3 during all, ZeRO 1 and 2 (without DeepSpeed's overlap_comm) after it
    meanwhile = {0: operations / work.accumulation, 3: operations}.get(machine.sharding, 0.0)
    busy = operations + max(0.0, sending - machine.overlap * meanwhile)
    read = work.images * machine.image_kb * 1e3 / (machine.disk_gbps * GIGABIT)
    images = max(read, work.images / gpus / machine.decode_images_per_s)
    step = max(busy, images)
    trained = steps * step
    writing = state / (machine.disk_gbps * GIGABIT)
    by_steps = saving.every_steps * step if saving.every_steps else trained
    by_minutes = 60 * saving.every_minutes if saving.every_minutes else trained
    between = min(by_steps, by_minutes, trained)
    written = writing * trained / between if between < trained else 0.0
    pause = writing if written else 0.0
    mean = machine.mtbf_hours * HOUR / gpus
    repeated = expm1(min((between + pause) / mean, LARGEST_EXPONENT)) * trained / between
    wall = mean * exp(min(60 * machine.restart_minutes / mean, LARGEST_EXPONENT)) * repeated
    of_stage: dict[str, tuple[float, float]] = {
        "operations": (steps * operations, steps * operations),
        "communication": (steps * sending, steps * (busy - operations)),
        "images": (steps * images, steps * (step - busy)),
        "checkpoints": (written + saved / (machine.disk_gbps * GIGABIT),) * 2,
        "failures": (max(0.0, wall - trained - written),) * 2,
    }
    return {name: TimeTerm(*(each / HOUR for each in both)) for name, both in of_stage.items() if any(both)}


def best_interval(state: float, machine: Machine, gpus: int) -> float:
    """Return the seconds between checkpoints of `state` bytes that lose least."""
    writing, mean = state / (machine.disk_gbps * GIGABIT), machine.mtbf_hours * HOUR / gpus
    return max(writing, sqrt(2 * writing * mean) - writing)
