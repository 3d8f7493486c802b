"""Four questions in the schema of each of some stock lmms-eval tasks, written as local data sets."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import yaml
from PIL import Image

COUNT = 4
LETTERS = "ABBA"
YES_NO = ("yes", "no", "no", "yes")
WORDS = ("seven", "the red door", "12", "lion")
OPTIONS = {f"choice_{letter}": word for letter, word in zip("abcd", WORDS, strict=True)}
BOXES = ((6, 6, 12, 12), (0, 0, 12, 6), (6, 6, 6, 12), (12, 6, 6, 6))


@dataclass(frozen=True)
class Set:
    """Where a task looks for its data, one row for each number, and the right answer to it."""

    path: str
    row: Callable[[int], dict[str, Any]]
    right: Callable[[int], str]
    config: str = "default"
    split: str = "test"
    image: str = "image"
    full: float = 1.0


def letter(i: int) -> str:
    return LETTERS[i]


def word(i: int) -> str:
    return WORDS[i]


def _open(i: int) -> dict[str, Any]:
    return {"question": f"What is it? ({i})", "questionId": str(i), "question_id": i, "answers": [WORDS[i]] * 5}


def _choice(i: int) -> dict[str, Any]:
    return {"question": f"Which? ({i})", "options": list(WORDS), "answer": str("ABCD".index(LETTERS[i]))}


def _seed(i: int) -> dict[str, Any]:
    asked = {"question": f"Which? ({i})", "question_id": str(i), "answer": LETTERS[i], "data_type": "image"}
    return asked | OPTIONS | {"question_image_type": "chart"}


def _seed_plus(i: int) -> dict[str, Any]:
    return _seed(i) | {f"choice_{key[-1].upper()}": value for key, value in OPTIONS.items()}


def _mmstar(i: int) -> dict[str, Any]:
    # three questions of one kind, one of another: the mean over kinds is not the mean over questions
    kind = "recognition" if i < 3 else "geometry"
    of = {"index": i, "question": f"Which? ({i})\nOptions: A: x, B: y", "answer": LETTERS[i]}
    return of | {"category": "math" if i == 3 else "fine-grained perception", "l2_category": kind}


def _box(i: int) -> dict[str, Any]:
    of = {"question_id": str(i), "question": "?", "answer": [WORDS[i]], "bbox": [float(x) for x in BOXES[i]]}
    return of | {"segmentation": [0.0], "file_name": f"{i}.png"}


def _said_box(i: int) -> str:
    x, y, width, height = (side / 24 for side in BOXES[i])
    return f"[{x:.6f}, {y:.6f}, {x + width:.6f}, {y + height:.6f}]"


def _natural(i: int) -> dict[str, Any]:
    of = {"Index": i, "Question": f"Is it? ({i})", "Question_Type": "yes_no", "Answer": YES_NO[i].capitalize()}
    return of | {"answer": of["Answer"]}


def _science(i: int) -> dict[str, Any]:
    return {"question": f"Which? ({i})", "choices": list(WORDS), "answer": "ABCD".index(LETTERS[i]), "hint": ""}


def _cv(i: int) -> dict[str, Any]:
    of = {"idx": i, "prompt": f"Which? ({i}) (A) x (B) y", "choices": ["x", "y"], "answer": f"({LETTERS[i]})"}
    return of | {"type": "2D", "task": "Count", "source": "COCO"}


def _spatial(i: int) -> dict[str, Any]:
    of = {"question_id": str(i), "question": "Which?", "answer_options": list(WORDS), "relation": "above"}
    return of | {"answer": "ABCD".index(LETTERS[i]), "data_source": "mp3d"}


def _pope(i: int) -> dict[str, Any]:
    return {"question_id": str(i), "question": f"Is it? ({i})", "answer": YES_NO[i], "category": "random"}


def _real(i: int) -> dict[str, Any]:
    return {"question": f"Which? ({i})", "answer": LETTERS[i]}


def _chart(i: int) -> dict[str, Any]:
    return {"question": f"How many? ({i})", "answer": WORDS[i], "type": "human_test"}


def _ocr(i: int) -> dict[str, Any]:
    return {"question": f"What is written? ({i})", "answer": [WORDS[i]], "dataset": "IIIT5K", "question_type": OCR}


def _vstar(i: int) -> dict[str, Any]:
    of = {"question_id": str(i), "text": f"Which? ({i}) (A) x (B) y", "label": LETTERS[i]}
    return of | {"category": "direct_attributes"}


OCR = "Regular Text Recognition"
LAB = "lmms-lab-encoder"
SETS = {
    "ai2d": Set(f"{LAB}/ai2d", _choice, letter),
    "ai2d_no_mask": Set("Efficient-Large-Model/ai2d-no-mask", _choice, letter),
    "ai2d_lite": Set(f"{LAB}/LMMs-Eval-Lite", _choice, letter, "ai2d", "lite"),
    "chartqa": Set(f"{LAB}/ChartQA", _chart, word),
    "chartqa_lite": Set(f"{LAB}/LMMs-Eval-Lite", _chart, word, "chartqa", "lite"),
    "docvqa_val": Set(f"{LAB}/DocVQA", _open, word, "DocVQA", "validation"),
    "docvqa_val_lite": Set(f"{LAB}/LMMs-Eval-Lite", _open, word, "docvqa_val", "lite"),
    "infovqa_val": Set(f"{LAB}/DocVQA", _open, word, "InfographicVQA", "validation"),
    "ocrbench": Set("echo840/OCRBench", _ocr, word, full=COUNT / 1000),
    "mmstar": Set("Lin-Chen/MMStar", _mmstar, letter, split="val"),
    "mmstar_ko": Set("NCSOFT/K-MMStar", _mmstar, letter, split="val"),
    "seedbench": Set(f"{LAB}/SEED-Bench", _seed, letter, image="[image]"),
    "seedbench_2_plus": Set("doolayer/SEED-Bench-2-Plus", _seed_plus, letter),
    "realworldqa": Set(f"{LAB}/RealWorldQA", _real, letter),
    "naturalbench": Set("BaiqiL/NaturalBench-lmms-eval", _natural, lambda i: YES_NO[i], image="Image"),
    "refcoco_bbox_rec_val": Set(f"{LAB}/RefCOCO", _box, _said_box, split="val"),
    "refcoco+_bbox_rec_val": Set(f"{LAB}/RefCOCOplus", _box, _said_box, split="val"),
    "refcocog_bbox_rec_val": Set(f"{LAB}/RefCOCOg", _box, _said_box, split="val"),
    "cv_bench_2d": Set("nyu-visionx/CV-Bench", _cv, letter, "2D"),
    "vstar_bench": Set(f"{LAB}/vstar-bench", _vstar, letter, full=100.0),
    "ok_vqa_val2014": Set(f"{LAB}/OK-VQA", _open, word, split="val2014"),
    "embspatial": Set("FlagEval/EmbSpatial-Bench", _spatial, letter),
    "countbenchqa": Set(
        "vikhyatk/CountBenchQA", lambda i: {"question": f"How many? ({i})", "number": i + 3}, lambda i: str(i + 3)
    ),
    "pope_random": Set(f"{LAB}/POPE", _pope, lambda i: YES_NO[i], "Full", "random"),
    "scienceqa": Set(f"{LAB}/ScienceQA", _science, letter, "ScienceQA-FULL"),
}


def image(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 24), (60 * i, 40, 200 - 50 * i)).save(file, format="PNG")
    return file.getvalue()


def write(home: Path, *tasks: str, count: int = COUNT) -> None:
    """Write the tasks' sets under `home`, where lmms-eval finds them if it is the working directory."""
    described: dict[Path, list[dict]] = {}
    for of in (SETS[task] for task in tasks):
        column, several = of.image.strip("[]"), of.image.startswith("[")
        shown = [{"bytes": image(i % COUNT), "path": None} for i in range(count)]
        table = datasets.Dataset.from_list(
            [of.row(i % COUNT) | ({"Index": i} if count > COUNT else {}) for i in range(count)]
        )
        table = table.add_column(column, [[one] for one in shown] if several else shown)
        kind = datasets.Image()
        table = table.cast_column(column, datasets.List(kind) if several else kind)
        file = home / of.path / of.config / f"{of.split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(file)
        data_files = [{"split": of.split, "path": f"{of.config}/{file.name}"}]
        described.setdefault(home / of.path, []).append({"config_name": of.config, "data_files": data_files})
    for folder, configs in described.items():
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")
