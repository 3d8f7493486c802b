"""lmms-eval run through its Python API: stock tasks, their prompts and their metrics, in one process.

Nothing of a task is altered. What surrounds it is: where data and files lie, what is printed, and that no
judge is ever called.
"""

import logging
import os
import random
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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

from switchkd_cli.benchmarks import Benchmark
from switchkd_cli.engine.evaluation.lmms_model import LmmsModel
from switchkd_cli.errors import MACHINE, UTF8, UserError
from switchkd_cli.files.locks import can_lock

TASKS = Path(lmms_eval.__file__).parent / "tasks"


def run(
    answerer: LmmsModel, rows: Sequence[Benchmark], *, folder: Path, home: Path | None, limit: int | None
) -> dict:
    """lmms-eval's own result dictionary, samples included.

    `home` is a folder of local data sets (see playground/sets.py); without it the tasks load theirs from the
    hub, the first `limit` items of each. Files that tasks write go to `folder`, all that is printed to
    `folder`/log.txt. An exception of a task or of the answerer is raised as it is.
    """
    folder = folder.resolve()
    with ExitStack() as stack:
        stack.enter_context(quiet(folder / "log.txt"))
        stack.enter_context(_one_process())
        stack.enter_context(no_judge())
        if home is not None:
            stack.enter_context(_local(home.resolve()))
        stack.enter_context(_fetched(home is None))
        manager = index(rows)
        return evaluator.simple_evaluate(
            model=answerer,
            tasks=[_scored(row, manager) for row in rows],
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            numpy_random_seed=None,
            torch_random_seed=None,
            process_docs_parallel=1,  # MMMU's random options come in order
            cli_args=Namespace(output_path=str(folder), process_with_media=False),
        )


@contextmanager
def _fetched(published: bool) -> Iterator[None]:
    """A published data set that does not come is the machine's lack, no crash."""
    try:
        yield
    except RetryError as error:
        if not published:
            raise
        cause = error.last_attempt.exception()
        raise UserError(
            f"evaluation: a published data set could not be fetched ({type(cause).__name__}:"
            f" {' '.join(str(cause).split())[:200]})",
            hint="log in to the hub where there is a network (hf auth login), or ask for --world playground",
            code=MACHINE,
        ) from error


def index(rows: Sequence[Benchmark]) -> TaskManager:
    """Indexes the rows' task folders only: reading all of lmms-eval's 1,900 task files takes many seconds."""
    folders = sorted({row.task_folder for row in rows})
    return TaskManager(include_path=[str(TASKS / name) for name in folders], include_defaults=False)


def _scored(row: Benchmark, manager: TaskManager) -> dict[str, Any]:
    """The stock task without its submission file: an upload for a server, as a spreadsheet."""
    stock = lmms_eval.utils.load_yaml_config(manager.task_index[row.task]["yaml_path"], mode="full")
    metrics = [metric for metric in stock["metric_list"] if metric["metric"] != "submission"]
    return {"task": row.task, "metric_list": metrics}


@contextmanager
def swapped(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of `owner` set for a while."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """What lmms-eval, its tasks and transformers print goes to a file; no progress bars."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", **UTF8) as file, ExitStack() as stack:
        for name in ("httpx", "datasets", "huggingface_hub", "transformers"):
            stack.enter_context(swapped(logging.getLogger(name), level=logging.ERROR))
        stack.callback(logger.add, sys.stderr)  # loguru's default
        logger.remove()
        stack.callback(logger.remove, logger.add(file, level="INFO"))
        if datasets.is_progress_bar_enabled():
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        stack.enter_context(redirect_stdout(file))
        stack.enter_context(redirect_stderr(file))
        stack.enter_context(swapped(evaluator, tqdm=_still))
        stack.enter_context(swapped(task_module, tqdm=_still))
        yield


def _still(*args: Any, **options: Any) -> tqdm:
    return tqdm(*args, **options | {"disable": True})


@contextmanager
def _one_process() -> Iterator[None]:
    """One process answers everything, also inside a distributed run; the caller's random state is kept.

    lmms-eval would wait for processes that train and do not evaluate.
    """
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    before = {name: os.environ.get(name) for name in names}
    state = random.getstate()
    os.environ.update(names)
    try:
        with swapped(torch.distributed, is_initialized=lambda: False):
            yield
    finally:
        random.setstate(state)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _unreadable(self: MMBench_Evaluator, item: Any) -> tuple[str, str]:
    """The fixed rule in the judge's place: no option, so wrong."""
    return "", item["prediction"]


def _refused(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("a task tried to call a judge model: benchmarks here are scored by rules only")


def no_judge() -> Any:
    """MMBench answers that its rules can't read are wrong; nothing is sent, retried or drawn at random."""
    return swapped(
        MMBench_Evaluator,
        extract_answer_from_item=_unreadable,
        get_chat_response=_refused,
        _post_request=_refused,
    )


@contextmanager
def _local(home: Path) -> Iterator[None]:
    """Local data only: no network, the datasets cache inside `home`, no worker processes, no retries.

    Where no file of `home` can be locked, the cache is a folder of this machine, and removed.
    """
    download = task_module.ConfigurableTask.download.retry
    scoring = task_module.ConfigurableTask.process_results.retry
    once = {"stop": stop_after_attempt(1), "reraise": True}
    with ExitStack() as stack:
        cache = home / "cache"
        if not can_lock(home):
            cache = Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(chdir(home))
        stack.enter_context(swapped(huggingface_hub.constants, HF_HUB_OFFLINE=True))
        stack.enter_context(swapped(datasets.config, HF_DATASETS_CACHE=cache, HF_HUB_OFFLINE=True))
        stack.enter_context(swapped(task_module, _resolve_hf_datasets_cache_dir=lambda: str(cache)))
        stack.enter_context(swapped(datasets.Dataset, map=_map_here))
        stack.enter_context(swapped(download, **once))
        stack.enter_context(swapped(scoring, **once))
        yield


_map = datasets.Dataset.map


def _map_here(self: datasets.Dataset, function: Any = None, **options: Any) -> datasets.Dataset:
    """`Dataset.map` in this process and in memory: GQA's, which joins pictures, would start 8 processes."""
    options |= {"num_proc": None, "keep_in_memory": True}
    return _map(self, function, new_fingerprint=f"{self._fingerprint}-here", **options)
