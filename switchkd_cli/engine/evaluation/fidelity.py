"""Fidelity of a finished student to its teacher: a student can score better without becoming more like it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from switchkd_cli.engine.batch import Batch, collate
from switchkd_cli.engine.data.mixture import Examples
from switchkd_cli.engine.data.sampling import order
from switchkd_cli.engine.losses.forward_kl import forward_kl
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.processes import ALONE

ROWS = 64  # rows compared: several thousand answer tokens
BATCH = 4  # rows of a forward pass: it needs less memory than a training step


@torch.inference_mode()
def fidelity(paths: Paths, data: Examples, *, precision: str) -> dict[str, Any]:
    """Compare student and teacher on the answer tokens of up to 64 rows, the same ones for every student of this data.

    Returns `agreement` (share of positions where both predict the same token), `kl` (mean KL(teacher || student)
    in nats) and `positions`. The positions are the same for every student, too.
    """
    agreed, divergence, positions = 0.0, 0.0, 0
    for batch, keep in compared(paths, data, precision):
        logits = paths(batch, ("student", "teacher"), keep)
        agreed += (logits["student"].argmax(-1) == logits["teacher"].argmax(-1)).sum().item()
        divergence += forward_kl(logits["teacher"], logits["student"]).sum().item()
        positions += int(keep.sum())
    return {"agreement": agreed / positions, "kl": divergence / positions, "positions": positions}


def compared(paths: Paths, data: Examples, precision: str) -> Iterator[tuple[Batch, Tensor]]:
    """Yield the batches of up to 64 rows with the positions [B, T] that predict their answers, the models ready for them."""
    device = ALONE.device
    paths.to(device).eval()
    chosen = order(len(data), min(ROWS, len(data)), seed=0)
    for first in range(0, len(chosen), BATCH):
        rows = [data[i] for i in chosen[first : first + BATCH]]
        batch = collate(rows, pad_token=paths.student.inputs.tokenizer.pad_token_id).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield batch, batch.predicting("answer")
