"""How faithful a finished student is to its teacher: a student can gain without becoming like it."""

from typing import Any

import torch

from switchkd_cli.engine.batch import collate
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.sampling import order
from switchkd_cli.engine.losses.forward_kl import forward_kl
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.processes import ALONE

ROWS = 64  # rows looked at: some thousand answer tokens
AT_ONCE = 4  # rows of one forward pass, so that it needs less memory than a step of training


@torch.inference_mode()
def fidelity(paths: Paths, data: Conversations, *, precision: str) -> dict[str, Any]:
    """Student against teacher on the answer tokens of up to 64 rows, the same for every student of this data.

    Returns `agreement` (share of positions where both have the same first choice), `kl` (mean KL(teacher || student)
    in nats) and `positions`. Both read the same text, so the positions are the same for every student.
    """
    device = ALONE.device
    paths = paths.to(device).eval()
    student = paths.student
    chosen = order(len(data), min(ROWS, len(data)), seed=0)
    agreed, divergence, positions = 0.0, 0.0, 0
    for first in range(0, len(chosen), AT_ONCE):
        batch = collate(
            [data[i] for i in chosen[first : first + AT_ONCE]],
            pad_token=student.inputs.tokenizer.pad_token_id,
        ).to(device)
        keep = batch.predicting("answer")
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = paths(batch, ("student", "teacher"), keep)
        agreed += (logits["student"].argmax(-1) == logits["teacher"].argmax(-1)).sum().item()
        divergence += forward_kl(logits["teacher"], logits["student"]).sum().item()
        positions += int(keep.sum())
    return {"agreement": agreed / positions, "kl": divergence / positions, "positions": positions}
