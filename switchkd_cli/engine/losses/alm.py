"""Approximate likelihood matching of two models with unlike tokenizers: ALM (2503.20083)."""

from typing import Literal

import torch
from torch import Tensor

from switchkd_cli.engine.losses.cross_entropy import cross_entropy
from switchkd_cli.engine.losses.ops.kl import kl
from switchkd_cli.engine.losses.ops.spans import sum_over_spans

LEAST = 1e-7
"""The least -log(p) / temperature: beyond it 1 - p is lost in float32, and so is its logarithm."""


def alm(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_targets: Tensor,
    targets: Tensor,
    teacher_spans: Tensor,
    student_spans: Tensor,
    *,
    temperature: float = 100.0,
    divergence: Literal["forward", "reverse"] = "forward",
) -> Tensor:
    """Return the divergence of two probabilities of each span's text, of it against all other text, in nats, [C].

    A span's log-probability a is the sum of those of its tokens. With p = exp(a / temperature) the divergence is KL between
    (p_T, 1 - p_T) and (p_S, 1 - p_S); its gradient is that of the binary cross-entropy. Both logits have own vocabularies:
    [M, V_T] and [N, V_S], with the next tokens [M] and [N] and their spans.

    Left out of the paper's method: the choice of spans by how little their ends tell (outcome chunk debiasing). That KL is
    its divergence and 100 its temperature is from notes about it, not from its code.
    """
    teacher, student = (
        (sum_over_spans(-cross_entropy(ids, logits), spans) / temperature).clamp(max=-LEAST)
        for ids, logits, spans in (
            (teacher_targets, teacher_logits.detach(), teacher_spans),
            (targets, student_logits, student_spans),
        )
    )
    p, q = (torch.stack([log_p, (-torch.expm1(log_p)).log()], -1) for log_p in (teacher, student))
    return kl(p, q) if divergence == "forward" else kl(q, p)
