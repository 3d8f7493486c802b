"""Score a checkpoint on benchmarks with lmms-eval's tasks (see benchmarks.py)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from switchkd_cli import stock_tasks
from switchkd_cli.benchmarks import BENCHMARKS, FAULTS, OWN_ROWS, ROW_METRICS, Benchmark
from switchkd_cli.errors import MACHINE, UTF8, UserError, import_errors
from switchkd_cli.planning import preflight
from switchkd_cli.playground import benchmark_sets
from switchkd_cli.playground.requested_folder import world_digest
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.report.stats.yes_no import yes_no
from switchkd_cli.runs import provenance

if TYPE_CHECKING:  # lmms-eval and transformers are imported when something is evaluated
    from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel

VERSIONS = ("lmms-eval", "transformers", "torch", "datasets", "switchkd")
"""Libraries that a score depends on: runs scored with different versions are not compared."""


def local_sets(asked: Evaluation, folder: Path) -> Path:
    """Return the folder of the playground's data sets for an evaluation, written under `folder` if they are missing."""
    if asked.items is None or asked.items < 2:
        raise UserError("evaluation: the playground has no end: say how many `items` a benchmark has, at least 2")
    fields = asked.model_dump(mode="json", include={"benchmarks", "split", "items", "seed"})
    return benchmark_sets.write_sets(folder / short_hash(fields | {"world": world_digest()}), **fields)


def short_hash(value: Any) -> str:
    """Return a hash of a JSON value, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def evaluate(
    model_folder: str | Path,
    *,
    folder: Path,
    blind: bool = False,
    allow_pickle: bool = False,
    sets: Path | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """Score a saved checkpoint, write `folder`/answers/<task>.jsonl and return the content of results.json.

    `asked` are the fields of a recipe's `evaluation`; world "hub" takes the first `items` of the published data sets, or
    all, and ignores `split` and `seed`. `allow_pickle` reads a checkpoint that has no safetensors. `blind` replaces each
    image by a mid-grey one. Data sets are kept under `sets` for other evaluations (default: `folder`/sets). The output of
    lmms-eval goes to `folder`/log.txt. The playground uses no network.

    Raises UserError where the request is not possible, the folder is no intact checkpoint of a known family, or
    lmms-eval can't be used (code MACHINE). Exceptions inside lmms-eval or the model are not changed.
    """
    harness = import_harness()
    questions = Evaluation(**asked)
    import torch

    from switchkd_cli.engine.build import check_checkpoint
    from switchkd_cli.engine.models.family import max_positions

    blueprint = check_checkpoint(str(model_folder), "model", allow_pickle=allow_pickle)
    from switchkd_cli.engine.evaluation.generate import GreedyModel

    with harness.quiet(folder / "log.txt"):
        # half precision saves memory and time on a GPU; a CPU computes faster in float32
        model = blueprint.build("auto" if torch.cuda.is_available() else "float32")
        how = {"batch": questions.batch, "playground": questions.world == "playground"}
        greedy_model = GreedyModel(model, blind=blind, positions=max_positions(blueprint.config), **how)
    scores = score_request(greedy_model, questions, folder, sets)
    return {"model": str(model_folder), "notes": list(blueprint.notes), "blind": blind, **scores}


def majority(*, folder: Path, sets: Path | None = None, **asked: Any) -> dict[str, Any]:
    """Score the best constant answers (see `MajorityBaseline`) by the same metrics; arguments as in `evaluate`."""
    import_harness()
    from switchkd_cli.engine.evaluation.lmms_model import MajorityBaseline

    scores = score_request(MajorityBaseline(), Evaluation(**asked), folder, sets)
    return {"model": "majority", "blind": True, **scores}


def score_request(model: LmmsModel, asked: Evaluation, folder: Path, sets: Path | None = None) -> dict[str, Any]:
    """Evaluate any `LmmsModel`: write its answers to `folder`/answers and return the scores."""
    harness = import_harness()
    named = tasks(asked)
    rows = [BENCHMARKS[name] for name in named if name not in ROW_METRICS]
    local = asked.world == "playground"
    limit = None if local or asked.items is None else asked.items - asked.items % 2  # MME's questions come in pairs
    times = [time.perf_counter()]
    home = local_sets(asked, sets or folder / "sets") if local else None
    times.append(time.perf_counter())
    if rows:
        outcome = harness.run(model, rows, folder=folder, home=home, limit=limit, tasks_path=asked.tasks_path)
    if asked.data is not None:
        from switchkd_cli.engine.evaluation import own_rows

        items = own_rows.questions(asked.data, asked.items)
        with harness.quiet(folder / "log.txt"):
            model.ask(items)
    times.append(time.perf_counter())
    scores = {row.task: _score(row, outcome, model, folder / "answers") for row in rows}
    scores |= {name: _score_rows(name, model, items, folder / "answers") for name in named if name in ROW_METRICS}
    times.append(time.perf_counter())
    sets_time, run_time, items_time = (after - before for before, after in pairwise(times))
    answering = sum(model.seconds.values())
    seconds = {"sets": sets_time, "answers": answering, "lmms_eval": run_time - answering, "items": items_time}
    versions = provenance.versions()
    return {
        "world": asked.world,
        "split": asked.split if local else "own" if asked.world == "rows" else "published",
        "seed": asked.seed,
        "scores": scores,
        "sets_key": short_hash(sorted((i.task, i.doc_id, i.key) for i in model.items.values())),
        "versions": {name: versions.get(name) for name in VERSIONS},
        "seconds": {part: round(value, 3) for part, value in seconds.items()},
    }


def tasks(asked: Evaluation) -> list[str]:
    """Return the tasks of an evaluation, each once, with those of its groups. Raises UserError for those that can't be asked."""
    known = {*BENCHMARKS, *ROW_METRICS}
    each = [[name] if name in known else stock_tasks.expanded(name, asked.tasks_path) for name in asked.benchmarks]
    names = list(dict.fromkeys(task for tasks in each for task in tasks))
    stock = [name for name in names if name not in known]
    problems = [problem for name in stock for problem in stock_tasks.obstacles(name, asked.tasks_path)]
    if cider := "rows.cider" in names and importlib.util.find_spec("pycocoevalcap") is None:
        problems.append("rows.cider: pycocoevalcap is not installed")
    if problems:
        hint = "pip install --no-deps pycocoevalcap (CIDEr needs no Java)" if cider else ""
        raise UserError(problems, hint=hint, code=MACHINE)
    return names


