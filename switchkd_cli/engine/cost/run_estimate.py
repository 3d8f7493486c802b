"""What a run needs: its models, each stage's steps, memory, operations and hours, downloads and disk."""

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from switchkd_cli import registry
from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.engine.batch import POSITIONS, PREFERRED
from switchkd_cli.engine.compatibility import Vocabulary, check_fit, check_paths, compare, shared_vocabulary
from switchkd_cli.engine.cost import flops, loss_memory
from switchkd_cli.engine.cost.data_sample import ASSUMED_MAX_LENGTH, STEPS, DataSample, sample_data
from switchkd_cli.engine.cost.downloads import downloads
from switchkd_cli.engine.cost.model_facts import PUBLISHED, KnownModel, describe_model
from switchkd_cli.engine.cost.step_memory import precision_of, step_memory
from switchkd_cli.engine.cost.training_time import EXCHANGES, HOUR, StepWork, best_interval, bytes_sent, time_terms
from switchkd_cli.engine.cost.workload import Computation, Models, padded_share
from switchkd_cli.engine.data.look import EvaluationSet, looks
from switchkd_cli.engine.evaluation.score_model import evaluation_sets
from switchkd_cli.engine.models.low_rank import adapter_sizes
from switchkd_cli.engine.training.data_loader import count_steps
from switchkd_cli.engine.training.rounds import scored_rows
from switchkd_cli.engine.training.training_warnings import check_images, check_pairs
from switchkd_cli.planning import estimate as plan
from switchkd_cli.planning.estimate import Machine, RunEstimate, StageEstimate
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.schema import BUILT_IN, Stage, Term
from switchkd_cli.runs import run_folder

USABLE = 0.9  # of a GPU's memory; the driver, kernels' workspaces and fragments take the rest
SAVED = 4  # bytes of a parameter of a saved student: float32
FAILURE_NOTED = 0.1  # failures in a stage, from which a plan says how to meet them
STATE = 12  # bytes of a trained parameter in a checkpoint: itself and AdamW's two moments


def estimate_run(
    run: Run,
    machine: Machine,
    root: Path,
    planned: Mapping[Path, Run],
    *,
    look: bool = True,
    sampled: dict[str, DataSample | None] | None = None,
) -> RunEstimate:
    """Estimate what the run needs, with a `look` at its data. `planned` holds, by their model folders, runs that can make a checkpoint it names.

    `sampled` keeps what was sampled of data sets, for runs after it that read the same ones in the same way.
    Raises Misfit where student and teacher are both here and don't fit each other, and UserError where a data file is no
    data, or a stage needs images that its data don't have.
    """
    config, estimate = run.config, RunEstimate(machine, scoring=dict(_scoring_hours(run, machine, root)))
    models = {"student": describe_model(config.student, "student", planned, needs_template=config.needs_template)}
    if config.teacher is not None:
        scored = config.evaluation is not None  # as a teacher it reads what the student reads
        models["teacher"] = describe_model(config.teacher, "teacher", planned, needs_template=scored)
    for name, spec in config.further_teachers.items():
        models[name] = describe_model(spec, name, planned, needs_template=False)
    estimate.models = [each.estimate(who) if isinstance(each, KnownModel) else each for who, each in models.items()]
    estimate.downloads = list(downloads(config, estimate.models))
    taught = any(stage.needs_teacher for stage in config.stages)  # else the teacher is only scored
    needed = ["student", *["teacher", *config.further_teachers] * taught]
    known = {name: model for name in needed if isinstance(model := models[name], KnownModel)}
    student, teacher = known.get("student"), known.get("teacher")
    pair: Models | None = None
    by_bytes = False
    if student is not None and len(known) == len(needed):
        terms = [term for stage in config.stages for term in stage.objective]
        vocabulary, estimate.pair = _shared_vocabulary(student, teacher, terms)
        estimate.vocabulary, by_bytes = str(vocabulary), bool(vocabulary.own)
        estimate.notes += check_fit(estimate.pair, config.remedies)
        here = {name: model.blueprint for name, model in known.items() if model.blueprint is not None}
        if here.keys() == known.keys():
            check_paths(config.stages, here, adapted=config.switch.adapter is not None)
        # teachers stay in memory in every stage, as they are built before the first
        shapes = {name: model.shape for name, model in known.items()}
        pair = Models(shapes, vocabulary.shared, kept=config.teacher)
        if teacher is not None and config.switch.adapter is not None:
            widths = student.shape.vision.width, teacher.shape.vision.width
            pair = replace(pair, adapter=(*widths, teacher.family.seam.levels(teacher.config)))
            told = f"switch.adapter: {pair.adapter_parameters:,} parameters, not saved with the student"
            estimate.notes.append(told)
    samples: dict[str, DataSample] = {}
    sampled = {} if sampled is None else sampled
    if student is not None:
        with tempfile.TemporaryDirectory() as scratch:
            for name in dict.fromkeys(name for stage in config.stages for name in stage.data_sets):
                read = any(stage.needs_teacher for stage in config.stages if name in stage.data_sets)
                own = teacher.blueprint if teacher is not None and read else None
                key = repr((config.data[name], config.student, own and config.teacher, by_bytes, config.needs_template))
                found = sampled.get(key)
                if key not in sampled or (look and found and found.opened):  # whose index may be in a scratch folder
                    found = sample_data(config.data[name], student, root, Path(scratch), own, by_bytes=by_bytes)
                    sampled[key] = found
                if found is not None:
                    samples[name] = found
            opened = {name: sample.opened for name, sample in samples.items() if sample.opened is not None}
            if opened and look:
                sets: dict[str, EvaluationSet] = {}
                if config.evaluation is not None:
                    drawn = run_folder.sets(root if root.is_dir() else Path(scratch))
                    sets, absent = evaluation_sets(config.evaluation, drawn)
                    unsearched = "not searched for rows of the training data, as they are not here"
                    estimate.notes += [f"{unsearched}: {', '.join(absent)}"] * bool(absent)
                estimate.looks = looks(config, opened, sets)
    check_images(config.stages, {name: sample.has_images for name, sample in samples.items()})
    check_pairs(config.stages, {name: sample.has_pairs for name, sample in samples.items()})
    for i, stage in enumerate(config.stages):
        sample = DataSample.of_stage(stage, samples)
        of_stage = pair
        if stage.lora is not None and pair is not None and student is not None:
            sizes = adapter_sizes(student.family.skeleton(student.config), stage.lora)
            of_stage = replace(pair, low_rank=sizes, bits=stage.lora.bits)
        estimate.stages.append(estimate_stage(run, i, of_stage, sample, machine, root))
    estimate.notes += [f"{name}: {note}" for name, sample in samples.items() for note in sample.notes]
    estimate.notes += _assumptions(run, models.values(), samples, machine)
    estimate.notes += [f"{run.row}: {note}" for stage in estimate.stages for note in stage.notes]
    if trained := max((stage.trained or 0 for stage in estimate.stages if not stage.reused), default=0):
        saving = config.checkpoints  # those that are kept, and one that is being written
        size = STATE * trained * (saving.keep + (saving.best is not None) + 1) / 1e9
        kept = f"up to {size:,.1f} GB of checkpoints (checkpoints.keep={saving.keep})"
        estimate.notes.append(f"while a row trains: {kept}")  # equal ones are shown once
    return estimate


