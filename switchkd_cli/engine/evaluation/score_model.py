"""Score a checkpoint on benchmarks with lmms-eval's tasks (see benchmarks.py)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from switchkd_cli import registry
from switchkd_cli.benchmarks import BENCHMARKS, EXPOSURE, FAULTS, OWN_ROWS, ROW_METRICS, Benchmark, expanded
from switchkd_cli.engine.data.look import EvaluationSet, Question
from switchkd_cli.errors import UserError, import_errors
from switchkd_cli.files.atomic import write_json_lines
from switchkd_cli.files.hashes import short_hash
from switchkd_cli.planning import preflight
from switchkd_cli.playground import benchmark_sets
from switchkd_cli.playground.requested_folder import world_digest
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.report.stats.baselines import yes_no
from switchkd_cli.runs import provenance

if TYPE_CHECKING:  # lmms-eval and transformers are imported when something is evaluated
    from PIL.Image import Image

    from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel

VERSIONS = ("lmms-eval", "transformers", "torch", "datasets", "switchkd")
"""Libraries that a score depends on: runs scored with different versions are not compared."""


def local_sets(asked: Evaluation, folder: Path) -> Path:
    """Return the folder of the playground's data sets for an evaluation, written under `folder` if they are missing."""
    if asked.items is None or asked.items < 2:
        raise UserError("evaluation: the playground has no end: say how many `items` a benchmark has, at least 2")
    fields = asked.model_dump(mode="json", include={"split", "items", "seed"})
    fields["benchmarks"] = [name for name in asked.benchmarks if name not in ROW_METRICS]
    return benchmark_sets.write_sets(folder / short_hash(fields | {"world": world_digest()}), **fields)


def evaluate(
    model_folder: str | Path,
    *,
    folder: Path,
    blind: bool = False,
    allow_pickle: bool = False,
    sets: Path | None = None,
    engine: str = "transformers",
    bits: int | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """Score a saved checkpoint, write `folder`/answers/<task>.jsonl and return the content of results.json.

    `asked` are the fields of a recipe's `evaluation`; world "hub" takes the first `items` of the published data sets, or
    all, and ignores `split` and `seed`. `allow_pickle` reads a checkpoint that has no safetensors. `blind` replaces each
    image by a mid-grey one. Data sets are kept under `sets` for other evaluations (default: `folder`/sets). `engine` is a name
    of the registry; `bits`: see `low_bits.quantise`, for transformers alone. The output of lmms-eval goes to `folder`/log.txt.
    The playground uses no network.

    Raises UserError where the request is not possible, the folder is no intact checkpoint of a known family, or
    lmms-eval can't be used (code MACHINE). Exceptions inside lmms-eval or the model are not changed.
    """
    questions = Evaluation(**asked)
    check(questions)
    harness = import_harness()
    from switchkd_cli.engine.build import check_checkpoint
    from switchkd_cli.engine.hub import fetch
    from switchkd_cli.engine.models.blueprint import max_positions

    checkpoint = fetch(str(model_folder), "model", allow_pickle=allow_pickle)
    blueprint = check_checkpoint(str(model_folder), "model", allow_pickle=allow_pickle)
    how: dict[str, Any] = {"batch": questions.batch, "playground": questions.world == "playground", "blind": blind}
    how |= {"bits": bits} if bits is not None else {}
    with harness.quiet(folder / "log.txt"):
        read = registry.resolve("engine", engine)
        reader = read(checkpoint, blueprint, positions=max_positions(blueprint.config), **how)
    scores = score_request(reader, questions, folder, sets)
    return {"model": str(model_folder), "notes": list(blueprint.notes), "blind": blind, **reader.about, **scores}


def majority(*, folder: Path, sets: Path | None = None, **asked: Any) -> dict[str, Any]:
    """Score the best constant answers (see `MajorityBaseline`) by the same metrics; arguments as in `evaluate`."""
    questions = Evaluation(**asked)
    check(questions)
    from switchkd_cli.engine.evaluation.lmms_model import MajorityBaseline

    scores = score_request(MajorityBaseline(), questions, folder, sets)
    return {"model": "majority", "blind": True, **scores}


def score_request(model: LmmsModel, asked: Evaluation, folder: Path, sets: Path | None = None) -> dict[str, Any]:
    """Evaluate any `LmmsModel`: write its answers to `folder`/answers and return the scores."""
    harness = import_harness()
    of_lmms_eval = _of_lmms_eval(asked)
    local = asked.world == "playground"
    home = local_sets(asked, sets or folder / "sets") if local else None
    outcome = harness.run(model, of_lmms_eval, asked, folder, home) if of_lmms_eval else {}
    if asked.data is not None:
        with harness.quiet(folder / "log.txt"):
            own = _own_questions(asked)
            if EXPOSURE in asked.benchmarks:
                for item, nats in zip(own, model.nats(asked.data, len(own)), strict=True):
                    item.nats = nats
            model.ask(own)
    versions = provenance.versions()
    return {
        "world": asked.world,
        "split": asked.split if local else "own" if asked.world == "rows" else "published",
        "seed": asked.seed,
        "scores": {row.task: _score(row, outcome, model, folder / "answers") for row in benchmarks(asked)},
        "sets_key": short_hash(sorted((i.task, i.doc_id, i.key) for i in model.items.values())),
        "versions": {name: versions.get(name) for name in VERSIONS},
    }


def _score(row: Benchmark, outcome: dict, model: LmmsModel, folder: Path) -> dict[str, Any]:
    """Return one benchmark's score, and write its items to `folder`."""
    from switchkd_cli.engine.evaluation import item_scores, own_rows, stock_metric

    asked = OWN_ROWS if row.task in ROW_METRICS else row.task  # several metrics score the same rows
    if row.task in ROW_METRICS:
        entry, samples, each = own_rows.read(row.task, [i for i in model.items.values() if i.task == OWN_ROWS])
    elif row.stock:
        entry, samples, each = stock_metric.read(row.task, model.tasks[row.task], outcome)
    else:
        entry, samples, each = item_scores.read(row, outcome)
    lines = []
    for sample, own in zip(samples, each, strict=True):
        item = model.items[asked, sample["doc_id"]]
        answer = {name: getattr(item, name) for name in ("doc_id", "key", "kind", "prompt", "target")}
        answer |= {"image": item.image_key, "answer": sample["filtered_resps"][0]}
        lines.append(answer | own | {"faults": item_scores.faults(row, sample, item, own["score"])})
    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / f"{row.task}.jsonl", lines)
    return {
        **entry,
        "items": len(samples),
        **yes_no(row, lines),
        **{fault: sum(fault in line["faults"] for line in lines) for fault in FAULTS},
        "example": next((line["answer"] for line in lines if "unreadable" in line["faults"]), None),
        "seconds": round(model.seconds[asked], 3),
    }


