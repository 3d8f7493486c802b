"""Level 1: what a loss costs at N supervised positions of a vocabulary of 151,936, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from scripts.bench import from_states, realistic
from scripts.bench.explicit_pairs import dbild_of_pairs, of_sorted_rows
from scripts.bench.machine import device, free_bytes
from scripts.bench.results import Level, Row
from scripts.bench.rounds import LONG, QUICK, Effort, Running, Variant, measure
from switchkd_cli.engine.losses.dbild import bild, dbild
from switchkd_cli.engine.losses.divergences import forward_kl
from switchkd_cli.engine.losses.ops.knee import TopKAtKnee
from switchkd_cli.engine.training.objective import Objective
from switchkd_cli.recipe.schema import Term

COLUMNS = 151_936  # Qwen2's head
WIDTHS = {False: (2048, 896), True: (384, 256)}
"""Widths of the teacher's and the student's hidden states; the full ones (not quick) are those of Qwen2.5's 3B and 0.5B."""
BYTES_A_LOGIT = 64  # bytes of one position at the peak of the most expensive of these losses, with a margin
MOST = 1024 if torch.cuda.is_available() else 256  # positions: more show nothing new
WINDOWS = (64, 256, None)
BEYOND = "MiB beyond gradient"
FROM_LOGITS, FROM_STATES, GROWTH = "from logits", "from last states", "twice the positions"

Loss = Callable[[Tensor, Tensor], Tensor]


def knee_range(window: int | None) -> str:
    """A knee's position."""
    return "global knee" if window is None else f"window {window}"


def windowed(name: str, window: int | None) -> str:
    return f"{name}, {knee_range(window)}"


LOSSES: dict[str, Loss] = {
    "forward KL": forward_kl,
    "BiLD, k = 8": bild,
    **{
        windowed(f"explicit pairs{label}", window): partial(dbild_of_pairs, window=window, cut=cut)
        for cut, label in ((False, ""), (True, " up to the longest k"))
        for window in WINDOWS
        if window is not None
    },
    "explicit pairs of sorted rows, window 256": partial(dbild_of_pairs, window=256, highest=of_sorted_rows),
    **{windowed("DBiLD", window): partial(dbild, window=window) for window in WINDOWS},
}
"""The first is the yardstick."""


def measure_at(positions: int, columns: int, widths: tuple[int, int], effort: Effort) -> Level:
    """Measure the level at a given size. `widths` are the teacher's and the student's."""
    where = device()
    pair = [logits.to(where) for logits in realistic.logits(positions, columns)]
    leading = pair[0][:64]  # without padding
    ranks = {window: TopKAtKnee(window, 3, None)(leading, None)[1].float().mean().item() for window in WINDOWS}
    knees = {f"mean k, {knee_range(window)}": round(rank, 1) for window, rank in ranks.items()}
    rows = measure(
        FROM_LOGITS, [_variant(name, partial(_of_logits, loss, pair)) for name, loss in LOSSES.items()], effort
    )
    rows = [_beyond_gradient(row, pair[1].nbytes) for row in rows]
    del pair
    rows += _from_states(positions, columns, widths, effort)
    setting = {"positions": positions, "vocabulary": columns, "teacher's width": widths[0]}
    return Level(
        title="loss: forward and backward", setting={**setting, "student's width": widths[1], **knees}, rows=rows
    )


def _beyond_gradient(row: Row, gradient: int) -> Row:
    """Return the row with its memory beyond the gradient [N, V], which every loss of logits has to return."""
    if row.extra_bytes is None:
        return row
    return row.model_copy(update={"figures": {BEYOND: (row.extra_bytes - gradient) / 2**20}})


def measure_level(quick: bool) -> Level:
    count = 16 if quick else positions_that_fit(free_bytes(), WIDTHS[quick])
    return measure_at(count, COLUMNS, WIDTHS[quick], QUICK if quick else LONG)


def positions_that_fit(free: int, widths: tuple[int, int]) -> int:
    """Return a power of two: the positions that use half of the free memory that the heads leave."""
    heads = 4 * COLUMNS * (widths[0] + 2 * widths[1])  # the student's has a gradient
    fitting = int((free / 2 - heads) / (BYTES_A_LOGIT * COLUMNS))
    return min(MOST, 2 ** max(3, fitting.bit_length() - 1)) if fitting > 0 else 8


def _from_states(positions: int, columns: int, widths: tuple[int, int], effort: Effort) -> list[Row]:
    where = device()
    heads = tuple(realistic.head(columns, width, seed) for seed, width in enumerate(widths))
    states = realistic.states(positions, heads)
    heads, states = ([tensor.to(where) for tensor in given] for given in (heads, states))
    variants = [
        _variant(name, partial(_of_states, LOSSES[name], states, heads))
        for name in ("forward KL", *(windowed("DBiLD", window) for window in WINDOWS))
    ]
    ours = partial(_ours, states, heads, columns)
    variants += [_variant(windowed("DBiLD, the package's way", w), partial(ours, positions, w)) for w in WINDOWS]
    half = max(1, positions // 2)
    growing = [
        _variant(f"the package's way, {label}", partial(ours, count, None), timed=False)
        for label, count in (("N / 2", half), ("N", positions))
    ]
    return measure(FROM_STATES, variants, effort) + measure(GROWTH, growing, Effort(0, 0))


Setup = Callable[[], tuple[Sequence[Tensor], Callable[[], Tensor]]]
"""Returns the tensors that get a gradient, and a function that computes the value from them."""


def _of_logits(loss: Loss, pair: Sequence[Tensor]) -> tuple[Sequence[Tensor], Callable[[], Tensor]]:
    teacher, student = pair[0], pair[1].detach().requires_grad_()
    # another view each time, so that nothing is cached from the run before
    return [student], lambda: loss(teacher.detach(), student).sum()


def _of_states(
    loss: Loss, states: Sequence[Tensor], heads: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Callable[[], Tensor]]:
    """Return the head as one writes it by hand: the teacher's under no_grad, all logits at once."""
    state, head = (given[1].detach().requires_grad_() for given in (states, heads))

    def value() -> Tensor:
        with torch.no_grad():
            teacher = linear(states[0], heads[0])
        return loss(teacher, linear(state, head)).sum()

    return [state, head], value


def _ours(
    states: Sequence[Tensor], heads: Sequence[Tensor], columns: int, positions: int, window: int | None
) -> tuple[Sequence[Tensor], Callable[[], Tensor]]:
    term = Term(name="align", loss="dbild", to="teacher", parameters={"window": window})
    state, head = states[1][:positions].detach().requires_grad_(), heads[1].detach().requires_grad_()
    at = {"teacher": states[0][:positions], "student": state}
    batch = from_states.supervised(positions, columns, state.device)
    weights = {"teacher": heads[0], "student": head}
    return [state, head], lambda: from_states.total(Objective([term]), at, weights, batch)


def _variant(name: str, setup: Setup, timed: bool = True) -> Variant:
    @contextmanager
    def ready() -> Iterator[Running]:
        leaves, value = setup()
        found: list[Tensor] = []

        def forward() -> None:
            found[:] = [value()]

        def backward() -> None:
            found.pop().backward()
            for leaf in leaves:  # memory left by a run would be released in the next one, and hide as much of its own
                leaf.grad = None

        yield Running({"forward": forward, "backward": backward})

    return Variant(name, ready, timed=timed)
