"""Write a folder of generated files for a request: complete or not at all, and once for the same request."""

import hashlib
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import atomic_folder, hold, read_json, write_json
from switchkd_cli.files.hashes import digest_of

MANIFEST = "manifest.json"


def write_folder(folder: Path, request: dict, build: Callable[[Path], None], inside: Collection[str] = (".",)) -> Path:
    """Return `folder` after `build` has filled it as `request` says; a folder that already holds this is left alone.

    A request holds for one state of the world's code, words and drawings. Another request's folder is replaced, and so is
    one in which a file of a folder `inside` has changed. Raises UserError for a folder of files that are not the playground's.
    """
    request = {**request, "world": world_digest()}
    if _request_in(folder, inside) == request:
        return folder
    with hold(folder):
        present = _request_in(folder, inside)  # another process may have written it meanwhile
        if present is None and folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: holds files that are not the playground's", hint="choose another folder")
        if present != request:
            with atomic_folder(folder) as fresh:
                build(fresh)
                write_json(fresh / MANIFEST, {**request, "files": _digest(fresh, inside)})
    return folder


@cache
def world_digest() -> str:
    """Return a digest of the playground's code, words and drawings."""
    package = Path(__file__).parent
    files = sorted([*package.rglob("*.py"), *package.rglob("*.yaml"), *package.glob("assets/atlas.*")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _request_in(folder: Path, inside: Collection[str]) -> dict | None:
    """Return the request that a folder holds; an empty one where its files have changed, None without a manifest."""
    if (request := read_json(folder / MANIFEST)) is None:
        return None
    return request if request.pop("files", None) == _digest(folder, inside) else {}


def _digest(folder: Path, inside: Collection[str]) -> str:
    files = (file for name in inside for file in (folder / name).rglob("*") if file.is_file())
    names = (str(file.relative_to(folder)) for file in files)
    return digest_of(folder, sorted(name for name in names if name != MANIFEST))