def evaluation_sets(asked: Evaluation, sets: Path) -> tuple[dict[str, EvaluationSet], list[str]]:
    """Return the questions of an evaluation by benchmark, and the names of those that are not here: nothing is fetched.

    A question is a task's prompt, and its first line by itself: what follows tells a model how to answer. The playground's
    sets are written under `sets` if they are missing. Raises UserError for one's own rows that can't be asked.
    """
    found = _items(asked, sets)
    absent = [row.task for row in _of_lmms_eval(asked) if row.task not in found]
    return {name: EvaluationSet(_by_text(items)) for name, items in found.items()}, absent


def question_images(asked: Evaluation, sets: Path, questions: Collection[tuple[str, Any]]) -> dict[str, list[Image]]:
    """Return the images of questions, each a task and its `doc_id`, by their digest in answers files; nothing is fetched."""
    tasks = {(OWN_ROWS if task in ROW_METRICS else task, doc_id) for task, doc_id in questions}
    found = [item for items in _items(asked, sets).values() for item in items if (item.task, item.doc_id) in tasks]
    for item in found:
        item.read()
    return {item.image_key: item.images for item in found if item.image_key is not None}


def _items(asked: Evaluation, sets: Path) -> dict[str, list[Item]]:
    """Return the questions of each benchmark whose data are here."""
    from switchkd_cli.engine.evaluation.lmms_model import Questions

    harness = import_harness()
    found: dict[str, list[Item]] = {}
    home = local_sets(asked, sets) if asked.world == "playground" else None
    for row in _of_lmms_eval(asked):
        model = Questions()
        # `Questions` ends with an error, and `datasets` and tasks raise nearly anything without their data
        with suppress(Exception), TemporaryDirectory() as scratch, harness.offline():
            harness.run(model, [row], asked, Path(scratch), home)
        if model.items:
            found[row.task] = list(model.items.values())
    if asked.data is not None:
        found["evaluation.data"] = _own_questions(asked)
    return found


def _by_text(items: Iterable[Item]) -> Iterator[Question]:
    for item in items:
        texts = {item.prompt, item.prompt.strip().partition("\n")[0]}
        yield from ((text, lambda item=item: item.shown(item.data[item.doc_id])) for text in texts)


def benchmarks(asked: Evaluation) -> list[Benchmark]:
    """Return the benchmarks of an evaluation, each once, with the tasks of its groups."""
    tasks = [task for name in asked.benchmarks for task in expanded(name, asked.tasks_path)]
    return [BENCHMARKS[task] for task in dict.fromkeys(tasks)]


def _of_lmms_eval(asked: Evaluation) -> list[Benchmark]:
    return [row for row in benchmarks(asked) if row.task not in ROW_METRICS]


def check(asked: Evaluation) -> None:
    """Find what would end an evaluation, before a model is trained or loaded.

    Raises UserError for one's own rows that can't be asked, and with code MACHINE where lmms-eval, or a task's code, can't be
    imported.
    """
    harness = import_harness()
    if stock := [row for row in _of_lmms_eval(asked) if row.stock]:
        harness.import_code(stock, asked.tasks_path)
    _own_questions(asked)


def _own_questions(asked: Evaluation) -> list[Item]:
    """Return the questions of one's own rows, if an evaluation has any. Raises UserError where they can't be asked."""
    if asked.data is None:
        return []
    from switchkd_cli.engine.evaluation.own_rows import questions

    return questions(asked.data, asked.items, ranked=EXPOSURE in asked.benchmarks)


def import_harness() -> Any:
    """Import the lmms-eval harness. Raises UserError (code MACHINE) where it can't be used; call it before training."""
    preflight.check_libraries(scoring=True)
    with import_errors():
        import switchkd_cli.engine.evaluation.lmms_harness as harness
    return harness
