"""The world as benchmark data sets: folders that the unmodified stock lmms-eval tasks load by themselves.

The tasks name their data `lmms-lab-encoder/<NAME>`; from a working directory that holds such folders, the
datasets library reads them instead of asking the hub.
"""

import hashlib
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.playground.task_columns import COLUMNS, GQA_IMAGES, KIND, PICTURE, Asked, Columns
from switchkd_cli.playground.text.prompts import Question
from switchkd_cli.playground.text.questions import STYLES, ask, ask_pair, suits
from switchkd_cli.playground.training_rows import MANIFEST, drawn
from switchkd_cli.playground.world import SPLITS, Scene, draw, scenes

OWNER = "lmms-lab-encoder"
GQA_NAMES = ("testdev_balanced_instructions", "testdev_balanced_images")


def write_sets(folder: Path, *, benchmarks: Sequence[str], split: str, items: int, seed: int) -> Path:
    """Writes `items` questions for each benchmark under `folder` and returns it; run the tasks from there.

    All benchmarks ask about the first pictures of one sequence of scenes, so pictures recur among them, and a
    benchmark's questions don't depend on which others are asked for. MME asks in pairs: an odd `items` gives
    it one question fewer. The same request is written once; another one in the same folder replaces it.

    Raises UserError: unknown benchmark or split, fewer than two items, a folder of other files.
    """
    _check(benchmarks, split, items)
    request = {"benchmarks": list(benchmarks), "split": split, "items": items, "seed": seed, "world": world()}
    written = _written(folder)
    if written == request:
        return folder
    if written is None and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds files that are not the playground's", hint="choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for task in benchmarks:
            _write(fresh / OWNER, task, list(asked(task, split=split, items=items, seed=seed)))
        for data in (fresh / OWNER).iterdir():
            _describe(data)
        told = {**request, "files": drawn(fresh / OWNER)}
        (fresh / MANIFEST).write_text(json.dumps(told, indent=1), encoding="utf-8")
        fresh.chmod(0o755)
        _replace(folder, fresh, request)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def asked(task: str, *, split: str, items: int, seed: int) -> Iterator[Asked]:
    """The questions of one benchmark, each with its picture as PNG."""
    rng = random.Random(f"sets-{task}-{split}-{seed}")
    number = 0
    for scene in _endless(split, seed):
        if not suits(scene, task):
            continue
        questions = _questions(scene, task, rng)
        if number + len(questions) > items:
            return
        for question in questions:
            yield Asked(question, _png(scene), scene.id, number)
            number += 1


def _questions(scene: Scene, task: str, rng: random.Random) -> tuple[Question, ...]:
    return ask_pair(scene, rng) if task == "mme" else (ask(scene, task, rng),)


def _endless(split: str, seed: int) -> Iterator[Scene]:
    """The split's sequence of scenes, without end: a longer one starts with a shorter one."""
    seen, count = 0, 64
    while True:
        yield from list(scenes(split, count, seed))[seen:]
        seen, count = count, 2 * count


@cache
def _png(scene: Scene) -> bytes:
    file = io.BytesIO()
    draw(scene).save(file, format="PNG")
    return file.getvalue()


def _check(benchmarks: Sequence[str], split: str, items: int) -> None:
    problems = [
        f"benchmark: unknown, got {name!r}{did_you_mean(name, STYLES)}"
        for name in benchmarks
        if name not in STYLES
    ]
    if split not in SPLITS:
        problems.append(f"split: unknown, got {split!r}{did_you_mean(split, SPLITS)}")
    if items < 2:
        problems.append(f"items: at least 2 (MME asks in pairs), got {items}")
    if problems:
        raise UserError(problems)


@cache
def world() -> str:
    """Names the world as it is now: its code, words and drawings. Sets of another world are written anew."""
    named = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted([*package.rglob("*.py"), *package.glob("*.yaml"), *package.glob("assets/atlas.*")]):
        named.update(file.read_bytes())
    return named.hexdigest()[:16]


def _written(folder: Path) -> dict | None:
    """The request that a folder holds, if any; an empty one where its files are no longer those that were written."""
    try:
        request = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return request if request.pop("files", None) == drawn(folder / OWNER) else {}


def _replace(folder: Path, fresh: Path, request: dict) -> None:
    """Moves `fresh` to `folder`; what another process has just written for the same request is as good."""
    if folder.exists() and _written(folder) != request:
        shutil.rmtree(folder)
    try:
        os.rename(fresh, folder)
    except OSError:
        if _written(folder) != request:
            raise


def _write(owner: Path, task: str, rows: Sequence[Asked]) -> None:
    row = BENCHMARKS[task]
    data, _, configuration = row.data.partition("/")
    if task == "gqa":
        pictured = list({r.scene: r for r in rows}.values())
        questions, pictures = GQA_NAMES
        _table(owner / data / questions / row.split, COLUMNS[task] | KIND, rows)
        _table(owner / data / pictures / row.split, GQA_IMAGES, pictured)
    else:
        _table(owner / data / (configuration or "default") / row.split, COLUMNS[task] | KIND, rows)


def _table(path: Path, columns: Columns, rows: Sequence[Asked]) -> None:
    """One parquet file. The datasets library reads what is a picture from the schema's metadata."""
    features = {name: _feature(kind) for name, (kind, _) in columns.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()], metadata=metadata)
    filled = {name: [fill(row) for row in rows] for name, (_, fill) in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(filled, schema=schema), path.with_name(f"{path.name}.parquet"))


def _feature(kind: pa.DataType) -> dict:
    """An arrow type as the datasets library writes it."""
    if kind == PICTURE:
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    return {"dtype": str(kind), "_type": "Value"}


def _describe(data: Path) -> None:
    """The data set card that names configurations and splits: one folder and one file each."""
    configs = [
        {
            "config_name": configuration.name,
            "data_files": [
                {"split": file.stem, "path": f"{configuration.name}/{file.name}"}
                for file in sorted(configuration.glob("*.parquet"))
            ],
        }
        for configuration in sorted(data.iterdir())
    ]
    card = yaml.safe_dump({"configs": configs}, sort_keys=False)
    (data / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