def _shared_vocabulary(
    student: KnownModel, teacher: KnownModel | None, terms: Sequence[Term]
) -> tuple[Vocabulary, tuple[plan.PairFact, ...]]:
    """Return the vocabulary that both models share, and how they compare if both are here."""
    if student.blueprint and (teacher is None or teacher.blueprint):
        both = student.blueprint, teacher.blueprint if teacher else None
        return shared_vocabulary(*both, terms), compare(*both, terms)
    columns, tokens = (teacher.shape.language.vocabulary, teacher.tokens) if teacher else (None, None)
    by_bytes = any(term.alignment == "bytes" for term in terms)
    return Vocabulary(student.tokens, student.shape.language.vocabulary, columns, tokens if by_bytes else None), ()


def _assumptions(
    run: Run, models: Collection[KnownModel | plan.ModelEstimate], samples: Mapping[str, DataSample], machine: Machine
) -> Iterator[str]:
    """Yield what the figures rest on."""
    for text in (model.config.get_text_config() for model in models if isinstance(model, KnownModel)):
        recurrent = "linear_attention" in (getattr(text, "layer_types", None) or ())
        if recurrent or hasattr(text, "hidden_size_per_layer_input"):
            yield f"{text.model_type}: its layers keep up to twice the activations that are counted (docs/models.md)"
    if any(model.source == PUBLISHED for model in models):
        shapes = "shapes of models that are not here are as published"
        yield f"{shapes}; that teacher and student fit is checked when they are"
    guessed = [name for name, sample in samples.items() if sample.source.startswith("an assumption")]
    if uncut := [name for name in guessed if run.config.data[name].max_length is None]:
        taken = f"rows of {', '.join(uncut)} are taken to be cut at {ASSUMED_MAX_LENGTH:,} tokens"
        yield f"{taken}, but max_length is not set: the longest row decides the memory"
    if asked := sorted({name for stage in run.config.stages for name, path in stage.readings.items() if path.prompt}):
        yield f"{run.row}: the tokens that the prompts of {', '.join(asked)} add are not counted"
    losses = {term.loss for stage in run.config.stages for term in stage.objective}
    if of_images := [loss for loss in sorted(losses) if registry.signature("loss", loss).of_images]:
        left_out = f"memory and operations of what {', '.join(of_images)} compare, and of adapters, are not counted"
        yield f"{run.row}: {left_out}; a teacher that they read is counted with all its layers, more than runs"
    if machine.gpus > 1:
        yield f"planned for {machine.gpus} GPUs: --gpus {machine.gpus} trains on {machine.gpus} of this machine"
    if machine.zero != run.config.deepspeed.zero:
        yield f"planned for ZeRO-{machine.zero}: deepspeed.zero={machine.zero} trains with it"


