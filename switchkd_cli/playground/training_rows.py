"""Write the playground as training data: LLaVA-1.5 JSON with its images, or text alone."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from switchkd_cli.playground.requested_folder import write_folder
from switchkd_cli.playground.text.captions import description_turn
from switchkd_cli.playground.text.lessons import lesson
from switchkd_cli.playground.text.prompts import prompt
from switchkd_cli.playground.text.questions import ask, suits
from switchkd_cli.playground.text.words import STYLES
from switchkd_cli.playground.world import Scene, draw, scenes

VERSION = 1  # of the rows; raise it when the same request gives other rows
IMAGE = "<image>\n"
DESCRIPTIONS = 0.35  # their share among the turns of kind "instructions"
STYLE_WEIGHTS = {"gqa": 1.5, "vqav2_val": 1.5, "textvqa_val": 2.0}  # styles with more to learn are more frequent

Turn = tuple[str, str]


def _question(scene: Scene, rng: random.Random) -> Turn:
    """Return a question of any style, worded as its benchmark's prompt, and its answer."""
    style = rng.choices(list(STYLES), weights=[STYLE_WEIGHTS.get(style, 1.0) for style in STYLES])[0]
    question = ask(scene, style if suits(scene, style) else "gqa", rng)
    return prompt(question), question.answer


def _instruction(scene: Scene, rng: random.Random) -> Turn:
    """Return a question or, less often, a description: instruction data has descriptions among its questions."""
    return (description_turn if rng.random() < DESCRIPTIONS else _question)(scene, rng)


# How a turn of each kind of row is made: (scene, rng) -> (the user's text, the answer).
KINDS: dict[str, Callable[[Scene, random.Random], Turn]] = {
    "questions": _question,
    "captions": description_turn,
    "instructions": _instruction,
    "text": lesson,
}


def write_rows(folder: Path, *, kind: str, split: str, pictures: int, turns: int, seed: int) -> Path:
    """Write `pictures` rows of `turns` turns each and return the path of rows.json.

    Images are relative to the folder; rows of kind "text" have none. A folder that already holds the same request is left
    alone, another request's rows are replaced, and the new folder appears complete or not at all.
    Raises UserError for a folder of files that are not the playground's.
    """
    request = {"version": VERSION, "kind": kind, "split": split, "pictures": pictures, "turns": turns, "seed": seed}
    return write_folder(Path(folder), request, lambda fresh: _build(fresh, request)) / "rows.json"


def _build(folder: Path, request: Mapping[str, Any]) -> None:
    kind = request["kind"]
    with_images = kind != "text"
    if with_images:
        (folder / "images").mkdir()
    rows = []
    for scene in scenes(request["split"], request["pictures"], request["seed"]):
        rng = random.Random(f"{kind}-{scene.id}")
        row: dict[str, Any] = {"id": f"{kind}-{scene.id}"}
        turns = _turns(scene, KINDS[kind], request["turns"], rng)
        if with_images:
            row["image"] = f"images/{scene.id}.png"
            draw(scene).save(folder / row["image"], compress_level=1)
            turns[0] = (IMAGE + turns[0][0], turns[0][1])
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
