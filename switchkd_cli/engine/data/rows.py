"""LLaVA-1.5 JSON rows: read, and checked before anything is trained on them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile

from switchkd_cli.engine.batch import IMAGE
from switchkd_cli.errors import UserError

FORMAT = "a list of {id, image, conversations: [{from: human, value}, {from: gpt, value}, ...]}"
SHOWN = 5  # faulty rows named in an error; the rest are counted


def read_rows(file: Path, images: Path | None, limit: int | None = None) -> list[dict]:
    """Reads and checks a LLaVA-1.5 JSON file; every faulty row is counted, the first few are named.

    Raises UserError: no file, no image folder, not such JSON, a row without an answer, a row whose `<image>`
    placeholders are not its image's, an image that is missing, unreadable or outside its folder.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: must be 1 or more, got {limit}")
    if not file.is_file():
        raise UserError(f"{file}: no such data file", hint="check the recipe's `data`")
    if images is not None and not images.is_dir():
        raise UserError(f"{images}: no such image folder", hint="check `images` in the recipe's `data`")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as JSON: {error}", hint=FORMAT) from error
    if not isinstance(rows, list):
        raise UserError(f"{file}: not a JSON list of rows, but a {type(rows).__name__}", hint=FORMAT)
    if not rows:
        raise UserError(f"{file}: holds no rows")
    rows = rows[:limit]
    with _cut_pictures_fail():
        faults = [f"{file}: row {i}: {fault}" for i, row in enumerate(rows) if (fault := _fault(row, images))]
    if faults:
        rest = [f"... and {len(faults) - SHOWN} more of {len(rows)} rows"] if len(faults) > SHOWN else []
        raise UserError(faults[:SHOWN] + rest, hint="mend or remove these rows; nothing was trained")
    return rows


def is_pictured(row: Mapping) -> bool:
    """Whether the row has an image; `image: null` says that it has none."""
    return row.get("image") is not None


@contextmanager
def _cut_pictures_fail() -> Iterator[None]:
    """Pillow can be told, for a whole process, to fill truncated pictures with grey: importing lmms-eval does so."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _fault(row: object, images: Path | None) -> str | None:
    """What is wrong with a row, or None."""
    if not isinstance(row, dict) or "id" not in row:
        return "not a mapping with an `id`"
    fault = _turns_fault(row) or _placeholder_fault(row) or _picture_fault(row.get("image"), images)
    return f"{row['id']}: {fault}" if fault else None


def _turns_fault(row: Mapping) -> str | None:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) for t in turns):
        return "no `conversations` list"
    speakers = [t.get("from") for t in turns]
    if speakers != ["human", "gpt"] * (len(turns) // 2):
        told = ", ".join(map(str, speakers[:SHOWN])) + (", ..." if len(speakers) > SHOWN else "")
        return f"turns must go human, gpt, human, gpt, ...; a conversation needs an answer, got {told}"
    if not all(isinstance(t.get("value"), str) for t in turns):
        return "a turn's value is not text"
    return None if all(t["value"].strip() for t in turns[1::2]) else "an answer is empty"


def _placeholder_fault(row: Mapping) -> str | None:
    """An image is seen once, before the first question: the only place that its placeholder may say."""
    counts = [turn["value"].count(IMAGE) for turn in row["conversations"]]
    wanted = int(is_pictured(row))
    if counts == [wanted] + [0] * (len(counts) - 1):
        return None
    expected = "one, in the first question" if wanted else "none, as the row has no image"
    places = ", ".join(f"{n} in turn {i + 1}" for i, n in enumerate(counts) if n) or "none"
    return f"{IMAGE} placeholders: {expected}; got {places}"


def _picture_fault(image: object, images: Path | None) -> str | None:
    if image is None:
        return None
    if not isinstance(image, str):
        return f"an image is named by one path, got {image!r}"
    if images is None:
        return "has an image, but the data names no `images` folder"
    if Path(image).is_absolute() or ".." in Path(image).parts:
        return f"image path leaves its folder: {image}"
    path = images / image
    if not path.is_file():
        return f"no such image: {path}"
    try:
        with Image.open(path) as picture:
            picture.load()
    except Exception as error:  # noqa: BLE001 (decoders of damaged files raise nearly anything)
        return f"unreadable image {path}: {error}"
    return None
