"""Write the playground as benchmark data sets: folders that the unmodified stock lmms-eval tasks load by themselves.

The columns that the tasks of lmms-eval 0.7.3 read are listed in benchmark_sets.yaml, and filled from the playground's
questions. The tasks name their data `OWNER/NAME`; in a working directory with such folders, the datasets library reads
them instead of the hub.

MMVP and Swap ask one question about a pair of images, whose right answer is another one on each. An image and its partner
share all but one cause of the answer: also the hands and sizes of the drawings. The partner's composition belongs to the
same split, so that no split shows another's.
"""

import io
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.package_data import read_yaml
from switchkd_cli.playground.requested_folder import write_folder
from switchkd_cli.playground.text.facts import DIGITS
from switchkd_cli.playground.text.questions import LETTERS, Question, ask, ask_pair, suits
from switchkd_cli.playground.text.words import ASK, captions, fill, phrase
from switchkd_cli.playground.world import COLOURS, NAMES, PLACES, Placed, Scene, belongs, draw, drawn, hands, scenes

Asked = tuple[Scene, Question]
Change = tuple[Scene, dict[str, str], str, str]
"""Another scene, the slots of the question that tells it from the first, and the right answers on both."""

CAUSES = ("name", "place", "number", "color")
"""What may differ: a thing, its place, the digit, the background; the kinds of the questions (facts.py)."""
TRIES = 20
TRUE = "Which is true?"

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How the datasets library stores an image."""


@dataclass(frozen=True)
class BenchmarkItem:
    """One item of a benchmark: a question about an image, and the names of both."""

    question: Question
    png: bytes
    scene: str
    """The image's name."""
    number: int
    """Its position in the set, from 0."""


Columns = dict[str, Callable[..., object]]
"""By name: what a column holds of an item, computed from `_about` it."""


def _about(item: BenchmarkItem) -> dict[str, object]:
    """The names that benchmark_sets.yaml uses."""
    question = item.question
    annotated = ({"answer": answer, "answer_confidence": "yes"} for answer in question.answers)
    return {
        **vars(item),
        "image": {"bytes": item.png, "path": f"{item.scene}.png"},
        "lettered_options": " ".join(map("({}) {}".format, "abcd", question.options)),
        "annotated_answers": [answer | {"answer_id": number} for number, answer in enumerate(annotated, 1)],
    }


def _columns(listed: dict[str, str]) -> Columns:
    return {name: jinja2.Environment().compile_expression(holds) for name, holds in listed.items()}


_TASKS = read_yaml(__file__)
COLUMNS = {task: _columns(columns | {"kind": "question.kind"}) for task, columns in _TASKS.items()}
"""The columns of each task's questions, last the kind of question, which no task reads. GQA's images: `GQA_IMAGES`."""

GQA_IMAGES = _columns({"id": "scene", "image": "image"})
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
    _table(owner / data / (configuration or "default") / benchmark.split, COLUMNS[task], items)


def _table(path: Path, columns: Columns, items: Sequence[BenchmarkItem]) -> None:
    """Write one parquet file. Its schema's metadata tells the datasets library which column holds images; it infers the rest."""
    rows = [_about(item) for item in items]
    arrays = [pa.array([fill(row) for row in rows]) for fill in columns.values()]
    # a column without any value is one of texts: no question has a hint, or a fourth option
    arrays = [array.cast(pa.string()) if array.type == pa.null() else array for array in arrays]
    images = {name: {"_type": "Image"} for name, array in zip(columns, arrays, strict=True) if array.type == IMAGE}
    metadata = {"huggingface": json.dumps({"info": {"features": images}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, list(columns), metadata=metadata), path.with_name(f"{path.name}.parquet"))


def _describe(data: Path) -> None:
    """Write the data set card, which names configurations and splits: one folder and one file each."""
    configs = [
        {"config_name": table.parent.name, "data_files": [{"split": table.stem, "path": str(table.relative_to(data))}]}
        for table in sorted(data.glob("*/*.parquet"))
    ]
    card = yaml.safe_dump({"configs": configs}, sort_keys=False)
    (data / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")


def one_cause(scene: Scene, cause: str, rng: random.Random) -> tuple[Asked, ...]:
    """Return the scene and one that differs in `cause`, each with the question; nothing where none was found."""
    for _ in range(TRIES):
        if (change := _change(scene, cause, rng)) and belongs(change[0]):
            other, slots, answer, others = change
            return _pair("mmvp", cause, fill(ASK[cause], slots), (scene, answer), (other, others), rng)
    return ()


def swapped(scene: Scene, rng: random.Random) -> tuple[Asked, ...]:
    """Return the scene and one in which two things have changed places, each with the choice of the true sentence.

    The two sentences have the same words. Returns nothing where none was found.
    """
    relations = scene.relations
    for relation in rng.sample(relations, len(relations)):
        first, second = (thing for thing in scene.unique_things if thing.name in (relation[0], relation[2]))
        other = _with(scene, first, name=second.name, hand=second.hand)
        other = _with(other, second, name=first.name, hand=first.hand)
        if belongs(other):
            true, false = sentences(relation)
            return _pair("swap", relation[1], TRUE, (scene, true), (other, false), rng)
    return ()


def sentences(relation: tuple[str, str, str]) -> tuple[str, str]:
    """Return a relation (see `Scene.relations`) as a sentence, and the sentence with both things exchanged."""
    first, side, second = relation
    phrase = f"to the {side} of" if side in ("left", "right") else side
    return f"the {first} is {phrase} the {second}", f"the {second} is {phrase} the {first}"


def _pair(
    style: str, kind: str, text: str, one: tuple[Scene, str], other: tuple[Scene, str], rng: random.Random
) -> tuple[Asked, ...]:
    options = tuple(rng.sample((one[1], other[1]), 2))
    letters = (LETTERS[options.index(answer)] for _, answer in (one, other))
    questions = (Question(style, kind, text, letter, options) for letter in letters)
    return tuple(zip((one[0], other[0]), questions, strict=True))


def _change(scene: Scene, cause: str, rng: random.Random) -> Change | None:
    """Return a change at random, or nothing where the scene allows none."""
    hard = scene.split == "hard"
    if cause == "name":
        thing, name = rng.choice(scene.things), drawn(NAMES, rng, without=scene.concepts)
        other = _with(scene, thing, name=name, hand=rng.choice(hands(name, hard)))
        return other, {"place": thing.place}, thing.name, name
    if cause == "place":
        taken = {(item.row, item.column) for item in scene.items}
        if not scene.unique_things or len(taken) == len(PLACES):
            return None
        thing = rng.choice(scene.unique_things)
        row, column = rng.choice([cell for cell in PLACES if cell not in taken])
        return _with(scene, thing, row=row, column=column), {"thing": thing.name}, thing.place, PLACES[row, column]
    if cause == "number":
        if (sign := scene.digit) is None:
            return None
        digit = rng.choice([digit for digit in DIGITS if digit != sign.name])
        changed = replace(sign, name=digit, hand=rng.choice(hands(digit, hard)))
        return replace(scene, digit=changed), {}, sign.name, digit
    colour = rng.choice([colour for colour in COLOURS if colour != scene.background])
    return replace(scene, background=colour), {}, scene.background, colour


def _with(scene: Scene, thing: Placed, **changed: Any) -> Scene:
    """Return the scene with one thing changed; its number in the order of drawing stays, and so do all sizes."""
    at = next(at for at, other in enumerate(scene.things) if (other.row, other.column) == (thing.row, thing.column))
    things = (*scene.things[:at], replace(scene.things[at], **changed), *scene.things[at + 1 :])
    return replace(scene, things=things)
