"""A whole vision-language checkpoint, whichever of the two ways it is written."""

from switchkd_cli.engine.hub import Stored
from switchkd_cli.engine.models import llava_folder, tinyllava
from switchkd_cli.engine.models.llava import Blueprint


def is_whole(stored: Stored) -> bool:
    """Whether the folder says that it holds a vision-language model, and not one part of one."""
    return _type(stored) in (tinyllava.TYPE, *llava_folder.TYPES)


def read_whole(stored: Stored) -> Blueprint:
    """The checkpoint, all but its weights. Raises UserError for a folder that is empty, broken or of another family."""
    return tinyllava.read(stored) if _type(stored) == tinyllava.TYPE else llava_folder.read(stored)


def _type(stored: Stored) -> str | None:
    return stored.json("config.json").get("model_type") if stored.has("config.json") else None
