"""Write the playground as benchmark data sets: folders that the unmodified stock lmms-eval tasks load by themselves.

The tasks name their data `lmms-lab-encoder/<NAME>`; in a working directory with such folders, the datasets library reads
them instead of the hub.
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
from switchkd_cli.playground.requested_folder import write_folder
from switchkd_cli.playground.task_columns import COLUMNS, GQA_IMAGES, IMAGE, KIND, BenchmarkItem, Columns
from switchkd_cli.playground.text.questions import ask, ask_pair, suits
from switchkd_cli.playground.world import Scene, draw, scenes

OWNER = "lmms-lab-encoder"
GQA_NAMES = ("testdev_balanced_instructions", "testdev_balanced_images")


def write_sets(folder: Path, *, benchmarks: Sequence[str], split: str, items: int, seed: int) -> Path:
    """Write `items` questions of each benchmark under `folder` and return it; run the tasks from there.

    All benchmarks ask about the first images of one sequence of scenes, so images recur among them, and a benchmark's
    questions don't depend on the other benchmarks. MME asks in pairs: an odd `items` gives it one question fewer. The
    same request is written once; another request in the same folder replaces it.

    Raises UserError for a folder of other files.
    """

    def build(fresh: Path) -> None:
        for task in benchmarks:
            _write(fresh / OWNER, task, list(benchmark_items(task, split=split, items=items, seed=seed)))
        for data in (fresh / OWNER).iterdir():
            _describe(data)

    request = {"benchmarks": list(benchmarks), "split": split, "items": items, "seed": seed}
    return write_folder(folder, request, build, OWNER)


def benchmark_items(task: str, *, split: str, items: int, seed: int) -> Iterator[BenchmarkItem]:
    """Yield the questions of one benchmark, each with its image as PNG."""
    rng = random.Random(f"sets-{task}-{split}-{seed}")
    number = 0
    for scene in scenes(split, sys.maxsize, seed):
        if not suits(scene, task):
            continue
        questions = ask_pair(scene, rng) if task == "mme" else (ask(scene, task, rng),)
        if number + len(questions) > items:
            return
        for question in questions:
            yield BenchmarkItem(question, _png(scene), scene.id, number)
            number += 1


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
