"""Model names in recipes -> where the weights are."""

from pathlib import Path

from switchkd_cli.errors import UserError

SHIPPED = "playground:"
ASSETS = Path(__file__).parent / "playground" / "assets"


def locate(name: str) -> str:
    """The folder or hub id behind a recipe's model name; `playground:NAME` is shipped in this package.

    Raises UserError for a shipped name that does not exist, and for a local folder without a config.
    """
    if name.startswith(SHIPPED):
        folder = ASSETS / name.removeprefix(SHIPPED)
        if not folder.is_dir():
            shipped = ", ".join(sorted(SHIPPED + p.parent.name for p in ASSETS.glob("*/config.json")))
            raise UserError(f"{name}: no such model in this package", hint=f"shipped: {shipped}")
        return str(folder)
    folder = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or folder.is_dir()
    if looks_local and not any((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        what = "no config.json or tokenizer.json in this folder" if folder.is_dir() else "no such folder"
        raise UserError(
            f"{name}: {what}", hint="name a checkpoint folder, a hub id, or a run's model/ folder"
        )
    return str(folder) if looks_local else name
