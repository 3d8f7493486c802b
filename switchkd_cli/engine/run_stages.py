"""A run from its recipe to its scores: build, train stage after stage, save, evaluate."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from switchkd_cli.distributed import stopping
from switchkd_cli.distributed.launch_config import cores
from switchkd_cli.engine.build import check_checkpoint, check_pair, load, shown_to
from switchkd_cli.engine.data.conversation import Conversations, Examples
from switchkd_cli.engine.data.image import usable_rows
from switchkd_cli.engine.data.look import lengths
from switchkd_cli.engine.evaluation import score_model as evaluation
from switchkd_cli.engine.evaluation.against_teacher import eyes_or_reader, fidelity
from switchkd_cli.engine.export import model_card
from switchkd_cli.engine.hub import as_user_error
from switchkd_cli.engine.models.layer_forwards import shard
from switchkd_cli.engine.models.low_rank import merge
from switchkd_cli.engine.paths import FILE as ADAPTER
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.checkpointing import CheckpointWriter, read_state
from switchkd_cli.engine.training.loop import Log, train
from switchkd_cli.engine.training.optimizer import check_schedules
from switchkd_cli.engine.training.processes import ALONE, Processes
from switchkd_cli.engine.training.trackers import Trackers
from switchkd_cli.engine.training.training_warnings import check_images, check_pairs
from switchkd_cli.engine.training.validation import split
from switchkd_cli.errors import MACHINE, UserError, shown
from switchkd_cli.files.atomic import atomic_folder, link_files, write_json
from switchkd_cli.recipe.named_files import locate
from switchkd_cli.recipe.run import Run, digest
from switchkd_cli.report.stats.baselines import with_verdict
from switchkd_cli.runs import checkpoints, run_folder
from switchkd_cli.runs.checkpoints import SCORES
from switchkd_cli.runs.claim import CHANGED
from switchkd_cli.runs.run_folder import RunFolder

THREADS = torch.get_num_threads()  # torch's default in this process
SHOWN_IMAGES = 4  # of the training data, in trackers


def train_stages(
    run: Run, folder: RunFolder, processes: Processes = ALONE, *, trackers: Trackers | None = None
) -> dict[str, Conversations]:
    """Train the run's stages and save the student, with its card, to `folder.model`. Returns the data, by name.

    A stage's output is shared under its key by all runs whose recipes agree up to it: the first run trains it, the others
    load it. An interrupted run resumes: finished stages and steps are not repeated; no data is opened if all are finished.
    `trackers`: those of the first process.
    """
    if SCORES in checkpoints.marks(folder):
        return {}
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if processes.count == 1:
        _set_threads(folder)
    stages = run.config.stages
    check_schedules(stages)
    if run.config.evaluation is not None and processes.first:
        evaluation.check(run.config.evaluation)
    pair = check_pair(run.config, with_teacher=any(stage.needs_teacher for stage in stages))
    paths = pair.build(run.config.seed)
    spec = run.config.teacher
    if paths.teacher is not None and spec is not None and spec.weights == "sharded" and processes.count > 1:
        shard(paths.teacher)
    # every stage's examples are checked before the first step is taken
    names = dict.fromkeys(name for stage in stages for name in stage.data_sets)
    data = {name: pair.open_data(name, paths.student, folder.root) for name in names}
    for rows in data.values():
        rows.inspect()
    check_images(stages, {name: rows.has_images for name, rows in data.items()})
    check_pairs(stages, {name: rows.rows.survey.has_pairs for name, rows in data.items()})
    if processes.first:
        left_out = _rehearse(run, paths, data, folder)
        if not folder.metrics.exists():  # otherwise the run is resumed
            for note in (*pair.notes, *left_out):
                folder.log({"event": "models", "text": note})
            for name, rows in data.items():
                for note in rows.notes:
                    folder.log({"event": "rows", "text": f"{name}: {note}"})
            of_data = {name: lengths(rows.rows.survey.sizes) for name, rows in data.items()}
            write_json(folder.record, {**folder.info(), "lengths": of_data})
        for rows in data.values():
            rows.bad_rows.write_to(folder.skipped)
    if trackers is not None:
        trackers.start()
        first = islice(usable_rows(data[stages[0].trained_on[0]].rows), SHOWN_IMAGES)
        trackers.images(islice((image for _, images in first for image in images), SHOWN_IMAGES))
    log = folder.log if trackers is None else trackers.log
    for i in range(len(stages)):
        trained = _take_stage(run, i, paths, data, folder, processes, log)
    if processes.first:
        _take_model(run, folder, trained)
        for name, rows in data.items():
            if rows.bad_rows.unusable and not folder.has_entry(event="skipped", data=name):
                listed = {"of": len(rows), "listed": folder.skipped.name}
                folder.log({"event": "skipped", "data": name, "rows": len(rows.bad_rows.unusable), **listed})
        checkpoints.mark(folder, SCORES)
    return data


def _set_threads(folder: RunFolder) -> None:
    """Resume with the threads that the run began with: with another number, sums are rounded in another order."""
    torch.set_num_threads(THREADS)
    info = folder.info()
    began = info.get("threads", THREADS)
    if info and "threads" not in info:
        write_json(folder.record, {**info, "threads": THREADS})
    elif began != THREADS:
        text = f"{began}, as it began with, in place of {THREADS}"
        if began <= cores():
            torch.set_num_threads(began)
        else:
            text = f"{THREADS}; it began with {began}: numbers are equal to rounding, no longer bit by bit"
        folder.log({"event": "threads", "text": text})


def _rehearse(run: Run, paths: Paths, data: Mapping[str, Conversations], folder: RunFolder) -> list[str]:
    """Write all that the run will save except weights, and remove it: what would fail at the end fails now.

    Returns what will be left out. Raises UserError if the student can't be saved, or read again to be scored; with code
    MACHINE if there is no room for it.
    """
    if all(run_folder.stage(folder.root, run.stage_key(i)).done for i in range(len(run.config.stages))):
        return []
    free = shutil.disk_usage(folder.path)
    needed = sum(weight.nbytes for weight in paths.student.parameters())
    if free.total and free.free < needed:  # some file systems report 0
        space = f"{free.free >> 20:,} MiB are free, the student alone takes {needed >> 20:,}"
        raise UserError(f"{folder.root}: {space}", "free some space, or add --out FOLDER to write elsewhere", MACHINE)
    folder.checkpoints.mkdir(exist_ok=True)  # what a killed run leaves there is removed later
    with TemporaryDirectory(prefix=".rehearsal-", dir=folder.checkpoints) as scratch:
        with as_user_error("student: it could not be saved after training"):
            for rows in data.values():
                left_out = paths.student.save(Path(scratch), template=rows.chat_template, end=rows.end, weights=False)
            model_card.write(run, folder, Path(scratch))
        if run.config.evaluation is not None:
            check_checkpoint(scratch, "student, once it is saved")
    return [f"student: {part}" for part in left_out]


def evaluate(run: Run, folder: RunFolder, data: Mapping[str, Conversations] | None = None) -> dict[str, Any]:
    """Score `folder.model` as the recipe says, write `folder.results` and add the scores to the card.

    `data` was opened for the training; what it lacks is opened here.

    If the recipe has a teacher, "fidelity" says how close the student came to it, whatever its objective was, and
    "eyes_or_reader" which of its parts it lags behind with; if the two can't be compared, a warning says so.
    """
    arguments = _evaluation_arguments(run, folder.root)
    folder.log({"event": "evaluate", "benchmarks": len(arguments["benchmarks"])})
    with _note_on_error(f"the trained student is {shown(folder.model)}"):
        results = evaluation.evaluate(str(folder.model), folder=folder.path, **arguments)
        if run.config.teacher is not None:
            try:
                for about, measured in _compare_with_teacher(run, folder, data or {}):
                    results[about] = measured
                    # accuracies and the like, by name, are in results.json
                    folder.log({"event": about, **{k: of for k, of in measured.items() if not isinstance(of, dict)}})
            except UserError as error:  # a teacher that is only scored need not match
                text = f"not measured: {'; '.join(error.problems)}"
                folder.log({"event": "warning", "stage": "fidelity", "about": "fidelity", "text": text})
        write_json(folder.results, results)
        model_card.write(run, folder)
    return results


def evaluate_teacher(run: Run, root: Path) -> dict[str, Any]:
    """Return the scores of the run's teacher, of the same teacher without images, and of the best constant answers.

    They are computed once and shared by every run with this teacher and these questions. Fields: `teacher` and `blind`
    (if the recipe has a teacher), `majority`; "not_beaten" names, by task, the baselines that the teacher does not
    clearly beat.
    """
    shared = run_folder.evaluation(root, run.teacher_key)
    with shared.build() as partial:
        if partial is not None:
            arguments = _evaluation_arguments(run, root.absolute())
            results = {"majority": evaluation.majority(folder=partial / "majority", **arguments)}
            if (teacher := run.config.teacher) is not None:
                checkpoint, how = locate(teacher.checkpoint), {"allow_pickle": teacher.allow_pickle, **arguments}
                for name, blind in (("teacher", False), ("blind", True)):
                    results[name] = evaluation.evaluate(checkpoint, folder=partial / name, blind=blind, **how)
            write_json(partial / "results.json", with_verdict(partial, results))
    return run_folder.scores(shared)


def _compare_with_teacher(
    run: Run, folder: RunFolder, opened: Mapping[str, Conversations]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "fidelity" and, for data with images, "eyes_or_reader" of the finished student and its teacher.

    They are measured on the last stage's validation set; without one, on the data that it was trained on.
    """
    pair = check_pair(run.config, with_teacher=True)
    paths = pair.build(trained=folder.model)
    if paths.tokens is not None:
        raise UserError("student and teacher read their own tokens, whose ids can't be compared")
    stage = run.config.stages[-1]
    data = {name: opened.get(name) or pair.open_data(name, paths.student, folder.root) for name in stage.data_sets}
    assert pair.teacher is not None  # where no stage reads it, its visual tokens are missing
    data = {name: shown_to(rows, pair.student, pair.teacher) for name, rows in data.items()}
    trained, held_out = split(stage, data)
    named = (stage.validation.data if stage.validation else None) or ", ".join(stage.trained_on)
    about = {"data": named, "held_out": held_out is not None}
    rows = held_out or trained
    yield "fidelity", about | fidelity(paths, rows, precision=run.config.precision)
    if run.config.switch.adapter is not None:
        folder.log({"event": "models", "text": "eyes or reader: not measured: the switch's adapter is not kept"})
    elif (found := eyes_or_reader(paths, rows, precision=run.config.precision)) is not None:
        yield "eyes_or_reader", about | found


