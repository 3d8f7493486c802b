"""Run one planned run in this process, and put every other question to the engine.

This is the only module outside the engine that imports it: inside functions, when it is needed, because torch takes
seconds to import. `import_errors` turns a library that is missing or broken into a line and exit code 3.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from switchkd_cli.distributed import exit_status, hostfile, signals
from switchkd_cli.distributed.launch_config import LaunchConfig, exit_process, is_distributed, is_first, launch_config
from switchkd_cli.errors import UserError, print_in_any_encoding, system_errors
from switchkd_cli.files.atomic import write_json
from switchkd_cli.planning import preflight
from switchkd_cli.planning.estimate import Machine, RunEstimate
from switchkd_cli.planning.library_versions import import_errors
from switchkd_cli.recipe.run import Run, model_names
from switchkd_cli.runs import reuse, run_folder
from switchkd_cli.runs.claim import changed_versions, check_free, claim_folder, is_finished
from switchkd_cli.terminal import console
from switchkd_cli.terminal.progress import progress


def check(planned: Sequence[Run]) -> None:
    """Check models and libraries as `preflight.check` does, and download models from the hub, so that keys are final.

    Raises UserError as `preflight.check` does, and with code MACHINE when a hub model can't be downloaded.
    """
    preflight.check(planned)
    for run in planned:
        for who, model in (("student", run.config.student), ("teacher", run.config.teacher)):
            for field, name in model_names(who, model):
                if model is not None and run.fingerprints.named(name) is None:
                    with import_errors():
                        from switchkd_cli.engine import hub
                    only = hub.TOKENIZER_FILES if field.endswith(".tokenizer") else ()
                    who_asks = field.removesuffix(".checkpoint")
                    hub.fetch(name, who_asks, allow_pickle=model.allow_pickle, only=only)
                    run.fingerprints.forget()


def prepare(planned: Sequence[Run], root: Path, *, overwrite: bool) -> None:
    """Check all runs before the first one starts; with `overwrite`, move their shared stages aside.

    Raises UserError as `check` does, and without `overwrite` when a run's folder holds another run.
    """
    check(planned)
    if not overwrite:
        for run in planned:
            check_free(root, run)
    elif is_first():
        run_folder.set_stages_aside(root, planned)


def run_one(run: Run, root: Path, *, overwrite: bool = False, resume: bool = False) -> run_folder.RunFolder:
    """Train and evaluate one run. A finished run with the same key is reused; an unfinished one is resumed.

    When a launcher started several processes, each of them calls this: the first one holds the folder, draws and
    scores, the others only train.
    """
    processes = None
    if is_distributed():
        with import_errors():
            from switchkd_cli.engine.training.processes import join_processes
        processes = join_processes()
    if processes is not None and not processes.first:
        folder = run_folder.folder(root, run)
        if processes.decide(str) != "finished":
            with import_errors():
                from switchkd_cli.engine.run_stages import train_stages
            train_stages(run, folder, processes)
        return folder
    if not overwrite and not is_finished(root, run) and (source := run_folder.by_key(root).get(run.key)):
        folder = take_over(run, source, root)
        console.say(f"{run.name}: the same run as {source.place}, reused: {run.compared} ({folder.path})")
        if processes is not None:
            processes.decide(lambda: "finished")
        return folder
    with claim_folder(root, run, overwrite=overwrite, resume=resume) as (folder, state):
        if processes is not None:
            processes.decide(lambda: state)
        if state == "finished":
            console.say(f"{run.name}: finished before, reused: {run.compared} ({folder.path})")
            if changed := changed_versions(folder):
                console.say(f"{run.name}: made with {'; '.join(changed)}")
            return folder
        with import_errors():
            from switchkd_cli.engine.run_stages import evaluate, train_stages
        with progress(folder.metrics, run.name):
            train_stages(run, folder, *([processes] if processes is not None else []))
            if run.config.evaluation is not None:
                evaluate(run, folder)
    return folder


def take_over(run: Run, source: run_folder.RunFolder, root: Path, *, overwrite: bool = False) -> run_folder.RunFolder:
    """Reuse `source`, a finished run with the same key, under this run's name; nothing is trained or scored."""
    target = run_folder.folder(root, run)
    with reuse.taken_over(run, source, target, overwrite=overwrite) as folder:
        if folder is not None:
            with import_errors():
                from switchkd_cli.engine.export.model_card import write
            write(run, folder)
    return target


