"""Run one planned run in this process, and put every other question to the engine.

`engine` is the one door to the engine, which is imported when it is first used: torch takes seconds.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import chain
from typing import Any

from switchkd_cli import benchmarks
from switchkd_cli.distributed.launch_config import LaunchConfig, is_distributed, is_first
from switchkd_cli.distributed.stopping import Stopped
from switchkd_cli.errors import CRASH, UserError, for_each
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.run import Run, model_names
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.claim import (
    changed_versions,
    check_free,
    check_versions,
    claim_folder,
    folder_state,
    is_finished,
    taken_over,
)
from switchkd_cli.scheduler.run_options import RunOptions
from switchkd_cli.terminal import console
from switchkd_cli.terminal.progress import Progress

SSH_OPTIONS = "-o BatchMode=yes -o ConnectTimeout=60 -o ServerAliveInterval=60"
"""With these, ssh asks for no password and notices a machine that is gone."""


def engine(module: str) -> Any:
    """A module of the engine, such as `export.runtimes`."""
    return import_module(f"switchkd_cli.engine.{module}")


def check(planned: Sequence[Run]) -> None:
    """Check models and libraries as `preflight.check` does, and download models from the hub, so that keys are final.

    What benchmarks need (a network, a judge model) is printed.
    Raises UserError as `preflight.check` does, and with code MACHINE when a hub model can't be downloaded.
    """
    preflight.check(planned)
    say_needs([run.config.evaluation for run in planned])
    for run in planned:
        for who, model in run.config.models.items():
            for field, name in model_names(who, model):
                if run.fingerprints.named(name) is None:
                    hub = engine("hub")
                    only = hub.TOKENIZER_FILES if field.endswith(".tokenizer") else ()
                    who_asks = field.removesuffix(".checkpoint")
                    hub.fetch(name, who_asks, allow_pickle=model.allow_pickle, only=only)
                    run.fingerprints.forget()


def say_needs(evaluations: Iterable[Evaluation | None]) -> None:
    """Print what each stock benchmark needs, once, before anything runs."""
    asked = [of for of in evaluations if of and is_first()]
    for need in dict.fromkeys(need for of in asked for need in benchmarks.needs(of.benchmarks, of.tasks_path)):
        console.say(need)


def make_room(planned: Sequence[Run], options: RunOptions) -> None:
    """With --overwrite, move what the runs share aside.

    Raises UserError without it for all folders with another run, and without --resume for interrupted runs of other code.
    """
    if options.overwrite:
        if is_first():
            run_folder.set_shared_aside(options.out, planned)
        return

    def check_one(run: Run) -> None:
        check_free(options.out, run)
        target = run_folder.folder(options.out, run)
        if options.resume or folder_state(target, run) != "interrupted":
            return
        if run.key not in run_folder.by_key(options.out):  # else a finished run is reused
            check_versions(target, run)

    for_each(planned, check_one)


def run_one(run: Run, options: RunOptions) -> run_folder.RunFolder:
    """Train and evaluate one run. A finished run with the same key is reused; an unfinished one is resumed.

    When a launcher started several processes, each of them calls this: the first one holds the folder, draws and
    scores, the others only train.
    """
    root, overwrite, processes = options.out, options.overwrite, None
    if is_distributed():
        processes = engine("training.processes").join_processes()
        preflight.check_batches([run], processes.count)
    if processes is not None and not processes.first:
        folder = run_folder.folder(root, run)
        if processes.decide(str) != "finished":
            engine("run_stages").train_stages(run, folder, processes)
        return folder
    if not overwrite and not is_finished(root, run) and (source := run_folder.by_key(root).get(run.key)):
        folder = take_over(run, source, options)
        console.say(f"{run.name}: the same run as {source.place}, reused: {run.compared} ({folder.path})")
        if processes is not None:
            processes.decide(lambda: "finished")
        return folder
    with claim_folder(root, run, overwrite=overwrite, resume=options.resume) as (folder, state):
        if processes is not None:
            processes.decide(lambda: state)
        if state == "finished":
            console.say(f"{run.name}: finished before, reused: {run.compared} ({folder.path})")
            if changed := changed_versions(folder):
                console.say(f"{run.name}: made with {'; '.join(changed)}")
            return folder
        stages = engine("run_stages")
        with Progress() as display, engine("training.trackers").Trackers(run, folder) as trackers:
            display.follow(folder.metrics, run.name)
            data = stages.train_stages(run, folder, *([processes] if processes is not None else []), trackers=trackers)
            if run.config.evaluation is not None:
                trackers.scores(stages.evaluate(run, folder, data))
    return folder


def take_over(run: Run, source: run_folder.RunFolder, options: RunOptions) -> run_folder.RunFolder:
    """Reuse `source`, a finished run with the same key, under this run's name; nothing is trained or scored."""
    target = run_folder.folder(options.out, run)
    with taken_over(run, source, target, overwrite=options.overwrite) as folder:
        if folder is not None:
            engine("export.model_card").write(run, folder)
    return target


def start_processes(config: LaunchConfig) -> None:
    """Run this command in every process. Raises UserError when one failed.

    Of processes on this machine it is the error of the first one that failed. With a host file, DeepSpeed's launcher
    starts them over ssh: their own output, from several machines, says what went wrong, and is passed on unchanged.
    """
    command = ["-m", "switchkd_cli", *sys.argv[1:]]
    if config.hostfile is None:
        return engine("training.torchrun").launch(command, config)
    environment = {"PDSH_SSH_ARGS_APPEND": SSH_OPTIONS, **os.environ}
    with subprocess.Popen(deepspeed_command(command, config), env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            code = process.wait()
        except Stopped:  # if it were killed, the processes on the other machines would stay
            process.terminate()
            raise
    if code:
        problem = f"the processes ended with exit code {code}: the first error is in the output above"
        raise UserError(problem, code=CRASH)


def deepspeed_command(command: Sequence[str], config: LaunchConfig) -> list[str]:
    """The command line of DeepSpeed's launcher for `command`: `-m`, a module's name and its arguments."""
    options = {"--num_gpus": str(config.per_node), "--hostfile": str(config.hostfile)}
    if config.nodes > 1:
        options["--num_nodes"] = str(config.nodes)
    if config.rdzv_endpoint is not None:
        options["--master_addr"], options["--master_port"] = config.rdzv_endpoint.split(":")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *chain.from_iterable(options.items())]
    return [*launcher, "--no_local_rank", "--module", *command[1:]]