def _evaluation_arguments(run: Run, root: Path) -> dict[str, Any]:
    """Return the recipe's evaluation as arguments; its data sets are stored under the runs' root."""
    assert run.config.evaluation is not None
    return {**run.config.evaluation.model_dump(), "sets": run_folder.sets(root)}


def _take_stage(
    run: Run,
    index: int,
    paths: Paths,
    data_sets: Mapping[str, Conversations],
    folder: RunFolder,
    processes: Processes,
    log: Log,
) -> Path:
    """Train a stage, or load its student if this run or another has trained it before.

    Returns where its student is. A student is not shared if its code or data changed during training.
    """
    stage, key = run.config.stages[index], processes.decide(lambda: run.stage_key(index))
    shared = run_folder.stage(folder.root, key)
    student = shared.path
    if processes.first and stage.name not in checkpoints.marks(folder):
        checkpoints.mark(folder, stage.name)
    waiting = {"event": "waiting", "stage": stage.name}
    building = shared.build(lambda text: folder.log({**waiting, "text": text})) if processes.first else nullcontext()
    with ExitStack() as until_named, building as partial:
        if processes.decide(lambda: partial is None):
            if processes.first and not folder.has_entry(stage=stage.name):
                folder.log({"event": "reused", "stage": stage.name, "from": shared.path.name})
            paths.student.load_state_dict(load(str(shared.path)).state_dict())
            if paths.switch_adapter is not None and _adapter_trained(run, index):
                paths.switch_adapter.load_state_dict(load_file(shared.path / ADAPTER))
        else:
            until_named.enter_context(stopping.deferred())  # a stop signal waits until a trained stage is saved
            data, held_out = split(stage, data_sets)
            unusable = _unusable(data)
            if processes.first and not folder.has_entry(event="stage", stage=stage.name):
                together = {"processes": processes.count} if processes.count > 1 else {}
                validated = {} if held_out is None else {"validation": len(held_out)}
                folder.log({"event": "stage", "stage": stage.name, "rows": len(data), **validated, **together})
            if processes.first and run.config.deepspeed.zero:
                from switchkd_cli.engine.training.zero import deepspeed_config

                settings = deepspeed_config(stage, run.config.deepspeed, run.config.precision, processes)
                folder.deepspeed.mkdir(exist_ok=True)
                write_json(folder.deepspeed / f"{stage.name}.json", settings)
            writer = CheckpointWriter(folder, stage.name, run.config.checkpoints)
            train(
                stage,
                paths,
                data,
                seed=run.seed + index,
                precision=run.config.precision,
                log=log if processes.first else lambda entry: None,
                writer=writer,
                processes=processes,
                deepspeed=run.config.deepspeed,
                launcher=run.config.launcher,
                check=run.config.check,
                held_out=held_out,
                states=_states(run, folder.root, processes),
            )
            if partial is not None:  # in the first process
                with _note_on_error(writer.newest()):
                    _save(run, index, paths, data, writer, partial)
                if changed := [*run.changed(), *(line for part in data.parts for line in part.recovered_rows())]:
                    images = {f"data.{name}.images" for name in stage.trained_on}
                    broke = _unusable(data) > unusable and images.issuperset(changed)
                    text = f"{', '.join(changed)}{' broke' * broke}: the stage is not shared"
                    about = {"fields": changed, "allowed": broke}  # a share of rows may break
                    folder.log({"event": CHANGED, "stage": stage.name, "text": text, "about": about})
                    student = run_folder.set_aside(partial, CHANGED)
            merge(paths.student)
    if processes.first:
        checkpoints.prune(folder, stage.name, keep=0, best=False)
    return student


