"""A run from its recipe to its scores: build, train stage after stage, save, evaluate."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

from switchkd_cli.distributed import signals
from switchkd_cli.distributed.cpu_cores import cores
from switchkd_cli.engine.build import build_data, check_checkpoint, check_pair, load, open_data
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.evaluation import score_model as evaluation
from switchkd_cli.engine.evaluation.fidelity import fidelity
from switchkd_cli.engine.export import huggingface, model_card
from switchkd_cli.engine.hub import explained
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.checkpointing import Keeper
from switchkd_cli.engine.training.data_loader import micro_batch
from switchkd_cli.engine.training.loop import train
from switchkd_cli.engine.training.processes import ALONE, Processes
from switchkd_cli.engine.training.state_files import put_weights, read_state
from switchkd_cli.engine.training.training_warnings import check_pictures
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.files.atomic import atomic_folder, link_files, write_json
from switchkd_cli.recipe.model_paths import locate
from switchkd_cli.recipe.run import Run, digest
from switchkd_cli.recipe.schema import Stage
from switchkd_cli.report.stats.baselines import with_verdict
from switchkd_cli.runs import checkpoints, run_folder
from switchkd_cli.runs.checkpoints import SCORES
from switchkd_cli.runs.claim import CHANGED
from switchkd_cli.runs.run_folder import RunFolder

THREADS = torch.get_num_threads()  # of torch, in a process that nobody has told otherwise


def work(run: Run, folder: RunFolder, processes: Processes = ALONE) -> None:
    """Trains the run's stages and saves the student, with its card, to `folder.model`.

    A stage's output is shared under its key by all runs whose recipes agree up to it: whoever comes first trains
    it, the others load it. In a folder that an interrupted run left, what it has done is not done again.
    """
    if checkpoints.marked(folder, SCORES) is not None:
        return
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if processes.count == 1:
        _set_threads(folder)
    stages = run.config.stages
    if run.config.evaluation is not None and processes.first:
        evaluation.ready()
    pair = check_pair(run.config, with_teacher=any(stage.needs_teacher for stage in stages))
    paths = pair.build(run.config.seed)
    # every stage's rows are looked at before the first step is taken
    data = {
        name: build_data(run.config.data[name], paths.student, folder.root, pair.positions(name, stages))
        for name in dict.fromkeys(stage.data for stage in stages)
    }
    check_pictures(stages, {name: rows.has_pictures for name, rows in data.items()})
    if processes.first:
        left_out = _rehearse(run, paths, data, folder)
        if not folder.metrics.exists():  # else the run goes on where it was left (see standing.py)
            for note in (*pair.notes, *left_out):
                folder.log({"event": "models", "text": note})
            for name, rows in data.items():
                for note in rows.notes:
                    folder.log({"event": "rows", "text": f"{name}: {note}"})
        for rows in data.values():
            rows.ledger.list_in(folder.skipped)
    for i, stage in enumerate(stages):
        trained = _take_stage(run, i, paths, data[stage.data], folder, processes)
    if processes.first:
        _finish(run, data, folder, trained)


def _set_threads(folder: RunFolder) -> None:
    """A run goes on with the threads that it began with: other numbers of them add up in another order."""
    torch.set_num_threads(THREADS)
    info = folder.info()
    began = info.get("threads", THREADS)
    if info and "threads" not in info:
        write_json(folder.record, {**info, "threads": THREADS})
    elif began != THREADS:
        told = f"{began}, as it began with, in place of {THREADS}"
        if began <= cores():
            torch.set_num_threads(began)
        else:
            told = f"{THREADS}; it began with {began}: numbers are equal to rounding, no longer bit by bit"
        folder.log({"event": "threads", "text": told})


def _rehearse(run: Run, paths: Paths, data: Mapping[str, Conversations], folder: RunFolder) -> list[str]:
    """Writes what the run will leave, all but the weights, and removes it: what fails at the end fails here.

    Returns what will be left out. Raises UserError where the student can't be saved, or read again to be scored; with
    code MACHINE where there is no room for it.
    """
    if all(run_folder.stage(folder.root, run.stage_key(i)).done for i in range(len(run.config.stages))):
        return []
    free = shutil.disk_usage(folder.path)
    needed = sum(weight.nbytes for weight in paths.student.parameters())
    if free.total and free.free < needed:  # some file systems say nothing
        raise UserError(
            f"{folder.root}: {free.free >> 20:,} MiB are free, the student alone takes {needed >> 20:,}",
            hint="free some space, or add --out FOLDER to write elsewhere",
            code=MACHINE,
        )
    folder.checkpoints.mkdir(exist_ok=True)  # what a kill leaves there is swept away
    with TemporaryDirectory(prefix=".rehearsal-", dir=folder.checkpoints) as scratch:
        with explained("student: it could not be saved after training"):
            for rows in data.values():
                left_out = huggingface.save(paths.student, Path(scratch), **_taught(rows), weights=False)
            model_card.write(run, folder, Path(scratch))
        if run.config.evaluation is not None:
            check_checkpoint(scratch, "student, once it is saved")
    return [f"student: {told}" for told in left_out]


def _finish(run: Run, data: Mapping[str, Conversations], folder: RunFolder, trained: Path) -> None:
    """What the training of all stages leaves; the last one's student is in `trained`."""
    _take_model(run, folder, trained)
    for name, rows in data.items():
        if rows.ledger.met and not folder.has_entry(event="skipped", data=name):
            listed = {"of": len(rows), "listed": folder.skipped.name}
            folder.log({"event": "skipped", "data": name, "rows": len(rows.ledger.met), **listed})
    checkpoints.mark(folder, SCORES)


