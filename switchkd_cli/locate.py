"""Model names in recipes -> where the weights are."""

import re
from pathlib import Path

from switchkd_cli.errors import UserError

SHIPPED = "playground:"
ASSETS = Path(__file__).parent / "playground" / "assets"
HUB_ID = re.compile(r"(?:[\w.-]+/)?\w[\w.-]*")
HINT = "name a checkpoint folder, a hub id, or a run's model/ folder"


def locate(name: str) -> str:
    """The folder or hub id behind a recipe's model name; `playground:NAME` is shipped in this package.

    A name that can't be a hub id, or whose first folder is here, can only be a folder. Raises UserError for a
    shipped name that does not exist, and for a local folder without a config.
    """
    if name.startswith(SHIPPED):
        folder = ASSETS / name.removeprefix(SHIPPED)
        if not folder.is_dir():
            shipped = ", ".join(sorted(SHIPPED + p.parent.name for p in ASSETS.glob("*/config.json")))
            raise UserError(f"{name}: no such model in this package", hint=f"shipped: {shipped}")
        return str(folder)
    folder = Path(name).expanduser()
    if not _only_a_folder(name):
        return name
    if not folder.is_dir():
        raise UserError(f"{name}: {'not a folder' if folder.exists() else 'no such folder'}", hint=HINT)
    if not any((folder / file).is_file() for file in ("config.json", "tokenizer.json")):
        raise UserError(f"{name}: no config.json or tokenizer.json in this folder", hint=HINT)
    return str(folder)


def _only_a_folder(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or HUB_ID.fullmatch(name) is None
        or Path(name).exists()
        or ("/" in name and Path(name.partition("/")[0]).is_dir())
    )
