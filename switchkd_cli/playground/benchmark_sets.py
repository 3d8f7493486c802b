"""Write the playground as benchmark data sets: folders that the unmodified stock lmms-eval tasks load by themselves.

The tasks name their data `OWNER/NAME`; in a working directory with such folders, the datasets library reads them instead of
the hub.
"""

import io
import json
import random
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.playground.pairs import CAUSES, Asked, one_cause, swapped
from switchkd_cli.playground.requested_folder import write_folder
from switchkd_cli.playground.task_columns import COLUMNS, GQA_IMAGES, IMAGE, KIND, BenchmarkItem, Columns
from switchkd_cli.playground.text.captions import captions
from switchkd_cli.playground.text.prompts import Question
from switchkd_cli.playground.text.questions import ask, ask_pair, suits
from switchkd_cli.playground.text.words import phrase
from switchkd_cli.playground.world import Scene, draw, scenes

GQA_NAMES = ("testdev_balanced_instructions", "testdev_balanced_images")


def write_sets(folder: Path, *, benchmarks: Sequence[str], split: str, items: int, seed: int) -> Path:
    """Write `items` questions of each benchmark under `folder` and return it; run the tasks from there.

    All benchmarks ask about the first images of one sequence of scenes, so images recur among them, and a benchmark's
    questions don't depend on the other benchmarks. MME, MMVP and Swap ask in pairs: an odd `items` gives them one question
    fewer. The same request is written once; another request in the same folder replaces it.

    Raises UserError for a folder of other files.
    """

    def build(fresh: Path) -> None:
        for task in benchmarks:
            owner = fresh / BENCHMARKS[task].owner
            _write(owner, task, list(benchmark_items(task, split=split, items=items, seed=seed)))
        for data in fresh.glob("*/*"):
            _describe(data)

    request = {"benchmarks": list(benchmarks), "split": split, "items": items, "seed": seed}
    return write_folder(folder, request, build, {BENCHMARKS[task].owner for task in benchmarks})


def benchmark_items(task: str, *, split: str, items: int, seed: int) -> Iterator[BenchmarkItem]:
    """Yield the questions of one benchmark, each with its image as PNG."""
    rng = random.Random(f"sets-{task}-{split}-{seed}")
    number = 0
    for scene in scenes(split, sys.maxsize, seed):
        asked = _asked(scene, task, rng, number)
        if asked and number + len(asked) > items:
            return
        for shown, question in asked:
            yield BenchmarkItem(question, _png(shown), scene.id + "-changed" * (shown is not scene), number)
            number += 1


def _asked(scene: Scene, task: str, rng: random.Random, number: int) -> Sequence[Asked]:
    """Return the benchmark's next questions, of which the first is the `number`th; nothing if it has none of the scene."""
    match task:
        case "mmvp":
            return one_cause(scene, CAUSES[number // 2 % len(CAUSES)], rng)
        case "swap":
            return swapped(scene, rng)
        case "captions":
            first, last = captions(scene)
            return [(scene, Question(task, "caption", phrase("describe"), first, answers=(first, last)))]
        case "mme":
            return [(scene, question) for question in ask_pair(scene, rng)]
    return [(scene, ask(scene, task, rng))] if suits(scene, task) else []


@cache
def _png(scene: Scene) -> bytes:
    file = io.BytesIO()
    draw(scene).save(file, format="PNG")
    return file.getvalue()


def _write(owner: Path, task: str, items: Sequence[BenchmarkItem]) -> None:
    benchmark = BENCHMARKS[task]
    data, _, configuration = benchmark.data.partition("/")
    if task == "gqa":
        configuration, images = GQA_NAMES
        _table(owner / data / images / benchmark.split, GQA_IMAGES, list({i.scene: i for i in items}.values()))
    _table(owner / data / (configuration or "default") / benchmark.split, COLUMNS[task] | KIND, items)


def _table(path: Path, columns: Columns, items: Sequence[BenchmarkItem]) -> None:
    """Write one parquet file. Its schema's metadata tells the datasets library which column holds images."""
    features = {name: _feature(kind) for name, (kind, _) in columns.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()], metadata=metadata)
    filled = {name: [fill(item) for item in items] for name, (_, fill) in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(filled, schema=schema), path.with_name(f"{path.name}.parquet"))


def _feature(kind: pa.DataType) -> dict:
    """Return an arrow type in the words of the datasets library."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    return {"dtype": str(kind), "_type": "Value"}


def _describe(data: Path) -> None:
    """Write the data set card, which names configurations and splits: one folder and one file each."""
    configs = []
    for configuration in sorted(data.iterdir()):
        tables = sorted(configuration.glob("*.parquet"))
        data_files = [{"split": table.stem, "path": f"{configuration.name}/{table.name}"} for table in tables]
        configs.append({"config_name": configuration.name, "data_files": data_files})
    card = yaml.safe_dump({"configs": configs}, sort_keys=False)
    (data / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
