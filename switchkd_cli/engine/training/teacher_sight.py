"""Does the teacher see? Its loss on the answers of one batch: with their images, with blank ones, with another row's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from switchkd_cli.engine.batch import Batch, ImageInput
from switchkd_cli.engine.lm_head import positions
from switchkd_cli.engine.losses.cross_entropy import cross_entropy
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.trainer import Trainer

LEAST = 0.1
"""Share by which an answer's own image must lower the loss.

In the playground it is nine tenths for a teacher that sees. Blank images alone don't tell: they raise the loss of a random
projector by 15 to 50 %. Of a teacher that doesn't see, the loss with own and with other images differs by up to 8 % in 16 rows.
"""
SHOWN = {"images": "with their images", "blank_images": "with blank ones", "other_images": "with another row's"}
CHECK = "check its checkpoint, image processor, image token and feature layer, and the rows' images (docs/faq.md)"


@torch.no_grad()
def look(trainer: Trainer, group: Sequence[Batch]) -> tuple[dict[str, float], str] | None:
    """Show the teacher the examples of a step that have images, of all processes; None if there are none.

    Returns the mean cross-entropy of the answers' tokens in nats, by which images it was shown, and a warning if its own are
    no help, else "". Another row's image: see `Batch.with_other_images`; where there is none, it can't be compared.

    Every process must call this. No random number is drawn: the teacher is in eval mode; its cached states aren't used.
    """
    device, bf16 = trainer.replica.device, trainer.precision == "bf16"
    sums = torch.zeros(5, dtype=torch.float64)
    seen: dict[Any, ImageInput] = {}
    for batch in ((each.teacher or each).to(device) for each in group if each.images):
        keep = batch.predicting("answer") & batch.has_image[:, None]
        other, exchanged = batch.with_other_images(seen)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = [_loss(trainer.paths, each, keep) for each in (batch, batch.with_blank_images(), other)]
        sums += torch.tensor([*losses, int(keep.sum()), int(keep[exchanged].sum())], dtype=torch.float64)
    *losses, count, compared = trainer.processes.sum(sums).tolist()
    if not count:
        return None
    own, blank, other = means = [loss / count for loss in losses]
    sees = own <= (1 - LEAST) * blank and (not compared or own <= (1 - LEAST * compared / count) * other)
    figures = dict(zip(SHOWN, means if compared else means[:2], strict=False))
    told = ", ".join(f"{value:.3g} nats {SHOWN[name]}" for name, value in figures.items())
    return figures, "" if sees else f"the teacher may not see: its loss on the answers is {told}: {CHECK}"


def _loss(paths: Paths, batch: Batch, keep: Tensor) -> float:
    """Return the sum of the teacher's cross-entropy at the positions of `keep`; logits of one chunk exist at a time."""
    heads, hidden = paths.heads(), paths.teacher_hidden_states(batch, keep)
    size = positions(heads.columns["teacher"])
    chunks = zip(hidden.split(size), batch.targets[keep].split(size), strict=True)
    return sum(cross_entropy(ids, heads("teacher", states)).sum().item() for states, ids in chunks)
