"""The one exception meant for users, and the exit codes. Any other exception is a bug of this program."""

import codecs
import difflib
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CRASH = 1
INPUT = 2
MACHINE = 3

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full disk
_NAMES = "EACCES EPERM EROFS EIO ESTALE ENOTCONN EHOSTDOWN ETIMEDOUT ENAMETOOLONG ELOOP EMFILE ENFILE"
NO_BUG = FULL + tuple(getattr(errno, name) for name in _NAMES.split())
"""Errors of the system about a path that no program can avoid."""

LONGEST = 1000  # characters of a problem that are shown

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Characters that a message must not contain: control characters (terminals obey some), line ends, changes of the
writing direction, and halves of characters."""


UTF8: Any = {"encoding": "utf-8", "errors": "backslashreplace"}
"""How files are written: half a character, from a path that is not UTF-8 or from JSON, becomes `\\udcff`, as in JSON."""
SUBSTITUTES = {**dict.fromkeys("–—−", "-"), "±": "+-", "·": "|", "×": "x", "…": "...", "“": '"', "”": '"', "’": "'"}
"""Replacements of characters in our tables and lines, for a terminal whose encoding lacks them."""


class UserError(Exception):
    """An error that the user can fix: each problem on a line of its own, then one hint that can be pasted.

    `code` is the exit code: `INPUT` for wrong input, `MACHINE` when the machine lacks a requirement. Problems may quote
    text from anywhere: they are made `printable`.
    """

    def __init__(self, problems: str | Sequence[str], hint: str = "", code: int = INPUT) -> None:
        lines = (problems,) if isinstance(problems, str) else problems
        self.problems: tuple[str, ...] = tuple(printable(line, LONGEST) for line in lines)
        self.hint = printable(hint)
        self.code = code
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is pickled for another process."""
        return type(self), (self.problems, self.hint, self.code), self.__dict__

    @property
    def lines(self) -> list[str]:
        """What the user reads: every problem on its line, then the hint and the notes."""
        return [*self.problems, *[f"hint: {self.hint}"] * bool(self.hint), *getattr(self, "__notes__", ())]


def for_each(items: Iterable[Item], do: Callable[[Item], Result]) -> list[Result]:
    """Return what `do` returns for each item. Raises one UserError with the problems and hints of all."""
    results: list[Result] = []
    errors: list[UserError] = []
    for item in items:
        try:
            results.append(do(item))
        except UserError as error:
            errors.append(error)
    if errors:
        problems = dict.fromkeys(problem for error in errors for problem in error.problems)
        raise UserError(list(problems), hint="; ".join(dict.fromkeys(error.hint for error in errors if error.hint)))
    return results


@contextmanager
def system_errors() -> Iterator[None]:
    """Inside, the system's errors about a path become UserErrors (code MACHINE); others keep their traceback."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_BUG:
            raise
        problem = UserError(f"{error.filename or 'output'}: {error.strerror}", code=MACHINE)
        problem.__notes__ = getattr(error, "__notes__", [])
        raise problem from error


@contextmanager
def import_errors() -> Iterator[None]:
    """Inside, a library that is missing or fails to be imported is a UserError (code MACHINE).

    An import that fails by a fault of this package, and any other error, keep their traceback.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        *_, last = frames = traceback.extract_tb(error.__traceback__)
        name = error.name if isinstance(error, ImportError) else None
        ours = name.startswith("switchkd_cli") if name else Path(last.filename).is_relative_to(Path(__file__).parent)
        importing = isinstance(error, ImportError) or any(frame.name == "<module>" for frame in frames)
        if ours or not importing:
            raise
        problem = f"a library can't be imported: {' '.join(str(error).split())} ({last.filename}:{last.lineno})"
        hint = "make setup, which installs the versions that were tested together"
        if isinstance(error, ModuleNotFoundError):
            problem, hint = f"{error.name} is not installed", "make setup"
        raise UserError(problem, hint, MACHINE) from error


def printable(text: str, most: int | None = None) -> str:
    """The text on one line, safe for a terminal: `\\x1b` for an escape; cut in its middle after `most` characters."""
    if most is not None and len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def shown(path: Path) -> str:
    """The path as the user would write it: relative to the working directory where it lies below it."""
    with suppress(OSError, ValueError):  # the working directory may have been deleted meanwhile
        return str(path.relative_to(Path.cwd()))
    return str(path)


def print_in_any_encoding() -> None:
    """Make all text printable from now on: a character that the encoding lacks becomes a similar one, or `\\u5b66`."""
    codecs.register_error("substitute", _substitute)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None when it is closed
            stream.reconfigure(errors="substitute")


def discard_output(stream: TextIO) -> None:
    """Discard everything that is printed there from now on, because its pipe or terminal was closed."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _substitute(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(SUBSTITUTES.get(char) or ascii(char)[1:-1] for char in missing), error.end


def did_you_mean(got: object, known: Iterable[str], most: int = 24) -> str:
    """` (did you mean 'x'?)`, or the known names when none is similar and they are at `most` this many, or nothing."""
    names = list(known)
    similar = difflib.get_close_matches(str(got)[:LONGEST], names, n=1, cutoff=0.55)
    if similar:
        return f" (did you mean {similar[0]!r}?)"
    return f" (known: {', '.join(names)})" if 0 < len(names) <= most else ""
