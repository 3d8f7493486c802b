"""Resolve a checkpoint name to a local folder, downloading it if needed; every failure is a UserError."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from os.path import exists, isfile
from pathlib import Path
from typing import Any, Self

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from switchkd_cli.errors import FULL, MACHINE, UserError
from switchkd_cli.recipe.named_files import locate
from switchkd_cli.recipe.run import cached_commit

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md")  # no pickles and no code
PICKLES = ("*.bin",)
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
CONFIGS_ONLY = ContextVar("configs_only", default=False)
NO_CODE = {"trust_remote_code": False}  # always given: without it transformers would ask on the terminal
MESSAGE_LENGTH = 200  # characters of a library's message that are shown


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint's folder, its name in the recipe, and the recipe's field (`who`) that holds the name.

    `allow_pickle`: pickled weights may be read where there are no others (only tensors, see weights.py).
    """

    name: str
    who: str
    folder: Path
    allow_pickle: bool = False

    def __str__(self) -> str:
        return f"{self.who}: {self.name}"

    def __truediv__(self, part: str) -> Self:
        """Return one of its sub-folders."""
        return replace(self, name=f"{self.name}/{part}", folder=self.folder / part)

    def has(self, *files: str) -> bool:
        """Return whether any of the files exists."""
        return any(isfile(self.folder / file) for file in files)

    def json(self, file: str) -> dict[str, Any]:
        """Return the mapping in a JSON file. Raises UserError where there is none."""
        with as_user_error(f"{self}: no readable {file}"):
            if exists(self.folder / file) and not self.has(file):  # reading a pipe would wait forever
                raise OSError("not a file")
            content = json.loads((self.folder / file).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise UserError(f"{self}: {file} is not a mapping, but a {type(content).__name__}")
        return content


def fetch(name: str, who: str, *, allow_pickle: bool = False, only: tuple[str, ...] = ()) -> CheckpointFolder:
    """Return the checkpoint of this name: a folder, or a hub id, which is taken from the cache or downloaded.

    A cached hub id stays at the cached commit, on which run keys depend (`hf download ID` updates it). `only`: patterns of
    the files to download of a hub id, where not all are needed. Raises UserError where there is no such checkpoint, and
    with code MACHINE where the hub can't be reached.
    """
    where = locate(name)
    if Path(where).is_dir():
        return CheckpointFolder(name, who, Path(where), allow_pickle)
    try:
        patterns = only or (*FILES, *PICKLES * allow_pickle)
        folder = snapshot_download(where, local_files_only=True) if CONFIGS_ONLY.get() else _snapshot(where, patterns)
        return CheckpointFolder(name, who, Path(folder), allow_pickle)
    except (RepositoryNotFoundError, HFValidationError):
        hint = "a gated model needs a login; a model of yours is named by its folder"
        raise UserError(f"{who}: {name}: no such folder here, no such model on the hub", hint=hint) from None
    except OSError as error:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else one_line(error)
        what = f"{who}: {name}: not on this machine, and could not be fetched from the hub ({why})"
        hint = "name a checkpoint folder, or fetch it where there is a network and copy the cache"
        raise UserError(what, hint=hint, code=MACHINE) from error


@contextmanager
def configs_only() -> Iterator[None]:
    """Inside the block nothing is downloaded, and a checkpoint needs no weights: enough for a plan."""
    token = CONFIGS_ONLY.set(True)
    try:
        yield
    finally:
        CONFIGS_ONLY.reset(token)


def forbid_kernels() -> None:
    """Let bitsandbytes, when it is imported, fetch no compiled code from a hub, as it does where `kernels` is installed."""
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would say that it couldn't


@contextmanager
def as_user_error(problem: str) -> Iterator[None]:
    """Turn any error that a library raises about a user's files or values into a UserError of one line."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # OSError, ValueError, libraries' own classes, plain Exception, and Rust panics
        if "trust_remote_code" in str(error):
            raise UserError(f"{problem}: it needs its own code, which is never run") from error
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise UserError(f"{problem}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())[:MESSAGE_LENGTH] or type(error).__name__


@cache
def _snapshot(hub_id: str, patterns: tuple[str, ...]) -> str:
    return snapshot_download(hub_id, revision=cached_commit(hub_id), allow_patterns=list(patterns))
