"""Prototypes of the teacher's hidden states, as moving averages: the term's state (after ProC-KD, 2212.13180)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from switchkd_cli.engine.losses.ops.state import State, ema, updated_by
from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32, kl
from switchkd_cli.ranges import Positive, PositiveInt, Share


def _moved(
    state: Mapping[str, Tensor],
    sums: Mapping[str, Tensor],
    loss: float,
    progress: float,
    *,
    size: int,
    decay: float,
    temperature: float,
) -> dict[str, Tensor]:
    """Return the prototypes after a step, each moved to the mean of the states that it was the nearest to."""
    before, count = state.get("prototypes", _drawn(size, sums["states"])), sums["count"][:, None]
    return {"prototypes": torch.where(count > 0, ema(before, sums["states"] / count.clamp(min=1), decay), before)}


@updated_by(_moved)
def codebook(
    teacher_mapped: Tensor,
    student_mapped: Tensor,
    state: State,
    *,
    size: PositiveInt = 64,
    decay: Share = 0.99,
    temperature: Positive = 0.1,
) -> Tensor:
    """Return KL(q_T || q_S) for each row of hidden states [N, D], q over prototypes, in nats, [N].

    q = softmax(cos(h, prototype) / temperature) over ``size`` prototypes, the same ones for both models. They begin as random
    directions. After each step a prototype becomes ``decay`` times itself plus the rest times the mean of the teacher's
    states, of length 1, that were nearest to it in the step. The source adds prototypes to the student's features instead.
    """
    teacher, student = (normalize(at_least_float32(z), dim=-1) for z in (teacher_mapped.detach(), student_mapped))
    prototypes = normalize(state.get("prototypes", _drawn(size, teacher)), dim=-1)
    log_t, log_s = ((z @ prototypes.mT / temperature).log_softmax(-1) for z in (teacher, student))
    nearest = one_hot(log_t.argmax(-1), size).to(teacher.dtype)
    state.add("states", nearest.mT @ teacher)
    state.add("count", nearest.sum(0))
    return kl(log_t, log_s)


def _drawn(size: int, like: Tensor) -> Tensor:
    """Return random directions, the same in every run and process, [size, D]."""
    directions = torch.randn(size, like.shape[-1], generator=torch.Generator().manual_seed(0))
    return normalize(directions, dim=-1).to(like)