def evaluate(run: Run, folder: RunFolder) -> dict[str, Any]:
    """Scores `folder.model` as the recipe says, writes `folder.results` and adds the scores to the card.

    Where the recipe has a teacher, "fidelity" says how close the student came to it, whatever it was trained by; a
    warning says so where the two can't be compared.
    """
    folder.log({"event": "evaluate", "benchmarks": len(run.config.evaluation.benchmarks)})
    with _kept(f"the trained student is {run_folder.shown(folder.model)}"):
        results = evaluation.evaluate(str(folder.model), folder=folder.path, **_question(run, folder.root))
        if run.config.teacher is not None:
            try:
                results["fidelity"] = _fidelity(run, folder)
                folder.log({"event": "fidelity", **results["fidelity"]})
            except UserError as error:  # the teacher is only scored: it need not fit
                told = f"not measured: {'; '.join(error.problems)}"
                folder.log({"event": "warning", "stage": "fidelity", "about": "fidelity", "text": told})
        write_json(folder.results, results)
        model_card.write(run, folder)
    return results


def evaluate_teacher(run: Run, root: Path) -> dict[str, Any]:
    """Scores of the run's teacher, of the same teacher without pictures, and of the best constant answers.

    Computed once and shared by every run with this teacher and these questions. Their fields: `teacher`, `blind`
    (absent where the recipe has no teacher), `majority`; "not_beaten" names, by task, the baselines that the
    teacher does not clearly beat.
    """
    shared = run_folder.evaluation(root, run.teacher_key)
    with shared.build() as partial:
        if partial is not None:
            question = _question(run, root.absolute())
            batch = question.pop("batch")
            results = {"majority": evaluation.majority(folder=partial / "majority", **question)}
            for name, blind in (("teacher", False), ("blind", True)) if run.config.teacher else ():
                results[name] = evaluation.evaluate(
                    locate(run.config.teacher.checkpoint),
                    folder=partial / name,
                    batch=batch,
                    blind=blind,
                    allow_pickle=run.config.teacher.allow_pickle,
                    **question,
                )
            write_json(partial / "results.json", with_verdict(partial, results))
    return run_folder.scores(shared)


def _fidelity(run: Run, folder: RunFolder) -> dict[str, Any]:
    """The finished student beside its teacher, on rows of the data that its last stage was trained on."""
    pair = check_pair(run.config, with_teacher=True)
    paths = Paths(load(str(folder.model)), pair.teacher.build(), pair.vocabulary.shared)
    name = run.config.stages[-1].data
    positions = pair.positions(name, run.config.stages)
    rows = open_data(run.config.data[name], paths.student, folder.root, positions)
    return {"data": name, **fidelity(paths, rows, precision=run.config.precision)}


def _question(run: Run, root: Path) -> dict[str, Any]:
    """The recipe's evaluation as arguments; its data sets are kept under the runs' root."""
    return {**run.config.evaluation.model_dump(), "sets": run_folder.sets(root)}


