"""The one exception meant for users, and the exit codes. Any other exception is a bug of ours."""

from __future__ import annotations

import codecs
import difflib
import errno
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

CRASH = 1
INPUT = 2
MACHINE = 3

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk says
NO_BUG = FULL + tuple(
    getattr(errno, name)
    for name in (
        "EACCES",
        "EPERM",
        "EROFS",
        "EIO",
        "ESTALE",
        "ENOTCONN",
        "EHOSTDOWN",
        "ETIMEDOUT",
        "ENAMETOOLONG",
    )
    + ("ELOOP", "EMFILE", "ENFILE")
)
"""What the system says of a path, whatever the program does with it."""

LONGEST = 1000  # characters of a problem that are told

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What a line of a message must not hold: control characters (terminals obey some), line ends, what turns the
direction of writing, and halves of characters."""

UTF8 = {"encoding": "utf-8", "errors": "backslashreplace"}
"""How files are written: half a character, of a path that is no UTF-8 or of someone's JSON, is `\\udcff`, as in JSON."""
SIGNS = {
    "±": "+-",
    "–": "-",
    "—": "-",
    "−": "-",
    "·": "|",
    "×": "x",
    "…": "...",
    "“": '"',
    "”": '"',
    "’": "'",
}
"""What stands for a sign of our tables and lines on a terminal whose encoding has it not."""


class UserError(Exception):
    """Something the user can mend: every problem on a line of its own, then one hint that can be pasted.

    `code` is the exit code: `INPUT` for wrong input, `MACHINE` when the machine lacks something. What a problem quotes
    may come from anywhere: it is made `printable`.
    """

    def __init__(self, problems: str | Sequence[str], hint: str = "", code: int = INPUT) -> None:
        told = (problems,) if isinstance(problems, str) else problems
        self.problems: tuple[str, ...] = tuple(printable(problem, LONGEST) for problem in told)
        self.hint = printable(hint)
        self.code = code
        super().__init__("\n".join(self.problems))


@contextmanager
def system_told() -> Iterator[None]:
    """Inside, what the system says of a path becomes a UserError (code MACHINE); of other errors the traceback says more."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_BUG:
            raise
        told = UserError(f"{error.filename or 'what is printed'}: {error.strerror}", code=MACHINE)
        told.__notes__ = getattr(error, "__notes__", [])
        raise told from error


def printable(text: str, most: int | None = None) -> str:
    """The text on one line that a terminal only shows: `\\x1b` for an escape; cut in its middle past `most` characters."""
    if most is not None and len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def show_in_any_encoding() -> None:
    """From now on no text is an error to print: what the encoding has not is a similar sign, or `\\u5b66`."""
    codecs.register_error("shown", _in_its_place)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it was closed
            stream.reconfigure(errors="shown")


def nobody_reads(stream: TextIO) -> None:
    """From now on what is printed there, by whatever library, goes nowhere: a pipe or a terminal was closed."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _in_its_place(error: UnicodeError) -> tuple[str, int]:
    lost = error.object[error.start : error.end]
    return "".join(SIGNS.get(sign) or ascii(sign)[1:-1] for sign in lost), error.end


def did_you_mean(got: object, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the known names when nothing is near and they are few, or nothing."""
    names = list(known)
    near = difflib.get_close_matches(str(got)[:LONGEST], names, n=1, cutoff=0.55)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(names)})" if 0 < len(names) <= 24 else ""
