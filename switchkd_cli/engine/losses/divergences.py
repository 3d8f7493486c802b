"""Divergences of two models' probabilities over the vocabulary.

Forward Kullback-Leibler (Hinton et al., 2015), reverse (MiniLLM, 2306.08543), generalised Jensen-Shannon (GKD, 2306.13649), and
skewed, forward and reverse (DistiLLM, 2402.03898). The target's probability and the others' apart (DKD, 2203.08679, Eq. 7),
or the top k ids and the rest together (after TopKD, 2508.04539).
From a target that moves from the student to the teacher during a stage (TAID, 2501.16937), or is blurred where it may be private
(after Swing, 2212.08349).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from switchkd_cli.engine.losses.ops.state import State, ema, updated_by
from switchkd_cli.engine.losses.ops.vocabulary import FLOOR, kl, log_probabilities, mix, without_padding
from switchkd_cli.ranges import Fraction, NotNegative, Positive, PositiveInt, Share, above


def forward_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: Positive = 1.0) -> Tensor:
    """Return KL(p_T || p_S) for each row of logits [N, V], p = softmax(z / temperature), in nats, [N].

    There is no temperature^2 factor: the term's weight says how much it counts.
    """
    teacher, student = without_padding(teacher_logits, student_logits)
    return _ForwardKL.apply(teacher, student, temperature)


class _ForwardKL(torch.autograd.Function):
    """Forward KL with its gradient in closed form, (p_S - p_T) / temperature: five tensors [N, V] at most, in place of seven."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
        log_t, log_s = ((z if temperature == 1 else z / temperature).log_softmax(-1) for z in (teacher, student))
        difference = log_t - log_s
        p_t = log_t.exp_()
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(log_s.exp_().sub_(p_t).div_(temperature))
        return difference.mul_(p_t).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.saved_tensors[0] * grad[:, None], None


def reverse_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: Positive = 1.0) -> Tensor:
    """Return KL(p_S || p_T) for each row of logits [N, V], p = softmax(z / temperature), in nats, [N].

    There is no temperature^2 factor: the term's weight says how much it counts.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    return kl(log_s, log_t)


def grounded_kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    blind_logits: Tensor,
    *,
    temperature: Positive = 1.0,
    visual: float = 2.0,
) -> Tensor:
    """Return KL(p_S || q) for each row of logits [N, V], in nats, [N]: q leans on what the teacher sees.

    q = softmax((z_B + visual (z_T - z_B)) / temperature), z_B the teacher's logits where every image is grey. Reverse KL is,
    up to a constant, KL(p_S || p_B), the language prior, plus the mean over p_S of log p_B - log p_T, the visual grounding; here
    the second counts ``visual`` times: at 1 it is reverse_kl. One reading of VGS (2606.00564), which steers gradients.
    """
    teacher, blind = without_padding(teacher_logits, blind_logits)
    return reverse_kl(blind + visual * (teacher - blind), student_logits, temperature=temperature)


def jensen_shannon(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: Positive = 1.0, beta: Fraction = 0.5
) -> Tensor:
    """Return beta KL(p_T || m) + (1 - beta) KL(p_S || m), m = beta p_T + (1 - beta) p_S, in nats, [N].

    p = softmax(z / temperature) of logits [N, V]. At beta 0 and 1 any two models have divergence 0, so beta lies
    between them; the limits, scaled, are forward_kl and reverse_kl.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    log_m = mix(log_t, log_s, beta)
    return (beta * log_t.exp() * (log_t - log_m) + (1 - beta) * log_s.exp() * (log_s - log_m)).sum(-1)


