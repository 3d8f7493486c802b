"""Run lmms-eval through its Python API: stock tasks, their prompts and their metrics, in one process.

The tasks themselves are unchanged; the playground adds two of its own. Changed are the places of data and files, the output, and that no judge model is
ever called.
"""

import logging
import os
import random
import socket
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import datasets
import huggingface_hub.constants
import lmms_eval
import torch
from lmms_eval import evaluator
from lmms_eval.api import task as task_module
from lmms_eval.tasks import TaskManager
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from loguru import logger
from tenacity import RetryError, stop_after_attempt
from tqdm import tqdm

from switchkd_cli.benchmarks import Benchmark, known_tasks
from switchkd_cli.engine.evaluation.lmms_model import LmmsModel
from switchkd_cli.engine.hub import one_line
from switchkd_cli.errors import MACHINE, UTF8, UserError, import_errors
from switchkd_cli.files.atomic import can_lock
from switchkd_cli.playground import tasks as playground_tasks
from switchkd_cli.recipe.schema import Evaluation

HIDDEN = {"disable": True}  # a progress bar
TASKS = Path(lmms_eval.__file__).parent / "tasks"
PLAYGROUND_TASKS = Path(playground_tasks.__file__).parent


def run(model: LmmsModel, rows: Sequence[Benchmark], asked: Evaluation, folder: Path, home: Path | None) -> dict:
    """Evaluate the model and return lmms-eval's own result dictionary, with samples.

    `home` is a folder of local data sets (see playground/benchmark_sets.py), of which all items are asked; without it the
    tasks load theirs from the hub, the first `items` of each. Files that tasks write go to `folder`, all output goes to
    `folder`/log.txt.
    Raises UserError (code MACHINE) where a published data set can't be fetched, and where a task tries to reach the network
    after that; exceptions of a task or of the model are not changed.
    """
    folder = folder.resolve()
    limit = None if home or asked.items is None else asked.items - asked.items % 2  # MME's questions come in pairs
    data = nullcontext() if home is None else _local_data(home.resolve())
    with quiet(folder / "log.txt"), _one_process(), no_judge(), data:
        manager = task_manager(rows, asked.tasks_path)
        try:
            model.tasks = manager.load_task_or_group([_task(row, manager) for row in rows])
            with nothing_goes_out():
                return evaluator.simple_evaluate(
                    model=model,
                    tasks=list(model.tasks.values()),
                    task_manager=manager,
                    limit=limit,
                    bootstrap_iters=0,
                    numpy_random_seed=None,
                    torch_random_seed=None,
                    process_docs_parallel=1,  # MMMU draws random options in this order
                    cli_args=Namespace(output_path=str(folder), process_with_media=False),
                )
        except RetryError as error:  # local data is not read again
            cause: Any = error.last_attempt.exception()
            why = f"{type(cause).__name__}: {one_line(cause)}"
            problem = f"evaluation: a published data set could not be fetched ({why})"
            hint = "log in to the hub where there is a network (hf auth login), or ask for --world playground"
            raise UserError(problem, hint=hint, code=MACHINE) from error
        except _Outside as error:
            raise UserError(
                f"evaluation: a task tried to reach {error} while it asked or scored: a judge model, or images of the web",
                hint="leave out the benchmark that log.txt names last: answers are sent nowhere from here",
            ) from error


def task_manager(rows: Sequence[Benchmark], tasks_path: str | None = None) -> TaskManager:
    """Index only the benchmarks' task folders: reading all of lmms-eval's 1,900 task files takes many seconds.

    A name that several folders define is the benchmark's own file, or the user's before lmms-eval's.
    """
    stock = {row.task: known_tasks(tasks_path)[row.task].file for row in rows if row.stock}
    ours = [TASKS / row.task_folder if row.published else PLAYGROUND_TASKS for row in rows if not row.stock]
    folders = [*ours, *(file.parent for file in stock.values())]  # of one name the first counts
    manager = TaskManager(include_path=list(dict.fromkeys(map(str, folders))), include_defaults=False)
    for task, file in stock.items():
        manager.task_index[task]["yaml_path"] = str(file)
    return manager


