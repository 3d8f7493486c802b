"""A run's forecast: its models, and each stage's steps, memory, operations and hours."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from switchkd_cli import registry
from switchkd_cli.engine.compatibility import Vocabulary, agree, noted, positions
from switchkd_cli.engine.cost.data_sample import CUT, Look, look
from switchkd_cli.engine.cost.downloads import downloads
from switchkd_cli.engine.cost.model_facts import PUBLISHED, Known, Unknown, known
from switchkd_cli.engine.cost.parameters import Parameters, parameters
from switchkd_cli.engine.cost.shape import shape
from switchkd_cli.engine.cost.stage import Pairing, looked_at, step_forecast
from switchkd_cli.engine.cost.step_memory import precision_of
from switchkd_cli.engine.models.llava import image_tokens_of
from switchkd_cli.engine.training.data_loader import steps_of
from switchkd_cli.engine.training.training_warnings import check_pictures
from switchkd_cli.planning.estimate import DataForecast, Forecast, Machine, ModelForecast, StageForecast
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Checkpoint, Fresh, Model, Term
from switchkd_cli.runs import run_folder

SAVED = 4  # bytes of a parameter of a saved student: float32
WASTED = 0.05  # share of padding, beyond what is left with group_by, that is worth a word
STATE = 12  # bytes of a trained parameter in a checkpoint: itself and AdamW's two moments


def forecast(run: Run, machine: Machine, root: Path, made: Mapping[Path, Run]) -> Forecast:
    """What the run needs. `made` holds, by their model folders, runs that this recipe can make a checkpoint with.

    Raises UserError where student and teacher are both here and don't fit each other, a data file is no data, or a
    stage needs pictures that its data have not.
    """
    config = run.config
    student = known(config.student, "student", made, speaks=config.needs_template)
    models = {"student": (config.student, student)}
    if config.teacher is not None:
        scored = config.evaluation is not None  # as a teacher it reads what the student reads
        models["teacher"] = config.teacher, known(config.teacher, "teacher", made, speaks=scored)
    taught = any(stage.needs_teacher for stage in config.stages)  # else the teacher is only scored
    teacher = models["teacher"][1] if taught else None
    terms = [term for stage in config.stages for term in stage.objective]
    vocabulary, differing = _vocabulary(student, teacher, terms)
    sizes = {who: parameters(m.config) for who, (_, m) in models.items() if isinstance(m, Known)}
    pairing = None
    if vocabulary and isinstance(student, Known):
        pairing = Pairing(shape(student.config), sizes["student"], vocabulary.shared)
        if teacher is not None:  # it stays in memory in every stage, as it is built before the first
            pairing = replace(pairing, teacher=shape(teacher.config), teacher_size=sizes["teacher"].all)
    looks: dict[str, Look | None] = dict.fromkeys(stage.data for stage in config.stages)
    with tempfile.TemporaryDirectory() as scratch:
        for name in looks if isinstance(student, Known) else ():
            theirs = teacher.config if isinstance(teacher, Known) else None
            most = positions(name, config.stages, student.config, theirs)
            looks[name] = look(config.data[name], student, root, Path(scratch), most)
    check_pictures(config.stages, {name: seen.pictured for name, seen in looks.items() if seen})
    told = tuple(_model(who, spec, model, sizes.get(who)) for who, (spec, model) in models.items())
    stages = tuple(_stage(run, i, pairing, looks[s.data], machine, root) for i, s in enumerate(config.stages))
    return Forecast(
        machine,
        told,
        str(vocabulary) if vocabulary else "vocabulary: unknown until both models are here",
        stages,
        tuple(downloads(config, sizes)),
        (
            *differing,
            *(f"{name}: {note}" for name, seen in looks.items() if seen for note in seen.notes),
            *_notes(run, [model for _, model in models.values()], looks, machine),
            *_micro_batches(run, stages),
            *_padding(run, stages),
            *_checkpoints(run, stages),
            *_states(run, stages, pairing, looks, machine),
        ),
    )


def _vocabulary(
    student: Known | Unknown, teacher: Known | Unknown | None, terms: Sequence[Term]
) -> tuple[Vocabulary | None, list[str]]:
    """What would be decided and noted; by the models' contract where both are here."""
    if isinstance(student, Unknown) or isinstance(teacher, Unknown):
        return None, []
    if student.blueprint and (teacher is None or teacher.blueprint):
        both = student.blueprint, teacher.blueprint if teacher else None
        return agree(*both, terms), noted(*both)
    width = teacher.config.text_config.vocab_size if teacher else None
    return Vocabulary(student.tokens, student.config.text_config.vocab_size, width), []


def _model(who: str, spec: Model, model: Known | Unknown, size: Parameters | None) -> ModelForecast:
    parts = (
        (spec.vision, spec.projector, spec.language)
        if not isinstance(spec, Checkpoint)
        else (spec.checkpoint,)
    )
    name = " + ".join("fresh" if isinstance(part, Fresh) else part for part in parts)
    tokens = image_tokens_of(model.config) if isinstance(model, Known) else None
    return ModelForecast(who, name, size.total if size else {}, tokens, model.source)


