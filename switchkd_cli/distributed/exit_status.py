"""How a process among others ended, left for the one that started them: it tells the first cause, and that alone."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from switchkd_cli.distributed.launch_config import exit_process
from switchkd_cli.distributed.signals import Stopped
from switchkd_cli.errors import CRASH, UserError

FOLDER = "SWITCHKD_LAST_WORDS"
"""The environment variable that names the folder; nothing is kept without it."""
CONTACT = ("gloo", "NCCL", "Connection closed by peer", "Connection reset", "Broken pipe", "TCPStore")
"""Words of errors that follow from the end of another process."""


@dataclass(frozen=True)
class LastWords:
    """Of process `rank`: the exit code, and a user's problems and hint, a crash's traceback or a signal's number."""

    rank: int
    at: float
    code: int
    problems: tuple[str, ...] = ()
    hint: str = ""
    text: str = ""
    signal: int | None = None
    follows: bool = False  # from the end of another one

    def error(self, count: int) -> BaseException:
        """What the process would have raised."""
        if self.signal is not None:
            return Stopped(self.signal, self.text)
        if self.problems:
            return UserError(list(self.problems), self.hint, self.code)
        lines = self.text.rstrip().splitlines()
        return UserError(
            [*lines, f"process {self.rank} of {count} failed; the others were ended"], code=CRASH
        )


@contextmanager
def kept() -> Iterator[None]:
    """Inside, an error is left for who started this process, where that is asked, instead of being raised."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        yield
        return
    try:
        yield
    except (Exception, Stopped) as error:  # noqa: BLE001 (told by who started this process)
        exit_process(_left(error, Path(folder)))


def end(error: UserError) -> None:
    """Ends the process from whichever thread, and leaves the error or, where nobody asks for it, prints it."""
    if (folder := os.environ.get(FOLDER)) is not None:
        _left(error, Path(folder))
    else:
        print("\n".join((*error.problems, f"hint: {error.hint}")), file=sys.stderr, flush=True)
    os._exit(error.code)


def read(folder: Path) -> list[LastWords]:
    """What was left, causes before what followed from them, in time."""
    found = [LastWords(**json.loads(file.read_text(encoding="utf-8"))) for file in folder.glob("*.json")]
    return sorted(found, key=lambda words: (words.signal is not None, words.follows, words.at))


def lost_contact(error: BaseException) -> bool:
    """Whether the error follows from the end of another process."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in CONTACT)


def _left(error: BaseException, folder: Path) -> int:
    """Leaves what is to be told of an error. Returns the exit code."""
    words = _words(error)
    file = folder / f"{words.rank}.json"
    file.with_suffix(".part").write_text(json.dumps(asdict(words)), encoding="utf-8")
    file.with_suffix(".part").rename(file)  # whole, or not there
    return words.code


def _words(error: BaseException) -> LastWords:
    rank, now = int(os.environ.get("RANK", "0")), time.time()
    if isinstance(error, UserError):
        told = (*error.problems, *getattr(error, "__notes__", ()))
        return LastWords(rank, now, error.code, told, error.hint)
    if isinstance(error, Stopped):
        return LastWords(rank, now, error.code, text=error.text, signal=error.number)
    told = "".join(traceback.format_exception(error))
    return LastWords(rank, now, CRASH, text=told, follows=lost_contact(error))