def import_code(rows: Sequence[Benchmark], tasks_path: str | None) -> None:
    """Import the code that tasks name. Raises UserError (code MACHINE) with every task where that fails."""
    problems = []
    with quiet(Path(os.devnull)), no_judge():
        manager = task_manager(rows, tasks_path)
        for row in rows:
            try:
                with import_errors():
                    _task(row, manager)
            except UserError as error:
                problems += [f"{row.task}: {problem}" for problem in error.problems]
    if problems:
        hint = "pip install what is missing, or leave these benchmarks out (docs/recipes.md)"
        raise UserError(problems, hint, MACHINE)


def _task(row: Benchmark, manager: TaskManager) -> dict[str, Any]:
    """Return the task without its submission file, a spreadsheet to upload to a server."""
    stock = lmms_eval.utils.load_yaml_config(manager.task_index[row.task]["yaml_path"], mode="full")
    kept = [metric for metric in stock.get("metric_list") or () if metric["metric"] != "submission"]
    return {"task": row.task} | ({"metric_list": kept} if kept else {})


class _Outside(BaseException):
    """A connection that was refused. No Exception: tasks catch those, wait, and score the answer 0."""


@contextmanager
def nothing_goes_out() -> Iterator[None]:
    """Refuse every connection of this thread and of those that start inside; trackers' threads go on."""
    others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if threading.get_ident() not in others and not isinstance(address, str | bytes):  # a path of this machine
            raise _Outside(address)
        connect(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() not in others:
            raise _Outside(host)
        return look_up(host, *args, **kwargs)

    with patch.object(socket.socket, "connect", guarded_connect), patch.object(socket, "getaddrinfo", guarded_look_up):
        yield


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Redirect the output of lmms-eval, its tasks and transformers to a file, without progress bars."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", **UTF8) as file, ExitStack() as stack:
        for name in ("httpx", "datasets", "huggingface_hub", "transformers"):
            stack.enter_context(patch.object(logging.getLogger(name), "level", logging.ERROR))
        stack.callback(logger.add, sys.stderr)  # loguru's default
        logger.remove()
        stack.callback(logger.remove, logger.add(file, level="INFO"))
        stack.enter_context(redirect_stdout(file))
        stack.enter_context(redirect_stderr(file))
        show = tqdm.__init__
        stack.enter_context(patch.object(tqdm, "__init__", lambda *a, **options: show(*a, **options | HIDDEN)))
        yield


@contextmanager
def _one_process() -> Iterator[None]:
    """Evaluate in this process alone, also inside a distributed run, and restore the random state at the end.

    Otherwise lmms-eval would wait for the other training processes, which don't evaluate.
    """
    state = random.getstate()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    try:
        with patch.dict(os.environ, alone), patch.object(torch.distributed, "is_initialized", lambda: False):
            yield
    finally:
        random.setstate(state)


def no_judge() -> Any:
    """Score MMBench answers that its rules can't read as wrong: no request, no retry, no random option."""
    return patch.object(MMBench_Evaluator, "extract_answer_from_item", lambda self, item: ("", item["prediction"]))


@contextmanager
def _local_data(home: Path) -> Iterator[None]:
    """Use local data only: `offline`, the cache of `datasets` inside `home`, no worker processes.

    Where files in `home` can't be locked, the cache is a temporary folder on this machine.
    """
    with TemporaryDirectory() as scratch, chdir(home), offline():
        cache = home / "cache" if can_lock(home) else Path(scratch)
        resolved = patch.object(task_module, "_resolve_hf_datasets_cache_dir", lambda: str(cache))
        mapped = patch.object(datasets.Dataset, "map", _map_here)
        with patch.object(datasets.config, "HF_DATASETS_CACHE", cache), resolved, mapped:
            yield


@contextmanager
def offline() -> Iterator[None]:
    """Fetch nothing: a task whose data are not on this machine raises at once."""
    task = task_module.ConfigurableTask
    with ExitStack() as stack:
        for module in (huggingface_hub.constants, datasets.config):
            stack.enter_context(patch.multiple(module, HF_HUB_OFFLINE=True))
        for method in (task.download, task.process_results):
            stack.enter_context(patch.multiple(method.retry, stop=stop_after_attempt(1), reraise=True))
        yield


_map = datasets.Dataset.map


def _map_here(self: datasets.Dataset, function: Any = None, **options: Any) -> datasets.Dataset:
    """`Dataset.map` in this process and in memory: GQA's call, which joins images, would start 8 processes."""
    options |= {"num_proc": None, "keep_in_memory": True}
    return _map(self, function, new_fingerprint=f"{self._fingerprint}-here", **options)
