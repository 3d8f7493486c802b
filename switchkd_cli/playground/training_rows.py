"""Write the playground as training data: LLaVA-1.5 JSON with its images, or text alone."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from switchkd_cli.playground.requested_folder import write_folder
from switchkd_cli.playground.text.captions import caption, description_turn
from switchkd_cli.playground.text.drills import choose, drill, question_turn
from switchkd_cli.playground.text.lists import language_of, list_row, word_turn
from switchkd_cli.playground.text.prompts import Turn
from switchkd_cli.playground.world import Scene, draw, scenes

IMAGE = "<image>\n"
DESCRIPTIONS = 0.35  # their share among the turns of kind "instructions"
WORDS = 0.15  # the share of turns about words alone in kind "text"


def _instruction(scene: Scene, rng: random.Random) -> Turn:
    """Return a question or, less often, a description: instruction data has descriptions among its questions."""
    return (description_turn if rng.random() < DESCRIPTIONS else question_turn)(scene, rng)


# How a turn of each kind of row is made: (scene, rng) -> (the user's text, the answer).
WITH_IMAGES: dict[str, Callable[[Scene, random.Random], Turn]] = {
    "questions": question_turn,
    "captions": description_turn,
    "instructions": _instruction,
    "drills": drill,
    "choices": choose,
}


def _text_row(scene: Scene, rng: random.Random, count: int) -> list[Turn]:
    """Return a conversation that opens with the scene's caption, so that it can be held without the image."""
    language = language_of(rng)

    def make(scene: Scene, rng: random.Random) -> Turn:
        return word_turn(rng) if rng.random() < WORDS else drill(scene, rng, language)

    turns = _turns(scene, make, count, rng)
    turns[0] = (f"{caption(scene, rng, language)}\n{turns[0][0]}", turns[0][1])
    return turns


# How a conversation without an image is made: (scene, rng, number of turns) -> turns.
WITHOUT_IMAGES: dict[str, Callable[[Scene, random.Random, int], list[Turn]]] = {
    "text": _text_row,
    "lists": lambda scene, rng, count: list_row(rng, count),
}
KINDS = (*WITH_IMAGES, *WITHOUT_IMAGES)


def write_rows(folder: Path, *, kind: str, split: str, pictures: int, turns: int, seed: int) -> Path:
    """Write `pictures` rows of `turns` turns each and return the path of rows.json.

    Images are relative to the folder; rows of the kinds "text" and "lists" have none. A folder that already holds the same request is left
    alone, another request's rows are replaced, and the new folder appears complete or not at all.
    Raises UserError for a folder of files that are not the playground's.
    """
    request = {"kind": kind, "split": split, "pictures": pictures, "turns": turns, "seed": seed}
    return write_folder(Path(folder), request, lambda fresh: _build(fresh, request)) / "rows.json"


def _build(folder: Path, request: Mapping[str, Any]) -> None:
    kind = request["kind"]
    with_images = kind in WITH_IMAGES
    if with_images:
        (folder / "images").mkdir()
    rows = []
    for scene in scenes(request["split"], request["pictures"], request["seed"]):
        rng = random.Random(f"{kind}-{scene.id}")
        row: dict[str, Any] = {"id": f"{kind}-{scene.id}"}
        if with_images:
            turns = _turns(scene, WITH_IMAGES[kind], request["turns"], rng)
            row["image"] = f"images/{scene.id}.png"
            draw(scene).save(folder / row["image"], compress_level=1)
            turns[0] = (IMAGE + turns[0][0], turns[0][1])
        else:
            turns = WITHOUT_IMAGES[kind](scene, rng, request["turns"])
        pairs = (({"from": "human", "value": asked}, {"from": "gpt", "value": answer}) for asked, answer in turns)
        row["conversations"] = [message for pair in pairs for message in pair]
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _turns(scene: Scene, make: Callable[[Scene, random.Random], Turn], count: int, rng: random.Random) -> list[Turn]:
    """Return `count` turns. A repeated one is made again up to four times: a small scene has few questions."""
    turns: list[Turn] = []
    for _ in range(count):
        for _ in range(5):
            turn = make(scene, rng)
            if turn not in turns:
                break
        turns.append(turn)
    return turns
