"""Data source for the playground: training data is drawn once by seed, then read like any LLaVA-1.5 JSON."""

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from switchkd_cli.engine.data.llava_json import llava_json
from switchkd_cli.engine.data.rows import Rows
from switchkd_cli.playground.training_rows import write_rows


def playground(
    cache: Path,
    *,
    kind: Literal["captions", "questions", "instructions", "text"],
    pictures: PositiveInt,
    split: Literal["train", "validation", "test", "hard"] = "train",
    turns: PositiveInt = 8,
    seed: int = 0,
) -> Rows:
    """Return the rows of `pictures` scenes with `turns` turns each (`kind`: questions, captions, instructions or text).

    Each turn sees only the image and itself, as in the benchmarks.
    """
    folder = cache / "playground" / f"{kind}-{split}-{pictures}x{turns}-{seed}"
    file = write_rows(folder, kind=kind, split=split, pictures=pictures, turns=turns, seed=seed)
    images = None if kind == "text" else str(file.parent)
    return llava_json(cache, file=str(file), images=images, turns="independent")
