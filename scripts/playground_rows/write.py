"""The kinds of rows, and the folder of each."""

import random
from functools import partial
from pathlib import Path

from scripts.playground_rows.drills import choose, drill
from scripts.playground_rows.lists import language_of, list_row
from scripts.playground_rows.words import word_turn
from switchkd_cli.files.hashes import digest_of
from switchkd_cli.playground.text.questions import Turn
from switchkd_cli.playground.text.words import caption
from switchkd_cli.playground.training_rows import MakeRow, different_turns, write_made_rows
from switchkd_cli.playground.world import Scene

WORDS = 0.15  # the share of turns about words alone in kind "text"


def text_row(scene: Scene, rng: random.Random, count: int) -> list[Turn]:
    """Return a conversation that opens with the scene's caption, so that it can be held without the image."""
    language = language_of(rng)

    def make(scene: Scene, rng: random.Random) -> Turn:
        return word_turn(rng) if rng.random() < WORDS else drill(scene, rng, language)

    turns = different_turns(make, scene, rng, count)
    turns[0] = (f"{caption(scene, rng, language)}\n{turns[0][0]}", turns[0][1])
    return turns


WITH_IMAGES: dict[str, MakeRow] = {
    "drills": partial(different_turns, drill),
    "choices": partial(different_turns, choose),
}
WITHOUT_IMAGES: dict[str, MakeRow] = {"text": text_row, "lists": lambda scene, rng, count: list_row(rng, count)}
KINDS = {**WITH_IMAGES, **WITHOUT_IMAGES}


def write(folder: Path, *, kind: str, pictures: int, turns: int, seed: int) -> Path:
    """Write rows of one of `KINDS` about scenes of the split `train`, and return the path of rows.json.

    They are written again when a file of this folder has changed.
    """
    here = Path(__file__).parent
    code = digest_of(here, sorted(file.name for file in here.iterdir() if file.suffix in (".py", ".yaml")))
    request = {"kind": kind, "split": "train", "pictures": pictures, "turns": turns, "seed": seed, "code": code}
    return write_made_rows(folder, request, KINDS[kind], images=kind in WITH_IMAGES)