def _states(run: Run, root: Path, processes: Processes) -> Path:
    """Return the file of the teacher's cached hidden states: one for each setup that computes the same bits."""
    computed = [torch.__version__, transformers.__version__, str(processes.device.type), torch.get_num_threads()]
    if processes.device.type == "cuda":
        computed.append(torch.cuda.get_device_name(processes.device))
    return run_folder.states(root, digest(run.teacher_digest, computed))


def _save(run: Run, index: int, paths: Paths, data: Examples, writer: CheckpointWriter, target: Path) -> None:
    """Save a trained stage's student to `target`, and the last stage's best one to the run's folder."""
    template: dict[str, Any] = {"template": data.chat_template, "end": data.end}  # what a saved student is used with
    paths.student.save(target, **template)
    if paths.switch_adapter is not None and _adapter_trained(run, index):
        save_file({name: p.contiguous() for name, p in paths.switch_adapter.state_dict().items()}, target / ADAPTER)
    if index == len(run.config.stages) - 1 and (best := writer.best()) is not None:
        paths.load_state_dict(read_state(best)["weights"], strict=False)
        with atomic_folder(writer.folder.best) as partial:
            paths.student.save(partial, **template)


def _adapter_trained(run: Run, index: int) -> bool:
    """Return whether a stage up to this one trains the switch's adapter, whose weights then go with the stage's student."""
    return any("adapter" in stage.train for stage in run.config.stages[: index + 1])


def _unusable(data: Examples) -> int:
    """Return the number of rows known to be unusable."""
    return sum(len(part.bad_rows.unusable) for part in data.parts)


@contextmanager
def _note_on_error(where: str) -> Iterator[None]:
    """Add to an error inside where the trained weights are."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{where}: the same command resumes from there")
        raise


def _take_model(run: Run, folder: RunFolder, trained: Path) -> None:
    """Copy the last stage's student into the run's folder."""
    with _note_on_error(f"the trained student is {shown(trained)}"):
        with atomic_folder(folder.model) as partial:
            link_files(trained, partial, exclude=[ADAPTER])
        model_card.write(run, folder)
