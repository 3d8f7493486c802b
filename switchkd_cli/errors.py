"""The one exception meant for users, and the exit codes. Any other exception is a bug of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

CRASH = 1
INPUT = 2
MACHINE = 3


class UserError(Exception):
    """Something the user can mend: every problem on a line of its own, then one hint that can be pasted.

    `code` is the exit code: `INPUT` for wrong input, `MACHINE` when the machine lacks something.
    """

    def __init__(self, problems: str | Sequence[str], hint: str = "", code: int = INPUT) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        self.hint = hint
        self.code = code
        super().__init__("\n".join(self.problems))


def did_you_mean(got: object, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the known names when nothing is near and they are few, or nothing."""
    names = list(known)
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.55)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(names)})" if 0 < len(names) <= 24 else ""
