"""The one exception meant for users, and the exit codes. Any other exception is a bug of ours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

CRASH = 1
INPUT = 2
MACHINE = 3

LONGEST = 1000  # characters of a problem that are told

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What a line of a message must not hold: control characters (terminals obey some), line ends, what turns the
direction of writing, and halves of characters."""


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


def printable(text: str, most: int | None = None) -> str:
    """The text on one line that a terminal only shows: `\\x1b` for an escape; cut in its middle past `most` characters."""
    if most is not None and len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def did_you_mean(got: object, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the known names when nothing is near and they are few, or nothing."""
    names = list(known)
    near = difflib.get_close_matches(str(got)[:LONGEST], names, n=1, cutoff=0.55)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(names)})" if 0 < len(names) <= 24 else ""
