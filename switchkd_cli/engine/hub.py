"""What is stored under a checkpoint's name: found or fetched, so that every failure is a UserError."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from os.path import exists, isfile
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from switchkd_cli.errors import FULL, MACHINE, UserError
from switchkd_cli.recipe.model_paths import locate

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md")  # no pickles and no code
PICKLES = ("*.bin",)
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_CONFIGS_ONLY = ContextVar("configs_only", default=False)
NO_CODE = {"trust_remote_code": False}  # said each time: left out, transformers would ask on the terminal
SAID = 200  # characters of a library's message that are passed on


@dataclass(frozen=True)
class Stored:
    """A checkpoint's folder, the name it has in a recipe, and the field (`who`) that names it.

    `allow_pickle` says that pickled weights may be read where there are no others (never with more than tensors
    in them, see weights.py).
    """

    name: str
    who: str
    folder: Path
    allow_pickle: bool = False

    def __str__(self) -> str:
        return f"{self.who}: {self.name}"

    def __truediv__(self, part: str) -> Stored:
        """One of its sub-folders."""
        return replace(self, name=f"{self.name}/{part}", folder=self.folder / part)

    def has(self, *files: str) -> bool:
        """Whether any of the files is there."""
        return any(isfile(self.folder / file) for file in files)

    def json(self, file: str) -> dict[str, Any]:
        """A JSON file's mapping. Raises UserError where there is none."""
        with as_user_error(f"{self}: no readable {file}"):
            if exists(self.folder / file) and not self.has(file):  # a pipe would be waited for
                raise OSError("not a file")
            held = json.loads((self.folder / file).read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise UserError(f"{self}: {file} is not a mapping, but a {type(held).__name__}")
        return held


def fetch(name: str, who: str, *, allow_pickle: bool = False, only: tuple[str, ...] = ()) -> Stored:
    """What the name stands for; a hub id is downloaded, or found in the cache without a network.

    A hub id that is in the cache stays at the commit that is there, which keys stand for (`hf download ID` moves it on).
    `only` names the files that are wanted of a hub id, where not all are. Raises UserError where there is no such
    checkpoint, and with code MACHINE where the hub can't be reached.
    """
    where = locate(name)
    if Path(where).is_dir():
        return Stored(name, who, Path(where), allow_pickle)
    try:
        wanted = only or (*FILES, *PICKLES * allow_pickle)
        if _CONFIGS_ONLY.get():
            return Stored(name, who, Path(snapshot_download(where, local_files_only=True)), allow_pickle)
        return Stored(name, who, _snapshot(where, wanted), allow_pickle)
    except (RepositoryNotFoundError, HFValidationError):
        hint = "a gated model needs a login; a model of yours is named by its folder"
        raise UserError(f"{who}: {name}: no such folder here, no such model on the hub", hint=hint) from None
    except OSError as error:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else one_line(error)
        raise UserError(
            f"{who}: {name}: not on this machine, and could not be fetched from the hub ({why})",
            hint="name a checkpoint folder, or fetch it where there is a network and copy the cache",
            code=MACHINE,
        ) from error


@contextmanager
def configs_only() -> Iterator[None]:
    """Inside, nothing is downloaded, and a checkpoint counts as whole without its weights: enough for a plan."""
    token = _CONFIGS_ONLY.set(True)
    try:
        yield
    finally:
        _CONFIGS_ONLY.reset(token)


def weights_needed() -> bool:
    return not _CONFIGS_ONLY.get()


@contextmanager
def as_user_error(problem: str) -> Iterator[None]:
    """Turns whatever the libraries raise over a user's files and values into a UserError of one line."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # OSError, ValueError, their own, plain Exception, and panics of Rust
        if "trust_remote_code" in str(error):
            raise UserError(f"{problem}: it needs code that came with it, which is never run") from error
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise UserError(f"{problem}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:SAID] or type(error).__name__


@cache
def _snapshot(hub_id: str, wanted: tuple[str, ...]) -> Path:
    try:
        commit = Path(snapshot_download(hub_id, local_files_only=True)).name
    except LocalEntryNotFoundError:
        commit = None
    return Path(snapshot_download(hub_id, revision=commit, allow_patterns=list(wanted)))
