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
OPERATIONS, COMMUNICATION, IMAGES = "operations", "communication", "images"
CHECKPOINTS, FAILURES = "checkpoints", "failures"
LARGEST_EXPONENT = 700.0  # without checkpoints a run among many failures never ends


class Exchange(NamedTuple):
    """What processes send one another: `passes` of a ring over the numbers of `of`, once a `each`.

    `hidden`: it is sent while operations go on.
    """

    passes: int
    of: str
    each: str
    hidden: bool


EXCHANGES: Mapping[int, tuple[Exchange, ...]] = {
    0: (Exchange(2, "trained", "step", True),),  # DDP: all-reduce of gradients, in the step's last backward pass
    1: (Exchange(2, "trained", "step", False), Exchange(1, "trained", "step", False)),
    2: (Exchange(2, "trained", "micro-batch", False), Exchange(1, "trained", "step", False)),
    3: (Exchange(2, "student", "micro-batch", True), Exchange(1, "trained", "micro-batch", True)),
}
"""By ZeRO stage, as DeepSpeed 0.19 does it with the settings of ours (tests/cost/test_sent_bytes.py counts them): ZeRO 1 and 2
all-reduce gradients, then all-gather the updated weights; 3 all-gathers weights in both passes and reduce-scatters gradients,
as FSDP2 does."""


class StepWork(NamedTuple):
    """One optimiser step: its operations over all GPUs, its images, and what is sent, by `each` (parameters).

    `number`: bytes of a weight or gradient as it is sent.
    """

    flops: float
    images: float
    accumulation: int
    sizes: Mapping[str, int]
    number: int


def bytes_sent(work: StepWork, exchanges: tuple[Exchange, ...], gpus: int) -> float:
    """Return the bytes that one GPU sends to the next in a step."""
    times = {"step": 1, "micro-batch": work.accumulation}
    numbers = sum(e.passes * work.sizes[e.of] * times[e.each] for e in exchanges)
    return work.number * numbers * (gpus - 1) / gpus


def time_terms(
    work: StepWork, steps: int, machine: Machine, gpus: int, saving: Saving, state: float, saved: float
) -> dict[str, TimeTerm]:
    """Return the hours of `steps` steps on `gpus` of the machine's GPUs, without terms that are 0.

    `state`, `saved`: bytes of a checkpoint, which one process writes while the others wait, and of the saved student.
    """
    operations = work.flops / (gpus * machine.tflops * 1e12 * machine.utilisation)
    link = min(machine.intra_gbps, machine.inter_gbps) if gpus > machine.gpus_per_node else machine.intra_gbps
    sending = hidden = 0.0
    for exchange in EXCHANGES[machine.zero]:
        seconds = bytes_sent(work, (exchange,), gpus) / (link * GIGABIT)
        passes = (
            work.accumulation if exchange.each == "step" else 1
        )  # it is hidden behind one micro-batch, or behind all
        hidden += exchange.hidden * min(seconds, machine.overlap * operations / passes)
        sending += seconds
    busy = operations + sending - min(hidden, machine.overlap * operations)
    read = work.images * machine.image_kb * 1e3 / (machine.disk_gbps * GIGABIT)
    images = max(read, work.images / gpus / machine.decode_images_per_s)
    step = max(busy, images)
    trained = steps * step
    writing = state / (machine.disk_gbps * GIGABIT)
    between = min(checkpoint_seconds(saving, step), trained)
    written = writing * trained / between if between < trained else 0.0
    pause = writing if written else 0.0
    mean = machine.mtbf_hours * HOUR / gpus
    grown = expm1(min((between + pause) / mean, LARGEST_EXPONENT))
    wall = mean * exp(60 * machine.restart_minutes / mean) * grown * trained / between
    of_stage: dict[str, tuple[float, float]] = {
        OPERATIONS: (steps * operations, steps * operations),
        COMMUNICATION: (steps * sending, steps * (busy - operations)),
        IMAGES: (steps * images, steps * (step - busy)),
        CHECKPOINTS: (written + saved / (machine.disk_gbps * GIGABIT),) * 2,
        FAILURES: (max(0.0, wall - trained - written),) * 2,
    }
    return {name: TimeTerm(*(each / HOUR for each in both)) for name, both in of_stage.items() if any(both)}


def checkpoint_seconds(saving: Saving, step: float) -> float:
    """Return the seconds between two checkpoints, for steps that take `step` seconds; infinity if none is written."""
    by_steps = saving.every_steps * step if saving.every_steps else float("inf")
    return min(by_steps, 60 * saving.every_minutes if saving.every_minutes else float("inf"))


def best_interval(state: float, machine: Machine, gpus: int) -> float:
    """Return the seconds between checkpoints of `state` bytes that lose least."""
    writing, mean = state / (machine.disk_gbps * GIGABIT), machine.mtbf_hours * HOUR / gpus
    return max(writing, sqrt(2 * writing * mean) - writing)
