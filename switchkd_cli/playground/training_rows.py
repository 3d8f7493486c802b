"""Write the playground as training data: LLaVA-1.5 JSON with its images, or text alone."""

import json
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from switchkd_cli.playground.requested_folder import write_folder
from switchkd_cli.playground.text.questions import Turn, question_turn
from switchkd_cli.playground.text.words import description_turn
from switchkd_cli.playground.world import Scene, draw, scenes

IMAGE = "<image>\n"
DESCRIPTIONS = 0.35  # their share among the turns of kind "instructions"

MakeTurn = Callable[[Scene, random.Random], Turn]
MakeRow = Callable[[Scene, random.Random, int], list[Turn]]
"""(scene, rng, number of turns) -> turns"""


def _instruction(scene: Scene, rng: random.Random) -> Turn:
    """Return a question or, less often, a description: instruction data has descriptions among its questions."""
    return (description_turn if rng.random() < DESCRIPTIONS else question_turn)(scene, rng)


# How a turn of each kind of row is made.
KINDS: dict[str, MakeTurn] = {"questions": question_turn, "captions": description_turn, "instructions": _instruction}


def write_rows(folder: Path, *, kind: str, split: str, pictures: int, turns: int, seed: int) -> Path:
    """Write `pictures` rows of `turns` turns of one of `KINDS` each, as `write_made_rows` does."""
    request = {"kind": kind, "split": split, "pictures": pictures, "turns": turns, "seed": seed}
    return write_made_rows(folder, request, partial(different_turns, KINDS[kind]))


def write_made_rows(folder: Path, request: Mapping[str, Any], make: MakeRow, *, images: bool = True) -> Path:
    """Write the rows that `make` makes for a request, with their images or without, and return the path of rows.json.

    A request has the keys of `write_rows`, and any others that the rows depend on. Images are relative to the folder. A
    folder that already holds the same request is left alone, another request's rows are replaced, and the new folder
    appears complete or not at all. Raises UserError for a folder of files that are not the playground's.
    """
    return write_folder(Path(folder), dict(request), lambda fresh: _build(fresh, request, make, images)) / "rows.json"


def _build(folder: Path, request: Mapping[str, Any], make: MakeRow, images: bool) -> None:
    kind = request["kind"]
    if images:
        (folder / "images").mkdir()
    rows = []
    for scene in scenes(request["split"], request["pictures"], request["seed"]):
        row: dict[str, Any] = {"id": f"{kind}-{scene.id}"}
        turns = make(scene, random.Random(row["id"]), request["turns"])
        if images:
            row["image"] = f"images/{scene.id}.png"
            draw(scene).save(folder / row["image"], compress_level=1)
            turns[0] = (IMAGE + turns[0][0], turns[0][1])
        pairs = (({"from": "human", "value": asked}, {"from": "gpt", "value": answer}) for asked, answer in turns)
        row["conversations"] = [message for pair in pairs for message in pair]
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def different_turns(make: MakeTurn, scene: Scene, rng: random.Random, count: int) -> list[Turn]:
    """Return `count` turns. A repeated one is made again up to four times: a small scene has few questions."""
    turns: list[Turn] = []
    for _ in range(count):
        for _ in range(5):
            turn = make(scene, rng)
            if turn not in turns:
                break
        turns.append(turn)
    return turns
