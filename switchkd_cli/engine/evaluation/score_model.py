"""A checkpoint's scores on the ten benchmarks, by lmms-eval's stock tasks (see protocol.py)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchkd_cli.benchmarks import FAULTS, Benchmark
from switchkd_cli.engine.evaluation.request import EvaluationRequest, short_hash
from switchkd_cli.errors import UTF8
from switchkd_cli.planning import library_versions
from switchkd_cli.runs import provenance

if TYPE_CHECKING:  # lmms-eval and transformers are imported when something is evaluated
    from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel

VERSIONS = ("lmms-eval", "transformers", "torch", "datasets", "switchkd")
"""What a score depends on: runs that were scored with others are not compared."""
Progress = Callable[[int, int], None]


def evaluate(
    model_folder: str | Path,
    *,
    world: str,
    benchmarks: Sequence[str],
    split: str,
    items: int | None,
    seed: int,
    batch: int,
    folder: Path,
    blind: bool = False,
    allow_pickle: bool = False,
    sets: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores a saved checkpoint and writes `folder`/answers/<task>.jsonl; returns what results.json holds.

    See `EvaluationRequest` for what is asked. `allow_pickle` reads a checkpoint that has no safetensors. `blind` shows a mid-grey picture in place of each picture. Data sets are
    kept under `sets` and found there again (default: `folder`/sets). What lmms-eval prints goes to
    `folder`/log.txt; `progress` is told (answered, all). The playground needs no network and uses none.

    Raises UserError: no such exam, no whole checkpoint of a family we read, or lmms-eval can't be used (code
    MACHINE). What goes wrong inside lmms-eval or the model is raised as it is.
    """
    harness = ready()
    exam = EvaluationRequest(world, tuple(benchmarks), split, items, seed)
    import torch

    from switchkd_cli.engine.build import check_checkpoint
    from switchkd_cli.engine.models.family import max_positions

    blueprint = check_checkpoint(str(model_folder), "model", allow_pickle=allow_pickle)
    from switchkd_cli.engine.evaluation.generate import GreedyModel

    with harness.quiet(folder / "log.txt"):
        # half precision is stored to be small and read to be fast: a CPU has only the first use for it
        model = blueprint.build("auto" if torch.cuda.is_available() else "float32")
        reader = GreedyModel(
            model,
            blind=blind,
            positions=max_positions(blueprint.config),
            batch=batch,
            longest=exam.longest,
            progress=progress,
        )
    told = {"model": str(model_folder), "notes": list(blueprint.notes), "blind": blind}
    return {**told, **score_request(reader, exam, folder, sets)}


def majority(
    *,
    world: str,
    benchmarks: Sequence[str],
    split: str,
    items: int | None,
    seed: int,
    folder: Path,
    sets: Path | None = None,
) -> dict[str, Any]:
    """The scores of the best constant answers (see `MajorityBaseline`) by the same metrics; arguments as above."""
    ready()
    from switchkd_cli.engine.evaluation.majority_baseline import MajorityBaseline

    exam = EvaluationRequest(world, tuple(benchmarks), split, items, seed)
    return {"model": "majority", "blind": True, **score_request(MajorityBaseline(), exam, folder, sets)}


def score_request(
    answerer: LmmsModel, exam: EvaluationRequest, folder: Path, sets: Path | None = None
) -> dict[str, Any]:
    """Puts an exam to any answerer: writes its answers to `folder`/answers and returns the scores."""
    harness = ready()

    clock = [time.perf_counter()]
    home = exam.home(sets or folder / "sets")
    clock.append(time.perf_counter())
    outcome = harness.run(answerer, exam.rows, folder=folder, home=home, limit=exam.limit)
    clock.append(time.perf_counter())
    scores = {row.task: _score(row, outcome, answerer, folder / "answers") for row in exam.rows}
    clock.append(time.perf_counter())
    written, ran, scored = (after - before for before, after in pairwise(clock))
    answering = sum(answerer.seconds.values())
    seconds = {"sets": written, "answers": answering, "lmms_eval": ran - answering, "items": scored}
    versions = provenance.versions()
    return {
        "world": exam.world,
        "split": exam.split if exam.local else "published",
        "seed": exam.seed,
        "scores": scores,
        "sets_key": short_hash(sorted((i.task, i.doc_id, i.key) for i in answerer.items.values())),
        "versions": {name: versions.get(name) for name in VERSIONS},
        "seconds": {part: round(value, 3) for part, value in seconds.items()},
    }


def _score(row: Benchmark, outcome: dict, answerer: LmmsModel, folder: Path) -> dict[str, Any]:
    """One benchmark's score; its items go to `folder`."""
    from switchkd_cli.engine.evaluation.item_scores import categories, faults, item_scores, unit

    samples = [sample for sample in outcome["samples"][row.task] if row.metric in sample]
    lines = []
    for sample, score in zip(samples, item_scores(row, samples), strict=True):
        item = answerer.items[row.task, sample["doc_id"]]
        found = {"faults": faults(row, sample, item, score)}
        lines.append(_line(sample, item, score) | unit(row, sample) | found)
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / f"{row.task}.jsonl").write_text(text, **UTF8)
    value = float(outcome["results"][row.task][f"{row.metric},none"])
    return {
        "score": row.score(value, categories(row, samples)),
        "metric": row.metric,
        "value": value,
        "items": len(samples),
        **{fault: sum(fault in line["faults"] for line in lines) for fault in FAULTS},
        "example": next((line["answer"] for line in lines if "unreadable" in line["faults"]), None),
        "seconds": round(answerer.seconds[row.task], 3),
    }


def _line(sample: dict, item: Item, score: float) -> dict[str, Any]:
    return {
        "doc_id": sample["doc_id"],
        "key": item.key,
        "image": item.image,
        "kind": item.kind,
        "prompt": item.prompt,
        "answer": sample["filtered_resps"][0],
        "target": item.target,
        "score": score,
    }


def ready() -> Any:
    """The harness around lmms-eval. Raises UserError, code MACHINE, where it can't be used: known before training."""
    library_versions.check(scoring=True)
    with library_versions.import_errors():
        import switchkd_cli.engine.evaluation.lmms_harness as harness
    return harness