def estimate_stage(
    run: Run, index: int, models: Models | None, sample: DataSample | None, machine: Machine, root: Path
) -> StageEstimate:
    """Estimate one stage; what follows from unknown models or data stays unknown."""
    stage, key = run.config.stages[index], run.stage_key(index)
    gpus = max(n for n in range(1, machine.gpus + 1) if stage.batch % n == 0)
    reused, data = run_folder.stage(root, key).done, ", ".join(stage.trained_on)
    estimate = StageEstimate(stage.name, key, reused, data, stage.batch, gpus, steps=stage.steps)
    if sample is not None:
        estimate.source, estimate.rows, estimate.lengths = sample.source, sample.rows, sample.lengths_by_part
        held_out = (stage.validation and stage.validation.share) or 0.0
        estimate.steps = count_steps(stage, round(sample.rows * (1 - held_out)))
    if models is not None:
        estimate.trained = models.trained(frozenset(stage.train))
        estimate.saved_bytes = SAVED * models.student.parameters
        if sample is not None:
            if models.teacher is not None:
                sample = sample.seen_by(models.student.projector.tokens, models.teacher.projector.tokens)
            _estimate_work(estimate, run, stage, sample.of_images(models), sample, machine)
    return estimate


def _estimate_work(
    estimate: StageEstimate, run: Run, stage: Stage, models: Models, sample: DataSample, machine: Machine
) -> None:
    """Add what the steps of a stage take, for which its models and data have to be known.

    The micro-batch is the recipe's, or the largest that fits. Memory is that of the largest micro-batch of the sample's
    steps; operations and padding are those of its mean step.
    """
    gpus, steps, state = estimate.gpus, estimate.steps, STATE * models.trained(frozenset(stage.train))
    recomputed = frozenset(stage.activation_checkpointing)
    if models.kept is not None and models.kept.weights == "offloaded":
        recomputed |= {"switch"}
    if "before" in stage.models:
        models = replace(models, shapes={**models.shapes, "before": models.student})
    paths, rounded = frozenset(stage.readings.values()), stage.bits is not None
    computed = Computation(models, paths, frozenset(stage.train), recomputed, rounded)
    grouped, precision = stage.group_by is not None, precision_of(run.config.precision, machine.zero)
    logit_bytes = loss_memory.bytes_per_logit(stage.objective, precision.compute, models.vocabulary)
    if logit_bytes is None:
        logit_bytes = 2 * precision.compute * len(stage.paths)  # at least the logits and their gradients
        estimate.notes.append(f"{stage.name}: losses: not counted in memory, as a small example could not be measured")

    examples, compared = stage.batch // gpus, _compared_positions(stage)
    tokens = [models.shapes[name].projector.tokens for name in ("student", "teacher") if name in models.shapes]
    sizes = [n for n in range(1, examples + 1) if examples % n == 0]
    batches = {n: sample.micro_batches(stage.batch, n, compared, tokens, grouped=grouped) for n in sizes}

    def memory(size: int) -> dict[str, float]:
        each = (step_memory(batch, computed, precision, machine, logit_bytes) for batch in batches[size])
        return max(each, key=lambda components: sum(components.values()))

    memories = {n: memory(n) for n in sizes}
    fitting = [n for n in sizes if sum(memories[n].values()) <= USABLE * machine.memory * plan.GIB]
    estimate.largest_micro_batch = largest = max(fitting, default=None)
    estimate.micro_batch = micro = max(n for n in sizes if n <= (stage.micro_batch or largest or 1))
    estimate.memory = memories[micro]
    estimate.padding = padded_share(batches[micro])
    operations = sum(count * flops.step(batch, computed) for batch, count in batches[micro].items())
    estimate.flops = stage.batch / micro * operations / batches[micro].total()
    read = scored_rows(stage, steps) / steps if steps else 0.0  # by a mixer, for each step
    if read and models.teacher is not None:
        both = frozenset({BUILT_IN["student"], BUILT_IN["teacher"]})
        candidates = Computation(models, both, train=frozenset())
        each = sum(n * flops.step(of, candidates) for of, n in batches[micro].items())
        scoring = read / micro * each / batches[micro].total()
        more = f"{scoring / 1e12:,.3g} TFLOP, {scoring / estimate.flops:.0%} of what the step takes itself"
        estimate.notes.append(f"{stage.name}: its mixer reads up to {read:,.4g} rows a step: {more}")
        estimate.flops += scoring
    if stage.own_answers and (answers := stage.answers):
        asked = sample.own_answers(stage.batch, answers.own, tokens[0])
        most = answers.max_tokens
        sampling = sum(n * flops.generation(models.student, of, most) for of, n in asked.items()) / STEPS
        told = f"{sampling / (estimate.flops + sampling):.1%} of the operations, if all have {most} tokens"
        estimate.notes.append(f"{stage.name}: sampling own answers takes {told}; a token reads all of L's weights")
        estimate.flops += sampling
    numbers = {"trained": models.trained(computed.train), "student": sum(models.student.trainable.values())}
    images = (stage.batch + read) * sample.mean("images")
    work = StepWork(estimate.flops, images, examples // micro, numbers, precision.weight)
    estimate.sent = bytes_sent(work, EXCHANGES[machine.sharding], gpus)
    if steps:
        saved = SAVED * models.student.parameters
        estimate.time = time_terms(work, steps, machine, gpus, run.config.checkpoints, state, saved)
    estimate.notes += _advice(stage, estimate, machine, state)
    if stage.teacher_states == "cached" and models.teacher is not None and steps:
        seen = min(sample.rows, steps * stage.batch)
        size = seen * sample.mean(compared) * models.teacher.language.width * precision.residual / 1e9
        written = f"{size:,.2g} GB of the teacher's hidden states of {seen:,} rows to {run_folder.STATES}/"
        estimate.notes += [f"{stage.name} writes up to {written}; operations are counted as if none were there yet"]


def _scoring_hours(run: Run, machine: Machine, root: Path) -> Iterator[tuple[str, float | None]]:
    """Yield the hours of one process by what it scores: the student, and the teacher with images and without, unless done."""
    if (evaluation := run.config.evaluation) is None:
        return
    counts = [evaluation.items or BENCHMARKS[name].questions for name in evaluation.benchmarks]
    known = [count for count in counts if count is not None]
    hours = sum(known) / machine.answers_per_s / HOUR if len(known) == len(counts) else None
    yield run.key, hours
    if run.config.teacher is not None and not run_folder.evaluation(root, run.teacher_key).done:
        yield run.teacher_key, hours and 2 * hours


def _advice(stage: Stage, of: StageEstimate, machine: Machine, state: float) -> Iterator[str]:
    """Yield what the recipe should change: the batch, the checkpoints (of `state` bytes), the micro-batch."""
    field, examples, between = f"stages.{stage.name}", stage.batch // of.gpus, machine.mtbf_hours / of.gpus
    if of.gpus < machine.gpus:  # a batch is shared evenly
        batch = -(-stage.batch // machine.gpus) * machine.gpus
        idle = f"{stage.name}: {machine.gpus - of.gpus} of {machine.gpus} GPUs idle: "
        idle += f"{of.gpus} share a batch of {stage.batch} evenly"
        why = ", a row each, so no accumulation uses more" if of.gpus == stage.batch else ""
        yield f"{idle}{why}; {field}.batch={batch} uses all (and is another training), or plan with gpus={of.gpus}"
    if (of.hours or 0.0) > FAILURE_NOTED * between:
        minutes = best_interval(state, machine, of.gpus) / 60
        every, best = (f"{float(f'{figure:.2g}'):g}" for figure in (between, minutes))
        yield f"{stage.name}: a failure every {every} hours; checkpoints.every_minutes={best} loses least by it"
    if of.largest_micro_batch is None:
        cure = f"; {field}.activation_checkpointing=true takes less" * (not stage.activation_checkpointing)
        yield f"{stage.name} does not fit: not even one row of the longest at a time{cure}"
    elif stage.micro_batch is None and of.micro_batch != examples:
        yield f"set {field}.micro_batch={of.micro_batch}: without it all {examples} rows of a GPU are held at once"
    elif stage.micro_batch is not None and of.largest_micro_batch < (of.micro_batch or 0):
        yield f"{field}.micro_batch={of.micro_batch} does not fit, {of.largest_micro_batch} does"
    elif stage.micro_batch not in (None, of.micro_batch):
        taken = f"does not divide {examples} rows of a GPU: {of.micro_batch} taken"
        yield f"{field}.micro_batch={stage.micro_batch} {taken}"


def _compared_positions(stage: Stage) -> str:
    """Return the widest kind of position at which a term of the stage compares logits or hidden states."""
    terms = [t for t in stage.objective if not t.signature.of_images]
    # two answers are no more than all text
    kinds = {POSITIONS.index("text" if term.on in PREFERRED else term.on) for term in terms} or {0}
    # image tokens and some of the text: no more than everything
    return "all" if len(kinds) > 1 and POSITIONS.index("image") in kinds else POSITIONS[max(kinds)]
