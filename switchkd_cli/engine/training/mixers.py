"""Mixers: rules for which rows a stage visits next, by what the student still lacks; rounds.py applies them.

The names of a rule's positional arguments say what it reads, as a loss's do: means of figures (figures.py) over the tokens of
each answer, `<path>_<figure>`, or `<figure>` of the student against the teacher. Of C candidate rows: `student_loss`,
`teacher_loss` (nats per token), `divergence` (KL(T‖S)), `confidence` [C], `teacher_distribution` [C, W]; it returns a score for
each, [C], and the `count` rows with the highest are visited. A rule that reads `weights` [D] gets the figures of D data sets'
held-out rows, [D], and returns the weights of the next round. All are float64, on the CPU.
"""

import math

import torch
from torch import Tensor

from switchkd_cli.ranges import Positive, Share


def ddk(
    weights: Tensor, student_loss: Tensor, teacher_loss: Tensor, *, smoothing: Share = 0.5, temperature: Positive = 1.0
) -> Tensor:
    """Return weights by how much larger the student's perplexity is than the teacher's (DDK, 2407.16154, Eq. 2).

    With r the weights before, l a perplexity, α the `smoothing`, τ the `temperature` (ours: 1 is theirs) and D sets:

        r'_i = α · softmax_i(log r_i + l_S,i / (τ l_T,i)) + (1 - α) / D
    """
    ratio = (student_loss - teacher_loss).exp()
    return smoothing * (weights.log() + ratio / temperature).softmax(0) + (1 - smoothing) / len(weights)


def by_divergence(divergence: Tensor) -> Tensor:
    """Rows where student and teacher say different things come first (DeltaPrompts, 2605.15532)."""
    return divergence


def by_confidence(confidence: Tensor) -> Tensor:
    """Rows that both models together are sure of come first (KD³, 2307.11469)."""
    return confidence


def by_lag(student_loss: Tensor, teacher_loss: Tensor) -> Tensor:
    """Rows whose answer the student finds less likely than the teacher does come first (CoMD, 2311.08213)."""
    return student_loss - teacher_loss


def k_centre(teacher_distribution: Tensor, count: int) -> Tensor:
    """Choose `count` rows that cover the teacher's answers (PCoreSet, 2506.00910): k-centre, greedily.

    Each next row is the one farthest from the nearest of those chosen before, in Euclidean distance; the first candidate is
    the first. The scores are the reversed order of choice, and 0 for what is not chosen.
    """
    scores, distance = torch.zeros(len(teacher_distribution)), torch.full((len(teacher_distribution),), math.inf)
    for rank in range(count):
        chosen = int(distance.argmax())
        scores[chosen] = count - rank
        distance = distance.minimum((teacher_distribution - teacher_distribution[chosen]).norm(dim=1))
        distance[chosen] = -math.inf
    return scores
