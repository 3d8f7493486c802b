"""Fidelity of a finished student to its teacher: a student can score better without becoming more like it."""

from typing import Any

import torch

from switchkd_cli.engine.batch import collate
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.sampling import order
from switchkd_cli.engine.losses.forward_kl import forward_kl
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.processes import ALONE

ROWS = 64  # rows compared: several thousand answer tokens
BATCH = 4  # rows of a forward pass: it needs less memory than a training step


@torch.inference_mode()
def fidelity(paths: Paths, data: Conversations, *, precision: str) -> dict[str, Any]:
    """Compare student and teacher on the answer tokens of up to 64 rows, the same ones for every student of this data.

    Returns `agreement` (share of positions where both predict the same token), `kl` (mean KL(teacher || student)
    in nats) and `positions`. The positions are the same for every student, too.
    """
    device = ALONE.device
    paths = paths.to(device).eval()
    student = paths.student
    chosen = order(len(data), min(ROWS, len(data)), seed=0)
    agreed, divergence, positions = 0.0, 0.0, 0
    for first in range(0, len(chosen), BATCH):
        rows = [data[i] for i in chosen[first : first + BATCH]]
        batch = collate(rows, pad_token=student.inputs.tokenizer.pad_token_id).to(device)
        keep = batch.predicting("answer")
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = paths(batch, ("student", "teacher"), keep)
        agreed += (logits["student"].argmax(-1) == logits["teacher"].argmax(-1)).sum().item()
        divergence += forward_kl(logits["teacher"], logits["student"]).sum().item()
        positions += int(keep.sum())
    return {"agreement": agreed / positions, "kl": divergence / positions, "positions": positions}