def _take_stage(
    run: Run, index: int, paths: Paths, data: Conversations, folder: RunFolder, processes: Processes
) -> Path:
    """Trains a stage, or takes what it gave from where it was trained before, by this run or by another.

    Returns where its student is. One that was trained on something else than the stage's key says is not shared.
    """
    stage, key = run.config.stages[index], processes.decide(lambda: run.stage_key(index))
    shared = run_folder.stage(folder.root, key)
    student = shared.path
    if processes.first and checkpoints.marked(folder, stage.name) is None:
        checkpoints.mark(folder, stage.name)
    waiting = {"event": "waiting", "stage": stage.name}
    building = (
        shared.build(lambda text: folder.log({**waiting, "text": text})) if processes.first else nullcontext()
    )
    with ExitStack() as until_named, building as partial:
        if processes.decide(lambda: partial is None):
            if processes.first and not folder.has_entry(stage=stage.name):
                folder.log({"event": "reused", "stage": stage.name, "from": shared.path.name})
            _take_weights(paths, shared.path)
        else:
            until_named.enter_context(
                signals.deferred()
            )  # a stop signal waits until a trained stage is saved
            unusable = len(data.ledger.met)
            if processes.first and not folder.has_entry(event="stage", stage=stage.name):
                together = {"processes": processes.count} if processes.count > 1 else {}
                folder.log({"event": "stage", "stage": stage.name, "rows": len(data), **together})
            if processes.first and run.config.deepspeed.zero:
                _write_settings(run, stage, folder, processes)
            keeper = Keeper(folder, stage.name, run.config.checkpoints)
            train(
                stage,
                paths,
                data,
                seed=run.seed + index,
                precision=run.config.precision,
                log=folder.log if processes.first else _unlogged,
                trackers=folder.tensorboard,
                keeper=keeper,
                processes=processes,
                deepspeed=run.config.deepspeed,
                check=run.config.check,
                states=_states(run, folder.root, processes),
            )
            if processes.first:
                with _kept(keeper.newest()):
                    _save(run, index, paths, data, keeper, partial)
                if changed := [*run.changed(), *data.usable_again()]:
                    broke = len(data.ledger.met) > unusable and changed == [f"data.{stage.data}.images"]
                    text = f"{', '.join(changed)}{' broke' * broke}: the stage is not shared"
                    about = {"fields": changed, "allowed": broke}  # a share of rows may break
                    folder.log({"event": CHANGED, "stage": stage.name, "text": text, "about": about})
                    student = run_folder.set_aside(partial, CHANGED)
    if processes.first:
        checkpoints.drop(folder, stage.name)
    return student


def _states(run: Run, root: Path, processes: Processes) -> Path:
    """Where the teacher's states are kept: one file for whatever gives the same numbers to the bit."""
    computed = [
        torch.__version__,
        transformers.__version__,
        str(processes.device.type),
        torch.get_num_threads(),
    ]
    if processes.device.type == "cuda":
        computed.append(torch.cuda.get_device_name(processes.device))
    return run_folder.states(root, digest(run.teacher_digest, computed))


def _write_settings(run: Run, stage: Stage, folder: RunFolder, processes: Processes) -> None:
    """What DeepSpeed is told, in the run's folder."""
    from switchkd_cli.engine.training.zero import settings

    told = settings(
        stage, run.config.deepspeed, run.config.precision, micro_batch(stage, processes.count), processes
    )
    folder.deepspeed.mkdir(exist_ok=True)
    write_json(folder.deepspeed / f"{stage.name}.json", told)


def _unlogged(entry: Mapping[str, Any]) -> None:
    """What the first process logs is said once."""


def _save(run: Run, index: int, paths: Paths, data: Conversations, keeper: Keeper, target: Path) -> None:
    """Saves a trained stage's student to `target`, and the last stage's best one to the run's folder."""
    taught = _taught(data)
    huggingface.save(paths.student, target, **taught)
    if index == len(run.config.stages) - 1 and (best := keeper.best()) is not None:
        put_weights(paths, read_state(best))
        with atomic_folder(keeper.folder.best) as partial:
            huggingface.save(paths.student, partial, **taught)


def _taught(data: Conversations) -> dict[str, Any]:
    """What is saved is asked as it was taught."""
    return {"template": data.chat_template, "end": data.end}


@contextmanager
def _kept(where: str) -> Iterator[None]:
    """An error inside says where the trained weights are."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{where}: the same command goes on from what is there")
        raise


def _take_model(run: Run, folder: RunFolder, trained: Path) -> None:
    """Puts the last stage's student into the run's folder."""
    with _kept(f"the trained student is {run_folder.shown(trained)}"):
        with atomic_folder(folder.model) as partial:
            link_files(trained, partial)
        model_card.write(run, folder)


def _take_weights(paths: Paths, folder: Path) -> None:
    paths.student.model.load_state_dict(load(str(folder)).model.state_dict())
