"""Bytes of logits, losses and their gradients, measured on a small example of the stage's own objective.

Every registered loss is measured in the same way, so a new one needs no figure here. Training computes logits in chunks of
N positions and V columns (under ZeRO 3 at all positions at once); what a chunk takes at its fullest moment grows with N V.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import cast

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from switchkd_cli.engine.batch import IGNORE, PREFERRED, Example, collate
from switchkd_cli.engine.data.conversation import OF_TEACHER
from switchkd_cli.engine.token_map import TokenMap
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.recipe.schema import Term

IMAGE, QUESTION, ANSWER = 4, 8, 8  # tokens of the example
DTYPES = {2: torch.bfloat16, 4: torch.float32}
COLUMNS = 2**15  # the largest vocabulary that is measured


def bytes_per_logit(terms: Sequence[Term], number: int, vocabulary: int) -> float | None:
    """Return the peak bytes of logits and losses, forward and backward, for each of the N V logits of one path.

    `number`: bytes of a logit. The smaller a vocabulary, the larger the share of it in front of a knee; above COLUMNS the
    figure is that of COLUMNS, and rather high. None where the losses can't be computed on the example.
    """
    of_logits = [term for term in terms if "logits" in term.kinds]
    described = tuple(term.model_dump_json() for term in of_logits)
    return _measured(described, number, min(vocabulary, COLUMNS)) if described else 0.0


@cache
def _measured(terms: tuple[str, ...], number: int, columns: int) -> float | None:
    length = IMAGE + QUESTION + ANSWER
    tokens = torch.arange(length).clamp(min=IMAGE - 1)
    labels = torch.where(torch.arange(length) < IMAGE + QUESTION, IGNORE, tokens)
    spans = torch.where(labels == IGNORE, -1, torch.arange(length))
    of_terms = [Term.model_validate_json(term) for term in terms]
    paired = any(term.on in PREFERRED for term in of_terms)  # its answer is a preferred and a rejected one
    turn = paired * (1 + (torch.arange(length) >= length - ANSWER // 2).long())
    example = Example("", tokens, labels, turn, torch.arange(length) < IMAGE, spans=spans, paired=paired)
    # both models read the same tokens, each a span
    both = replace(example, others={OF_TEACHER: example}, aligned=torch.ones(2, dtype=torch.long))
    batch = collate([both], pad_token=0)
    ids = torch.arange(columns)
    map_of_ids = cast(TokenMap, SimpleNamespace(places=[ids, ids], shared=[ids, ids], first_pieces=ids))
    draw = torch.Generator().manual_seed(0)
    try:
        objective = Objective(of_terms, map_of_ids)
        keep, counts = objective.keep(batch), objective.counts([batch])
        shape = int(batch.read_by("student", keep)[1].sum()), columns
        random = {path: 3 * torch.randn(shape, generator=draw) for path in sorted(objective.outputs)}
        with MemTracker() as tracker:
            logits = {path: z.to(DTYPES[number], copy=True) for path, z in random.items()}
            for path in logits.keys() - {"teacher"}:
                logits[path].requires_grad_()
            inputs = LossInputs(logits, None, batch, keep, counts, 0.5)
            objective.total(objective(inputs)).backward()
        return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"] / math.prod(shape)
    except Exception:  # noqa: BLE001 - a loss may raise anything, and a plan doesn't fail for it
        return None