def _score(row: Benchmark, outcome: dict, model: LmmsModel, folder: Path) -> dict[str, Any]:
    """Return one benchmark's score, and write its items to `folder`."""
    from switchkd_cli.engine.evaluation import stock_metric
    from switchkd_cli.engine.evaluation.item_scores import categories, faults, item_scores, unit

    scores: Sequence[float | None]
    if row.stock:
        reported = stock_metric.read(row.task, model.tasks[row.task], outcome)
        samples, scores, value = reported.samples, reported.scores, reported.value
    else:
        samples = [sample for sample in outcome["samples"][row.task] if row.metric in sample]
        scores, value = item_scores(row, samples), float(outcome["results"][row.task][f"{row.metric},none"])
    lines = []
    for place, (sample, score) in enumerate(zip(samples, scores, strict=True)):
        item = model.items[row.task, sample["doc_id"]]
        units = reported.category(place) if row.stock else unit(row, sample)
        own = {"faults": faults(row, sample, item, score)}
        lines.append(_line(item, sample["filtered_resps"][0], score) | units | own)
    about = reported.about if row.stock else {"metric": row.metric}
    shown = value if row.stock else row.score(value, categories(row, samples))
    return _entry(row, lines, folder, {"score": shown, **about, "value": value}, model.seconds[row.task])


def _score_rows(name: str, model: LmmsModel, items: Sequence[Item], folder: Path) -> dict[str, Any]:
    """Return the score of the user's own rows by one metric, and write its items to `folder`."""
    from switchkd_cli.engine.evaluation.item_scores import faults
    from switchkd_cli.engine.evaluation.own_rows import scores

    row, metric = BENCHMARKS[name], name.removeprefix(f"{OWN_ROWS}.")
    each = scores(metric, [item.answer for item in items], [item.target for item in items])
    lines = [
        _line(item, item.answer, score) | {"faults": faults(row, {"filtered_resps": [item.answer]}, item, score)}
        for item, score in zip(items, each, strict=True)
    ]
    about = {"score": fmean(each), "metric": metric, "higher_is_better": True, "split": "own", "value": fmean(each)}
    return _entry(row, lines, folder, about, model.seconds[OWN_ROWS])


def _line(item: Item, answer: str, score: float | None) -> dict[str, Any]:
    asked = {"doc_id": item.doc_id, "key": item.key, "image": item.image_key, "kind": item.kind, "prompt": item.prompt}
    return asked | {"answer": answer, "target": item.target, "score": score}


def _entry(
    row: Benchmark, lines: Sequence[dict[str, Any]], folder: Path, about: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Write the lines to `folder`, and return them as one score of results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / f"{row.task}.jsonl").write_text(text, **UTF8)
    return {
        **about,
        "items": len(lines),
        **yes_no(row, lines),
        **{fault: sum(fault in line["faults"] for line in lines) for fault in FAULTS},
        "example": next((line["answer"] for line in lines if "unreadable" in line["faults"]), None),
        "seconds": round(seconds, 3),
    }


def import_harness() -> Any:
    """Import the lmms-eval harness. Raises UserError (code MACHINE) where it can't be used; call it before training."""
    preflight.check_libraries(scoring=True)
    with import_errors():
        import switchkd_cli.engine.evaluation.lmms_harness as harness
    return harness
