"""What a run needs: its models, each stage's steps, memory, operations and hours, downloads and disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from switchkd_cli import registry
from switchkd_cli.engine.compatibility import Vocabulary, positions, shared_vocabulary, small_differences
from switchkd_cli.engine.cost.data_sample import ASSUMED_MAX_LENGTH, DataSample, sample_data
from switchkd_cli.engine.cost.downloads import downloads
from switchkd_cli.engine.cost.model_facts import PUBLISHED, KnownModel, UnknownModel, describe_model
from switchkd_cli.engine.cost.parameters import Parameters
from switchkd_cli.engine.cost.stage_estimate import estimate_stage
from switchkd_cli.engine.cost.workload import ModelPair
from switchkd_cli.engine.training.training_warnings import check_images
from switchkd_cli.planning.estimate import Machine, ModelEstimate, RunEstimate
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import Term

STATE = 12  # bytes of a trained parameter in a checkpoint: itself and AdamW's two moments


def estimate_run(run: Run, machine: Machine, root: Path, planned: Mapping[Path, Run]) -> RunEstimate:
    """Estimate what the run needs. `planned` holds, by their model folders, runs that can make a checkpoint it names.

    Raises UserError where student and teacher are both here and don't fit each other, a data file is no data, or a
    stage needs images that its data don't have.
    """
    config = run.config
    student = describe_model(config.student, "student", planned, needs_template=config.needs_template)
    models = {"student": student}
    if config.teacher is not None:
        scored = config.evaluation is not None  # as a teacher it reads what the student reads
        models["teacher"] = describe_model(config.teacher, "teacher", planned, needs_template=scored)
    taught = any(stage.needs_teacher for stage in config.stages)  # else the teacher is only scored
    teacher = models["teacher"] if taught else None
    sizes = {who: model.parameters() for who, model in models.items() if isinstance(model, KnownModel)}
    pair, vocabulary = None, None
    notes: list[str] = []
    if isinstance(student, KnownModel) and not isinstance(teacher, UnknownModel):
        terms = [term for stage in config.stages for term in stage.objective]
        vocabulary, notes = _shared_vocabulary(student, teacher, terms)
        pair = ModelPair(student.shape, sizes["student"], vocabulary.shared)
        if teacher is not None:  # it stays in memory in every stage, as it is built before the first
            pair = replace(pair, teacher=teacher.shape, teacher_parameters=sizes["teacher"].all)
    samples: dict[str, DataSample | None] = dict.fromkeys(stage.data for stage in config.stages)
    if isinstance(student, KnownModel):
        teacher_config = teacher.config if isinstance(teacher, KnownModel) else None
        with tempfile.TemporaryDirectory() as scratch:
            for name in samples:
                limits = positions(name, config.stages, student.config, teacher_config)
                samples[name] = sample_data(config.data[name], student, root, Path(scratch), limits)
    known = {name: sample for name, sample in samples.items() if sample is not None}
    check_images(config.stages, {name: sample.has_images for name, sample in known.items()})
    stages = tuple(
        estimate_stage(run, index, pair, samples[stage.data], machine, root)
        for index, stage in enumerate(config.stages)
    )
    notes += [f"{name}: {note}" for name, sample in known.items() for note in sample.notes]
    notes += _assumptions(run, models.values(), known, machine)
    notes += [f"{run.row}: {note}" for stage in stages for note in stage.notes]
    trained = max((stage.trained for stage in stages if stage.trained and not stage.reused), default=None)
    if trained:
        saving = config.checkpoints  # those that are kept, and one that is being written
        size = STATE * trained * (saving.keep + (saving.best is not None) + 1) / 1e9
        notes.append(
            f"{run.row}: while it trains, up to {size:,.1f} GB of checkpoints (checkpoints.keep={saving.keep})"
        )
    return RunEstimate(
        machine=machine,
        models=tuple(_model(who, model, sizes.get(who)) for who, model in models.items()),
        vocabulary=str(vocabulary) if vocabulary else "vocabulary: unknown until both models are here",
        stages=stages,
        downloads=tuple(downloads(config, sizes)),
        notes=tuple(notes),
    )


def _shared_vocabulary(
    student: KnownModel, teacher: KnownModel | None, terms: Sequence[Term]
) -> tuple[Vocabulary, list[str]]:
    """Return the vocabulary that both models share, checked as training does if both are here, and the check's notes."""
    if student.blueprint and (teacher is None or teacher.blueprint):
        both = student.blueprint, teacher.blueprint if teacher else None
        return shared_vocabulary(*both, terms), small_differences(*both)
    return Vocabulary(student.tokens, student.vocabulary, teacher.vocabulary if teacher else None), []


def _model(who: str, model: KnownModel | UnknownModel, size: Parameters | None) -> ModelEstimate:
    image_tokens = model.image_tokens if isinstance(model, KnownModel) else None
    return ModelEstimate(who, size.total if size else {}, image_tokens, model.source)


def _assumptions(
    run: Run, models: Iterable[KnownModel | UnknownModel], samples: Mapping[str, DataSample], machine: Machine
) -> Iterator[str]:
    """Yield what the figures rest on."""
    if any(model.source == PUBLISHED for model in models):
        yield (
            "shapes of models that are not here are as published; that teacher and student fit is checked when they are"
        )
    guessed = [name for name, sample in samples.items() if sample.source.startswith("an assumption")]
    if uncut := [name for name in guessed if run.config.data[name].max_length is None]:
        yield (
            f"rows of {', '.join(uncut)} are taken to be cut at {ASSUMED_MAX_LENGTH:,} tokens, but max_length is not set: the "
            "longest row decides the memory"
        )
    losses = {term.loss for stage in run.config.stages for term in stage.objective}
    if of_images := [loss for loss in sorted(losses) if registry.signature("loss", loss).of_images]:
        yield (
            f"{run.row}: memory and operations of what {', '.join(of_images)} compare, and of adapters, are not counted; a "
            "teacher that they read is counted with all its layers, more than runs"
        )
    if machine.gpus > 1:
        yield f"planned for {machine.gpus} GPUs: --gpus {machine.gpus} trains on {machine.gpus} of this machine"
    if machine.zero != run.config.deepspeed.zero:
        yield f"planned for ZeRO-{machine.zero}: deepspeed.zero={machine.zero} trains with it"
