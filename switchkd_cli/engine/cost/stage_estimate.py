"""One stage's steps, micro-batch, memory, operations and hours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from switchkd_cli import registry
from switchkd_cli.engine.batch import POSITIONS
from switchkd_cli.engine.cost import flops, loss_memory
from switchkd_cli.engine.cost.data_sample import DataSample
from switchkd_cli.engine.cost.step_memory import precision_of, step_memory
from switchkd_cli.engine.cost.workload import Computation, MicroBatch, ModelPair
from switchkd_cli.engine.training.data_loader import count_steps
from switchkd_cli.planning.estimate import GIB, DataEstimate, Machine, StageEstimate
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Stage
from switchkd_cli.runs import run_folder

USABLE = 0.9  # of a GPU's memory; the driver, kernels' workspaces and fragments take the rest
SAVED = 4  # bytes of a parameter of a saved student: float32


def estimate_stage(
    run: Run, index: int, models: ModelPair | None, sample: DataSample | None, machine: Machine, root: Path
) -> StageEstimate:
    """Estimate one stage; what follows from unknown models or data stays unknown.

    The micro-batch is the recipe's, or the largest that fits. Memory is that of the largest micro-batch of the sample's
    steps; operations and padding are those of its mean step.
    """
    stage, key = run.config.stages[index], run.stage_key(index)
    gpus = max(n for n in range(1, machine.gpus + 1) if stage.batch % n == 0)
    rows = sample.rows if sample else None
    estimate = StageEstimate(
        name=stage.name,
        key=key,
        reused=run_folder.stage(root, key).done,
        data=_data(stage.data, sample),
        batch=stage.batch,
        gpus=gpus,
        steps=stage.steps if rows is None else count_steps(stage, rows),
    )
    if models is None:
        return estimate
    computed = Computation(stage.paths, frozenset(stage.train), frozenset(stage.activation_checkpointing))
    trained, saved_bytes = models.parameters.trained(computed.train), SAVED * models.parameters.all
    estimate = replace(estimate, trained=trained, saved_bytes=saved_bytes)
    if sample is None:
        return estimate
    notes = []
    grouped, precision = stage.group_by is not None, precision_of(run.config.precision, machine.zero)
    logit_bytes = loss_memory.bytes_per_logit(stage.objective, precision.compute)
    if logit_bytes is None:
        logit_bytes = 2 * precision.compute * len(stage.paths)  # at least the logits and their gradients
        notes.append(f"{stage.name}: losses: not counted in memory, as a small example could not be measured")

    def micro_batches(size: int) -> Counter[MicroBatch]:
        steps = sample.micro_batches(stage.batch, size, grouped=grouped)
        return Counter(sample.padded(rows, _compared_positions(stage)) for rows in steps)

    def memory(size: int) -> dict[str, float]:
        work = computed, precision, machine, logit_bytes
        of_each = [step_memory(models, each, *work) for each in micro_batches(size)]
        return max(of_each, key=lambda components: sum(components.values()))

    sizes = [n for n in range(1, stage.batch // gpus + 1) if stage.batch // gpus % n == 0]
    memories = {n: memory(n) for n in sizes}
    fitting = [n for n in sizes if sum(memories[n].values()) <= USABLE * machine.memory * GIB]
    largest = max(fitting, default=None)
    micro = max(n for n in sizes if n <= (stage.micro_batch or largest or 1))
    counts = micro_batches(micro)
    operations = sum(
        count * sum(flops.step(models.student, models.teacher, each, computed).values())
        for each, count in counts.items()
    )
    of_step = stage.batch / micro * operations / counts.total()
    speed = gpus * machine.tflops * 1e12 * machine.utilisation
    notes += _micro_batch_notes(stage, micro, largest, stage.batch // gpus)
    if stage.teacher_states == "cached" and models.teacher is not None and estimate.steps:
        examples = min(sample.rows, estimate.steps * stage.batch)
        states = examples * sample.mean(_compared_positions(stage)) * models.teacher.language.width
        notes.append(
            f"{stage.name} writes up to {states * precision.residual / 1e9:,.2g} GB of the teacher's hidden states of "
            f"{examples:,} rows to {run_folder.STATES}/; operations are counted as if none were there yet"
        )
    return replace(
        estimate,
        micro_batch=micro,
        largest_micro_batch=largest,
        memory=memories[micro],
        padding=sample.padding(stage.batch, micro, grouped=grouped),
        flops=of_step,
        hours=estimate.steps * of_step / speed / 3600 if estimate.steps else None,
        notes=tuple(notes),
    )


def _micro_batch_notes(stage: Stage, micro: int, largest: int | None, examples: int) -> Iterator[str]:
    """Yield what the recipe should change about the micro-batch; `examples` are one GPU's in a step."""
    field = f"stages.{stage.name}.micro_batch"
    if largest is None:
        cure = f"; stages.{stage.name}.activation_checkpointing=true takes less"
        problem = f"{stage.name} does not fit: not even one row of the longest at a time"
        yield problem + cure * (not stage.activation_checkpointing)
    elif stage.micro_batch is None and micro < examples:
        yield f"set {field}={micro}: without it all {examples} rows of a GPU are held at once"
    elif stage.micro_batch is not None and largest < micro:
        yield f"{field}={micro} does not fit, {largest} does"
    elif stage.micro_batch not in (None, micro):
        yield f"{field}={stage.micro_batch} does not divide {examples} rows of a GPU: {micro} taken"


def _compared_positions(stage: Stage) -> str:
    """Return the widest kind of position at which a term of the stage compares logits or hidden states."""
    terms = [t for t in stage.objective if not registry.signature("loss", t.loss).of_images]
    kinds = {POSITIONS.index(term.on) for term in terms} or {0}
    # image tokens and some of the text: no more than everything
    return "all" if len(kinds) > 1 and POSITIONS.index("image") in kinds else POSITIONS[max(kinds)]


def _data(name: str, sample: DataSample | None) -> DataEstimate:
    if sample is None:
        return DataEstimate(name, "unknown, download it first")
    image, answer = sample.mean("image"), sample.mean("answer")
    prompt = sample.mean("length") - image - answer
    longest = max(row.length for row in sample.lengths)
    return DataEstimate(name, sample.source, sample.rows, image, prompt, answer, longest)