def start_processes(command: Sequence[str], config: LaunchConfig) -> None:
    """Run `command` (arguments of this Python) in every process. Raises the error of the first one that failed."""
    if config.hostfile is not None:
        hostfile.launch(command, config)
    else:
        with import_errors():
            from switchkd_cli.engine.training import torchrun
        torchrun.launch(command, config)


def teacher_results(run: Run, root: Path) -> dict[str, Any] | None:
    """Scores of the run's teacher and of the blind and majority baselines, computed once.

    None when the recipe has no evaluation.
    """
    if run.config.evaluation is None:
        return None
    if (known := known_teacher_results(run, root)) is not None:
        return known
    console.say("scoring the teacher and the baselines")
    return score_teacher(run, root)


def score_teacher(run: Run, root: Path) -> dict[str, Any]:
    with import_errors():
        from switchkd_cli.engine.run_stages import evaluate_teacher
    return evaluate_teacher(run, root)


def known_teacher_results(run: Run, root: Path) -> dict[str, Any] | None:
    """The teacher's scores, if they were computed before."""
    return run_folder.scores(run_folder.evaluation(root, run.teacher_key))


def evaluate(model: str, root: Path, key: str, question: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """Score a model, or reuse the scores of the same question. Returns the scores and their folder."""
    shared = run_folder.evaluation(root, key)
    with shared.build() as partial:
        if partial is None:
            console.say(f"evaluated before, reused: same model, byte by byte, and questions ({shared.path})")
        else:
            with import_errors():
                from switchkd_cli.engine.evaluation.score_model import evaluate
            results = evaluate(model, folder=partial, sets=run_folder.sets(root), **question)
            write_json(partial / "results.json", results)
    return run_folder.scores(shared), shared.path


def estimate(run: Run, machine: Machine, root: Path, planned: Mapping[Path, Run]) -> RunEstimate:
    """Estimate what the run needs on a machine; nothing is loaded, downloaded or trained."""
    with import_errors():
        from switchkd_cli.engine.cost.run_estimate import estimate_run
    return estimate_run(run, machine, root, planned)


class FigureData:
    """Data for figures that needs the saved models of finished runs; the engine is imported at the first question."""

    def position(self, folder: run_folder.RunFolder) -> Any:
        with import_errors():
            from switchkd_cli.engine.figure_data import knee_position
        return knee_position(folder)

    def questions(self, folders: Sequence[run_folder.RunFolder]) -> Any:
        with import_errors():
            from switchkd_cli.engine.figure_data import attention_examples
        return attention_examples(folders)


def main() -> int:
    """A worker process. It reads one run from standard input, or from a file that several processes share.

    With --teacher it scores the run's teacher instead of training.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--teacher", action="store_true")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--gpus", type=int)
    parser.add_argument("--processes", type=int)
    arguments = parser.parse_args()
    print_in_any_encoding()
    try:
        with exit_status.report_exit(), system_errors(), signals.stop_on_signals(child=True):
            text = arguments.run.read_text(encoding="utf-8") if arguments.run else sys.stdin.read()
            if arguments.teacher:
                score_teacher(Run.loads(text), arguments.out)
            elif config := launch_config(arguments.gpus, arguments.processes):
                with tempfile.TemporaryDirectory(prefix="switchkd-") as scratch:
                    file = Path(scratch) / "run.json"
                    file.write_text(text, encoding="utf-8")
                    same = ["-m", "switchkd_cli.scheduler.launch", *sys.argv[1:], "--run", str(file)]
                    start_processes(same, config)
            else:
                resume, overwrite = arguments.resume, arguments.overwrite
                run_one(Run.loads(text), arguments.out, overwrite=overwrite, resume=resume)
    except UserError as error:
        console.error(error)
        return error.code
    except signals.Stopped as stopped:
        console.say(f"stopped: {stopped}")
        return stopped.code
    return 0


if __name__ == "__main__":
    exit_process(main())
