"""One run in this process, and the other questions to the engine, which is reached by name."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from switchkd_cli.distributed import exit_status, hostfile, signals
from switchkd_cli.distributed.launch_config import Spread, among_others, leave
from switchkd_cli.distributed.launch_config import spread as spread_over
from switchkd_cli.errors import UserError, show_in_any_encoding, system_told
from switchkd_cli.planning import preflight
from switchkd_cli.planning.estimate import Forecast, Machine
from switchkd_cli.planning.library_versions import imported
from switchkd_cli.recipe.run import Run, model_names
from switchkd_cli.runs import reuse, run_folder
from switchkd_cli.runs.claim import another_program, is_finished, occupy
from switchkd_cli.terminal import console
from switchkd_cli.terminal.progress import progress


def check(planned: Sequence[Run]) -> None:
    """What `plan.check` checks; then every model with a hub id is on this machine, so that keys know its commit.

    Raises UserError as `plan.check` does, and with code MACHINE where a hub id is not here and can't be fetched.
    """
    preflight.check(planned)
    for run in planned:
        for who, model in (("student", run.config.student), ("teacher", run.config.teacher)):
            for field, name in model_names(who, model):
                if run.fingerprints.model(name) is None:
                    _fetch(field, name, allow_pickle=model.allow_pickle)
                    run.fingerprints.forget()


def _fetch(field: str, hub_id: str, *, allow_pickle: bool) -> None:
    stored = _engine("hub")
    only = stored.TOKENIZER_FILES if field.endswith(".tokenizer") else ()
    stored.fetch(hub_id, field.removesuffix(".checkpoint"), allow_pickle=allow_pickle, only=only)


def run_one(run: Run, root: Path, *, overwrite: bool = False, resume: bool = False) -> run_folder.RunFolder:
    """Train and evaluate one run. A finished one is reused, whatever row's name it goes by; an unfinished one goes on.

    In this process, and where a launcher started it as one of several, in all of them: the first holds the folder,
    draws and scores, the others train with it.
    """
    processes = _engine("training.processes").joined() if among_others() else None
    if processes is not None and not processes.first:
        folder = run_folder.folder(root, run)
        if processes.decide(str) != "finished":
            _worker().work(run, folder, processes)
        return folder
    if not overwrite and not is_finished(root, run) and (source := run_folder.by_key(root).get(run.key)):
        folder = take_over(run, source, root)
        console.say(f"{run.name}: the same run as {source.place}, reused: {run.compared} ({folder.path})")
        if processes is not None:
            processes.decide(lambda: "finished")
        return folder
    together = () if processes is None else (processes,)
    with occupy(root, run, overwrite=overwrite, resume=resume) as (folder, state):
        if processes is not None:
            processes.decide(lambda: state)
        if state == "finished":
            console.say(f"{run.name}: finished before, reused: {run.compared} ({folder.path})")
            if changed := another_program(folder):
                console.say(f"{run.name}: made with {'; '.join(changed)}")
            return folder
        worker = _worker()
        with progress(folder.metrics, run.name):
            worker.work(run, folder, *together)
            if run.config.evaluation is not None:
                worker.evaluate(run, folder)
    return folder


def take_over(
    run: Run, source: run_folder.RunFolder, root: Path, *, overwrite: bool = False
) -> run_folder.RunFolder:
    """The run from `source`, a finished one with the same key: nothing is trained or scored."""
    target = run_folder.folder(root, run)
    with reuse.taken_over(run, source, target, overwrite=overwrite) as folder:
        if folder is not None:
            _engine("export.model_card").write(run, folder)
    return target


def apart(command: Sequence[str], spread: Spread) -> None:
    """Run `command`, words behind this Python, in every process of the spread. Raises what the first failure was."""
    if spread.hostfile is not None:
        hostfile.launch(command, spread)
    else:
        _engine("training.torchrun").launch(command, spread)


def teacher_results(run: Run, root: Path) -> dict[str, Any] | None:
    """Scores of the run's teacher and of the blind and majority baselines, computed once.

    None when the recipe scores nothing.
    """
    if run.config.evaluation is None:
        return None
    known = known_teacher_results(run, root)
    if known is None:
        console.say("scoring the teacher and the baselines")
    return known or _worker().evaluate_teacher(run, root)


def known_teacher_results(run: Run, root: Path) -> dict[str, Any] | None:
    """The same, if some run computed them before."""
    return run_folder.scores(run_folder.evaluation(root, run.teacher_key))


def evaluate(model: str, root: Path, key: str, question: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """Score a model, or find its scores for the same question. Returns them and their folder."""
    shared = run_folder.evaluation(root, key)
    with shared.build() as partial:
        if partial is None:
            console.say(f"evaluated before, reused: same model, byte by byte, and questions ({shared.path})")
        else:
            results = _engine("evaluation.score_model").evaluate(
                model, folder=partial, sets=run_folder.sets(root), **question
            )
            run_folder.write_json(partial / "results.json", results)
    return run_folder.scores(shared), shared.path


def forecast(run: Run, machine: Machine, root: Path, made: Mapping[Path, Run]) -> Forecast:
    """What the run needs on such a machine; nothing is loaded, fetched or trained."""
    return _engine("cost.forecast").forecast(run, machine, root, made)


def models() -> Any:
    """What asks the saved models of finished runs for a picture; the engine is imported when it is first asked."""
    return _Models()


class _Models:
    def position(self, folder: run_folder.RunFolder) -> Any:
        return _engine("figure_data").position(folder)

    def questions(self, folders: Sequence[run_folder.RunFolder]) -> Any:
        return _engine("figure_data").questions(folders)


def _worker() -> Any:
    return _engine("run_stages")


def _engine(module: str) -> Any:
    """A module of the engine, the heavy zone. Raises UserError when a library is missing or not the right one."""
    return imported(f"switchkd_cli.engine.{module}")


def main() -> int:
    """A worker process: one run, read from standard input, or from a file where processes share it.

    With --teacher, the scoring of its teacher.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--teacher", action="store_true")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--gpus", type=int)
    parser.add_argument("--processes", type=int)
    asked = parser.parse_args()
    show_in_any_encoding()
    try:
        with exit_status.kept(), system_told(), signals.heeded(child=True):
            text = asked.run.read_text(encoding="utf-8") if asked.run else sys.stdin.read()
            if asked.teacher:
                _worker().evaluate_teacher(Run.loads(text), asked.out)
            elif spread := spread_over(asked.gpus, asked.processes):
                _apart(text, spread)
            else:
                run_one(Run.loads(text), asked.out, overwrite=asked.overwrite, resume=asked.resume)
    except UserError as error:
        console.error(error)
        return error.code
    except signals.Stopped as stopped:
        console.say(f"stopped: {stopped}")
        return stopped.code
    return 0


def _apart(text: str, spread: Spread) -> None:
    """Hands the run that was read on to processes of its own."""
    with tempfile.TemporaryDirectory(prefix="switchkd-") as scratch:
        file = Path(scratch) / "run.json"
        file.write_text(text, encoding="utf-8")
        apart(["-m", "switchkd_cli.scheduler.launch", *sys.argv[1:], "--run", str(file)], spread)


if __name__ == "__main__":
    leave(main())
