"""From hidden states to an objective's value as the package computes it: the only place to change when that changes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from switchkd_cli.engine.batch import Batch, Example, collate
from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.paths import output_name
from switchkd_cli.engine.training.chunked import ChunkedObjective
from switchkd_cli.engine.training.objective import LossInputs, Objective


def total(objective: Objective, states: Mapping[str, Tensor], heads: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return the value that is minimised, from each path's hidden states [N, D] and its head's weights [V, D]."""
    outputs = {output_name(path, "hidden"): values for path, values in states.items()}
    columns = {path: len(weights) for path, weights in heads.items()}
    keep, counts = objective.keep(batch), objective.counts([batch])
    return ChunkedObjective(objective)(LossInputs(outputs, Heads(heads, columns), batch, keep, counts))[0]


def supervised(positions: int, columns: int, device: torch.device) -> Batch:
    """Return a batch of one example with N supervised positions."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(columns, (positions + 1,), generator=draw)
    row = Example("0", tokens, tokens, torch.zeros_like(tokens), tokens < 0)
    return collate([row], pad_token=0).to(device)