def _stage(
    run: Run, index: int, pairing: Pairing | None, seen: Look | None, machine: Machine, root: Path
) -> StageForecast:
    stage = run.config.stages[index]
    key = run.stage_key(index)
    rows = seen.rows if seen else None
    steps = steps_of(stage, rows) if stage.steps or rows else None
    step = step_forecast(stage, pairing, seen, machine, run.config.precision) if pairing and seen else None
    gpus = max(n for n in range(1, machine.gpus + 1) if stage.batch % n == 0)
    seconds = (
        steps * step.flops / (gpus * machine.tflops * 1e12 * machine.utilisation) if step and steps else None
    )
    return StageForecast(
        name=stage.name,
        data=_data(stage.data, seen),
        reused=run_folder.stage(root, key).done,
        steps=steps,
        batch=stage.batch,
        gpus=gpus,
        micro=step.micro if step else None,
        largest=step.largest if step else None,
        padding=step.padding if step else None,
        grouped=step.grouped if step else None,
        trained=pairing.size.trained(frozenset(stage.train)) if pairing else None,
        memory=step.memory if step else {},
        flops=step.flops if step else None,
        hours=seconds / 3600 if seconds is not None else None,
        checkpoint=SAVED * pairing.size.all if pairing else None,
        key=key,
    )


def _data(name: str, seen: Look | None) -> DataForecast:
    if seen is None:
        return DataForecast(name, None, None, None, None, None, "unknown, download it first")
    image, answer = seen.mean("image"), seen.mean("answer")
    prompt = seen.mean("length") - image - answer
    longest = max(row.length for row in seen.seen)
    return DataForecast(name, seen.rows, image, prompt, answer, longest, seen.source)


def _notes(
    run: Run, models: list[Known | Unknown], looks: Mapping[str, Look | None], machine: Machine
) -> list[str]:
    """What the figures rest on."""
    notes = []
    if any(model.source == PUBLISHED for model in models):
        notes.append(
            "shapes of models that are not here are as published; that teacher and student fit is checked when they are"
        )
    uncut = [name for name in looks if looks[name] and run.config.data[name].max_length is None]
    if guessed := [name for name in uncut if looks[name].source.startswith("an assumption")]:
        notes.append(
            f"rows of {', '.join(guessed)} are taken to be cut at {CUT:,} tokens, but max_length is not set: the longest "
            "row decides the memory"
        )
    terms = [term for stage in run.config.stages for term in stage.objective]
    if pictured := {term.loss for term in terms if registry.signature("loss", term.loss).of_images}:
        notes.append(
            f"{run.row}: what {', '.join(sorted(pictured))} compare, and adapters, are not in memory and operations; a teacher "
            "that they read is counted with all its layers, more than runs"
        )
    if machine.gpus > 1:
        notes.append(
            f"planned for {machine.gpus} GPUs: --gpus {machine.gpus} trains on so many of this machine"
        )
    if machine.zero != run.config.deepspeed.zero:
        notes.append(f"planned for ZeRO-{machine.zero}: deepspeed.zero={machine.zero} trains with it")
    return notes


def _micro_batches(run: Run, stages: Sequence[StageForecast]) -> Iterator[str]:
    """What the recipe should say of micro-batches and does not."""
    for stage, figures in zip(run.config.stages, stages, strict=True):
        field, each = f"stages.{stage.name}.micro_batch", figures.batch // figures.gpus
        if figures.micro is None:
            continue
        if figures.largest is None:
            leaner = f"; stages.{stage.name}.activation_checkpointing=true takes less"
            told = f"{run.row}: {stage.name} does not fit: not even one row of the longest at a time"
            yield told + leaner * (not stage.activation_checkpointing)
        elif stage.micro_batch is None and figures.micro < each:
            yield f"{run.row}: set {field}={figures.micro}: without it all {each} rows of a GPU are held at once"
        elif stage.micro_batch is not None and figures.largest < figures.micro:
            yield f"{run.row}: {field}={figures.micro} does not fit, {figures.largest} does"
        elif stage.micro_batch not in (None, figures.micro):
            yield f"{run.row}: {field}={stage.micro_batch} does not divide {each} rows of a GPU: {figures.micro} taken"


def _padding(run: Run, stages: Sequence[StageForecast]) -> Iterator[str]:
    """What rows of like length in a micro-batch would save."""
    for stage, figures in zip(run.config.stages, stages, strict=True):
        if figures.padding is not None and figures.padding - figures.grouped >= WASTED:
            yield (
                f"{run.row}: {figures.padding:.0%} of the tokens of {stage.name} are padding, {figures.grouped:.0%} with "
                f"stages.{stage.name}.group_by=modality_length (another order of rows: another run)"
            )


def _checkpoints(run: Run, stages: Sequence[StageForecast]) -> Iterator[str]:
    """Disk that is needed while a run trains: what is kept, and one that is being written."""
    trained = max((stage.trained for stage in stages if stage.trained and not stage.reused), default=None)
    if trained:
        saving = run.config.checkpoints
        most = saving.keep + (saving.best is not None) + 1
        size = STATE * trained * most / 1e9
        yield f"{run.row}: while it trains, up to {size:,.1f} GB of checkpoints (checkpoints.keep={saving.keep})"


def _states(
    run: Run,
    stages: Sequence[StageForecast],
    pairing: Pairing | None,
    looks: Mapping[str, Look | None],
    machine: Machine,
) -> Iterator[str]:
    """Disk that kept states of the teacher take, and whether its forward pass is counted too often."""
    for stage, figures in zip(run.config.stages, stages, strict=True):
        seen = looks[stage.data]
        if stage.teacher_states != "cached" or pairing is None or pairing.teacher is None or seen is None:
            continue
        rows = min(seen.rows, figures.steps * figures.batch)
        width = pairing.teacher.language.width * precision_of(run.config.precision, machine.zero).residual
        size = rows * seen.mean(looked_at(stage)) * width / 1e9
        yield (
            f"{run.row}: {stage.name} keeps up to {size:,.2g} GB of the teacher's states of {rows:,} rows in "
            f"{run_folder.STATES}/; operations are counted as if none were kept yet"
        )
