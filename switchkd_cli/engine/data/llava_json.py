"""LLaVA-1.5 rows, the format of the paper's two data sets: `{id, image?, conversations: [{from, value}]}`."""

from pathlib import Path
from typing import Literal

from switchkd_cli.engine.data.opening import open_rows
from switchkd_cli.engine.data.rows import Fault, Row, Rows, paired, told

FORMAT = "a list of {id, image, conversations: [{from: human, value}, {from: gpt, value}, ...]}"
SHOWN = 5  # speakers shown of a conversation that is out of order


def llava_json(
    cache: Path,
    *,
    file: str,
    images: str | None = None,
    limit: int | None = None,
    turns: Literal["chained", "independent"] = "chained",
    follow_links: bool = False,
) -> Rows:
    """Rows of a .json, .jsonl or .parquet file; image paths are relative to `images`.

    `follow_links` lets symbolic links in there lead elsewhere.
    """
    asked = {"images": images, "follow_links": follow_links, "limit": limit, "turns": turns}
    return open_rows(Path(file), llava_row, FORMAT, cache=cache, **asked)


def llava_row(value: object) -> Row:
    """A raw LLaVA-1.5 row. An answer before the first question is left out, as LLaVA does. Raises Fault."""
    if not isinstance(value, dict) or "id" not in value:
        raise Fault("not a mapping with an `id`")
    try:
        image = picture_of(value.get("image"))
        said = paired(_texts(value.get("conversations")), image is not None)
        return Row(told(value["id"]), said, image)
    except Fault as fault:
        raise Fault(str(fault), told(value["id"])) from None


def picture_of(image: object) -> str | bytes | None:
    """A row's image: a path, or (in parquet) `{bytes, path}`, where the bytes count if there are any. Raises Fault."""
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if image is None or isinstance(image, str | bytes):
        return image
    raise Fault(f"an image is named by one path, got {told(image)}")


def _texts(turns: object) -> list[str]:
    """What human and gpt say in turn."""
    if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) for t in turns):
        raise Fault("no `conversations` list")
    heard = [turn.get("from") for turn in turns]
    opened = int(heard[0] == "gpt")
    speakers = heard[opened:]
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        shown = ", ".join(map(told, heard[:SHOWN])) + (", ..." if len(heard) > SHOWN else "")
        raise Fault(f"turns must go human, gpt, human, gpt, ...; a conversation needs an answer, got {shown}")
    texts = [turn.get("value") for turn in turns[opened:]]
    if not all(isinstance(text, str) for text in texts):
        raise Fault("a turn's value is not text")
    return texts