def skewed_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: Positive = 1.0, alpha: Fraction = 0.1
) -> Tensor:
    """Return KL(p_T || alpha p_T + (1 - alpha) p_S) for each row of logits [N, V], in nats, [N].

    p = softmax(z / temperature). The teacher's part of the mixture keeps the logarithm bounded where the student has
    no probability. alpha lies between 0 and 1; its limit 0 is forward_kl.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    return kl(log_t, mix(log_t, log_s, alpha))


def skewed_reverse_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: Positive = 1.0, alpha: Fraction = 0.1
) -> Tensor:
    """Return KL(p_S || alpha p_S + (1 - alpha) p_T) for each row of logits [N, V], in nats, [N].

    p = softmax(z / temperature). The student's part of the mixture keeps the logarithm bounded where the teacher has
    no probability: no row costs more than -log(alpha). The gradient also goes through that part. alpha lies
    between 0 and 1; its limit 0 is reverse_kl.
    """
    log_t, log_s = log_probabilities(teacher_logits, student_logits, temperature)
    return kl(log_s, mix(log_s, log_t, alpha))


def decoupled_kd(
    teacher_logits: Tensor,
    student_logits: Tensor,
    targets: Tensor,
    *,
    temperature: Positive = 1.0,
    alpha: NotNegative = 1.0,
    beta: NotNegative = 1.0,
) -> Tensor:
    """Return alpha TCKD + beta NCKD for each row of logits [N, V], in nats, [N].

    With p = softmax(z / temperature) and the target's probability b = p[target], ``targets`` [N] int64: TCKD is
    KL(b_T || b_S) between the two-way distributions (b, 1 - b); NCKD is KL(q_T || q_S), q = softmax(z / temperature)
    over all columns except the target. KL(p_T || p_S) is TCKD + (1 - b_T) NCKD: here the teacher's confidence doesn't
    make NCKD small. There is no temperature^2 factor. A row without a target (a negative one) costs 0.
    """
    teacher, student = without_padding(teacher_logits, student_logits)
    is_target = torch.zeros_like(teacher, dtype=torch.bool).scatter_(1, targets.clamp(min=0)[:, None], True)
    two_t, two_s = (_two_way(z / temperature, is_target) for z in (teacher, student))
    rest_t, rest_s = ((z / temperature).masked_fill(is_target, FLOOR).log_softmax(-1) for z in (teacher, student))
    loss = alpha * kl(two_t, two_s) + beta * kl(rest_t, rest_s)
    return torch.where(targets >= 0, loss, 0.0)


def top_k_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: Positive = 1.0, k: PositiveInt = 8
) -> Tensor:
    """Return KL(p_T || p_S) over the teacher's top k ids and one for all others, for each row of logits [N, V], in nats, [N].

    p = softmax(z / temperature): the rest's probability is matched as a whole, in whatever way it is spread.
    """
    models = log_probabilities(teacher_logits, student_logits, temperature)
    ids = models[0].topk(min(k, models[0].shape[-1])).indices
    rests = (log_p.scatter(-1, ids, FLOOR).logsumexp(-1, keepdim=True) for log_p in models)
    return kl(*(torch.cat([log_p.gather(-1, ids), rest], -1) for log_p, rest in zip(models, rests, strict=True)))


def _two_way(z: Tensor, is_target: Tensor) -> Tensor:
    """Return log (b, 1 - b), [N, 2]."""
    target = z.masked_fill(~is_target, 0.0).sum(-1)
    rest = z.masked_fill(is_target, FLOOR).logsumexp(-1)
    return torch.stack([target, rest], -1).log_softmax(-1)


def taid(
    teacher_logits: Tensor,
    student_logits: Tensor,
    progress: float,
    *,
    temperature: Positive = 1.0,
    start: Share = 0.4,
    end: Annotated[Share, above("start", or_equal=True)] = 1.0,
) -> Tensor:
    """Return KL(p_t || p_S) for each row of logits [N, V], in nats, [N].

    p_t = softmax((1 - t) z_S + t z_T) with z_S detached, logits divided by the temperature; t grows linearly from
    ``start`` to ``end`` with ``progress``, the share of the stage's steps that were taken (0 to 1). This line is the
    source's lower bound of t: `taid_adaptive` has the source's step.
    """
    return _to_between(teacher_logits, student_logits, _taid_line(progress, start, end), temperature)


def _taid_line(progress: float, start: float, end: float) -> float:
    return start + (end - start) * progress


def _to_between(teacher_logits: Tensor, student_logits: Tensor, t: float, temperature: float) -> Tensor:
    teacher, student = without_padding(teacher_logits, student_logits)
    between = t * teacher + (1 - t) * student.detach()
    return kl((between / temperature).log_softmax(-1), (student / temperature).log_softmax(-1))


def _taid_step(state: State, sums: Mapping[str, Tensor], loss: float, progress: float, **of: float) -> State:
    """Return t, the loss and its momentum after a step of `taid_adaptive`; the first one only notes its loss."""
    t = max(state.get("t", of["start"]), _taid_line(progress, of["start"], of["end"]))
    if "loss" not in state:
        return State(t=t, loss=loss, momentum=0.0)
    momentum = ema(state["momentum"], (state["loss"] - loss) / (state["loss"] + 1e-15), of["beta"])
    sigmoid = (1 + math.tanh(momentum / 2)) / 2
    return State(t=min(of["end"], t + of["alpha"] * sigmoid * (1 - t)), loss=loss, momentum=momentum)


@updated_by(_taid_step)
def taid_adaptive(
    teacher_logits: Tensor,
    student_logits: Tensor,
    progress: float,
    state: State,
    *,
    temperature: Positive = 1.0,
    start: Share = 0.4,
    end: Annotated[Share, above("start", or_equal=True)] = 1.0,
    alpha: NotNegative = 5e-4,
    beta: Share = 0.99,
) -> Tensor:
    """Return `taid` for each row of logits [N, V], in nats, [N], where t follows the loss J from step to step.

    t_n = min(end, max(line, t_{n-1} + alpha sigmoid(m_n) (1 - t_{n-1}))), where the line is that of `taid`, and
    m_n = beta m_{n-1} + (1 - beta) (J_{n-2} - J_{n-1}) / J_{n-2}: t moves on faster while the loss falls (2501.16937,
    Algorithm 1, with its parameters).
    """
    t = max(state.get("t", start), _taid_line(progress, start, end))
    return _to_between(teacher_logits, student_logits, t, temperature)


def swing_kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    targets: Tensor,
    *,
    temperature: Positive = 1.0,
    hottest: Positive = 4.0,
    noise: Share = 0.5,
) -> Tensor:
    """Return KL(q_T || p_S) for each row of logits [N, V], in nats, [N], blurred where the target may be private.

    With b the target's probability (``targets`` [N] int64), a position's score is b_T - b_S, at least 0: what the teacher
    knows and the student can't guess (our reading; the source doesn't say it in what we have read). Both models' temperature
    rises with the score, from ``temperature`` to ``hottest`` times it, and of q_T a share of ``noise`` times the score is
    uniform: the mean of the source's random noise, so that no split of a step changes the loss. No gradient goes through
    the score. A row without a target (a negative one) has score 0.
    """
    teacher, student = without_padding(teacher_logits, student_logits)
    known, guessed = (z.softmax(-1).gather(-1, targets.clamp(min=0)[:, None]) for z in (teacher, student.detach()))
    score = torch.where(targets[:, None] >= 0, known - guessed, 0.0).clamp(min=0)
    heat = temperature * (1 + (hottest - 1) * score)
    log_t, log_s = ((z / heat).log_softmax(-1) for z in (teacher, student))
    real = teacher > FLOOR
    blurred = (1 - noise * score) * log_t.exp() + noise * score * real / real.sum(-1, keepdim=True)
    return (torch.xlogy(blurred, blurred) - blurred * log_s).sum(-1)
